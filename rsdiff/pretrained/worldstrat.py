"""Published weights of SRCNN and HighResNet, by the names of WorldStrat's modules (Cornebise et al. 2022, arXiv 2207.06418).

Satlas-super-resolution publishes such files. Ours (`rsdiff.models.srcnn`, `rsdiff.models.highresnet`) have the same names,
but a module of theirs registers more than it uses. What is dropped:

    doubleconv2d, residualblocks    SRCNN's fusion.0 and fusion.1 by another name; unused in HighResNet
    mask_encoder                    unused: the published networks take no masks
    fusion.fusion.1, …              HighResNet's fusion.fusion.0 again: all levels share their weights
"""

import math
from typing import Any

import numpy as np

from rsdiff.base.errors import BadInput
from rsdiff.pretrained import weights

ENTRIES = 'params_ema', 'params', 'state_dict'
WRAPPERS = 'module.', 'backbone.'  # of distributed training, and of WorldStrat's trainer
UNUSED = 'doubleconv2d.', 'residualblocks.', 'mask_encoder.'
LEVELS = 'fusion.fusion.'

# by which a file is recognised, and whose shapes tell the sizes
ENCODER, JOINED = 'encoder.doubleconv2d.0.weight', 'doubleconv2d.doubleconv2d.0.weight'
SHUFFLED, RENDERED, FUSED = 'sr.upsample.1.weight', 'sr.upsample.4.weight', 'fusion.0.doubleconv2d.0.weight'


def tensors_of(tree: dict[str, Any]) -> dict[str, np.ndarray]:
    """The tensors of a network by name, from the content of a file (`foreign_pickle.read_torch`): its entry `params_ema`,
    `params` or `state_dict`, if it has one, without the names of the modules around the network."""
    entry = next((name for name in ENTRIES if isinstance(tree.get(name), dict)), None)
    tensors = tree if entry is None else tree[entry]
    for wrapper in WRAPPERS:
        inner = {name.removeprefix(wrapper): tensor for name, tensor in tensors.items() if name.startswith(wrapper)}
        tensors = inner or tensors
    return tensors


def sizes_of(tensors: dict[str, np.ndarray], where: str) -> dict[str, Any]:
    """The settings of a network, those of an `SRCNNConfig` or `HighResNetConfig` as `kind` says, from its tensors' shapes.

    Raises:
      BadInput: they are of neither; the message begins with `where`.
    """
    shapes = {name: np.shape(tensors.get(name, 0.0)) for name in (ENCODER, JOINED, SHUFFLED, RENDERED)}
    lacking = [name for name, shape in shapes.items() if len(shape) != 4 or 0 in shape]
    if lacking:
        found = ', '.join(sorted(tensors)[:3])
        raise BadInput(f'{where}: expected SRCNN or HighResNet; found weights without {lacking[0]} ({found}, …)')
    features, inputs, *_ = shapes[ENCODER]
    channels = shapes[RENDERED][0]
    sizes = {
        'kind': 'srcnn' if FUSED in tensors else 'highresnet',
        'features': features,
        'frames': shapes[JOINED][1] // features,
        'zoom': math.isqrt(features // shapes[SHUFFLED][0]),
        'channels': channels,
        'reference': inputs == 2 * channels,
    }
    if FUSED in tensors:
        blocks = {name.split('.')[1] for name in tensors if name.startswith('residualblocks.')}
        sizes['blocks'] = len(blocks)
    return sizes


def params_from(config: Any, like: dict[Any, Any], tensors: dict[str, np.ndarray], where: str) -> dict[Any, Any]:
    """The tensors of a file → parameters of the network of `config`, float32.

    Args:
      config: an `SRCNNConfig` or `HighResNetConfig`.
      like: that network's parameters, or their shapes.
      tensors: as `tensors_of` returns them.
    Raises:
      BadInput: they are of another architecture or other sizes (expected and found); some are missing, left over or not
        finite; or the levels of a HighResNet differ.
    """
    found = sizes_of(tensors, where)
    expected = {name: getattr(config, name, None) for name in found}
    differing = [name for name in found if found[name] != expected[name]]
    # a HighResNet of several frames has the same parameters for any number of them
    if differing == ['frames'] and found['kind'] == 'highresnet' and min(found['frames'], expected['frames']) > 1:
        differing = []
    if differing:
        told = dict.fromkeys(['kind', *differing])
        shown = lambda sizes: ', '.join(f'{name} {sizes[name]}' for name in told)
        raise BadInput(f'{where}: expected {shown(expected)}; found {shown(found)}')
    own = {name: tensor for name, tensor in tensors.items() if not name.startswith(UNUSED)}
    for name in [name for name in own if name.startswith(LEVELS)]:
        level, _, rest = name.removeprefix(LEVELS).partition('.')
        if level != '0':
            first = own.get(f'{LEVELS}0.{rest}')
            if first is None or not np.array_equal(first, own.pop(name)):
                raise BadInput(f'{where}: {name} differs from level 0; the levels of a HighResNet share their weights')
    return weights.from_torch(own, like, where)
