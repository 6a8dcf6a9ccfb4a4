"""Folders of images, each sampled without windows."""

import hashlib
import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from rsdiff.base.errors import BadInput
from rsdiff.data.degradation import CLEAN, LIGHT
from rsdiff.data.fields import Field
from rsdiff.data.folder import Entry, file_key, read_folder, write_manifest
from rsdiff.data.images import box_downscale, read_image, to_float, write_image
from rsdiff.sampling.images import FolderSettings, ImageSampler, sample_folder


def sample(condition, eps, keys, truth):
    """The enlarged condition, or the truth, plus a little of its own noise; independent of the rest of the batch."""
    enlarged = jnp.repeat(jnp.repeat(condition['lr'], 4, 1), 4, 2)
    return (enlarged if truth is None else truth) + 0.05 * eps


SAMPLER = ImageSampler(sample)


def settings(**options):
    return FolderSettings(**{'stages': 1, 'window_px': 32, 'steps': 5} | options)


def run(folder, out, degradation=LIGHT, split=None, **options):
    return sample_folder(
        SAMPLER, degradation, read_folder(folder, split), out, settings(**options), {'checkpoint': 'abc'}, show=False
    )


def test_degrade_and_regenerate_keeps_what_is_known_of_an_image(image_folder, tmp_path):
    result = run(image_folder, tmp_path / 'out', split='train', degraded=True, variants=3, seed=4)
    made, real = read_folder(tmp_path / 'out'), {e.file_name: e for e in read_folder(image_folder)}
    assert result['images'] == len(made) == 24 and result['images_skipped'] == 0
    for entry in made:
        source = real[entry.extra['source']]
        assert (entry.label, entry.captions, entry.split, entry.gsd_m) == (source.label, source.captions, 'train', 10.0)
        assert entry.extra['source_sha256'] == hashlib.sha256(source.path.read_bytes()).hexdigest()
        assert entry.extra['seed'] == 4 and entry.extra['checkpoint'] == 'abc' and entry.extra['variant'] in (0, 1, 2)
        assert read_image(entry.path).shape == (32, 32, 3)
    assert {e.extra['source'] for e in made} == {n for n, e in real.items() if e.split == 'train'}
    first = [read_image(e.path) for e in made if e.extra['source'] == 'a/a0.png']
    assert not np.array_equal(first[0], first[1])


def test_without_degrading_the_image_is_the_condition(image_folder, tmp_path):
    run(image_folder, tmp_path / 'out', stages=2)
    made = read_folder(tmp_path / 'out')[0]
    image = read_image(made.path)
    assert image.shape == (512, 512, 3) and made.gsd_m == 10 / 16
    condition = read_image(image_folder / made.extra['source'])
    assert np.abs(box_downscale(image, 16).astype(int) - condition).mean() < 3


@pytest.mark.parametrize('stages, window_px', [(1, 32), (2, 8)])
def test_a_real_image_guides_every_stage(image_folder, tmp_path, stages, window_px):
    run(image_folder, tmp_path / 'out', stages=stages, window_px=window_px, degraded=True, strength=0.5)
    for entry in read_folder(tmp_path / 'out'):
        assert entry.extra['strength'] == 0.5
        real = read_image(image_folder / entry.extra['source'])
        assert np.abs(read_image(entry.path).astype(float) - real).mean() < 0.05 * 127.5


@pytest.mark.bytes
@pytest.mark.parametrize('other', [dict(batch_size=1), dict(batch_size=5)])
def test_a_seed_gives_the_same_bytes_at_any_batch_size(image_folder, tmp_path, smooth_image, other):
    write_image(image_folder / 'a/a0.png', smooth_image(31, 29))
    run(image_folder, tmp_path / 'one', degraded=True, variants=2)
    run(image_folder, tmp_path / 'two', degraded=True, variants=2, **other)
    for entry in read_folder(tmp_path / 'one'):
        assert entry.path.read_bytes() == (tmp_path / 'two' / entry.file_name).read_bytes()


@pytest.mark.bytes
def test_an_image_does_not_depend_on_which_others_are_there(image_folder, tmp_path):
    run(image_folder, tmp_path / 'all', degraded=True)
    run(image_folder, tmp_path / 'some', degraded=True, split='test')
    for entry in read_folder(tmp_path / 'some'):
        assert entry.path.read_bytes() == (tmp_path / 'all' / entry.file_name).read_bytes()


