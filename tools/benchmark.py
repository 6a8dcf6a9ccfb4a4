"""Benchmarks: training on this machine, cost of training on any, scoring of samples, and mosaics.

    python tools/benchmark.py train --config configs/demo.py [--config.batch_size=16 …] [--against bare|diffusers|CHECKOUT]
    python tools/benchmark.py cost --config configs/metaearth.py [--devices 8] [--compile]
    python tools/benchmark.py aot --config configs/metaearth.py --topology v5e:4x4 --fsdp 16 --batch 64 [--sample]
    python tools/benchmark.py evaluate [--pairs 8 --pairs 32] [--size_px 64 --size_px 256]
    python tools/benchmark.py mosaic [--checkpoint weights/earth] [--canvas_px 512] [--rounds 3]

`train` measures this machine: images per second, FLOP/s and MFU, peak memory, compile time with and without a compile
cache, and whether the input keeps up. `--against diffusers` also trains a `UNet2DModel` with as many parameters, in
alternating rounds, and compares (it needs the extra `bench`); `--against CHECKOUT` also trains the config of the same
name in another checkout of this project, and reports which is faster; `--against bare` also trains the network of a
regression by a step in plain JAX.

`cost` allocates nothing: multiply–accumulates, bytes of state by mesh, expected hours. FLOP are 2 × multiply–accumulates
of matrix products and convolutions (`rsdiff.training.cost`).

`aot` compiles the step with a TPU's compiler for chips that are not present: bytes per device, FLOP, collectives, and a
time estimated from published peaks (tools/benchmark_aot.py).

`evaluate` compares the networks that score samples with the same networks in torch, on this machine's CPU, in
alternating rounds (it needs the extras `bench` and `metrics`).

`mosaic` measures the properties of unbounded mosaics (docs/mosaics.md): speed against MetaEarth's plan in alternating
rounds, memory, time for files, geometry, estimates, tint.
"""

import importlib.metadata
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Callable

import jax
import numpy as np
from absl import flags
from benchmark_aot import aot
from benchmark_bare import Bare
from benchmark_evaluate import evaluate
from benchmark_mosaic import mosaic
from benchmark_rounds import cores, spread

from rsdiff.base.errors import BadInput
from rsdiff.data.pipeline import batches, make_source
from rsdiff.methods.base import fields_to_train
from rsdiff.programs import console
from rsdiff.training import cost
from rsdiff.training import mesh as meshes
from rsdiff.training.config import TrainConfig, from_dict
from rsdiff.training.state import Trainer

FLAGS = flags.FLAGS
console.define_config('A config file, or the name of one in configs/.')
OUT = flags.DEFINE_string('out', None, 'The JSON file to write; default: runs/benchmark/COMMAND.json.')
ROUNDS = flags.DEFINE_integer('rounds', 6, 'train, evaluate, mosaic: timed rounds.', lower_bound=1)
STEPS = flags.DEFINE_integer('steps', 5, 'train: steps per round.', lower_bound=1)
AGAINST = flags.DEFINE_string(
    'against', None, 'train: bare, diffusers or a checkout of rsdiff, to compare with in alternating rounds.'
)
DEVICES = flags.DEFINE_integer('devices', 8, 'cost: devices to shard the state over, in every mesh.', lower_bound=1)
ASSUMED_MFU = flags.DEFINE_float(
    'assumed_mfu', 0.35, 'cost: the MFU to compute the expected hours with.', lower_bound=1e-3, upper_bound=1.0
)
TOPOLOGY = flags.DEFINE_string('topology', 'v5e:4x4', 'aot: chip and shape of the slice, such as v5e:4x4 or v5p:2x2x4.')
FSDP = flags.DEFINE_integer('fsdp', 1, 'aot: devices to shard parameters over.', lower_bound=1)
BATCH = flags.DEFINE_integer('batch', 16, 'aot: images per step, over all devices.', lower_bound=1)
SAMPLE = flags.DEFINE_bool('sample', False, 'aot: compile a step of sampling windows instead of training.')
HLO = flags.DEFINE_string('hlo', None, 'aot: file to write the compiled program to.')
COMPILE = flags.DEFINE_bool('compile', False, 'cost: compile the step of one image, for its memory; takes minutes.')

