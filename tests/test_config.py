import dataclasses
import importlib
import json
import math
import re
import sys
from pathlib import Path

import jax
import pytest
from absl import flags
from ml_collections import config_flags

from configs import demo, esrgan, metaearth, realesrgan, rrdbnet, satlas_esrgan
from rsdiff.base.errors import BadInput
from rsdiff.data.degradation import PRESETS
from rsdiff.methods.base import Drop
from rsdiff.methods.codec import IdentityConfig, ResidualConfig
from rsdiff.methods.diffusion import DiffusionConfig
from rsdiff.methods.former import former
from rsdiff.methods.kinds import make_method
from rsdiff.models.conditioning import GSD_M, Number, Spatial, Tokens
from rsdiff.models.unet import UNetConfig
from rsdiff.training.checkpoint import _digest
from rsdiff.training.config import (
    OptimizerConfig,
    TrainConfig,
    differing_keys,
    from_dict,
    to_config_dict,
    to_dict,
    upgrade,
)
from rsdiff.training.state import ema_decay


def test_dicts_and_dataclasses_are_inverse_through_json():
    config = dataclasses.replace(TrainConfig(), seed=7, batch_size=32)
    assert from_dict(TrainConfig, json.loads(json.dumps(to_dict(config)))) == config


CONFIGS = [
    path.stem
    for path in sorted((Path(__file__).parents[1] / 'configs').glob('*.py'))
    if path.stem not in ('__init__', 'sr_comparison', 'aerial_search')  # these two are for other tools
]


@pytest.mark.parametrize('name', CONFIGS)
def test_every_config_file_is_a_config(name):
    """As it is, and in each variant that its docstring names."""
    module = importlib.import_module(f'configs.{name}')
    assert f'--config configs/{name}.py' in module.__doc__
    for variant in [(), *{(found,) for found in re.findall(rf'configs/{name}\.py:(\w+)', module.__doc__)}]:
        config = from_dict(TrainConfig, module.get_config(*variant).to_dict())
        assert config.data.size_px % config.method.stride == 0


@pytest.mark.parametrize('module', [esrgan, realesrgan, rrdbnet, satlas_esrgan])
def test_the_parameters_that_a_config_file_tells_are_those_that_it_makes(module):
    method = make_method(from_dict(TrainConfig, module.get_config().to_dict()).method)
    shapes = jax.eval_shape(method.init, jax.random.key(0))
    for part in method.parts:
        assert f'{sum(leaf.size for leaf in jax.tree.leaves(shapes[part])):,}' in module.__doc__


def test_the_published_stages_train_the_same_network():
    first, second = (from_dict(TrainConfig, realesrgan.get_config(stage).to_dict()) for stage in ('l1', 'gan'))
    assert (first.method.kind, second.method.kind) == ('regression', 'adversarial')
    assert first.method.generator == second.method.generator
    decay = ema_decay(second.ema, second.batch_size, second.batch_size)  # from the first step on
    assert float(decay) == pytest.approx(0.999, abs=1e-6)
    with pytest.raises(BadInput, match='realesrgan.py:l2: no such stage'):
        realesrgan.get_config('l2')


