"""Compares super-resolution methods at equal optimiser time, and with published networks.

    python tools/compare_methods.py --config configs/sr_comparison.py --data ../shared/data --out runs/sr --pages docs/sr

The config names methods, training data (tracks) and test sets. First the training speed of all methods is measured in
alternating rounds; the number of images that each may see follows from it and from `minutes`. Then every method is trained in
every track, with snapshots on the way, and all snapshots are evaluated on the test sets by tools/evaluate.py, beside bicubic
enlargement and the published networks (tools/convert_weights.py). PAGES gets the tables, curves and pictures.

Run the same command again to continue. The last line is one JSON object, also written to OUT/compare_methods.json.
"""

import dataclasses
import shutil
import sys
import time
from pathlib import Path
from typing import Any, Callable

import compare_pages
import equal_time
import jax
import ml_collections
import numpy as np
from absl import flags
from benchmark_rounds import spread
from compare_pages import first_run
from equal_time import for_images, is_trained, load_config, train_to, training_speeds

from rsdiff.base import folders
from rsdiff.base.errors import BadInput
from rsdiff.base.shipped import ROOT
from rsdiff.data.degradation import PRESETS, UPSCALE
from rsdiff.data.folder import split_of
from rsdiff.methods.sampling import sample
from rsdiff.programs import console
from rsdiff.sampling.binding import bind_images
from rsdiff.training import cost
from rsdiff.training import mesh as meshes
from rsdiff.training.checkpoint import Trained, load_generator
from rsdiff.training.config import TrainConfig, from_dict, to_dict

console.define_config('What to compare: a file like configs/sr_comparison.py, or its name.')
OUT = flags.DEFINE_string('out', None, 'Output folder: new, or from an earlier run of this command.', required=True)
DATA = flags.DEFINE_string('data', '.', 'The folder that holds the data sets named in the config.')
PAGES = flags.DEFINE_string('pages', None, 'Folder for the tables, curves and pictures; default: OUT/pages.')
MINUTES = flags.DEFINE_float('minutes', None, "Optimiser minutes per method and track; default: the config's.", 0.001)
ONLY = flags.DEFINE_list('only', None, 'Methods to train and evaluate; default: all.')
TRACKS = flags.DEFINE_list('tracks', None, 'Tracks to train in and evaluate; default: all.')
LIMIT = flags.DEFINE_integer('limit', None, 'Use at most this many test images of each set.', lower_bound=2)
CURVE_IMAGES = flags.DEFINE_integer('curve_images', 42, 'Test images for snapshots before the last.', lower_bound=2)

FINAL = 'psnr', 'ssim', 'lpips_alexnet', 'detail_ratio', 'hallucination', 'lr_consistency'
SNAPSHOT = ('lpips_alexnet',)
SPEED_PX, SPEED_IMAGES, SPEED_ROUNDS = 256, 1, 3


@dataclasses.dataclass(frozen=True)
class Method:
    """A method to train. `config`: a name in configs/; `settings` override it, and those in `tracks`, by track, override both.
    With `after`, it starts from that method's snapshot at the fraction `share` of the time, and has the rest."""

    config: str
    settings: dict[str, Any]
    tracks: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    after: str = ''
    share: float = 0.0


@dataclasses.dataclass(frozen=True)
class TestSet:
    """Test images, as evaluate.py takes them. `pictures`: whether they may be shown; `curve`: whether all snapshots are
    evaluated on them, not just the last."""

    pairs: str
    degradation: str
    track: str
    pictures: bool
    curve: bool


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The config: `minutes` of optimiser time, `snapshots` as fractions of it, `settings` of all methods, and `notes` for those
    who read the tables. A method NAME_seedN is another run of NAME: it sees the same number of images, and of its snapshots only
    the last is evaluated."""

    minutes: float
    snapshots: tuple[float, ...]
    settings: dict[str, Any]
    tracks: dict[str, dict[str, str]]
    methods: dict[str, Method]
    published: tuple[str, ...]
    sets: dict[str, TestSet]
    notes: tuple[str, ...] = ()

    def config(self, track: str, name: str, images: int) -> TrainConfig:
        """The settings of a method's run of `images` images in a track, without `init_from`."""
        method, of_track = self.methods[name], self.tracks[track]
        config = load_config(method.config)
        for settings in (self.settings, method.settings, method.tracks.get(track, {})):
            config.update(ml_collections.ConfigDict(settings))
        config.data.source = str(Path(DATA.value, of_track['source']))
        config.degradation = to_dict(PRESETS[of_track['degradation']])
        for_images(config, images)
        return from_dict(TrainConfig, config.to_dict())


