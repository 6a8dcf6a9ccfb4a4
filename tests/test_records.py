"""TFDS datasets as sources."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from rsdiff.base.errors import BadInput
from rsdiff.data import chips
from rsdiff.data.pipeline import DataConfig, batch_indices, batches, make_source
from rsdiff.data.records import write_chips


class Earth(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A foreign dataset: images of several sizes, with labels and no resolution."""

    VERSION = tfds.core.Version('2.0.0')
    url_infos = None

    def __init__(self, images, feature='image', file_format='array_record', **more):
        self.images, self.feature = images, feature
        super().__init__(file_format=file_format, **more)

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    self.feature: tfds.features.Image(shape=(None, None, 3), encoding_format='png'),
                    'label': tfds.features.ClassLabel(num_classes=2),
                }
            ),
        )

    def _split_generators(self, dl_manager):
        return {'train': self._generate_examples(0), 'test': self._generate_examples(1)}

    def _generate_examples(self, part):
        for number, image in enumerate(self.images[part::2]):
            yield str(number), {self.feature: image, 'label': number % 2}


def write_earth(folder, images, **more):
    builder = Earth(images, data_dir=str(folder), **more)
    builder.download_and_prepare(download_dir=folder / 'downloads')
    return folder


@pytest.fixture
def earth(tmp_path, smooth_image):
    """The folder of a dataset `earth` of 6 + 6 images."""
    images = [smooth_image(32, 32 + number, number) for number in range(12)]
    return write_earth(tmp_path / 'tfds', [chips.encode(image, 'png') for image in images])


def pixels(batch):
    return {np.sort(image.ravel()).tobytes() for image in batch['image']}


def test_a_dataset_of_tfds_is_a_source_by_name(earth, smooth_image):
    config = DataConfig(source='tfds:earth', tfds_data_dir=str(earth), size_px=32, gsd_m=5.0, validation_share=0)
    source = make_source(config)
    assert len(source) == 6 and 'train[0]' in source.name(0)
    # the one 32 × 32 px image of the six is used uncropped, rotated or flipped
    seen = set.union(*(pixels(batch) for batch, _ in zip(batches(source, config, 0, 3), range(2))))
    assert np.sort(smooth_image(32, 32, 0).ravel()).tobytes() in seen
    assert next(batches(source, config, 0, 3))['gsd_m'].tolist() == 3 * [5.0]


def test_hosts_threads_and_restarts_change_nothing(earth):
    one, many = (
        DataConfig(source='tfds:earth', tfds_data_dir=str(earth), size_px=16, gsd_m=5.0, reductions=(1, 2), threads=n)
        for n in (1, 6)
    )
    whole = [batch for batch, _ in zip(batches(make_source(one), one, 0, 4), range(6))]
    parts = [next(batches(make_source(many), many, 0, 4, 5, mine))['image'] for mine in ([0, 1], [2, 3])]
    np.testing.assert_array_equal(whole[5]['image'], np.concatenate(parts))


def test_validation_reads_its_own_split_or_records_that_are_not_trained_on(earth):
    config = DataConfig(source='tfds:earth', tfds_data_dir=str(earth), size_px=32, gsd_m=5.0, validation_split='test')
    train, validation = make_source(config), make_source(config, validation=True)
    batch = lambda source: next(batches(source, config, 0, 6))
    assert '/test[' in validation.name(0).replace(' ', '/') and not pixels(batch(train)) & pixels(batch(validation))
    part = DataConfig(source='tfds:earth', tfds_data_dir=str(earth), gsd_m=5.0)
    train, validation = make_source(part), make_source(part, validation=True)
    names = [source.name(number).rpartition(' ')[2] for source in (train, validation) for number in range(len(source))]
    assert len(validation) == 1 and names == [f'train[{number}]' for number in range(6)]


@pytest.mark.parametrize(
    'change, message',
    [
        ({'source': 'tfds:eurasia_nowhere'}, 'Dataset eurasia_nowhere not found'),
        ({'source': 'tfds:mnist'}, 'mnist: not prepared in'),
        ({'split': 'val'}, "no split 'val'; there are 'train', 'test'"),
        ({'gsd_m': None}, 'records have no gsd_m'),
    ],
)
def test_what_a_dataset_lacks_is_said(earth, change, message):
    with pytest.raises(BadInput, match=message) as error:
        make_source(DataConfig(**{'source': 'tfds:earth', 'tfds_data_dir': str(earth), 'gsd_m': 5.0} | change))
    assert '\n' not in str(error.value) and len(str(error.value)) < 400


def test_a_dataset_without_an_image_or_random_access_is_refused(tmp_path, smooth_image):
    images = [chips.encode(smooth_image(16, 16, number), 'png') for number in range(2)]
    config = DataConfig(source='tfds:earth', tfds_data_dir=str(tmp_path / 'a'), gsd_m=1.0)
    write_earth(tmp_path / 'a', images, feature='picture')
    with pytest.raises(BadInput, match='no feature "image" that is an image; there are label, picture'):
        make_source(config)
    folder = write_earth(tmp_path / 'b', images) / 'earth' / '2.0.0'
    info = json.loads((folder / 'dataset_info.json').read_text())
    (folder / 'dataset_info.json').write_text(json.dumps(info | {'fileFormat': 'tfrecord'}))
    with pytest.raises(BadInput, match='no random access'):
        make_source(DataConfig(source=str(folder), gsd_m=1.0))
    for text in ('{', '{"splits": 3}', '[]'):
        (folder / 'dataset_info.json').write_text(text)
        with pytest.raises(BadInput, match='not a TFDS dataset that can be read'):
            make_source(DataConfig(source=str(folder), gsd_m=1.0))


