"""The weights of an RRDBNet in ncnn's format, and the check that they are those of an RRDBNet.

ncnn (https://github.com/Tencent/ncnn) stores a network in two files. `.param` is text and lists its layers:

    7767517
    LAYERS BLOBS
    TYPE NAME INPUTS OUTPUTS INPUT … OUTPUT … KEY=VALUE …        for each layer                           (1)

where inputs and outputs are the names of arrays, and a negative key holds a list, LENGTH,VALUE,…. `.bin` has the weights
of the layers in the same order, which for a convolution are

    flag (4 bytes) | weights (out, in, 3, 3), padded to 4 bytes | bias (out), float32                     (2)

The flag says whether the weights are float16 or float32. `.bin` does not say which layer a number belongs to. So `.param`
must describe exactly the network that the numbers are read for. Here this is ESRGAN's RRDBNet (Wang et al. 2018, arXiv
1809.00219) with any number of features, growth and blocks:

    f ∗ w is a 3×3 convolution with bias, λ is LeakyReLU with slope 0.2
    dense block   x₀ = x,  xₙ = λ([x₀ … xₙ₋₁] ∗ wₙ) for n = 1 … 4,  D(x) = x + 0.2 [x₀ … x₄] ∗ w₅           (3)
    block         R(x) = x + 0.2 D₃(D₂(D₁(x)))                                                            (4)
    network       f = image ∗ w,  f + R…R(f) ∗ w → (twice: nearest 2× → λ(∗ w)) → λ(∗ w) → ∗ w            (5)

The layers of `.param` become a list of operations that refer to each other by number (`Split`, which only copies, is
resolved), and so do equations (3) to (5). The lists must be equal. Work and memory are bounded by the sizes of the files.
"""

import math
from pathlib import Path
from typing import Any, Iterable, NamedTuple

import numpy as np

from rsdiff.base.errors import BadInput

MAGIC = '7767517'
FLAGS = {0x01306B47: np.dtype('<f2'), 0: np.dtype('<f4')}
LARGEST_PARAM = 1 << 22  # bytes; a network of 64 blocks takes 330,000
LISTS = -23300  # minus a key: the key of a list
# settings by key that mean the same as their absence
DEFAULTS = {
    # dilation, stride, padding value, scale of int8, activation; then the same as 1 to 4 along the other axis and side
    'Convolution': {2: 1, 3: 1, 18: 0, 8: 0, 9: 0, 11: 3, 12: 1, 13: 1, 14: 1, 15: 1, 16: 1},
    'Concat': {0: 0},  # along channels
    'BinaryOp': {0: 0, 1: 0, 2: 0},  # the sum of two arrays
    'Interp': {3: 0, 4: 0, 5: 0, 6: 0},  # no fixed size, corners not aligned
}


class Layer(NamedTuple):
    """A line of (1). Lists are tuples, under their positive key."""

    kind: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    settings: dict[int, Any]


class Operation(NamedTuple):
    """A layer without names: its inputs are the numbers of the operations that make them."""

    kind: str
    inputs: tuple[int, ...]
    settings: dict[int, Any]


class Sizes(NamedTuple):
    """Input channels, output channels, and the sizes of an RRDBNet."""

    channels_in: int
    channels_out: int
    features: int
    growth: int
    blocks: int


