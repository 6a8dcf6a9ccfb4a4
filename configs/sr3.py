"""SR3 (Saharia et al. 2021, arXiv 2104.07636): the enlarged image beside the noisy one, and the noise level instead of t.

    python train.py --config configs/sr3.py --workdir runs/sr3 --config.data.source=data/aerial
    python train.py --config configs/sr3.py:full …                      # the published size for 64² → 256²

The network predicts ε from x_t, the bicubically enlarged condition and α_t. It is trained with 2000 timesteps, each with its
own α_t; the paper draws α between those of neighbouring timesteps. Sampling is ancestral, 100 steps, with the posterior's
variance, where SR3 takes the larger 1 - α_t² / α_{t-1}² of the forward process. By default the network has the demo's size and
trains on two CPU cores. The published size for 256² has 128 channels times 1, 2, 4, 4, 8, 8 and three blocks a level, but here not
BigGAN's blocks and no dropout; it has not been trained yet.
"""

from configs import demo
from configs.esrgan import half_life_images
from rsdiff.base.errors import BadInput

BATCH_SIZE = 256


def get_config(size: str = 'small'):
    if size not in ('small', 'full'):
        raise BadInput(f'configs/sr3.py:{size}: no such size; there are small, full')
    config = demo.get_config()
    method = config.method
    method.codec = {'kind': 'identity'}
    method.time = 'alpha'
    method.model.spatial.lr.encoder = 'enlarged'
    method.schedule.update(timesteps=2000, beta_start=1e-6, beta_end=1e-2, shape='linear')
    method.objective.update(prediction='eps', error_in='eps', p2_gamma=0.0)
    method.sampler.update(solver='ancestral', steps=100)
    if size == 'full':
        method.model.update(
            width=128,
            multipliers=(1, 2, 4, 4, 8, 8),
            blocks=3,
            attention_levels=(4, 5),
            head_width=64,
            patch=1,
            dtype='bfloat16',
            remat=True,
        )
        config.data.size_px = 256
        config.optimizer.update(learning_rate=1e-4, warmup_images=BATCH_SIZE * 10_000, final_fraction=1.0)
        config.optimizer.update(weight_decay=0.0, clip_norm=1e9)
        config.batch_size, config.total_images = BATCH_SIZE, BATCH_SIZE * 1_000_000
        config.ema.update(half_life_images=half_life_images(0.9999, BATCH_SIZE), rampup=1000.0)
        config.log_images = 100 * BATCH_SIZE
        config.checkpoint_images = config.validation.every_images = 5_000 * BATCH_SIZE
    return config