@pytest.mark.parametrize(
    'values, message',
    [
        ({'bath_size': 3}, r"config\.bath_size: no such key; did you mean 'batch_size'"),
        ({'method': {'modle': {}}}, r"config\.method\.modle.*'model'"),
        ({'method': {'model': {'widht': 3}}}, r"config\.method\.model\.widht.*'width'"),
        ({'batch_size': 'many'}, r"config\.batch_size: expected int, found 'many'"),
        ({'batch_size': 2.5}, r'config\.batch_size: expected int'),
        ({'method': 3}, 'expected a group'),
        ({'method': {'objective': {'prediction': 'noise'}}}, r'expected eps or x0 or v'),
        ({'data': {'size_px': 66}}, 'not a multiple of the network stride'),
        ({'batch_size': 16, 'accumulation': 3}, 'accumulation'),
        ({'method': {'model': {'patch': 8}}}, 'patch is 8'),
        ({'method': {'model': {'head_width': 48}}}, 'head_width'),
        ({'method': {'model': {'patch': 0}}}, 'patch is 0'),
        ({'method': {'model': {'attention_levels': (7,)}}}, 'attention_levels'),
        ({'method': {'model': {'multipliers': ()}}}, 'multipliers has 0'),
        ({'method': {'model': {'dtype': 'float12'}}}, 'expected float32 or bfloat16'),
        ({'method': {'model': {'spatial': {'lr': {'scale': 2}}}}}, 'lr.scale is 2'),
        (
            {'method': {'model': {'spatial': {'lr': {'scale': 3}}}}},
            r'spatial\.lr\.scale is 3; it must be a power of two',
        ),
        ({'method': {'model': {'spatial': {'before': {}}}}}, 'spatial has no lr'),
        ({'method': {'model': {'spatial': {'lr': 4}}}}, r'spatial\.lr: expected a group'),
        ({'method': {'model': {'numbers': {'lr': {}}}}}, 'lr is a field of two kinds'),
        ({'method': {'model': {'numbers': {'a b': {}}}}}, "'a b' is not a valid field name"),
        ({'method': {'model': {'numbers': {'day': {'low': 1.0}}}}}, r'numbers\.day\.low is 1\.0 and high is 1\.0'),
        ({'method': {'schedule': {'beta_start': 0.5}}}, 'beta_start'),
        (
            {'method': {'schedule': {'zero_terminal_snr': True}}},
            "'eps' cannot be used with schedule.zero_terminal_snr",
        ),
        (
            {'method': {'schedule': {'zero_terminal_snr': True}, 'objective': {'prediction': 'v', 'p2_k': 0.0}}},
            'p2_k is 0.0',
        ),
        (
            {'method': {'schedule': {'zero_terminal_snr': True, 'timesteps': 1}, 'objective': {'prediction': 'v'}}},
            'needs at least 2',
        ),
        ({'data': {'size_px': 40}}, 'not a multiple of 16'),
        ({'data': {'reductions': (0,)}}, 'reductions'),
        ({'batch_size': 0}, 'batch_size is 0'),
        ({'accumulation': 0}, 'accumulation is 0'),
        ({'validation': {'steps': 2000}}, 'validation.steps and bins must be at most 1000'),
        ({'validation': {'grid': 40}}, 'validation.grid is more'),
        ({'validation': {'examples': 0}}, r'config\.validation\.examples is 0'),
        (
            {'method': {'model': {'width': 5000}}},
            r'config\.method\.model\.width is 5000; it must be from 1 to 4096',
        ),
        ({'method': {'model': {'width': -64}}}, 'width is -64'),
        ({'method': {'model': {'blocks': 10**6}}}, 'blocks is 1000000'),
        ({'method': {'model': {'multipliers': (1,) * 9}}}, 'multipliers has 9'),
        ({'method': {'model': {'multipliers': (1, 0)}}}, 'multipliers is'),
        ({'method': {'model': {'multipliers': (1, 100.0)}}}, 'multipliers is'),
        ({'method': {'model': {'width': 4096, 'multipliers': (8, 8)}}}, 'parameters'),
        ({'method': {'model': {'spatial': {'lr': dict(features=1024, growth=1024, blocks=64)}}}}, 'parameters'),
        ({'method': {'model': {'spatial': {'lr': {'blocks': 65}}}}}, r'spatial\.lr\.blocks is 65'),
        ({'method': {'schedule': {'timesteps': 10**6}}}, r'schedule\.timesteps is 1000000'),
        ({'method': {'codec': {'kind': 'residual', 'scale': math.nan}}}, r'codec\.scale: expected float, found nan'),
        ({'method': {'codec': {'kind': 'residual', 'scale': 1e-9}}}, r'config\.method\.codec\.scale is'),
        ({'method': {'kind': 'gan'}}, r"config\.method\.kind is 'gan'; there are diffusion, regression, adversarial"),
        ({'method': {'kind': 'regression', 'schedule': {}}}, r'config\.method\.schedule: no such key'),
        ({'method': {'kind': 'adversarial', 'gan_weight': -1}}, r'config\.method\.gan_weight is -1'),
        ({'method': {'kind': 'adversarial', 'perceptual_layers': (1,)}}, r'method\.perceptual_layers: expected tuple'),
        ({'method': {'kind': 'adversarial', 'discriminator': {'features': 0}}}, r'discriminator\.features is 0'),
        ({'method': {'codec': {'kind': 'latent'}}}, r"codec\.kind is 'latent'; there are identity, residual"),
        ({'method': {'drops': ({'fields': ('text',)},)}}, r"method\.drops has 'text'; the network takes lr, gsd_m"),
        ({'method': {'drops': ({'fields': ('gsd_m',)},)}}, r"drops has 'gsd_m', which is not droppable"),
        ({'method': {'drops': ({'fields': ('gsd_m',), 'probability': 2.0},)}}, r'drops\.probability is 2'),
        (
            {
                'method': {
                    'model': {'spatial': {'lr': {'droppable': True}}},
                    'codec': {'kind': 'residual'},
                    'drops': ({'fields': ('lr',)},),
                }
            },
            r"config\.method\.drops has 'lr', but codec residual",
        ),
        ({'method': {'model': {'tokens': {'text': {'width': 8}}}}}, r'method\.model\.tokens has text, which nothing'),
        ({'method': {'model': {'channels': 4}}}, r'method\.model\.channels is 4; images have 3'),
        ({'method': {'model': {'spatial': {'lr': {'channels': 1}}}}}, r'spatial\.lr\.channels must be 3'),
        ({'method': {'kind': 'regression', 'model': {'channels': 1}}}, r'method\.model\.channels is 1'),
        ({'data': {'size_px': 8192}}, r'config\.data\.size_px is 8192'),
        ({'data': {'gsd_m': 0.0}}, r'config\.data\.gsd_m is 0'),
        ({'data': {'value_range': (9.0, 1.0)}}, r'config\.data\.value_range'),
        ({'data': {'validation_share': 1.0}}, r'config\.data\.validation_share'),
        ({'optimizer': {'learning_rate': -1.0}}, r'config\.optimizer\.learning_rate is -1'),
        ({'optimizer': {'learning_rate': 10**400}}, 'learning_rate: expected float'),
        ({'optimizer': {'b2': 1.0}}, r'config\.optimizer\.b2 is 1'),
        ({'ema': {'rampup': -1.0}}, r'config\.ema\.rampup is -1'),
        ({'mesh': {'fsdp': 0}}, r'config\.mesh\.fsdp is 0'),
        ({'degradation': {'first': {'blur': {'sigma_px': (0.1, 1e9)}}}}, r'config\.degradation\.first\.blur\.sigma_px'),
        ({'a\nb': 1}, r"config\.'a\\nb': no such key"),
    ],
)
def test_what_is_wrong_is_named(values, message):
    with pytest.raises(BadInput, match=message):
        from_dict(TrainConfig, values)


