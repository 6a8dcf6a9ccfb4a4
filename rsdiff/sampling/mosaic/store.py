"""Mosaics on disk: a Zarr v3 group with one array per stage, whose shards are the supertiles. If the condition has void, each
stage has a second array, its mask, with the same supertiles.

A shard is a file. It is written atomically by one writer, so a shard that exists is finished; it contains chunks small enough
for a viewer. It ends with the index of its chunks (Zarr v3, ZEP 2): offset and length of each, and a checksum. A file that was
truncated, by a full disk or an interrupted copy, does not end with its index. Each chunk has a checksum too, so corruption on
disk raises an error on reading instead of going unnoticed.
"""

import json
import os
import re
from pathlib import Path
from typing import Any, Iterator

import numpy as np
import tensorstore as ts

from rsdiff.base.boxes import Box
from rsdiff.base.errors import BadInput, one_line
from rsdiff.base.files import parse_json, read_json, write_json

GROUP = 'mosaic.zarr'
METADATA = 'zarr.json'
CHUNK_PX = 256  # at most
_MISSING = 2**64 - 1


def make_group(path: Path, attributes: dict[str, Any]) -> None:
    """Writes the group's metadata, unless they are unchanged."""
    expected = {'zarr_format': 3, 'node_type': 'group', 'attributes': json.loads(json.dumps(attributes))}
    try:
        there = read_json(path / METADATA)
    except BadInput:
        there = None
    if there != expected:
        write_json(path / METADATA, expected)


def open_stage(
    out: Path, stage: int, height: int, width: int, tile_px: int, attributes: dict[str, Any], masked: bool
) -> 'StageArray':
    """Opens the array of a stage of the mosaic in `out`, and its `mask`; creates those that are missing."""
    name = f'stage_{stage}'
    mask_name = f'{name}_mask'
    array = StageArray(out / GROUP / name, height, width, tile_px, attributes | ({'mask': mask_name} if masked else {}))
    if masked:
        meaning = '255: on a valid pixel of the condition; 0: on none, all of it is invented'
        array.mask = StageArray(
            out / GROUP / mask_name, height, width, tile_px, attributes | {'meaning': meaning}, bands=None
        )
    return array


