"""Ablates the settings of a plan: mosaics of held-out imagery, with one setting changed at a time.

    python tools/ablate_mosaic.py --out runs/ablation [--checkpoint weights/earth] [--group overlap …]

Imagery that the generator has not seen, a part of Blue Marble's held-out box with mountains, snow, plains and sea, is
reduced 4× by block means and enlarged again in one stage. A full factorial design would need more than a thousand
mosaics; these groups are made instead:

    plans         the plans by name
    overlap       phases 1 to 4 × overlap 0, 1/16, 1/8, 1/4 and 5/16 of W
    steps         solver steps 8 to 50 × phases 1 and 3
    noise         the four kinds of initial noise × phases 1 and 3
    consistency   scale, strength and end of the projection, with the exact condition and with one of another degradation
    seams         a larger area: `fast`, also with fewer steps, phases or overlap, each also with all windows moved;
                  metaearth; and windows side by side, which show the detail near a window's edge

Settings that a group does not vary are those of `BASE`. Every mosaic is compared with the real image, in tiles of 64 px, and
tile by tile with the mosaic of the plan metaearth. Seams are measured on the grids of all phases
(`rsdiff/evaluation/seams.py`) and divided by the same measures of real imagery at the same lines. The group seams divides
them by those of the same plan with its windows moved: that mosaic has the same texture, so the intervals are much narrower.
Network evaluations per pixel are computed from the geometry, at supertiles of 4096²; CPU seconds are measured on this
machine, without compiling.

Run the same command again to continue: existing mosaics (images/) and their figures (cells/) are kept. OUT holds table.md,
mosaics.png and ablation.json, which is also the last line of output.
"""

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from PIL import Image, ImageDraw
from tqdm import tqdm

from rsdiff.base import files, folders
from rsdiff.base.boxes import Box
from rsdiff.base.errors import BadInput
from rsdiff.data import blue_marble
from rsdiff.data.degradation import UPSCALE
from rsdiff.data.images import bicubic, box_downscale, read_image, to_float, write_image
from rsdiff.diffusion.noise import Kind
from rsdiff.evaluation.distribution import frechet_distance
from rsdiff.evaluation.features import efflite0, features_of
from rsdiff.evaluation.fidelity import detail, lr_consistency, psnr
from rsdiff.evaluation.interval import Interval
from rsdiff.evaluation.seams import STRATA, Grid, against, ratio_interval, seam_sums
from rsdiff.pretrained.lpips import LPIPS
from rsdiff.programs import console
from rsdiff.sampling.binding import bind_windows, make_projection
from rsdiff.sampling.mosaic.cascade import MosaicSettings
from rsdiff.sampling.mosaic.plan import Plan, PlanName, make_plan
from rsdiff.training.checkpoint import Trained, load_generator
from rsdiff.training.mesh import make_mesh

GROUPS = 'plans', 'overlap', 'steps', 'noise', 'consistency', 'seams'
CHECKPOINT = flags.DEFINE_string(
    'checkpoint', 'weights/earth', 'A generator trained on Blue Marble: a run or released weights.'
)
OUT = flags.DEFINE_string('out', None, 'Output folder: new, or from an earlier run of this command.', required=True)
GROUP = flags.DEFINE_multi_enum('group', list(GROUPS), list(GROUPS), 'Group to run; may be repeated; default: all.')
SEED = flags.DEFINE_integer('seed', 0, 'Random seed of the mosaics.')

SUPERTILE_PX = 4096  # for which the cost is reported
TILE_PX, TILE_STEP_PX = 64, 32  # side of the compared tiles, and stride of those for distances of sets
BLOCK_PX = 128  # side of the blocks resampled for the intervals of seams
NOISE_LEVELS = 3.0  # standard deviation of the noise in the other degradation
REFERENCE = 'metaearth'


def _within(box: Box, y: int, x: int, height: int, width: int) -> Box:
    return Box(box.y0 + y, box.x0 + x, box.y0 + y + height, box.x0 + x + width)


# Sides are multiples of TILE_PX. First Arabian Sea, Baluchistan, Karakoram, Thar and the plains; then the entire held-out
# box, and a desert from a test box.
SCENES = {'Asia, west': _within(blue_marble.HELD_OUT, 128, 0, 256, 320)}
MORE_SCENES = {
    'Asia': blue_marble.HELD_OUT,
    'Sahara': _within(blue_marble.pixel_box(*blue_marble.REGIONS['Sahara'][1]), 0, 0, 128, 192),
}


