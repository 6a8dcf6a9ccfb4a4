"""FID's Inception-v3 against the same network in torch.nn.functional, and refusal of other files."""

import os

import jax
import numpy as np
import pytest
from PIL import Image

from rsdiff.base.errors import BadInput
from rsdiff.data.images import clean_bicubic
from rsdiff.pretrained import inception, weights


@pytest.fixture(scope='module')
def tensors():
    """PyTorch's names → random tensors that keep activations from vanishing or exploding."""
    rng, found = np.random.default_rng(0), {}
    for name, leaf in weights.flatten(inception.parameter_shapes()).items():
        layer, _, kind = name.rpartition('.')
        if kind == 'kernel':
            shape = (leaf.shape[-1], leaf.shape[-2], *leaf.shape[:-2])
            found[f'{layer}.weight'] = rng.normal(0, (2 / np.prod(shape[1:])) ** 0.5, shape)
        elif layer == 'fc':
            found[name] = rng.normal(0, 0.2, leaf.shape)
        else:
            norm = layer.removesuffix('conv') + 'bn'
            for vector, draw in {
                'weight': rng.uniform(0.5, 1.5, leaf.shape),
                'bias': rng.normal(0, 0.2, leaf.shape),
                'running_mean': rng.normal(0, 0.2, leaf.shape),
                'running_var': rng.uniform(0.5, 1.5, leaf.shape),
            }.items():
                found[f'{norm}.{vector}'] = draw
    return {name: tensor.astype('f') for name, tensor in found.items()}


def torch_inception(tensors, images):
    """Features and logits of the published network: blocks A to E of Szegedy et al., with FID's three changes."""
    torch = pytest.importorskip('torch', reason='the reference is torch; pip install rsdiff-jax[parity]')
    F = torch.nn.functional
    p = {name: torch.from_numpy(tensor) for name, tensor in tensors.items()}

    def conv(x, name, **options):
        x = F.conv2d(x, p[f'{name}.conv.weight'], **options)
        norm = [p[f'{name}.bn.{vector}'] for vector in ('running_mean', 'running_var', 'weight', 'bias')]
        return F.relu(F.batch_norm(x, *norm, eps=0.001))

    def mean_pool(x):
        return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)

    def double(x, b):
        return conv(conv(x, f'{b}.branch3x3dbl_1'), f'{b}.branch3x3dbl_2', padding=1)

    def block_a(x, b):
        five = conv(conv(x, f'{b}.branch5x5_1'), f'{b}.branch5x5_2', padding=2)
        three = conv(double(x, b), f'{b}.branch3x3dbl_3', padding=1)
        return torch.cat([conv(x, f'{b}.branch1x1'), five, three, conv(mean_pool(x), f'{b}.branch_pool')], 1)

    def block_b(x, b):
        three = conv(double(x, b), f'{b}.branch3x3dbl_3', stride=2)
        return torch.cat([conv(x, f'{b}.branch3x3', stride=2), three, F.max_pool2d(x, 3, 2)], 1)

    def sevens(x, names, first_is_wide):
        for n, name in enumerate(names):
            x = conv(x, name, padding=(0, 3) if (n % 2 == 0) == first_is_wide else (3, 0))
        return x

    def block_c(x, b):
        seven = sevens(conv(x, f'{b}.branch7x7_1'), [f'{b}.branch7x7_{n}' for n in (2, 3)], True)
        twice = sevens(conv(x, f'{b}.branch7x7dbl_1'), [f'{b}.branch7x7dbl_{n}' for n in (2, 3, 4, 5)], False)
        return torch.cat([conv(x, f'{b}.branch1x1'), seven, twice, conv(mean_pool(x), f'{b}.branch_pool')], 1)

    def block_d(x, b):
        three = conv(conv(x, f'{b}.branch3x3_1'), f'{b}.branch3x3_2', stride=2)
        seven = sevens(conv(x, f'{b}.branch7x7x3_1'), [f'{b}.branch7x7x3_{n}' for n in (2, 3)], True)
        return torch.cat([three, conv(seven, f'{b}.branch7x7x3_4', stride=2), F.max_pool2d(x, 3, 2)], 1)

    def block_e(x, b, pool):
        def fork(x, name):
            return [conv(x, f'{name}a', padding=(0, 1)), conv(x, f'{name}b', padding=(1, 0))]

        three, twice = fork(conv(x, f'{b}.branch3x3_1'), f'{b}.branch3x3_2'), fork(double(x, b), f'{b}.branch3x3dbl_3')
        return torch.cat([conv(x, f'{b}.branch1x1'), *three, *twice, conv(pool(x), f'{b}.branch_pool')], 1)

    with torch.no_grad():
        x = torch.from_numpy(images).permute(0, 3, 1, 2)
        x = conv(conv(conv(x, 'Conv2d_1a_3x3', stride=2), 'Conv2d_2a_3x3'), 'Conv2d_2b_3x3', padding=1)
        x = conv(conv(F.max_pool2d(x, 3, 2), 'Conv2d_3b_1x1'), 'Conv2d_4a_3x3')
        x = F.max_pool2d(x, 3, 2)
        for b in 'bcd':
            x = block_a(x, f'Mixed_5{b}')
        x = block_b(x, 'Mixed_6a')
        for b in 'bcde':
            x = block_c(x, f'Mixed_6{b}')
        x = block_e(block_d(x, 'Mixed_7a'), 'Mixed_7b', mean_pool)
        x = block_e(x, 'Mixed_7c', lambda x: F.max_pool2d(x, 3, stride=1, padding=1)).mean((2, 3))
        return x.numpy(), F.linear(x, p['fc.weight'], p['fc.bias']).numpy()