def test_numbers_of_a_config_made_by_hand_are_checked_too():
    for wrong in (math.nan, math.inf, -1.0):
        with pytest.raises(BadInput, match='^learning_rate is'):
            OptimizerConfig(learning_rate=wrong)


def test_any_whole_number_is_a_seed():
    for seed in (0, -5, 2**64, 10**100):
        assert from_dict(TrainConfig, {'seed': seed}).seed == seed


def test_values_take_their_annotated_type():
    config = from_dict(
        TrainConfig, {'optimizer': {'learning_rate': 1}, 'method': {'model': {'multipliers': [1, 2, 2]}}}
    )
    assert isinstance(config.optimizer.learning_rate, float)
    assert config.method.model.multipliers == (1, 2, 2)


def test_settings_of_before_a_condition_had_fields_mean_what_they_meant():
    model = dict(width=32, upscale=4, rrdb_features=48, rrdb_growth=16, rrdb_blocks=1)
    old = {'generator': {'model': model, 'residual_scale': 0.06}, 'seed': 3}
    config = from_dict(TrainConfig, upgrade(old))
    assert config.seed == 3 and config.method.codec == ResidualConfig(scale=0.06)
    assert from_dict(TrainConfig, upgrade({'generator': {'residual_scale': 0.0}})).method.codec == IdentityConfig()
    own = former(to_dict(config.method))
    assert own['residual_scale'] == 0.06 and own['model'].items() >= model.items()
    assert config.method.model.spatial == {'lr': Spatial(scale=4, features=48, growth=16, blocks=1)}
    assert config.method.model.numbers == {'gsd_m': GSD_M} and config.method.model.tokens == {}
    now = json.loads(json.dumps(to_dict(config)))
    assert upgrade(now) == now and from_dict(TrainConfig, now) == config
    for strange in ({}, {'generator': 3}, {'method': {'model': None}}):
        assert upgrade(strange) == strange


