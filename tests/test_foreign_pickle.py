"""Arrays are read unchanged from foreign pickles; nothing else is read, and no code runs."""

import collections
import contextlib
import io
import os
import pickle
import time
import tracemalloc
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rsdiff.base.errors import BadInput
from rsdiff.pretrained.foreign_pickle import TORCH_MAGIC, read_pickled_arrays, read_torch


class Calls:
    """Pickles to a call of `function`."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize('protocol', [3, 4])
@pytest.mark.parametrize('dtype', ['<f4', '>f4', 'f8', 'f2', 'i8', 'u1', '?', 'c8'])
def test_arrays_come_out_as_they_went_in(tmp_path, protocol, dtype):
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    tree = {'a': array, 'b': {'fortran': np.asfortranarray(array), '0-d': np.array(array[1, 1, 1]), 'none': array[:0]}}
    (tmp_path / 'x').write_bytes(pickle.dumps(tree, protocol))
    back = read_pickled_arrays(tmp_path / 'x')
    jax.tree.map(np.testing.assert_array_equal, back, tree)
    assert back['a'].dtype == array.dtype


@pytest.mark.parametrize(
    'payload, name',
    [
        (lambda mark: Calls(os.system, f'touch {mark}'), f'{os.system.__module__}.system'),
        (lambda mark: Calls(eval, f'open({str(mark)!r}, "w")'), 'builtins.eval'),
        (lambda mark: Calls(open, str(mark), 'w'), 'io.open'),
        (lambda mark: Calls(np.save, str(mark), 0), 'numpy.save'),
        (lambda mark: Calls(getattr, np.ndarray, 'tofile'), 'builtins.getattr'),
        (lambda mark: np.float64(1), r'numpy\._core\.multiarray\.scalar'),
        (lambda mark: jnp.zeros(2), 'jax'),
    ],
    ids=['os.system', 'eval', 'open', 'numpy.save', 'getattr', 'numpy scalar', 'jax array'],
)
def test_whatever_else_a_pickle_names_is_refused_by_name_and_not_run(tmp_path, payload, name):
    mark = tmp_path / 'mark'
    (tmp_path / 'x').write_bytes(pickle.dumps({'a': payload(mark)}, 3))
    with pytest.raises(BadInput, match=f'x: names {name}'):
        read_pickled_arrays(tmp_path / 'x')
    assert not mark.exists()


def test_a_dotted_name_is_not_a_way_round(tmp_path):
    # protocol 4 looks names up attribute by attribute: numpy + 'ndarray.tofile'
    (tmp_path / 'x').write_bytes(b'\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93.')
    with pytest.raises(BadInput, match=r'names numpy\.ndarray\.tofile'):
        read_pickled_arrays(tmp_path / 'x')


@pytest.mark.parametrize(
    'contents',
    [
        b'',
        b'\x80\x03.',
        b'PK\x03\x04' + bytes(30),
        b'not a pickle',
        pickle.dumps([np.zeros(2)], 3),
        pickle.dumps(None, 3),
        pickle.dumps({1: np.zeros(2)}, 3),
        pickle.dumps({'a': np.array([None])}, 3),
        pickle.dumps({'a': np.array(['x'])}, 3),
        pickle.dumps({'a': np.zeros(2, [('x', 'f4')])}, 3),
        b'\x80\x03}X\x01\x00\x00\x00acnumpy\nndarray\ns.',
        b'\x80\x03}X\x01\x00\x00\x00acnumpy\nndarray\n)Rs.',
        b'\x80\x03(K\x01K\x02K\x03b.',
    ],
    ids=str,
)
def test_what_is_no_dict_of_arrays_is_bad_input(tmp_path, contents):
    (tmp_path / 'x').write_bytes(contents)
    with pytest.raises(BadInput, match='x: (not a whole pickle|holds a)') as raised:
        read_pickled_arrays(tmp_path / 'x')
    assert '\n' not in str(raised.value)


def test_a_truncated_pickle_is_bad_input_wherever_it_ends(tmp_path):
    whole = pickle.dumps({'a': np.zeros(3, 'f'), 'b': {'c': np.ones((2, 2))}}, 3)
    for length in range(len(whole)):
        (tmp_path / 'x').write_bytes(whole[:length])
        with pytest.raises(BadInput, match='x: '):
            read_pickled_arrays(tmp_path / 'x')


# Files of torch.save.


@pytest.fixture(params=[True, False], ids=['zip', 'legacy'])
def torch_save(request, tmp_path):
    """(object) → a file written by torch.save, in its current and in its first format."""
    torch = pytest.importorskip('torch', reason='it is torch that writes the files; pip install rsdiff-jax[parity]')

    def save(contents):
        torch.save(contents, tmp_path / 'x.pth', _use_new_zipfile_serialization=request.param)
        return tmp_path / 'x.pth'

    return save


def test_tensors_come_out_of_both_formats_as_they_went_in(torch_save):
    import torch

    whole = torch.arange(60.0).reshape(3, 4, 5)
    tensors = {
        'whole': whole,
        'transposed': whole.permute(2, 0, 1),
        'view': whole[1:, ::2, 2],
        'scalar': torch.tensor(3.0),
        'none': whole[:0],
        'parameter': torch.nn.Parameter(whole[0].T),
        'last': whole[2, 3, 4:],
    }
    tensors |= {
        str(kind): whole.to(kind)
        for kind in (
            torch.float64,
            torch.float16,
            torch.int64,
            torch.int32,
            torch.int16,
            torch.int8,
            torch.uint8,
            torch.bool,
        )
    }
    path = torch_save({'model': collections.OrderedDict(tensors), 'bfloat16': whole.bfloat16()})
    found = read_torch(path)
    assert found['bfloat16'].dtype.name == 'bfloat16'
    np.testing.assert_array_equal(found['bfloat16'].astype('f'), whole)
    assert list(found['model']) == list(tensors)
    for name, tensor in tensors.items():
        expected = tensor.detach().numpy()
        assert found['model'][name].dtype == expected.dtype
        np.testing.assert_array_equal(found['model'][name], expected)


def test_the_state_of_a_module_is_read(torch_save):
    import torch

    state = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)).state_dict()
    found = read_torch(torch_save(state))
    assert list(found) == list(state)
    for name, tensor in state.items():
        np.testing.assert_array_equal(found[name], tensor)


@pytest.mark.parametrize(
    'payload, name',
    [
        (lambda mark: Calls(os.system, f'touch {mark}'), f'{os.system.__module__}.system'),
        (lambda mark: Calls(eval, f'open({str(mark)!r}, "w")'), '__builtin__.eval'),  # its name in protocol 2
        (lambda mark: np.zeros(3), r'numpy\._core\.multiarray\._reconstruct'),
        (lambda mark: collections.Counter(), 'collections.Counter'),
    ],
    ids=['os.system', 'eval', 'numpy', 'Counter'],
)
def test_a_torch_file_that_holds_code_is_refused_and_not_run(torch_save, tmp_path, payload, name):
    import torch

    mark = tmp_path / 'mark'
    path = torch_save({'weight': torch.zeros(2), 'trap': payload(mark)})
    with pytest.raises(BadInput, match=f'x.pth: names {name}') as raised:
        read_torch(path)
    assert not mark.exists() and '\n' not in str(raised.value)
    torch.load(path, weights_only=False)
    assert mark.exists() == name.endswith(('system', 'eval')), 'the trap of this test does not work'


def test_modules_whole_or_compiled_are_refused(torch_save, tmp_path):
    import torch

    module = torch.nn.Linear(2, 3)
    with pytest.raises(BadInput, match='x.pth: names torch.nn.modules.linear.Linear'):
        read_torch(torch_save(module))
    torch.jit.trace(module, torch.zeros(1, 2)).save(tmp_path / 'x.pt')
    with pytest.raises(BadInput, match='x.pt: is a compiled module'):
        read_torch(tmp_path / 'x.pt')


def test_a_truncated_torch_file_is_bad_input_wherever_it_ends(torch_save):
    import torch

    path = torch_save({'a': torch.zeros(3), 'b': torch.ones(2, 2)})
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(BadInput, match='x.pth: '):
            read_torch(path)


class Storage(str):
    """Becomes a reference to the storage of this key."""


class Tensor:
    """Pickles to a tensor with any offset, shape and strides, in torch's format."""

    def __init__(self, offset, shape, strides, key='0'):
        self.measures = offset, shape, strides, False, collections.OrderedDict()
        self.key = Storage(key)

    def __reduce__(self):
        return Rebuild, (self.key, *self.measures)


