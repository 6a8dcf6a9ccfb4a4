"""Damaged or made-up files: each is read, or refused in a one-line error that names it."""

import contextlib
import io
import json
import pickle
import struct
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from rsdiff.base.errors import BadInput
from rsdiff.base.files import read_json
from rsdiff.base.folders import claim_folder
from rsdiff.data.fingerprints import TrainedOn, read_fingerprints, write_fingerprints
from rsdiff.data.folder import read_folder
from rsdiff.data.images import read_image, read_masked
from rsdiff.downstream import compare
from rsdiff.downstream.arms import Arm
from rsdiff.downstream.embedded import FOLDER, embedded_encoder
from rsdiff.downstream.encoder import byte_tokenizer, load_tokenizer
from rsdiff.downstream.problems.classification import Classification
from rsdiff.pretrained import towers, weights
from rsdiff.pretrained.clip import CLIPConfig
from rsdiff.pretrained.foreign_pickle import read_pickled_arrays, read_torch
from rsdiff.pretrained.siglip import SiglipConfig
from rsdiff.sampling.export.formats import open_finished
from rsdiff.sampling.mosaic.cascade import MosaicSettings, claim
from rsdiff.sampling.mosaic.plan import make_plan
from rsdiff.sampling.mosaic.store import GROUP, StageArray
from rsdiff.training.config import TrainConfig, from_dict, to_dict
from rsdiff.training.metrics import read_metrics


def damage(examples):
    """Settings for the same examples in every run, with no database of earlier examples."""
    return settings(
        max_examples=examples, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
    )


ODD_TEXTS = '', '\0', '../x', '/', 'a' * 5000, '\ud800', 'é☃', 'NaN', '1e999', '{}', '%s', '\n', '\u2028', 'con fig'
ODD_NUMBERS = 0, -1, 1, 2**31, 2**63, 10**30, -(2**63), 0.5, 1e308, float('nan'), float('inf'), -0.0, 1e-320
ODD = st.one_of(
    st.sampled_from(ODD_TEXTS),
    st.sampled_from(ODD_NUMBERS),
    st.none(),
    st.booleans(),
    st.builds(list),
    st.builds(dict),
    st.just([[1, 'a'], None]),
    st.just({'a': {'b': 1}}),
    st.integers(1, 300).map(lambda depth: json.loads('[' * depth + ']' * depth)),
)


@st.composite
def damaged(draw, whole):
    """Bytes: `whole` truncated, changed, with bytes inserted or repeated; or arbitrary bytes."""
    kind = draw(st.sampled_from(['cut', 'change', 'change', 'put in', 'repeat', 'any']))
    at = draw(st.integers(0, len(whole)))
    if kind == 'cut':
        return whole[:at]
    if kind == 'put in':
        return whole[:at] + draw(st.binary(min_size=1, max_size=16)) + whole[at:]
    if kind == 'repeat':
        return whole[:at] + whole[: draw(st.integers(0, len(whole)))]
    if kind == 'any':
        return draw(st.binary(max_size=64))
    changed = bytearray(whole)
    # half of them in the header, where most of the structure is
    reach = st.one_of(st.integers(0, min(64, len(whole) - 1)), st.integers(0, len(whole) - 1))
    for place in draw(st.lists(reach, min_size=1, max_size=8)):
        changed[place] = draw(st.one_of(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]), st.integers(0, 255)))
    return bytes(changed)


@st.composite
def changed(draw, value):
    """Plain nested data with one item replaced by an odd value, removed, or added."""
    if isinstance(value, (dict, list)) and value and draw(st.integers(0, 9)):
        keys = list(value) if isinstance(value, dict) else range(len(value))
        key, copy = draw(st.sampled_from(keys)), value.copy()
        todo = draw(st.sampled_from(['change'] * 8 + ['leave out', 'put in']))
        if todo == 'leave out':
            del copy[key]
        elif todo == 'put in' and isinstance(value, dict):
            copy[draw(st.sampled_from(ODD_TEXTS))] = draw(ODD)
        else:
            copy[key] = draw(changed(value[key]))
        return copy
    return draw(ODD)


