"""What a network is given besides the noisy image: the fields of a condition, encoded once for all steps.

A condition is a dict of arrays by field name. Each field is *spatial* (an image of the same area, at its own scale), a
*number* (one per example, such as metres per pixel) or *tokens* (vectors without a position, such as those of a text).

Unknown and dropped fields are treated alike: a learned null embedding replaces a field that is absent from the dict, and
any example whose values contain NaN. Only droppable fields have a null embedding; all others are required.
"""

import dataclasses
import math
from typing import Any, Callable, Literal, NamedTuple

import jax
import jax.numpy as jnp

from rsdiff.base.errors import BadInput
from rsdiff.base.ranges import check_range

Condition = dict[str, Any]  # arrays (b, …), JAX's or NumPy's


@dataclasses.dataclass(frozen=True)
class Spatial:
    """An image (b, h / scale, w / scale, channels) of the same area as the result (b, h, w, ·).

    `encoder`: 'rrdb', `blocks` RRDBs (`models.rrdbnet`) with `features` channels and growth `growth`, and a learned upsampling;
    or 'enlarged', the image itself, enlarged bicubically, as in SR3 (Saharia et al. 2021, arXiv 2104.07636).

    `join`: 'concatenate', features beside those of the noisy image; or 'align', added to them by a block that sees both and
    starts as zero, as in FaithDiff (Chen et al. 2024, arXiv 2411.18824).

    With `frames` > 1, it is a stack of up to that many images of the same place: (b, h / scale, w / scale, frames · channels),
    one image after the other; those that do not exist are NaN.
    """

    channels: int = 3
    scale: int = 4
    features: int = 32
    growth: int = 16
    blocks: int = 2
    droppable: bool = False
    frames: int = 1
    encoder: Literal['rrdb', 'enlarged'] = 'rrdb'
    join: Literal['concatenate', 'align'] = 'concatenate'

    def __post_init__(self):
        check_range(self, 1, 256, 'channels')
        check_range(self, 1, 64, 'frames')
        check_range(self, 1, 64, 'scale')
        if self.scale & (self.scale - 1):
            raise BadInput(f'scale is {self.scale}; it must be a power of two')
        check_range(self, 1, 1024, 'features', 'growth')
        check_range(self, 0, 64, 'blocks')


@dataclasses.dataclass(frozen=True)
class Number:
    """A number (b,), mapped to the range of timesteps, `low` to 0 and `high` to 1000: linearly; by its logarithm, where
    ratios matter; or cyclically, where `high` means the same as `low` (a day of the year, a longitude)."""

    code: Literal['linear', 'log', 'cyclic'] = 'linear'
    low: float = 0.0
    high: float = 1.0
    droppable: bool = False

    def __post_init__(self):
        check_range(self, 1e-9 if self.code == 'log' else -1e9, 1e9, 'low', 'high')
        if not self.low < self.high:
            raise BadInput(f'low is {self.low} and high is {self.high}; low must be below high')


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Vectors (b, n, width); tokens that contain NaN are masked out."""

    width: int = 512
    droppable: bool = False

    def __post_init__(self):
        check_range(self, 1, 16384, 'width')


# 1 cm maps to 0, 1000 km to 1000; stages of 4× lie 75 apart
GSD_M = Number('log', 0.01, 1e6)


class Encoded(NamedTuple):
    """An encoded condition, as the network uses it at every step. Whatever is the same for all examples has batch size 1."""

    features: tuple[jax.Array, ...]  # (b, h', w', f) each, at the first level's size; a null is (1, 1, 1, f)
    numbers: jax.Array | None  # (b, e), to be added to the timestep embedding
    tokens: tuple[jax.Array, ...]  # (b, n, d) each
    seen: tuple[jax.Array, ...]  # bool (b, n) each: the attention mask


def position(number: Number, values):
    """Values (b,) mapped to radians, 0 … 2π, if cyclic, else to the range of timesteps, 0 … 1000."""
    if number.code == 'log':
        return 1000.0 * jnp.log(values / number.low) / jnp.log(number.high / number.low)
    share = (values - number.low) / (number.high - number.low)
    return 2 * math.pi * share if number.code == 'cyclic' else 1000.0 * share


def given(name: str, field: Spatial | Number | Tokens, condition: Condition):
    """The field's array, or None if the field is droppable and absent.

    Raises:
      ValueError: the field is required and absent.
    """
    values = condition.get(name)
    if values is None and not field.droppable:
        raise ValueError(f'the condition lacks {name!r}, which the network needs')
    return values


def or_null(values, encode: Callable, null, axes: int, stand_in: float = 0.0):
    """Applies `encode` to the examples without NaN, and replaces the others by `null`.

    Args:
      values: (b, …), or None: then the result is the null, with batch size 1.
      encode: (b, …) → (b, …, f).
      null: (f,), or None if the field is not droppable; NaN then propagates.
      axes: the number of axes of `encode`'s result.
      stand_in: the value that replaces NaN in `encode`'s input, so that gradients stay finite.
    """
    if values is None:
        return null.reshape((1,) * (axes - 1) + null.shape)
    if null is None:
        return encode(values)
    known = ~jnp.isnan(values).any(axis=tuple(range(1, values.ndim)))
    encoded = encode(jnp.where(jnp.isnan(values), stand_in, values))
    return jnp.where(known.reshape(-1, *(1,) * (axes - 1)), encoded, null.astype(encoded.dtype))
