"""Encoder folders and names: preprocessing, tokenizers, and refused input."""

import json

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from transformers import CLIPImageProcessorPil, Siglip2Tokenizer, SiglipImageProcessorPil

from rsdiff.base.errors import BadInput
from rsdiff.downstream.encoder import ClipEncoder, byte_tokenizer, load_encoder
from rsdiff.pretrained import clip, hub, siglip, towers, weights

SIDE = 32
CLIP = clip.CLIPConfig(
    clip.VisionConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=SIDE, patch_size=16
    ),
    clip.TextConfig(
        vocab_size=514,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=16,
        pad_token_id=513,
        bos_token_id=512,
        eos_token_id=513,
    ),
    projection_dim=4,
)
SIGLIP = siglip.SiglipConfig(
    siglip.VisionConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=SIDE, patch_size=16
    ),
    siglip.TextConfig(
        vocab_size=64,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=12,
        projection_size=8,
    ),
)


@pytest.fixture
def clip_folder(tmp_path, lively):
    folder = tmp_path / 'a_clip'
    byte_tokenizer().save_pretrained(folder)
    towers.save(folder, CLIP, lively(CLIP))
    return folder


def write_preprocessor(folder, row):
    (folder / towers.PREPROCESSOR).write_text(json.dumps(row))


@pytest.mark.parametrize(
    'config, processor',
    [
        (CLIP, CLIPImageProcessorPil(size={'shortest_edge': SIDE}, crop_size=SIDE)),
        (SIGLIP, SiglipImageProcessorPil(size={'height': SIDE, 'width': SIDE})),
        (SIGLIP, SiglipImageProcessorPil(size={'height': SIDE, 'width': SIDE}, resample=2)),  # SigLIP 2
        (
            CLIP,
            CLIPImageProcessorPil(
                size={'shortest_edge': SIDE}, crop_size=SIDE, image_mean=[0.1, 0.2, 0.3], rescale_factor=1 / 127.5
            ),
        ),
        (
            CLIP,
            CLIPImageProcessorPil(size={'shortest_edge': SIDE}, crop_size=SIDE, do_rescale=False, do_normalize=False),
        ),
    ],
    ids=['clip', 'siglip', 'siglip2', 'another scale', 'pixels as they are'],
)
def test_pixels_come_to_the_tower_as_from_the_image_processor(tmp_path, lively, smooth_image, config, processor):
    write_preprocessor(tmp_path, json.loads(processor.to_json_string()))
    encoder = ClipEncoder('', '', config, None, None, (), **towers.load_preprocessing(tmp_path, config))
    image = smooth_image(70, 70)
    theirs = processor(image, return_tensors='np')['pixel_values'][0].transpose(1, 2, 0)
    ours = np.asarray(encoder.normalise(encoder.resize(image)[None])[0])
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())


def test_without_a_preprocessor_the_kind_of_the_towers_decides(tmp_path):
    assert towers.load_preprocessing(tmp_path, CLIP)['image_mean'] == clip.IMAGE_MEAN
    assert towers.load_preprocessing(tmp_path, SIGLIP)['image_mean'] == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    'row, message',
    [
        ({'size': {'shortest_edge': 224}, 'crop_size': 224}, 'makes images of size 224; the tower takes 32'),
        ({'size': {'height': 32, 'width': 48}}, "'width': 48}; the tower takes 32"),
        ({'image_mean': 0.5}, 'image_mean is 0.5; it must be three numbers'),
        ({'resample': 'sharp'}, "resample is 'sharp'"),
        ({'rescale_factor': 0}, 'rescale_factor is 0'),
        ([], 'not a JSON object'),
    ],
)
def test_a_preprocessor_that_does_not_fit_is_bad_input(tmp_path, row, message):
    write_preprocessor(tmp_path, row)
    with pytest.raises(BadInput, match=message) as raised:
        towers.load_preprocessing(tmp_path, CLIP)
    assert str(raised.value).startswith(str(tmp_path))


def test_an_index_of_shards_stays_in_its_folder(clip_folder):
    (clip_folder / weights.WEIGHTS).rename(clip_folder.parent / 'elsewhere.safetensors')
    (clip_folder / weights.SHARDS).write_text(json.dumps({'weight_map': {'logit_scale': '../elsewhere.safetensors'}}))
    with pytest.raises(BadInput, match='names .*elsewhere'):
        towers.load(clip_folder)


