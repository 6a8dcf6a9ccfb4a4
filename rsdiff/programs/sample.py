"""Turns low-resolution imagery into high-resolution imagery, 4× per stage.

    a canvas of any size, by sliding windows:
        python sample.py --checkpoint earth --condition IMAGE --gsd_m 118000 --stages 2 --out DIR --tiles
        … --dry_run reports the cost; --format tif,viewer exports; --workers 4 shares the work among processes, and running
        the same command on other machines too shares it with them
    many small images, into a folder with metadata.jsonl (FOLDER may also be one image):
        python sample.py --checkpoint runs/demo --condition FOLDER --gsd_m 29685 --out DIR --variants 5
    labelled synthetic images: degrade each training image, regenerate it five times, keep its label:
        python sample.py --checkpoint runs/demo --condition FOLDER --split train --degrade --out DIR --variants 5

Run the same command again to continue. The last line is one JSON object, also written to OUT/sample.json.
"""

import json
import os
import typing
from pathlib import Path
from typing import Iterable

import numpy as np
from absl import flags

from rsdiff.base.errors import BadInput
from rsdiff.base.files import is_local, read_json
from rsdiff.base.shipped import find_checkpoint
from rsdiff.base.work import is_local_worker
from rsdiff.data.fingerprints import carry_fingerprints
from rsdiff.data.folder import Entry, opened_entries
from rsdiff.data.gsd import check_gsd_m
from rsdiff.data.layout import IMAGE_SUFFIXES
from rsdiff.diffusion import noise
from rsdiff.diffusion.solvers import Solver
from rsdiff.methods.base import Method, fields_to_read
from rsdiff.methods.sampling import first_timestep
from rsdiff.models.conditioning import Spatial, Tokens
from rsdiff.programs import console
from rsdiff.programs.console import flag_numbers
from rsdiff.sampling.binding import bind_images, bind_windows, check_condition, make_projection, make_wavelet, steps_of
from rsdiff.sampling.images import Constants, FolderSettings, sample_folder
from rsdiff.sampling.mosaic.cascade import MOST_STAGES, MosaicSettings, estimate, sample_mosaic, save_region
from rsdiff.sampling.mosaic.condition import Condition, open_field
from rsdiff.sampling.mosaic.plan import PlanName, make_plan
from rsdiff.training.checkpoint import Trained, load_generator
from rsdiff.training.mesh import make_mesh

