"""Classification by prompts: the nearest class name wins (Radford et al. 2021, section 3.1).

There are three sets of prompts, `PROMPTS`:

    names        the class name alone ("B" of He et al. 2023, arXiv 2210.07574)
    templates    the encoder's own sentences around the name; a class is the mean of their embeddings
    enhanced     many sentences that combine a view, a state and surroundings ("LE" there). He et al. generate them with
                 a language model; here they are templates, the same for every class
"""

import dataclasses
import itertools
import re
from typing import Any, Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from rsdiff.base.errors import BadInput
from rsdiff.downstream.encoder import Encoder

PROMPTS = NAMES, TEMPLATES, ENHANCED = 'names', 'templates', 'enhanced'
VIEWS = 'a satellite image of a', 'an aerial photo of a', 'there is a', 'this is a'
STATES = '', 'large ', 'small ', 'narrow ', 'neatly arranged '
SURROUNDINGS = (
    '',
    ' with green trees beside it',
    ' surrounded by roads and buildings',
    ' next to water',
    ' on bare ground',
)


def readable(label: str) -> str:
    """A class name as words: 'AnnualCrop', 'annual_crop' → 'annual crop'."""
    return re.sub(r'(?<=[a-z])(?=[A-Z])|[_\-\s]+', ' ', label).strip().lower()


def prompt_templates(encoder: Encoder, prompts: str = TEMPLATES) -> tuple[str, ...]:
    """The sentences of one of `PROMPTS`, with {} for the class name.

    Raises:
      BadInput: `prompts` is not one of `PROMPTS`.
    """
    if prompts not in PROMPTS:
        raise BadInput(f'prompts {prompts!r}; there are {", ".join(PROMPTS)}')
    enhanced = (f'{view} {state}{{}}{around}' for view, state, around in itertools.product(VIEWS, STATES, SURROUNDINGS))
    return {NAMES: ('{}',), TEMPLATES: encoder.templates, ENHANCED: tuple(enhanced)}[prompts]


def with_prompts(encoder: Encoder, prompts: str) -> Encoder:
    """The encoder with the sentences of one of `PROMPTS` as its templates."""
    return dataclasses.replace(encoder, templates=prompt_templates(encoder, prompts))


def prompt_tokens(encoder: Encoder, classes: Sequence[str], prompts: str = TEMPLATES) -> tuple[np.ndarray, np.ndarray]:
    """Every class in every sentence of `prompts` → ids and mask, each int32 (sentences, classes, length)."""
    templates = prompt_templates(encoder, prompts)
    texts = [template.format(readable(name)) for template in templates for name in classes]
    ids, mask = (tokens.reshape(len(templates), len(classes), -1) for tokens in encoder.tokenize(texts))
    return ids, mask


def read_alike(encoder: Encoder, classes: Sequence[str]) -> list[str]:
    """The class names with the same tokens as another one, which a small vocabulary can cause."""
    tokens = np.stack(prompt_tokens(encoder, classes, NAMES))[:, 0]
    _, number, count = np.unique(tokens, axis=1, return_inverse=True, return_counts=True)
    return [name for name, times in zip(classes, count[number.ravel()]) if times > 1]


def warn_of_names_read_alike(encoder: Encoder, classes: Sequence[str]) -> None:
    """Logs a warning if the encoder can't distinguish some class names."""
    if alike := read_alike(encoder, classes):
        logging.warning('%s cannot distinguish these class names: %s', encoder.name, ', '.join(alike))


def class_embeddings(
    encoder: Encoder, params: dict[str, Any], ids: jax.Array | np.ndarray, mask: jax.Array | np.ndarray
) -> jax.Array:
    """(templates, classes, length) → (classes, dim): the mean over templates of unit vectors, normalised again."""
    length = ids.shape[-1]
    embeddings = encoder.encode_texts(params, ids.reshape(-1, length), mask.reshape(-1, length))
    mean = embeddings.reshape(*ids.shape[:2], -1).mean(0)
    return mean / jnp.linalg.norm(mean, axis=-1, keepdims=True)


def text_classifier(encoder: Encoder, classes: Sequence[str]) -> Callable[[dict[str, Any]], dict[str, jax.Array]]:
    """The prompts as a linear classifier of image embeddings.

    Returns:
      A compiled function, params → {'weight': (dim, classes), 'bias': (classes,)}. For an embedding x, x · weight +
      bias are the encoder's own logits, which are affine in x.
    """
    ids, mask = prompt_tokens(encoder, classes)

    @jax.jit
    def classifier(params):
        texts = class_embeddings(encoder, params, ids, mask)
        dim = texts.shape[1]
        bias = encoder.logits(params, jnp.zeros((1, dim)), texts)
        return {'weight': encoder.logits(params, jnp.eye(dim), texts) - bias, 'bias': bias[0]}

    return classifier


def in_batches(
    function: Callable[[np.ndarray], jax.Array | np.ndarray], pixels: np.ndarray, batch: int = 64
) -> np.ndarray:
    """Applies `function` to many images, a batch at a time. The last batch is filled up with repeated images, so that
    only one shape is compiled."""
    rows = np.resize(np.arange(len(pixels)), -(-len(pixels) // batch) * batch)
    found = [function(pixels[part]) for part in rows.reshape(-1, batch)]
    return np.concatenate([np.asarray(part) for part in found])[: len(pixels)]
