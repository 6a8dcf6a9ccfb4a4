"""What each arm of a comparison trains on: real images drawn by the seed, and extra ones.

    real                  nothing extra
    synthetic             the R synthetic images of each drawn real one, and no real image
    real+synthetic 1:r    r synthetic images of each drawn real one                    r = 1 … R

and the controls, without which a gain means nothing:

    real repeated         each real image R times more: is it the number of examples?
    augmented             R other views of each: flipped, turned, cropped, of other colours
    mixup, cutout, cutmix R of each (`rsdiff.downstream.augment`)
    bicubic               each real image 4 times coarser and enlarged: what a generator was given, without what it added
    random labels         as real+synthetic 1:R, the synthetic images' labels shuffled: do the images' labels matter?

With K shots the seed draws K real images of each class, and everything extra comes from those: all arms of a seed stand on
the same K·classes pictures. The training (`tuning.batches`) knows real and extra examples, and no arm.
"""

import dataclasses
import zlib
from typing import Any, Callable

import numpy as np

from rsdiff.base.errors import BadInput
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
# no image at all: what the encoder knows by itself
UNTRAINED = 'untrained'
FROM_SYNTHETIC = SYNTHETIC, BOTH, RANDOM_LABELS
UPSCALE = 4


@dataclasses.dataclass(frozen=True)
class Arm:
    """An arm; `ratio` is the number of extra images for each real one."""

    kind: str
    ratio: int

    @property
    def name(self) -> str:
        return f'{self.kind} 1:{self.ratio}' if self.kind == BOTH else self.kind

    @property
    def slug(self) -> str:
        """The name as part of a file name."""
        return self.name.replace(' 1:', '_1to').replace(' ', '_')


def arms_of(kinds: tuple[str, ...], ratios: tuple[int, ...]) -> tuple[Arm, ...]:
    """The arms of these kinds; only 'real+synthetic' has every ratio, the others the largest, R."""
    own = {REAL: (0,), BOTH: sorted(ratios), BICUBIC: (1,)}
    return tuple(Arm(kind, ratio) for kind in KINDS if kind in kinds for ratio in own.get(kind, (max(ratios),)))


@dataclasses.dataclass(frozen=True)
class Examples:
    """What one arm trains on with one seed.

    Attributes:
      pixels: uint8 (n, size, size, 3), real images first.
      labels: float32 (n, classes); each row sums to 1.
      captions: of each; a view has its image's, a mix those of both.
      real: how many of them are real images.
    """

    pixels: np.ndarray
    labels: np.ndarray
    captions: tuple[tuple[str, ...], ...]
    real: int

    def __len__(self) -> int:
        return len(self.pixels)


def examples(task: Task, arm: Arm, shots: int | None, seed: int, screen: Screen | None = None) -> Examples:
    """The examples of one arm, a function of its arguments alone.

    Args:
      shots: real images of each class, K; or None: all of them.
      screen: what filters the synthetic images, of which fewer than the ratio asks may be left, and softens their labels; if
        anything does.
    Raises:
      BadInput: a class has fewer real images than K, or fewer synthetic ones than the ratio asks, or none after
        filtering; K is given and a synthetic image does not say what it was made from.
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
    """Raises what `examples` would, before any filter, without making them."""
    real = draw(task, shots, seed)
    if arm.kind in FROM_SYNTHETIC:
        made_from(task, real, arm.ratio, shots, seed)


def draw(task: Task, shots: int | None, seed: int) -> Images:
    """The real images of a seed: `shots` of each class, or all."""
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
    """For each class `ratio` times as many synthetic images as `real` has: the first of each source before the second of
    any; then, in an order that the seed draws, those that were made from no real image."""
    made, wanted = task.synthetic, {*real.names}
    if shots is not None and None in made.sources:
        raise BadInput(
            f'{made.folder}: {made.names[made.sources.index(None)]} has no "source"; a number of real images of '
            'each class means something only if what each synthetic image was made from is known (null: from none)'
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
                f'are {len(members)} of its real images; make more variants, or ask for smaller --ratios'
            )
        chosen.append(members[:count])
    return made.take(np.concatenate(chosen))


def largest_ratio(task: Task) -> int:
    """How many synthetic images of each real one there are in every class."""
    counts = [np.bincount(images.labels, minlength=len(task.classes)) for images in (task.synthetic, task.train)]
    return max(1, int((counts[0] // counts[1]).min()))


def _views(arm: Arm, real: Images, one_hot: np.ndarray, seed: int) -> Examples:
    """`arm.ratio` further examples from each real image, each a function of seed, name and number alone but for the other
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


# (real images, index of one, generator) → (another view of it, the real images that are in it with their shares)
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
