"""One table that compares methods on the same truths: paired measures, and distances between the sets of images.

Images are read only when they are needed, so that a folder may be larger than memory.
"""

import collections
import dataclasses
import functools
from pathlib import Path
from typing import Any, Callable, Iterator, Sequence

import numpy as np
from tqdm import tqdm

from rsdiff.base.errors import BadInput
from rsdiff.evaluation import clipscore, columns, distribution
from rsdiff.evaluation.columns import Column
from rsdiff.evaluation.features import Extractor, features_of
from rsdiff.evaluation.interval import Interval
from rsdiff.evaluation.paired import Measure
from rsdiff.evaluation.pairs import Pair

RESAMPLES = 1000
LEAST_FOR_NEIGHBOURS = 8


@dataclasses.dataclass(frozen=True)
class Row:
    """The images of one method.

    Attributes:
      read: image number → uint8 (h, w, 3).
      paired: whether image n belongs to pair n.
    """

    name: str
    read: Callable[[int], np.ndarray]
    count: int
    paired: bool = True


@dataclasses.dataclass(frozen=True)
class Table:
    """`values[row][column]`; a column that does not apply to a row is absent. `per_image[row][measure]` is (n,)."""

    columns: tuple[Column, ...]
    values: dict[str, dict[str, Interval]]
    per_image: dict[str, dict[str, np.ndarray]]
    warnings: tuple[str, ...]


def compare(
    rows: Sequence[Row],
    truth: str,
    pairs: Sequence[Pair],
    measure: Measure,
    measure_names: Sequence[str],
    extractors: Sequence[Extractor],
    cache: Path | None = None,
    batch_size: int = 8,
    show: bool = True,
) -> Table:
    """Compares every row with the pairs and with the row named `truth`.

    Args:
      rows: one of them has the name `truth` and holds the truths.
      measure: the result of `paired_measures(measure_names)`.
      extractors: compute the features of the sets; not used, with a warning, if a set has fewer than two images.
      cache: a folder where features are stored by the hash of their image.
    Raises:
      BadInput: an image can't be read or differs from its truth in size, or two rows have the same name.
    """
    names = [row.name for row in rows]
    if len({*names}) < len(names):
        raise BadInput(f'two rows are called {next(name for name in names if names.count(name) > 1)!r}; rename one')
    shown = [column for column in columns.PAIRED if column.name in measure_names]
    values, per_image, warnings = {name: {} for name in names}, {name: {} for name in names}, []
    if measure_names:
        for row in filter(lambda row: row.paired, rows):
            per_image[row.name] = measure_row(row, pairs, measure, batch_size, show)
            values[row.name] |= {name: mean_interval(numbers) for name, numbers in per_image[row.name].items()}
    if extractors and min(row.count for row in rows) < 2:
        extractors = ()
        warnings.append('a set has only a single image, so no distances between features are computed')
    for extractor in extractors:
        features = {
            row.name: features_of(
                extractor, [functools.partial(row.read, n) for n in range(row.count)], cache, show=show
            )
            for row in rows
        }
        similar, floor = columns.similarity(extractor.name)
        shown += [similar, floor, *columns.distribution(extractor.name)]
        for row in rows:
            own, real = features[row.name], features[truth]
            if row.paired:
                per_image[row.name][similar.name] = clipscore.embedding_similarity(own, real)
                values[row.name][similar.name] = mean_interval(per_image[row.name][similar.name])
                values[row.name][floor.name] = mean_interval(clipscore.shuffled_floor(own, real, seed=0))
            for name, estimate in distances(real, own).items():
                values[row.name][f'{name}_{extractor.name}'] = Interval(estimate.value, estimate.low, estimate.high)
                warnings += [f'{name}_{extractor.name}: {estimate.warning}'] if estimate.warning else []
    told = {name for row in values.values() for name in row}
    return Table(
        tuple(column for column in shown if column.name in told), values, per_image, tuple(dict.fromkeys(warnings))
    )


def distances(real: np.ndarray, generated: np.ndarray) -> dict[str, distribution.Estimate]:
    """Distances between two sets of features: CMMD only for embeddings of unit length, and neighbour measures only for
    sets of at least `LEAST_FOR_NEIGHBOURS` images."""
    found = {'fd': distribution.frechet_distance(real, generated), 'kid': distribution.kernel_distance(real, generated)}
    if np.allclose(np.linalg.norm(real, axis=1), 1, atol=1e-3):
        found['cmmd'] = distribution.cmmd(real, generated)
    if min(len(real), len(generated)) >= LEAST_FOR_NEIGHBOURS:
        found |= distribution.neighbours(real, generated)
    return found


def measure_row(
    row: Row, pairs: Sequence[Pair], measure: Measure, batch_size: int, show: bool
) -> dict[str, np.ndarray]:
    """The paired measures of each image of `row`, each (n,), in the order of the pairs."""
    found = {}
    with tqdm(
        total=len(pairs), unit='image', desc=f'measuring {row.name}', disable=not show, dynamic_ncols=True
    ) as bar:
        for numbers, batch in _batches(row, pairs, batch_size):
            own = [pairs[number].truth for number in numbers]
            try:
                measured = measure(*batch, [truth.file_name for truth in own])
            except BadInput as error:  # images of a batch have one size
                raise BadInput(f'{own[0].path}: {error}') from None
            for name, values in measured.items():
                found.setdefault(name, np.full(len(pairs), np.nan))[numbers] = values
            bar.update(len(numbers))
    return found


def _batches(row: Row, pairs: Sequence[Pair], batch_size: int) -> Iterator[tuple[list[int], list[np.ndarray]]]:
    """Yields (numbers, [images, truths, conditions]) in batches of one image size, each as soon as it is full."""
    waiting = collections.defaultdict(list)
    for number, pair in enumerate(pairs):
        triple = row.read(number), pair.read_truth(), pair.read_condition()
        group = waiting[triple[1].shape]
        group.append((number, triple))
        if len(group) == batch_size:
            yield _stacked(waiting.pop(triple[1].shape))
    yield from map(_stacked, waiting.values())


def _stacked(group) -> tuple[list[int], list[np.ndarray]]:
    numbers, triples = zip(*group)
    return list(numbers), [np.stack(images) for images in zip(*triples)]


def mean_interval(values: np.ndarray, seed: int = 0) -> Interval:
    """The mean and its 95 % interval, by bootstrap over the images. Images without a value (NaN) are left out."""
    values = values[~np.isnan(values)]
    mean = float(np.mean(values)) if len(values) else np.nan
    if len(values) < 2 or not np.isfinite(mean):
        return Interval(mean)
    chosen = np.random.default_rng(seed).integers(0, len(values), (RESAMPLES, len(values)))
    return Interval(mean, *map(float, np.percentile(values[chosen].mean(1), (2.5, 97.5))))


def summary(table: Table) -> dict[str, Any]:
    """The table as JSON-serialisable values."""
    return {
        'columns': [dataclasses.asdict(column) for column in table.columns],
        'rows': {
            name: {column: value.to_json() for column, value in row.items()} for name, row in table.values.items()
        },
        'warnings': list(table.warnings),
    }
