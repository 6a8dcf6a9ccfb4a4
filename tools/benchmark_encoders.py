"""Compares our towers of CLIP and SigLIP with those of transformers in torch: outputs, and speed.

    python tools/benchmark_encoders.py            images per second of ViT-B/32, in alternating rounds
    python tools/benchmark_encoders.py --parity   largest difference of each output, for random weights of full size

Both run in float32 on the cores that this process may use (one with `taskset -c 0`). It needs the extra `bench`.
"""

import dataclasses
import importlib.metadata
import os
import sys
import time
from pathlib import Path
from typing import Any, Callable

import jax
import numpy as np
from absl import flags

from rsdiff.base.errors import BadInput
from rsdiff.pretrained import towers, weights
from rsdiff.pretrained.clip import CLIPConfig
from rsdiff.pretrained.siglip import SiglipConfig
from rsdiff.programs import console

PARITY = flags.DEFINE_bool('parity', False, 'Compare outputs, not speed.')
BATCHES = flags.DEFINE_multi_integer('batch', [8, 32], 'Images per batch; may be repeated.', lower_bound=1)
ROUNDS = flags.DEFINE_integer('rounds', 8, 'Timed rounds.', lower_bound=1)
OUT = flags.DEFINE_string(
    'out', None, 'The JSON file to write; default: runs/benchmark/encoders.json, or encoders_parity.json.'
)

TEXTS = 4


def with_towers(config: towers.Config, text: dict[str, Any] | None = None, **vision: Any) -> towers.Config:
    return dataclasses.replace(
        config,
        vision_config=dataclasses.replace(config.vision_config, **vision),
        text_config=dataclasses.replace(config.text_config, **text or {}),
    )


LARGE = {'hidden_size': 1024, 'intermediate_size': 4096, 'num_hidden_layers': 24, 'num_attention_heads': 16}
LARGE_TEXT = {'hidden_size': 768, 'intermediate_size': 3072, 'num_attention_heads': 12}
VARIANTS = {
    'CLIP ViT-B/32, quick_gelu': CLIPConfig(),
    'CLIP ViT-B/32, gelu': with_towers(CLIPConfig(), {'hidden_act': 'gelu'}, hidden_act='gelu'),
    'CLIP ViT-B/16, quick_gelu': with_towers(CLIPConfig(), patch_size=16),
    'CLIP ViT-L/14, quick_gelu': dataclasses.replace(
        with_towers(CLIPConfig(), LARGE_TEXT, patch_size=14, **LARGE), projection_dim=768
    ),
    'SigLIP B/16, 224 px': SiglipConfig(),
    'SigLIP B/16, 384 px': with_towers(SiglipConfig(), image_size=384),
}


class Pair:
    """The same random parameters in our towers and in transformers' model."""

    def __init__(self, config: towers.Config):
        import torch
        from transformers import CLIPConfig as TheirClipConfig
        from transformers import CLIPModel, SiglipModel
        from transformers import SiglipConfig as TheirSiglipConfig

        self.torch, self.config = torch, config
        # No leaf is constant, so that a missing bias, scale or position shows in the outputs.
        generator = np.random.default_rng(0)
        self.params = jax.tree.map(
            lambda leaf: leaf + 0.02 * generator.standard_normal(leaf.shape).astype('f'),
            towers.init_params(config, jax.random.key(0)),
        )
        model, kind = (
            (CLIPModel, TheirClipConfig) if isinstance(config, CLIPConfig) else (SiglipModel, TheirSiglipConfig)
        )
        with torch.device('meta'):
            self.model = model(kind.from_dict(config.to_json())).eval()
        tensors = {name: torch.from_numpy(np.array(array)) for name, array in weights.to_torch(self.params).items()}
        self.model.load_state_dict(tensors, strict=True, assign=True)
        for module in self.model.modules():  # buffers that no checkpoint holds
            if 'position_ids' in dict(module.named_buffers(recurse=False)):
                module.position_ids = torch.arange(module.position_ids.shape[-1])[None]

    def inputs(self, batch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        generator = np.random.default_rng(1)
        side, text = self.config.image_size_px, self.config.text_config
        ids = generator.integers(0, text.vocab_size - 2, (TEXTS, self.config.text_length)).astype(np.int32)
        ids[:, -1] = text.vocab_size - 1
        return generator.standard_normal((batch, side, side, 3)).astype('f'), ids, np.ones_like(ids)

    def differences(self) -> dict[str, float]:
        """Largest absolute differences of both kinds of embeddings and of the logits."""

        @jax.jit
        def every(params, images, ids, mask):
            u, v = (
                towers.encode_images(self.config, params, images),
                towers.encode_texts(self.config, params, ids, mask),
            )
            return u, v, towers.logits(self.config, params, u, v)

        images, ids, mask = self.inputs(2)
        with self.torch.inference_mode():
            theirs = self.model(
                pixel_values=self.pixels(images),
                input_ids=self.torch.from_numpy(ids).long(),
                attention_mask=self.torch.from_numpy(mask),
            )
        theirs = theirs.image_embeds, theirs.text_embeds, theirs.logits_per_image
        found = [np.abs(np.asarray(a) - b.numpy()) for a, b in zip(every(self.params, images, ids, mask), theirs)]
        largest = float(np.abs(theirs[2].numpy()).max())
        return dict(zip(('image', 'text', 'logits'), (float(x.max()) for x in found))) | {'largest_logit': largest}

    def pixels(self, images: np.ndarray) -> Any:
        return self.torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))

    def runners(self, batch: int) -> tuple[Callable[[], np.ndarray], Callable[[], np.ndarray]]:
        """Functions that embed the same images, ours and theirs."""
        images = self.inputs(batch)[0]
        pixels = self.pixels(images)
        compiled = jax.jit(lambda params, images: towers.encode_images(self.config, params, images))

        def theirs():
            with self.torch.inference_mode():
                features = self.model.get_image_features(pixels)
                features = getattr(features, 'pooler_output', features)
                return (features / features.norm(dim=-1, keepdim=True)).numpy()

        return lambda: np.asarray(compiled(self.params, images)), theirs


