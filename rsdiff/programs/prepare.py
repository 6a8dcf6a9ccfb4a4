"""Cuts folders and scenes into a dataset of chips that `train.py --config.data.source=OUT` reads with fast random access.

    python tools/prepare_data.py --source DIR:train --source SCENE.tif --validation DIR:val --reductions 1,4 --out OUT

Real pairs of two sensors, from a dataset in the layout in which it was published, become a folder with a manifest instead:

    python tools/prepare_data.py --layout s2naip --source DIR --out OUT
    … --match_histograms gives each image the colours of its low-resolution image

A source is one image or an image folder, with or without `metadata.jsonl`; DIR:SPLIT selects a split. If a folder has
splits, DIR alone means its split train after --source, and its validation split after --validation.

Every image is cut into chips of --size_px at each reduction (box mean). Chips that have gaps, are mostly white or black, are
nearly constant, or duplicate another chip are left out. OUT then holds a TFDS dataset of ArrayRecord shards, `chips`, with
splits train and validation; training_fingerprints.npz of the images that training chips were cut from; and prepare.json
with all counts and the size and SHA-256 of every file.

After an interruption the same command starts over, because shards are only written once all chips are shuffled; until then
OUT holds no dataset. A finished dataset is made again only if one of its files is missing or damaged.
"""

import collections
import hashlib
import json
import shutil
import sys
import time
from pathlib import Path
from typing import NamedTuple, cast

from absl import flags
from tqdm import tqdm

from rsdiff.base import folders
from rsdiff.base.errors import BadInput
from rsdiff.base.files import field, is_whole, read_json, stamp
from rsdiff.data import chips
from rsdiff.data.crops import FolderImages
from rsdiff.data.fingerprints import FILE as FINGERPRINTS
from rsdiff.data.fingerprints import TrainedOn, add_fingerprints, known_of
from rsdiff.data.folder import split_of, training_entries, validation_entries
from rsdiff.data.inventory import images_seen, look_at_entries
from rsdiff.data.layouts.convert import Conversion
from rsdiff.data.layouts.places import Colours
from rsdiff.data.records import CHIPS, prepared_folder, write_chips
from rsdiff.programs import console
from rsdiff.programs.layouts import LAYOUTS, prepare_layout

REPORT = 'prepare.json'

SPLITS = {
    'train': flags.DEFINE_multi_string('source', None, 'DIR, DIR:SPLIT or an image; may be repeated.', required=True),
    'validation': flags.DEFINE_multi_string('validation', [], 'The same, for the split validation.'),
}
OUT = flags.DEFINE_string('out', None, 'A local folder for the dataset.', required=True)
SIZE_PX = flags.DEFINE_integer('size_px', 64, 'Side of a chip.', lower_bound=1)
STRIDE = flags.DEFINE_integer('stride', None, 'Pixels from chip to chip; default: --size_px.', lower_bound=1)
REDUCTIONS = flags.DEFINE_string('reductions', '1', 'Reduction factors of the chips, such as 1,4.')
GSD_M = flags.DEFINE_float('gsd_m', None, 'Metres per pixel of images that do not give it themselves.')
BANDS = flags.DEFINE_string('bands', None, 'GeoTIFF bands for red, green and blue, counted from 1, such as 4,3,2.')
VALUE_RANGE = flags.DEFINE_string('value_range', None, 'GeoTIFF values for black and white, such as 0,3000.')
MAX_CHIPS = flags.DEFINE_integer(
    'max_chips_per_source',
    None,
    'Maximum number of chips per source, balanced over the reductions and spread evenly over the images.',
    lower_bound=1,
)
ENCODING = flags.DEFINE_enum('encoding', 'png', ['png', 'jpeg'], 'Encoding of chips; JPEG at quality 95.')
LIMITS = {
    'max_nodata': flags.DEFINE_float('max_nodata', chips.Limits.max_nodata, 'Maximum share of pixels without data.'),
    'max_black': flags.DEFINE_float('max_black', chips.Limits.max_black, 'Maximum share of black pixels (deep water).'),
    'black_level': flags.DEFINE_integer('black_level', chips.Limits.black_level, 'Black: no channel above this.'),
    'max_white': flags.DEFINE_float('max_white', chips.Limits.max_white, 'Maximum share of white pixels (cloud).'),
    'white_level': flags.DEFINE_integer('white_level', chips.Limits.white_level, 'White: no channel below this.'),
    'min_std': flags.DEFINE_float('min_std', chips.Limits.min_std, 'Minimum standard deviation, channel mean.'),
}


