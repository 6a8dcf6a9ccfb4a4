"""The report of synthetic cells: its rows, its answer and its page."""

import base64
import csv
import html
import io
import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from rsdiff.base.errors import BadInput
from rsdiff.data.fingerprints import FILE, TrainedOn, write_fingerprints
from rsdiff.data.images import read_image, write_image
from rsdiff.downstream import charts, report, scores
from rsdiff.downstream.samples import MOST_THUMBNAILS, THUMBNAIL_PX, provenance, strips
from rsdiff.downstream.summary import summarise

# class names come from data and must not be trusted
CLASSES = 'lake', 'sand & <b>dune</b> $\\x$', '<script>document.title="spoilt"</script>'
LABELS = np.repeat([0, 1, 2], 20)
FILES = (
    'table.csv',
    'table.md',
    'table.tex',
    'per_class.csv',
    'report.json',
    'report.html',
    'accuracy.png',
    'ratio.png',
    'learning_curve.png',
    'confusion.png',
    'per_class.png',
)


def settings(**others):
    return {
        'encoder': 'made_up',
        'real_per_class': None,
        'classes': list(CLASSES),
        'evaluate_on': 'test',
        'methods': ['linear', 'clip'],
        'chosen': {'linear': {'regularisation': 0.1}},
    } | others


def cell(method, arm, shots, seed, right, ratio=None, real=True, extra=0):
    """`right`: share of images classified correctly; within a seed, a larger share adds images to a smaller one."""
    order = np.random.default_rng([7, seed]).permutation(len(LABELS))
    hit = np.zeros(len(LABELS), bool)
    hit[order[: round(right * len(LABELS))]] = True
    predictions = np.where(hit, LABELS, (LABELS + 1) % 3)
    confusion = scores.confusion_matrix(LABELS, predictions, 3)
    return {
        'method': method,
        'arm': arm,
        'shots': shots,
        'ratio': ratio,
        'seed': seed,
        'steps': 5 * real,
        'real_images': 3 * (shots or 10) * real,
        'extra_images': extra,
        'accuracy': scores.accuracy(confusion),
        'macro_f1': scores.macro_f1(confusion),
        'confusion': confusion.tolist(),
        'predictions': predictions.tolist(),
        'final_loss': 0.5,
        'seconds': 1.0,
    }


def study(gain=0.2, seeds=4):
    """Two methods, two numbers of shots, every kind of arm; the mixtures beat `real` by `gain`."""
    arms = {
        'real': (0.5, None),
        'synthetic': (0.4, 1),
        'real+synthetic 1:1': (0.5 + gain, 1),
        'real+synthetic 1:2': (0.5 + gain / 2, 2),
        'real repeated': (0.5, 2),
        'augmented': (0.52, None),
        'bicubic': (0.47, 1),
        'random labels': (0.32, None),
        'untrained': (0.35, None),
    }
    return [
        cell(
            method,
            arm,
            shots,
            seed,
            right + 0.01 * seed + 0.05 * (shots is None),
            ratio,
            arm not in ('synthetic', 'untrained'),
            30 * (ratio or 0),
        )
        for method in ('linear', 'clip')
        for shots in (4, None)
        for arm, (right, ratio) in arms.items()
        for seed in range(seeds)
    ]


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    """Three training images per class, two generated from each; two more, one with a null source, one without."""
    where, rng = tmp_path_factory.mktemp('images'), np.random.default_rng(0)
    rows = {'real': [], 'synthetic': []}
    for number, label in enumerate(CLASSES):
        for i in range(4):
            write_image(where / 'real' / f'{number}_{i}.png', rng.integers(0, 256, (300, 200, 3), np.uint8))
            rows['real'].append(
                {'file_name': f'{number}_{i}.png', 'label': label, 'split': 'train' if i < 3 else 'test'}
            )
            for variant in range(2):
                name = f'{number}_{i}-{variant}.png'
                write_image(where / 'synthetic' / name, np.full((64, 64, 3), 40 * number + i, np.uint8))
                rows['synthetic'].append(
                    {'file_name': name, 'label': label, 'variant': variant, 'checkpoint': 'abc<i>', 'steps': i}
                    | ({'source': f'{number}_{i}.png'} if i < 3 else {'source': None} if variant else {})
                )
    for name, own in rows.items():
        (where / name / 'metadata.jsonl').write_text('\n'.join(map(json.dumps, own)))
    return where / 'real', where / 'synthetic'


