"""Reads arrays from untrusted pickles without running their code; the file size bounds work and memory.

A pickle is a program that may call anything it can name. Here it can only name the entries of `NUMPY` or `TORCH`, the
names that an array needs. Even these refer to objects of this file, which only store their arguments
(`rsdiff.pretrained.pickle_machine`).

A file of `torch.save` is a pickle of tensors and, apart from it, their data. A tensor is a view of a storage,

    tensor[i, j, …] = storage[offset + i·stride₀ + j·stride₁ + …]                       (1)

and a storage is identified by a key. Since PyTorch 1.6 the file is a zip: `NAME/data.pkl` is the pickle,
`NAME/data/KEY` the bytes of a storage. Older files are five pickles in a row (a magic number, the format version, facts
about the machine, the tensors, the keys of the storages), followed by the storages in the order of these keys, each as
its number of elements in eight bytes and then its bytes.

A small file can demand much work: a dict that holds another dict twice, 45 levels deep, has 2^45 paths to traverse; a
thousand tensors may share one storage. Totals are therefore limited: `MOST_NODES` dicts and arrays, and arrays of
`MOST_COPIES` times the file size (tied weights count twice).
"""

import io
import re
import struct
import zipfile
from pathlib import Path
from typing import Any, Callable

import ml_dtypes
import numpy as np

from rsdiff.base.errors import BadInput, one_line
from rsdiff.pretrained.pickle_machine import Word, items_of, run, set_items

TORCH_MAGIC = 0x1950A86A20F9469CFC6C
MOST_NODES = 100_000
MOST_COPIES = 4
DEEPEST = 50  # levels of nested dicts
MOST_AXES = 32
CENTRAL_ENTRY = b'PK\1\2'  # signature of a member's entry in the zip's central directory

# Exceptions that a broken file can cause in the pickle machine, NumPy and zipfile. RuntimeError: an encrypted member.
BROKEN = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    OverflowError,
    EOFError,
    RuntimeError,
    struct.error,
    zipfile.BadZipFile,
)


class _DType:
    """Stands for `numpy.dtype`, called as dtype('f4', False, True); its state begins (version, byte order, …)."""

    def __init__(self, code: str, *_):
        self.code, self.order = code, '|'

    def set_state(self, state: tuple) -> None:
        self.order = state[1]


class _Array:
    """Stands for `numpy.ndarray`; its state is (version, shape, dtype, is in Fortran order, bytes)."""

    def set_state(self, state: tuple) -> None:
        _, self.shape, self.dtype, self.fortran, self.data = state

    def to_numpy(self) -> np.ndarray:
        """The array, a view of its bytes; its type must be numeric."""
        spelt = self.dtype.order + self.dtype.code
        if not re.fullmatch('[<>|=][biufc?][0-9]{0,2}', spelt):
            raise ValueError(f'an array of type {spelt[:20]!r}')
        return np.frombuffer(self.data, spelt).reshape(_measures(self.shape), order='F' if self.fortran else 'C')


class _Tensor:
    """Stands for a `torch.Tensor`, called as _rebuild_tensor_v2(storage, offset, shape, strides, …)."""

    def __init__(self, storage: '_Storage', offset: int, shape: tuple, strides: tuple, *_):
        self.storage, self.offset, self.shape, self.strides = storage, offset, shape, strides

    def to_numpy(self, storages: dict[str, bytes]) -> np.ndarray:
        """Equation (1): a view, which must lie within its storage and not have more elements."""
        dtype, elements, key = self.storage.dtype, self.storage.elements, self.storage.key
        data, shape, strides = storages[key], _measures(self.shape), _measures(self.strides)
        _measures((self.offset,))
        if len(shape) != len(strides):
            raise ValueError('a tensor whose shape and strides differ in length')
        if len(data) != elements * dtype.itemsize:
            raise ValueError(f'storage {key[:40]} has {len(data)} bytes for {elements} elements')
        size = int(np.prod(shape, dtype=object))
        last = self.offset + sum((length - 1) * stride for length, stride in zip(shape, strides))
        if size > elements or size and last >= elements:
            raise ValueError(f'a tensor that exceeds its storage {key[:40]}')
        flat = np.frombuffer(data, dtype)[self.offset :] if size else np.empty(0, dtype)
        return np.lib.stride_tricks.as_strided(
            flat, shape, [stride * dtype.itemsize for stride in strides], writeable=False
        )


