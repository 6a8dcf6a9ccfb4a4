"""An encoder for machines without access to a model hub: EfficientNet-lite0 and a small text tower trained on captions.

The image tower (`rsdiff.pretrained.efficientnet`, from PyPI) was trained on ImageNet, without captions.
`tools/train_text_tower.py` trains a linear layer from its features into a joint embedding space, and the text tower
(`rsdiff.models.text_tower`), on the captions of a few thousand aerial images. It is not a CLIP: it knows only the words
of those captions.

Its folder contains `config.json`, `tokenizer.json` and `model.safetensors`: everything but the image tower.
"""

import dataclasses
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any, Iterable, Sequence

import jax
import numpy as np
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from rsdiff.base import shipped
from rsdiff.base.errors import BadInput, one_line
from rsdiff.base.files import field, read_json, write_text_atomically
from rsdiff.data.images import bicubic
from rsdiff.downstream.encoder import Encoder, load_encoder, made_tokenizer
from rsdiff.evaluation.features import Network
from rsdiff.models import text_tower
from rsdiff.pretrained import efficientnet, weights

EMBEDDED = MODEL_TYPE = 'embedded'
FOLDER = shipped.WEIGHTS / 'text_tower'
CONFIG, WEIGHTS, TOKENIZER = 'config.json', 'model.safetensors', 'tokenizer.json'
IMAGE_TOWER, TEXT_TOWER = 'image_tower', 'text_tower'
UNKNOWN, START = '<unknown>', '<start>'
PLURAL = 's'
# How its training captions begin; 'satellite' and 'imagery' are not in its vocabulary.
TEMPLATES = '{}.', 'there is a {}.', 'it is a {}.', 'this is a {}.'
# Words that occur less often are mostly typing errors.
LEAST_COUNT = 3


