"""A training step in plain JAX, for `benchmark.py train --against bare`: what the trainer costs beside it."""

import math
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from benchmark_rounds import spread

from rsdiff.base.errors import BadInput
from rsdiff.methods.base import GENERATOR
from rsdiff.methods.kinds import make_method
from rsdiff.methods.regression import Regression
from rsdiff.training.config import TrainConfig
from rsdiff.training.state import make_optimizer


class Bare:
    """Called with n, trains the network of a regression for n steps and returns the seconds.

    Network, degradation, loss, optimiser and batch are the trainer's; there is no mesh, no parameter average, no microbatch and
    no metric but the loss.
    """

    name = 'bare'

    def __init__(self, config: TrainConfig, batch: dict[str, np.ndarray]):
        method = make_method(config.method, config.degradation)
        if not isinstance(method, Regression):
            raise BadInput(f'--against bare needs a config of kind regression; this one is {config.method.kind}')
        optimizer = make_optimizer(config.optimizer, config.batch_size, config.total_images)
        self.batch, self.key = batch, jax.random.key(config.seed)
        self.params = jax.jit(method.init)(self.key)[GENERATOR]
        self.opt, self.count = optimizer.init(self.params), 0

        def step(params, opt, batch, key):
            prepared = method.prepare(batch, key)

            def loss(params):
                condition, targets = prepared['condition'], method.aimed(prepared)['targets']
                made = method.network({GENERATOR: params})(condition)
                return jnp.mean(jnp.abs(made - method.codec.encode(targets, condition)))

            value, gradient = jax.value_and_grad(loss)(params)
            updates, opt = optimizer.update(gradient, opt, params)
            return optax.apply_updates(params, updates), opt, value

        self.step = jax.jit(step, donate_argnums=(0, 1))

    def __call__(self, steps: int) -> float:
        jax.block_until_ready(self.params)
        start = time.perf_counter()
        for _ in range(steps):
            self.count += 1
            key = jax.random.fold_in(self.key, self.count)
            self.params, self.opt, loss = self.step(self.params, self.opt, self.batch, key)
        if not math.isfinite(float(loss)):
            raise FloatingPointError(f'the loss is {float(loss)}')
        jax.block_until_ready(self.params)
        return time.perf_counter() - start

    def compare(self, rounds: list[list[float]], our_macs: int) -> dict[str, Any]:
        """Its images per second, and our seconds over its in each round. `rounds`: images per second of (ours, its)."""
        return {
            'images_per_second': spread([its for _, its in rounds]),
            'our_seconds_over_its': spread([its / ours for ours, its in rounds]),
        }
