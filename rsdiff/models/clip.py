"""CLIP: an image tower and a text tower with one embedding space (Radford et al. 2021, arXiv 2103.00020).

    u = normalise(W_v · post_layernorm(ViT(image)[class token]))                               (1)
    v = normalise(W_t · final_layer_norm(Transformer(text))[end token])                        (2)
    logits = exp(logit_scale) · u · vᵀ                                                         (3)

The tree of modules is that of the Hugging Face checkpoints (`vision_model.encoder.layers.0.self_attn.q_proj`, and so
on, the misspelt `pre_layrnorm` included), so weights map by name; see `rsdiff.models.weights`.

The modules are only ever a recipe: the functions below take a `CLIPConfig` and a nested dict of arrays, `params`.
"""

import dataclasses
import functools
import math
from typing import Any

import einops
import jax
import jax.numpy as jnp
from flax import nnx

from rsdiff.errors import BadInput

# Per-channel statistics of CLIP's training images, for pixel values in [0, 1].
IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)

LARGEST_LOGIT_SCALE = math.log(100.0)  # Radford et al. 2021, section 2.5

ACTIVATIONS = {
    'quick_gelu': lambda x: x * jax.nn.sigmoid(1.702 * x),
    'gelu': functools.partial(jax.nn.gelu, approximate=False),
}

# Text configs written before transformers 4.31 say 2 whatever the tokenizer's end token is. What they mean is: the
# end token is the largest id of the text.
LEGACY_EOS_TOKEN_ID = 2


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """The image tower. Names and defaults are Hugging Face's `CLIPVisionConfig`; sizes in pixels."""

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 32
    hidden_act: str = 'quick_gelu'
    layer_norm_eps: float = 1e-5


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """The text tower. Names and defaults are Hugging Face's `CLIPTextConfig`."""

    vocab_size: int = 49408
    hidden_size: int = 512
    intermediate_size: int = 2048
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    hidden_act: str = 'quick_gelu'
    layer_norm_eps: float = 1e-5
    pad_token_id: int = 1
    bos_token_id: int = 49406
    eos_token_id: int = 49407


@dataclasses.dataclass(frozen=True)
class CLIPConfig:
    """Both towers and the width of their common space; hashable, so it may be a static argument of `jax.jit`."""

    vision_config: VisionConfig = VisionConfig()
    text_config: TextConfig = TextConfig()
    projection_dim: int = 512
    logit_scale_init_value: float = 2.6592

    def __post_init__(self):
        for tower in (self.vision_config, self.text_config):
            name = type(tower).__name__
            if tower.hidden_act not in ACTIVATIONS:
                raise BadInput(f'{name}: hidden_act is {tower.hidden_act!r}; this CLIP knows {sorted(ACTIVATIONS)}')
            if not tower.num_attention_heads or tower.hidden_size % tower.num_attention_heads:
                raise BadInput(f'{name}: hidden_size {tower.hidden_size} is no multiple of {tower.num_attention_heads} '
                               'attention heads')
        if not self.vision_config.patch_size or self.vision_config.image_size % self.vision_config.patch_size:
            raise BadInput(f'VisionConfig: image_size {self.vision_config.image_size} is no multiple of patch_size '
                           f'{self.vision_config.patch_size}')

    @classmethod
    def from_json(cls, row: dict[str, Any], where: str = 'config.json') -> 'CLIPConfig':
        """Reads the object of a Hugging Face `config.json`; fields that do not change the computation are skipped.

        Raises:
          BadInput: not a CLIP config, or a field of the wrong type or with a value that no CLIP can have.
        """
        if not isinstance(row, dict) or row.get('model_type') != 'clip':
            raise BadInput(f'{where}: not a CLIP config ("model_type" must be "clip")')
        # Files of 2022 carry `text_config_dict` beside `text_config`; transformers lets the former win.
        sections = {name: row.get(f'{name}_dict') or row.get(name) or {} for name in ('vision_config', 'text_config')}
        try:
            towers = {'vision_config': VisionConfig(**_known_fields(VisionConfig, sections['vision_config'])),
                      'text_config': TextConfig(**_known_fields(TextConfig, sections['text_config']))}
            return cls(**_known_fields(cls, row | towers))
        except BadInput as error:
            raise BadInput(f'{where}: {error}') from None

    @property
    def image_size_px(self) -> int:
        return self.vision_config.image_size

    @property
    def text_length(self) -> int:
        """The most tokens of a text."""
        return self.text_config.max_position_embeddings

    def to_json(self) -> dict[str, Any]:
        """The `config.json` from which transformers builds the same model."""
        row = dataclasses.asdict(self)
        row['vision_config']['model_type'] = 'clip_vision_model'
        row['text_config']['model_type'] = 'clip_text_model'
        return {'architectures': ['CLIPModel'], 'model_type': 'clip'} | row


