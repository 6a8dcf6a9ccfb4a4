"""Losses of generated images: absolute error, features of a classifier, a discriminator, and an encoder's embeddings
(Real-ESRGAN, Wang et al. 2021, arXiv 2107.10833; satlas-super-resolution, Wolters et al. 2023, arXiv 2311.18082).

With x the real image, x̂ the generator's, x' what it should look like (x, perhaps sharpened), D the discriminator's logits and
s(x) = max(0, x) + log(1 + e^{-|x|}) softplus,

    L_D = mean s(-D(x)) + mean s(D(x̂))                                              (1)
    L_G = λ_1 mean |x̂ - x'| + λ_p P(x̂, x') + λ_g mean s(-D(x̂)) + λ_c mean |E(x̂) - E(x')|     (2)

(1) and the third term of (2) are the vanilla GAN losses, binary cross-entropies on logits. P is a distance of a classifier's
features (`pretrained.perceptual`), E an image encoder (`pretrained.image_encoder`). All terms are of images in [0, 1], not
clipped. The weights λ of Real-ESRGAN are 1, 1, 0.1 and 0.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from rsdiff.base.errors import BadInput
from rsdiff.base.keys import Keys
from rsdiff.base.ranges import check_range
from rsdiff.methods.base import DISCRIMINATOR, Buffers, Frozen, Parameters
from rsdiff.models.conditioning import Condition, Number, Spatial, Tokens
from rsdiff.models.discriminator import Discriminator, DiscriminatorConfig, first_vectors
from rsdiff.models.rrdbnet import nearest_up
from rsdiff.pretrained import perceptual
from rsdiff.pretrained.image_encoder import EFFLITE0, ImageEncoder, image_encoder

RGB = 3  # the channels that classifiers and encoders take


@dataclasses.dataclass(frozen=True)
class ImageLossConfig:
    """The weights λ of (2), and its networks; a term of weight 0 is not computed, and its network not loaded.

    Attributes:
      perceptual_layers: weights of the layers `pretrained.perceptual.LAYERS`.
      clip_encoder: E, 'efflite0' or the folder of a CLIP or SigLIP.
    """

    l1_weight: float = 0.0
    perceptual_weight: float = 0.0
    perceptual_layers: tuple[float, float, float, float, float] = (0.1, 0.1, 1.0, 1.0, 1.0)
    gan_weight: float = 0.0
    discriminator: DiscriminatorConfig = DiscriminatorConfig()
    clip_weight: float = 0.0
    clip_encoder: str = EFFLITE0

    def __post_init__(self):
        check_range(self, 0, 1e6, 'l1_weight', 'perceptual_weight', 'perceptual_layers', 'gan_weight', 'clip_weight')

    @property
    def weights(self) -> dict[str, float]:
        """λ by term, those that are not 0."""
        weights = {name: getattr(self, f'{name}_weight') for name in ('l1', 'perceptual', 'gan', 'clip')}
        return {name: weight for name, weight in weights.items() if weight}

    def check_channels(self, channels: int) -> None:
        """Raises BadInput if a term cannot take images of so many channels."""
        for name in {'perceptual', 'clip'} & {*self.weights}:
            if channels != RGB:
                raise BadInput(
                    f'{name}_weight needs images of {RGB} channels, and model.channels is {channels}; set it to 0'
                )


@dataclasses.dataclass(frozen=True)
class ImageLoss:
    """(1) and (2) for images that are generated from a condition with `fields`.

    Attributes:
      upscale: resolution of the images relative to the field `lr`.
      dtype: the dtype that the discriminator computes in.
    """

    config: ImageLossConfig
    fields: dict[str, Spatial | Number | Tokens]
    channels: int
    upscale: int
    dtype: Any

    @property
    def parts(self) -> tuple[str, ...]:
        """The networks that are trained for it."""
        return (DISCRIMINATOR,) if self.config.gan_weight else ()

    def init(self, key) -> Parameters:
        """As `Method.init`, for `parts`."""
        make = lambda part: nnx.to_pure_dict(nnx.state(self._make_discriminator(Keys(key))))
        return {part: make(part) for part in self.parts}

    def init_buffers(self, key) -> Buffers:
        """As `Method.init_buffers`, for `parts`."""
        return {part: first_vectors(self.config.discriminator, key) for part in self.parts}

    def load_frozen(self) -> Frozen:
        """The networks of P and E."""
        networks = {}
        if self.config.perceptual_weight:
            networks['perceptual'] = perceptual.load_params()
        if self.config.clip_weight:
            networks['clip'] = self._encoder.load()
        return networks

    def generator_loss(self, params, buffers, frozen, condition: Condition, made, target, weight: Any = 1.0):
        """Equation (2), and its terms before they are weighted by λ, as means over the examples of weight 1.

        Args:
          made, target: x̂ and x', float32 (b, h, w, c), nominally in [-1, 1].
          weight: 1 for the examples that count and 0 for others, (b,), or 1 for all.
        """
        terms = {}
        if self.config.l1_weight:
            terms['l1'] = mean_error(made, target) / 2
        if self.config.perceptual_weight:
            terms['perceptual'] = perceptual.distance(frozen['perceptual'], made, target, self.config.perceptual_layers)
        if self.config.gan_weight:
            logits, _ = self.judged(params, buffers, condition, made)
            terms['gan'] = of_each(jax.nn.softplus(-logits))
        if self.config.clip_weight:
            embed = functools.partial(self._encoder.embed, frozen['clip'])
            terms['clip'] = mean_error(embed(made), embed(target))
        share = jnp.mean(jnp.float32(weight))
        means = {name: jnp.mean(weight * term) / jnp.maximum(share, 1e-9) for name, term in terms.items()}
        total = sum((self.config.weights[name] * mean for name, mean in means.items()), start=jnp.float32(0))
        return share * total, means

    def discriminator_loss(self, params, buffers, condition: Condition, made, real, weight: Any = 1.0):
        """Equation (1), and (the mean logits as metrics, the discriminator's new vectors). Arguments as in `generator_loss`;
        `real` is x."""
        made = jax.lax.stop_gradient(made)
        logits_real, vectors = self.judged(params, buffers, condition, real)
        logits_made, _ = self.judged(params, buffers, condition, made)
        value = jnp.mean(weight * (of_each(jax.nn.softplus(-logits_real)) + of_each(jax.nn.softplus(logits_made))))
        return value, ({'logit_real': jnp.mean(logits_real), 'logit_fake': jnp.mean(logits_made)}, vectors)

    def judged(self, params: Parameters, buffers: Buffers, condition: Condition, images):
        """The logits of D for images in [-1, 1], and its vectors after a step of power iteration."""
        if self.config.discriminator.low_res:
            images = jnp.concatenate([images, nearest_up(low_res(self.fields, condition), self.upscale)], axis=-1)
        discriminator = nnx.merge(self._discriminator, nnx.State(params[DISCRIMINATOR]))
        return discriminator((images + 1) / 2, buffers[DISCRIMINATOR])

    def _make_discriminator(self, rngs) -> Discriminator:
        channels = self.channels + (low_res_channels(self.fields) if self.config.discriminator.low_res else 0)
        return Discriminator(self.config.discriminator, channels, dtype=self.dtype, rngs=rngs)

    @functools.cached_property
    def _discriminator(self):
        """The discriminator's structure."""
        return nnx.split(nnx.eval_shape(lambda: self._make_discriminator(Keys(0))))[0]

    @functools.cached_property
    def _encoder(self) -> ImageEncoder:
        return image_encoder(self.config.clip_encoder)


def of_each(values):
    """The mean of each example, (b,)."""
    return jnp.mean(values, axis=range(1, values.ndim))


def mean_error(a, b):
    """The mean absolute error of each example, (b,)."""
    return of_each(jnp.abs(a - b))


def low_res_channels(fields: dict) -> int:
    """The number of channels of `low_res`."""
    field: Spatial = fields.get('frames', fields['lr'])
    return field.frames * field.channels


def low_res(fields: dict, condition: Condition):
    """All low-resolution images, one after the other along the channels: `frames`, or `lr` where there are none. Images that
    do not exist are black."""
    lr = condition['lr']
    if 'frames' not in fields:
        return lr
    alone = jnp.pad(lr, (*((0, 0),) * 3, (0, low_res_channels(fields) - lr.shape[-1])), constant_values=jnp.nan)
    frames = condition.get('frames', alone)
    absent = jnp.isnan(frames).all(axis=(1, 2, 3), keepdims=True)
    frames = jnp.where(absent, alone, frames)
    return jnp.where(jnp.isnan(frames), -1.0, frames)
