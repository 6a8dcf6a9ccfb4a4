"""A run's settings: frozen dataclasses internally, `ml_collections` and flags as the interface, JSON beside checkpoints."""

import dataclasses
import difflib
import re
import types
import typing
from typing import Any

import ml_collections
from ml_collections import config_dict

from rsdiff.base.errors import BadInput
from rsdiff.base.ranges import MOST, check_range
from rsdiff.base.seeds import written_seed
from rsdiff.data.degradation import UPSCALE, DegradationConfig
from rsdiff.data.pipeline import DataConfig
from rsdiff.methods.former import from_former
from rsdiff.methods.kinds import DEFAULT, MethodConfig
from rsdiff.models.conditioning import Spatial, Tokens
from rsdiff.training import averages

LARGEST_FLOAT = 1e300
RGB = 3  # the channels of every image that is read


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW. The learning rate rises linearly over `warmup_images`, then follows a cosine down to `final_fraction` of its
    peak at the end of the run; with `final_fraction` 1 it stays constant."""

    learning_rate: float = 2e-4
    warmup_images: int = 1000
    final_fraction: float = 1.0
    b2: float = 0.99
    weight_decay: float = 0.01
    clip_norm: float = 1.0

    def __post_init__(self):
        check_range(self, 0, 100, 'learning_rate', 'weight_decay')
        check_range(self, 0, MOST, 'warmup_images')
        check_range(self, 0, 1, 'final_fraction')
        check_range(self, 0, 0.999999, 'b2')
        check_range(self, 1e-9, 1e9, 'clip_norm')


@dataclasses.dataclass(frozen=True)
class EMAConfig:
    """The average's half-life in images, at most `rampup` times the images seen so far (Karras et al. 2022, arXiv
    2206.00364, appendix F.1).

    Attributes:
      lengths: of further averages (`training.averages`), such as (0.05, 0.1), from snapshots of which an average of any
        length is made after training.
      snapshot_images: how often these are stored, in images.
    """

    half_life_images: float = 50_000
    rampup: float = 0.05
    lengths: tuple[float, ...] = ()
    snapshot_images: int = 10_000

    def __post_init__(self):
        check_range(self, 0, MOST, 'half_life_images')
        check_range(self, 0, 1000, 'rampup')
        check_range(self, 1, MOST, 'snapshot_images')
        for length in self.lengths:
            averages.power(length)
        if len({*map(averages.name_of, self.lengths)}) < len(self.lengths):
            raise BadInput(f'ema.lengths is {self.lengths}; give each length once')


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices as data × fsdp; `fsdp` must divide the number of devices, and `data` is the quotient."""

    fsdp: int = 1

    def __post_init__(self):
        check_range(self, 1, 1_000_000, 'fsdp')


