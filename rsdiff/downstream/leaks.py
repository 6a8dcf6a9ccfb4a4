"""Finds held-out pictures among training images: leakage that would invalidate the results.

A picture is recognised by its pixels, and by a fingerprint that survives re-encoding, resizing and rotation
(`rsdiff.data.fingerprints`). Two images are the same picture if either matches.
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
    """Pictures that must not be trained on.

    Attributes:
      names: file names relative to their folder.
      hashes: of their pixels.
      orientations: their fingerprints in the eight orientations of a square, uint8 (n, 8, 160).
    """

    names: tuple[str, ...]
    hashes: tuple[str, ...]
    orientations: np.ndarray

    def among(self, fingerprints: np.ndarray, hashes: Sequence[str] = ()) -> dict[int, str]:
        """Which of the given pictures are held out: index → name of the held-out picture.

        Args:
          fingerprints: of the given pictures, uint8 (n, 160).
          hashes: of their pixels, if known.
        """
        near = {other: self.names[own] for own, other in near_duplicates(self.orientations, fingerprints)}
        names = dict(zip(self.hashes, self.names))
        return near | {index: names[pixels] for index, pixels in enumerate(hashes) if pixels in names}


def recognisable(entries: Iterable[Entry]) -> HeldOut:
    """The pictures of `entries`, with their hashes and fingerprints.

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
    """The pictures that the generator of the folder `synthetic` was trained on, if the folder lists its training
    images: name → the generator's name of the picture.

    Raises:
      BadInput: the folder's fingerprint file is damaged.
    """
    known = known_of(synthetic)
    if known is None:
        return {}
    return {
        pictures.names[own]: known.names[other]
        for own, other in near_duplicates(pictures.orientations, known.fingerprints)
    }


def generator_trained_on(synthetic: Path | str) -> str:
    """A description of what the generator of the folder `synthetic` was trained on. It contains 'unknown', possibly
    with a reason, if the folder lists no or not all training images, so that held-out images may be among them.

    Raises:
      BadInput: the folder's fingerprint file is damaged.
    """
    return str(known_of(synthetic) or UNKNOWN)


def pixel_hash(image: np.ndarray) -> str:
    """SHA-256 of the pixels of uint8 (h, w, 3), with their shape."""
    return hashlib.sha256(repr(image.shape).encode() + np.ascontiguousarray(image).tobytes()).hexdigest()
