import csv
import json

import numpy as np
import pytest

from rsdiff.data.images import read_image
from rsdiff.evaluation import report
from rsdiff.evaluation.columns import PAIRED, distribution
from rsdiff.evaluation.comparison import Row, Table, compare, mean_interval, summary
from rsdiff.evaluation.interval import Interval

(PSNR,) = (column for column in PAIRED if column.name == 'psnr')
FD = distribution('net')[0]


@pytest.fixture
def table():
    return Table(
        (PSNR, FD),
        {
            'bicubic': {'psnr': Interval(23.456, 22.1, 24.9), 'fd_net': Interval(80.0)},
            'set': {'fd_net': Interval(12.5, 10.0, 15.0)},
            'truth': {'psnr': Interval(float('inf')), 'fd_net': Interval(0.0)},
        },
        {'bicubic': {'psnr': np.array([22.0, 24.0])}, 'set': {}, 'truth': {'psnr': np.array([np.inf, np.inf])}},
        ('fd_net: 2 images, fewer than 8 features',),
    )


def test_what_rewards_blur_stands_apart_from_what_rewards_invention(table):
    blur, invention, warning = report.markdown(table).split('\n\n')
    assert 'psnr dB ↑' in blur and 'fd_net' not in blur and 'fd_net ↓' in invention and 'psnr' not in invention
    assert '| bicubic | 23.46 (22.10 to 24.90) |' in blur and '| truth | ∞ |' in blur and '| set |  |' in blur
    assert warning == 'Warning: fd_net: 2 images, fewer than 8 features.'


def test_files_hold_the_same_figures(table, tmp_path):
    report.write_tables(tmp_path, table, ['a.png', 'b.png'])
    rows = list(csv.DictReader((tmp_path / 'table.csv').open()))
    assert [(row['row'], row['column'], row['value'], row['low']) for row in rows[:3]] == [
        ('bicubic', 'psnr', '23.456', '22.1'),
        ('bicubic', 'fd_net', '80.0', ''),
        ('set', 'fd_net', '12.5', '10.0'),
    ]
    images = list(csv.DictReader((tmp_path / 'per_image.csv').open()))
    assert [(row['row'], row['image'], row['psnr']) for row in images] == [
        ('bicubic', 'a.png', '22.0'),
        ('bicubic', 'b.png', '24.0'),
        ('truth', 'a.png', 'inf'),
        ('truth', 'b.png', 'inf'),
    ]
    plain = json.loads(json.dumps(summary(table), allow_nan=False))
    assert plain['rows']['truth']['psnr']['value'] is None and plain['rows']['set']['fd_net']['high'] == 15.0
    assert plain['columns'][0]['rewards'] == 'blur'


def test_the_interval_of_a_mean_shrinks_with_the_root_of_the_number():
    rng = np.random.default_rng(0)
    few, many = mean_interval(rng.normal(5, 2, 100)), mean_interval(rng.normal(5, 2, 10_000))
    assert few.low < few.value < few.high and (many.high - many.low) == pytest.approx(2 * 1.96 * 2 / 100, rel=0.1)
    assert (few.high - few.low) / (many.high - many.low) == pytest.approx(10, rel=0.25)
    assert mean_interval(np.array([3.0, np.nan])) == Interval(3.0) and np.isnan(mean_interval(np.array([np.nan])).value)
    assert mean_interval(np.array([3.0])) == Interval(3.0) and mean_interval(np.array([np.inf, 1.0])).low is None


def test_the_grid_shows_each_image_under_its_name_and_the_error_where_it_is(tmp_path):
    truth = np.full((32, 32, 3), 100, np.uint8)
    wrong = truth.copy()
    wrong[:16, :16] = 255
    report.write_grid(
        tmp_path / 'grid.png', [{'condition': truth[::4, ::4], 'mine': wrong, 'truth': truth}] * 2, 'truth', ['mine']
    )
    sheet = read_image(tmp_path / 'grid.png')
    assert sheet.shape == (report.HEAD_PX + 2 * 32 + report.GAP_PX, 4 * 32 + 3 * report.GAP_PX, 3)
    line = sheet[-32:]
    assert (line[:, :32] == 100).all() and (line[:, 36:68] == wrong).all()
    error = line[:, -32:].astype(int).sum(-1)
    assert (error[:16, :16] > 600).all() and (error[16:] < 30).all()


def test_a_single_image_has_no_distances_between_features():
    found = compare([Row('truth', lambda n: np.zeros((8, 8, 3), np.uint8), 1)], 'truth', (), None, (), [None])
    assert found.columns == () and 'single image' in found.warnings[0]