def test_odd_sizes_come_back_at_their_own_size(image_folder, tmp_path, smooth_image):
    write_image(image_folder / 'a/a0.png', smooth_image(31, 29))
    write_image(image_folder / 'a/a2.png', smooth_image(70, 45))
    run(image_folder, tmp_path / 'out', CLEAN, degraded=True)
    assert read_image(tmp_path / 'out/a/a0-0.png').shape == (31, 29, 3)
    assert read_image(tmp_path / 'out/a/a2-0.png').shape == (70, 45, 3)


@pytest.mark.bytes
def test_an_interrupted_folder_continues_to_the_same_bytes(image_folder, tmp_path):
    run(image_folder, tmp_path / 'whole', degraded=True)
    shutil.copytree(tmp_path / 'whole', tmp_path / 'parts')
    (tmp_path / 'parts/metadata.jsonl').unlink()
    for name in ('a/a0-0.png', 'b/b3-0.png'):
        (tmp_path / 'parts' / name).unlink()
    assert run(image_folder, tmp_path / 'parts', degraded=True)['sampled_now'] == 2
    for path in (tmp_path / 'whole').rglob('*'):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / 'parts' / path.relative_to(tmp_path / 'whole')).read_bytes()


def test_unusable_images_are_skipped_and_counted(image_folder, tmp_path, smooth_image):
    (image_folder / 'a/a0.png').write_bytes(b'no image')
    write_image(image_folder / 'b/b1.png', smooth_image(8, 8))
    result = run(image_folder, tmp_path / 'out', degraded=True)
    assert result['images_skipped'] == 2 and result['images'] == 10


def test_a_condition_slightly_smaller_than_a_window_is_mirrored(tmp_path, smooth_image):
    folder = tmp_path / 'images'
    write_image(folder / 'a.png', smooth_image(13, 16))
    assert run(folder, tmp_path / 'out', gsd_m=1.0, window_px=64)['images'] == 1
    assert read_image(tmp_path / 'out' / 'a-0.png').shape == (52, 64, 3)


@pytest.mark.parametrize(
    'spoil, options, message',
    [
        (lambda f: (f / 'metadata.jsonl').unlink(), {}, '12 images have no gsd_m'),
        (lambda f: [p.write_bytes(b'') for p in f.rglob('*.png')], {}, 'none of 12 images'),
        (lambda f: None, {'degraded': True, 'strength': 0.0}, 'strength is 0.0'),
        (lambda f: None, {'strength': 0.5}, 'only --degrade has'),
        (lambda f: None, {'window_px': 256}, r'32×32 px; this generator needs 33 px'),
        (
            lambda f: [shutil.copy(f / 'a/a0.png', f / 'a/a0.jpg'), (f / 'metadata.jsonl').unlink()],
            {'gsd_m': 1.0},
            "'a/a0.jpg' and 'a/a0.png' would both be",
        ),
    ],
)
def test_what_cannot_be_sampled_is_named(image_folder, tmp_path, spoil, options, message):
    spoil(image_folder)
    with pytest.raises(BadInput, match=message):
        run(image_folder, tmp_path / 'out', **options)


def test_other_settings_in_the_same_folder_are_refused(image_folder, tmp_path):
    run(image_folder, tmp_path / 'out', degraded=True)
    with pytest.raises(BadInput, match='seed 0 → 1'):
        run(image_folder, tmp_path / 'out', degraded=True, seed=1)


@pytest.mark.parametrize(
    'spoil',
    [
        lambda p: p.write_bytes(p.read_bytes()[:-100]),
        lambda p: p.write_bytes(b''),
        lambda p: p.unlink(),
        lambda p: write_image(p, np.zeros((32, 32, 3), np.uint8)),
    ],
)
def test_an_image_that_is_not_as_it_was_made_is_made_again(image_folder, tmp_path, spoil):
    run(image_folder, tmp_path / 'out', degraded=True)
    path = tmp_path / 'out/a/a2-0.png'
    before = path.read_bytes()
    spoil(path)
    assert run(image_folder, tmp_path / 'out', degraded=True)['sampled_now'] == 1
    assert path.read_bytes() == before
    assert run(image_folder, tmp_path / 'out', degraded=True)['sampled_now'] == 0


@pytest.mark.parametrize(
    'spoil',
    [
        lambda p: p.write_bytes(p.read_bytes()[:-40]),
        lambda p: p.unlink(),
        lambda p: p.write_bytes(b'\xff\n[]\n{"file_name": 3}\n'),
    ],
)
def test_a_spoilt_index_costs_time_and_nothing_else(image_folder, tmp_path, spoil):
    run(image_folder, tmp_path / 'out', degraded=True)
    before = {path: path.read_bytes() for path in (tmp_path / 'out').rglob('*') if path.is_file()}
    spoil(tmp_path / 'out/.made.jsonl')
    assert run(image_folder, tmp_path / 'out', degraded=True)['sampled_now'] > 0
    assert {path: path.read_bytes() for path in before} == before


