"""The charts of the report. Colours are the colour-blind-safe palette of Okabe & Ito; an arm has the same colour in
every chart, and no information is conveyed by colour alone."""

from collections import Counter
from typing import Any, Literal, NamedTuple, Sequence, cast

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.textpath import TextPath

from rsdiff.downstream.summary import MIXTURE, RANDOM, REAL, SYNTHETIC, is_mixture, setting_text

BLUE, ORANGE, GREEN, SKY, PURPLE, RED = '#0072B2', '#E69F00', '#009E73', '#56B4E9', '#CC79A7', '#D55E00'
COLOURS = {
    REAL: BLUE,
    SYNTHETIC: ORANGE,
    MIXTURE: GREEN,
    'bicubic': PURPLE,
    'real repeated': '#595959',
    RANDOM: RED,
    'untrained': '#B5B5B5',
    'augmented': SKY,
    'mixup': SKY,
    'cutout': SKY,
    'cutmix': SKY,
}
BANDS = 'real repeated', 'augmented'
MARKERS = {REAL: 'o', SYNTHETIC: 's', MIXTURE: 'D', 'bicubic': '^', 'augmented': 'v', 'real repeated': 'P'}
FONT_PT, SMALL_PT, DOTS_AN_INCH = 10, 8.5, 150
GRID = '#E3E3E3'
# with more classes, numbers in a confusion matrix are illegible
NUMBERED_CLASSES = 12

Summary = dict[str, Any]


class Chart(NamedTuple):
    """`alternative` is the alternative text, for readers who can't see the chart."""

    figure: Figure
    title: str
    alternative: str


def draw(summary: Summary, cells: Sequence[dict[str, Any]]) -> dict[str, Chart]:
    """The charts that have data, by file name: `accuracy`, `ratio`, `learning_curve`, `confusion` and `per_class`."""
    made = {
        'accuracy': accuracy(summary, cells),
        'ratio': ratio_curve(summary),
        'learning_curve': learning_curve(summary),
        'confusion': confusion(summary, cells),
        'per_class': per_class(summary),
    }
    return {name: chart for name, chart in made.items() if chart}


def accuracy(summary: Summary, cells: Sequence[dict[str, Any]]) -> Chart:
    """Bars of accuracy with intervals and a dot per seed; beside them the gain over `real`. One panel per method."""
    panels = list(_all_arms(summary).values())
    figure = Figure(figsize=(9, 0.9 + sum(0.34 * len(rows) + 0.55 for rows in panels)), layout='constrained')
    grid = figure.subplots(
        len(panels),
        2,
        sharex='col',
        squeeze=False,
        width_ratios=(3, 2),
        height_ratios=[len(rows) + 1 for rows in panels],
    )
    for (bars, gains), rows in zip(grid, panels):
        places = np.arange(len(rows))
        for y, row in zip(places, rows):
            bars.barh(y, 100 * row['accuracy'], height=0.66, color=colour(row['arm']), zorder=2)
            half = 100 * (row['accuracy_ci95'] or 0)
            bars.errorbar(100 * row['accuracy'], y, xerr=half, color='black', capsize=3, linewidth=1.1, zorder=4)
            own = [100 * cell['accuracy'] for cell in cells if _key(cell) == _key(row)]
            bars.scatter(
                own,
                y + np.linspace(-0.2, 0.2, len(own) + 2)[1:-1],
                s=11,
                color='white',
                edgecolor='black',
                linewidth=0.6,
                zorder=3,
            )
            # an interval from few seeds may extend beyond 100 %
            end = min(100, max([100 * row['accuracy'] + half, *own]))
            bars.annotate(
                _percent(row['accuracy'], row['accuracy_ci95']),
                (end, y),
                xytext=(5, 0),
                textcoords='offset points',
                va='center',
                fontsize=SMALL_PT,
                zorder=6,
                bbox={'facecolor': 'white', 'edgecolor': 'none', 'pad': 0.5},
            )
        bars.axvline(
            100 * summary['chance'],
            color='black',
            linestyle='--',
            linewidth=1,
            zorder=5,
            label=f'chance, {100 * summary["chance"]:.1f} %',
        )
        bars.set_yticks(places, [row['arm'] for row in rows], fontsize=SMALL_PT + 0.5)
        bars.set_ylim(len(rows) - 0.4, -0.6)
        bars.set_title(setting_text(rows[0]), loc='left', fontsize=FONT_PT)
        _draw_gains(gains, rows)
    grid[0, 0].set_xlim(0, 130)
    grid[0, 0].set_xticks(range(0, 101, 20))
    _limit_gains(grid[0, 1], panels)
    grid[-1, 0].set_xlabel('accuracy, %', fontsize=FONT_PT)
    grid[-1, 1].set_xlabel('gain over real, points', fontsize=FONT_PT)
    grid[0, 0].legend(frameon=False, loc='lower right', fontsize=SMALL_PT, bbox_to_anchor=(1, 1.0), borderaxespad=0.1)
    for axes in grid.flat:
        _plain(axes, 'x')
    told = '; '.join(
        f'{setting_text(rows[0])}: '
        + ', '.join(f'{row["arm"]} {_percent(row["accuracy"], row["accuracy_ci95"])} %' for row in rows)
        for rows in panels
    )
    return Chart(figure, 'Accuracy of every arm, and its gain over real', f'Bars of accuracy and gains. {told}.')


