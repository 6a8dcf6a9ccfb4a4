"""SRCNN without diffusion, trained on the mean absolute error: the smallest baseline for generators.

    python train.py --config configs/srcnn.py --workdir runs/srcnn --config.data.source=data/aerial

The published size (satlas-super-resolution) has 128 features, one residual block and eight images of each place (1,773,803
parameters); this one, with one image and 408,049 parameters, is for two CPU cores. It has not been run yet. Data with several
images of each place, the field `frames`, take --config.method.model.frames=8.
"""

from rsdiff.data.degradation import LIGHT
from rsdiff.methods.regression import RegressionConfig
from rsdiff.models.srcnn import SRCNNConfig
from rsdiff.training.config import TrainConfig, to_config_dict


def get_config():
    method = RegressionConfig(model=SRCNNConfig(features=64, frames=1, blocks=4))
    config = to_config_dict(TrainConfig(method=method, degradation=LIGHT))
    config.data.source = 'blue_marble'
    config.optimizer.update(learning_rate=4e-4, warmup_images=800)
    config.batch_size = 8
    config.ema.half_life_images = 1_000
    return config
