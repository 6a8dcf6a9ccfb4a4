"""A run's settings: frozen dataclasses inside, `ml_collections` and flags at the edge, JSON beside the checkpoint."""

import dataclasses
import difflib
import re
import types
import typing
from typing import Any

import ml_collections

from rsdiff.base.errors import BadInput
from rsdiff.base.ranges import MOST, check_range
from rsdiff.base.seeds import written_seed
from rsdiff.data.degradation import DegradationConfig
from rsdiff.data.pipeline import DataConfig
from rsdiff.methods.diffusion import GeneratorConfig

LARGEST_FLOAT = 1e300


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW. The learning rate rises linearly over `warmup_images`, then stays, or falls by a cosine to
    `final_fraction` of itself at the end of the run."""

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
    """The average's half-life in images, and never more than `rampup` of the images seen so far (Karras et al. 2022,
    arXiv 2206.00364, appendix F.1)."""

    half_life_images: float = 50_000
    rampup: float = 0.05

    def __post_init__(self):
        check_range(self, 0, MOST, 'half_life_images')
        check_range(self, 0, 1000, 'rampup')


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices as data × fsdp; `fsdp` must divide their number, `data` is the rest."""

    fsdp: int = 1

    def __post_init__(self):
        check_range(self, 1, 1_000_000, 'fsdp')


@dataclasses.dataclass(frozen=True)
class ValidationConfig:
    """Every so many images, the averaged parameters' loss on `examples` fixed images at `bins` timesteps, and samples of
    `samples` of them (all, if there are fewer) in `steps` steps, which are judged by `measures`
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
    """A whole run. Progress is counted in images; an interval is rounded up to whole steps. `init_from`: a run or a release
    of the same network, whose averaged parameters a new run starts from."""

    generator: GeneratorConfig = GeneratorConfig()
    data: DataConfig = DataConfig()
    degradation: DegradationConfig = DegradationConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
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
        model, schedule, objective = self.generator.model, self.generator.schedule, self.generator.objective
        check_range(self, 1, 1_000_000, 'batch_size', 'accumulation')
        check_range(self, 1, MOST, 'total_images', 'log_images', 'checkpoint_images')
        upscale = model.spatial['lr'].scale if 'lr' in model.spatial else None
        levels = range(len(model.multipliers))
        attending = {*model.attention_levels, len(levels) - 1}
        # in order: a later check may stand on an earlier one
        problems = [
            (lambda: 'lr' not in model.spatial, 'generator.model.spatial has no lr, the image to be enlarged'),
            (lambda: upscale != 4, f'generator.model.spatial.lr.scale is {upscale}; a stage is 4×'),
            (lambda: model.patch not in (1, 2, 4), f'generator.model.patch is {model.patch}; it may be 1, 2 or 4'),
            (
                lambda: not attending <= {*levels},
                f'generator.model.attention_levels {model.attention_levels} are not all among levels 0 to {len(levels) - 1}',
            ),
            (
                lambda: any(int(model.width * model.multipliers[level]) % model.head_width for level in attending),
                f'generator.model.head_width {model.head_width} does not divide the width of a level with attention',
            ),
            (
                lambda: self.data.size_px % model.stride,
                f'data.size_px {self.data.size_px} is not a multiple of the network stride {model.stride}',
            ),
            # its quarter is cropped in a mosaic, and has to be whole in the condition
            (lambda: self.data.size_px % 16, f'data.size_px {self.data.size_px} is not a multiple of 16'),
            (lambda: not self.data.reductions, 'data.reductions are none; give at least one, such as 1'),
            (lambda: self.batch_size % self.accumulation, 'batch_size is not a multiple of accumulation'),
            (
                lambda: not 0 < schedule.beta_start <= schedule.beta_end < 1,
                'generator.schedule needs 0 < beta_start <= beta_end < 1',
            ),
            (
                lambda: schedule.zero_terminal_snr and objective.prediction == 'eps',
                "generator.objective.prediction 'eps' can not be used with generator.schedule.zero_terminal_snr; "
                "use 'v' or 'x0'",
            ),
            (
                lambda: schedule.zero_terminal_snr and schedule.timesteps < 2,
                'generator.schedule.timesteps is 1; zero_terminal_snr needs at least 2',
            ),
            (
                lambda: schedule.zero_terminal_snr and objective.p2_gamma > 0 and not objective.p2_k > 0,
                f'generator.objective.p2_k is {objective.p2_k}; generator.schedule.zero_terminal_snr needs it positive',
            ),
            (
                lambda: max(self.validation.steps, self.validation.bins) > schedule.timesteps,
                f'validation.steps and bins are at most {schedule.timesteps}, the timesteps there are',
            ),
            (
                lambda: self.validation.grid > self.validation.examples,
                'validation.grid is more than validation.examples',
            ),
        ]
        for wrong, message in problems:
            if wrong():
                raise BadInput(message)


def to_dict(config: Any) -> dict[str, Any]:
    """A dataclass tree as nested dicts of plain values; of a seed what our JSON can hold."""
    plain = {
        name: to_dict(value) if isinstance(value, dict) or dataclasses.is_dataclass(value) else value
        for name, value in _items(config).items()
    }
    return plain | {'seed': written_seed(plain['seed'])} if 'seed' in plain else plain


def _items(group: Any) -> dict[str, Any]:
    """What is in a dataclass, or a dict of them."""
    if isinstance(group, dict):
        return group
    return {field.name: getattr(group, field.name) for field in dataclasses.fields(group)}


def from_dict(cls: type, values: dict[str, Any], where: str = 'config') -> Any:
    """The dataclass `cls` from nested dicts; what is not given keeps its default.

    Raises:
      BadInput: a key that `cls` does not have (the nearest one is named), or a value of the wrong type or out of range. The
        line begins with `where` and the key.
    """
    fields = typing.get_type_hints(cls)
    fields = {f.name: fields[f.name] for f in dataclasses.fields(cls)}
    arguments = {}
    for key, value in values.items():
        if key not in fields:
            raise BadInput(f'{where}.{_shown(key)}: no such key; {_nearest(key, list(fields))}')
        kind, place = fields[key], f'{where}.{key}'
        if dataclasses.is_dataclass(kind):
            arguments[key] = from_dict(kind, _group(value, place), place)
        elif typing.get_origin(kind) is dict:  # groups by name
            _, kind = typing.get_args(kind)
            arguments[key] = {
                name: from_dict(kind, _group(group, f'{place}.{_shown(name)}'), f'{place}.{_shown(name)}')
                for name, group in _group(value, place).items()
            }
        else:
            arguments[key] = _checked(kind, value, place)
    try:
        return cls(**arguments)
    except BadInput as error:
        raise BadInput(f'{where}.{error}') from None


def _group(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, (dict, ml_collections.ConfigDict)):
        raise BadInput(f'{where}: expected a group of settings, found {_short(value)}')
    return dict(value)


# what the condition's encoder was set by before a condition had fields
FORMER = {
    'upscale': 'spatial.lr.scale',
    'rrdb_features': 'spatial.lr.features',
    'rrdb_growth': 'spatial.lr.growth',
    'rrdb_blocks': 'spatial.lr.blocks',
}


def upgrade(values: dict[str, Any]) -> dict[str, Any]:
    """The settings of a run or release as they are named today, from those of any earlier version: `config.json`'s."""
    generator = values.get('generator')
    model = generator.get('model') if isinstance(generator, dict) else None
    if not isinstance(model, dict) or not {*FORMER} & {*model}:
        return values
    model, lr = dict(model), {new.rpartition('.')[2]: model[name] for name, new in FORMER.items() if name in model}
    for name in FORMER:
        model.pop(name, None)
    return values | {'generator': generator | {'model': model | {'spatial': {'lr': lr}}}}


