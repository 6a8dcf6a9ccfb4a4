"""One 4× stage over a canvas, window by window.

A window is a pure function of (seed, stage, its position) and its condition, so windows may be made in any order, in
batches of any size, on any number of devices, and again after an interruption.
"""

from typing import Callable, Iterable, Literal

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from rsdiff.data.boxes import Box
from rsdiff.data.images import to_float, to_uint8
from rsdiff.diffusion import noise
from rsdiff.mosaic.store import Canvas
from rsdiff.mosaic.windows import WindowGrid, reflected_read

Noise = Literal['shared', 'anchored']
# (condition (b, w, w, 3), noise (b, 4w, 4w, 3)) → sample (b, 4w, 4w, 3), float32 in [-1, 1]
SampleWindows = Callable[[jax.Array, jax.Array], jax.Array]


def window_noise(kind: Noise, key, windows: np.ndarray, window_px: int):
    """The first noise of each window.

    Args:
      kind: 'shared', one tile for all windows (MetaEarth); or 'anchored', a crop of one infinite field at the
        window's place on the canvas, which overlapping windows agree on and which never repeats.
      windows: int32 (b, 2), the top-left corners.
    Returns:
      float32 (b, window_px, window_px, 3).
    """
    if kind == 'shared':
        windows = jnp.zeros_like(windows)
    return jax.vmap(lambda corner: noise.crop(key, corner[0], corner[1], window_px, window_px))(windows)


def sample_canvas(sample_windows: SampleWindows, condition, canvas: Canvas, grid: WindowGrid, key, *,
                  noise_kind: Noise = 'shared', batch_size: int = 16, order: Iterable[Box] | None = None,
                  label: str = 'sampling', show: bool = True) -> int:
    """Makes the tiles of `canvas` that are not there yet.

    Args:
      sample_windows: see `SampleWindows`; called with exactly `batch_size` windows each time, the last batch filled up.
      condition: uint8 (h, w, 3), NumPy or tensorstore; only windows of it are read.
      key: names the noise of this stage.
      order: the tiles in the order to make them; by default row by row.
    Returns:
      How many windows were sampled.
    """
    make_noise = jax.jit(window_noise, static_argnums=(0, 3))
    tiles = [tile for tile in (grid.tiles() if order is None else order) if not canvas.is_done(tile)]
    with tqdm(total=len(tiles), unit='window', desc=label, disable=not show, dynamic_ncols=True) as bar:
        for first in range(0, len(tiles), batch_size):
            batch = tiles[first : first + batch_size]
            filled = batch + batch[-1:] * (batch_size - len(batch))
            lr = np.stack([to_float(reflected_read(condition, grid.condition_box(tile))) for tile in filled])
            corners = np.array([grid.window(tile)[:2] for tile in filled], np.int32)
            samples = sample_windows(lr, make_noise(noise_kind, key, corners, grid.window_px))
            for tile, pixels in zip(batch, np.asarray(samples)):
                canvas.write(tile, to_uint8(grid.middle(pixels, tile)))
            bar.update(len(batch))
    return len(tiles)