def test_two_degradations_are_not_mixed_in_one_folder(image_folder, tmp_path):
    default = type(LIGHT)()
    for first, second in ((CLEAN, LIGHT), (default, LIGHT), (LIGHT, default)):
        run(image_folder, tmp_path / 'out', first, degraded=True)
        assert run(image_folder, tmp_path / 'out', first, degraded=True)['sampled_now'] == 0
        with pytest.raises(BadInput, match='degradation_sha256'):
            run(image_folder, tmp_path / 'out', second, degraded=True)
        shutil.rmtree(tmp_path / 'out')
    run(image_folder, tmp_path / 'out', CLEAN)  # nothing is degraded
    assert run(image_folder, tmp_path / 'out', LIGHT)['sampled_now'] == 0


def test_nothing_is_written_outside_out(image_folder, tmp_path):
    names = [str(image_folder / 'a/a0.png'), '../images/a/a2.png', './b/b1.png']
    entries = [Entry(image_folder / name, name, gsd_m=10.0) for name in names]
    before = {path: path.read_bytes() for path in tmp_path.rglob('*') if path.is_file()}
    sample_folder(SAMPLER, LIGHT, entries, tmp_path / 'deep/out', settings(degraded=True), {}, show=False)
    new = {path for path in tmp_path.rglob('*') if path.is_file()} - {*before}
    assert {path: path.read_bytes() for path in before} == before
    assert all(path.is_relative_to(tmp_path / 'deep/out') for path in new)
    assert len([path for path in new if path.suffix == '.png']) == 3
    assert {entry.extra['source'] for entry in read_folder(tmp_path / 'deep/out')} == {*names}


def test_names_that_would_be_one_are_refused(image_folder, tmp_path):
    entries = [Entry(image_folder / 'a/a0.png', name, gsd_m=10.0) for name in ('a/a0.png', './a/a0.png')]
    with pytest.raises(BadInput, match="'a/a0.png' and './a/a0.png' would both be written as 'a/a0-0.png'"):
        sample_folder(SAMPLER, LIGHT, entries, tmp_path / 'out', settings(degraded=True), {}, show=False)


def write_tiff(path, values, gsd_m):
    rasterio = pytest.importorskip('rasterio', reason='needs the geo extra')
    path.parent.mkdir(parents=True, exist_ok=True)
    place = rasterio.Affine(gsd_m, 0, 500_000, 0, -gsd_m, 5_000_000)
    with rasterio.open(
        path,
        'w',
        driver='GTiff',
        height=values.shape[1],
        width=values.shape[2],
        count=len(values),
        dtype=values.dtype,
        crs='EPSG:32633',
        transform=place,
    ) as file:
        file.write(values)


def test_a_raster_says_its_own_resolution_and_its_bands_are_part_of_the_folder(tmp_path):
    values = np.random.default_rng(0).integers(0, 3000, (4, 32, 32)).astype(np.uint16)
    write_tiff(tmp_path / 'in/a.tif', values, 10)
    given = {'bands': (4, 2, 1), 'value_range': (0.0, 3000.0)}
    run(tmp_path / 'in', tmp_path / 'out', **given)
    (made,) = read_folder(tmp_path / 'out')
    assert made.gsd_m == pytest.approx(2.5, rel=1e-2)
    shown = np.clip(np.rint(values[[3, 1, 0]].transpose(1, 2, 0) / 3000 * 255), 0, 255)
    assert np.abs(box_downscale(read_image(made.path), 4).astype(float) - shown).mean() < 4
    for other in ({'bands': (1, 2, 3)}, {'value_range': (0.0, 4000.0)}):
        with pytest.raises(BadInput, match='output of other settings'):
            run(tmp_path / 'in', tmp_path / 'out', **given | other)
    with pytest.raises(BadInput, match='value_range'):
        run(tmp_path / 'in', tmp_path / 'third')


def test_large_and_negative_seeds_continue_as_others_do(image_folder, tmp_path):
    firsts = []
    for seed in (0, 2**32, 2**64, -1):
        out = tmp_path / str(seed)
        run(image_folder, out, split='test', seed=seed)
        assert run(image_folder, out, split='test', seed=seed)['sampled_now'] == 0
        firsts.append((out / 'a/a8-0.png').read_bytes())
    assert len({*firsts}) == 4


