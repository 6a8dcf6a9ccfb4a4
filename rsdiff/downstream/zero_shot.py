"""Classification by prompts: the nearest class name wins (Radford et al. 2021, section 3.1)."""

import re
from typing import Any, Sequence

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


class ZeroShot:
    """Predicts classes with any parameters of one encoder; compiled once."""

    def __init__(self, encoder: Encoder, classes: Sequence[str], batch: int = 64):
        self.batch = batch
        self.tokens = prompt_tokens(encoder, classes)

        @jax.jit
        def texts(params):
            return class_embeddings(encoder, params, *self.tokens)

        @jax.jit
        def nearest(params, text, pixels):
            return jnp.argmax(encoder.encode_images(params, pixels) @ text.T, axis=-1)

        self._texts, self._nearest = texts, nearest

    def predict(self, params: dict[str, Any], pixels: np.ndarray) -> np.ndarray:
        """uint8 (n, size, size, 3) → class indices (n,)."""
        text = self._texts(params)
        # The last batch is filled up by repeating images, so that there is one shape to compile.
        rows = np.resize(np.arange(len(pixels)), -(-len(pixels) // self.batch) * self.batch)
        found = [self._nearest(params, text, pixels[part]) for part in rows.reshape(-1, self.batch)]
        return np.concatenate([np.asarray(part) for part in found])[:len(pixels)]
