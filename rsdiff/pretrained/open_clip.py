"""Converts CLIPs from open_clip's format to Hugging Face's: the same network with other tensor names.

    open_clip                                        Hugging Face
    visual.transformer.resblocks.0.ln_1.weight       vision_model.encoder.layers.0.layer_norm1.weight
    transformer.resblocks.0.mlp.c_fc.bias            text_model.encoder.layers.0.mlp.fc1.bias
    … .attn.in_proj_weight, (3 · width, width)       q_proj, k_proj and v_proj, stacked in this order
    visual.proj, text_projection, (width, dim)       visual_projection.weight, text_projection.weight, transposed

An open_clip config (`model_cfg` of `open_clip_config.json`, or a file of its `model_configs`) may have components that
Hugging Face's CLIP lacks: ResNets, timm towers, attention pooling. These raise an error that names them. The
activation is GELU unless the config sets `quick_gelu`, as open_clip does for weights trained by OpenAI.
"""

from typing import Any

import jax
import numpy as np

from rsdiff.base.errors import BadInput
from rsdiff.pretrained import towers, weights
from rsdiff.pretrained.clip import CLIPConfig, TextConfig, VisionConfig

QUICK_GELU = '-quickgelu'
# (embed_dim, image tower: image_size, layers, width, patch_size; text tower: width, heads, layers)
ARCHITECTURES = {
    'ViT-B-32': (512, (224, 12, 768, 32), (512, 8, 12)),
    'ViT-B-16': (512, (224, 12, 768, 16), (512, 8, 12)),
    'ViT-L-14': (768, (224, 24, 1024, 14), (768, 12, 12)),
    'ViT-L-14-336': (768, (336, 24, 1024, 14), (768, 12, 12)),
}
# Fields that change no embedding, and values that all CLIPs share; any other field must be false, null or empty.
IRRELEVANT = 'patch_dropout', 'output_tokens', 'init_logit_scale', 'hf_tokenizer_name'
USUAL = ('pool_type', 'tok'), ('pool_type', 'argmax'), ('pos_embed_type', 'learnable')
# Entries of OpenAI's own files and old open_clip files that are not parameters.
NO_PARAMETERS = {'input_resolution', 'context_length', 'vocab_size', 'attn_mask'}

PLAIN = {
    'logit_scale': 'logit_scale',
    'visual_projection.weight': 'visual.proj',
    'text_projection.weight': 'text_projection',
    'vision_model.embeddings.class_embedding': 'visual.class_embedding',
    'vision_model.embeddings.patch_embedding.weight': 'visual.conv1.weight',
    'vision_model.embeddings.position_embedding.weight': 'visual.positional_embedding',
    'text_model.embeddings.token_embedding.weight': 'token_embedding.weight',
    'text_model.embeddings.position_embedding.weight': 'positional_embedding',
}
TRANSPOSED = 'visual.proj', 'text_projection'
LAYERS = {
    'vision_model.pre_layrnorm': 'visual.ln_pre',
    'vision_model.post_layernorm': 'visual.ln_post',
    'text_model.final_layer_norm': 'ln_final',
}
BLOCKS = {
    'vision_model.encoder.layers': 'visual.transformer.resblocks',
    'text_model.encoder.layers': 'transformer.resblocks',
}
OF_A_BLOCK = {
    'layer_norm1': 'ln_1',
    'layer_norm2': 'ln_2',
    'mlp.fc1': 'mlp.c_fc',
    'mlp.fc2': 'mlp.c_proj',
    'self_attn.out_proj': 'attn.out_proj',
}
STACKED = 'self_attn.q_proj', 'self_attn.k_proj', 'self_attn.v_proj'


