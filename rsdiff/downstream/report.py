"""Writes a comparison to files, all from one summary.

    table.csv table.md table.tex    one row per (method, arm, number of real images)
    per_class.csv                   recall and F1 of each row and class, with their changes against `real`
    retrieval.csv                   recalls of each row that was trained on captions, if there is one
    accuracy.png ratio.png learning_curve.png confusion.png per_class.png
    report.html                     all of the above on one self-contained page, with images beside their sources
    report.json                     every figure, setting and cell; predictions stay in cells/

Nothing is trained here: the report can be rewritten from finished cells.
"""

import io
import itertools
import json
from pathlib import Path
from typing import Any, Sequence

import jinja2
import numpy as np

from rsdiff.base.files import write_text_atomically
from rsdiff.data.fingerprints import UNKNOWN
from rsdiff.downstream import charts, methods, samples
from rsdiff.downstream.leaks import generator_trained_on
from rsdiff.downstream.summary import RECALLS, p_text, setting_text, shots_text, summarise
from rsdiff.evaluation import tables
from rsdiff.evaluation.tables import Shown

TEMPLATE = Path(__file__).parent / 'report.html'

# the purpose of each arm; the ratio of a mixture is in its name
PURPOSES = {
    'real': 'the baseline: real images only',
    'synthetic': 'generated images only: how well can they replace real ones?',
    'real+synthetic': 'the arm under test: real images and n generated ones for each',
    'real repeated': 'the same real images repeated: does the number of training examples explain a gain?',
    'augmented': 'the real images flipped, rotated, cropped and colour-jittered: what does plain augmentation achieve?',
    'mixup': 'blends of two images and their labels (Zhang et al. 2018)',
    'cutout': 'images with a square masked out (DeVries & Taylor 2017)',
    'cutmix': 'images with a patch from another image, labels in proportion (Yun et al. 2019)',
    'bicubic': 'real images downsampled and enlarged by interpolation: the generator input, without the detail it adds',
    'random labels': 'the mixture with the labels of its generated images shuffled: do these labels matter?',
    'untrained': 'the encoder before training',
}
COLUMNS = (
    Shown('method', lambda row: row['method'], number=False),
    Shown('training images', lambda row: row['arm'], number=False),
    Shown('real images per class', lambda row: shots_text(row['shots'])),
    Shown('real', lambda row: str(row['real_images'])),
    Shown('extra', lambda row: str(row['extra_images'])),
    Shown('steps', lambda row: str(row['steps'])),
    Shown('seeds', lambda row: str(row['seeds'])),
    Shown('accuracy %', lambda row: _plus_minus(row['accuracy'], row['accuracy_ci95'])),
    Shown('macro-F1 %', lambda row: _plus_minus(row['macro_f1'], row['macro_f1_ci95'])),
    Shown('gain over real, points', lambda row: _change(row, '')),
    Shown('p', lambda row: '' if row['p'] is None else p_text(row['p'])),
    Shown('p, Holm', lambda row: '' if row['p_holm'] is None else p_text(row['p_holm'])),
)
RETRIEVAL_COLUMNS = (
    *COLUMNS[1:5],
    Shown('mean recall %', lambda row: _plus_minus(row['mean_recall'], row['mean_recall_ci95'])),
    Shown('gain over real, points', lambda row: _change(row, '')),
    *COLUMNS[-2:],
    *(Shown(f'{name} %', lambda row, name=name: f'{100 * row[name]:.1f}') for name in RECALLS),
)
# for the page, where rows are grouped under the name of their setting
GROUPED = COLUMNS[1:2] + COLUMNS[3:]
ANSWERS = (
    Shown('setting', setting_text, number=False),
    Shown('best with synthetic images', lambda answer: answer['arm'], number=False),
    Shown('gain over real, points', lambda answer: _change(answer, '')),
    Shown('p, Holm', lambda answer: p_text(answer['p_holm'])),
    Shown('answer', lambda answer: answer['verdict'], number=False),
    Shown('best without', lambda answer: answer['control'] or 'real', number=False),
    Shown('gain over that, points', lambda answer: _change(answer['over_control'] or answer, '')),
)
CLASS_COLUMNS = (
    Shown('class', lambda row: row['class'], number=False),
    Shown('images', lambda row: str(row['images'])),
    Shown('recall %', lambda row: f'{100 * row["recall"]:.1f}'),
    Shown('change, points', lambda row: _change(row, 'recall_')),
    Shown('F1 %', lambda row: f'{100 * row["f1"]:.1f}'),
    Shown('change, points', lambda row: _change(row, 'f1_')),
)


