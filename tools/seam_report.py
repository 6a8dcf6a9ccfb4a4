"""Measures how visible each grid of a mosaic is (windows and supertiles), against controls.

    python tools/seam_report.py OUT --control real=IMAGE --control metaearth=OTHER_OUT

OUT is the output of `sample.py --tiles`. A control is an image of the same area, measured on OUT's grids, with the ratio of
OUT's figures to those of the control in further rows; or another mosaic, measured on its own grids. The image with the most
similar texture is that of a mosaic with the same condition and seed but other windows. rsdiff/evaluation/seams.py explains
the figures. Writes OUT/seams.md and OUT/seams.json, which is also the last line of output.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Any

from absl import flags
from tqdm import tqdm

from rsdiff.base import files, folders
from rsdiff.base.errors import BadInput
from rsdiff.data.images import read_image
from rsdiff.evaluation.interval import Interval
from rsdiff.evaluation.seams import Grid, against, ratio_interval, seam_sums
from rsdiff.evaluation.tables import Shown, with_interval
from rsdiff.evaluation.tables import markdown as table_text
from rsdiff.programs import console
from rsdiff.sampling.export.formats import open_finished
from rsdiff.sampling.mosaic.plan import Phase, Plan

CONTROL = flags.DEFINE_multi_string('control', [], 'NAME=IMAGE or NAME=OUT; may be repeated.')
STAGE = flags.DEFINE_integer('stage', None, 'Stage to measure; default: the last.', lower_bound=1)
BANDS = flags.DEFINE_string(
    'bands', None, 'Bands of a control that is a GeoTIFF, for red, green and blue, such as 4,3,2.'
)
VALUE_RANGE = flags.DEFINE_string(
    'value_range', None, 'Values of such a control that become black and white, such as 0,3000.'
)
BLOCK_PX = flags.DEFINE_integer(
    'block_px', 512, 'Side of the squares that are read at a time, and resampled for intervals.', lower_bound=128
)


def open_mosaic(out: Path) -> tuple[Any, dict]:
    """The array of the stage, and the settings of the mosaic."""
    settings, stages = open_finished(out)
    if STAGE.value and STAGE.value > len(stages):
        raise BadInput(f'--stage is {STAGE.value}; {out} has {len(stages)}')
    return stages[(STAGE.value or len(stages)) - 1], settings


def read_plan(settings: dict, path: Path) -> Plan:
    """The plan in the settings of a mosaic, which are from the file `path`. Raises BadInput if they hold no valid plan."""
    window_px, phases = files.field(settings, 'window_px', int, path), []
    for row in files.field(settings, 'phases', list, path):
        if not isinstance(row, dict) or row.keys() != {field.name for field in dataclasses.fields(Phase)}:
            raise BadInput(f'{path}: {str(row)[:40]!r} is not a phase')
        sizes = {name: files.field(row, name, int, path) for name in ('steps', 'stride_px', 'crop_px', 'ramp_px')}
        offset = files.field(row, 'offset', list, path)
        if (
            min(sizes.values()) < 0
            or sizes['steps'] < 1
            or not 1 <= sizes['stride_px'] <= window_px < 2**16
            or 2 * sizes['crop_px'] + sizes['ramp_px'] >= window_px
        ):
            raise BadInput(f'{path}: windows of {window_px} px can not be laid out by {str(sizes)[:100]}')
        if len(offset) != 2 or not all(type(part) in (int, float) and 0 <= part <= 1 for part in offset):
            raise BadInput(f'{path}: offset {str(offset)[:40]} of a phase is not two numbers from 0 to 1')
        phases.append(Phase(**sizes, offset=tuple(offset)))
    name, solver = (files.field(settings, key, str, path) for key in ('plan', 'solver'))
    return Plan(name, window_px, solver, tuple(phases))


def grids(out: Path, settings: dict, height: int, width: int) -> list[Grid]:
    """The windows of every phase of the mosaic in `out`, and the supertiles."""
    path = out / folders.SETTINGS
    plan, around_px = read_plan(settings, path), width if files.field(settings, 'wrap_x', bool, path) else None
    found = []
    for number, phase in enumerate(plan.phases, 1):
        begins = [
            plan.lattice(phase, axis, around_px).touching(0, side, plan.profile(phase))
            for axis, side in ((0, height), (1, width))
        ]
        rows, columns = ([place + phase.crop_px for place in places] for places in begins)
        found.append(Grid(f'windows of phase {number}', rows, columns, phase.ramp_px))
    size = settings['supertile_px']
    return found + [Grid('supertiles', range(size, height, size), range(size, width, size))]


def distinct(found: list[Grid]) -> list[Grid]:
    """Drops grids that repeat the lines of another: a plan may have one phase per step."""
    seen = {}
    for grid in found:
        seen.setdefault((tuple(grid.rows), tuple(grid.columns), grid.overlap_px), grid)
    return list(seen.values())


def markdown(tables: dict[str, dict[str, dict[str, Interval]]]) -> str:
    """One table per grid, one row per image."""
    parts = []
    for grid in dict.fromkeys(grid for rows in tables.values() for grid in rows):
        rows = {name: table[grid] for name, table in tables.items() if grid in table}
        columns = [
            Shown(column, lambda row, column=column: cell(row[1].get(column)))
            for column in dict.fromkeys(column for row in rows.values() for column in row)
        ]
        parts.append(table_text([Shown(grid, lambda row: row[0], number=False), *columns], list(rows.items())))
    return '\n'.join(parts)


def cell(interval: Interval | None) -> str:
    if interval is None or interval.low is None:
        return ''
    return with_interval(interval.value, interval.low, interval.high, 3)


def main(out: Path) -> None:
    array, settings = open_mosaic(out)
    height, width = array.shape[:2]
    jobs = [(out.resolve().name, array, distinct(grids(out, settings, height, width)))]
    for control in CONTROL.value:
        name, equals, path = control.partition('=')
        path = Path(path)
        if not equals or name in [job[0] for job in jobs]:
            raise BadInput(f'--control {control}: say NAME=IMAGE or NAME=OUT, with a unique name')
        if path.is_dir():
            other, own = open_mosaic(path)
            jobs.append((name, other, distinct(grids(path, own, *other.shape[:2]))))
        else:
            image = read_image(
                path, console.flag_numbers('bands', int, 3), console.flag_numbers('value_range', float, 2)
            )
            if image.shape[:2] != (height, width):
                raise BadInput(f'{path}: {image.shape[1]}×{image.shape[0]} px; {out} has {width}×{height}')
            jobs.append((name, image, jobs[0][2]))
    sums, count = {}, sum(len(found) for _, _, found in jobs)
    with tqdm(total=count, unit='grid', desc='seams', dynamic_ncols=True) as bar:
        for name, image, found in jobs:
            sums[name] = {}
            for grid in found:
                sums[name][grid.name] = seam_sums([(image, grid)], BLOCK_PX.value)
                bar.update()
    tables = {
        name: {grid: {key: ratio_interval(pairs) for key, pairs in row.items()} for grid, row in table.items()}
        for name, table in sums.items()
    }
    own, *_, found = jobs[0]
    for name in (name for name, _, its in jobs[1:] if its is found):
        tables[f'{own} / {name}'] = {
            grid: {
                key: against(pairs, sums[name][grid][key])
                for key, pairs in row.items()
                if key not in ('comb', 'repetition')
            }
            for grid, row in sums[own].items()
        }
    files.write_text_atomically(out / 'seams.md', markdown(tables))
    print(f'\n{markdown(tables)}')
    plain = {
        name: {grid: {key: interval.to_json() for key, interval in row.items()} for grid, row in table.items()}
        for name, table in tables.items()
    }
    console.finish({'out': str(out), 'height': height, 'width': width, 'seams': plain}, out / 'seams.json')


if __name__ == '__main__':
    given = sys.argv.pop(1) if len(sys.argv) > 1 and not sys.argv[1].startswith('-') else None

    def checked() -> None:
        if given is None:
            raise BadInput('the first argument must be the folder of a mosaic')
        main(Path(given))

    console.run(checked)
