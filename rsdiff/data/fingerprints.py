"""Near-duplicate detection by image fingerprints, which survive re-encoding, resizing, rotation and mirroring.

A fingerprint holds, for the image shrunk to 16 × 16 and to 32 × 32 grey cells, whether each cell is darker than its
right neighbour (difference hash, Krawetz 2013). Two images are near-duplicates if at most 10 % of the coarse bits and
12 % of the fine ones differ, in any of the eight orientations of one of them. The coarse bits distinguish the furrows and
waves of different fields and seas, the fine bits flat water. A crop, or a tile of a larger scene, is not detected.
"""

import contextlib
import dataclasses
import io
import zipfile
import zlib
from typing import cast

import filelock
import numpy as np
from etils import epath
from PIL import Image

from rsdiff.base.errors import BadInput, one_line
from rsdiff.base.files import is_local, write_bytes_atomically

FILE = 'training_fingerprints.npz'  # beside weights and images sampled from them: the images that they were trained on
CELLS = {16: 0.10, 32: 0.12}  # cells per side: the share of bits that may differ
BYTES = sum(side * side for side in CELLS) // 8
UNKNOWN = 'unknown'  # reported for weights without such a file
LARGEST_PX = 1024  # larger images are scenes: training uses parts of them, which fingerprints do not detect
MOST_BYTES = 1 << 31  # largest member of a file to read: thirteen million fingerprints


def fingerprint(image: np.ndarray) -> np.ndarray:
    """The fingerprint of an image, uint8 (h, w, 3) → packed bits, uint8 (160,)."""
    return _bits(_thumbnails(image))


def orientations(image: np.ndarray) -> np.ndarray:
    """The fingerprints of an image in its eight orientations, rotated and mirrored, uint8 (8, 160)."""
    thumbnails = _thumbnails(image)
    turned = [[np.rot90(grey, quarter) for grey in thumbnails] for quarter in range(4)]
    return np.stack([_bits(some) for some in turned + [[grey.T for grey in some] for some in turned]])


def near_duplicates(queries: np.ndarray, references: np.ndarray) -> list[tuple[int, int]]:
    """The queries that are near-duplicates of references.

    Args:
      queries: uint8 (n, 8, 160), from `orientations`.
      references: uint8 (m, 160), from `fingerprint`.
    Returns:
      Pairs (query, reference), in order.
    """
    found, first = True, 0
    for side, share in CELLS.items():
        part = slice(first, first := first + side * side // 8)
        a, b = (2 * np.unpackbits(bits[..., part], axis=-1).astype(np.float32) - 1 for bits in (queries, references))
        differing = (side * side - a @ b.T) / 2  # ±1 vectors: bits that agree minus bits that differ
        found &= differing <= share * side * side
    return [(int(query), int(reference)) for query, reference in np.argwhere(cast(np.ndarray, found).any(axis=1))]


@dataclasses.dataclass(frozen=True)
class TrainedOn:
    """The images that something was trained on.

    Attributes:
      names: of the images with fingerprints, for messages.
      fingerprints: of the same images, uint8 (n, 160).
      unknown: descriptions of other training images, whose fingerprints are not known, one line each.
    """

    names: tuple[str, ...] = ()
    fingerprints: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, BYTES), np.uint8))
    unknown: tuple[str, ...] = ()

    def __add__(self, other: 'TrainedOn') -> 'TrainedOn':
        """The union; for images with the same fingerprint, the first name is kept."""
        by_bits: dict[bytes, str] = {}
        for some in (self, other):
            for name, bits in zip(some.names, some.fingerprints):
                by_bits.setdefault(bits.tobytes(), name)
        fingerprints = np.frombuffer(b''.join(by_bits), np.uint8).reshape(-1, BYTES)
        return TrainedOn(tuple(by_bits.values()), fingerprints, tuple(dict.fromkeys(self.unknown + other.unknown)))

    def __str__(self) -> str:
        known, unknown = f'{len(self.names)} images', '; '.join(self.unknown)
        if not self.unknown:
            return known
        return f'{known}, and {UNKNOWN} ones ({unknown})' if self.names else f'{UNKNOWN} ({unknown})'


