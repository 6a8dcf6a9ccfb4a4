"""How good the averaged parameters are, on examples that never change: the loss by timestep, and samples to look at."""

import jax
import jax.numpy as jnp
import numpy as np

from rsdiff.data.images import bicubic, to_uint8
from rsdiff.data.pipeline import Source, batches
from rsdiff.diffusion import objective
from rsdiff.training import mesh as meshes
from rsdiff.training.state import Trainer


class Validation:
    """A fixed set of examples with their conditions, timesteps and noise, the same in every run of a seed.

    The loss is that of training, at the middle of each of `bins` equal spans of t: it tells a network that has yet to
    learn colours (large t) from one that has yet to learn texture (small t).
    """

    def __init__(self, trainer: Trainer, source: Source):
        config, mesh = trainer.config, trainer.mesh
        self.trainer, self.config = trainer, config.validation
        count = -(-self.config.examples // mesh.size) * mesh.size  # every device has as many
        # a stream of its own: where the source has nothing unseen, its crops at least are not those of a training batch
        batch = next(batches(source, config.data, config.seed + 1, count))
        image, gsd_m = batch['image'], batch['gsd_m']
        key = jax.random.key(config.seed)
        self.truth, self.lr = (np.asarray(x) for x in jax.jit(trainer.conditions)(image, key))
        self.batch = [jax.device_put(x, meshes.batch_sharding(mesh)) for x in (self.truth, self.lr, gsd_m)]
        timesteps, bins = config.generator.schedule.timesteps, self.config.bins
        self.timesteps = [max(1, round(timesteps * (number + 0.5) / bins)) for number in range(bins)]

        shown = slice(self.config.grid)
        self.truth, self.lr = self.truth[shown], self.lr[shown]
        noise = np.asarray(jax.random.normal(key, self.truth.shape))
        outputs = dict(out_shardings=meshes.replicated(mesh))
        self._loss_at = jax.jit(self._loss, **outputs)
        self._sample = jax.jit(lambda params, lr, gsd_m, noise: trainer.generator.sample(
            params, lr, gsd_m, noise, self.config.steps), **outputs)
        self._sample_inputs = self.lr, gsd_m[shown], noise

    def losses(self, params) -> dict:
        """`validation_loss`, the mean, and `validation_loss_by_t`, from small t to large."""
        values = [self._loss_at(params, t, *self.batch) for t in self.timesteps]
        values = [float(value) for value in values]
        return {'validation_loss': float(np.mean(values)), 'validation_loss_by_t': [round(value, 5) for value in values]}

    def grid(self, params) -> np.ndarray:
        """uint8, one row an example: bicubic condition, sample, truth."""
        samples = np.asarray(self._sample(params, *self._sample_inputs))
        size = self.truth.shape[1]
        rows = [np.concatenate([bicubic(to_uint8(lr), size, size), to_uint8(sample), to_uint8(truth)], axis=1)
                for lr, sample, truth in zip(self.lr, samples, self.truth)]
        return np.concatenate(rows, axis=0)

    def _loss(self, params, t, x0, lr, gsd_m):
        generator = self.trainer.generator
        z0 = generator.to_diffused(x0, lr)
        eps = jax.random.normal(jax.random.fold_in(jax.random.key(self.trainer.config.seed), t), z0.shape)
        return jnp.mean(objective.loss_terms(generator.denoiser(params, lr, gsd_m), generator.schedule,
                                             generator.config.objective, z0, eps, jnp.full(len(z0), t)))
