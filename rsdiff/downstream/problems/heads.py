"""Linear classifiers on the output of a frozen image tower: s = W z + b.

    linear       W is initialised with 0; z are the tower's features before any projection (Radford et al. 2021, section
                 3.2) minus the examples' mean, divided by the mean of their standard deviations
    classifier   z is the embedding; W and b are initialised so that s are the encoder's scores of its prompts: for a
                 CLIP, exp(logit_scale) times the text embeddings (He et al. 2023, arXiv 2210.07574, section 3.1)
    zero shot    the same, untrained

Features are computed once. A step is then two small matrix products, and all candidates of a grid are trained at once.
"""

import functools
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rsdiff.downstream.arms import Examples
from rsdiff.downstream.encoder import Encoder
from rsdiff.downstream.frozen import FrozenTower
from rsdiff.downstream.problems.base import Fitted
from rsdiff.downstream.problems.classification import Logits, cross_entropy
from rsdiff.downstream.tuning import Recipe, Training, batches
from rsdiff.downstream.zero_shot import text_classifier


class Towers:
    """The frozen tower of every seed; a pretrained encoder has a single one for all seeds."""

    def __init__(self, encoder: Encoder, cache: Path | str):
        def tower(seed):
            return FrozenTower(encoder, encoder.initial_params(seed), cache)

        self.encoder = encoder
        self._tower = functools.lru_cache(maxsize=2)(tower)

    def __call__(self, seed: int) -> FrozenTower:
        return self._tower(0 if self.encoder.pretrained is not None else seed)


class HeadTuner:
    """Trains heads on frozen features.

    Args:
      from_text: whether to train `classifier` instead of `linear`.
    """

    def __init__(self, encoder: Encoder, classes: tuple[str, ...], recipe: Recipe, towers: Towers, from_text: bool):
        self.encoder, self.classes, self.recipe, self.towers = encoder, classes, recipe, towers
        self._text_head = text_classifier(encoder, classes) if from_text else None

        def loss(head, key, z, labels, chosen):
            return cross_entropy(_logits(head, z[chosen]), labels[chosen])

        self._training = Training(loss, recipe)

    def candidates(self, examples: Examples, seed: int) -> list[Fitted[Logits]]:
        """A trained head for each candidate of the grid."""
        features = self.towers(seed) if self._text_head else self.towers(seed).features
        x = features(examples.pixels)
        mean, deviation = np.zeros(x.shape[1], np.float32), np.float32(1)
        if self._text_head:
            head = self._text_head(self.encoder.initial_params(seed))
        else:
            head = {'weight': jnp.zeros((x.shape[1], len(self.classes))), 'bias': jnp.zeros(len(self.classes))}
            mean, deviation = x.mean(0), x.std(0).mean()
        z = (x - mean) / deviation
        index = batches(examples.real, len(examples) - examples.real, self.recipe, seed)
        # padding to a power of two: few shapes to compile, whatever the number of examples of each arm
        room = 1 << (len(z) - 1).bit_length()
        data = tuple(np.pad(values, ((0, room - len(values)), (0, 0))) for values in (z, examples.labels))
        started = time.monotonic()
        heads, losses = self._training.fit_grid(head, self.recipe.candidates, data, index, seed)
        seconds = (time.monotonic() - started) / len(losses)

        def logits(number, pixels):
            return _logits(jax.tree.map(lambda leaf: leaf[number], heads), (features(pixels) - mean) / deviation)

        return [
            Fitted(*candidate, functools.partial(logits, number), losses[number], seconds)
            for number, candidate in enumerate(self.recipe.candidates)
        ]


class Untrained:
    """The encoder and its prompts, untrained."""

    def __init__(self, encoder: Encoder, classes: tuple[str, ...], towers: Towers):
        self.encoder, self.towers, self._head = encoder, towers, text_classifier(encoder, classes)

    def candidates(self, examples: Examples, seed: int) -> list[Fitted[Logits]]:
        """The only candidate."""
        head = jax.device_get(self._head(self.encoder.initial_params(seed)))
        return [Fitted(0.0, 0.0, lambda pixels: _logits(head, self.towers(seed)(pixels)), np.zeros(0), 0.0)]


def _logits(head: dict[str, Any], z: Any) -> Any:
    return z @ head['weight'] + head['bias']
