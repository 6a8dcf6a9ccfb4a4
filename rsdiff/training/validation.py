"""Validation of the averaged parameters on fixed examples: the loss by timestep, and samples to measure and inspect."""

from typing import Any, Callable

import jax
import jax.numpy as jnp
import numpy as np

from rsdiff.base.seeds import seed_key
from rsdiff.data.images import bicubic, to_uint8
from rsdiff.data.pipeline import Source, batches
from rsdiff.methods.sampling import sample
from rsdiff.training import mesh as meshes
from rsdiff.training.state import Trainer

# (samples, truths, conditions), uint8 (n, h, w, 3) → values per image, (n,), by metric name
Judge = Callable[[np.ndarray, np.ndarray, np.ndarray], dict[str, np.ndarray]]


class Validation:
    """A fixed set of examples with their complete conditions, timesteps and noise, the same in every run with the same seed.

    The loss is the training loss at the centre of each of `bins` equal intervals of t. It shows whether a network has yet to
    learn colours (large t) or texture (small t).
    """

    def __init__(self, trainer: Trainer, source: Source):
        config, mesh = trainer.config, trainer.mesh
        self.trainer, self.config = trainer, config.validation
        count = -(-self.config.examples // mesh.size) * mesh.size  # the same number per device
        # a separate stream: if the source has no held-out images, at least the crops differ from those of training batches
        batch = next(batches(source, config.data, config.seed + 1, count))
        key = seed_key(config.seed)
        prepare = lambda batch, key: trainer.method.prepare(batch, key, drop=False)
        prepared = jax.device_get(jax.jit(prepare)(batch, key))
        self.prepared = jax.device_put(prepared, meshes.batch_sharding(mesh))
        timesteps, bins = config.method.timesteps, min(self.config.bins, config.method.timesteps)
        self.timesteps = [max(1, round(timesteps * (number + 0.5) / bins)) for number in range(bins)]

        sampled = jax.tree.map(lambda x: x[: self.config.samples], prepared)
        truth, condition = sampled['targets']['image'], sampled['condition']
        noise = np.asarray(jax.random.normal(key, truth.shape))
        outputs: Any = dict(out_shardings=meshes.replicated(mesh))
        self._loss_at = jax.jit(self._loss, **outputs)
        steps = min(self.config.steps, timesteps)
        step_noise = lambda t: jax.random.normal(jax.random.fold_in(key, t), truth.shape)
        self._sample = jax.jit(
            lambda params, frozen, condition, noise: sample(
                trainer.method,
                params,
                condition,
                noise,
                steps,
                solver=trainer.method.sampler.solver,
                step_noise=step_noise,
                frozen=frozen,
            ),
            **outputs,
        )
        self._sample_inputs = condition, noise
        self.truth, self.lr = to_uint8(truth), to_uint8(condition['lr'])

    def losses(self, params) -> dict:
        """`validation_loss`, the mean, and `validation_loss_by_t`, from small t to large."""
        values = [self._loss_at(params, self.trainer.frozen, t, self.prepared) for t in self.timesteps]
        values = [float(value) for value in values]
        return {
            'validation_loss': float(np.mean(values)),
            'validation_loss_by_t': [round(value, 5) for value in values],
        }

    def sample(self, params) -> np.ndarray:
        """uint8 (samples, h, w, 3), with the same noise every time."""
        return to_uint8(np.asarray(self._sample(params, self.trainer.frozen, *self._sample_inputs)))

    def judged(self, samples: np.ndarray, judge: Judge) -> dict[str, float]:
        """The mean of each of `judge`'s metrics over the samples, as `validation_<name>`."""
        return {
            f'validation_{name}': float(np.mean(values)) for name, values in judge(samples, self.truth, self.lr).items()
        }

    def grid(self, samples: np.ndarray) -> np.ndarray:
        """uint8 image with one row per example: bicubic condition, sample, truth."""
        size = self.truth.shape[1]
        lines = [
            np.concatenate([bicubic(lr, size, size), sample, truth], axis=1)
            for lr, sample, truth in zip(self.lr, samples, self.truth)
        ]
        return np.concatenate(lines[: self.config.grid], axis=0)

    def _loss(self, params, frozen, t, prepared):
        trainer, image = self.trainer, prepared['targets']['image']
        key = jax.random.fold_in(seed_key(trainer.config.seed), t)
        return jnp.mean(trainer.method.terms(params, frozen, prepared, key, jnp.full(len(image), t)))
