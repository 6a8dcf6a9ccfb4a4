"""Sliding windows over an infinite plane: pure geometry along one axis, since rows and columns are independent.

The windows of a lattice start at

    p(i) = u ⌊(i L + s) / n⌋,  i ∈ ℤ                                     (1)

u is the size of a pixel of the condition, so that every window covers whole pixels of it. On the plane, n = 1: windows are
u L apart, shifted by s units. Around a cylinder of circumference C = u L they are C / n apart, rounded, and p(i + n) =
p(i) + C.

A window's weights depend only on the position within it: 0 in the outer `crop` pixels of each side, then rising over `ramp`
pixels, then 1. Where windows overlap, the weights are divided by their sum.
"""

import math
from typing import NamedTuple, TypeVar

import numpy as np

Integers = TypeVar('Integers', int, np.ndarray)  # one, or an array of int64


class Profile(NamedTuple):
    """The weights of a window of size `window_px` along one axis."""

    window_px: int
    crop_px: int
    ramp_px: int

    def weights(self) -> np.ndarray:
        """float64 (window_px,). The ramps of two windows that overlap by `ramp_px` sum to 1."""
        from_edge = np.arange(self.window_px) + 0.5 - self.crop_px
        from_edge = np.minimum(from_edge, from_edge[::-1])
        return np.where(from_edge > 0, np.minimum(from_edge / max(self.ramp_px, 0.5), 1), 0)


class Lattice(NamedTuple):
    """The positions p(i) of (1): u, L, n and s."""

    unit_px: int
    length: int
    count: int
    shift: int

    def position(self, i: Integers) -> Integers:
        """p(i)."""
        return self.unit_px * ((i * self.length + self.shift) // self.count)

    def numbers(self, a: Integers, b: Integers, profile: Profile) -> tuple[Integers, Integers]:
        """The range of windows with nonzero weights in [a, b): the first i, and one past the last."""
        return self._first_above(a - profile.window_px + profile.crop_px), self._first_above(b - 1 - profile.crop_px)

    def touching(self, a: int, b: int, profile: Profile) -> list[int]:
        """The start positions of those windows, ascending; at least one."""
        return [self.position(i) for i in range(*self.numbers(a, b, profile))]

    def _first_above(self, pixel: Integers) -> Integers:
        """The smallest i with p(i) > pixel."""
        above = pixel // self.unit_px + 1
        return -((self.shift - above * self.count) // self.length)


def plane_lattice(unit_px: int, stride_px: int, offset: float) -> Lattice:
    """Windows `stride_px` apart, a multiple of `unit_px`, shifted by `offset` strides."""
    length = stride_px // unit_px
    return Lattice(unit_px, length, 1, math.floor(offset * length))


def cylinder_lattice(unit_px: int, stride_px: int, offset: float, around_px: int) -> Lattice:
    """The fewest windows at most `stride_px` apart around a circumference of `around_px`, a multiple of `unit_px`."""
    length = around_px // unit_px
    return Lattice(unit_px, length, -(-around_px // stride_px), math.floor(offset * length))


def shares(places: list[int], a: int, b: int, profile: Profile) -> np.ndarray:
    """The weights of the windows at `places` in [a, b), divided by their sum: float32 (windows, b - a)."""
    weights = profile.weights()
    across = np.arange(a, b) - np.asarray(places)[:, None]
    inside = (across >= 0) & (across < profile.window_px)
    share = np.where(inside, weights[np.where(inside, across, 0)], 0)
    return (share / share.sum(0)).astype(np.float32)
