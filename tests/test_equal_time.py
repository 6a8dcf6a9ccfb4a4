"""Training at equal optimiser time, and the search that halves its candidates."""

import dataclasses
import importlib
import sys
from pathlib import Path

import pytest
from PIL import Image
from scripts import error_line, run_script
from tiny import REGRESSION

from rsdiff.base.errors import BadInput
from rsdiff.training.checkpoint import load_generator
from rsdiff.training.config import TrainConfig, from_dict

TOOLS = Path(__file__).parents[1] / 'tools'
SEARCH = """
import ml_collections

def get_config():
    return ml_collections.ConfigDict({
        'base': 'srcnn',
        'minutes': MINUTES,
        'settings': {'batch_size': 8},
        'candidates': {'narrow': {'method': {'model': {'features': FEATURES}}}},
        'degradation': 'bicubic',
        'images': 4,
    })
"""


@pytest.fixture
def tool(monkeypatch):
    """Imports a module of tools/."""
    monkeypatch.setattr(sys, 'path', [str(TOOLS), *sys.path])
    return importlib.import_module


def test_a_snapshot_is_trained_once_and_must_have_seen_what_its_time_allows(tool, image_folder, tmp_path):
    equal_time = tool('equal_time')
    config = from_dict(
        TrainConfig,
        {
            'method': REGRESSION,
            'data': {'source': str(image_folder), 'size_px': 16},
            'batch_size': 8,
            'validation': {'examples': 8, 'samples': 1, 'grid': 1},
        },
    )
    at = lambda images: dataclasses.replace(config, total_images=images)
    run, first, second = (tmp_path / name for name in ('run', 'first', 'second'))
    equal_time.train_to(at(10), run, first)
    assert equal_time.is_trained(first) and load_generator(first).images_seen == 16
    equal_time.train_to(at(24), run, second)  # goes on
    assert load_generator(second).images_seen == 24
    before = (first / 'model.safetensors').stat().st_mtime_ns
    equal_time.train_to(at(10), run, first)
    assert (first / 'model.safetensors').stat().st_mtime_ns == before
    with pytest.raises(BadInput, match='has seen 16 images, and its time allows 32'):
        equal_time.train_to(at(32), run, first)


def rung(**scores):
    """An evaluation in which LPIPS and fd are these shares of bicubic enlargement's."""
    row = lambda share: {'lpips_alexnet': {'value': 0.5 * share}, 'fd_efflite0': {'value': 100 * share}}
    return {name: row(share) for name, share in scores.items()} | {'bicubic': row(1.0)}


def test_the_better_half_goes_on_best_first(tool):
    search = tool('search')
    found = rung(a=0.9, b=0.5, c=0.7, d=0.6, e=0.8)
    assert search.score(found, 'b') == pytest.approx(0.5)
    assert search.better_half(found, ['a', 'b', 'c', 'd', 'e']) == ['b', 'd', 'c']
    assert search.better_half(found, ['a', 'c']) == ['c'] and search.better_half(found, ['a']) == ['a']


def test_candidates_are_told_by_what_they_change(tool):
    described = tool('search').described
    assert described({}) == 'the base'
    assert described({'method': {'model': {'patch': 2}}, 'batch_size': 4}) == 'method.model.patch=2, batch_size=4'


@pytest.mark.parametrize(
    'minutes, features, message',
    [
        ('(2.0, 1.0)', 16, 'minutes is (2.0, 1.0); each must be more'),
        ('()', 16, 'minutes is (); each must be more'),
        ('(1.0,)', 5, 'features is 5'),
    ],
)
def test_what_is_no_search_is_named(minutes, features, message, tmp_path):
    path = tmp_path / 'search.py'
    path.write_text(SEARCH.replace('MINUTES', minutes).replace('FEATURES', str(features)))
    arguments = '--config', path, '--data', tmp_path, '--pairs', tmp_path, '--out', tmp_path / 'out'
    assert message in error_line(run_script('tools/search.py', *arguments))
    assert not (tmp_path / 'out').exists()


def test_a_search_folder_of_another_config_is_refused(tmp_path):
    path, out = tmp_path / 'search.py', tmp_path / 'out'
    out.mkdir()
    (out / 'settings.json').write_text('{"base": "demo"}')
    Image.new('RGB', (16, 16)).save(tmp_path / 'one.png')
    path.write_text(SEARCH.replace('MINUTES', '(1.0,)').replace('FEATURES', '16'))
    arguments = '--config', path, '--data', tmp_path, '--pairs', tmp_path, '--out', out
    line = error_line(run_script('tools/search.py', *arguments))
    assert "base 'demo' → 'srcnn'" in line and 'use another --out' in line
