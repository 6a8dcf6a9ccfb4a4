import dataclasses
import types

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny import drawn

from configs import demo, metaearth
from rsdiff.base.keys import Keys
from rsdiff.diffusion.constraints import Projection, smooth_up
from rsdiff.diffusion.objective import ObjectiveConfig
from rsdiff.diffusion.schedule import ResShiftConfig, to_x0
from rsdiff.methods.codec import IdentityConfig, ResidualConfig
from rsdiff.methods.diffusion import Diffusion, DiffusionConfig
from rsdiff.methods.sampling import sample
from rsdiff.models.conditioning import GSD_M, Number, Spatial, Tokens, position
from rsdiff.models.embeddings import harmonics, sinusoid
from rsdiff.models.rrdbnet import RRDBNet
from rsdiff.models.unet import UNetConfig, attention_kernel, folded
from rsdiff.training.config import TrainConfig, from_dict

TINY = UNetConfig(
    width=16,
    multipliers=(1, 2),
    blocks=1,
    attention_levels=(1,),
    head_width=16,
    patch=2,
    spatial={'lr': Spatial(features=8, growth=4, blocks=1)},
)


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def shapes_of(method):
    return jax.eval_shape(method.init, jax.random.key(0))


def loss_of(method, params, condition=None):
    """The training loss on the images X, and their condition."""
    prepared = {'targets': {'image': X}, 'condition': condition or CONDITION}
    return method.loss('generator', params, {'generator': {}}, {}, prepared, jax.random.key(0))[0]


@pytest.fixture(scope='module')
def tiny():
    generator = Diffusion(DiffusionConfig(model=TINY))
    return generator, drawn(generator)


X = jax.random.normal(jax.random.key(2), (2, 32, 32, 3))
LR = jax.random.uniform(jax.random.key(3), (2, 8, 8, 3), minval=-1, maxval=1)
T, GSD = jnp.array([500, 500]), jnp.array([10.0, 10.0])
CONDITION = {'lr': LR, 'gsd_m': GSD}


def test_full_size_is_what_its_docstring_says():
    config = from_dict(TrainConfig, metaearth.get_config().to_dict())
    parameters = count(shapes_of(Diffusion(config.method)))
    assert parameters == 612_187_651 and f'{parameters:,}' in metaearth.__doc__


def test_demo_config_is_small_enough_for_two_cores():
    config = from_dict(TrainConfig, demo.get_config().to_dict())
    assert count(shapes_of(Diffusion(config.method))) < 8e6


def test_rrdbnet_has_the_published_number_of_parameters_and_enlarges_four_times():
    model = nnx.eval_shape(lambda: RRDBNet(rngs=Keys(0)))
    assert count(nnx.state(model)) == 16_697_987
    graphdef, state = nnx.split(model)
    out = jax.eval_shape(lambda state, x: nnx.merge(graphdef, state)({'lr': x}), state, jnp.zeros((1, 5, 7, 3)))
    assert out.shape == (1, 20, 28, 3)


@pytest.mark.parametrize('patch', [1, 2, 4])
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_output_has_the_shape_and_type_of_the_image(patch, dtype):
    generator = Diffusion(DiffusionConfig(model=dataclasses.replace(TINY, patch=patch, dtype=dtype)))
    shapes = shapes_of(generator)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(shapes))
    out = jax.eval_shape(lambda p: generator.denoiser(p, CONDITION)(X, T), shapes)
    assert out.shape == X.shape and out.dtype == jnp.float32


def test_every_input_matters(tiny):
    generator, params = tiny
    predict = jax.jit(lambda x, t, lr, gsd: generator.denoiser(params, {'lr': lr, 'gsd_m': gsd})(x, t))
    inputs = {'x': X, 't': T, 'lr': LR, 'gsd': GSD}
    before = predict(**inputs)
    for name, other in {'x': -X, 't': T - 400, 'lr': -LR, 'gsd': GSD * 4}.items():
        assert float(jnp.abs(predict(**inputs | {name: other}) - before).max()) > 1e-3, name


@pytest.fixture(scope='module')
def gradient(tiny):
    generator, params = tiny
    return jax.jit(jax.grad(lambda p: loss_of(generator, p)))(params)