class _Storage:
    """The storage of a tensor, in a pickle ('storage', type, key, device, number of elements, …)."""

    def __init__(self, kind: str, pid: Any, key: str, place: Any, elements: int, view: Any = None):
        # The sixth entry was for views of other storages, before PyTorch 0.4.
        if kind != 'storage' or view or type(key) is not str or not isinstance(pid, _Kind):
            raise ValueError('a reference to something other than a storage')
        _measures((elements,))
        self.dtype, self.key, self.elements = pid.dtype, key, elements


class _Kind:
    """Stands for a storage type, such as `torch.FloatStorage`."""

    def __init__(self, dtype: np.dtype):
        self.dtype = dtype


class _Dict(dict):
    """Stands for `collections.OrderedDict`; the metadata that modules add to the items (versions) is dropped."""

    def set_state(self, state: Any) -> None:
        pass


def _parameter(tensor: _Tensor, *_) -> _Tensor:
    return tensor


def _ordered_dict(pairs: Any = None) -> _Dict:
    made = _Dict()
    set_items(made, [] if pairs is None else items_of(pairs))
    return made


DTYPES = {
    'DoubleStorage': np.dtype('<f8'),
    'FloatStorage': np.dtype('<f4'),
    'HalfStorage': np.dtype('<f2'),
    'BFloat16Storage': np.dtype(ml_dtypes.bfloat16),
    'LongStorage': np.dtype('<i8'),
    'IntStorage': np.dtype('<i4'),
    'ShortStorage': np.dtype('<i2'),
    'CharStorage': np.dtype('i1'),
    'ByteStorage': np.dtype('u1'),
    'BoolStorage': np.dtype('?'),
}

NUMPY = {
    ('numpy.core.multiarray', '_reconstruct'): Word('_reconstruct', lambda *_: _Array()),
    ('numpy._core.multiarray', '_reconstruct'): Word('_reconstruct', lambda *_: _Array()),  # NumPy 2
    ('numpy', 'ndarray'): Word('ndarray'),
    ('numpy', 'dtype'): Word('dtype', _DType),
}
TORCH = {
    ('torch._utils', '_rebuild_tensor_v2'): Word('_rebuild_tensor_v2', _Tensor),
    ('torch._utils', '_rebuild_parameter'): Word('_rebuild_parameter', _parameter),
    ('collections', 'OrderedDict'): Word('OrderedDict', _ordered_dict),
    **{('torch', name): _Kind(dtype) for name, dtype in DTYPES.items()},
}


def read_pickled_arrays(path: Path | str) -> dict[str, Any]:
    """The nested dict of numeric NumPy arrays in the pickle at `path`; the arrays are read-only.

    Raises:
      BadInput: the file is missing or truncated, exceeds the limits on work and memory, or names or contains anything
        but dicts and numeric arrays.
    """
    return _reading(path, lambda data: _plain(_load(io.BytesIO(data), NUMPY), _Array, _Array.to_numpy, len(data)))


def read_torch(path: Path | str, entry: str | None = None) -> dict[str, Any]:
    """The nested dict of NumPy arrays in a file of `torch.save`, in either format; bfloat16 as `ml_dtypes.bfloat16`.
    The arrays are read-only.

    Args:
      entry: key of a dict in files of PyTorch 1.6 or later. If the file has it, only this dict is returned, and the
        other entries, such as an optimiser's state, need not be arrays.
    Raises:
      BadInput: the file is missing, truncated or from a big-endian machine, exceeds the limits on work and memory, or
        names or contains anything but dicts and dense tensors, such as a compiled or pickled module.
    """
    return _reading(path, lambda data: _read_zip(data, entry) if data[:4] == b'PK\3\4' else _read_legacy(data))


def _reading(path: Path | str, read: Callable[[bytes], dict[str, Any]]) -> dict[str, Any]:
    """Applies `read` to the bytes at `path`; a broken file raises BadInput with one line that names it."""
    try:
        return read(Path(path).read_bytes())
    except FileNotFoundError:
        raise BadInput(f'{path}: no such file') from None
    except IsADirectoryError:
        raise BadInput(f'{path}: a folder, not a file') from None
    except BadInput as error:
        raise BadInput(f'{path}: {error}') from None
    except BROKEN as error:
        reason = f'{type(error).__name__}: {one_line(error)[:200]}'
        raise BadInput(f'{path}: not a whole pickle of arrays ({reason})') from None