def Rebuild(*_):
    """Stands in for torch's rebuild function, which has another name."""


def by_hand(path, contents, storages, elements, kind='FloatStorage', byteorder=b'little', **options):
    """Writes a zip in torch's format, with arbitrary offsets, shapes and strides."""

    class Pickler(pickle._Pickler):
        dispatch = dict(pickle._Pickler.dispatch)

        def save_global(self, thing, name=None):
            names = {Rebuild: ('torch._utils', '_rebuild_tensor_v2'), Storage: ('torch', kind)}
            if thing in names:
                self.write(b'c' + '\n'.join([*names[thing], '']).encode())
            else:
                super().save_global(thing, name)

        dispatch[type(Rebuild)] = dispatch[type] = save_global

        def persistent_id(self, thing):
            return ('storage', Storage, str(thing), 'cpu', elements) if type(thing) is Storage else None

    pickled = io.BytesIO()
    Pickler(pickled, 2).dump(contents)
    with zipfile.ZipFile(path, 'w', **options) as file:
        file.writestr('x/data.pkl', pickled.getvalue())
        file.writestr('x/byteorder', byteorder)
        for key, data in storages.items():
            file.writestr(f'x/data/{key}', data)
    return path


def test_a_file_written_by_hand_is_read(tmp_path):
    path = by_hand(tmp_path / 'x', {'a': Tensor(1, (2, 2), (3, 1))}, {'0': np.arange(6, dtype='<f4').tobytes()}, 6)
    np.testing.assert_array_equal(read_torch(path)['a'], [[1, 2], [4, 5]])