def test_every_parameter_gets_a_gradient(gradient):
    silent = [
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(gradient)
        if not float(jnp.abs(leaf).max()) > 0
    ]
    assert not silent


def test_an_image_does_not_depend_on_its_neighbours_in_the_batch(tiny):
    generator, params = tiny
    predict = jax.jit(
        lambda x, lr: generator.denoiser(params, {'lr': lr, 'gsd_m': jnp.full(len(x), 10.0)})(x, jnp.full(len(x), 500))
    )
    np.testing.assert_allclose(predict(X, LR)[1:], predict(X[1:], LR[1:]), atol=1e-4)


def test_remat_changes_nothing(tiny, gradient):
    again = Diffusion(DiffusionConfig(model=dataclasses.replace(TINY, remat=True)))
    other = jax.jit(jax.grad(lambda p: loss_of(again, p)))(tiny[1])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-3), gradient, other)


RESIDUAL = DiffusionConfig(model=TINY, objective=ObjectiveConfig(prediction='x0'), codec=ResidualConfig(scale=0.1))


def test_a_fresh_residual_network_says_the_enlarged_condition():
    generator = Diffusion(RESIDUAL)
    params = generator.init(jax.random.key(0))
    out = jax.jit(lambda p, n: sample(generator, p, CONDITION, n, 3, projection=None))(params, X)
    np.testing.assert_allclose(out, jnp.clip(smooth_up(LR, 4), -1, 1), atol=1e-5)


@pytest.mark.parametrize('scale', [0.0, 0.1])
def test_image_and_what_is_diffused_are_one_to_one(scale):
    codec = ResidualConfig(scale=scale) if scale else IdentityConfig()
    z0 = codec.encode({'image': X}, CONDITION)
    assert float(jnp.abs(z0 - X).max()) > 1 if scale else (z0 == X).all()
    np.testing.assert_allclose(codec.decode(z0, CONDITION)['image'], X, atol=1e-5)


def test_sampling_with_consistency_agrees_with_the_condition(tiny):
    generator, params = tiny
    made = jax.jit(lambda n, c: sample(generator, params, CONDITION | {'lr': LR * 0.5}, n, 8, c), static_argnums=1)
    error = lambda x: float(jnp.abs(x.reshape(2, 8, 4, 8, 4, 3).mean((2, 4)) - LR * 0.5).mean())
    assert error(made(X, Projection())) < 0.25 * error(made(X, None))


def test_the_less_strength_the_closer_to_the_real_image(tiny):
    generator, params = tiny
    real = jnp.clip(X / 3, -1, 1)
    made = jax.jit(
        lambda n, s: sample(generator, params, CONDITION, n, 3, None, guide=real, strength=s), static_argnums=1
    )
    away = [float(jnp.abs(made(X[::-1], strength) - real).mean()) for strength in (0.01, 0.3, 1.0)]
    assert away[0] < away[1] < away[2] and away[0] < 0.2 * away[2]


# every kind of field, each of which may be absent
MANY = dataclasses.replace(
    TINY,
    spatial={'lr': Spatial(features=8, growth=4, blocks=1), 'before': Spatial(4, 1, 8, 4, 0, droppable=True)},
    numbers={'gsd_m': GSD_M, 'day': Number('cyclic', 0, 365, True), 'cloud': Number('linear', 0, 1, True)},
    tokens={'text': Tokens(6, droppable=True), 'place': Tokens(5, droppable=True)},
)
ALL = CONDITION | {
    'before': jax.random.uniform(jax.random.key(4), (2, 32, 32, 4)),
    'day': jnp.array([10.0, 200.0]),
    'cloud': jnp.array([0.1, 0.7]),
    'text': jax.random.normal(jax.random.key(5), (2, 3, 6)),
    'place': jax.random.normal(jax.random.key(6), (2, 1, 5)),
}
OPTIONAL = [name for name in ALL if name not in CONDITION]


@pytest.fixture(scope='module')
def many():
    generator = Diffusion(DiffusionConfig(model=MANY))
    params = drawn(generator)
    return generator, params, jax.jit(lambda condition, x=X: generator.denoiser(params, condition)(x, T))


