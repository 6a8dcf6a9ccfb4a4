"""A student of the aerial generator that samples in two evaluations, for `sample.py --tiles --plan few`.

    python train.py --config configs/few.py --workdir runs/few --config.data.source=data/aerial \
        --config.method.teacher=weights/aerial --config.init_from=weights/aerial

It starts from its teacher's parameters and learns three things at once (`rsdiff/methods/distillation.py`): the teacher's own
samples, the features that a classifier finds in real images, and to pass for real before a discriminator. `configs/few.py:1` is a
student of one evaluation. Data are those of `configs/aerial.py`. It trains on two CPU cores until it is stopped.
"""

import dataclasses

from configs import aerial
from rsdiff.base.errors import BadInput
from rsdiff.methods.base import SamplerConfig
from rsdiff.methods.diffusion import DiffusionConfig, NoisyImageLossConfig
from rsdiff.methods.distillation import DistillationConfig
from rsdiff.models.discriminator import DiscriminatorConfig
from rsdiff.training.config import OptimizerConfig, TrainConfig, from_dict, to_config_dict


def get_config(steps: str = '2'):
    if steps not in ('1', '2', '3', '4'):
        raise BadInput(f'configs/few.py:{steps}: no such number of steps; there are 1 to 4')
    config = from_dict(TrainConfig, aerial.get_config().to_dict())
    changed = dataclasses.replace(
        config,
        method=student_of(config.method, int(steps)),
        optimizer=dataclasses.replace(config.optimizer, learning_rate=1e-4),
        optimizers={'discriminator': OptimizerConfig(learning_rate=2e-4, warmup_images=0, weight_decay=0.0)},
        validation=dataclasses.replace(config.validation, steps=int(steps), bins=int(steps)),
    )
    return to_config_dict(changed)


def student_of(method: DiffusionConfig, steps: int) -> DistillationConfig:
    """The settings of a student of a diffusion model."""
    same = {name: getattr(method, name) for name in ('model', 'schedule', 'objective', 'codec', 'time')}
    image_loss = NoisyImageLossConfig(
        perceptual_weight=0.02, gan_weight=0.02, discriminator=DiscriminatorConfig(features=16), least_snr=0.0
    )
    return DistillationConfig(**same, steps=steps, sampler=SamplerConfig(steps=steps), image_loss=image_loss)