def ratio_curve(summary: Summary) -> Chart | None:
    """Accuracy against the number of synthetic images per real image, with the controls as bands."""
    panels = {
        method: sorted(_by_ratio(rows), key=lambda row: row['ratio'] or 0)
        for method, rows in _all_arms(summary).items()
    }
    panels = {method: curve for method, curve in panels.items() if len(curve) > 2}
    if not panels:
        return None
    figure, grid = _side_by_side(len(panels))
    told = []
    for axes, (method, curve) in zip(grid, panels.items()):
        for row in _all_arms(summary)[method]:
            if row['arm'] in BANDS:
                half = row['accuracy_ci95'] or 0
                axes.axhspan(
                    100 * (row['accuracy'] - half),
                    100 * (row['accuracy'] + half),
                    color=colour(row['arm']),
                    alpha=0.13,
                    linewidth=0,
                )
                axes.axhline(
                    100 * row['accuracy'],
                    color=colour(row['arm']),
                    label=row['arm'],
                    linestyle={'real repeated': '--'}.get(row['arm'], ':'),
                )
        ratios = [row['ratio'] or 0 for row in curve]
        _curve(axes, ratios, curve, MIXTURE)
        _curve(axes, [0], [row for row in curve if row['arm'] == REAL], REAL)
        axes.set_xticks(ratios)
        axes.set_xlabel('synthetic images per real image', fontsize=FONT_PT)
        axes.set_title(setting_text(curve[0]), loc='left', fontsize=FONT_PT)
        told.append(
            f'{setting_text(curve[0])}: '
            + ', '.join(
                f'{ratio} {_percent(row["accuracy"], row["accuracy_ci95"])} %' for ratio, row in zip(ratios, curve)
            )
        )
    _legend_below(figure)
    return Chart(figure, 'Accuracy by ratio', f'Accuracy by synthetic images per real image. {"; ".join(told)}.')


