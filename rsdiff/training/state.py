"""The training state and the training step."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from rsdiff.base.errors import BadInput
from rsdiff.base.seeds import seed_key
from rsdiff.methods.base import GENERATOR, TEACHER, Frozen, Parameters, fields_to_read
from rsdiff.methods.kinds import make_method
from rsdiff.training import averages
from rsdiff.training import mesh as meshes
from rsdiff.training.averages import EMA
from rsdiff.training.checkpoint import load_parameters
from rsdiff.training.config import EMAConfig, OptimizerConfig, TrainConfig

# step: int32 (); params, buffers: nested dicts of arrays by part; opt: optimiser state by part; ema: the generator's
# averages by name
State = dict


def make_optimizer(config: OptimizerConfig, batch_size: int, total_images: int) -> optax.GradientTransformation:
    """Gradient clipping, then AdamW; see `OptimizerConfig` for the learning-rate schedule."""
    warmup = max(1, config.warmup_images // batch_size)
    steps = max(warmup + 1, total_images // batch_size)
    rate = optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, warmup, steps, config.learning_rate * config.final_fraction
    )
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm), optax.adamw(rate, b2=config.b2, weight_decay=config.weight_decay)
    )


def optimizers(config: TrainConfig, parts: tuple[str, ...]) -> dict[str, optax.GradientTransformation]:
    """The optimiser of each part, in update order.

    Raises:
      BadInput: `config.optimizers` names a part that the method does not have.
    """
    for part in sorted({*config.optimizers} - {*parts}):
        raise BadInput(f'config.optimizers has {part!r}; the parts of this method are {", ".join(parts)}')
    own = {part: config.optimizers.get(part, config.optimizer) for part in parts}
    return {part: make_optimizer(chosen, config.batch_size, config.total_images) for part, chosen in own.items()}


def ema_decay(config: EMAConfig, images_seen, batch_size: int):
    """The decay of the average per step, with half_life = min(half_life_images, rampup · images_seen)."""
    half_life = jnp.minimum(config.half_life_images, config.rampup * images_seen)
    return 0.5 ** (batch_size / jnp.maximum(half_life, 1e-8))


def batch_shapes(config: TrainConfig, sharding: Any = None) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of a batch of a step, as `data.pipeline.batches` reads it."""
    size = config.data.size_px
    shapes = {'image': ((size, size, 3), jnp.uint8), 'gsd_m': ((), jnp.float32)}
    shapes |= {field.name: (field.shape(size), field.dtype) for field in fields_to_read(config.method.fields)}
    return {
        name: jax.ShapeDtypeStruct((config.batch_size, *shape), dtype, sharding=sharding)
        for name, (shape, dtype) in shapes.items()
    }