@pytest.fixture(scope='module')
def written(folders, tmp_path_factory):
    out = tmp_path_factory.mktemp('report') / 'out'
    return out, report.write_report(out, settings(), study(), LABELS, ('dropped_<u>.png',), *folders)


# The rows.


def test_there_is_a_row_for_each_method_arm_and_number_of_real_images_in_the_order_they_were_asked_for():
    rows = summarise(settings(methods=['clip', 'linear']), study(), LABELS)['rows']
    assert len(rows) == 2 * 2 * 9
    assert list(dict.fromkeys((row['method'], row['shots']) for row in rows)) == [
        ('clip', 4),
        ('clip', None),
        ('linear', 4),
        ('linear', None),
    ]
    assert {row['seeds'] for row in rows} == {4}


def test_gains_are_paired_and_nothing_is_compared_that_saw_no_image():
    cells = study()
    for row in summarise(settings(), cells, LABELS)['rows']:
        own, real = (
            [c['accuracy'] for c in cells if (c['method'], c['shots'], c['arm']) == (row['method'], row['shots'], arm)]
            for arm in (row['arm'], 'real')
        )
        assert row['accuracy'] == pytest.approx(np.mean(own))
        if row['arm'] in ('real', 'untrained'):
            assert {
                row[key] for key in ('gain', 'gain_low', 'gain_high', 'p', 'p_holm', 'significant', 'macro_f1_gain')
            } == {None}
        else:
            assert row['gain'] == pytest.approx(np.mean(np.subtract(own, real)))
            assert row['gain_low'] <= row['gain'] <= row['gain_high'] and row['p'] <= row['p_holm'] <= 1
            assert row['significant'] == (row['p_holm'] < 0.05)


def test_seeds_that_vary_widely_but_together_leave_the_gain_certain():
    cells = [
        cell('linear', arm, None, seed, base + (0.1 if arm != 'real' else 0))
        for arm in ('real', 'real+synthetic 1:1')
        for seed, base in enumerate((0.2, 0.8, 0.5))
    ]
    row = summarise(settings(), cells, LABELS)['rows'][1]
    assert row['gain'] == pytest.approx(0.1) and row['accuracy_ci95'] > 0.5
    assert 0 < row['gain_low'] and row['gain_high'] - row['gain_low'] < 0.2


def test_classes_have_their_own_changes():
    summary = summarise(settings(), study(), LABELS)
    own = [
        row
        for row in summary['per_class']
        if (row['method'], row['shots'], row['arm']) == ('linear', 4, 'real+synthetic 1:1')
    ]
    assert [row['class'] for row in own] == list(CLASSES) and [row['images'] for row in own] == [20] * 3
    overall = next(
        row
        for row in summary['rows']
        if (row['method'], row['shots'], row['arm']) == ('linear', 4, 'real+synthetic 1:1')
    )
    # with classes of equal size, accuracy is the mean recall
    assert np.mean([row['recall_gain'] for row in own]) == pytest.approx(overall['gain'])
    assert np.mean([row['f1'] for row in own]) == pytest.approx(overall['macro_f1'])
    assert all(row['recall_gain_low'] <= row['recall_gain'] <= row['recall_gain_high'] for row in own)


# The answer.


@pytest.mark.parametrize(
    'gain, verdict', [(0.2, 'evidence of a gain'), (0.0, 'no evidence of a change'), (-0.3, 'evidence of a loss')]
)
def test_the_answer_says_what_the_figures_say(gain, verdict):
    summary = summarise(settings(), study(gain), LABELS)
    headline = summary['headline']
    assert (headline['method'], headline['shots'], headline['verdict']) == ('linear', None, verdict)
    assert headline['text'].startswith(
        f'{headline["arm"]} changes accuracy by {100 * headline["gain"]:+.1f} points (95 % '
    )
    assert 'after Holm over 7 arms' in headline['text'] and verdict in headline['text']
    assert len(summary['answers']) == 4
    # `augmented` beats `real` by 0.02: it is the baseline for synthetic images
    assert headline['control'] == 'augmented'
    assert headline['over_control']['gain'] == pytest.approx(headline['gain'] - 0.02, abs=0.02)


