"""Searches for the best generator at equal optimiser time, by halving.

    python tools/search.py --config configs/aerial_search.py --data data/aerial --pairs UCM:val --out runs/search --pages docs

Every candidate of the config, settings that differ from a base, is trained for a few minutes and evaluated on validation
images. The better half goes on, until the last rung. How many images a candidate sees in a minute follows from its own speed,
measured beside the others'. The score, lower is better, is the geometric mean of LPIPS and fd_efflite0, each divided by
that of bicubic enlargement. PAGES gets search.md and search.png, and pictures of the last rung in search_samples.png.

Run the same command again to continue. With --jobs N, or started several times, candidates are shared out; set
XLA_FLAGS=--xla_cpu_multi_thread_eigen=false to give each one core. The last line is one JSON object, also written to OUT/search.json.
"""

import dataclasses
import functools
import math
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import compare_pages
import equal_time
import ml_collections
from absl import flags
from equal_time import check_seen, for_images, images_seen, is_trained, load_config, train_to, training_speeds
from matplotlib.figure import Figure

from rsdiff.base import folders
from rsdiff.base.errors import BadInput
from rsdiff.base.files import write_json, write_text_atomically
from rsdiff.base.work import Claims, end_without_parent, is_local_worker, local_workers, share_out
from rsdiff.data.degradation import PRESETS
from rsdiff.data.folder import opened_entries, split_of
from rsdiff.evaluation.tables import Shown, markdown
from rsdiff.programs import console
from rsdiff.training.config import TrainConfig, from_dict

console.define_config('What to search: a file like configs/aerial_search.py, or its name.')
OUT = flags.DEFINE_string('out', None, 'Output folder: new, or from an earlier run of this command.', required=True)
DATA = flags.DEFINE_string('data', None, 'The training data, as config.data.source.', required=True)
PAIRS = flags.DEFINE_string('pairs', None, 'DIR:SPLIT with the validation images.', required=True)
PAGES = flags.DEFINE_string('pages', None, 'Folder for the table and pictures; default: OUT.')
JOBS = flags.DEFINE_integer('jobs', 1, 'Processes that train candidates at the same time.', lower_bound=1)

RESERVED = *compare_pages.CONTROLS, 'condition'
DIVERGED = 'diverged.json'
MEASURES = 'lpips_alexnet', 'fd_efflite0'  # those of the score
FIDELITY = 'psnr', 'lpips_alexnet', 'detail_ratio', 'hallucination'
COLUMNS = {name: compare_pages.COLUMNS[name] for name in (*MEASURES, 'psnr', 'detail_ratio', 'hallucination')}


@dataclasses.dataclass(frozen=True)
class Search:
    """The config: optimiser `minutes` at the end of each rung, ascending; settings of all runs that differ from those of the
    config `base`, and of each candidate; how validation images are degraded, and how many are used."""

    base: str
    minutes: tuple[float, ...]
    settings: dict[str, Any]
    candidates: dict[str, dict[str, Any]]
    degradation: str
    images: int

    def __post_init__(self):
        rising = list(self.minutes) == sorted({*self.minutes}) and min(self.minutes, default=0) > 0
        strange = [name for name in self.candidates if name in RESERVED or Path(name).name != name]
        problems = [
            (not self.candidates, 'candidates is empty; there is nothing to search'),
            (strange, f'candidate {strange[:1]}: give it another name'),
            (not rising, f'minutes is {self.minutes}; each must be more than the one before'),
            (self.degradation not in PRESETS, f'degradation is {self.degradation!r}; there are {", ".join(PRESETS)}'),
            (self.images < 2, f'images is {self.images}; it must be at least 2'),
        ]
        for wrong, message in problems:
            if wrong:
                raise BadInput(f'--config: {message}')

    @property
    def training(self) -> dict[str, Any]:
        """What the weights depend on."""
        names = 'base', 'minutes', 'settings', 'candidates'
        return {name: getattr(self, name) for name in names} | {'data': DATA.value}

    def config(self, name: str, images: int) -> TrainConfig:
        """The settings of a candidate's run of `images` images."""
        own = dict(self.candidates[name])
        config = load_config(own.pop('base', self.base))
        config.unlock()  # a candidate may have another kind of network or codec; unknown settings are found below
        for settings in (self.settings, own):
            config.update(ml_collections.ConfigDict(settings))
        config.data.source = DATA.value
        for_images(config, images)
        return from_dict(TrainConfig, config.to_dict())