def read_comparison() -> Comparison:
    """The comparison that --config describes.

    Raises:
      BadInput: something in it is missing, unknown or contradictory.
    """
    if flags.FLAGS.config is None:
        raise BadInput('give --config FILE or NAME')
    given = flags.FLAGS.config.to_dict()
    try:
        methods = {name: Method(**values) for name, values in given['methods'].items()}
        sets = {name: TestSet(**values) for name, values in given['sets'].items()}
        made = Comparison(**given | {'methods': methods, 'sets': sets})
    except (KeyError, TypeError, AttributeError) as error:
        raise BadInput(f'--config: not a comparison: {error}; see configs/sr_comparison.py') from None
    if MINUTES.value:
        made = dataclasses.replace(made, minutes=MINUTES.value)
    for name in TRACKS.value or []:
        if name not in made.tracks:
            raise BadInput(f'--tracks {name}: there are {", ".join(made.tracks)}')
    for name in ONLY.value or []:
        if name not in methods:
            raise BadInput(f'--only {name}: there are {", ".join(methods)}')
    for name, method in methods.items():
        if first_run(name) not in methods:
            raise BadInput(f'--config: {name} is another run of {first_run(name)}, which is not among the methods')
        if method.after and (method.after not in methods or method.share not in made.snapshots):
            raise BadInput(f'--config: {name} starts after {method.after!r} at {method.share}, which is no snapshot')
    for name, test in sets.items():
        if test.track not in made.tracks:
            raise BadInput(f'--config: set {name} has the track {test.track!r}; there are {", ".join(made.tracks)}')
    for track in made.tracks:
        for name in methods:
            try:
                made.config(track, name, 1)
            except (KeyError, TypeError, AttributeError) as error:
                raise BadInput(f'--config: {name} in the track {track}: {error}') from None
    if not TRACKS.value:
        return made
    tracks = {name: made.tracks[name] for name in TRACKS.value}
    return dataclasses.replace(
        made, tracks=tracks, sets={name: test for name, test in sets.items() if test.track in tracks}
    )


def main() -> None:
    started, comparison, out = time.monotonic(), read_comparison(), Path(OUT.value)
    folders.claim_folder(out, {'minutes': comparison.minutes, 'snapshots': comparison.snapshots, 'data': DATA.value})
    console.enable_compilation_cache()
    wanted = ONLY.value or list(comparison.methods)
    needed = {*wanted, *(comparison.methods[name].after for name in wanted)}
    # those that others start from come first
    names = sorted(
        (needed - {''}) & {*comparison.methods}, key=lambda name: (bool(comparison.methods[name].after), name)
    )
    published = {name: convert(name, out / 'published' / name) for name in comparison.published}
    for track in comparison.tracks:
        images = budgets(comparison, track, names, out / track)
        for name in names:
            train_method(comparison, track, name, images[name], out / track)
    result: dict[str, Any] = {'minutes': comparison.minutes, 'notes': comparison.notes, 'sets': {}}
    for name, test in comparison.sets.items():
        result['sets'][name] = evaluate_set(comparison, name, test, names, published, out)
    result['cost'] = costs(comparison, [name for name in names if first_run(name) == name], published, out)
    pages = Path(PAGES.value or out / 'pages')
    compare_pages.write(result, {name: test.pictures for name, test in comparison.sets.items()}, out, pages)
    console.finish(
        result | {'out': str(out), 'pages': str(pages), 'seconds': round(time.monotonic() - started, 1)},
        out / 'compare_methods.json',
    )


def convert(name: str, folder: Path) -> Path:
    """A published network as a release."""
    if not (folder / 'conversion.json').exists():  # written last
        shutil.rmtree(folder, ignore_errors=True)
        console.call(ROOT / 'tools' / 'convert_weights.py', f'--checkpoint={name}', f'--out={folder}')
    return folder


def budgets(comparison: Comparison, track: str, names: list[str], out: Path) -> dict[str, dict[float, int]]:
    """For each method, the images to have seen at each snapshot: its own training speed times the optimiser time. Speeds that
    `speeds.json` does not have yet are measured in alternating rounds, and kept there."""
    measured = sorted({first_run(name) for name in names})
    speeds = training_speeds({name: comparison.config(track, name, 10**6) for name in measured}, out / 'speeds.json')
    seen = {}
    for name in names:
        method = comparison.methods[name]
        seen[name] = {
            share: max(1, round(60 * comparison.minutes * (share - method.share) * speeds[first_run(name)]))
            for share in comparison.snapshots
            if share > method.share
        }
    return seen


def train_method(comparison: Comparison, track: str, name: str, images: dict[float, int], out: Path) -> None:
    """Trains a method up to each snapshot, which is released as `NAME/FRACTION`; the run itself is in `NAME/run`."""
    method, run = comparison.methods[name], out / name / 'run'
    for share, count in images.items():
        target, config = snapshot(out, name, share), comparison.config(track, name, count)
        if method.after:
            config = dataclasses.replace(config, init_from=str(snapshot(out, method.after, method.share)))
        if not is_trained(target):
            print(f'{track}: {name}, snapshot {share:g}, {count} images', file=sys.stderr)
        train_to(config, run, target)