def read_rrdbnet(param: Path | str) -> dict[str, np.ndarray]:
    """The tensors of an RRDBNet by BasicSR's names (conv_first.weight, body.0.rdb1.conv1.bias, …), from a `.param` file and
    the `.bin` beside it: weights (out, in, 3, 3), float16 or float32, and biases (out,), float32. They are read-only.

    Raises:
      BadInput: a file is missing, truncated or not ncnn's; `.param` is not the graph of an RRDBNet (the message names the
        first layer that differs, what was expected and what was found); or `.bin` has not the length that follows from it.
    """
    path = Path(param)
    layers = _layers(path)
    names, found = _operations(layers, path)
    sizes = _sizes(found)
    if sizes is None:
        raise BadInput(f'{path}: expected the graph of an RRDBNet, found {_listed(layer.kind for layer in layers)}')
    expected = _rrdbnet(sizes)
    for number in range(max(len(expected), len(found))):
        wanted, given = (some[number] if number < len(some) else None for some in (expected, found))
        if wanted != given:
            name = names[number] if number < len(names) else 'the end'
            raise BadInput(
                f'{path}: not the graph of an RRDBNet; at {_short(name)} expected {_told(wanted, names)}, found '
                f'{_told(given, names)}'
            )
    convolutions = [operation.settings for operation in found if operation.kind == 'Convolution']
    shapes = [(settings[0], settings[6] // (9 * settings[0])) for settings in convolutions]
    return _tensors(path.with_suffix('.bin'), dict(zip(_names(sizes.blocks), shapes)))


def _layers(path: Path) -> list[Layer]:
    """The lines of `.param`."""
    try:
        if path.stat().st_size > LARGEST_PARAM:
            raise BadInput(f'{path}: more than {LARGEST_PARAM} bytes; not a .param file of ncnn')
        lines = path.read_bytes().decode('ascii').splitlines()
    except (FileNotFoundError, NotADirectoryError):
        raise BadInput(f'{path}: no such file') from None
    except IsADirectoryError:
        raise BadInput(f'{path}: a folder, not a file') from None
    except UnicodeDecodeError:
        raise BadInput(f'{path}: not text; expected a .param file of ncnn') from None
    rows = [line.split() for line in lines if line.strip()]
    if len(rows) < 2 or rows[0] != [MAGIC] or not _are_counts(rows[1]):
        raise BadInput(f'{path}: not a .param file of ncnn; expected {MAGIC} and the numbers of layers and blobs')
    announced, lines = tuple(map(int, rows[1])), rows[2:]
    if announced[0] != len(lines):
        raise BadInput(f'{path}: expected {announced[0]} layers, found {len(lines)}; it is truncated or edited')
    layers = [_layer(line, path) for line in lines]
    blobs = sum(len(layer.outputs) for layer in layers)
    if announced[1] != blobs:
        raise BadInput(f'{path}: expected {announced[1]} blobs, found {blobs}; it is truncated or edited')
    return layers


def _layer(row: list[str], path: Path) -> Layer:
    where = f'{path}: {_short(" ".join(row[:2]))}'
    if not _are_counts(row[2:4]):
        raise BadInput(f'{where}: expected TYPE NAME and the numbers of inputs and outputs')
    inputs, outputs = map(int, row[2:4])
    blobs, settings = row[4 : 4 + inputs + outputs], {}
    if len(blobs) < inputs + outputs or any('=' in blob for blob in blobs):
        raise BadInput(f'{where}: expected {inputs} inputs and {outputs} outputs, found {_listed(blobs)}')
    for text in row[4 + inputs + outputs :]:
        try:
            key, value = _setting(text)
        except ValueError:
            raise BadInput(f'{where}: {_short(text)} is not KEY=NUMBER or a list') from None
        settings[key] = value
    return Layer(row[0], row[1], tuple(blobs[:inputs]), tuple(blobs[inputs:]), settings)


def _setting(text: str) -> tuple[int, Any]:
    """KEY=VALUE as in (1). Raises ValueError."""
    key, value = text.split('=')
    numbers = tuple(map(_number, value.split(',')))
    if int(key) <= LISTS and numbers[0] == len(numbers) - 1:
        return LISTS - int(key), numbers[1:]
    (number,) = numbers
    return int(key), number


def _operations(layers: list[Layer], path: Path) -> tuple[list[str], list[Operation]]:
    """The names of all layers except splits, and these layers as operations."""
    names, operations, makers = [], [], {}
    for layer in layers:
        where = f'{path}: {_short(layer.name)}'
        if missing := [blob for blob in layer.inputs if blob not in makers]:
            raise BadInput(f'{where}: no layer before it makes {_short(missing[0])}')
        if twice := [blob for blob in layer.outputs if blob in makers]:
            raise BadInput(f'{where}: a layer before it makes {_short(twice[0])} too')
        if layer.kind == 'Split' and len(layer.inputs) == 1:
            maker = makers[layer.inputs[0]]
        else:
            maker = len(operations)
            usual = DEFAULTS.get(layer.kind, {})
            settings = {key: value for key, value in layer.settings.items() if usual.get(key) != value}
            settings = {} if layer.kind == 'Input' else settings  # hints of a size
            operations.append(Operation(layer.kind, tuple(makers[blob] for blob in layer.inputs), settings))
            names.append(layer.name)
        makers |= dict.fromkeys(layer.outputs, maker)
    return names, operations


def _sizes(operations: list[Operation]) -> Sizes | None:
    """The sizes of the RRDBNet that these operations can be, or None if they can't be one."""
    convolutions = [operation.settings for operation in operations if operation.kind == 'Convolution']
    if len(convolutions) < 21 or not all(
        type(settings.get(key)) is int and settings[key] > 0 for settings in convolutions for key in (0, 6)
    ):
        return None
    first, growing, *_, last = convolutions
    return Sizes(first[6] // (9 * first[0]), last[0], first[0], growing[0], round((len(convolutions) - 6) / 15))


def _rrdbnet(sizes: Sizes) -> list[Operation]:
    """Equations (3) to (5)."""
    graph, features, growth = [], sizes.features, sizes.growth

    def add(kind: str, inputs: Iterable[int], settings: dict[int, Any]) -> int:
        graph.append(Operation(kind, tuple(inputs), settings))
        return len(graph) - 1

    def convolution(x: int, width_in: int, width: int, activated: bool = False) -> int:
        # outputs, side of the kernel, padding, bias, weights
        settings = {0: width, 1: 3, 4: 1, 5: 1, 6: 9 * width_in * width}
        return add('Convolution', [x], settings | ({9: 2, 10: (0.2,)} if activated else {}))

    def residual(x: int, onto: int) -> int:
        return add('Eltwise', [x, onto], {0: 1, 1: (0.2, 1)})

    x = first = convolution(add('Input', [], {}), sizes.channels_in, features)
    for _ in range(sizes.blocks):
        block = x
        for _ in range(3):
            seen, joined = [x], x
            for n in range(4):
                seen.append(convolution(joined, features + n * growth, growth, activated=True))
                joined = add('Concat', seen, {})
            x = residual(convolution(joined, features + 4 * growth, features), onto=x)
        x = residual(x, onto=block)
    x = add('BinaryOp', [first, convolution(x, features, features)], {})
    for _ in range(2):
        x = convolution(add('Interp', [x], {0: 1, 1: 2, 2: 2}), features, features, activated=True)
    x = convolution(x, features, features, activated=True)
    convolution(x, features, sizes.channels_out)
    return graph


def _names(blocks: int) -> list[str]:
    """BasicSR's names of the convolutions, in the order of the graph."""
    body = [f'body.{block}.rdb{dense}.conv{n}' for block in range(blocks) for dense in (1, 2, 3) for n in range(1, 6)]
    return ['conv_first', *body, 'conv_body', 'conv_up1', 'conv_up2', 'conv_hr', 'conv_last']


def _tensors(path: Path, shapes: dict[str, tuple[int, int]]) -> dict[str, np.ndarray]:
    """Equation (2) for convolutions of these (out, in), by name."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise BadInput(f'{path}: no such file; it belongs beside the .param file') from None
    tensors, place = {}, 0
    for name, (width, width_in) in shapes.items():
        flag = int.from_bytes(data[place : place + 4], 'little')
        if flag not in FLAGS:
            raise BadInput(
                f'{path}: {name} has flag {flag:#x}; expected one of {", ".join(map(hex, FLAGS))}; it is '
                'damaged or of another network'
            )
        count = width * width_in * 9
        bias = place + 4 + (count * FLAGS[flag].itemsize + 3) // 4 * 4
        end = bias + 4 * width
        if end > len(data):
            raise BadInput(f'{path}: expected at least {end} bytes, found {len(data)}; it is truncated')
        weights = np.frombuffer(data, FLAGS[flag], count, place + 4)
        tensors[f'{name}.weight'] = weights.reshape(width, width_in, 3, 3)
        tensors[f'{name}.bias'] = np.frombuffer(data, '<f4', width, bias)
        place = end
    if place != len(data):
        raise BadInput(f'{path}: expected {place} bytes, found {len(data)}; it is the file of another network')
    return tensors


def _are_counts(words: list[str]) -> bool:
    """Whether these are two numbers of something in the file."""
    return len(words) == 2 and all(word.isdecimal() and len(word) < 8 for word in words)


def _number(text: str) -> int | float:
    """A number of at most 30 characters. Raises ValueError."""
    number = float(text) if len(text) <= 30 else math.nan
    if not math.isfinite(number):
        raise ValueError
    return int(number) if number.is_integer() else number


def _told(operation: Operation | None, names: list[str]) -> str:
    if operation is None:
        return 'nothing'
    settings = ' '.join(f'{key}={value}' for key, value in sorted(operation.settings.items()))
    inputs = _listed(names[number] for number in operation.inputs if number < len(names))
    return _short(' of '.join(filter(None, (operation.kind, inputs))), 80) + f' ({_short(settings, 80)})' * bool(
        settings
    )


def _listed(names: Iterable[str]) -> str:
    return ', '.join(_short(name) for name in list(names)[:6])


def _short(text: str, most: int = 40) -> str:
    return ascii(text)[1:-1][:most]
