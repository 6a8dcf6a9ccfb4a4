"""Distillation: a student learns to do in one to four evaluations what its teacher, a diffusion model, does in many.

The student has the teacher's network. It is a diffusion of K steps: its timesteps k = 1 … K are the teacher's timesteps t_k
that a sampler of K steps visits, with their α and σ. From the noised image z_t at one of them, the teacher samples without
noise of its own,

    L = mean (ẑ_0(z_t, t) - S(z_t, t))²                                 (1)

with S the teacher's sample from z_t at t in `teacher_steps` evaluations. S is a function, so the student learns one image for
each noise and not their mean (SinSR, Wang et al. 2024, arXiv 2311.14760, eq. 8, where K = 1). Losses against real images may be
added at every timestep (`methods.image_loss`): a discriminator, as in adversarial diffusion distillation (Sauer et al. 2023,
arXiv 2311.17042), whose discriminator has other features; and features of a classifier, as in adversarial super-resolution. The
latter pull towards a mean where the noise says little about the real image, which is the price of their sharpness elsewhere.
"""

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from rsdiff.base.errors import BadInput
from rsdiff.base.ranges import check_range
from rsdiff.diffusion.schedule import Schedule, to_x0
from rsdiff.diffusion.solvers import integrate, solver_steps, timestep_grid
from rsdiff.methods.base import FEW_STEPS, TEACHER, Teacher
from rsdiff.methods.diffusion import Diffusion, DiffusionConfig, NoisyImageLossConfig


@dataclasses.dataclass(frozen=True)
class DistillationConfig(DiffusionConfig):
    """The student. What it has in common with a diffusion model must be as the teacher's.

    Attributes:
      steps: K.
      teacher: the teacher, a run or a release.
      teacher_steps: evaluations of the teacher for a sample, by DPM-Solver++(2M).
      teacher_weight: the weight of (1); with 0 there is no teacher, and only real images teach.
    """

    kind: Literal['distillation'] = 'distillation'  # pyright: ignore[reportIncompatibleVariableOverride]
    steps: int = 2
    teacher: str = ''
    teacher_steps: int = 6
    teacher_weight: float = 1.0
    image_loss: NoisyImageLossConfig = NoisyImageLossConfig(least_snr=0.0)

    def __post_init__(self):
        check_range(self, 1, FEW_STEPS, 'steps')
        check_range(self, 1, 1000, 'teacher_steps')
        check_range(self, 0, 1e6, 'teacher_weight')
        super().__post_init__()
        if not (self.teacher_weight or self.image_loss.weights):
            raise BadInput('teacher_weight is 0, and so are all weights of image_loss; the student would learn nothing')
        # the teacher samples from the student's first timestep too
        if self.schedule.timesteps < self.steps**2 * self.teacher_steps:
            raise BadInput(
                f'schedule.timesteps is {self.schedule.timesteps}, too few for steps {self.steps} and '
                f'teacher_steps {self.teacher_steps}'
            )

    @property
    def timesteps(self) -> int:
        """K."""
        return self.steps


@dataclasses.dataclass(frozen=True)
class Distillation(Diffusion):
    """See `methods.base.Method`."""

    config: DistillationConfig

    @functools.cached_property
    def teacher_method(self) -> Diffusion:
        """The method whose parameters are `frozen[TEACHER]`."""
        names = [
            field.name for field in dataclasses.fields(DiffusionConfig) if field.name not in ('kind', 'image_loss')
        ]
        return Diffusion(DiffusionConfig(**{name: getattr(self.config, name) for name in names}), self.degradation)

    @functools.cached_property
    def grid(self) -> np.ndarray:
        """The teacher's timestep of each of the student's, from 0: int32 (K + 1,)."""
        return timestep_grid(self.teacher_method.schedule.timesteps, self.config.steps)[::-1]

    @functools.cached_property
    def schedule(self) -> Schedule:
        return self.teacher_method.schedule.at(self.grid)

    @property
    def teacher(self) -> Teacher | None:
        return Teacher(self.config.teacher, self.teacher_method.config) if self.config.teacher_weight else None

    def time(self, t):
        return self.teacher_method.time(jnp.asarray(self.grid)[t])

    def errors(self, frozen, condition, noisy, prediction):
        if not self.config.teacher_weight:
            return jnp.zeros(len(noisy.z0))
        z0 = to_x0(self.schedule, self.config.objective.prediction, prediction, noisy.zt, noisy.t)
        wanted = jax.lax.stop_gradient(self.taught(frozen, condition, noisy.zt, noisy.t))
        return self.config.teacher_weight * jnp.mean((z0 - wanted) ** 2, axis=range(1, z0.ndim))

    def taught(self, frozen, condition, zt, t):
        """S(z_t, t) of (1)."""
        predict = self.teacher_method.predict(frozen[TEACHER], frozen, condition)
        # the teacher's steps from each of the student's timesteps, (K, steps), and of each example, (steps, b)
        tables = [self._teacher_steps(int(start)) for start in self.grid[1:]]
        table = jax.tree.map(lambda *rows: jnp.stack(rows)[t - 1].T, *tables)
        like_images = lambda column: column.reshape(*column.shape, 1, 1, 1)
        steps = dataclasses.replace(table, **{name: like_images(getattr(table, name)) for name in 'a b c tau'.split()})
        return integrate(predict, steps, zt, jnp.zeros_like(zt))[0]

    def _teacher_steps(self, start: int):
        return solver_steps('dpm++2m', self.teacher_method.schedule, self.config.teacher_steps, start)