LAYOUT = flags.DEFINE_enum(
    'layout', None, sorted(LAYOUTS), 'The layout of the one --source; see the modules of rsdiff/data/layouts.'
)
PAIRED = 'match_histograms', 'max_frames', 'leave_out_incomplete'
MATCH = flags.DEFINE_bool('match_histograms', False, 'With --layout: match histograms to the low-resolution images.')
MAX_FRAMES = flags.DEFINE_integer(
    'max_frames',
    None,
    'With --layout: maximum number of low-resolution images per place, the best ones.',
    lower_bound=1,
)
LEAVE_OUT = flags.DEFINE_bool('leave_out_incomplete', False, 'With --layout: leave out what lacks a half or a band.')
CHIPPED = 'validation', 'size_px', 'stride', 'reductions', 'gsd_m', 'max_chips_per_source', 'encoding'


class Source(NamedTuple):
    """One --source or --validation."""

    split: str
    argument: str
    name: str
    images: FolderImages


def open_source(split: str, argument: str, bands, value_range) -> Source:
    """The images of 'DIR', 'DIR:SPLIT' or a single image."""
    path, of_split = split_of(argument)
    if not Path(path).exists():
        raise BadInput(f'{argument}: no such folder or image')
    entries = (training_entries if split == 'train' else validation_entries)(path, of_split)
    images = FolderImages(path, None, GSD_M.value, bands, value_range, entries, '--gsd_m')
    return Source(split, argument, Path(path).resolve().name, images)


def main() -> None:
    started, out = time.monotonic(), Path(OUT.value)
    for name in CHIPPED if LAYOUT.value else PAIRED:
        if flags.FLAGS[name].value != flags.FLAGS[name].default:
            raise BadInput(f'--{name} does not go with --layout' if LAYOUT.value else f'--{name} needs --layout')
    if LAYOUT.value:
        if len(SPLITS['train'].value) != 1:
            raise BadInput('--layout takes one --source, the folder of the dataset')
        colours = Colours(console.flag_numbers('bands', int, 3), console.flag_numbers('value_range', float, 2))
        limits = chips.Limits(**{name: flag.value for name, flag in LIMITS.items()})
        conversion = Conversion(MATCH.value, MAX_FRAMES.value, limits)
        return prepare_layout(LAYOUT.value, SPLITS['train'].value[0], out, colours, conversion, LEAVE_OUT.value)
    reductions = cast(tuple[int, ...], console.flag_numbers('reductions', int))  # the flag has a default
    bands = console.flag_numbers('bands', int)
    value_range = console.flag_numbers('value_range', float, 2)
    if min(reductions) < 1 or len({*reductions}) < len(reductions):
        raise BadInput(f'--reductions is {REDUCTIONS.value}; it must be distinct whole numbers of at least 1')
    if GSD_M.value is not None and not GSD_M.value > 0:
        raise BadInput(f'--gsd_m is {GSD_M.value}; it must be a positive number of metres')
    limits = chips.Limits(**{name: flag.value for name, flag in LIMITS.items()})
    sources = [
        open_source(split, argument, bands, value_range) for split, flag in SPLITS.items() for argument in flag.value
    ]

    described = json.dumps([[entry.to_json() for entry in source.images.entries] for source in sources])
    settings = {
        'prepare_data': 1,
        'size_px': SIZE_PX.value,
        'stride': STRIDE.value,
        'reductions': reductions,
        'bands': bands,
        'value_range': value_range,
        'gsd_m': GSD_M.value,
        'max_chips_per_source': MAX_CHIPS.value,
        'encoding': ENCODING.value,
        'source': SPLITS['train'].value,
        'validation': SPLITS['validation'].value,
        'images': hashlib.sha256(described.encode()).hexdigest(),
        **{name: flag.value for name, flag in LIMITS.items()},
    }
    before = (out / folders.SETTINGS).exists()
    folders.claim_folder(out, settings)
    lock, report = folders.FolderLock(out), out / REPORT
    lock.acquire()
    try:
        if report.exists():
            result = read_json(report, f'remove {report} to prepare again')
            spoilt = spoilt_files(out, result)
            if not spoilt:
                print(f'{out} is finished', file=sys.stderr)
                return console.finish(result, report)
            print(
                f'{out}: {len(spoilt)} files are missing or damaged ({spoilt[0]}, …); making the dataset again',
                file=sys.stderr,
            )
            report.unlink()
        elif before:
            print(
                'an earlier run was interrupted; shards are written once all chips are shuffled, so it starts over',
                file=sys.stderr,
            )
        shutil.rmtree(out / CHIPS, ignore_errors=True)
        (out / FINGERPRINTS).unlink(missing_ok=True)
        result = prepare(out, sources, reductions, limits)
        console.finish({**result, 'seconds': round(time.monotonic() - started)}, report)
    finally:
        lock.release()