def write_fingerprints(path: epath.PathLike, trained_on: TrainedOn) -> None:
    """Writes `trained_on` to `path`, an .npz file."""
    encoded = io.BytesIO()
    np.savez_compressed(
        encoded,
        names=np.asarray(trained_on.names, str),
        fingerprints=trained_on.fingerprints,
        unknown=np.asarray(trained_on.unknown, str),
    )
    write_bytes_atomically(path, encoded.getvalue())


def read_fingerprints(path: epath.PathLike) -> TrainedOn:
    """Reads a file of `write_fingerprints`.

    Raises:
      BadInput: the file is missing, damaged or of another kind.
    """
    advice = 'recreate it with tools/fingerprint.py'
    try:
        with epath.Path(path).open('rb') as file:
            # read member by member: np.load would also accept other contents, such as a pickle
            with zipfile.ZipFile(io.BytesIO(file.read())) as archive:
                arrays = {
                    name.removesuffix('.npy'): _array(archive.read(name))
                    for name in archive.namelist()
                    if archive.getinfo(name).file_size <= MOST_BYTES
                }
        names, fingerprints, unknown = arrays['names'], arrays['fingerprints'], arrays.get('unknown', np.zeros(0, str))
    except KeyError as error:
        raise BadInput(f'{path}: not a file of fingerprints (no {error.args[0]!r}); {advice}') from None
    except (
        OSError,
        EOFError,
        ValueError,
        SyntaxError,
        MemoryError,
        RuntimeError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise BadInput(f'{path}: not a file of fingerprints ({one_line(error)[:200]}); {advice}') from None
    for texts in names, unknown:
        if texts.ndim != 1 or texts.size and texts.dtype.kind != 'U':
            raise BadInput(f'{path}: fingerprints of another format; {advice}')
    if fingerprints.shape != (len(names), BYTES) or fingerprints.dtype != np.uint8:
        raise BadInput(f'{path}: fingerprints of another format; {advice}')
    return TrainedOn(tuple(names.tolist()), fingerprints, tuple(unknown.tolist()))


def known_of(folder: epath.PathLike) -> TrainedOn | None:
    """The content of the fingerprint file in `folder`; None without one. Raises BadInput as `read_fingerprints`."""
    path = epath.Path(folder) / FILE
    return read_fingerprints(path) if path.exists() else None


def add_fingerprints(folder: epath.PathLike, trained_on: TrainedOn) -> TrainedOn:
    """Adds `trained_on` to the fingerprint file in `folder` and returns its full content. Processes take turns.

    Raises:
      BadInput: the existing file can't be read.
    """
    folder = epath.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    turn = filelock.FileLock(folder / f'.{FILE}.lock') if is_local(folder) else contextlib.nullcontext()
    with turn:
        everything = (known_of(folder) or TrainedOn()) + trained_on
        write_fingerprints(folder / FILE, everything)
    return everything


def carry_fingerprints(source: epath.PathLike, target: epath.PathLike) -> None:
    """Copies the fingerprint file of the folder `source`, if it has one, to the folder `target`, if that has none."""
    kept = epath.Path(source) / FILE
    if kept.exists() and not (epath.Path(target) / FILE).exists():
        write_bytes_atomically(epath.Path(target) / FILE, kept.read_bytes())


def _array(content: bytes) -> np.ndarray:
    return np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)


def _thumbnails(image: np.ndarray) -> list[np.ndarray]:
    grey = Image.fromarray(image).convert('L')
    return [np.asarray(grey.resize((side, side), Image.Resampling.BOX)) for side in CELLS]


def _bits(thumbnails: list[np.ndarray]) -> np.ndarray:
    darker = [grey < np.roll(grey, -1, axis=1) for grey in thumbnails]
    return np.concatenate([np.packbits(cells) for cells in darker])
