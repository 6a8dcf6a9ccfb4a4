"""The encoder of machines that reach no hub: EfficientNet-lite0, ImageNet's, and a small text tower trained on captions.

Its image tower (`rsdiff.pretrained.efficientnet`, PyPI's) has seen ImageNet and not one caption; `tools/train_text_tower.py` trains
a line from its features into a common space, and the text tower that meets them there (`rsdiff.models.text_tower`), on the
captions of a few thousand aerial images. It is no CLIP: it knows the words of those captions and no other.

A folder of it holds `config.json`, `tokenizer.json` and `model.safetensors`, all but the image tower.
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
# How the captions that it has read begin; of 'satellite' and 'imagery' it knows nothing.
TEMPLATES = '{}.', 'there is a {}.', 'it is a {}.', 'this is a {}.'
# A word that fewer captions have is more often a slip of the pen than a word.
LEAST_COUNT = 3


@dataclasses.dataclass(frozen=True)
class Embedded:
    """An `Encoder`; its parameters are {'image_tower': …, 'text_tower': …}, whatever the seed the pretrained ones."""

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
        """`image_features`, of images that `resize` made, for `features_of`; the text tower has no part in it."""
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
    """The encoder with the text tower in `folder`, by default the one that comes with the project.

    Raises:
      BadInput: the folder is not there or not whole, or EfficientNet-lite0 is not installed.
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
        raise BadInput(f'{folder / CONFIG}: not of a text tower ({one_line(error)[:120]})') from None
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
    """What is in the folder `name`: a text tower as `save` writes it, or a CLIP (`load_encoder`); 'embedded', where no folder
    has this name, is the one that comes with the project.

    Raises:
      BadInput: it is none of these, or can't be used.
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
    """Writes what `embedded_encoder` reads; `params` are those of the text tower and of the line into its space."""
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
    """The image tower alone, for `features_of`: images that `resize` made → features, 1280 wide.

    Raises:
      BadInput: EfficientNet-lite0 is not installed.
    """
    return _image_network(efficientnet.load_params())


def train_tokenizer(captions: Iterable[str], least_count: int = LEAST_COUNT) -> Tokenizer:
    """The words of captions, each as likely as it is frequent: a unigram model (Kudo 2018, arXiv 1804.10959).

    A word that is not among them is read as the likeliest sequence of words that spells it, 'parkinglot' as 'parking lot'. The s
    at the end of a word is a word of its own, so that who has read of freeways knows a freeway. Case, accents and punctuation
    do not count.

    Args:
      least_count: of the captions that must have a word.
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
    # nor are single letters words, but for these two: they would spell anything
    kept = sorted(
        (word for word, count in words.items() if count >= least_count and (len(word) > 1 or word in ('a', PLURAL))),
        key=lambda word: (-words[word], word),
    )
    if not kept:
        raise BadInput(f'no word occurs {least_count} times in the captions; there is nothing to learn')
    score = {word: math.log(words[word] / words.total()) for word in kept}
    tokenizer.model = models.Unigram([(UNKNOWN, 0.0), (START, 0.0), *score.items()], unk_id=0)
    return tokenizer


def tokenize(tokenizer: Tokenizer, texts: Sequence[str], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Texts → ids and mask, int32 (texts, the longest, at most `length`). A text begins with START; a word that is spelt by
    no sequence of known words is left out."""
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
