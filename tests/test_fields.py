"""Fields beside the image: all cover the same ground, masks are not interpolated, and values may be missing."""

import dataclasses
import json

import numpy as np
import pytest
import tiny
from PIL import Image

from rsdiff.base.errors import BadInput
from rsdiff.data.degradation import LIGHT
from rsdiff.data.fields import Field
from rsdiff.data.folder import Entry, file_key, write_manifest
from rsdiff.data.images import write_image
from rsdiff.data.inventory import take_inventory
from rsdiff.data.pipeline import DataConfig, batches, make_source
from rsdiff.methods.base import fields_to_read, fields_to_train, prepared_batch
from rsdiff.methods.diffusion import DiffusionConfig
from rsdiff.models.conditioning import GSD_M, Number, Spatial, Tokens
from rsdiff.models.unet import UNetConfig
from rsdiff.training.config import TrainConfig, from_dict, to_dict
from rsdiff.training.loop import train

SIDE = 128


def places(pixel_px=1.0, mark=0):
    """An image of SIDE × SIDE ground pixels at `pixel_px` ground pixels per pixel. Red and green are twice the row and
    column of the pixel's centre (rounded), blue is `mark`."""
    middle = (np.arange(int(SIDE / pixel_px)) + 0.5) * pixel_px - 0.5
    y, x = np.meshgrid(2 * middle, 2 * middle, indexing='ij')
    return np.rint(np.stack([y, x, np.full_like(y, mark)], -1)).clip(0, 255).astype(np.uint8)


@pytest.fixture
def make(tmp_path):
    """({field: array or extra value}, one per row) → a config that reads the folder."""

    def make(*rows, reductions=(1,), **options):
        entries = []
        for number, row in enumerate(rows):
            extra = {key: value for key, value in row.items() if not isinstance(value, np.ndarray | Image.Image)}
            for field, pixels in row.items():
                if field not in extra:
                    name = f'{field}/{number}.png'
                    (tmp_path / field).mkdir(exist_ok=True)
                    pixels = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
                    pixels.save(tmp_path / name)
                    if field != 'image':
                        extra[file_key(field)] = name
            entries.append(Entry(tmp_path / f'image/{number}.png', f'image/{number}.png', gsd_m=2.0, extra=extra))
        write_manifest(tmp_path, entries)
        return DataConfig(
            **{'source': str(tmp_path), 'size_px': 32, 'reductions': reductions, 'validation_share': 0} | options
        )

    return make


def take(config, fields, count=8, n=2):
    stream = batches(make_source(config, fields=fields), config, 0, count)
    several = [next(stream) for _ in range(n)]
    return {name: np.concatenate([batch[name] for batch in several]) for name in several[0]}