FIELDS = (Field('cloud', needed=False), Field('mask', 1, 2, needed=False))


def sample_with_fields(condition, eps, keys, truth):
    """`sample`, brighter by the cloud and by the mask, where they are known."""
    made = sample(condition, 0 * eps, keys, truth)
    if 'cloud' in condition:
        made = made + 0.2 * jnp.nan_to_num(condition['cloud'])[:, None, None, None]
    if 'mask' in condition:
        made = made + 0.1 * jnp.nan_to_num(jnp.repeat(jnp.repeat(condition['mask'], 2, 1), 2, 2))
    return made


@pytest.fixture
def row_folder(tmp_path):
    """(row, …) → a folder with a manifest of grey 32 × 32 images 0.png, 1.png, …, with these numbers and arrays."""

    def make(*rows, size=(32, 32), name='rows'):
        entries = []
        for number, row in enumerate(rows):
            write_image(tmp_path / name / f'{number}.png', np.full((*size, 3), 100, np.uint8))
            extra = {key: value for key, value in row.items() if not isinstance(value, np.ndarray)}
            for key in row.keys() - extra.keys():
                extra[file_key(key)] = f'{key}/{number}.png'
                (tmp_path / name / key).mkdir(exist_ok=True)
                Image.fromarray(row[key]).save(tmp_path / name / extra[file_key(key)])
            entries.append(Entry(tmp_path / name / f'{number}.png', f'{number}.png', gsd_m=10.0, extra=extra))
        write_manifest(tmp_path / name, entries)
        return tmp_path / name

    return make


def run_fields(folder, out, fields=FIELDS, constants=None, **options):
    sampler, known = ImageSampler(sample_with_fields, fields=fields), {'checkpoint': 'abc', 'constants': constants}
    options = {'window_px': 16, 'degraded': True} | options
    entries = read_folder(folder)
    sample_folder(sampler, CLEAN, entries, out, settings(**options), known, show=False, constants=constants)
    return [read_image(entry.path).astype(int) for entry in read_folder(out)]