def spoilt_files(out: Path, report: dict) -> list[str]:
    """Names of files that `report` lists for a finished dataset and that are missing or damaged."""
    files = field(report, 'files', dict, out / REPORT, {})
    if not files:  # from an earlier version
        return [] if prepared_folder(str(out)) else [CHIPS]
    return [name for name, expected in files.items() if not is_whole(out / name, expected)]


def prepare(out: Path, sources: list[Source], reductions: tuple[int, ...], limits: chips.Limits) -> dict:
    """Scans the images, chooses chips and writes them; returns the counts."""
    survey, chosen, found = chips.Survey(), [], []
    with tqdm(
        total=sum(len(source.images) for source in sources),
        desc='scanning',
        unit=' images',
        bar_format='{l_bar}{bar}| {n:.0f}/{total} [{elapsed}<{remaining}, {rate_fmt}]',
    ) as bar:
        for source in sources:
            good = chips.look(
                source.images, SIZE_PX.value, STRIDE.value or SIZE_PX.value, reductions, limits, survey, bar.update
            )
            found.append(len(good))
            chosen.append(chips.choose(good, MAX_CHIPS.value))
    splits = [split for split in SPLITS if any(source.split == split for source in sources)]
    for split in splits:
        if not any(chosen[i] for i, source in enumerate(sources) if source.split == split):
            raise BadInput(
                f'no chip is left for {split}: {dict(survey.dropped)} dropped, {len(survey.unreadable)} '
                f'images unreadable, {sum(survey.too_small.values())} times an image too small for a reduction'
            )

    resolutions = collections.Counter()
    with tqdm(total=sum(map(len, chosen)), desc='writing', unit=' chips') as bar:

        def generate(split):
            for number, source in enumerate(sources):
                if source.split == split:
                    for key, example in chips.examples(
                        source.images, source.name, str(number), chosen[number], ENCODING.value, bar.update
                    ):
                        resolutions[round(example['gsd_m'], 3)] += 1
                        yield key, example

        add_fingerprints(out, trained_on(sources, chosen))
        size = write_chips(out, {split: lambda split=split: generate(split) for split in splits}, ENCODING.value)
    return {
        'out': str(out),
        'chips': sum(map(len, chosen)),
        'bytes': size,
        'splits': {
            split: sum(len(some) for some, source in zip(chosen, sources) if source.split == split) for split in splits
        },
        'sources': [
            {
                'source': source.argument,
                'split': source.split,
                'images': len(source.images),
                'found': found[i],
                'chips': len(chosen[i]),
            }
            for i, source in enumerate(sources)
        ],
        'gsd_m': {str(gsd_m): count for gsd_m, count in sorted(resolutions.items())},
        'dropped': dict(sorted(survey.dropped.items())),
        'images_too_small': {str(reduction): count for reduction, count in sorted(survey.too_small.items()) if count},
        'unreadable': survey.unreadable,
        'trained_on': str(known_of(out)),
        'files': {path.relative_to(out).as_posix(): stamp(path) for path in written_files(out)},
    }


def trained_on(sources: list[Source], chosen: list[list[chips.Chip]]) -> TrainedOn:
    """The images that training chips are cut from, and the known training images of generators that made those."""
    known = TrainedOn()
    for source, some in zip(sources, chosen):
        if source.split == 'train':
            numbers = sorted({chip.number for chip in some})
            known += images_seen(
                source.images, numbers, look_at_entries(source.images, numbers, show=True), source.name
            )
            folder = Path(split_of(source.argument)[0])
            known += (folder.is_dir() and known_of(folder)) or TrainedOn()
    return known


def written_files(out: Path) -> list[Path]:
    """All files of a finished dataset."""
    return sorted(path for path in (out / CHIPS).rglob('*') if path.is_file()) + [out / FINGERPRINTS]


def run() -> None:
    """The command."""
    console.run(main)


if __name__ == '__main__':
    run()
