"""One stage over the infinite plane, as a pure function of position.

A window of a phase depends on the seed, the stage, its position, its crop of the condition and its crop of the previous
phase's field. By induction over the phases, the same holds for every pixel. Any rectangle can therefore be computed
separately and is byte for byte the same as in the full mosaic. This is how workers divide a mosaic, and how an interrupted
run continues.

Byte equality also needs a fixed order of floating-point sums, which compilers choose by the shapes of their inputs. So all
calls to the network have the same shape, the last ones padded, and windows are merged in the order of their positions.
"""

import dataclasses
import functools
import itertools
from typing import Any, Callable, Iterator, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rsdiff.base.boxes import Box
from rsdiff.base.errors import BadInput
from rsdiff.data.images import to_float, to_uint8
from rsdiff.diffusion import noise
from rsdiff.diffusion.solvers import Steps
from rsdiff.models.conditioning import Condition
from rsdiff.sampling.mosaic.plan import Plan, hull
from rsdiff.sampling.mosaic.plane import Plane
from rsdiff.sampling.mosaic.windows import Profile, shares

Pixels = jax.Array | np.ndarray

first_noise = jax.jit(noise.windows, static_argnums=(0, 3, 4, 5))


# Noise is indexed by 32-bit positions, which would wrap around beyond this.
LARGEST_PLACE = 2**31 - 1
# On CPUs, the maximum number of pixels in a batch of windows per device.
CPU_BATCH_PX = 2**15


