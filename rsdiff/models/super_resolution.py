"""All networks that make an image from its condition in one pass: (condition) → float32 (b, h, w, channels)."""

from typing import Any

from flax import nnx

from rsdiff.models.rrdbnet import RRDBNet, RRDBNetConfig

# each has the properties fields, channels, upscale and stride
NetworkConfig = RRDBNetConfig


def make_network(config: NetworkConfig, *, rngs: nnx.Rngs) -> Any:
    """The network that `config` describes. Construct it inside `jit` or `eval_shape`."""
    kinds = {RRDBNetConfig: RRDBNet}
    return kinds[type(config)](config, rngs=rngs)
