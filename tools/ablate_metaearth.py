"""MetaEarth's ablations of the generator (Yu et al. 2024, arXiv 2405.13570), at a size of minutes, with several seeds.

    python tools/ablate_metaearth.py --data UCM --out runs/ablations --pages docs

    cascade       16× by two stages of one network, against one network that makes 16× at once; both trained and tested on bicubic
                  reductions, with the same number of evaluations in each stage, so twice as many in the cascade
    resolution    the network told metres per pixel, against one that is not; at 1 and 4 times the images' own
    degradation   trained on two passes of random degradation, against bicubic reduction; tested on conditions of both kinds

The generators are those of `configs/ablation.py`. Test images have the split `test`. Generators are compared image by image and
seed by seed (`rsdiff/downstream/statistics.py`); p is not corrected over the tables. The fourth ablation, overlap and shared noise of windows,
needs no training: `tools/ablate_mosaic.py`; `tools/ablations.sh` runs both.

Run the same command again to continue. With --jobs N, training runs are shared out. PAGES gets ablations.md. The last line is one
JSON object, also written to OUT/ablate_metaearth.json.
"""

import csv
import time
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from equal_time import for_images, is_trained, load_config, train_to

from rsdiff.base import folders
from rsdiff.base.errors import BadInput
from rsdiff.base.files import read_json, write_text_atomically
from rsdiff.base.shipped import ROOT
from rsdiff.base.work import Claims, end_without_parent, is_local_worker, local_workers, share_out
from rsdiff.data.degradation import UPSCALE
from rsdiff.data.folder import Entry, clean_name, read_folder, write_manifest
from rsdiff.data.images import bicubic, box_downscale, read_image, write_image
from rsdiff.downstream.enlarging import MEASURES, summarise, table
from rsdiff.evaluation.tables import Shown
from rsdiff.programs import console
from rsdiff.training.config import TrainConfig, from_dict

OUT = flags.DEFINE_string('out', None, 'Output folder: new, or from an earlier run of this command.', required=True)
DATA = flags.DEFINE_string('data', None, 'Image folder with the splits train, val and test, and gsd_m.', required=True)
PAGES = flags.DEFINE_string('pages', None, 'Folder for ablations.md; default: OUT.')
SEEDS = flags.DEFINE_integer('seeds', 3, 'Training runs per generator; more may be added later.', lower_bound=1)
IMAGES = flags.DEFINE_integer('images', 10_000, 'Images that each run sees.', lower_bound=1)
LIMIT = flags.DEFINE_integer('limit', 42, 'Test images to use, evenly spread.', lower_bound=2)
STEPS = flags.DEFINE_integer('steps', 12, 'Network evaluations per sample.', lower_bound=1)
JOBS = flags.DEFINE_integer('jobs', 1, 'Processes that train at the same time.', lower_bound=1)

VARIANTS = FULL, NO_RESOLUTION, BICUBIC, ONE_JUMP = 'full', 'no_resolution', 'bicubic', 'one_jump'
METRICS = *MEASURES, 'detail_ratio'
FD = 'fd_efflite0'
COLUMNS = (
    Shown('generator', lambda row: row['arm'], number=False),
    Shown('detail, real = 1', lambda row: f'{row["detail"]:.2f}'),
)


def main() -> None:
    started, out = time.monotonic(), Path(OUT.value)
    numbers = {'images': IMAGES.value, 'limit': LIMIT.value, 'steps': STEPS.value}
    folders.claim_folder(out, numbers | {'data': str(Path(DATA.value).resolve())})
    console.enable_compilation_cache()
    claims = Claims(out / 'claims')
    runs = [(variant, seed) for seed in range(SEEDS.value) for variant in VARIANTS]
    with local_workers(JOBS.value):
        for _ in share_out(['folders'], lambda _: (out / 'folders' / 'done').exists(), make_folders, claims.claim):
            pass
        for _ in share_out(
            runs,
            lambda run: is_trained(out / 'generators' / name_of(*run)),
            lambda run: train_to(config(*run), out / 'runs' / name_of(*run), out / 'generators' / name_of(*run)),
            lambda run: claims.claim(name_of(*run)),
        ):
            end_without_parent()
    if is_local_worker():
        return
    found = {
        'cascade': cascade(out),
        'resolution, at its own': compare(out, 'fine', [FULL, NO_RESOLUTION], 'mild'),
        'resolution, 4 times coarser': compare(out, 'coarse', [FULL, NO_RESOLUTION], 'mild'),
        'degradation, conditions by two passes': compare(out, 'fine', [FULL, BICUBIC], 'mild'),
        'degradation, bicubic conditions': compare(out, 'fine', [FULL, BICUBIC], 'bicubic'),
    }
    pages = Path(PAGES.value or out)
    write_page(found, pages)
    console.finish(
        {'out': str(out), 'pages': str(pages), 'ablations': found, 'seconds': round(time.monotonic() - started, 1)},
        out / 'ablate_metaearth.json',
    )


def name_of(variant: str, seed: int) -> str:
    return f'{variant}_{seed}'


def config(variant: str, seed: int) -> TrainConfig:
    """The settings of a run."""
    made = load_config(f'ablation:{variant}')
    made.data.source = str(Path(OUT.value) / 'folders' / 'jump') if variant == ONE_JUMP else DATA.value
    made.seed = seed
    for_images(made, IMAGES.value)
    return from_dict(TrainConfig, made.to_dict())


