"""The cost of a config, from shapes alone: multiply–accumulates and bytes. Nothing here allocates an array.

One multiply–accumulate (MAC) is two floating-point operations. Only matrix products and convolutions are counted: a
device's peak is stated for these, and the rest of a network is negligible in comparison.
"""

import dataclasses
import math
from typing import Any, Iterator

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr
from jax.sharding import AbstractMesh, AxisType

from rsdiff.methods.kinds import make_method
from rsdiff.models.conditioning import Number, Spatial
from rsdiff.training import mesh as meshes
from rsdiff.training.config import TrainConfig
from rsdiff.training.state import Trainer, batch_shapes

# Dense peaks in FLOP/s from the vendors' data sheets, by `device.device_kind`, for JAX's default precision: bfloat16 with
# float32 accumulation; float32 as TF32 (NVIDIA) or as bfloat16 (TPU, which has no separate float32 peak).
PEAK_FLOPS = {
    'NVIDIA GeForce RTX 4090': {'bfloat16': 165.2e12, 'float32': 82.6e12},
    'NVIDIA A100-SXM4-40GB': {'bfloat16': 312e12, 'float32': 156e12},
    'NVIDIA A100-SXM4-80GB': {'bfloat16': 312e12, 'float32': 156e12},
    'NVIDIA A100-PCIE-40GB': {'bfloat16': 312e12, 'float32': 156e12},
    'NVIDIA A100 80GB PCIe': {'bfloat16': 312e12, 'float32': 156e12},
    'NVIDIA H100 PCIe': {'bfloat16': 756e12, 'float32': 378e12},
    'NVIDIA H100 80GB HBM3': {'bfloat16': 989e12, 'float32': 494e12},
    'NVIDIA H200': {'bfloat16': 989e12, 'float32': 494e12},
    'TPU v4': {'bfloat16': 275e12, 'float32': 275e12},
    'TPU v5 lite': {'bfloat16': 197e12, 'float32': 197e12},  # v5e
    'TPU v5': {'bfloat16': 459e12, 'float32': 459e12},  # v5p
    'TPU v5p': {'bfloat16': 459e12, 'float32': 459e12},
    'TPU v6 lite': {'bfloat16': 918e12, 'float32': 918e12},  # v6e
}


def count_macs(program: ClosedJaxpr, padding: bool = True) -> int:
    """The multiply–accumulates of a traced program, including every call, scan and remat inside it.

    Args:
      program: from `jax.make_jaxpr(function)(*shapes)` or `jax.jit(function).trace(*shapes).jaxpr`.
      padding: whether to count a convolution's products with its zero padding: True as papers and PyTorch's
        `FlopCounterMode` do, False as XLA's cost analysis does. Products with the holes of a dilated input never count.
    Raises:
      ValueError: a loop of unknown length multiplies matrices.
    """
    return _jaxpr_macs(program.jaxpr, padding)


