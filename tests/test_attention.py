"""Attention implementations of encoder and decoder: all give the same, and every one gets a mask that it can read."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.attention.flex_attention import BlockMask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from moss_audio import MossAudioModel


DATA = Path(__file__).parent / "data"
COMPILES = pytest.mark.skipif(shutil.which("g++") is None, reason="flex attention is compiled, by g++ on a CPU")
FLEX = pytest.param("flex_attention", marks=COMPILES)
LENGTHS = (950, 400, 309, 7)  # two windows and a tail, a window, less than one, a single token


@pytest.fixture(scope="module")
def model():
    return MossAudioModel.from_pretrained(DATA / "model_tiny", attn_implementation="eager").eval()


@pytest.fixture(scope="module")
def clips():
    features = torch.randn(len(LENGTHS), 128, max(LENGTHS), generator=torch.Generator().manual_seed(0))
    for clip, length in zip(features, LENGTHS):
        clip[:, length:] = 0
    return {"audio_data": features, "audio_data_seqlens": torch.tensor(LENGTHS)}


@pytest.fixture(scope="module")
def batch():
    """Rows with several clips, one, and none, padded on the left."""
    cases = load_file(DATA / "golden" / "cases.safetensors")
    names = ("input_ids", "attention_mask", "audio_data", "audio_data_seqlens")
    return {name: cases[f"left_padded.{name}"] for name in names}


@pytest.fixture
def choose(model):
    """Sets the attention implementation for one test."""
    yield model.set_attn_implementation
    model.set_attn_implementation("eager")


@pytest.fixture(autouse=True)
def fresh_kernels():
    """
    Flex attention is compiled again, for sizes that vary, where a test has others than the one before. PyTorch's code
    for a CPU then names variables that it has not declared, depending on which sizes vary (seen on 2.13).
    """
    torch.compiler.reset()


@torch.no_grad()
def encode(model, clips):
    outputs = model.audio_encoder(**clips)
    return [outputs.last_hidden_state, *outputs.deepstack_hidden_states]


@torch.no_grad()
def logits(model, batch):
    return model(**batch).logits[batch["attention_mask"].bool()]


@pytest.mark.parametrize("implementation", ["sdpa", FLEX])
def test_the_encoder_gives_the_same_under_every_implementation(model, clips, choose, implementation):
    expected = encode(model, clips)
    choose(implementation)
    assert model.audio_encoder.config._attn_implementation == implementation
    torch.testing.assert_close(encode(model, clips), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("implementation", ["sdpa", FLEX])
def test_the_model_gives_the_same_under_every_implementation(model, batch, choose, implementation):
    expected = logits(model, batch)
    choose(implementation)
    torch.testing.assert_close(logits(model, batch), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_a_clip_gives_alone_what_it_gives_beside_others(model, clips, choose, implementation):
    choose(implementation)
    together, start = encode(model, clips), 0
    for features, length in zip(clips["audio_data"], LENGTHS):
        alone = encode(model, {"audio_data": features[None, :, :length], "audio_data_seqlens": [length]})
        end = start + alone[0].shape[0]
        torch.testing.assert_close([states[start:end] for states in together], alone, atol=1e-5, rtol=1e-5)
        start = end
    assert start == together[0].shape[0]


@pytest.mark.parametrize(
    ("audio", "language"),
    [("sdpa", "eager"), ("eager", "sdpa"), pytest.param("flex_attention", "sdpa", marks=COMPILES)],
)
def test_each_part_can_have_an_implementation_of_its_own(model, batch, audio, language):
    asked = {"audio_config": audio, "language_config": language}
    mixed = MossAudioModel.from_pretrained(DATA / "model_tiny", attn_implementation=asked).eval()
    assert mixed.audio_encoder.layers[0].self_attn.config._attn_implementation == audio
    assert mixed.language_model.layers[0].self_attn.config._attn_implementation == language
    torch.testing.assert_close(logits(mixed, batch), logits(model, batch), atol=1e-5, rtol=1e-5)


def test_the_callers_choice_beats_what_a_released_file_says():
    """`audio_config` of the released files fixes "eager"."""
    assert '"_attn_implementation": "eager"' in (DATA / "model_tiny" / "config.json").read_text()
    model = MossAudioModel.from_pretrained(DATA / "model_tiny")
    assert model.audio_encoder.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("implementation", ["eager", "sdpa", FLEX])
def test_full_windows_need_no_mask(model, choose, monkeypatch, implementation):
    choose(implementation)
    monkeypatch.setattr(model.audio_encoder, "_attention_mask", lambda *args: pytest.fail("a mask for full windows"))
    encode(model, {"audio_data": torch.zeros(2, 128, 800), "audio_data_seqlens": [800, 400]})


def test_flex_attention_gets_a_block_mask(model, choose):
    """Its kernel adds a dense mask element by element, which crashes on a CPU."""
    choose("flex_attention")
    valid = torch.tensor([[True, True, True], [True, False, False]])
    mask = model.audio_encoder._attention_mask(valid, torch.float32)
    assert isinstance(mask, BlockMask) and mask.shape == (2, 1, 3, 3)
    indices = [index.flatten() for index in torch.meshgrid(torch.arange(2), torch.arange(3), indexing="ij")]
    assert mask.mask_mod(indices[0], 0, 0, indices[1]).tolist() == valid.flatten().tolist()


def test_flash_attention_gets_the_mask_of_tokens_and_no_causality(model, clips, monkeypatch):
    """In the place of its kernels, what they do: attention over each window's tokens without padding."""
    seen = []

    def unpadded(module, query, key, value, attention_mask, dropout=0.0, scaling=None, is_causal=None, **kwargs):
        assert is_causal is False
        seen.append(attention_mask)
        output = torch.zeros_like(query)
        for window in range(query.shape[0]):
            keep = slice(None) if attention_mask is None else attention_mask[window].bool()
            states = (states[window, :, keep] for states in (query, key, value))
            output[window, :, keep] = torch.nn.functional.scaled_dot_product_attention(*states, scale=scaling)
        return output.transpose(1, 2), None

    expected = encode(model, clips)
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "flash_attention_2", unpadded)
    monkeypatch.setattr(model.audio_encoder.config, "_attn_implementation_internal", "flash_attention_2")
    torch.testing.assert_close(encode(model, clips), expected, atol=1e-5, rtol=1e-5)
    masks = [mask for mask in seen if mask is not None]
    assert len(masks) < len(seen)  # full windows
    assert masks and all(mask.ndim == 2 and mask.dtype == torch.bool for mask in masks)


def test_attention_weights_are_recorded(model, clips):
    with torch.no_grad():
        outputs = model.audio_encoder(**clips, output_attentions=True)
    config, tokens = model.config.audio_config, [50, 50, 19, 50, 39, 1]  # of the windows, in the order of the clips
    assert len(outputs.attentions) == config.encoder_layers
    for weights in outputs.attentions:
        assert weights.shape == (len(tokens), config.encoder_attention_heads, 50, 50)
        for window, count in zip(weights, tokens):
            torch.testing.assert_close(window[:, :count].sum(-1), torch.ones(window.shape[0], count))
            assert not window[:, :, count:].any()


def test_an_unknown_implementation_is_refused(model):
    with pytest.raises(ValueError, match="no_such_attention"):
        model.set_attn_implementation("no_such_attention")
