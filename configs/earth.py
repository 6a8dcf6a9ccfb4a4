"""The Blue Marble generator whose weights are in `weights/earth`: the demo's network, trained until it is stopped.

    python train.py --config configs/earth.py --workdir runs/earth

The learning rate is constant and the parameter average (EMA) long, so that any checkpoint is a good place to stop.
"""

from configs import demo


def get_config():
    config = demo.get_config()
    config.optimizer.update(learning_rate=5e-4, final_fraction=1.0)
    config.ema.half_life_images = 10_000
    config.total_images = 1_000_000
    return config