def test_broken_records_are_skipped_and_named(tmp_path, smooth_image, caplog):
    whole = [chips.encode(smooth_image(32, 32, number), 'png') for number in range(8)]
    whole[2], whole[6] = whole[2][:300], b'text'
    folder = write_earth(tmp_path, whole)
    config = DataConfig(source='tfds:earth', tfds_data_dir=str(folder), size_px=32, gsd_m=5.0, validation_share=0)
    source = make_source(config)
    drawn = [batch for batch, _ in zip(batches(source, config, 0, 4), range(3))]
    assert len(source.skipped) == 2 and caplog.text.count('skipped:') == 2
    assert pixels(drawn[0]) == {np.sort(smooth_image(32, 32, n).ravel()).tobytes() for n in (0, 4)}


def test_missing_and_cut_shards_are_named(earth):
    (shard,) = earth.glob('earth/2.0.0/earth-train*')
    config = DataConfig(source='tfds:earth', tfds_data_dir=str(earth), size_px=32, gsd_m=5.0, validation_share=0)
    whole = shard.read_bytes()
    for broken in (whole[:1000], b'', None):
        shard.unlink()
        if broken is not None:
            shard.write_bytes(broken)
        with pytest.raises(BadInput, match='none of 6 images.*not readable') as error:
            make_source(config).example(0, np.random.default_rng(0), 32)
        assert '\n' not in str(error.value)


def test_shards_outside_the_folder_are_refused(earth):
    info = earth / 'earth' / '2.0.0' / 'dataset_info.json'
    info.write_text(info.read_text().replace('{DATASET}-{SPLIT}', '../{DATASET}-{SPLIT}'))
    with pytest.raises(BadInput, match='its shards leave the folder'):
        make_source(DataConfig(source=str(info.parent), gsd_m=1.0))


def chip(image, name='a.png', gsd_m=2.0):
    return {
        'image': chips.encode(image, 'png'),
        'gsd_m': gsd_m,
        'label': 'field',
        'captions': ['one', 'two'],
        'source': 'somewhere',
        'file_name': name,
        'box': (0, 32, 64, 96),
    }


def test_chips_come_back_as_they_were_written(tmp_path, smooth_image):
    images = [smooth_image(32, 32, number) for number in range(5)]
    write_chips(
        tmp_path,
        {
            'train': lambda: ((str(n), chip(images[n], gsd_m=2.0 + n)) for n in range(4)),
            'validation': lambda: [('x', chip(images[4]))],
        },
        'png',
    )
    for folder in (tmp_path, tmp_path / 'chips' / '1.0.0'):
        config = DataConfig(source=str(folder), size_px=32, validation_split='validation')
        source, validation = make_source(config), make_source(config, validation=True)
        batch = next(batches(source, config, 0, 4))
        assert pixels(batch) == {np.sort(image.ravel()).tobytes() for image in images[:4]}
        assert sorted(batch['gsd_m']) == [2, 3, 4, 5] and len(validation) == 1
        assert source.name(batch_indices(source, 0, 4, 0)[0]).endswith('= somewhere/a.png (0, 32, 64, 96)')
    by_tfds = {
        tuple(x['captions']) + (x['label'], tuple(x['box']))
        for x in tfds.data_source('chips', data_dir=tmp_path, split='train', download=False)
    }
    assert by_tfds == {(b'one', b'two', b'field', (0, 32, 64, 96))}


def test_a_record_of_impossible_resolution_is_skipped(tmp_path, smooth_image):
    write_chips(
        tmp_path,
        {
            'train': lambda: (
                (str(n), chip(smooth_image(32, 32, n), gsd_m=(-1.0, 0.0, np.nan, 3.0)[n])) for n in range(4)
            )
        },
        'png',
    )
    config = DataConfig(source=str(tmp_path), size_px=32, validation_share=0)
    source = make_source(config)
    assert next(batches(source, config, 0, 4))['gsd_m'].tolist() == 4 * [3.0] and len(source.skipped) == 3


def test_an_interrupted_dataset_is_not_there(tmp_path, smooth_image):
    def interrupted():
        yield '0', chip(smooth_image(32, 32))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_chips(tmp_path, {'train': interrupted}, 'png')
    with pytest.raises(BadInput, match='no images'):
        make_source(DataConfig(source=str(tmp_path)))
    # left behind by a killed process
    (tmp_path / 'chips' / 'incomplete.ABCDEF_1.0.0').mkdir(parents=True)
    write_chips(tmp_path, {'train': lambda: [('0', chip(smooth_image(32, 32)))]}, 'png')
    assert [path.name for path in (tmp_path / 'chips').iterdir()] == ['1.0.0']
    assert len(make_source(DataConfig(source=str(tmp_path)))) == 1


def test_tensorflow_is_never_imported(tmp_path, smooth_image):
    write_chips(tmp_path, {'train': lambda: [('0', chip(smooth_image(32, 32)))]}, 'png')
    code = (
        'import sys, numpy; from rsdiff.data.pipeline import DataConfig, make_source;'
        f'make_source(DataConfig(source={str(tmp_path)!r})).example(0, numpy.random.default_rng(0), 32);'
        'assert "tensorflow" not in sys.modules'
    )
    subprocess.run([sys.executable, '-c', code], check=True, cwd=Path(__file__).parents[1])


def test_a_half_copied_dataset_is_not_taken_for_an_image_folder(tmp_path, smooth_image):
    write_chips(tmp_path / 'a', {'train': lambda: [('0', chip(smooth_image(32, 32)))]}, 'png')
    shutil.copytree(tmp_path / 'a', tmp_path / 'b')
    (tmp_path / 'b' / 'chips' / '1.0.0' / 'features.json').unlink()
    with pytest.raises(BadInput, match='no images'):
        make_source(DataConfig(source=str(tmp_path / 'b'), gsd_m=1.0))