@dataclasses.dataclass(frozen=True)
class Cell:
    """Settings of a mosaic; None is the plan's default. `overlap` is a fraction of a window; `end`: the projection is left
    out after half of the steps; `exact`: the condition is the exact mean; `more`: of `MORE_SCENES`; `moved`: all windows are
    shifted."""

    plan: PlanName = 'fast'
    steps: int | None = None
    phases: int | None = None
    overlap: float | None = None
    noise: Kind = 'anchored'
    scale: int = 4
    strength: float = 1.0
    end: bool = False
    exact: bool = True
    more: bool = False
    moved: bool = False

    def name(self) -> str:
        """Name of its files."""
        numbers = [
            f'{letter}{value:g}'
            for letter, value in (('s', self.steps), ('p', self.phases), ('o', self.overlap))
            if value is not None
        ]
        project = f'c{self.scale}_{self.strength:g}' + '_half' * self.end
        marks = ['noisy'] * (not self.exact) + ['more'] * self.more + ['moved'] * self.moved
        return '-'.join([self.plan, *numbers, self.noise, project, *marks])

    def scenes(self) -> dict[str, Box]:
        return MORE_SCENES if self.more else SCENES

    def paths(self, out: Path) -> list[Path]:
        """Its mosaics, one per scene."""
        return [out / 'images' / f'{self.name()}-{name}.png' for name in self.scenes()]

    def make_plan(self, window_px: int) -> Plan:
        overlap_px = None if self.overlap is None else round(self.overlap * window_px)
        plan = make_plan(self.plan, window_px, self.steps, self.phases, overlap_px, SEED.value)
        distance = 0.5 if len(plan.phases) == 1 else 0.25  # in strides, as far as possible from the lines of all phases
        move = lambda phase: dataclasses.replace(phase, offset=tuple(place + distance for place in phase.offset))
        return dataclasses.replace(plan, phases=tuple(map(move, plan.phases))) if self.moved else plan


BASE = Cell(steps=12, phases=3, overlap=5 / 16)

SIDE_BY_SIDE = dataclasses.replace(BASE, phases=1, overlap=0, more=True)
PICTURE = {
    '1 phase, no overlap': dataclasses.replace(BASE, phases=1, overlap=0),
    'fast': BASE,
    REFERENCE: Cell(REFERENCE),
}
PICTURE_PX, PICTURE_SCALE = 120, 2
EDGE_PX = 16  # how far from its edge a window is measured


def cells() -> dict[str, list[Cell]]:
    """The cells of each group. A cell in several groups is made once."""
    # one phase per step widens the halo by half a window each; with 50 steps that is too much for so small a canvas
    plans = [
        Cell('fast'),
        Cell(REFERENCE),
        Cell(REFERENCE, steps=20),
        Cell('infinite'),
        Cell('infinite', steps=20),
        Cell('spot', steps=20),
        Cell('multidiffusion', steps=20),
    ]
    base = lambda **numbers: dataclasses.replace(BASE, **numbers)
    return {
        'plans': plans,
        'overlap': [
            base(phases=phases, overlap=overlap)
            for phases in (1, 2, 3, 4)
            for overlap in (0, 1 / 16, 1 / 8, 1 / 4, 5 / 16)
        ],
        'steps': [base(phases=phases, steps=steps) for phases in (1, 3) for steps in (8, 12, 20, 50)],
        'noise': [
            base(phases=phases, noise=noise)
            for phases in (1, 3)
            for noise in ('anchored', 'independent', 'shared', 'periodic')
        ],
        'consistency': [
            base(exact=exact, scale=scale, strength=strength, end=end)
            for exact in (True, False)
            for scale, strength, end in (
                (4, 0.0, False),
                (4, 1.0, False),
                (4, 0.5, False),
                (4, 1.0, True),
                (8, 1.0, False),
                (16, 1.0, False),
                (16, 1.0, True),
            )
        ],
        'seams': [
            base(more=True, steps=steps, phases=phases, overlap=overlap, moved=moved)
            for steps, phases, overlap in (
                (12, 3, 5 / 16),
                (8, 3, 5 / 16),
                (12, 1, 5 / 16),
                (12, 3, 3 / 16),
                (12, 1, 3 / 16),
            )
            for moved in (False, True)
        ]
        + [Cell(REFERENCE, more=True), SIDE_BY_SIDE],
    }


