"""MetaEarth's generator at full size (Yu et al. 2024, arXiv 2405.13570).

    python train.py --config configs/metaearth.py --workdir runs/metaearth --config.data.source=CHIPS
    python train.py --config configs/metaearth.py:bicubic …             # another degradation: a preset by name

256² windows at 64, 16 and 4 m from conditions four times coarser; ε-prediction with P2 weighting; AdamW at 2e-6, batch
8 by accumulation on one device (on n devices, --config.accumulation=1 --config.batch_size=n or a multiple). CHIPS is a
folder of images at 4 m (images of 4096 px or more serve all three resolutions), or the chips that `tools/prepare_data.py
--size_px 256 --reductions 1,4,16` cuts from scenes, then with --config.data.reductions='(1,)'.

Widths, blocks, heads, and P2's k and γ are not published; the values here are ours. So is the schedule, linear in β from
0.0015 to 0.0155 over 1000 steps, instead of linear in √β: it ends closer to pure noise (ᾱ_T = 1.95e-4 instead of 6.7e-4).
The remaining signal of x_0 is ignored in sampling. `method.schedule.zero_terminal_snr` removes it, but needs another
prediction than ε.

What it costs (`python tools/benchmark.py cost --config configs/metaearth.py`):

    parameters            612,187,651 (the paper: over 600 million)
    forward, one image    1746 GMAC; a training step 5238, with the recomputation of remat 6178
    state, GB a device    12.2 on one device or 8×1 (data × fsdp), 6.1 on 4×2, 3.1 on 2×4, 1.5 on 1×8:
                          parameters, their average, Adam's two moments and gradients, all float32
    and per image         9.4 GB more, with remat, as XLA plans it for a CPU (cost --compile: 11.9 GB of temporaries,
                          of which 2.4 are the gradients)
    TPUs                  16 v5e chips as 4×4 (--config.mesh.fsdp=4) take a batch of 32, by the TPU compiler: docs/scale.md
    hours, one device     at an assumed 35 % of the peak, for 30 epochs of 3.1 million images: 4680 on an RTX 4090, 2480
                          on an A100, 780 on an H100 SXM or H200, 840 on a TPU v6e chip

The paper reports 2000 hours on an RTX 4090, so its network probably costs less. This config has not been trained yet, so
no scores are given.
"""

from rsdiff.base.errors import BadInput
from rsdiff.data.degradation import PRESETS
from rsdiff.training.config import TrainConfig, to_config_dict


def get_config(degradation: str = 'mild'):
    if degradation not in PRESETS:
        raise BadInput(f'configs/metaearth.py:{degradation}: no such degradation; there are {", ".join(PRESETS)}')
    config = to_config_dict(TrainConfig(degradation=PRESETS[degradation]))
    config.method.model.update(
        width=320,
        multipliers=(1, 1, 2, 3, 4),
        blocks=2,
        attention_levels=(3, 4),
        head_width=64,
        patch=1,
        dtype='bfloat16',
        remat=True,
    )
    config.method.model.spatial.lr.update(features=64, growth=32, blocks=23)
    config.method.schedule.update(timesteps=1000, beta_start=0.0015, beta_end=0.0155, shape='linear')
    config.method.objective.update(prediction='eps', error_in='eps', p2_k=1.0, p2_gamma=0.5)
    config.data.update(source='data/earth', size_px=256, reductions=(1, 4, 16))
    config.optimizer.update(learning_rate=2e-6, warmup_images=10_000)
    config.ema.half_life_images = 500_000
    config.batch_size, config.accumulation = 8, 8
    config.total_images = 30 * 3_100_000
    config.log_images, config.checkpoint_images, config.validation.every_images = 1_000, 50_000, 50_000
    return config
