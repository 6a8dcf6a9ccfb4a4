"""Combines several predictions into one."""

from typing import Sequence

from rsdiff.diffusion.solvers import Denoise


def guided(predictions: Sequence[Denoise], weights: Sequence[float]) -> Denoise:
    """Classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598) for any number of conditions, added one after another
    (Brooks et al. 2023, arXiv 2211.09800, eq. 3):

        x̂_0 = p_0 + w_1 (p_1 - p_0) + w_2 (p_2 - p_1) + …                (1)

    Args:
      predictions: (x_t, t) → x̂_0 each, ordered from the least to the most conditioned.
      weights: one per prediction except the first. If all are 1, the result is the last prediction.
    Raises:
      ValueError: the number of weights does not match the number of predictions.
    """
    if not predictions or len(weights) != len(predictions) - 1:
        raise ValueError(f'{len(predictions)} predictions and {len(weights)} weights; there must be one weight fewer')

    def predict(xt, t):
        made = [prediction(xt, t) for prediction in predictions]
        steps = [weight * (after - before) for weight, before, after in zip(weights, made, made[1:])]
        return sum(steps, made[0])

    return predict
