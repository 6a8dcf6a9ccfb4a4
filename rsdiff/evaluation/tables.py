"""Tables as Markdown, LaTeX and CSV.

A row may be any object; a column defines the text of its cell. CSV is for programs: it has the plain numbers, by name.
"""

import csv
import io
import math
import re
from typing import Any, Callable, NamedTuple, Sequence

# Characters that are commands in LaTeX, and signs that its fonts may lack.
LATEX = {
    '\\': r'\textbackslash{}',
    '&': r'\&',
    '%': r'\%',
    '$': r'\$',
    '#': r'\#',
    '_': r'\_',
    '{': r'\{',
    '}': r'\}',
    '~': r'\textasciitilde{}',
    '^': r'\textasciicircum{}',
    '<': r'$<$',
    '>': r'$>$',
    '±': r'$\pm$',
    '−': r'$-$',
    '–': '--',
    '…': r'\ldots{}',
    '×': r'$\times$',
    '∞': r'$\infty$',
    '→': r'$\rightarrow$',
    '↑': r'$\uparrow$',
    '↓': r'$\downarrow$',
    '≥': r'$\geq$',
    '≤': r'$\leq$',
    'Δ': r'$\Delta$',
}


class Shown(NamedTuple):
    """A column: its heading, and row → the text of its cell. Columns of numbers are right-aligned."""

    heading: str
    text: Callable[[Any], str]
    number: bool = True


def with_interval(value: float, low: float | None, high: float | None, digits: int) -> str:
    """A value and, unless it is unknown, its interval: `0.30 (0.20 to 0.40)`."""
    if not math.isfinite(value):
        return '∞' if value > 0 else '–'
    text = f'{value:.{digits}f}'
    return text if low is None else f'{text} ({low:.{digits}f} to {high:.{digits}f})'


def markdown(columns: Sequence[Shown], rows: Sequence[Any]) -> str:
    """A Markdown pipe table that ends with a line break."""

    def line(cells):
        # a bar in a name would end its cell, a line break its row
        return '| ' + ' | '.join(' '.join(cell.split()).replace('|', '\\|') for cell in cells) + ' |'

    rule = '|' + '|'.join('---:' if column.number else '---' for column in columns) + '|'
    lines = [line(column.text(row) for column in columns) for row in rows]
    return '\n'.join([line(column.heading for column in columns), rule, *lines]) + '\n'


def latex(columns: Sequence[Shown], rows: Sequence[Any], caption: str, label: str) -> str:
    """A `table` environment with the rules of the package booktabs, which the document must load."""

    def line(cells):
        return ' & '.join(map(latex_text, cells)) + r' \\'

    alignment = ''.join('r' if column.number else 'l' for column in columns)
    return (
        '\n'.join(
            [
                r'% \usepackage{booktabs}',
                r'\begin{table}',
                r'\centering',
                rf'\caption{{{latex_text(caption)}}}',
                rf'\label{{{label}}}',
                rf'\begin{{tabular}}{{{alignment}}}',
                r'\toprule',
                line(column.heading for column in columns),
                r'\midrule',
                *(line(column.text(row) for column in columns) for row in rows),
                r'\bottomrule',
                r'\end{tabular}',
                r'\end{table}',
            ]
        )
        + '\n'
    )


def latex_text(text: str) -> str:
    """`text`, escaped for LaTeX. A hyphen before a digit becomes a minus sign, and line breaks become spaces."""
    text = re.sub(r'(?<![\w-])-(?=\d)', '−', ' '.join(text.split()))
    return ''.join(LATEX.get(character, character) for character in text)


def csv_text(rows: Sequence[dict[str, Any]]) -> str:
    """A header line and one line per row; all rows have the keys of the first."""
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0].keys(), lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