def test_the_headline_is_of_the_comparison_of_all_arms():
    summary = summarise(settings(real_per_class=4), study(), LABELS)
    assert summary['headline'] is summary['answers'][0] and summary['headline']['shots'] == 4
    assert {panel[0]['shots'] for panel in charts._all_arms(summary).values()} == {4}


def test_no_control_is_called_the_best_arm_that_is_worse_than_real():
    cells = [c for c in study() if c['arm'] not in ('augmented', 'real repeated')]
    headline = summarise(settings(), cells, LABELS)['headline']
    assert headline['control'] is None and 'Against' not in headline['text']


def test_cells_that_are_not_there_yet_are_not_waited_for():
    cells = study()[:-3]
    missing = [c for c in cells if not (c['arm'] == 'real' and c['method'] == 'linear' and c['seed'] > 1)]
    rows = {(row['method'], row['arm'], row['shots']): row for row in summarise(settings(), missing, LABELS)['rows']}
    assert rows['linear', 'real', 4]['seeds'] == 2 and rows['linear', 'bicubic', 4]['seeds'] == 4
    paired = [
        next(c['accuracy'] for c in cells if (c['method'], c['arm'], c['shots'], c['seed']) == ('linear', arm, 4, seed))
        for seed in range(2)
        for arm in ('bicubic', 'real')
    ]
    assert rows['linear', 'bicubic', 4]['gain'] == pytest.approx((paired[0] - paired[1] + paired[2] - paired[3]) / 2)


def test_a_single_cell_has_a_report_without_an_answer(folders, tmp_path):
    alone = report.write_report(
        tmp_path, settings(), [cell('zero_shot', 'untrained', None, 0, 0.4, real=False)], LABELS, (), *folders
    )
    assert alone['headline'] is None and alone['rows'][0]['accuracy_ci95'] is None
    assert 'no answer yet' in (tmp_path / 'report.html').read_text() and not (tmp_path / 'ratio.png').exists()


# The files.


def test_every_file_says_the_same(written):
    out, summary = written
    assert all((out / name).stat().st_size > 0 for name in FILES)
    with open(out / 'table.csv', newline='') as file:
        table = list(csv.DictReader(file))
    assert [(row['arm'], float(row['accuracy'])) for row in table] == [
        (row['arm'], row['accuracy']) for row in summary['rows']
    ]
    full = json.loads((out / 'report.json').read_text(), parse_constant=pytest.fail)
    assert (
        full['rows'] == summary['rows']
        and full['headline'] == summary['headline']
        and len(full['cells']) == len(study())
    )
    assert full['settings'] == settings() and full['dropped'] == ['dropped_<u>.png']
    with open(out / 'per_class.csv', newline='') as file:
        assert len(list(csv.DictReader(file))) == 3 * len(summary['rows'])
    markdown = (out / 'table.md').read_text()
    assert markdown == report.markdown(full) and summary['headline']['text'] in markdown
    body = (out / 'table.tex').read_text().split(r'\midrule')[1].split(r'\bottomrule')[0].strip().splitlines()
    assert len(body) == len(summary['rows']) and {len(re.findall(r'(?<!\\)&', line)) for line in body} == {
        len(report.COLUMNS) - 1
    }


