"""Trains images to find their captions and captions their images, on the features of a frozen tower: the method `captions`.

What is trained, from nothing, is a line from the features into a common space and a text tower of word vectors
(`rsdiff.downstream.text_training`). So all that is known of words is learnt from the arm's captions, whatever else the encoder has
read; and every arm of a seed has the same words, as it has the same captions. Candidates, and the moment of training that is
kept, are chosen by the mean recall on the validation images.
"""

import functools
import time
from typing import Callable, Iterator

import jax
import numpy as np

from rsdiff.downstream import retrieval, text_training
from rsdiff.downstream.arms import Examples
from rsdiff.downstream.embedded import TEXT_TOWER, Embedded, train_tokenizer
from rsdiff.downstream.encoder import Encoder
from rsdiff.downstream.frozen import text_embeddings
from rsdiff.downstream.heads import Towers
from rsdiff.downstream.task import Images
from rsdiff.downstream.text_training import Captioned
from rsdiff.downstream.tuning import Captions, Fitted, Recipe, batches
from rsdiff.downstream.zero_shot import text_classifier
from rsdiff.models import text_tower

VALIDATIONS = 10

Features = Callable[[np.ndarray], np.ndarray]


class CaptionTuner:
    """Trains a line and a text tower on an arm's captions."""

    def __init__(self, encoder: Encoder, classes: tuple[str, ...], recipe: Recipe, towers: Towers):
        self.encoder, self.classes, self.recipe, self.towers = encoder, classes, recipe, towers

    def fit(self, examples: Examples, validation: Images, seed: int) -> tuple[Fitted, float, float]:
        """The best of the grid, its mean recall on the validation images, and the seconds that training took."""
        found = list(self._candidates(examples, validation, seed))
        # what is no number any more comes after all that is
        best, recall = max(
            found, key=lambda candidate: candidate[1] if np.isfinite(candidate[0].losses).all() else -1.0
        )
        return best, recall, sum(fitted.seconds for fitted, _ in found)

    def _candidates(self, examples: Examples, validation: Images, seed: int) -> Iterator[tuple[Fitted, float]]:
        features = self.towers(seed).features
        training = Captioned(features(examples.pixels)[:, None], examples.captions)
        judged = Captioned(features(validation.pixels)[:, None], validation.captions)
        # each caption once, or arms with more examples would know more words
        tokenizer = train_tokenizer(sorted({words for own in examples.captions for words in own}), least_count=1)
        config = text_tower.Config(tokenizer.get_vocab_size(), features=training.features.shape[2])
        index = batches(examples.real, len(examples) - examples.real, self.recipe, seed)
        for learning_rate, weight_decay in self.recipe.candidates:
            started = time.monotonic()
            recipe = text_training.Recipe(
                self.recipe.steps,
                self.recipe.batch,
                learning_rate,
                weight_decay,
                validate_every=max(1, self.recipe.steps // VALIDATIONS),
            )
            params, rows = text_training.train(
                config, tokenizer, training, judged, recipe, seed, show=False, batches=index
            )
            trained = Embedded('', '', config, tokenizer, {TEXT_TOWER: params}, self.encoder.templates)
            losses, seconds = np.array([row['loss'] for row in rows]), time.monotonic() - started
            logits = functools.partial(_logits, features, trained, self.classes)
            fitted = Fitted(
                learning_rate, weight_decay, logits, losses, seconds, functools.partial(_hits, features, trained)
            )
            yield fitted, max(row['mean_recall'] for row in rows)


def _logits(features: Features, trained: Embedded, classes: tuple[str, ...], pixels: np.ndarray) -> np.ndarray:
    """By prompts."""
    head = text_classifier(trained, classes)(trained.pretrained)
    return _embeddings(features, trained, pixels) @ np.asarray(head['weight']) + np.asarray(head['bias'])


def _hits(features: Features, trained: Embedded, pixels: np.ndarray, captions: Captions) -> dict[str, np.ndarray]:
    texts = text_embeddings(trained, trained.pretrained, [words for own in captions for words in own])
    return retrieval.hits_of_images(_embeddings(features, trained, pixels), texts, captions)


def _embeddings(features: Features, trained: Embedded, pixels: np.ndarray) -> np.ndarray:
    return np.asarray(jax.jit(trained.project)(trained.pretrained, features(pixels)))
