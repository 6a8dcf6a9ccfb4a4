"""Compiles a step with a TPU's own compiler on a machine without a TPU: memory, FLOP, collectives, and a roofline.

`benchmark.py aot` compiles ahead of time for a topology that is described but not present (it needs the extra `tpu`, whose
libtpu has the compiler). Bytes, FLOP and collectives are reported by the compiler. Time is an estimate from the published
peaks of compute, memory and links: fully overlapped (the longest of the three, a lower bound) and in sequence (their sum).
"""

import dataclasses
import math
import os
import re
import time
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rsdiff.base.errors import BadInput
from rsdiff.data.degradation import UPSCALE
from rsdiff.diffusion import solvers
from rsdiff.diffusion.constraints import UP_REACH_PX, Projection
from rsdiff.methods.kinds import make_method
from rsdiff.methods.sampling import predictor
from rsdiff.training import cost
from rsdiff.training import mesh as meshes
from rsdiff.training.config import TrainConfig
from rsdiff.training.state import Trainer, batch_shapes


class Chip(NamedTuple):
    """Bytes of HBM that the compiler lets one program use, and from Google's documentation bytes/s of HBM and of all links
    together."""

    kind: str
    accelerator: str
    hbm_bytes: float
    hbm_bandwidth: float
    ici_bandwidth: float


CHIPS = {
    'v5e': Chip('TPU v5 lite', 'v5litepod', 15.75 * 2**30, 819e9, 200e9),
    'v5p': Chip('TPU v5p', 'v5p', 95.73 * 2**30, 2765e9, 600e9),
    'v6e': Chip('TPU v6 lite', 'v6e', 31.24 * 2**30, 1640e9, 448e9),
}
COLLECTIVES = 'all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all', 'collective-permute'
BYTES = {
    'pred': 1,
    's8': 1,
    'u8': 1,
    'bf16': 2,
    'f16': 2,
    's16': 2,
    'u16': 2,
    'f32': 4,
    's32': 4,
    'u32': 4,
    's64': 8,
    'u64': 8,
}


def aot(
    config: TrainConfig, topology: str, fsdp: int, batch: int, sampling: bool, hlo: str | None = None
) -> dict[str, Any]:
    """All figures of a training step, or of a step of sampling windows, over the chips of `topology`. The compiled program is
    written to the file `hlo`, if given.

    Raises:
      BadInput: the step needs more memory than a chip has.
    """
    chip, devices = described(topology)
    mesh = meshes.make_mesh(fsdp, devices)
    config = dataclasses.replace(
        config, batch_size=batch, accumulation=1, mesh=dataclasses.replace(config.mesh, fsdp=fsdp)
    )
    meshes.check_batch(mesh, batch, 1)
    start = time.perf_counter()
    lowered = lower_sampling(config, mesh) if sampling else lower_training(config, mesh)
    traced = time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if 'RESOURCE_EXHAUSTED' not in str(error):
            raise
        reason = str(error).splitlines()[0].split('RESOURCE_EXHAUSTED: ')[-1]
        raise BadInput(f'--batch {batch} --fsdp {fsdp}: {reason} Use a smaller batch or a larger fsdp') from None
    seconds = {'trace_and_lower': traced - start, 'compile': time.perf_counter() - traced}

    program = compiled.as_text()
    if hlo is not None:
        Path(hlo).write_text(program)
    memory, counted, found = compiled.memory_analysis(), compiled.cost_analysis() or {}, collectives(program)
    images = 1 if sampling else 3
    model_flop = images * 2 * cost.count_macs(cost.trace_forward(config).jaxpr) * batch / mesh.size
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return {
        'step': 'sampling' if sampling else 'training',
        'topology': topology,
        'mesh': dict(mesh.shape),
        'batch': batch,
        'size_px': config.data.size_px,
        'remat': getattr(config.method.model, 'remat', False),
        'dtype': config.method.model.dtype,
        'device_bytes': {
            'arguments': memory.argument_size_in_bytes,
            'outputs_beside_them': memory.output_size_in_bytes - memory.alias_size_in_bytes,
            'temporary': memory.temp_size_in_bytes,
            'total': held + memory.temp_size_in_bytes,
            'of': chip.hbm_bytes,
        },
        'device_flop': counted.get('flops'),
        'device_model_flop': model_flop,
        'device_bytes_accessed': counted.get('bytes accessed'),
        'collectives': found,
        'loops': len(re.findall(r' while\(', program)),
        'estimate': estimate(chip, mesh.size, counted, found, model_flop, batch, config.method.model.dtype),
        'seconds': seconds,
    }


def described(topology: str) -> tuple[Chip, list[Any]]:
    """The chip and the devices of a topology such as 'v5e:4x4'.

    Raises:
      BadInput: there is no chip of this name, libtpu is not installed, or its compiler does not know the shape.
    """
    name, _, shape = topology.partition(':')
    if name not in CHIPS or not re.fullmatch(r'\d+(x\d+){1,2}', shape):
        raise BadInput(f'--topology {topology}: give CHIP:SHAPE such as v5e:4x4; chips are {", ".join(CHIPS)}')
    chip, count = CHIPS[name], math.prod(map(int, shape.split('x')))
    jax.config.update('jax_platforms', 'cpu')
    # what the compiler would query on a machine with chips
    os.environ |= {
        'TPU_SKIP_MDS_QUERY': '1',
        'TPU_ACCELERATOR_TYPE': f'{chip.accelerator}-{count if name in ("v5e", "v6e") else 2 * count}',
        'TPU_WORKER_HOSTNAMES': 'localhost',
        'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',  # several processes may compile at once, as none uses a chip
    }
    try:
        from jax.experimental import topologies

        return chip, list(topologies.get_topology_desc(topology_name=topology, platform='tpu').devices)
    except Exception as error:  # raised by the plug-in, of any type
        line = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise BadInput(f"--topology {topology}: {line}; it needs the extra: pip install -e '.[tpu]'") from None


