"""Published datasets of real pairs: small folders of exactly their form become a folder with a manifest."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rsdiff.base.errors import BadInput
from rsdiff.data.chips import Limits
from rsdiff.data.fields import Field
from rsdiff.data.folder import read_folder
from rsdiff.data.images import box_downscale, read_image, write_image
from rsdiff.data.layouts import fmow, manifest, s2naip, worldstrat
from rsdiff.data.layouts.convert import JOURNAL, Conversion, convert
from rsdiff.data.layouts.places import Colours, Incomplete
from rsdiff.data.pipeline import DataConfig, make_source

LR, FRAMES = Field('lr', 3, 4, needed=False, made=True), Field('frames', 3, 4, needed=False, frames=4)


@pytest.fixture
def rasterio():
    return pytest.importorskip('rasterio', reason='GeoTIFFs need the `geo` extra')


@pytest.fixture
def converted(tmp_path):
    """(layout, folder) → the rows by file name, the counts and the problems."""

    def run(layout, folder, colours=Colours(), out='out', **options):
        counts, problems = convert([*layout.find(folder, colours)], tmp_path / out, Conversion(**options), True)
        found = (tmp_path / out / 'metadata.jsonl').is_file()
        rows = {entry.file_name: entry for entry in read_folder(tmp_path / out)} if found else {}
        return rows, counts, problems

    return run


def write_bands(rasterio, path, values, crs='EPSG:4326', transform=(9e-5, 0, 8.5, 0, -9e-5, 47.4)):
    """A GeoTIFF of `values` (bands, h, w)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(
        path, 'w', driver='GTiff', count=len(values), height=values.shape[1], width=values.shape[2],
        dtype=values.dtype, crs=crs, transform=rasterio.Affine(*transform),
    ) as file:  # fmt: skip
        file.write(values)


def bands(rgb, count, scale, dtype):
    """Sentinel-2 bands, of which 4, 3 and 2 are `rgb`, uint8 (h, w, 3); the level 255 is `scale`."""
    values = np.full((count, *rgb.shape[:2]), 0.9 * scale, dtype)
    values[[3, 2, 1]] = np.moveaxis(rgb, -1, 0) * (scale / 255)
    return values


def is_trainable(out: Path, split=None):
    """A crop of every image, with its reference and frames."""
    config = DataConfig(source=str(out), split=split, size_px=64, validation_share=0)
    source = make_source(config, fields=(LR, FRAMES))
    for number in range(len(source)):
        example = source.example(number, np.random.default_rng(0), 64)
        assert example['lr'].shape == (16, 16, 3)
    assert not source.skipped
    return example


# S2-NAIP


@pytest.fixture
def naip(tmp_path, smooth_image):
    """Tile 34000_52000 with two images of different years and the frames 0 whole, 1 black, 2 with a gap, 3 whole."""
    folder, tile = tmp_path / 's2naip', '34000_52000'
    frames = [smooth_image(32, 32, seed).clip(1) for seed in range(4)]
    frames[1][:] = 0
    frames[2][:3, :5] = 0
    write_image(folder / 'sentinel2' / tile / 'tci.png', np.concatenate(frames))
    Image.fromarray(np.zeros((128, 32), np.uint16)).save(folder / 'sentinel2' / tile / 'b08.png')
    for year in (2019, 2020):
        image = f'm_3808245_nw_17_060_{year}0802'
        write_image(folder / 'naip' / image / tile / 'rgb.png', smooth_image(128, 128, year).clip(1))
    return folder, tile, frames


