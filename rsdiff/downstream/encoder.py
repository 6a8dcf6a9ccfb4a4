"""What the downstream task fine-tunes: a CLIP with its tokenizer and its image preprocessing."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any, Sequence

import jax
import numpy as np
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer

from rsdiff.data.images import bicubic
from rsdiff.errors import BadInput
from rsdiff.models import clip, weights

# Some of the prompts that Radford et al. 2021 published for RESISC45 and EuroSAT.
TEMPLATES = ('satellite imagery of {}.', 'aerial imagery of {}.', 'a centered satellite photo of {}.',
             'an aerial view of a {}.')


@dataclasses.dataclass(frozen=True)
class Encoder:
    """A CLIP and what stands before it.

    Attributes:
      name: what reports call it.
      digest: changes when anything that decides its embeddings changes.
      pretrained: the parameters to start from, or None: then they are drawn anew for every seed.
      templates: sentences that a class name is put into.
      image_mean, image_std: channel statistics for pixels in [0, 1].
    """

    name: str
    digest: str
    config: clip.CLIPConfig
    tokenizer: CLIPTokenizer
    pretrained: dict[str, Any] | None
    templates: tuple[str, ...]
    image_mean: tuple[float, float, float] = clip.IMAGE_MEAN
    image_std: tuple[float, float, float] = clip.IMAGE_STD

    @property
    def image_size_px(self) -> int:
        return self.config.image_size_px

    def initial_params(self, seed: int) -> dict[str, Any]:
        """The parameters a training run with this seed starts from."""
        if self.pretrained is not None:
            return self.pretrained
        return clip.init_params(self.config, jax.random.key(seed))

    def resize(self, image: np.ndarray) -> np.ndarray:
        """uint8 (h, w, 3) → uint8 (image_size_px, image_size_px, 3), bicubic, without keeping the aspect ratio."""
        if image.shape[:2] == (self.image_size_px, self.image_size_px):
            return image
        return bicubic(image, self.image_size_px, self.image_size_px)

    def normalise(self, images: jax.Array) -> jax.Array:
        """uint8 (batch, size, size, 3) → float32, as the image tower takes them."""
        return clip.normalise_images(images.astype('float32') / 127.5 - 1.0, self.image_mean, self.image_std)

    def encode_images(self, params: dict[str, Any], pixels: jax.Array) -> jax.Array:
        """uint8 (batch, size, size, 3) → embeddings of unit length, float32 (batch, dim)."""
        return clip.encode_images(self.config, params, self.normalise(pixels))

    def encode_texts(self, params: dict[str, Any], ids: jax.Array, mask: jax.Array) -> jax.Array:
        """What `tokenize` gives → embeddings of unit length, float32 (batch, dim)."""
        return clip.encode_texts(self.config, params, ids, mask)

    def logits(self, params: dict[str, Any], images: jax.Array, texts: jax.Array) -> jax.Array:
        """Embeddings (n, dim) and (m, dim) → what the encoder was trained to score their fit by, (n, m)."""
        return clip.logits(params, images, texts)

    def tokenize(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Texts → ids and mask, int32 (texts, length of the longest); longer than the tower takes is cut off."""
        tokens = self.tokenizer(list(texts), padding=True, truncation=True, return_tensors='np',
                                max_length=self.config.text_length)
        return tokens['input_ids'].astype(np.int32), tokens['attention_mask'].astype(np.int32)


def load_encoder(folder: Path | str) -> Encoder:
    """A pretrained CLIP from a Hugging Face folder: config, weights, tokenizer and, if it is there, preprocessing.

    Raises:
      BadInput: a file is missing or unreadable; the tokenizer has ids that the text tower does not.
    """
    folder = Path(folder)
    config, params = weights.load_clip(folder)
    tokenizer = _load_tokenizer(folder)
    if len(tokenizer) > config.text_config.vocab_size:
        raise BadInput(f'{folder}: the tokenizer has {len(tokenizer)} tokens, the text tower '
                       f'{config.text_config.vocab_size}')
    statistics = weights.load_image_statistics(folder)
    digest = weights.digest(params, config.to_json(), statistics, len(tokenizer), TEMPLATES)
    return Encoder(folder.resolve().name, digest, config, tokenizer, params, TEMPLATES, **statistics)


def tiny_encoder(image_size_px: int, patch_px: int = 16, width: int = 64, layers: int = 3) -> Encoder:
    """A small CLIP, randomly initialised, whose tokens are bytes: for machines without any pretrained weights.

    It knows nothing before training, and all that it knows after comes from the images it was given; its accuracies
    compare training sets with each other, never with those of a pretrained CLIP.

    Args:
      image_size_px: side of its input; a multiple of `patch_px`.
    """
    tokenizer = byte_tokenizer()
    heads = max(1, width // 32)
    config = clip.CLIPConfig(
        clip.VisionConfig(hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers,
                          num_attention_heads=heads, image_size=image_size_px, patch_size=patch_px),
        clip.TextConfig(vocab_size=len(tokenizer), hidden_size=width, intermediate_size=4 * width,
                        num_hidden_layers=2, num_attention_heads=heads, pad_token_id=tokenizer.pad_token_id,
                        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id),
        projection_dim=width)
    name = f'tiny CLIP from scratch (width {width}, {layers} layers, {patch_px} px patches)'
    # It has read no sentence, so a sentence around the class name would only be bytes to learn to ignore.
    templates = ('{}',)
    digest = hashlib.sha256(json.dumps([config.to_json(), templates]).encode()).hexdigest()
    return Encoder(name, digest, config, tokenizer, None, templates)


def byte_tokenizer() -> CLIPTokenizer:
    """CLIP's tokenizer before any merge: 256 bytes, the same at the end of a word, and the two special tokens."""
    letters = sorted(ByteLevel.alphabet())
    tokens = letters + [f'{letter}</w>' for letter in letters] + ['<|startoftext|>', '<|endoftext|>']
    return CLIPTokenizer(vocab={token: index for index, token in enumerate(tokens)}, merges=[])


def _load_tokenizer(folder: Path) -> CLIPTokenizer:
    if (folder / 'vocab.json').is_file() and (folder / 'merges.txt').is_file():
        return CLIPTokenizer(vocab=str(folder / 'vocab.json'), merges=str(folder / 'merges.txt'))
    if (folder / 'tokenizer.json').is_file():
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    raise BadInput(f'{folder}: no tokenizer (vocab.json and merges.txt, or tokenizer.json)')
