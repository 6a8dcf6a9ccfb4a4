"""A canvas on disk: a Zarr v3 array whose chunks are the tiles, so that what exists is what is done."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

from rsdiff.console import write_text_atomically
from rsdiff.data.boxes import Box
from rsdiff.errors import BadInput

SETTINGS = 'settings.json'


def claim_output(folder: Path, settings: dict[str, Any]) -> None:
    """Writes the settings that the contents of `folder` depend on, or checks them against those that are there.

    Raises:
      BadInput: the folder holds output made with other settings, or files of someone else.
    """
    folder = Path(folder)
    path = folder / SETTINGS
    if path.exists():
        try:
            old = json.loads(path.read_text())
        except json.JSONDecodeError:
            raise BadInput(f'{path}: not JSON; use another --out') from None
        different = sorted(key for key in {*old, *settings} if old.get(key) != settings.get(key))
        if different:
            changes = '; '.join(f'{key} {old.get(key)!r} → {settings.get(key)!r}' for key in different)
            raise BadInput(f'{folder} holds output of other settings ({changes}); use another --out or remove it')
    elif folder.exists() and any(folder.iterdir()):
        raise BadInput(f'{folder} exists and is not output of this program; use another --out')
    else:
        write_text_atomically(path, json.dumps(settings, indent=2) + '\n')


class Canvas:
    """uint8 (height, width, 3) on disk, written tile by tile. `array` reads like a NumPy array, by window."""

    def __init__(self, path: Path, height: int, width: int, tile_px: int):
        spec = {
            'driver': 'zarr3',
            'kvstore': {'driver': 'file', 'path': str(Path(path).resolve()) + '/'},
            # a tile of zeros is a finished tile
            'store_data_equal_to_fill_value': True,
        }
        chunks = {'chunk_shape': [tile_px, tile_px, 3]}
        self.array = ts.open(spec, open=True, create=True, dtype=ts.uint8, shape=[height, width, 3],
                             chunk_layout=ts.ChunkLayout(chunk_shape=chunks['chunk_shape']),
                             codec=ts.CodecSpec({'driver': 'zarr3', 'codecs': [{'name': 'zstd'}]})).result()
        self.tile_px = tile_px
        keys = self.array.kvstore.list().result()
        self._done = {key.decode() for key in keys}

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
