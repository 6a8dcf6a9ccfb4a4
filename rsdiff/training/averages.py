"""Averages whose length is chosen after training (Karras et al. 2024, arXiv 2312.02696, §3 and appendix C).

An average of power γ weights the parameters of step τ by a power of τ. At step t,

    p(τ) = (γ + 1) τ^γ / t^(γ+1)                                          (1)
    average ← β average + (1 - β) parameters,  β = (1 - 1/t)^(γ+1)        (2)

Its length, the standard deviation of p relative to t, is

    σ = √(γ + 1) / ((γ + 2) √(γ + 3))                                     (3)

so 0.1 means that about the last tenth of training counts. Snapshots of two such averages during training suffice to make that
of any length at any later step, as the linear combination of snapshots whose weights p are nearest to the wanted ones,

    min_x ‖Σ_i x_i p_i - p‖²,  Σ_i x_i = 1,  ⟨p_a, p_b⟩ = ∫ p_a p_b dτ    (4)

(Karras et al. have no condition on Σ x, which is then only about 1.)
"""

from typing import Sequence

import jax.numpy as jnp
import numpy as np

from rsdiff.base.errors import BadInput

EMA = 'ema'  # the name of the average used for sampling

# σ of a uniform average, γ = 0, is the longest
LONGEST = 0.5 / np.sqrt(3)


def power(length: float) -> float:
    """γ of (3), for a length in (0, 1/√12].

    Raises:
      BadInput: the length is outside.
    """
    if not 0 < length <= LONGEST:
        raise BadInput(f'an average of length {length:g}: it must be above 0 and at most {LONGEST:.3f}')
    # (3) squared is a cubic in γ
    roots = np.roots([1, 7, 16 - length**-2, 12 - length**-2])
    return float(max(0, roots[np.isreal(roots)].real.max()))


def decay(length: float, step):
    """β of (2) for the step from 1, an int or an array, in a form that is exact for late steps."""
    return jnp.exp((power(length) + 1) * jnp.log1p(-1 / step))


def name_of(length: float) -> str:
    """The name of an average in the training state."""
    return f'length_{length:g}'.replace('.', '_')  # dots separate the parts of a weight's name


def coefficients(lengths: Sequence[float], steps: Sequence[int], length: float) -> np.ndarray:
    """x of (4), for an average at the last of the snapshots' steps.

    Args:
      lengths, steps: of each snapshot; steps are positive.
      length: of the wanted average.
    Returns:
      float64 (snapshots,).
    Raises:
      BadInput: a length is out of range.
    """
    gammas, wanted = np.array([power(one) for one in lengths]), power(length)
    times = np.asarray(steps, np.float64) / max(steps)
    gram = _inner(gammas[:, None], times[:, None], gammas, times)
    target = _inner(gammas, times, wanted, 1.0)
    # the minimum, with a Lagrange multiplier in the last place
    ones = np.ones((len(times), 1))
    system = np.block([[gram, ones], [ones.T, np.zeros((1, 1))]])
    return np.linalg.lstsq(system, np.append(target, 1.0), rcond=None)[0][:-1]


def _inner(gamma_a, time_a, gamma_b, time_b):
    """The inner product of (4): ∫ from 0 to the earlier of the two times."""
    earlier, later = np.minimum(time_a, time_b), np.maximum(time_a, time_b)
    exponent = np.where(time_a < time_b, gamma_b, gamma_a)  # of the average at the later time
    return (gamma_a + 1) * (gamma_b + 1) * (earlier / later) ** exponent / ((gamma_a + gamma_b + 1) * later)
