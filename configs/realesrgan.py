"""Real-ESRGAN x4plus at full size (Wang et al. 2021, arXiv 2107.10833), in its two stages.

    python train.py --config configs/realesrgan.py:l1 --workdir runs/realesrnet --config.data.source=CHIPS
    python train.py --config configs/realesrgan.py --workdir runs/realesrgan --config.data.source=CHIPS \
        --config.init_from=runs/realesrnet

Settings are those of the published train_realesr{net,gan}_x4plus.yml: 256² images in batches of 48 (12 on each of 4 GPUs),
1,000,000 steps of L1 at 2e-4, then 400,000 of L1 + perceptual + 0.1 GAN at 1e-4; Adam (0.9, 0.99) for both networks; an
average with decay 0.999; targets of the L1 and perceptual losses sharpened, the GAN's not.

What differs: VGG16's features instead of VGG19's; the first stage starts from random parameters instead of ESRGAN's; there is
no pool of training pairs, because here every image of a batch is degraded differently; and images are in [-1, 1] for the
generator. Their low-resolution image is made from the sharpened one, ours from the image as it is; `data.degradation` lists
smaller differences.

    parameters            16,697,987 in the generator, 4,376,897 in the discriminator; VGG16 has 14,714,688, not trained
    multiply–accumulates  73.4 G an image forward; 561 G a training step of the second stage (`benchmark.py cost`)

This config has not been run.
"""

import dataclasses

from configs.esrgan import ADAM, half_life_images
from rsdiff.base.errors import BadInput
from rsdiff.data.degradation import REAL_ESRGAN
from rsdiff.data.pipeline import DataConfig
from rsdiff.methods.adversarial import AdversarialConfig
from rsdiff.methods.regression import RegressionConfig
from rsdiff.training.config import EMAConfig, TrainConfig, ValidationConfig, to_config_dict

BATCH_SIZE = 48
STAGES = {'l1': (RegressionConfig(usm=True), 2e-4, 1_000_000), 'gan': (AdversarialConfig(), 1e-4, 400_000)}


def get_config(stage: str = 'gan'):
    if stage not in STAGES:
        raise BadInput(f'configs/realesrgan.py:{stage}: no such stage; there are {", ".join(STAGES)}')
    method, learning_rate, steps = STAGES[stage]
    every = 5_000 * BATCH_SIZE
    config = TrainConfig(
        method=method,
        data=DataConfig(source='data/aerial', size_px=256),
        degradation=REAL_ESRGAN,
        optimizer=dataclasses.replace(ADAM, learning_rate=learning_rate),
        ema=EMAConfig(half_life_images=half_life_images(0.999, BATCH_SIZE), rampup=1000.0),
        batch_size=BATCH_SIZE,
        total_images=steps * BATCH_SIZE,
        log_images=100 * BATCH_SIZE,
        checkpoint_images=every,
        validation=ValidationConfig(every_images=every),
    )
    return to_config_dict(config)