def test_s2naip(naip, converted, tmp_path):
    folder, tile, frames = naip
    rows, counts, problems = converted(s2naip, folder)
    assert counts == {'images': 2, 'frames': 3, 'frames_black': 1} and not problems
    first = rows[f'hr/m_3808245_nw_17_060_20190802/{tile}.png']
    assert np.array_equal(
        read_image(first.path), read_image(folder / f'naip/m_3808245_nw_17_060_20190802/{tile}/rgb.png')
    )
    # the frame with a gap comes last, and its gap is transparent
    assert first.extra['frames_file_names'] == [f'lr/{tile}/{k}.png' for k in (0, 3, 2)]
    assert first.extra['low_res_file_name'] == f'lr/{tile}/0.png'
    for path, k in zip(first.stacks['frames'], (0, 3, 2)):
        assert np.array_equal(read_image(path), frames[k])
    alpha = np.asarray(Image.open(first.stacks['frames'][2]))[..., 3]
    assert (alpha[:3, :5] == 0).all() and alpha.mean() == pytest.approx(255 * (1 - 15 / 1024))
    # tile 34000, 52000 of 2^17 lies in Ohio, at 9.55 m · cos(latitude) per pixel of a frame
    assert first.numbers['lon'] == pytest.approx(-86.615, abs=1e-3) and first.numbers['lat'] == pytest.approx(
        34.9, abs=0.2
    )
    assert first.gsd_m == pytest.approx(9.5546 * np.cos(np.radians(first.numbers['lat'])) / 4, rel=1e-4)
    assert first.extra['low_res_gsd_m'] == pytest.approx(4 * first.gsd_m)
    assert [first.numbers[name] for name in ('year', 'month', 'day')] == [2019, 8, 2]
    assert 'resampled' not in first.extra and 'radiometry' not in first.extra
    example = is_trainable(tmp_path / 'out')
    assert not np.isnan(example['frames'][..., :6]).any() and np.isnan(example['frames'][..., 9:]).all()


def test_s2naip_lists_what_is_missing(naip, converted, smooth_image):
    folder, tile, _ = naip
    write_image(folder / 'naip/image/1_1/rgb.png', smooth_image(128, 128))
    write_image(folder / 'sentinel2/2_2/tci.png', smooth_image(64, 32))
    write_image(folder / 'naip/image/3_3/rgb.png', smooth_image(128, 128))
    write_image(folder / 'sentinel2/3_3/b05.png', smooth_image(64, 32))
    write_image(folder / 'naip/image/4_4/rgb.png', smooth_image(128, 128))
    write_image(folder / 'sentinel2/4_4/tci.png', np.zeros((64, 32, 3), np.uint8))
    write_image(folder / 'naip/image/5_5/rgb.png', smooth_image(128, 128))
    write_image(folder / 'sentinel2/5_5/tci.png', smooth_image(60, 32))
    write_image(folder / 'naip/image/6_6/rgb.png', np.zeros((128, 128, 3), np.uint8))
    write_image(folder / 'sentinel2/6_6/tci.png', smooth_image(64, 32))
    write_image(folder / 'naip/image/notes/rgb.png', smooth_image(128, 128))
    rows, counts, problems = converted(s2naip, folder)
    assert len(rows) == 2 and counts['images'] == 2 and counts['dropped_nodata'] == 1
    assert problems['naip/image/1_1'] == 'no sentinel2/1_1/tci.png'
    assert problems['sentinel2/2_2'] == 'no naip/IMAGE/2_2/rgb.png'
    assert 'no tci.png, its bands red, green and blue' in problems['sentinel2/3_3']
    assert problems['4_4'] == 'T = 0 usable frames: all 2 are black'
    assert 'multiple of its width' in problems['5_5']
    assert 'COLUMN_ROW' in problems['notes'] and len(problems) == 6
    with pytest.raises(BadInput, match='no naip/ and sentinel2/'):
        [*s2naip.find(folder / 'naip', Colours())]


# WorldStrat


@pytest.fixture
def strat(tmp_path, rasterio, smooth_image):
    """A tile whose name has a space, 106×112 px at 1.5 m; frames of 16×17 px: 1 cloudy, 2 black, 10 clear but long before."""
    folder, tile = tmp_path / 'worldstrat', 'Amnesty POI-1-1-1'
    frames = {1: smooth_image(16, 17, 1), 2: np.zeros((16, 17, 3), np.uint8), 3: smooth_image(16, 17, 3)}
    frames[10] = smooth_image(16, 17, 10)
    for k, pixels in frames.items():
        stem = folder / 'lr_dataset' / tile / 'L2A' / f'{tile}-{k}'
        write_bands(rasterio, Path(f'{stem}-L2A_data.tiff'), bands(pixels, 12, 0.3, np.float32))
        cloud = np.zeros((1, 16, 17), np.uint8)
        cloud[:, : 4 if k == 1 else 0] = 1
        write_bands(rasterio, Path(f'{stem}-CLM.tiff'), cloud)
    image = np.dstack([smooth_image(106, 112, 5), np.full((106, 112), 255, np.uint8)])
    write_image(folder / 'hr_dataset' / tile / f'{tile}_rgb.png', image)
    with (folder / 'stratified_train_val_test_split.csv').open('w') as file:
        csv.writer(file).writerows([['', 'tile', 'IPCC Class', 'split'], [58480, tile, 'Settlement', 'val']])
    with (folder / 'metadata.csv').open('w') as file:
        head = ['', 'n', 'lon', 'lat', 'lowres_date', 'highres_date']
        rows = [[tile, k, 8.5, -47.25, f'2019-0{m}-01', '2019-06-03'] for k, m in ((1, 6), (2, 6), (3, 6), (10, 1))]
        csv.writer(file).writerows([head, *rows])
    return folder, tile, frames


