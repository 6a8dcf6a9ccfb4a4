"""Two real processes over loopback, through train.py, against one process with as many devices."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from rsdiff.base.errors import BadInput
from rsdiff.data.folder import Entry, write_manifest
from rsdiff.data.images import write_image
from rsdiff.training.checkpoint import load_generator
from rsdiff.training.hosts import connect

ROOT = Path(__file__).parents[2]
UNET = {
    'width': 32,
    'multipliers': '(1,)',
    'attention_levels': '()',
    'spatial.lr.features': 8,
    'spatial.lr.growth': 4,
    'spatial.lr.blocks': 0,
}


@pytest.fixture(scope='module')
def images(tmp_path_factory, smooth_image):
    folder, entries = tmp_path_factory.mktemp('hosts') / 'images', []
    for number in range(12):
        write_image(folder / f'{number}.png', smooth_image(32, 32, number))
        entries.append(Entry(folder / f'{number}.png', f'{number}.png', gsd_m=10.0))
    write_manifest(folder, entries)
    return folder


def start(
    images, workdir, total_images, processes=1, environment=lambda port, number: {}, config='demo', model=UNET, **keys
):
    """Starts train.py on `processes` hosts with four devices in total, parameters sharded over all of them."""
    settings = {
        'data.source': images,
        'data.size_px': 16,
        'batch_size': 8,
        'total_images': total_images,
        'log_images': 8,
        'mesh.fsdp': 4,
        'validation.examples': 4,
        'validation.grid': 2,
        'validation.bins': 2,
        'validation.steps': 2,
        'optimizer.final_fraction': 1.0,
        **{f'method.model.{name}': value for name, value in model.items()},
        **keys,
    }
    command = [sys.executable, 'train.py', '--config', config, '--workdir', str(workdir)]
    command += [f'--config.{key}={value}' for key, value in settings.items()]
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    devices = {'XLA_FLAGS': f'--xla_force_host_platform_device_count={4 // processes}'}
    return [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | devices | environment(port, number),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for number in range(processes)
    ]


def named(port, number):
    """The variables that the README says to set by hand."""
    return {'JAX_COORDINATOR_ADDRESS': f'127.0.0.1:{port}', 'JAX_NUM_PROCESSES': '2', 'JAX_PROCESS_ID': str(number)}


def slurm(port, number):
    """The variables that srun sets, with this machine as every node."""
    return {
        'SLURM_JOB_ID': '1',
        'SLURM_STEP_NODELIST': '127.0.0.1',
        'SLURM_STEP_NUM_NODES': '1',
        'SLURM_NTASKS': '2',
        'SLURM_STEP_NUM_TASKS': '2',
        'SLURM_PROCID': str(number),
        'SLURM_LOCALID': str(number),
        'JAX_COORDINATOR_PORT': str(port),
    }


def finish(hosts):
    """The first host's summary; the others print none (gloo, their communication library, prints a greeting)."""
    outputs = [host.communicate(timeout=300) for host in hosts]
    for host, (_, err) in zip(hosts, outputs):
        assert host.returncode == 0, err[-3000:]
    assert not any(line.startswith('{') for out, _ in outputs[1:] for line in out.splitlines())
    return json.loads(outputs[0][0].splitlines()[-1])


def figures(workdir):
    """Every metric that a run logged, except its speed."""
    rows = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    return np.concatenate([np.ravel(value) for row in rows for key, value in row.items() if key != 'images_per_second'])


def assert_same_parameters(a, b):
    """Sums over devices are in another order, so parameters are equal up to rounding."""
    for one, other in zip(*(jax.tree.leaves(load_generator(path).params) for path in (a, b))):
        np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.fixture(scope='module')
def alone(images, tmp_path_factory):
    """The folder of a run by one process, and its summary."""
    folder = tmp_path_factory.mktemp('alone') / 'run'
    return folder, finish(start(images, folder, 32))


def test_two_processes_train_save_and_restore_as_one(images, alone, tmp_path):
    (folder, one), two = alone, finish(start(images, tmp_path / 'two', 32, 2, named))
    shutil.copytree(folder, tmp_path / 'one')
    assert two['images_seen'] == one['images_seen'] == 32
    # the losses agree only if examples, their positions in the batch and the noise are the same
    np.testing.assert_allclose(figures(tmp_path / 'one'), figures(tmp_path / 'two'), rtol=1e-5)
    assert_same_parameters(tmp_path / 'one', tmp_path / 'two')
    assert [p.name for p in (tmp_path / 'two' / 'samples').iterdir()] == ['000000032.png']

    # each continues the run that the other began
    for run in start(images, tmp_path / 'one', 48, 2, slurm), start(images, tmp_path / 'two', 48):
        finish(run)
    assert_same_parameters(tmp_path / 'one', tmp_path / 'two')


def test_sigterm_to_one_process_stops_both_after_the_same_step(images, tmp_path):
    hosts = start(images, tmp_path / 'run', 1_000_000, 2, slurm, 'srcnn', {'features': 16, 'blocks': 0})
    metrics = tmp_path / 'run' / 'metrics.jsonl'
    for _ in range(1200):
        if metrics.exists() and metrics.read_text():
            break
        time.sleep(0.1)
    hosts[1].send_signal(signal.SIGTERM)
    stopped = finish(hosts)
    assert not stopped['finished'] and stopped['images_seen'] > 0
    assert load_generator(tmp_path / 'run').images_seen == stopped['images_seen']


def test_what_the_first_process_refuses_all_refuse(images, alone):
    hosts = start(images, alone[0], 32, 2, named, seed=1)
    errors = [host.communicate(timeout=300)[1] for host in hosts]
    assert [host.returncode for host in hosts] == [2, 2]
    assert 'error: ' in errors[0] and 'seed (0 → 1)' in errors[0]
    assert 'error: the first process refused to start' in errors[1]


def test_half_an_address_is_bad_input(monkeypatch):
    monkeypatch.setenv('JAX_COORDINATOR_ADDRESS', '127.0.0.1:1')
    monkeypatch.delenv('JAX_NUM_PROCESSES', raising=False)
    with pytest.raises(BadInput, match='JAX_COORDINATOR_ADDRESS is set, but JAX_NUM_PROCESSES is not'):
        connect()