def test_a_config_survives_its_editable_form():
    number = dataclasses.replace(GSD_M, droppable=True)
    model = UNetConfig(spatial={'lr': Spatial(), 'before': Spatial(droppable=True)}, numbers={'gsd_m': number})
    drops = Drop(('gsd_m',), 0.2), Drop(('before', 'gsd_m'))
    config = TrainConfig(method=DiffusionConfig(model=model, drops=drops))
    editable = to_config_dict(config)
    assert from_dict(TrainConfig, editable.to_dict()) == config
    assert from_dict(TrainConfig, json.loads(json.dumps(editable.to_dict()))) == config
    editable.method.drops = ({'fields': ('before',)},)
    assert from_dict(TrainConfig, editable.to_dict()).method.drops == (Drop(('before',)),)


def test_the_order_of_fields_in_a_config_does_not_matter():
    kinds = {
        'spatial': {'lr': Spatial(), 'before': Spatial(scale=1), 'Z': Spatial(scale=2)},
        'numbers': {'gsd_m': GSD_M, 'cloud': Number()},
        'tokens': {'text': Tokens(8, droppable=True), 'place': Tokens(4, droppable=True)},
    }
    one = UNetConfig(**kinds)
    other = UNetConfig(**{kind: dict(reversed(fields.items())) for kind, fields in kinds.items()})
    config = TrainConfig(method=DiffusionConfig(model=other))
    edited = from_dict(TrainConfig, to_config_dict(config).to_dict()).method.model
    stored = from_dict(TrainConfig, json.loads(json.dumps(to_dict(config)))).method.model
    for model in (other, edited, stored):
        assert model == one and hash(model) == hash(one) and [*model.fields] == [*one.fields]
    assert [*one.spatial] == ['Z', 'before', 'lr']


@dataclasses.dataclass(frozen=True)
class Latent:
    """A codec of some later version."""

    kind: str = 'latent'
    factor: int = 8


def test_every_setting_of_a_codec_enters_the_digest():
    codecs = IdentityConfig(), ResidualConfig(), ResidualConfig(scale=0.2), Latent(), Latent(factor=4)
    digests = {_digest({}, TrainConfig(method=DiffusionConfig(codec=codec))) for codec in codecs}
    assert len(digests) == len(codecs)
    assert not any('codec' in former(to_dict(DiffusionConfig(codec=codec))) for codec in codecs[:2])


def test_differences_are_listed_by_dotted_name():
    old = to_dict(TrainConfig())
    new = to_dict(dataclasses.replace(TrainConfig(), seed=3, mesh=dataclasses.replace(TrainConfig().mesh, fsdp=2)))
    assert differing_keys(old, new) == ['mesh.fsdp (1 → 2)', 'seed (0 → 3)']
    assert differing_keys(old, old) == []


def test_config_files_cannot_invent_keys():
    with pytest.raises(AttributeError):
        to_config_dict(TrainConfig()).optimiser = 3


@pytest.mark.parametrize(
    'flag, value',
    [
        ('data.gsd_m', 0.3),
        ('data.split', 'train'),
        ('data.reductions', (1, 4)),
        ('data.bands', (4, 3, 2)),
        ('validation.steps', 5),
        ('method.schedule.zero_terminal_snr', True),
        ('method.model.spatial.lr.features', 16),
    ],
)
def test_any_key_can_be_set_by_a_flag(flag, value, monkeypatch):
    values = flags.FlagValues()
    config_flags.DEFINE_config_file('config', None, flag_values=values, lock_config=False)
    monkeypatch.setattr(sys, 'argv', ['train.py', '--config', demo.__file__, f'--config.{flag}={value}'])
    values(sys.argv)
    config = from_dict(TrainConfig, values.config.to_dict())
    for name in flag.split('.'):
        config = config[name] if isinstance(config, dict) else getattr(config, name)
    assert config == value


def test_a_config_file_takes_another_degradation_by_name():
    assert from_dict(TrainConfig, metaearth.get_config('bicubic').to_dict()).degradation == PRESETS['bicubic']
    with pytest.raises(BadInput, match='metaearth.py:cubic: no such degradation'):
        metaearth.get_config('cubic')
