"""An image tower and a text tower with a shared embedding space, either CLIP (`clip.py`) or SigLIP (`siglip.py`).

A config (`CLIPConfig`, `SiglipConfig`) builds the modules, which only define the computation: the functions below take
the config and a nested dict of arrays, `params`. On disk, both are in a folder with Hugging Face's layout:

    config.json                    the config, by its `model_type`
    model.safetensors              the parameters (or several files and model.safetensors.index.json)
    preprocessor_config.json       preprocessing of images for the image tower
    tokenizer.json, vocab.json …   the tokenizer of the text tower, read by `rsdiff.downstream.encoder`
"""

import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rsdiff.base.errors import BadInput
from rsdiff.base.files import read_json
from rsdiff.base.keys import Keys
from rsdiff.pretrained import weights
from rsdiff.pretrained.clip import CLIP, CLIPConfig
from rsdiff.pretrained.siglip import Siglip, SiglipConfig

Config = CLIPConfig | SiglipConfig

CONFIG = 'config.json'
PREPROCESSOR = 'preprocessor_config.json'
KINDS = {'clip': CLIPConfig, 'siglip': SiglipConfig, 'siglip2': SiglipConfig}
PATCH_EMBEDDING = 'vision_model.embeddings.patch_embedding.weight'

# The numbers of Pillow's filters, as used in preprocessor configs.
FILTERS = range(6)
BICUBIC = 3

# limits of image_std and image_mean, for pixels in [0, 1], or in [0, 255] if they are not rescaled
SMALLEST_STD, LARGEST_MEAN = 1e-4, 1e4


def abstract_params(config: Config) -> dict[str, Any]:
    """The tree of `params` as `jax.ShapeDtypeStruct`s; allocates nothing."""
    return nnx.to_pure_dict(_recipe(config)[1])


@functools.partial(jax.jit, static_argnums=0)
def init_params(config: Config, key: jax.Array) -> dict[str, Any]:
    """Random float32 parameters with CLIP's initial scales (Radford et al. 2021, section 2.5)."""
    return nnx.to_pure_dict(nnx.state(config.build(Keys(key))))


def module(config: Config, params: dict[str, Any]) -> CLIP | Siglip:
    """The model with these parameters, with methods `image_features`, `text_features` and `logits`."""
    return nnx.merge(_recipe(config)[0], params)


def normalise_images(images: jax.Array, mean: tuple[float, ...], std: tuple[float, ...]) -> jax.Array:
    """Images in [-1, 1], (batch, height, width, 3) → inputs of an image tower, ((x + 1)/2 − mean) / std."""
    return ((images + 1.0) / 2.0 - jnp.asarray(mean, images.dtype)) / jnp.asarray(std, images.dtype)


def image_features(config: Config, params: dict[str, Any], images: jax.Array) -> jax.Array:
    """The image tower's output before the projection into the shared space, if there is one. Linear probes are fitted
    to these features (Radford et al. 2021, section 3.2).

    Args:
      images: (batch, image_size_px, image_size_px, 3), normalised by `normalise_images`.
    Returns:
      (batch, vision_config.hidden_size).
    Raises:
      BadInput: the images do not have the tower's size.
    """
    return module(config, params).vision_model(images)


def project_images(config: Config, params: dict[str, Any], features: jax.Array) -> jax.Array:
    """The output of `image_features` → image embeddings (batch, embedding_dim), of unit length."""
    return _unit(module(config, params).projected(features))


def encode_images(config: Config, params: dict[str, Any], images: jax.Array) -> jax.Array:
    """Image embeddings, `project_images` of `image_features`."""
    return project_images(config, params, image_features(config, params, images))


def encode_texts(config: Config, params: dict[str, Any], ids: jax.Array, mask: jax.Array) -> jax.Array:
    """Text embeddings.

    Args:
      ids: (batch, length) token ids, length ≤ text_length; for CLIP, each row must have an end token.
      mask: (batch, length), 1 for tokens to attend to, 0 for the others.
    Returns:
      (batch, embedding_dim), of unit length.
    Raises:
      BadInput: the texts are longer than `text_length`.
    """
    return _unit(module(config, params).text_features(ids, mask))


def logits(config: Config, params: dict[str, Any], images: jax.Array, texts: jax.Array) -> jax.Array:
    """The logits of training, (n, m), of image and text embeddings of unit length, (n, dim) and (m, dim)."""
    return module(config, params).logits(images, texts)


def config_from_json(row: Any, where: str = CONFIG) -> Config:
    """The config in the object of a `config.json`.

    Raises:
      BadInput: it is the config of another kind of model, or has invalid values.
    """
    kind = row.get('model_type') if isinstance(row, dict) else None
    if not isinstance(kind, str) or kind not in KINDS:
        raise BadInput(f'{where}: "model_type" is {ascii(kind)[:60]}; supported are {", ".join(KINDS)}')
    return KINDS[kind].from_json(row, where)


