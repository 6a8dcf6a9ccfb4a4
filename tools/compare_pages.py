"""The pages of `tools/compare_methods.py`: tables, curves over optimiser time, and pictures."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from rsdiff.base.files import write_bytes_atomically, write_text_atomically
from rsdiff.evaluation.tables import Shown, csv_text, markdown, with_interval

# column of evaluate.json → heading and decimals
COLUMNS = {
    'lpips_alexnet': ('LPIPS (AlexNet) ↓', 3),
    'fd_efflite0': ('fd_efflite0 ↓', 1),
    'psnr': ('PSNR dB ↑', 2),
    'ssim': ('SSIM ↑', 3),
    'detail_ratio': ('detail →1', 2),
    'hallucination': ('hallucination ↓', 2),
    'lr_consistency': ('LR consistency dB ↑', 1),
}
CURVES = 'lpips_alexnet', 'fd_efflite0'
CONTROLS = 'nearest', 'bicubic', 'truth'


def write(result: dict[str, Any], pictures: dict[str, bool], out: Path, pages: Path) -> None:
    """Writes README.md, methods.csv, curves.png and, of sets that may be shown, NAME.jpg into `pages`.

    Args:
      result: of compare_methods: `minutes`, `notes`, `cost`, and the evaluations of each set in `sets`.
      pictures: whether a set's images may be shown.
    """
    pages.mkdir(parents=True, exist_ok=True)
    parts = [
        '# Super-resolution methods at equal optimiser time',
        f'{result["minutes"]:g} optimiser minutes per method. Values in brackets are 95 % intervals, by bootstrap over images.',
        '\n'.join(f'* {note}' for note in result['notes']),
        cost_table(result['cost']),
    ]
    long = []
    for name, found in result['sets'].items():
        final = found['final']
        tables = [*found['curve'].items(), ('1', final)]
        parts += [f'## {name}', f'{final["images"]} images.', quality_table(final['rows'])]
        if found['repeated']:
            # without its controls, which are those of `final`
            repeated = {method: row for method, row in found['repeated']['rows'].items() if first_run(method) != method}
            parts += [
                'Several training runs of a method, which differ in their seed; the first is that of the table above:',
                runs_table(final['rows'], repeated),
            ]
            tables.append(('1', found['repeated'] | {'rows': repeated}))
        parts += [f'Warning: {warning}.' for warning in final['warnings']]
        if pictures[name]:
            write_bytes_atomically(pages / f'{name}.jpg', jpeg(Path(final['folder']) / 'grid.png'))
            parts.append(f'![{name}: condition, every row of the table, truth, and errors]({name}.jpg)')
        long += [
            {'set': name, 'images': table['images'], 'time': share, 'method': method, 'column': column, **value}
            for share, table in tables
            for method, row in table['rows'].items()
            for column, value in row.items()
        ]
    if any(found['curve'] for found in result['sets'].values()):
        draw_curves(result).savefig(pages / 'curves.png', dpi=110)
        parts += ['## Over optimiser time', '![LPIPS and fd over optimiser minutes](curves.png)']
    write_text_atomically(pages / 'methods.csv', csv_text(long))
    write_text_atomically(pages / 'README.md', '\n\n'.join(part.rstrip('\n') for part in parts) + '\n')


def jpeg(path: Path) -> bytes:
    """A picture as JPEG, a tenth of a PNG's size."""
    encoded = io.BytesIO()
    Image.open(path).convert('RGB').save(encoded, 'JPEG', quality=85)
    return encoded.getvalue()


def cost_table(costs: dict[str, Any]) -> str:
    """Sizes and costs of all networks."""
    columns = [
        Shown('method', lambda row: row[0], number=False),
        Shown('parameters, millions', lambda row: f'{row[1]["parameters"] / 1e6:.2f}'),
        Shown('evaluations per px', lambda row: f'{row[1]["evaluations_per_px"]}'),
        Shown('MMAC per px', lambda row: f'{row[1]["mac_per_px"] / 1e6:.3g}'),
        Shown('px/s', lambda row: f'{row[1]["px_per_second"]["median"]:.3g}'),
    ]
    return markdown(columns, list(costs.items()))


