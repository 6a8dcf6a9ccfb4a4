"""An aerial generator: from 0.3 m to 16 m per pixel, with the demo's network.

    python tools/prepare_data.py --source UCM:train --source EUROSAT:train --source DUBAI:train \
        --validation UCM:val --validation EUROSAT:val --validation DUBAI:val \
        --reductions 1,2,4,8,16 --max_chips_per_source 8000 --out data/aerial
    python train.py --config configs/aerial.py --workdir runs/aerial

It uses the training splits of UC Merced (0.3 m), EuroSAT (10 m) and the scenes of Dubai (1 m); any other imagery at metres
per pixel works too. Like `configs/earth.py` it trains on two CPU cores until it is stopped. A GPU needs larger batches; this
command is meant for half an hour on one GPU and has not been run yet:

    python train.py --config configs/aerial.py --workdir runs/aerial_gpu --config.batch_size=256 \
        --config.optimizer.learning_rate=2e-3 --config.total_images=4000000 --config.ema.half_life_images=100000
"""

from configs import earth


def get_config():
    config = earth.get_config()
    config.method.codec.scale = 0.16  # rms of the residual over 800 chips
    config.data.update(source='data/aerial', split='train', validation_split='validation')
    return config