class Trainer:
    """The functions that act on the state, for one config and mesh, compiled once."""

    def __init__(self, config: TrainConfig, mesh: Mesh):
        self.config, self.mesh = config, mesh
        self.method = make_method(config.method, config.degradation)
        self.optimizers = optimizers(config, self.method.parts)
        self.shapes = jax.eval_shape(self._init, jax.random.key(0))
        self.sharding = meshes.tree_sharding(mesh, self.shapes)
        batch = meshes.batch_sharding(mesh)
        # Initialisation consists of many small random kernels that run once; optimising them costs more than it saves.
        self.init = jax.jit(
            self._init,
            out_shardings=self.sharding,
            compiler_options={'xla_backend_optimization_level': 0} if jax.default_backend() == 'cpu' else None,
        )
        self._compiled = jax.jit(
            self._step,
            in_shardings=(self.sharding, batch, meshes.replicated(mesh)),
            donate_argnums=0,
            out_shardings=(self.sharding, meshes.replicated(mesh)),
        )

    @functools.cached_property
    def frozen(self) -> Frozen:
        """The networks that are not trained, on every device.

        Raises:
          BadInput: one cannot be loaded, or the teacher is another generator than `config.method`'s.
        """
        return jax.device_put(self._load_frozen(), meshes.replicated(self.mesh))

    def step(self, state: State, batch) -> tuple[State, dict[str, jax.Array]]:
        """Updates every part once from a batch (`data.pipeline.batches`); `state` cannot be used again. Returns the new state
        and metrics by name. Random numbers depend only on seed and step."""
        return self._compiled(state, batch, self.frozen)

    def trace_step(self, state: State, batch) -> jax.stages.Traced:
        """The traced `step`, for shapes or arrays. When compiled, its third argument is `frozen`."""
        frozen = self._load_frozen()  # not under a trace, in which files cannot be read
        return self._compiled.trace(state, batch, jax.eval_shape(lambda: frozen))

    def abstract_state(self) -> State:
        """Shapes, dtypes and shardings of the state, as a template for restoring."""
        return jax.tree.map(
            lambda s, sharding: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding), self.shapes, self.sharding
        )

    def with_parameters(self, state: State, params: Parameters) -> State:
        """`state` with the generator's parameters and averages replaced by `params`, NumPy arrays."""
        put = lambda sharding: jax.device_put(params[GENERATOR], sharding)
        made = {'params': state['params'] | {GENERATOR: put(self.sharding['params'][GENERATOR])}}
        averages = {name: put(sharding) for name, sharding in self.sharding['ema'][GENERATOR].items()}
        return state | made | {'ema': {GENERATOR: averages}}

    def average(self, state: State) -> Parameters:
        """The averaged parameters, used for sampling."""
        return {GENERATOR: state['ema'][GENERATOR][EMA]}

    def _load_frozen(self) -> Frozen:
        frozen, teacher = self.method.load_frozen(training=True), self.method.teacher
        if teacher is None:
            return frozen
        return frozen | {TEACHER: load_parameters(*teacher, 'config.method.teacher', same_kind=True)}

    def _init(self, key) -> State:
        params = self.method.init(key)
        # the average is a copy: one buffer cannot be donated twice
        return {
            'step': jnp.zeros((), jnp.int32),
            'params': params,
            'buffers': self.method.init_buffers(jax.random.fold_in(key, 1)),
            'ema': {GENERATOR: {name: jax.tree.map(jnp.copy, params[GENERATOR]) for name in self._decays(1)}},
            'opt': {part: optimizer.init(params[part]) for part, optimizer in self.optimizers.items()},
        }

    def _step(self, state: State, batch, frozen: Frozen) -> tuple[State, dict[str, jax.Array]]:
        config, step = self.config, state['step']
        key = jax.random.fold_in(seed_key(config.seed), step)
        # Unrolled: a convolution's gradient inside a loop is many times slower on CPU.
        shares = []
        for number in range(config.accumulation):
            key_prepare, key_loss = jax.random.split(jax.random.fold_in(key, number))
            share = jax.tree.map(lambda x: x[number :: config.accumulation], batch)
            shares.append((self.method.prepare(share, key_prepare), key_loss))

        made, metrics = dict(state, step=step + 1), {}
        for part, optimizer in self.optimizers.items():
            # with the parameters and buffers before any update, for every part
            value, more, grads, buffers = self._gradients(part, state, frozen, shares)
            updates, opt = optimizer.update(grads, state['opt'][part], state['params'][part])
            params = optax.apply_updates(state['params'][part], updates)
            for name, new in (('params', params), ('opt', opt), ('buffers', buffers)):
                made[name] = made[name] | {part: new}
            told = {'loss': value, 'grad_norm': optax.global_norm(grads), **more}
            metrics |= told if part == GENERATOR else {f'{part}_{name}': number for name, number in told.items()}

        decays, old = self._decays(step + 1), state['ema'][GENERATOR]
        averaged = lambda old, decay: jax.tree.map(
            lambda average, new: average + (1 - decay) * (new - average), old, made['params'][GENERATOR]
        )
        made['ema'] = {GENERATOR: {name: averaged(old[name], decay) for name, decay in decays.items()}}
        return made, metrics

    def _decays(self, step) -> dict[str, Any]:
        """The decay of each average at a step, from 1."""
        ema, batch_size = self.config.ema, self.config.batch_size
        others = {averages.name_of(length): averages.decay(length, step) for length in ema.lengths}
        return {EMA: ema_decay(ema, step * batch_size, batch_size)} | others

    def _gradients(self, part: str, state: State, frozen: Frozen, shares):
        """A part's loss, metrics and gradients, averaged over the microbatches `shares`, and its buffers after them."""
        own, buffers = state['params'][part], state['buffers'][part]
        total: Any = None

        def loss(own, buffers, prepared, key):
            params = meshes.gathered(self.mesh, state['params'] | {part: own}, self.method.dtype)
            return self.method.loss(part, params, state['buffers'] | {part: buffers}, frozen, prepared, key)

        for prepared, key in shares:
            (value, (metrics, buffers)), grads = jax.value_and_grad(loss, has_aux=True)(own, buffers, prepared, key)
            mean = jax.tree.map(lambda x: x / len(shares), (value, metrics, grads))
            total = mean if total is None else jax.tree.map(jnp.add, total, mean)
        return *total, buffers
