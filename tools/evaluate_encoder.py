"""Evaluates an encoder on aerial images: caption retrieval, zero-shot classification by prompts, and linear probe.

    python tools/evaluate_encoder.py --images UCM:test --out OUT                           the embedded encoder
    python tools/evaluate_encoder.py --encoder FOLDER --images UCM:test --out OUT          a text tower like it, or a CLIP
    python tools/evaluate_encoder.py --images EUROSAT:test --tasks zero_shot --out OUT

    retrieval    needs `captions`: R@1, R@5 and R@10 in both directions, with chance level by the same rule
                 (`rsdiff.downstream.problems.recall`)
    zero_shot    needs `label`: accuracy with class names, templates and many sentences (`rsdiff.downstream.zero_shot`)
    probe        needs `label`, and train and val besides the given split: a linear layer on the image tower's features

Without --tasks it runs all tasks that the manifest has the fields for. OUT holds table.md, table.csv and encoder.json, whose
content is also the last line of output. Features are kept in the user's cache.
"""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import scipy.stats
from absl import flags

from rsdiff.base import files
from rsdiff.base.errors import BadInput
from rsdiff.data.folder import Entry, canonical_split, opened_entries, read_folder, split_of
from rsdiff.data.images import read_image
from rsdiff.downstream import zero_shot
from rsdiff.downstream.embedded import EMBEDDED, named_encoder
from rsdiff.downstream.encoder import Encoder
from rsdiff.downstream.frozen import FrozenTower, text_embeddings
from rsdiff.downstream.problems import recall
from rsdiff.evaluation.interval import Interval
from rsdiff.evaluation.probe import linear_probe
from rsdiff.evaluation.tables import csv_text
from rsdiff.programs import console

TASKS = RETRIEVAL, ZERO_SHOT, PROBE = 'retrieval', 'zero_shot', 'probe'
FITTED_ON = 'train', 'val'

IMAGES = flags.DEFINE_string('images', None, 'DIR or DIR:SPLIT.', required=True)
ENCODER = flags.DEFINE_string(
    'encoder', EMBEDDED, f'{EMBEDDED!r}, or the folder of another text tower for it or of a pretrained CLIP.'
)
WANTED = flags.DEFINE_list('tasks', None, f'From {", ".join(TASKS)}; default: all that are possible.')
PROMPTS = flags.DEFINE_list('prompts', list(zero_shot.PROMPTS), 'Sets of prompts for the class names.')
OUT = flags.DEFINE_string('out', None, 'Folder for the tables.', required=True)


def main() -> None:
    console.enable_compilation_cache()
    given, out = IMAGES.value, Path(OUT.value)
    folder, split = split_of(given)
    entries, split = opened_entries(folder, split), canonical_split(split or '')
    tasks = WANTED.value or possible(entries, folder, split)
    if strange := [task for task in tasks if task not in TASKS]:
        raise BadInput(f'--tasks {strange[0]!r}; there are {", ".join(TASKS)}')
    if PROBE in tasks and split in FITTED_ON:
        raise BadInput(f'--tasks {PROBE}: it is fitted on {" and ".join(FITTED_ON)}; give another split than {split}')
    captions = recall.captions_of(entries) if RETRIEVAL in tasks else []
    if {ZERO_SHOT, PROBE} & {*tasks}:
        check_labels(entries)
    encoder = named_encoder(ENCODER.value)
    params = encoder.initial_params(0)
    tower = FrozenTower(encoder, params, show=True)
    pixels = pixels_of(encoder, entries)
    images = tower(pixels)

    rows, found = [], []
    if RETRIEVAL in tasks:
        texts = text_embeddings(encoder, params, [words for own in captions for words in own])
        found = recall.recalls(images, texts, captions)
        rows += [
            {'task': RETRIEVAL, 'name': f'{r.direction}, R@{r.k}, {r.rule}', **r.recall.to_json(), 'chance': r.chance}
            for r in found
        ]
    if ZERO_SHOT in tasks:
        rows += classified(encoder, params, images, [entry.label for entry in entries])
    if PROBE in tasks:
        rows += probed(tower, pixels, entries, folder)
    table = '\n\n'.join(filter(None, [recall.markdown(found) if found else '', accuracies(rows)]))
    print(f'{encoder.name}; {len(entries)} images\n\n{table}')
    files.write_text_atomically(out / 'table.md', table + '\n')
    files.write_text_atomically(out / 'table.csv', csv_text(rows))
    console.finish(
        {'encoder': encoder.name, 'digest': encoder.digest, 'images': len(entries), 'rows': rows}, out / 'encoder.json'
    )