def test_worldstrat(strat, converted, tmp_path):
    folder, tile, frames = strat
    rows, counts, problems = converted(worldstrat, folder)
    assert counts == {'images': 1, 'frames': 3, 'frames_black': 1, 'resampled': 1} and not problems
    (row,) = rows.values()
    # 3 is clear and near; 10 is clear; 1 is cloudy
    assert row.extra['frames_file_names'] == [f'lr/{tile}/{k}.png' for k in (3, 10, 1)]
    for path, k in zip(row.stacks['frames'], (3, 10, 1)):
        assert np.abs(read_image(path).astype(int) - frames[k]).max() <= 1
    sharp = Image.open(folder / 'hr_dataset' / tile / f'{tile}_rgb.png').convert('RGB')
    assert np.array_equal(read_image(row.path), np.asarray(sharp.resize((68, 64), Image.Resampling.BOX)))
    assert row.extra['resampled'] == 'area 112×106 → 68×64' and row.split == 'val'
    assert row.numbers['lon'] == 8.5 and row.numbers['lat'] == -47.25 and row.numbers['month'] == 6
    # 9e-5 degrees at 47.4° north, from the frames' georeference
    assert row.gsd_m == pytest.approx(np.sqrt(10.006 * 6.792) / 4, rel=2e-3)
    is_trainable(tmp_path / 'out', 'val')


def test_worldstrat_as_on_kaggle_and_what_it_lacks(strat, converted, rasterio, smooth_image):
    folder, tile, _ = strat
    (folder / 'hr_dataset').rename(folder / 'there')
    (folder / 'hr_dataset').mkdir()
    (folder / 'there').rename(folder / 'hr_dataset/12bit')
    (folder / 'metadata.csv').unlink()
    write_image(folder / 'hr_dataset/12bit/alone/alone_rgb.png', smooth_image(64, 64))
    (folder / 'lr_dataset/without').mkdir()
    write_image(folder / 'hr_dataset/12bit/wide/wide_rgb.png', smooth_image(64, 128))
    write_bands(
        rasterio, folder / 'lr_dataset/wide/L1C/wide-1-L1C_data.tiff', bands(smooth_image(16, 16), 13, 0.3, np.float32)
    )
    write_image(folder / 'hr_dataset/12bit/few/few_rgb.png', smooth_image(64, 64))
    write_bands(rasterio, folder / 'lr_dataset/few/L2A/few-1-L2A_data.tiff', np.ones((3, 16, 16), np.float32))
    rows, counts, problems = converted(worldstrat, folder)
    assert [*rows] == [f'hr/{tile}.png'] and rows[f'hr/{tile}.png'].split == 'val'
    assert problems['alone'] == 'no lr_dataset/alone/L2A/alone-1-L2A_data.tiff'
    assert problems['without'] == 'no hr_dataset/12bit/without/without_rgb.png'
    assert 'has bands 1 to 3' in problems['few'] and 'few-1-L2A_data.tiff' in problems['few']
    assert '128×64 px, and its frames have 16×16' in problems['wide'] and len(problems) == 4


# fMoW


@pytest.fixture
def functional(tmp_path, rasterio, smooth_image):
    """airport_7 with the images 0 and 3, and the frames 3, 100 and 101, of which the last is 30 px larger."""
    folder, place = tmp_path / 'fmow', 'train/airport/airport_7'
    for k, side in ((3, 16), (100, 16), (101, 46)):
        path = folder / 'fmow-sentinel' / place / f'airport_7_{k}.tif'
        write_bands(rasterio, path, bands(smooth_image(side, side + 4, k), 13, 3000, np.uint16))
    with (folder / 'fmow-sentinel/train.csv').open('w') as file:
        rows = [('airport', 7, 3, '2019-05-01T00:00:00Z'), ('airport', 7, 100, '2015-10-01T00:00:00Z')]
        csv.writer(file).writerows([['category', 'location_id', 'image_id', 'timestamp'], *rows])
    for k, year in ((0, 2015), (3, 2019)):
        write_image(folder / 'fmow-rgb' / place / f'airport_7_{k}_rgb.jpg', smooth_image(640, 800, k))
        write_image(folder / 'fmow-rgb' / place / f'airport_7_{k}_msrgb.jpg', smooth_image(160, 200, k))
        described = {
            'gsd': 0.5,
            'timestamp': f'{year}-09-02T10:32:22Z',
            'cloud_cover': 25,
            'raw_location': 'POLYGON ((8.58 47.44, 8.6 47.44, 8.6 47.46, 8.58 47.46, 8.58 47.44))',
        }
        (folder / 'fmow-rgb' / place / f'airport_7_{k}_rgb.json').write_text(json.dumps(described))
    return folder, place


