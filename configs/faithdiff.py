"""The demo's generator with FaithDiff's alignment (Chen et al. 2024, arXiv 2411.18824), small.

    python train.py --config configs/faithdiff.py --workdir runs/faithdiff --config.data.source=data/aerial

A block sees the features of the condition and of the noisy image, and its output is added to the latter; its last layer starts
at zero. FaithDiff itself adapts a pretrained latent diffusion (SDXL) with two transformer blocks; here the block is a residual one,
and everything is trained from scratch.
"""

from configs import demo


def get_config():
    config = demo.get_config()
    config.method.model.spatial.lr.join = 'align'
    return config