def windows_a_call(window_px: int, batch_size: int, devices: int) -> int:
    """The number of windows per call: on accelerators `batch_size`, rounded up to a multiple of `devices`; on CPUs a number
    that suits their caches, independent of `batch_size`, which therefore does not affect rounding."""
    on_cpu = jax.default_backend() == 'cpu'
    return devices * (max(CPU_BATCH_PX // window_px**2, 1) if on_cpu else -(-batch_size // devices))


class Read(NamedTuple):
    """How windows read a plane that is `scale` times coarser than the result, with `margin` extra pixels of the plane on each
    side."""

    scale: int = 4
    margin: int = 0


@dataclasses.dataclass(frozen=True)
class WindowSampler:
    """Functions that sample a batch of windows of W × W pixels of the result each.

    Attributes:
      advance: (condition, x (b, W, W, channels), x0 (b, W, W, channels), steps, corners int32 (b, 2), (key, circumference))
        → (x, x0), some steps of `solvers.integrate`. The meaning of x and x0 must not depend on the window that a pixel lies
        in. The condition is a dict of the windows' crops, by name, (b, W / scale + 2 margin, W / scale + 2 margin, ·); the
        sampler itself supplies the fields that are the same everywhere. The last two place the noise of stochastic steps
        (`noise.at_step`).
      image: (condition, x after the last step) → (b, W, W, 3) in [-1, 1].
      steps: all solver steps.
      batch: b; every call has exactly this many windows.
      reads: how each plane is read, by name.
      images: the images read besides `lr`, by name: anything that a `Plane` can read.
      channels: number of channels of x, which may differ from the image's.
      first_scale: scale of the initial noise.
    """

    advance: Callable[..., tuple[jax.Array, jax.Array]]
    image: Callable[[Condition, Pixels], jax.Array]
    steps: Steps
    batch: int
    reads: dict[str, Read] = dataclasses.field(default_factory=lambda: {'lr': Read()})
    images: dict[str, Any] = dataclasses.field(default_factory=dict)
    channels: int = 3
    first_scale: float = 1.0


@dataclasses.dataclass(frozen=True)
class Field:
    """A stage, computed from `planes` by the windows of `plan`, at any position. `key` selects its noise.

    Args:
      planes: the planes that the sampler reads, by name. They cover the same area, each at its own scale.
    Raises:
      BadInput: one is missing, or they do not cover the same area.
    """

    sampler: WindowSampler
    plan: Plan
    planes: dict[str, Plane]
    key: jax.Array
    noise_kind: noise.Kind = 'anchored'

    def __post_init__(self):
        if missing := [name for name in self.sampler.reads if name not in self.planes]:
            raise BadInput(f'the condition lacks {missing[0]}, an image that the network needs')
        sizes = {
            name: (read.scale * self.planes[name].height, read.scale * self.planes[name].width)
            for name, read in self.sampler.reads.items()
        }
        (first, size), *others = sizes.items()
        for name, other in others:
            if other != size:
                raise BadInput(
                    f'{first} makes a canvas of {size[1]}×{size[0]} px, and {name} one of {other[1]}×{other[0]} px; '
                    'they must cover the same area'
                )

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of the canvas, the area of the plane covered by the planes' images."""
        name, read = next(iter(self.sampler.reads.items()))
        return read.scale * self.planes[name].height, read.scale * self.planes[name].width, 3

    @property
    def around_px(self) -> int | None:
        """The circumference of the plane in pixels if it is a cylinder, else None."""
        return self.shape[1] if any(plane.wrap_x for plane in self.planes.values()) else None

    def __getitem__(self, key: tuple[slice, slice]) -> np.ndarray:
        """Reads like a NumPy array of `shape`; recomputes the pixels on each read."""
        (y0, y1, _), (x0, x1, _) = (part.indices(size) for part, size in zip(key, self.shape))
        return self.region(Box(y0, x0, y1, x1))

    def region(self, box: Box, count: Callable[[int], None] = lambda evaluations: None) -> np.ndarray:
        """The pixels of `box`, which may lie anywhere, uint8. `count` is called with the number of window evaluations as they
        are done.

        Raises:
          BadInput: the region extends more than `LARGEST_PLACE` pixels from (0, 0); on a cylinder this applies to y only.
          FloatingPointError: the network's output has NaN or infinite values.
        """
        plan, sampler = self.plan, self.sampler
        rows, columns = plan.places(0, box.y0, box.y1), plan.places(1, box.x0, box.x1, self.around_px)
        reads = [hull(*places, plan.window_px) for places in zip(rows, columns)]
        # the first phase reads the most
        crops = {name: _Crop(self.planes[name], reads[0], read) for name, read in sampler.reads.items()}
        place = self.key, np.int32(self.around_px or LARGEST_PLACE)
        field, done = None, 0
        for phase, ys, xs, leaves in zip(plan.phases, rows, columns, reads[1:] + [box]):
            steps, is_last = sampler.steps[done : done + phase.steps], done + phase.steps == plan.steps

            def advance(corners):
                filled = np.array(corners + corners[-1:] * (sampler.batch - len(corners)), np.int64)
                condition = {name: crop.windows(filled, plan.window_px) for name, crop in crops.items()}
                x, x0 = self._first(filled) if field is None else field.windows(filled, plan.window_px)
                x, x0 = sampler.advance(condition, x, x0, steps, self._indexed(filled), place)
                return corners, (sampler.image(condition, x),) if is_last else (x, x0)

            channels = (3,) if is_last else (sampler.channels,) * 2
            merged = _Merged(leaves, ys, xs, plan.profile(phase), channels)
            for corners, made in _one_ahead(map(advance, _batches(ys, xs, sampler.batch))):
                merged.add(corners, made)
                count(len(corners) * phase.steps)
            field, done = merged, done + phase.steps
        assert field is not None  # a plan has at least one phase
        return to_uint8(field.values[0])

    def memory_bytes(self, side_px: int) -> int:
        """Peak memory of the fields for a region of side_px × side_px: the two that a phase reads and the two it writes."""
        reads = self.plan.reads(0, 0, side_px)
        return max(
            8 * self.sampler.channels * (read**2 + leave**2) for read, leave in zip(reads, reads[1:] + [side_px])
        )

    def _first(self, corners: np.ndarray) -> tuple[jax.Array, jax.Array]:
        where = self._indexed(corners), self.plan.window_px, self.around_px
        x = first_noise(self.noise_kind, self.key, *where, self.sampler.channels)
        return self.sampler.first_scale * x, jnp.zeros_like(x)

    def _indexed(self, corners: np.ndarray) -> np.ndarray:
        """The corners as int32 (b, 2), by which noise is indexed."""
        if self.around_px:
            corners = np.stack([corners[:, 0], corners[:, 1] % self.around_px], 1)
        if corners.min() < -LARGEST_PLACE or corners.max() + self.plan.window_px > LARGEST_PLACE:
            raise BadInput(
                f'the region reaches beyond {LARGEST_PLACE:,} px from the upper left corner, where noise is undefined'
            )
        return corners.astype(np.int32)


class _Crop:
    """The part of a plane that a region reads, held in memory."""

    def __init__(self, plane: Plane, box: Box, read: Read):
        scale, margin = read
        self.read, self.y0, self.x0 = read, box.y0 // scale - margin, box.x0 // scale - margin
        self.pixels = plane.crop(Box(self.y0, self.x0, box.y1 // scale + margin, box.x1 // scale + margin))

    def windows(self, corners: np.ndarray, window_px: int) -> np.ndarray:
        """float32 (b, w + 2m, w + 2m, ·)."""
        scale, margin = self.read
        side = window_px // scale + 2 * margin
        places = corners // scale - (self.y0 + margin, self.x0 + margin)
        windows = np.stack([self.pixels[y : y + side, x : x + side] for y, x in places])
        return windows if windows.dtype == np.float32 else to_float(windows)


class _Merged:
    """Fields over `box`: weighted means of the windows at ys × xs."""

    def __init__(self, box: Box, ys: list[int], xs: list[int], profile: Profile, channels: tuple[int, ...]):
        self.box = box
        self.rows = dict(zip(ys, shares(ys, box.y0, box.y1, profile)))
        self.columns = dict(zip(xs, shares(xs, box.x0, box.x1, profile)))
        self.values = [np.zeros((box.y1 - box.y0, box.x1 - box.x0, count), np.float32) for count in channels]

    def add(self, corners: list[tuple[int, int]], made: tuple[jax.Array, ...]) -> None:
        """Adds the windows' results for each field, (≥ b, W, W, ·). The order matters for rounding."""
        box = self.box
        for value, batch in zip(self.values, map(np.asarray, made)):
            for (y, x), window in zip(corners, batch):
                part = Box(max(y, box.y0), max(x, box.x0), min(y + len(window), box.y1), min(x + len(window), box.x1))
                rows = self.rows[y][part.y0 - box.y0 : part.y1 - box.y0]
                columns = self.columns[x][part.x0 - box.x0 : part.x1 - box.x0]
                share = (rows[:, None] * columns)[..., None]
                moved(part, box.y0, box.x0).crop(value)[:] += share * moved(part, y, x).crop(window)

    def windows(self, corners: np.ndarray, window_px: int) -> list[np.ndarray]:
        """Crops of each field, (b, W, W, ·)."""
        places = corners - (self.box.y0, self.box.x0)
        return [np.stack([value[y : y + window_px, x : x + window_px] for y, x in places]) for value in self.values]


class CachedField:
    """A canvas computed on demand in square tiles, the last `tiles` of which are cached. Reads like a NumPy array."""

    def __init__(self, field: Field, tile_px: int, tiles: int = 64):
        self.shape, self.tile_px = field.shape, tile_px
        height, width, _ = self.shape
        self._tile = functools.lru_cache(tiles)(
            lambda i, j: field.region(
                Box(i * tile_px, j * tile_px, min((i + 1) * tile_px, height), min((j + 1) * tile_px, width))
            )
        )

    def __getitem__(self, key: tuple[slice, slice]) -> np.ndarray:
        (y0, y1, _), (x0, x1, _) = (part.indices(size) for part, size in zip(key, self.shape))
        pixels = np.empty((max(y1 - y0, 0), max(x1 - x0, 0), 3), np.uint8)
        for i in range(y0 // self.tile_px, -(-y1 // self.tile_px)):
            for j in range(x0 // self.tile_px, -(-x1 // self.tile_px)):
                top, left = i * self.tile_px, j * self.tile_px
                part = Box(max(y0, top), max(x0, left), min(y1, top + self.tile_px), min(x1, left + self.tile_px))
                moved(part, y0, x0).crop(pixels)[:] = moved(part, top, left).crop(self._tile(i, j))
        return pixels


def _batches(ys: list[int], xs: list[int], size: int) -> Iterator[list[tuple[int, int]]]:
    """All (y, x), row by row, in batches of `size`."""
    corners = itertools.product(ys, xs)
    return iter(lambda: list(itertools.islice(corners, size)), [])


def moved(box: Box, y: int, x: int) -> Box:
    """`box` in coordinates relative to (y, x)."""
    return Box(box.y0 - y, box.x0 - x, box.y1 - y, box.x1 - x)


def _one_ahead(items: Iterator) -> Iterator:
    """Yields each item after requesting the next, so that a device computes one while the previous one is fetched."""
    held = next(items)
    for item in items:
        yield held
        held = item
    yield held