class StageArray:
    """uint8 (height, width, 3) on disk, written by supertiles with indices (i, j) from the top left. Slices read like those of
    a NumPy array. With `bands` None it is uint8 (height, width). Truncated metadata are rewritten.

    Raises:
      BadInput: there is a different array at `path`.
    """

    def __init__(
        self,
        path: Path,
        height: int,
        width: int,
        tile_px: int,
        attributes: dict[str, Any] | None = None,
        bands: int | None = 3,
    ):
        self.path, self.height, self.width, self.tile_px = Path(path), height, width, tile_px
        last = () if bands is None else (bands,)
        self.shape, self.attributes = (height, width, *last), attributes or {}
        self.mask: StageArray | None = None
        chunk_px = next(n for n in range(min(CHUNK_PX, tile_px), 0, -1) if tile_px % n == 0)
        self.chunks = (tile_px // chunk_px) ** 2
        checksum = {'name': 'crc32c'}
        sharding = {
            'chunk_shape': [chunk_px, chunk_px, *last],
            'index_location': 'end',
            'codecs': [{'name': 'bytes'}, {'name': 'zstd', 'configuration': {'level': 3}}, checksum],
            'index_codecs': [{'name': 'bytes', 'configuration': {'endian': 'little'}}, checksum],
        }
        spec = {
            'driver': 'zarr3',
            'kvstore': {'driver': 'file', 'path': str(self.path.resolve()) + '/'},
            # a tile of zeros is a finished tile
            'store_data_equal_to_fill_value': True,
            'metadata': {
                'shape': list(self.shape),
                'data_type': 'uint8',
                'fill_value': 0,
                'chunk_grid': {'name': 'regular', 'configuration': {'chunk_shape': [tile_px, tile_px, *last]}},
                'codecs': [{'name': 'sharding_indexed', 'configuration': sharding}],
                'dimension_names': ['y', 'x', 'band'][: len(self.shape)],
                'attributes': self.attributes,
            },
        }
        self._remove_broken_metadata()
        try:
            self.array = ts.open(spec, open=True, create=True).result()
        except ValueError as error:
            raise BadInput(
                f'{path}: not the array that belongs here ({one_line(error)[:200]}); if it is, remove its {METADATA} '
                'and run the same command again'
            ) from None

    def tiles(self) -> Iterator[tuple[int, int]]:
        """Iterates over the indices of all supertiles, row by row, without storing them."""
        rows, columns = (-(-side // self.tile_px) for side in (self.height, self.width))
        return ((i, j) for i in range(rows) for j in range(columns))

    def count(self) -> int:
        """The number of supertiles."""
        return -(-self.height // self.tile_px) * -(-self.width // self.tile_px)

    def box(self, tile: tuple[int, int]) -> Box:
        """The pixels of a supertile; those at the border are clipped to the canvas."""
        y, x = (n * self.tile_px for n in tile)
        return Box(y, x, min(y + self.tile_px, self.height), min(x + self.tile_px, self.width))

    def shard(self, tile: tuple[int, int]) -> Path:
        """The file of a supertile."""
        inside = [str(tile[0]), str(tile[1]), '0']
        return self.path.joinpath('c', *inside[: len(self.shape)])

    def is_done(self, tile: tuple[int, int]) -> bool:
        """Whether the supertile's file exists and has the length given by the index at its end."""
        index_bytes = 16 * self.chunks + 4
        try:
            with self.shard(tile).open('rb') as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(size - index_bytes, 0))
                index = file.read(index_bytes)
        except FileNotFoundError:
            return False
        if len(index) < index_bytes:
            return False
        lengths = np.frombuffer(index[:-4], '<u8')[1::2].tolist()
        return sum(length for length in lengths if length != _MISSING) + index_bytes == size

    def is_all_done(self, tile: tuple[int, int]) -> bool:
        """Whether the supertile is done, and so is its mask, if there is one."""
        return self.is_done(tile) and (self.mask is None or self.mask.is_done(tile))

    def write(self, tile: tuple[int, int], pixels: np.ndarray) -> None:
        """Writes a complete supertile, uint8, atomically; it is on disk when this returns.

        Raises:
          OSError: with the system's reason, such as a full disk.
        """
        box = self.box(tile)
        if not self.is_done(tile):
            self.shard(tile).unlink(missing_ok=True)  # a truncated shard cannot be opened for replacement
        try:
            # without a transaction, each chunk would be written to the file separately
            with ts.Transaction() as transaction:
                self.array.with_transaction(transaction)[box.y0 : box.y1, box.x0 : box.x1] = pixels
        except ValueError as error:
            code = re.search(r"os_error_code='(\d+)'", str(error))
            if code is None:
                raise
            raise OSError(int(code[1]), os.strerror(int(code[1])), str(self.shard(tile))) from None

    def __getitem__(self, key: tuple[slice, slice]) -> np.ndarray:
        """The pixels of [y0:y1, x0:x1], uint8.

        Raises:
          BadInput: a shard is corrupted; the message names it.
        """
        try:
            return self.array[key].read().result()
        except ValueError:
            (y0, y1, _), (x0, x1, _) = (part.indices(size) for part, size in zip(key, self.shape))
            for i in range(y0 // self.tile_px, -(-y1 // self.tile_px)):
                for j in range(x0 // self.tile_px, -(-x1 // self.tile_px)):
                    self._check((i, j))
            raise

    def read(self) -> np.ndarray:
        """The complete array, in memory."""
        return self[:, :]

    def _remove_broken_metadata(self) -> None:
        """Removes truncated metadata, which can be rewritten from the settings."""
        path = self.path / METADATA
        try:
            parse_json(path.read_bytes(), str(path))
        except FileNotFoundError:
            pass
        except BadInput:
            path.unlink(missing_ok=True)

    def _check(self, tile: tuple[int, int]) -> None:
        box = self.box(tile)
        try:
            self.array[box.y0 : box.y1, box.x0 : box.x1].read().result()
        except ValueError as error:
            raise BadInput(
                f'{self.shard(tile)}: damaged ({one_line(error)[:120]}); remove it and run the command again to '
                'recreate it'
            ) from None
