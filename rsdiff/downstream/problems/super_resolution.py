"""Super-resolution: does a network enlarge real images better if it was also trained on generated ones?

All arms train the same network, from the same initial parameters and for the same number of steps, to make small

    mean |f(y) - x|,  f(y) = up(y) + RRDBNet(y)                             (1)

for pairs of an image x and its low resolution y, four times coarser; up is bicubic enlargement. Arms differ only in their pairs:

    real                the real images drawn by the seed, each with one low resolution
    synthetic           R generated images per real image; their low resolutions are made in the same way
    real+synthetic 1:r  both                                                                        r = 1 … R

and the controls that a gain must be compared with:

    degradations        R further low resolutions of each real image
    augmented           R views of each: one of eight orientations, colours jittered; then reduced
    cutblur             R of each, in whose low resolution a square is that of another degradation (block means), after Yoo et al.
                        2020 (arXiv 2004.00448); they paste from the full image, which a network of small inputs cannot take

A network is judged on real images that it has not seen, by PSNR and LPIPS of each and the distance between the sets.
"""

import dataclasses
import functools
import zlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rsdiff.base.errors import BadInput
from rsdiff.base.keys import Keys
from rsdiff.base.ranges import check_range
from rsdiff.base.seeds import seed_key
from rsdiff.data.degradation import PRESETS, UPSCALE, degrade
from rsdiff.data.images import box_downscale, to_float, to_uint8
from rsdiff.downstream import arms, augment
from rsdiff.downstream.arms import BOTH, REAL, SYNTHETIC, Arm
from rsdiff.downstream.task import Images, Task
from rsdiff.downstream.tuning import Recipe, Training, batches
from rsdiff.downstream.zero_shot import in_batches
from rsdiff.models.rrdbnet import RRDBNet, RRDBNetConfig

DEGRADATIONS, AUGMENTED, CUTBLUR = 'degradations', arms.AUGMENTED, 'cutblur'
KINDS = REAL, SYNTHETIC, BOTH, DEGRADATIONS, AUGMENTED, CUTBLUR
AT_ONCE = 8


