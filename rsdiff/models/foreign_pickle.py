"""Arrays out of pickles that others wrote, without running what is in them. The one file that imports pickle.

A pickle is a program that may call whatever it can name. Here it can name `NUMPY` or `TORCH`, the words with which they
spell an array, and even these stand for things of this file, which keep what they are given and do nothing else.

A file of `torch.save` is a pickle of tensors, and the numbers apart from it. A tensor is a view of a storage,

    tensor[i, j, …] = storage[offset + i·stride₀ + j·stride₁ + …]                       (1)

and a storage is named by a key. Since PyTorch 1.6 the file is a zip: `NAME/data.pkl` is the pickle, `NAME/data/KEY`
the bytes of a storage. Before, it was five pickles in a row (a magic number, the version of the format, facts about the
machine, the tensors, the keys of the storages), then the storages in the order of these keys, each its number of
elements in eight bytes and its bytes.
"""

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any, Callable

import ml_dtypes
import numpy as np

from rsdiff.errors import BadInput, one_line

TORCH_MAGIC = 0x1950A86A20F9469CFC6C


class _Inert(type):
    """The type of the stand-ins. A pickle may set attributes of what it holds, and it holds these classes."""

    def __setattr__(cls, name: str, value: Any):
        raise TypeError(f'an attempt to change {cls.__name__}')


class _DType(metaclass=_Inert):
    """Stands for `numpy.dtype`, called as dtype('f4', False, True); its state begins (version, byte order, …)."""

    def __init__(self, code: str, *_):
        self.code, self.order = code, '|'

    def __setstate__(self, state: tuple):
        self.order = state[1]


class _Array(metaclass=_Inert):
    """Stands for `numpy.ndarray`; its state is (version, shape, dtype, in Fortran order, bytes)."""

    def __setstate__(self, state: tuple):
        _, self.shape, self.dtype, self.fortran, self.data = state

    def to_numpy(self) -> np.ndarray:
        """The array, of a numeric type."""
        dtype = np.dtype(self.dtype.order + self.dtype.code)
        if dtype.kind not in 'biufc':
            raise ValueError(f'an array of {dtype}')
        return np.frombuffer(self.data, dtype).reshape(self.shape, order='F' if self.fortran else 'C')


def _reconstruct(*_) -> _Array:
    return _Array()


class _Tensor(metaclass=_Inert):
    """Stands for a `torch.Tensor`, called as _rebuild_tensor_v2(storage, offset, shape, strides, …). Its storage is the
    tuple ('storage', type, key, device, number of elements, …)."""

    def __init__(self, storage: tuple, offset: int, shape: tuple, strides: tuple, *_):
        self.code, self.key, self.elements = storage[1], storage[2], storage[4]
        self.offset, self.shape, self.strides = offset, shape, strides

    def to_numpy(self, storages: dict[str, bytes]) -> np.ndarray:
        """A copy of (1), which must lie within its storage and not be larger."""
        dtype, data = DTYPES[self.code], storages[self.key]
        numbers = self.elements, self.offset, *self.shape, *self.strides
        if not all(type(number) is int and number >= 0 for number in numbers) or len(self.shape) != len(self.strides):
            raise ValueError('a tensor of negative or missing measures')
        if len(data) != self.elements * dtype.itemsize:
            raise ValueError(f'storage {self.key} has {len(data)} bytes for {self.elements} elements')
        size = int(np.prod(self.shape, dtype=object))
        last = self.offset + sum((length - 1) * stride for length, stride in zip(self.shape, self.strides))
        if size > self.elements or size and last >= self.elements:
            raise ValueError(f'a tensor that leaves its storage {self.key}')
        flat = np.frombuffer(data, dtype)[self.offset:] if size else np.empty(0, dtype)
        strides = [stride * dtype.itemsize for stride in self.strides]
        return np.lib.stride_tricks.as_strided(flat, self.shape, strides, writeable=False).copy()


def _parameter(tensor: _Tensor, *_) -> _Tensor:
    return tensor


class _Dict(dict, metaclass=_Inert):
    """Stands for `collections.OrderedDict`; what modules write beside the items (versions) is dropped."""

    def __setstate__(self, state: Any):
        pass


DTYPES = {'DoubleStorage': np.dtype('<f8'), 'FloatStorage': np.dtype('<f4'), 'HalfStorage': np.dtype('<f2'),
          'BFloat16Storage': np.dtype(ml_dtypes.bfloat16), 'LongStorage': np.dtype('<i8'), 'IntStorage': np.dtype('<i4'),
          'ShortStorage': np.dtype('<i2'), 'CharStorage': np.dtype('i1'), 'ByteStorage': np.dtype('u1'),
          'BoolStorage': np.dtype('?')}

