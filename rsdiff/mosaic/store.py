"""A canvas on disk: a Zarr v3 array whose chunks are the tiles, so that what exists is what is done."""

from pathlib import Path

import numpy as np
import tensorstore as ts

from rsdiff.data.boxes import Box


class Canvas:
    """uint8 (height, width, 3) on disk, written tile by tile. `array` reads like a NumPy array, by window."""

    def __init__(self, path: Path, height: int, width: int, tile_px: int):
        spec = {
            'driver': 'zarr3',
            'kvstore': {'driver': 'file', 'path': str(Path(path).resolve()) + '/'},
            # a tile of zeros is a finished tile
            'store_data_equal_to_fill_value': True,
        }
        self.array = ts.open(spec, open=True, create=True, dtype=ts.uint8, shape=[height, width, 3],
                             chunk_layout=ts.ChunkLayout(chunk_shape=[tile_px, tile_px, 3]),
                             codec=ts.CodecSpec({'driver': 'zarr3', 'codecs': [{'name': 'zstd'}]})).result()
        self.tile_px = tile_px
        self._done = {key.decode() for key in self.array.kvstore.list().result()}

    def is_done(self, tile: Box) -> bool:
        """Whether a tile was there when the canvas was opened, or has been written since."""
        return self._key(tile) in self._done

    def write(self, tile: Box, pixels: np.ndarray) -> None:
        """Writes a whole tile, uint8; it is on disk when this returns."""
        self.array[tile.y0 : tile.y1, tile.x0 : tile.x1].write(pixels).result()
        self._done.add(self._key(tile))

    def read(self) -> np.ndarray:
        """Everything, in memory."""
        return self.array.read().result()

    def _key(self, tile: Box) -> str:
        return f'c/{tile.y0 // self.tile_px}/{tile.x0 // self.tile_px}/0'
