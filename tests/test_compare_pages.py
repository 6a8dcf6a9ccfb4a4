"""The pages of a comparison of methods, and what its tool refuses."""

import importlib
import sys
from pathlib import Path

import pytest
from PIL import Image
from scripts import error_line, run_script

TOOLS = Path(__file__).parents[1] / 'tools'


@pytest.fixture
def pages(monkeypatch):
    monkeypatch.setattr(sys, 'path', [str(TOOLS), *sys.path])
    return importlib.import_module('compare_pages')


def row(lpips):
    return {
        'lpips_alexnet': {'value': lpips, 'low': lpips - 0.1, 'high': lpips + 0.1},
        'fd_efflite0': {'value': 100 * lpips, 'low': None, 'high': None},
    }


def result(folder):
    rows = {'nearest': row(0.7), 'bicubic': row(0.6), 'worse': row(0.5), 'better': row(0.3), 'truth': row(0.1)}
    repeated = {'images': 4, 'rows': {'bicubic': row(0.6), 'better_seed1': row(0.35)}}
    early = {'images': 2, 'rows': {name: rows[name] for name in ('bicubic', 'better')}}
    final = {'images': 4, 'rows': rows, 'warnings': ['few images'], 'folder': str(folder)}
    cost = {'parameters': 2_000_000, 'evaluations_per_px': 4, 'mac_per_px': 5e5, 'px_per_second': {'median': 1000.0}}
    return {
        'minutes': 2.0,
        'notes': ('a note',),
        'cost': {'better': cost},
        'sets': {'s': {'final': final, 'repeated': repeated, 'curve': {'0.5': early, '1': early}}},
    }


def test_methods_stand_between_the_controls_best_first(pages, tmp_path):
    Image.new('RGB', (4, 4)).save(tmp_path / 'grid.png')
    pages.write(result(tmp_path), {'s': True}, tmp_path, tmp_path / 'out')
    text = (tmp_path / 'out' / 'README.md').read_text()
    places = [text.index(f'| {name} | 0.') for name in ('nearest', 'bicubic', 'better', 'worse', 'truth')]
    assert places == sorted(places)
    assert '| better | 2.00 | 4 | 0.5 | 1e+03 |' in text and '0.300 (0.200 to 0.400)' in text
    assert '* a note' in text and '| better | 0.300, 0.350 | 30.0, 35.0 |' in text
    assert 'Warning: few images.' in text and (tmp_path / 'out' / 's.jpg').is_file()
    assert (tmp_path / 'out' / 'curves.png').stat().st_size > 1000
    rows = (tmp_path / 'out' / 'methods.csv').read_text()
    assert rows.count('better,lpips_alexnet') == 3 and rows.count('better_seed1,lpips_alexnet') == 1
    assert rows.count('bicubic,lpips_alexnet') == 3


def test_pictures_that_may_not_be_shown_are_not(pages, tmp_path):
    pages.write(result(tmp_path), {'s': False}, tmp_path, tmp_path / 'out')
    assert not list((tmp_path / 'out').glob('s.jpg')) and '![s' not in (tmp_path / 'out' / 'README.md').read_text()


@pytest.mark.parametrize(
    'arguments, message',
    [
        ([], 'give --config'),
        (['--config', 'demo'], 'not a comparison'),
        (['--config', 'sr_comparison', '--only', 'srgan'], '--only srgan: there are'),
    ],
)
def test_what_is_no_comparison_is_named(arguments, message, tmp_path):
    assert message in error_line(run_script('tools/compare_methods.py', '--out', tmp_path / 'out', *arguments))
    assert not (tmp_path / 'out').exists()
