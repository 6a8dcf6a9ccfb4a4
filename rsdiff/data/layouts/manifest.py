"""A folder whose manifest already pairs its images (`rsdiff.data.folder`), to bring them to one ratio or one radiometry.

FOLDER/metadata.jsonl    rows with file_name, low_res_file_name and, for several images of a place, frames_file_names
"""

import functools
from pathlib import Path
from typing import Iterator

from rsdiff.base.errors import BadInput
from rsdiff.data.folder import Entry, clean_name, field_of, read_folder
from rsdiff.data.layouts.places import Colours, Frame, Incomplete, Place, Sharp, read_picture

LOW_RES, STACK = 'lr', 'frames'


def find(folder: Path, colours: Colours) -> Iterator[Place | Incomplete]:
    """The rows of the manifest, in its order. The file of low_res_file_name is the best reference."""
    seen = {}
    for entry in read_folder(folder):
        name = str(Path(clean_name(entry.file_name)).with_suffix(''))
        if seen.setdefault(name, entry) is not entry:
            raise BadInput(
                f'{folder}: {seen[name].file_name!r} and {entry.file_name!r} differ only in their suffix; rename one of them'
            )
        reference, others = entry.files.get(LOW_RES), entry.stacks.get(STACK, ())
        # the reference is usually one of the others
        files = [path for path in (reference, *(path for path in others if path != reference)) if path is not None]
        if not files:
            yield Incomplete(entry.file_name, 'no low_res_file_name')
            continue
        paths = tuple(map(Path, files))
        yield Place(
            name,
            functools.partial(_read_frames, paths, colours),
            (_image(entry, name, colours, {'0': -1} if reference else {}),),
            (Path(entry.path), *paths),
        )


def _read_frames(paths: tuple[Path, ...], colours: Colours) -> dict[str, Frame]:
    return {str(number): Frame(read_picture(path, colours)) for number, path in enumerate(paths)}


def _image(entry: Entry, name: str, colours: Colours, cost: dict[str, float]) -> Sharp:
    known = {key: value for key, value in entry.extra.items() if field_of(key) is None}
    read = functools.partial(read_picture, Path(entry.path), colours)
    return Sharp(name, read, cost, entry.gsd_m, entry.split, entry.label, entry.captions, known)
