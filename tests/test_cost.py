"""The multiply–accumulate counter against formulas, PyTorch's and XLA's counters; state bytes against arrays."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from rsdiff.methods.adversarial import AdversarialConfig
from rsdiff.methods.kinds import make_method
from rsdiff.models.discriminator import DiscriminatorConfig
from rsdiff.models.rrdbnet import RRDBNetConfig
from rsdiff.pretrained import perceptual
from rsdiff.training import cost
from rsdiff.training import mesh as meshes
from rsdiff.training.config import TrainConfig, from_dict
from rsdiff.training.state import Trainer

SMALL = from_dict(
    TrainConfig,
    {
        'method': {
            'model': dict(
                width=64,
                multipliers=(1,),
                blocks=1,
                attention_levels=(),
                head_width=16,
                patch=4,
                spatial={'lr': dict(features=16, growth=8, blocks=1)},
            )
        },
        'data': {'size_px': 32},
        'batch_size': 4,
        'accumulation': 2,
    },
)


def macs(function, *arguments, **options):
    return cost.count_macs(jax.make_jaxpr(function)(*arguments), **options)


def zeros(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def conv(x, kernel, **options):
    options = dict(window_strides=(1, 1), padding='SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')) | options
    return lax.conv_general_dilated(x, kernel, **options)


def test_a_matrix_product_is_rows_times_columns_times_length():
    assert macs(jnp.matmul, zeros(7, 5), zeros(5, 3)) == 7 * 5 * 3
    assert macs(jnp.matmul, zeros(2, 7, 5), zeros(2, 5, 3)) == 2 * 7 * 5 * 3


def test_a_convolution_is_outputs_times_taps_times_channels():
    assert macs(conv, zeros(2, 8, 10, 6), zeros(3, 5, 6, 4)) == 2 * 8 * 10 * 4 * 3 * 5 * 6
    strided = lambda x, k: conv(x, k, window_strides=(2, 2), padding=((1, 1), (1, 1)))
    assert macs(strided, zeros(2, 8, 10, 6), zeros(3, 3, 6, 4)) == 2 * 4 * 5 * 4 * 9 * 6
    grouped = lambda x, k: conv(x, k, feature_group_count=3)
    assert macs(grouped, zeros(2, 8, 8, 6), zeros(3, 3, 2, 9)) == 2 * 64 * 9 * 9 * 2


def test_every_frame_of_a_stack_is_counted():
    model = {'kind': 'highresnet', 'features': 16, 'frames': 4}
    config = from_dict(TrainConfig, {'method': {'kind': 'regression', 'model': model}, 'data': {'size_px': 32}})
    encoder, fusion = 9 * (3 * 16 + 16 * 16), 9 * (2 * 32 * 32 + 32 * 16)
    rendering = 16 * (1 * 1 + 1 * 3)
    assert cost.count_macs(cost.trace_forward(config).jaxpr) == 64 * (4 * encoder + 3 * fusion + rendering)


def test_attention_is_two_products_of_all_pairs():
    length, heads, width = 9, 2, 8
    qkv = [zeros(3, length, heads, width)] * 3
    assert macs(jax.nn.dot_product_attention, *qkv) == 2 * 3 * heads * length**2 * width


def test_a_scan_counts_each_turn_and_what_is_within_calls_counts():
    product = lambda x: x @ x
    turns = lambda body: lambda x: lax.scan(lambda carry, _: (body(carry), None), x, length=5)[0]
    for body in (product, jax.jit(product), jax.checkpoint(product), jax.vmap(lambda row: row @ jnp.ones((4, 4)))):
        assert macs(turns(body), zeros(4, 4)) == 5 * 4**3


def test_of_two_branches_the_dearer_counts():
    assert macs(lambda p, x: lax.cond(p, lambda x: x @ x @ x, lambda x: x @ x, x), True, zeros(4, 4)) == 2 * 4**3


def test_remat_counts_what_it_computes_again():
    layer = lambda w, x: jnp.sin(jnp.sin(x @ w) @ w).sum()
    plain, again = (macs(jax.grad(f), zeros(4, 4), zeros(4, 4)) for f in (layer, jax.checkpoint(layer)))
    assert plain == 5 * 4**3 and again == 7 * 4**3


def test_a_loop_of_unknown_length_is_refused_only_if_it_multiplies():
    loop = lambda body: lambda x: lax.while_loop(lambda x: x.sum() < 9, body, x)
    assert macs(loop(lambda x: x + 1), zeros(4, 4)) == 0
    with pytest.raises(ValueError, match='unknown length'):
        macs(loop(lambda x: x @ x), zeros(4, 4))


CONVOLUTIONS = [
    dict(),
    dict(window_strides=(2, 2)),
    dict(padding=((2, 0), (1, 3))),
    dict(rhs_dilation=(2, 2)),
    dict(feature_group_count=2),
    dict(padding='VALID', window_strides=(3, 1)),
]


@pytest.mark.parametrize('options', CONVOLUTIONS, ids=str)
def test_without_padding_each_convolution_and_its_gradients_are_as_xla_counts_them(options):
    x, kernel = zeros(2, 9, 12, 4), zeros(3, 3, 4 // options.get('feature_group_count', 1), 6)
    forward = lambda x, kernel: conv(x, kernel, **options)
    by_input = lambda kernel, g: jax.linear_transpose(lambda x: forward(x, kernel), x)(g)
    by_kernel = lambda x, g: jax.linear_transpose(lambda kernel: forward(x, kernel), kernel)(g)
    out = jax.eval_shape(forward, x, kernel)
    for function, arguments in ((forward, (x, kernel)), (by_input, (kernel, out)), (by_kernel, (x, out))):
        traced = jax.jit(function).trace(*arguments)
        assert 2 * cost.count_macs(traced.jaxpr, padding=False) == traced.lower().cost_analysis()['flops']


@pytest.mark.parametrize('stride, dilation', [(1, 1), (2, 1), (1, 2)])
def test_with_padding_a_convolution_and_its_gradients_are_as_pytorch_counts_them(stride, dilation):
    torch = pytest.importorskip('torch', reason='PyTorch is the reference; it is in the `parity` extra')
    from torch.utils.flop_counter import FlopCounterMode

    x, kernel = torch.zeros(2, 4, 8, 8, requires_grad=True), torch.zeros(6, 4, 3, 3, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        torch.nn.functional.conv2d(x, kernel, stride=stride, padding=dilation, dilation=dilation).sum().backward()
    ours = lambda x, kernel: jnp.sin(
        conv(x, kernel, window_strides=(stride,) * 2, padding=((dilation, dilation),) * 2, rhs_dilation=(dilation,) * 2)
    ).sum()
    counted = macs(jax.grad(ours, argnums=(0, 1)), zeros(2, 8, 8, 4), zeros(3, 3, 4, 6))
    assert 2 * counted == counter.get_total_flops()


def test_the_whole_network_is_what_xla_counts_but_for_what_is_no_product():
    forward = cost.trace_forward(SMALL)
    counted = cost.count_macs(forward.jaxpr, padding=False)
    assert 1 < forward.lower().cost_analysis()['flops'] / 2 / counted < 1.05
    assert cost.count_macs(forward.jaxpr) > counted


def test_a_step_is_about_three_forwards_and_that_of_a_batch_is_as_many_as_it_has_images():
    step, state = cost.trace_step(SMALL, remat=False)
    step = cost.count_macs(step.jaxpr)
    assert step == pytest.approx(3 * cost.count_macs(cost.trace_forward(SMALL).jaxpr), rel=0.05)
    trainer = Trainer(SMALL, meshes.make_mesh(1, jax.devices()[:1]))
    batch = {'image': jax.ShapeDtypeStruct((4, 32, 32, 3), jnp.uint8), 'gsd_m': zeros(4)}
    assert macs(trainer.step, state, batch) == 4 * step
    assert cost.count_macs(cost.trace_step(SMALL, remat=True)[0].jaxpr) > 1.1 * step


def test_a_step_of_two_parts_counts_both_and_the_networks_of_the_losses(monkeypatch):
    """Forward passes: the generator in both losses; the discriminator once in the generator's, twice in its own."""
    # as read from a file: not under a trace
    read = lambda: jax.tree.map(lambda leaf: np.asarray(jnp.zeros(leaf.shape)), perceptual.parameter_shapes())
    monkeypatch.setattr(perceptual, 'load_params', read)
    method = AdversarialConfig(
        model=RRDBNetConfig(features=8, growth=8, blocks=1), discriminator=DiscriminatorConfig(features=8), usm=False
    )
    config = dataclasses.replace(SMALL, method=method)
    step, state = cost.trace_step(config, remat=False)
    made = make_method(method)
    params = jax.eval_shape(made.init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(state['params'])) == sum(
        leaf.size for leaf in jax.tree.leaves(params)
    )
    image, buffers = zeros(1, 32, 32, 3), jax.eval_shape(made.init_buffers, jax.random.key(0))
    judge = lambda params, buffers, x: made.image_loss.judged(params, buffers, {}, x)[0]
    discriminator = macs(judge, params, buffers, image)
    vgg = macs(perceptual.maps, perceptual.parameter_shapes(), image)
    generator = cost.count_macs(cost.trace_forward(config).jaxpr)
    # a gradient by the parameters and the input costs two passes; one by the input alone, one
    expected = (3 + 1) * generator + (2 + 2 * 3) * discriminator + 3 * vgg
    assert cost.count_macs(step.jaxpr) == pytest.approx(expected, rel=0.05)
    assert cost.count_macs(cost.trace_step(config, remat=True)[0].jaxpr) > cost.count_macs(step.jaxpr)


@pytest.mark.parametrize('fsdp', [1, 2, 8])
def test_state_bytes_are_those_of_the_arrays_on_a_device(fsdp):
    params = {'kernel': jnp.zeros((3, 3, 64, 128)), 'odd': jnp.zeros((129, 131)), 'bias': jnp.zeros(128)}
    state = {'step': jnp.zeros((), jnp.int32), 'params': params, 'ema': params, 'opt': [params, params, jnp.zeros(())]}
    placed = jax.device_put(state, meshes.tree_sharding(meshes.make_mesh(fsdp), state))
    held = lambda tree: sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))
    sizes = cost.state_bytes(jax.eval_shape(lambda: state), 8 // fsdp, fsdp)
    assert [sizes[name] for name in ('parameters', 'average', 'optimizer', 'gradients')] == [
        held(placed[name]) for name in ('params', 'ema', 'opt', 'params')
    ]
    assert sizes['total'] == held(placed) - 4 + held(placed['params'])


def test_an_unknown_device_has_no_peak():
    assert cost.peak_flops('cpu', 'float32') is None
    assert cost.peak_flops('NVIDIA H200', 'bfloat16') > cost.peak_flops('NVIDIA H200', 'float32')