@pytest.mark.parametrize('field', list(ALL))
def test_every_field_matters(many, field):
    _, _, predict = many
    other = {'gsd_m': 4, 'day': 0.3, 'cloud': 0.5}.get(field, -1) * ALL[field]
    assert float(jnp.abs(predict(ALL | {field: other}) - predict(ALL)).max()) > 1e-3


@pytest.mark.parametrize('field', OPTIONAL)
def test_absent_and_nan_are_one_null_and_each_example_has_its_own(many, field):
    _, _, predict = many
    absent = predict({name: value for name, value in ALL.items() if name != field})
    np.testing.assert_allclose(predict(ALL | {field: jnp.full_like(ALL[field], jnp.nan)}), absent, atol=1e-5)
    one = predict(ALL | {field: ALL[field].at[0].set(jnp.nan)})
    np.testing.assert_allclose(one[0], absent[0], atol=1e-5)
    np.testing.assert_allclose(one[1], predict(ALL)[1], atol=1e-5)
    assert float(jnp.abs(absent - predict(ALL)).max()) > 1e-3


def test_a_condition_of_nothing_optional_is_enough_and_every_null_learns(many):
    generator, params, _ = many
    assert {name for name in params['generator'] if name.endswith('_null')} == {f'{name}_null' for name in OPTIONAL}
    for condition in (CONDITION, ALL | {name: jnp.full_like(ALL[name], jnp.nan) for name in OPTIONAL}):
        gradient = jax.jit(jax.grad(lambda p, c: loss_of(generator, p, c)))(params, condition)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
        assert all(float(jnp.abs(gradient['generator'][f'{name}_null']).max()) > 0 for name in OPTIONAL)


def test_a_token_of_nan_is_not_looked_at(many):
    _, _, predict = many
    more = jnp.concatenate([ALL['text'], jnp.full((2, 2, 6), jnp.nan)], 1)
    np.testing.assert_allclose(predict(ALL | {'text': more}), predict(ALL), atol=1e-5)


def test_a_field_that_is_needed_and_one_that_is_not_taken_are_named(many):
    generator, params, _ = many
    with pytest.raises(ValueError, match="lacks 'lr'"):
        generator.denoiser(params, {'gsd_m': GSD})
    with pytest.raises(ValueError, match="has 'elevation'"):
        generator.denoiser(params, ALL | {'elevation': LR})


def test_fields_beside_the_first_change_nothing_of_its_parameters(tiny):
    """Runs from before fields existed can thus continue, and initial parameters are drawn as before."""
    generator, _ = tiny
    names = [
        jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(shapes_of(generator)['generator'])
    ]
    assert {name.split("'")[1] for name in names} >= {'encoder', 'enlarge', 'gsd_mlp', 'time_mlp'}
    assert not [name for name in names if 'null' in name or 'cross' in name]


ENLARGED = dataclasses.replace(TINY, spatial={'lr': Spatial(encoder='enlarged')})
ALIGNED = dataclasses.replace(TINY, spatial={'lr': Spatial(features=8, growth=4, blocks=1, join='align')})


def test_an_enlarged_condition_is_concatenated_as_it_is():
    """As in SR3: the first convolution sees the folded pixels of x_t and of the bicubically enlarged condition."""
    generator = Diffusion(DiffusionConfig(model=ENLARGED))
    params = drawn(generator)
    assert not {'encoder', 'enlarge'} & {*params['generator']}
    assert params['generator']['conv_in']['kernel'].shape[2] == 2 * 3 * TINY.patch**2
    (features,) = generator.network(params).encode(CONDITION).features
    np.testing.assert_allclose(features, folded(smooth_up(LR, 4), TINY.patch), atol=1e-6)


def test_convolutions_at_full_size_start_as_nothing_and_learn():
    method = Diffusion(DiffusionConfig(model=dataclasses.replace(TINY, refine=4)))
    fresh = jax.jit(lambda key: method.predict(method.init(key), {}, CONDITION)(X, T))(jax.random.key(0))
    plain = Diffusion(DiffusionConfig(model=TINY, objective=ObjectiveConfig('x0')))
    assert {*shapes_of(method)['generator']} - {*shapes_of(plain)['generator']} == {'refine1', 'refine2'}
    params = drawn(method)
    gradient = jax.jit(jax.grad(lambda params: loss_of(method, params)))(params)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(gradient))
    output = jax.jit(lambda: method.denoiser(params, CONDITION)(X, T))()
    assert output.shape == X.shape and output.dtype == jnp.float32
    np.testing.assert_allclose(fresh, to_x0(method.schedule, 'eps', 0.0, X, T), rtol=1e-5)


