"""Trains every arm with every seed and keeps each result: a stopped comparison goes on where it was.

    out/settings.json                    what all cells share; it may not change within one folder
    out/cells/<arm>_seed<n>.json         one finished (arm, seed)

Arms differ in their images alone. Initial parameters, number of steps, batch size, augmentation and schedule are the
same, and the score is computed once, after the last step: nothing is selected on the images it is computed on.
"""

import dataclasses
import hashlib
import json
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from rsdiff.console import claim_folder, write_text_atomically
from rsdiff.downstream import scores
from rsdiff.downstream.encoder import Encoder
from rsdiff.downstream.finetune import Recipe, Trainer
from rsdiff.downstream.task import ARMS, Task, training_images
from rsdiff.downstream.zero_shot import ZeroShot
from rsdiff.errors import BadInput

UNTRAINED = 'untrained'


def compare(task: Task, encoder: Encoder, recipe: Recipe, seeds: int, real_per_class: int | None, out: Path | str,
            evaluate_on: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Runs the cells that are not there yet.

    Args:
      seeds: number of seeds, from 0; may grow from one call to the next.
      real_per_class: see `training_images`.
      evaluate_on: the split that `task.evaluation` is; it is written down.
    Returns:
      (settings, cells). Each cell has `arm`, `seed`, `steps`, `real_images`, `synthetic_images`, `accuracy`,
      `macro_f1`, `confusion` (true × predicted), `final_loss` and `seconds`; the arm 'untrained' is the encoder
      before any step.
    Raises:
      BadInput: `out` holds a comparison with other settings or other images; or as `training_images`.
    """
    out = Path(out)
    settings = {
        'encoder': encoder.name, 'encoder_digest': encoder.digest, 'image_size_px': encoder.image_size_px,
        'classes': list(task.classes), 'real_per_class': real_per_class, 'evaluate_on': evaluate_on,
        'real_images': task.train.digest(), 'synthetic_images': task.synthetic.digest(),
        'evaluation_images': task.evaluation.digest(), **dataclasses.asdict(recipe)}
    wanted = [(arm, seed) for seed in range(seeds) for arm in (UNTRAINED, *ARMS)]
    for arm, seed in wanted:
        if arm != UNTRAINED:
            training_images(task, arm, real_per_class, seed)  # raises now what would otherwise stop cell 14 of 15
    claim_folder(out, settings)
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()

    trainer = Trainer(encoder, task.classes, recipe)
    classifier = ZeroShot(encoder, task.classes)
    cells = []
    for arm, seed in tqdm(wanted, desc='downstream', unit='cell'):
        path = out / 'cells' / f'{arm}_seed{seed}.json'
        cell = _read_cell(path, digest)
        if cell is None:
            cell = {'digest': digest} | _run_cell(task, encoder, trainer, classifier, arm, seed, real_per_class)
            write_text_atomically(path, json.dumps(cell) + '\n')
        cells.append(cell)
    return settings, cells


def _run_cell(task: Task, encoder: Encoder, trainer: Trainer, classifier: ZeroShot, arm: str, seed: int,
              real_per_class: int | None) -> dict[str, Any]:
    started = time.monotonic()
    counts, losses = (0, 0), []
    if arm == UNTRAINED:
        params = encoder.initial_params(seed)
    else:
        images = training_images(task, arm, real_per_class, seed)
        params, losses = trainer.train(*images, seed)
        counts = tuple(map(len, images))
    predictions = classifier.predict(params, task.evaluation.pixels)
    confusion = scores.confusion_matrix(task.evaluation.labels, predictions, len(task.classes))
    return {'arm': arm, 'seed': seed, 'steps': len(losses), 'real_images': counts[0], 'synthetic_images': counts[1],
            'accuracy': scores.accuracy(confusion), 'macro_f1': scores.macro_f1(confusion),
            'confusion': confusion.tolist(), 'final_loss': losses[-1] if losses else None,
            'seconds': round(time.monotonic() - started, 2)}


def _read_cell(path: Path, digest: str) -> dict[str, Any] | None:
    if not path.exists():
        return None
    cell = _read_json(path)
    if cell.get('digest') != digest:
        raise BadInput(f'{path}: belongs to a comparison with other settings; remove it')
    return cell


def _read_json(path: Path) -> dict[str, Any]:
    try:
        row = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise BadInput(f'{path}: not JSON ({error.msg}); remove it') from None
    if not isinstance(row, dict):
        raise BadInput(f'{path}: not an object; remove it')
    return row
