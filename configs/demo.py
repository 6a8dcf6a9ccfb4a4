"""A small generator of the Earth, from NASA Blue Marble, for two CPU cores.

    python train.py --config configs/demo.py --workdir runs/demo

It trains on 64² windows at 7.4, 14.8 and 29.7 km per pixel, with conditions four times coarser. The parts of the Earth that
the demo generates and tests on are left out. Pixels are folded 4 × 4 into channels, because a CPU convolves few channels
slowly. The diffused quantity is the residual over the enlarged condition, so a short run only needs to learn texture.
"""

from rsdiff.data.degradation import LIGHT
from rsdiff.methods.codec import ResidualConfig
from rsdiff.methods.diffusion import DiffusionConfig
from rsdiff.training.config import TrainConfig, to_config_dict


def get_config():
    codec = ResidualConfig(scale=0.06)  # rms of the residual over 300 chips
    config = to_config_dict(TrainConfig(method=DiffusionConfig(codec=codec), degradation=LIGHT))
    config.method.model.update(
        width=96,
        multipliers=(1, 2),
        blocks=1,
        attention_levels=(1,),
        patch=4,
    )
    config.method.model.spatial.lr.update(features=48, growth=16, blocks=1)
    config.method.objective.update(prediction='x0', error_in='v', p2_gamma=0.5)
    config.data.source = 'blue_marble'
    config.optimizer.update(learning_rate=1e-3, warmup_images=800, final_fraction=0.02)
    config.batch_size = 8
    config.ema.half_life_images = 1_000
    config.total_images = 10_000
    return config
