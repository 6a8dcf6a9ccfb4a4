"""The demo's generator with FaithDiff's alignment (Chen et al. 2024, arXiv 2411.18824), small.

    python train.py --config configs/faithdiff.py --workdir runs/faithdiff --config.data.source=data/aerial

Features of the condition are not concatenated to the noisy image. A block that sees both adds to the noisy image's features,
starting from zero, and is trained jointly with the network. FaithDiff itself adapts a pretrained latent diffusion (SDXL) with two
transformer blocks; here the block is a residual one, and everything is trained from scratch.
"""

from configs import demo


def get_config():
    config = demo.get_config()
    config.method.model.spatial.lr.join = 'align'
    return config