@dataclasses.dataclass(frozen=True)
class ValidationConfig:
    """Validation of the averaged parameters every `every_images` images: the loss on `examples` fixed images at `bins`
    timesteps, and samples for `samples` of them (all, if there are fewer) in `steps` steps, evaluated by `measures`
    (`rsdiff.evaluation.columns.PAIRED`); `grid` of them are shown."""

    every_images: int = 5_000
    examples: int = 32
    bins: int = 8
    samples: int = 16
    grid: int = 6
    steps: int = 20
    measures: tuple[str, ...] = ('psnr', 'ssim', 'detail_ratio', 'lr_consistency')

    def __post_init__(self):
        check_range(self, 1, MOST, 'every_images')
        check_range(self, 1, 1_000_000, 'examples', 'samples', 'grid')
        check_range(self, 1, 100_000, 'bins', 'steps')


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """All settings of a run. Progress is counted in images; intervals are rounded up to whole steps. `optimizers`: settings
    of the parts of a method, by name, that differ from `optimizer`. `init_from`: a run or a release of the same network, whose
    averaged parameters initialise a new run."""

    method: MethodConfig = DEFAULT
    data: DataConfig = DataConfig()
    degradation: DegradationConfig = DegradationConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    optimizers: dict[str, OptimizerConfig] = dataclasses.field(default_factory=dict)
    ema: EMAConfig = EMAConfig()
    validation: ValidationConfig = ValidationConfig()
    mesh: MeshConfig = MeshConfig()
    init_from: str | None = None
    seed: int = 0
    batch_size: int = 16
    accumulation: int = 1
    total_images: int = 10_000
    log_images: int = 500
    checkpoint_images: int = 5_000

    def __post_init__(self):
        check_range(self, 1, 1_000_000, 'batch_size', 'accumulation')
        check_range(self, 1, MOST, 'total_images', 'log_images', 'checkpoint_images')
        method, size, timesteps = self.method, self.data.size_px, self.method.timesteps
        lr = method.fields.get('lr')
        unread = [name for name, field in method.fields.items() if isinstance(field, Tokens) and not field.droppable]
        problems = [
            ('lr' not in method.fields, 'method.model.spatial has no lr, the low-resolution image to enlarge'),
            (method.upscale != UPSCALE, f'method.model.spatial.lr.scale is {method.upscale}; a stage is {UPSCALE}×'),
            (method.channels != RGB, f'method.model.channels is {method.channels}; images have {RGB}'),
            (
                isinstance(lr, Spatial) and lr.channels != RGB,
                f'method.model.spatial.lr.channels must be {RGB}, those of the images that lr is made from',
            ),
            (unread, f'method.model.tokens has {", ".join(unread)}, which nothing provides yet; set its droppable'),
            (size % method.stride, f'data.size_px {size} is not a multiple of the network stride {method.stride}'),
            # a mosaic may crop a quarter of a window, which must be a whole number of pixels of the condition
            (size % 16, f'data.size_px {size} is not a multiple of 16'),
            (not self.data.reductions, 'data.reductions is empty; give at least one, such as 1'),
            (self.batch_size % self.accumulation, 'batch_size is not a multiple of accumulation'),
            (
                1 < timesteps < max(self.validation.steps, self.validation.bins),
                f'validation.steps and bins must be at most {timesteps}, the number of timesteps',
            ),
            (self.validation.grid > self.validation.examples, 'validation.grid is more than validation.examples'),
        ]
        for wrong, message in problems:
            if wrong:
                raise BadInput(message)


def to_dict(config: Any) -> dict[str, Any]:
    """A dataclass tree as nested dicts of plain values; the seed in a form that our JSON can store (`written_seed`)."""
    plain = {name: _plain(value) for name, value in _items(config).items()}
    return plain | {'seed': written_seed(plain['seed'])} if 'seed' in plain else plain


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_plain, value))
    return to_dict(value) if isinstance(value, dict) or dataclasses.is_dataclass(value) else value


def _items(group: Any) -> dict[str, Any]:
    """The fields of a dataclass, or a dict of dataclasses, by name."""
    if isinstance(group, dict):
        return group
    return {field.name: getattr(group, field.name) for field in dataclasses.fields(group)}


def from_dict(cls: type, values: dict[str, Any], where: str = 'config') -> Any:
    """The dataclass `cls` from nested dicts; missing keys keep their defaults.

    Raises:
      BadInput: a key that `cls` does not have (the message suggests the closest one), or a value of the wrong type or out of
        range. The message begins with `where` and the key.
    """
    fields = typing.get_type_hints(cls)
    fields = {f.name: fields[f.name] for f in dataclasses.fields(cls)}
    arguments = {}
    for key, value in values.items():
        if key not in fields:
            raise BadInput(f'{where}.{_shown(key)}: no such key; {_nearest(key, list(fields))}')
        arguments[key] = _checked(fields[key], value, f'{where}.{key}')
    try:
        return cls(**arguments)
    except BadInput as error:
        raise BadInput(f'{where}.{error}') from None


def _kinds(annotation: Any) -> dict[str, type]:
    """The members of a tagged union of dataclasses, by `kind`; empty for any other type."""
    options = typing.get_args(annotation)
    if typing.get_origin(annotation) not in (typing.Union, types.UnionType) or not all(
        map(dataclasses.is_dataclass, options)
    ):
        return {}
    return {typing.get_args(typing.get_type_hints(option)['kind'])[0]: option for option in options}


