"""CLIPScore: the similarity of a sample and its truth in the embeddings of an image encoder.

As in satlas-super-resolution, it is the cosine of two *image* embeddings, not of an image and a caption (Hessel et al.
2021). It depends on the encoder as much as on the images, so name the encoder with every score. Unrelated images also
have cosines far from 0, so report the floor with the score: the same cosine between samples and the truths of *other*
samples. Only the margin above the floor is meaningful.
"""

import numpy as np

from rsdiff.base.errors import BadInput


def embedding_similarity(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The cosine similarity of each pair, float64 (n,).

    Args:
      a, b: embeddings (n, d), not necessarily of unit length; row i of both belongs to pair i.
    Raises:
      ValueError: the shapes differ or are not (n, d).
      BadInput: an embedding is not finite, or has length 0.
    """
    if a.shape != b.shape or a.ndim != 2:
        raise ValueError(f'shapes {a.shape} and {b.shape}; two arrays of the same shape (n, d) are needed')
    return (_unit(a) * _unit(b)).sum(1)


def shuffled_floor(a: np.ndarray, b: np.ndarray, seed: int) -> np.ndarray:
    """The cosine similarity of each row of `a` and a row of `b` of another pair, float64 (n,); the floor is their mean.

    The pairs are arranged in a circle in random order, which depends only on `seed`, and each row of `a` is compared
    with the truth of its neighbour.

    Raises:
      ValueError: as `embedding_similarity`.
      BadInput: as `embedding_similarity`, or there are fewer than two pairs.
    """
    if len(b) < 2:
        raise BadInput(f'{len(b)} pair of images cannot be shuffled; the floor needs two or more')
    circle = np.random.default_rng(seed).permutation(len(b))
    other = np.empty_like(circle)
    other[circle] = np.roll(circle, 1)
    return embedding_similarity(a, _unit(b)[other])


def _unit(rows: np.ndarray) -> np.ndarray:
    rows = np.asarray(rows, np.float64)
    lengths = np.linalg.norm(rows, axis=-1)
    good = np.isfinite(lengths) & (lengths > 0)
    if not good.all():
        raise BadInput(f'embedding {np.argmin(good)} of {len(rows)} is zero or not finite; check its image')
    return rows / lengths[:, None]
