"""What should the network predict? Trains each kind of prediction for the same number of images, and compares samples.

    python tools/compare_predictions.py --config configs/demo.py --images 6000 --out runs/predictions
    … --also_sqrt_linear residual_x0     that variant again, with √β linear in time

The variants diffuse the image itself (eps, v) or the residual over the enlarged condition (residual_x0, scaled by the
config's method.codec), two of them also with zero terminal SNR. Everything else is as in the config, including the P2
weight. The sampled chips were not trained on: they are from Blue Marble's held-out part, or from a folder's --split.
Their conditions are clean means over 4 × 4 pixels. Noise and conditions are the same for all variants, and nothing is
projected onto the condition, so that LR-consistency and tint measure the network itself. There is only one seed: small
differences mean nothing.

Run the same command again to continue. OUT holds a run for each variant, table.md, grid.png and predictions.json,
which is also the last line of output.
"""

from pathlib import Path

import jax
import numpy as np
from absl import flags
from PIL import Image, ImageDraw

from rsdiff.base import files, folders
from rsdiff.base.boxes import Box
from rsdiff.base.errors import BadInput
from rsdiff.base.seeds import seed_key
from rsdiff.data import blue_marble
from rsdiff.data.folder import canonical_split, read_folder
from rsdiff.data.images import bicubic, box_downscale, read_image, to_float, to_uint8, write_image
from rsdiff.evaluation.fidelity import detail, lr_consistency, psnr
from rsdiff.methods.codec import ResidualConfig
from rsdiff.methods.diffusion import DiffusionConfig
from rsdiff.methods.sampling import sample
from rsdiff.pretrained.lpips import LPIPS
from rsdiff.programs import console
from rsdiff.training.checkpoint import load_generator
from rsdiff.training.config import DataConfig, TrainConfig, from_dict, to_dict
from rsdiff.training.loop import train

FLAGS = flags.FLAGS
console.define_config('The base config: a file, or the name of one in configs/.')
flags.DEFINE_string('out', None, 'Output folder: new, or from an earlier run of this command.')
flags.DEFINE_integer('images', 6000, 'Training images per variant.', lower_bound=1)
flags.DEFINE_enum(
    'also_sqrt_linear',
    None,
    ['eps', 'v', 'residual_x0', 'v_zero_snr', 'residual_x0_zero_snr'],
    'Add this variant with the sqrt_linear schedule; the base config must have the linear one.',
)
flags.DEFINE_string('split', 'test', 'With a folder: the split to sample, which must not be the one trained on.')
flags.DEFINE_integer('chips', 48, 'Maximum number of chips to sample.', lower_bound=1)
flags.DEFINE_integer('steps', 20, 'Network evaluations per sample.', lower_bound=1)
flags.DEFINE_integer('batch_size', 16, 'Chips per batch when sampling.', lower_bound=1)
flags.DEFINE_integer('seed', 0, 'Random seed of the samples.')

LPIPS_NETWORK = 'alexnet'
GRID_ROWS, GRID_SCALE = 6, 2
COLUMNS = {
    'lr_consistency_db': 'LR-consistency, dB',
    'tint': 'tint, grey levels',
    'lpips': f'LPIPS ({LPIPS_NETWORK})',
    'psnr_db': 'PSNR, dB',
    'detail_ratio': 'detail, real = 1',
}


