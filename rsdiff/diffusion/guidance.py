"""Several predictions made one."""

from typing import Sequence

from rsdiff.diffusion.solvers import Denoise


def guided(predictions: Sequence[Denoise], weights: Sequence[float]) -> Denoise:
    """Guidance without a classifier (Ho & Salimans 2022, arXiv 2207.12598), for any number of conditions in turn (Brooks et
    al. 2023, arXiv 2211.09800, eq. 3):

        x̂_0 = p_0 + w_1 (p_1 - p_0) + w_2 (p_2 - p_1) + …                (1)

    Args:
      predictions: (x_t, t) → x̂_0 each, from that which knows least to that which knows most.
      weights: one for each but the first. All 1: what the last says.
    Raises:
      ValueError: their numbers do not fit.
    """
    if not predictions or len(weights) != len(predictions) - 1:
        raise ValueError(f'{len(predictions)} predictions and {len(weights)} weights; there must be one weight fewer')

    def predict(xt, t):
        made = [prediction(xt, t) for prediction in predictions]
        steps = [weight * (after - before) for weight, before, after in zip(weights, made, made[1:])]
        return sum(steps, made[0])

    return predict
