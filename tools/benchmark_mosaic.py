"""`tools/benchmark.py mosaic`: cost and properties of unbounded mosaics.

Everything is measured in one run, on this machine, with the network of `--checkpoint`; except memory
(`tools/benchmark_memory.py`), which needs a large canvas and no network. Plans run in alternating rounds. With v network
evaluations per output pixel and k solver steps, plans a and b compare as

    v_a / v_b = (k_a / k_b) · (v_a / k_a) / (v_b / k_b)                                                               (1)

the ratio of their solver steps times the ratio of their window overlaps, halo included. The ratio of their pixels per
second, b over a, should equal (1); on a machine with other load, that of pixels per second of processor time should.
"""

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Iterator

import jax
import numpy as np
from absl import flags
from benchmark_rounds import cores, spread

from rsdiff.base.boxes import Box
from rsdiff.base.errors import BadInput
from rsdiff.data import blue_marble
from rsdiff.data.degradation import UPSCALE
from rsdiff.data.images import box_downscale, write_image
from rsdiff.diffusion.constraints import Projection
from rsdiff.programs import console
from rsdiff.sampling.binding import bind_windows
from rsdiff.sampling.mosaic.cascade import MosaicSettings, SamplerAt, claim, estimate, extent, sample_mosaic
from rsdiff.sampling.mosaic.condition import Condition
from rsdiff.sampling.mosaic.plan import PlanName, make_plan
from rsdiff.sampling.mosaic.plane import Plane
from rsdiff.sampling.mosaic.store import StageArray
from rsdiff.training.checkpoint import Trained, load_generator
from rsdiff.training.mesh import make_mesh

CHECKPOINT = flags.DEFINE_string('checkpoint', 'weights/earth', 'mosaic: a run of train.py, or released weights.')
CANVAS = flags.DEFINE_integer('canvas_px', 512, 'mosaic: side of the canvas for comparing plans.', lower_bound=64)
LARGE = flags.DEFINE_integer(
    'large_px', 2048, 'mosaic: side of the canvas that `fast` makes in one supertile.', lower_bound=64
)
MEMORY = flags.DEFINE_multi_integer(
    'memory_px', [2048, 8192], 'mosaic: side of a canvas to measure memory on; may be repeated.', lower_bound=16
)

SUPERTILE_PX, MILLION = 1024, 10**6
# Flat areas of Blue Marble: degrees east and north of a corner, and the colour there.
FLAT = {
    'water': ((-156, -30), (7, 21, 51)),
    'desert': ((-9, 29), (186, 153, 111)),
    'snow': ((66, -76), (251, 253, 254)),
}
FLAT_PX = 48  # of the condition


def mosaic(rounds: int) -> dict[str, Any]:
    """All figures."""
    console.enable_compilation_cache()
    if CANVAS.value % UPSCALE**2:
        raise BadInput(f'--canvas_px is {CANVAS.value}; it must be a multiple of {UPSCALE**2}')
    trained = load_generator(CHECKPOINT.value)
    told = lambda text: print(f'{text} …', file=sys.stderr, flush=True)
    told('geometry')
    result = {
        'checkpoint': trained.digest,
        'window_px': trained.config.data.size_px,
        'evaluations': evaluations(),
        'a_million_squared': a_million_squared(rounds),
    }
    told(f'memory of canvases of {MEMORY.value} pixels per side')
    result['memory'] = memory(MEMORY.value)
    told('tint')
    result['tint'] = tint(trained)
    told(f'plans on {CANVAS.value} × {CANVAS.value} pixels, {rounds} rounds')
    result |= plans(trained, CANVAS.value, rounds)
    told(f'fast on {LARGE.value} × {LARGE.value} pixels')
    return (
        result
        | {'large': large(trained, LARGE.value, result['plans']['pixels_per_second']['metaearth']['median'])}
        | {'device_kind': jax.devices()[0].device_kind, 'devices': jax.device_count(), 'cores': cores()}
    )


def evaluations() -> list[dict[str, Any]]:
    """Network evaluations per output pixel, for supertiles of 4096 pixels per side in a large canvas, halo included."""
    tiles, rows = [(side, side + 4096) for side in range(0, 16 * 4096, 4096)], []
    for window_px in (64, 256):
        counted = {name: compared(make_plan(name, window_px), tiles) for name in ('fast', 'metaearth')}
        rows.append({'supertile_px': 4096, 'window_px': window_px} | ratio(counted['metaearth'], counted['fast']))
    return rows


def compared(plan, tiles: list[tuple[int, int]]) -> dict[str, float]:
    """The two factors of (1)."""
    pixels = (tiles[-1][1] - tiles[0][0]) ** 2
    each = plan.evaluations(tiles, tiles) / pixels
    return {'steps': plan.steps, 'overlap': each / plan.steps, 'per_pixel': each}


def ratio(theirs: dict[str, float], ours: dict[str, float]) -> dict[str, Any]:
    """The figures of both plans, and their ratio (1)."""
    return {'metaearth': theirs, 'fast': ours, 'ratio': {key: theirs[key] / ours[key] for key in ours}}


