"""Embeddings of images as a differentiable function, for a loss on them: of a CLIP or SigLIP, or EfficientNet-lite0.

As in satlas-super-resolution's CLIP loss (arXiv 2311.18082), images are resized to the network's square input by nearest
neighbour, and the embeddings are not scaled to unit length. Pixels are normalised by each encoder's own mean and deviation;
satlas uses OpenAI's for all.
"""

from pathlib import Path
from typing import Any, Callable, NamedTuple

import jax
import numpy as np

from rsdiff.base.errors import BadInput
from rsdiff.base.files import read_json
from rsdiff.pretrained import efficientnet, towers

EFFLITE0 = 'efflite0'


class ImageEncoder(NamedTuple):
    """
    Attributes:
      load: reads the parameters, NumPy arrays; raises BadInput if they are missing or of another network.
      embed: (parameters, images (n, h, w, 3) in [-1, 1]) → embeddings, float32 (n, width).
    """

    load: Callable[[], dict[str, Any]]
    embed: Callable[[dict[str, Any], jax.Array], jax.Array]


def image_encoder(name: str) -> ImageEncoder:
    """The encoder 'efflite0', or that of the CLIP or SigLIP in the folder `name` (`pretrained.towers`).

    Raises:
      BadInput: it is neither, or the folder's settings are not those of a CLIP or SigLIP.
    """
    if name == EFFLITE0:
        return ImageEncoder(efficientnet.load_params, _embed_efflite0)
    if not name or not Path(name).is_dir():
        raise BadInput(f'image encoder {name!r}: neither {EFFLITE0} nor the folder of a CLIP or SigLIP')
    path = Path(name) / towers.CONFIG
    config = towers.config_from_json(read_json(path), str(path))
    preprocessing = towers.load_preprocessing(name, config)

    def embed(params, images):
        resized = nearest(images, config.image_size_px)
        inputs = towers.normalise_images(resized, preprocessing['image_mean'], preprocessing['image_std'])
        return towers.module(config, params).image_features(inputs)

    return ImageEncoder(lambda: towers.load(name)[1], embed)


def nearest(images, size_px: int):
    """(n, h, w, c) → (n, size_px, size_px, c). Output i is input ⌊i · h / size_px⌋, as in PyTorch."""
    rows, columns = (np.arange(size_px) * length // size_px for length in images.shape[1:3])
    return images[:, rows][:, :, columns]


def _embed_efflite0(params, images):
    pixels = (nearest(images, efficientnet.INPUT_PX) + 1) * 127.5
    return efficientnet.forward(params, efficientnet.normalise(pixels))[0]
