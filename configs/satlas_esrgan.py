"""The ESRGAN of satlas-super-resolution at full size (Wolters et al. 2023, arXiv 2311.18082), for one image of Sentinel-2 or more.

    python train.py --config configs/satlas_esrgan.py --workdir runs/satlas_esrgan --config.data.source=PAIRS
    python train.py --config configs/satlas_esrgan.py:8 …               # for 8 images of each place

Settings are those of the published esrgan_baseline_1S2.yml: Real-ESRGAN's networks, losses and optimisers
(`configs/realesrgan.py`) with 128² images, batches of 64, a discriminator that also sees the low-resolution image, enlarged
by nearest neighbour, and no stage of L1 before. PAIRS has real images of two sensors (docs/data.md, `low_res_file_name` and
`frames_file_names`); without, the low-resolution image is made by the degradation. Their run halves the learning rate after
400,000 steps and has no set end; here it is constant and ends there. They weight tiles by what is in them; here all count alike.

The loss on embeddings needs an encoder. Theirs are several, among them a SigLIP (ViT-B/16, 256 px), always with OpenAI's mean and
deviation of pixels; here each encoder has its own:

    --config.method.clip_weight=1 --config.method.clip_encoder=FOLDER

    parameters            16,697,987 in the generator, 4,378,625 in the discriminator; VGG16 has 14,714,688, not trained
    multiply–accumulates  18.4 G an image forward; 141 G a training step (`benchmark.py cost`)

This config has not been run.
"""

from configs import realesrgan
from configs.esrgan import half_life_images
from rsdiff.base.errors import BadInput
from rsdiff.data.degradation import MILD
from rsdiff.training.config import to_dict

BATCH_SIZE = 64


def get_config(frames: str = '1'):
    if not frames.isdecimal():
        raise BadInput(f'configs/satlas_esrgan.py:{frames}: give a number of images, such as 8')
    config = realesrgan.get_config()
    config.method.model.frames = int(frames)
    config.method.discriminator.low_res = True
    config.data.update(source='data/s2naip', size_px=128)
    config.degradation.update(to_dict(MILD))
    config.ema.half_life_images = half_life_images(0.999, BATCH_SIZE)
    config.batch_size = BATCH_SIZE
    config.total_images = 400_000 * BATCH_SIZE
    config.log_images = 100 * BATCH_SIZE
    config.checkpoint_images = config.validation.every_images = 5_000 * BATCH_SIZE
    return config
