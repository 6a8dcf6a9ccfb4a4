"""Small generators for MetaEarth's ablations (Yu et al. 2024, arXiv 2405.13570), which `tools/ablate_metaearth.py` trains.

    python train.py --config configs/ablation.py:full --workdir runs/full --config.data.source=UCM

Variants: `full`; `no_resolution`, without the resolution branch; `bicubic`, whose conditions are made by bicubic reduction instead of
two passes of random degradation; and `one_jump`, whose conditions are 16 times coarser than the image, and enlarged four times so that
the same network takes them. All have the demo's network at two thirds of its width.
"""

from configs import demo
from rsdiff.base.errors import BadInput
from rsdiff.data.degradation import BICUBIC, MILD
from rsdiff.training.config import to_dict

VARIANTS = 'full', 'no_resolution', 'bicubic', 'one_jump'


def get_config(variant: str = 'full'):
    if variant not in VARIANTS:
        raise BadInput(f'configs/ablation.py:{variant}: no such variant; there are {", ".join(VARIANTS)}')
    config = demo.get_config()
    config.method.model.width = 64
    config.method.codec.scale = 0.18 if variant != 'one_jump' else 0.3
    config.degradation = to_dict(BICUBIC if variant == 'bicubic' else MILD)
    config.optimizer.update(learning_rate=1e-3, final_fraction=1.0)
    config.ema.half_life_images = 2_000
    config.data.update(split='train', validation_split='val', reductions=(1,) if variant == 'one_jump' else (1, 4))
    if variant == 'no_resolution':
        config.method.model.unlock()
        config.method.model.numbers = {}
    return config
