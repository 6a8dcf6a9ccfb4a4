"""The cascade of stages: each stage's canvas, four times finer than its condition, is the condition of the next."""

import dataclasses
import time
from pathlib import Path
from typing import Any, Callable, Sequence

import jax
import numpy as np
from tqdm import tqdm

from rsdiff.base.boxes import Box
from rsdiff.base.errors import BadInput
from rsdiff.base.folders import claim_folder
from rsdiff.base.seeds import written_seed
from rsdiff.base.work import Claims, end_without_parent, is_local_worker, local_workers, share_out
from rsdiff.data.degradation import UPSCALE
from rsdiff.data.gsd import check_gsd_m
from rsdiff.data.images import write_image
from rsdiff.diffusion.noise import Kind, name_key
from rsdiff.sampling.export.formats import LARGEST_PNG, check_formats, export
from rsdiff.sampling.mosaic.condition import scaled
from rsdiff.sampling.mosaic.field import CachedField, Field, WindowSampler
from rsdiff.sampling.mosaic.plan import Plan, cut
from rsdiff.sampling.mosaic.plane import Plane
from rsdiff.sampling.mosaic.store import GROUP, make_group, open_stage
from rsdiff.sampling.mosaic.void import FineMask, Void, with_alpha

SamplerAt = Callable[[float], WindowSampler]

# maximum side of the canvas. Noise is indexed by 32-bit positions; half of that range leaves room for halos.
LARGEST_SIDE_PX = 2**30
MOST_STAGES = 15  # for a condition of one pixel
MOST_SUPERTILES = 2**20  # along a side


@dataclasses.dataclass(frozen=True)
class MosaicSettings:
    """How a mosaic is made. `gsd_m`: of the condition; `wrap_x`: the condition's left edge follows its right one;
    `supertile_px`: side of the unit of work, which is computed, written and claimed at once; `upscale`: factor of one stage."""

    gsd_m: float
    stages: int
    plan: Plan
    supertile_px: int
    seed: int = 0
    noise: Kind = 'anchored'
    wrap_x: bool = False
    upscale: int = UPSCALE

    def __post_init__(self):
        check_gsd_m(self.gsd_m, 'gsd_m')
        if not 1 <= self.stages <= MOST_STAGES:
            raise BadInput(f'stages is {self.stages}; it must be from 1 to {MOST_STAGES}')
        if self.supertile_px < 16 or self.supertile_px % 16:
            raise BadInput(f'a supertile of {self.supertile_px} px; its side must be a multiple of 16')

    def manifest(self) -> dict[str, Any]:
        """All settings, with one key for each that may differ between two runs."""
        flat = {key: value for key, value in dataclasses.asdict(self).items() if key != 'plan'}
        if self.upscale == UPSCALE:
            del flat['upscale']  # the default was not recorded by earlier versions
        plan = dataclasses.asdict(self.plan)
        return flat | {
            'seed': written_seed(self.seed),
            'mode': 'tiles',
            'plan': plan.pop('name'),
            **plan,
            'steps': self.plan.steps,
        }

    def stage_gsd_m(self, stage: int) -> float:
        """Metres per pixel of the result of stage 1, 2, …"""
        return self.gsd_m / self.upscale**stage

    def check_size(self, condition_shape: tuple[int, ...]) -> None:
        """Raises BadInput if the last stage for a condition of this shape would be too large or have too many supertiles."""
        for name, side in zip(('high', 'wide'), condition_shape):
            side *= self.upscale**self.stages
            if side > LARGEST_SIDE_PX:
                raise BadInput(
                    f'{self.stages} stages make a canvas {side:,} px {name}; at most {LARGEST_SIDE_PX:,} px per side '
                    'are possible: use fewer --stages or a smaller condition'
                )
            if side > MOST_SUPERTILES * self.supertile_px:
                raise BadInput(
                    f'a canvas {side:,} px {name} has more than {MOST_SUPERTILES:,} supertiles of {self.supertile_px} '
                    'px along that side; use a larger --supertile'
                )

    def field(self, sampler: WindowSampler, source: Any, stage: int) -> Field:
        """The field of a stage; `source` is its `lr`, and the sampler's `images` are its other planes."""
        planes = {name: Plane(array, self.wrap_x) for name, array in {'lr': source, **sampler.images}.items()}
        return Field(sampler, self.plan, planes, name_key(self.seed, stage), self.noise)


