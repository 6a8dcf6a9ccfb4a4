"""Does synthetic data help super-resolution? Trains every arm with every seed, and compares them with `real`.

    out/settings.json                       settings shared by all cells; they may not change within a folder
    out/cells/<arm>_k<K>_seed<n>.json       one finished cell
    out/samples/<arm>/<n>.png               some enlarged images of the first seed
    out/table.md table.csv report.json grid.png

PSNR and LPIPS are compared image by image and seed by seed (`rsdiff.downstream.statistics`); the distance between sets
(fd_efflite0) has one value per seed, and its interval is Student's over seeds.
"""

import dataclasses
import functools
import hashlib
import json
import time
from pathlib import Path
from typing import Any, Sequence, cast

import numpy as np
from tqdm import tqdm

from rsdiff.base.errors import BadInput
from rsdiff.base.files import write_json, write_text_atomically
from rsdiff.base.folders import claim_folder
from rsdiff.base.work import Claims, end_without_parent, is_local_worker, local_workers, share_out
from rsdiff.data.images import bicubic, read_image, write_image
from rsdiff.downstream import scores
from rsdiff.downstream.arms import REAL, SYNTHETIC, Arm
from rsdiff.downstream.cells import read_cell, write_cell
from rsdiff.downstream.problems import super_resolution
from rsdiff.downstream.problems.super_resolution import Enlarger, SuperResolution
from rsdiff.downstream.statistics import Change, PairedBootstrap, holm
from rsdiff.downstream.summary import LEVEL, is_mixture, p_text
from rsdiff.downstream.task import Task
from rsdiff.downstream.tuning import Recipe
from rsdiff.evaluation import tables
from rsdiff.evaluation.distribution import frechet_distance
from rsdiff.evaluation.features import FeatureStore, efflite0, features_of
from rsdiff.evaluation.paired import paired_measures
from rsdiff.evaluation.report import write_grid
from rsdiff.evaluation.tables import Shown

MEASURES = 'psnr', 'lpips_alexnet'
TOLD = 'arm', 'ratio', 'real_images', 'extra_images'
FD = 'fd_efflite0'
EXAMPLES = 4


@dataclasses.dataclass(frozen=True)
class Study:
    """What to compare.

    Attributes:
      kinds: kinds of arms, from `super_resolution.KINDS`.
      ratios: synthetic images per real image in 'real+synthetic'; the other arms use the largest ratio.
      shots: real images per class that each seed draws; None: all.
      degradation: how low resolutions are made, a name in `data.degradation.PRESETS`.
    """

    enlarger: Enlarger
    recipe: Recipe
    degradation: str
    kinds: tuple[str, ...]
    ratios: tuple[int, ...]
    shots: int | None
    seeds: int

    def __post_init__(self):
        if not self.kinds or not self.ratios or min(self.ratios) < 1:
            raise BadInput('nothing to compare: give at least one arm, and ratios of at least 1')
        if len({*self.ratios}) < len(self.ratios):
            raise BadInput(f'ratios are {self.ratios}; give each once')

    def cells(self) -> list[tuple[Arm, int]]:
        """(arm, seed) of every cell."""
        every = super_resolution.arms_of(self.kinds, self.ratios)
        return [(arm, seed) for seed in range(self.seeds) for arm in every]


def compare(task: Task, study: Study, out: Path, jobs: int = 1) -> list[dict[str, Any]]:
    """Runs the cells that are not finished yet.

    Args:
      jobs: processes that share the cells.
    Returns:
      The cells: `arm`, `seed`, `real_images`, `extra_images`, `final_loss`, `seconds`, `fd_efflite0`, and `MEASURES` of each
      evaluated image, in their order.
    Raises:
      BadInput: `out` holds a study with other settings or images; or as `SuperResolution.pairs`.
    """
    # arms, ratios below the largest and seeds may be added later
    fixed = {
        name: value for name, value in dataclasses.asdict(study).items() if name not in ('kinds', 'ratios', 'seeds')
    }
    fixed |= {
        'extra_per_real': max(study.ratios),
        'image_size_px': task.evaluation.pixels.shape[1],
        'real_images': task.train.digest(),
        'synthetic_images': task.synthetic.digest(),
        'evaluation_images': task.evaluation.digest(),
    }
    for arm, seed in study.cells():
        super_resolution.check(task, arm, study.shots, seed)
    claim_folder(out, fixed)
    laboratory, claims = _Laboratory(task, study, fixed, out), Claims(out / 'claims')
    with (
        local_workers(jobs),
        tqdm(
            total=len(study.cells()), desc='downstream', unit='cell', dynamic_ncols=True, disable=is_local_worker()
        ) as bar,
    ):
        for (arm, seed), _ in share_out(
            study.cells(),
            lambda cell: laboratory.read(*cell) is not None,
            lambda cell: laboratory.run(*cell),
            lambda cell: claims.claim(laboratory.path(*cell).stem),
        ):
            end_without_parent()
            bar.set_postfix_str(f'{arm.name}, seed {seed}', refresh=False)
            bar.update()
    return [cast(dict[str, Any], laboratory.read(*cell)) for cell in study.cells()]


