"""The finished cells as a table, charts and one JSON object.

`table.csv` and `table.md` have a row for each arm; `accuracy.png` is the same as bars; `confusion.png` shows where
each arm errs; `report.json` has all of it with every cell.
"""

import csv
import io
import json
from pathlib import Path
from typing import Any, Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from rsdiff.console import write_text_atomically
from rsdiff.downstream import scores
from rsdiff.downstream.arms import REAL
from rsdiff.downstream.compare import UNTRAINED
from rsdiff.downstream.task import Task

COLOURS = {UNTRAINED: '#b8b8b8', 'real': '#2f6f9f', 'synthetic': '#d98c3f', 'real+synthetic': '#4f8f57'}
LABEL_FONT_PT = 9


def summarise(task: Task, settings: dict[str, Any], cells: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds, and the gain of each arm over `real` paired by seed.

    Returns:
      {'rows': one for each arm, 'chance': 1 / classes, …}. Intervals (`*_ci95`) are half widths, and None with one
      seed, and so are the gain of `real` over itself and that of `untrained`. A gain whose interval excludes 0 has
      `significant` true.
    """
    by_arm = {arm: [c for c in cells if c['arm'] == arm] for arm in dict.fromkeys(c['arm'] for c in cells)}
    rows = []
    for arm, own in by_arm.items():
        row = {'arm': arm, 'seeds': len(own), 'steps': own[0]['steps'],
               'real_images': round(np.mean([c['real_images'] for c in own])),
               'extra_images': round(np.mean([c['extra_images'] for c in own]))}
        for score in ('accuracy', 'macro_f1'):
            row[score], row[f'{score}_ci95'] = scores.mean_interval([c[score] for c in own])
        # The same seed means the same initial parameters and the same real images, so the difference is paired.
        gains = [c['accuracy'] - r['accuracy'] for c, r in zip(own, by_arm.get(REAL, ()))]
        known = gains and arm not in (REAL, UNTRAINED)
        row['gain'], row['gain_ci95'] = scores.mean_interval(gains) if known else (None, None)
        row['significant'] = None if row['gain_ci95'] is None else abs(row['gain']) > row['gain_ci95']
        rows.append(row)
    return {
        'metric': f'zero-shot prompt classification, {settings["evaluate_on"]} split, after the last step',
        'encoder': settings['encoder'], 'classes': list(task.classes), 'chance': 1 / len(task.classes),
        'evaluation_images': len(task.evaluation), 'real_per_class': settings['real_per_class'],
        'dropped_duplicates': len(task.dropped),
        'synthetic_images_without_source': sum(source is None for source in task.synthetic.sources), 'rows': rows}


def write_report(out: Path | str, task: Task, settings: dict[str, Any],
                 cells: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Writes the five files into `out` and returns `summarise`'s object."""
    out = Path(out)
    summary = summarise(task, settings, cells)
    confusions = {arm: np.sum([c['confusion'] for c in cells if c['arm'] == arm], axis=0) for arm in dict.fromkeys(c['arm'] for c in cells)}
    write_text_atomically(out / 'table.csv', _csv(summary['rows']))
    write_text_atomically(out / 'table.md', markdown(summary))
    write_text_atomically(out / 'report.json', json.dumps(
        summary | {'settings': settings, 'dropped': list(task.dropped), 'cells': list(cells)}, indent=1) + '\n')
    _draw_bars(summary, cells).savefig(out / 'accuracy.png', dpi=160)
    _draw_confusions(summary, confusions).savefig(out / 'confusion.png', dpi=160)
    return summary


def markdown(summary: dict[str, Any]) -> str:
    """The table people paste into a paper; percentages, mean ± half of the 95 % interval."""
    lines = ['| training images | real | extra | steps | accuracy % | macro-F1 % | gain over real, points |',
             '|---|---:|---:|---:|---:|---:|---:|']
    for row in summary['rows']:
        gain = '' if row['gain'] is None else _percent(row['gain'], row['gain_ci95'], sign='+')
        lines.append(f'| {row["arm"]} | {row["real_images"]} | {row["extra_images"]} | {row["steps"]} | '
                     f'{_percent(row["accuracy"], row["accuracy_ci95"])} | '
                     f'{_percent(row["macro_f1"], row["macro_f1_ci95"])} | {gain} |')
    return '\n'.join(lines) + (
        f'\n\n{summary["encoder"]}; {summary["metric"]}; {summary["evaluation_images"]} images of '
        f'{len(summary["classes"])} classes, chance {100 * summary["chance"]:.1f} %; {_trust(summary)}; '
        'gains are paired by seed.\n')


def _trust(summary: dict[str, Any]) -> str:
    seeds = summary['rows'][0]['seeds']
    return 'one seed, no interval' if seeds == 1 else f'mean ± 95 % t-interval over {seeds} seeds'


def _percent(mean: float, half: float | None, sign: str = '') -> str:
    return f'{100 * mean:{sign}.1f}' + ('' if half is None else f' ± {100 * half:.1f}')


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0].keys(), lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _draw_bars(summary: dict[str, Any], cells: Sequence[dict[str, Any]]) -> Figure:
    """Mean accuracy with its interval, every seed as a dot, and chance as a line."""
    figure = Figure(figsize=(6.4, 4.0), layout='constrained')
    axes = figure.subplots()
    for x, row in enumerate(summary['rows']):
        axes.bar(x, 100 * row['accuracy'], width=0.62, color=COLOURS.get(row['arm'], '#7a7a9a'), zorder=2)
        own = [100 * c['accuracy'] for c in cells if c['arm'] == row['arm']]
        axes.scatter(x + np.linspace(-0.18, 0.18, len(own) + 2)[1:-1], own, s=12, color='white', edgecolor='black',
                     linewidth=0.6, zorder=3)
        half = 100 * (row['accuracy_ci95'] or 0.0)
        axes.errorbar(x, 100 * row['accuracy'], half, color='black', capsize=4, linewidth=1.2, zorder=4)
        top = max([100 * row['accuracy'] + half, *own])
        axes.annotate(_percent(row['accuracy'], row['accuracy_ci95']), (x, top), xytext=(0, 5),
                      textcoords='offset points', ha='center', fontsize=LABEL_FONT_PT)
    chance = 100 * summary['chance']
    axes.axhline(chance, color='#a03030', linestyle='--', linewidth=1, zorder=5, label=f'chance, {chance:.1f} %')
    axes.set_xticks(range(len(summary['rows'])), [f'{row["arm"]}\n{_images(row)}' for row in summary['rows']])
    axes.set_ylim(0, min(112, 1.15 * axes.get_ylim()[1]))
    axes.set_ylabel('accuracy, %')
    axes.set_title(f'{summary["encoder"]}\n{len(summary["classes"])} classes, {summary["evaluation_images"]} images; '
                   f'{_trust(summary)}', fontsize=LABEL_FONT_PT)
    axes.spines[['top', 'right']].set_visible(False)
    axes.grid(axis='y', color='#e4e4e4', zorder=0)
    axes.legend(frameon=False, loc='upper left', fontsize=LABEL_FONT_PT)
    return figure