@pytest.mark.parametrize(
    'tensor',
    [
        Tensor(2, (2, 2), (3, 1)),
        Tensor(0, (7,), (1,)),
        Tensor(-1, (2,), (1,)),
        Tensor(6, (1,), (1,)),
        Tensor(5, (2,), (-1,)),
        Tensor(0, (2, -1), (1, 1)),
        Tensor(0, (1 << 60,), (0,)),
        Tensor(0, (1 << 40, 1 << 40), (1 << 40, 1 << 40)),
        Tensor(0, (2, 2), (1,)),
        Tensor(0, (2.0,), (1,)),
        Tensor(0, 'ab', 'cd'),
        Tensor(0, (2,), (1,), key='1'),
    ],
    ids=lambda tensor: str(tensor.measures[:3]),
)
def test_a_tensor_beyond_its_storage_is_bad_input(tmp_path, tensor):
    path = by_hand(tmp_path / 'x', {'a': tensor}, {'0': bytes(24)}, 6)
    with pytest.raises(BadInput, match='x: not a whole pickle of arrays'):
        read_torch(path)


@pytest.mark.parametrize(
    'options, message',
    [
        ({'elements': 7}, 'storage 0 has 24 bytes for 7 elements'),
        ({'elements': 1 << 62}, '24 bytes'),
        ({'kind': 'DoubleStorage'}, '24 bytes for 6'),
        ({'kind': 'QInt8Storage'}, 'names torch.QInt8Storage'),
        ({'byteorder': b'big'}, 'big-endian'),
        ({'compression': zipfile.ZIP_DEFLATED}, 'compiled module, or a zip'),
        ({'storages': {}}, "data/0|'0'"),
        ({'contents': [1]}, 'holds a list'),
        ({'contents': {'a': 3}}, 'holds a int'),
    ],
)
def test_a_zip_of_something_else_is_bad_input(tmp_path, options, message):
    path = by_hand(
        tmp_path / 'x',
        **{'contents': {'a': Tensor(0, (6,), (1,))}, 'storages': {'0': bytes(24)}, 'elements': 6} | options,
    )
    with pytest.raises(BadInput, match=f'x: .*({message})'):
        read_torch(path)


@pytest.mark.parametrize(
    'contents',
    [
        b'',
        b'PK\x03\x04' + bytes(30),
        b'no file of torch',
        pickle.dumps(TORCH_MAGIC),
        b''.join(map(pickle.dumps, [TORCH_MAGIC, 1001, {'little_endian': False}, {}, []])),
        b''.join(map(pickle.dumps, [7, 1001, {'little_endian': True}, {}, []])),
    ],
    ids=str,
)
def test_what_is_no_file_of_torch_is_bad_input(tmp_path, contents):
    (tmp_path / 'x').write_bytes(contents)
    with pytest.raises(BadInput, match='x: ') as raised:
        read_torch(tmp_path / 'x')
    assert '\n' not in str(raised.value)


def test_a_pickle_can_not_change_what_its_words_stand_for(tmp_path):
    # BUILD with a pair sets the attributes named in the second element, even on a class
    trap = b'\x80\x02ctorch._utils\n_rebuild_tensor_v2\nN}X\x08\x00\x00\x00to_numpyK\x01s\x86b.'
    (tmp_path / 'x').write_bytes(pickle.dumps(TORCH_MAGIC) + pickle.dumps(1001) + pickle.dumps({}) + trap)
    with pytest.raises(BadInput, match='an attempt to change'):
        read_torch(tmp_path / 'x')


# Small files that demand much time or memory.