class _Laboratory:
    """Runs cells and reads finished ones."""

    def __init__(self, task: Task, study: Study, fixed: dict[str, Any], out: Path):
        self.task, self.study, self.out = task, study, out
        self.digest = hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()

    @functools.cached_property
    def problem(self) -> SuperResolution:
        return SuperResolution(self.study.enlarger, self.study.recipe, self.study.degradation)

    @functools.cached_property
    def low(self) -> np.ndarray:
        """The low resolutions of the evaluated images."""
        return self.problem.reduced(self.task.evaluation.pixels, self.task.evaluation.names)

    @functools.cached_property
    def measure(self):
        return paired_measures(MEASURES)

    @functools.cached_property
    def features(self) -> FeatureStore:
        return FeatureStore(efflite0(), self.out / 'features')

    def features_of(self, images: np.ndarray) -> np.ndarray:
        return features_of(self.features.extractor, [*images], self.features, show=False)

    def path(self, arm: Arm, seed: int) -> Path:
        shots = 'all' if self.study.shots is None else self.study.shots
        return self.out / 'cells' / f'{arm.slug}_k{shots}_seed{seed}.json'

    def read(self, arm: Arm, seed: int) -> dict[str, Any] | None:
        """A finished cell, or None if it is missing, damaged or altered."""
        return read_cell(self.path(arm, seed), self.digest)

    def run(self, arm: Arm, seed: int) -> None:
        """Trains a cell, enlarges the evaluated images and writes what was measured."""
        started, truths = time.monotonic(), self.task.evaluation
        pairs = self.problem.pairs(self.task, arm, self.study.shots, seed)
        params, losses = self.problem.fit(pairs, seed)
        if not np.isfinite(losses).all():
            raise FloatingPointError(
                f'{arm.name}, seed {seed}: the loss is no longer finite; use a lower --learning_rate'
            )
        made = self.problem.enlarge(params, self.low)
        measured = self.measure(made, truths.pixels, self.low)
        row = {
            'digest': self.digest,
            'arm': arm.name,
            'ratio': arm.ratio,
            'seed': seed,
            'real_images': pairs.real,
            'extra_images': len(pairs.images) - pairs.real,
            'final_loss': float(np.mean(losses[-20:])),
            **{name: values.tolist() for name, values in measured.items()},
            FD: frechet_distance(self.features_of(truths.pixels), self.features_of(made), groups=0).value,
            'seconds': round(time.monotonic() - started, 2),
        }
        if seed == 0:
            for number in examples(len(truths)):
                write_image(self.out / 'samples' / arm.slug / f'{number}.png', made[number])
        write_cell(self.path(arm, seed), row)