def damaged_json(value):
    """`value` or a variant of it as JSON, or damaged JSON; bytes."""
    text = json.dumps(value).encode()
    others = changed(value).map(lambda other: json.dumps(other).encode())
    return st.one_of(others, others, damaged(text))


def is_read_or_refused(read, name):
    try:
        return read()
    except BadInput as error:
        message = str(error)
        assert '\n' not in message and name in message, message
        assert len(message) < 1000 + message.count(name) * 300, message


@contextlib.contextmanager
def damaged_file(path, data):
    """Damages the JSON file at `path`, and restores it afterwards."""
    kept = path.read_bytes()
    path.write_bytes(data.draw(damaged_json(json.loads(kept))))
    try:
        yield
    finally:
        path.write_bytes(kept)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('damaged')


ROWS = [
    {
        'file_name': 'a.png',
        'split': 'train',
        'label': 'x',
        'captions': ['one', 'two'],
        'gsd_m': 0.5,
        'more': {'a': [1]},
    },
    {'file_name': 'b.png', 'split': 'val', 'text': 'three', 'mask_file_name': 'c.png'},
]


@pytest.fixture(scope='module', params=['metadata.jsonl', 'metadata.csv'])
def listed(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    for name in 'a.png', 'b.png':
        (folder / name).touch()
    return folder, request.param


LINES = st.one_of(
    st.tuples(*map(changed, ROWS)).map(lambda rows: '\n'.join(map(json.dumps, rows)).encode()),
    damaged('\n'.join(map(json.dumps, ROWS)).encode()),
)
TABLE = damaged('file_name,split,label,text,gsd_m\na.png,train,x,"one, two",0.5\nb.png,val,y,é,\n'.encode())


@damage(120)
@given(data=st.data())
def test_manifests(listed, data):
    folder, name = listed
    (folder / name).write_bytes(data.draw(LINES if name.endswith('jsonl') else TABLE))
    is_read_or_refused(lambda: read_folder(folder), str(folder))


@damage(100)
@given(content=damaged_json({'mode': 'x', 'numbers': [1, 2.5], 'nested': {'a': None}}))
def test_json_and_settings(folder, content):
    path = folder / 'settings.json'
    path.write_bytes(content)
    is_read_or_refused(lambda: read_json(path, 'remove it'), str(path))
    is_read_or_refused(lambda: claim_folder(folder, {'mode': 'x', 'numbers': [1, 2.5]}), str(folder))


@damage(300)
@given(
    content=damaged_json(
        to_dict(TrainConfig())
        | {'data': to_dict(TrainConfig().data) | {'bands': [1, 2, 3], 'gsd_m': 1.0, 'value_range': [0, 9]}}
    )
)
def test_configs(folder, content):
    path = folder / 'config.json'
    path.write_bytes(content)
    config = is_read_or_refused(lambda: from_dict(TrainConfig, read_json(path), str(path)), str(path))
    assert config is None or from_dict(TrainConfig, json.loads(json.dumps(to_dict(config)))) == config


METRICS = [{'images_seen': 1, 'loss': 0.5}, {'images_seen': 2, 'losses': [1.0, None]}]


@damage(100)
@given(
    content=st.one_of(
        st.tuples(*map(changed, METRICS)).map(lambda rows: '\n'.join([*map(json.dumps, rows), '']).encode()),
        damaged('\n'.join([*map(json.dumps, METRICS), '']).encode()),
    )
)
def test_metrics(folder, content):
    (folder / 'metrics.jsonl').write_bytes(content)
    is_read_or_refused(lambda: read_metrics(folder), str(folder / 'metrics.jsonl'))


def whole_fingerprints(folder):
    write_fingerprints(
        folder / 'whole.npz', TrainedOn(('a', 'b'), np.arange(320, dtype=np.uint8).reshape(2, 160), ('c',))
    )
    return (folder / 'whole.npz').read_bytes()


@damage(150)
@given(data=st.data())
def test_fingerprints(folder, data):
    path = folder / 'x.npz'
    path.write_bytes(data.draw(damaged(whole_fingerprints(folder))))
    is_read_or_refused(lambda: read_fingerprints(path), str(path))


CELL = compare.Cell('linear', Arm('real', 0), 2, 0)
CELL_ROW = {
    'digest': 'd',
    'method': 'linear',
    'arm': 'real',
    'shots': 2,
    'ratio': 0,
    'seed': 0,
    'accuracy': 0.5,
    'macro_f1': 1 / 3,
    'confusion': [[1, 0], [1, 0]],
    'predictions': [0, 0],
}


@damage(120)
@given(content=damaged_json(CELL_ROW))
def test_cells(folder, content):
    path = folder / 'cell.json'
    path.write_bytes(content)
    task = SimpleNamespace(evaluation=SimpleNamespace(labels=np.array([0, 1])))
    problems = {'linear': Classification(('a', 'b'), lambda examples, seed: [])}
    laboratory = SimpleNamespace(path=lambda cell: path, digests={'linear': 'd'}, task=task, problems=problems)
    laboratory._scores_follow = lambda cell, row: compare._Laboratory._scores_follow(laboratory, cell, row)
    row = is_read_or_refused(lambda: compare._Laboratory.read(laboratory, CELL), str(path))
    assert row is None or row['confusion'] == CELL_ROW['confusion']


TENSORS = {'a.kernel': np.ones((2, 3), np.float32), 'b.0.bias': np.zeros(4, np.float16), 'b.1': np.arange(3)}
HEADER = {
    'a': {'dtype': 'F32', 'shape': [2], 'data_offsets': [0, 8]},
    'b.0': {'dtype': 'BF16', 'shape': [2, 2], 'data_offsets': [8, 16]},
    '__metadata__': {'format': 'pt'},
}
DTYPES = 'F64', 'F16', 'I64', 'U8', 'BOOL', 'F8_E4M3', 'F8_E5M2', 'F8_E8M0', 'F4', 'F6_E2M3', 'C64', 'X'


@st.composite
def safetensors(draw, folder):
    if draw(st.booleans()):
        weights.write_safetensors(folder / 'whole', TENSORS, {'images_seen': '3'})
        return draw(damaged((folder / 'whole').read_bytes()))
    header = draw(changed(HEADER))
    if isinstance(header, dict) and isinstance(header.get('a'), dict):
        header['a'] = header['a'] | {'dtype': draw(st.sampled_from(DTYPES))}
    text = json.dumps(header).encode()
    return struct.pack('<Q', len(text)) + text + bytes(16)


@damage(150)
@given(data=st.data())
def test_safetensors(folder, data):
    path = folder / 'x.safetensors'
    path.write_bytes(data.draw(safetensors(folder)))
    is_read_or_refused(lambda: weights.unflatten(weights.read_safetensors(path), path), str(path))
    is_read_or_refused(lambda: weights.read_safetensors_metadata(path), str(path))


@damage(150)
@given(content=damaged(pickle.dumps({'a': np.ones((2, 3), 'f4'), 'b': {'c': np.arange(3)}}, 3)))
def test_pickles(folder, content):
    (folder / 'x.pkl').write_bytes(content)
    is_read_or_refused(lambda: read_pickled_arrays(folder / 'x.pkl'), str(folder / 'x.pkl'))


@pytest.fixture(scope='module', params=[True, False], ids=['zip', 'legacy'])
def whole_torch(request):
    torch = pytest.importorskip('torch', reason='writes the files')
    file = io.BytesIO()
    torch.save(
        {'state_dict': {'a.weight': torch.ones(2, 3), 'b': torch.arange(3)}, 'step': 3},
        file,
        _use_new_zipfile_serialization=request.param,
    )
    return file.getvalue()


@damage(120)
@given(data=st.data())
def test_torch(folder, whole_torch, data):
    (folder / 'x.pth').write_bytes(data.draw(damaged(whole_torch)))
    is_read_or_refused(lambda: read_torch(folder / 'x.pth', 'state_dict'), str(folder / 'x.pth'))


def encoded(format, **options):
    file = io.BytesIO()
    Image.fromarray(np.arange(16 * 12 * 3, dtype=np.uint8).reshape(16, 12, 3)).save(file, format, **options)
    return file.getvalue()


EXIF = Image.Exif()
EXIF[0x0112] = 6
PICTURES = {
    'PNG': encoded('PNG', exif=EXIF),
    'JPEG': encoded('JPEG', exif=EXIF),
    'TIFF': encoded('TIFF'),
    'WEBP': encoded('WEBP'),
    'BMP': encoded('BMP'),
    'GIF': encoded('GIF'),
}


@pytest.mark.parametrize('format', PICTURES)
@damage(80)
@given(data=st.data())
def test_images(folder, format, data):
    path = folder / f'x.{format.lower()}'
    path.write_bytes(data.draw(damaged(PICTURES[format])))
    image = is_read_or_refused(lambda: read_image(path), str(path))
    assert image is None or image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
    is_read_or_refused(lambda: read_masked(path, value_range=(0, 9)), str(path))


@pytest.fixture(scope='module')
def mosaic(tmp_path_factory):
    """A mosaic of one stage with one supertile."""
    out = tmp_path_factory.mktemp('mosaic')
    plan = MosaicSettings(gsd_m=160.0, stages=1, plan=make_plan('fast', 32), supertile_px=160)
    claim(np.zeros((16, 12, 3), np.uint8), out, plan, {'checkpoint': 'abc'})
    array = StageArray(out / GROUP / 'stage_1', 64, 48, 160, {'gsd_m': 40.0})
    array.write((0, 0), np.ones((64, 48, 3), np.uint8))
    return out


@pytest.mark.parametrize('name', ['settings.json', f'{GROUP}/stage_1/zarr.json'])
@damage(80)
@given(data=st.data())
def test_mosaics(mosaic, name, data):
    with damaged_file(mosaic / name, data):
        opened = is_read_or_refused(lambda: open_finished(mosaic), str(mosaic))
        if opened:
            is_read_or_refused(lambda: [stage.read() for stage in opened[1]], str(mosaic))
    for other in (mosaic / GROUP).iterdir():
        assert other.name in ('zarr.json', 'stage_1'), 'a reader made a stage'


ENCODERS = [CLIPConfig().to_json(), SiglipConfig().to_json(), SiglipConfig().to_json() | {'model_type': 'siglip2'}]


@pytest.mark.parametrize('row', ENCODERS, ids=['clip', 'siglip', 'siglip2'])
@damage(100)
@given(data=st.data())
def test_configs_of_encoders(folder, row, data):
    path = folder / 'config.json'
    path.write_bytes(data.draw(damaged_json(row)))
    is_read_or_refused(lambda: towers.config_from_json(read_json(path), str(path)), str(path))


PREPROCESSOR = {
    'image_mean': [0.5, 0.5, 0.5],
    'image_std': [0.5, 0.5, 0.5],
    'resample': 3,
    'rescale_factor': 0.00392,
    'crop_size': {'height': 224, 'width': 224},
    'size': {'shortest_edge': 224},
    'do_center_crop': True,
    'do_normalize': True,
    'do_rescale': True,
}


@damage(150)
@given(content=damaged_json(PREPROCESSOR))
def test_preprocessors(folder, content):
    path = folder / towers.PREPROCESSOR
    path.write_bytes(content)
    found = is_read_or_refused(lambda: towers.load_preprocessing(folder, CLIPConfig()), str(path))
    assert found is None or np.isfinite([*found['image_mean'], *found['image_std']]).all() and all(found['image_std'])


@pytest.fixture(scope='module')
def whole_tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp('tokenizer')
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize('name', ['tokenizer.json', 'tokenizer_config.json'])
@damage(25)
@given(data=st.data())
def test_tokenizers(whole_tokenizer, name, data):
    with damaged_file(whole_tokenizer / name, data):
        is_read_or_refused(lambda: load_tokenizer(whole_tokenizer, CLIPConfig()), str(whole_tokenizer))


@damage(30)
@given(
    content=damaged_json(
        {'model_type': 'embedded', 'trained_on': ['x'], 'config': {'vocabulary': 9, 'length': 64, 'dim': 8}}
    )
)
def test_configs_of_text_towers(folder, content):
    """None of these configs matches the tokenizer beside it."""
    (folder / 'tokenizer.json').write_bytes((FOLDER / 'tokenizer.json').read_bytes())
    (folder / 'config.json').write_bytes(content)
    with pytest.raises(BadInput):
        is_read_or_refused(lambda: embedded_encoder(folder), str(folder)) or embedded_encoder(folder)
