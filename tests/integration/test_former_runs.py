"""Runs written by earlier versions are read and continued, and keep their names."""

import dataclasses
import json
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest

from rsdiff.base.files import read_json
from rsdiff.data.folder import Entry, write_manifest
from rsdiff.data.images import write_image
from rsdiff.training.checkpoint import load_generator
from rsdiff.training.config import TrainConfig, from_dict, upgrade
from rsdiff.training.loop import train

# a run of 16 images by the last version whose state had neither parts nor fields; expected.json holds what that version
# reported about it, and its losses when it continued to 32 images
FORMER = Path(__file__).parents[1] / 'data' / 'run_before_parts.zip'


@pytest.fixture
def run(tmp_path, smooth_image):
    with zipfile.ZipFile(FORMER) as archive:
        archive.extractall(tmp_path / 'run')
    images = tmp_path / 'images'
    for number in range(8):
        write_image(images / f'{number}.png', smooth_image(32, 32, number))
    write_manifest(images, [Entry(images / f'{n}.png', f'{n}.png', 'train', None, (), 10.0, {}) for n in range(8)])
    return tmp_path / 'run'


def test_it_is_named_as_before(run):
    trained, expected = load_generator(run), json.loads((run / 'expected.json').read_text())
    assert trained.digest == expected['digest'] and trained.images_seen == 16


def test_it_goes_on_as_before_and_its_new_checkpoints_are_read(run):
    expected = json.loads((run / 'expected.json').read_text())
    config = from_dict(TrainConfig, upgrade(read_json(run / 'config.json')))
    config = dataclasses.replace(
        config, total_images=32, data=dataclasses.replace(config.data, source=str(run.parent / 'images'))
    )
    train(config, run, allow_config_change=True, show=False)
    rows = map(json.loads, (run / 'metrics.jsonl').read_text().splitlines())
    losses = {str(row['images_seen']): row['loss'] for row in rows if 'loss' in row}
    assert losses == pytest.approx(expected['losses'], rel=1e-4)
    after = load_generator(run)
    assert after.images_seen == 32
    train(dataclasses.replace(config, total_images=40), run, show=False)  # from a checkpoint of this version
    changed = jax.tree.map(lambda a, b: np.abs(a - b).max(), after.params, load_generator(run).params)
    assert max(jax.tree.leaves(changed)) > 0
