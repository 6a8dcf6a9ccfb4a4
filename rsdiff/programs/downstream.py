"""Does synthetic data help? Trains classifiers on real, synthetic and both kinds of images, and on every control, and
writes the table.

    python tools/downstream.py --real DIR --synthetic DIR --out DIR --encoder FOLDER --real_per_class 10 --shots 1,2,4,8,16

DIR are image folders with `metadata.jsonl`: the real one with `label` and `split` (train, val, test), the synthetic one with
`label` and `source`, the real training image each was made from. The same command continues a stopped run. `--encoder`
takes a pretrained CLIP or SigLIP in Hugging Face's layout, or its name on the hub; `embedded`, EfficientNet-lite0 with a text
tower that comes with the project; or `tiny`, which is trained from scratch.
"""

from pathlib import Path
from typing import cast

from absl import flags

from rsdiff.base.errors import BadInput
from rsdiff.base.work import is_local_worker
from rsdiff.downstream import arms, compare, filters, methods, zero_shot
from rsdiff.downstream.embedded import EMBEDDED, named_encoder
from rsdiff.downstream.encoder import Encoder, tiny_encoder
from rsdiff.downstream.report import markdown, write_report
from rsdiff.downstream.task import load_task
from rsdiff.downstream.tuning import Recipe
from rsdiff.programs import console

TINY = 'tiny'
# Few-shot heads take little time and have a grid; whole encoders take long, and their learning rate is customary.
HEADS = {
    methods.LINEAR: Recipe(400, 64, (3e-4, 1e-3, 3e-3, 1e-2), (0.1, 1.0)),
    methods.CLASSIFIER: Recipe(400, 64, (1e-3, 3e-3, 1e-2, 3e-2), (0.1, 1.0)),
    methods.CAPTIONS: Recipe(400, 128, (1e-3, 3e-3)),
}
WHOLE_STEPS, WHOLE_BATCH, PRETRAINED_RATE, SCRATCH_RATE = 250, 32, 1e-5, 1e-3

REAL = flags.DEFINE_string('real', None, 'Folder of real images with labels and splits.', required=True)
SYNTHETIC = flags.DEFINE_string('synthetic', None, 'Folder of synthetic images with labels.', required=True)
OUT = flags.DEFINE_string('out', None, 'Folder for the cells, the tables and the charts.', required=True)
ENCODER = flags.DEFINE_string(
    'encoder', EMBEDDED, f'{TINY!r}, {EMBEDDED!r}, or a folder or hub name of a pretrained one.'
)
IMAGE_SIZE_PX = flags.DEFINE_integer('image_size_px', None, f'Input side of {TINY!r}; 64 if not given.', lower_bound=16)
METHODS = flags.DEFINE_list(
    'methods', None, f'Of {", ".join(methods.METHODS[1:])}; if not given clip for {TINY!r}, else linear and classifier.'
)
ARMS = flags.DEFINE_list('arms', list(arms.KINDS), 'What to train on.')
RATIOS = flags.DEFINE_string(
    'ratios', None, 'Synthetic images for each real one; if not given 1 to 4, as far as they reach.'
)
SEEDS = flags.DEFINE_integer('seeds', 5, 'Runs of each arm.', lower_bound=1)
REAL_PER_CLASS = flags.DEFINE_integer(
    'real_per_class',
    None,
    'Draw this many real images of each class for each seed, and use only the synthetic images made from them.',
    lower_bound=1,
)
SHOTS = flags.DEFINE_string(
    'shots', None, 'More such numbers, for the learning curves of real, real+synthetic and bicubic.'
)
STEPS = flags.DEFINE_integer(
    'steps',
    None,
    f'Optimiser steps of every arm; if not given {HEADS[methods.LINEAR].steps} '
    f'for heads, {WHOLE_STEPS} for whole encoders.',
    lower_bound=1,
)
BATCH = flags.DEFINE_integer(
    'batch',
    None,
    f'Examples a step; if not given {HEADS[methods.LINEAR].batch} for heads, {WHOLE_BATCH} for whole encoders.',
    lower_bound=2,
)
LEARNING_RATES = flags.DEFINE_string(
    'learning_rates',
    None,
    'Peaks to choose from on val, for every method; if not given '
    f'{PRETRAINED_RATE} for whole encoders, {SCRATCH_RATE} from scratch, a grid for heads.',
)
WEIGHT_DECAYS = flags.DEFINE_string('weight_decays', None, 'Of AdamW, to choose from on val.')
REAL_FRACTION = flags.DEFINE_float(
    'real_fraction', 0.5, 'Real share of a batch in the arms with extra images.', lower_bound=0.0, upper_bound=1.0
)
FILTER = flags.DEFINE_enum(
    'filter',
    filters.NONE,
    filters.FILTERS,
    'Keep synthetic images that the encoder believes (cf), or that are most like a real one of their class (rf).',
)
SOFT_TARGETS = flags.DEFINE_bool(
    'soft_targets', False, "Half of a synthetic image's label is what the encoder makes of it."
)
PROMPTS = flags.DEFINE_enum(
    'prompts',
    zero_shot.TEMPLATES,
    zero_shot.PROMPTS,
    'What class names are put into: nothing, the '
    "encoder's own sentences, or many that also tell a state and surroundings.",
)
DROP_DUPLICATES = flags.DEFINE_bool('drop_duplicates', False, 'Go on without images that would leak the test split.')
EVALUATE_ON = flags.DEFINE_enum('evaluate_on', 'test', ['val', 'test'], 'Try things out on val, report test.')
FEATURES = flags.DEFINE_string(
    'features',
    None,
    'Folder that keeps what frozen towers make of images, which several studies may share; OUT/features if not given.',
)
JOBS = flags.DEFINE_integer('jobs', 1, 'Processes that share the cells.', lower_bound=1)


