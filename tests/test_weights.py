"""Weight files: nothing is lost, guessed or unpickled."""

import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from rsdiff.base.errors import BadInput
from rsdiff.pretrained import clip, towers, weights

CONFIG = clip.CLIPConfig(
    clip.VisionConfig(
        hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4
    ),
    clip.TextConfig(
        vocab_size=10,
        hidden_size=6,
        intermediate_size=10,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=5,
        pad_token_id=9,
        bos_token_id=8,
        eos_token_id=9,
    ),
    projection_dim=4,
)


@pytest.fixture
def params():
    generator = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(generator.standard_normal(leaf.shape), jnp.float32), towers.abstract_params(CONFIG)
    )


@pytest.fixture
def folder(tmp_path, params):
    towers.save(tmp_path, CONFIG, params)
    return tmp_path


def edit(folder, change):
    tensors = weights.read_safetensors(folder / weights.WEIGHTS)
    weights.write_safetensors(folder / weights.WEIGHTS, change(tensors), {'format': 'pt'})


def test_flatten_and_unflatten_are_inverses():
    tree = {
        'layers': {0: {'bias': 1, 'norm': {'scale': 2}}, 10: {'bias': 3}},
        'logit_scale': 4,
        'conv2d': {'kernel': 5},
    }
    flat = weights.flatten(tree)
    assert flat == {
        'layers.0.bias': 1,
        'layers.0.norm.scale': 2,
        'layers.10.bias': 3,
        'logit_scale': 4,
        'conv2d.kernel': 5,
    }
    assert weights.unflatten(flat) == tree


@pytest.mark.parametrize('dtype', [np.float32, np.float16, ml_dtypes.bfloat16, np.int64, np.bool_])
def test_safetensors_keep_types_shapes_values_and_metadata(tmp_path, dtype):
    values = np.arange(24).reshape(2, 3, 4).astype(dtype)
    flat = {
        'dense': values,
        'transposed view': values.transpose(2, 0, 1),
        'scalar': values[1, 0, 0].reshape(()),
        'empty': values[:0],
    }
    weights.write_safetensors(tmp_path / 'a' / 'x.safetensors', flat, {'config': '{}'})
    back = weights.read_safetensors(tmp_path / 'a' / 'x.safetensors')
    assert set(back) == set(flat)
    for name in flat:
        assert back[name].dtype == flat[name].dtype and back[name].shape == flat[name].shape, name
        np.testing.assert_array_equal(back[name], flat[name])
    assert weights.read_safetensors_metadata(tmp_path / 'a' / 'x.safetensors') == {'config': '{}'}
    assert [p.name for p in (tmp_path / 'a').iterdir()] == ['x.safetensors']


def test_jax_bfloat16_is_written_as_it_is(tmp_path):
    weights.write_safetensors(tmp_path / 'x.safetensors', {'a': jnp.full((3,), 1.5, jnp.bfloat16)})
    back = weights.read_safetensors(tmp_path / 'x.safetensors')['a']
    assert back.dtype == ml_dtypes.bfloat16 and (back == 1.5).all()


@pytest.mark.parametrize('content', [None, b'', b'xxxx', b'\x80\x04K\x01.', 'half'])
def test_a_file_that_is_not_whole_is_bad_input(tmp_path, content):
    path = tmp_path / 'x.safetensors'
    if content == 'half':
        weights.write_safetensors(path, {'a': np.ones(1000, np.float32)})
        content = path.read_bytes()[:2000]
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BadInput, match='x.safetensors: n'):
        weights.read_safetensors(path)


def test_layouts_compute_what_pytorch_computes():
    """A linear layer and a convolution, with the layouts that PyTorch documents: y = x Wᵀ, and OIHW correlation."""
    generator = np.random.default_rng(0)
    ours = {
        'fc': {'kernel': generator.standard_normal((5, 3))},
        'conv': {'kernel': generator.standard_normal((2, 4, 3, 7))},
    }
    theirs = weights.to_torch(ours)
    x = generator.standard_normal(5)
    np.testing.assert_allclose(theirs['fc.weight'] @ x, x @ ours['fc']['kernel'])
    window = generator.standard_normal((2, 4, 3))  # height, width, channels
    np.testing.assert_allclose(
        np.einsum('oihw,hwi->o', theirs['conv.weight'], window),
        np.einsum('hwi,hwio->o', window, ours['conv']['kernel']),
    )
    back = weights.from_torch(theirs, ours, 'here')
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), back, ours)


def test_a_saved_folder_loads_bit_for_bit(folder, params):
    config, found = towers.load(folder)
    assert config == CONFIG
    jax.tree.map(np.testing.assert_array_equal, found, params)