def variants(base: TrainConfig) -> dict[str, TrainConfig]:
    """The configs to compare, by name."""
    if not isinstance(base.method, DiffusionConfig) or not isinstance(base.method.codec, ResidualConfig):
        raise BadInput('config.method.codec is not residual; the residual variants need its scale, see configs/demo.py')

    def variant(prediction, error_in, residual=False, zero_snr=False, shape=base.method.schedule.shape):
        values = to_dict(base)
        method = values['method']
        method['objective'] |= {'prediction': prediction, 'error_in': error_in}
        method['schedule'] |= {'zero_terminal_snr': zero_snr, 'shape': shape}
        if not residual:
            method['codec'] = {'kind': 'identity'}
        values['validation']['every_images'] = FLAGS.images
        values |= {
            'total_images': FLAGS.images,
            'checkpoint_images': min(base.checkpoint_images, max(1, FLAGS.images // 4)),
        }
        return from_dict(TrainConfig, values)

    choices = {
        'eps': ('eps', 'eps'),
        'v': ('v', 'v'),
        'residual_x0': ('x0', 'v', True),
        'v_zero_snr': ('v', 'v', False, True),
        'residual_x0_zero_snr': ('x0', 'v', True, True),
    }
    configs = {name: variant(*choice) for name, choice in choices.items()}
    if (again := FLAGS.also_sqrt_linear) is not None:
        if base.method.schedule.shape != 'linear':
            raise BadInput('--also_sqrt_linear needs a config whose method.schedule.shape is linear')
        configs[f'{again}_sqrt_linear'] = variant(*choices[again], shape='sqrt_linear')
    return configs


def held_out_chips(data: DataConfig) -> tuple[np.ndarray, np.ndarray]:
    """Chips that no variant was trained on, uint8 (n, size_px, size_px, 3), and their gsd_m, float32 (n,)."""
    size = data.size_px
    if data.source == 'blue_marble':
        image = blue_marble.HELD_OUT.crop(blue_marble.load())
        corners = [
            (y, x) for y in range(0, image.shape[0] - size + 1, size) for x in range(0, image.shape[1] - size + 1, size)
        ]
        chips = [(Box(y, x, y + size, x + size).crop(image), blue_marble.GSD_M) for y, x in corners]
    else:
        if canonical_split(data.split or 'train') == canonical_split(FLAGS.split):
            raise BadInput(
                f'config.data.split is {data.split or "train"!r}, so --split {FLAGS.split} is the training split; '
                'give different splits to the two'
            )
        chips = []
        for entry in read_folder(data.source, FLAGS.split):
            gsd_m = entry.gsd_m or data.gsd_m
            if gsd_m is None:
                raise BadInput(f'{entry.path}: no gsd_m; give --config.data.gsd_m')
            image = read_image(entry.path)
            y, x = ((n - size) // 2 for n in image.shape[:2])
            if min(y, x) >= 0:
                chips.append((Box(y, x, y + size, x + size).crop(image), gsd_m))
    if not chips:
        raise BadInput(f'{data.source}: no image to sample is as large as config.data.size_px {size}')
    # evenly spread, so that no place or class dominates
    chosen = [chips[i] for i in np.unique(np.linspace(0, len(chips) - 1, FLAGS.chips).round().astype(int))]
    return np.stack([chip for chip, _ in chosen]), np.float32([gsd_m for _, gsd_m in chosen])


def samples(workdir: Path, conditions: np.ndarray, gsd_m: np.ndarray) -> np.ndarray:
    """Samples of the generator in `workdir` for the conditions, uint8 (n, 4h, 4w, 3)."""
    trained = load_generator(workdir)
    made = jax.jit(lambda params, *batch: sample(trained.method, params, *batch, FLAGS.steps, projection=None))
    n, h, w, _ = conditions.shape
    noise = np.asarray(jax.random.normal(seed_key(FLAGS.seed), (n, 4 * h, 4 * w, 3)))
    batches = (slice(start, start + FLAGS.batch_size) for start in range(0, n, FLAGS.batch_size))
    return np.concatenate(
        [to_uint8(made(trained.params, {'lr': to_float(conditions[b]), 'gsd_m': gsd_m[b]}, noise[b])) for b in batches]
    )


def scores(images: np.ndarray, truth: np.ndarray, conditions: np.ndarray, lpips: LPIPS | None) -> dict:
    """The figures of `COLUMNS`. Errors and energies are pooled over the chips; LPIPS is their mean.

    `tint` is the standard deviation over chips of each one's mean colour error, root mean square over the channels.
    """
    colour_error = (images.astype(np.float64) - truth).mean((1, 2))
    energy = lambda chips: np.mean(detail(chips) ** 2) ** 0.5
    tall = lambda chips: chips.reshape(1, -1, *chips.shape[2:])  # stacked into one tall image
    distances = (
        None
        if lpips is None
        else np.concatenate(
            [lpips(to_float(images[i : i + 16]), to_float(truth[i : i + 16])) for i in range(0, len(images), 16)]
        )
    )
    return {
        'lr_consistency_db': round(float(lr_consistency(tall(images), tall(conditions))[0]), 2),
        'tint': round(float(np.sqrt(np.mean(colour_error.std(0) ** 2))), 2),
        'lpips': None if distances is None else round(float(distances.mean()), 4),
        'psnr_db': round(float(psnr(tall(images), tall(truth))[0]), 2),
        'detail_ratio': round(float(energy(images) / energy(truth)), 3),
    }


def labelled_grid(columns: dict[str, np.ndarray]) -> np.ndarray:
    """The first chips of each column under its name, enlarged; uint8 (h, w, 3)."""
    n, size = GRID_ROWS, GRID_SCALE * next(iter(columns.values())).shape[1]
    width = max(size, 128)  # the longest name
    sheet = Image.new('RGB', (len(columns) * (width + 4), n * (size + 4) + 20), 'white')
    for column, (name, chips) in enumerate(columns.items()):
        x = column * (width + 4)
        ImageDraw.Draw(sheet).text((x + width // 2, 10), name, fill='black', anchor='mm', font_size=12)
        for row, chip in enumerate(chips[np.linspace(0, len(chips) - 1, n).astype(int)]):
            enlarged = Image.fromarray(chip).resize((size, size), Image.NEAREST)
            sheet.paste(enlarged, (x + (width - size) // 2, 20 + row * (size + 4)))
    return np.asarray(sheet)


def table(rows: dict[str, dict[str, float | None]]) -> str:
    """Markdown, one row per variant."""
    lines = [f'| | {" | ".join(COLUMNS.values())} |', '|---' + '|---:' * len(COLUMNS) + '|']
    lines += [
        f'| {name} | {" | ".join("" if row[key] is None else str(row[key]) for key in COLUMNS)} |'
        for name, row in rows.items()
    ]
    return '\n'.join(lines) + '\n'


def main() -> None:
    if FLAGS.config is None or FLAGS.out is None:
        raise BadInput('give --config FILE and --out DIR')
    console.enable_compilation_cache()
    base, out = from_dict(TrainConfig, FLAGS.config.to_dict()), Path(FLAGS.out)
    if FLAGS.steps > base.method.schedule.timesteps:
        raise BadInput(f'--steps is {FLAGS.steps}; the config has {base.method.schedule.timesteps} timesteps')
    configs, (truth, gsd_m) = variants(base), held_out_chips(base.data)
    conditions = np.stack([box_downscale(chip, 4) for chip in truth])
    folders.claim_folder(out, {'images': FLAGS.images, 'config': to_dict(base)})
    try:
        lpips, lpips_missing = LPIPS(LPIPS_NETWORK), None
    except BadInput as error:
        lpips, lpips_missing = None, str(error)
        print(f'without LPIPS: {error}')

    columns = {'bicubic': np.stack([bicubic(lr, *truth.shape[1:3]) for lr in conditions])}
    for name, config in configs.items():
        print(f'{name}:', flush=True)
        if not train(config, out / name)['finished']:
            raise KeyboardInterrupt
        columns[name] = samples(out / name, conditions, gsd_m)
    rows = {name: scores(images, truth, conditions, lpips) for name, images in columns.items()}

    write_image(out / 'grid.png', labelled_grid(columns | {'real': truth}))
    files.write_text_atomically(out / 'table.md', table(rows))
    print('\n' + table(rows))
    console.finish(
        {
            'images': FLAGS.images,
            'chips': len(truth),
            'steps': FLAGS.steps,
            'seed': FLAGS.seed,
            'scores': rows,
            'lpips_network': LPIPS_NETWORK,
            'lpips_missing': lpips_missing,
        },
        out / 'predictions.json',
    )


if __name__ == '__main__':
    console.run(main)
