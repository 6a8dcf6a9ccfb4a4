"""CLIPScore: does a sample look like its truth to a network that knows what images show?

Here, as in satlas-super-resolution, it is the cosine of two *image* embeddings, not of an image and a caption (Hessel
et al. 2021). It depends on the encoder as much as on the images: name the encoder with every figure. And since
unrelated images have cosines far from 0 as well, give the floor beside it: the same cosine between samples and the
truths of *other* samples. A score says something by how far above the floor it is.
"""

import numpy as np

from rsdiff.base.errors import BadInput


def embedding_similarity(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The cosine of each pair, float64 (n,).

    Args:
      a, b: (n, d), row i of both from one pair of images, not necessarily of unit length.
    Raises:
      ValueError: the shapes differ or are not (n, d).
      BadInput: an embedding is not finite, or of length 0.
    """
    if a.shape != b.shape or a.ndim != 2:
        raise ValueError(f'shapes {a.shape} and {b.shape}; two arrays (n, d) alike are compared')
    return (_unit(a) * _unit(b)).sum(1)


def shuffled_floor(a: np.ndarray, b: np.ndarray, seed: int) -> np.ndarray:
    """The cosine of each row of `a` with a row of `b` that is not its own, float64 (n,); their mean is the floor.

    The rows stand in a circle in random order, which `seed` alone determines, and each meets the next one's truth.

    Raises:
      ValueError: as `embedding_similarity`.
      BadInput: likewise, or there is only one pair.
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
        raise BadInput(f'embedding {np.argmin(good)} of {len(rows)} is zero or not finite; look at its image')
    return rows / lengths[:, None]
