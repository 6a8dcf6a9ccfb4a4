"""Encoders for the downstream task: an image tower and a text tower, such as those of a CLIP or a SigLIP."""

import dataclasses
import hashlib
import importlib.util
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, ClassVar, Protocol, Sequence, cast

import jax
import numpy as np
from tokenizers.pre_tokenizers import ByteLevel

from rsdiff.base.errors import BadInput, one_line
from rsdiff.data.images import resized
from rsdiff.evaluation.features import Network
from rsdiff.pretrained import clip, hub, towers, weights

if TYPE_CHECKING:
    from transformers import CLIPTokenizer, PreTrainedTokenizerBase

# Some of the prompts that Radford et al. 2021 published for RESISC45 and EuroSAT.
TEMPLATES = (
    'satellite imagery of {}.',
    'aerial imagery of {}.',
    'a centered satellite photo of {}.',
    'an aerial view of a {}.',
)

TOKENIZER_FILES = 'vocab.json', 'tokenizer.json', 'spiece.model'


class Encoder(Protocol):
    """An image tower and a text tower, with their preprocessing; a frozen dataclass.

    Attributes:
      name: its name in reports.
      digest: changes when anything that affects its embeddings changes.
      pretrained: the initial parameters, or None if every seed has its own random ones.
      templates: sentences that class names are put into.
      image_size_px: side of the images that the image tower takes.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def name(self) -> str: ...

    @property
    def digest(self) -> str: ...

    @property
    def pretrained(self) -> dict[str, Any] | None: ...

    @property
    def templates(self) -> tuple[str, ...]: ...

    @property
    def image_size_px(self) -> int: ...

    def initial_params(self, seed: int) -> dict[str, Any]:
        """The parameters a training run with this seed starts from."""
        ...

    def resize(self, image: np.ndarray) -> np.ndarray:
        """uint8 (h, w, 3) → uint8 (image_size_px, image_size_px, 3), without keeping the aspect ratio."""
        ...

    def image_features(self, params: dict[str, Any], pixels: jax.Array) -> jax.Array:
        """uint8 (batch, size, size, 3) → the image tower's features before any projection, float32 (batch, width)."""
        ...

    def image_network(self, params: dict[str, Any]) -> Network:
        """`image_features` with these parameters, of images from `resize`, for `features_of`."""
        ...

    def project(self, params: dict[str, Any], features: jax.Array) -> jax.Array:
        """Output of `image_features` → embeddings of unit length, float32 (batch, dim)."""
        ...

    def encode_images(self, params: dict[str, Any], pixels: jax.Array) -> jax.Array:
        """uint8 (batch, size, size, 3) → embeddings of unit length, float32 (batch, dim)."""
        ...

    def encode_texts(self, params: dict[str, Any], ids: Any, mask: Any) -> jax.Array:
        """Output of `tokenize` → embeddings of unit length, float32 (batch, dim)."""
        ...

    def logits(self, params: dict[str, Any], images: jax.Array, texts: jax.Array) -> jax.Array:
        """Embeddings (n, dim) and (m, dim) → the matching scores that the encoder was trained with, (n, m)."""
        ...

    def tokenize(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Texts → ids and mask, int32 (texts, length); texts too long for the text tower are cut off."""
        ...


@dataclasses.dataclass(frozen=True)
class ClipEncoder:
    """A CLIP or a SigLIP as an `Encoder`.

    Attributes:
      image_mean, image_std: channel statistics for pixels in [0, 1].
      resample: Pillow's code for the filter that `resize` uses.
    """

    name: str
    digest: str
    config: towers.Config
    tokenizer: 'PreTrainedTokenizerBase'
    pretrained: dict[str, Any] | None
    templates: tuple[str, ...]
    image_mean: tuple[float, float, float] = clip.IMAGE_MEAN
    image_std: tuple[float, float, float] = clip.IMAGE_STD
    resample: int = towers.BICUBIC

    @property
    def image_size_px(self) -> int:
        return self.config.image_size_px

    def initial_params(self, seed: int) -> dict[str, Any]:
        if self.pretrained is not None:
            return self.pretrained
        return towers.init_params(self.config, jax.random.key(seed))

    def resize(self, image: np.ndarray) -> np.ndarray:
        if image.shape[:2] == (self.image_size_px, self.image_size_px):
            return image
        return resized(image, self.image_size_px, self.image_size_px, self.resample)

    def normalise(self, images: jax.Array) -> jax.Array:
        """uint8 (batch, size, size, 3) → float32, the input of the image tower."""
        return towers.normalise_images(images.astype('float32') / 127.5 - 1.0, self.image_mean, self.image_std)

    def image_features(self, params: dict[str, Any], pixels: jax.Array) -> jax.Array:
        return towers.image_features(self.config, params, self.normalise(pixels))

    def image_network(self, params: dict[str, Any]) -> Network:
        size_px = self.image_size_px
        example = jax.ShapeDtypeStruct((1, size_px, size_px, 3), np.uint8)
        width = jax.eval_shape(self.image_features, params, example).shape[-1]
        return Network(
            'image_features',
            width,
            weights.digest(params, self.digest),
            params,
            lambda image: image,
            self.image_features,
        )

    def project(self, params: dict[str, Any], features: jax.Array) -> jax.Array:
        return towers.project_images(self.config, params, features)

    def encode_images(self, params: dict[str, Any], pixels: jax.Array) -> jax.Array:
        return self.project(params, self.image_features(params, pixels))

    def encode_texts(self, params: dict[str, Any], ids: jax.Array, mask: jax.Array) -> jax.Array:
        return towers.encode_texts(self.config, params, ids, mask)

    def logits(self, params: dict[str, Any], images: jax.Array, texts: jax.Array) -> jax.Array:
        return towers.logits(self.config, params, images, texts)

    def tokenize(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Pads to the longest text for a CLIP, to the tower's full length for a SigLIP, which attends to padding."""
        whole = self.config.attends_padding
        # Both SigLIPs expect lower case; not every tokenizer published with SigLIP 2 converts to it.
        tokens = self.tokenizer(
            [text.lower() for text in texts] if whole else list(texts),
            truncation=True,
            padding='max_length' if whole else True,
            padding_side='right',
            return_tensors='np',
            max_length=self.config.text_length,
            return_attention_mask=True,
        )
        ids = tokens['input_ids'].astype(np.int32)
        return ids, np.ones_like(ids) if whole else tokens['attention_mask'].astype(np.int32)


def load_encoder(name: Path | str) -> ClipEncoder:
    """A pretrained CLIP or SigLIP in Hugging Face's layout: config, weights, tokenizer and, optionally, preprocessing.

    Args:
      name: a folder, or a name on the hub, from where it is downloaded once.
    Raises:
      BadInput: `name` does not exist, a file is missing or unreadable, or the files do not match; the message names
        the cause.
    """
    folder = hub.folder_of(name)
    config, params = towers.load(folder)
    tokenizer = load_tokenizer(folder, config)
    preprocessing = towers.load_preprocessing(folder, config)
    digest = weights.digest(params, config.to_json(), preprocessing, len(tokenizer), TEMPLATES)
    # The folders of the hub's cache are named by hashes.
    called = folder.resolve().name if Path(name).is_dir() else str(name)
    return ClipEncoder(called, digest, config, tokenizer, params, TEMPLATES, **preprocessing)


def load_tokenizer(folder: Path, config: towers.Config) -> 'PreTrainedTokenizerBase':
    """The tokenizer of a Hugging Face folder.

    Raises:
      BadInput: it is missing, its package is not installed, or it has more ids than the text tower.
    """
    if not any((folder / file).is_file() for file in TOKENIZER_FILES):
        raise BadInput(f'{folder}: no tokenizer ({", or ".join(TOKENIZER_FILES)})')
    if isinstance(config, clip.CLIPConfig) and (folder / 'vocab.json').is_file() and (folder / 'merges.txt').is_file():
        tokenizer = made_tokenizer(
            lambda: transformers().CLIPTokenizer(vocab=str(folder / 'vocab.json'), merges=str(folder / 'merges.txt')),
            folder,
        )
    else:
        if (folder / 'spiece.model').is_file() and importlib.util.find_spec('sentencepiece') is None:
            raise BadInput(f"{folder}: SigLIP's tokenizer needs sentencepiece; pip install 'rsdiff-jax[siglip]'")
        tokenizer = made_tokenizer(
            lambda: transformers().AutoTokenizer.from_pretrained(folder, local_files_only=True), folder
        )
    if len(tokenizer) > config.text_config.vocab_size:
        raise BadInput(
            f'{folder}: the tokenizer has {len(tokenizer)} tokens, the text tower only {config.text_config.vocab_size}'
        )
    return tokenizer


def transformers() -> Any:
    """The library, for its tokenizers. It is imported on first use because that takes seconds; its advice to install
    PyTorch is silenced."""
    os.environ.setdefault('TRANSFORMERS_NO_ADVISORY_WARNINGS', '1')
    import transformers

    return transformers


def made_tokenizer(make: Callable[[], Any], where: Path) -> Any:
    """`make()`, which calls a library to read the tokenizer at `where`.

    Raises:
      BadInput: the library can't read it.
    """
    try:
        return make()
    except MemoryError:
        raise
    # tokenizers has no exception class of its own; transformers passes on whatever exception a damaged file causes
    except Exception as error:
        raise BadInput(f'{where}: cannot read the tokenizer ({one_line(error)[:160]})') from None


def tiny_encoder(image_size_px: int, patch_px: int = 16, width: int = 64, layers: int = 3) -> ClipEncoder:
    """A small, randomly initialised CLIP whose tokens are bytes: for machines without any pretrained weights.

    It learns only from the images it is given. Its accuracies compare training sets with each other; they are not
    comparable with those of a pretrained CLIP.

    Args:
      image_size_px: side of its input; a multiple of `patch_px`.
    """
    tokenizer = byte_tokenizer()
    heads = max(1, width // 32)
    config = clip.CLIPConfig(
        clip.VisionConfig(
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            image_size=image_size_px,
            patch_size=patch_px,
        ),
        clip.TextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=2,
            num_attention_heads=heads,
            pad_token_id=cast(int, tokenizer.pad_token_id),
            bos_token_id=cast(int, tokenizer.bos_token_id),
            eos_token_id=cast(int, tokenizer.eos_token_id),
        ),
        projection_dim=width,
    )
    name = f'tiny CLIP from scratch (width {width}, {layers} layers, {patch_px} px patches)'
    # Without pretraining, a sentence around the class name would only be bytes that it must learn to ignore.
    templates = ('{}',)
    digest = hashlib.sha256(json.dumps([config.to_json(), templates]).encode()).hexdigest()
    return ClipEncoder(name, digest, config, tokenizer, None, templates)


def byte_tokenizer() -> 'CLIPTokenizer':
    """CLIP's tokenizer without merges: 256 bytes, the same 256 at the end of a word, and the two special tokens."""
    letters = sorted(ByteLevel.alphabet())
    tokens = letters + [f'{letter}</w>' for letter in letters] + ['<|startoftext|>', '<|endoftext|>']
    return transformers().CLIPTokenizer(vocab={token: index for index, token in enumerate(tokens)}, merges=[])
