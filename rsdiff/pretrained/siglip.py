"""SigLIP and SigLIP 2: an image tower and a text tower, trained with a sigmoid loss per image-text pair (Zhai et al.
2023, arXiv 2303.15343; Tschannen et al. 2025, arXiv 2502.14786).

    image features = pool(post_layernorm(ViT(image)))                                          (1)
    text features = W_t · final_layer_norm(Transformer(text))[last position] + b_t             (2)
    logits = exp(logit_scale) · u · vᵀ + logit_bias,   u, v the features scaled to unit length (3)

The probability that an image and a text match is σ(logits). It was trained without masks: texts are padded to the
tower's full length, and padding is attended to like any token. The pooling of (1) is an attention with one learned
query, the probe p (Lee et al. 2019, arXiv 1810.00825; Zhai et al. 2022, arXiv 2106.04560):

    a = Attention(p, x, x),   pool(x) = a + MLP(LN(a))                                         (4)

SigLIP 2 with a fixed resolution is the same network. Its NaFlex variant takes any aspect ratio. Only its own square
grid of positions is supported here; there it is the same network, with the patch embedding stored as a matrix. Modules
are named as in Hugging Face's `SiglipModel`. The functions that use a config and parameters are in
`rsdiff.pretrained.towers`.
"""

import dataclasses
import math
from typing import Any, ClassVar

import einops
import jax
import jax.numpy as jnp
from flax import nnx

from rsdiff.base.errors import BadInput
from rsdiff.pretrained import transformer
from rsdiff.pretrained.transformer import known_fields, layer_norm, linear

IMAGE_MEAN = IMAGE_STD = (0.5, 0.5, 0.5)

NAFLEX_PATCHES = 256  # the default of `Siglip2VisionConfig`


@dataclasses.dataclass(frozen=True)
class VisionConfig(transformer.VisionConfig):
    """The image tower. Names and defaults are Hugging Face's `SiglipVisionConfig`; sizes in pixels."""

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    hidden_act: str = 'gelu_pytorch_tanh'
    layer_norm_eps: float = 1e-6
    image_size: int = 224
    patch_size: int = 16


@dataclasses.dataclass(frozen=True)
class TextConfig(transformer.TextConfig):
    """The text tower. Names and defaults are Hugging Face's `SiglipTextConfig`."""

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    hidden_act: str = 'gelu_pytorch_tanh'
    layer_norm_eps: float = 1e-6
    vocab_size: int = 32000
    max_position_embeddings: int = 64
    projection_size: int = 768


@dataclasses.dataclass(frozen=True)
class SiglipConfig:
    """Both towers; hashable, so it may be a static argument of `jax.jit`."""

    image_mean: ClassVar = IMAGE_MEAN
    image_std: ClassVar = IMAGE_STD
    attends_padding: ClassVar = True

    vision_config: VisionConfig = VisionConfig()
    text_config: TextConfig = TextConfig()

    def __post_init__(self):
        if self.vision_config.hidden_size != self.text_config.projection_size:
            raise BadInput(
                f'SiglipConfig: image embeddings have {self.vision_config.hidden_size} dimensions, text embeddings '
                f'{self.text_config.projection_size}'
            )

    @classmethod
    def from_json(cls, row: dict[str, Any], where: str = 'config.json') -> 'SiglipConfig':
        """Reads the object of a Hugging Face `config.json`, of `model_type` siglip or siglip2 (the latter at
        its own square); fields that do not change the computation are skipped.

        Raises:
          BadInput: not such a config, or a field has the wrong type or an invalid value.
        """
        if not isinstance(row, dict) or row.get('model_type') not in ('siglip', 'siglip2'):
            raise BadInput(f'{where}: not a SigLIP config ("model_type" must be "siglip" or "siglip2")')
        vision, text = row.get('vision_config') or {}, row.get('text_config') or {}
        try:
            for kind, section in ((VisionConfig, vision), (TextConfig, text)):
                if not isinstance(section, dict):
                    raise BadInput(f'{kind.__name__} is {ascii(section)[:60]}; it must be an object')
            vision_fields = known_fields(VisionConfig, vision)
            if not vision.get('vision_use_head', True):
                raise BadInput('VisionConfig: vision_use_head is false; the tower cannot embed images without its head')
            if row['model_type'] == 'siglip2':
                patches = vision.get('num_patches', NAFLEX_PATCHES)
                if type(patches) is not int or not 1 <= patches <= 1_000_000 or math.isqrt(patches) ** 2 != patches:
                    raise BadInput(
                        f'VisionConfig: num_patches is {ascii(patches)[:60]}; it must be the square of an integer'
                    )
                vision_fields['image_size'] = math.isqrt(patches) * vision_fields.get(
                    'patch_size', VisionConfig.patch_size
                )
            if text.get('projection_size') is None:  # it defaults to the width of the tower
                text = text | {'projection_size': text.get('hidden_size', TextConfig.hidden_size)}
            return cls(VisionConfig(**vision_fields), TextConfig(**known_fields(TextConfig, text)))
        except BadInput as error:
            raise BadInput(f'{where}: {error}') from None

    @property
    def image_size_px(self) -> int:
        return self.vision_config.image_size

    @property
    def text_length(self) -> int:
        """Number of tokens per text, including padding."""
        return self.text_config.max_position_embeddings

    @property
    def embedding_dim(self) -> int:
        return self.vision_config.hidden_size

    def to_json(self) -> dict[str, Any]:
        """The `config.json` from which transformers builds the same model."""
        row = dataclasses.asdict(self)
        row['vision_config']['model_type'] = 'siglip_vision_model'
        row['text_config']['model_type'] = 'siglip_text_model'
        return {'architectures': ['SiglipModel'], 'model_type': 'siglip'} | row

    def build(self, rngs: nnx.Rngs) -> 'Siglip':
        return Siglip(self, rngs)


