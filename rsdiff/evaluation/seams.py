"""Visibility of seams: whether the grids on which a mosaic was generated show in the image.

Each grid is measured separately, at its own lines, by the three forms of a seam:

* step:  |I(c) - I(c-1)| across a line, an edge;
* slope: |(I(c+1) - I(c)) - (I(c-1) - I(c-2))|, a crease;
* band:  |mean of the 16 px beyond - mean of the 16 px before|, a tint that differs between windows;

each divided by the same measure at other positions around the line, in the same rows. Without a seam, the line is like
the other positions and the ratio is 1. Both terms are summed over the lines before the division, separately for smooth
and textured ground. The ground is classified by the mean step over the line and all positions around it, so that the
selection favours neither.

The other positions are at multiples of `UNIT_PX` from the line. Images have fine grids of their own: JPEG's blocks of
8 px, and in generated images the pixels of the condition and the network's patches, both of 4 px. Lines at multiples of
4 or 8 px always fall on the same phase of such a grid, so that it would look like a seam in a comparison with all
positions around.

* comb: power of the step profile at the frequencies of the grid over that beside them; 1 without a comb. It also
  detects periodic structure between the lines.
* overlap: energy of the Laplacian where windows overlap over that elsewhere. Below 1, the overlap is blurred, which
  hides seams but is as bad.
* repetition: autocorrelation of the finest structure at the spacing of the lines, minus that at neighbouring distances,
  on smooth ground: near 0, unless a noise tile is repeated.

Intervals are 95 %, by bootstrap over supertiles, the squares in which the image is read. Real imagery has its own
values, near 1 and 0, which should be in every table. The ratio over that of a control at the same lines (`against`),
of the same ground or, better, of the same mosaic with its windows elsewhere, has less variance: both contain the same
image content.
"""

from typing import Any, Iterator, NamedTuple, Sequence

import numpy as np
from scipy.ndimage import uniform_filter

from rsdiff.evaluation.interval import Interval

BAND_PX, ROWS_PX = 16, 16
UNIT_PX = 8  # a multiple of the periods of all fine grids of images
FURTHEST_PX = 64  # maximum distance of the pixels that are read around a line
RESAMPLES = 1000
STRATA = 'all', 'smooth', 'textured'
# minimum distance of the other positions from any line
CLEAR_PX = {'step': 1, 'slope': 3, 'band': BAND_PX}


class Grid(NamedTuple):
    """The lines of a grid: before row y for y in `rows`, before column x for x in `columns`, ascending. If windows
    overlap, they do so in the `overlap_px` pixels beyond every line."""

    name: str
    rows: Sequence[int]
    columns: Sequence[int]
    overlap_px: int = 0


class Strip(NamedTuple):
    """Pixels around the vertical lines of a supertile; horizontal lines are transposed first.

    Attributes:
      pixels: float32 (rows, columns, 3).
      lines: columns before which the lines are, for all lines in the strip.
      own: the columns of the supertile itself; the others are its surroundings.
    """

    pixels: np.ndarray
    lines: np.ndarray
    own: slice


def regular_grid(name: str, height: int, width: int, period_px: int, offset_px: int = 0, overlap_px: int = 0) -> Grid:
    """A grid with lines every `period_px`, one of them at `offset_px`."""
    rows, columns = (range(offset_px % period_px or period_px, size, period_px) for size in (height, width))
    return Grid(name, rows, columns, overlap_px)


def seam_report(image: Any, grid: Grid, supertile_px: int = 512, seed: int = 0) -> dict[str, Interval]:
    """The seam measures of `grid` in an image.

    Args:
      image: uint8 (h, w, 3), any object whose slices `np.asarray` accepts; it is read by supertiles.
    Returns:
      'step all', 'step smooth', 'step textured', likewise for slope and band; 'comb', 'repetition', and 'overlap' if
      the grid has one.
    """
    return {name: ratio_interval(pairs, seed) for name, pairs in seam_sums([(image, grid)], supertile_px).items()}


def seam_sums(images: Sequence[tuple[Any, Grid]], supertile_px: int = 512) -> dict[str, np.ndarray]:
    """Numerators and denominators of `seam_report`, (supertiles, 2) for each measure. Several images, each with a grid,
    are treated as one. 'overlap' is included if all grids have one."""
    sites = {measure: [] for measure in CLEAR_PX}
    sums = {'comb': [], 'repetition': []} | ({'overlap': []} if all(grid.overlap_px for _, grid in images) else {})
    count = 0
    for image, grid in images:
        for strips in supertiles(image, grid, supertile_px):
            for measure in sites:
                found = np.concatenate([places(strip, measure) for strip in strips], axis=1)
                sites[measure].append(np.concatenate([found, np.full((1, found.shape[1]), count)]))
            sums['comb'].append(sum(map(comb, strips)))
            sums['repetition'].append(sum(map(repetition, strips)))
            if 'overlap' in sums:
                sums['overlap'].append(sum(overlap(strip, grid.overlap_px) for strip in strips))
            count += 1
    pairs = {}
    for measure, found in sites.items():
        across, around, activity, tile = np.concatenate(found, axis=1)
        smooth = activity <= np.median(activity) if activity.size else activity > 0
        for stratum, chosen in zip(STRATA, (np.full_like(smooth, True), smooth, ~smooth)):
            by_tile = [np.bincount(tile[chosen].astype(int), values[chosen], count) for values in (across, around)]
            pairs[f'{measure} {stratum}'] = np.stack(by_tile, 1)
    return pairs | {name: np.array(rows) for name, rows in sums.items()}


