"""The training images of each arm of a comparison: real images drawn by the seed, and extra ones.

    real                  no extra images
    synthetic             R synthetic images per drawn real image, and no real images
    real+synthetic 1:r    r synthetic images per drawn real image                      r = 1 … R

and the controls that a gain must be compared with:

    real repeated         each real image R more times: does the number of examples explain a gain?
    augmented             R augmented views of each: flipped, rotated, cropped, colour-jittered
    mixup, cutout, cutmix R of each (`rsdiff.downstream.augment`)
    bicubic               each real image downsampled by 4 and enlarged: a generator's input, without what it adds
    random labels         as real+synthetic 1:R, with the labels of the synthetic images shuffled: do they matter?

With K shots, the seed draws K real images of each class, and all extra images come from those: all arms of a seed use
the same K·classes pictures. Training (`tuning.batches`) distinguishes real and extra examples, but not arms.
"""

import dataclasses
import zlib
from typing import Any, Callable

import numpy as np

from rsdiff.base.errors import BadInput
from rsdiff.data.degradation import UPSCALE
from rsdiff.data.images import bicubic, box_downscale, read_image
from rsdiff.downstream import augment
from rsdiff.downstream.filters import Screen
from rsdiff.downstream.task import NO_SOURCE, Images, Task

REAL, SYNTHETIC, BOTH, REPEATED, AUGMENTED, MIXUP, CUTOUT, CUTMIX, BICUBIC, RANDOM_LABELS = KINDS = (
    'real',
    'synthetic',
    'real+synthetic',
    'real repeated',
    'augmented',
    'mixup',
    'cutout',
    'cutmix',
    'bicubic',
    'random labels',
)
# no training images: the encoder as it is
UNTRAINED = 'untrained'
FROM_SYNTHETIC = SYNTHETIC, BOTH, RANDOM_LABELS


@dataclasses.dataclass(frozen=True)
class Arm:
    """An arm; `ratio` is the number of extra images per real image."""

    kind: str
    ratio: int

    @property
    def name(self) -> str:
        return f'{self.kind} 1:{self.ratio}' if self.kind == BOTH else self.kind

    @property
    def slug(self) -> str:
        """The name in a form for file names."""
        return self.name.replace(' 1:', '_1to').replace(' ', '_')


def arms_of(kinds: tuple[str, ...], ratios: tuple[int, ...]) -> tuple[Arm, ...]:
    """The arms of these kinds. 'real+synthetic' has every ratio, 'real' 0, 'bicubic' 1, the others the largest, R."""
    own = {REAL: (0,), BOTH: sorted(ratios), BICUBIC: (1,)}
    return tuple(Arm(kind, ratio) for kind in KINDS if kind in kinds for ratio in own.get(kind, (max(ratios),)))


@dataclasses.dataclass(frozen=True)
class Examples:
    """The training examples of one arm and one seed.

    Attributes:
      pixels: uint8 (n, size, size, 3), real images first.
      labels: float32 (n, classes); each row sums to 1.
      captions: of each example; a view has the captions of its image, a mix those of both images.
      real: number of real images.
    """

    pixels: np.ndarray
    labels: np.ndarray
    captions: tuple[tuple[str, ...], ...]
    real: int

    def __len__(self) -> int:
        return len(self.pixels)


def examples(task: Task, arm: Arm, shots: int | None, seed: int, screen: Screen | None = None) -> Examples:
    """The training examples of one arm; they depend only on the arguments.

    Args:
      shots: real images per class, K; None: all of them.
      screen: filters the synthetic images, which may leave fewer than the ratio requires, and softens their labels;
        None: no filter and no softening.
    Raises:
      BadInput: a class has fewer real images than K, fewer synthetic ones than the ratio requires, or none after
        filtering; or K is given and the manifest does not say what a synthetic image was made from.
    """
    one_hot = np.eye(len(task.classes), dtype=np.float32)
    if arm.kind == UNTRAINED:
        return Examples(task.train.pixels[:0], one_hot[:0], (), 0)
    real = draw(task, shots, seed)
    if arm.kind in FROM_SYNTHETIC:
        made = made_from(task, real, arm.ratio, shots, seed)
        made = made if screen is None else screen.keep(made, real)
        _check_every_class(
            task, made, f'arm {arm.name!r}, seed {seed}: no synthetic image of class {{}} passes the filter'
        )
        extra = Examples(made.pixels, one_hot[made.labels], made.captions, 0)
        if arm.kind == RANDOM_LABELS:
            order = np.random.default_rng([4, seed]).permutation(len(made))
            extra = Examples(made.pixels, extra.labels[order], tuple(made.captions[i] for i in order), 0)
        elif screen is not None:
            extra = dataclasses.replace(extra, labels=screen.soften(made, extra.labels))
        if arm.kind == SYNTHETIC:
            return extra
    else:
        extra = _views(arm, real, one_hot, seed)
    return Examples(
        np.concatenate([real.pixels, extra.pixels]),
        np.concatenate([one_hot[real.labels], extra.labels]),
        real.captions + extra.captions,
        len(real),
    )