def lazy_mosaic(
    sampler_at: SamplerAt, condition: Any, settings: MosaicSettings, cached_bytes: int | None = 2**28
) -> Any:
    """The last stage as an array that is computed when it is read; nothing is stored on disk.

    Args:
      sampler_at: gsd_m of a stage's output → its `WindowSampler`.
      condition: uint8, with a (height, width, 3) `shape` and slices.
      cached_bytes: memory per stage for a cache of supertiles; None: no cache, and only what is read is computed.
    Returns:
      An object with `shape` whose slices [y0:y1, x0:x1] are uint8 NumPy arrays, equal to those of the full mosaic.
    """
    source = condition
    for stage in range(1, settings.stages + 1):
        source = settings.field(sampler_at(settings.stage_gsd_m(stage)), source, stage)
        if cached_bytes is not None:
            tiles = max(cached_bytes // (3 * settings.supertile_px**2), 4)
            source = CachedField(source, settings.supertile_px, tiles)
    return source


def sample_region(sampler_at: SamplerAt, condition: Any, settings: MosaicSettings, box: Box) -> np.ndarray:
    """The pixels of `box` of the last stage, uint8; computes no more of the earlier stages than these need.

    Raises:
      BadInput: as `check_region`.
    """
    settings.check_size(condition.shape)
    check_region(condition, settings, box)
    return lazy_mosaic(sampler_at, condition, settings, cached_bytes=None).region(box)


def check_region(condition: Any, settings: MosaicSettings, box: Box) -> None:
    """Raises BadInput if `box` is empty or extends beyond the canvas; with `wrap_x` it may cross the right edge."""
    height, width = (settings.upscale**settings.stages * side for side in condition.shape[:2])
    right = box.x0 + width if settings.wrap_x and box.x0 < width else width
    if not (0 <= box.y0 < box.y1 <= height and 0 <= box.x0 < box.x1 <= right):
        raise BadInput(
            f'region {box.y0},{box.x0},{box.y1 - box.y0},{box.x1 - box.x0} is not in the canvas, '
            f'{height} px high and {width} px wide'
        )


def claim(condition: Any, out: Path, settings: MosaicSettings, provenance: dict[str, Any]) -> None:
    """Claims `out` for this mosaic, or checks that it belongs to it. Raises BadInput if it does not."""
    claim_folder(
        out, settings.manifest() | {'condition_px': list(condition.shape[:2])} | _noted(condition) | provenance
    )


def void_of(condition: Any) -> Void | None:
    """The void of a condition (`Condition.void`); None for plain arrays."""
    return getattr(condition, 'void', None)


def _noted(condition: Any) -> dict[str, str]:
    """The settings to record about void; none without void, as in earlier versions without masks."""
    void = void_of(condition)
    return {'void': str(void)} if void else {}


def save_region(
    sampler_at: SamplerAt,
    condition: Any,
    out: Path,
    settings: MosaicSettings,
    provenance: dict[str, Any],
    y: int,
    x: int,
    height: int,
    width: int,
) -> dict[str, Any]:
    """Writes the `sample_region` of a box at (y, x) as a PNG in `out`, which must belong to the same mosaic or be new. The PNG
    is transparent where the condition has void.

    Raises:
      BadInput: as `sample_region` and `sample_mosaic`; or the region is too large for a PNG.
    """
    start, box = time.monotonic(), Box(y, x, y + height, x + width)
    if height * width > LARGEST_PNG:
        raise BadInput(
            f'a region of {width}×{height} px is too large for a PNG; use --region for {LARGEST_PNG:,} px at most'
        )
    settings.check_size(condition.shape)
    check_region(condition, settings, box)
    claim(condition, out, settings, provenance)
    picture, pixels = out / f'region_{y}_{x}_{height}_{width}.png', sample_region(sampler_at, condition, settings, box)
    if void_of(condition):
        pixels = with_alpha(pixels, FineMask(condition, settings.upscale**settings.stages, settings.wrap_x).region(box))
    write_image(picture, pixels)
    return {
        'out': str(out),
        'picture': str(picture),
        'pixels': height * width,
        'seconds': round(time.monotonic() - start, 2),
    }


def sample_mosaic(
    sampler_at: SamplerAt,
    condition: Any,
    out: Path,
    settings: MosaicSettings,
    provenance: dict[str, Any],
    georeference: dict | None = None,
    workers: int = 1,
    show: bool = True,
    formats: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Enlarges `condition` 4× `settings.stages` times into `out/mosaic.zarr/stage_<n>`, and exports the result. If the
    condition has void, `stage_<n>_mask` is 0 there and 255 elsewhere.

    Continues an existing mosaic, together with any number of processes given the same arguments, and returns once it is
    complete.

    Args:
      sampler_at, condition: see `lazy_mosaic`.
      provenance: what else the result depends on; stored with it and compared when continuing.
      georeference: of the condition (`rsdiff.data.scenes.Scene`).
      workers: number of processes, including this one (`work.local_workers`).
      formats: see `export.export`.
    Returns:
      pixels, seconds, and network evaluations per output pixel of the last stage: `last_stage` counts the evaluations of the
      last stage, `all_stages` those of all stages; halos of supertiles included.
    Raises:
      BadInput: `out` holds something else; or as `export.check_formats` and `MosaicSettings.check_size`.
    """
    start = time.monotonic()
    settings.check_size(condition.shape)
    check_formats(formats, condition.shape, settings.stages, settings.upscale)
    claim(condition, out, settings, provenance)
    make_group(out / GROUP, settings.manifest() | _noted(condition) | provenance)
    with local_workers(workers):
        made = _make_stages(sampler_at, condition, out, settings, georeference, show)
    result = {
        'out': str(out),
        **extent(condition.shape, settings),
        **_share(condition),
        'sampled_now': made,
        'seconds': round(time.monotonic() - start, 2),
        'devices': jax.device_count(),
    }
    return result | {'files': [] if is_local_worker() else export(out, formats, condition, show)}


def _make_stages(sampler_at, condition, out: Path, settings: MosaicSettings, georeference, show: bool) -> int:
    """Returns the number of supertiles made by this process."""
    started_at, claims, made, source = time.time(), Claims(out / 'claims'), 0, condition
    for stage in range(1, settings.stages + 1):
        gsd_m = settings.stage_gsd_m(stage)
        field = settings.field(sampler_at(gsd_m), source, stage)
        height, width, _ = field.shape
        attributes = {'gsd_m': gsd_m, **scaled(georeference, settings.upscale**stage)}
        array = open_stage(out, stage, height, width, settings.supertile_px, attributes, void_of(condition) is not None)

        def make(tile):
            end_without_parent()
            if array.mask and not array.mask.is_done(tile):
                valid = FineMask(condition, settings.upscale**stage).region(array.box(tile))
                array.mask.write(tile, np.where(valid, 255, 0).astype(np.uint8))
            if not array.is_done(tile):
                array.write(tile, field.region(array.box(tile)))

        work = share_out(
            array.tiles(), array.is_all_done, make, lambda tile: claims.claim(f'stage_{stage}_{tile[0]}_{tile[1]}')
        )
        with tqdm(
            total=array.count(),
            unit='supertile',
            dynamic_ncols=True,
            disable=not show,
            desc=f'stage {stage}/{settings.stages}, {width}×{height} px, {gsd_m:.4g} m',
        ) as bar:
            start, pixels, earlier = time.monotonic(), 0, 0
            for tile, here in work:
                made += here
                if array.shard(tile).stat().st_mtime < started_at:
                    earlier += 1
                    bar.initial = earlier  # counts as done, but not for the rate
                else:
                    box = array.box(tile)
                    pixels += (box.y1 - box.y0) * (box.x1 - box.x0)
                    bar.set_postfix_str(f'{pixels / (time.monotonic() - start):.3g} px/s', refresh=False)
                bar.update()
        source = array
    return made


def _share(condition: Any) -> dict[str, float]:
    """The fraction of void pixels, to report for a condition with void."""
    void = void_of(condition)
    return {'void_share': round(void.void_pixels / void.pixels, 6)} if void else {}


def extent(condition_shape: tuple[int, ...], settings: MosaicSettings) -> dict[str, Any]:
    """The size and cost of a mosaic of any size, from geometry alone.

    Raises:
      BadInput: as `MosaicSettings.check_size`.
    """
    settings.check_size(condition_shape)
    evaluated, supertiles, pixels = [], 0, []
    for stage in range(1, settings.stages + 1):
        height, width = (settings.upscale**stage * side for side in condition_shape[:2])
        rows, columns = (cut(side, settings.supertile_px) for side in (height, width))
        evaluated.append(settings.plan.evaluations(rows, columns, width if settings.wrap_x else None))
        supertiles += len(rows) * len(columns)
        pixels.append(height * width)
    return {
        'height': height,
        'width': width,
        'pixels': pixels[-1],
        'gsd_m': settings.stage_gsd_m(settings.stages),
        'plan': settings.plan.name,
        'steps': settings.plan.steps,
        'supertiles': supertiles,
        'network_evaluations_per_pixel': {
            'last_stage': round(evaluated[-1] / pixels[-1], 2),
            'all_stages': round(sum(evaluated) / pixels[-1], 2),
        },
    }


def estimate(sampler_at: SamplerAt, condition: Any, settings: MosaicSettings) -> dict[str, Any]:
    """`extent`, and estimates for the mosaic: maximum bytes on disk, bytes of memory per supertile, and seconds for one
    worker, from windows sampled twice in a corner of the first stage."""
    known, plan = extent(condition.shape, settings), settings.plan
    side = min(settings.supertile_px, max(known['height'], known['width']))
    field = settings.field(sampler_at(settings.stage_gsd_m(1)), condition, 1)
    box = Box(0, 0, plan.window_px, plan.window_px)
    for _ in range(2):  # the first call compiles
        start = time.monotonic()
        field.region(box)
        seconds = time.monotonic() - start
    # the last batch of each phase is padded, and takes as long as a full one
    batch, places = field.sampler.batch, zip(*(plan.places(axis, 0, plan.window_px) for axis in (0, 1)))
    calls = sum(
        phase.steps * -(-len(rows) * len(columns) // batch) for phase, (rows, columns) in zip(plan.phases, places)
    )
    per_pixel = seconds / (calls * batch * plan.window_px**2)
    pixels = [known['pixels'] // settings.upscale ** (2 * n) for n in range(settings.stages)]
    return (
        known
        | _share(condition)
        | {
            'disk_bytes_at_most': (4 if void_of(condition) else 3) * sum(pixels),
            'supertile_memory_bytes': field.memory_bytes(side),
            'estimated_seconds': round(
                per_pixel * known['network_evaluations_per_pixel']['all_stages'] * known['pixels'], 1
            ),
        }
    )
