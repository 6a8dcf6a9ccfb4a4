"""Does synthetic data help super-resolution? Trains networks that enlarge four times on real images, synthetic images, both, and
every control, and writes the table.

    python tools/downstream_super_resolution.py --real DIR --synthetic DIR --out DIR --real_per_class 10

The folders are those of `tools/downstream.py`: the real one needs `label` and `split` (train, test), the synthetic one `label` and
`source`. All images are cut to one size; low resolutions are made by --degradation. The arms are described in
`rsdiff/downstream/problems/super_resolution.py`. OUT gets table.md, table.csv, report.json and grid.png. Run the same command again to
continue; the last line is one JSON object, also written to OUT/summary.json.
"""

from pathlib import Path

from absl import flags

from rsdiff.base.errors import BadInput
from rsdiff.base.work import is_local_worker
from rsdiff.data.degradation import PRESETS
from rsdiff.downstream import arms, enlarging
from rsdiff.downstream.problems.super_resolution import KINDS, Enlarger, FullSize
from rsdiff.downstream.task import load_task
from rsdiff.downstream.tuning import Recipe
from rsdiff.programs import console

REAL = flags.DEFINE_string('real', None, 'Folder of real images with labels and splits.', required=True)
SYNTHETIC = flags.DEFINE_string('synthetic', None, 'Folder of synthetic images with labels.', required=True)
OUT = flags.DEFINE_string('out', None, 'Output folder: new, or from an earlier run of this command.', required=True)
IMAGE_SIZE_PX = flags.DEFINE_integer('image_size_px', 256, 'Images are cut to squares of this side.', lower_bound=32)
DEGRADATION = flags.DEFINE_enum('degradation', 'mild', sorted(PRESETS), 'How low resolutions are made.')
ARMS = flags.DEFINE_list('arms', list(KINDS), 'Training sets to compare.')
RATIOS = flags.DEFINE_string(
    'ratios', None, 'Synthetic images per real image, such as 1,2; default: 1 to 4, as far as there are enough.'
)
SEEDS = flags.DEFINE_integer(
    'seeds', 3, 'Runs per arm, each with its own seed; more may be added later.', lower_bound=1
)
REAL_PER_CLASS = flags.DEFINE_integer(
    'real_per_class', None, 'Real images per class that each seed draws; default: all.', lower_bound=1
)
STEPS = flags.DEFINE_integer('steps', 2000, 'Optimiser steps of every arm.', lower_bound=1)
BATCH = flags.DEFINE_integer('batch', 16, 'Crops per step.', lower_bound=2)
CROP_PX = flags.DEFINE_integer('crop_px', 64, 'Side of the training crops.', lower_bound=16)
LEARNING_RATE = flags.DEFINE_float('learning_rate', 5e-4, 'Peak learning rate.', lower_bound=1e-8)
FEATURES, GROWTH, BLOCKS = (
    flags.DEFINE_integer(name, value, f'{name} of the RRDBNet.', lower_bound=1)
    for name, value in (('features', 32), ('growth', 16), ('blocks', 2))
)
DROP_DUPLICATES = flags.DEFINE_bool(
    'drop_duplicates', False, 'Leave out images that would leak the test split, instead of stopping.'
)
EVALUATE_ON = flags.DEFINE_enum(
    'evaluate_on', 'test', ['val', 'test'], 'Split to evaluate on: val to experiment, test to report.'
)
JOBS = flags.DEFINE_integer('jobs', 1, 'Processes that share the runs.', lower_bound=1)


def main() -> None:
    console.enable_compilation_cache()
    if strange := [name for name in ARMS.value if name not in KINDS]:
        raise BadInput(f'--arms: {strange[0]!r} is none of {", ".join(KINDS)}')
    enlarger = Enlarger(FEATURES.value, GROWTH.value, BLOCKS.value, CROP_PX.value)
    if CROP_PX.value > IMAGE_SIZE_PX.value:
        raise BadInput(f'--crop_px is {CROP_PX.value}; images have {IMAGE_SIZE_PX.value}')
    task = load_task(
        REAL.value, SYNTHETIC.value, FullSize(IMAGE_SIZE_PX.value), EVALUATE_ON.value, DROP_DUPLICATES.value
    )
    ratios = console.flag_numbers('ratios', int) or tuple(range(1, min(4, arms.largest_ratio(task)) + 1))
    study = enlarging.Study(
        enlarger,
        Recipe(STEPS.value, BATCH.value, (LEARNING_RATE.value,)),
        DEGRADATION.value,
        tuple(ARMS.value),
        ratios,
        REAL_PER_CLASS.value,
        SEEDS.value,
    )
    out = Path(OUT.value)
    cells = enlarging.compare(task, study, out, JOBS.value)
    if not is_local_worker():
        summary = enlarging.write_report(task, study, cells, out)
        print(enlarging.table(summary))
        console.finish(summary | {'out': str(out)}, out / 'summary.json')


def run() -> None:
    """The command."""
    console.run(main)


if __name__ == '__main__':
    run()
