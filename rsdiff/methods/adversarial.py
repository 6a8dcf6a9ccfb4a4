"""Adversarial training: a one-pass network against a discriminator (Real-ESRGAN, Wang et al. 2021, arXiv 2107.10833;
satlas-super-resolution, Wolters et al. 2023, arXiv 2311.18082).

With x the real image, x̂ the generator's, D the discriminator's logits and s(x) = max(0, x) + log(1 + e^{-|x|}) softplus,

    L_D = mean s(-D(x)) + mean s(D(x̂))                                              (1)
    L_G = λ_1 mean |x̂ - x'| + λ_p P(x̂, x') + λ_g mean s(-D(x̂)) + λ_c mean |E(x̂) - E(x')|     (2)

(1) and the third term of (2) are the vanilla GAN losses, binary cross-entropies on logits. x' is x, sharpened if the config
says so (`data.sharpening`); the discriminator sees x as it is. P is a distance of a classifier's features
(`pretrained.perceptual`), E an image encoder (`pretrained.image_encoder`). The default weights are Real-ESRGAN's: they are for
images in [0, 1], not clipped. ESRGAN (Wang et al. 2018, arXiv 1809.00219) has the same generator, but a relativistic GAN loss,
another discriminator, weights of 0.01, 1 and 0.005, and no sharpening.

Both losses take the parameters of both networks from before the step, so the discriminator learns from the images that
the generator made before its update. Each loss computes these images; XLA may merge the two passes.
"""

import dataclasses
import functools
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from rsdiff.base.errors import BadInput
from rsdiff.base.keys import Keys
from rsdiff.base.ranges import check_range
from rsdiff.methods.base import DISCRIMINATOR, GENERATOR, Buffers, Frozen, Parameters, Prepared
from rsdiff.methods.codec import CodecConfig, IdentityConfig
from rsdiff.methods.one_pass import OnePass, OnePassConfig
from rsdiff.models.conditioning import Condition, Spatial
from rsdiff.models.discriminator import Discriminator, DiscriminatorConfig, first_vectors
from rsdiff.models.rrdbnet import RRDBNetConfig, nearest_up
from rsdiff.models.super_resolution import NetworkConfig
from rsdiff.pretrained import perceptual
from rsdiff.pretrained.image_encoder import EFFLITE0, ImageEncoder, image_encoder

RGB = 3  # the channels that classifiers and encoders take


@dataclasses.dataclass(frozen=True)
class AdversarialConfig(OnePassConfig):
    """The networks, and the weights λ of (2); a term of weight 0 is not computed, and its network not loaded.

    Attributes:
      perceptual_layers: weights of the layers `pretrained.perceptual.LAYERS`.
      clip_encoder: E, 'efflite0' or the folder of a CLIP or SigLIP.
    """

    kind: Literal['adversarial'] = 'adversarial'
    model: NetworkConfig = RRDBNetConfig()
    codec: CodecConfig = IdentityConfig()
    discriminator: DiscriminatorConfig = DiscriminatorConfig()
    l1_weight: float = 1.0
    perceptual_weight: float = 1.0
    perceptual_layers: tuple[float, float, float, float, float] = (0.1, 0.1, 1.0, 1.0, 1.0)
    gan_weight: float = 0.1
    clip_weight: float = 0.0
    clip_encoder: str = EFFLITE0
    usm: bool = True

    def __post_init__(self):
        check_range(self, 0, 1e6, 'l1_weight', 'perceptual_weight', 'perceptual_layers', 'gan_weight', 'clip_weight')
        for name in ('perceptual_weight', 'clip_weight'):
            if getattr(self, name) and self.model.channels != RGB:
                raise BadInput(
                    f'{name} needs images of {RGB} channels, and model.channels is {self.model.channels}; set 0'
                )


@dataclasses.dataclass(frozen=True)
class Adversarial(OnePass):
    """See `methods.base.Method`."""

    config: AdversarialConfig
    parts: ClassVar[tuple[str, ...]] = (GENERATOR, DISCRIMINATOR)

    def init(self, key) -> Parameters:
        discriminator = self._make_discriminator(Keys(jax.random.fold_in(key, 1)))
        return super().init(key) | {DISCRIMINATOR: nnx.to_pure_dict(nnx.state(discriminator))}

    def init_buffers(self, key) -> Buffers:
        return super().init_buffers(key) | {DISCRIMINATOR: first_vectors(self.config.discriminator, key)}

    def load_frozen(self, training: bool = False) -> Frozen:
        networks = {}
        if training and self.config.perceptual_weight:
            networks['perceptual'] = perceptual.load_params()
        if training and self.config.clip_weight:
            networks['clip'] = self._encoder.load()
        return networks

    def loss(self, part, params, buffers, frozen, prepared, key):
        made = self._made(params, prepared['condition'])
        if part == DISCRIMINATOR:
            return self._discriminator_loss(params, buffers, prepared, jax.lax.stop_gradient(made))
        value, metrics = self._generator_loss(params, buffers, frozen, prepared, made)
        return value, (metrics, buffers[part])

    def _generator_loss(self, params, buffers, frozen, prepared: Prepared, made):
        """Equation (2), and its terms before they are weighted."""
        config, target = self.config, self.aimed(prepared)['targets']['image']
        terms = {}
        if config.l1_weight:
            terms['l1'] = jnp.mean(jnp.abs(made - target)) / 2
        if config.perceptual_weight:
            terms['perceptual'] = perceptual.distance(frozen['perceptual'], made, target, config.perceptual_layers)
        if config.gan_weight:
            logits, _ = self._judged(params, buffers, prepared['condition'], made)
            terms['gan'] = jnp.mean(jax.nn.softplus(-logits))
        if config.clip_weight:
            embed = functools.partial(self._encoder.embed, frozen['clip'])
            terms['clip'] = jnp.mean(jnp.abs(embed(made) - embed(target)))
        weighted = (getattr(config, f'{name}_weight') * term for name, term in terms.items())
        return sum(weighted, start=jnp.float32(0)), terms

    def _discriminator_loss(self, params, buffers, prepared: Prepared, made):
        """Equation (1), with the mean logits as metrics."""
        condition = prepared['condition']
        real, vectors = self._judged(params, buffers, condition, prepared['targets']['image'])
        fake, _ = self._judged(params, buffers, condition, made)
        value = jnp.mean(jax.nn.softplus(-real)) + jnp.mean(jax.nn.softplus(fake))
        return value, ({'logit_real': jnp.mean(real), 'logit_fake': jnp.mean(fake)}, vectors)

    def _made(self, params: Parameters, condition: Condition):
        """x̂, float32 (b, h, w, c), nominally in [-1, 1]."""
        return self.codec.decode(self.answer(params, condition), condition)['image']

    def _judged(self, params: Parameters, buffers: Buffers, condition: Condition, images):
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