def snapshot(out: Path, name: str, share: float) -> Path:
    """The folder of a method's weights at a fraction of the time."""
    return out / name / f'{share:g}'


def evaluate_set(
    comparison: Comparison, name: str, test: TestSet, names: list[str], published: dict[str, Path], out: Path
) -> dict[str, Any]:
    """The evaluation of all methods and published networks on a set (`final`), that of further runs of the same methods
    (`repeated`), and that of every snapshot on a part of the set (`curve`, by fraction of the time)."""
    folder, at = out / 'sets' / name, lambda method, share: snapshot(out / test.track, method, share)
    first = [method for method in names if first_run(method) == method]
    last = {method: at(method, comparison.snapshots[-1]) for method in names}
    repeated = {method: last.pop(method) for method in names if method not in first}
    curve = {
        f'{share:g}': {method: path for method in first if is_trained(path := at(method, share))}
        for share in comparison.snapshots
    }
    return {
        'final': evaluate(test, last | published, folder, final=True),
        'repeated': evaluate(test, repeated, folder, final=True) if repeated else None,
        'curve': {share: evaluate(test, found, folder, final=False) for share, found in curve.items() if test.curve},
    }


def evaluate(test: TestSet, checkpoints: dict[str, Path], out: Path, final: bool) -> dict[str, Any]:
    """The result of tools/evaluate.py for `checkpoints`, in a folder of its own for these weights."""
    path, split = split_of(test.pairs)
    limit = LIMIT.value if final else min(CURVE_IMAGES.value, LIMIT.value or CURVE_IMAGES.value)
    options = [f'--pairs={Path(DATA.value, path)}{f":{split}" if split else ""}', f'--degradation={test.degradation}']
    options += [f'--metrics={",".join(FINAL if final else SNAPSHOT)}', '--noconsistency']
    options += [f'--limit={limit}'] if limit else []
    folder = equal_time.evaluation(checkpoints, options, out)
    if not equal_time.is_evaluated(folder):
        equal_time.evaluate(checkpoints, options, folder)
    return equal_time.result_of(folder) | {'folder': str(folder)}


def costs(comparison: Comparison, names: list[str], published: dict[str, Path], out: Path) -> dict[str, dict[str, Any]]:
    """Parameters, multiply–accumulates and network evaluations per output pixel, and pixels per second of every network, for
    complete images of `SPEED_PX` per side; speeds in alternating rounds."""
    track = next(iter(comparison.tracks))
    last = comparison.snapshots[-1]
    folders = {name: snapshot(out / track, name, last) for name in names} | published
    networks = {name: load_generator(folder) for name, folder in folders.items()}
    runners = {name: sampling(trained) for name, trained in networks.items()}
    rounds = [{name: run() for name, run in runners.items()} for _ in range(SPEED_ROUNDS)]
    return {
        name: {
            'parameters': sum(leaf.size for leaf in jax.tree.leaves(trained.params)),
            'evaluations_per_px': trained.method.sampler.steps,
            'mac_per_px': macs_per_pixel(trained),
            'px_per_second': spread([row[name] for row in rounds]),
        }
        for name, trained in networks.items()
    }


def sampling(trained: Trained) -> Callable[[], float]:
    """A function that samples `SPEED_IMAGES` images and returns output pixels per second; compiles here."""
    sampler = trained.method.sampler
    mesh = meshes.make_mesh()
    bound = bind_images(trained.method, trained.params, sampler.steps, mesh, projection=None, solver=sampler.solver)
    condition, noise = inputs(trained, SPEED_IMAGES)
    keys = jax.random.split(jax.random.key(0), SPEED_IMAGES)

    def run() -> float:
        start = time.perf_counter()
        jax.block_until_ready(bound.sample(condition, noise, keys))
        return SPEED_IMAGES * SPEED_PX**2 / (time.perf_counter() - start)

    run()
    return run


def inputs(trained: Trained, count: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """A condition and noise of `count` images."""
    side = SPEED_PX // UPSCALE
    condition = {'lr': np.zeros((count, side, side, 3), np.float32), 'gsd_m': np.ones(count, np.float32)}
    return condition, np.zeros((count, SPEED_PX, SPEED_PX, trained.method.channels), np.float32)


def macs_per_pixel(trained: Trained) -> float:
    """Multiply–accumulates of sampling one complete image, per output pixel."""
    method, sampler = trained.method, trained.method.sampler
    condition, noise = inputs(trained, 1)
    condition = {name: value for name, value in condition.items() if name in method.fields}
    program = jax.make_jaxpr(
        lambda params, condition, noise: sample(
            method, params, condition, noise, sampler.steps, None, solver=sampler.solver, step_noise=lambda t: noise
        )
    )(trained.params, condition, noise)
    return cost.count_macs(program) / SPEED_PX**2


if __name__ == '__main__':
    console.run(main)
