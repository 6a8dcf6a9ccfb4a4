"""An image tower and a text tower with one embedding space, of either kind: CLIP (`clip.py`) or SigLIP (`siglip.py`).

A config (`CLIPConfig`, `SiglipConfig`) builds the modules, which are only ever a recipe: the functions below take the
config and a nested dict of arrays, `params`. On disk the two are a folder of Hugging Face's layout:

    config.json                    the config, by its `model_type`
    model.safetensors              the parameters (or several files and model.safetensors.index.json)
    preprocessor_config.json       how pixels come to the image tower
    tokenizer.json, vocab.json …   how texts come to the text tower; `rsdiff.downstream.encoder` reads them
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

# Pillow's numbers of its filters, as preprocessors name them.
FILTERS = range(6)
BICUBIC = 3

# of pixels in [0, 1], or [0, 255] where they are not rescaled
SMALLEST_STD, LARGEST_MEAN = 1e-4, 1e4


def abstract_params(config: Config) -> dict[str, Any]:
    """The tree of `params` as `jax.ShapeDtypeStruct`s; allocates nothing."""
    return nnx.to_pure_dict(_recipe(config)[1])


@functools.partial(jax.jit, static_argnums=0)
def init_params(config: Config, key: jax.Array) -> dict[str, Any]:
    """Random float32 parameters with CLIP's initial scales (Radford et al. 2021, section 2.5)."""
    return nnx.to_pure_dict(nnx.state(config.build(Keys(key))))


def module(config: Config, params: dict[str, Any]) -> CLIP | Siglip:
    """The modules with these parameters: `image_features`, `text_features`, `logits` and what they are made of."""
    return nnx.merge(_recipe(config)[0], params)


def normalise_images(images: jax.Array, mean: tuple[float, ...], std: tuple[float, ...]) -> jax.Array:
    """Images in [-1, 1], (batch, height, width, 3) → what an image tower takes: ((x + 1)/2 − mean) / std."""
    return ((images + 1.0) / 2.0 - jnp.asarray(mean, images.dtype)) / jnp.asarray(std, images.dtype)


def image_features(config: Config, params: dict[str, Any], images: jax.Array) -> jax.Array:
    """What the image tower makes of images, before its projection into the common space, if it has one: what linear probes
    are fitted on (Radford et al. 2021, section 3.2).

    Args:
      images: (batch, image_size_px, image_size_px, 3), normalised by `normalise_images`.
    Returns:
      (batch, vision_config.hidden_size).
    Raises:
      BadInput: the images have another size than the tower's.
    """
    return module(config, params).vision_model(images)


def project_images(config: Config, params: dict[str, Any], features: jax.Array) -> jax.Array:
    """What `image_features` gives → image embeddings (batch, embedding_dim), of unit length."""
    return _unit(module(config, params).projected(features))


def encode_images(config: Config, params: dict[str, Any], images: jax.Array) -> jax.Array:
    """Image embeddings, `project_images` of `image_features`."""
    return project_images(config, params, image_features(config, params, images))


def encode_texts(config: Config, params: dict[str, Any], ids: jax.Array, mask: jax.Array) -> jax.Array:
    """Text embeddings.

    Args:
      ids: (batch, length) token ids, length ≤ text_length; for a CLIP each row has an end token.
      mask: (batch, length), 1 for what is seen and 0 for what is not.
    Returns:
      (batch, embedding_dim), of unit length.
    Raises:
      BadInput: the texts are longer than the tower takes.
    """
    return _unit(module(config, params).text_features(ids, mask))


def logits(config: Config, params: dict[str, Any], images: jax.Array, texts: jax.Array) -> jax.Array:
    """How well unit vectors (n, dim) and (m, dim) fit, as training scored it: (n, m)."""
    return module(config, params).logits(images, texts)


def config_from_json(row: Any, where: str = CONFIG) -> Config:
    """The config in the object of a `config.json`.

    Raises:
      BadInput: it is of another kind of model, or has values that no such model can have.
    """
    kind = row.get('model_type') if isinstance(row, dict) else None
    if not isinstance(kind, str) or kind not in KINDS:
        raise BadInput(f'{where}: "model_type" is {ascii(kind)[:60]}; read are {", ".join(KINDS)}')
    return KINDS[kind].from_json(row, where)


def load(folder: Path | str) -> tuple[Config, dict[str, Any]]:
    """The config and float32 parameters in a Hugging Face folder.

    Raises:
      BadInput: a file is missing or unreadable, it is of another kind, or its tensors are not the config's.
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
    # Older checkpoints store the positions 0, 1, 2 … beside their embeddings.
    tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith('.position_ids')}
    # OpenAI's own conversions store the temperature as (1,) or ().
    for name in {'logit_scale', 'logit_bias'} & {*tensors} & {*shapes}:
        if tensors[name].size == 1:
            tensors[name] = tensors[name].reshape(shapes[name])
    # NaFlex stores its patches' embedding as a matrix, (width, patch · patch · channels).
    if isinstance(config, SiglipConfig) and tensors.get(PATCH_EMBEDDING, np.empty(0)).ndim == 2:
        patch, channels = config.vision_config.patch_size, config.vision_config.num_channels
        matrix = tensors[PATCH_EMBEDDING]
        if matrix.shape[1] == patch * patch * channels:
            tensors[PATCH_EMBEDDING] = matrix.reshape(-1, patch, patch, channels).transpose(0, 3, 1, 2)
    return weights.from_torch(tensors, like, where)


def save(folder: Path | str, config: Config, params: dict[str, Any]) -> None:
    """Writes what `load` and `transformers.AutoModel.from_pretrained` read."""
    folder = Path(folder)
    # transformers refuses a file whose header does not name the framework of its layout.
    weights.write_safetensors(folder / weights.WEIGHTS, weights.to_torch(params), {'format': 'pt'})
    (folder / CONFIG).write_text(json.dumps(config.to_json(), indent=2) + '\n')


def load_preprocessing(folder: Path | str, config: Config) -> dict[str, Any]:
    """What stands before the image tower, by the folder's `preprocessor_config.json`; without it, by the tower's kind.

    Returns:
      `image_mean` and `image_std`, three numbers each, for pixels in [0, 1], and `resample`, Pillow's number of the filter
      that brings images to the tower's size.
    Raises:
      BadInput: the file is unreadable, has values that no preprocessor can have, or makes images of another size than
        the tower takes.
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
        raise BadInput(f'{path}: resample is {ascii(resample)[:60]}; it must be the number of a filter of Pillow')
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