def test_half_precision_positions_and_shards_are_read(folder):
    expected = towers.load(folder)[1]
    tensors = weights.read_safetensors(folder / weights.WEIGHTS)
    (folder / weights.WEIGHTS).unlink()
    tensors = {name: tensor.astype(ml_dtypes.bfloat16) for name, tensor in tensors.items()}
    tensors['text_model.embeddings.position_ids'] = np.arange(5)[None]
    names = sorted(tensors)
    parts = {'model-1.safetensors': names[::2], 'model-2.safetensors': names[1::2]}
    for part, own in parts.items():
        weights.write_safetensors(folder / part, {name: tensors[name] for name in own})
    index = {'weight_map': {name: part for part, own in parts.items() for name in own}}
    (folder / weights.SHARDS).write_text(json.dumps(index))
    found = towers.load(folder)[1]
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype('float32')}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2**-8), found, expected)


def test_one_line_lists_all_that_does_not_fit(folder):
    def spoil(tensors):
        del tensors['logit_scale'], tensors['vision_model.pre_layrnorm.bias']
        tensors['classifier.weight'] = np.zeros((2, 2), np.float32)
        tensors['text_projection.weight'] = tensors['text_projection.weight'].T
        return tensors

    edit(folder, spoil)
    with pytest.raises(BadInput) as raised:
        towers.load(folder)
    message = str(raised.value)
    assert '\n' not in message and message.startswith(str(folder))
    for part in (
        'logit_scale, vision_model.pre_layrnorm.bias missing',
        'classifier.weight unexpected',
        'text_projection.weight (6, 4) for (4, 6) of another shape',
    ):
        assert part in message, message


def test_a_vector_where_a_matrix_belongs_is_bad_input(folder):
    edit(folder, lambda tensors: tensors | {'visual_projection.weight': np.zeros(3, np.float32)})
    with pytest.raises(BadInput, match=r'visual_projection.weight \(3,\) for \(4, 8\)'):
        towers.load(folder)


def test_pickles_are_not_read(folder):
    (folder / weights.WEIGHTS).rename(folder / 'pytorch_model.bin')
    with pytest.raises(BadInput, match='pickled weights are not read'):
        towers.load(folder)


@pytest.mark.parametrize('name, text', [(towers.CONFIG, '{'), (towers.CONFIG, None), (weights.SHARDS, '[]')])
def test_broken_folders_are_bad_input(folder, name, text):
    if name == weights.SHARDS:
        (folder / weights.WEIGHTS).unlink()
    (folder / name).unlink(missing_ok=True)
    if text is not None:
        (folder / name).write_text(text)
    with pytest.raises(BadInput, match=name):
        towers.load(folder)


@pytest.mark.parametrize('names', [('a', 'a.b'), ('a.b', 'a'), ('a.0', 'a.0.kernel'), ('.'.join('a' * 101),)])
def test_names_that_make_no_tree_are_bad_input(names):
    with pytest.raises(BadInput, match='^here: '):
        weights.unflatten(dict.fromkeys(names, np.zeros(1)), 'here')


def test_only_what_an_index_is_written_as_becomes_one():
    flat = dict.fromkeys(['a.0', 'a.00', 'a.10', 'a.01', 'a.٣', 'a.1234567890', 'a.-1'], 1)
    assert list(weights.unflatten(flat)['a']) == [0, '00', 10, '01', '٣', '1234567890', '-1']


@pytest.mark.parametrize('dtype', ['F8_E4M3', 'F8_E5M2', 'F4'])
def test_types_that_numpy_has_not_are_named(tmp_path, dtype):
    header = json.dumps(
        {'layer.weight': {'dtype': dtype, 'shape': [2], 'data_offsets': [0, 1 if dtype == 'F4' else 2]}}
    ).encode()
    (tmp_path / 'x').write_bytes(len(header).to_bytes(8, 'little') + header + bytes(1 if dtype == 'F4' else 2))
    with pytest.raises(BadInput, match=f"x: tensor 'layer.weight' is of type {dtype}"):
        weights.read_safetensors(tmp_path / 'x')


def test_what_is_finite_as_float64_alone_is_not_finite():
    like = {'a': {'bias': jax.ShapeDtypeStruct((2,), jnp.float32)}}
    with pytest.raises(BadInput, match='here: .*finite'):
        weights.from_torch({'a.bias': np.array([1.0, 1e300])}, like, 'here')
    with pytest.raises(BadInput, match='here: .*finite'):
        weights.checked({'a': {'bias': np.array([1.0, 1e300])}}, like, 'net', 'here')