WARM_UP_STEPS = 2
INPUT_BATCHES, INPUT_SECONDS = 100, 10.0  # whichever comes first; more batches than are prefetched


def train(config: TrainConfig) -> dict[str, Any]:
    """Measures training on this machine, with a temporary compile cache that starts empty."""
    with tempfile.TemporaryDirectory() as folder:
        jax.config.update('jax_compilation_cache_dir', folder)
        jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
        jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)
        return measure(config)


def measure(config: TrainConfig) -> dict[str, Any]:
    """All figures of `train`."""
    other_config = None if AGAINST.value in (None, 'bare', 'diffusers') else config_in(Path(AGAINST.value))
    mesh = meshes.make_mesh(config.mesh.fsdp)
    meshes.check_batch(mesh, config.batch_size, config.accumulation)
    source = make_source(config.data, fields=fields_to_train(config.method.fields))
    batch = next(batches(source, config.data, config.seed, config.batch_size))

    step, compile_seconds = compile_twice(config, mesh, batch)
    ours = run_ours(config, mesh, step, batch)
    ours(WARM_UP_STEPS)
    memory = peak_memory()
    traced_step, state = cost.trace_step(config, remat=False)
    theirs = None
    if AGAINST.value == 'diffusers':
        theirs = Diffusers(config, batch, parameters(state))
    elif AGAINST.value == 'bare':
        theirs = Bare(config, batch)
    elif other_config:
        theirs = Checkout(other_config)
    if theirs:
        theirs(WARM_UP_STEPS)
    runners = [ours, theirs] if theirs else [ours]
    rounds = [[STEPS.value * config.batch_size / run(STEPS.value) for run in runners] for _ in range(ROUNDS.value)]
    rate = float(np.median([row[0] for row in rounds]))
    read = input_rate(source, config)

    forward = cost.trace_forward(config)
    forward_macs, step_macs = cost.count_macs(forward.jaxpr), cost.count_macs(traced_step.jaxpr)
    device = jax.devices()[0]
    peak = cost.peak_flops(device.device_kind, config.method.model.dtype)
    flop_per_second = 2 * step_macs * rate
    result = {
        'images_per_second': spread([row[0] for row in rounds]),
        'batch_size': config.batch_size,
        'accumulation': config.accumulation,
        'steps_per_round': STEPS.value,
        'devices': mesh.size,
        'device_kind': device.device_kind,
        'mesh': dict(mesh.shape),
        'parameters': parameters(state),
        'dtype': config.method.model.dtype,
        'gmac_per_image': {'forward': forward_macs / 1e9, 'step': step_macs / 1e9},
        'xla_check': xla_check(forward),
        'flop_per_second': flop_per_second,
        'peak_flop_per_second': peak and peak * mesh.size,
        'mfu': peak and flop_per_second / (peak * mesh.size),
        'peak_memory': memory,
        'compile_seconds': compile_seconds,
        'input': {'images_per_second': read, 'over_training': read / rate, 'is_bottleneck': read < rate},
        'versions': {name: importlib.metadata.version(name) for name in ('jax', 'jaxlib', 'flax', 'numpy')},
    }
    if theirs:
        result[theirs.name] = theirs.compare(rounds, forward_macs)
    return result


def compile_twice(config: TrainConfig, mesh, batch: dict[str, np.ndarray]) -> tuple[Callable, dict[str, float]]:
    """The compiled step, and the seconds to trace it, to compile it, and to load it from the compile cache instead."""
    shapes, seconds = jax.eval_shape(lambda: batch), {}
    for name in ('cold', 'from_cache'):
        jax.clear_caches()
        trainer = Trainer(config, mesh)
        start = time.perf_counter()
        lowered = trainer.trace_step(jax.eval_shape(trainer.init, jax.random.key(0)), shapes).lower()
        traced = time.perf_counter()
        step = lowered.compile()
        seconds |= {'trace': traced - start, name: time.perf_counter() - traced}
    return step, seconds