def test_fmow(functional, converted, tmp_path):
    folder, place = functional
    rows, counts, problems = converted(fmow, folder)
    assert counts == {'images': 2, 'frames': 2, 'frames_of_another_size': 2, 'resampled': 2} and not problems
    early, late = rows[f'hr/{place}_0.png'], rows[f'hr/{place}_3.png']
    # the frame of the image's own number, else the one nearest in time
    assert late.extra['frames_file_names'] == [f'lr/{place}/{k}.png' for k in (3, 100)]
    assert early.extra['frames_file_names'] == [f'lr/{place}/{k}.png' for k in (100, 3)]
    assert early.extra['resampled'] == 'area 800×640 → 80×64' and read_image(early.path).shape == (64, 80, 3)
    assert (early.split, early.label) == ('train', 'airport')
    assert [early.numbers[name] for name in ('lon', 'lat', 'cloud', 'year')] == [8.59, 47.45, 0.25, 2015]
    is_trainable(tmp_path / 'out')


def test_fmow_lists_what_is_missing(functional, converted, rasterio, smooth_image):
    folder, place = functional
    write_bands(
        rasterio, folder / 'fmow-sentinel/val/zoo/zoo_1/zoo_1_0.tif', bands(smooth_image(16, 16), 13, 3000, np.uint16)
    )
    write_image(folder / 'fmow-rgb/test_gt/zoo/zoo_2/zoo_2_0_rgb.jpg', smooth_image(64, 64))
    write_bands(rasterio, folder / 'fmow-sentinel/train/zoo/zoo_3/zoo_3_0.tif', np.zeros((1, 16, 16), np.uint16))
    write_image(folder / 'fmow-rgb/train/zoo/zoo_3/zoo_3_0_rgb.jpg', smooth_image(64, 64))
    rows, _, problems = converted(fmow, folder)
    assert len(rows) == 2
    assert problems['val/zoo/zoo_1'] == 'no fmow-rgb/val/zoo/zoo_1/zoo_1_0_rgb.jpg'
    assert problems['test_gt/zoo/zoo_2'] == 'no fmow-sentinel/test_gt/zoo/zoo_2/zoo_2_0.tif'
    assert 'zoo_3_0.tif' in problems['train/zoo/zoo_3'] and 'has bands 1 to 1' in problems['train/zoo/zoo_3']


# any manifest, and what all layouts share