def learning_curve(summary: Summary) -> Chart | None:
    """Accuracy against real images per class: `real`, `synthetic`, the simplest controls, and the mixture that was
    trained with the most different numbers of real images."""
    classes, panels = len(summary['classes']), {}
    for method in dict.fromkeys(row['method'] for row in summary['rows']):
        rows = [row for row in summary['rows'] if row['method'] == method]
        per_class = {row['shots']: row['real_images'] / classes for row in rows if row['arm'] == REAL}
        if len({*per_class.values()}) > 1:
            mixtures = Counter(row['arm'] for row in rows if is_mixture(row['arm']))
            shown = [REAL, SYNTHETIC, 'bicubic', 'augmented', *(arm for arm, _ in mixtures.most_common(1))]
            panels[method] = (
                per_class,
                {arm: [row for row in rows if row['arm'] == arm and row['shots'] in per_class] for arm in shown},
            )
    if not panels:
        return None
    figure, grid = _side_by_side(len(panels))
    told = []
    for axes, (method, (per_class, curves)) in zip(grid, panels.items()):
        for number, (arm, rows) in enumerate(curves.items()):
            if rows:
                shift = 1.025 ** (number - 2)  # intervals at equal places would overlap
                _curve(axes, [per_class[row['shots']] * shift for row in rows], rows, arm)
        axes.set_xscale('log')
        places = sorted({*per_class.values()})
        axes.set_xticks(places, [f'{place:.0f}' for place in places])
        axes.minorticks_off()
        axes.set_xlabel('real images per class', fontsize=FONT_PT)
        axes.set_title(method, loc='left', fontsize=FONT_PT)
        told += [
            f'{method}, {arm}: '
            + ', '.join(f'{per_class[row["shots"]]:.0f} images {100 * row["accuracy"]:.1f} %' for row in rows)
            for arm, rows in curves.items()
            if rows
        ]
    _legend_below(figure)
    return Chart(figure, 'Learning curve', f'Accuracy by real images per class. {"; ".join(told)}.')


def confusion(summary: Summary, cells: Sequence[dict[str, Any]]) -> Chart | None:
    """Confusion matrices of `real` and of the headline's arm, in per cent of the true class, and their difference."""
    headline, classes = summary['headline'], summary['classes']
    if headline is None:
        return None
    shares = {}
    for arm in (REAL, headline['arm']):
        counts = np.sum(
            [cell['confusion'] for cell in cells if _key(cell) == (headline['method'], arm, headline['shots'])], axis=0
        )
        shares[arm] = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    difference = shares[headline['arm']] - shares[REAL]
    most = max(1.0, np.abs(difference).max())
    titles = [*shares, f'{headline["arm"]} − {REAL}']
    figure, panels = _matrix_panels(classes, titles)
    for number, (panel, values) in enumerate(zip(panels, [*shares.values(), difference])):
        low, high, colours, unit = (
            (-most, most, 'RdBu', 'points') if number == 2 else (0, 100, 'cividis', '% of the true class')
        )
        image = _matrix(panel, values, classes, titles[number], colours, low, high)
        _colour_bar(panel, image, unit)
    gained, lost = int(np.diag(difference).argmax()), int(np.diag(difference).argmin())
    return Chart(
        figure,
        f'Confusions, {setting_text(headline)}',
        f'Confusion matrices of {REAL} and {headline["arm"]}, and their difference, which on the diagonal ranges from '
        f'{difference[lost, lost]:+.1f} points ({classes[lost]}) to '
        f'{difference[gained, gained]:+.1f} ({classes[gained]}).',
    )


def per_class(summary: Summary) -> Chart | None:
    """Changes of recall and F1 of each class with the headline's arm."""
    headline = summary['headline']
    if headline is None:
        return None
    rows = [row for row in summary['per_class'] if _key(row) == _key(headline)]
    rows.sort(key=lambda row: row['recall_gain'])
    figure = Figure(figsize=(9, 1.3 + 0.3 * len(rows)), layout='constrained')
    both = figure.subplots(1, 2, sharey=True, sharex=True)
    for axes, score, name in zip(both, ('recall', 'f1'), ('recall', 'F1')):
        for y, row in enumerate(rows):
            _gain_mark(
                axes, y, row[f'{score}_gain'], row[f'{score}_gain_low'], row[f'{score}_gain_high'], headline['arm']
            )
        axes.axvline(0, color='black', linewidth=1)
        axes.set_title(f'change of {name}, points', loc='left', fontsize=FONT_PT)
        _plain(axes, 'x')
    both[0].set_yticks(range(len(rows)), [_short(row['class']) for row in rows], fontsize=SMALL_PT, parse_math=False)
    both[0].set_ylim(-0.7, len(rows) - 0.3)
    told = ', '.join(f'{row["class"]} {100 * row["recall_gain"]:+.1f}' for row in reversed(rows))
    return Chart(
        figure,
        f'Change by class: {headline["arm"]} against {REAL}, {setting_text(headline)}',
        f'Change of recall in points: {told}.',
    )