FLAGS = flags.FLAGS
flags.DEFINE_string('checkpoint', None, 'A run of train.py or released weights: a folder, earth or aerial.')
flags.DEFINE_string('condition', None, 'A low-resolution image (any size with --tiles), or without --tiles a folder.')
flags.DEFINE_multi_string(
    'field',
    [],
    'NAME=VALUE of a further field of the network, for all images whose row in the manifest lacks it: a number, an image, '
    'or for a stack of images a folder or several files separated by commas; may be repeated.',
)
flags.DEFINE_string('out', None, 'Output folder: new, or from an earlier run of this command.')
flags.DEFINE_float('gsd_m', None, 'Metres per pixel of the condition, if its file or manifest does not give it.')
flags.DEFINE_integer('stages', 1, 'How many times to enlarge 4×.')
flags.DEFINE_integer(
    'steps', None, "Network evaluations per window; default: the plan's; without --tiles the checkpoint's."
)
flags.DEFINE_enum(
    'solver',
    None,
    typing.get_args(Solver),
    "Default: the plan's; without --tiles the checkpoint's. dpm++2m needs half the steps of ddim or fewer; ancestral adds "
    'noise at every step.',
)
flags.DEFINE_integer('seed', 0, 'Random seed; the same seed gives the same image.')
flags.DEFINE_integer('batch_size', 16, 'Windows or images per batch. No effect with --tiles on a CPU.')
flags.DEFINE_bool('consistency', True, 'Keep the image consistent with the condition at low frequencies.')
flags.DEFINE_enum(
    'consistency_by',
    'projection',
    ['projection', 'wavelet'],
    "projection: project every predicted image onto the condition; wavelet: StableSR's colour correction of the result.",
)
flags.DEFINE_enum('consistency_scale', '4', ['4', '8', '16'], 'Block size of the projection in pixels.')
flags.DEFINE_float('consistency_strength', 1.0, 'Weight of the projection, 0 to 1.')
flags.DEFINE_integer('consistency_end', None, 'Step from which on the projection is left out; default: never.')
flags.DEFINE_bool('tiles', False, 'Sample one canvas of any size by sliding windows.')
TILED = 'plan phases overlap noise wrap_x supertile region dry_run workers format'.split()
flags.DEFINE_enum('plan', 'fast', typing.get_args(PlanName), 'With --tiles: see rsdiff/sampling/mosaic/plan.py.')
flags.DEFINE_integer('phases', None, 'With --tiles: number of phases, for the plans fast, infinite and few.')
flags.DEFINE_integer('overlap', None, 'With --tiles: window overlap in pixels, for the plans fast and few.')
flags.DEFINE_enum('noise', 'anchored', typing.get_args(noise.Kind), 'With --tiles: see rsdiff/diffusion/noise.py.')
flags.DEFINE_bool('wrap_x', False, 'With --tiles: join the left and right edges, as at the dateline.')
flags.DEFINE_integer(
    'supertile', None, 'With --tiles: side in pixels of a supertile, the unit of work; default: 16 windows.'
)
flags.DEFINE_string(
    'region', None, 'With --tiles: y,x,height,width in pixels of the result; sample only this, into a PNG.'
)
flags.DEFINE_bool('dry_run', False, 'With --tiles: report size, cost and time, and sample nothing.')
flags.DEFINE_integer('workers', 1, 'With --tiles: number of processes, on machines without accelerators.')
flags.DEFINE_string('bands', None, 'GeoTIFF bands for red, green and blue, such as 4,3,2.')
flags.DEFINE_string('value_range', None, 'GeoTIFF values for black and white, such as 0,3000.')
flags.DEFINE_list('format', None, 'With --tiles: from zarr (always), png, tif, viewer; default: png if small enough.')
FOLDERS = 'variants', 'split', 'degrade', 'strength'
flags.DEFINE_integer('variants', 1, 'Without --tiles: images to sample per input image.')
flags.DEFINE_string('split', None, 'Without --tiles: use only this split of the folder.')
flags.DEFINE_bool('degrade', False, 'Without --tiles: the images are the truth; degrade them to conditions first.')
flags.DEFINE_float(
    'strength', 1.0, 'With --degrade: below 1, start from the real image, noised to this share of the timesteps.'
)


def check_flags() -> None:
    """Checks the flags before anything is read. Raises BadInput."""
    for name in ('checkpoint', 'condition', 'out'):
        if FLAGS[name].value is None:
            raise BadInput(f'give --{name}')
    for name in ('stages', 'steps', 'batch_size', 'variants', 'workers', 'supertile', 'consistency_end'):
        value = FLAGS[name].value
        if value is not None and value < 1:
            raise BadInput(f'--{name} is {value}; it must be at least 1')
    if FLAGS.stages > MOST_STAGES:
        raise BadInput(f'--stages is {FLAGS.stages}; it must be at most {MOST_STAGES}')
    if FLAGS.gsd_m is not None:
        check_gsd_m(FLAGS.gsd_m, '--gsd_m')
    if not is_local(FLAGS.out):
        raise BadInput(f'--out is {FLAGS.out}; it must be a folder on this machine')
    if not 0 <= FLAGS.consistency_strength <= 1:
        raise BadInput(f'--consistency_strength is {FLAGS.consistency_strength}; it must be from 0 to 1')
    if FLAGS.region and FLAGS.format:
        raise BadInput('--format does not go with --region, which always writes a PNG')
    for name in FOLDERS if FLAGS.tiles else TILED:
        if FLAGS[name].value != FLAGS[name].default:
            raise BadInput(f'--{name} does not go with --tiles' if FLAGS.tiles else f'--{name} needs --tiles')


