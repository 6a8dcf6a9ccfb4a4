"""Does synthetic data help? Fine-tunes a CLIP on real, synthetic, and both kinds of images, and writes the table.

    python tools/downstream.py --real DIR --synthetic DIR --out DIR --encoder tiny --seeds 5 --real_per_class 16

DIR are image folders with `metadata.jsonl`: the real one with `label` and `split`, the synthetic one with `label` and
`source`, the real training image each was made from. The same command continues a stopped run. `--encoder FOLDER`
takes a pretrained CLIP in Hugging Face's layout; `tiny` trains a small one from scratch.
"""

from pathlib import Path

from absl import flags

from rsdiff import console
from rsdiff.downstream.compare import compare
from rsdiff.downstream.encoder import load_encoder, tiny_encoder
from rsdiff.downstream.finetune import Recipe
from rsdiff.downstream.report import markdown, write_report
from rsdiff.downstream.task import load_task
from rsdiff.errors import BadInput

TINY = 'tiny'

REAL = flags.DEFINE_string('real', None, 'Folder of real images with labels and splits.', required=True)
SYNTHETIC = flags.DEFINE_string('synthetic', None, 'Folder of synthetic images with labels.', required=True)
OUT = flags.DEFINE_string('out', None, 'Folder for the cells, the tables and the charts.', required=True)
ENCODER = flags.DEFINE_string('encoder', TINY, f'{TINY!r}, or the folder of a pretrained CLIP.')
IMAGE_SIZE_PX = flags.DEFINE_integer('image_size_px', None, f'Input side of {TINY!r}; 64 if not given.', lower_bound=16)
SEEDS = flags.DEFINE_integer('seeds', 5, 'Runs of each arm.', lower_bound=1)
REAL_PER_CLASS = flags.DEFINE_integer('real_per_class', None, 'Draw this many real images of each class for each '
                                      'seed, and use only the synthetic images made from them.', lower_bound=1)
STEPS = flags.DEFINE_integer('steps', 250, 'Optimiser steps of every arm.', lower_bound=1)
BATCH = flags.DEFINE_integer('batch', 32, 'Images a step.', lower_bound=2)
LEARNING_RATE = flags.DEFINE_float('learning_rate', None, f'Peak; if not given 1e-3 for {TINY!r} and 1e-5 for a '
                                   'pretrained encoder.', lower_bound=0.0)
WEIGHT_DECAY = flags.DEFINE_float('weight_decay', 0.1, 'Of AdamW.', lower_bound=0.0)
REAL_FRACTION = flags.DEFINE_float('real_fraction', 0.5, 'Real share of a batch in the arm with both kinds.',
                                   lower_bound=0.0, upper_bound=1.0)
EVALUATE_ON = flags.DEFINE_enum('evaluate_on', 'test', ['val', 'test'], 'Choose settings on val, report test.')


def main():
    if ENCODER.value == TINY:
        size = 64 if IMAGE_SIZE_PX.value is None else IMAGE_SIZE_PX.value
        encoder, learning_rate = tiny_encoder(size), 1e-3
    else:
        encoder, learning_rate = load_encoder(ENCODER.value), 1e-5
        if IMAGE_SIZE_PX.value not in (None, encoder.image_size_px):
            raise BadInput(f'--image_size_px is {IMAGE_SIZE_PX.value}; {ENCODER.value} takes {encoder.image_size_px}')
    if LEARNING_RATE.value is not None:
        learning_rate = LEARNING_RATE.value
    recipe = Recipe(STEPS.value, BATCH.value, learning_rate, WEIGHT_DECAY.value, REAL_FRACTION.value)

    task = load_task(REAL.value, SYNTHETIC.value, encoder, EVALUATE_ON.value)
    settings, cells = compare(task, encoder, recipe, SEEDS.value, REAL_PER_CLASS.value, OUT.value, EVALUATE_ON.value)
    summary = write_report(OUT.value, settings, cells, task.evaluation.labels, task.dropped, REAL.value, SYNTHETIC.value)
    print(markdown(summary))
    console.finish(summary, Path(OUT.value) / 'summary.json')


if __name__ == '__main__':
    console.run(main)
