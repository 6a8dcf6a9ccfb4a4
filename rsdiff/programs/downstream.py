"""Does synthetic data help? Trains classifiers on real images, synthetic images, both, and every control, and writes the
table.

    python tools/downstream.py --real DIR --synthetic DIR --out DIR --encoder FOLDER --real_per_class 10 --shots 1,2,4,8,16

Each DIR is an image folder with `metadata.jsonl`: the real one needs `label` and `split` (train, val, test), the synthetic
one `label` and `source`, the real training image that each was made from. Run the same command again to continue a stopped
run. `--encoder` takes the folder of a pretrained CLIP or SigLIP in Hugging Face format, or its name on the hub; `embedded`,
EfficientNet-lite0 with a text tower that ships with the project; or `tiny`, which is trained from scratch.
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
# Heads train fast, so their learning rates form a grid. Full encoders train slowly, at one customary learning rate.
HEADS = {
    methods.LINEAR: Recipe(400, 64, (3e-4, 1e-3, 3e-3, 1e-2), (0.1, 1.0)),
    methods.CLASSIFIER: Recipe(400, 64, (1e-3, 3e-3, 1e-2, 3e-2), (0.1, 1.0)),
    methods.CAPTIONS: Recipe(400, 128, (1e-3, 3e-3)),
}
WHOLE_STEPS, WHOLE_BATCH, PRETRAINED_RATE, SCRATCH_RATE = 250, 32, 1e-5, 1e-3

REAL = flags.DEFINE_string('real', None, 'Folder of real images with labels and splits.', required=True)
SYNTHETIC = flags.DEFINE_string('synthetic', None, 'Folder of synthetic images with labels.', required=True)
OUT = flags.DEFINE_string('out', None, 'Output folder for the results of each run, tables and charts.', required=True)
ENCODER = flags.DEFINE_string(
    'encoder', EMBEDDED, f'{TINY!r}, {EMBEDDED!r}, or the folder or hub name of a pretrained encoder.'
)
IMAGE_SIZE_PX = flags.DEFINE_integer('image_size_px', None, f'Input side of {TINY!r}; default: 64.', lower_bound=16)
METHODS = flags.DEFINE_list(
    'methods', None, f'From {", ".join(methods.METHODS[1:])}; default: clip for {TINY!r}, else linear and classifier.'
)
ARMS = flags.DEFINE_list('arms', list(arms.KINDS), 'Training sets to compare.')
RATIOS = flags.DEFINE_string(
    'ratios', None, 'Synthetic images per real image, such as 1,2; default: 1 to 4, as far as there are enough.'
)
SEEDS = flags.DEFINE_integer('seeds', 5, 'Runs per arm, each with its own seed.', lower_bound=1)
REAL_PER_CLASS = flags.DEFINE_integer(
    'real_per_class',
    None,
    'For each seed, draw this many real images per class, and use only the synthetic images made from them.',
    lower_bound=1,
)
SHOTS = flags.DEFINE_string(
    'shots', None, 'Further values of --real_per_class, for learning curves of real, real+synthetic and bicubic.'
)
STEPS = flags.DEFINE_integer(
    'steps',
    None,
    f'Optimiser steps of every arm; default: {HEADS[methods.LINEAR].steps} for heads, {WHOLE_STEPS} for full encoders.',
    lower_bound=1,
)
BATCH = flags.DEFINE_integer(
    'batch',
    None,
    f'Examples per step; default: {HEADS[methods.LINEAR].batch} for heads, {WHOLE_BATCH} for full encoders.',
    lower_bound=2,
)
LEARNING_RATES = flags.DEFINE_string(
    'learning_rates',
    None,
    'Peak learning rates to choose from on val, for every method; default: '
    f'{PRETRAINED_RATE} for full pretrained encoders, {SCRATCH_RATE} from scratch, a grid for heads.',
)
WEIGHT_DECAYS = flags.DEFINE_string('weight_decays', None, 'Weight decays of AdamW to choose from on val.')
REAL_FRACTION = flags.DEFINE_float(
    'real_fraction', 0.5, 'Share of real images per batch, in arms with extra images.', lower_bound=0.0, upper_bound=1.0
)
FILTER = flags.DEFINE_enum(
    'filter',
    filters.NONE,
    filters.FILTERS,
    'Keep synthetic images to whose class the encoder gives a probability above chance (cf), '
    'or whose most similar real image has the same class (rf).',
)
SOFT_TARGETS = flags.DEFINE_bool(
    'soft_targets', False, "Average each synthetic image's label with the encoder's prediction."
)
PROMPTS = flags.DEFINE_enum(
    'prompts',
    zero_shot.TEMPLATES,
    zero_shot.PROMPTS,
    'Prompts for the classes: the bare name, the '
    "encoder's own templates, or many templates that also add a state and surroundings.",
)
DROP_DUPLICATES = flags.DEFINE_bool(
    'drop_duplicates', False, 'Leave out images that would leak the test split, instead of stopping.'
)
EVALUATE_ON = flags.DEFINE_enum(
    'evaluate_on', 'test', ['val', 'test'], 'Split to evaluate on: val to experiment, test to report.'
)
FEATURES = flags.DEFINE_string(
    'features',
    None,
    'Cache folder for image features of frozen towers, which several studies may share; default: OUT/features.',
)
JOBS = flags.DEFINE_integer('jobs', 1, 'Processes that share the runs.', lower_bound=1)


def load(name: str) -> Encoder:
    """The encoder that --encoder names."""
    encoder = tiny_encoder(IMAGE_SIZE_PX.value or 64) if name == TINY else named_encoder(name)
    if IMAGE_SIZE_PX.value not in (None, encoder.image_size_px):
        raise BadInput(f'--image_size_px is {IMAGE_SIZE_PX.value}; {name} takes {encoder.image_size_px}')
    return cast(Encoder, encoder)


def names(flag, value: list[str], known: tuple[str, ...]) -> tuple[str, ...]:
    """The names that a flag lists; each must be in `known`."""
    if strange := [name for name in value if name not in known]:
        raise BadInput(f'--{flag.name}: {strange[0]!r} is none of {", ".join(known)}')
    return tuple(value)


def recipe(method: str, is_pretrained: bool) -> Recipe:
    """The method's default recipe, with the values given as flags."""
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
