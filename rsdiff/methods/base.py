"""What a method is: what is learnt from a batch, and what is predicted with it.

Every method is trained by the one loop of `rsdiff.training` and sampled by the one code of `rsdiff.sampling`; neither knows
which it is. A method holds no arrays: parameters come in with every call, so that `jit`, `grad` and sharding see plain trees.
"""

import dataclasses
from typing import Any, Protocol, TypedDict

import jax
import jax.numpy as jnp

from rsdiff.base.ranges import check_range
from rsdiff.data.degradation import DegradationConfig, degrade
from rsdiff.data.fields import Field
from rsdiff.diffusion.schedule import Schedule
from rsdiff.diffusion.solvers import Denoise
from rsdiff.methods.codec import Codec, Targets
from rsdiff.models.conditioning import Condition, Number, Spatial, Tokens

Parameters = dict[str, Any]  # by part: nested dicts of arrays
GENERATOR = 'generator'  # the part that samples, and the only one with averages


class Prepared(TypedDict):
    """A batch as a loss takes it: what is wanted, and the condition it has to be made from."""

    targets: Targets
    condition: Condition


class Method(Protocol):
    """One way of learning and of sampling.

    Attributes:
      parts: the networks that are trained, each with an optimiser of its own, in the order of their updates. The gradients
        of all are taken before any is updated.
      codec: what is diffused.
      schedule: of the noise; `one_step()` for a network that answers at once.
      fields: what the condition may hold, by name.
      channels: of the image.
      upscale: how many times finer the image is than the field `lr`.
      dtype: what the networks compute in; parameters are float32 whatever it is.
    """

    @property
    def parts(self) -> tuple[str, ...]: ...

    @property
    def codec(self) -> Codec: ...

    @property
    def schedule(self) -> Schedule: ...

    @property
    def fields(self) -> dict[str, Spatial | Number | Tokens]: ...

    @property
    def channels(self) -> int: ...

    @property
    def upscale(self) -> int: ...

    @property
    def dtype(self) -> Any: ...

    def init(self, key) -> Parameters:
        """Fresh float32 parameters of every part. Call it inside `jit` or `eval_shape`."""
        ...

    def prepare(self, batch: dict[str, jax.Array], key) -> Prepared:
        """Degrades, scales and drops: a batch as it is read → what the losses take."""
        ...

    def loss(self, part: str, params: Parameters, buffers, frozen, prepared: Prepared, key) -> tuple[jax.Array, tuple]:
        """The loss of `part`, a float32 scalar, with (metrics by name, the part's new buffers) beside it.

        Args:
          params: of all parts.
          buffers: of this part: arrays that change with every step and have no gradient.
          frozen: networks that are not trained, by name.
        """
        ...

    def terms(self, params: Parameters, frozen, prepared: Prepared, key, t) -> jax.Array:
        """The generator's loss of each example, float32 (b,), at timesteps t, int (b,), with noise from `key`."""
        ...

    def predict(self, params: Parameters, frozen, condition: Condition) -> Denoise:
        """(z_t, t) → ẑ_0, with the condition bound."""
        ...


@dataclasses.dataclass(frozen=True)
class Drop:
    """Fields that are dropped together from a share of the examples, so that the network learns to do without (Ho &
    Salimans 2022, arXiv 2207.12598)."""

    fields: tuple[str, ...] = ()
    probability: float = 0.1

    def __post_init__(self):
        check_range(self, 0, 1, 'probability')


def fields_to_read(fields: dict[str, Spatial | Number | Tokens]) -> tuple[Field, ...]:
    """Of a network's fields those that data have to bring: all but `lr`, which is made from the image, `gsd_m`, which every
    image has, and tokens, which are no data but what a frozen network makes of them."""
    return tuple(
        Field(name, field.channels, field.scale, not field.droppable)
        if isinstance(field, Spatial)
        else Field(name, needed=not field.droppable)
        for name, field in fields.items()
        if name not in ('lr', 'gsd_m') and not isinstance(field, Tokens)
    )


def prepared_batch(
    fields: dict[str, Spatial | Number | Tokens],
    degradation: DegradationConfig,
    drops: tuple[Drop, ...],
    batch: dict[str, jax.Array],
    key,
) -> Prepared:
    """Images as float32 in [-1, 1]; a condition of the fields that the batch has, and of `lr`, the degraded image.

    Args:
      batch: `image` uint8 (b, h, w, c), and fields: uint8 or float32.
      drops: of each example at most one happens.
    """
    x0 = to_float(batch['image'])
    condition = {name: to_float(batch[name]) for name in fields if name in batch}
    if 'lr' in fields and 'lr' not in batch:
        condition['lr'] = degrade(x0, jax.random.split(key, len(x0)), degradation)
    if drops:
        dice, low = jax.random.uniform(jax.random.fold_in(key, len(x0)), (len(x0),)), 0.0
        for drop in drops:
            dropped = (low <= dice) & (dice < low + drop.probability)
            for name in set(drop.fields) & set(condition):
                values = condition[name]
                condition[name] = jnp.where(dropped.reshape(-1, *(1,) * (values.ndim - 1)), jnp.nan, values)
            low += drop.probability
    return {'targets': {'image': x0}, 'condition': condition}


def to_float(values):
    """uint8 → float32 in [-1, 1]; other numbers as they are."""
    return values.astype(jnp.float32) / 127.5 - 1.0 if values.dtype == jnp.uint8 else values
