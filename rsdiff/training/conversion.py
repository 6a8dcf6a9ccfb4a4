"""Published networks as releases, which are sampled and evaluated like our own."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp

from rsdiff.base.files import stamp
from rsdiff.data.fingerprints import TrainedOn, add_fingerprints
from rsdiff.data.pipeline import DataConfig
from rsdiff.methods import published
from rsdiff.methods.kinds import make_method
from rsdiff.pretrained import weights
from rsdiff.training.checkpoint import Trained, load_generator, release
from rsdiff.training.config import TrainConfig


def convert_published(name: str, source: Path, out: Path) -> dict[str, Any]:
    """Writes the network `name` of `methods.published` to the folder `out` as a release in float32, without loss.

    Args:
      source: its file, as `published.load` takes it.
    Returns:
      What is known of it: architecture, origin, licence, size and SHA-256 of its files, number of parameters, digest; and
      that it was trained on unknown images.
    Raises:
      BadInput: as `published.load`.
    """
    network = published.NETWORKS[name]
    method, params = published.load(name, source)
    config = TrainConfig(method=method, data=DataConfig(source='unknown', size_px=network.window_px))
    release(Trained(make_method(method), params, config, '', None), out, jnp.float32)
    trained_on = add_fingerprints(out, TrainedOn(unknown=(f'those of {name}, see {network.origin}',)))
    return {
        'architecture': name,
        'origin': network.origin,
        'licence': network.licence,
        'files': {file.name: stamp(file)._asdict() for file in published.files(source)},
        'parameters': sum(leaf.size for leaf in weights.flatten(params).values()),
        'trained_on': str(trained_on),
        'digest': load_generator(out).digest,
    }
