"""Our CLIP against transformers' PyTorch CLIP on the same random weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rsdiff.base.errors import BadInput
from rsdiff.pretrained import clip, towers, weights

EOS = 90
TORCH = "the reference is transformers' PyTorch model; pip install rsdiff-jax[parity]"


def small_config(hidden_act='quick_gelu', eos_token_id=EOS, image_size=64, patch_size=32):
    """ViT-B/32's proportions (4× wide MLP, 32 px patches) with different widths for the two towers."""
    return clip.CLIPConfig(
        clip.VisionConfig(
            hidden_size=48,
            intermediate_size=192,
            num_hidden_layers=3,
            num_attention_heads=4,
            image_size=image_size,
            patch_size=patch_size,
            hidden_act=hidden_act,
        ),
        clip.TextConfig(
            vocab_size=96,
            hidden_size=32,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=14,
            hidden_act=hidden_act,
            pad_token_id=EOS,
            bos_token_id=91,
            eos_token_id=eos_token_id,
        ),
        projection_dim=24,
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


@functools.partial(jax.jit, static_argnums=0)
def pool_texts(config, params, ids, mask):
    return towers.module(config, params).text_model(ids, mask)


def texts(largest_is_end):
    """Token rows of four lengths, padded with the end token; the last has tokens above the first end token."""
    ids = np.random.default_rng(1).integers(0, EOS, (4, 14)).astype(np.int32)
    mask = np.ones_like(ids)
    for row, length in enumerate((3, 6, 10, 13)):
        ids[row, length:] = EOS
        mask[row, length + 1 :] = 0
    if not largest_is_end:
        ids[3, 4] = EOS + 5
    return ids, mask


@pytest.fixture
def torch_clip(tmp_path):
    """Saves our parameters and has transformers load them: (config, params) → CLIPModel."""
    pytest.importorskip('torch', reason=TORCH)
    from transformers import CLIPModel

    def load(config, params):
        towers.save(tmp_path, config, params)
        model, loading = CLIPModel.from_pretrained(tmp_path, output_loading_info=True)
        assert not any(loading.values()), loading
        return model.eval()

    return load


@pytest.mark.parametrize(
    'hidden_act, eos_token_id, image_size, patch_size',
    [
        ('quick_gelu', EOS, 64, 32),
        ('gelu', EOS, 48, 8),
        ('quick_gelu', 2, 64, 32),
        ('gelu_pytorch_tanh', EOS, 50, 16),  # a remainder that no patch covers
        ('quick_gelu', EOS, 336, 14),  # the 576 patches of ViT-L/14 at 336 pixels
    ],
)
def test_every_output_is_that_of_transformers(torch_clip, lively, hidden_act, eos_token_id, image_size, patch_size):
    torch = pytest.importorskip('torch', reason=TORCH)
    config = small_config(hidden_act, eos_token_id, image_size, patch_size)
    params = lively(config)
    images = np.random.default_rng(2).standard_normal((3, image_size, image_size, 3)).astype('f')
    ids, mask = texts(largest_is_end=eos_token_id == 2)
    model = torch_clip(config, params)
    with torch.no_grad():
        inputs = {'input_ids': torch.tensor(ids, dtype=torch.long), 'attention_mask': torch.tensor(mask)}
        pixels = torch.tensor(images.transpose(0, 3, 1, 2))
        theirs = {
            'image pooled': model.vision_model(pixels).pooler_output,
            'text pooled': model.text_model(**inputs).pooler_output,
        }
        both = model(pixel_values=pixels, **inputs)
    theirs |= {'image': both.image_embeds, 'text': both.text_embeds, 'logits': both.logits_per_image}
    ours = every_output(config, params, images, ids, mask)
    for name, value in theirs.items():
        # Relative to the largest value: the pooled outputs and the logits are of order 10.
        error = np.abs(np.asarray(ours[name]) - value.numpy()).max() / max(1.0, np.abs(value.numpy()).max())
        assert error < 1e-5, (name, error)


@pytest.mark.parametrize(
    'vision, text, projection',
    [
        ((768, 12, 12, 224, 32), (512, 12, 8), 512),  # ViT-B/32
        ((768, 12, 12, 224, 16), (512, 12, 8), 512),  # ViT-B/16
        ((1024, 24, 16, 224, 14), (768, 12, 12), 768),  # ViT-L/14
    ],
)
def test_published_sizes_have_the_names_and_shapes_of_transformers(vision, text, projection):
    torch = pytest.importorskip('torch', reason=TORCH)
    from transformers import CLIPConfig, CLIPModel

    width, layers, heads, image_size, patch_size = vision
    config = clip.CLIPConfig(
        clip.VisionConfig(width, 4 * width, layers, heads, image_size=image_size, patch_size=patch_size),
        clip.TextConfig(text[0], 4 * text[0], *text[1:]),
        projection,
    )
    with torch.device('meta'):
        theirs = CLIPModel(CLIPConfig.from_dict(config.to_json())).state_dict()
    assert weights.torch_shapes(towers.abstract_params(config)) == {k: tuple(v.shape) for k, v in theirs.items()}


def test_the_two_end_token_rules_differ_where_a_token_follows_the_alphabet(lively):
    # With an id above the end token in the text, "largest id" and "first end token" point at different places.
    ids, mask = texts(largest_is_end=False)
    params = lively(small_config())
    modern = pool_texts(small_config(), params, ids, mask)
    legacy = pool_texts(small_config(eos_token_id=2), params, ids, mask)
    np.testing.assert_allclose(modern[:3], legacy[:3], rtol=1e-6)
    assert np.abs(modern[3] - legacy[3]).max() > 1e-2


def test_no_token_sees_what_follows_its_end_token(lively):
    config = small_config()
    params = lively(config)
    ids, mask = texts(largest_is_end=True)
    scrambled = np.where(mask == 1, ids, 7)
    np.testing.assert_allclose(
        pool_texts(config, params, ids, mask), pool_texts(config, params, scrambled, mask), rtol=1e-5, atol=1e-5
    )


def test_embeddings_are_unit_vectors_of_the_common_space(lively):
    config = small_config()
    images = jnp.ones((2, 64, 64, 3)) * jnp.asarray([-1.0, 1.0])[:, None, None, None]
    images = towers.normalise_images(images, config.image_mean, config.image_std)
    embeddings = jax.jit(towers.encode_images, static_argnums=0)(config, lively(config), images)
    assert embeddings.shape == (2, config.embedding_dim) == (2, 24)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, rtol=1e-5)


