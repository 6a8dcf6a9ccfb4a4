"""ESRGAN's network without diffusion, trained on the mean absolute error: the baseline for generators.

    python train.py --config configs/rrdbnet.py --workdir runs/rrdbnet --config.data.source=data/aerial

The same commands sample and tile it as any other run, in one step per window. The published size has 64 features, growth 32
and 23 blocks (16,697,987 parameters); this one, with 895,491, trains on two CPU cores.
"""

from rsdiff.data.degradation import LIGHT
from rsdiff.methods.regression import RegressionConfig
from rsdiff.models.rrdbnet import RRDBNetConfig
from rsdiff.training.config import TrainConfig, to_config_dict


def get_config():
    method = RegressionConfig(model=RRDBNetConfig(features=48, growth=16, blocks=3))
    config = to_config_dict(TrainConfig(method=method, degradation=LIGHT))
    config.data.source = 'blue_marble'
    config.optimizer.update(learning_rate=4e-4, warmup_images=800)
    config.batch_size = 8
    config.ema.half_life_images = 1_000
    return config
