"""Plans: the parameters of the algorithm for unbounded sampling.

A plan runs the solver's steps in phases. Each phase divides the plane into a new set of windows. Each window runs the phase's
steps independently, starting from the previous phase's field; where windows overlap, their results are averaged with their
weights (`windows.Profile`). The result of the last phase is the image.

    plan             phases         stride, in W         merge         solver
    fast             3              1 less overlap       see below     DPM-Solver++(2M)
    metaearth        1              1/2                  middle half   DDIM       Yu et al. 2024, arXiv 2405.13570
    multidiffusion   one per step   1/2                  mean          DDIM       Bar-Tal et al. 2023, arXiv 2302.08113
    spot             one per step   1, random offset     none          DDIM       Frolov et al. 2024, arXiv 2407.15507
    infinite         3              1/2                  linear        DDIM
    few              one per step   1 less overlap       see below     DDIM

W is the window size. Overlap dominates the cost: with a stride of W/2, every pixel is computed four times. `fast` has little
overlap and uses it as follows. A network sees nothing beyond its window, and its outermost pixels are poor. So the outer
third of the overlap has weight 0, and the middle third is a ramp, since a hard cut would be visible. The affected distance is
a number of pixels, independent of the window size, so large windows need a smaller fraction. `fast` has as many phases as
`infinite`, with window edges at different positions in each, so that an edge of one phase lies inside windows of the next.
`few` has the windows of `fast`; it is for generators that sample in one to four steps, such as students
(`methods.distillation`). The effect of each of these numbers: docs/mosaic_ablation.md.
"""

import dataclasses
import hashlib
import math
from typing import Literal, Sequence, get_args

import numpy as np

from rsdiff.base.boxes import Box
from rsdiff.base.errors import BadInput
from rsdiff.diffusion.solvers import Solver
from rsdiff.methods.base import FEW_STEPS
from rsdiff.sampling.mosaic.windows import Lattice, Profile, cylinder_lattice, plane_lattice

PlanName = Literal['fast', 'metaearth', 'multidiffusion', 'spot', 'infinite', 'few']

# Windows start at multiples of this. No condition is coarser, so every window starts at a pixel boundary of it.
UNIT_PX = 4
# Offsets of successive phases, in strides. Each differs from the previous one along one axis only, which needs half the
# halo of a change along both.
OFFSETS = (0.0, 0.0), (0.0, 0.5), (0.5, 0.5), (0.5, 0.0)
FAST_STEPS, OTHER_STEPS = 12, 50
PHASES = 3
LEAST_OVERLAP_PX = 20
MOST_STEPS = 10_000


@dataclasses.dataclass(frozen=True)
class Phase:
    """`steps` solver steps in windows `stride_px` apart, shifted by `offset` strides in y and x; and the windows' weights."""

    steps: int
    stride_px: int
    offset: tuple[float, float] = (0.0, 0.0)
    crop_px: int = 0
    ramp_px: int = 0


@dataclasses.dataclass(frozen=True)
class Plan:
    """The window size, the solver, and the phases."""

    name: PlanName
    window_px: int
    solver: Solver
    phases: tuple[Phase, ...]

    @property
    def steps(self) -> int:
        """The number of solver steps over all phases."""
        return sum(phase.steps for phase in self.phases)

    def profile(self, phase: Phase) -> Profile:
        """The weights of the phase's windows."""
        return Profile(self.window_px, phase.crop_px, phase.ramp_px)

    def lattice(self, phase: Phase, axis: int, around_px: int | None = None) -> Lattice:
        """The start positions of the phase's windows along y (0) or x (1); `around_px`: the circumference of a cylinder."""
        if axis == 1 and around_px is not None:
            return cylinder_lattice(UNIT_PX, phase.stride_px, phase.offset[1], around_px)
        return plane_lattice(UNIT_PX, phase.stride_px, phase.offset[axis])

    def places(self, axis: int, a: int, b: int, around_px: int | None = None) -> list[list[int]]:
        """For each phase, the start positions along an axis of the windows needed for [a, b).

        Computed from the last phase back to the first: the windows that touch the required interval read a larger one, which
        the previous phase must provide.
        """
        needed = []
        for phase in reversed(self.phases):
            windows = self.lattice(phase, axis, around_px).touching(a, b, self.profile(phase))
            needed.append(windows)
            a, b = windows[0], windows[-1] + self.window_px
        return needed[::-1]

    def reads(self, axis: int, a: int, b: int) -> list[int]:
        """For each phase, the length in pixels covered by the windows needed for [a, b)."""
        lengths = []
        for phase in reversed(self.phases):
            lattice = self.lattice(phase, axis)
            first, last = lattice.numbers(a, b, self.profile(phase))
            a, b = lattice.position(first), lattice.position(last - 1) + self.window_px
            lengths.append(b - a)
        return lengths[::-1]

    def counts(self, axis: int, begins: np.ndarray, ends: np.ndarray, around_px: int | None = None) -> list[np.ndarray]:
        """For each phase, the number of windows along an axis needed for each of the intervals [begin, end): the lengths of
        `places`, vectorised over intervals."""
        a, b, needed = begins, ends, []
        for phase in reversed(self.phases):
            lattice = self.lattice(phase, axis, around_px)
            first, last = lattice.numbers(a, b, self.profile(phase))
            needed.append(last - first)
            a, b = lattice.position(first), lattice.position(last - 1) + self.window_px
        return needed[::-1]

    def evaluations(
        self,
        tile_rows: Sequence[tuple[int, int]] | np.ndarray,
        tile_columns: Sequence[tuple[int, int]] | np.ndarray,
        around_px: int | None = None,
    ) -> int:
        """Network evaluations times pixels per window, summed over all tiles of rows × columns with their halos. Rows and
        columns are independent, so the sum factorises: a canvas of 10^12 pixels takes no time to count."""
        (tops, bottoms), (lefts, rights) = (np.asarray(tiles, np.int64).T for tiles in (tile_rows, tile_columns))
        rows, columns = self.counts(0, tops, bottoms), self.counts(1, lefts, rights, around_px)
        each = [phase.steps * int(m.sum()) * int(n.sum()) for phase, m, n in zip(self.phases, rows, columns)]
        return sum(each) * self.window_px**2


