"""Peak memory of a process that makes one mosaic and nothing else; part of `tools/benchmark.py mosaic`.

    python tools/benchmark_memory.py --side_px 8192

The canvas is the second stage of two, so its condition is a stage on disk too. The network is a pointwise closed form that
costs almost nothing, so the memory measured is that of windows, fields and files. The last line is one JSON object.
"""

import json
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from rsdiff.base.errors import BadInput
from rsdiff.data.degradation import UPSCALE
from rsdiff.diffusion.schedule import ScheduleConfig, make_schedule
from rsdiff.diffusion.solvers import integrate, solver_steps
from rsdiff.programs import console
from rsdiff.sampling.mosaic.cascade import MosaicSettings, sample_mosaic
from rsdiff.sampling.mosaic.field import WindowSampler, windows_a_call
from rsdiff.sampling.mosaic.plan import make_plan

SIDE = flags.DEFINE_integer('side_px', 2048, 'Side of the canvas, a multiple of 16.', lower_bound=16)
WINDOW_PX, SUPERTILE_PX = 64, 1024  # as in sample.py with weights/earth


def peak_bytes() -> int:
    """Peak resident memory of this process so far. Of the system's figures, only this one excludes the parent's."""
    try:
        status = Path('/proc/self/status').read_text()
    except OSError:
        raise BadInput('peak memory is read from /proc, which this system does not have') from None
    return 1024 * int(re.search(r'VmHWM:\s+(\d+) kB', status)[1])


def pointwise(lr: jax.Array):
    """`denoise(x, t)` in which each pixel depends only on itself and on the condition pixel that covers it."""
    enlarged = jnp.repeat(jnp.repeat(lr, UPSCALE, 1), UPSCALE, 2)
    return lambda x, t: 0.5 * enlarged + 0.3 * jnp.tanh(x)


def measure(side_px: int) -> dict[str, Any]:
    """Makes side_px × side_px pixels and returns what that took."""
    console.share_one_heap()  # as sample.py does
    plan = make_plan('fast', WINDOW_PX)
    settings = MosaicSettings(160.0, 2, plan, SUPERTILE_PX)
    advance = jax.jit(lambda condition, x, x0, steps, *_: integrate(pointwise(condition['lr']), steps, x, x0))
    sampler = WindowSampler(
        advance,
        lambda condition, x: x,
        solver_steps(plan.solver, make_schedule(ScheduleConfig()), plan.steps),
        windows_a_call(WINDOW_PX, 16, 1),
    )
    condition = np.random.default_rng(0).integers(0, 256, (side_px // UPSCALE**2,) * 2 + (3,), np.uint8)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        made = sample_mosaic(
            lambda gsd_m: sampler,
            condition,
            Path(folder) / 'out',
            settings,
            {},
            formats=['zarr'],
            show=sys.stderr.isatty(),
        )
    return {
        'side_px': side_px,
        'supertiles': made['supertiles'],
        'peak_bytes': peak_bytes(),
        'seconds': time.perf_counter() - start,
    }


if __name__ == '__main__':
    console.run(lambda: print(json.dumps(measure(SIDE.value))))