def lower_training(config: TrainConfig, mesh) -> jax.stages.Lowered:
    """The training step over the mesh."""
    trainer = Trainer(config, mesh)
    return trainer.trace_step(trainer.abstract_state(), batch_shapes(config, meshes.batch_sharding(mesh))).lower()


def lower_sampling(config: TrainConfig, mesh) -> jax.stages.Lowered:
    """One solver step of a batch of a mosaic's windows, sharded as in `rsdiff.sampling.binding`."""
    method, size, batch = make_method(config.method), config.data.size_px, config.batch_size
    frozen = method.load_frozen()
    side = size // UPSCALE + 2 * UP_REACH_PX
    split, whole = meshes.batch_sharding(mesh), meshes.replicated(mesh)
    networks = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole),
        (jax.eval_shape(method.init, jax.random.key(0)), jax.eval_shape(lambda: frozen)),
    )
    shaped = lambda *shape: jax.ShapeDtypeStruct((batch, *shape), jnp.float32, sharding=split)
    condition = {'lr': shaped(side, side, 3)} | ({'gsd_m': shaped()} if 'gsd_m' in method.fields else {})
    steps = solvers.solver_steps('ddim', method.schedule, 1)

    def advance(networks, condition, x, x0):
        params, frozen = networks
        predict = predictor(method, params, condition, Projection(), UP_REACH_PX, frozen=frozen)
        return solvers.integrate(predict, steps, x, x0)

    parts = jax.tree.map(lambda sharding: sharding.spec, (whole, split, split, split))
    shared = jax.shard_map(advance, mesh=mesh, in_specs=parts, out_specs=split.spec, check_vma=False)
    return jax.jit(shared).lower(networks, condition, *[shaped(size, size, method.channels)] * 2)


def collectives(hlo: str) -> dict[str, dict[str, Any]]:
    """Collectives of an optimised program by kind: their number, their bytes, and how many of those are float32. Bytes are the
    full size of what is gathered, reduced or exchanged, on one device.

    On a TPU a reduce-scatter is a computation of its own, which the compiler calls all-reduce-scatter. The compiler may also
    split one collective over several fusions, to overlap it with their work; all of them have its channel id, and it is
    counted once. Collectives inside loops are counted once, too (`loops` in the result is the number of loops).
    """
    channels = set()
    found: dict[str, dict[str, Any]] = defaultdict(lambda: {'count': 0, 'bytes': 0, 'float32_bytes': 0})
    scatters = False
    for line in hlo.splitlines():
        if not line.startswith(' '):
            scatters = line.startswith('%all-reduce-scatter')
        match = re.match(rf'\s*(?:ROOT )?%[\w.-]+ = (.*?) ({"|".join(COLLECTIVES)})(-start)?\(', line)
        channel = re.search(r'channel_id=(\d+)', line)
        if not match or channel and channel[1] in channels:
            continue
        if channel:
            channels.add(channel[1])
        shapes = [
            (kind, BYTES[kind] * math.prod(map(int, filter(None, sides.split(',')))))
            for kind, sides in re.findall(r'(\w+)\[([\d,]*)\]', match[1])
            if kind in BYTES
        ]
        kind = 'reduce-scatter' if scatters and match[2] == 'all-reduce' else match[2]
        # a -start operation lists operands and results; the largest of them is the full size
        total = max((size for _, size in shapes), default=0) if match[3] else sum(size for _, size in shapes)
        row = found[kind]
        row['count'] += 1
        row['bytes'] += total
        row['float32_bytes'] += total if any(dtype == 'f32' for dtype, _ in shapes) else 0
    return dict(found)


def estimate(chip: Chip, devices: int, counted, found, model_flop: float, batch: int, dtype: str) -> dict[str, Any]:
    """Estimated seconds of a step at published peaks, and the resulting MFU. Nothing is run."""
    peak = cost.peak_flops(chip.kind, dtype)
    moved = {'all-reduce': 2.0}  # every byte goes out and comes back
    links = sum(moved.get(kind, 1.0) * row['bytes'] for kind, row in found.items()) * (devices - 1) / devices
    seconds = {
        'compute': counted.get('flops', 0) / peak,
        'memory': counted.get('bytes accessed', 0) / chip.hbm_bandwidth,
        'links': links / chip.ici_bandwidth,
    }
    longest, together = max(seconds.values()), sum(seconds.values())
    return {
        'seconds': seconds,
        'step_seconds': {'all_at_once': longest, 'one_after_the_other': together},
        'images_per_second': {'all_at_once': batch / longest, 'one_after_the_other': batch / together},
        'mfu': {'all_at_once': model_flop / peak / longest, 'one_after_the_other': model_flop / peak / together},
    }
