"""Stages on top of each other: each stage's canvas is the next one's condition, four times finer."""

import dataclasses
import time
from pathlib import Path
from typing import Any, Callable

import jax
import numpy as np

from rsdiff.console import claim_folder
from rsdiff.data.images import write_image
from rsdiff.diffusion.noise import name_key
from rsdiff.mosaic.sampler import Noise, SampleWindows, sample_canvas
from rsdiff.mosaic.store import Canvas
from rsdiff.mosaic.windows import WindowGrid

# A PNG beyond this many pixels helps nobody; the Zarr array is there.
LARGEST_PNG = 100_000_000


@dataclasses.dataclass(frozen=True)
class MosaicSettings:
    """How a mosaic is made. `gsd_m` is the condition's."""

    gsd_m: float
    stages: int
    window_px: int
    steps: int
    seed: int = 0
    noise: Noise = 'shared'
    batch_size: int = 16


def sample_mosaic(sampler_at: Callable[[float], SampleWindows], condition: np.ndarray, out: Path,
                  settings: MosaicSettings, provenance: dict[str, Any], show: bool = True) -> dict[str, Any]:
    """Enlarges `condition` 4× `settings.stages` times, into `out/stage_<n>.zarr` and `.png`. Continues what is there.

    Args:
      sampler_at: gsd_m of a stage's output → its `SampleWindows`.
      condition: uint8 (h, w, 3).
      provenance: what else the result depends on; kept with it and compared when continuing.
    Returns:
      pixels, seconds, and network evaluations per output pixel: `last_stage` counts those of the last stage over its
      pixels, `all_stages` those of every stage over the same pixels.
    Raises:
      BadInput: the condition is smaller than a window, or `out` holds something else.
    """
    height, width = condition.shape[:2]
    grids = [WindowGrid(height * 4**n, width * 4**n, settings.window_px) for n in range(1, settings.stages + 1)]
    # batch_size does not enter: a window does not depend on its neighbours in the batch
    fixed = {key: value for key, value in dataclasses.asdict(settings).items() if key != 'batch_size'}
    claim_folder(out, fixed | {'mode': 'tiles', 'condition_px': [height, width]} | provenance)

    start, sampled, source = time.monotonic(), 0, condition
    for stage, grid in enumerate(grids, 1):
        gsd_m = settings.gsd_m / 4**stage
        canvas = Canvas(out / f'stage_{stage}.zarr', grid.height, grid.width, grid.stride)
        sampled += sample_canvas(sampler_at(gsd_m), source, canvas, grid, name_key(settings.seed, stage),
                                 noise_kind=settings.noise, batch_size=settings.batch_size, show=show,
                                 label=f'stage {stage}/{settings.stages}, {grid.width}×{grid.height} px, {gsd_m:.4g} m')
        picture = out / f'stage_{stage}.png'
        if not picture.exists() and grid.height * grid.width <= LARGEST_PNG:
            write_image(picture, canvas.read())
        source = canvas.array

    pixels = grids[-1].height * grids[-1].width
    evaluated = [settings.steps * len(grid.tiles()) * grid.window_px**2 for grid in grids]
    return {
        'out': str(out), 'height': grids[-1].height, 'width': grids[-1].width, 'pixels': pixels,
        'gsd_m': settings.gsd_m / 4**settings.stages, 'windows': sum(len(grid.tiles()) for grid in grids),
        'sampled_now': sampled, 'seconds': round(time.monotonic() - start, 2),
        'network_evaluations_per_pixel': {'last_stage': round(evaluated[-1] / pixels, 2),
                                          'all_stages': round(sum(evaluated) / pixels, 2)},
        'devices': jax.device_count(),
    }