def projection(trained: Trained, steps: int):
    """The `Projection` or `Wavelet` that the flags ask for, or None."""
    start = first_timestep(trained.method, FLAGS.strength)
    numbers = int(FLAGS.consistency_scale), FLAGS.consistency_strength, FLAGS.consistency_end
    made = make_projection(trained.method, steps, *numbers, start)
    if FLAGS.consistency_by == 'wavelet':
        made = make_wavelet(trained.method, steps, start)
    return made if FLAGS.consistency else None


def fields(method: Method, rows: Iterable[str] = ()) -> tuple[dict[str, np.ndarray], dict[str, list[Path]]]:
    """The values of --field by name: numbers, float32 (1,), and the files of images. `rows`: the fields that the rows of a
    manifest may have."""
    numbers, images = {}, {}
    for given in FLAGS.field:
        name, equals, value = given.partition('=')
        if not equals or not value:
            raise BadInput(f'--field {given}: give NAME=VALUE')
        if name in ('lr', 'gsd_m') or name in {*numbers, *images}:
            raise BadInput(f'--field {name} is given twice; lr is --condition, and gsd_m is --gsd_m')
        field = method.fields.get(name)
        if isinstance(field, Tokens):
            raise BadInput(f'--field {name}: this checkpoint takes tokens, which no flag can give')
        if isinstance(field, Spatial):
            images[name] = files_of(name, value) if field.frames > 1 else [Path(value)]
            if missing := [path for path in images[name] if not path.is_file()]:
                raise BadInput(f'--field {name}: {missing[0]}: no such file')
            continue
        try:
            numbers[name] = np.array([float(value)], np.float32)
        except ValueError:
            raise BadInput(f'--field {given}: {name} takes a number') from None
        if not np.isfinite(numbers[name]).all():
            raise BadInput(f'--field {given}: {name} takes a finite number')
    check_condition(method, ['lr', 'gsd_m', *numbers, *images, *rows])
    return numbers, images