def half(height=32, width=32, scale=1):
    """A grey mask: 0 in the left half of the height × width image, 255 in the right, each pixel `scale` × as fine."""
    mask = np.zeros((height * scale, width * scale), np.uint8)
    mask[:, width * scale // 2 :] = 255
    return mask


@pytest.mark.bytes
def test_numbers_of_rows_give_what_constants_give_at_any_batch_size(row_folder, tmp_path):
    folder = row_folder({'cloud': 0.5}, {}, {'cloud': '1'}, {'cloud': None})
    plain = row_folder({}, {}, {}, {}, name='plain')
    nothing, half_cloudy, cloudy = (
        run_fields(plain, tmp_path / str(value), constants=value and {'cloud': value}) for value in (None, 0.5, 1.0)
    )
    assert (half_cloudy[0] - nothing[0]).mean() == pytest.approx(0.1 * 127.5, abs=1)
    for size in (1, 3, 16):
        made = run_fields(folder, tmp_path / f'rows{size}', batch_size=size, variants=2)
        expected = [half_cloudy[0], nothing[1], cloudy[2], nothing[3]]
        assert all(np.array_equal(made[2 * n + v], image) for n, image in enumerate(expected) for v in (0, 1))
    rows = [entry.extra for entry in read_folder(tmp_path / 'rows1')]
    assert [row.get('field_cloud') for row in rows] == [0.5, 0.5, None, None, 1.0, 1.0, None, None]
    # a row's own value comes before the constant
    mixed = run_fields(folder, tmp_path / 'mixed', constants={'cloud': 1.0})
    assert np.array_equal(mixed, [half_cloudy[0], cloudy[1], cloudy[2], cloudy[3]])


@pytest.mark.parametrize('scale', [1, 4])
@pytest.mark.parametrize(
    'size, options',
    [
        ((32, 32), {}),
        ((30, 28), {}),
        ((64, 64), {'stages': 2}),
        ((8, 8), {'degraded': False}),
        ((7, 6), {'degraded': False, 'stages': 2}),
    ],
)
def test_a_rows_file_covers_the_ground_of_the_result(row_folder, tmp_path, scale, size, options):
    times = 1 if options.get('degraded', True) else 4 ** options.get('stages', 1)
    height, width = times * size[0], times * size[1]
    folder = row_folder({'mask': half(height, width, scale)}, {}, size=size)
    made, without = run_fields(folder, tmp_path / 'out', **options)
    difference = (made - without)[..., 0]
    # the mask is applied once per stage
    stages = options.get('stages', 1)
    assert difference.shape == (height, width)
    assert abs(difference[:, : width // 2 - 4] + 12.75 * stages).max() <= 1
    assert abs(difference[:, width // 2 + 4 :] - 12.75 * stages).max() <= 1


def test_values_of_masks_are_as_in_training(row_folder, tmp_path):
    """A palette is ignored, and classes are not averaged."""
    classes = np.random.default_rng(0).choice([0, 3, 250], (32, 32)).astype(np.uint8)
    mask = Image.frombytes('P', (32, 32), classes.tobytes())
    mask.putpalette([value for entry in range(256) for value in (255 - entry, 7, entry // 2)])
    folder = row_folder({'mask': classes})
    mask.save(folder / 'mask/0.png')
    seen = []
    sampler = ImageSampler(lambda condition, *_: seen.append(condition['mask']) or sample(condition, *_), fields=FIELDS)
    sample_folder(sampler, CLEAN, read_folder(folder), tmp_path / 'out', settings(degraded=True), {}, show=False)
    np.testing.assert_array_equal(seen[0][0, ..., 0], to_float(classes[1::2, 1::2]))


def test_what_fields_hold_is_part_of_the_folders_identity(row_folder, tmp_path):
    folder = row_folder({'mask': half(), 'cloud': 0.5})
    run_fields(folder, tmp_path / 'out')
    (row,) = read_folder(tmp_path / 'out')
    assert row.extra['field_mask'] == hashlib.sha256((folder / 'mask/0.png').read_bytes()).hexdigest()
    for changed in ({'mask': half(), 'cloud': 0.25}, {'mask': 255 - half(), 'cloud': 0.5}, {'mask': half()}):
        with pytest.raises(BadInput, match='sources_sha256'):
            run_fields(row_folder(changed), tmp_path / 'out')
    run_fields(row_folder({'mask': half(), 'cloud': 0.5, 'year': 2020}), tmp_path / 'out')


def test_fields_that_the_sampler_does_not_take_change_nothing(row_folder, tmp_path):
    folder = row_folder({'mask': half(), 'cloud': 0.5}, {})
    run_fields(folder, tmp_path / 'out', fields=())
    sources = [(f'{n}-0.png', hashlib.sha256((folder / f'{n}.png').read_bytes()).hexdigest(), 10.0) for n in range(2)]
    written = json.loads((tmp_path / 'out/settings.json').read_text())
    assert written['sources_sha256'] == hashlib.sha256(repr(sources).encode()).hexdigest()
    assert not any(key.startswith('field_') for entry in read_folder(tmp_path / 'out') for key in entry.extra)
    run_fields(row_folder({}, {}, name='plain'), tmp_path / 'absent', fields=FIELDS)
    for name in ('0-0.png', 'settings.json', 'metadata.jsonl'):
        assert (tmp_path / 'out' / name).read_bytes() == (tmp_path / 'absent' / name).read_bytes()


@pytest.mark.parametrize(
    'row, field, message',
    [
        ({}, Field('cloud'), r'1.png has no cloud, and this checkpoint needs cloud \(1 of 2'),
        ({}, Field('mask', 1, 2), '1.png has no mask_file_name, and this checkpoint needs mask'),
        ({'cloud': 'much'}, Field('cloud', needed=False), "cloud of 1.png is 'much'; it must be a number"),
    ],
)
def test_a_field_that_a_row_lacks_is_named(row_folder, tmp_path, row, field, message):
    folder = row_folder({'cloud': 0.5, 'mask': half()}, row)
    with pytest.raises(BadInput, match=message):
        run_fields(folder, tmp_path / 'out', fields=(field,))
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
    'mask, message',
    [
        (np.dstack([half(), half(), 255 - half()]), 'mask/0.png: it has colours, 3 channels; .* mask has one'),
        (half()[:20], r'mask/0.png: 32×20 px; its image has 32×32'),
        (half(8, 8), 'mask/0.png: 4 times coarser than its image'),
    ],
)
def test_an_image_whose_file_does_not_fit_is_skipped(row_folder, tmp_path, caplog, mask, message):
    with pytest.raises(BadInput, match=f'none of 1 images can be used: .*{message}'):
        run_fields(row_folder({'mask': mask}), tmp_path / 'none')
    assert len(run_fields(row_folder({'mask': mask}, {'mask': half()}), tmp_path / 'one')) == 1
    assert 'skipped' in caplog.text