def write_report(
    out: Path | str,
    settings: dict[str, Any],
    cells: Sequence[dict[str, Any]],
    labels: np.ndarray,
    dropped: Sequence[str],
    real: Path | str,
    synthetic: Path | str,
) -> dict[str, Any]:
    """Writes the files above to `out`; returns `summarise`'s result and `generator_trained_on`, without `per_class`.

    Args:
      settings, cells: as returned by `compare`.
      labels: int (images,), the true classes of the evaluation images.
      dropped: names of the images that were left out.
      real, synthetic: the image folders that were compared.
    Raises:
      BadInput: a folder or one of its images can't be read.
    """
    out = Path(out)
    summary: dict[str, Any] = summarise(settings, cells, labels, dropped) | {
        'generator_trained_on': generator_trained_on(synthetic)
    }
    drawn = charts.draw(summary, cells)
    pictures = {}
    for name, chart in drawn.items():
        encoded = io.BytesIO()
        chart.figure.savefig(encoded, format='png', dpi=charts.DOTS_AN_INCH)
        pictures[name] = encoded.getvalue()
    out.mkdir(parents=True, exist_ok=True)
    for name, encoded in pictures.items():
        (out / f'{name}.png').write_bytes(encoded)

    rows = summary['rows']
    write_text_atomically(out / 'table.csv', tables.csv_text(rows))
    write_text_atomically(out / 'per_class.csv', tables.csv_text(summary['per_class']))
    write_text_atomically(out / 'table.md', markdown(summary))
    latex = tables.latex(COLUMNS, rows, caption(summary), 'tab:downstream')
    if retrieved := summary['retrieval']:
        write_text_atomically(out / 'retrieval.csv', tables.csv_text(retrieved))
        latex += '\n' + tables.latex(RETRIEVAL_COLUMNS, retrieved, retrieval_caption(summary), 'tab:retrieval')
    write_text_atomically(out / 'table.tex', latex)
    plain = [{key: value for key, value in cell.items() if key != 'predictions'} for cell in cells]
    write_text_atomically(
        out / 'report.json',
        json.dumps(summary | {'settings': settings, 'dropped': list(dropped), 'cells': plain}, indent=1) + '\n',
    )
    write_text_atomically(
        out / 'report.html', page(summary, settings, cells, drawn, pictures, dropped, real, synthetic)
    )
    return {key: value for key, value in summary.items() if key != 'per_class'}


def markdown(summary: dict[str, Any]) -> str:
    """The answer, the table with its caption, what the generator was trained on, and retrieval if it was measured."""
    answer = f'{summary["headline"]["text"]}\n\n' if summary['headline'] else ''
    every = f'{tables.markdown(ANSWERS, summary["answers"])}\n' if len(summary['answers']) > 1 else ''
    table = (
        f'{answer}{every}{tables.markdown(COLUMNS, summary["rows"])}\n{caption(summary)}\n\n'
        f'{trained_on_text(summary)}\n'
    )
    if not summary['retrieval']:
        return table
    return f'{table}\n{tables.markdown(RETRIEVAL_COLUMNS, summary["retrieval"])}\n{retrieval_caption(summary)}\n'


def caption(summary: dict[str, Any]) -> str:
    """The caption of the results table."""
    seeds = {row['seeds'] for row in summary['rows']}
    spread = 'one seed, no interval' if seeds == {1} else f'mean ± 95 % t-interval over {_range(seeds)} seeds'
    return (
        f'{summary["encoder"]}, {summary["evaluate_on"]} split after the last step: '
        f'{summary["evaluation_images"]} images of {len(summary["classes"])} classes, '
        f'chance {100 * summary["chance"]:.1f} %; {spread}. Gains are paired by seed and image; their 95 % intervals '
        'and p come from a joint bootstrap of test images and seeds; Holm corrects over the arms of each method and '
        'number of real images.'
    )