def colour(arm: str) -> str:
    """The colour of an arm, whatever its ratio."""
    return COLOURS.get(MIXTURE if is_mixture(arm) else arm, '#404040')


def _draw_gains(axes: Axes, rows: Sequence[dict[str, Any]]) -> None:
    for y, row in enumerate(rows):
        if row['gain'] is not None:
            _gain_mark(axes, y, row['gain'], row['gain_low'], row['gain_high'], row['arm'])
    axes.axvline(0, color='black', linewidth=1)
    axes.set_yticks(range(len(rows)), [''] * len(rows))
    axes.set_ylim(len(rows) - 0.4, -0.6)


def _gain_mark(axes: Axes, y: float, gain: float, low: float, high: float, arm: str) -> None:
    """A dot with its interval; the dot is hollow if the interval contains 0."""
    sure = low > 0 or high < 0
    axes.plot([100 * low, 100 * high], [y, y], color=colour(arm), linewidth=2.2, solid_capstyle='butt', zorder=2)
    axes.plot(
        100 * gain, y, 'o', markersize=6, color=colour(arm), markerfacecolor=colour(arm) if sure else 'white', zorder=3
    )


def _limit_gains(axes: Axes, panels: Sequence[Sequence[dict[str, Any]]]) -> None:
    """Sets the range of the gains without random labels, whose large losses would hide all other differences. Gains
    below the range are written out."""
    shown = [
        100 * row[key]
        for rows in panels
        for row in rows
        for key in ('gain_low', 'gain_high')
        if row['gain'] is not None and row['arm'] != RANDOM
    ]
    if shown:
        low, high = min(0, *shown), max(0, *shown)
        margin = 0.08 * (high - low) + 0.5
        axes.set_xlim(max(-100, low - margin), min(100, high + margin))
    for other, rows in zip(axes.figure.axes[1::2], panels):
        for y, row in enumerate(rows):
            if row['gain'] is not None and 100 * row['gain'] < axes.get_xlim()[0]:
                other.annotate(
                    f'← {100 * row["gain"]:+.1f}',
                    (0.01, y),
                    xycoords=('axes fraction', 'data'),
                    va='center',
                    fontsize=SMALL_PT,
                )


def _curve(axes: Axes, places: Sequence[float], rows: Sequence[dict[str, Any]], arm: str) -> None:
    halves = [100 * (row['accuracy_ci95'] or 0) for row in rows]
    marker = MARKERS.get(MIXTURE if is_mixture(arm) else arm, 'x')
    axes.errorbar(
        places,
        [100 * row['accuracy'] for row in rows],
        halves,
        color=colour(arm),
        marker=marker,
        markersize=6,
        capsize=3,
        linewidth=1.6,
        label=arm,
        zorder=3,
    )


def _matrix(panel: Axes, values: np.ndarray, classes: Sequence[str], title: str, colours: str, low: float, high: float):
    image = panel.imshow(values, vmin=low, vmax=high, cmap=matplotlib.colormaps[colours])
    names = [_short(name) for name in classes]
    panel.set_xticks(range(len(classes)), names, rotation=90, fontsize=SMALL_PT - 1, parse_math=False)
    panel.set_yticks(range(len(classes)), names, fontsize=SMALL_PT - 1, parse_math=False)
    panel.set_xlabel('predicted', fontsize=FONT_PT)
    panel.set_title(title, fontsize=FONT_PT)
    if len(classes) <= NUMBERED_CLASSES:
        for (i, j), value in np.ndenumerate(values):
            if abs(value) >= 1:
                red, green, blue, _ = image.cmap(image.norm(value))
                dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.55
                panel.text(
                    j,
                    i,
                    f'{value:.0f}',
                    ha='center',
                    va='center',
                    fontsize=SMALL_PT - 2,
                    color='white' if dark else 'black',
                )
    return image


