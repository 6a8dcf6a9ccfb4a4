"""HighResNet without diffusion, which fuses up to eight images of each place, trained on the mean absolute error.

    python train.py --config configs/highresnet.py --workdir runs/highresnet --config.data.source=FOLDER

The rows of FOLDER have several low-resolution images each, the field `frames`; a row may lack some or all of them, and then
uses the others or `lr`. The published size (satlas-super-resolution) has 128 features (1,626,474 parameters); this one, with
229,759, is for two CPU cores. It has not been run yet.
"""

from rsdiff.data.degradation import LIGHT
from rsdiff.methods.regression import RegressionConfig
from rsdiff.models.highresnet import HighResNetConfig
from rsdiff.training.config import TrainConfig, to_config_dict


def get_config():
    method = RegressionConfig(model=HighResNetConfig(features=48))
    config = to_config_dict(TrainConfig(method=method, degradation=LIGHT))
    config.data.source = 'data/frames'
    config.optimizer.update(learning_rate=4e-4, warmup_images=800)
    config.batch_size = 8
    config.ema.half_life_images = 1_000
    return config