NUMPY = {
    ('numpy.core.multiarray', '_reconstruct'): _reconstruct,
    ('numpy._core.multiarray', '_reconstruct'): _reconstruct,  # NumPy 2
    ('numpy', 'ndarray'): _Array,
    ('numpy', 'dtype'): _DType,
}
TORCH = {
    ('torch._utils', '_rebuild_tensor_v2'): _Tensor,
    ('torch._utils', '_rebuild_parameter'): _parameter,
    ('collections', 'OrderedDict'): _Dict,
    **{('torch', name): name for name in DTYPES},
}


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, allowed: dict[tuple[str, str], Any]):
        super().__init__(file)
        self.allowed = allowed

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.allowed:
            raise BadInput(f'names {module}.{name}, which an array does not need; it is not read')
        return self.allowed[module, name]

    def persistent_load(self, pid: Any) -> tuple:
        # The sixth was for views of other storages, before PyTorch 0.4.
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != 'storage' or any(pid[5:]):
            raise ValueError('a reference to what is no storage')
        return pid


def read_pickled_arrays(path: Path | str) -> dict[str, Any]:
    """The nested dict of numeric NumPy arrays in the pickle at `path`.

    Raises:
      BadInput: it is missing, truncated, or names or holds anything but dicts and numeric arrays.
    """
    return _reading(path, lambda data: _plain(_Unpickler(io.BytesIO(data), NUMPY).load(), _Array, _Array.to_numpy))


def read_torch(path: Path | str, entry: str | None = None) -> dict[str, Any]:
    """The nested dict of NumPy arrays in a file of `torch.save`, of either format; bfloat16 as `ml_dtypes.bfloat16`.

    Args:
      entry: if a file of PyTorch 1.6 or later has it, that alone is returned, and what stands beside it, the state of
        an optimiser perhaps, need not be arrays.
    Raises:
      BadInput: it is missing, truncated, of a big-endian machine, or names or holds anything but dicts and dense
        tensors, a compiled or a whole pickled module among them.
    """
    return _reading(path, lambda data: _read_zip(data, entry) if data[:4] == b'PK\3\4' else _read_legacy(data))


def _reading(path: Path | str, read: Callable[[bytes], dict[str, Any]]) -> dict[str, Any]:
    """`read` of the bytes at `path`; whatever it raises, as one line that names the file."""
    try:
        return read(Path(path).read_bytes())
    except FileNotFoundError:
        raise BadInput(f'{path}: no such file') from None
    except BadInput as error:
        raise BadInput(f'{path}: {error}') from None
    except Exception as error:  # a broken pickle may raise anything, says the documentation of pickle
        reason = f'{type(error).__name__}: {one_line(error)}'
        raise BadInput(f'{path}: not a whole pickle of arrays ({reason})') from None


def _read_zip(data: bytes, entry: str | None) -> dict[str, Any]:
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        # PyTorch compresses nothing, so that all of a file's members together are smaller than the file.
        members = file.infolist()
        if any(m.compress_type != zipfile.ZIP_STORED for m in members) or sum(m.file_size for m in members) > len(data):
            raise BadInput('is a compiled module, or a zip of something else than tensors; it is not read')
        folder = members[0].filename.split('/')[0] + '/'
        if f'{folder}byteorder' in file.namelist() and file.read(f'{folder}byteorder') != b'little':
            raise BadInput('was written on a big-endian machine; it is not read')
        tensors = _Unpickler(io.BytesIO(file.read(f'{folder}data.pkl')), TORCH).load()
        if isinstance(tensors, dict) and isinstance(tensors.get(entry), dict):
            tensors = tensors[entry]
        prefix = f'{folder}data/'
        storages = {m.filename.removeprefix(prefix): file.read(m) for m in members if m.filename.startswith(prefix)}
    return _plain(tensors, _Tensor, lambda tensor: tensor.to_numpy(storages))


def _read_legacy(data: bytes) -> dict[str, Any]:
    file = io.BytesIO(data)
    magic, _, machine, tensors, keys = (_Unpickler(file, TORCH).load() for _ in range(5))
    if magic != TORCH_MAGIC:
        raise BadInput('is no file of torch.save; it is not read')
    if not machine['little_endian']:
        raise BadInput('was written on a big-endian machine; it is not read')
    itemsizes, storages = {}, {}
    _plain(tensors, _Tensor, lambda tensor: itemsizes.update({tensor.key: DTYPES[tensor.code].itemsize}))
    for key in keys:
        elements = int.from_bytes(file.read(8), 'little', signed=True)
        storages[key] = file.read(max(0, elements) * itemsizes[key])
    return _plain(tensors, _Tensor, lambda tensor: tensor.to_numpy(storages))


def _plain(node: Any, leaf: type, to_numpy: Callable[[Any], np.ndarray]) -> dict[str, Any]:
    """Nested dicts by name, their leaves turned into arrays."""
    if not isinstance(node, dict) or not all(isinstance(key, str) for key in node):
        raise BadInput(f'holds a {type(node).__name__} where a dict of arrays by name should be')
    return {key: to_numpy(value) if isinstance(value, leaf) else _plain(value, leaf, to_numpy)
            for key, value in node.items()}
