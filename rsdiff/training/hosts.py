"""Runs of several processes: how they connect, and what only the first process does.

Only the environment differs between one machine and a pod:

* `JAX_COORDINATOR_ADDRESS=host:port`, `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID` suffice on any system;
* a Slurm step of more than one task (`srun`, one task per GPU) is detected automatically;
* `RSDIFF_DISTRIBUTED=1` lets JAX detect the cluster: TPU pod slices, Kubernetes, Open MPI.
"""

import os
from typing import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils

from rsdiff.base.errors import BadInput


def connect() -> None:
    """Connects the processes that the environment specifies; does nothing for a single one. Call it before any use of JAX.

    Raises:
      BadInput: the environment is incomplete, or the other processes cannot be reached.
    """
    environment = os.environ
    try:
        if 'JAX_COORDINATOR_ADDRESS' in environment:
            jax.distributed.initialize(
                environment['JAX_COORDINATOR_ADDRESS'],
                int(environment['JAX_NUM_PROCESSES']),
                int(environment['JAX_PROCESS_ID']),
                cluster_detection_method='deactivate',
            )
        elif environment.get('RSDIFF_DISTRIBUTED') == '1' or int(environment.get('SLURM_STEP_NUM_TASKS', 1)) > 1:
            jax.distributed.initialize()
    except KeyError as error:
        raise BadInput(f'JAX_COORDINATOR_ADDRESS is set, but {error.args[0]} is not') from None
    except (ValueError, RuntimeError) as error:
        raise BadInput(f'the processes could not connect to each other: {str(error).splitlines()[0]}') from None


def is_first() -> bool:
    """Whether this is the process that writes metrics, samples and summaries, and prints to the console."""
    return jax.process_index() == 0


def first_does(work: Callable[[], object]) -> None:
    """Runs `work` on the first process while the others wait. If it raises, every process raises.

    Raises:
      BadInput, OSError: whatever `work` raises, on the first process; BadInput on the others.
    """
    refusal = None
    if is_first():
        try:
            work()
        except (BadInput, OSError) as error:
            refusal = error
    if jax.process_count() > 1:
        refused = multihost_utils.broadcast_one_to_all(np.int32(refusal is not None))
        if refused and refusal is None:
            raise BadInput('the first process refused to start; see its output for the reason')
    if refusal is not None:
        raise refusal


def all_agree_on(number: int) -> int:
    """Returns the largest `number` of all processes, on each of them. All must call it."""
    if jax.process_count() == 1:
        return number
    return int(np.max(multihost_utils.process_allgather(np.int32(number))))


def first_says(number: int) -> int:
    """Returns the first process's `number` on every process. All must call it."""
    return number if jax.process_count() == 1 else int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def preempted(step: int) -> bool:
    """Whether any process has received SIGTERM and all have agreed to stop after `step`. Every process calls this after every
    step; always False for a single process, which needs no agreement."""
    return jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step)