class VisionEmbeddings(nnx.Module):
    """Images (batch, size, size, 3) → patches with positions added: (batch, patches, width)."""

    def __init__(self, config: VisionConfig, rngs: nnx.Rngs):
        self.patch_embedding = transformer.PatchEmbedding(config, rngs, use_bias=True)
        self.position_embedding = transformer.embedding(config.patches, config.hidden_size, rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        return self.patch_embedding(images) + self.position_embedding.embedding[...]


class ProbeAttention(nnx.Module):
    """Attention of `queries` (t, width) to x (batch, s, width) → (batch, t, width). As in torch.nn.MultiheadAttention,
    whose names it has, the three input projections are one matrix, (3 · width, width), in PyTorch's layout."""

    def __init__(self, config: VisionConfig, rngs: nnx.Rngs):
        width = config.hidden_size
        self.heads = config.num_attention_heads
        self.in_proj_weight = nnx.Param(nnx.initializers.normal(width**-0.5)(rngs.params(), (3 * width, width)))
        self.in_proj_bias = nnx.Param(jnp.zeros(3 * width))
        self.out_proj = linear(width, width, width**-0.5, rngs)

    def __call__(self, queries: jax.Array, x: jax.Array) -> jax.Array:
        matrices, biases = jnp.split(self.in_proj_weight[...], 3), jnp.split(self.in_proj_bias[...], 3)
        inputs = jnp.broadcast_to(queries, (len(x), *queries.shape)), x, x
        q, k, v = (
            einops.rearrange(y @ matrix.T + bias, 'b t (h d) -> b t h d', h=self.heads)
            for y, matrix, bias in zip(inputs, matrices, biases)
        )
        return self.out_proj(einops.rearrange(jax.nn.dot_product_attention(q, k, v), 'b t h d -> b t (h d)'))


class PoolingHead(nnx.Module):
    """Equation (4): (batch, patches, width) → (batch, width)."""

    def __init__(self, config: VisionConfig, rngs: nnx.Rngs):
        self.probe = nnx.Param(
            nnx.initializers.normal(config.hidden_size**-0.5)(rngs.params(), (1, 1, config.hidden_size))
        )
        self.attention = ProbeAttention(config, rngs)
        self.layernorm = layer_norm(config, rngs)
        self.mlp = transformer.MLP(config, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        a = self.attention(self.probe[...][0], x)
        return (a + self.mlp(self.layernorm(a)))[:, 0]


class VisionTower(nnx.Module):
    """Equation (1)."""

    def __init__(self, config: VisionConfig, rngs: nnx.Rngs):
        self.embeddings = VisionEmbeddings(config, rngs)
        self.encoder = transformer.Encoder(config, rngs)
        self.post_layernorm = layer_norm(config, rngs)
        self.head = PoolingHead(config, rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        return self.head(self.post_layernorm(self.encoder(self.embeddings(images))))


class TextTower(nnx.Module):
    """Equation (2)."""

    def __init__(self, config: TextConfig, rngs: nnx.Rngs):
        self.embeddings = transformer.TextEmbeddings(config, rngs)
        self.encoder = transformer.Encoder(config, rngs)
        self.final_layer_norm = layer_norm(config, rngs)
        self.head = linear(config.hidden_size, config.projection_size, config.hidden_size**-0.5, rngs)

    def __call__(self, ids: jax.Array, mask: jax.Array) -> jax.Array:
        x = self.encoder(self.embeddings(ids), mask.astype(bool)[:, None, None, :])
        return self.head(self.final_layer_norm(x[:, -1]))


class Siglip(nnx.Module):
    """The two towers, the temperature and the bias, named as in Hugging Face's `SiglipModel`."""

    def __init__(self, config: SiglipConfig, rngs: nnx.Rngs):
        self.vision_model = VisionTower(config.vision_config, rngs)
        self.text_model = TextTower(config.text_config, rngs)
        # Initial values in training: Zhai et al. 2023, section 3.2.
        self.logit_scale = nnx.Param(jnp.full((1,), math.log(10.0), jnp.float32))
        self.logit_bias = nnx.Param(jnp.full((1,), -10.0, jnp.float32))

    def image_features(self, images: jax.Array) -> jax.Array:
        return self.projected(self.vision_model(images))

    def projected(self, pooled: jax.Array) -> jax.Array:
        """Returns `pooled`: the image tower's output is already in the shared embedding space."""
        return pooled

    def text_features(self, ids: jax.Array, mask: jax.Array) -> jax.Array:
        """SigLIP was trained with texts padded to `text_length` and masks of ones."""
        return self.text_model(ids, mask)

    def logits(self, images: jax.Array, texts: jax.Array) -> jax.Array:
        """Equation (3)."""
        return jnp.exp(self.logit_scale[...]) * images @ texts.T + self.logit_bias[...]