@pytest.fixture
def pairs(tmp_path, smooth_image):
    """Three pairs, the second with three frames; the third has a ratio of 5, and no partner is missing."""
    folder, lines = tmp_path / 'pairs', []
    for number, side in enumerate((64, 64, 80)):
        sharp = smooth_image(side, side, number)
        write_image(folder / f'hr/{number}.jpg', sharp)
        write_image(folder / f'lr/{number}.png', (0.5 * box_downscale(sharp, side // 16) + 60).astype(np.uint8))
        lines.append(
            {'file_name': f'hr/{number}.jpg', 'low_res_file_name': f'lr/{number}.png', 'gsd_m': 2.5, 'year': 2001}
        )
    for name in ('a', 'b'):
        write_image(folder / f'lr/{name}.png', smooth_image(16, 16))
    lines[1]['frames_file_names'] = ['lr/a.png', 'lr/1.png', 'lr/b.png']
    lines[0]['split'] = 'val'
    (folder / 'metadata.jsonl').write_text('\n'.join(map(json.dumps, lines)))
    return folder


def test_a_manifest_comes_to_one_ratio(pairs, converted, tmp_path):
    rows, counts, problems = converted(manifest, pairs)
    assert counts == {'images': 3, 'frames': 5, 'resampled': 1} and not problems
    first, second, third = rows.values()
    assert np.array_equal(read_image(first.path), read_image(pairs / 'hr/0.jpg')) and first.split == 'val'
    assert 'frames_file_names' not in first.extra and first.numbers['year'] == 2001
    # the row's own reference comes first, and only once
    assert [read_image(path).tolist() for path in second.stacks['frames']] == [
        read_image(pairs / f'lr/{name}.png').tolist() for name in ('1', 'a', 'b')
    ]
    assert third.extra['resampled'] == 'area 80×80 → 64×64'
    assert third.gsd_m == pytest.approx(2.5 * 80 / 64) and third.extra['low_res_gsd_m'] == pytest.approx(12.5)


def test_matched_histograms_are_said_and_agree(pairs, converted):
    plain, _, _ = converted(manifest, pairs)
    rows, _, _ = converted(manifest, pairs, out='matched', match_histograms=True)
    for before, after in zip(plain.values(), rows.values()):
        assert after.extra['radiometry'] == 'matched' and 'radiometry' not in before.extra
        lr = read_image(after.files['lr']).astype(int)
        apart = lambda entry: np.abs(box_downscale(read_image(entry.path), 4) - lr).mean()
        assert apart(after) < 2 < 10 < apart(before)


def test_the_best_frames_are_kept(pairs, converted):
    rows, counts, _ = converted(manifest, pairs, max_frames=2)
    assert counts['frames'] == 4 and [len(row.stacks.get('frames', ())) for row in rows.values()] == [0, 2, 0]


def test_useless_images_are_counted_by_reason(pairs, converted):
    write_image(pairs / 'hr/0.jpg', np.full((64, 64, 3), 128, np.uint8))
    write_image(pairs / 'hr/2.jpg', np.full((80, 80, 3), 255, np.uint8))
    rows, counts, problems = converted(manifest, pairs)
    assert len(rows) == 1 and counts['dropped_constant'] == counts['dropped_white'] == 1 and not problems
    rows, counts, _ = converted(manifest, pairs, out='all', limits=Limits(max_white=1, min_std=0))
    assert len(rows) == 3


def test_an_interrupted_conversion_continues(pairs, converted, tmp_path, monkeypatch):
    rows, counts, _ = converted(manifest, pairs)
    journal = tmp_path / 'out' / JOURNAL
    whole = (tmp_path / 'out/metadata.jsonl').read_bytes()
    lines = journal.read_bytes().strip().split(b'\n')
    # killed within the third place, whose line was cut off
    journal.write_bytes(b'\n' + b'\n'.join(lines[:2]) + b'\n' + lines[2][:40])
    (tmp_path / 'out/metadata.jsonl').unlink()
    written, write = [], write_image
    monkeypatch.setattr(
        'rsdiff.data.layouts.convert.write_image', lambda path, image: written.append(path) or write(path, image)
    )
    assert converted(manifest, pairs)[1] == counts and (tmp_path / 'out/metadata.jsonl').read_bytes() == whole
    assert {path.relative_to(tmp_path / 'out').as_posix() for path in written} == {'hr/hr/2.png', 'lr/hr/2/0.png'}
    # a damaged file and a changed source are made again
    written.clear()
    (tmp_path / 'out/hr/hr/0.png').write_bytes(b'')
    write_image(pairs / 'lr/1.png', np.full((16, 16, 3), 7, np.uint8))
    converted(manifest, pairs)
    assert {path.name for path in written} == {'0.png', '1.png', '2.png'} and len(written) == 2 + 4
    again, _, _ = converted(manifest, pairs, out='fresh')
    for row, other in zip(read_folder(tmp_path / 'out'), again.values()):
        assert row.extra == other.extra and row.path.read_bytes() == other.path.read_bytes()


def test_rows_without_a_partner_and_names_that_collide(pairs, converted, smooth_image):
    lines = (pairs / 'metadata.jsonl').read_text()
    (pairs / 'metadata.jsonl').write_text(lines + '\n{"file_name": "lr/a.png"}')
    assert converted(manifest, pairs)[2] == {'lr/a.png': 'no low_res_file_name'}
    assert isinstance([*manifest.find(pairs, Colours())][-1], Incomplete)
    write_image(pairs / 'hr/0.png', smooth_image(64, 64))
    (pairs / 'metadata.jsonl').write_text(lines + '\n{"file_name": "hr/0.png", "low_res_file_name": "lr/0.png"}')
    with pytest.raises(BadInput, match="'hr/0.jpg' and 'hr/0.png' differ only in their suffix"):
        converted(manifest, pairs)
