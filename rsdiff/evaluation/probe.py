"""How well a linear classifier predicts labels from features: multinomial logistic regression on standardised ones, z.

    min_{W, b}  Σ_n −log softmax(W zₙ + b)[yₙ] + ‖W‖² / 2C                         (1)

It is convex, so that the result depends only on the data, not on a training schedule. The C with the highest likelihood
of the validation labels is chosen (validation accuracies tie too often). With it, the final classifier is fitted to
training and validation images together, as in Radford et al. 2021 (arXiv 2103.00020, A.3).
"""

import dataclasses
from typing import Sequence

import numpy as np
import scipy.optimize
import scipy.special

from rsdiff.base.errors import BadInput

STRENGTHS = tuple(10.0**power for power in range(-5, 3))


@dataclasses.dataclass(frozen=True)
class Probe:
    """A fitted linear classifier (1).

    Attributes:
      classes: the labels, sorted (k,).
      mean, deviation: of the training features (d,).
      weight, bias: W (k, d) and b (k,).
      strength: C.
      val_loss: C → mean of −log p(label) over the validation images, of a fit to the training images alone.
    """

    classes: np.ndarray
    mean: np.ndarray
    deviation: np.ndarray
    weight: np.ndarray
    bias: np.ndarray
    strength: float
    val_loss: dict[float, float]

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Features (n, d) → labels (n,)."""
        return self.classes[self._log_p(x).argmax(1)]

    def accuracy(self, x: np.ndarray, y: Sequence) -> float:
        """The share of features (n, d) whose label is predicted correctly."""
        return float(np.mean(self.predict(x) == np.asarray(y)))

    def loss(self, x: np.ndarray, y: Sequence | np.ndarray) -> float:
        """The mean of −log p(label) over features (n, d)."""
        return float(-self._log_p(x)[np.asarray(y)[:, None] == self.classes].mean())

    def _log_p(self, x: np.ndarray) -> np.ndarray:
        return scipy.special.log_softmax((x - self.mean) / self.deviation @ self.weight.T + self.bias, axis=1)


def linear_probe(
    train_x: np.ndarray,
    train_y: Sequence | np.ndarray,
    val_x: np.ndarray,
    val_y: Sequence | np.ndarray,
    strengths: Sequence[float] = STRENGTHS,
) -> Probe:
    """The linear classifier with the C that has the lowest loss on the validation images.

    Args:
      train_x, val_x: features (n, d) and (m, d); standardised by the mean and deviation of `train_x`.
      train_y, val_y: their labels, of any sortable type.
      strengths: the values of C to try.
    Raises:
      BadInput: the shapes disagree, a feature is not finite, there are fewer than two classes, or a validation class is
        not in the training labels.
    """
    train_x, val_x = np.asarray(train_x, np.float64), np.asarray(val_x, np.float64)
    train_y, val_y = np.asarray(train_y), np.asarray(val_y)
    for name, x, y in ('train', train_x, train_y), ('val', val_x, val_y):
        if x.ndim != 2 or y.shape != x.shape[:1] or x.shape[1] != train_x.shape[1] or not len(x):
            raise BadInput(f'{name}: features {x.shape} and labels {y.shape} do not match')
        if not np.isfinite(x).all():
            raise BadInput(f'{name}: not all features are finite')
    classes = np.unique(train_y)
    if len(classes) < 2:
        raise BadInput('train: a classifier needs two classes')
    if strange := sorted({*val_y.tolist()} - {*classes.tolist()}):
        raise BadInput(f'val: class {strange[0]!r} is not in train')

    # no division by 0 for constant features
    deviation = train_x.std(0)
    probe = Probe(
        classes,
        train_x.mean(0),
        np.where(deviation > 0, deviation, 1.0),
        np.zeros((len(classes), train_x.shape[1])),
        np.zeros(len(classes)),
        0.0,
        {},
    )
    for strength in sorted(strengths):
        probe = _fitted(probe, train_x, train_y, strength)
        probe.val_loss[strength] = probe.loss(val_x, val_y)
    best = min(probe.val_loss, key=probe.val_loss.__getitem__)
    return _fitted(probe, np.concatenate([train_x, val_x]), np.concatenate([train_y, val_y]), best)


def _fitted(start: Probe, x: np.ndarray, y: np.ndarray, strength: float) -> Probe:
    """The minimum of (1) for one C, starting from `start`."""
    z, one_hot = (x - start.mean) / start.deviation, (y[:, None] == start.classes).astype(np.float64)
    shape = start.weight.shape

    def objective(flat):
        weight, bias = flat[: -shape[0]].reshape(shape), flat[-shape[0] :]
        log_p = scipy.special.log_softmax(z @ weight.T + bias, axis=1)
        error = np.exp(log_p) - one_hot
        value = -np.sum(one_hot * log_p) + np.sum(weight**2) / (2 * strength)
        gradient = np.concatenate([(error.T @ z + weight / strength).ravel(), error.sum(0)])
        return value / len(z), gradient / len(z)

    found = scipy.optimize.minimize(
        objective,
        np.append(start.weight, start.bias),
        jac=True,
        method='L-BFGS-B',
        options={'maxiter': 10_000, 'maxcor': 20, 'ftol': 1e-10, 'gtol': 1e-6},
    )
    return dataclasses.replace(
        start, weight=found.x[: -shape[0]].reshape(shape), bias=found.x[-shape[0] :], strength=strength
    )
