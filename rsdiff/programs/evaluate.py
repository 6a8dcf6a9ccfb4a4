"""Evaluates images against real ones: fidelity, similarity and distribution in one table, with what each column rewards.

    a generator, on degraded real images, or on pairs from a sensor (`low_res_file_name` in the manifest):
        python tools/evaluate.py --checkpoint earth --pairs FOLDER:test --out OUT
    existing images, matched by the name of the real image that they were made from:
        python tools/evaluate.py --generated DIR --generated other=DIR --reference FOLDER:test --out OUT
    two sets of images without pairs:
        python tools/evaluate.py --generated DIR --reference FOLDER --unpaired --out OUT

A generator's fields besides `lr` and `gsd_m` are read from the rows of the real images.

The table always includes nearest and bicubic enlargement of the condition, and the truth against itself, as the two ends of
the scale. OUT holds table.md, table.csv, per_image.csv, grid.png and evaluate.json, whose content is also the
last line. Run the same command again to continue; samples and features are kept.
"""

import dataclasses
import functools
import hashlib
import time
import zlib
from pathlib import Path
from typing import cast

import jax
import numpy as np
from absl import flags
from tqdm import tqdm

from rsdiff.base import folders
from rsdiff.base.boxes import Box
from rsdiff.base.errors import BadInput
from rsdiff.base.files import AnyPath, stamp
from rsdiff.base.seeds import written_seed
from rsdiff.base.shipped import find_checkpoint
from rsdiff.data.degradation import PRESETS, UPSCALE, degrade
from rsdiff.data.fields import Field, Layer
from rsdiff.data.folder import Entry, clean_name, opened_entries, read_folder, split_of, write_manifest
from rsdiff.data.gsd import check_gsd_m
from rsdiff.data.images import image_size, read_image, to_float, to_uint8, write_image
from rsdiff.data.made import Made
from rsdiff.data.scenes import open_scene
from rsdiff.diffusion.noise import name_key
from rsdiff.evaluation import columns, comparison, pairs, report
from rsdiff.evaluation.comparison import Row
from rsdiff.evaluation.features import named_extractor
from rsdiff.evaluation.paired import DegradeNamed, paired_measures
from rsdiff.evaluation.pairs import Pair
from rsdiff.methods.base import fields_to_read
from rsdiff.programs import console
from rsdiff.training.checkpoint import CONFIG, read_config

SAMPLE = 'rsdiff.programs.sample'
TRUTH, CONDITION = 'truth', 'condition'

GENERATED = flags.DEFINE_multi_string('generated', [], 'DIR or NAME=DIR: images to evaluate; may be repeated.')
CHECKPOINT = flags.DEFINE_multi_string(
    'checkpoint', [], 'DIR or NAME=DIR: a run or release to sample from; DIR may be earth or aerial; may be repeated.'
)
REFERENCE = flags.DEFINE_string('reference', None, 'DIR or DIR:SPLIT with the real images; --pairs is an alias.')
PAIRS = flags.DEFINE_string('pairs', None, 'Alias of --reference.')
OUT = flags.DEFINE_string('out', None, 'Output folder: new, or from an earlier run of this command.', required=True)
UNPAIRED = flags.DEFINE_bool('unpaired', False, 'Compare --generated with --reference as sets only.')
DEGRADATION = flags.DEFINE_enum(
    'degradation', 'bicubic', sorted(PRESETS), 'Degradation that makes the conditions that the manifest does not name.'
)
METRICS = flags.DEFINE_list('metrics', [column.name for column in columns.PAIRED], 'Paired metrics to compute.')
FEATURES = flags.DEFINE_list(
    'features',
    ['efflite0'],
    'Networks whose features compare sets: efflite0, the folder of a CLIP in '
    'Hugging Face format, or for standard FID the file pt_inception-2015-12-05-6726825d.pth.',
)
LIMIT = flags.DEFINE_integer('limit', None, 'Use at most this many references, evenly spread.', lower_bound=1)
GSD_M = flags.DEFINE_float('gsd_m', None, 'Metres per pixel of references whose manifest does not give it.')
BANDS = flags.DEFINE_string('bands', None, 'GeoTIFF bands for red, green and blue, such as 4,3,2.')
VALUE_RANGE = flags.DEFINE_string('value_range', None, 'GeoTIFF values for black and white, such as 0,3000.')
STEPS = flags.DEFINE_integer(
    'steps',
    None,
    "Network evaluations per sample, at most the checkpoint's timesteps; default: the checkpoint's own.",
    1,
)
CONSISTENCY = flags.DEFINE_bool(
    'consistency',
    True,
    'Project samples onto their condition, as sample.py does; --noconsistency compares networks alone.',
)
SEED = flags.DEFINE_integer('seed', 0, 'Random seed of samples and conditions.')
BATCH = flags.DEFINE_integer('batch_size', 8, 'Images per batch; affects speed only.', lower_bound=1)
EXAMPLES = flags.DEFINE_integer('examples', 6, 'Rows of grid.png.', lower_bound=1)