def parity() -> dict[str, Any]:
    rows = {}
    for name, config in VARIANTS.items():
        rows[name] = Pair(config).differences()
        print(f'{name}: {rows[name]}', file=sys.stderr, flush=True)
    print(
        '\n| weights, random, of | image embeddings | text embeddings | logits (largest) |\n| --- | --- | --- | --- |'
    )
    for name, row in rows.items():
        print(f'| {name} | {row["image"]:.1e} | {row["text"]:.1e} | {row["logits"]:.1e} ({row["largest_logit"]:.1f}) |')
    return {'largest_difference': rows}


def speed() -> dict[str, Any]:
    pair, rows = Pair(CLIPConfig()), []
    for batch in BATCHES.value:
        ours, theirs = pair.runners(batch)
        difference = float(np.abs(ours() - theirs()).max())
        if not difference < 1e-5:
            raise FloatingPointError(f'embeddings differ by {difference:.2g}')
        rounds = np.array([[batch / seconds(run) for run in (ours, theirs)] for _ in range(ROUNDS.value)])
        (ours, ours_cpu), (theirs, theirs_cpu) = rounds.transpose(1, 2, 0)
        rows.append(
            {
                'batch': batch,
                'difference': difference,
                'ours': spread(ours),
                'theirs': spread(theirs),
                'ours_over_theirs': spread(ours / theirs),
                'ours_over_theirs_cpu': spread(ours_cpu / theirs_cpu),
            }
        )
        print(f'{batch} images: {rows[-1]}', file=sys.stderr, flush=True)
    return {'network': 'CLIP ViT-B/32', 'images_per_second': rows}


def seconds(run: Callable[[], Any]) -> np.ndarray:
    """(wall-clock seconds, processor seconds of all threads); the latter do not depend on other load on the machine."""
    clock, busy = time.perf_counter(), time.process_time()
    run()
    return np.array([time.perf_counter() - clock, time.process_time() - busy])


def spread(values: np.ndarray) -> dict[str, float]:
    return {'median': float(np.median(values)), 'lowest': float(np.min(values)), 'highest': float(np.max(values))}


def main() -> None:
    try:
        import torch
    except ImportError as error:
        raise BadInput(f"{error}; pip install -e '.[bench]'") from None
    if jax.default_backend() != 'cpu':
        raise BadInput('this compares on a CPU; set JAX_PLATFORMS=cpu')
    console.enable_compilation_cache()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    result = parity() if PARITY.value else speed()
    name = 'encoders_parity' if PARITY.value else 'encoders'
    console.finish(
        result
        | {
            'threads': torch.get_num_threads(),
            'load': os.getloadavg()[0],
            'versions': {
                name: importlib.metadata.version(name) for name in ('jax', 'jaxlib', 'flax', 'torch', 'transformers')
            },
        },
        Path(OUT.value or f'runs/benchmark/{name}.json'),
    )


if __name__ == '__main__':
    console.run(main)