@dataclasses.dataclass(frozen=True)
class Embedded:
    """An `Encoder`; its parameters are {'image_tower': …, 'text_tower': …}, the pretrained ones for every seed."""

    name: str
    digest: str
    config: text_tower.Config
    tokenizer: Tokenizer
    pretrained: dict[str, Any]
    templates: tuple[str, ...] = TEMPLATES
    image_size_px: int = efficientnet.INPUT_PX

    def initial_params(self, seed: int) -> dict[str, Any]:
        return self.pretrained

    def resize(self, image: np.ndarray) -> np.ndarray:
        return resize(image)

    def image_features(self, params: dict[str, Any], pixels: jax.Array) -> jax.Array:
        """uint8 (batch, size, size, 3) → EfficientNet-lite0's pooled features, float32 (batch, 1280)."""
        return _image_features(params[IMAGE_TOWER], pixels)

    def image_network(self, params: dict[str, Any]) -> Network:
        """`image_features` of images from `resize`, for `features_of`; the text tower is not used."""
        return _image_network(params[IMAGE_TOWER])

    def project(self, params: dict[str, Any], features: jax.Array) -> jax.Array:
        return text_tower.encode_features(self.config, params[TEXT_TOWER], features)

    def encode_images(self, params: dict[str, Any], pixels: jax.Array) -> jax.Array:
        return self.project(params, self.image_features(params, pixels))

    def encode_texts(self, params: dict[str, Any], ids: jax.Array, mask: jax.Array) -> jax.Array:
        return text_tower.encode_texts(self.config, params[TEXT_TOWER], ids, mask)

    def logits(self, params: dict[str, Any], images: jax.Array, texts: jax.Array) -> jax.Array:
        return text_tower.logits(params[TEXT_TOWER], images, texts)

    def tokenize(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        return tokenize(self.tokenizer, texts, self.config.length)


def embedded_encoder(folder: Path | str = FOLDER) -> Embedded:
    """The encoder with the text tower in `folder`, by default the one shipped with the project.

    Raises:
      BadInput: the folder is missing or incomplete, or EfficientNet-lite0 is not installed.
    """
    folder = Path(folder)
    if not (folder / CONFIG).is_file():
        raise BadInput(
            f'{folder}: no text tower; train one: python tools/train_text_tower.py --images FOLDER --out {folder}'
        )
    row = read_json(folder / CONFIG)
    try:
        config = text_tower.Config(**field(row, 'config', dict, folder / CONFIG))
        trained_on = ', '.join(field(row, 'trained_on', list, folder / CONFIG))
    except TypeError as error:
        raise BadInput(f'{folder / CONFIG}: not the config of a text tower ({one_line(error)[:120]})') from None
    except BadInput as error:
        raise BadInput(
            str(error) if str(error).startswith(str(folder)) else f'{folder / CONFIG}: config.{error}'
        ) from None
    text = json.dumps(read_json(folder / TOKENIZER))
    tokenizer = made_tokenizer(lambda: Tokenizer.from_str(text), folder / TOKENIZER)
    if tokenizer.get_vocab_size() != config.vocabulary or None in map(tokenizer.token_to_id, (UNKNOWN, START)):
        raise BadInput(
            f'{folder}: the tokenizer ({tokenizer.get_vocab_size()} tokens) is not that of the text tower '
            f'({config.vocabulary})'
        )
    towers = weights.unflatten(weights.read_safetensors(folder / WEIGHTS), folder / WEIGHTS)
    towers = weights.checked(towers, text_tower.parameter_shapes(config), 'this text tower', folder / WEIGHTS)
    params = {IMAGE_TOWER: efficientnet.load_params(), TEXT_TOWER: towers}
    digest = weights.digest(params, row['config'], tokenizer.to_str(), 'bicubic', TEMPLATES)
    return Embedded(f'EfficientNet-lite0 + text tower ({trained_on})', digest, config, tokenizer, params)


def named_encoder(name: str) -> Encoder:
    """The encoder in the folder `name`: a text tower written by `save`, or a CLIP (`load_encoder`). If no folder is
    called 'embedded', this name stands for the encoder shipped with the project.

    Raises:
      BadInput: `name` is none of these, or can't be loaded.
    """
    if name == EMBEDDED and not Path(name).exists():
        return embedded_encoder()
    config = Path(name) / CONFIG
    row = read_json(config) if config.is_file() else None
    is_embedded = isinstance(row, dict) and row.get('model_type') == MODEL_TYPE
    return embedded_encoder(name) if is_embedded else load_encoder(name)


def save(
    folder: Path | str,
    config: text_tower.Config,
    params: dict[str, Any],
    tokenizer: Tokenizer,
    trained_on: Sequence[str],
) -> None:
    """Writes the files that `embedded_encoder` reads; `params` are those of the text tower and the image projection."""
    folder = Path(folder)
    weights.write_safetensors(folder / WEIGHTS, weights.flatten(params))
    write_text_atomically(folder / TOKENIZER, tokenizer.to_str(pretty=True) + '\n')
    row = {'model_type': MODEL_TYPE, 'trained_on': list(trained_on), 'config': dataclasses.asdict(config)}
    write_text_atomically(folder / CONFIG, json.dumps(row, indent=2) + '\n')


def resize(image: np.ndarray) -> np.ndarray:
    """uint8 (h, w, 3) → uint8 (224, 224, 3), bicubic."""
    size_px = efficientnet.INPUT_PX
    return image if image.shape[:2] == (size_px, size_px) else bicubic(image, size_px, size_px)


def image_tower() -> Network:
    """The image tower alone, for `features_of`: images from `resize` → features, 1280 wide.

    Raises:
      BadInput: EfficientNet-lite0 is not installed.
    """
    return _image_network(efficientnet.load_params())


def train_tokenizer(captions: Iterable[str], least_count: int = LEAST_COUNT) -> Tokenizer:
    """A unigram model (Kudo 2018, arXiv 1804.10959) of the words of captions, weighted by their frequency.

    An unknown word is split into the most likely sequence of known words that spells it, 'parkinglot' into 'parking
    lot'. A final s is a separate token, so that 'freeways' in the captions also covers 'freeway'. Case, accents and
    punctuation are ignored.

    Args:
      least_count: how often a word must occur in the captions.
    Raises:
      BadInput: no word is frequent enough.
    """
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFKD(),
            normalizers.StripAccents(),
            normalizers.Lowercase(),
            normalizers.Replace(Regex('[^a-z0-9]+'), ' '),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words = Counter(
        part
        for caption in captions
        for word in tokenizer.normalizer.normalize_str(caption).split()
        for part in _stem_and_plural(word)
    )
    # single letters are no tokens, except these two: they could spell any word
    kept = sorted(
        (word for word, count in words.items() if count >= least_count and (len(word) > 1 or word in ('a', PLURAL))),
        key=lambda word: (-words[word], word),
    )
    if not kept:
        raise BadInput(f'no word occurs {least_count} times in the captions; more captions are needed')
    score = {word: math.log(words[word] / words.total()) for word in kept}
    tokenizer.model = models.Unigram([(UNKNOWN, 0.0), (START, 0.0), *score.items()], unk_id=0)
    return tokenizer


def tokenize(tokenizer: Tokenizer, texts: Sequence[str], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Texts → ids and mask, int32 (texts, length of the longest, at most `length`). A text begins with START; words
    that no sequence of known words spells are left out."""
    unknown, start = tokenizer.token_to_id(UNKNOWN), tokenizer.token_to_id(START)
    rows = []
    for encoding in tokenizer.encode_batch(list(texts), add_special_tokens=False):
        strange = {word for word, token in zip(encoding.word_ids, encoding.ids) if token == unknown}
        rows.append(
            [start, *(token for word, token in zip(encoding.word_ids, encoding.ids) if word not in strange)][:length]
        )
    ids = np.zeros((len(rows), max(map(len, rows), default=1)), np.int32)
    mask = np.zeros_like(ids)
    for number, row in enumerate(rows):
        ids[number, : len(row)], mask[number, : len(row)] = row, 1
    return ids, mask


def _image_network(params: dict[str, Any]) -> Network:
    return Network(
        'lite0_features',
        efficientnet.FEATURES,
        weights.digest(params, 'lite0 of 8 bits at 224 px'),
        params,
        lambda image: image,
        _image_features,
    )


def _image_features(params: dict[str, Any], pixels: jax.Array) -> jax.Array:
    return efficientnet.forward(params, efficientnet.normalise(pixels))[0]


def _stem_and_plural(word: str) -> tuple[str, ...]:
    is_plural = len(word) > 3 and word.endswith(PLURAL) and not word.endswith(2 * PLURAL)
    return (word.removesuffix(PLURAL), PLURAL) if is_plural else (word,)