def _load(file: io.BytesIO, words: dict[tuple[str, str], Any]) -> Any:
    return run(file, words, lambda made, state: made.set_state(state), lambda pid: _Storage(*pid))


def _read_zip(data: bytes, entry: str | None) -> dict[str, Any]:
    if data.count(CENTRAL_ENTRY) > MOST_NODES:
        raise BadInput(f'a zip of more than {MOST_NODES} files; it is not read')
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        # PyTorch does not compress, so the members of a file together are smaller than the file.
        members = file.infolist()
        if any(m.compress_type != zipfile.ZIP_STORED for m in members) or sum(m.file_size for m in members) > len(data):
            raise BadInput('is a compiled module, or a zip of something other than tensors; it is not read')
        folder = members[0].filename.split('/')[0] + '/'
        if f'{folder}byteorder' in file.namelist() and file.read(f'{folder}byteorder') != b'little':
            raise BadInput('was written on a big-endian machine; it is not read')
        tensors = _load(io.BytesIO(file.read(f'{folder}data.pkl')), TORCH)
        if isinstance(tensors, dict) and isinstance(tensors.get(entry), dict):
            tensors = tensors[entry]
        prefix = f'{folder}data/'
        storages = {m.filename.removeprefix(prefix): file.read(m) for m in members if m.filename.startswith(prefix)}
    return _plain(tensors, _Tensor, lambda tensor: tensor.to_numpy(storages), len(data))


def _read_legacy(data: bytes) -> dict[str, Any]:
    file = io.BytesIO(data)
    magic, _, machine, tensors, keys = (_load(file, TORCH) for _ in range(5))
    if magic != TORCH_MAGIC:
        raise BadInput('is not a file of torch.save; it is not read')
    if not machine['little_endian']:
        raise BadInput('was written on a big-endian machine; it is not read')
    if not isinstance(keys, list):
        raise ValueError('the list of storages is missing')
    itemsizes, storages = {}, {}

    def note(tensor: _Tensor) -> np.ndarray:
        itemsizes[tensor.storage.key] = tensor.storage.dtype.itemsize
        return np.empty(0)

    _plain(tensors, _Tensor, note, len(data))
    for key in keys:
        elements = int.from_bytes(file.read(8), 'little', signed=True)
        storages[key] = file.read(max(0, elements) * itemsizes[key])
    return _plain(tensors, _Tensor, lambda tensor: tensor.to_numpy(storages), len(data))


def _plain(tree: Any, leaf: type, to_numpy: Callable[[Any], np.ndarray], size: int) -> dict[str, Any]:
    """The nested dicts, with leaves as arrays; a leaf that occurs twice becomes one array. `size`: file size."""
    nodes, total, arrays = 0, 0, {}

    def visit(node: Any, depth: int) -> Any:
        nonlocal nodes, total
        nodes += 1
        if nodes > MOST_NODES or depth > DEEPEST:
            raise BadInput(
                f'holds more than {MOST_NODES} dicts and arrays, or more than {DEEPEST} levels of dicts; it is not read'
            )
        if isinstance(node, leaf):
            if id(node) not in arrays:
                arrays[id(node)] = to_numpy(node)
                total += arrays[id(node)].nbytes
            if total > MOST_COPIES * size:
                raise BadInput(f'its arrays are more than {MOST_COPIES} times as large as the file; it is not read')
            return arrays[id(node)]
        if not isinstance(node, dict) or not all(isinstance(key, str) for key in node):
            raise BadInput(f'holds a {type(node).__name__.strip("_")} where a dict of arrays by name should be')
        return {key: visit(value, depth + 1) for key, value in node.items()}

    if isinstance(tree, leaf):
        raise BadInput('holds an array where a dict of arrays by name should be')
    return visit(tree, 0)


def _measures(values: Any) -> tuple[int, ...]:
    """Returns a shape, strides or numbers of elements, if they are valid."""
    if (
        type(values) is not tuple
        or len(values) > MOST_AXES
        or not all(type(value) is int and 0 <= value < 1 << 63 for value in values)
    ):
        raise ValueError('a tensor with a shape, stride or size that is not a valid number')
    return values