def examples(count: int) -> list[int]:
    """Which of `count` evaluated images are shown."""
    return sorted({number * count // EXAMPLES for number in range(EXAMPLES)})


def summarise(cells: Sequence[dict[str, Any]], images: int, baseline: str = REAL) -> dict[str, Any]:
    """Means over seeds, and changes against `baseline` with intervals and p, for each arm; and an answer by LPIPS.

    Args:
      cells: as returned by `compare`; all arms have the same seeds.
      images: number of evaluated images.
    """
    bootstrap = PairedBootstrap(np.zeros(images, int), 1)
    of_arm = {
        arm: [cell for cell in cells if cell['arm'] == arm] for arm in dict.fromkeys(cell['arm'] for cell in cells)
    }
    each = lambda own: np.array([np.stack([cell[name] for name in MEASURES], -1) for cell in own])
    changes: dict[str, list[Change]] = {}
    if baseline in of_arm:
        for arm, own in of_arm.items():
            if arm != baseline:
                changes[arm] = bootstrap.change_of_means(each(of_arm[baseline]), each(own))
    rows = []
    for arm, own in of_arm.items():
        row: dict[str, Any] = {name: own[0][name] for name in TOLD if name in own[0]}
        row |= {name: float(np.mean([cell[name] for cell in own])) for name in (*MEASURES, FD)} | {'seeds': len(own)}
        if arm in changes:
            for name, change in zip(MEASURES, changes[arm]):
                row[f'{name}_change'] = dataclasses.asdict(change)
            differences = [cell[FD] - before[FD] for cell, before in zip(own, of_arm[baseline], strict=True)]
            mean, half = scores.mean_interval(differences)
            row[f'{FD}_change'] = {'value': mean, 'half': half}
        rows.append(row)
    adjusted = holm([row['lpips_alexnet_change']['p'] for row in rows if row['arm'] in changes])
    for row, p in zip((row for row in rows if row['arm'] in changes), adjusted):
        row['p_holm'] = p
    return {'rows': rows, 'answer': _answer(rows), 'evaluation_images': images}


def _answer(rows: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The best arm with synthetic images by LPIPS, beside the best without."""
    judged = [row for row in rows if 'p_holm' in row]
    gain = lambda row: -row['lpips_alexnet_change']['value']
    mixtures = [row for row in judged if is_mixture(row['arm'])]
    if not mixtures:
        return None
    best = max(mixtures, key=gain)
    controls = [row for row in judged if not is_mixture(row['arm']) and row['arm'] != SYNTHETIC and gain(row) > 0]
    change = best['lpips_alexnet_change']
    told = 'no evidence of a change'
    if best['p_holm'] < LEVEL:
        told = f'evidence of a {"gain" if gain(best) > 0 else "loss"}'
    text = (
        f'{best["arm"]} changes LPIPS by {_signed(change, 4)}, p after Holm over {len(judged)} arms '
        f'{p_text(best["p_holm"])}: {told}.'
    )
    if controls:
        control = max(controls, key=gain)
        text += f' The best arm without generated images, {control["arm"]}, changes it by {_signed(control["lpips_alexnet_change"], 4)}.'
    return {'arm': best['arm'], 'verdict': told, 'text': text}


def _signed(change: dict[str, float], digits: int) -> str:
    return f'{change["value"]:+.{digits}f} ({change["low"]:+.{digits}f} to {change["high"]:+.{digits}f})'


ARM_COLUMNS = (
    Shown('training images', lambda row: row['arm'], number=False),
    Shown('real', lambda row: str(row['real_images'])),
    Shown('extra', lambda row: str(row['extra_images'])),
)


def table(summary: dict[str, Any], first: Sequence[Shown] = ARM_COLUMNS) -> str:
    """The rows as Markdown; changes are against the baseline, with their 95 % intervals."""

    def change(row, name, digits):
        return _signed(row[f'{name}_change'], digits) if f'{name}_change' in row else ''

    def fd_change(row):
        found = row.get(f'{FD}_change')
        if found is None:
            return ''
        return f'{found["value"]:+.1f}' + ('' if found['half'] is None else f' ± {found["half"]:.1f}')

    columns = [
        *first,
        Shown('seeds', lambda row: str(row['seeds'])),
        Shown('PSNR, dB', lambda row: f'{row["psnr"]:.2f}'),
        Shown('change', lambda row: change(row, 'psnr', 2)),
        Shown('LPIPS (AlexNet)', lambda row: f'{row["lpips_alexnet"]:.4f}'),
        Shown('change', lambda row: change(row, 'lpips_alexnet', 4)),
        Shown(
            'p, Holm' if len(summary['rows']) > 2 else 'p', lambda row: p_text(row['p_holm']) if 'p_holm' in row else ''
        ),
        Shown(FD, lambda row: f'{row[FD]:.1f}'),
        Shown('change', fd_change),
    ]
    return tables.markdown(columns, summary['rows'])


def write_report(task: Task, study: Study, cells: Sequence[dict[str, Any]], out: Path) -> dict[str, Any]:
    """Writes table.md, table.csv, report.json and grid.png to `out`; returns the summary."""
    summary = summarise(cells, len(task.evaluation))
    answer = f'{summary["answer"]["text"]}\n\n' if summary['answer'] else ''
    write_text_atomically(out / 'table.md', answer + table(summary))
    flat = [
        {'arm': cell['arm'], 'seed': cell['seed'], FD: cell[FD]} | {name: np.mean(cell[name]) for name in MEASURES}
        for cell in cells
    ]
    write_text_atomically(out / 'table.csv', tables.csv_text(flat))
    write_json(out / 'report.json', summary | {'settings': dataclasses.asdict(study)})
    shown = task.evaluation.take(np.array(examples(len(task.evaluation))))
    problem = SuperResolution(study.enlarger, study.recipe, study.degradation)
    lines = []
    for number, truth, low in zip(
        examples(len(task.evaluation)), shown.pixels, problem.reduced(shown.pixels, shown.names)
    ):
        made = {
            arm.name: read_image(out / 'samples' / arm.slug / f'{number}.png')
            for arm in super_resolution.arms_of(study.kinds, study.ratios)
        }
        lines.append({'low': low, 'bicubic': bicubic(low, *truth.shape[:2])} | made | {'truth': truth})
    write_grid(out / 'grid.png', lines, 'truth', [])
    return summary
