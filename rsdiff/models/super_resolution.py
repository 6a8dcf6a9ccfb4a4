"""All networks that make an image from its condition in one pass: (condition) → float32 (b, h, w, channels)."""

from typing import Any

from flax import nnx

from rsdiff.models.highresnet import HighResNet, HighResNetConfig
from rsdiff.models.rrdbnet import RRDBNet, RRDBNetConfig
from rsdiff.models.srcnn import SRCNN, SRCNNConfig

# each has the properties fields, channels, upscale and stride
NetworkConfig = RRDBNetConfig | SRCNNConfig | HighResNetConfig


def make_network(config: NetworkConfig, *, rngs: nnx.Rngs) -> Any:
    """The network that `config` describes. Construct it inside `jit` or `eval_shape`."""
    kinds = {RRDBNetConfig: RRDBNet, SRCNNConfig: SRCNN, HighResNetConfig: HighResNet}
    return kinds[type(config)](config, rngs=rngs)