def seam_ratio(image: np.ndarray, period_px: int, offset_px: int = 0) -> float:
    """Ratio of the steps across the lines of a regular grid to those around them, as one number; 1 is seamless."""
    height, width = image.shape[:2]
    return seam_report(image, regular_grid('', height, width, period_px, offset_px))['step all'].value


def ratio_interval(pairs: np.ndarray, seed: int = 0) -> Interval:
    """Σ a / Σ b over the rows (a, b) of `pairs`, one row per supertile; the interval is by bootstrap over supertiles.
    NaN without an interval if Σ b is 0."""
    if not pairs[:, 1].sum() > 0:
        return Interval(np.nan)
    chosen = np.random.default_rng(seed).integers(0, len(pairs), (RESAMPLES, len(pairs)))
    a, b = pairs[chosen].sum(1).T
    low, high = np.percentile(a[b > 0] / b[b > 0], (2.5, 97.5))
    return Interval(float(pairs[:, 0].sum() / pairs[:, 1].sum()), float(low), float(high))


def against(pairs: np.ndarray, control: np.ndarray, seed: int = 0) -> Interval:
    """The ratio of `pairs` over that of `control`, as `ratio_interval`; both resample the same supertiles."""
    if not (pairs[:, 1].sum() > 0 and (control > 0).any(0).all()):
        return Interval(np.nan)
    chosen = np.random.default_rng(seed).integers(0, len(pairs), (RESAMPLES, len(pairs)))
    (a, b), (c, d) = pairs[chosen].sum(1).T, control[chosen].sum(1).T
    low, high = np.percentile((a * d)[b * c > 0] / (b * c)[b * c > 0], (2.5, 97.5))
    (a, b), (c, d) = pairs.sum(0), control.sum(0)
    return Interval(float(a * d / (b * c)), float(low), float(high))


def supertiles(image: Any, grid: Grid, size_px: int) -> Iterator[tuple[Strip, Strip]]:
    """Yields each supertile with the pixels around its vertical lines, and, transposed, around its horizontal ones."""
    height, width = image.shape[:2]
    for y0 in range(0, height, size_px):
        for x0 in range(0, width, size_px):
            y1, x1 = min(y0 + size_px, height), min(x0 + size_px, width)
            left, right = max(0, x0 - FURTHEST_PX), min(width, x1 + FURTHEST_PX)
            top, bottom = max(0, y0 - FURTHEST_PX), min(height, y1 + FURTHEST_PX)
            yield (
                _strip(image[y0:y1, left:right], grid.columns, left, right, slice(x0 - left, x1 - left)),
                _strip(np.swapaxes(image[top:bottom, x0:x1], 0, 1), grid.rows, top, bottom, slice(y0 - top, y1 - top)),
            )


def _strip(pixels: Any, lines: Sequence[int], start: int, stop: int, own: slice) -> Strip:
    return Strip(
        np.asarray(pixels).astype(np.float32), np.array([x - start for x in lines if start < x < stop], int), own
    )


def steps(pixels: np.ndarray) -> np.ndarray:
    """|I(x) - I(x-1)|, mean over channels, for x ≥ 1; 0 at x = 0."""
    return np.pad(np.abs(np.diff(pixels, axis=1)).mean(2), ((0, 0), (1, 0)))


def slopes(pixels: np.ndarray) -> np.ndarray:
    """|(I(x+1) - I(x)) - (I(x-1) - I(x-2))|, mean over channels; 0 where a pixel is missing."""
    change = np.abs(pixels[:, 3:] - pixels[:, 2:-1] - pixels[:, 1:-2] + pixels[:, :-3]).mean(2)
    return np.pad(change, ((0, 0), (2, 1)))


