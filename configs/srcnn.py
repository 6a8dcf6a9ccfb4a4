"""SRCNN without diffusion, trained on the mean absolute error: the smallest baseline for generators.

    python train.py --config configs/srcnn.py --workdir runs/srcnn --config.data.source=data/aerial

The published size (satlas-super-resolution) has 128 features, one residual block and eight images of each place (1,773,803
parameters); this one, with one image and 408,049 parameters, is for two CPU cores. It has not been run yet. Data with several
images of each place, the field `frames`, take --config.method.model.frames=8.
"""

from configs import rrdbnet
from rsdiff.methods.regression import RegressionConfig
from rsdiff.models.srcnn import SRCNNConfig
from rsdiff.training.config import to_config_dict


def get_config():
    config = rrdbnet.get_config()
    config.method = to_config_dict(RegressionConfig(model=SRCNNConfig(features=64, frames=1, blocks=4)))
    return config