def to_config_dict(config: TrainConfig) -> ml_collections.ConfigDict:
    """The editable form that files in `configs/` return, with every key there and no other allowed."""
    return _editable(config).lock()


def _editable(config: Any) -> ml_collections.ConfigDict:
    editable = ml_collections.ConfigDict(type_safe=False)
    kinds = {} if isinstance(config, dict) else typing.get_type_hints(type(config))
    for name, value in _items(config).items():
        kind = kinds.get(name)
        if isinstance(value, dict) or dataclasses.is_dataclass(value):
            value = _editable(value)
        elif value is None:  # told its type, so that a flag can set it
            told = next(option for option in typing.get_args(kind) if option is not type(None))
            value = ml_collections.config_dict.placeholder(typing.get_origin(told) or told)
        editable[name] = value
    return editable


def differing_keys(old: dict[str, Any], new: dict[str, Any], prefix: str = '') -> list[str]:
    """Dotted names of the settings in which two nested dicts differ, with both values."""
    rows = []
    plain = lambda value: list(value) if isinstance(value, tuple) else value  # as JSON gives it back
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
    """`value` if it is of the annotated type, lists as tuples and whole numbers as floats where asked for."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
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
        if -LARGEST_FLOAT <= value <= LARGEST_FLOAT:  # not NaN; and a whole number may be beyond any float
            return float(value)
    elif kind is int and isinstance(value, str) and re.fullmatch('-?0x[0-9a-f]+', value):  # as `written_seed` has it
        return int(value, 16)
    elif isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    elif kind is type(None) and value is None:
        return value
    expected = ' or '.join(map(str, arguments)) if origin is typing.Literal else getattr(kind, '__name__', str(kind))
    raise BadInput(f'{where}: expected {expected}, found {_short(value)}')