def trained_on_text(summary: dict[str, Any]) -> str:
    """What the generator was trained on, and whether that may include evaluated images."""
    trained_on = summary['generator_trained_on']
    if UNKNOWN in trained_on:
        return (
            f'The generator was trained on: {trained_on}. It cannot be determined whether this included images of the '
            f'{summary["evaluate_on"]} split.'
        )
    return f'The generator was trained on: {trained_on}, none of which is evaluated here.'


def retrieval_caption(summary: dict[str, Any]) -> str:
    """The caption of the retrieval table."""
    return (
        f'Retrieval between images and captions of the {summary["evaluate_on"]} split: an image query is a hit if a '
        'caption written for it is among the first k results, a caption query if its image is; ties are in random '
        'order. The mean recall is the mean of the six recalls; gains and p refer to it.'
    )


def page(
    summary: dict[str, Any],
    settings: dict[str, Any],
    cells: Sequence[dict[str, Any]],
    drawn: dict[str, charts.Chart],
    pictures: dict[str, bytes],
    dropped: Sequence[str],
    real: Path | str,
    synthetic: Path | str,
) -> str:
    """The text of `report.html`; all values that come from data are escaped."""
    classes, headline = summary['classes'], summary['headline']
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    arms = list(dict.fromkeys(row['arm'] for row in summary['rows']))
    own = [
        row
        for row in summary['per_class']
        if headline and all(row[key] == headline[key] for key in ('method', 'arm', 'shots'))
    ]
    return environment.from_string(TEMPLATE.read_text(encoding='utf-8')).render(
        summary=summary,
        headline=headline,
        caption=caption(summary),
        trained_on=trained_on_text(summary),
        answer_columns=ANSWERS,
        columns=GROUPED,
        groups=[(name, list(rows)) for name, rows in itertools.groupby(summary['rows'], setting_text)],
        retrieval_columns=RETRIEVAL_COLUMNS[:1] + RETRIEVAL_COLUMNS[2:],
        retrieval_caption=retrieval_caption(summary),
        retrieval_groups=[(name, list(rows)) for name, rows in itertools.groupby(summary['retrieval'], setting_text)],
        class_columns=CLASS_COLUMNS,
        class_rows=own,
        setting_text=setting_text,
        charts=[(name, chart, samples.data_uri(pictures[name], 'png')) for name, chart in drawn.items()],
        arms=[(arm, charts.colour(arm), _purpose(arm)) for arm in arms],
        methods={row['method']: methods.PURPOSES.get(row['method'], '') for row in summary['rows']},
        strips=samples.strips(real, synthetic, classes),
        provenance=samples.provenance(real, synthetic, classes),
        settings=_flat(settings),
        dropped=dropped,
        hours=sum(cell['seconds'] for cell in cells) / 3600,
    )


def _purpose(arm: str) -> str:
    return PURPOSES.get('real+synthetic' if arm.startswith('real+synthetic') else arm, '')


def _flat(values: dict[str, Any], before: str = '') -> list[tuple[str, str]]:
    """Nested settings as (name, text) pairs; nested names are joined by dots."""
    found = []
    for key, value in values.items():
        if isinstance(value, dict):
            found += _flat(value, f'{before}{key}.')
        else:
            text = (
                ', '.join(map(str, value)) if isinstance(value, (list, tuple)) else '–' if value is None else str(value)
            )
            found.append((f'{before}{key}', text))
    return found


def _range(numbers: set[int]) -> str:
    return str(min(numbers)) if len(numbers) == 1 else f'{min(numbers)} to {max(numbers)}'


def _plus_minus(mean: float, half: float | None) -> str:
    return f'{100 * mean:.1f}' + ('' if half is None else f' ± {100 * half:.1f}')


def _change(row: dict[str, Any], score: str) -> str:
    value, low, high = (row[f'{score}gain{end}'] for end in ('', '_low', '_high'))
    return '' if value is None else f'{100 * value:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})'
