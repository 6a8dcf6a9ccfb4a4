"""Our SigLIP against transformers' PyTorch SigLIP and SigLIP 2 on the same random weights."""

import functools
import json

import jax
import numpy as np
import pytest

from rsdiff.base.errors import BadInput
from rsdiff.pretrained import siglip, towers, weights

TORCH = "the reference is transformers' PyTorch model; pip install rsdiff-jax[parity]"
LENGTH = 9


def small_config(hidden_act='gelu_pytorch_tanh', image_size=48, patch_size=16, text_width=24):
    """The two towers have different widths, as in SigLIP 2's giant."""
    return siglip.SiglipConfig(
        siglip.VisionConfig(
            hidden_size=48,
            intermediate_size=100,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=image_size,
            patch_size=patch_size,
            hidden_act=hidden_act,
        ),
        siglip.TextConfig(
            vocab_size=70,
            hidden_size=text_width,
            intermediate_size=60,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=LENGTH,
            hidden_act=hidden_act,
            projection_size=48,
        ),
    )


@functools.partial(jax.jit, static_argnums=0)
def every_output(config, params, images, ids, mask):
    module = towers.module(config, params)
    u, v = towers.encode_images(config, params, images), towers.encode_texts(config, params, ids, mask)
    return {
        'image pooled': module.vision_model(images),
        'text pooled': module.text_model(ids, mask),
        'image': u,
        'text': v,
        'logits': towers.logits(config, params, u, v),
    }


def every_output_of(model, images, ids, mask):
    """The same outputs from transformers' model; `images` are its keyword arguments."""
    torch = pytest.importorskip('torch', reason=TORCH)
    inputs = {'input_ids': torch.tensor(ids, dtype=torch.long), 'attention_mask': torch.tensor(mask)}
    with torch.no_grad():
        both = model(**inputs, **images)
    return {
        'image pooled': both.vision_model_output.pooler_output,
        'text pooled': both.text_model_output.pooler_output,
        'image': both.image_embeds,
        'text': both.text_embeds,
        'logits': both.logits_per_image,
    }


def assert_same(ours, theirs):
    for name, value in theirs.items():
        error = np.abs(np.asarray(ours[name]) - value.numpy()).max() / max(1.0, np.abs(value.numpy()).max())
        assert error < 1e-5, (name, error)


def texts():
    return np.random.default_rng(1).integers(0, 70, (4, LENGTH)).astype(np.int32), np.ones((4, LENGTH), np.int32)


@pytest.mark.parametrize(
    'hidden_act, image_size, patch_size',
    [
        ('gelu_pytorch_tanh', 48, 16),
        ('gelu', 48, 8),
        ('gelu_pytorch_tanh', 50, 14),  # SigLIP's so400m has 384 pixels and patches of 14: the remainder is not covered
        ('gelu_pytorch_tanh', 256, 8),  # 1024 patches, as at 512 px with patches of 16
    ],
)
def test_every_output_is_that_of_transformers(tmp_path, lively, hidden_act, image_size, patch_size):
    torch = pytest.importorskip('torch', reason=TORCH)
    from transformers import SiglipModel

    config = small_config(hidden_act, image_size, patch_size)
    params = lively(config)
    towers.save(tmp_path, config, params)
    model, loading = SiglipModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(loading.values()), loading
    images = np.random.default_rng(2).standard_normal((3, image_size, image_size, 3)).astype('f')
    ids, mask = texts()
    pixels = {'pixel_values': torch.tensor(images.transpose(0, 3, 1, 2))}
    for visible in (mask, np.tri(4, LENGTH, 3, np.int32)):  # the full mask, which SigLIP uses, and another one
        assert_same(
            every_output(config, params, images, ids, visible), every_output_of(model.eval(), pixels, ids, visible)
        )


