"""Samples a folder of small images, each without windows, into a folder with a manifest.

The fields of the network besides `lr` and `gsd_m` come from the image's row: its numbers, and its files, which cover the
same ground as the result and are read as in training (`rsdiff.data.fields`).
"""

import dataclasses
import hashlib
import itertools
import logging
import math
import time
import zlib
from pathlib import Path, PurePosixPath
from typing import Any, Callable

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from rsdiff.base.boxes import Box
from rsdiff.base.errors import BadInput
from rsdiff.base.folders import claim_folder
from rsdiff.base.seeds import written_seed
from rsdiff.data.degradation import UPSCALE, DegradationConfig, degrade
from rsdiff.data.fields import Field, Fields
from rsdiff.data.folder import Entry, clean_name, write_manifest
from rsdiff.data.images import read_image, to_float, to_uint8, write_image
from rsdiff.data.made import Made
from rsdiff.data.scenes import open_scene
from rsdiff.diffusion import noise
from rsdiff.diffusion.solvers import Solver

Constants = dict[str, float | str | list[str]]  # values of fields by name


@dataclasses.dataclass(frozen=True)
class ImageSampler:
    """A function that samples a batch of images.

    Attributes:
      sample: (condition, noise (b, H, W, channels), keys (b,) of the noise of stochastic steps, real image (b, H, W, 3) or None)
        → (b, H, W, 3) in [-1, 1]. The condition
        is a dict of `lr` (b, H / upscale, W / upscale, 3) in [-1, 1], `gsd_m` (b,), metres per pixel of the result, and
        those of `fields` that at least one image has: images (b, H / scale, W / scale, ·) in [-1, 1] and numbers (b,),
        NaN for the images that lack them.
      upscale: resolution of the result relative to `lr`.
      channels: number of noise channels, which may differ from the image's.
      fields: the fields that are read from the images' rows.
    """

    sample: Callable[..., jax.Array]
    upscale: int = UPSCALE
    channels: int = 3
    fields: tuple[Field, ...] = ()


@dataclasses.dataclass(frozen=True)
class FolderSettings:
    """How a folder is sampled. `gsd_m`, of the input images, is used if an entry has none, in preference to the value in the
    file itself. `bands` and `value_range`: how raster files are converted to RGB (`rsdiff.data.scenes.open_scene`).
    `degraded`: the images are the truth; each variant first degrades them by UPSCALE^stages, and the result has their
    resolution again. `strength` below 1: every stage starts from the partly noised truth, and so resembles it."""

    stages: int
    window_px: int
    steps: int
    gsd_m: float | None = None
    variants: int = 1
    degraded: bool = False
    strength: float = 1.0
    solver: Solver = 'ddim'
    seed: int = 0
    batch_size: int = 16
    bands: tuple[int, ...] | None = None
    value_range: tuple[float, float] | None = None


@dataclasses.dataclass(frozen=True)
class _Job:
    """One image to sample."""

    entry: Entry
    number: int  # of the entry
    variant: int
    out_name: str
    size: tuple[int, int]  # height and width of the input
    padded: tuple[int, int]  # size of the input after mirror padding
    source_sha256: str  # of the file's bytes
    gsd_m: float | None  # of the input
    given: dict[str, float | str]  # the fields of its row by name: numbers, and sha256 of files (`Field.digest`)

    def key(self, seed: int):
        """The key of this image's noise, which depends on the image and variant, not on the order of sampling."""
        return noise.name_key(seed, zlib.crc32(self.entry.file_name.encode()), self.variant)


