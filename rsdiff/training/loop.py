"""The training loop."""

import math
import signal
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from clu import parameter_overview

from rsdiff.data.pipeline import batches, make_source
from rsdiff.errors import BadInput
from rsdiff.training import mesh as meshes
from rsdiff.training.checkpoint import Checkpoints, claim_workdir
from rsdiff.training.config import TrainConfig
from rsdiff.training.metrics import Metrics, write_sample_grid
from rsdiff.training.state import Trainer

GRID_EXAMPLES = 6


def train(config: TrainConfig, workdir: Path | str, allow_config_change: bool = False, show: bool = True) -> dict[str, Any]:
    """Trains until `config.total_images`, continuing the newest checkpoint of `workdir` if there is one.

    SIGTERM or Ctrl-C end the run after the current step, with a checkpoint; the same call then continues it.

    Returns:
      A summary with images_seen, the last row of metrics, parameters, images skipped, and whether the run is finished.
    Raises:
      BadInput: unusable data or settings, or a `workdir` of another run.
      FloatingPointError: the loss is no longer finite; the last checkpoint is kept.
      KeyboardInterrupt: after Ctrl-C, with the checkpoint saved.
    """
    workdir = Path(workdir)
    mesh = meshes.make_mesh(config.mesh.fsdp)
    if config.batch_size % (mesh.size * config.accumulation):
        raise BadInput(f'config.batch_size {config.batch_size} is not a multiple of {mesh.size} devices × accumulation')
    source = make_source(config.data)
    claim_workdir(workdir, config, allow_config_change)

    trainer = Trainer(config, mesh)
    checkpoints = Checkpoints(workdir)
    # Order of restore: this workdir's newest checkpoint, else fresh.
    state = checkpoints.restore_latest(trainer.abstract_state())
    if state is None:
        state = trainer.init(jax.random.key(config.seed))
        if show:
            print(parameter_overview.get_parameter_overview(state['params'], include_stats=False, max_lines=12))
    first = int(state['step'])
    last = math.ceil(config.total_images / config.batch_size)
    every = lambda images: max(1, math.ceil(images / config.batch_size))

    metrics = Metrics(workdir, last * config.batch_size, first * config.batch_size, show)
    stream = batches(source, config.data, config.seed, config.batch_size, first, jax.process_index(),
                     jax.process_count())
    grid = SampleGrid(trainer, source, workdir)
    row, losses, pending = metrics.last_row, [], None

    def settle(step: int, values: dict[str, jax.Array]) -> None:
        """Fetches the metrics of a step; called one step late, so that the device always has work."""
        nonlocal row
        losses.append(float(values['loss']))
        # a gradient that is not finite has spoilt the parameters, though the loss does not show it yet
        if not math.isfinite(losses[-1] + float(values['grad_norm'])):
            raise FloatingPointError(f'the loss is {losses[-1]} and its gradient {float(values["grad_norm"])} at step '
                                     f'{step}; the last checkpoint is kept')
        metrics.advance(config.batch_size, losses[-1])
        if step % every(config.log_images) == 0 or step == last:
            row = {'loss': float(np.mean(losses)), 'grad_norm': float(values['grad_norm'])}
            row['images_skipped'] = len(source.skipped)
            row = metrics.write(step * config.batch_size, row)
            losses.clear()

    try:
        with StopSignals() as stop:
            for step in range(first + 1, last + 1):
                state, values = trainer.step(state, meshes.put_batch(mesh, next(stream)))
                if pending:
                    settle(*pending)
                pending = (step, values)
                if step % every(config.checkpoint_images) == 0:
                    settle(*pending)  # nothing is saved before it is known to be finite
                    pending = None
                    checkpoints.save(state)
                if step % every(config.sample_images) == 0 or step == last:
                    grid.write(state, step * config.batch_size)
                if stop.asked():
                    break
            if pending:
                settle(*pending)
            checkpoints.save(state)
    finally:
        checkpoints.close()
        metrics.close()
    if stop.received == signal.SIGINT:
        raise KeyboardInterrupt
    step = int(state['step'])
    return {**row, 'images_seen': step * config.batch_size, 'finished': step >= last,
            'parameters': sum(x.size for x in jax.tree.leaves(state['params']))}


class SampleGrid:
    """A fixed set of examples, sampled from the averaged parameters now and then."""

    def __init__(self, trainer: Trainer, source, workdir: Path):
        config, self.trainer, self.workdir = trainer.config, trainer, workdir
        # a stream of its own: the seed differs, so these crops are not those of any training batch
        examples = next(batches(source, config.data, config.seed + 1, GRID_EXAMPLES))
        self.truth, self.lr = jax.jit(trainer.conditions)(examples['image'], jax.random.key(config.seed))
        noise = jax.random.normal(jax.random.key(config.seed), self.truth.shape)
        self.sample = jax.jit(lambda params: trainer.generator.sample(
            params, self.lr, jnp.asarray(examples['gsd_m']), noise, config.sample_steps))

    def write(self, state, images_seen: int) -> None:
        """Writes `samples/<images seen>.png`."""
        samples = self.sample(state['ema'])
        if jax.process_index() == 0:
            write_sample_grid(self.workdir / 'samples' / f'{images_seen:09d}.png', np.asarray(self.lr),
                              np.asarray(samples), np.asarray(self.truth))


class StopSignals:
    """Within it, SIGTERM and the first Ctrl-C are questions that the loop asks after each step, `asked()`."""

    def __init__(self):
        self.received: int | None = None

    def asked(self) -> bool:
        """Whether to stop after this step."""
        return self.received is not None

    def __enter__(self) -> 'StopSignals':
        self.before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number, _) -> None:
        self.received = number
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a second Ctrl-C does not wait
