"""The training loop."""

import json
import math
import signal
from typing import Any

import jax
import numpy as np
from clu import parameter_overview
from etils import epath

from rsdiff.base.files import write_text_atomically
from rsdiff.base.folders import FolderLock
from rsdiff.base.seeds import seed_key
from rsdiff.data.pipeline import Source, batch_indices, batches, make_source
from rsdiff.methods.base import fields_to_read
from rsdiff.training import hosts
from rsdiff.training import mesh as meshes
from rsdiff.training.checkpoint import Checkpoints, claim_workdir, load_parameters
from rsdiff.training.config import TrainConfig
from rsdiff.training.metrics import Metrics, Silent
from rsdiff.training.provenance import record_training_data
from rsdiff.training.state import Trainer
from rsdiff.training.validation import Judge, Validation


def train(
    config: TrainConfig,
    workdir: epath.PathLike,
    allow_config_change: bool = False,
    show: bool = True,
    judge: Judge = lambda *images: {},
) -> dict[str, Any]:
    """Trains until `config.total_images`, continuing the newest whole checkpoint of `workdir` if there is one.

    SIGTERM or Ctrl-C end the run after the current step, with a checkpoint; the same call then continues it. Of several
    processes, any that gets SIGTERM stops all, after a step on which they agree.

    Args:
      workdir: a local folder or a bucket (gs://…), the same for every process.
      judge: what else the rows about validation tell of its samples.
    Returns:
      A summary with images_seen, the newest figures, parameters, images skipped, and whether the run is finished.
    Raises:
      BadInput: unusable data or settings, a `workdir` of another run or in use, or only damaged checkpoints in it.
      OSError: something could not be written; the checkpoints that are there stay whole.
      FloatingPointError: the loss is no longer finite; the last checkpoint is kept, `nonfinite.json` names the batch.
      KeyboardInterrupt: after Ctrl-C, with the checkpoint saved.
    """
    workdir, lock = epath.Path(workdir), FolderLock(workdir)
    mesh = meshes.make_mesh(config.mesh.fsdp)
    meshes.check_batch(mesh, config.batch_size, config.accumulation)
    fields = fields_to_read(config.method.model.fields)
    source, unseen = (make_source(config.data, validation, fields) for validation in (False, True))
    try:
        hosts.first_does(
            lambda: (
                lock.acquire(),
                claim_workdir(workdir, config, allow_config_change),
                record_training_data(workdir, config, source, allow_config_change, show),
            )
        )
        return _train(config, workdir, mesh, source, unseen, show and hosts.is_first(), judge)
    finally:
        lock.release()


def _train(
    config: TrainConfig,
    workdir: epath.Path,
    mesh: jax.sharding.Mesh,
    source: Source,
    unseen: Source,
    show: bool,
    judge: Judge,
) -> dict[str, Any]:
    trainer = Trainer(config, mesh)
    checkpoints = Checkpoints(workdir)
    # Order of restore: this workdir's newest whole checkpoint, else the parameters of `init_from`, else fresh.
    state = checkpoints.restore_latest(trainer.abstract_state())
    if state is None:
        state = trainer.init(seed_key(config.seed))
        if config.init_from:
            state = trainer.with_parameters(state, load_parameters(config.init_from, config.method))
        if show:
            print(parameter_overview.get_parameter_overview(state['params'], include_stats=False, max_lines=12))
    first = int(state['step'])
    last = math.ceil(config.total_images / config.batch_size)
    due = lambda step, images: step % max(1, math.ceil(images / config.batch_size)) == 0

    metrics = (
        Metrics(workdir, last * config.batch_size, first * config.batch_size, show) if hosts.is_first() else Silent()
    )
    stream = batches(
        source, config.data, config.seed, config.batch_size, first, meshes.local_rows(mesh, config.batch_size)
    )
    validation = Validation(trainer, unseen)
    losses, pending = [], None

    def settle(step: int, values: dict[str, jax.Array]) -> None:
        """Fetches the metrics of a step; called one step late, so that the device always has work."""
        numbers = {name: float(value) for name, value in values.items()}
        loss, grad_norm = numbers['loss'], numbers['grad_norm']
        # a gradient that is not finite has spoilt the parameters, though the loss does not show it yet
        if not math.isfinite(sum(numbers.values())):
            _write_offenders(workdir, source, config, step, loss, grad_norm)
            raise FloatingPointError(
                f'the loss is {loss} and its gradient {grad_norm} at step {step}; the last '
                f'checkpoint is kept, {workdir}/nonfinite.json lists the batch'
            )
        losses.append(loss)
        metrics.advance(config.batch_size, loss)
        if due(step, config.log_images) or step == last:
            images_seen = step * config.batch_size
            metrics.write(
                images_seen,
                {
                    **numbers,
                    'loss': float(np.mean(losses)),
                    'images_skipped': len(source.skipped),
                    **metrics.rate(images_seen),
                },
            )
            losses.clear()

    try:
        with StopSignals() as stop:
            for step in range(first + 1, last + 1):
                state, values = trainer.step(state, meshes.put_batch(mesh, next(stream)))
                if pending:
                    settle(*pending)
                pending = (step, values)
                checkpoints.check()
                if due(step, config.checkpoint_images):
                    settle(*pending)  # nothing is saved before it is known to be finite
                    pending = None
                    checkpoints.save(state)
                if due(step, config.validation.every_images) or step == last:
                    images_seen, average = step * config.batch_size, trainer.average(state)
                    samples = validation.sample(average)
                    metrics.write(images_seen, validation.losses(average) | validation.judged(samples, judge))
                    metrics.picture(images_seen, validation.grid(samples))
                if stop.asked() or hosts.preempted(step):
                    break
            if pending:
                settle(*pending)
            checkpoints.save(state)
    finally:
        try:
            checkpoints.close()
        finally:
            metrics.close()
    if stop.received == signal.SIGINT:
        raise KeyboardInterrupt
    step = int(state['step'])
    return {
        **metrics.latest,
        'images_seen': step * config.batch_size,
        'finished': step >= last,
        'parameters': sum(x.size for x in jax.tree.leaves(state['params'])),
    }


def _write_offenders(
    workdir: epath.Path, source: Source, config: TrainConfig, step: int, loss: float, grad_norm: float
) -> None:
    """Writes `nonfinite.json`: which examples the batch of `step` was made of."""
    indices = batch_indices(source, config.seed, config.batch_size, step - 1)
    if hosts.is_first():
        write_text_atomically(
            workdir / 'nonfinite.json',
            json.dumps(
                {
                    'step': step,
                    'loss': str(loss),
                    'grad_norm': str(grad_norm),
                    'indices': indices,
                    'names': [source.name(index) for index in indices],
                },
                indent=2,
            )
            + '\n',
        )


class StopSignals:
    """Within it, SIGTERM and the first Ctrl-C are questions that the loop asks after each step, `asked()`.

    Of several processes none may stop by itself: there JAX listens for SIGTERM (`hosts.preempted`) and this does nothing.
    """

    def __init__(self):
        self.received: int | None = None
        self.numbers = (signal.SIGTERM, signal.SIGINT) if jax.process_count() == 1 else ()

    def asked(self) -> bool:
        """Whether to stop after this step."""
        return self.received is not None

    def __enter__(self) -> 'StopSignals':
        self.before = {number: signal.signal(number, self._note) for number in self.numbers}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number, _) -> None:
        self.received = number
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a second Ctrl-C does not wait
