"""Quantization leaves the parts around encoder and decoder alone, unless the caller says otherwise."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import BitsAndBytesConfig, TorchAoConfig
from transformers.quantizers.base import HfQuantizer

from moss_audio import MossAudioConfig, MossAudioModel
from moss_audio.modeling_moss_audio import spare_small_parts


DATA = Path(__file__).parent / "data"
AROUND = ("audio_encoder.stem_proj", "audio_adapter", "deepstack_audio_merger_list", "lm_head")


def linears(model) -> dict[str, torch.nn.Linear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}


def test_the_defaults_name_everything_around_encoder_and_decoder():
    config = spare_small_parts(BitsAndBytesConfig(load_in_8bit=True))
    model = MossAudioModel(MossAudioConfig.from_pretrained(DATA / "model_tiny"))
    spared = HfQuantizer.get_modules_to_not_convert(model, config.llm_int8_skip_modules)
    modules = dict(model.named_modules())
    assert all(name in modules for name in spared)
    quantized = [name for name in linears(model) if not any(f"{name}.".startswith(f"{part}.") for part in spared)]
    assert all(name.startswith(("audio_encoder.layers.", "language_model.layers.")) for name in quantized)
    assert len(quantized) == 6 * model.config.audio_config.encoder_layers + 7 * model.config.num_hidden_layers


def test_the_callers_choice_is_kept_and_the_callers_config_is_not_changed():
    config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=["lm_head"])
    assert spare_small_parts(config).llm_int8_skip_modules == ["lm_head"]
    config = BitsAndBytesConfig(load_in_8bit=True)
    assert set(AROUND) <= set(spare_small_parts(config).llm_int8_skip_modules)
    assert config.llm_int8_skip_modules is None


def test_a_config_may_be_a_dict():
    config = spare_small_parts({"quant_method": "bitsandbytes", "load_in_8bit": True})
    assert isinstance(config, BitsAndBytesConfig) and set(AROUND) <= set(config.llm_int8_skip_modules)


@pytest.fixture(scope="module")
def int8():
    return pytest.importorskip("torchao.quantization").Int8WeightOnlyConfig()


@pytest.fixture(scope="module")
def quantized(int8):
    config = TorchAoConfig(quant_type=int8)
    return MossAudioModel.from_pretrained(DATA / "model_tiny", dtype=torch.float32, quantization_config=config).eval()


def is_quantized(module: torch.nn.Linear) -> bool:
    return type(module.weight) is not torch.nn.Parameter or type(module.weight.data) is not torch.Tensor


def test_torchao_quantizes_the_layers_and_nothing_else(quantized):
    for name, module in linears(quantized).items():
        assert is_quantized(module) == name.startswith(("audio_encoder.layers.", "language_model.layers.")), name


def test_torchao_answers_nearly_the_same(quantized):
    cases = load_file(DATA / "golden" / "cases.safetensors")
    names = ("input_ids", "attention_mask", "audio_data", "audio_data_seqlens")
    inputs = {name: cases[f"two_clips.{name}"] for name in names}
    with torch.no_grad():
        logits = quantized(**inputs).logits[:, -24:]
    expected = cases["two_clips.logits"]
    assert 0 < (logits - expected).norm() / expected.norm() < 0.05
    assert quantized.generate(**inputs, max_new_tokens=4, do_sample=False).shape[1] > inputs["input_ids"].shape[1]


def test_torchao_quantizes_what_the_caller_does_not_leave_alone(int8):
    config = TorchAoConfig(quant_type=int8, modules_to_not_convert=["lm_head"])
    model = MossAudioModel.from_pretrained(DATA / "model_tiny", dtype=torch.float32, quantization_config=config)
    assert [name for name, module in linears(model).items() if not is_quantized(module)] == ["lm_head"]


def test_the_dtype_before_quantization_is_not_written():
    """Version 4 notes it in every sub-config; it is no JSON."""
    config = MossAudioConfig.from_pretrained(DATA / "model_tiny")
    config.quantization_config = BitsAndBytesConfig(load_in_8bit=True)
    config.audio_config._pre_quantization_dtype = config.language_config._pre_quantization_dtype = torch.float32
    assert "_pre_quantization_dtype" not in config.to_json_string()


def test_torchao_names_what_it_left_alone_in_the_file(quantized):
    assert set(AROUND) <= set(quantized.config.to_diff_dict()["quantization_config"]["modules_to_not_convert"])
    assert "deepstack_audio_merger_list" in quantized.config.to_json_string()