def test_naflex_at_its_own_square_is_that_of_transformers(tmp_path):
    torch = pytest.importorskip('torch', reason=TORCH)
    from transformers import Siglip2Config, Siglip2ImageProcessorPil, Siglip2Model

    torch.manual_seed(0)
    row = small_config(patch_size=16).to_json()
    del row['vision_config']['image_size']
    model = Siglip2Model(
        Siglip2Config(vision_config=row['vision_config'] | {'num_patches': 9}, text_config=row['text_config'])
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape))
    model.save_pretrained(tmp_path / 'naflex')
    config, params = towers.load(tmp_path / 'naflex')
    assert config.image_size_px == 48

    image = np.random.default_rng(0).integers(0, 256, (48, 48, 3), np.uint8)
    processed = Siglip2ImageProcessorPil(patch_size=16, max_num_patches=9)(image, return_tensors='pt')
    ids, mask = texts()
    normalised = towers.normalise_images(image[None] / np.float32(127.5) - 1, config.image_mean, config.image_std)
    theirs = every_output_of(model, dict(processed), ids, mask)
    assert_same(every_output(config, params, normalised, ids, mask), theirs)

    from transformers import AutoModel

    towers.save(tmp_path / 'fixed', config, params)
    pixels = {'pixel_values': torch.tensor(np.array(normalised.transpose(0, 3, 1, 2)))}
    again = every_output_of(AutoModel.from_pretrained(tmp_path / 'fixed').eval(), pixels, ids, mask)
    np.testing.assert_allclose(again['logits'], theirs['logits'], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    'change',
    [
        {},  # google/siglip-base-patch16-224
        {'vision_config': {'image_size': 512}, 'text_config': {'vocab_size': 256000}},  # siglip2-base-patch16-512
        {
            'vision_config': {
                'hidden_size': 1152,
                'num_hidden_layers': 27,
                'num_attention_heads': 16,
                'image_size': 384,
                'intermediate_size': 4304,
                'patch_size': 14,
            },
            'text_config': {
                'hidden_size': 1152,
                'num_hidden_layers': 27,
                'num_attention_heads': 16,
                'intermediate_size': 4304,
            },
        },  # siglip-so400m-patch14-384
    ],
)
def test_published_sizes_have_the_names_and_shapes_of_transformers(change):
    torch = pytest.importorskip('torch', reason=TORCH)
    from transformers import SiglipConfig, SiglipModel

    row = {'model_type': 'siglip'} | change
    with torch.device('meta'):
        theirs = SiglipModel(SiglipConfig.from_dict(row)).state_dict()
    ours = weights.torch_shapes(towers.abstract_params(towers.config_from_json(row)))
    assert ours == {k: tuple(v.shape) for k, v in theirs.items()}


def test_drawn_parameters_are_finite_and_embed(lively):
    config = small_config()
    params = towers.init_params(config, jax.random.key(0))
    images = np.random.default_rng(0).standard_normal((2, 48, 48, 3)).astype('f')
    outputs = every_output(config, params, images, *texts())
    assert all(np.isfinite(value).all() for value in outputs.values())
    # SigLIP's initial scale is 10 and its bias −10: at first, no pair matches.
    np.testing.assert_allclose(outputs['logits'], 10 * outputs['image'] @ outputs['text'].T - 10, rtol=1e-5)


def test_config_survives_its_json_and_defaults_are_those_of_transformers():
    from transformers import SiglipConfig

    config = small_config()
    assert towers.config_from_json(json.loads(json.dumps(config.to_json()))) == config
    assert towers.config_from_json({'model_type': 'siglip'}) == towers.config_from_json(SiglipConfig().to_dict())


@pytest.mark.parametrize(
    'change, message',
    [
        ({'model_type': 'blip'}, r"\"model_type\" is 'blip'; supported are clip, siglip, siglip2"),
        ({'vision_config': {'vision_use_head': False}}, 'vision_use_head'),
        ({'vision_config': {'image_size': [224, 224]}}, 'image_size'),
        ({'vision_config': {'hidden_size': 96}}, '96 dimensions'),
        ({'model_type': 'siglip2', 'vision_config': {'num_patches': 255}}, 'num_patches is 255'),
        ({'text_config': {'vocab_size': -1}}, 'vocab_size'),
    ],
)
def test_a_config_that_is_no_siglip_is_bad_input(change, message):
    with pytest.raises(BadInput, match=message) as raised:
        towers.config_from_json({'model_type': 'siglip'} | change, 'here/config.json')
    assert str(raised.value).startswith('here/config.json: ') and '\n' not in str(raised.value)