def test_an_alignment_block_starts_as_nothing_and_learns():
    generator = Diffusion(DiffusionConfig(model=ALIGNED))
    params = drawn(generator)
    predict = jax.jit(lambda params, lr: generator.denoiser(params, CONDITION | {'lr': lr})(X, T))
    assert float(jnp.abs(predict(params, -LR) - predict(params, LR)).max()) > 1e-3
    fresh = params['generator']['lr_align'] | {
        'out': jax.tree.map(jnp.zeros_like, params['generator']['lr_align']['out'])
    }
    fresh = {'generator': params['generator'] | {'lr_align': fresh}}
    np.testing.assert_array_equal(predict(fresh, -LR), predict(fresh, LR))
    gradient = jax.jit(jax.grad(lambda p: loss_of(generator, p)))(fresh)['generator']['lr_align']['out']
    assert float(jnp.abs(gradient['kernel']).max()) > 0


def test_the_network_is_told_t_or_the_share_of_the_image():
    by_t, by_alpha = (Diffusion(DiffusionConfig(model=TINY, time=time)) for time in ('t', 'alpha'))
    params = drawn(by_t)
    model = by_t.network(params)
    for generator, told in ((by_t, T), (by_alpha, 1000 * by_t.schedule.alpha(T))):
        expected = model(X, told, model.encode(CONDITION))
        np.testing.assert_allclose(generator.denoiser(params, CONDITION)(X, T), expected, atol=1e-5)


def test_the_network_sees_unit_variance_where_noise_grows():
    generator = Diffusion(DiffusionConfig(model=TINY, schedule=ResShiftConfig(), codec=ResidualConfig()))
    params = drawn(generator)
    model, t = generator.network(params), jnp.array([15, 8])
    scale = np.sqrt((1 - 0.99**2) ** 2 + 4 * 0.99**2)
    expected = model(X / scale, t, model.encode(CONDITION))
    np.testing.assert_allclose(generator.denoiser(params, CONDITION)(X, t)[:1], expected[:1], atol=1e-5)


def test_an_angle_goes_round():
    year = Number('cyclic', 0, 365)
    code = lambda day: np.asarray(harmonics(position(year, jnp.array([day])), 8))
    np.testing.assert_allclose(code(365.0), code(0.0), atol=1e-5)
    assert np.abs(code(100.0) - code(200.0)).max() > 0.5


def test_sinusoid_is_the_published_code():
    code = np.asarray(sinusoid(jnp.array([0.0, 3.0]), 8))
    frequency = 10_000.0 ** (-np.arange(4) / 4)
    np.testing.assert_allclose(code[1], np.concatenate([np.cos(3 * frequency), np.sin(3 * frequency)]), atol=1e-6)
    np.testing.assert_allclose(code[0], [1] * 4 + [0] * 4)


def test_four_times_coarser_is_the_same_step_at_any_resolution():
    steps = position(GSD_M, jnp.array([1.2, 64.0, 118_000.0])) - position(GSD_M, jnp.array([0.3, 16.0, 29_500.0]))
    np.testing.assert_allclose(steps, 75.26, atol=0.01)


@pytest.mark.parametrize(
    'platform, version, dtype, kernel',
    [
        ('gpu', 'PJRT C API\ncuda 13000', jnp.bfloat16, 'cudnn'),
        ('gpu', 'PJRT C API\ncuda 13000', jnp.float32, None),
        ('gpu', 'PJRT C API\nrocm 70100', jnp.bfloat16, None),
        ('cpu', 'cpu', jnp.bfloat16, None),
    ],
)
def test_attention_is_fused_where_cudnn_can(monkeypatch, platform, version, dtype, kernel):
    backend = types.SimpleNamespace(platform=platform, platform_version=version)
    monkeypatch.setattr(jax.extend.backend, 'get_backend', lambda: backend)
    assert attention_kernel(dtype) == kernel
