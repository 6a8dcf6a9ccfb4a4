"""First and last step of `tools/demo.sh`: cuts its inputs out of Blue Marble, and collects its results."""

import json
import math
from pathlib import Path

import numpy as np
from absl import flags
from PIL import Image, ImageDraw

from rsdiff.base import files, folders
from rsdiff.base.errors import BadInput
from rsdiff.data import blue_marble
from rsdiff.data.folder import Entry, write_manifest
from rsdiff.data.images import bicubic, box_downscale, read_image, write_image
from rsdiff.evaluation.fidelity import detail_ratio, lr_consistency, psnr
from rsdiff.evaluation.seams import seam_ratio
from rsdiff.programs import console

FLAGS = flags.FLAGS
flags.DEFINE_enum('step', None, ['prepare', 'report'], 'Which step.', required=True)
flags.DEFINE_string('out', None, "The demo's folder.", required=True)
flags.DEFINE_integer('seconds', 0, 'Duration of this run of the demo, for the summary.')
flags.DEFINE_integer('train_per_class', 12, 'Training chips per region.')
flags.DEFINE_integer('test_per_class', 40, 'Test chips per region.')

REDUCTION, CHIP_PX = 16, 64


def prepare(out: Path) -> dict:
    """Writes truth.png, condition.png, its GSD, and the folder `regions`."""
    truth = blue_marble.HELD_OUT.crop(blue_marble.load())
    folders.claim_folder(
        out, {'demo': 1, 'train_per_class': FLAGS.train_per_class, 'test_per_class': FLAGS.test_per_class}
    )
    write_image(out / 'truth.png', truth)
    write_image(out / 'condition.png', box_downscale(truth, REDUCTION))
    files.write_text_atomically(out / 'condition_gsd_m', f'{REDUCTION * blue_marble.GSD_M:.1f}\n')
    entries = []
    for region in blue_marble.REGIONS:
        for split, count in (('train', FLAGS.train_per_class), ('test', FLAGS.test_per_class)):
            for number, chip in enumerate(blue_marble.region_chips(region, split, count, CHIP_PX)):
                name = f'{region.replace(" ", "_")}/{split}{number:03d}.png'
                write_image(out / 'regions' / name, chip)
                entries.append(
                    Entry(
                        out / 'regions' / name,
                        name,
                        split,
                        region,
                        (f'a satellite image of {region}',),
                        round(blue_marble.GSD_M, 1),
                    )
                )
    write_manifest(out / 'regions', entries)
    return {'condition_px': list(box_downscale(truth, REDUCTION).shape[:2]), 'chips': len(entries)}


def report(out: Path) -> dict:
    """Writes compare.png and returns every figure of the demo."""
    summaries = {
        'mosaic': out / 'mosaic/sample.json',
        'synthetic': out / 'synthetic/sample.json',
        'downstream': out / 'downstream/summary.json',
    }
    if (trained := out / 'generator/train.json').exists():
        summaries = {'training': trained} | summaries
    for path in summaries.values():
        if not path.exists():
            raise BadInput(f'{path} is missing; run tools/demo.sh again to finish it')
    truth, condition = read_image(out / 'truth.png'), read_image(out / 'condition.png')
    images = {
        'bicubic': bicubic(condition, *truth.shape[:2]),
        'generated': read_image(out / 'mosaic' / 'stage_2.png'),
        'real': truth,
    }
    write_image(out / 'compare.png', beside(images))
    phase = json.loads((out / 'mosaic' / 'settings.json').read_text())['phases'][-1]
    # equal images have an infinite PSNR, which JSON cannot represent
    decibels = lambda value: round(value, 2) if math.isfinite(value) else None
    pair = lambda score, image, other: float(score(image[None], other[None])[0])
    fidelity = {
        name: {
            'psnr_db': decibels(pair(psnr, image, truth)),
            'lr_consistency_db': decibels(pair(lr_consistency, image, condition)),
            'detail_ratio': round(pair(detail_ratio, image, truth), 3),
            'seam_ratio': round(seam_ratio(image, phase['stride_px'], phase['crop_px']), 3),
        }
        for name, image in images.items()
    }
    print(f'\n{"":10} {"PSNR dB":>8} {"LR-consistency dB":>18} {"detail":>7} {"seams":>6}')
    for name, row in fidelity.items():
        psnr_db, consistency_db = ('∞' if row[key] is None else row[key] for key in ('psnr_db', 'lr_consistency_db'))
        print(f'{name:10} {psnr_db:>8} {consistency_db:>18} {row["detail_ratio"]:7.2f} {row["seam_ratio"]:6.2f}')
    print('\n' + (out / 'downstream' / 'table.md').read_text())
    for what, path in (
        ('picture', 'compare.png'),
        ('mosaic', 'mosaic'),
        ('synthetic images', 'synthetic'),
        ('does it help?', 'downstream/report.html'),
        ('every figure', 'summary.json'),
    ):
        print(f'{what:17} {out / path}')
    return {
        'seconds': FLAGS.seconds,
        'fidelity': fidelity,
        **{name: json.loads(path.read_text()) for name, path in summaries.items()},
    }


def beside(images: dict[str, np.ndarray]) -> np.ndarray:
    """The images in a row, each under its name."""
    height, width, _ = next(iter(images.values())).shape
    sheet = Image.new('RGB', (len(images) * (width + 8) - 8, height + 24), 'white')
    draw = ImageDraw.Draw(sheet)
    for number, (name, image) in enumerate(images.items()):
        x = number * (width + 8)
        sheet.paste(Image.fromarray(image), (x, 24))
        draw.text((x + width // 2, 12), name, fill='black', anchor='mm', font_size=16)
    return np.asarray(sheet)


def main() -> None:
    out = Path(FLAGS.out)
    result = prepare(out) if FLAGS.step == 'prepare' else report(out)
    console.finish(result, out / ('prepare.json' if FLAGS.step == 'prepare' else 'summary.json'))


if __name__ == '__main__':
    console.run(main)
