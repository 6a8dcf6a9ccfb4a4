"""HighResNet without diffusion, which fuses up to eight images of each place, trained on the mean absolute error.

    python train.py --config configs/highresnet.py --workdir runs/highresnet --config.data.source=FOLDER

The rows of FOLDER have several low-resolution images each, the field `frames`; a row may lack some or all of them, and then
uses the others or `lr`. The published size (satlas-super-resolution) has 128 features (1,626,474 parameters); this one, with
229,759, is for two CPU cores. It has not been run yet.
"""

from configs import rrdbnet
from rsdiff.methods.regression import RegressionConfig
from rsdiff.models.highresnet import HighResNetConfig
from rsdiff.training.config import to_config_dict


def get_config():
    config = rrdbnet.get_config()
    config.method = to_config_dict(RegressionConfig(model=HighResNetConfig(features=48)))
    config.data.source = 'data/frames'
    return config
