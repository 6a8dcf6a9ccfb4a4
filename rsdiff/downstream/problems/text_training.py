"""Trains a text tower, and a linear projection of image features into its space, on captioned images.

A step takes B images f_i, each in one of its views, and one caption c_i of each. Captions repeat across images, so c_j
is also correct for image i if it is one of the captions of i:

    p_ij = [c_j is a caption of i] / #{k : c_k is a caption of i},   q_ij the same over i
    loss = mean_i −½ Σ_j p_ij log softmax_j(s_ij)  +  mean_j −½ Σ_i q_ij log softmax_i(s_ij)         (1)

with s the logits. Without repeated captions it is CLIP's loss (Radford et al. 2021); with them it is supervised
contrastive learning (Khosla et al. 2020, arXiv 2004.11362), with captions as labels.

A few thousand captions are quickly overfitted. Two measures limit this: dropout of words and of features (kept features
are scaled by 1 / (1 − p), which preserves the mean), and checkpoint selection: of all validations of a run, the
averaged parameters with the highest mean recall on the validation images are kept (`recall.mean_recall`).
"""

import dataclasses
from typing import Any, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import Tokenizer
from tqdm import tqdm

from rsdiff.base.seeds import seed_key
from rsdiff.downstream.embedded import tokenize
from rsdiff.downstream.problems import recall
from rsdiff.downstream.tuning import Recipe, Training
from rsdiff.models import text_tower

WORD_DROPOUT, FEATURE_DROPOUT = 0.3, 0.5
HALF_LIFE, VALIDATE_EVERY = 100.0, 100
# of AdamW; the other trainings use a larger one
EPS = 1e-8


@dataclasses.dataclass(frozen=True)
class Captioned:
    """Image features (n, views, width), the first view being the unchanged image, and the captions of each image."""

    features: np.ndarray
    captions: Sequence[Sequence[str]]


def train(
    config: text_tower.Config,
    tokenizer: Tokenizer,
    training: Captioned,
    validation: Captioned,
    recipe: Recipe,
    candidate: tuple[float, float],
    batches: np.ndarray,
    seed: int,
    validate_every: int = VALIDATE_EVERY,
    feature_dropout: float = FEATURE_DROPOUT,
    half_life: float = HALF_LIFE,
    show: bool = True,
) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """Trains from random parameters.

    Args:
      config: its vocabulary must be the tokenizer's.
      candidate: learning rate and weight decay.
      batches: int (recipe.steps, batch), the images of each step.
      seed: determines all other random numbers.
      validate_every: steps between validations; the last step is always validated.
      feature_dropout: the share of features that are dropped.
      half_life: half-life, in steps, of the average of parameters.
    Returns:
      (the parameters with the best validation score, for features without standardisation; one row per validation with
      `step`, `loss` and `mean_recall`).
    """
    count, views, width = training.features.shape
    mean = training.features.reshape(-1, width).mean(0, dtype=np.float64)
    deviation = max(training.features.reshape(-1, width).std(0, dtype=np.float64).mean(), 1e-6)  # all may be equal
    texts = list(dict.fromkeys(words for own in training.captions for words in own))
    ids, mask = tokenize(tokenizer, texts, config.length)
    number = {words: index for index, words in enumerate(texts)}
    belongs = np.zeros((count, len(texts)), bool)
    for row, own in zip(belongs, training.captions):
        row[[number[words] for words in own]] = True
    # every image has as many columns as the one with the most captions; those with fewer repeat theirs
    most = max(map(len, training.captions))
    captions = np.stack([np.resize([number[words] for words in own], most) for own in training.captions])
    data = jax.device_put(
        {
            'features': np.float32((training.features - mean) / deviation),
            'ids': ids,
            'mask': mask,
            'captions': captions,
            'belongs': belongs,
        }
    )

    def loss(params, key, data, images):
        view_key, caption_key, word_key, feature_key = jax.random.split(key, 4)
        x = data['features'][images, jax.random.randint(view_key, images.shape, 0, views)]
        kept = jax.random.bernoulli(feature_key, 1 - feature_dropout, x.shape)
        chosen = data['captions'][images, jax.random.randint(caption_key, images.shape, 0, most)]
        words = data['mask'][chosen]
        words = words * jax.random.bernoulli(word_key, 1 - WORD_DROPOUT, words.shape).at[:, 0].set(True)
        seen = text_tower.encode_features(config, params, jnp.where(kept, x, 0) / (1 - feature_dropout))
        read = text_tower.encode_texts(config, params, data['ids'][chosen], words)
        return caption_loss(text_tower.logits(params, seen, read), data['belongs'][images][:, chosen])

    params = jax.jit(text_tower.init_params, static_argnums=0)(config, seed_key(seed))
    judge = _Judge(config, tokenizer, validation)
    best, rows, losses = params, [], []
    with tqdm(total=recipe.steps, unit='step', desc='text tower', disable=not show, dynamic_ncols=True) as bar:

        def watch(number, state, value):
            nonlocal best
            losses.append(value)
            bar.update()
            if number % validate_every == 0 or number == recipe.steps:
                unstandardised = _folded(state.average, mean, deviation)
                rows.append({'step': number, 'loss': float(np.mean(losses)), 'mean_recall': judge(unstandardised)})
                losses.clear()
                if rows[-1]['mean_recall'] >= max(row['mean_recall'] for row in rows):
                    best = unstandardised
                bar.set_postfix(loss=f'{rows[-1]["loss"]:.3f}', val=f'{100 * rows[-1]["mean_recall"]:.1f} %')

        training_loop = Training(loss, recipe, half_life, eps=EPS)
        training_loop.fit(params, candidate, ((data, images) for images in batches), seed, watch)
    return best, rows


def caption_loss(logits: jax.Array, right: jax.Array) -> jax.Array:
    """(1): logits (images, texts), and which text is correct for which image, at least one in every row and column."""
    to_text = (right * jax.nn.log_softmax(logits, axis=1)).sum(1) / right.sum(1)
    to_image = (right * jax.nn.log_softmax(logits, axis=0)).sum(0) / right.sum(0)
    return -(to_text.mean() + to_image.mean()) / 2


class _Judge:
    """Mean recall of parameters on validation images; compiled once."""

    def __init__(self, config: text_tower.Config, tokenizer: Tokenizer, validation: Captioned):
        self.captions, self.features = validation.captions, jnp.asarray(validation.features[:, 0])
        texts = [words for own in self.captions for words in own]
        distinct, self.back = np.unique(texts, return_inverse=True)
        self.tokens = tokenize(tokenizer, distinct.tolist(), config.length)
        self.encode = jax.jit(
            lambda params, features, tokens: (
                text_tower.encode_features(config, params, features),
                text_tower.encode_texts(config, params, *tokens),
            )
        )

    def __call__(self, params: dict[str, Any]) -> float:
        images, texts = map(np.asarray, self.encode(params, self.features, self.tokens))
        return recall.mean_recall(recall.recalls(images, texts[self.back], self.captions))


def _folded(params: dict[str, Any], mean: np.ndarray, deviation: float) -> dict[str, Any]:
    """The same parameters for features without standardisation: V (f − mean) / deviation + c = V' f + c'."""
    line = params['image_projection']
    kernel = np.float64(line['kernel']) / deviation
    return params | {
        'image_projection': {
            'kernel': jnp.asarray(kernel, jnp.float32),
            'bias': jnp.asarray(line['bias'] - mean @ kernel, jnp.float32),
        }
    }
