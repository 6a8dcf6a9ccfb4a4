"""Classification by prompts: the nearest class name wins (Radford et al. 2021, section 3.1)."""

import re
from typing import Any, Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from rsdiff.downstream.encoder import Encoder


def readable(label: str) -> str:
    """A class name as words: 'AnnualCrop', 'annual_crop' → 'annual crop'."""
    return re.sub(r'(?<=[a-z])(?=[A-Z])|[_\-\s]+', ' ', label).strip().lower()


def prompt_tokens(encoder: Encoder, classes: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Every class in every template → ids and mask, each int32 (templates, classes, length)."""
    texts = [template.format(readable(name)) for template in encoder.templates for name in classes]
    return tuple(tokens.reshape(len(encoder.templates), len(classes), -1) for tokens in encoder.tokenize(texts))


def class_embeddings(encoder: Encoder, params: dict[str, Any], ids: jax.Array, mask: jax.Array) -> jax.Array:
    """(templates, classes, length) → (classes, dim): the mean over templates of unit vectors, made a unit vector."""
    length = ids.shape[-1]
    embeddings = encoder.encode_texts(params, ids.reshape(-1, length), mask.reshape(-1, length))
    mean = embeddings.reshape(*ids.shape[:2], -1).mean(0)
    return mean / jnp.linalg.norm(mean, axis=-1, keepdims=True)


def text_classifier(encoder: Encoder, classes: Sequence[str]) -> Callable[[dict[str, Any]], dict[str, jax.Array]]:
    """The prompts as a linear classifier of image embeddings.

    Returns:
      A compiled function, params → {'weight': (dim, classes), 'bias': (classes,)}, with which an embedding x gets the
      encoder's own logits, x · weight + bias: these are affine in it.
    """
    ids, mask = prompt_tokens(encoder, classes)

    @jax.jit
    def classifier(params):
        texts = class_embeddings(encoder, params, ids, mask)
        dim = texts.shape[1]
        bias = encoder.logits(params, jnp.zeros((1, dim)), texts)
        return {'weight': encoder.logits(params, jnp.eye(dim), texts) - bias, 'bias': bias[0]}

    return classifier


def in_batches(function: Callable[[np.ndarray], jax.Array], pixels: np.ndarray, batch: int = 64) -> np.ndarray:
    """`function` of many images, a batch at a time. The last batch is filled up by repeating images, so that there is one
    shape to compile."""
    rows = np.resize(np.arange(len(pixels)), -(-len(pixels) // batch) * batch)
    found = [function(pixels[part]) for part in rows.reshape(-1, batch)]
    return np.concatenate([np.asarray(part) for part in found])[:len(pixels)]
