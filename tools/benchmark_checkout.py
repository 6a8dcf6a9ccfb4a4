"""Trains another checkout of rsdiff, for `benchmark.py train --against CHECKOUT`.

    python tools/benchmark_checkout.py --config FILE [--config.KEY=VALUE …]

The checkout must be the working directory and on PYTHONPATH. For each line on stdin, a number of steps, it trains for that
many and prints the seconds. It uses only what every version of rsdiff has: a config, a `Trainer`, a mesh and batches.
"""

import math
import sys
import time

import jax
from absl import app
from ml_collections import config_flags

from rsdiff.data.pipeline import batches, make_source
from rsdiff.training import mesh as meshes
from rsdiff.training.config import TrainConfig, from_dict
from rsdiff.training.state import Trainer

CONFIG = config_flags.DEFINE_config_file('config', None, 'A config file of the checkout.', lock_config=False)


def main(_) -> None:
    config = from_dict(TrainConfig, CONFIG.value.to_dict())
    mesh = meshes.make_mesh(config.mesh.fsdp)
    batch = next(batches(make_source(config.data), config.data, config.seed, config.batch_size))
    trainer = Trainer(config, mesh)
    state = trainer.init(jax.random.key(config.seed))
    for line in sys.stdin:
        jax.block_until_ready(state)
        start = time.perf_counter()
        for _ in range(int(line)):
            state, values = trainer.step(state, meshes.put_batch(mesh, batch))
        if not math.isfinite(float(values['loss'])):
            raise FloatingPointError(f'the loss is {float(values["loss"])}')
        jax.block_until_ready(state)
        print(time.perf_counter() - start, flush=True)


if __name__ == '__main__':
    app.run(main)
