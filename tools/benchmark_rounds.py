"""Shared by the measurements of `tools/benchmark.py`: alternating rounds, and their spread."""

import os
import time
from typing import Any, Callable

import numpy as np


def spread(values: list[float]) -> dict[str, Any]:
    """Median, extremes, and the values themselves."""
    return {
        'median': float(np.median(values)),
        'lowest': min(values),
        'highest': max(values),
        'rounds': [round(value, 4) for value in values],
    }


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()


def alternate(
    ours: Callable[[], np.ndarray], theirs: Callable[[], np.ndarray], rounds: int, count: int
) -> dict[str, Any]:
    """Items per second of two functions that process `count` items per call, alternating; first calls are timed apart.

    Raises:
      FloatingPointError: their results differ by more than one in a thousand.
    """

    def timed(run):
        start = time.perf_counter()
        result = run()
        return result, time.perf_counter() - start

    (our_result, our_first), (their_result, their_first) = timed(ours), timed(theirs)
    difference = float(np.max(np.abs(our_result - their_result)) / np.max(np.abs(their_result)))
    if not difference < 1e-3:
        raise FloatingPointError(f'results differ by {difference:.2g} of the largest')
    rates = [[count / timed(run)[1] for run in (ours, theirs)] for _ in range(rounds)]
    return {
        'ours_per_second': spread([rate for rate, _ in rates]),
        'theirs_per_second': spread([rate for _, rate in rates]),
        'ours_over_theirs': spread([ours / theirs for ours, theirs in rates]),
        'first_call_seconds': {'ours': our_first, 'theirs': their_first},
        'relative_difference': difference,
    }
