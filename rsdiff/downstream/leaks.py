"""Held-out pictures among those that something was trained on: what would make a table a lie.

A picture is recognised by its pixels, and by a fingerprint that survives re-encoding, resizing and turning
(`rsdiff.data.fingerprints`). Two of them are the same picture if either agrees.
"""

import concurrent.futures
import dataclasses
import hashlib
from pathlib import Path
from typing import Iterable, Sequence

import numpy as np

from rsdiff.data.fingerprints import UNKNOWN, known_of, near_duplicates, orientations
from rsdiff.data.folder import Entry
from rsdiff.data.images import read_image


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """Pictures that nothing may learn from.

    Attributes:
      names: file names relative to their folder.
      hashes: of their pixels.
      orientations: their fingerprints in the eight orientations of a square, uint8 (n, 8, 160).
    """

    names: tuple[str, ...]
    hashes: tuple[str, ...]
    orientations: np.ndarray

    def among(self, fingerprints: np.ndarray, hashes: Sequence[str] = ()) -> dict[int, str]:
        """Which of some pictures are held-out ones: index → name of the held-out picture.

        Args:
          fingerprints: of those pictures, uint8 (n, 160).
          hashes: of the same, if they are known.
        """
        near = {other: self.names[own] for own, other in near_duplicates(self.orientations, fingerprints)}
        names = dict(zip(self.hashes, self.names))
        return near | {index: names[pixels] for index, pixels in enumerate(hashes) if pixels in names}


def recognisable(entries: Iterable[Entry]) -> HeldOut:
    """The pictures of some entries.

    Raises:
      BadInput: one of them can't be read.
    """

    def look(entry):
        image = read_image(entry.path)
        return entry.file_name, pixel_hash(image), orientations(image)

    with concurrent.futures.ThreadPoolExecutor() as pool:
        names, hashes, turned = zip(*pool.map(look, entries))
    return HeldOut(names, hashes, np.stack(turned))


def known_to_the_generator(synthetic: Path | str, pictures: HeldOut) -> dict[str, str]:
    """Those of the pictures that the generator of the folder `synthetic` was trained on, if the folder says on what:
    name → the generator's name of it.

    Raises:
      BadInput: the folder's file of fingerprints is spoilt.
    """
    known = known_of(synthetic)
    if known is None:
        return {}
    return {
        pictures.names[own]: known.names[other]
        for own, other in near_duplicates(pictures.orientations, known.fingerprints)
    }


def generator_trained_on(synthetic: Path | str) -> str:
    """What the generator of the folder `synthetic` was trained on, in words; 'unknown', perhaps with the reason, where the
    folder does not say it or not all of it, and held-out images may be among it.

    Raises:
      BadInput: the folder's file of fingerprints is spoilt.
    """
    return str(known_of(synthetic) or UNKNOWN)


def pixel_hash(image: np.ndarray) -> str:
    """SHA-256 of the pixels of uint8 (h, w, 3), with their shape."""
    return hashlib.sha256(repr(image.shape).encode() + np.ascontiguousarray(image).tobytes()).hexdigest()
