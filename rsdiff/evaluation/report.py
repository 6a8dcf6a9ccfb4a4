"""Writes a comparison to files: `table.md`, `table.csv`, `per_image.csv`, and `grid.png` for visual inspection."""

from pathlib import Path
from typing import Sequence

import matplotlib
import numpy as np
from PIL import Image, ImageDraw

from rsdiff.base.files import write_text_atomically
from rsdiff.data.images import write_image
from rsdiff.evaluation import tables
from rsdiff.evaluation.columns import Column
from rsdiff.evaluation.comparison import Table
from rsdiff.evaluation.interval import Interval

REWARDS = {
    'blur': 'error per pixel (favours blur)',
    'likeness': 'perceived similarity to the truth',
    'invention': 'texture like that of real images, at any position (favours invention)',
    'agreement': 'agreement with the condition (ignores finer detail)',
}
GAP_PX, HEAD_PX = 4, 22


def write_tables(out: Path, table: Table, image_names: Sequence[str]) -> None:
    """Writes `table.md`, `table.csv` (a line per row and column) and `per_image.csv` (a line per image and row)."""
    write_text_atomically(out / 'table.md', markdown(table))
    long = [
        {
            'row': row,
            'column': column.name,
            'value': value.value,
            'low': value.low,
            'high': value.high,
            'better': column.better,
            'rewards': column.rewards,
        }
        for row, values in table.values.items()
        for column in table.columns
        if (value := values.get(column.name)) is not None
    ]
    write_text_atomically(out / 'table.csv', tables.csv_text(long))
    images = [
        {'row': row, 'image': image, **{name: numbers[number] for name, numbers in measures.items()}}
        for row, measures in table.per_image.items()
        if measures
        for number, image in enumerate(image_names)
    ]
    if images:
        write_text_atomically(out / 'per_image.csv', tables.csv_text(images))


def markdown(table: Table) -> str:
    """One table per kind of reward, so that columns that reward blur are separate from those that reward invention."""
    parts = []
    for rewards, meaning in REWARDS.items():
        own = [column for column in table.columns if column.rewards == rewards]
        if own:
            parts.append(_markdown_part(table, own, meaning))
    return '\n'.join(parts + [f'Warning: {warning}.' for warning in table.warnings])


def _markdown_part(table: Table, own: Sequence[Column], meaning: str) -> str:
    numbers = [
        tables.Shown(column.heading, lambda row, column=column: _cell(row[1].get(column.name), column.digits))
        for column in own
    ]
    return tables.markdown(
        [tables.Shown(meaning, lambda row: row[0], number=False), *numbers], list(table.values.items())
    )


def _cell(value: Interval | None, digits: int) -> str:
    return '' if value is None else tables.with_interval(value.value, value.low, value.high, digits)


def write_grid(path: Path, examples: Sequence[dict[str, np.ndarray]], truth: str, error_of: Sequence[str]) -> None:
    """Writes a sheet with one line per example: its images under their names, then error maps of some of them.

    Args:
      examples: name → uint8 (h, w, 3), the same names in each; smaller images are enlarged by repeating pixels.
      truth: name of the image that the errors are computed against.
      error_of: names of the images whose error map is shown: mean absolute error over channels, from black at 0 to pale
        yellow at 64 grey levels or more.
    """
    lines = [line | {f'error of {name}': _error(line[name], line[truth]) for name in error_of} for line in examples]
    height, width = (max(line[truth].shape[axis] for line in lines) for axis in (0, 1))
    sheet = Image.new(
        'RGB', (len(lines[0]) * (width + GAP_PX) - GAP_PX, HEAD_PX + len(lines) * (height + GAP_PX) - GAP_PX), 'white'
    )
    draw = ImageDraw.Draw(sheet)
    for column, name in enumerate(lines[0]):
        draw.text((column * (width + GAP_PX) + width // 2, HEAD_PX // 2), name, fill='black', anchor='mm', font_size=13)
        for number, line in enumerate(lines):
            factor = max(1, line[truth].shape[0] // line[name].shape[0])
            picture = Image.fromarray(line[name].repeat(factor, 0).repeat(factor, 1))
            sheet.paste(picture, (column * (width + GAP_PX), HEAD_PX + number * (height + GAP_PX)))
    write_image(path, np.asarray(sheet))


def _error(image: np.ndarray, truth: np.ndarray) -> np.ndarray:
    error = np.abs(image.astype(np.float32) - truth).mean(-1)
    return (matplotlib.colormaps['inferno'](np.clip(error / 64, 0, 1))[..., :3] * 255).astype(np.uint8)