# Tokenizers.


def test_siglip_texts_are_lower_case_and_padded_to_the_whole_tower(tmp_path, lively):
    """With SigLIP 2's tokenizer, over a few letters."""
    letters = ['<pad>', '<eos>', '<bos>', '<unk>', '<mask>', '▁', *'abcdeghiklnorstuvw']
    tokenizer = Siglip2Tokenizer(vocab={letter: index for index, letter in enumerate(letters)}, merges=[])
    tokenizer.save_pretrained(tmp_path)
    towers.save(tmp_path, SIGLIP, lively(SIGLIP))
    encoder = load_encoder(tmp_path)
    ids, mask = encoder.tokenize(['A lake', 'a ' * 20])
    assert ids.shape == mask.shape == (2, SIGLIP.text_length) and mask.all()
    assert ids[0].tolist() == tokenizer('a lake')['input_ids'] + [0] * (SIGLIP.text_length - 6)
    assert (ids[1] != 0).all()


def test_siglip_reads_its_own_tokenizer(tmp_path, lively):
    sentencepiece = pytest.importorskip('sentencepiece', reason="pip install 'rsdiff-jax[siglip]'")
    pytest.importorskip('google.protobuf', reason='transformers reads spiece.model by protobuf')
    sentences = tmp_path / 'sentences.txt'
    sentences.write_text('\n'.join(['a lake and a wood', 'a field of rice', 'an airport by the sea'] * 20))
    folder = tmp_path / 'a_siglip'
    towers.save(folder, SIGLIP, lively(SIGLIP))
    sentencepiece.SentencePieceTrainer.train(
        input=str(sentences),
        model_prefix=str(folder / 'spiece'),
        vocab_size=22,
        pad_id=-1,
        bos_id=-1,
        eos_id=1,
        unk_id=2,
        minloglevel=2,
    )
    (folder / 'tokenizer_config.json').write_text('{"tokenizer_class": "SiglipTokenizer", "model_max_length": 64}')
    ids, mask = load_encoder(folder).tokenize(['A Wood, and a lake.', 'rice'])
    assert ids.shape == (2, SIGLIP.text_length) and mask.all()
    processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / 'spiece.model'))
    expected = processor.encode('rice') + [1]  # the end token, which is also the padding
    assert ids[1].tolist() == expected + [1] * (SIGLIP.text_length - len(expected))


# Names on the hub.


def test_a_name_is_downloaded_without_pickles_and_loads_like_its_folder(clip_folder, monkeypatch):
    asked = {}

    def snapshot(name, allow_patterns, ignore_patterns):
        asked.update(name=name, allowed=allow_patterns, ignored=ignore_patterns)
        return str(clip_folder)

    monkeypatch.setattr(huggingface_hub, 'snapshot_download', snapshot)
    encoder = load_encoder('someone/a-clip')
    assert encoder.name == 'someone/a-clip' and encoder.digest == load_encoder(clip_folder).digest
    files = [
        'model.safetensors',
        'config.json',
        'vocab.json',
        'merges.txt',
        'spiece.model',
        'pytorch_model.bin',
        'open_clip_model.safetensors',
        'onnx/model.safetensors',
        'tf_model.h5',
        'model.py',
    ]
    taken = huggingface_hub.utils.filter_repo_objects(
        files, allow_patterns=asked['allowed'], ignore_patterns=asked['ignored']
    )
    assert list(taken) == files[:5]


def test_a_name_without_a_network_is_one_line_that_says_how_to_go_on(monkeypatch):
    def snapshot(*_, **__):
        raise LocalEntryNotFoundError('no\nnetwork')

    monkeypatch.setattr(huggingface_hub, 'snapshot_download', snapshot)
    with pytest.raises(BadInput, match='`hf download someone/a-clip --local-dir FOLDER`') as raised:
        load_encoder('someone/a-clip')
    assert '\n' not in str(raised.value) and 'no network' in str(raised.value)


@pytest.mark.parametrize('name', ['runs/not/there', '/not/there', 'nothing'])
def test_what_is_neither_a_folder_nor_a_name_is_bad_input(name):
    with pytest.raises(BadInput, match='neither a folder, nor a name on the Hugging Face hub'):
        hub.folder_of(name)
