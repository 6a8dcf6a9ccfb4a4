"""Fine-tunes both towers of a CLIP on labelled images, with CLIP's own symmetric loss.

A batch has images u_i with classes y_i, and one text v_c for each class: its name in a template drawn for the step.
With s_ic = exp(logit_scale) · u_i · v_c,

    image → text:   mean over i of  −log softmax_c(s_ic) at c = y_i                                  (1)
    text → image:   mean over the batch's classes c of  −Σ_i q_ci log softmax_i(s_ic),
                    q_ci = [y_i = c] / #{j : y_j = c}                                                (2)

and the loss is the mean of (1) and (2). It is the contrastive loss of Radford et al. 2021 where images of the same
class are all positives of their text instead of each other's negatives (Khosla et al. 2020, supervised contrastive
learning); (1) is the classifier that `zero_shot` evaluates.
"""

import dataclasses
from typing import Any, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rsdiff.downstream.encoder import Encoder
from rsdiff.downstream.task import Images
from rsdiff.downstream.zero_shot import prompt_tokens


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How every arm is trained, whatever its images.

    Attributes:
      steps: optimiser steps.
      batch: images a step.
      learning_rate: peak of a cosine with 10 % warm-up.
      weight_decay: of matrices, not of biases, scales or the temperature.
      real_fraction: share of real images in a batch, for an arm that has both kinds.
    """

    steps: int
    batch: int
    learning_rate: float
    weight_decay: float
    real_fraction: float


class Trainer:
    """Trains one encoder on one set of classes; the step is compiled once for all arms and seeds."""

    def __init__(self, encoder: Encoder, classes: tuple[str, ...], recipe: Recipe):
        self.encoder, self.recipe = encoder, recipe
        ids, mask = prompt_tokens(encoder, classes)
        optimizer = _optimizer(recipe)

        def loss(params, pixels, labels, template):
            images = encoder.encode_images(params, pixels)
            texts = encoder.encode_texts(params, jnp.asarray(ids)[template], jnp.asarray(mask)[template])
            return contrastive_loss(encoder.logits(params, images, texts), labels)

        def step(params, moments, key, pixels, labels):
            turn_key, template_key = jax.random.split(key)
            template = jax.random.randint(template_key, (), 0, len(ids))
            value, gradient = jax.value_and_grad(loss)(params, turned(turn_key, pixels), labels, template)
            updates, moments = optimizer.update(gradient, moments, params)
            return optax.apply_updates(params, updates), moments, value

        self._start = jax.jit(optimizer.init)
        self._step = jax.jit(step)

    def train(self, real: Images, synthetic: Images, seed: int) -> tuple[dict[str, Any], list[float]]:
        """Trains from the encoder's initial parameters for exactly `recipe.steps` steps.

        Args:
          real, synthetic: one of them may be empty.
          seed: decides initial parameters (where they are not pretrained), order, augmentation and templates.
        Returns:
          (parameters after the last step, loss of every step).
        """
        params = self.encoder.initial_params(seed)
        moments = self._start(params)
        losses = []
        for index, (pixels, labels) in enumerate(batches(real, synthetic, self.recipe, seed)):
            key = jax.random.fold_in(jax.random.key(seed), index)
            params, moments, value = self._step(params, moments, key, pixels, labels)
            losses.append(value)
        return params, [float(value) for value in losses]


def contrastive_loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The mean of (1) and (2).

    Args:
      logits: (images, classes), s_ic.
      labels: (images,) class indices.
    """
    positive = jax.nn.one_hot(labels, logits.shape[1])
    to_text = -(positive * jax.nn.log_softmax(logits, axis=1)).sum(1).mean()
    count = positive.sum(0)
    share = positive / jnp.maximum(count, 1)
    per_class = -(share * jax.nn.log_softmax(logits, axis=0)).sum(0)
    to_image = per_class.sum() / (count > 0).sum()
    return (to_text + to_image) / 2


def turned(key: jax.Array, pixels: jax.Array) -> jax.Array:
    """Each image of (batch, n, n, 3) in one of the eight orientations of a square; there is no up in a nadir view."""
    transpose, upside_down, mirror = jax.random.bernoulli(key, shape=(3, len(pixels), 1, 1, 1))
    pixels = jnp.where(transpose, pixels.swapaxes(1, 2), pixels)
    pixels = jnp.where(upside_down, pixels[:, ::-1], pixels)
    return jnp.where(mirror, pixels[:, :, ::-1], pixels)


def batches(real: Images, synthetic: Images, recipe: Recipe, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """`recipe.steps` batches of (pixels, labels), of one shape whatever the arm.

    Each kind of image is passed through in shuffled epochs; with both kinds, `real_fraction` of each batch is real
    (He et al. 2023, arXiv 2210.07574, mix the two within a step likewise).
    """
    share = recipe.real_fraction if len(real) and len(synthetic) else float(len(real) > 0)
    n_real = round(recipe.batch * share)
    from_real = _epochs(len(real), recipe.steps * n_real, [0, seed]).reshape(recipe.steps, -1)
    from_made = _epochs(len(synthetic), recipe.steps * (recipe.batch - n_real), [1, seed]).reshape(recipe.steps, -1)
    for i, j in zip(from_real, from_made):
        yield (np.concatenate([real.pixels[i], synthetic.pixels[j]]),
               np.concatenate([real.labels[i], synthetic.labels[j]]))


def _epochs(n: int, count: int, seed: list[int]) -> np.ndarray:
    """`count` indices below `n`: one shuffled pass after another."""
    generator = np.random.default_rng(seed)
    passes = [generator.permutation(n) for _ in range(-(-count // max(n, 1)))]
    return np.concatenate([np.arange(0), *passes])[:count]


def _optimizer(recipe: Recipe) -> optax.GradientTransformation:
    warm_up = max(1, recipe.steps // 10)
    schedule = optax.warmup_cosine_decay_schedule(0.0, recipe.learning_rate, warm_up, max(recipe.steps, warm_up + 1))

    def decayed(params):
        return jax.tree.map(lambda leaf: leaf.ndim > 1, params)

    return optax.chain(optax.clip_by_global_norm(1.0),
                       optax.adamw(schedule, b2=0.98, eps=1e-6, weight_decay=recipe.weight_decay, mask=decayed))