def _matrix_panels(classes: Sequence[str], titles: Sequence[str]) -> tuple[Figure, list[Axes]]:
    """Square panels with room for every class name: in a row, or, if numbers do not fit into the cells, in a column.
    Positions are in inches: matplotlib's automatic layouts cut off labels around axes of a fixed aspect."""
    names = max(_width_inches(_short(name), SMALL_PT - 1) for name in classes)
    side = max(1.4, 0.19 * len(classes), *(_width_inches(title, FONT_PT) + 0.1 for title in titles))
    left, below, above, bar = 0.5 + names, 0.55 + names, 0.4, 0.95
    if len(classes) <= NUMBERED_CLASSES:
        size = left + len(titles) * (side + bar), below + side + above
        corners = [(left + i * (side + bar), below) for i in range(len(titles))]
    else:
        size = left + side + bar, len(titles) * (below + side + above)
        corners = [(left, size[1] - (i + 1) * (side + above) - i * below) for i in range(len(titles))]
    figure, panels = Figure(figsize=size), []
    for x, y in corners:
        panel = figure.add_axes((x / size[0], y / size[1], side / size[0], side / size[1]))
        named = not panels or len(classes) > NUMBERED_CLASSES
        panel.tick_params(labelleft=named)
        panel.set_ylabel('true' if named else '', fontsize=FONT_PT)
        panels.append(panel)
    return figure, panels


def _width_inches(text: str, font_pt: float) -> float:
    """The width of a line of text; a dollar sign is measured as a letter, because names are not formulas."""
    return TextPath((0, 0), text.replace('$', 'S') + '.', size=font_pt).get_extents().width / 72


def _colour_bar(panel: Axes, image, label: str) -> None:
    bar = panel.figure.colorbar(
        image, cax=panel.inset_axes((1 + 0.1 / _side_inches(panel), 0.1, 0.12 / _side_inches(panel), 0.8))
    )
    bar.set_label(label, fontsize=SMALL_PT)
    bar.ax.tick_params(labelsize=SMALL_PT - 1)


def _side_inches(panel: Axes) -> float:
    return panel.get_position().width * cast(Figure, panel.figure).get_figwidth()


def _side_by_side(panels: int) -> tuple[Figure, Sequence[Axes]]:
    """Panels two to a row, the most that are legible on a page."""
    columns, rows = min(2, panels), -(-panels // 2)
    figure = Figure(figsize=(max(5.6, 4.5 * columns), 3.6 * rows + 0.6), layout='constrained')
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in grid[panels:]:
        axes.remove()
    for axes in grid[:panels:columns]:
        axes.set_ylabel('accuracy, %', fontsize=FONT_PT)
    for axes in grid[:panels]:
        _plain(axes, 'y')
    return figure, grid[:panels]


def _legend_below(figure: Figure) -> None:
    """One legend for all panels, below them, where it hides no curve."""
    handles = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels()):
            handles.setdefault(label, handle)
    figure.legend(
        handles.values(), handles.keys(), loc='outside lower center', ncols=3, frameon=False, fontsize=SMALL_PT
    )


def _plain(axes: Axes, grid: Literal['both', 'x', 'y']) -> None:
    axes.spines[['top', 'right']].set_visible(False)
    axes.grid(axis=grid, color=GRID, zorder=0)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=SMALL_PT)


def _all_arms(summary: Summary) -> dict[str, list[dict[str, Any]]]:
    """For each method, the rows of the setting with all arms, or of its last setting if there is none."""
    found = {}
    for row in summary['rows']:
        found.setdefault(row['method'], {}).setdefault(row['shots'], []).append(row)
    return {
        method: settings.get(summary['real_per_class'], [*settings.values()][-1]) for method, settings in found.items()
    }


def _by_ratio(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if row['arm'] == REAL or (is_mixture(row['arm']) and row['ratio'] is not None)]


def _key(row: dict[str, Any]) -> tuple:
    return row['method'], row['arm'], row['shots']


def _short(name: str) -> str:
    """A class name shortened to leave room for the chart; its end is kept, because numbered names differ only there."""
    return name if len(name) <= 24 else f'{name[:15]}…{name[-8:]}'


def _percent(mean: float, half: float | None) -> str:
    return f'{100 * mean:.1f}' + ('' if half is None else f' ± {100 * half:.1f}')