def read_search() -> Search:
    """The search that --config describes.

    Raises:
      BadInput: something in it is missing, unknown or contradictory, or --pairs cannot be read.
    """
    if flags.FLAGS.config is None:
        raise BadInput('give --config FILE or NAME')
    try:
        search = Search(**flags.FLAGS.config.to_dict())
        for name in search.candidates:
            search.config(name, 1)
    except (KeyError, TypeError, AttributeError, ImportError) as error:
        raise BadInput(f'--config: not a search: {error}; see configs/aerial_search.py') from None
    opened_entries(*split_of(PAIRS.value))
    return search


def main() -> None:
    started, search, out = time.monotonic(), read_search(), Path(OUT.value)
    folders.claim_folder(out, search.training)
    console.enable_compilation_cache()
    claims, alive, rungs = Claims(out / 'claims'), list(search.candidates), {}
    path, split = split_of(PAIRS.value)
    options = [f'--pairs={path}{f":{split}" if split else ""}', f'--degradation={search.degradation}']
    options += [f'--limit={search.images}', f'--metrics={",".join(FIDELITY)}']
    with local_workers(JOBS.value):
        once('speeds', claims, (out / 'speeds.json').exists, functools.partial(speeds, search, out))
        rates = speeds(search, out)
        for minutes in search.minutes:
            done = lambda name, minutes=minutes: is_trained(snapshot(out, name, minutes)) or has_diverged(out, name)
            make = functools.partial(train_rung, search, out, rates, minutes)
            for _ in share_out(alive, done, make, claims.claim):
                end_without_parent()
            alive = [name for name in alive if not has_diverged(out, name)]
            if not alive:
                raise BadInput(f'{out}: no candidate is left whose loss stayed finite; use lower learning rates')
            for name in alive:
                check_seen(search.config(name, images_in(minutes, rates[name])), snapshot(out, name, minutes))
            snapshots = {name: snapshot(out, name, minutes) for name in alive}
            folder = equal_time.evaluation(snapshots, options, out / 'evaluations')
            judge = functools.partial(equal_time.evaluate, snapshots, options, folder)
            once(f'evaluation_{folder.name}', claims, functools.partial(equal_time.is_evaluated, folder), judge)
            rungs[f'{minutes:g}'] = rung = equal_time.result_of(folder)['rows']
            alive = better_half(rung, alive)
    if is_local_worker():
        return
    pages, found = Path(PAGES.value or out), rows(search, rungs, out)
    write_pages(search, rungs, found, folder / 'grid.png', pages)
    diverged = [name for name in search.candidates if has_diverged(out, name)]
    told = {'out': str(out), 'pages': str(pages), 'chosen': alive[0], 'candidates': dict(found), 'diverged': diverged}
    console.finish(told | {'seconds': round(time.monotonic() - started, 1)}, out / 'search.json')


def once(name: str, claims: Claims, is_done, make) -> None:
    """Has one process make something, while the others wait for it."""
    for _ in share_out([name], lambda _: is_done(), lambda _: make(), claims.claim):
        pass


def speeds(search: Search, out: Path) -> dict[str, float]:
    """Training images per second of each candidate."""
    return training_speeds({name: search.config(name, 10**6) for name in search.candidates}, out / 'speeds.json')


def snapshot(out: Path, name: str, minutes: float) -> Path:
    """The folder of a candidate's weights at the end of a rung."""
    return out / 'candidates' / name / f'{minutes:g}'


def images_in(minutes: float, rate: float) -> int:
    """The images that a candidate sees in so many minutes."""
    return max(1, round(60 * minutes * rate))


def train_rung(search: Search, out: Path, rates: dict[str, float], minutes: float, name: str) -> None:
    """Trains a candidate to the end of a rung, or notes that its loss is no longer finite."""
    images = images_in(minutes, rates[name])
    print(f'{name}: to {minutes:g} minutes, {images} images', file=sys.stderr)
    try:
        train_to(search.config(name, images), out / 'candidates' / name / 'run', snapshot(out, name, minutes))
    except FloatingPointError as error:
        write_json(out / 'candidates' / name / DIVERGED, {'minutes': minutes, 'error': str(error)})


def has_diverged(out: Path, name: str) -> bool:
    """Whether a candidate's loss is no longer finite."""
    return (out / 'candidates' / name / DIVERGED).exists()


