"""Classifiers on what a frozen image tower makes of images: s = W z + b.

    linear       W = 0 at first; z are the tower's features before any projection (Radford et al. 2021, section 3.2) less the
                 examples' mean, over the mean of their deviations
    classifier   z is the embedding, and W and b such that s is, at first, what the encoder scores its prompts by: for a CLIP
                 exp(logit_scale) times the text embeddings (He et al. 2023, arXiv 2210.07574, section 3.1)
    zero shot    the same, before any step

Features are computed once; then a step is two small matrix products, and all candidates of a grid take it at once.
"""

import functools
import time
from pathlib import Path
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rsdiff.downstream.arms import Examples
from rsdiff.downstream.encoder import Encoder
from rsdiff.downstream.frozen import FrozenTower
from rsdiff.downstream.task import Images
from rsdiff.downstream.tuning import Fitted, Recipe, batches, choose, cross_entropy, optimizer
from rsdiff.downstream.zero_shot import text_classifier


class Towers:
    """The frozen tower of every seed: one for all where the encoder is pretrained."""

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
      from_text: `classifier`, not `linear`.
    """

    def __init__(self, encoder: Encoder, classes: tuple[str, ...], recipe: Recipe, towers: Towers, from_text: bool):
        self.encoder, self.classes, self.recipe, self.towers = encoder, classes, recipe, towers
        self._text_head = text_classifier(encoder, classes) if from_text else None
        self._train = jax.jit(jax.vmap(functools.partial(_train, recipe), in_axes=(0, 0, None, None, None, None)))

    def fit(self, examples: Examples, validation: Images | None, seed: int) -> tuple[Fitted, float | None, float]:
        """The best head of the grid, its accuracy on the validation images, and the seconds that training took."""
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
        rates, decays = (np.array(values, np.float32) for values in zip(*self.recipe.candidates))
        # few shapes to compile, whatever the arms' numbers of examples
        room = 1 << (len(z) - 1).bit_length()
        z, labels = (np.pad(values, ((0, room - len(values)), (0, 0))) for values in (z, examples.labels))
        started = time.monotonic()
        heads, losses = jax.device_get(self._train(rates, decays, head, z, labels, index))
        seconds = (time.monotonic() - started) / len(rates)

        def logits(number, pixels):
            return (features(pixels) - mean) / deviation @ heads['weight'][number] + heads['bias'][number]

        return choose(
            (
                Fitted(*candidate, functools.partial(logits, number), losses[number], seconds)
                for number, candidate in enumerate(self.recipe.candidates)
            ),
            validation,
        )


class Untrained:
    """The encoder and its prompts, before any step."""

    def __init__(self, encoder: Encoder, classes: tuple[str, ...], towers: Towers):
        self.encoder, self.towers, self._head = encoder, towers, text_classifier(encoder, classes)

    def logits(self, pixels: np.ndarray, seed: int) -> np.ndarray:
        """uint8 (n, size, size, 3) → (n, classes)."""
        head = self._head(self.encoder.initial_params(seed))
        return self.towers(seed)(pixels) @ np.asarray(head['weight']) + np.asarray(head['bias'])


def _train(
    recipe: Recipe,
    learning_rate: jax.Array,
    weight_decay: jax.Array,
    head: dict[str, jax.Array],
    z: jax.Array,
    labels: jax.Array,
    index: jax.Array,
) -> tuple[dict[str, jax.Array], jax.Array]:
    """(head after the last step, loss of every step) for one candidate."""
    optimiser = optimizer(recipe, learning_rate, weight_decay)

    def step(state, chosen):
        head, moments = state
        loss = lambda head: cross_entropy(z[chosen] @ head['weight'] + head['bias'], labels[chosen])
        value, gradient = jax.value_and_grad(loss)(head)
        updates, moments = optimiser.update(gradient, moments, head)
        return (cast(dict[str, jax.Array], optax.apply_updates(head, updates)), moments), value

    (trained, _), losses = jax.lax.scan(step, (head, optimiser.init(head)), index)
    return trained, losses