def a_million_squared(rounds: int) -> dict[str, Any]:
    """Seconds of each part before the first network evaluation of a canvas of 10^12 pixels, each timed `rounds` times."""
    settings, shape = MosaicSettings(160.0, 2, make_plan('fast', 64), SUPERTILE_PX), (MILLION // UPSCALE**2,) * 2 + (3,)
    box, counts = Box(MILLION // 2, MILLION // 2, MILLION // 2 + 4096, MILLION // 2 + 4096), {}
    condition = type('Endless', (), {'shape': shape})()  # never read

    def work_list(folder: Path) -> None:
        counts['supertiles'] = sum(1 for _ in StageArray(folder / 'stage', MILLION, MILLION, SUPERTILE_PX).tiles())

    def windows(_: Path) -> None:
        places = zip(
            *(settings.plan.places(axis, *side) for axis, side in ((0, (box.y0, box.y1)), (1, (box.x0, box.x1))))
        )
        counts['windows_of_4096_squared'] = sum(len([(y, x) for y in ys for x in xs]) for ys, xs in places)

    parts: dict[str, Callable[[Path], Any]] = {
        'work_list': work_list,
        'extent': lambda _: extent(shape, settings),
        'windows_of_a_region': windows,
        'manifest': lambda folder: claim(condition, folder / 'out', settings, {'checkpoint': 'abc'}),
    }
    seconds: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(rounds):
        for name, part in parts.items():
            with tempfile.TemporaryDirectory() as folder:
                start = time.perf_counter()
                part(Path(folder))
                seconds[name].append(time.perf_counter() - start)
    return counts | {
        'seconds': {name: spread(values) for name, values in seconds.items()}
        | {'together': spread([sum(row) for row in zip(*seconds.values())])}
    }


def memory(sides_px: list[int]) -> dict[str, Any]:
    """Peak host memory of canvases, each made in a new process, and the ratio of the last to the first."""
    program, rows = Path(__file__).with_name('benchmark_memory.py'), []
    for side in sides_px:
        done = subprocess.run([sys.executable, program, '--side_px', str(side)], capture_output=True, text=True)
        if done.returncode:
            raise BadInput(f'{program.name} --side_px {side}: {(done.stderr.splitlines() or ["it was killed"])[-1]}')
        rows.append(json.loads(done.stdout.splitlines()[-1]))
    return {'canvases': rows, 'last_over_first': rows[-1]['peak_bytes'] / rows[0]['peak_bytes']}


def plans(trained: Trained, side_px: int, rounds: int) -> dict[str, Any]:
    """Pixels per second of one stage with each plan; and of two stages with `fast`, the estimated time and the share of time
    for files. Everything alternates, every canvas is made anew, and compilation is done beforehand."""
    names: list[PlanName] = ['metaearth', 'fast']
    one = {name: Canvas(trained, name, side_px, 1) for name in names}
    two = Canvas(trained, 'fast', side_px, 2)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    processor: dict[str, list[float]] = {name: [] for name in names}
    told, files, stages = [], [], []
    for canvas in (*one.values(), two):
        canvas.tell()
    for _ in range(rounds):
        for name in names:
            print(f'{name} …', file=sys.stderr, flush=True)
            made = one[name].make()
            seconds[name].append(made['seconds'])
            processor[name].append(made['processor_seconds'])
        told.append(two.tell()['estimated_seconds'])
        made = two.make()
        stages.append(made['seconds'])
        files.append(made['files_seconds'] / made['seconds'])
    counted = ratio(*(compared(one[name].settings.plan, [(0, side_px)]) for name in names))
    return {
        'plans': {
            'canvas_px': side_px,
            'evaluations': counted,
            'pixels_per_second': {name: spread([side_px**2 / value for value in seconds[name]]) for name in names},
            'fast_over_metaearth': {
                'wall': spread([a / b for a, b in zip(*(seconds[name] for name in names))]),
                'processor': spread([a / b for a, b in zip(*(processor[name] for name in names))]),
            },
        },
        'two_stages': {
            'canvas_px': side_px,
            'seconds': spread(stages),
            'estimated_seconds': spread(told),
            'estimated_over_real': spread([a / b for a, b in zip(told, stages)]),
            'files_share': spread(files),
        },
    }


def large(trained: Trained, side_px: int, metaearth: float) -> dict[str, Any]:
    """Pixels per second of `fast` on a large canvas, over those of `metaearth`, whose pixels cost the same on any canvas. On
    small canvases the halo of the phases makes `fast` slower."""
    canvas = Canvas(trained, 'fast', side_px, 1, supertile_px=side_px)
    canvas.tell()
    rate = side_px**2 / canvas.make()['seconds']
    return {
        'canvas_px': side_px,
        'evaluations': compared(canvas.settings.plan, [(0, side_px)])['per_pixel'],
        'pixels_per_second': rate,
        'fast_over_metaearth': rate / metaearth,
    }


class Canvas:
    """A square canvas over a random condition, made repeatedly through the files that sample.py reads and writes."""

    def __init__(self, trained: Trained, plan: PlanName, side_px: int, stages: int, supertile_px: int | None = None):
        window_px = trained.config.data.size_px
        self.settings = MosaicSettings(
            blue_marble.GSD_M * UPSCALE**stages, stages, make_plan(plan, window_px), supertile_px or 16 * window_px
        )
        self.sampler_at: SamplerAt = bind_windows(trained.method, trained.params, self.settings.plan, make_mesh())
        self.pixels = np.random.default_rng(0).integers(0, 256, (side_px // UPSCALE**stages,) * 2 + (3,), np.uint8)

    def tell(self) -> dict[str, Any]:
        """The result of `sample.py --dry_run`."""
        return estimate(self.sampler_at, self.pixels, self.settings)

    def make(self) -> dict[str, Any]:
        """The result of `sample.py`, the seconds spent on files (opening, reading, writing), and the processor seconds."""
        with tempfile.TemporaryDirectory() as folder:
            write_image(Path(folder) / 'condition.png', self.pixels)
            condition = Condition(Path(folder) / 'condition.png')
            start = time.process_time()
            with seconds_in((StageArray, '__init__'), (StageArray, 'write'), (Plane, 'crop')) as spent:
                made = sample_mosaic(
                    self.sampler_at, condition, Path(folder) / 'out', self.settings, {}, show=False, formats=['zarr']
                )
        return made | {'files_seconds': sum(spent), 'processor_seconds': time.process_time() - start}


@contextlib.contextmanager
def seconds_in(*methods: tuple[type, str]) -> Iterator[list[float]]:
    """Records the seconds of each call of these methods while the context lasts. None of them may call another."""
    spent, kept = [], [(owner, name, getattr(owner, name)) for owner, name in methods]

    def timed(method):
        def call(*arguments, **options):
            start = time.perf_counter()
            try:
                return method(*arguments, **options)
            finally:
                spent.append(time.perf_counter() - start)

        return call

    for owner, name, method in kept:
        setattr(owner, name, timed(method))
    try:
        yield spent
    finally:
        for owner, name, method in kept:
            setattr(owner, name, method)


def tint(trained: Trained) -> list[dict[str, Any]]:
    """Tint over flat areas of the Earth: mean colours of the last phase's windows against the condition, in grey levels.
    Gives the largest difference of a mean, and the deviation of means among windows."""
    rows, plan = [], make_plan('fast', trained.config.data.size_px)
    settings = MosaicSettings(UPSCALE * blue_marble.GSD_M, 1, plan, SUPERTILE_PX)
    for name, projection in (('on', Projection()), ('off', None)):
        sampler_at = bind_windows(trained.method, trained.params, plan, make_mesh(), projection)
        for what, condition in flat_conditions().items():
            made = settings.field(sampler_at(blue_marble.GSD_M), condition, 1)
            sample = made.region(Box(0, 0, *made.shape[:2]))
            rows.append({'of': what, 'projection': name} | window_means(sample, condition, plan))
    return rows


def flat_conditions() -> dict[str, np.ndarray]:
    """Plain colours and, if Blue Marble is installed, crops of it reduced 4×, uint8 (FLAT_PX, FLAT_PX, 3)."""
    images, degrees = {}, UPSCALE * FLAT_PX / blue_marble.PIXELS_PER_DEGREE
    for what, ((west, north), colour) in FLAT.items():
        images[f'{what}, one colour'] = np.full((FLAT_PX, FLAT_PX, 3), colour, np.uint8)
        with contextlib.suppress(BadInput):  # it is not installed
            box = blue_marble.pixel_box(west, north - degrees, west + degrees, north)
            images[what] = box_downscale(box.crop(blue_marble.load()), UPSCALE)
    return images


def window_means(sample: np.ndarray, condition: np.ndarray, plan) -> dict[str, float]:
    """Figures over the bands and over those windows of the last phase that lie entirely in the sample."""
    side, last = plan.window_px, plan.phases[-1]
    touching = [
        plan.lattice(last, axis).touching(0, size, plan.profile(last)) for axis, size in enumerate(sample.shape[:2])
    ]
    within = [[place for place in places if 0 <= place <= size - side] for places, size in zip(touching, sample.shape)]
    boxes = [
        (Box(y, x, y + side, x + side), Box(*(edge // UPSCALE for edge in (y, x, y + side, x + side))))
        for y in within[0]
        for x in within[1]
    ]
    ours, given = (
        np.array([box.crop(image).mean((0, 1)) for box in pair])
        for image, pair in zip((sample, condition), zip(*boxes))
    )
    return {
        'windows': len(boxes),
        'largest_difference': float(np.abs(ours - given).max()),
        'deviation_among_windows': float(ours.std(0).max()),
        'of_the_condition': float(given.std(0).max()),
    }
