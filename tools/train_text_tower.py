"""Trains the text tower of the embedded encoder on captioned images; minutes on a CPU.

    python tools/train_text_tower.py --images UCM --out OUT
    python tools/train_text_tower.py --images UCM --images RSICD --out OUT

UCM and RSICD are image folders with `captions` and the splits train and val. First the features of their images, in all
eight orientations, are computed and kept in the user's cache by content: this takes longest and may be interrupted. Then the
tower is trained, and the parameters of the step with the best recall on val are kept. Pass OUT as `--encoder`;
OUT/training.json is also the last line of output.
"""

import functools
import time
from pathlib import Path

import numpy as np
from absl import flags

from rsdiff.base import folders
from rsdiff.base.errors import BadInput
from rsdiff.base.files import AnyPath
from rsdiff.base.seeds import short_seed
from rsdiff.data.folder import read_folder
from rsdiff.data.images import read_image
from rsdiff.downstream import embedded
from rsdiff.downstream.frozen import FOLDER
from rsdiff.downstream.problems.recall import captions_of
from rsdiff.downstream.problems.text_training import (
    FEATURE_DROPOUT,
    HALF_LIFE,
    VALIDATE_EVERY,
    WORD_DROPOUT,
    Captioned,
    train,
)
from rsdiff.downstream.tuning import Recipe, epochs
from rsdiff.evaluation.features import features_of
from rsdiff.models import text_tower
from rsdiff.pretrained import weights
from rsdiff.programs import console

IMAGES = flags.DEFINE_multi_string('images', None, 'Folder with captions and splits; may be repeated.', required=True)
OUT = flags.DEFINE_string('out', None, 'Folder for the tower.', required=True)
SEED = flags.DEFINE_integer('seed', 0, 'Random seed.')
VIEWS = flags.DEFINE_integer('views', 8, 'Orientations of every training image.', lower_bound=1, upper_bound=8)
STEPS = flags.DEFINE_integer('steps', 1500, 'Optimiser steps.', lower_bound=1)
BATCH = flags.DEFINE_integer('batch', 256, 'Images per step.', lower_bound=2)
LEARNING_RATE = flags.DEFINE_float('learning_rate', 3e-3, 'Peak learning rate.', lower_bound=0.0)


def main() -> None:
    started, out = time.monotonic(), Path(OUT.value)
    console.enable_compilation_cache()
    if (out / embedded.CONFIG).exists() and not (out / 'training.json').exists():
        raise BadInput(f'{out} holds a {embedded.CONFIG} that is not of a text tower; use another --out')
    training, validation = captioned('train', VIEWS.value), captioned('val', 1)
    tokenizer = embedded.train_tokenizer(words for own in training.captions for words in own)
    config = text_tower.Config(tokenizer.get_vocab_size())
    recipe, images = Recipe(STEPS.value, BATCH.value, (LEARNING_RATE.value,)), len(training.captions)
    (candidate,) = recipe.candidates
    batches = epochs(images, recipe.steps, min(recipe.batch, images), short_seed(SEED.value))
    params, rows = train(config, tokenizer, training, validation, recipe, candidate, batches, SEED.value)
    embedded.save(out, config, params, tokenizer, [Path(folder).resolve().name for folder in IMAGES.value])
    best = max(rows, key=lambda row: (row['mean_recall'], row['step']))
    console.finish(
        {
            'out': str(out),
            'images': {'train': images, 'val': len(validation.captions)},
            'captions': len({words for own in training.captions for words in own}),
            'words': config.vocabulary,
            'parameters': sum(leaf.size for leaf in weights.flatten(params).values()),
            'seed': SEED.value,
            'recipe': {
                'steps': recipe.steps,
                'batch': recipe.batch,
                'learning_rate': candidate[0],
                'weight_decay': candidate[1],
                'word_dropout': WORD_DROPOUT,
                'feature_dropout': FEATURE_DROPOUT,
                'half_life': HALF_LIFE,
                'validate_every': VALIDATE_EVERY,
            },
            'chosen_step': best['step'],
            'val_mean_recall': round(best['mean_recall'], 4),
            'seconds': round(time.monotonic() - started, 1),
            'validations': rows,
        },
        out / 'training.json',
    )


def captioned(split: str, views: int) -> Captioned:
    """The features and captions of one split of all folders."""
    entries = [entry for folder in IMAGES.value for entry in read_folder(folder, split)]
    captions, tower = captions_of(entries), embedded.image_tower()
    images = [functools.partial(oriented, entry.path, view) for entry in entries for view in range(views)]
    features = features_of(tower, images, folders.cache_folder() / FOLDER)
    return Captioned(features.reshape(len(entries), views, tower.width), captions)


def oriented(path: AnyPath, view: int) -> np.ndarray:
    """An image resized for the tower, in one of its eight orientations; 0 leaves it unturned."""
    image = np.rot90(embedded.resize(read_image(path)), view % 4)
    return np.ascontiguousarray(image[:, ::-1] if view >= 4 else image)


if __name__ == '__main__':
    console.run(main)
