"""The training state and its one step."""

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from rsdiff.base.seeds import seed_key
from rsdiff.data.degradation import degrade
from rsdiff.methods.diffusion import Generator
from rsdiff.training import mesh as meshes
from rsdiff.training.config import EMAConfig, OptimizerConfig, TrainConfig

State = dict  # step: int32 (); params, ema: nested dicts of float32; opt: the optimiser's state


def make_optimizer(config: OptimizerConfig, batch_size: int, total_images: int) -> optax.GradientTransformation:
    """AdamW behind gradient clipping; see `OptimizerConfig` for the learning rate's course."""
    warmup = max(1, config.warmup_images // batch_size)
    steps = max(warmup + 1, total_images // batch_size)
    rate = optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, warmup, steps, config.learning_rate * config.final_fraction
    )
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm), optax.adamw(rate, b2=config.b2, weight_decay=config.weight_decay)
    )


def ema_decay(config: EMAConfig, images_seen, batch_size: int):
    """The factor of the old average in one step: half_life = min(half_life_images, rampup · images_seen)."""
    half_life = jnp.minimum(config.half_life_images, config.rampup * images_seen)
    return 0.5 ** (batch_size / jnp.maximum(half_life, 1e-8))


class Trainer:
    """Functions of the state for one config and mesh, compiled once."""

    def __init__(self, config: TrainConfig, mesh: Mesh):
        self.config, self.mesh = config, mesh
        self.generator = Generator(config.generator)
        self.optimizer = make_optimizer(config.optimizer, config.batch_size, config.total_images)
        self.shapes = jax.eval_shape(self._init, jax.random.key(0))
        self.sharding = meshes.tree_sharding(mesh, self.shapes)
        batch = meshes.batch_sharding(mesh)
        # Initialising is many small random kernels that run once; optimising them costs far more than it gives.
        self.init = jax.jit(
            self._init,
            out_shardings=self.sharding,
            compiler_options={'xla_backend_optimization_level': 0} if jax.default_backend() == 'cpu' else None,
        )
        self.step = jax.jit(
            self._step,
            in_shardings=(self.sharding, batch),
            donate_argnums=0,
            out_shardings=(self.sharding, meshes.replicated(mesh)),
        )

    def abstract_state(self) -> State:
        """Shapes, dtypes and shardings of the state, for restoring into."""
        return jax.tree.map(
            lambda s, sharding: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding), self.shapes, self.sharding
        )

    def with_parameters(self, state: State, params) -> State:
        """`state` with other parameters, as its average too. params: nested dicts of NumPy arrays."""
        return state | {name: jax.device_put(params, self.sharding[name]) for name in ('params', 'ema')}

    def conditions(self, images, key):
        """uint8 (b, h, w, 3) → x0 float32 in [-1, 1] and its degraded (b, h/4, w/4, 3)."""
        x0 = images.astype(jnp.float32) / 127.5 - 1.0
        return x0, degrade(x0, jax.random.split(key, x0.shape[0]), self.config.degradation)

    def _init(self, key) -> State:
        params = self.generator.init(key)
        # the average is a copy: two names for one buffer can't both be donated
        return {
            'step': jnp.zeros((), jnp.int32),
            'params': params,
            'ema': jax.tree.map(jnp.copy, params),
            'opt': self.optimizer.init(params),
        }

    def _step(self, state: State, batch) -> tuple[State, dict[str, jax.Array]]:
        """One update from a batch of image uint8 (b, h, w, 3) and gsd_m (b,). Randomness is a function of the step."""
        config, step = self.config, state['step']
        key = jax.random.fold_in(seed_key(config.seed), step)

        def loss(params, part, key):
            key_degrade, key_loss = jax.random.split(key)
            x0, lr = self.conditions(part['image'], key_degrade)
            return self.generator.loss(params, x0, {'lr': lr, 'gsd_m': part['gsd_m']}, key_loss)

        # Unrolled: a convolution's gradient inside a loop is many times slower on CPU.
        parts = config.accumulation
        value, grads = 0.0, jax.tree.map(jnp.zeros_like, state['params'])
        for number in range(parts):
            part = jax.tree.map(lambda x: x[number::parts], batch)
            part_value, part_grads = jax.value_and_grad(loss)(state['params'], part, jax.random.fold_in(key, number))
            value += part_value / parts
            grads = jax.tree.map(lambda a, b: a + b / parts, grads, part_grads)

        updates, opt = self.optimizer.update(grads, state['opt'], state['params'])
        params = optax.apply_updates(state['params'], updates)
        decay = ema_decay(config.ema, (step + 1) * config.batch_size, config.batch_size)
        ema = jax.tree.map(lambda average, new: average + (1 - decay) * (new - average), state['ema'], params)
        metrics = {'loss': value, 'grad_norm': optax.global_norm(grads)}
        return {'step': step + 1, 'params': params, 'ema': ema, 'opt': opt}, metrics
