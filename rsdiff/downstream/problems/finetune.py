"""Fine-tunes a whole encoder on labelled images, in one of two ways.

Contrastive: CLIP's symmetric loss trains both towers. A batch has images u_i with labels y_ic, and one text v_c per
class: its name in a template drawn for the step. With s_ic = exp(logit_scale) · u_i · v_c,

    image → text:   mean over i of  −Σ_c y_ic log softmax_c(s_ic)                                    (1)
    text → image:   mean over the batch's classes c of  −Σ_i q_ci log softmax_i(s_ic),
                    q_ci = y_ic / Σ_j y_jc                                                          (2)

and the loss is the mean of (1) and (2). It is the contrastive loss of Radford et al. 2021, except that images of the
same class are all positives of their text instead of each other's negatives (Khosla et al. 2020, supervised contrastive
learning); (1) is the cross-entropy of the classifier that prompts define.

Cross-entropy: trains the image tower and a linear head initialised from the prompts (`zero_shot.text_classifier`).
"""

import time
from typing import Any, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from rsdiff.downstream.arms import Examples
from rsdiff.downstream.encoder import Encoder
from rsdiff.downstream.problems.base import Fitted
from rsdiff.downstream.problems.classification import Logits, cross_entropy
from rsdiff.downstream.tuning import Recipe, Training, batches
from rsdiff.downstream.zero_shot import class_embeddings, in_batches, prompt_tokens, text_classifier


class WholeTuner:
    """Trains one encoder on one set of classes; the step is compiled once for all arms, seeds and candidates.

    Args:
      by_prompts: whether to use the contrastive loss instead of a head's cross-entropy.
    """

    def __init__(self, encoder: Encoder, classes: tuple[str, ...], recipe: Recipe, by_prompts: bool):
        self.encoder, self.recipe, self.by_prompts = encoder, recipe, by_prompts
        ids, mask = prompt_tokens(encoder, classes)

        def loss(params, key, pixels, labels):
            turn_key, template_key = jax.random.split(key)
            template = jax.random.randint(template_key, (), 0, len(ids))
            pixels = turned(turn_key, pixels)
            if not by_prompts:
                return cross_entropy(_head_logits(encoder, params, pixels), labels)
            images = encoder.encode_images(params, pixels)
            texts = encoder.encode_texts(params, jnp.asarray(ids)[template], jnp.asarray(mask)[template])
            return contrastive_loss(encoder.logits(params, images, texts), labels)

        self._training = Training(loss, recipe)
        self._texts = jax.jit(lambda params: class_embeddings(encoder, params, ids, mask))
        self._head = text_classifier(encoder, classes)
        self._prompt_logits = jax.jit(
            lambda params, texts, pixels: encoder.logits(params, encoder.encode_images(params, pixels), texts)
        )
        self._head_logits = jax.jit(lambda params, pixels: _head_logits(encoder, params, pixels))

    def candidates(self, examples: Examples, seed: int) -> Iterator[Fitted[Logits]]:
        """Each candidate of the grid, trained when it is requested."""
        for candidate in self.recipe.candidates:
            started = time.monotonic()
            params, losses = self.train(examples, candidate, seed)
            yield Fitted(*candidate, self._classifier(params), losses, time.monotonic() - started)

    def train(self, examples: Examples, candidate: tuple[float, float], seed: int) -> tuple[dict[str, Any], np.ndarray]:
        """Trains from the encoder's initial parameters for exactly `recipe.steps` steps.

        Args:
          candidate: learning rate and weight decay.
          seed: determines initial parameters (if not pretrained), order, orientations and templates.
        Returns:
          (parameters after the last step, loss of every step).
        """
        params = self.encoder.initial_params(seed)
        if not self.by_prompts:
            params = {'encoder': params, 'head': self._head(params)}
        index = batches(examples.real, len(examples) - examples.real, self.recipe, seed)
        drawn = ((examples.pixels[chosen], examples.labels[chosen]) for chosen in index)
        return self._training.fit(params, candidate, drawn, seed)

    def _classifier(self, params: dict[str, Any]) -> Logits:
        if not self.by_prompts:
            return lambda pixels: in_batches(lambda part: self._head_logits(params, part), pixels)
        texts = self._texts(params)
        return lambda pixels: in_batches(lambda part: self._prompt_logits(params, texts, part), pixels)


def contrastive_loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The mean of (1) and (2).

    Args:
      logits: (images, classes), s_ic.
      labels: (images, classes), y_ic; each row sums to 1.
    """
    count = labels.sum(0)
    share = labels / jnp.where(count > 0, count, 1)
    per_class = -(share * jax.nn.log_softmax(logits, axis=0)).sum(0)
    return (cross_entropy(logits, labels) + per_class.sum() / (count > 0).sum()) / 2


def turned(key: jax.Array, pixels: jax.Array) -> jax.Array:
    """Each image of (batch, n, n, 3) in a random one of the eight orientations of a square; nadir views have no up."""
    transpose, upside_down, mirror = jax.random.bernoulli(key, shape=(3, len(pixels), 1, 1, 1))
    pixels = jnp.where(transpose, pixels.swapaxes(1, 2), pixels)
    pixels = jnp.where(upside_down, pixels[:, ::-1], pixels)
    return jnp.where(mirror, pixels[:, :, ::-1], pixels)


def _head_logits(encoder: Encoder, params: dict[str, Any], pixels: jax.Array) -> jax.Array:
    head = params['head']
    return encoder.encode_images(params['encoder'], pixels) @ head['weight'] + head['bias']
