"""Adversarial training: a one-pass network against a discriminator (Real-ESRGAN, Wang et al. 2021, arXiv 2107.10833;
satlas-super-resolution, Wolters et al. 2023, arXiv 2311.18082).

The losses are those of `methods.image_loss`, by default with Real-ESRGAN's weights. Targets are sharpened if the config says so
(`data.sharpening`); the discriminator sees images as they are. ESRGAN (Wang et al. 2018, arXiv 1809.00219) has the same
generator, but a relativistic GAN loss, another discriminator, weights of 0.01, 1 and 0.005, and no sharpening.

Both losses take the parameters of both networks from before the step, so the discriminator learns from the images that
the generator made before its update. Each loss computes these images; XLA may merge the two passes.
"""

import dataclasses
from typing import Literal

from rsdiff.methods.base import DISCRIMINATOR
from rsdiff.methods.codec import CodecConfig, IdentityConfig
from rsdiff.methods.image_loss import ImageLossConfig
from rsdiff.methods.one_pass import OnePass, OnePassConfig
from rsdiff.models.rrdbnet import RRDBNetConfig
from rsdiff.models.super_resolution import NetworkConfig


@dataclasses.dataclass(frozen=True)
class AdversarialConfig(ImageLossConfig, OnePassConfig):
    """The network and its losses."""

    kind: Literal['adversarial'] = 'adversarial'
    model: NetworkConfig = RRDBNetConfig()
    codec: CodecConfig = IdentityConfig()
    l1_weight: float = 1.0
    perceptual_weight: float = 1.0
    gan_weight: float = 0.1
    usm: bool = True

    def __post_init__(self):
        super().__post_init__()
        self.check_channels(self.model.channels)


@dataclasses.dataclass(frozen=True)
class Adversarial(OnePass):
    """See `methods.base.Method`."""

    config: AdversarialConfig

    @property
    def image_loss_config(self) -> ImageLossConfig:
        return self.config

    def loss(self, part, params, buffers, frozen, prepared, key):
        condition, real = prepared['condition'], prepared['targets']['image']
        made = self.codec.decode(self.answer(params, condition), condition)['image']
        if part == DISCRIMINATOR:
            return self.image_loss.discriminator_loss(params, buffers, condition, made, real)
        target = self.aimed(prepared)['targets']['image']
        value, terms = self.image_loss.generator_loss(params, buffers, frozen, condition, made, target)
        return value, (terms, buffers[part])