@contextlib.contextmanager
def within(seconds, megabytes):
    """Fails if the block takes more processor time, or if Python and NumPy allocate more memory at once."""
    tracemalloc.start()
    begun = time.process_time()
    try:
        yield
        assert time.process_time() - begun < seconds
        assert tracemalloc.get_traced_memory()[1] < megabytes * 2**20
    finally:
        tracemalloc.stop()


def shared_dicts(levels):
    """A dict that holds a dict twice, which holds a dict twice, and so on: 2^levels paths to the innermost."""
    node = {'a': np.zeros(1, 'f')}
    for _ in range(levels):
        node = {'a': node, 'b': node}
    return pickle.dumps(node, 3)


def shared_tuples(levels):
    """A dict key made of nested tuples: hashing it takes 2^levels visits."""
    return b'\x80\x02}K\x01' + b'q\x00h\x00\x86' * levels + b'K\x02s.'


def many_arrays(count, size):
    state = 1, (size,), np.dtype('u1'), False, bytes(size)  # one bytes object, shared by all arrays

    class Again:
        def __reduce__(self):
            return np.zeros(0).__reduce__()[0], (np.ndarray, (0,), b'b'), state

    return pickle.dumps({str(number): Again() for number in range(count)}, 3)


@pytest.mark.parametrize(
    'contents, message',
    [
        (shared_dicts(45), 'more than 100000'),
        (shared_tuples(45), 'a tuple as a key'),
        (b'\x80\x02Nr\xff\xff\xff\x0f.', 'holds a NoneType'),  # 9 bytes that write the memo at index 2^28
        (b'\x80\x02B\xff\xff\xff\x7f.', 'not a whole pickle'),
        (b'\x80\x04\x8e' + bytes(6) + b'\x7f\0.', 'not a whole pickle'),
        (b'\x80\x04\x8d' + bytes(6) + b'\x7f\0.', 'not a whole pickle'),
        (b'\x80\x04\x95' + b'\xff' * 8 + b'}.', None),
        (b'\x80\x02}' + b'X\x01\0\0\0a}' * 1000 + b's' * 1000 + b'.', 'more than 50 levels'),
        (b'\x80\x02' + b'}0' * 600_000 + b'.', 'the instruction POP'),
        (b'\x80\x02' + b'}' * 1_100_000 + b'.', 'more than 1000000 instructions'),
        (
            b'\x80\x02}('
            + b''.join(b'\x8a\x0a' + (k * (2**61 - 1)).to_bytes(10, 'little') + b'N' for k in range(1, 20_000))
            + b'u.',
            'a int as a key',
        ),
        (many_arrays(1000, 10_000), 'more than 4 times as large'),
        (b'L' + b'9' * 5000 + b'L\n.', 'not a whole pickle'),
        (b'\x80\x02\x8b\x00\x10\0\0' + b'\x7f' * 4096 + b'.', '32767 bits'),
    ],
    ids=[
        'shared dicts',
        'shared tuples',
        'memo',
        'bytes',
        'bytes8',
        'unicode8',
        'frame',
        'depth',
        'pop',
        'instructions',
        'colliding keys',
        'arrays',
        'digits',
        'bits',
    ],
)
def test_a_small_pickle_gets_little_work_and_memory(tmp_path, contents, message):
    (tmp_path / 'x').write_bytes(contents)
    with within(seconds=30, megabytes=200):
        if message is None:
            assert read_pickled_arrays(tmp_path / 'x') == {}
        else:
            with pytest.raises(BadInput, match=f'x: .*{message}'):
                read_pickled_arrays(tmp_path / 'x')


def test_many_tensors_over_one_storage_are_refused_and_tied_ones_are_read(tmp_path):
    storage = np.arange(100_000, dtype='<f4').tobytes()
    tensors = {f'w{number}': Tensor(0, (100_000,), (1,)) for number in range(1000)}
    path = by_hand(tmp_path / 'x', tensors, {'0': storage}, 100_000)
    with within(seconds=30, megabytes=50), pytest.raises(BadInput, match='x: its arrays are more than 4 times'):
        read_torch(path)
    tied = read_torch(by_hand(tmp_path / 'y', {name: tensors[name] for name in ('w0', 'w1')}, {'0': storage}, 100_000))
    np.testing.assert_array_equal(tied['w0'], tied['w1'])


def test_a_zip_of_very_many_files_is_refused(tmp_path):
    (tmp_path / 'x').write_bytes(b'PK\3\4' + (b'PK\1\2' + bytes(42)) * 100_001)
    with within(seconds=30, megabytes=50), pytest.raises(BadInput, match='x: a zip of more than 100000 files'):
        read_torch(tmp_path / 'x')
