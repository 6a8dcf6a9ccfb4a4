"""Feature vectors of images from a trained network, for comparing distributions of images.

`Extractor` is the interface to a network. There are three kinds:

    efflite0       EfficientNet-lite0, ImageNet, 1280 wide; its weights come with the `metrics` extra
    inception      the Inception-v3 of FID, 2048 wide, from the user's weights file
    clip_tower     the image tower of any CLIP or SigLIP in a folder; unit vectors, as CMMD requires

Images of any size are resized to the network's square input, whatever their aspect ratio: for ImageNet networks by the
clean bicubic filter (`rsdiff.data.images.clean_bicubic`), for CLIP by the 8-bit filter that it was trained with.
"""

import concurrent.futures
import dataclasses
import functools
import hashlib
import io
from pathlib import Path
from typing import Any, Callable, Protocol, Sequence

import jax
import numpy as np
from etils import epath
from tqdm import tqdm

from rsdiff.base.errors import BadInput
from rsdiff.data.images import clean_bicubic, read_image, resized
from rsdiff.pretrained import efficientnet, towers, weights
from rsdiff.pretrained import inception as inception_model

# Number of images whose activations fit into the caches of a CPU.
CPU_CHUNK = 4
# Number of images per file of the feature cache.
SHARD = 512

Image = Path | str | np.ndarray | Callable[[], np.ndarray]


class Extractor(Protocol):
    """
    Attributes:
      name: the name in reports.
      width: the number of features per image.
      digest: changes with anything that affects the features: the weights, or the preprocessing of pixels.
    """

    @property
    def name(self) -> str: ...

    @property
    def width(self) -> int: ...

    @property
    def digest(self) -> str: ...

    def __call__(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Images, uint8 (h, w, 3) each, of any sizes → float32 (n, width)."""
        ...


@dataclasses.dataclass(frozen=True)
class Network:
    """An `Extractor` of a network.

    Attributes:
      params: the network's parameters.
      resize: uint8 (h, w, 3) → the network's input pixels, [0, 255], (size, size, 3).
      forward: (params, pixels (n, size, size, 3)) → features (n, width).
    """

    name: str
    width: int
    digest: str
    params: dict[str, Any]
    resize: Callable[[np.ndarray], np.ndarray]
    forward: Callable[[dict[str, Any], jax.Array], jax.Array]

    def __call__(self, images: Sequence[np.ndarray]) -> np.ndarray:
        with concurrent.futures.ThreadPoolExecutor() as pool:
            pixels = np.stack(list(pool.map(self.resize, images)))
        # Whole chunks through one program: an image's features are bit-identical, whatever the number of images.
        whole = np.resize(np.arange(len(pixels)), -(-len(pixels) // CPU_CHUNK) * CPU_CHUNK)
        return np.asarray(self._compiled(self.params, pixels[whole]), np.float32)[: len(pixels)]

    @functools.cached_property
    def _compiled(self) -> Callable:
        def in_chunks(params, pixels):
            return jax.lax.map(lambda image: self.forward(params, image[None])[0], pixels, batch_size=CPU_CHUNK)

        return jax.jit(in_chunks if jax.default_backend() == 'cpu' else self.forward)


def efflite0() -> Network:
    """EfficientNet-lite0's pooled features. A distance computed with them is not FID; call it fd_efflite0.

    Raises:
      BadInput: its weights are not installed.
    """
    return _imagenet('efflite0', efficientnet, efficientnet.load_params())


def inception(path: Path | str) -> Network:
    """The features of the original FID, with the clean resize.

    Args:
      path: pytorch-fid's weights (`rsdiff.pretrained.inception`).
    Raises:
      BadInput: the file does not hold these weights.
    """
    return _imagenet('inception', inception_model, inception_model.load_params(path))


def clip_tower(folder: Path | str) -> Network:
    """The image embeddings of the CLIP or SigLIP in `folder`, of unit length; the extractor has the folder's name.

    Raises:
      BadInput: the folder holds no complete model (`rsdiff.pretrained.towers.load`).
    """
    config, params = towers.load(folder)
    preprocessing = towers.load_preprocessing(folder, config)
    size_px = config.image_size_px

    def forward(params, pixels):
        images = towers.normalise_images(
            pixels.astype('float32') / 127.5 - 1.0, preprocessing['image_mean'], preprocessing['image_std']
        )
        return towers.encode_images(config, params, images)

    return Network(
        Path(folder).resolve().name,
        config.embedding_dim,
        weights.digest(params, config.to_json(), preprocessing),
        params,
        lambda image: resized(image, size_px, size_px, preprocessing['resample']),
        forward,
    )


def named_extractor(name: str) -> Network:
    """The extractor 'efflite0', the CLIP or SigLIP in the folder `name`, or Inception-v3 with the weights file `name`.

    Raises:
      BadInput: it is none of these, or can't be used.
    """
    if name == 'efflite0':
        return efflite0()
    if Path(name).is_dir():
        return clip_tower(name)
    if Path(name).is_file():
        return inception(name)
    raise BadInput(f'features {name!r}: neither efflite0, nor the folder of a CLIP, nor a file with Inception weights')


def _imagenet(name: str, model: Any, params: dict[str, Any]) -> Network:
    size_px = model.INPUT_PX
    return Network(
        name,
        model.FEATURES,
        weights.digest(params, name, 'clean bicubic'),
        params,
        lambda image: clean_bicubic(image, size_px, size_px),
        lambda params, pixels: model.forward(params, model.normalise(pixels))[0],
    )


def features_of(
    extractor: Extractor,
    images: Sequence[Image],
    cache: 'Path | str | FeatureStore | None' = None,
    batch_size: int = 32,
    show: bool = True,
) -> np.ndarray:
    """The features of many images, float32 (n, extractor.width), in the order of the images.

    Args:
      images: each is a path (local or in a bucket), a uint8 array (h, w, 3), or a function without arguments that loads
        such an array; sizes may differ.
      cache: a folder that stores the features of every image by its hash and the extractor's digest, so that a repeated
        or resumed call computes only missing features. Or a `FeatureStore` of this extractor, which also keeps them in
        memory between calls.
      batch_size: number of images per network call; at most twice as many are in memory.
      show: whether to show a progress bar.
    Raises:
      BadInput: an image can't be read (the message names it), or a file of the cache is damaged.
      FloatingPointError: the network returns a feature that is not finite.
    """
    store = cache if isinstance(cache, FeatureStore) else FeatureStore(extractor, cache)
    store.refresh()
    keys, waiting, size = [], {}, min(batch_size, len(images))

    def run():
        # The last batch is padded with its last image, so that only one shape is compiled.
        batch = list(waiting.values())
        store.add(list(waiting), extractor(batch + batch[-1:] * (size - len(batch)))[: len(batch)])
        waiting.clear()

    with (
        tqdm(
            total=len(images), unit='image', desc=f'features of {extractor.name}', disable=not show, dynamic_ncols=True
        ) as bar,
        concurrent.futures.ThreadPoolExecutor() as pool,
    ):
        try:
            for start in range(0, len(images), batch_size):
                part = range(start, min(start + batch_size, len(images)))
                for key, image in pool.map(lambda n: _load(images[n], n, store.rows), part):
                    keys.append(key)
                    if image is not None and key not in waiting:
                        waiting[key] = image
                        if len(waiting) == size:
                            run()
                bar.update(len(part))
            if waiting:
                run()
        finally:
            store.save()
    return np.stack([store.rows[key] for key in keys]) if keys else np.empty((0, extractor.width), np.float32)


def _load(image: Image, number: int, known: dict[bytes, np.ndarray]) -> tuple[bytes, np.ndarray | None]:
    """The hash of an image's file or pixels, and its pixels unless the hash is known."""
    if isinstance(image, Path | str | epath.Path):
        try:
            data = epath.Path(image).read_bytes()
        except OSError as error:
            raise BadInput(f'{image}: not a readable image ({error.strerror or error})') from None
        key = hashlib.sha256(data).digest()
        if key in known:
            return key, None
        return key, read_image(image, file=io.BytesIO(data))
    pixels = np.asarray(image() if callable(image) else image)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise BadInput(f'image {number}: {pixels.dtype} {pixels.shape}; an image is uint8 (h, w, 3)')
    key = hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).digest()
    return key, None if key in known else pixels