def load(folder: Path | str) -> tuple[Config, dict[str, Any]]:
    """The config and float32 parameters in a Hugging Face folder.

    Raises:
      BadInput: a file is missing or unreadable, the model is of another kind, or the tensors do not match the config.
    """
    folder = Path(folder)
    config = config_from_json(read_json(folder / CONFIG), str(folder / CONFIG))
    return config, params_from(config, weights.read_sharded(folder), str(folder))


def params_from(config: Config, tensors: dict[str, np.ndarray], where: str) -> dict[str, Any]:
    """Hugging Face's tensors by name → float32 parameters.

    Raises:
      BadInput: tensors are missing, left over or of another shape; one line lists them.
    """
    like = abstract_params(config)
    shapes = weights.torch_shapes(like)
    # Older checkpoints also store the positions 0, 1, 2 … of the embeddings.
    tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith('.position_ids')}
    # OpenAI's own conversions store the temperature as (1,) or ().
    for name in {'logit_scale', 'logit_bias'} & {*tensors} & {*shapes}:
        if tensors[name].size == 1:
            tensors[name] = tensors[name].reshape(shapes[name])
    # NaFlex stores its patch embedding as a matrix, (width, patch · patch · channels).
    if isinstance(config, SiglipConfig) and tensors.get(PATCH_EMBEDDING, np.empty(0)).ndim == 2:
        patch, channels = config.vision_config.patch_size, config.vision_config.num_channels
        matrix = tensors[PATCH_EMBEDDING]
        if matrix.shape[1] == patch * patch * channels:
            tensors[PATCH_EMBEDDING] = matrix.reshape(-1, patch, patch, channels).transpose(0, 3, 1, 2)
    return weights.from_torch(tensors, like, where)


def save(folder: Path | str, config: Config, params: dict[str, Any]) -> None:
    """Writes a folder that `load` and `transformers.AutoModel.from_pretrained` can read."""
    folder = Path(folder)
    # transformers rejects a file whose header does not name the framework of its layout.
    weights.write_safetensors(folder / weights.WEIGHTS, weights.to_torch(params), {'format': 'pt'})
    (folder / CONFIG).write_text(json.dumps(config.to_json(), indent=2) + '\n')


def load_preprocessing(folder: Path | str, config: Config) -> dict[str, Any]:
    """The preprocessing of the image tower, from `preprocessor_config.json`; without that file, the tower's defaults.

    Returns:
      `image_mean` and `image_std`, three numbers each, for pixels in [0, 1], and `resample`, Pillow's number of the
      filter that resizes images to the tower's size.
    Raises:
      BadInput: the file is unreadable, has invalid values, or produces images of another size than the tower's.
    """
    path = Path(folder) / PREPROCESSOR
    row = read_json(path) if path.is_file() else {}
    mean, std = row.get('image_mean', config.image_mean), row.get('image_std', config.image_std)
    for name, values in (('image_mean', mean), ('image_std', std)):
        least = SMALLEST_STD if name == 'image_std' else -LARGEST_MEAN
        if (
            not isinstance(values, list | tuple)
            or len(values) != 3
            or not all(type(v) in (int, float) and least <= v <= LARGEST_MEAN for v in values)
        ):
            raise BadInput(
                f'{path}: {name} is {ascii(values)[:60]}; it must be three numbers from {least:g} to {LARGEST_MEAN:g}'
            )
    resample, factor = row.get('resample', BICUBIC), row.get('rescale_factor', 1 / 255)
    if type(resample) is not int or resample not in FILTERS:
        raise BadInput(f'{path}: resample is {ascii(resample)[:60]}; it must be the number of a Pillow filter')
    if type(factor) not in (int, float) or not 1e-6 <= factor <= 1e3:
        raise BadInput(f'{path}: rescale_factor is {ascii(factor)[:60]}; it must be a number from 1e-06 to 1000')
    size = (row.get('crop_size') if row.get('do_center_crop', True) else None) or row.get('size')
    sides = size.values() if isinstance(size, dict) else [] if size is None else [size]
    if any(side != config.image_size_px for side in sides):
        raise BadInput(f'{path}: makes images of size {ascii(size)[:60]}; the tower takes {config.image_size_px}')
    if not row.get('do_normalize', True):
        mean, std = (0.0,) * 3, (1.0,) * 3
    # (factor · p − mean) / std of a pixel p in [0, 255], as a function of p / 255
    scale = 255 * factor if row.get('do_rescale', True) else 255.0
    return {
        'image_mean': tuple(value / scale for value in mean),
        'image_std': tuple(value / scale for value in std),
        'resample': resample,
    }


@functools.lru_cache
def _recipe(config: Config) -> tuple[nnx.GraphDef, nnx.State]:
    return nnx.split(nnx.eval_shape(lambda: config.build(Keys(0))))


def _unit(x: jax.Array) -> jax.Array:
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)