def score(rung: dict[str, Any], name: str) -> float:
    """The geometric mean of `MEASURES`, each divided by bicubic enlargement's; lower is better."""
    ratios = [rung[name][measure]['value'] / rung['bicubic'][measure]['value'] for measure in MEASURES]
    return math.prod(ratios) ** (1 / len(ratios))


def better_half(rung: dict[str, Any], alive: list[str]) -> list[str]:
    """The candidates that go on, best first: half of them, rounded up."""
    return sorted(alive, key=lambda name: score(rung, name))[: (len(alive) + 1) // 2]


def rows(search: Search, rungs: dict[str, Any], out: Path) -> list[tuple[str, dict[str, Any]]]:
    """Each candidate that was evaluated, those that came furthest first and then the best: where it ended, and what was
    measured there."""
    found = []
    for name in search.candidates:
        reached = [minutes for minutes, rung in rungs.items() if name in rung]
        if reached:
            minutes, row = reached[-1], rungs[reached[-1]][name]
            seen = images_seen(snapshot(out, name, float(minutes)))
            told = {'minutes': float(minutes), 'images': seen, 'score': score(rungs[minutes], name)}
            found.append((name, told | {measure: row[measure]['value'] for measure in COLUMNS}))
    return sorted(found, key=lambda item: (-item[1]['minutes'], item[1]['score']))


def write_pages(
    search: Search, rungs: dict[str, Any], found: list[tuple[str, dict[str, Any]]], grid: Path, pages: Path
) -> None:
    """Writes search.md, search.png and, from `grid`, search_samples.png."""
    pages.mkdir(parents=True, exist_ok=True)
    columns = [
        Shown('candidate', lambda row: row[0], number=False),
        Shown('settings', lambda row: described(search.candidates[row[0]]), number=False),
        Shown('minutes', lambda row: f'{row[1]["minutes"]:g}'),
        Shown('images', lambda row: f'{row[1]["images"]:,}'),
        Shown('score ↓', lambda row: f'{row[1]["score"]:.3f}'),
        *(
            Shown(heading, lambda row, measure=measure, digits=digits: f'{row[1][measure]:.{digits}f}')
            for measure, (heading, digits) in COLUMNS.items()
        ),
    ]
    halvings = ', '.join(f'{minutes:g}' for minutes in search.minutes)
    text = [
        '# Search at equal optimiser time',
        f'Base: `configs/{search.base}.py`. Rungs end after {halvings} optimiser minutes; the better half goes on. '
        f'{search.images} validation images, degraded by {search.degradation}; each candidate with its own sampler, and projected '
        "onto the condition. Score: geometric mean of LPIPS and fd_efflite0, each divided by bicubic enlargement's.",
        markdown(columns, found).rstrip('\n'),
        '![Score over optimiser minutes](search.png)',
        '![Samples of the last rung](search_samples.png)',
    ]
    draw(rungs).savefig(pages / 'search.png', dpi=110)
    shutil.copyfile(grid, pages / 'search_samples.png')
    write_text_atomically(pages / 'search.md', '\n\n'.join(text) + '\n')


def described(settings: dict[str, Any], prefix: str = '') -> str:
    """Nested settings in one line: dotted names and values."""
    parts = []
    for name, value in settings.items():
        dotted = f'{prefix}{name}'
        parts.append(described(value, f'{dotted}.') if isinstance(value, dict) else f'{dotted}={value}')
    return ', '.join(parts) or 'the base'


def draw(rungs: dict[str, Any]) -> Figure:
    """The score of every candidate over optimiser minutes."""
    figure = Figure(figsize=(8, 4.5), layout='constrained')
    axes = figure.subplots()
    names = [name for name in next(iter(rungs.values())) if name not in RESERVED]
    for number, name in enumerate(names):
        points = [(float(minutes), score(rung, name)) for minutes, rung in rungs.items() if name in rung]
        marker = 'os^Dv'[number // 10 % 5]
        axes.plot(*zip(*points), marker=marker, markersize=4, color=f'C{number % 10}', label=name)
    axes.set_xlabel('optimiser minutes')
    axes.set_ylabel('score')
    axes.spines[['top', 'right']].set_visible(False)
    figure.legend(frameon=False, fontsize=7, loc='outside right upper')
    return figure


if __name__ == '__main__':
    console.run(main)