def sample_folder(
    sampler: ImageSampler,
    degradation: DegradationConfig,
    entries: list[Entry],
    out: Path,
    settings: FolderSettings,
    provenance: dict[str, Any],
    show: bool = True,
    constants: Constants | None = None,
) -> dict[str, Any]:
    """Samples `settings.variants` images of each entry into `out`, with `metadata.jsonl`. Continues an interrupted run.

    Existing images that have changed are sampled again. The manifest keeps label, captions and split, and records source,
    source_sha256, seed, variant, `provenance` and, as `field_<name>`, the sampler's fields that the entry has: numbers, and
    sha256 of files. Images that cannot be read or are too small, or whose files can't be used, are logged and counted, as are
    black images of stacks.

    Args:
      constants: the fields of entries that lack them, by name: numbers, absolute paths of files, and lists of those for
        stacks. `provenance` must include them.
    Raises:
      BadInput: no image can be used, a gsd_m or a required field is unknown, two images would get the same name, or `out`
        holds something else.
    """
    start = time.monotonic()
    _check_strength(settings)
    fields = _fields(sampler, entries, constants or {}, settings)
    jobs = _plan(entries, sampler.fields, fields, settings)
    fixed = {key: value for key, value in dataclasses.asdict(settings).items() if key != 'batch_size'}
    if settings.degraded and degradation != DegradationConfig():  # the default adds nothing: earlier outputs continue
        fixed['degradation_sha256'] = hashlib.sha256(repr(degradation).encode()).hexdigest()
    fixed['seed'] = written_seed(settings.seed)
    sources = repr([(job.out_name, job.source_sha256, job.gsd_m, *sorted(job.given.items())) for job in jobs])
    claim_folder(
        out, fixed | {'mode': 'folder', 'sources_sha256': hashlib.sha256(sources.encode()).hexdigest()} | provenance
    )

    made = Made(out)
    missing = [job for job in jobs if not made.has(job.out_name, job.source_sha256)]
    # only images of the same padded size are batched, so an image's result does not depend on the sizes of others
    missing.sort(key=lambda job: job.padded)
    groups = [list(same) for _, same in itertools.groupby(missing, key=lambda job: job.padded)]
    batches = [
        group[first : first + settings.batch_size]
        for group in groups
        for first in range(0, len(group), settings.batch_size)
    ]
    enlarge = _enlarge_function(sampler, degradation, settings)
    with tqdm(total=len(missing), unit='image', desc='sampling', disable=not show, dynamic_ncols=True) as bar:
        for batch in batches:
            for job, image in zip(batch, _sample_batch(enlarge, batch, fields, settings)):
                write_image(out / job.out_name, image)
                made.add(job.out_name, job.source_sha256)
            bar.update(len(batch))

    rows = [_manifest_row(job, out, settings, provenance) for job in jobs]
    write_manifest(out, rows)
    made.keep(job.out_name for job in jobs)
    return {
        'out': str(out),
        'images': len(rows),
        'sampled_now': len(missing),
        'images_skipped': len(entries) - len(jobs) // settings.variants,
        **({'frames_skipped': len(fields.skipped)} if fields.skipped else {}),
        'seconds': round(time.monotonic() - start, 2),
        **_evaluations(jobs, settings),
    }


def _fields(sampler: ImageSampler, entries: list[Entry], constants: Constants, settings: FolderSettings) -> Fields:
    """The sampler's fields of `entries`, from their rows, else from `constants`."""
    defaults = {field.key: constants[field.name] for field in sampler.fields if field.name in constants}
    own = [{key: value for key, value in entry.extra.items() if value not in (None, [])} for entry in entries]
    filled = [dataclasses.replace(entry, extra=defaults | extra) for entry, extra in zip(entries, own)]
    for field in sampler.fields:
        lacking = [entry.file_name for entry in filled if field.needed and not field.is_of(entry)]
        if lacking:
            raise BadInput(
                f'{lacking[0]} has no {field.key}, and this checkpoint needs {field.name} ({len(lacking)} of '
                f'{len(entries)} images lack it); add it to their rows in the manifest, or give sample.py --field '
                f'{field.name}=VALUE'
            )
    return Fields(sampler.fields, filled, 'the condition', settings.bands, settings.value_range)


