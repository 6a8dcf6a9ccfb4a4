"""CLIP: an image tower and a text tower with a shared embedding space (Radford et al. 2021, arXiv 2103.00020).

    image features = W_v · post_layernorm(ViT(image)[class token])                             (1)
    text features = W_t · final_layer_norm(Transformer(text))[end token]                       (2)
    logits = exp(logit_scale) · u · vᵀ,   u, v the features scaled to unit length              (3)

Modules are named as in the Hugging Face checkpoints (`vision_model.encoder.layers.0.self_attn.q_proj`, including the
misspelt `pre_layrnorm`), so weights map by name. The functions that use a config and parameters are in
`rsdiff.pretrained.towers`.
"""

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from rsdiff.base.errors import BadInput
from rsdiff.pretrained import transformer
from rsdiff.pretrained.transformer import LARGEST, known_fields, layer_norm, linear

# Per-channel statistics of CLIP's training images, for pixel values in [0, 1].
IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)

LARGEST_LOGIT_SCALE = math.log(100.0)  # Radford et al. 2021, section 2.5

# Text configs written before transformers 4.31 have this eos_token_id, whatever the tokenizer's end token is. For them,
# the end token of a text is its largest id.
LEGACY_EOS_TOKEN_ID = 2


@dataclasses.dataclass(frozen=True)
class VisionConfig(transformer.VisionConfig):
    """The image tower. Names and defaults are Hugging Face's `CLIPVisionConfig`; sizes in pixels."""

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    hidden_act: str = 'quick_gelu'
    layer_norm_eps: float = 1e-5
    image_size: int = 224
    patch_size: int = 32


@dataclasses.dataclass(frozen=True)
class TextConfig(transformer.TextConfig):
    """The text tower. Names and defaults are Hugging Face's `CLIPTextConfig`."""

    hidden_size: int = 512
    intermediate_size: int = 2048
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    hidden_act: str = 'quick_gelu'
    layer_norm_eps: float = 1e-5
    vocab_size: int = 49408
    max_position_embeddings: int = 77
    pad_token_id: int = 1
    bos_token_id: int = 49406
    eos_token_id: int = 49407


@dataclasses.dataclass(frozen=True)
class CLIPConfig:
    """Both towers and the width of their shared space; hashable, so it may be a static argument of `jax.jit`."""

    image_mean: ClassVar = IMAGE_MEAN
    image_std: ClassVar = IMAGE_STD
    attends_padding: ClassVar = False

    vision_config: VisionConfig = VisionConfig()
    text_config: TextConfig = TextConfig()
    projection_dim: int = 512
    logit_scale_init_value: float = 2.6592

    def __post_init__(self):
        if not 1 <= self.projection_dim <= LARGEST['projection_size']:
            raise BadInput(
                f'CLIPConfig: projection_dim is {self.projection_dim}; it must be 1 to {LARGEST["projection_size"]}'
            )
        if not -100 <= self.logit_scale_init_value <= 100:
            raise BadInput(
                f'CLIPConfig: logit_scale_init_value is {self.logit_scale_init_value}; it must be from -100 to 100'
            )

    @classmethod
    def from_json(cls, row: dict[str, Any], where: str = 'config.json') -> 'CLIPConfig':
        """Reads the object of a Hugging Face `config.json`; fields that do not change the computation are skipped.

        Raises:
          BadInput: not a CLIP config, or a field has the wrong type or an invalid value.
        """
        if not isinstance(row, dict) or row.get('model_type') != 'clip':
            raise BadInput(f'{where}: not a CLIP config ("model_type" must be "clip")')
        # Files from 2022 have both `text_config_dict` and `text_config`; transformers prefers the former.
        sections = {name: row.get(f'{name}_dict') or row.get(name) or {} for name in ('vision_config', 'text_config')}
        try:
            towers = {
                'vision_config': VisionConfig(**known_fields(VisionConfig, sections['vision_config'])),
                'text_config': TextConfig(**known_fields(TextConfig, sections['text_config'])),
            }
            return cls(**known_fields(cls, row | towers))
        except BadInput as error:
            raise BadInput(f'{where}: {error}') from None

    @property
    def image_size_px(self) -> int:
        return self.vision_config.image_size

    @property
    def text_length(self) -> int:
        """Maximum number of tokens per text."""
        return self.text_config.max_position_embeddings

    @property
    def embedding_dim(self) -> int:
        return self.projection_dim

    def to_json(self) -> dict[str, Any]:
        """The `config.json` from which transformers builds the same model."""
        row = dataclasses.asdict(self)
        row['vision_config']['model_type'] = 'clip_vision_model'
        row['text_config']['model_type'] = 'clip_text_model'
        return {'architectures': ['CLIPModel'], 'model_type': 'clip'} | row

    def build(self, rngs: nnx.Rngs) -> 'CLIP':
        return CLIP(self, rngs)