def files_of(name: str, value: str) -> list[Path]:
    """The files of a stack that --field names: the images of a folder, by name, or several files separated by commas."""
    if not Path(value).is_dir():
        return [Path(file) for file in value.split(',')]
    files = sorted(path for path in Path(value).iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise BadInput(f'--field {name}={value}: no images in this folder')
    return files


def noted(numbers: dict[str, np.ndarray]) -> dict[str, float]:
    """Numbers as entries of the provenance."""
    return {f'field_{name}': float(value[0]) for name, value in numbers.items()}


def tiles(trained: Trained, provenance: dict, out: Path) -> dict:
    """Samples a canvas or a region of it, or estimates its cost."""
    bands, value_range = flag_numbers('bands', int, 3), flag_numbers('value_range', float, 2)
    condition = Condition(FLAGS.condition, bands, value_range)
    region, gsd_m = flag_numbers('region', int, 4), FLAGS.gsd_m or condition.gsd_m
    if gsd_m is None:
        raise BadInput(f'--tiles needs --gsd_m, metres per pixel of the condition; {FLAGS.condition} does not give it')
    window_px = trained.config.data.size_px
    timesteps = trained.method.schedule.timesteps
    plan = make_plan(
        FLAGS.plan, window_px, FLAGS.steps, FLAGS.phases, FLAGS.overlap, FLAGS.seed, timesteps, FLAGS.solver
    )
    project = projection(trained, plan.steps)
    settings = MosaicSettings(
        gsd_m, FLAGS.stages, plan, FLAGS.supertile or 16 * window_px, FLAGS.seed, FLAGS.noise, FLAGS.wrap_x
    )
    provenance |= {'projection': repr(project), 'condition': condition.digest()}
    shown = {'bands': bands, 'value_range': value_range}
    provenance |= {name: list(value) for name, value in shown.items() if value}
    numbers, paths = fields(trained.method)
    opened = {
        field.name: open_field(field, paths[field.name], bands, value_range)
        for field in fields_to_read(trained.method.fields)
        if field.name in paths
    }
    images = {name: image for name, image in opened.items() if image}
    if images and FLAGS.stages > 1:
        raise BadInput(f'--field {next(iter(images))} is an image, which fits one scale only; it needs --stages 1')
    provenance |= noted(numbers) | {f'field_{name}': image.digest() for name, image in images.items()}
    sampler_at = bind_windows(
        trained.method, trained.params, plan, make_mesh(), project, FLAGS.batch_size, numbers, images
    )
    if FLAGS.dry_run:
        return estimate(sampler_at, condition, settings)
    if region:
        return save_region(sampler_at, condition, out, settings, provenance, *region)
    return sample_mosaic(
        sampler_at, condition, out, settings, provenance, condition.georeference, FLAGS.workers, formats=FLAGS.format
    )


def folder(trained: Trained, provenance: dict, out: Path) -> dict:
    """Samples many images, each in one piece."""
    path, mesh, sampler = Path(FLAGS.condition), make_mesh(), trained.method.sampler
    steps, solver = (
        steps_of(trained.method, FLAGS.steps or sampler.steps, FLAGS.strength),
        FLAGS.solver or sampler.solver,
    )
    entries = opened_entries(path, FLAGS.split) if path.is_dir() else [Entry(path, path.name)]
    project = projection(trained, steps)
    provenance |= {'projection': repr(project)}
    settings = FolderSettings(
        FLAGS.stages,
        trained.config.data.size_px,
        steps,
        FLAGS.gsd_m,
        FLAGS.variants,
        FLAGS.degrade,
        FLAGS.strength,
        solver,
        FLAGS.seed,
        -(-FLAGS.batch_size // mesh.size) * mesh.size,
        flag_numbers('bands', int, 3),
        flag_numbers('value_range', float, 2),
    )
    numbers, paths = fields(trained.method, [field.name for field in fields_to_read(trained.method.fields)])
    constants: Constants = {name: float(value[0]) for name, value in numbers.items()}
    provenance |= noted(numbers)
    for field in fields_to_read(trained.method.fields):
        if field.name in paths:
            files = [os.path.abspath(path) for path in paths[field.name]]
            provenance[f'field_{field.name}'] = field.digest(files)
            constants[field.name] = files if field.is_stack else files[0]
    images = bind_images(trained.method, trained.params, steps, mesh, project, FLAGS.strength, solver)
    result = sample_folder(images, trained.config.degradation, entries, out, settings, provenance, constants=constants)
    carry_fingerprints(FLAGS.checkpoint, out)
    return result


def main() -> None:
    check_flags()
    console.share_one_heap()
    console.enable_compilation_cache()
    FLAGS.checkpoint = find_checkpoint(FLAGS.checkpoint)
    trained, out = load_generator(FLAGS.checkpoint), Path(FLAGS.out)
    provenance = {'checkpoint': trained.digest, 'checkpoint_images_seen': trained.images_seen}
    result = (tiles if FLAGS.tiles else folder)(trained, provenance, out)
    if FLAGS.dry_run:
        print(json.dumps(result))
    elif not is_local_worker():
        summary = out / ('region.json' if FLAGS.region else 'sample.json')
        if result.get('sampled_now') == 0 and summary.exists():  # figures of the run that sampled, not its paths
            made = read_json(summary, 'remove it and run the same command again')
            result |= {key: made[key] for key in ('sampled_now', 'seconds', 'devices') if key in made}
        console.finish(result | provenance, summary)


def run() -> None:
    """The command."""
    console.run(main)


if __name__ == '__main__':
    run()
