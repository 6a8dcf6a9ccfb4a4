"""Exports a run's averaged parameters as a small folder that `sample.py --checkpoint` reads.

    python tools/release.py --checkpoint runs/earth --out weights/earth

The folder also gets loss.png, the run's losses over images seen, and samples.png, its latest validation samples: bicubic
condition, sample and truth. training_fingerprints.npz and release.json record the images it was trained on, or that they are
unknown.
"""

import sys
from pathlib import Path

from absl import flags
from matplotlib.figure import Figure

from rsdiff.base.errors import BadInput
from rsdiff.data.fingerprints import FILE, UNKNOWN, TrainedOn, add_fingerprints, known_of
from rsdiff.programs import console
from rsdiff.training.checkpoint import RELEASE, load_generator, release
from rsdiff.training.metrics import read_metrics

CHECKPOINT = flags.DEFINE_string('checkpoint', None, 'A run of train.py.', required=True)
LENGTH = flags.DEFINE_float(
    'length',
    None,
    'Release an average of this length, for a run with ema.lengths: 0.1 is about the last tenth of training.',
)
OUT = flags.DEFINE_string('out', None, 'The folder to write config.json and model.safetensors to.', required=True)


def draw_losses(run: Path) -> Figure:
    """Plots training loss, validation loss, and validation loss by timestep over images seen."""
    rows = read_metrics(run)
    series = lambda name: zip(*[(row['images_seen'], row[name]) for row in rows if row.get(name) is not None])
    figure = Figure(figsize=(9, 3.6), layout='constrained')
    left, right = figure.subplots(1, 2, sharex=True)
    left.plot(*series('loss'), color='#b8b8b8', linewidth=0.8, label='training, by batches')
    left.plot(*series('validation_loss'), color='#2f6f9f', label='validation, averaged parameters')
    images_seen, by_t = series('validation_loss_by_t')
    for number, losses in enumerate(zip(*by_t)):
        shade = 0.85 * number / max(1, len(by_t[0]) - 1)
        right.plot(images_seen, losses, color=(shade, 0.35, 1 - shade), label=f'{number + 1} of {len(by_t[0])}')
    right.legend(
        title='t, small to large',
        frameon=False,
        fontsize=7,
        title_fontsize=7,
        loc='center left',
        bbox_to_anchor=(1, 0.5),
    )
    left.legend(frameon=False, fontsize=8)
    for axes, title in ((left, 'loss'), (right, 'validation loss by timestep')):
        axes.set_title(title, fontsize=9)
        axes.set_ylim(0)
        axes.set_xlabel('images seen')
        axes.spines[['top', 'right']].set_visible(False)
    return figure


def carry_knowledge(run: Path, out: Path) -> str:
    """Adds the training fingerprints of `run` to `out` and returns a description of them. A run without fingerprints counts
    as unknown, even if an earlier release in `out` has some."""
    trained_on = known_of(run)
    if trained_on is None:
        print(
            f'{run} has no {FILE}: the images it was trained on are unknown; record them with tools/fingerprint.py',
            file=sys.stderr,
        )
        if known_of(out) is None:
            return UNKNOWN
        trained_on = TrainedOn(unknown=(f'{run.resolve().name} has no {FILE}',))
    return str(add_fingerprints(out, trained_on))


def main() -> None:
    run, out = Path(CHECKPOINT.value), Path(OUT.value)
    if (out / 'config.json').exists() and not (out / 'release.json').exists():
        raise BadInput(f'{out} holds a config.json that is not of a release; use another --out')
    release(load_generator(run, LENGTH.value), out)
    trained_on = carry_knowledge(run, out)
    released = load_generator(out)
    size = (out / RELEASE).stat().st_size
    if pictures := sorted((run / 'samples').glob('*.png')):
        draw_losses(run).savefig(out / 'loss.png', dpi=110)
        (out / 'samples.png').write_bytes(pictures[-1].read_bytes())
    console.finish(
        {
            'out': str(out),
            'bytes': size,
            'images_seen': released.images_seen,
            'digest': released.digest,
            'length': LENGTH.value,
            'trained_on': trained_on,
        },
        out / 'release.json',
    )


if __name__ == '__main__':
    console.run(main)
