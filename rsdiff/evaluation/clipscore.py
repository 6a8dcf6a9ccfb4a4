"""How alike images and their truths are to an image encoder: the cosine of two embeddings.

A cosine alone says little, since encoders put all aerial images close together: it is to be read against the floor, the
same figure for images and the truths of others.
"""

import numpy as np


def embedding_similarity(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosine of each row of `a` (n, d) with the same row of `b`: float64 (n,), in [-1, 1].

    Raises:
      ValueError: the shapes differ.
    """
    if a.shape != b.shape:
        raise ValueError(f'shapes {a.shape} and {b.shape} differ')
    return np.sum(_unit(a) * _unit(b), axis=1)


def shuffled_floor(a: np.ndarray, b: np.ndarray, seed: int = 0) -> np.ndarray:
    """`embedding_similarity` of rows of `a` with those of `b` in an order that leaves none with its own, the same for a
    seed; a single row has NaN."""
    if len(a) < 2:
        return np.full(len(a), np.nan)
    order = np.random.default_rng(seed).permutation(len(a))
    others = np.empty_like(order)
    others[order] = np.roll(order, 1)  # one cycle through all
    return embedding_similarity(a, b[others])


def _unit(x: np.ndarray) -> np.ndarray:
    x = np.asarray(x, np.float64)
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return np.divide(x, length, out=np.zeros_like(x), where=length > 0)