def trace_forward(config: TrainConfig) -> jax.stages.Traced:
    """The network, including its condition encoder, on one image of `config.data.size_px`; without tokens."""
    method, size, shape = make_method(config.method), config.data.size_px, jax.ShapeDtypeStruct
    frozen = method.load_frozen()
    condition = {}
    for name, field in method.fields.items():
        if isinstance(field, Spatial):
            condition[name] = shape((1, *(size // field.scale,) * 2, field.frames * field.channels), jnp.float32)
        elif isinstance(field, Number):
            condition[name] = shape((1,), jnp.float32)
    return jax.jit(lambda params, frozen, xt, t, condition: method.predict(params, frozen, condition)(xt, t)).trace(
        jax.eval_shape(method.init, jax.random.key(0)),
        jax.eval_shape(lambda: frozen),
        shape((1, size, size, method.channels), jnp.float32),
        shape((1,), jnp.int32),
        condition,
    )


def trace_step(config: TrainConfig, remat: bool) -> tuple[jax.stages.Traced, Any]:
    """One training step, including degradation and optimiser, for one image on one device; and the shapes of its state.

    A step of n images takes n times as many multiply–accumulates, for any `accumulation`. The "model FLOPs" of an MFU are
    those without remat, which recomputes activations. A network without that setting has none.
    """
    model = config.method.model
    model = dataclasses.replace(model, remat=remat) if hasattr(model, 'remat') else model
    method = dataclasses.replace(config.method, model=model)
    one = dataclasses.replace(config, method=method, batch_size=1, accumulation=1)
    trainer = Trainer(one, meshes.make_mesh(1, jax.devices()[:1]))
    state = jax.eval_shape(trainer.init, jax.random.key(0))
    return trainer.trace_step(state, batch_shapes(one)), state


def state_bytes(state, data: int, fsdp: int) -> dict[str, int]:
    """Bytes per device on a mesh of data × fsdp, which need not exist, sharded by `mesh.tree_sharding`.

    Returns:
      parameters, average, optimizer, gradients (sharded like the parameters), and their total.
    """
    mesh = AbstractMesh((data, fsdp), ('data', 'fsdp'), axis_types=(AxisType.Auto,) * 2)

    def share(tree) -> int:
        shards = jax.tree.map(
            lambda leaf, sharding: math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize,
            tree,
            meshes.tree_sharding(mesh, tree),
        )
        return sum(jax.tree.leaves(shards))

    sizes = {
        'parameters': share(state['params']),
        'average': share(state['ema']),
        'optimizer': share(state['opt']),
        'gradients': share(state['params']),
    }
    return sizes | {'total': sum(sizes.values())}


def peak_flops(device_kind: str, dtype: str) -> float | None:
    """The device's peak in FLOP/s for arrays of `dtype`, or None if it is not in the table."""
    return PEAK_FLOPS.get(device_kind, {}).get(dtype)


def _jaxpr_macs(jaxpr: Jaxpr, padding: bool) -> int:
    return sum(_equation_macs(equation, padding) for equation in jaxpr.eqns)


def _equation_macs(equation, padding: bool) -> int:
    name, params = equation.primitive.name, equation.params
    if name == 'dot_general':
        (contracted, _), _ = params['dimension_numbers']
        lhs, out = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
        return math.prod(out) * math.prod(lhs[axis] for axis in contracted)
    if name == 'conv_general_dilated':
        return _convolution_macs(equation, padding)
    inner = [_jaxpr_macs(jaxpr, padding) for jaxpr in _inner_jaxprs(params)]
    if name == 'while' and any(inner):
        raise ValueError('a while loop of unknown length multiplies matrices; write it as a scan')
    if name == 'cond':
        return max(inner)
    return sum(inner) * (params['length'] if name == 'scan' else 1)


def _inner_jaxprs(params: dict[str, Any]) -> Iterator[Jaxpr]:
    """The programs that an equation calls: jit, remat, custom derivatives, and the bodies of control flow."""
    for value in params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, Jaxpr):
                yield item


def _convolution_macs(equation, padding: bool) -> int:
    """Output batch × output channels × input channels per group × (output position, tap) pairs along each axis."""
    params, numbers = equation.params, equation.params['dimension_numbers']
    lhs, kernel = (variable.aval.shape for variable in equation.invars)
    out = equation.outvars[0].aval.shape
    macs = out[numbers.out_spec[0]] * out[numbers.out_spec[1]] * kernel[numbers.rhs_spec[1]]
    axes = zip(
        numbers.lhs_spec[2:],
        numbers.rhs_spec[2:],
        numbers.out_spec[2:],
        params['window_strides'],
        params['padding'],
        params['lhs_dilation'],
        params['rhs_dilation'],
    )
    for in_axis, tap_axis, out_axis, stride, (before, _), in_dilation, tap_dilation in axes:
        # the position that each tap of each output reads in the dilated input; those not divisible by in_dilation are holes
        places = [
            place * stride + tap * tap_dilation - before
            for place in range(out[out_axis])
            for tap in range(kernel[tap_axis])
        ]
        steps = [place // in_dilation for place in places if place % in_dilation == 0]
        macs *= len(steps) if padding else sum(0 <= step < lhs[in_axis] for step in steps)
    return macs