@dataclasses.dataclass(frozen=True)
class FullSize:
    """Reads images at the size at which they are enlarged: a square of `image_size_px`, cut from the middle."""

    image_size_px: int

    def __post_init__(self):
        if self.image_size_px % UPSCALE:
            raise BadInput(f'image_size_px is {self.image_size_px}; it must be a multiple of {UPSCALE}')

    def resize(self, image: np.ndarray) -> np.ndarray:
        """uint8 (h, w, 3) → uint8 (image_size_px, image_size_px, 3); no pixel is changed.

        Raises:
          BadInput: the image is smaller.
        """
        top, left = ((side - self.image_size_px) // 2 for side in image.shape[:2])
        if min(top, left) < 0:
            raise BadInput(
                f'an image has {image.shape[1]}×{image.shape[0]} px, and the study cuts squares of {self.image_size_px}; '
                'use a smaller --image_size_px'
            )
        return image[top : top + self.image_size_px, left : left + self.image_size_px]


class Pairs(NamedTuple):
    """images uint8 (n, s, s, 3), their low resolutions uint8 (n, s / 4, s / 4, 3), and how many are real: those come first."""

    images: np.ndarray
    low: np.ndarray
    real: int


@dataclasses.dataclass(frozen=True)
class Enlarger:
    """Sizes of the network in (1), and of the crops that it is trained on."""

    features: int = 32
    growth: int = 16
    blocks: int = 2
    crop_px: int = 64

    def __post_init__(self):
        check_range(self, 1, 1024, 'features', 'growth')
        check_range(self, 1, 64, 'blocks')
        check_range(self, UPSCALE, 4096, 'crop_px')
        if self.crop_px % UPSCALE:
            raise BadInput(f'crop_px is {self.crop_px}; it must be a multiple of {UPSCALE}')

    @property
    def network(self) -> RRDBNetConfig:
        return RRDBNetConfig(features=self.features, growth=self.growth, blocks=self.blocks)


class SuperResolution:
    """Trains and applies the network of one study; both are compiled once for all arms and seeds.

    Args:
      degradation: a name in `data.degradation.PRESETS`, by which every low resolution is made.
    """

    def __init__(self, enlarger: Enlarger, recipe: Recipe, degradation: str):
        self.enlarger, self.recipe, self.config = enlarger, recipe, PRESETS[degradation]
        make = lambda rngs: RRDBNet(enlarger.network, rngs=rngs)
        graph = nnx.split(nnx.eval_shape(lambda: make(Keys(0))))[0]

        def enlarged(params, low):
            size = *low.shape[:1], *(UPSCALE * side for side in low.shape[1:3]), low.shape[3]
            return jax.image.resize(low, size, 'bicubic') + nnx.merge(graph, nnx.State(params))({'lr': low})

        def loss(params, key, images, low):
            return jnp.mean(jnp.abs(enlarged(params, low) - images))

        self._init = jax.jit(lambda key: nnx.to_pure_dict(nnx.state(make(Keys(key)))))
        self._training, self._enlarged = Training(loss, recipe), jax.jit(enlarged)
        self._degrade = jax.jit(functools.partial(degrade, config=self.config))

    def pairs(self, task: Task, arm: Arm, shots: int | None, seed: int) -> Pairs:
        """The training pairs of an arm; they depend only on the arguments.

        Raises:
          BadInput: as `arms.draw` and `arms.made_from`.
        """
        drawn = arms.draw(task, shots, seed)
        real = drawn.pixels, self.reduced(drawn.pixels, drawn.names)
        if arm.kind in (SYNTHETIC, BOTH):
            made = arms.made_from(task, drawn, arm.ratio, shots, seed)
            extra = [(made.pixels, self.reduced(made.pixels, made.names))]
        else:
            view = {DEGRADATIONS: self._again, AUGMENTED: self._viewed, CUTBLUR: self._cut}.get(arm.kind)
            extra = [view(drawn, seed, number) for number in range(1, arm.ratio + 1)] if view else []
        parts = extra if arm.kind == SYNTHETIC else [real, *extra]
        images, low = (np.concatenate(column) for column in zip(*parts))
        return Pairs(images, low, 0 if arm.kind == SYNTHETIC else len(drawn))

    def reduced(self, images: np.ndarray, names: tuple[str, ...], number: int = 0) -> np.ndarray:
        """The low resolution `number` of each image; its random choices depend only on the image's name and this number."""
        crcs = np.array([zlib.crc32(name.encode()) for name in names], np.uint32)
        keys = jax.vmap(lambda crc: jax.random.fold_in(jax.random.fold_in(seed_key(0), crc), number))(crcs)
        low = lambda some: to_uint8(np.asarray(self._degrade(to_float(images[some]), keys[some])))
        return in_batches(low, np.arange(len(images)), AT_ONCE)

    def _again(self, drawn: Images, seed: int, number: int) -> tuple[np.ndarray, np.ndarray]:
        return drawn.pixels, self.reduced(drawn.pixels, drawn.names, number)

    def _viewed(self, drawn: Images, seed: int, number: int) -> tuple[np.ndarray, np.ndarray]:
        views = [
            augment.jittered(augment.turned(image, generator), generator)
            for image, generator in zip(drawn.pixels, _generators(drawn, seed, number))
        ]
        return np.stack(views), self.reduced(np.stack(views), drawn.names, number)

    def _cut(self, drawn: Images, seed: int, number: int) -> tuple[np.ndarray, np.ndarray]:
        images, low = self._again(drawn, seed, number)
        for image, own, generator in zip(images, low, _generators(drawn, seed, number)):
            window = augment.window(len(own), augment.CUT_SIDE, generator)
            own[window] = box_downscale(image, UPSCALE)[window]
        return images, low

    def fit(self, pairs: Pairs, seed: int) -> tuple[Any, np.ndarray]:
        """(the parameters after the last step, the loss of every step)."""
        index = batches(pairs.real, len(pairs.images) - pairs.real, self.recipe, seed)
        generator = np.random.default_rng([5, seed])
        crops = (self._cropped(pairs, rows, generator) for rows in index)
        candidate = self.recipe.candidates[0]
        return self._training.fit(self._init(seed_key(seed)), candidate, crops, seed)

    def _cropped(self, pairs: Pairs, rows: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Crops of the images `rows` and of their low resolutions, float32 in [-1, 1]."""
        crop_px = self.enlarger.crop_px // UPSCALE
        corners = generator.integers(0, pairs.low.shape[1] - crop_px + 1, (len(rows), 2))

        def crops(images, factor):
            side = crop_px * factor
            return to_float(
                np.stack(
                    [
                        images[row, factor * y : factor * y + side, factor * x : factor * x + side]
                        for row, (y, x) in zip(rows, corners)
                    ]
                )
            )

        return crops(pairs.images, UPSCALE), crops(pairs.low, 1)

    def enlarge(self, params: Any, low: np.ndarray) -> np.ndarray:
        """f(y) of (1): uint8 (n, h, w, 3) → uint8 (n, 4h, 4w, 3)."""
        images = lambda some: to_uint8(np.asarray(self._enlarged(params, to_float(some))))
        return in_batches(images, low, AT_ONCE)


def _generators(drawn: Images, seed: int, number: int) -> list[np.random.Generator]:
    return [np.random.default_rng([6, seed, zlib.crc32(name.encode()), number]) for name in drawn.names]


def check(task: Task, arm: Arm, shots: int | None, seed: int) -> None:
    """Raises the errors of `SuperResolution.pairs`, without making the pairs."""
    drawn = arms.draw(task, shots, seed)
    if arm.kind in (SYNTHETIC, BOTH):
        arms.made_from(task, drawn, arm.ratio, shots, seed)


def arms_of(kinds: tuple[str, ...], ratios: tuple[int, ...]) -> tuple[Arm, ...]:
    """The arms of these kinds: 'real+synthetic' at every ratio, the others at the largest, R."""
    own = {REAL: (0,), BOTH: sorted(ratios)}
    return tuple(Arm(kind, ratio) for kind in KINDS if kind in kinds for ratio in own.get(kind, (max(ratios),)))
