"""Embeddings of a frozen encoder; the features of images are computed once and cached.

A frozen tower's output for an image never changes, in any arm, seed or epoch. So its features are cached on disk, keyed
by the pixels and by everything else that determines the output: parameters and encoder.
"""

from pathlib import Path
from typing import Any, Sequence

import jax
import numpy as np

from rsdiff.base.folders import cache_folder
from rsdiff.downstream.encoder import Encoder
from rsdiff.evaluation.features import FeatureStore, features_of

FOLDER = 'embeddings'


class FrozenTower:
    """The image tower of an encoder with one set of parameters, compiled once.

    Args:
      params: the encoder's parameters, pretrained or other; they are part of the cache key.
      cache: folder for the features; the user's cache if not given.
      show: whether to show a progress bar.
    """

    def __init__(self, encoder: Encoder, params: dict[str, Any], cache: Path | str | None = None, show: bool = False):
        self.encoder, self.params, self.show = encoder, params, show
        self.network = encoder.image_network(params)
        self.store = FeatureStore(self.network, cache_folder() / FOLDER if cache is None else cache)
        self._project = jax.jit(encoder.project)

    def features(self, pixels: np.ndarray) -> np.ndarray:
        """The tower's features of images before any projection, float32 (n, width).

        Args:
          pixels: uint8 (n, size, size, 3), resized by `encoder.resize`.
        Raises:
          BadInput: a cache file is damaged.
          FloatingPointError: the tower returns non-finite values.
        """
        size_px = self.encoder.image_size_px
        if pixels.dtype != np.uint8 or pixels.shape[1:] != (size_px, size_px, 3):
            raise ValueError(f'pixels are {pixels.dtype} {pixels.shape}; {self.encoder.name} takes uint8 {size_px}²')
        return features_of(self.network, list(pixels), self.store, show=self.show)

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """The embeddings of `encoder.encode_images`, float32 (n, dim), of unit length, computed from `features`."""
        return np.asarray(self._project(self.params, self.features(pixels)), np.float32)


def text_embeddings(encoder: Encoder, params: dict[str, Any], texts: Sequence[str], batch_size: int = 64) -> np.ndarray:
    """The embeddings of `encoder.encode_texts`, float32 (n, dim), of unit length; equal tokens get equal embeddings."""
    tokens = np.stack(encoder.tokenize(texts), axis=1)
    distinct, back = np.unique(tokens, axis=0, return_inverse=True)
    # The last batch is filled up with repeated texts, so that only one shape is compiled.
    rows = np.resize(np.arange(len(distinct)), (-(-len(distinct) // batch_size), batch_size))
    encode = jax.jit(encoder.encode_texts)
    vectors = np.concatenate([encode(params, *distinct[part].swapaxes(0, 1)) for part in rows])
    return vectors.astype(np.float32)[back.ravel()]