def run_ours(config: TrainConfig, mesh, step: Callable, batch: dict[str, np.ndarray]) -> Callable[[int], float]:
    """A function that trains for n steps and returns their seconds; the batch is moved to the devices each time."""
    trainer = Trainer(config, mesh)
    state = trainer.init(jax.random.key(config.seed))

    def run(steps: int) -> float:
        nonlocal state
        jax.block_until_ready(state)
        start = time.perf_counter()
        for _ in range(steps):
            state, values = step(state, meshes.put_batch(mesh, batch), trainer.frozen)
        if not math.isfinite(float(values['loss'])):
            raise FloatingPointError(f'the loss is {float(values["loss"])}')
        jax.block_until_ready(state)
        return time.perf_counter() - start

    return run


def input_rate(source, config: TrainConfig) -> float:
    """Images per second of the input pipeline alone, start-up included."""
    stream = batches(source, config.data, config.seed, config.batch_size)
    start, count = time.perf_counter(), 0
    while count < INPUT_BATCHES and time.perf_counter() - start < INPUT_SECONDS:
        next(stream)
        count += 1
    return count * config.batch_size / (time.perf_counter() - start)


def peak_memory() -> dict[str, Any]:
    """Peak bytes in use so far: of the first device or, if it does not report them (CPU), of this process."""
    stats = jax.devices()[0].memory_stats() or {}
    if 'peak_bytes_in_use' in stats:
        return {'bytes': stats['peak_bytes_in_use'], 'of': 'device 0'}
    unit = 1 if sys.platform == 'darwin' else 1024  # unit of getrusage, which includes compiling
    return {'bytes': unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 'of': 'process, resident'}


def xla_check(forward: jax.stages.Traced) -> dict[str, float | None]:
    """Compares XLA's own count with ours. Both leave out padding here; XLA also counts operations other than products."""
    counted = cost.count_macs(forward.jaxpr, padding=False) / 1e9
    flops = (forward.lower().cost_analysis() or {}).get('flops')
    return {
        'gmac_forward_without_padding': counted,
        'xla_gflop_over_2': flops and flops / 2e9,
        'ratio': flops and flops / 2e9 / counted,
    }


def parameters(state) -> int:
    """Number of parameters of all parts."""
    return sum(leaf.size for leaf in jax.tree.leaves(state['params']))


def config_in(checkout: Path) -> Path:
    """The config of another checkout with the same name as ours.

    Raises:
      BadInput: it is not a checkout, or has no such config.
    """
    at = next(i for i, argument in enumerate(sys.argv) if argument.lstrip('-').partition('=')[0] == 'config')
    named = sys.argv[at].partition('=')[2] or sys.argv[at + 1]
    config = Path('configs', f'{Path(named).stem}.py')
    if not (checkout / config).is_file() or not (checkout / 'rsdiff').is_dir():
        raise BadInput(f'--against {checkout}: no checkout of rsdiff with {config} in it')
    return checkout.absolute() / config


