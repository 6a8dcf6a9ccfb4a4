"""Writes places as a folder with a manifest: the images, exactly `UPSCALE` times as fine as their frames, and the frames.

    OUT/hr/{image}.png           resampled to the frames' grid, if it has another ratio: by the mean over areas (Pillow's box
                                 filter), or bicubic where that is finer than the image
    OUT/lr/{place}/{frame}.png   8-bit RGB; pixels without a measurement are transparent
    OUT/metadata.jsonl           low_res_file_name is the reference: the frame that shows most of the ground, neither black nor
                                 under cloud, then that of the least `Sharp.cost`; frames_file_names has all frames, the best
                                 first

The image and the frames of a place are taken to show the same ground; shapes that contradict this are refused.

A place is recorded in OUT/.places.jsonl once its files are written, so an interrupted run continues. Places that lack something
are not recorded, and are tried again by the next run, as are those whose files have changed.
"""

import collections
import concurrent.futures
import dataclasses
import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any, Callable, NamedTuple, Sequence

import numpy as np
from PIL import Image

from rsdiff.base.errors import BadInput
from rsdiff.base.files import parse_json, stamp, write_text_atomically
from rsdiff.data import radiometry
from rsdiff.data.chips import Limits, flaw
from rsdiff.data.degradation import UPSCALE
from rsdiff.data.folder import MANIFEST, Entry
from rsdiff.data.images import box_downscale, resized, write_image
from rsdiff.data.layouts.places import Frame, Incomplete, Picture, Place, Sharp

JOURNAL = '.places.jsonl'
BLOCK = 64  # places read at once
# An image and its frames show the same ground if their shapes agree to this many pixels of a frame, or to this share.
SHAPE_PX, SHAPE_SHARE = 2, 0.05


@dataclasses.dataclass(frozen=True)
class Conversion:
    """What is written. `match_histograms`: give images the radiometry of their reference (`rsdiff.data.radiometry`).
    `max_frames`: the best of each place; None: all."""

    match_histograms: bool = False
    max_frames: int | None = None
    limits: Limits = Limits()


class Written(NamedTuple):
    """The result for a place: its lines of the manifest, the size in bytes of each file by name, counts, the problems of its
    images by name, and a digest of the names, sizes and times of the files that were read."""

    rows: list[dict[str, Any]]
    files: dict[str, int]
    counts: dict[str, int]
    problems: dict[str, str]
    source: str


def convert(
    places: Sequence[Place | Incomplete],
    out: Path,
    conversion: Conversion,
    leave_out: bool = False,
    progress: Callable[[float], object] = lambda done: None,
) -> tuple[dict[str, int], dict[str, str]]:
    """Writes `places` into the folder `out`, and its manifest if any image is left, and either nothing is incomplete or
    `leave_out` is set.

    Returns:
      Counts by name: images, frames, black frames, frames of another size, images resampled, and useless images by reason;
      and the problems of incomplete places and images by name, each of which is also logged.
    """
    out.mkdir(parents=True, exist_ok=True)
    counts, problems, rows, known = collections.Counter(), {}, [], recorded(out)
    tried = lambda place: _tried(place, known.get(place.name), out, conversion)
    with (out / JOURNAL).open('a') as journal, concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for first in range(0, len(places), BLOCK):
            block = places[first : first + BLOCK]
            for place, result in zip(block, pool.map(tried, block)):
                found = {place.name: result} if isinstance(result, str) else result.problems
                for name, problem in found.items():
                    logging.warning('incomplete: %s: %s', name, problem)
                problems |= found
                if isinstance(result, Written):
                    counts.update(result.counts)
                    rows += result.rows
                    if result != known.get(place.name):  # on a new line, in case the last one was cut off
                        journal.write(f'\n{json.dumps({"name": place.name, **result._asdict()})}')
                        journal.flush()
                progress(1)
    if rows and (leave_out or not problems):
        write_text_atomically(out / MANIFEST, ''.join(json.dumps(row) + '\n' for row in rows))
    return dict(sorted(counts.items())), problems


def recorded(out: Path) -> dict[str, Written]:
    """The places written so far whose files are all there, in their size. A line that was cut off is ignored."""
    path, found = out / JOURNAL, {}
    for line in path.read_bytes().split(b'\n') if path.is_file() else []:
        try:
            row = parse_json(line, JOURNAL)
            name, written = row.pop('name'), Written(**row)
            if all(_size(out / file) == size for file, size in written.files.items()):
                found[name] = written
        except (BadInput, AttributeError, KeyError, TypeError):
            continue
    return found


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _tried(place: Place | Incomplete, known: Written | None, out: Path, conversion: Conversion) -> Written | str:
    """The result for a place, which is `known` if its files have not changed, or its problem."""
    if isinstance(place, Incomplete):
        return place.problem
    try:
        source = _source(place)
        return known if known and known.source == source else _write(place, source, out, conversion)
    except BadInput as error:
        return str(error)