def bands(pixels: np.ndarray) -> np.ndarray:
    """|mean of BAND_PX × ROWS_PX pixels from x on - mean of as many before|; 0 where pixels are missing."""
    size, origin = (ROWS_PX, BAND_PX, 0), (0, -(BAND_PX // 2), 0)
    # scipy accepts one origin per axis, unlike its type annotations
    means = uniform_filter(pixels, size, origin=origin, mode='nearest')  # pyright: ignore[reportArgumentType]
    change = np.abs(means[:, BAND_PX:] - means[:, :-BAND_PX]).mean(2)[:, : pixels.shape[1] - 2 * BAND_PX + 1]
    return np.pad(change, ((0, 0), (BAND_PX, BAND_PX - 1)))


MEASURES = {'step': steps, 'slope': slopes, 'band': bands}


def places(strip: Strip, measure: str) -> np.ndarray:
    """`measure` at each own line, per `ROWS_PX` rows: (3, n): across the line, mean around it, mean step over all."""
    pixels, lines, own = strip
    rows, width = len(pixels) // ROWS_PX * ROWS_PX, pixels.shape[1]
    if len(lines) == 0 or rows == 0 or width < 4 * BAND_PX:
        return np.zeros((3, 0))
    average = lambda values: values[:rows].reshape(-1, ROWS_PX, width).mean(1)
    values, activity = average(MEASURES[measure](pixels)), average(steps(pixels))
    reach, missing = _reach(lines), {'step': 1, 'slope': 2, 'band': BAND_PX}[measure]
    x = np.arange(width)
    distance = np.abs(x[:, None] - lines).min(1)
    clear = (distance >= CLEAR_PX[measure]) & (x >= missing) & (x <= width - missing)
    found = []
    for line in lines[(lines >= own.start) & (lines < own.stop)]:
        near = slice(line - reach, line + reach)
        others = x[near][clear[near] & ((x[near] - line) % UNIT_PX == 0)] if near.start >= 0 else ()
        if near.start < missing or near.stop > width - missing or not len(others):
            continue
        found.append((values[:, line], values[:, others].mean(1), activity[:, near].mean(1)))
    return np.concatenate(found, axis=1) if found else np.zeros((3, 0))


def _reach(lines: np.ndarray) -> int:
    """Maximum distance of the other positions from a line: half the median spacing of lines, within limits."""
    apart = np.median(np.diff(lines)) if len(lines) > 1 else 2 * FURTHEST_PX
    return int(min(max(apart // 2, BAND_PX + 4), FURTHEST_PX - BAND_PX))


def comb(strip: Strip) -> np.ndarray:
    """Power of the step profile at the frequencies of the lines, and beside them; (0, 0) for irregular or few lines."""
    apart = np.unique(np.diff(strip.lines))
    if len(apart) != 1:
        return np.zeros(2)
    period, profile = int(apart[0]), steps(strip.pixels).mean(0)
    profile[0] = profile[1]
    profile = profile[strip.own]
    count = len(profile) // period
    if count < 3:
        return np.zeros(2)
    power = np.abs(np.fft.rfft(profile[: count * period])) ** 2
    order = np.arange(1, (len(power) - count // 2 - 1) // count + 1)
    harmonics = count * order[order * UNIT_PX % period != 0]  # multiples of 1 / UNIT_PX are not specific to the grid
    beside = np.concatenate([harmonics + shift for shift in range(-(count // 2), count // 2 + 1) if shift])
    return np.array([power[harmonics].mean(), power[beside].mean()])


def overlap(strip: Strip, overlap_px: int) -> np.ndarray:
    """Energy of the Laplacian where windows overlap, and in bands of equal width around, each summed over own lines."""
    x, own, total = strip.pixels, strip.own, np.zeros(2)
    laplacian = 4 * x[1:-1, 1:-1] - x[:-2, 1:-1] - x[2:, 1:-1] - x[1:-1, :-2] - x[1:-1, 2:]
    energy = np.pad((laplacian**2).mean((0, 2)), 1)
    away = np.arange(-(-overlap_px // UNIT_PX) * UNIT_PX, _reach(strip.lines) + 1, UNIT_PX)
    band = np.arange(overlap_px)
    for line in strip.lines[(strip.lines >= own.start) & (strip.lines < own.stop)]:
        if len(away) and line - away[-1] >= 1 and line + away[-1] + overlap_px <= len(energy) - 1:
            outside = energy[line + np.append(-away, away)[:, None] + band]
            total += energy[line + band].mean(), outside.mean()
    return total


def repetition(strip: Strip) -> np.ndarray:
    """Σ r(x) (r(x + L) - mean of r(x + L ± 8, ± 16)) and Σ r² over the smoother half of the ground. r is the image
    minus its mean over 5 × 5 px, and L the spacing of the lines."""
    lines, pixels = strip.lines, strip.pixels
    period = int(np.median(np.diff(lines))) if len(lines) > 1 else 0
    if not 2 * UNIT_PX < period < pixels.shape[1] - 4 * UNIT_PX:
        return np.zeros(2)
    grey = pixels.mean(2)
    fine = grey - uniform_filter(grey, 5, mode='nearest')
    energy = uniform_filter(fine**2, ROWS_PX, mode='nearest')
    fine = np.where(energy <= np.median(energy), fine, 0)
    kept = fine.shape[1] - period - 2 * UNIT_PX
    moved = lambda lag: float((fine[:, :kept] * fine[:, lag : lag + kept]).sum())
    beside = [moved(period + shift * UNIT_PX) for shift in (-2, -1, 1, 2)]
    return np.array([moved(period) - np.mean(beside), moved(0)])
