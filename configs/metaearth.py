"""MetaEarth's generator at full size (Yu et al. 2024, arXiv 2405.13570).

    python train.py --config configs/metaearth.py --workdir runs/metaearth --config.data.source=FOLDER

612 million parameters (their paper says over 600 million); 256² windows at 64, 16 and 4 m from conditions four times
coarser; linear β from 0.0015 to 0.0155 over 1000 steps; ε-prediction under P2 weighting; AdamW at 2e-6, batch 8 by
accumulation on one device (on n devices, --config.accumulation=1 --config.batch_size=n or a multiple). FOLDER holds images at
4 m of 256 px and more; those of 4096 px serve all three resolutions. Width, blocks, heads, and P2's k and γ are not published: those are ours. So is the choice of a schedule
linear in β rather than in √β, which ends nearer to pure noise (ᾱ_T = 1.95e-4 against 6.7e-4).

The paper trained for 2000 hours on an RTX 4090. No run of this config has been made here, so no score is stated.
"""

from rsdiff.training.config import TrainConfig, to_config_dict


def get_config():
    config = to_config_dict(TrainConfig())
    config.generator.model.update(width=320, multipliers=(1, 1, 2, 3, 4), blocks=2, attention_levels=(3, 4), head_width=64,
                                  patch=1, rrdb_features=64, rrdb_growth=32, rrdb_blocks=23, dtype='bfloat16',
                                  remat=True)
    config.generator.schedule.update(timesteps=1000, beta_start=0.0015, beta_end=0.0155, shape='linear')
    config.generator.objective.update(prediction='eps', error_in='eps', p2_k=1.0, p2_gamma=0.5)
    config.data.update(source='data/earth', size_px=256, reductions=(1, 4, 16))
    config.optimizer.update(learning_rate=2e-6, warmup_images=10_000)
    config.ema.half_life_images = 500_000
    config.batch_size, config.accumulation = 8, 8
    config.total_images = 30 * 3_100_000
    config.log_images, config.checkpoint_images, config.validation.every_images = 1_000, 50_000, 50_000
    return config