class VisionEmbeddings(nnx.Module):
    """Images (batch, size, size, 3) → class token and patches, with positions added: (batch, 1 + patches, width)."""

    def __init__(self, config: VisionConfig, rngs: nnx.Rngs):
        width = config.hidden_size
        self.class_embedding = nnx.Param(nnx.initializers.normal(width**-0.5)(rngs.params(), (width,)))
        self.patch_embedding = transformer.PatchEmbedding(config, rngs, use_bias=False)
        self.position_embedding = transformer.embedding(1 + config.patches, width, rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        patches = self.patch_embedding(images)
        first = jnp.broadcast_to(self.class_embedding[...], (len(images), 1, patches.shape[-1]))
        return jnp.concatenate([first, patches], 1) + self.position_embedding.embedding[...]


class VisionTower(nnx.Module):
    """ViT (Dosovitskiy et al. 2021), output at the class token: (batch, size, size, 3) → (batch, hidden_size)."""

    def __init__(self, config: VisionConfig, rngs: nnx.Rngs):
        self.embeddings = VisionEmbeddings(config, rngs)
        self.pre_layrnorm = layer_norm(config, rngs)
        self.encoder = transformer.Encoder(config, rngs)
        self.post_layernorm = layer_norm(config, rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        return self.post_layernorm(self.encoder(self.pre_layrnorm(self.embeddings(images)))[:, 0])


class TextTower(nnx.Module):
    """A causal transformer, output at the end token: (batch, length) → (batch, hidden_size)."""

    def __init__(self, config: TextConfig, rngs: nnx.Rngs):
        self.eos_token_id = config.eos_token_id
        self.embeddings = transformer.TextEmbeddings(config, rngs)
        self.encoder = transformer.Encoder(config, rngs)
        self.final_layer_norm = layer_norm(config, rngs)

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
        self.visual_projection = linear(
            vision.hidden_size, config.projection_dim, vision.hidden_size**-0.5, rngs, use_bias=False
        )
        self.text_projection = linear(
            text.hidden_size, config.projection_dim, text.hidden_size**-0.5, rngs, use_bias=False
        )
        self.logit_scale = nnx.Param(jnp.asarray(config.logit_scale_init_value, jnp.float32))

    def image_features(self, images: jax.Array) -> jax.Array:
        """Equation (1)."""
        return self.projected(self.vision_model(images))

    def projected(self, pooled: jax.Array) -> jax.Array:
        """The image tower's output, projected into the shared embedding space."""
        return self.visual_projection(pooled)

    def text_features(self, ids: jax.Array, mask: jax.Array) -> jax.Array:
        """Equation (2). Every text must have an end token."""
        return self.text_projection(self.text_model(ids, mask))

    def logits(self, images: jax.Array, texts: jax.Array) -> jax.Array:
        """Equation (3)."""
        return jnp.exp(jnp.minimum(self.logit_scale[...], LARGEST_LOGIT_SCALE)) * images @ texts.T