def _draw_confusions(summary: dict[str, Any], confusions: dict[str, np.ndarray]) -> Figure:
    """One panel for each arm, rows normalised to 100 %, summed over seeds."""
    classes = summary['classes']
    side = 1.6 + 0.22 * len(classes)
    figure = Figure(figsize=(side * len(confusions) + 1.6, side + 1.8), layout='constrained')
    panels = figure.subplots(1, len(confusions), sharey=True)
    colour_map = matplotlib.colormaps['Blues']
    for panel, (arm, counts) in zip(panels, confusions.items()):
        share = 100 * counts / counts.sum(1, keepdims=True)
        image = panel.imshow(share, vmin=0, vmax=100, cmap=colour_map)
        panel.set_xticks(range(len(classes)), classes, rotation=90, fontsize=LABEL_FONT_PT - 2)
        panel.set_yticks(range(len(classes)), classes, fontsize=LABEL_FONT_PT - 2)
        panel.set_title(arm, fontsize=LABEL_FONT_PT + 1)
        panel.set_xlabel('predicted', fontsize=LABEL_FONT_PT)
        if len(classes) <= 12:
            for (i, j), value in np.ndenumerate(share):
                if value >= 1:
                    panel.text(j, i, f'{value:.0f}', ha='center', va='center', fontsize=LABEL_FONT_PT - 3,
                               color='white' if value > 55 else 'black')
    panels[0].set_ylabel('true', fontsize=LABEL_FONT_PT)
    bar = figure.colorbar(image, ax=panels, shrink=0.8)
    bar.set_label('% of the true class', fontsize=LABEL_FONT_PT)
    bar.ax.tick_params(labelsize=LABEL_FONT_PT - 2)
    return figure


def _images(row: dict[str, Any]) -> str:
    parts = [f'{row[key]} {key.split("_")[0]}' for key in ('real_images', 'extra_images') if row[key]]
    return ' +\n'.join(parts) or 'no step'
