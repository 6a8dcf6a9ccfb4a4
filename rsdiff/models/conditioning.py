"""What a network knows beside the noisy image: fields of a condition, encoded once, whatever the number of steps.

A condition is a dict of arrays by field name. Each field of it is *spatial* (an image of the same ground, at a scale of its
own), a *number* (one an example, such as metres a pixel) or *tokens* (vectors without a place, such as those of a text).

Unknown and dropped are one thing: a field that is absent from the dict, and an example of it that holds NaN, are answered
by a learnt null. Only fields that are marked droppable have one; any other has to be given.
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
    """An image (b, h / scale, w / scale, channels) of the ground that the result (b, h, w, ·) shows, encoded by `blocks` RRDBs
    (`models.rrdbnet`) of `features` channels that grow by `growth`."""

    channels: int = 3
    scale: int = 4
    features: int = 32
    growth: int = 16
    blocks: int = 2
    droppable: bool = False

    def __post_init__(self):
        check_range(self, 1, 256, 'channels')
        check_range(self, 1, 64, 'scale')
        if self.scale & (self.scale - 1):
            raise BadInput(f'scale is {self.scale}; it must be a power of two')
        check_range(self, 1, 1024, 'features', 'growth')
        check_range(self, 0, 64, 'blocks')


@dataclasses.dataclass(frozen=True)
class Number:
    """A number (b,), put on the timestep's axis, `low` at 0 and `high` at 1000: linearly; by its logarithm, where ratios
    matter; or around a circle, where `high` is `low` again (a day of the year, a longitude)."""

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
    """Vectors (b, n, width); a token that holds NaN is not looked at."""

    width: int = 512
    droppable: bool = False

    def __post_init__(self):
        check_range(self, 1, 16384, 'width')


# 1 cm at 0, 1000 km at 1000: each 4× step is 75 apart
GSD_M = Number('log', 0.01, 1e6)


class Encoded(NamedTuple):
    """A condition as a network uses it at every step. What is the same for all examples has a batch of one."""

    features: tuple[jax.Array, ...]  # (b, h', w', f) each, at the first level's size; of a null (1, 1, 1, f)
    numbers: jax.Array | None  # (b, e), to be added to the timestep's vector
    tokens: tuple[jax.Array, ...]  # (b, n, d) each
    seen: tuple[jax.Array, ...]  # bool (b, n) each: which tokens there are


def position(number: Number, values):
    """Values (b,) on the timestep's axis: radians of 0 … 2π where cyclic, else 0 … 1000."""
    if number.code == 'log':
        return 1000.0 * jnp.log(values / number.low) / jnp.log(number.high / number.low)
    share = (values - number.low) / (number.high - number.low)
    return 2 * math.pi * share if number.code == 'cyclic' else 1000.0 * share


def given(name: str, field: Spatial | Number | Tokens, condition: Condition):
    """The field's array, or None where a droppable one is absent.

    Raises:
      ValueError: it is absent and can't be.
    """
    values = condition.get(name)
    if values is None and not field.droppable:
        raise ValueError(f'the condition lacks {name!r}, which the network needs')
    return values


def or_null(values, encode: Callable, null, axes: int, stand_in: float = 0.0):
    """`encode` of the examples that hold no NaN, and `null` for the others.

    Args:
      values: (b, …), or None: then all there is is the null, in a batch of one.
      encode: (b, …) → (b, …, f).
      null: (f,), or None where the field can't be dropped; NaN then stays.
      axes: how many axes `encode`'s result has.
      stand_in: what `encode` sees in the place of NaN, where gradients have to stay finite.
    """
    if values is None:
        return null.reshape((1,) * (axes - 1) + null.shape)
    if null is None:
        return encode(values)
    known = ~jnp.isnan(values).any(axis=tuple(range(1, values.ndim)))
    encoded = encode(jnp.where(jnp.isnan(values), stand_in, values))
    return jnp.where(known.reshape(-1, *(1,) * (axes - 1)), encoded, null.astype(encoded.dtype))
