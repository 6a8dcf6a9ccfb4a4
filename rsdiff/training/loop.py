"""The training loop."""

import contextlib
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
from rsdiff.methods.base import TEACHER, fields_to_train
from rsdiff.training import hosts
from rsdiff.training import mesh as meshes
from rsdiff.training.checkpoint import Checkpoints, Snapshots, claim_workdir, load_parameters
from rsdiff.training.config import TrainConfig
from rsdiff.training.metrics import Metrics, Silent
from rsdiff.training.provenance import record_teacher, record_training_data
from rsdiff.training.state import Trainer
from rsdiff.training.validation import Judge, Validation


def train(
    config: TrainConfig,
    workdir: epath.PathLike,
    allow_config_change: bool = False,
    show: bool = True,
    judge: Judge = lambda *images: {},
) -> dict[str, Any]:
    """Trains until `config.total_images`, continuing from the newest intact checkpoint in `workdir` if there is one.

    SIGTERM or Ctrl-C ends the run after the current step, with a checkpoint; the same call then continues it. With several
    processes, SIGTERM to any of them stops all, after a step that they agree on.

    Args:
      workdir: a local folder or a bucket (gs://…), the same for every process.
      judge: computes further metrics of the validation samples.
    Returns:
      A summary with images_seen, the newest metrics, parameters, images skipped, and whether the run is finished.
    Raises:
      BadInput: unusable data or settings; `workdir` is in use, belongs to another run, or has only damaged checkpoints.
      OSError: something could not be written; existing checkpoints stay intact.
      FloatingPointError: the loss or gradient is not finite; the last checkpoint is kept, `nonfinite.json` names the batch.
      KeyboardInterrupt: after Ctrl-C, once the checkpoint is saved.
    """
    workdir, lock = epath.Path(workdir), FolderLock(workdir)
    mesh = meshes.make_mesh(config.mesh.fsdp)
    meshes.check_batch(mesh, config.batch_size, config.accumulation)
    fields = fields_to_train(config.method.fields)
    source, unseen = (make_source(config.data, validation, fields) for validation in (False, True))
    trainer = Trainer(config, mesh)
    teacher = trainer.frozen.get(TEACHER)  # fails before the folder is claimed, if a frozen network is missing
    try:
        hosts.first_does(
            lambda: (
                lock.acquire(),
                claim_workdir(workdir, config, allow_config_change),
                record_training_data(workdir, config, source, allow_config_change, show),
                teacher and record_teacher(workdir, teacher, allow_config_change),
            )
        )
        return _train(trainer, workdir, source, unseen, show and hosts.is_first(), judge)
    finally:
        lock.release()


def _train(
    trainer: Trainer,
    workdir: epath.Path,
    source: Source,
    unseen: Source,
    show: bool,
    judge: Judge,
) -> dict[str, Any]:
    config, mesh = trainer.config, trainer.mesh
    checkpoints = Checkpoints(workdir)
    snapshots = [Snapshots(workdir)] if config.ema.lengths else []
    # Order of restore: this workdir's newest intact checkpoint, else the parameters of `init_from`, else a new state.
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
        """Fetches and reports the metrics of a step; called one step late, so that the device is never idle."""
        numbers = {name: float(value) for name, value in values.items()}
        loss, grad_norm = numbers['loss'], numbers['grad_norm']
        # a gradient that is not finite has corrupted the parameters, even if the loss is still finite
        if not math.isfinite(sum(numbers.values())):
            _write_offenders(workdir, source, config, step, loss, grad_norm)
            raise FloatingPointError(
                f'the loss is {loss} and the gradient norm {grad_norm} at step {step}; the last '
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
                for folder in (checkpoints, *snapshots):
                    folder.check()
                saving = [checkpoints] if due(step, config.checkpoint_images) else []
                saving += snapshots if due(step, config.ema.snapshot_images) or step == last else []
                if saving:
                    settle(*pending)  # save nothing before it is known to be finite
                    pending = None
                for folder in saving:
                    folder.save(state)
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
        with contextlib.ExitStack() as closing:
            for opened in (metrics, checkpoints, *snapshots):
                closing.callback(opened.close)
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
    """Writes `nonfinite.json`, which lists the examples in the batch of `step`."""
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
    """A context in which SIGTERM and the first Ctrl-C only set a flag, `asked()`, which the loop checks after each step.

    With several processes, none may stop alone: JAX then handles SIGTERM (`hosts.preempted`), and this does nothing.
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
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a second Ctrl-C stops at once