def abstract_params(config: CLIPConfig) -> dict[str, Any]:
    """The tree of `params` as `jax.ShapeDtypeStruct`s; allocates nothing."""
    return nnx.to_pure_dict(_recipe(config)[1])


@functools.partial(jax.jit, static_argnums=0)
def init_params(config: CLIPConfig, key: jax.Array) -> dict[str, Any]:
    """Random float32 parameters with CLIP's initial scales (Radford et al. 2021, section 2.5)."""
    return nnx.to_pure_dict(nnx.state(CLIP(config, nnx.Rngs(key))))


def normalise_images(images: jax.Array, mean: tuple[float, ...] = IMAGE_MEAN,
                     std: tuple[float, ...] = IMAGE_STD) -> jax.Array:
    """Images in [-1, 1], (batch, height, width, 3) → what the image tower takes: ((x + 1)/2 − mean) / std."""
    return ((images + 1.0) / 2.0 - jnp.asarray(mean, images.dtype)) / jnp.asarray(std, images.dtype)


def pool_images(config: CLIPConfig, params: dict[str, Any], images: jax.Array) -> jax.Array:
    """The image tower before its projection: normalised images (batch, size, size, 3) → (batch, hidden_size)."""
    return _module(config, params).vision_model(images)


def pool_texts(config: CLIPConfig, params: dict[str, Any], ids: jax.Array, mask: jax.Array) -> jax.Array:
    """The text tower before its projection: ids and mask (batch, length) → (batch, hidden_size)."""
    return _module(config, params).text_model(ids, mask)


def encode_images(config: CLIPConfig, params: dict[str, Any], images: jax.Array) -> jax.Array:
    """Image embeddings, equation (1).

    Args:
      images: (batch, image_size, image_size, 3), normalised by `normalise_images`.
    Returns:
      (batch, projection_dim), of unit length.
    Raises:
      ValueError: the images have another size than the tower's.
    """
    return _unit(_module(config, params).project_images(images))


def encode_texts(config: CLIPConfig, params: dict[str, Any], ids: jax.Array, mask: jax.Array) -> jax.Array:
    """Text embeddings, equation (2).

    Args:
      ids: (batch, length) token ids, each row with an end token; length ≤ max_position_embeddings.
      mask: (batch, length), 1 for a token and 0 for padding.
    Returns:
      (batch, projection_dim), of unit length.
    """
    return _unit(_module(config, params).project_texts(ids, mask))


def logits(params: dict[str, Any], images: jax.Array, texts: jax.Array) -> jax.Array:
    """Equation (3) of unit vectors (n, dim) and (m, dim): (n, m)."""
    return jnp.exp(jnp.minimum(params['logit_scale'], LARGEST_LOGIT_SCALE)) * images @ texts.T


class Attention(nnx.Module):
    """Multi-head self-attention, (batch, length, width) → the same."""

    def __init__(self, width: int, heads: int, layers: int, rngs: nnx.Rngs):
        self.heads = heads
        for name in ('q_proj', 'k_proj', 'v_proj'):
            setattr(self, name, _linear(width, width, (2 * layers * width) ** -0.5, rngs))
        self.out_proj = _linear(width, width, width ** -0.5, rngs)

    def __call__(self, x: jax.Array, mask: jax.Array | None) -> jax.Array:
        q, k, v = (einops.rearrange(project(x), 'b t (h d) -> b t h d', h=self.heads)
                   for project in (self.q_proj, self.k_proj, self.v_proj))
        return self.out_proj(einops.rearrange(jax.nn.dot_product_attention(q, k, v, mask=mask), 'b t h d -> b t (h d)'))