def possible(entries: list[Entry], folder: str, split: str) -> list[str]:
    """The tasks that these images have the fields for.

    Raises:
      BadInput: there are none.
    """
    has_labels = all(entry.label is not None for entry in entries)
    tasks = [RETRIEVAL] * all(entry.captions for entry in entries) + [ZERO_SHOT] * has_labels
    if has_labels and split == 'test' and {*FITTED_ON} <= {entry.split for entry in read_folder(folder)}:
        tasks.append(PROBE)
    if not tasks:
        raise BadInput(
            f'{IMAGES.value}: no task is possible: it needs captions for every image, or a label for every image'
        )
    return tasks


def check_labels(entries: list[Entry]) -> None:
    if unlabelled := next((entry for entry in entries if entry.label is None), None):
        raise BadInput(f'{unlabelled.path}: no label in the manifest; {ZERO_SHOT} and {PROBE} need one for each image')


def pixels_of(encoder: Encoder, entries: list[Entry]) -> np.ndarray:
    """The images resized for the encoder, uint8 (n, size, size, 3)."""
    return np.stack([encoder.resize(read_image(entry.path)) for entry in entries])


def classified(encoder: Encoder, params: dict[str, Any], images: np.ndarray, labels: list[str]) -> list[dict[str, Any]]:
    """Accuracy with each set of prompts."""
    classes, rows = sorted({*labels}), []
    zero_shot.warn_of_names_read_alike(encoder, classes)
    for prompts in PROMPTS.value:
        tokens = zero_shot.prompt_tokens(encoder, classes, prompts)
        texts = jax.jit(lambda params, tokens: zero_shot.class_embeddings(encoder, params, *tokens))(params, tokens)
        right = np.array(classes)[(images @ np.asarray(texts).T).argmax(1)] == np.array(labels)
        rows.append(
            {'task': ZERO_SHOT, 'name': f'{prompts} ({len(tokens[0])})', **share(right), 'chance': 1 / len(classes)}
        )
    return rows


def probed(tower: FrozenTower, pixels: np.ndarray, entries: list[Entry], folder: str) -> list[dict[str, Any]]:
    """Accuracy of a linear probe, fitted on train and val of the same folder."""
    parts = {split: read_folder(folder, split) for split in FITTED_ON}
    for part in parts.values():
        check_labels(part)
    x, y = zip(
        *((tower.features(pixels_of(tower.encoder, part)), [entry.label for entry in part]) for part in parts.values())
    )
    probe = linear_probe(x[0], y[0], x[1], y[1])
    images = tower.features(pixels)
    right = probe.predict(images) == np.array([entry.label for entry in entries])
    return [{'task': PROBE, 'name': f'features ({images.shape[1]})', **share(right), 'chance': 1 / len(probe.classes)}]


def share(right: np.ndarray) -> dict[str, float]:
    """Accuracy with Wilson's 95 % interval."""
    interval = scipy.stats.binomtest(int(right.sum()), len(right)).proportion_ci(method='wilson')
    return Interval(float(right.mean()), interval.low, interval.high).to_json()


def accuracies(rows: list[dict[str, Any]]) -> str:
    """All rows except retrieval, as a Markdown table."""
    lines = [
        f'| {row["task"]} | {row["name"]} | {100 * row["value"]:.1f} ({100 * row["low"]:.1f} to {100 * row["high"]:.1f}) | '
        f'{100 * row["chance"]:.2f} |'
        for row in rows
        if row['task'] != RETRIEVAL
    ]
    return '\n'.join(['| task | by | accuracy, % | chance |', '|---|---|---:|---:|', *lines]) if lines else ''


if __name__ == '__main__':
    console.run(main)