def test_wrong_sizes_are_refused(lively):
    config = small_config()
    params = lively(config)
    with pytest.raises(BadInput, match='this tower takes'):
        towers.encode_images(config, params, jnp.zeros((1, 32, 32, 3)))
    with pytest.raises(BadInput, match='15 tokens'):
        towers.encode_texts(config, params, jnp.zeros((1, 15), int), jnp.ones((1, 15), int))


def test_abstract_params_have_the_shapes_of_drawn_ones():
    config = small_config()
    drawn = jax.eval_shape(lambda key: towers.init_params(config, key), jax.random.key(0))
    shapes, drawn_shapes = (
        jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree) for tree in (towers.abstract_params(config), drawn)
    )
    assert shapes == drawn_shapes


def test_config_survives_its_json_and_unknown_fields_are_skipped():
    config = small_config()
    row = config.to_json()
    row['text_config']['attention_dropout'] = 0.0
    assert towers.config_from_json(row) == config


def test_config_defaults_are_those_of_transformers():
    from transformers import CLIPConfig

    assert clip.CLIPConfig.from_json({'model_type': 'clip'}) == clip.CLIPConfig.from_json(CLIPConfig().to_dict())


@pytest.mark.parametrize(
    'change, message',
    [
        ({'model_type': 'siglip'}, 'not a CLIP config'),
        ({'vision_config': {'hidden_act': 'swish'}}, 'hidden_act'),
        ({'vision_config': {'patch_size': 225}}, 'patch_size 225'),
        ({'vision_config': {'patch_size': 0}}, 'patch_size is 0'),
        ({'text_config': {'num_attention_heads': 7}}, '7 attention heads'),
        ({'text_config': {'hidden_size': 'wide'}}, 'hidden_size'),
        ({'text_config': [1]}, 'must be an object'),
        ({'projection_dim': None}, 'projection_dim'),
    ],
)
def test_a_config_that_is_no_clip_is_bad_input(change, message):
    with pytest.raises(BadInput, match=message) as raised:
        clip.CLIPConfig.from_json({'model_type': 'clip'} | change, 'here/config.json')
    assert str(raised.value).startswith('here/config.json: ') and '\n' not in str(raised.value)
