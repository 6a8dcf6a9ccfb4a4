"""Training methods by name: what each one trains, and the problem that it is fitted to."""

from rsdiff.downstream.encoder import Encoder
from rsdiff.downstream.problems.base import Problem
from rsdiff.downstream.problems.classification import Classification
from rsdiff.downstream.problems.finetune import WholeTuner
from rsdiff.downstream.problems.heads import HeadTuner, Towers, Untrained
from rsdiff.downstream.problems.retrieval import Retrieval
from rsdiff.downstream.tuning import Recipe

ZERO_SHOT, LINEAR, CLASSIFIER, CLIP, CROSS_ENTROPY, CAPTIONS = METHODS = (
    'zero_shot',
    'linear',
    'classifier',
    'clip',
    'cross_entropy',
    'captions',
)
PURPOSES = {
    ZERO_SHOT: 'the encoder and its prompts, untrained',
    LINEAR: 'a linear classifier on frozen features',
    CLASSIFIER: 'a linear classifier on frozen embeddings, initialised from the prompts (He et al. 2023)',
    CLIP: 'the whole encoder, by its contrastive loss; classifies by its prompts',
    CROSS_ENTROPY: 'the image tower and a linear classifier, by cross-entropy',
    CAPTIONS: 'a text tower, and a linear layer from frozen features to it, on captions; classifies by its prompts',
}
FROZEN = LINEAR, CLASSIFIER, CAPTIONS


def untrained(encoder: Encoder, classes: tuple[str, ...], towers: Towers) -> Problem:
    """The problem of `zero_shot`."""
    return Classification(classes, Untrained(encoder, classes, towers).candidates)


def trained(method: str, encoder: Encoder, classes: tuple[str, ...], recipe: Recipe, towers: Towers) -> Problem:
    """The problem of any other method."""
    if method == CAPTIONS:
        return Retrieval(encoder, classes, recipe, towers)
    if method in (LINEAR, CLASSIFIER):
        tuner = HeadTuner(encoder, classes, recipe, towers, from_text=method == CLASSIFIER)
    elif method in (CLIP, CROSS_ENTROPY):
        tuner = WholeTuner(encoder, classes, recipe, by_prompts=method == CLIP)
    else:
        raise ValueError(f'method {method!r}; there are {", ".join(METHODS)}')
    return Classification(classes, tuner.candidates)