class MLP(nnx.Module):
    """Two linear layers, (batch, length, width) → the same."""

    def __init__(self, config: VisionConfig | TextConfig, rngs: nnx.Rngs):
        width, hidden, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
        self.activation = config.hidden_act
        self.fc1 = _linear(width, hidden, (2 * width) ** -0.5, rngs)
        self.fc2 = _linear(hidden, width, (2 * layers * width) ** -0.5, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.fc2(ACTIVATIONS[self.activation](self.fc1(x)))


class EncoderLayer(nnx.Module):
    """A pre-norm transformer block."""

    def __init__(self, config: VisionConfig | TextConfig, rngs: nnx.Rngs):
        self.layer_norm1 = _layer_norm(config, rngs)
        self.self_attn = Attention(config.hidden_size, config.num_attention_heads, config.num_hidden_layers, rngs)
        self.layer_norm2 = _layer_norm(config, rngs)
        self.mlp = MLP(config, rngs)

    def __call__(self, x: jax.Array, mask: jax.Array | None) -> jax.Array:
        x = x + self.self_attn(self.layer_norm1(x), mask)
        return x + self.mlp(self.layer_norm2(x))


class Encoder(nnx.Module):
    """The blocks of a tower. `mask` is True where query t may see key s, broadcastable to (batch, heads, t, s)."""

    def __init__(self, config: VisionConfig | TextConfig, rngs: nnx.Rngs):
        self.layers = nnx.List([EncoderLayer(config, rngs) for _ in range(config.num_hidden_layers)])

    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        for layer in self.layers:
            x = layer(x, mask)
        return x


class PatchEmbedding(nnx.Module):
    """A convolution whose stride is its kernel, written as the matrix product that it is.

    Its kernel keeps the convolution's layout (patch, patch, channels, width).
    """

    def __init__(self, config: VisionConfig, rngs: nnx.Rngs):
        shape = (config.patch_size, config.patch_size, config.num_channels, config.hidden_size)
        self.kernel = nnx.Param(nnx.initializers.normal(0.02)(rngs.params(), shape))

    def __call__(self, images: jax.Array) -> jax.Array:
        kernel = self.kernel[...]
        patches = einops.rearrange(images, 'b (h p) (w q) c -> b (h w) (p q c)', p=kernel.shape[0], q=kernel.shape[1])
        return patches @ kernel.reshape(-1, kernel.shape[-1])


class VisionEmbeddings(nnx.Module):
    """Images (batch, size, size, 3) → a class token and the patches, with positions: (batch, 1 + patches, width)."""

    def __init__(self, config: VisionConfig, rngs: nnx.Rngs):
        width = config.hidden_size
        self.image_shape = (config.image_size, config.image_size, config.num_channels)
        self.class_embedding = nnx.Param(nnx.initializers.normal(width ** -0.5)(rngs.params(), (width,)))
        self.patch_embedding = PatchEmbedding(config, rngs)
        self.position_embedding = _embedding(1 + (config.image_size // config.patch_size) ** 2, width, rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        if images.shape[1:] != self.image_shape:
            raise ValueError(f'images are {images.shape[1:]}; this tower takes {self.image_shape}')
        patches = self.patch_embedding(images)
        first = jnp.broadcast_to(self.class_embedding[...], (len(images), 1, patches.shape[-1]))
        return jnp.concatenate([first, patches], 1) + self.position_embedding.embedding[...]


class VisionTower(nnx.Module):
    """ViT (Dosovitskiy et al. 2021), read at its class token."""

    def __init__(self, config: VisionConfig, rngs: nnx.Rngs):
        self.embeddings = VisionEmbeddings(config, rngs)
        self.pre_layrnorm = _layer_norm(config, rngs)
        self.encoder = Encoder(config, rngs)
        self.post_layernorm = _layer_norm(config, rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        return self.post_layernorm(self.encoder(self.pre_layrnorm(self.embeddings(images)))[:, 0])


class TextEmbeddings(nnx.Module):
    """Token ids (batch, length) → tokens with positions, (batch, length, width)."""

    def __init__(self, config: TextConfig, rngs: nnx.Rngs):
        self.token_embedding = _embedding(config.vocab_size, config.hidden_size, rngs)
        self.position_embedding = _embedding(config.max_position_embeddings, config.hidden_size, rngs)

    def __call__(self, ids: jax.Array) -> jax.Array:
        positions = self.position_embedding.embedding[...]
        if ids.shape[1] > len(positions):
            raise ValueError(f'texts of {ids.shape[1]} tokens; this tower takes {len(positions)}')
        return self.token_embedding(ids) + positions[:ids.shape[1]]


class TextTower(nnx.Module):
    """A causal transformer, read at its end token."""

    def __init__(self, config: TextConfig, rngs: nnx.Rngs):
        self.eos_token_id = config.eos_token_id
        self.embeddings = TextEmbeddings(config, rngs)
        self.encoder = Encoder(config, rngs)
        self.final_layer_norm = _layer_norm(config, rngs)

    def __call__(self, ids: jax.Array, mask: jax.Array) -> jax.Array:
        causal = jnp.tril(jnp.ones((ids.shape[1], ids.shape[1]), bool))
        visible = causal[None, None] & mask.astype(bool)[:, None, None, :]
        x = self.final_layer_norm(self.encoder(self.embeddings(ids), visible))
        legacy = self.eos_token_id == LEGACY_EOS_TOKEN_ID
        end = jnp.argmax(ids if legacy else ids == self.eos_token_id, axis=-1)
        return jnp.take_along_axis(x, end[:, None, None], axis=1)[:, 0]


class CLIP(nnx.Module):
    """The two towers, their projections and the temperature, named as in Hugging Face's `CLIPModel`."""

    def __init__(self, config: CLIPConfig, rngs: nnx.Rngs):
        vision, text = config.vision_config, config.text_config
        self.vision_model = VisionTower(vision, rngs)
        self.text_model = TextTower(text, rngs)
        self.visual_projection = _linear(vision.hidden_size, config.projection_dim, vision.hidden_size ** -0.5, rngs,
                                         use_bias=False)
        self.text_projection = _linear(text.hidden_size, config.projection_dim, text.hidden_size ** -0.5, rngs,
                                       use_bias=False)
        self.logit_scale = nnx.Param(jnp.asarray(config.logit_scale_init_value, jnp.float32))

    def project_images(self, images: jax.Array) -> jax.Array:
        return self.visual_projection(self.vision_model(images))

    def project_texts(self, ids: jax.Array, mask: jax.Array) -> jax.Array:
        return self.text_projection(self.text_model(ids, mask))


@functools.lru_cache
def _recipe(config: CLIPConfig) -> tuple[nnx.GraphDef, nnx.State]:
    return nnx.split(nnx.eval_shape(lambda: CLIP(config, nnx.Rngs(0))))


def _module(config: CLIPConfig, params: dict[str, Any]) -> CLIP:
    return nnx.merge(_recipe(config)[0], params)


def _unit(x: jax.Array) -> jax.Array:
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def _linear(width_in: int, width_out: int, std: float, rngs: nnx.Rngs, use_bias: bool = True) -> nnx.Linear:
    return nnx.Linear(width_in, width_out, use_bias=use_bias, kernel_init=nnx.initializers.normal(std), rngs=rngs)


def _embedding(entries: int, width: int, rngs: nnx.Rngs) -> nnx.Embed:
    return nnx.Embed(entries, width, embedding_init=nnx.initializers.normal(0.02), rngs=rngs)


def _layer_norm(config: VisionConfig | TextConfig, rngs: nnx.Rngs) -> nnx.LayerNorm:
    # E[x²] − E[x]² cancels badly in float32 where a few channels are large, as they are in trained CLIP towers.
    return nnx.LayerNorm(config.hidden_size, epsilon=config.layer_norm_eps, use_fast_variance=False, rngs=rngs)


def _known_fields(kind: type, section: Any) -> dict[str, Any]:
    """The fields of dataclass `kind` that `section` has, with their types checked."""
    if not isinstance(section, dict):
        raise BadInput(f'{kind.__name__} is {section!r}; it must be an object')
    fields = {field.name: field.type for field in dataclasses.fields(kind)}
    values = {name: section[name] for name in fields if name in section}
    for name, value in values.items():
        accepted = (int, float) if fields[name] is float else fields[name]
        if not isinstance(value, accepted) or (accepted is int and value < 0):
            raise BadInput(f'{kind.__name__}: {name} is {value!r}; it must be {fields[name].__name__}, not negative')
    return values