def condition_of(truth: np.ndarray, exact: bool) -> np.ndarray:
    """Means of 4 × 4 pixels or, if not `exact`, a noisy bicubic reduction, which does not fit the projection onto means."""
    if exact:
        return box_downscale(truth, UPSCALE)
    small = bicubic(truth, *(side // UPSCALE for side in truth.shape[:2]))
    noise = np.random.default_rng(0).normal(0, NOISE_LEVELS, small.shape)
    return np.clip(np.rint(small + noise), 0, 255).astype(np.uint8)


def mosaics(cell: Cell, trained: Trained, out: Path) -> tuple[list[np.ndarray], dict[str, float]]:
    """The mosaics of `cell`, and their cost; read from disk if they exist."""
    window_px, gsd_m = trained.config.data.size_px, blue_marble.GSD_M
    paths, cost_path = cell.paths(out), out / 'images' / f'{cell.name()}.json'
    if cost_path.exists():
        return [read_image(path) for path in paths], json.loads(cost_path.read_text())
    plan = cell.make_plan(window_px)
    end_step = plan.steps // 2 if cell.end else None
    projection = (
        make_projection(trained.method, plan.steps, cell.scale, cell.strength, end_step) if cell.strength else None
    )
    sampler = bind_windows(trained.method, trained.params, plan, make_mesh(), projection)(gsd_m)
    settings = MosaicSettings(UPSCALE * gsd_m, 1, plan, SUPERTILE_PX, SEED.value, cell.noise)
    images, seconds, cpu, evaluated = [], 0.0, 0.0, []
    for path, box in zip(paths, cell.scenes().values()):
        condition = condition_of(box.crop(blue_marble.load()), cell.exact)
        field = settings.field(sampler, condition, 1)
        if not images:
            field.region(Box(0, 0, 1, 1))  # compiles
        start, cpu_start = time.perf_counter(), time.process_time()
        images.append(field.region(Box(0, 0, *field.shape[:2]), evaluated.append))
        seconds += time.perf_counter() - start
        cpu += time.process_time() - cpu_start
        write_image(path, images[-1])
    rows = [(a, a + SUPERTILE_PX) for a in range(0, 16 * SUPERTILE_PX, SUPERTILE_PX)]
    cost = {
        'evaluations_per_px': plan.evaluations(rows, rows) / (16 * SUPERTILE_PX) ** 2,
        'seconds': seconds,
        'cpu_seconds': cpu,
        'window_evaluations': sum(evaluated),
    }
    files.write_text_atomically(cost_path, json.dumps(cost) + '\n')
    return images, cost


def grids(plan: Plan, shape: tuple[int, ...]) -> list[Grid]:
    """The grids of all phases, without duplicates."""
    found = {}
    for phase in plan.phases:
        begins = [plan.lattice(phase, axis).touching(0, shape[axis], plan.profile(phase)) for axis in (0, 1)]
        rows, columns = (tuple(place + phase.crop_px for place in places) for places in begins)
        found.setdefault((rows, columns, phase.ramp_px), Grid('', rows, columns, phase.ramp_px))
    return list(found.values())


def seams(plan: Plan, images: list[np.ndarray], truths: list[np.ndarray]) -> dict[str, Any]:
    """Each measure over all grids together, alone and relative to real imagery; and the grid and stratum furthest from 1.
    A plan with one phase per step has too many grids to measure each; only all together are."""
    each = [grids(plan, image.shape) for image in images]
    sums = [
        [seam_sums([(image, own[n]) for image, own in zip(stack, each)], BLOCK_PX) for n in range(len(each[0]))]
        for stack in (images, truths)
    ]
    together = {}
    for name in sums[0][0]:
        ours, real = (np.sum([table[name] for table in tables], axis=0) for tables in sums)
        together[name] = {'ratio': ratio_interval(ours).to_json(), 'over_real': against(ours, real).to_json()}
    if len(each[0]) <= 8:
        measured = {
            f'grid {number}, {name}': against(ours[name], real[name])
            for number, (ours, real) in enumerate(zip(*sums), 1)
            for name in ours
            if name.split()[0] in ('step', 'slope') and not name.endswith('all')
        }
        worst = max(measured, key=lambda name: abs(np.log(measured[name].value)))
        together['worst'] = {'where': worst, 'over_real': measured[worst].to_json()}
    return together


def mutual_seams(cell: Cell, window_px: int, out: Path) -> dict[str, dict[str, Any]]:
    """For each grid of `cell`'s plan: its measures relative to the same plan's mosaic with all windows moved. At the grids
    of the moved mosaic the first one is the control; both comparisons are pooled."""
    pair = cell, dataclasses.replace(cell, moved=True)
    plans = [each.make_plan(window_px) for each in pair]
    images = [[read_image(path) for path in each.paths(out)] for each in pair]
    lines = [[grids(plan, image.shape) for image in stack] for plan, stack in zip(plans, images)]
    found = {}
    for n in range(len(lines[0][0])):
        at = lambda stack, own: [(image, grid[n]) for image, grid in zip(stack, own)]
        ours = seam_sums(at(images[0], lines[0]) + at(images[1], lines[1]), BLOCK_PX)
        control = seam_sums(at(images[1], lines[0]) + at(images[0], lines[1]), BLOCK_PX)
        found[f'phase {n + 1}'] = {
            name: against(ours[name], control[name]).to_json() for name in ours if name not in ('comb', 'repetition')
        }
    return found


def edge_energy(window_px: int, out: Path) -> list[float]:
    """Energy of second differences inside windows, 1, 2, … px from their edge, relative to the real image there. It is
    scaled to 1 beyond `EDGE_PX`."""
    energies = []
    for images in (
        [read_image(path) for path in SIDE_BY_SIDE.paths(out)],
        [box.crop(blue_marble.load()) for box in SIDE_BY_SIDE.scenes().values()],
    ):
        windows = tiles(images, window_px, window_px).astype(float)
        across = [np.diff(turned, 2, axis=2) ** 2 for turned in (windows, windows.swapaxes(1, 2))]
        energy = sum(squares.mean((0, 1, 3)) for squares in across)
        energies.append(energy + energy[::-1])
    ratio = energies[0] / energies[1]
    inner = slice(EDGE_PX, len(ratio) - EDGE_PX)
    return [float(value) for value in ratio[:EDGE_PX] * energies[1][inner].sum() / energies[0][inner].sum()]


def edge_table(energy: list[float]) -> str:
    """Markdown, one column per pixel."""
    lines = [
        "| px from the window's edge | " + ' | '.join(map(str, range(1, len(energy) + 1))) + ' |',
        '|---' + '|---:' * len(energy) + '|',
        '| finest structure | ' + ' | '.join(f'{value:.2f}' for value in energy) + ' |',
    ]
    return '\n'.join(lines) + '\n'


def seam_table(rows: dict[str, dict[str, dict[str, Any]]]) -> str:
    """Markdown of `mutual_seams`, one row per grid."""
    heads = [f'{measure} {stratum}' for measure in ('step', 'slope') for stratum in STRATA] + ['band all', 'overlap']
    lines = [f'| seams over moved windows | {" | ".join(heads)} |', '|---' + '|---:' * len(heads) + '|']
    cell = lambda figures, head: told(Interval(**figures[head])) if head in figures else ''
    lines += [
        f'| {name}, {grid} | {" | ".join(cell(figures, head) for head in heads)} |'
        for name, each in rows.items()
        for grid, figures in each.items()
    ]
    return '\n'.join(lines) + '\n'


def told(interval: Interval, form: str = '.3f') -> str:
    if interval.low is None:
        return ''
    return f'{interval.value:{form}} ({interval.low:{form}} to {interval.high:{form}})'


def tiles(images: list[np.ndarray], size_px: int, step_px: int) -> np.ndarray:
    """The tiles of all images, uint8 (n, size_px, size_px, 3)."""
    return np.stack(
        [
            image[y : y + size_px, x : x + size_px]
            for image in images
            for y in range(0, image.shape[0] - size_px + 1, step_px)
            for x in range(0, image.shape[1] - size_px + 1, step_px)
        ]
    )


class Judge:
    """All measures except seams. The networks' weights come with the `metrics` extra."""

    def __init__(self, out: Path):
        self.lpips, self.extractor, self.cache = LPIPS('alexnet'), efflite0(), out / 'features'

    def __call__(
        self, images: list[np.ndarray], truths: list[np.ndarray], conditions: list[np.ndarray]
    ) -> dict[str, Any]:
        """Errors and energies are pooled over the tiles; LPIPS is given for each."""
        ours, real = (tiles(stack, TILE_PX, TILE_PX) for stack in (images, truths))
        small = tiles(conditions, TILE_PX // UPSCALE, TILE_PX // UPSCALE)
        tall = lambda stack: stack.reshape(1, -1, *stack.shape[2:])
        energy = lambda stack: np.mean(detail(stack) ** 2) ** 0.5
        features = [
            features_of(self.extractor, list(tiles(stack, TILE_PX, TILE_STEP_PX)), self.cache, show=False)
            for stack in (images, truths)
        ]
        return {
            'psnr_db': float(psnr(tall(ours), tall(real))[0]),
            'lr_consistency_db': float(lr_consistency(tall(ours), tall(small))[0]),
            'detail_ratio': float(energy(ours) / energy(real)),
            'lpips': [float(d) for d in self.lpips(to_float(ours), to_float(real))],
            'fd_efflite0': frechet_distance(features[1], features[0], groups=0).value,
            'fd_tiles': len(features[0]),
        }


def judged(cell: Cell, trained: Trained, judge: Judge, out: Path) -> dict[str, Any]:
    """All figures of a cell."""
    path = out / 'cells' / f'{cell.name()}.json'
    if path.exists():
        return json.loads(path.read_text())
    images, cost = mosaics(cell, trained, out)
    truths = [box.crop(blue_marble.load()) for box in cell.scenes().values()]
    conditions = [condition_of(truth, cell.exact) for truth in truths]
    plan = cell.make_plan(trained.config.data.size_px)
    figures = cost | judge(images, truths, conditions) | {'seams': seams(plan, images, truths)}
    files.write_text_atomically(path, json.dumps(figures) + '\n')
    return figures


def relative(ours: list[float], reference: list[float]) -> Interval:
    """Relative difference of the mean from the reference's, in percent; the interval resamples tiles."""
    pairs = np.array([ours, reference]).T
    return Interval(*(100 * (number - 1) for number in dataclasses.astuple(ratio_interval(pairs))))


def label(cell: Cell, group: str) -> str:
    """The settings that the group varies."""
    window = lambda part: f'{round(16 * (part or 0))}/16 W'
    steps = cell.make_plan(64).steps
    project = 'none' if not cell.strength else f'{cell.scale}×, strength {cell.strength:g}' + ', first half' * cell.end
    return {
        'plans': f'{cell.plan}, {steps} steps',
        'overlap': f'{cell.phases} phases, {window(cell.overlap)}',
        'steps': f'{cell.phases} phases, {cell.steps} steps',
        'noise': f'{cell.phases} phases, {cell.noise}',
        'seams': f'{cell.phases} phases, {window(cell.overlap)}, {cell.steps} steps'
        if cell.plan == 'fast'
        else cell.plan,
        'consistency': f'{"exact" if cell.exact else "noisy"}, {project}',
    }[group].replace('1 phases', '1 phase')


def table(group: str, rows: list[tuple[Cell, dict[str, Any]]], references: dict[bool, dict[str, Any]]) -> str:
    """Markdown. `references`: the figures of metaearth, for either set of scenes."""

    def over_real(figures, name):
        return told(Interval(**figures['seams'][name]['over_real'])) if name in figures['seams'] else ''

    heads = [
        'PSNR, dB',
        'LPIPS',
        'against metaearth, %',
        'fd_efflite0',
        'agreement, dB',
        'detail',
        'step',
        'slope',
        'band',
        'worst',
        'overlap',
        'evaluations per px',
        'CPU s',
    ]
    lines = [f'| {group} | {" | ".join(heads)} |', '|---' + '|---:' * len(heads) + '|']
    for cell, row in rows:
        reference = references.get(cell.more)
        lines.append(
            '| '
            + ' | '.join(
                [
                    label(cell, group),
                    f'{row["psnr_db"]:.2f}',
                    f'{np.mean(row["lpips"]):.4f}',
                    told(relative(row['lpips'], reference['lpips']), '+.1f') if reference else '',
                    f'{row["fd_efflite0"]:.2f}'
                    + (f' ({100 * (row["fd_efflite0"] / reference["fd_efflite0"] - 1):+.1f} %)' if reference else ''),
                    f'{row["lr_consistency_db"]:.1f}',
                    f'{row["detail_ratio"]:.3f}',
                    *(over_real(row, name) for name in ('step all', 'slope all', 'band all', 'worst', 'overlap')),
                    f'{row["evaluations_per_px"]:.1f}',
                    f'{row["cpu_seconds"]:.0f}',
                ]
            )
            + ' |'
        )
    return '\n'.join(lines) + '\n'


def picture(out: Path, columns: dict[str, Cell]) -> np.ndarray:
    """A corner of the first scene from each existing mosaic, under its title, and from the real image; uint8 (h, w, 3)."""
    box = next(iter(SCENES.values()))
    images = {title: read_image(cell.paths(out)[0]) for title, cell in columns.items() if cell.paths(out)[0].exists()}
    size = PICTURE_SCALE * PICTURE_PX
    sheet = Image.new('RGB', ((len(images) + 1) * (size + 4) - 4, size + 20), 'white')
    for number, (title, image) in enumerate((images | {'real': box.crop(blue_marble.load())}).items()):
        corner = Image.fromarray(image[:PICTURE_PX, -PICTURE_PX:]).resize((size, size), Image.NEAREST)
        sheet.paste(corner, (number * (size + 4), 20))
        ImageDraw.Draw(sheet).text(
            (number * (size + 4) + size // 2, 10), title, fill='black', anchor='mm', font_size=13
        )
    return np.asarray(sheet)


def main() -> None:
    console.enable_compilation_cache()
    trained, out = load_generator(CHECKPOINT.value), Path(OUT.value)
    if trained.config.data.size_px % 16:
        raise BadInput(f'{CHECKPOINT.value}: windows of {trained.config.data.size_px} px; they must be multiples of 16')
    folders.claim_folder(
        out,
        {
            'checkpoint': trained.digest,
            'images_seen': trained.images_seen,
            'seed': SEED.value,
            'scenes': {name: list(box) for name, box in (SCENES | MORE_SCENES).items()},
        },
    )
    judge, design = Judge(out), cells()
    wanted = list(dict.fromkeys(cell for group in GROUPS if group in GROUP.value for cell in design[group]))
    figures = {}
    with tqdm(wanted, unit='mosaic', dynamic_ncols=True) as bar:
        for cell in bar:
            bar.set_postfix_str(cell.name(), refresh=False)
            figures[cell] = judged(cell, trained, judge, out)
    references = {cell.more: row for cell, row in figures.items() if cell.plan == REFERENCE and cell.steps is None}
    tables = [
        table(group, [(cell, figures[cell]) for cell in design[group] if not cell.moved], references)
        for group in GROUPS
        if group in GROUP.value
    ]
    moved, edges = {}, None
    if 'seams' in GROUP.value:
        moved = {
            label(cell, 'seams'): mutual_seams(cell, trained.config.data.size_px, out)
            for cell in design['seams']
            if dataclasses.replace(cell, moved=True) in figures and not cell.moved
        }
        edges = edge_energy(trained.config.data.size_px, out)
        tables += [seam_table(moved), edge_table(edges)]
    text = f'Checkpoint {trained.digest}, {trained.images_seen:,} images seen.\n\n' + '\n'.join(tables)
    files.write_text_atomically(out / 'table.md', text)
    write_image(out / 'mosaics.png', picture(out, PICTURE))
    print('\n' + text)
    console.finish(
        {
            'checkpoint': trained.digest,
            'images_seen': trained.images_seen,
            'seed': SEED.value,
            'cells': {cell.name(): row for cell, row in figures.items()},
            'seams_over_moved': moved,
            'edge_energy': edges,
        },
        out / 'ablation.json',
    )


if __name__ == '__main__':
    console.run(main)