def quality_table(rows: dict[str, dict[str, Any]]) -> str:
    """The columns of `COLUMNS` that were measured, best LPIPS first, between the controls."""
    by_lpips = lambda row: row[1].get('lpips_alexnet', {}).get('value', np.inf)
    methods = sorted(((name, row) for name, row in rows.items() if name not in CONTROLS), key=by_lpips)
    controls = {name: rows[name] for name in CONTROLS if name in rows}
    truth = [('truth', controls.pop('truth'))] if 'truth' in controls else []
    shown = [
        Shown(heading, lambda row, name=name, digits=digits: cell(row[1].get(name), digits))
        for name, (heading, digits) in COLUMNS.items()
        if any(name in row for row in rows.values())
    ]
    return markdown([Shown('method', lambda row: row[0], number=False), *shown], [*controls.items(), *methods, *truth])


def first_run(name: str) -> str:
    """The method of which a run NAME_seedN is another run; of any other name, the name itself."""
    return name.partition('_seed')[0]


def runs_table(rows: dict[str, dict[str, Any]], repeated: dict[str, dict[str, Any]]) -> str:
    """`CURVES` of every run of the methods that have several."""
    runs: dict[str, list[dict[str, Any]]] = {}
    for name, row in repeated.items():
        runs.setdefault(first_run(name), [rows[first_run(name)]]).append(row)
    text = lambda own, measure, digits: ', '.join(f'{row[measure]["value"]:.{digits}f}' for row in own)
    columns = [Shown('method', lambda item: item[0], number=False)]
    columns += [
        Shown(heading, lambda item, measure=measure, digits=digits: text(item[1], measure, digits))
        for measure, (heading, digits) in COLUMNS.items()
        if measure in CURVES
    ]
    return markdown(columns, [*runs.items()])


def cell(value: dict[str, Any] | None, digits: int) -> str:
    """A value with its interval; JSON has None for what is not finite."""
    if value is None or value['value'] is None:
        return '–'
    return with_interval(value['value'], value.get('low'), value.get('high'), digits)


def draw_curves(result: dict[str, Any]) -> Figure:
    """A row per set and a panel per measure of `CURVES`, against minutes, with bicubic enlargement as a line."""
    sets = {name: found for name, found in result['sets'].items() if found['curve']}
    figure = Figure(figsize=(9, 3.2 * len(sets)), layout='constrained')
    panels = figure.subplots(len(sets), len(CURVES), squeeze=False)
    for line, (name, found) in zip(panels, sets.items()):
        curve = {result['minutes'] * float(share): table['rows'] for share, table in found['curve'].items()}
        methods = dict.fromkeys(method for rows in curve.values() for method in rows)
        images = next(iter(found['curve'].values()))['images']
        for axes, measure in zip(line, CURVES):
            for number, method in enumerate(method for method in methods if method not in CONTROLS):
                points = [
                    (minutes, rows[method][measure]['value'])
                    for minutes, rows in curve.items()
                    if measure in rows.get(method, {})
                ]
                axes.plot(*zip(*points), marker='o', markersize=3, color=f'C{number % 10}', label=method)
            bicubic = next(iter(curve.values()))['bicubic'].get(measure)
            if bicubic:
                axes.axhline(bicubic['value'], color='#999999', linestyle='--', linewidth=0.8, label='bicubic')
            axes.set_title(f'{name}, {images} images: {COLUMNS[measure][0]}', fontsize=9)
            axes.set_xlabel('optimiser minutes')
            axes.spines[['top', 'right']].set_visible(False)
        line[-1].legend(frameon=False, fontsize=7, loc='center left', bbox_to_anchor=(1, 0.5))
    return figure