def _group(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, (dict, ml_collections.ConfigDict)):
        raise BadInput(f'{where}: expected a group of settings, found {_short(value)}')
    return dict(value)


def upgrade(values: dict[str, Any]) -> dict[str, Any]:
    """Converts the settings in a `config.json` of any earlier version to today's names."""
    if not isinstance(values.get('generator'), dict) or 'method' in values:
        return values
    return {name: value for name, value in values.items() if name != 'generator'} | {
        'method': from_former(values['generator'])
    }


def to_config_dict(config: Any) -> ml_collections.ConfigDict:
    """The editable form of a dataclass that files in `configs/` return, with all keys present and no others allowed."""
    return _editable(config).lock()


def _editable(config: Any) -> ml_collections.ConfigDict:
    editable = ml_collections.ConfigDict(type_safe=False)
    kinds = {} if isinstance(config, dict) else typing.get_type_hints(type(config))
    for name, value in _items(config).items():
        kind = kinds.get(name)
        if isinstance(value, dict) or dataclasses.is_dataclass(value):
            value = _editable(value)
        elif value is None:  # a placeholder with the type, so that a flag can set it
            told = next(option for option in typing.get_args(kind) if option is not type(None))
            value = config_dict.placeholder(typing.get_origin(told) or told)
        elif isinstance(value, tuple):
            value = _plain(value)
        editable[name] = value
    return editable


def differing_keys(old: dict[str, Any], new: dict[str, Any], prefix: str = '') -> list[str]:
    """The settings that differ between two nested dicts: dotted names with both values."""
    rows = []
    plain = lambda value: list(value) if isinstance(value, tuple) else value  # as JSON returns it
    for key in sorted({*old, *new}):
        a, b, name = plain(old.get(key)), plain(new.get(key)), prefix + key
        if isinstance(a, dict) and isinstance(b, dict):
            rows += differing_keys(a, b, name + '.')
        elif a != b:
            rows.append(f'{name} ({a!r} → {b!r})')
    return rows


def _shown(key: str) -> str:
    return key if key.isidentifier() and len(key) < 40 else _short(key)


def _short(value: Any) -> str:
    return ascii(value)[:60]


def _nearest(key: str, known: list[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.4)
    return f'did you mean {close[0]!r}?' if close else f'there are {", ".join(known)}'


def _checked(kind: Any, value: Any, where: str) -> Any:
    """`value` if it is of the annotated type; lists are converted to tuples and integers to floats where required."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return from_dict(typing.cast(type, kind), _group(value, where), where)
    if kinds := _kinds(kind):
        group = _group(value, where)
        name = group.get('kind', next(iter(kinds)))
        if not isinstance(name, str) or name not in kinds:
            raise BadInput(f'{where}.kind is {_short(name)}; there are {", ".join(kinds)}')
        return from_dict(kinds[name], group, where)
    if origin is dict:  # groups by name
        return {
            name: _checked(arguments[1], group, f'{where}.{_shown(name)}')
            for name, group in _group(value, where).items()
        }
    if origin in (typing.Union, types.UnionType):
        for option in arguments:
            try:
                return _checked(option, value, where)
            except BadInput:
                continue
    elif origin is typing.Literal:
        if value in arguments:
            return value
    elif origin is tuple:
        if isinstance(value, (list, tuple)):
            kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else arguments
            if len(kinds) == len(value):
                return tuple(_checked(k, v, where) for k, v in zip(kinds, value))
    elif kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        if -LARGEST_FLOAT <= value <= LARGEST_FLOAT:  # excludes NaN, and integers too large for a float
            return float(value)
    elif kind is int and isinstance(value, str) and re.fullmatch('-?0x[0-9a-f]+', value):  # as `written_seed` writes it
        return int(value, 16)
    elif isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    elif kind is type(None) and value is None:
        return value
    expected = ' or '.join(map(str, arguments)) if origin is typing.Literal else getattr(kind, '__name__', str(kind))
    raise BadInput(f'{where}: expected {expected}, found {_short(value)}')