class FeatureStore:
    """Features by image hash, in memory and in a folder of `cache`, one file per `SHARD` images. Files are written
    atomically and named by a hash of their image hashes, so that processes may share a folder."""

    def __init__(self, extractor: Extractor, cache: Path | str | None):
        self.extractor, self.rows, self.unsaved, self.seen = extractor, {}, [], set()
        self.folder = None if cache is None else Path(cache) / f'{extractor.name}-{extractor.digest[:16]}'

    def refresh(self) -> None:
        """Reads the files added to the folder since the last call.

        Raises:
          BadInput: one of them is damaged.
        """
        for path in sorted({*self.folder.glob('*.safetensors')} - self.seen) if self.folder else []:
            try:
                shard = weights.read_safetensors(path)
            except BadInput as error:
                raise BadInput(f'{error}; remove it') from None
            keys, features = shard.get('keys', np.empty(0)), shard.get('features', np.empty(0))
            if (
                features.dtype != np.float32
                or features.ndim != 2
                or features.shape[1] != self.extractor.width
                or keys.dtype != np.uint8
                or keys.shape != (len(features), 32)
                or not np.isfinite(features).all()
            ):
                raise BadInput(f'{path}: not features of {self.extractor.name}; remove it')
            self.rows |= zip(map(bytes, keys), features)
            self.seen.add(path)

    def add(self, keys: list[bytes], features: np.ndarray) -> None:
        if not np.isfinite(features).all():
            raise FloatingPointError(f'{self.extractor.name} made features that are not finite')
        self.rows |= zip(keys, features)
        self.unsaved += keys
        if len(self.unsaved) >= SHARD:
            self.save()

    def save(self) -> None:
        if self.folder and self.unsaved:
            name = hashlib.sha256(b''.join(self.unsaved)).hexdigest()[:16]
            keys = np.frombuffer(b''.join(self.unsaved), np.uint8).reshape(-1, 32)
            path = self.folder / f'{name}.safetensors'
            features = np.stack([self.rows[key] for key in self.unsaved])
            weights.write_safetensors(path, {'keys': keys, 'features': features})
            self.seen.add(path)
            self.unsaved = []
