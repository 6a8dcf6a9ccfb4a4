"""The device mesh, and the rule by which arrays are sharded on it."""

from typing import Any, Iterable, Sequence, cast

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from rsdiff.base.errors import BadInput

# Arrays smaller than this are replicated on every device: sharding them costs more than it saves.
MIN_SHARDED_SIZE = 2**14


def make_mesh(fsdp: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """All devices as ('data', 'fsdp'). Batches are split over both axes, parameters over 'fsdp'.

    Raises:
      BadInput: `fsdp` does not divide the number of devices.
    """
    devices = devices if devices is not None else jax.devices()
    if fsdp < 1 or len(devices) % fsdp:
        raise BadInput(f'config.mesh.fsdp is {fsdp}, which does not divide {len(devices)} devices')
    # Auto axes: explicit ones do not support convolutions with sharded kernels.
    return jax.make_mesh(
        (len(devices) // fsdp, fsdp), ('data', 'fsdp'), axis_types=(AxisType.Auto,) * 2, devices=devices
    )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first axis split over all devices."""
    return NamedSharding(mesh, PartitionSpec(('data', 'fsdp')))


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """A full copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def array_sharding(mesh: Mesh | AbstractMesh, shape: tuple[int, ...]) -> NamedSharding:
    """The FSDP rule: split the largest axis that is divisible by `fsdp`; replicate small arrays."""
    parts = mesh.shape['fsdp']
    divisible = [axis for axis, size in enumerate(shape) if size % parts == 0]
    if parts == 1 or np.prod(shape) < MIN_SHARDED_SIZE or not divisible:
        return replicated(mesh)
    axis = max(divisible, key=lambda a: shape[a])
    return NamedSharding(mesh, PartitionSpec(*(('fsdp' if a == axis else None) for a in range(len(shape)))))


def tree_sharding(mesh: Mesh | AbstractMesh, shapes):
    """`array_sharding` for every leaf of a tree of arrays or shapes: parameters, averages and optimiser state alike."""
    return jax.tree.map(lambda leaf: array_sharding(mesh, leaf.shape), shapes)


def gathered(mesh: Mesh, params, dtype):
    """Parameters for use in a step: sharded ones are gathered once, in `dtype`. Their gradients, sums over devices, are
    returned sharded like the parameters: reduce-scattered instead of all-reduced.

    By default, the partitioner would split each operation like its kernel, and exchange activations instead.
    """

    def gather(leaf):
        split = array_sharding(mesh, leaf.shape)
        if split.is_fully_replicated:
            return leaf
        constrain = jax.lax.with_sharding_constraint

        @jax.custom_vjp
        def whole(x):
            return constrain(constrain(x.astype(dtype), split), replicated(mesh))

        whole.defvjp(lambda x: (whole(x), None), lambda _, gradient: (constrain(gradient, split).astype(leaf.dtype),))
        return whole(leaf)

    return jax.tree.map(gather, params)


def check_batch(mesh: Mesh, batch_size: int, accumulation: int) -> None:
    """Raises BadInput if the parts of a batch cannot be split evenly over the devices."""
    if batch_size % (mesh.size * accumulation):
        raise BadInput(f'config.batch_size {batch_size} is not a multiple of {mesh.size} devices × accumulation')


def local_rows(mesh: Mesh, batch_size: int) -> list[int]:
    """The rows of a batch on this process's devices, in ascending order, which this process has to read."""
    slices = batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
    return sorted(row for (part,) in cast(Iterable[tuple[slice]], slices) for row in range(*part.indices(batch_size)))


def put_batch(mesh: Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Converts the `local_rows` of a batch (NumPy) to global arrays."""
    sharding = batch_sharding(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, value) for name, value in batch.items()}