class Checkout:
    """Called with n, trains another checkout for n steps, in a separate process, and returns the seconds."""

    name = 'checkout'

    def __init__(self, config: Path):
        given = [argument for argument in sys.argv[1:] if argument.startswith('--config.')]
        self.folder = config.parents[1]
        self.process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name('benchmark_checkout.py').absolute(), '--config', config, *given],
            cwd=self.folder,
            env=os.environ | {'PYTHONPATH': str(self.folder)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, steps: int) -> float:
        assert self.process.stdin and self.process.stdout
        print(steps, file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            raise BadInput(
                f'--against {self.folder}: its process ended with exit code {self.process.wait()}; see above'
            )
        return float(line)

    def compare(self, rounds: list[list[float]], our_macs: int) -> dict[str, Any]:
        """Their images per second, and ours over theirs in each round. `rounds`: images per second of (ours, theirs)."""
        self.process.terminate()
        return {
            'images_per_second': spread([theirs for _, theirs in rounds]),
            'ours_over_theirs': {'images_per_second': spread([ours / theirs for ours, theirs in rounds])},
        }


class Diffusers:
    """Called with n, trains a diffusers `UNet2DModel` for n steps on the CPU and returns the seconds.

    Batch, pixels, optimiser, clipping and parameter average are the same as ours; float32. Its condition is a plain mean
    over 4 × 4 pixels, enlarged to the size of the image as three more channels, where ours degrades and encodes it. Its
    levels begin at full resolution, ours at 1/patch. For equal parameters the multiply–accumulates therefore differ, and
    `compare` gives both.
    """

    name = 'diffusers'

    def __init__(self, config: TrainConfig, batch: dict[str, np.ndarray], parameters: int):
        if jax.default_backend() != 'cpu' or jax.device_count() > 1 or config.method.model.dtype != 'float32':
            raise BadInput('--against diffusers needs one CPU device and --config.method.model.dtype=float32')
        try:
            import diffusers
            import torch
            from diffusers.training_utils import EMAModel
        except ImportError as error:
            raise BadInput(f"--against diffusers: {error}; pip install -e '.[bench]'") from None
        self.torch = torch
        torch.set_num_threads(cores())
        torch.manual_seed(config.seed)
        self.target = parameters
        self.widths, make = self._fit(diffusers.UNet2DModel, config)
        self.net = make().train()
        self.scheduler = diffusers.DDPMScheduler(config.method.schedule.timesteps)
        optimizer = config.optimizer
        self.clip_norm = optimizer.clip_norm
        self.optimizer = torch.optim.AdamW(
            self.net.parameters(),
            optimizer.learning_rate,
            (0.9, optimizer.b2),
            weight_decay=optimizer.weight_decay,
            foreach=True,
        )
        self.ema = EMAModel(self.net.parameters(), foreach=True)
        self.images = torch.from_numpy(batch['image']).permute(0, 3, 1, 2)

    def __call__(self, steps: int) -> float:
        functional = self.torch.nn.functional
        start = time.perf_counter()
        for _ in range(steps):
            x0 = self.images.float() / 127.5 - 1
            condition = functional.interpolate(functional.avg_pool2d(x0, 4), scale_factor=4, mode='bicubic')
            noise = self.torch.randn_like(x0)
            t = self.torch.randint(0, self.scheduler.config.num_train_timesteps, (len(x0),))
            noisy = self.scheduler.add_noise(x0, noise, t)
            loss = functional.mse_loss(self.net(self.torch.cat([noisy, condition], dim=1), t).sample, noise)
            loss.backward()
            self.torch.nn.utils.clip_grad_norm_(self.net.parameters(), self.clip_norm, foreach=True)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.ema.step(self.net.parameters())
        if not math.isfinite(loss.item()):
            raise FloatingPointError(f"the loss of diffusers' network is {loss.item()}")
        return time.perf_counter() - start

    def compare(self, rounds: list[list[float]], our_macs: int) -> dict[str, Any]:
        """Their figures, and ours over theirs in each round. `rounds`: images per second of (ours, theirs)."""
        from torch.nn.attention import SDPBackend, sdpa_kernel
        from torch.utils.flop_counter import FlopCounterMode

        size = self.images.shape[-1]
        with self.torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            self.net(self.torch.zeros(1, 6, size, size), self.torch.ones(1))
        macs = counter.get_total_flops() / 2
        ratios = [ours / theirs for ours, theirs in rounds]
        return {
            'block_out_channels': self.widths,
            'parameters': self.net.num_parameters(),
            'parameters_over_ours': self.net.num_parameters() / self.target,
            'gmac_per_image': {'forward': macs / 1e9},
            'gmac_over_ours': macs / our_macs,
            'images_per_second': spread([theirs for _, theirs in rounds]),
            'ours_over_theirs': {
                'images_per_second': spread(ratios),
                'forward_gmac_per_second': spread([ratio * our_macs / macs for ratio in ratios]),
            },
            'threads': self.torch.get_num_threads(),
            'versions': {name: importlib.metadata.version(name) for name in ('torch', 'diffusers')},
        }

    def _fit(self, network: type, config: TrainConfig) -> tuple[list[int], Callable]:
        """The widths and a constructor of the `UNet2DModel` whose number of parameters is closest to ours.

        It has our levels, blocks and attention, and above them the levels that ours folds into patches.
        """
        model = config.method.model
        above = int(math.log2(model.patch))
        multipliers = [model.multipliers[0]] * above + list(model.multipliers)
        attends = [level - above in model.attention_levels for level in range(len(multipliers))]

        def make(widths):
            return network(
                sample_size=config.data.size_px,
                in_channels=6,
                out_channels=3,
                layers_per_block=model.blocks,
                block_out_channels=widths,
                norm_num_groups=8,
                attention_head_dim=8,
                down_block_types=['AttnDownBlock2D' if here else 'DownBlock2D' for here in attends],
                up_block_types=['AttnUpBlock2D' if here else 'UpBlock2D' for here in reversed(attends)],
            )

        def distance(widths):
            with self.torch.device('meta'):
                return abs(math.log(make(widths).num_parameters() / self.target))

        def scaled(width, last=0):
            widths = [8 * max(1, round(width * m / 8)) for m in multipliers]
            return [*widths[:-1], max(8, widths[-1] + 8 * last)]

        nearest = min((scaled(width) for width in range(8, 2 * model.width + 1, 8)), key=distance)
        candidates = [
            scaled(nearest[0] / multipliers[0] + first, last) for first in (-8, 0, 8) for last in range(-6, 7)
        ]
        widths = min(candidates, key=distance)
        return widths, lambda: make(widths)


def expected_cost(config: TrainConfig) -> dict[str, Any]:
    """All figures of `cost`, from shapes alone."""
    model, forward = config.method.model, cost.trace_forward(config)
    step, state = cost.trace_step(config, remat=False)
    remat = getattr(model, 'remat', False)  # small networks have no such setting
    as_run = cost.trace_step(config, remat=True)[0] if remat else step
    forward_macs, step_macs = cost.count_macs(forward.jaxpr), cost.count_macs(step.jaxpr)
    flop = 2 * step_macs * config.total_images
    result = {
        'parameters': parameters(state),
        'dtype': model.dtype,
        'size_px': config.data.size_px,
        'gmac_per_image': {
            'forward': forward_macs / 1e9,
            'step': step_macs / 1e9,
            'step_with_what_remat_repeats': cost.count_macs(as_run.jaxpr) / 1e9,
        },
        'xla_check': xla_check(forward),
        'state_bytes_per_device': [
            {'data': DEVICES.value // fsdp, 'fsdp': fsdp, **cost.state_bytes(state, DEVICES.value // fsdp, fsdp)}
            for fsdp in range(1, DEVICES.value + 1)
            if DEVICES.value % fsdp == 0
        ],
        'total_images': config.total_images,
        'assumed_mfu': ASSUMED_MFU.value,
        'hours_on_one_device': {
            kind: flop / (peaks[model.dtype] * ASSUMED_MFU.value) / 3600 for kind, peaks in cost.PEAK_FLOPS.items()
        },
    }
    if COMPILE.value:
        start = time.perf_counter()
        memory = as_run.lower().compile().memory_analysis()
        result['step_bytes_for_one_image'] = {
            'temporary': memory.temp_size_in_bytes,
            'state_and_batch': memory.argument_size_in_bytes,
            'backend': jax.default_backend(),
            'remat': remat,
            'compile_seconds': time.perf_counter() - start,
        }
    return result


def ahead_of_time(config: TrainConfig) -> dict[str, Any]:
    """All figures of `aot`, from a TPU's compiler."""
    return aot(config, TOPOLOGY.value, FSDP.value, BATCH.value, SAMPLE.value, HLO.value)


OF_A_CONFIG = {'train': train, 'cost': expected_cost, 'aot': ahead_of_time}
OF_ROUNDS = {'evaluate': evaluate, 'mosaic': mosaic}
COMMANDS = [*OF_A_CONFIG, *OF_ROUNDS]


def main(command: str | None) -> None:
    if command not in COMMANDS:
        raise BadInput(f'the first argument is {command or "missing"}; it must be one of {", ".join(COMMANDS)}')
    if command in OF_ROUNDS:
        result = OF_ROUNDS[command](ROUNDS.value)
    elif FLAGS.config is None:
        raise BadInput('give --config FILE')
    else:
        result = OF_A_CONFIG[command](from_dict(TrainConfig, FLAGS.config.to_dict()))
    console.finish({'command': command} | result, Path(OUT.value or f'runs/benchmark/{command}.json'))


if __name__ == '__main__':
    named = len(sys.argv) > 1 and not sys.argv[1].startswith('-')
    given = sys.argv.pop(1) if named else None
    console.run(lambda: main(given))