def _source(place: Place) -> str:
    states = [(path, path.stat()) for path in place.files if path.is_file()]
    text = ''.join(f'{path.name} {state.st_size} {state.st_mtime_ns}\n' for path, state in states)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _write(place: Place, source: str, out: Path, conversion: Conversion) -> Written:
    read = place.read_frames()
    frames = {name: frame for name, frame in read.items() if _share(frame.picture) > 0}
    if not frames:
        raise BadInput(f'T = 0 usable frames: all {len(read)} are black')
    counts = collections.Counter(frames_black=len(read) - len(frames))
    rows, files, problems = [], {}, {}
    for image in place.images:
        try:
            picture = image.read()
            order = _best_first(frames, image, picture)
        except BadInput as error:
            problems[image.name] = str(error)
            continue
        reference = frames[order[0]]
        same = [name for name in order if _shape(frames[name].picture) == _shape(reference.picture)]
        counts['frames_of_another_size'] += len(frames) - len(same)
        has_gaps = 1 - picture.valid.mean() > conversion.limits.max_nodata
        reason = 'nodata' if has_gaps else flaw(picture.pixels, conversion.limits)
        if reason:
            counts[f'dropped_{reason}'] += 1
            continue
        sharp, note = _on_grid(picture, reference.picture)
        if conversion.match_histograms:
            sharp = _matched(sharp, reference.picture)
        kept = [f'lr/{place.name}/{name}.png' for name in same[: conversion.max_frames]]
        for file, name in zip(kept, same):
            if file not in files:
                files[file] = _save(out / file, frames[name].picture)
        file = f'hr/{image.name}.png'
        files[file] = _save(out / file, sharp)
        said = {'resampled': note, 'radiometry': 'matched' if conversion.match_histograms else None}
        rows.append(_row(image, out / file, file, kept, reference, picture, said))
        counts.update(images=1, resampled=bool(note))
    counts['frames'] = len(files) - len(rows)
    return Written(rows, files, {name: count for name, count in counts.items() if count}, problems, source)


def _best_first(frames: dict[str, Frame], image: Sharp, picture: Picture) -> list[str]:
    """The names of the frames of the image's shape, the best reference first."""
    height, width = _shape(picture)
    fitting = []
    for name, frame in frames.items():
        low, wide = _shape(frame.picture)
        if abs(width * low / height - wide) <= max(SHAPE_PX, SHAPE_SHARE * wide):
            fitting.append(name)
    if not fitting:
        low, wide = _shape(next(iter(frames.values())).picture)
        raise BadInput(
            f'{width}×{height} px, and its frames have {wide}×{low}; these shapes are not those of one ground'
        )
    clear = {name: _share(frames[name].picture) * (1 - frames[name].cloud) for name in fitting}
    return sorted(fitting, key=lambda name: (-clear[name], image.cost.get(name, 0.0)))


def _share(picture: Picture) -> float:
    """The share of pixels that are valid and not black."""
    return float((picture.valid & picture.pixels.any(-1)).mean())


def _shape(picture: Picture) -> tuple[int, ...]:
    return picture.valid.shape


def _on_grid(picture: Picture, reference: Picture) -> tuple[Picture, str | None]:
    """The picture on a grid `UPSCALE` times as fine as that of the reference, and how it was resampled, if it was."""
    (height, width), (low, wide) = _shape(picture), _shape(reference)
    size = UPSCALE * low, UPSCALE * wide
    if (height, width) == size:
        return picture, None
    shrinks = height >= size[0] and width >= size[1]
    filter_, how = (Image.Resampling.BOX, 'area') if shrinks else (Image.Resampling.BICUBIC, 'bicubic')
    pixels = resized(picture.pixels, *size, filter_)
    valid = resized(np.uint8(255) * picture.valid[..., None].repeat(3, -1), *size, filter_)[..., 0] == 255
    return Picture(pixels, valid), f'{how} {width}×{height} → {size[1]}×{size[0]}'


def _matched(sharp: Picture, reference: Picture) -> Picture:
    coarse = box_downscale(sharp.pixels, UPSCALE)
    low, wide = _shape(reference)
    valid = reference.valid & sharp.valid.reshape(low, UPSCALE, wide, UPSCALE).all((1, 3))
    if not valid.any():
        raise BadInput('no pixel is valid in both the image and its reference, to match their histograms')
    return Picture(radiometry.matched(sharp.pixels, coarse, reference.pixels, valid), sharp.valid)


def _save(path: Path, picture: Picture) -> int:
    """Writes a PNG, transparent where the picture is not valid; returns its size in bytes."""
    alpha = np.where(picture.valid, 255, 0).astype(np.uint8)[..., None]
    write_image(path, picture.pixels if picture.valid.all() else np.concatenate([picture.pixels, alpha], axis=-1))
    return stamp(path).size


def _row(
    image: Sharp,
    path: Path,
    file: str,
    frames: list[str],
    reference: Frame,
    picture: Picture,
    said: dict[str, str | None],
) -> dict[str, Any]:
    """The line of the manifest; `said`: how the image was changed."""
    low_res_gsd_m = reference.gsd_m
    if low_res_gsd_m is None and image.gsd_m is not None:
        (height, width), (low, wide) = _shape(picture), _shape(reference.picture)
        low_res_gsd_m = image.gsd_m * (height * width / (low * wide)) ** 0.5
    gsd_m = low_res_gsd_m and low_res_gsd_m / UPSCALE
    added = {
        'low_res_file_name': frames[0],
        'frames_file_names': frames if len(frames) > 1 else None,
        'low_res_gsd_m': low_res_gsd_m,
        'low_res_cloud': reference.cloud or None,
        **said,
    }
    extra = {**image.known, **{key: value for key, value in added.items() if value is not None}}
    return Entry(path, file, image.split, image.label, image.captions, gsd_m, extra).to_json()