def _plan(entries: list[Entry], recorded: tuple[Field, ...], fields: Fields, settings: FolderSettings) -> list[_Job]:
    """The images to sample, from the usable entries."""
    jobs, reason = [], ''
    for number, entry in enumerate(entries):
        try:
            size, padded, gsd_m = _read_sizes(entry, settings)
            fields.read_padded(number, *_result_sizes(size, padded, settings), _reductions(settings))
            stem = PurePosixPath(clean_name(entry.file_name)).with_suffix('')
        except BadInput as error:
            reason = str(error)
            logging.warning('skipped: %s', reason)
            continue
        sha256 = hashlib.sha256(entry.path.read_bytes()).hexdigest()
        given = {
            field.name: field.digest(field.files(entry)) if field.channels else entry.numbers[field.name]
            for field in recorded
            if field.is_of(entry)
        }
        jobs += [
            _Job(entry, number, variant, f'{stem}-{variant}.png', size, padded, sha256, gsd_m, given)
            for variant in range(settings.variants)
        ]
    if not jobs:
        raise BadInput(f'none of {len(entries)} images can be used: {reason}')
    _check_names(jobs)
    unknown = [job.entry.file_name for job in jobs if job.gsd_m is None and job.variant == 0]
    if unknown:
        raise BadInput(f'{len(unknown)} images have no gsd_m in their manifest or file ({unknown[0]}, …); give --gsd_m')
    return jobs


def _check_names(jobs: list[_Job]) -> None:
    """Raises BadInput if two images would be written under the same name."""
    names = {}
    for job in jobs:
        other = names.setdefault(job.out_name, job)
        if other is not job:
            raise BadInput(
                f'{other.entry.file_name!r} and {job.entry.file_name!r} would both be written as '
                f'{job.out_name!r}; rename one of them'
            )