def test_features_and_logits_are_those_of_torch(tensors):
    images = np.random.default_rng(1).uniform(-1, 1, (2, 107, 139, 3)).astype('f')
    expected = torch_inception(tensors, images)
    found = jax.jit(inception.forward)(inception.fold(tensors, 'here'), images)
    for ours, reference in zip(found, expected):
        assert np.abs(reference).max() > 1
        np.testing.assert_allclose(ours, reference, atol=1e-5 * np.abs(reference).max())


def test_it_has_as_many_parameters_as_torchvisions_network_but_for_the_classes():
    shapes = {name: leaf.shape for name, leaf in weights.flatten(inception.parameter_shapes()).items()}
    # torchvision has γ and β per channel, we have a bias
    count = sum(np.prod(shape) * (2 if name.endswith('.conv.bias') else 1) for name, shape in shapes.items())
    # torchvision documents 27,161,264 parameters, 3,326,696 of them in the auxiliary head
    assert count == 27_161_264 - 3_326_696 + 8 * (2048 + 1)


@pytest.mark.parametrize('form', ['safetensors', 'torch', 'legacy'])
def test_every_form_of_the_file_is_read_alike(tensors, form, tmp_path):
    counted = tensors | {'Conv2d_1a_3x3.bn.num_batches_tracked': np.array(0)}
    path = tmp_path / ('x.safetensors' if form == 'safetensors' else 'pt_inception.pth')
    if form == 'safetensors':
        weights.write_safetensors(path, counted)
    else:
        torch = pytest.importorskip('torch', reason='it is torch that writes the file; pip install rsdiff-jax[parity]')
        torch.save(
            {name: torch.from_numpy(tensor) for name, tensor in counted.items()},
            path,
            _use_new_zipfile_serialization=form == 'torch',
        )
    jax.tree.map(np.testing.assert_array_equal, inception.load_params(path), inception.fold(tensors, 'here'))


@pytest.mark.parametrize(
    'change, message',
    [
        (
            {'fc.weight': np.zeros((1000, 2048), 'f'), 'fc.bias': np.zeros(1000, 'f')},
            r'fc\.weight \(1000, 2048\) for \(1008, 2048\)',
        ),
        ({'AuxLogits.fc.bias': np.zeros(1000, 'f')}, r'AuxLogits\.fc\.bias unexpected'),
        ({'fc.bias': np.full(1008, np.inf, 'f')}, 'not all of its weights are finite'),
        ({'Mixed_5b.branch1x1.bn.running_var': np.full(64, -1, 'f')}, 'not all of its weights are finite'),
    ],
)
def test_another_network_is_bad_input_by_its_names(tensors, change, message):
    with pytest.raises(BadInput, match=f'here: .*{message}') as raised:
        inception.fold(tensors | change, 'here')
    assert '\n' not in str(raised.value)


def test_a_missing_layer_is_named(tensors):
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith('Mixed_7c.branch_pool')}
    with pytest.raises(BadInput, match=r'here: .*Mixed_7c\.branch_pool\.conv\.weight missing'):
        inception.fold(tensors, 'here')


def test_a_file_that_holds_code_is_refused_and_does_not_run(tmp_path):
    torch = pytest.importorskip('torch', reason='it is torch that writes the file; pip install rsdiff-jax[parity]')

    class Trap:
        def __reduce__(self):
            return os.system, (f'touch {tmp_path / "mark"}',)

    torch.save({'fc.bias': torch.zeros(1008), 'trap': Trap()}, tmp_path / 'pt_inception.pth')
    with pytest.raises(BadInput, match=rf'pt_inception\.pth: names {os.system.__module__}\.system'):
        inception.load_params(tmp_path / 'pt_inception.pth')
    assert not (tmp_path / 'mark').exists()
    with pytest.raises(BadInput, match='no such file'):
        inception.load_params(tmp_path / 'elsewhere.pth')


@pytest.mark.parametrize('height, width', [(299, 299), (40, 31), (500, 320)])
def test_the_clean_resize_is_pillows_of_floats(smooth_image, height, width):
    image = 64 + smooth_image(64, 80) // 2
    found = clean_bicubic(image, height, width)
    assert found.shape == (height, width, 3) and found.dtype == np.float32
    for channel in range(3):
        plane = Image.fromarray(image[..., channel].astype('f')).resize((width, height), Image.BICUBIC)
        np.testing.assert_array_equal(found[..., channel], np.asarray(plane))
    rounded = np.asarray(Image.fromarray(image).resize((width, height), Image.BICUBIC), np.float32)
    # rounding to 8 bits costs half a level in each of the two passes, which the filter may amplify
    assert 0.1 < np.abs(found - rounded).max() < 1.5
