"""Trains every arm with every seed and method, and saves each result: a stopped comparison continues where it stopped.

    out/settings.json                                  settings shared by all cells; they may not change within a folder
    out/cells/<method>/<arm>_k<K>_seed<n>.json         one finished cell
    out/features                                       features of frozen towers, keyed by content

A cell depends only on settings.json, its method's recipe, its arm, number of real images and seed, so any number of
processes produce the same cells in any order. Arms differ only in their images. A cell chooses its hyper-parameters on
the validation split; only then is the model applied, once, to the images that scores are computed on. Methods:

    zero_shot       the encoder and its prompts, untrained; its only arm is `untrained`
    linear          a linear head on frozen features, initialised with zeros
    classifier      a linear head on frozen embeddings, initialised from the prompts (He et al. 2023)
    clip            the whole encoder, by its contrastive loss; classifies by its prompts
    cross_entropy   the image tower and a linear head, by cross-entropy
    captions        a text tower on frozen features, by captions; also measured by retrieval
                    (`rsdiff.downstream.problems.retrieval`)
"""

import dataclasses
import functools
import hashlib
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any, cast

import numpy as np
from tqdm import tqdm

from rsdiff.base.errors import BadInput
from rsdiff.base.folders import claim_folder
from rsdiff.base.work import Claims, end_without_parent, is_local_worker, local_workers, share_out
from rsdiff.downstream import arms, filters, methods, zero_shot
from rsdiff.downstream.arms import UNTRAINED, Arm
from rsdiff.downstream.cells import read_cell, write_cell
from rsdiff.downstream.encoder import Encoder
from rsdiff.downstream.methods import ZERO_SHOT
from rsdiff.downstream.problems.base import Problem
from rsdiff.downstream.problems.heads import Towers
from rsdiff.downstream.task import VALIDATION, Task
from rsdiff.downstream.tuning import Recipe

ON_CURVE = arms.REAL, arms.BOTH, arms.BICUBIC


@dataclasses.dataclass(frozen=True)
class Study:
    """The methods, arms and seeds to compare.

    Attributes:
      recipes: method name → recipe, for every method except 'zero_shot'; its keys are the methods.
      kinds: kinds of arms, from `arms.KINDS`.
      ratios: synthetic images per real image in 'real+synthetic'; the other arms use the largest ratio.
      real_per_class: real images per class in the comparison of all arms; None: all images.
      shots: further numbers of real images per class, for the learning curves of real, real+synthetic (largest ratio)
        and bicubic.
      seeds: number of seeds, counted from 0.
      filter: filter for synthetic images, one of `filters.FILTERS`.
      soft_targets: whether labels of synthetic images are softened by the encoder's own predictions.
      prompts: prompt set for class names, one of `zero_shot.PROMPTS`. 'zero_shot', `filter` and `soft_targets` classify
        by it, 'classifier' and 'cross_entropy' are initialised from it, and 'clip' trains with it.
      evaluate_on: the split of `task.evaluation`.
    """

    recipes: dict[str, Recipe]
    kinds: tuple[str, ...]
    ratios: tuple[int, ...]
    real_per_class: int | None
    shots: tuple[int, ...] = ()
    seeds: int = 5
    filter: str = filters.NONE
    soft_targets: bool = False
    prompts: str = zero_shot.TEMPLATES
    evaluate_on: str = 'test'

    def __post_init__(self):
        for name in 'ratios', 'shots':
            if any(number < 1 for number in getattr(self, name)):
                raise BadInput(f'{name} are {getattr(self, name)}; they must be at least 1')
        if not (self.ratios and self.kinds and self.recipes):
            raise BadInput('nothing to compare: give at least one method, arm and ratio')

    def cells(self) -> list['Cell']:
        """All cells; those of one seed and arm are adjacent, because they share features."""
        untrained = [Cell(ZERO_SHOT, Arm(UNTRAINED, 0), 0, seed) for seed in range(self.seeds)]
        every = arms.arms_of(self.kinds, self.ratios)
        curve = tuple(arm for arm in arms.arms_of(self.kinds, (max(self.ratios),)) if arm.kind in ON_CURVE)
        of_shots = {self.real_per_class: every} | {shots: curve for shots in self.shots if shots != self.real_per_class}
        return untrained + [
            Cell(method, arm, shots, seed)
            for shots, group in of_shots.items()
            for seed in range(self.seeds)
            for arm in group
            for method in self.recipes
        ]