def blocks(images, scale):
    """The mean of each block, (b, h / scale, w / scale, channels)."""
    b, h, w, c = images.shape
    return images.reshape(b, h // scale, scale, w // scale, scale, c).astype(float).mean((2, 4))


FIELDS = {
    'before': (places(mark=1), 1),
    'coarse': (places(mark=2), 8),
    'lr': (places(4, mark=3), 4),
    'reduced': (places(2, mark=4), 4),
    'fine': (places(0.5, mark=5), 1),
    'place_mask': (places(mark=6), 4),
    'fine_mask': (places(0.5, mark=7), 2),
    'late_mask': (places(4, mark=8), 4),
}


@pytest.mark.parametrize('reductions', [(1,), (1, 2), (4,)])
def test_every_field_shows_the_ground_of_the_image_in_the_same_turn(make, reductions):
    config = make({'image': places()} | {name: pixels for name, (pixels, _) in FIELDS.items()}, reductions=reductions)
    fields = [Field(name, 3, scale) for name, (_, scale) in FIELDS.items()]
    got = take(config, fields, 16, 3)
    for mark, (name, (_, scale)) in enumerate(FIELDS.items(), 1):
        assert got[name].dtype == np.uint8 and got[name].shape == (48, 32 // scale, 32 // scale, 3)
        assert (got[name][..., 2] == mark).all()
        # a mask pixel is the one nearest to the middle of its block: less than half a block off
        block = scale * max(reductions)
        allowed = 1.01 + (block if name.endswith('mask') else 0)
        assert np.abs(got[name][..., :2] - blocks(got['image'], scale)[..., :2]).max() <= allowed, name
    down, right = (np.sign(np.diff(got['image'].astype(int)[:, :, :, :2], axis=axis).mean((1, 2))) for axis in (1, 2))
    assert len({(*a, *b) for a, b in zip(down, right)}) == 8, 'all eight symmetries were seen'
    assert len({image[..., :2].min() for image in got['image']}) > (4 if max(reductions) < 4 else 0), 'many places'


def test_fields_of_the_images_size_leave_its_crops_as_they_are(make):
    config = make(
        {'image': places(), 'before': places(mark=1), 'year': 2020}, {'image': places(mark=9)}, reductions=(1, 2)
    )
    plain = take(config, ())
    assert {*plain} == {'image', 'gsd_m'}
    absent = take(config, [Field('after', 3, needed=False), Field('month', needed=False)])
    fields = [Field('before', 3, needed=False), Field('year', needed=False)]
    for other in (absent, take(config, fields)):
        assert all(np.array_equal(plain[name], other[name]) for name in plain)
    assert {*absent} == {*plain}, 'what no row has is no part of the batch'


@pytest.mark.parametrize('kind', ['grey', 'palette', 'geotiff'])
def test_masks_are_never_averaged(make, tmp_path, kind):
    classes = np.random.default_rng(0).choice([0, 3, 250], (SIDE, SIDE)).astype(np.uint8)
    mask = Image.fromarray(classes)
    if kind == 'palette':
        mask = Image.frombytes('P', mask.size, mask.tobytes())
        mask.putpalette([value for entry in range(256) for value in (255 - entry, 7, entry // 2)])
    config = make({'image': places(), 'mask': mask}, reductions=(1, 2))
    if kind == 'geotiff':
        rasterio = pytest.importorskip('rasterio', reason='GeoTIFFs need the `geo` extra')
        profile = dict(driver='GTiff', height=SIDE, width=SIDE, count=1, dtype='uint8', photometric='palette', nodata=0)
        with rasterio.open(tmp_path / 'mask/0.tif', 'w', **profile) as file:
            file.write(classes[None])
            file.write_colormap(1, {entry: (255 - entry, 7, entry // 2, 255) for entry in range(256)})
        (tmp_path / 'mask/0.tif').rename(tmp_path / 'mask/0.png')
    got = take(config, [Field('mask', 1, 4)])['mask']
    assert got.shape == (16, 8, 8, 1) and {*np.unique(got)} == {0, 3, 250}


def test_what_a_row_lacks_is_nan_and_what_is_needed_is_uint8(make):
    both = {'image': places(mark=1), 'before': places(mark=1), 'mask': places()[..., 0] // 128, 'cloud': 0.25}
    config = make(both, {'image': places(mark=2), 'mask': places()[..., 0] // 128})
    got = take(
        config, [Field('before', 3, 2, needed=False), Field('mask', 1), Field('cloud', needed=False)], count=8, n=2
    )
    has = got['image'][:, 0, 0, 2] == 1
    assert 0 < has.sum() < len(has)
    assert got['before'].dtype == np.float32 and got['before'].shape == (16, 16, 16, 3)
    assert np.isnan(got['before'][~has]).all() and np.abs(got['before'][has]).max() <= 1
    assert got['cloud'].dtype == np.float32 and np.isnan(got['cloud'][~has]).all() and (got['cloud'][has] == 0.25).all()
    assert got['mask'].dtype == np.uint8 and got['mask'].max() == 1
    # the network gets the same values from uint8 and from float32
    needed = take(make(both), [Field('before', 3, 2)])['before']
    float32 = take(make(both), [Field('before', 3, 2, needed=False)])['before']
    fields = {'before': Spatial(3, 2)}
    conditions = [
        prepared_batch(fields, None, (), {'image': got['image'][:16], 'before': before}, None)['condition']['before']
        for before in (needed, float32)
    ]
    np.testing.assert_allclose(*conditions, atol=1e-6)


@pytest.mark.parametrize(
    'field, message',
    [
        (Field('before', 3), r'no before_file_name for 1 of 2 images \(image/1.png, …\).* image/0.png has one'),
        (Field('lr', 3, 4), r'no low_res_file_name for 2 of 2 .*no row has one'),
        (Field('year'), r'no year for 1 of 2 images .*needs year; image/0.png has one'),
        (Field('sensor', needed=False), "sensor of image/0.png is 'S2'; it must be a number"),
        (Field('before', 2, needed=False), 'before has 2 channels'),
        (Field('image', 3), 'image is part of every crop'),
    ],
)
def test_what_the_manifest_can_not_give_is_refused_in_one_line(make, field, message):
    config = make({'image': places(), 'before': places(), 'year': 2020, 'sensor': 'S2'}, {'image': places()})
    with pytest.raises(BadInput, match=message) as error:
        make_source(config, fields=[field])
    assert config.source in str(error.value) or field.name == 'image'
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    'other, field, message',
    [
        (places()[:100], Field('before', 3), '128×100 px; its image has 128×128'),
        (places(8), Field('before', 3, 4), 'before/0.png: 8 times coarser than its image'),
        (places(), Field('before', 1), 'before/0.png: it has colours'),
    ],
)
def test_a_file_that_does_not_fit_its_image_is_named(make, other, field, message):
    source = make_source(make({'image': places(), 'before': other}), fields=[field])
    with pytest.raises(BadInput, match=message):
        source.example(0, np.random.default_rng(0), 32)
    assert len(source.skipped) == 1


def test_a_remainder_at_the_far_edges_is_left_out(make):
    config = make({'image': places()[:127, :126], 'lr': places(4)[:31, :31]})
    got = take(config, [Field('lr', 3, 4)])
    assert np.abs(got['lr'][..., :2] - blocks(got['image'], 4)[..., :2]).max() <= 1.01
    assert got['image'].max() <= 2 * 123


def test_gaps_of_an_earlier_image_are_passed_over_and_those_of_a_mask_are_values(make):
    with_gap = np.dstack([places(mark=1), np.where(np.arange(SIDE) < 64, 255, 0) * np.ones((SIDE, 1), int)])
    row = {'image': places(), 'before': with_gap.astype(np.uint8), 'mask': with_gap.astype(np.uint8)}
    config = make(row)
    assert take(config, [Field('before', 3)])['image'][..., 1].max() < 128
    assert take(config, [Field('mask', 3)])['image'][..., 1].max() > 128


def test_hosts_and_restarts_get_the_same_fields(make):
    config = make(*({'image': places(mark=n), 'lr': places(4), 'year': n} for n in range(5)), reductions=(1, 2))
    source = make_source(config, fields=[Field('lr', 3, 4), Field('year')])
    stream = batches(source, config, 0, 4)
    whole = [next(stream) for _ in range(3)]
    part = next(batches(source, config, 0, 4, 2, [3, 1]))
    assert all(np.array_equal(whole[2][name][[3, 1]], part[name]) for name in whole[2])
    assert (whole[2]['year'] == whole[2]['image'][:, 0, 0, 2]).all()


def test_sources_without_fields_refuse_a_network_that_needs_them(tmp_path):
    fields = [Field('before', 3), Field('cloud', needed=False)]
    records = pytest.importorskip('rsdiff.data.records')
    image = records.io.BytesIO()
    Image.fromarray(places()).save(image, 'PNG')
    example = {
        'image': image.getvalue(),
        'gsd_m': 1.0,
        'label': '',
        'captions': [],
        'source': 'x',
        'file_name': 'a.png',
    }
    records.write_chips(tmp_path, {'train': lambda: [('0', example | {'box': (0, 0, 128, 128)})]}, 'png')
    config = DataConfig(source=str(tmp_path), size_px=32, validation_share=0)
    with pytest.raises(BadInput, match='the network needs before; train on a folder with before_file_name'):
        make_source(config, fields=fields)
    assert {*make_source(config, fields=fields[1:]).example(0, np.random.default_rng(0), 32)} == {'image', 'gsd_m'}
    with pytest.raises(BadInput, match='blue_marble: has only image and gsd_m'):
        make_source(DataConfig(), fields=fields)


def test_datasets_of_hugging_face_refuse_them_too(tmp_path):
    datasets = pytest.importorskip('datasets', reason='the `hf` extra brings it')
    rows = {'image': [Image.fromarray(places())], 'gsd_m': [1.0]}
    datasets.Dataset.from_dict(rows).cast_column('image', datasets.Image()).save_to_disk(str(tmp_path / 'saved'))
    with pytest.raises(BadInput, match='hf:.*the network needs year'):
        make_source(DataConfig(source=f'hf:{tmp_path / "saved"}', validation_share=0), fields=[Field('year')])


def test_data_bring_what_a_network_takes_but_what_is_made():
    model = UNetConfig(
        spatial={'lr': Spatial(), 'before': Spatial(3, 1, droppable=True), 'mask': Spatial(1, 2)},
        numbers={'gsd_m': GSD_M, 'cloud': Number(), 'month': Number('cyclic', 0, 12, droppable=True)},
        tokens={'text': Tokens()},
    )
    assert fields_to_read(model.fields) == (
        Field('before', 3, 1, needed=False),
        Field('mask', 1, 2),
        Field('cloud'),
        Field('month', needed=False),
    )
    assert fields_to_read(DiffusionConfig().model.fields) == ()


def test_files_and_numbers_of_fields_are_part_of_what_was_trained_on(make, tmp_path, smooth_image):
    config = make({'image': places(), 'before': smooth_image(SIDE, SIDE), 'mask': places()[..., 0], 'year': 2020})
    look = lambda fields: take_inventory(make_source(config, fields=fields), config.source)
    fields = [Field('before', 3), Field('mask', 1), Field('year')]
    plain, whole = look([]), look(fields)
    name = tmp_path.name
    assert {*plain.digests} == {'image/0.png'} and plain.digests.items() <= whole.digests.items()
    assert {*whole.digests} - {*plain.digests} == {f'image/0.png:{field.name}' for field in fields}
    assert whole.trained_on.names == (f'{name}/image/0.png', f'{name}/before/0.png')
    write_image(tmp_path / 'mask/0.png', places())
    changed = {key for key, digest in look(fields).digests.items() if digest != whole.digests[key]}
    assert changed == {'image/0.png:mask'}


LR = Field('lr', 3, 4, needed=False, made=True)


def paired(mark=0, **more):
    return {'image': places(mark=mark), 'lr': places(4, mark=mark + 100)} | more


def test_lr_is_read_where_rows_have_it_and_else_made():
    assert fields_to_train(DiffusionConfig().model.fields) == (LR,)
    model = UNetConfig(spatial={'lr': Spatial(), 'mask': Spatial(1, 2)})
    assert fields_to_train(model.fields) == (LR, Field('mask', 1, 2))


@pytest.mark.parametrize('reductions', [(1,), (1, 2)])
def test_pairs_of_sensors_show_the_same_ground_and_are_not_degraded(make, reductions):
    config = make(*(paired(mark=mark) for mark in range(4)), reductions=reductions)
    got = take(config, [LR])
    assert got['lr'].dtype == np.uint8 and got['lr'].shape == (16, 8, 8, 3)
    assert np.abs(got['lr'][..., :2] - blocks(got['image'], 4)[..., :2]).max() <= 1.01
    assert (got['lr'][:, 0, 0, 2] == got['image'][:, 0, 0, 2] + 100).all(), 'each image has its own'
    condition = prepared_batch({'lr': Spatial()}, None, (), got, None)['condition']
    np.testing.assert_allclose(condition['lr'], got['lr'] / np.float32(127.5) - 1, atol=1e-6)


def test_without_pairs_batches_are_what_they_were(make):
    config = make(*({'image': places(mark=mark)} for mark in range(4)), reductions=(1, 2))
    plain, now = take(config, ()), take(config, [LR])
    assert {*plain} == {*now} and all(np.array_equal(plain[name], now[name]) for name in plain)


@pytest.mark.parametrize('splits', [('train', 'train', 'val'), ('train', 'val', 'train'), (None,) * 3])
def test_pairs_and_made_conditions_are_not_mixed(make, splits):
    rows = [paired() if number == 0 else {'image': places(mark=number)} for number in range(3)]
    config = make(*(row | {'split': split} for row, split in zip(rows, splits)), validation_share=0.5)
    for validation in (False, True):
        with pytest.raises(BadInput, match=r'image/0.png has a low_res_file_name, but 2 of 3 .*image/\d.png') as error:
            make_source(config, validation, [LR])
        assert '\n' not in str(error.value)


def test_images_that_are_neither_trained_nor_validated_on_need_no_pair(make):
    config = make(paired(split='train'), paired(split='val'), {'image': places(), 'split': 'test'})
    for validation in (False, True):
        assert 'lr' in make_source(config, validation, [LR]).example(0, np.random.default_rng(0), 32)


@pytest.mark.parametrize('pixel_px, size', [(2, 64), (8, 16), (1, 128)])
def test_a_pair_of_another_ratio_is_named_with_its_sizes(make, pixel_px, size):
    source = make_source(make({'image': places(), 'lr': places(pixel_px)}), fields=[LR])
    with pytest.raises(BadInput, match=rf'lr/0.png: {size}×{size} px; its image has 128×128; .* lr 4 times') as error:
        source.example(0, np.random.default_rng(0), 32)
    assert '\n' not in str(error.value)


MODEL = tiny.MODEL | dict(
    spatial={
        'lr': dict(features=8, growth=4, blocks=0),
        'before': dict(scale=1, features=8, growth=4, blocks=0, droppable=True),
        'mask': dict(channels=1, scale=2, features=8, growth=4, blocks=0),
    },
    numbers={'gsd_m': dataclasses.asdict(GSD_M), 'cloud': dict(droppable=True)},
)


def test_a_network_of_several_fields_trains_on_them(make, tmp_path):
    rows = [{'image': places(mark=n), 'mask': places()[..., 0] // 64} for n in range(4)]
    data = make(rows[0] | {'before': places(mark=9), 'cloud': 0.5}, *rows[1:], validation_share=0.0)
    config = from_dict(
        TrainConfig,
        {
            'method': {'model': MODEL, 'drops': ({'fields': ('before', 'cloud')},)},
            'data': {'source': data.source, 'size_px': 16, 'validation_share': 0.0, 'threads': 1},
            'degradation': to_dict(LIGHT),
            'batch_size': 8,
            'total_images': 16,
            'validation': {'every_images': 10**6, 'examples': 8, 'samples': 2, 'grid': 1, 'bins': 1, 'steps': 1},
        },
    )
    result = train(config, tmp_path / 'run', show=False)
    assert result['finished'] and np.isfinite(result['validation_loss'])


def test_a_network_trains_on_pairs_of_sensors(make, tmp_path, monkeypatch):
    def degrade(*_):
        raise AssertionError('a given condition is not degraded')

    monkeypatch.setattr('rsdiff.methods.base.degrade', degrade)
    data = make(*(paired(mark=mark) for mark in range(4)), validation_share=0.5)
    config = from_dict(
        TrainConfig,
        {
            'method': {'model': MODEL | {'spatial': {'lr': MODEL['spatial']['lr']}, 'numbers': {}}},
            'data': {'source': data.source, 'size_px': 16, 'validation_share': 0.5, 'threads': 1},
            'batch_size': 8,
            'total_images': 8,
            'validation': {'every_images': 10**6, 'examples': 8, 'samples': 2, 'grid': 1, 'bins': 1, 'steps': 1},
        },
    )
    judged = {}
    judge = lambda samples, truths, conditions: judged.update(truth=truths, lr=conditions) or {}
    result = train(config, tmp_path / 'run', show=False, judge=judge)
    assert result['finished'] and np.isfinite(result['validation_loss'])
    assert np.abs(judged['lr'][..., :2] - blocks(judged['truth'], 4)[..., :2]).max() <= 1.01
    assert (judged['lr'][..., 2] == judged['truth'][:, :1, :1, 2] + 100).all(), 'the file, not a degraded image'
    digests = json.loads((tmp_path / 'run/training_data.json').read_text())['files']
    assert len([name for name in digests if name.endswith(':lr')]) == len(digests) / 2