def make_folders(_) -> None:
    """Writes the folders that are made from the data: `jump`, all images with conditions for `one_jump`; `far`, the conditions
    16 times coarser than the test images; `fine` and `coarse`, the test images and these reduced four times."""
    out = Path(OUT.value) / 'folders'
    entries = read_folder(DATA.value)
    if missing := sorted({'train', 'val', 'test'} - {entry.split for entry in entries}):
        raise BadInput(f'{DATA.value}: no image has split {missing[0]}; the splits train, val and test are needed')
    rows: dict[str, list[Entry]] = {'jump': [], 'far': [], 'fine': [], 'coarse': []}
    for entry in entries:
        if entry.split not in ('train', 'val', 'test'):
            continue
        if entry.gsd_m is None:
            raise BadInput(f'{DATA.value}: {entry.file_name} has no gsd_m')
        image, name = read_image(entry.path), clean_name(entry.file_name)
        height, width = (
            side // UPSCALE**3 * UPSCALE**3 for side in image.shape[:2]
        )  # all of them reduce to whole pixels
        image = image[:height, :width]
        far = bicubic(bicubic(image, height // UPSCALE, width // UPSCALE), height // UPSCALE**2, width // UPSCALE**2)
        write_image(out / 'jump' / name, image)
        write_image(out / 'jump' / 'low' / name, bicubic(far, height // UPSCALE, width // UPSCALE))
        low = {'low_res_file_name': f'low/{name}'}
        rows['jump'].append(Entry(out / 'jump' / name, name, entry.split, gsd_m=entry.gsd_m, extra=low))
        if entry.split == 'test':
            made = {'far': (far, 16), 'fine': (image, 1), 'coarse': (box_downscale(image, UPSCALE), UPSCALE)}
            for folder, (pixels, factor) in made.items():
                write_image(out / folder / name, pixels)
                row = Entry(out / folder / name, name, 'test', gsd_m=factor * entry.gsd_m)
                rows[folder].append(row)
    for folder, own in rows.items():
        write_manifest(out / folder, own)
    write_text_atomically(out / 'done', '')


def compare(out: Path, folder: str, variants: list[str], degradation: str) -> dict[str, Any]:
    """Generators on conditions that are made from the images of `folder` by `degradation`."""
    names = [name_of(variant, seed) for variant in variants for seed in range(SEEDS.value)]
    flags_of = [f'--checkpoint={name}={out / "generators" / name}' for name in names]
    return evaluated(out / 'evaluations' / f'{folder}_{degradation}_{variants[-1]}', out / 'folders' / folder, variants,
                     [f'--degradation={degradation}', *flags_of])  # fmt: skip


def cascade(out: Path) -> dict[str, Any]:
    """`bicubic` in two stages, and `one_jump`, from the same conditions, 16 times coarser than the images."""
    arguments = ['--noconsistency']
    for seed in range(SEEDS.value):
        staged = name_of(BICUBIC, seed)
        samples, generator, far = out / 'samples' / staged, out / 'generators' / staged, out / 'folders' / 'far'
        sampling = f'--checkpoint={generator} --condition={far} --out={samples} --stages=2 --steps={STEPS.value} --noconsistency'
        console.call(ROOT / 'sample.py', *sampling.split())
        jump = name_of(ONE_JUMP, seed)
        arguments += [f'--generated={staged}={samples}', f'--checkpoint={jump}={out / "generators" / jump}']
    return evaluated(
        out / 'evaluations' / 'cascade', f'{out / "folders" / "jump"}:test', [BICUBIC, ONE_JUMP], arguments
    )


def evaluated(result: Path, pairs: Path | str, variants: list[str], arguments: list[str]) -> dict[str, Any]:
    """Runs tools/evaluate.py, and summarises each variant over its seeds, against the first."""
    result = result.with_name(f'{result.name}_{SEEDS.value}_seeds')
    options = f'--limit={LIMIT.value} --steps={STEPS.value} --metrics={",".join(METRICS)}'.split()
    console.call(ROOT / 'tools' / 'evaluate.py', f'--pairs={pairs}', f'--out={result}', *options, *arguments)
    with open(result / 'per_image.csv') as file:
        lines = [*csv.DictReader(file)]
    told, cells = read_json(result / 'evaluate.json')['rows'], []
    for variant in variants:
        for seed in range(SEEDS.value):
            name = name_of(variant, seed)
            own = [line for line in lines if line['row'] == name]
            cell: dict[str, Any] = {measure: [float(line[measure]) for line in own] for measure in MEASURES}
            numbers = {FD: told[name][FD]['value'], 'detail': told[name]['detail_ratio']['value']}
            cells.append(cell | numbers | {'arm': variant, 'seed': seed})
    summary = summarise(cells, len(cells[0]['psnr']), baseline=variants[0])
    for row in summary['rows']:
        row['detail'] = float(np.mean([cell['detail'] for cell in cells if cell['arm'] == row['arm']]))
    return summary


def write_page(found: dict[str, dict[str, Any]], pages: Path) -> None:
    """Writes ablations.md."""
    pages.mkdir(parents=True, exist_ok=True)
    parts = [
        "# MetaEarth's ablations, small",
        f'Generators of `configs/ablation.py`, {IMAGES.value:,} training images each; runs: {SEEDS.value}. Changes are against '
        'the first line, with 95 % intervals over seeds and test images. Windows and noise: [mosaic_ablation.md](mosaic_ablation.md).',
    ]
    for name, summary in found.items():
        parts += [
            f'## {name[0].upper()}{name[1:]}',
            f'{summary["evaluation_images"]} images.',
            table(summary, COLUMNS),
        ]
    write_text_atomically(pages / 'ablations.md', '\n\n'.join(part.rstrip('\n') for part in parts) + '\n')


if __name__ == '__main__':
    console.run(main)
