"""A run that is killed, damaged and starved, and what is left of it."""

import dataclasses
import json
import logging
import multiprocessing
import os
import random
import shutil
import time

import jax
import numpy as np
import pytest

from rsdiff.errors import BadInput
from rsdiff.training.checkpoint import load_generator
from rsdiff.training.config import TrainConfig, from_dict
from rsdiff.training.loop import train

KILLS = 20


@pytest.fixture
def config(image_folder):
    return from_dict(TrainConfig, {
        'generator': {'model': dict(width=16, multipliers=(1,), blocks=1, attention_levels=(), head_width=16, patch=4,
                                    rrdb_features=8, rrdb_growth=4, rrdb_blocks=1)},
        'data': {'source': str(image_folder), 'size_px': 16, 'threads': 1}, 'batch_size': 8, 'total_images': 32,
        'log_images': 8, 'checkpoint_images': 16,
        'validation': {'every_images': 10**9, 'examples': 8, 'grid': 1, 'bins': 1, 'steps': 1}})


def until(config, images):
    return dataclasses.replace(config, total_images=images)


def leaves(workdir):
    return jax.tree.leaves(load_generator(workdir).params)


def assert_equal(a, b):
    for one, other in zip(leaves(a), leaves(b), strict=True):
        np.testing.assert_array_equal(one, other)


def _train(config, workdir):
    os.environ['PYTHONUNBUFFERED'] = '1'
    train(config, workdir, show=False)


def steps_told(workdir):
    path = workdir / 'metrics.jsonl'
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_twenty_kills_change_nothing(config, tmp_path, capsys):
    """SIGKILL at random moments, every second one while a checkpoint is being written."""
    config = until(config, 8 * 400)
    # a server that has imported everything makes each new process in no time
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['tests.conftest', 'rsdiff.training.loop'])
    chance, workdir, lost, resumed = random.Random(0), tmp_path / 'killed', [], []
    for number in range(KILLS):
        before = steps_told(workdir)
        process = context.Process(target=_train, args=(config, workdir))
        process.start()
        while process.is_alive() and steps_told(workdir) == before and not time.sleep(0.01):
            pass  # until it is under way
        deadline = time.monotonic() + chance.uniform(0, 0.5)
        saving = lambda: any((workdir / 'checkpoints').glob('*tmp*'))
        while process.is_alive() and not (saving() if number % 2 else time.monotonic() > deadline):
            time.sleep(0.001)
        assert process.is_alive(), 'finished before it could be killed; make the run longer'
        process.kill()
        process.join()
        kept = load_generator(workdir).images_seen // 8 if (workdir / 'checkpoints').exists() else 0
        lost.append(steps_told(workdir) - kept)
        resumed.append(kept)
    assert resumed == sorted(resumed)
    train(config, workdir, show=False)
    train(config, tmp_path / 'whole', show=False)
    assert_equal(workdir, tmp_path / 'whole')
    losses = lambda path: [json.loads(line)['loss'] for line in (path / 'metrics.jsonl').read_text().splitlines()
                           if 'loss' in line]
    assert losses(workdir)[:-1] == losses(tmp_path / 'whole')[:-1]
    with capsys.disabled():
        print(f'\n{KILLS} kills: resumed at steps {resumed}, lost {sum(lost)} steps in all, {max(lost)} at most')
