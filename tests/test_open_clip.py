"""open_clip's checkpoints: the converted network equals the original, rewritten here in torch."""

import collections
import functools
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from rsdiff.base.errors import BadInput
from rsdiff.downstream.encoder import byte_tokenizer, load_encoder
from rsdiff.pretrained import open_clip, towers, weights
from rsdiff.pretrained.foreign_pickle import read_torch

TOOL = Path(__file__).parents[1] / 'tools' / 'convert_weights.py'
VOCABULARY, LENGTH, SIDE = 514, 12, 32
ROW = {
    'embed_dim': 20,
    'vision_cfg': {'image_size': SIDE, 'layers': 2, 'width': 32, 'head_width': 8, 'patch_size': 8},
    'text_cfg': {'context_length': LENGTH, 'vocab_size': VOCABULARY, 'width': 24, 'heads': 3, 'layers': 2},
}


@pytest.fixture(scope='module')
def torch():
    return pytest.importorskip('torch', reason='the reference is written in torch; pip install rsdiff-jax[parity]')


def reference_network(torch, row):
    """A ViT and a text transformer with open_clip's tensor names and random weights."""

    class QuickGELU(torch.nn.Module):
        def forward(self, x):
            return x * torch.sigmoid(1.702 * x)

    class Transformer(torch.nn.Module):
        """Layers with OpenAI's names, which open_clip kept."""

        def __init__(self, width, heads, layers, activation):
            super().__init__()
            self.resblocks = torch.nn.ModuleList()
            for _ in range(layers):
                block = torch.nn.Module()
                block.ln_1, block.ln_2 = torch.nn.LayerNorm(width), torch.nn.LayerNorm(width)
                block.attn = torch.nn.MultiheadAttention(width, heads, batch_first=True)
                block.mlp = torch.nn.Sequential(
                    collections.OrderedDict(
                        c_fc=torch.nn.Linear(width, 4 * width),
                        gelu=activation(),
                        c_proj=torch.nn.Linear(4 * width, width),
                    )
                )
                self.resblocks.append(block)

        def forward(self, x, mask=None):
            for block in self.resblocks:
                y = block.ln_1(x)
                x = x + block.attn(y, y, y, attn_mask=mask, need_weights=False)[0]
                x = x + block.mlp(block.ln_2(x))
            return x

    class Reference(torch.nn.Module):
        """A ViT read at its class token, a causal transformer read at the largest id (open_clip's `argmax`)."""

        def __init__(self, row):
            super().__init__()
            vision, text = row['vision_cfg'], row['text_cfg']
            activation = QuickGELU if row.get('quick_gelu') else torch.nn.GELU
            free = lambda *shape: torch.nn.Parameter(torch.empty(shape))
            self.visual = torch.nn.Module()
            self.visual.conv1 = torch.nn.Conv2d(
                3, vision['width'], vision['patch_size'], vision['patch_size'], bias=False
            )
            self.visual.class_embedding = free(vision['width'])
            self.visual.positional_embedding = free(
                1 + (vision['image_size'] // vision['patch_size']) ** 2, vision['width']
            )
            self.visual.ln_pre, self.visual.ln_post = (torch.nn.LayerNorm(vision['width']) for _ in range(2))
            self.visual.transformer = Transformer(
                vision['width'], vision['width'] // vision['head_width'], vision['layers'], activation
            )
            self.visual.proj = free(vision['width'], row['embed_dim'])
            self.token_embedding = torch.nn.Embedding(text['vocab_size'], text['width'])
            self.positional_embedding = free(text['context_length'], text['width'])
            self.transformer = Transformer(text['width'], text['heads'], text['layers'], activation)
            self.ln_final = torch.nn.LayerNorm(text['width'])
            self.text_projection = free(text['width'], row['embed_dim'])
            self.logit_scale = free()
            for parameter in self.parameters():
                torch.nn.init.normal_(parameter, std=0.3)

        def encode_image(self, pixels):
            visual = self.visual
            patches = visual.conv1(pixels).flatten(2).transpose(1, 2)
            x = torch.cat([visual.class_embedding.expand(len(pixels), 1, -1), patches], 1) + visual.positional_embedding
            return visual.ln_post(visual.transformer(visual.ln_pre(x))[:, 0]) @ visual.proj

        def encode_text(self, ids):
            mask = torch.full((ids.shape[1], ids.shape[1]), -torch.inf).triu(1)
            x = self.transformer(self.token_embedding(ids) + self.positional_embedding[: ids.shape[1]], mask)
            return self.ln_final(x)[torch.arange(len(ids)), ids.argmax(-1)] @ self.text_projection

    return Reference(row)


@pytest.fixture(params=[False, True], ids=['gelu', 'quick_gelu'])
def reference(request, torch):
    """The network in torch, and its entry in open_clip's config."""
    torch.manual_seed(0)
    row = ROW | {'quick_gelu': request.param}
    return reference_network(torch, row).eval(), row


@functools.partial(jax.jit, static_argnums=0)
def features(config, params, images, ids):
    module = towers.module(config, params)
    return module.image_features(images), module.text_features(ids, ids * 0 + 1)


def assert_same(torch, config, params, model):
    generator = np.random.default_rng(0)
    images = generator.standard_normal((3, SIDE, SIDE, 3)).astype('f')
    ids = generator.integers(0, VOCABULARY - 2, (4, LENGTH)).astype(np.int32)
    for row, end in enumerate((3, 6, 9, 11)):  # open_clip pads with zeros
        ids[row, end:] = [VOCABULARY - 1] + [0] * (LENGTH - 1 - end)
    with torch.no_grad():
        theirs = (
            model.encode_image(torch.tensor(images.transpose(0, 3, 1, 2))),
            model.encode_text(torch.tensor(ids).long()),
        )
    for ours, expected in zip(features(config, params, images, ids), theirs):
        assert np.abs(ours - expected.numpy()).max() < 1e-5 * max(1, np.abs(expected.numpy()).max())
    assert params['logit_scale'] == model.logit_scale.item()


def test_the_network_is_the_same_under_its_other_names(torch, tmp_path, reference):
    model, row = reference
    torch.save(model.state_dict(), tmp_path / 'model.pt')
    config = open_clip.config_from_json(row, 'here')
    assert_same(torch, config, open_clip.params_from(config, read_torch(tmp_path / 'model.pt'), 'here'), model)


def test_a_checkpoint_of_training_is_read_without_its_optimiser(torch, tmp_path, reference):
    model, row = reference
    optimiser = torch.optim.AdamW(model.parameters())
    sum(parameter.sum() for parameter in model.parameters()).backward()
    optimiser.step()
    torch.save(
        {
            'epoch': 3,
            'name': 'a run',
            'optimizer': optimiser.state_dict(),
            'state_dict': {f'module.{name}': tensor for name, tensor in model.state_dict().items()},
        },
        tmp_path / 'epoch_3.pt',
    )
    config = open_clip.config_from_json(row, 'here')
    tensors = read_torch(tmp_path / 'epoch_3.pt', entry='state_dict')
    assert_same(torch, config, open_clip.params_from(config, tensors, 'here'), model)
    with pytest.raises(BadInput, match='holds a int'):
        read_torch(tmp_path / 'epoch_3.pt')


def test_what_does_not_fit_is_listed_by_the_names_of_the_file(reference):
    model, row = reference
    tensors = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    del tensors['ln_final.bias']
    tensors['visual.head.weight'] = tensors['logit_scale']
    tensors['transformer.resblocks.1.attn.in_proj_weight'] = np.zeros((24, 24), 'f')
    with pytest.raises(BadInput) as raised:
        open_clip.params_from(open_clip.config_from_json(row, 'here'), tensors, 'model.pt')
    for part in (
        'model.pt: ln_final.bias missing',
        'visual.head.weight unexpected',
        'transformer.resblocks.1.attn.in_proj_weight (24, 24) for (72, 24) of another shape',
    ):
        assert part in str(raised.value), raised.value


@pytest.mark.parametrize(
    'change, message',
    [
        ({'vision_cfg': ROW['vision_cfg'] | {'layers': [3, 4, 6, 3]}}, 'ResNet'),
        ({'vision_cfg': {'timm_model_name': 'vit_base_patch16_siglip_224'}}, "asks for timm_model_name 'vit_base"),
        ({'text_cfg': ROW['text_cfg'] | {'no_causal_mask': True}}, 'asks for no_causal_mask True'),
        ({'text_cfg': None}, 'not an open_clip config'),
        ({'embed_dim': 0}, 'embed_dim is 0'),
    ],
)
def test_what_no_clip_of_hugging_face_is_is_refused(change, message):
    with pytest.raises(BadInput, match=message) as raised:
        open_clip.config_from_json(ROW | change, 'here')
    assert str(raised.value).startswith('here: ')


def test_a_resnet_is_refused_by_its_name_and_by_its_tensors():
    with pytest.raises(BadInput, match='RN50.*no ResNets'):
        open_clip.named_config('RN50')
    config = open_clip.config_from_json(ROW, 'here')
    with pytest.raises(BadInput, match='x.pt: its image tower is a ResNet'):
        open_clip.params_from(config, {'visual.layer1.0.conv1.weight': np.zeros(1)}, 'x.pt')


def test_named_architectures_are_those_that_openai_published():
    """Against transformers' defaults, which are ViT-B/32 with quick_gelu, and by the number of parameters."""
    assert open_clip.named_config('ViT-B-32-quickgelu').vision_config == towers.CLIPConfig().vision_config
    assert open_clip.named_config('ViT-L-14').text_config.hidden_act == 'gelu'
    counts = {
        name: sum(
            np.prod(shape, dtype=int)
            for shape in weights.torch_shapes(towers.abstract_params(open_clip.named_config(name))).values()
        )
        for name in ('ViT-B-32', 'ViT-B-16')
    }
    assert counts == {'ViT-B-32': 151277313, 'ViT-B-16': 149620737}


def run_tool(*arguments):
    done = subprocess.run([sys.executable, TOOL, *map(str, arguments)], capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr.strip().splitlines()[-1:]


def test_the_program_writes_a_folder_that_encodes(torch, tmp_path, reference):
    model, row = reference
    folder = tmp_path / 'theirs'
    folder.mkdir()
    (folder / 'open_clip_config.json').write_text(
        json.dumps(
            {
                'model_cfg': row,
                'preprocess_cfg': {'mean': [0.1, 0.2, 0.3], 'std': [0.5, 0.5, 0.5], 'interpolation': 'bilinear'},
            }
        )
    )
    torch.save(model.state_dict(), folder / 'open_clip_pytorch_model.bin')
    byte_tokenizer().save_pretrained(tmp_path / 'tokenizer')
    code, out, error = run_tool(
        '--checkpoint', folder, '--tokenizer', tmp_path / 'tokenizer', '--out', tmp_path / 'ours'
    )
    assert code == 0, error
    assert json.loads(out.splitlines()[-1])['activation'] == ('quick_gelu' if row['quick_gelu'] else 'gelu')
    encoder = load_encoder(tmp_path / 'ours')
    assert (encoder.image_mean, encoder.resample, encoder.image_size_px) == ((0.1, 0.2, 0.3), 2, SIDE)
    assert_same(torch, encoder.config, encoder.pretrained, model)
    assert encoder.tokenize(['lake'])[0].max() == VOCABULARY - 1  # the end token


class Malicious:
    def __reduce__(self):
        return print, ('ran',)


def test_the_program_refuses_an_unsafe_pickle(torch, tmp_path):
    torch.save({'visual.proj': Malicious()}, tmp_path / 'model.pt')
    code, out, error = run_tool(
        '--checkpoint', tmp_path / 'model.pt', '--architecture', 'ViT-B-32', '--out', tmp_path / 'o'
    )
    assert (
        code == 2
        and 'ran' not in out
        and 'print, which an array does not need' in error[0]
        and not (tmp_path / 'o').exists()
    )
