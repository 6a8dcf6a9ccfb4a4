"""ESRGAN's network with Real-ESRGAN's losses: that of `configs/rrdbnet.py`, trained against a discriminator once it has learned
the mean absolute error.

    python train.py --config configs/rrdbnet.py --workdir runs/rrdbnet --config.data.source=data/aerial
    python train.py --config configs/esrgan.py --workdir runs/esrgan --config.data.source=data/aerial \
        --config.init_from=runs/rrdbnet

The second command starts from the first one's averaged parameters. Losses and their weights are Real-ESRGAN's (see
`configs/realesrgan.py`), with VGG16's features instead of VGG19's: LPIPS' weights, which the extra `metrics` installs. The
published networks have 16,697,987 and 4,376,897 parameters; these, with 895,491 and 274,001, train on two CPU cores. The
discriminator's optimiser has settings of its own, `config.optimizers.discriminator`. A step takes three to four times as long
as one of L1.

Tried briefly, on UC Merced (0.3 m) with averages of short half-life: after 3,200 images of L1 the validation samples had LPIPS
(AlexNet) .316 and PSNR 24.8; after 1,200 more of this, .264 and 24.6.
"""

import dataclasses
import math

from configs import rrdbnet
from rsdiff.methods.adversarial import AdversarialConfig
from rsdiff.models.discriminator import DiscriminatorConfig
from rsdiff.training.config import EMAConfig, OptimizerConfig, TrainConfig, from_dict, to_config_dict

# without warm-up and clipping, as published
ADAM = OptimizerConfig(learning_rate=1e-4, warmup_images=0, b2=0.99, weight_decay=0.0, clip_norm=1e9)


def half_life_images(decay: float, batch_size: int) -> float:
    """The half-life of an average that is multiplied by `decay` at each step."""
    return batch_size * math.log(0.5) / math.log(decay)


def get_config():
    start = from_dict(TrainConfig, rrdbnet.get_config().to_dict())
    config = dataclasses.replace(
        start,
        method=AdversarialConfig(
            model=start.method.model, codec=start.method.codec, discriminator=DiscriminatorConfig(features=16)
        ),
        optimizer=ADAM,
        optimizers={'discriminator': ADAM},
        ema=EMAConfig(half_life_images=half_life_images(0.999, start.batch_size)),
    )
    return to_config_dict(config)