def load(name: str) -> Encoder:
    """The encoder that --encoder names."""
    encoder = tiny_encoder(IMAGE_SIZE_PX.value or 64) if name == TINY else named_encoder(name)
    if IMAGE_SIZE_PX.value not in (None, encoder.image_size_px):
        raise BadInput(f'--image_size_px is {IMAGE_SIZE_PX.value}; {name} takes {encoder.image_size_px}')
    return cast(Encoder, encoder)


def names(flag, value: list[str], known: tuple[str, ...]) -> tuple[str, ...]:
    """The names that a flag lists, if all of them are known."""
    if strange := [name for name in value if name not in known]:
        raise BadInput(f'--{flag.name}: {strange[0]!r} is none of {", ".join(known)}')
    return tuple(value)


def recipe(method: str, is_pretrained: bool) -> Recipe:
    """The method's own, where no flag says otherwise."""
    rate = PRETRAINED_RATE if is_pretrained else SCRATCH_RATE
    own = HEADS.get(method, Recipe(WHOLE_STEPS, WHOLE_BATCH, (rate,)))
    return Recipe(
        STEPS.value or own.steps,
        BATCH.value or own.batch,
        console.flag_numbers('learning_rates', float) or own.learning_rates,
        console.flag_numbers('weight_decays', float) or own.weight_decays,
        REAL_FRACTION.value,
    )


def main() -> None:
    console.enable_compilation_cache()
    encoder = load(ENCODER.value)
    is_pretrained = encoder.pretrained is not None
    chosen = names(
        METHODS,
        METHODS.value or ([methods.LINEAR, methods.CLASSIFIER] if is_pretrained else [methods.CLIP]),
        methods.METHODS[1:],
    )
    recipes = {method: recipe(method, is_pretrained) for method in chosen}
    kinds = names(ARMS, ARMS.value, arms.KINDS)
    shots, ratios = console.flag_numbers('shots', int) or (), console.flag_numbers('ratios', int)

    task = load_task(REAL.value, SYNTHETIC.value, encoder, EVALUATE_ON.value, DROP_DUPLICATES.value)
    ratios = ratios or tuple(range(1, min(4, arms.largest_ratio(task)) + 1))
    study = compare.Study(
        recipes,
        kinds,
        ratios,
        REAL_PER_CLASS.value,
        shots,
        SEEDS.value,
        FILTER.value,
        SOFT_TARGETS.value,
        PROMPTS.value,
        EVALUATE_ON.value,
    )
    settings, cells = compare.compare(task, encoder, study, OUT.value, JOBS.value, FEATURES.value)
    if not is_local_worker():
        summary = write_report(
            OUT.value, settings, cells, task.evaluation.labels, task.dropped, REAL.value, SYNTHETIC.value
        )
        print(markdown(summary))
        console.finish(summary, Path(OUT.value) / 'summary.json')


def run() -> None:
    """The command."""
    console.run(main)


if __name__ == '__main__':
    run()