def main() -> None:
    started, out = time.monotonic(), Path(OUT.value)
    if GSD_M.value is not None:
        check_gsd_m(GSD_M.value, '--gsd_m')
    colours()
    folder, truths = references()
    generated, checkpoints = named('generated', GENERATED.value), named('checkpoint', CHECKPOINT.value)
    check(generated, checkpoints)
    measure = paired_measures(METRICS.value, degradation(folder, truths))
    extractors = [named_extractor(name) for name in FEATURES.value]
    console.enable_compilation_cache()
    fields = fields_of(checkpoints)
    sources = digests(folder, truths, fields, out / 'conditions')
    folders.claim_folder(out, settings(folder, truths, sources, generated, checkpoints))
    rows_of = make_conditions(folder, truths, fields, sources, out / 'conditions')
    for name, checkpoint in checkpoints.items():
        sample(checkpoint, out / 'conditions', out / 'samples' / name)
        generated[name] = out / 'samples' / name
    rows = make_rows(rows_of, generated)
    table = comparison.compare(rows, TRUTH, rows_of, measure, METRICS.value, extractors, out / 'features', BATCH.value)
    table = dataclasses.replace(table, warnings=(*table.warnings, *radiometry(truths)))
    report.write_tables(out, table, [truth.file_name for truth in truths])
    print(f'\n{report.markdown(table)}')
    shown = [number * len(rows_of) // EXAMPLES.value for number in range(min(EXAMPLES.value, len(rows_of)))]
    report.write_grid(
        out / 'grid.png',
        [example(rows_of[number], rows, number) for number in shown],
        TRUTH,
        [row.name for row in rows if row.paired and row.name not in ('nearest', TRUTH)],
    )
    console.finish(
        {
            'out': str(out),
            'images': len(rows_of),
            'seconds': round(time.monotonic() - started, 1),
            **comparison.summary(table),
        },
        out / 'evaluate.json',
    )


def references() -> tuple[Path, list[Entry]]:
    """The folder of the real images, and the entries to use."""
    if (REFERENCE.value is None) == (PAIRS.value is None):
        raise BadInput('give --reference DIR or --pairs DIR, not both')
    path, split = split_of(cast(str, REFERENCE.value or PAIRS.value))
    folder, entries = Path(path), opened_entries(path, split)
    if LIMIT.value and LIMIT.value < len(entries):
        entries = [entries[number * len(entries) // LIMIT.value] for number in range(LIMIT.value)]
    names = {}
    for entry in entries:
        other = names.setdefault(condition_name(entry), entry)
        if other is not entry:
            raise BadInput(
                f'{folder}: {other.file_name!r} and {entry.file_name!r} differ only in their suffix; rename one of them'
            )
    return folder, entries


def condition_name(truth: Entry) -> str:
    """File name of the condition of `truth` in OUT/conditions."""
    return str(Path(clean_name(truth.file_name)).with_suffix('.png'))


def colours() -> dict:
    """How raster files become RGB, as arguments of `read_image`."""
    return {
        'bands': console.flag_numbers('bands', int, 3),
        'value_range': console.flag_numbers('value_range', float, 2),
    }


def fields_of(checkpoints: dict[str, Path]) -> list[Field]:
    """The fields that the checkpoints read from rows, by key in the manifest; images as RGB, which each checkpoint reduces
    to its channels."""
    found = {}
    for path in checkpoints.values():
        for field in fields_to_read(read_config(path / CONFIG).method.fields):
            found[field.key] = dataclasses.replace(field, channels=3 if field.channels else 0)
    return list(found.values())


def digests(folder: Path, truths: list[Entry], fields: list[Field], conditions: Path) -> list[str]:
    """Digest of what each condition is made from: the truth, the sensor's image, and the row's fields, where there are any.

    Raises:
      BadInput: these files have changed since `conditions` were made.
    """
    made, found = Made(conditions), []
    for truth in truths:
        sensor = pairs.sensor_condition(folder, truth)
        own = [field for field in fields if field.is_of(truth)]
        files = [truth.path, sensor, *(path for field in own for path in field.files(truth))]
        numbers = [f'{field.name}={truth.numbers[field.name]}' for field in own if not field.channels]
        found.append('-'.join([*(stamp(path).sha256 for path in files if path), *numbers]))
        if made.source(condition_name(truth)) not in (None, found[-1]):
            raise BadInput(f'{truth.path}: has changed since {OUT.value} was started; use another --out or remove it')
    return found


@functools.cache
def reduction():
    """(image (h, w, 3), file name of the truth) → its condition, in [-1, 1]. Random draws depend on --seed and name only."""
    reduce = jax.jit(lambda image, key: degrade(image[None], key[None], PRESETS[DEGRADATION.value])[0])
    return lambda image, name: np.asarray(reduce(to_float(image), name_key(SEED.value, zlib.crc32(name.encode()))))


def degradation(folder: Path, truths: list[Entry]) -> DegradeNamed | None:
    """The degradation that made the conditions. None, for block means, if they are from a sensor: its own is unknown."""
    if any(pairs.sensor_condition(folder, truth) for truth in truths):
        return None
    return lambda images, names: np.stack(
        [127.5 * (reduction()(image, name).astype(np.float64) + 1) for image, name in zip(images, names)]
    )


def radiometry(truths: list[Entry]) -> list[str]:
    """What the table says about truths whose manifest says that `prepare_data.py --match_histograms` changed them."""
    matched = sum(truth.extra.get('radiometry') == 'matched' for truth in truths)
    return [f'the histograms of {matched} of {len(truths)} truths were matched to their conditions'] if matched else []


def named(flag: str, given: list[str]) -> dict[str, Path]:
    """NAME=DIR → {NAME: DIR}; NAME defaults to the name of the folder."""
    found = {}
    for value in given:
        name, equals, path = value.partition('=')
        path = path if equals else value
        path = Path(find_checkpoint(path) if flag == 'checkpoint' else path)
        name = name if equals else path.resolve().name
        if not path.is_dir():
            raise BadInput(f'--{flag} {path}: no such folder')
        if name in found or name in (TRUTH, CONDITION, 'nearest', 'bicubic') or not name or Path(name).name != name:
            raise BadInput(f'--{flag} {value}: {name!r} is taken or is not a valid name; give NAME={path}')
        found[name] = path
    return found


def check(generated: dict[str, Path], checkpoints: dict[str, Path]) -> None:
    """Checks the flags before anything is made. Raises BadInput."""
    if both := {*generated} & {*checkpoints}:
        raise BadInput(f'--generated and --checkpoint both have {both.pop()!r}; rename one with NAME=DIR')
    if UNPAIRED.value and (checkpoints or not FEATURES.value):
        raise BadInput('--unpaired compares folders of images by --features; --checkpoint makes pairs')


def settings(
    folder: Path, truths: list[Entry], sources: list[str], generated: dict[str, Path], checkpoints: dict[str, Path]
) -> dict:
    """What the contents of OUT depend on."""
    names = zlib.crc32('\n'.join(truth.file_name for truth in truths).encode())
    return {
        'reference': str(folder.resolve()),
        'images': len(truths),
        'names_crc32': names,
        'references_sha256': hashlib.sha256('\n'.join(sources).encode()).hexdigest(),
        'generated': {name: str(path.resolve()) for name, path in generated.items()},
        'checkpoints': {name: str(path.resolve()) for name, path in checkpoints.items()},
        'degradation': DEGRADATION.value,
        'steps': STEPS.value,
        'seed': written_seed(SEED.value),
        **({} if CONSISTENCY.value else {'consistency': False}),
        **colours(),
    }


def make_conditions(
    folder: Path, truths: list[Entry], fields: list[Field], sources: list[str], out: Path
) -> list[Pair]:
    """Writes the condition of every truth, with the `fields` that it has, into the image folder `out`; conditions from a
    sensor are not degraded. Existing files that do not match `sources` are made again."""
    made, entries, written, index = [], [], [], Made(out)
    for truth, source in zip(tqdm(truths, unit='image', desc='conditions', dynamic_ncols=True), sources):
        name = condition_name(truth)
        pair = Pair(truth, out / name, **colours())
        sensor = pairs.sensor_condition(folder, truth)
        if not index.has(name, source):
            pair.size()
            if sensor:
                condition = read_image(sensor, **colours())
            else:
                condition = to_uint8(reduction()(pair.read_truth(), truth.file_name))
            write_image(pair.condition, condition)
            index.add(name, source)
        written.append(name)
        extra = {'source': truth.file_name, 'sensor': bool(sensor)}
        for field in fields:
            if not field.channels and field.is_of(truth):
                extra[field.key] = truth.numbers[field.name]
            files = []
            for number, path in enumerate(field.files(truth)):
                file = f'.fields/{field.name}{number or ""}/{name}'
                if not index.has(file, source):
                    pixels = cut_file(field, path, truth, pair.size())
                    if not pixels.size:
                        continue
                    write_image(out / file, pixels)
                    index.add(file, source)
                files.append(file)
            written += files
            if files:
                extra[field.key] = files if field.is_stack else files[0]
        gsd_m = truth.gsd_m or GSD_M.value or file_gsd_m(truth)
        made.append(pair)
        entries.append(
            Entry(
                pair.condition,
                name,
                truth.split,
                truth.label,
                truth.captions,
                gsd_m and gsd_m * UPSCALE,
                extra,
            )
        )
    write_manifest(out, entries)
    index.keep(written)
    return made


def cut_file(field: Field, path: AnyPath, truth: Entry, size: tuple[int, int]) -> np.ndarray:
    """The pixels of one of a row's files, uint8 (h, w, 3), for the truth cropped to `size`; (h, w, 0) for an image of a stack
    with nodata there."""
    with field.open(path, **colours()) as scene:
        return Layer(field, {str(path): scene}, image_size(truth.path)).pixels(Box(0, 0, *size))


def file_gsd_m(truth: Entry) -> float | None:
    """Metres per pixel, if the file itself gives it."""
    with open_scene(truth.path, **colours()) as scene:
        return scene.gsd_m


def sample(checkpoint: Path, conditions: Path, out: Path) -> None:
    """Runs the program `sample`."""
    arguments = [
        f'--checkpoint={checkpoint}',
        f'--condition={conditions}',
        f'--out={out}',
        f'--seed={SEED.value}',
        f'--batch_size={BATCH.value}',
        f'--consistency={CONSISTENCY.value}',
    ]
    if STEPS.value:
        arguments.append(f'--steps={min(STEPS.value, read_config(checkpoint / CONFIG).method.timesteps)}')
    console.call('-m', SAMPLE, *arguments)


def make_rows(made: list[Pair], generated: dict[str, Path]) -> list[Row]:
    """The rows of the table, from nearest enlargement to the truth."""
    rows = [
        Row('nearest', lambda number: pairs.repeated(made[number]), len(made)),
        Row('bicubic', lambda number: pairs.enlarged(made[number]), len(made)),
    ]
    for name, folder in generated.items():
        if UNPAIRED.value:
            entries = read_folder(folder)
            read = lambda number, entries=entries: read_image(entries[number].path, **colours())
            rows.append(Row(name, read, len(entries), False))
        else:
            entries = pairs.match(folder, [pair.truth for pair in made])
            read = lambda number, entries=entries: pairs.read_made(entries[number], made[number])
            rows.append(Row(name, read, len(made)))
    return rows + [Row(TRUTH, lambda number: made[number].read_truth(), len(made))]


def example(pair: Pair, rows: list[Row], number: int) -> dict[str, np.ndarray]:
    """The images of one row of the grid."""
    return {CONDITION: pair.read_condition()} | {
        row.name: row.read(number) for row in rows if row.paired and row.name != 'nearest'
    }


def run() -> None:
    """The command."""
    console.run(main)


if __name__ == '__main__':
    run()
