"""The method interface: what is learned from a batch, and what is predicted from it.

All methods share the training loop in `rsdiff.training` and the samplers in `rsdiff.sampling`, which do not depend on the
method. A method holds no arrays: parameters are passed to every call, so `jit`, `grad` and sharding see plain trees.
"""

import dataclasses
from typing import Any, NamedTuple, Protocol, TypedDict

import jax
import jax.numpy as jnp

from rsdiff.base.ranges import check_range
from rsdiff.data.degradation import DegradationConfig, degrade
from rsdiff.data.fields import Field
from rsdiff.diffusion.schedule import Schedule
from rsdiff.diffusion.solvers import Denoise, Solver
from rsdiff.methods.codec import Codec, Targets
from rsdiff.models.conditioning import Condition, Number, Spatial, Tokens

Parameters = dict[str, Any]  # part → nested dict of arrays
Buffers = dict[str, Any]  # part → nested dict of arrays that every step changes, without a gradient
Frozen = dict[str, Any]  # name → parameters of a network that is not trained
NO_FROZEN: Frozen = {}
GENERATOR = 'generator'  # the part used for sampling, and the only one with parameter averages
DISCRIMINATOR = 'discriminator'
FEW_STEPS = 4  # a generator that samples in at most so many evaluations samples in few
TEACHER = 'teacher'  # the name of a frozen generator's parameters


class Teacher(NamedTuple):
    """A generator that a method learns from: a run or a release, `path`, which must have been trained by the method `config`."""

    path: str
    config: Any


class Prepared(TypedDict):
    """A batch as the losses take it: the targets, and the condition to predict them from."""

    targets: Targets
    condition: Condition


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
    """How a method samples a complete image, in `steps` network evaluations."""

    solver: Solver = 'ddim'
    steps: int = 20

    def __post_init__(self):
        check_range(self, 1, 100_000, 'steps')


class Method(Protocol):
    """A training objective and how to predict with the result.

    Attributes:
      parts: the trained networks, each with its own optimiser, in update order. The gradients of all parts are computed
        before any part is updated.
      codec: maps images to the array that is diffused, and back.
      schedule: the noise schedule; `one_step()` for a single-step network.
      fields: the fields that the condition may contain, by name.
      channels: number of image channels.
      upscale: resolution of the image relative to the field `lr`.
      sampler: how to sample unless asked otherwise.
      dtype: the dtype that the networks compute in; parameters are always float32.
      teacher: the generator whose averaged parameters `loss` needs as `frozen[TEACHER]`; None if it needs none.
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
    def sampler(self) -> SamplerConfig: ...

    @property
    def dtype(self) -> Any: ...

    @property
    def teacher(self) -> Teacher | None: ...

    def init(self, key) -> Parameters:
        """Freshly initialised float32 parameters of all parts. Call it inside `jit` or `eval_shape`."""
        ...

    def init_buffers(self, key) -> Buffers:
        """Initial buffers of every part, such as the vectors of a spectral norm; {} for a part without. As `init`."""
        ...

    def load_frozen(self, training: bool = False) -> Frozen:
        """Networks that are not trained, as host arrays: those that `predict` needs, and if `training`, those that `loss`
        needs, without `TEACHER`. They are passed to every call and are not in checkpoints.

        Raises:
          BadInput: the weights of one cannot be loaded.
        """
        ...

    def prepare(self, batch: dict[str, jax.Array], key, drop: bool = True) -> Prepared:
        """Turns a batch as read into the losses' input: degrades and scales images, and drops fields if `drop`, which is
        False in validation."""
        ...

    def loss(
        self, part: str, params: Parameters, buffers: Buffers, frozen: Frozen, prepared: Prepared, key
    ) -> tuple[jax.Array, tuple]:
        """Returns the loss of `part`, a float32 scalar, and (metrics by name, the new buffers of `part`).

        Args:
          params, buffers: of all parts.
          frozen: as returned by `load_frozen`, and `TEACHER`.
        """
        ...

    def terms(self, params: Parameters, frozen: Frozen, prepared: Prepared, key, t) -> jax.Array:
        """The generator's loss for each example, float32 (b,), at timesteps t, int (b,), with noise from `key`."""
        ...

    def predict(self, params: Parameters, frozen: Frozen, condition: Condition) -> Denoise:
        """The function (z_t, t) → ẑ_0 for a given condition."""
        ...


@dataclasses.dataclass(frozen=True)
class Drop:
    """Fields that are dropped together from a fraction `probability` of the examples, so that the network learns to predict
    without them (Ho & Salimans 2022, arXiv 2207.12598)."""

    fields: tuple[str, ...] = ()
    probability: float = 0.1

    def __post_init__(self):
        check_range(self, 0, 1, 'probability')


def fields_to_read(fields: dict[str, Spatial | Number | Tokens]) -> tuple[Field, ...]:
    """The network's fields that must be read from the data: all except `lr`, which is computed from the image, `gsd_m`, which
    every image has, and tokens, which are the output of a frozen network."""
    return tuple(
        Field(name, field.channels, field.scale, not field.droppable, frames=field.frames)
        if isinstance(field, Spatial)
        else Field(name, needed=not field.droppable)
        for name, field in fields.items()
        if name not in ('lr', 'gsd_m') and not isinstance(field, Tokens)
    )


def fields_to_train(fields: dict[str, Spatial | Number | Tokens]) -> tuple[Field, ...]:
    """`fields_to_read`, and `lr` for data that have real pairs: it is computed only where the rows have no files of it."""
    lr = fields.get('lr')
    pairs = (Field('lr', lr.channels, lr.scale, needed=False, made=True),) if isinstance(lr, Spatial) else ()
    return *pairs, *fields_to_read(fields)


def prepared_batch(
    fields: dict[str, Spatial | Number | Tokens],
    degradation: DegradationConfig,
    drops: tuple[Drop, ...],
    batch: dict[str, jax.Array],
    key,
) -> Prepared:
    """Images as float32 in [-1, 1], and a condition of the batch's fields and `lr`, the degraded image.

    Args:
      batch: `image` uint8 (b, h, w, c), and fields: uint8 or float32. If it has `lr`, that is not degraded.
      drops: at most one of them is applied to each example.
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
    """uint8 → float32 in [-1, 1]; other dtypes are returned unchanged."""
    return values.astype(jnp.float32) / 127.5 - 1.0 if values.dtype == jnp.uint8 else values
