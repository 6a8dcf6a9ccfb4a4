"""Turns low-resolution imagery into high-resolution imagery, 4× a stage.

    a canvas of any size, by sliding windows:
        python sample.py --checkpoint runs/demo --condition IMAGE --gsd_m 118000 --stages 2 --out DIR --tiles
    many small images, a folder with metadata.jsonl out:
        python sample.py --checkpoint runs/demo --condition IMAGE_OR_FOLDER --gsd_m 29685 --out DIR --variants 5
    labelled synthetic images: degrade each training image, regenerate it five times, keep its label:
        python sample.py --checkpoint runs/demo --condition FOLDER --split train --degrade --out DIR --variants 5

Run the same command again to continue. The last line is one JSON object, also written to OUT/sample.json.
"""

import hashlib
import json
from pathlib import Path

import jax
import numpy as np
from absl import flags

from rsdiff import console
from rsdiff.data.folder import Entry, read_folder
from rsdiff.data.images import read_image
from rsdiff.errors import BadInput
from rsdiff.mosaic.cascade import MosaicSettings, sample_mosaic
from rsdiff.mosaic.whole import FolderSettings, sample_folder
from rsdiff.training.checkpoint import Trained, load_generator
from rsdiff.training.mesh import batch_sharding, make_mesh, replicated

FLAGS = flags.FLAGS
flags.DEFINE_string('checkpoint', None, 'A run of train.py, or a folder of released weights.')
flags.DEFINE_string('condition', None, 'An image, or without --tiles a folder of them.')
flags.DEFINE_string('out', None, 'A new folder, or one that this command began to fill.')
flags.DEFINE_float('gsd_m', None, "Metres a pixel of the condition, where its manifest does not say.")
flags.DEFINE_integer('stages', 1, 'How many times to enlarge 4×.')
flags.DEFINE_integer('steps', 20, 'Network evaluations a window.')
flags.DEFINE_integer('seed', 0, 'Names the noise; the same seed gives the same image.')
flags.DEFINE_integer('batch_size', 16, 'Windows or images at a time; changes speed, and nothing but the '
                     'rounding of the result.')
flags.DEFINE_bool('tiles', False, 'Sample one canvas of any size by sliding windows.')
flags.DEFINE_enum('noise', 'shared', ['shared', 'anchored'], 'With --tiles: one noise tile for all windows, or noise '
                  'anchored to the canvas.')
flags.DEFINE_bool('consistency', True, 'Project each predicted image onto the condition at low frequencies.')
flags.DEFINE_integer('variants', 1, 'Without --tiles: images to make of each.')
flags.DEFINE_string('split', None, 'Without --tiles: take only this split of the folder.')
flags.DEFINE_bool('degrade', False, 'Without --tiles: the images are the truth; degrade them first.')


def check_flags() -> None:
    """What can be wrong before anything is read."""
    for name in ('checkpoint', 'condition', 'out'):
        if FLAGS[name].value is None:
            raise BadInput(f'give --{name}')
    for name in ('stages', 'steps', 'batch_size', 'variants'):
        if FLAGS[name].value < 1:
            raise BadInput(f'--{name} is {FLAGS[name].value}; it must be at least 1')
    if FLAGS.gsd_m is not None and not 0 < FLAGS.gsd_m < float('inf'):
        raise BadInput(f'--gsd_m is {FLAGS.gsd_m}; it must be a positive number of metres')
    if FLAGS.tiles and FLAGS.gsd_m is None:
        raise BadInput('--tiles needs --gsd_m, the metres a pixel of the condition')
    for name in ('variants', 'split', 'degrade'):
        if FLAGS.tiles and FLAGS[name].value != FLAGS[name].default:
            raise BadInput(f'--{name} does not go with --tiles')


def entries() -> list[Entry]:
    """The images to sample: a folder's, or one file."""
    path = Path(FLAGS.condition)
    return read_folder(path, FLAGS.split) if path.is_dir() else [Entry(path, path.name)]


def digest(image: np.ndarray) -> str:
    """sha256 of an image's size and pixels, the first 16 digits."""
    return hashlib.sha256(repr(image.shape).encode() + image.tobytes()).hexdigest()[:16]


def sampler(trained: Trained):
    """(condition, noise, gsd_m of the output) → sample, a batch split over all devices."""
    mesh = make_mesh()
    whole, split = replicated(mesh), batch_sharding(mesh)
    params = jax.device_put(trained.params, whole)
    run = jax.jit(lambda params, lr, noise, gsd_m: trained.generator.sample(
        params, lr, gsd_m, noise, FLAGS.steps, FLAGS.consistency),
        in_shardings=(whole, split, split, split), out_shardings=split)
    return lambda lr, noise, gsd_m: run(params, lr, noise, gsd_m)


def main() -> None:
    check_flags()
    console.enable_compilation_cache()
    trained = load_generator(FLAGS.checkpoint)
    if FLAGS.steps > trained.config.generator.schedule.timesteps:
        raise BadInput(f'--steps is {FLAGS.steps}; {FLAGS.checkpoint} has {trained.generator.schedule.timesteps} timesteps')
    sample, out = sampler(trained), Path(FLAGS.out)
    batch_size = -(-FLAGS.batch_size // jax.device_count()) * jax.device_count()
    window_px = trained.config.data.size_px
    provenance = {'checkpoint': trained.digest, 'checkpoint_images_seen': trained.images_seen,
                  'consistency': FLAGS.consistency}
    if FLAGS.tiles:
        condition = read_image(FLAGS.condition)
        settings = MosaicSettings(FLAGS.gsd_m, FLAGS.stages, window_px, FLAGS.steps, FLAGS.seed, FLAGS.noise, batch_size)
        at = lambda gsd_m: lambda lr, noise: sample(lr, noise, np.full(len(lr), gsd_m, np.float32))
        result = sample_mosaic(at, condition, out, settings, provenance | {'condition': digest(condition)})
    else:
        settings = FolderSettings(FLAGS.stages, window_px, FLAGS.steps, FLAGS.gsd_m, FLAGS.variants, FLAGS.degrade,
                                  FLAGS.seed, batch_size)
        result = sample_folder(sample, trained.config.degradation, entries(), out, settings, provenance)
    summary = out / 'sample.json'
    if not result['sampled_now'] and summary.exists():  # the figures of the call that made them
        result = json.loads(summary.read_text())
    console.finish(result | provenance, summary)


if __name__ == '__main__':
    console.run(main)
