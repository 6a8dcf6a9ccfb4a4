import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from rsdiff.base.errors import BadInput
from rsdiff.training.mesh import (
    array_sharding,
    batch_sharding,
    gathered,
    local_rows,
    make_mesh,
    put_batch,
    tree_sharding,
)


def test_the_mesh_is_data_by_fsdp():
    assert dict(make_mesh(2).shape) == {'data': 4, 'fsdp': 2}
    assert dict(make_mesh(1, jax.devices()[:1]).shape) == {'data': 1, 'fsdp': 1}
    with pytest.raises(BadInput, match='fsdp is 3.*8 devices'):
        make_mesh(3)


@pytest.mark.parametrize(
    'shape, spec',
    [
        ((3, 3, 128, 256), PartitionSpec(None, None, None, 'fsdp')),
        ((3, 3, 256, 128), PartitionSpec(None, None, 'fsdp', None)),
        ((3, 3, 127, 128), PartitionSpec(None, None, None, 'fsdp')),
        ((127, 129), PartitionSpec()),
        ((512,), PartitionSpec()),
        ((), PartitionSpec()),
    ],
)
def test_the_largest_divisible_axis_is_split_and_small_arrays_are_not(shape, spec):
    assert array_sharding(make_mesh(8), shape).spec == spec


def test_a_split_tree_holds_a_share_on_each_device():
    mesh = make_mesh(8)
    tree = {'kernel': jnp.ones((64, 512)), 'bias': jnp.ones(512)}
    placed = jax.device_put(tree, tree_sharding(mesh, tree))
    assert placed['kernel'].addressable_shards[0].data.shape == (64, 64)
    assert placed['bias'].addressable_shards[0].data.shape == (512,)


def test_batches_are_split_over_all_devices_in_order():
    batch = put_batch(make_mesh(2), {'image': np.arange(16).reshape(16, 1)})
    assert batch['image'].sharding == batch_sharding(make_mesh(2))
    np.testing.assert_array_equal(batch['image'], np.arange(16).reshape(16, 1))
    assert all(shard.data.shape == (2, 1) for shard in batch['image'].addressable_shards)


def test_one_process_reads_every_row():
    assert local_rows(make_mesh(2), 16) == list(range(16))


def test_gathered_parameters_are_whole_and_their_gradients_split():
    mesh = make_mesh(8)
    rng = np.random.default_rng(0)
    params = {'kernel': rng.normal(size=(128, 256)).astype(np.float32), 'bias': np.ones(256, np.float32)}
    x = rng.normal(size=(16, 128)).astype(np.float32)

    def loss(gather, params, x):
        whole = gather(params)
        return jnp.mean(jnp.tanh(x @ whole['kernel'] + whole['bias']) ** 2)

    one = jax.jit(jax.grad(lambda *a: loss(lambda p: p, *a)))(params, x)
    placed = jax.device_put(params, tree_sharding(mesh, params))
    step = jax.jit(jax.grad(lambda *a: loss(lambda p: gathered(mesh, p, jnp.float32), *a)))
    compiled = step.lower(placed, jax.device_put(x, batch_sharding(mesh))).compile()
    many = compiled(placed, jax.device_put(x, batch_sharding(mesh)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), one, many)
    assert many['kernel'].sharding.spec == tree_sharding(mesh, params)['kernel'].spec
    assert compiled.as_text().count(' all-gather(') == 1

    low = jax.jit(lambda p: gathered(mesh, p, jnp.bfloat16))(placed)
    assert low['kernel'].dtype == jnp.bfloat16 and low['kernel'].sharding.is_fully_replicated
    assert low['bias'].dtype == jnp.float32