def test_what_a_generator_was_trained_on_is_said_and_unknown_where_it_is(folders, tmp_path):
    alone = [cell('zero_shot', 'untrained', None, 0, 0.4, real=False)]
    image = TrainedOn(('a.png',), np.zeros((1, 160), np.uint8))
    for known, text, sure in (
        (None, 'unknown', False),
        (image, '1 images', True),
        (image + TrainedOn(unknown=('a <scene>',)), 'and unknown ones (a <scene>)', False),
    ):
        if known:
            write_fingerprints(folders[1] / FILE, known)
        try:
            summary = report.write_report(tmp_path, settings(), alone, LABELS, (), *folders)
        finally:
            (folders[1] / FILE).unlink(missing_ok=True)
        assert text in summary['generator_trained_on']
        assert (
            json.loads((tmp_path / 'report.json').read_text())['generator_trained_on']
            == summary['generator_trained_on']
        )
        for name in 'report.html', 'table.md':
            written = html.unescape((tmp_path / name).read_text())
            assert text in written and ('cannot be determined' in written) != sure


def test_what_was_trained_on_captions_has_its_recalls_and_their_gains(folders, tmp_path):
    captioned = [
        cell('captions', arm, 4, seed, 0.5)
        | {
            'hits': {
                'image to text': np.full((3, 60), found).tolist(),
                'text to image': np.full((3, 60), found + 0.1).tolist(),
            }
        }
        for arm, found in (('real', 0.2), ('bicubic', 0.2), ('real+synthetic 1:1', 0.5))
        for seed in range(5)
    ]
    summary = report.write_report(
        tmp_path, settings(methods=['captions']), [*study(), *captioned], LABELS, (), *folders
    )
    rows = {row['arm']: row for row in summary['retrieval']}
    assert rows['real']['mean_recall'] == pytest.approx(0.25) and rows['real']['gain'] is None
    assert rows['bicubic']['gain'] == 0 and rows['bicubic']['p_holm'] == 1 and not rows['bicubic']['significant']
    best = rows['real+synthetic 1:1']
    assert (best['gain'], best['gain_low']) == pytest.approx((0.3, 0.3)) and best['significant']
    assert best['image to text R@5'] == pytest.approx(0.5) and best['text to image R@1'] == pytest.approx(0.6)
    with open(tmp_path / 'retrieval.csv', newline='') as file:
        assert [row['arm'] for row in csv.DictReader(file)] == [*rows]
    assert '| 55.0 ± 0.0 | +30.0 (+30.0 to +30.0) |' in (tmp_path / 'table.md').read_text()
    assert (
        'tab:retrieval' in (tmp_path / 'table.tex').read_text()
        and '<h3>Retrieval</h3>' in (tmp_path / 'report.html').read_text()
    )


@pytest.mark.parametrize('name', [name for name in FILES if name.endswith('.png')])
def test_charts_are_pictures(written, name):
    with Image.open(written[0] / name) as image:
        assert min(image.size) > 200 and len(image.convert('RGB').getcolors(1 << 24)) > 20


def test_the_report_can_be_written_again_and_is_the_same(written, folders, tmp_path):
    out, summary = written
    again = report.write_report(tmp_path, settings(), study(), LABELS, ('dropped_<u>.png',), *folders)
    assert again == summary
    assert all((tmp_path / name).read_bytes() == (out / name).read_bytes() for name in FILES)


# The page.


def test_the_page_holds_everything_and_trusts_no_name(written):
    text = (written[0] / 'report.html').read_text()
    assert '<script' not in text and '<b>' not in text and '<u>' not in text and '<i>' not in text
    assert '&lt;script&gt;' in text and 'abc&lt;i&gt;' in text and 'dropped_&lt;u&gt;.png' in text
    assert not re.findall(r'(?:src|href)="(?!data:image/|#)', text) and 'url(' not in text
    images = re.findall(r'<img [^>]*>', text)
    assert all(re.search(r'alt="[^"]{5,}"', image) for image in images)
    assert len(images) == 5 + 3 * (3 + 3 * 2)  # charts, and per class three sources with two images generated from each
    assert 'regularisation' in text and len(text) < 10e6