def check(task: Task, arm: Arm, shots: int | None, seed: int) -> None:
    """Raises the errors of `examples`, except those after filtering, without making the examples."""
    real = draw(task, shots, seed)
    if arm.kind in FROM_SYNTHETIC:
        made_from(task, real, arm.ratio, shots, seed)


def draw(task: Task, shots: int | None, seed: int) -> Images:
    """The real images of a seed: `shots` per class, or all."""
    if shots is None:
        return task.train
    drawn = []
    for label, name in enumerate(task.classes):
        members = np.flatnonzero(task.train.labels == label)
        if len(members) < shots:
            raise BadInput(
                f'{shots} real images of each class are asked for; class {name!r} has only {len(members)} to train on'
            )
        drawn.append(np.random.default_rng([2, seed, label]).permutation(members)[:shots])
    return task.train.take(np.sort(np.concatenate(drawn)))


def made_from(task: Task, real: Images, ratio: int, shots: int | None, seed: int) -> Images:
    """For each class, `ratio` times as many synthetic images as `real` has. The first one of every source comes before
    the second of any; images without a named source come last, in an order drawn by the seed."""
    made, wanted = task.synthetic, {*real.names}
    if shots is not None and None in made.sources:
        raise BadInput(
            f'{made.folder}: {made.names[made.sources.index(None)]} has no "source"; to limit the real images per '
            'class, every synthetic image must name the image it was made from (null: from none)'
        )
    order = np.random.default_rng([3, seed]).permutation(len(made))
    free = [i for i in order if made.sources[i] in (None, NO_SOURCE)]
    pool = np.asarray([i for i, source in enumerate(made.sources) if source in wanted] + free, np.int64)
    chosen = []
    for label, name in enumerate(task.classes):
        members, count = pool[made.labels[pool] == label], ratio * int((real.labels == label).sum())
        if len(members) < count:
            raise BadInput(
                f'{made.folder}: 1:{ratio} needs {count} synthetic images of class {name!r} for seed {seed}, there '
                f'are {len(members)} made from its real images; make more variants, or use smaller --ratios'
            )
        chosen.append(members[:count])
    return made.take(np.concatenate(chosen))


def largest_ratio(task: Task) -> int:
    """The largest number of synthetic images per real image that every class has."""
    counts = [np.bincount(images.labels, minlength=len(task.classes)) for images in (task.synthetic, task.train)]
    return max(1, int((counts[0] // counts[1]).min()))


def _views(arm: Arm, real: Images, one_hot: np.ndarray, seed: int) -> Examples:
    """`arm.ratio` extra examples from each real image. Each depends only on seed, name and number, apart from the other
    image of a mix."""
    pixels, captions = [real.pixels[:0]], []
    labels: list[Any] = [one_hot[:0]]
    for index, name in enumerate(real.names):
        for number in range(arm.ratio):
            generator = np.random.default_rng([seed, zlib.crc32(name.encode()), number])
            image, shares = VIEWS[arm.kind](real, index, generator)
            pixels.append(image[None])
            labels.append(sum(np.float32(share) * one_hot[real.labels[[of]]] for of, share in shares.items()))
            captions.append(tuple(words for of in shares for words in real.captions[of]))
    return Examples(np.concatenate(pixels), np.concatenate(labels), tuple(captions), 0)


def _alone(change: Callable[[np.ndarray, np.random.Generator], np.ndarray]) -> Callable:
    return lambda real, index, generator: (change(real.pixels[index], generator), {index: 1.0})


def _mixed(mix: Callable) -> Callable:
    def view(real, index, generator):
        other = (index + generator.integers(1, len(real))) % len(real)
        image, share = mix(real.pixels[index], real.pixels[other], generator)
        return image, {index: share, other: 1 - share}

    return view


def _coarse(real: Images, index: int, generator: np.random.Generator) -> tuple[np.ndarray, dict[int, float]]:
    image = read_image(real.folder / real.names[index])
    return bicubic(box_downscale(image, UPSCALE), *real.pixels.shape[1:3]), {index: 1.0}


# (real images, index of one, generator) → (a view of it, {index of a real image in the view: its share})
VIEWS = {
    REPEATED: _alone(lambda image, generator: image),
    AUGMENTED: _alone(augment.view),
    CUTOUT: _alone(augment.cutout),
    MIXUP: _mixed(augment.mixup),
    CUTMIX: _mixed(augment.cutmix),
    BICUBIC: _coarse,
}


def _check_every_class(task: Task, images: Images, message: str) -> None:
    for label, name in enumerate(task.classes):
        if not (images.labels == label).any():
            raise BadInput(message.format(repr(name)))
