"""Sample images for the report, their sources, and what the manifests record about them."""

import base64
import io
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple, Sequence

from PIL import Image

from rsdiff.data.folder import Entry, read_folder
from rsdiff.data.images import read_image

THUMBNAIL_PX = 128
MOST_THUMBNAILS = 600
SOURCES_A_CLASS, VARIANTS_A_SOURCE = 3, 4
# manifest fields that differ from image to image and do not describe the set
OF_ONE_IMAGE = {'source', 'source_sha256', 'variant'}
MOST_VALUES = 3


class Strip(NamedTuple):
    """A real image and the images made from it, each (file name, data URI). `source` is None if it is not known."""

    source: tuple[str, str] | None
    made: tuple[tuple[str, str], ...]


def strips(real: Path | str, synthetic: Path | str, classes: Sequence[str]) -> dict[str, list[Strip]]:
    """Samples of each class beside their sources, evenly spread over the manifest.

    There are at most `MOST_THUMBNAILS` thumbnails: with very many classes, only the first ones have samples.

    Raises:
      BadInput: a folder or an image can't be read.
    """
    originals = {entry.file_name: entry for entry in read_folder(real)}
    made: dict[str, dict[str | None, list[Entry]]] = {name: {} for name in classes}
    for entry in read_folder(synthetic):
        if entry.label in made:
            made[entry.label].setdefault(entry.extra.get('source'), []).append(entry)
    left, found = MOST_THUMBNAILS, {}
    each = max(1, min(SOURCES_A_CLASS, MOST_THUMBNAILS // (len(classes) * (1 + VARIANTS_A_SOURCE))))
    for name, by_source in made.items():
        chosen = []
        for source in _spread(list(by_source), each):
            original = originals.get(source)
            variants = _spread(by_source[source], VARIANTS_A_SOURCE)
            left -= 1 + len(variants)
            if left >= 0:
                chosen.append(Strip(original and _thumbnail(original), tuple(map(_thumbnail, variants))))
        if chosen:
            found[name] = chosen
    return found


def provenance(real: Path | str, synthetic: Path | str, classes: Sequence[str]) -> dict[str, Any]:
    """Summary of the manifests: images per class, the number of real images that the synthetic ones were made from, and
    the other fields of the synthetic images, such as the digest of their generator.

    Returns:
      {'counts': one row per class, 'sources': number of distinct sources, 'from_none': number of images whose source is
      null, 'without_source': number of images without this field, 'fields': name → its values as text}.
    """
    originals, made = read_folder(real), read_folder(synthetic)
    splits = list(dict.fromkeys(entry.split for entry in originals))
    by_class = Counter((entry.label, entry.split) for entry in originals)
    generated = Counter(entry.label for entry in made)
    counts = [
        {'class': name, **{str(split): by_class[name, split] for split in splits}, 'synthetic': generated[name]}
        for name in classes
    ]
    named = [entry.extra['source'] for entry in made if entry.extra.get('source') is not None]
    keys = [key for key in dict.fromkeys(key for entry in made for key in entry.extra) if key not in OF_ONE_IMAGE]
    fields = {key: _values([entry.extra.get(key) for entry in made]) for key in keys}
    unsaid = sum('source' not in entry.extra for entry in made)
    return {
        'counts': counts,
        'sources': len({*named}),
        'from_none': len(made) - len(named) - unsaid,
        'without_source': unsaid,
        'fields': fields,
    }


def data_uri(encoded: bytes, kind: str) -> str:
    """`encoded` as a data URI for an <img>; `kind` is 'png' or 'jpeg'."""
    return f'data:image/{kind};base64,{base64.b64encode(encoded).decode()}'


def _thumbnail(entry: Entry) -> tuple[str, str]:
    image = Image.fromarray(read_image(entry.path))
    image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.LANCZOS)
    encoded = io.BytesIO()
    image.save(encoded, 'JPEG', quality=88, subsampling=0)
    return entry.file_name, data_uri(encoded.getvalue(), 'jpeg')


def _spread(values: Sequence[Any], count: int) -> list[Any]:
    """`count` evenly spaced values, or all if there are fewer."""
    count = min(count, len(values))
    return [values[number * len(values) // count] for number in range(count)]


def _values(values: Sequence[Any]) -> str:
    distinct = Counter(map(str, values))
    shown = ', '.join(distinct) if len(distinct) <= MOST_VALUES else f'{len(distinct)} different values'
    return shown
