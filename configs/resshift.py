"""ResShift (Yue et al. 2023, arXiv 2307.12348): diffusion from the enlarged condition to the image, in 15 steps.

    python train.py --config configs/resshift.py --workdir runs/resshift --config.data.source=data/aerial
    python train.py --config configs/resshift.py:4 …                    # four steps (its journal version, arXiv 2403.07319)

Noise is added to the residual x - up(lr), which shrinks at the same time, so sampling starts from the condition plus noise. The
network sees and predicts the residual divided by `codec.scale`, about its rms, so κ is relative to that; the error is squared and
unweighted, and sampling is ancestral. Published models diffuse latents of an autoencoder, and have a Swin U-Net of 119 million
parameters; this one diffuses pixels with the demo's U-Net. The journal version's perceptual loss is left out.
"""

from configs import demo
from rsdiff.base.errors import BadInput
from rsdiff.diffusion.schedule import ResShiftConfig
from rsdiff.training.config import to_config_dict

STARTS = {'15': 0.02, '4': 0.1}


def get_config(steps: str = '15'):
    if steps not in STARTS:
        raise BadInput(f'configs/resshift.py:{steps}: no such number of steps; there are {", ".join(STARTS)}')
    config = demo.get_config()
    config.method.schedule = to_config_dict(ResShiftConfig(timesteps=int(steps), start=STARTS[steps]))
    config.method.objective.update(prediction='x0', error_in='x0', p2_gamma=0.0)
    config.method.sampler.update(solver='ancestral', steps=int(steps))
    config.validation.steps, config.validation.bins = int(steps), min(8, int(steps))
    return config
