"""Which synthetic images to keep, and how far to trust their labels: He et al. 2023 (arXiv 2210.07574, section 3).

    CF   CLIP filtering: keep an image if prompts classify it better than chance, p(own class) > 1 / classes     (1)
    RF   real filtering: keep an image if its nearest neighbour among the drawn real images has its class        (2)

    soft targets:  ½ CE(softmax(teacher / 2), student) + ½ CE(label, student)
                   = CE(½ softmax(teacher / 2) + ½ label, student)                                               (3)

since a cross-entropy is linear in its target. A soft target is therefore a label like any other and needs no loss of
its own. The teacher, like the classifier in (1), is the encoder with its prompts, before any training.
"""

from typing import Callable

import jax
import numpy as np

from rsdiff.base.errors import BadInput
from rsdiff.downstream.encoder import Encoder
from rsdiff.downstream.task import Images
from rsdiff.downstream.zero_shot import text_classifier

NONE, CLIP_FILTER, REAL_FILTER = FILTERS = 'none', 'cf', 'rf'
TEACHER_TEMPERATURE = 2.0


class Screen:
    """One filter, with or without soft targets.

    Args:
      features: uint8 (n, size, size, 3) → embeddings of unit length by the encoder's pretrained tower.
    Raises:
      BadInput: the encoder is not pretrained.
    """

    def __init__(
        self,
        encoder: Encoder,
        classes: tuple[str, ...],
        features: Callable[[np.ndarray], np.ndarray],
        kind: str,
        soft_targets: bool,
    ):
        if encoder.pretrained is None:
            raise BadInput(
                f'{encoder.name} is not pretrained and can neither filter images nor soften labels; give --encoder a '
                'pretrained one, or leave out --filter and --soft_targets'
            )
        head = text_classifier(encoder, classes)(encoder.pretrained)
        self.features, self.kind, self.soft_targets = features, kind, soft_targets
        self.teacher = lambda pixels: features(pixels) @ np.asarray(head['weight']) + np.asarray(head['bias'])

    def keep(self, made: Images, real: Images) -> Images:
        """The images that pass (1) or (2)."""
        if self.kind == NONE:
            return made
        if self.kind == CLIP_FILTER:
            p = jax.nn.softmax(self.teacher(made.pixels), axis=1)
            believed = np.asarray(p)[np.arange(len(made)), made.labels] > 1 / p.shape[1]
        else:
            nearest = (self.features(made.pixels) @ self.features(real.pixels).T).argmax(1)
            believed = real.labels[nearest] == made.labels
        return made.take(np.flatnonzero(believed))

    def soften(self, made: Images, labels: np.ndarray) -> np.ndarray:
        """Labels (n, classes) → the soft targets of (3); unchanged without `soft_targets`."""
        if not self.soft_targets:
            return labels
        return (labels + np.asarray(jax.nn.softmax(self.teacher(made.pixels) / TEACHER_TEMPERATURE, axis=1))) / 2