def cut(side_px: int, tile_px: int) -> np.ndarray:
    """Start and end of the tiles of `tile_px` along a side: int64 (tiles, 2)."""
    begins = np.arange(0, side_px, tile_px)
    return np.stack([begins, np.minimum(begins + tile_px, side_px)], 1)


def hull(rows: list[int], columns: list[int], window_px: int) -> Box:
    """The rectangle covered by the windows at rows × columns."""
    return Box(rows[0], columns[0], rows[-1] + window_px, columns[-1] + window_px)


def make_plan(
    name: PlanName,
    window_px: int,
    steps: int | None = None,
    phases: int | None = None,
    overlap_px: int | None = None,
    seed: int = 0,
    timesteps: int | None = None,
    solver: Solver | None = None,
) -> Plan:
    """One of the plans above, with its parameters overridden by those given.

    Args:
      window_px: W, a multiple of 16.
      phases: for `fast`, `infinite` and `few`.
      overlap_px: overlap of windows, for `fast` and `few`; a multiple of 4.
      seed: for the offsets of `spot`.
      timesteps: the method's number of timesteps, which limits the default of `steps`; needed by `few`.
      solver: another solver than the plan's.
    Raises:
      BadInput: a value is out of range, or the plan does not have this parameter.
    """
    whole = lambda pixels: math.ceil(pixels / UNIT_PX) * UNIT_PX
    if name not in get_args(PlanName):
        raise BadInput(f'plan {name!r} is not one of {", ".join(get_args(PlanName))}')
    if name == 'few' and (timesteps is None or timesteps > FEW_STEPS):
        raise BadInput(
            f'plan few is for generators of at most {FEW_STEPS} timesteps, such as students (docs/training.md), and this '
            f'one has {timesteps or "an unknown number"}; use plan fast'
        )
    for number, value, plans in (
        ('phases', phases, ('fast', 'infinite', 'few')),
        ('overlap_px', overlap_px, ('fast', 'few')),
    ):
        if value is not None and name not in plans:
            raise BadInput(f'plan {name} has no {number}; only {", ".join(plans)} have it')
    if steps is None:
        steps = min(FAST_STEPS if name == 'fast' else OTHER_STEPS, timesteps or MOST_STEPS)
    if phases is None:
        phases = steps if name == 'few' else min(PHASES, steps)
    if not 1 <= steps <= MOST_STEPS:
        raise BadInput(f'steps is {steps}; it must be from 1 to {MOST_STEPS}')
    if not 1 <= phases <= steps:
        raise BadInput(f'phases is {phases}; {steps} steps allow 1 to {steps}')
    if overlap_px is None:
        overlap_px = min(max(LEAST_OVERLAP_PX, whole(3 * window_px / 32)), window_px // 2)
    if overlap_px % UNIT_PX or not 0 <= overlap_px <= window_px // 2:
        raise BadInput(
            f'overlap_px is {overlap_px}; a window of {window_px} px allows multiples of {UNIT_PX} up to '
            f'{window_px // 2}'
        )

    half = window_px // 2
    evenly = [steps * (n + 1) // phases - steps * n // phases for n in range(phases)]
    offsets = [OFFSETS[n % len(OFFSETS)] for n in range(phases)][
        ::-1
    ]  # the last phase's lattice is the same in all plans
    if name in ('fast', 'few'):
        crop = overlap_px // 3
        made = [
            Phase(n, window_px - overlap_px, offset, crop, overlap_px - 2 * crop) for n, offset in zip(evenly, offsets)
        ]
    elif name == 'metaearth':
        made = [Phase(steps, half, (0.5, 0.5), crop_px=window_px // 4)]
    elif name == 'multidiffusion':
        made = [Phase(1, half)] * steps
    elif name == 'spot':
        made = [Phase(1, window_px, (_fraction(seed, n, 0), _fraction(seed, n, 1))) for n in range(steps)]
    else:
        made = [Phase(n, half, offset, ramp_px=half) for n, offset in zip(evenly, offsets)]
    return Plan(name, window_px, solver or ('dpm++2m' if name == 'fast' else 'ddim'), tuple(made))


def _fraction(*names: int) -> float:
    """A pseudorandom number in [0, 1) that depends only on `names`."""
    return int.from_bytes(hashlib.sha256(repr(names).encode()).digest()[:4]) / 2**32