@dataclasses.dataclass(frozen=True)
class Cell:
    """One training run of `method` on `arm`, with `shots` real images per class (None: all)."""

    method: str
    arm: Arm
    shots: int | None
    seed: int

    @property
    def name(self) -> str:
        shots = 'all' if self.shots is None else self.shots
        return f'{self.method}/{self.arm.slug}_k{shots}_seed{self.seed}'


def compare(
    task: Task, encoder: Encoder, study: Study, out: Path | str, jobs: int = 1, features: Path | str | None = None
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Runs the cells that are not finished yet.

    Args:
      jobs: number of processes that share the cells, each running this program with the same arguments
        (`work.local_workers`).
      features: folder for features, which several studies may share; out/features if not given.
    Returns:
      (settings, cells). Each cell has `method`, `arm`, `shots`, `ratio` (extra images per real image), `seed`, `steps`,
      `real_images`, `extra_images`, `accuracy`, `macro_f1`, `confusion` (true × predicted), `predictions` (class
      indices of the evaluated images, in their order), `final_loss`, `learning_rate` and `weight_decay` (as chosen),
      `validation_score` (accuracy; mean recall for 'captions'), `seconds`, `training_seconds` and `digest`. Cells of
      'captions' also have `hits`: for each direction, the hit of each evaluated image at each k of `recall.KS`.
    Raises:
      BadInput: `out` holds a comparison with other settings or other images; or for the reasons given in
        `arms.examples`; or settings must be chosen but there is no validation split; or captions are missing.
    """
    out, cells, encoder = Path(out), study.cells(), zero_shot.with_prompts(encoder, study.prompts)
    fixed = {
        'encoder': encoder.name,
        'encoder_digest': encoder.digest,
        'image_size_px': encoder.image_size_px,
        'classes': list(task.classes),
        'evaluate_on': study.evaluate_on,
        'extra_per_real': max(study.ratios),
        'filter': study.filter,
        'soft_targets': study.soft_targets,
        'prompts': study.prompts,
        'real_images': task.train.digest(),
        'synthetic_images': task.synthetic.digest(),
        'evaluation_images': task.evaluation.digest(),
        'validation_images': None if task.validation is None else task.validation.digest(),
    }
    laboratory = _Laboratory(task, encoder, study, fixed, out, features or out / 'features')
    _check(task, study, cells, laboratory.problems)
    claim_folder(out, fixed)
    if not is_local_worker():
        zero_shot.warn_of_names_read_alike(encoder, task.classes)
    missing = [cell for cell in cells if laboratory.read(cell) is None]
    if jobs > 1 and not is_local_worker():
        laboratory.prepare(missing)

    claims = Claims(out / 'claims')
    with (
        local_workers(jobs),
        tqdm(total=len(cells), desc='downstream', unit='cell', dynamic_ncols=True, disable=is_local_worker()) as bar,
    ):
        for cell, _ in share_out(
            cells,
            lambda cell: laboratory.read(cell) is not None,
            laboratory.run,
            lambda cell: claims.claim(cell.name.replace('/', '_')),
        ):
            end_without_parent()
            bar.set_postfix_str(cell.name, refresh=False)
            bar.update()
    # once `share_out` ends, every cell is finished
    finished = cast(list[dict[str, Any]], [laboratory.read(cell) for cell in cells])
    return _settings(task, study, fixed, finished), finished


class _Laboratory:
    """Runs cells and reads finished ones."""

    def __init__(
        self, task: Task, encoder: Encoder, study: Study, fixed: dict[str, Any], out: Path, features: Path | str
    ):
        self.task, self.study, self.out = task, study, out
        self.digests = {
            method: hashlib.sha256(
                json.dumps(
                    [fixed, dataclasses.asdict(study.recipes[method]) if method in study.recipes else None],
                    sort_keys=True,
                ).encode()
            ).hexdigest()
            for method in methods.METHODS
        }
        towers = Towers(encoder, features)
        self.towers = towers
        self.screen = None
        if study.filter != filters.NONE or study.soft_targets:
            self.screen = filters.Screen(encoder, task.classes, towers(0), study.filter, study.soft_targets)
        self.problems = {ZERO_SHOT: methods.untrained(encoder, task.classes, towers)} | {
            method: methods.trained(method, encoder, task.classes, recipe, towers)
            for method, recipe in study.recipes.items()
        }
        self.examples = functools.lru_cache(maxsize=1)(
            lambda arm, shots, seed: arms.examples(task, arm, shots, seed, self.screen)
        )

    def path(self, cell: Cell) -> Path:
        return self.out / 'cells' / f'{cell.name}.json'

    def read(self, cell: Cell) -> dict[str, Any] | None:
        """A finished cell, or None if it is missing, damaged or altered.

        A cell written before there were checksums is accepted if its scores follow from its predictions.
        """
        return read_cell(self.path(cell), self.digests[cell.method], lambda row: self._scores_follow(cell, row))

    def _scores_follow(self, cell: Cell, row: dict[str, Any]) -> bool:
        try:
            found = self.problems[cell.method].scores(row, self.task.evaluation)
        except BadInput:
            return False
        return all(row.get(name) == value for name, value in found.items())

    def prepare(self, cells: list[Cell]) -> None:
        """Computes the features that the cells need, so that parallel processes do not each compute them."""
        frozen = dict.fromkeys((cell.arm, cell.shots, cell.seed) for cell in cells if cell.method in methods.FROZEN)
        for arm, shots, seed in tqdm(frozen, desc='features', unit='arm', dynamic_ncols=True):
            self.towers(seed)(self.examples(arm, shots, seed).pixels)

    def run(self, cell: Cell) -> None:
        """Trains a cell, chooses the best candidate, evaluates it and writes the result."""
        started = time.monotonic()
        row = {
            'digest': self.digests[cell.method],
            'method': cell.method,
            'arm': cell.arm.name,
            'shots': cell.shots,
            'ratio': cell.arm.ratio,
            'seed': cell.seed,
        }
        problem, examples = self.problems[cell.method], self.examples(cell.arm, cell.shots, cell.seed)
        recipe = self.study.recipes.get(cell.method)
        best, score, seconds = problem.fit(examples, self.task.validation if recipe else None, cell.seed)
        if not np.isfinite(best.losses).all():
            raise FloatingPointError(f'cell {cell.name}: the loss is no longer finite; use lower --learning_rates')
        row |= {
            'steps': recipe.steps if recipe else 0,
            'real_images': examples.real,
            'extra_images': len(examples) - examples.real,
            'final_loss': float(best.losses[-1]) if recipe else None,
        }
        if recipe:
            row |= {
                'learning_rate': best.learning_rate,
                'weight_decay': best.weight_decay,
                'validation_score': score,
                'training_seconds': round(seconds, 4),
            }
        statistics = problem.statistics(best, self.task.evaluation)
        row |= statistics | problem.scores(statistics, self.task.evaluation)
        row['seconds'] = round(time.monotonic() - started, 2)
        write_cell(self.path(cell), row)


def _check(task: Task, study: Study, cells: list[Cell], problems: dict[str, Problem]) -> None:
    """Raises input errors before the first cell, not in the middle of the run."""
    for method, recipe in study.recipes.items():
        if len(recipe.candidates) > 1 and task.validation is None:
            raise BadInput(
                f'{task.train.folder}: no image has split {VALIDATION!r}, on which {method} chooses between '
                f'{len(recipe.candidates)} settings; add a validation split, or give a single value for each of '
                '--learning_rates and --weight_decays'
            )
    for problem in problems.values():
        problem.check(task)
    for arm, shots, seed in dict.fromkeys(
        (cell.arm, cell.shots, cell.seed) for cell in cells if cell.method != ZERO_SHOT
    ):
        arms.check(task, arm, shots, seed)


def _settings(task: Task, study: Study, fixed: dict[str, Any], cells: list[dict[str, Any]]) -> dict[str, Any]:
    """Settings and statistics of the whole comparison, for the report."""
    splits = {
        'train': task.train,
        'synthetic': task.synthetic,
        'validation': task.validation,
        'evaluation': task.evaluation,
    }
    chosen, speed = {}, {}
    for method, recipe in study.recipes.items():
        own = [cell for cell in cells if cell['method'] == method]
        chosen[method] = {
            key: {str(value): count for value, count in sorted(Counter(cell[key] for cell in own).items())}
            for key in ('learning_rate', 'weight_decay')
        }
        # The median ignores the cells that waited for the compiler.
        speed[method] = round(
            float(np.median([len(recipe.candidates) * cell['steps'] / cell['training_seconds'] for cell in own])), 1
        )
    return fixed | {
        'methods': [ZERO_SHOT, *study.recipes],
        'arms': [arm.name for arm in arms.arms_of(study.kinds, study.ratios)],
        'ratios': list(study.ratios),
        'real_per_class': study.real_per_class,
        'shots': list(study.shots),
        'seeds': study.seeds,
        'recipes': {method: dataclasses.asdict(recipe) for method, recipe in study.recipes.items()},
        'chosen': chosen,
        'steps_per_second': speed,
        'dropped': len(task.dropped),
        'counts': {split: 0 if images is None else len(images) for split, images in splits.items()},
    }
