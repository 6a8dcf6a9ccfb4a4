"""Image-caption retrieval in both directions, on the features of a frozen tower.

A linear layer from the features into a joint space and a text tower of word vectors are trained from scratch
(`text_training`). All knowledge of words thus comes from the arm's captions, whatever text the encoder was trained on;
and all arms of a seed know the same words, because they have the same captions. Candidates, and the training step whose
parameters are kept, are chosen by the mean recall on the validation images. The text tower also classifies, by its
prompts.
"""

import time
from typing import Any, Callable, Iterator, NamedTuple

import jax
import numpy as np

from rsdiff.base.errors import BadInput
from rsdiff.downstream.arms import Examples
from rsdiff.downstream.embedded import TEXT_TOWER, Embedded, train_tokenizer
from rsdiff.downstream.encoder import Encoder
from rsdiff.downstream.frozen import text_embeddings
from rsdiff.downstream.problems import recall, text_training
from rsdiff.downstream.problems.base import Fitted, choose
from rsdiff.downstream.problems.classification import class_scores
from rsdiff.downstream.problems.heads import Towers
from rsdiff.downstream.problems.text_training import Captioned
from rsdiff.downstream.task import VALIDATION, Images, Task
from rsdiff.downstream.tuning import Recipe, batches
from rsdiff.downstream.zero_shot import text_classifier
from rsdiff.models import text_tower

VALIDATIONS = 10
DECIMALS = 6


class Matcher(NamedTuple):
    """A frozen tower's features of uint8 (n, size, size, 3), a text tower with image projection, their mean recall."""

    features: Callable[[np.ndarray], np.ndarray]
    encoder: Embedded
    mean_recall: float


class Retrieval:
    """A `Problem`."""

    def __init__(self, encoder: Encoder, classes: tuple[str, ...], recipe: Recipe, towers: Towers):
        self.encoder, self.classes, self.recipe, self.towers = encoder, classes, recipe, towers

    def check(self, task: Task) -> None:
        if task.validation is None:
            raise BadInput(
                f'{task.train.folder}: no image has split {VALIDATION!r}, on which captions chooses the parameters to '
                'keep; add a validation split'
            )
        for images in (task.train, task.synthetic, task.validation, task.evaluation):
            for name, captions in zip(images.names, images.captions):
                recall.require_captions(images.folder / name, captions)

    def fit(
        self, examples: Examples, validation: Images | None, seed: int
    ) -> tuple[Fitted[Matcher], float | None, float]:
        if validation is None:
            raise ValueError('captions needs validation images to choose on')
        return choose(self._candidates(examples, validation, seed), _score)

    def _candidates(self, examples: Examples, validation: Images, seed: int) -> Iterator[Fitted[Matcher]]:
        features = self.towers(seed).features
        training = Captioned(features(examples.pixels)[:, None], examples.captions)
        judged = Captioned(features(validation.pixels)[:, None], validation.captions)
        # each caption once: otherwise arms with more examples would know more words
        tokenizer = train_tokenizer(sorted({words for own in examples.captions for words in own}), least_count=1)
        config = text_tower.Config(tokenizer.get_vocab_size(), features=training.features.shape[2])
        index = batches(examples.real, len(examples) - examples.real, self.recipe, seed)
        every = max(1, self.recipe.steps // VALIDATIONS)
        for candidate in self.recipe.candidates:
            started = time.monotonic()
            params, rows = text_training.train(
                config, tokenizer, training, judged, self.recipe, candidate, index, seed, every, show=False
            )
            trained = Embedded('', '', config, tokenizer, {TEXT_TOWER: params}, self.encoder.templates)
            found = Matcher(features, trained, max(row['mean_recall'] for row in rows))
            losses = np.array([row['loss'] for row in rows])
            yield Fitted(*candidate, found, losses, time.monotonic() - started)

    def statistics(self, fitted: Fitted[Matcher], images: Images) -> dict[str, Any]:
        encoder, params = fitted.model.encoder, fitted.model.encoder.pretrained
        embeddings = np.asarray(jax.jit(encoder.project)(params, fitted.model.features(images.pixels)))
        texts = text_embeddings(encoder, params, [words for own in images.captions for words in own])
        hits = recall.hits_of_images(embeddings, texts, images.captions)
        head = jax.device_get(text_classifier(encoder, self.classes)(params))
        return {
            'hits': {direction: np.round(found, DECIMALS).tolist() for direction, found in hits.items()},
            'predictions': (embeddings @ head['weight'] + head['bias']).argmax(1).tolist(),
        }

    def scores(self, statistics: dict[str, Any], images: Images) -> dict[str, Any]:
        """The scores of the classification; recalls are means of `hits`."""
        return class_scores(statistics, images.labels, len(self.classes))


def _score(fitted: Fitted[Matcher]) -> tuple[float]:
    """Non-finite candidates rank last."""
    return (fitted.model.mean_recall if np.isfinite(fitted.losses).all() else -1.0,)
