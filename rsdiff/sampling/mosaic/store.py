"""Mosaics on disk: a Zarr v3 group, in it an array a stage, whose shards are the supertiles. Where the condition had void,
each stage has another array beside it, its mask, with the same supertiles.

A shard is a file. It appears whole or not at all, and has one writer, so that what exists is what is done; within it are
chunks small enough for a viewer. At its end stands the index of its chunks (Zarr v3, ZEP 2): offset and length of each,
and a checksum. A file that was cut short, by a disk that filled up or a copy that broke off, does not end in its index. Each
chunk has a checksum too, so that what has rotted on disk is told when it is read, and not shown.
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
    """Writes the group's metadata, unless the same are there."""
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
    """The array of a stage of the mosaic in `out`, and its `mask`, made where they are not there."""
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
    """uint8 (height, width, 3) on disk, written supertile by supertile, (i, j) counted from the top left. It reads like a
    NumPy array, by window. With `bands` None it is uint8 (height, width).

    Raises:
      BadInput: another array is there. Metadata that are cut short are written anew.
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
        """Every supertile, row by row; none is kept in memory."""
        rows, columns = (-(-side // self.tile_px) for side in (self.height, self.width))
        return ((i, j) for i in range(rows) for j in range(columns))

    def count(self) -> int:
        """How many supertiles there are."""
        return -(-self.height // self.tile_px) * -(-self.width // self.tile_px)

    def box(self, tile: tuple[int, int]) -> Box:
        """Its pixels; the last ones are cut at the border of the canvas."""
        y, x = (n * self.tile_px for n in tile)
        return Box(y, x, min(y + self.tile_px, self.height), min(x + self.tile_px, self.width))

    def shard(self, tile: tuple[int, int]) -> Path:
        """Its file."""
        inside = [str(tile[0]), str(tile[1]), '0']
        return self.path.joinpath('c', *inside[: len(self.shape)])

    def is_done(self, tile: tuple[int, int]) -> bool:
        """Whether its file is there, and as long as the index at its end says."""
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
        """The same of it and of its mask, if it has one."""
        return self.is_done(tile) and (self.mask is None or self.mask.is_done(tile))

    def write(self, tile: tuple[int, int], pixels: np.ndarray) -> None:
        """Writes a whole supertile, uint8; it is on disk when this returns, and else nothing of it.

        Raises:
          OSError: with the system's reason, such as a full disk.
        """
        box = self.box(tile)
        if not self.is_done(tile):
            self.shard(tile).unlink(missing_ok=True)  # cut short, it could not be opened to be replaced
        try:
            # without the transaction, each chunk would be added to the file by itself
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
          BadInput: a shard has rotted; it is named.
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
        """Everything, in memory."""
        return self[:, :]

    def _remove_broken_metadata(self) -> None:
        """They follow from the settings, so that they can be written anew."""
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
                f'{self.shard(tile)}: damaged ({one_line(error)[:120]}); remove it and run the command again that '
                'made it'
            ) from None