def test_the_learning_curve_shows_the_mixture_that_has_every_number_of_real_images():
    cells = [
        cell('linear', arm, shots, seed, right, 2 * (arm != 'real'))
        for shots, right in ((1, 0.4), (4, 0.5), (10, 0.6))
        for arm in ('real', 'real+synthetic 1:2')
        for seed in range(3)
    ]
    cells += [cell('linear', 'real+synthetic 1:1', 10, seed, 0.9, 1) for seed in range(3)]
    summary = summarise(settings(real_per_class=10, methods=['linear']), cells, LABELS)
    assert summary['headline']['arm'] == 'real+synthetic 1:1'
    told = charts.learning_curve(summary).alternative
    assert 'real+synthetic 1:2: 1 images 40.0 %, 4 images 50.0 %, 10 images 60.0 %' in told and '1:1' not in told


def test_strips_show_what_was_made_beside_its_source(folders):
    found = strips(*folders, CLASSES)
    assert list(found) == list(CLASSES)
    for number, own in enumerate(found.values()):
        assert len(own) == 3
        for strip in own:
            assert {name.rsplit('-', 1)[0] for name, _ in strip.made} == {
                strip.source[0].removesuffix('.png') if strip.source else f'{number}_3'
            }
            assert all(uri.startswith('data:image/jpeg;base64,') for _, uri in strip.made)
    assert len(strips(*folders, [f'c{n}' for n in range(5)])) == 0


def test_thumbnails_are_small_and_few(folders, tmp_path):
    uri = strips(*folders, CLASSES)['lake'][0].source[1]
    with Image.open(io.BytesIO(base64.b64decode(uri.split(',')[1]))) as image:
        assert max(image.size) == THUMBNAIL_PX and image.size[1] > image.size[0]
    names = [f'{n:04d}' for n in range(MOST_THUMBNAILS)]
    write_image(tmp_path / 'a.png', np.zeros((8, 8, 3), np.uint8))
    (tmp_path / 'metadata.jsonl').write_text(
        '\n'.join(json.dumps({'file_name': 'a.png', 'label': name, 'source': 'a.png'}) for name in names)
    )
    assert len(strips(tmp_path, tmp_path, names)) == MOST_THUMBNAILS // 2


def test_provenance_is_what_the_manifests_say(folders):
    found = provenance(*folders, CLASSES)
    assert found['counts'] == [{'class': name, 'train': 3, 'test': 1, 'synthetic': 8} for name in CLASSES]
    assert (found['sources'], found['from_none'], found['without_source']) == (9, 3, 3)
    assert found['fields'] == {'checkpoint': 'abc<i>', 'steps': '4 different values'}


def test_an_image_that_cannot_be_read_is_bad_input(folders, tmp_path):
    shutil.copytree(folders[1], tmp_path / 'synthetic')
    (tmp_path / 'synthetic' / '0_0-0.png').write_bytes(b'no image')
    with pytest.raises(BadInput, match='0_0-0.png: not a readable image'):
        strips(folders[0], tmp_path / 'synthetic', CLASSES)


@pytest.mark.parametrize('scheme, width', [('light', 1200), ('dark', 390)])
def test_a_browser_shows_the_page_and_asks_nothing_of_a_network(browser, written, tmp_path, scheme, width):
    page = browser.new_page(viewport={'width': width, 'height': 800}, color_scheme=scheme)
    page.set_default_timeout(10_000)
    wrong, asked = [], []
    page.on('console', lambda message: wrong.append(message.text))
    page.on('pageerror', lambda error: wrong.append(str(error)))
    page.on('request', lambda request: asked.append(request.url))
    page.goto((written[0] / 'report.html').as_uri())
    assert not wrong and all(url.startswith(('file:', 'data:')) for url in asked)
    assert page.title() == 'Do synthetic images help? made_up'
    assert page.evaluate('document.documentElement.scrollWidth') <= width  # wide tables have their own scroll bar
    assert page.evaluate('[...document.images].every(image => image.complete && image.naturalWidth > 0)')
    page.screenshot(path=tmp_path / 'page.png')
    paper, ink = (
        read_image(tmp_path / 'page.png')[2, 2].mean(),
        page.evaluate('getComputedStyle(document.body).color.match(/[0-9]+/g).map(Number).reduce((a, b) => a + b) / 3'),
    )
    assert (paper > 200 > ink) if scheme == 'light' else (paper < 60 < ink)
    page.close()
