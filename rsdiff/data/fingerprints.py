"""Is this picture among those? Told from a few bits of each, that survive re-encoding, resizing and turning.

A fingerprint holds, for the picture shrunk to 16 × 16 and to 32 × 32 grey cells, whether each cell is darker than its
right neighbour (difference hash, Krawetz 2013). Two pictures are near-duplicates if at most 10 % of the coarse bits and
12 % of the fine ones differ, in any of the eight orientations of one of them: the coarse bits keep furrows and waves of
different fields and seas apart, the fine ones flat water. A crop, or a tile of a larger scene, is not found.
"""

import zipfile
from pathlib import Path
from typing import Sequence

import numpy as np
from etils import epath
from PIL import Image

from rsdiff.errors import BadInput
from rsdiff.files import replacing

FILE = 'training_fingerprints.npz'  # beside weights and what was sampled from them: the pictures they were trained on
CELLS = {16: 0.10, 32: 0.12}  # a side, and the share of bits that may differ
BYTES = sum(side * side for side in CELLS) // 8


def fingerprint(image: np.ndarray) -> np.ndarray:
    """uint8 (h, w, 3) → its bits, uint8 (160,)."""
    return _bits(_thumbnails(image))


def orientations(image: np.ndarray) -> np.ndarray:
    """The fingerprints of an image turned and mirrored in the eight ways of a square, uint8 (8, 160)."""
    thumbnails = _thumbnails(image)
    turned = [[np.rot90(grey, quarter) for grey in thumbnails] for quarter in range(4)]
    return np.stack([_bits(some) for some in turned + [[grey.T for grey in some] for some in turned]])


def near_duplicates(queries: np.ndarray, references: np.ndarray) -> list[tuple[int, int]]:
    """Which query is which reference.

    Args:
      queries: uint8 (n, 8, 160), of `orientations`.
      references: uint8 (m, 160), of `fingerprint`.
    Returns:
      Pairs (query, reference), in order.
    """
    found, first = True, 0
    for side, share in CELLS.items():
        part = slice(first, first := first + side * side // 8)
        a, b = (2 * np.unpackbits(bits[..., part], axis=-1).astype(np.float32) - 1 for bits in (queries, references))
        differing = (side * side - a @ b.T) / 2  # ±1 vectors: bits that agree minus bits that differ
        found &= differing <= share * side * side
    return [(int(query), int(reference)) for query, reference in np.argwhere(found.any(axis=1))]


def write_fingerprints(path: Path | str, names: Sequence[str], fingerprints: np.ndarray) -> None:
    """Keeps fingerprints (n, 160) with the names that messages will use."""
    with replacing(path) as partial:
        with partial.open('wb') as file:
            np.savez_compressed(file, names=np.asarray(names, str), fingerprints=fingerprints)


def read_fingerprints(path: Path | str) -> tuple[list[str], np.ndarray]:
    """(names, fingerprints uint8 (n, 160)) as `write_fingerprints` kept them.

    Raises:
      BadInput: the file is missing or something else.
    """
    try:
        with np.load(path, allow_pickle=False) as kept:
            names, fingerprints = kept['names'], kept['fingerprints']
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise BadInput(f'{path}: not a file of fingerprints ({error}); make it again with tools/fingerprint.py') from None
    if fingerprints.shape != (len(names), BYTES) or fingerprints.dtype != np.uint8:
        raise BadInput(f'{path}: fingerprints of another kind; make it again with tools/fingerprint.py')
    return names.tolist(), fingerprints


def carry_fingerprints(source: epath.PathLike, target: epath.PathLike) -> None:
    """Copies the file of fingerprints of the folder `source`, if it has one, to the folder `target`."""
    kept = epath.Path(source) / FILE
    if kept.exists() and not (epath.Path(target) / FILE).exists():
        kept.copy(epath.Path(target) / FILE)


def _thumbnails(image: np.ndarray) -> list[np.ndarray]:
    grey = Image.fromarray(image).convert('L')
    return [np.asarray(grey.resize((side, side), Image.Resampling.BOX)) for side in CELLS]


def _bits(thumbnails: list[np.ndarray]) -> np.ndarray:
    darker = [grey < np.roll(grey, -1, axis=1) for grey in thumbnails]
    return np.concatenate([np.packbits(cells) for cells in darker])
