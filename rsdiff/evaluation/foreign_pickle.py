"""Arrays out of pickles that others wrote, without running what is in them. The one file that imports pickle.

A pickle is a program that may call whatever it can name. Here it can name `ALLOWED`, the words with which NumPy
spells an array, and even these stand for classes of this file, which keep the bytes and do nothing else.
"""

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from rsdiff.errors import BadInput


class _DType:
    """Stands for `numpy.dtype`, called as dtype('f4', False, True); its state begins (version, byte order, …)."""

    def __init__(self, code: str, *_):
        self.code, self.order = code, '|'

    def __setstate__(self, state: tuple):
        self.order = state[1]


class _Array:
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


ALLOWED = {
    ('numpy.core.multiarray', '_reconstruct'): _reconstruct,
    ('numpy._core.multiarray', '_reconstruct'): _reconstruct,  # NumPy 2
    ('numpy', 'ndarray'): _Array,
    ('numpy', 'dtype'): _DType,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise BadInput(f'names {module}.{name}, which an array does not need; it is not read')
        return ALLOWED[module, name]


def read_pickled_arrays(path: Path | str) -> dict[str, Any]:
    """The nested dict of numeric NumPy arrays in the pickle at `path`.

    Raises:
      BadInput: it is missing, truncated, or names or holds anything but dicts and numeric arrays.
    """
    path = Path(path)
    try:
        return _plain(_Unpickler(io.BytesIO(path.read_bytes())).load())
    except FileNotFoundError:
        raise BadInput(f'{path}: no such file') from None
    except BadInput as error:
        raise BadInput(f'{path}: {error}') from None
    except Exception as error:  # a broken pickle may raise anything, says the documentation of pickle
        reason = ' '.join(f'{type(error).__name__}: {error}'.split())
        raise BadInput(f'{path}: not a whole pickle of arrays ({reason})') from None


def _plain(node: Any) -> dict[str, Any]:
    if not isinstance(node, dict) or not all(isinstance(key, str) for key in node):
        raise BadInput(f'holds a {type(node).__name__} where a dict of arrays by name should be')
    return {key: leaf.to_numpy() if isinstance(leaf, _Array) else _plain(leaf) for key, leaf in node.items()}