def named_config(name: str) -> CLIPConfig:
    """The config of an architecture by open_clip's name, `ViT-B-32` or, with OpenAI's activation, `ViT-B-32-quickgelu`.

    Raises:
      BadInput: the architecture is not supported.
    """
    plain = name.removesuffix(QUICK_GELU)
    if plain not in ARCHITECTURES:
        raise BadInput(
            f'architecture {name!r}: supported are {", ".join(ARCHITECTURES)}, also with {QUICK_GELU} added; no ResNets'
        )
    dim, vision, (width, heads, layers) = ARCHITECTURES[plain]
    return config_from_json(
        {
            'embed_dim': dim,
            'quick_gelu': name.endswith(QUICK_GELU),
            'vision_cfg': dict(zip(('image_size', 'layers', 'width', 'patch_size'), vision)),
            'text_cfg': {'width': width, 'heads': heads, 'layers': layers},
        },
        name,
    )


def config_from_json(row: Any, where: str) -> CLIPConfig:
    """Converts an open_clip config (`model_cfg`), with the defaults of open_clip's `CLIPVisionCfg` and `CLIPTextCfg`.

    Raises:
      BadInput: it is not an open_clip config, or Hugging Face's CLIP cannot represent it.
    """
    if not isinstance(row, dict) or not all(isinstance(row.get(name), dict) for name in ('vision_cfg', 'text_cfg')):
        raise BadInput(f'{where}: not an open_clip config; it must have the objects "vision_cfg" and "text_cfg"')
    top, vision, text = dict(row), dict(row['vision_cfg']), dict(row['text_cfg'])
    del top['vision_cfg'], top['text_cfg']
    try:
        # in open_clip, a list of numbers of layers means a ResNet
        if isinstance(vision.get('layers'), list):
            raise BadInput('its image tower is a ResNet; only ViTs are read')
        activation = 'quick_gelu' if top.pop('quick_gelu', False) else 'gelu'
        vision_width, text_width = _number(vision, 'width', 768), _number(text, 'width', 512)
        vocabulary = _number(text, 'vocab_size', 49408)
        config = CLIPConfig(
            VisionConfig(
                hidden_size=vision_width,
                intermediate_size=_hidden(vision, vision_width),
                num_hidden_layers=_number(vision, 'layers', 12),
                num_attention_heads=max(1, vision_width // _number(vision, 'head_width', 64)),
                image_size=_number(vision, 'image_size', 224),
                patch_size=_number(vision, 'patch_size', 16),
                hidden_act=activation,
            ),
            TextConfig(
                vocab_size=vocabulary,
                hidden_size=text_width,
                intermediate_size=_hidden(text, text_width),
                num_hidden_layers=_number(text, 'layers', 12),
                num_attention_heads=_number(text, 'heads', 8),
                max_position_embeddings=_number(text, 'context_length', 77),
                hidden_act=activation,
                # the last two tokens of CLIP's vocabulary; the end token is also the padding
                pad_token_id=vocabulary - 1,
                bos_token_id=vocabulary - 2,
                eos_token_id=vocabulary - 1,
            ),
            projection_dim=_number(top, 'embed_dim', 512),
        )
        strange = [
            f'{name} {ascii(value)[:60]}'
            for section in (top, vision, text)
            for name, value in section.items()
            if value and name not in IRRELEVANT and (name, value) not in USUAL
        ]
        if strange:
            raise BadInput(f"asks for {', '.join(strange)}, which Hugging Face's CLIP does not have")
    except BadInput as error:
        raise BadInput(f'{where}: {error}') from None
    return config


def params_from(config: CLIPConfig, tensors: dict[str, np.ndarray], where: str) -> dict[str, Any]:
    """open_clip's tensors by name → parameters of `config`, float32.

    Raises:
      BadInput: tensors are missing, left over or of another shape; one line lists them, by open_clip's names.
    """
    if any(name.startswith('visual.layer1.') for name in tensors):
        raise BadInput(f'{where}: its image tower is a ResNet; only ViTs are read')
    # Distributed training adds this prefix.
    tensors = {name.removeprefix('module.'): tensor for name, tensor in tensors.items()}
    tensors = {name: tensor for name, tensor in tensors.items() if name not in NO_PARAMETERS}
    if 'logit_scale' in tensors and tensors['logit_scale'].size == 1:
        tensors['logit_scale'] = tensors['logit_scale'].reshape(())
    shapes = weights.torch_shapes(towers.abstract_params(config))
    wanted = {}
    for name, shape in shapes.items():
        theirs, third = open_clip_name(name)
        shape = shape if third is None else (3 * shape[0], *shape[1:])
        wanted[theirs] = jax.ShapeDtypeStruct(shape[::-1] if theirs in TRANSPOSED else shape, np.float32)
    found = weights.flatten(weights.from_torch(tensors, weights.unflatten(wanted), where))

    renamed = {}
    for name in shapes:
        theirs, third = open_clip_name(name)
        tensor = np.asarray(found[theirs])
        tensor = tensor if third is None else np.split(tensor, 3)[third]
        renamed[name] = tensor.T if theirs in TRANSPOSED else tensor
    return towers.params_from(config, renamed, where)


def open_clip_name(name: str) -> tuple[str, int | None]:
    """Hugging Face's name of a tensor → open_clip's, and the index of the third that it is, or None for all of it."""
    if name in PLAIN:
        return PLAIN[name], None
    layer, _, kind = name.rpartition('.')
    if layer in LAYERS:
        return f'{LAYERS[layer]}.{kind}', None
    blocks = next(blocks for blocks in BLOCKS if name.startswith(blocks))
    number, _, part = layer.removeprefix(f'{blocks}.').partition('.')
    if part in STACKED:
        return f'{BLOCKS[blocks]}.{number}.attn.in_proj_{kind}', STACKED.index(part)
    return f'{BLOCKS[blocks]}.{number}.{OF_A_BLOCK[part]}.{kind}', None


def preprocessing_from_json(row: Any, config: CLIPConfig, where: str) -> dict[str, Any]:
    """`preprocess_cfg` of an `open_clip_config.json` → the object of Hugging Face's `preprocessor_config.json`.

    Raises:
      BadInput: it is not an object, or its interpolation is not supported.
    """
    filters = {'nearest': 0, 'bilinear': 2, 'bicubic': 3, 'random': 3}  # random: in training only, otherwise bicubic
    if (
        not isinstance(row, dict)
        or not isinstance(row.get('interpolation'), str | None)
        or row.get('interpolation') not in (None, *filters)
    ):
        raise BadInput(
            f'{where}: "preprocess_cfg" is {ascii(row)[:60]}; it must be an object, with interpolation one of '
            f'{", ".join(filters)}'
        )
    side = config.image_size_px
    return {
        'image_processor_type': 'CLIPImageProcessor',
        'do_resize': True,
        'size': {'shortest_edge': side},
        'do_center_crop': True,
        'crop_size': {'height': side, 'width': side},
        'do_convert_rgb': True,
        'resample': filters[row.get('interpolation') or 'bicubic'],
        'do_rescale': True,
        'rescale_factor': 1 / 255,
        'do_normalize': True,
        'image_mean': row.get('mean') or list(config.image_mean),
        'image_std': row.get('std') or list(config.image_std),
    }


def _number(section: dict[str, Any], name: str, default: int) -> int:
    """Removes an integer from a section and returns it; for a square, [n, n], its side."""
    value = section.pop(name, default)
    if isinstance(value, list) and len(value) == 2 and value[0] == value[1]:
        value = value[0]
    if type(value) is not int or not 1 <= value <= 10_000_000:
        raise BadInput(f'{name} is {ascii(value)[:60]}; it must be an integer from 1 to 10000000')
    return value


def _hidden(section: dict[str, Any], width: int) -> int:
    """Removes `mlp_ratio` from a section and returns the width of the MLPs."""
    ratio = section.pop('mlp_ratio', 4.0)
    if type(ratio) not in (int, float) or not 1 / width <= ratio <= 100:
        raise BadInput(f'mlp_ratio is {ascii(ratio)[:60]}; it must be a number up to 100')
    return int(width * ratio)