def _read_sizes(entry: Entry, settings: FolderSettings) -> tuple[tuple[int, int], tuple[int, int], float | None]:
    """The input's size, its padded size, and metres per pixel: from the manifest, else the settings, else the file."""
    with open_scene(entry.path, settings.bands, settings.value_range) as scene:
        gsd_m = entry.gsd_m or settings.gsd_m or scene.gsd_m
        height, width = scene.read(Box(0, 0, scene.height, scene.width)).shape[:2]
    # The size of a window in pixels of the input, which is either the truth or the condition.
    least = (
        settings.window_px * (UPSCALE ** (settings.stages - 1)) if settings.degraded else settings.window_px // UPSCALE
    )
    # mirroring can at most double a side; sides slightly below a window are fine (UC Merced has such images)
    allowed = least // 2 + 1
    if min(height, width) < allowed:
        raise BadInput(f'{entry.path}: {width}×{height} px; this generator needs {allowed} px or more per side')
    return (height, width), tuple(-(-side // least) * least for side in (height, width)), gsd_m


def _result_sizes(
    size: tuple[int, int], padded: tuple[int, int], settings: FolderSettings
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Height and width of the result for an input of `size`, and of the result for the padded input."""
    scale = 1 if settings.degraded else UPSCALE**settings.stages
    return (scale * size[0], scale * size[1]), (scale * padded[0], scale * padded[1])


def _reductions(settings: FolderSettings) -> list[int]:
    """For each stage, how much coarser its result is than that of the last."""
    return [UPSCALE ** (settings.stages - stage) for stage in range(1, settings.stages + 1)]


def _enlarge_function(sampler: ImageSampler, degradation: DegradationConfig, settings: FolderSettings):
    """(images, gsd_m, fields of each stage, keys) → samples, after all stages."""
    folded = lambda keys, number: jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)
    degrade_once = jax.jit(lambda images, keys: degrade(images, keys, degradation))
    noises = jax.jit(
        lambda keys, height, width: jax.vmap(lambda key: noise.crop(key, 0, 0, height, width, sampler.channels))(keys),
        static_argnums=(1, 2),
    )

    def run(images, gsd_m, fields, keys):
        truths = [None] * settings.stages
        if settings.degraded:
            for number in range(settings.stages):
                truths[number] = images if settings.strength < 1 else None
                images, gsd_m = degrade_once(images, folded(keys, 1000 + number)), gsd_m * UPSCALE
        for stage, truth in enumerate(reversed(truths), 1):
            gsd_m = gsd_m / UPSCALE
            _, height, width, _ = images.shape
            own = folded(keys, stage)
            fresh = noises(own, sampler.upscale * height, sampler.upscale * width)
            images = sampler.sample({'lr': images, 'gsd_m': gsd_m, **fields[stage - 1]}, fresh, own, truth)
        return images

    return run


def _sample_batch(enlarge, batch: list[_Job], fields: Fields, settings: FolderSettings) -> list[np.ndarray]:
    """uint8 samples of `batch`, each at its own size: inputs are mirror-padded to the padded size, and samples cropped."""
    images = [to_float(read_image(job.entry.path, settings.bands, settings.value_range)) for job in batch]
    height, width = batch[0].padded
    padded = [
        np.pad(image, ((0, height - image.shape[0]), (0, width - image.shape[1]), (0, 0)), mode='reflect')
        for image in images
    ]
    fill = settings.batch_size - len(batch)
    keys = jnp.stack([job.key(settings.seed) for job in batch + batch[-1:] * fill])
    gsd_m = np.array([job.gsd_m for job in batch + batch[-1:] * fill], np.float32)
    sizes = [_result_sizes(job.size, job.padded, settings) for job in batch]
    read = [fields.read_padded(job.number, *size, _reductions(settings)) for job, size in zip(batch, sizes)]
    stages = [
        {name: np.stack([values[name] for values in stage]) for name in stage[0]}
        for stage in zip(*(read + read[-1:] * fill))
    ]
    samples = np.asarray(enlarge(np.stack(padded + padded[-1:] * fill), gsd_m, stages, keys))
    return [to_uint8(sample[:height, :width]) for sample, ((height, width), _) in zip(samples, sizes)]


def _check_strength(settings: FolderSettings) -> None:
    if not 0 < settings.strength <= 1:
        raise BadInput(f'strength is {settings.strength}; it must be above 0, and 1 at most')
    if settings.strength < 1 and not settings.degraded:
        raise BadInput(
            f'strength {settings.strength} starts from the real image, which only --degrade has; add --degrade or use 1'
        )


def _manifest_row(job: _Job, out: Path, settings: FolderSettings, provenance: dict[str, Any]) -> Entry:
    source = job.entry
    extra = {
        'source': source.file_name,
        'source_sha256': job.source_sha256,
        'seed': written_seed(settings.seed),
        'variant': job.variant,
        'degraded': settings.degraded,
        'strength': settings.strength,
        'steps': settings.steps,
        **provenance,
        **{f'field_{name}': value for name, value in job.given.items()},
    }
    return Entry(
        out / job.out_name,
        job.out_name,
        source.split,
        source.label,
        source.captions,
        job.gsd_m if settings.degraded else job.gsd_m / UPSCALE**settings.stages,
        extra,
    )


def _evaluations(jobs: list[_Job], settings: FolderSettings) -> dict[str, Any]:
    """The number of output pixels of all images, and network evaluations per output pixel, including padding."""
    scale = 1 if settings.degraded else 16**settings.stages
    pixels, padded = (scale * sum(math.prod(getattr(job, which)) for job in jobs) for which in ('size', 'padded'))
    last = settings.steps * padded / pixels
    every = sum(last / 16 ** (settings.stages - stage) for stage in range(1, settings.stages + 1))
    return {
        'pixels': pixels,
        'network_evaluations_per_pixel': {'last_stage': round(last, 2), 'all_stages': round(every, 2)},
    }
