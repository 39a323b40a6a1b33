"""The manifest, and checkpoints made from parts, from nothing, and taken apart again."""

import itertools
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from moss_audio import MossAudioConfig, MossAudioModel, MossAudioProcessor
from moss_audio.conversion import ConversionError
from moss_audio.conversion.assemble import assemble, extract
from moss_audio.conversion.convert import convert
from moss_audio.conversion.manifest import LEFTOVER, parameter_count, tensor_manifest
from moss_audio.conversion.scaffold import released_config, scaffold
from moss_audio.conversion.verify import CHECKS, FAILED, verify
from tests.conversion_helpers import GOLDEN, QWEN3_TOKENIZER, TINY, change, read, run_python, tensors_of


SMALL_ENCODER = {
    "d_model": 32,
    "output_dim": 48,
    "encoder_layers": 3,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "downsample_hidden_size": 4,
    "deepstack_encoder_layer_indexes": [0, 2],
}


def assert_same_tensors(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]):
    assert found.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


def failures(folder: Path) -> list[str]:
    """What is wrong with a native folder, without the last check, which starts a process."""
    checks = itertools.islice(verify(str(folder)), list(CHECKS).index("loading") - 1)
    return [f"{check.name}: {check.detail}" for check in checks if check.verdict == FAILED]


# ----------------------------------------------------------------------------------------------------------- the manifest


def tiny_config(**changes) -> MossAudioConfig:
    config = read(TINY / "config.json")
    for part in ("audio_config", "language_config"):
        config[part] = {**config[part], **changes.pop(part, {})}
    return MossAudioConfig(**{**config, **changes})


@pytest.mark.parametrize(
    "config",
    [
        MossAudioConfig(**released_config("4b", "bfloat16")),
        MossAudioConfig(),
        tiny_config(),
        tiny_config(audio_config={"output_dim": 48, "num_mel_bins": 80}),
        tiny_config(tie_word_embeddings=True),
        tiny_config(language_config={"attention_bias": True, "head_dim": 24}),
        tiny_config(deepstack_num_inject_layers=1),
    ],
    ids=["4b", "8b", "tiny", "projected", "tied", "biased", "one_tap"],
)
def test_the_manifest_is_what_the_model_has(config):
    with torch.device("meta"):
        state = MossAudioModel(config).state_dict()
    if config.tie_word_embeddings:
        del state["lm_head.weight"]
    assert tensor_manifest(config) == {name: tuple(tensor.shape) for name, tensor in state.items()}


def test_released_sizes():
    for config, billions in (
        (MossAudioConfig(**released_config("4b", "bfloat16")), 5.223),
        (MossAudioConfig(), 9.052),
    ):
        assert len(tensor_manifest(config)) == 901
        assert round(parameter_count(config) / 1e9, 3) == billions


# ------------------------------------------------------------------------------------------------------------ taking apart


def test_a_decoder_is_a_plain_qwen3_with_the_same_bits_and_answers(tmp_path):
    convert(str(TINY), str(tmp_path / "native"))
    for source in (TINY, tmp_path / "native"):
        target = tmp_path / f"decoder_of_{source.name}"
        extract(str(source), str(target), "decoder")
        whole = tensors_of(source)
        expected = {
            name.replace("language_model.", "model."): tensor
            for name, tensor in whole.items()
            if name.startswith(("language_model.", "lm_head."))
        }
        assert_same_tensors(tensors_of(target), expected)
        model, info = AutoModelForCausalLM.from_pretrained(target, output_loading_info=True)
        assert type(model) is Qwen3ForCausalLM and not any(info.values())
        case = {
            name.removeprefix("text_only."): tensor
            for name, tensor in load_file(GOLDEN / "cases.safetensors").items()
            if name.startswith("text_only.")
        }
        with torch.no_grad():
            logits = model.eval()(case["input_ids"], attention_mask=case["attention_mask"]).logits[:, -24:]
        torch.testing.assert_close(logits, case["logits"], atol=1e-5, rtol=0)
        assert AutoTokenizer.from_pretrained(target)("a<|im_end|>")["input_ids"][-1] == 295


ENCODE = """
import torch
from safetensors.torch import load_file
from transformers import AutoModel

model, info = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True, output_loading_info=True)
assert not any(info.values()), info
cases = load_file(sys.argv[2])
for name in ("one_clip_9s", "two_clips", "short_tail_3s"):
    with torch.no_grad():
        output = model.eval()(cases[f"{name}.audio_data"], cases[f"{name}.audio_data_seqlens"])
    expected = cases[f"{name}.encoder_last_hidden_state"]
    torch.testing.assert_close(output.last_hidden_state, expected, atol=1e-5, rtol=0)
print(type(model).__name__)
"""


def test_an_encoder_loads_by_itself_in_a_process_without_the_package(tmp_path):
    extract(str(TINY), str(tmp_path / "encoder"), "encoder")
    expected = {
        name.removeprefix("audio_encoder."): tensor
        for name, tensor in tensors_of(TINY).items()
        if name.startswith("audio_encoder.") and name != LEFTOVER
    }
    assert_same_tensors(tensors_of(tmp_path / "encoder"), expected)
    output = run_python(ENCODE, tmp_path / "encoder", GOLDEN / "cases.safetensors", cwd=tmp_path)
    assert output.split() == ["MossAudioEncoder"]


def test_what_cannot_be_taken_apart(tmp_path):
    with pytest.raises(ConversionError, match="`part` 'head' is none of decoder, encoder"):
        extract(str(TINY), str(tmp_path / "part"), "head")
    with pytest.raises(ConversionError, match="`folder` 'nowhere' is no folder"):
        extract("nowhere", str(tmp_path / "part"), "decoder")
    extract(str(TINY), str(tmp_path / "decoder"), "decoder")
    with pytest.raises(ConversionError, match="`model_type` 'qwen3'"):
        extract(str(tmp_path / "decoder"), str(tmp_path / "part"), "encoder")
    assert [path.name for path in tmp_path.iterdir()] == ["decoder"]


# --------------------------------------------------------------------------------------------------------------- joining


@pytest.fixture(scope="module")
def decoder(tmp_path_factory) -> Path:
    """The decoder of the tiny checkpoint. Not to be changed."""
    return extract(str(TINY), str(tmp_path_factory.mktemp("parts") / "decoder"), "decoder")


@pytest.mark.parametrize("encoder", ["whole", "extracted"])
def test_stored_parts_come_together_bit_by_bit(decoder, tmp_path, encoder):
    folder = TINY if encoder == "whole" else extract(str(TINY), str(tmp_path / "encoder"), "encoder")
    target = assemble(str(tmp_path / "target"), str(decoder), str(folder), seed=3)
    before, after = tensors_of(TINY), tensors_of(target)
    stored = ("audio_encoder.", "language_model.", "lm_head.")
    expected = {name: tensor for name, tensor in before.items() if name.startswith(stored) and name != LEFTOVER}
    assert_same_tensors({name: after[name] for name in after if name.startswith(stored)}, expected)
    new = torch.cat([tensor.flatten() for name, tensor in after.items() if not name.startswith(stored)])
    assert abs(new.std() - 0.02) < 0.001 and abs(new.mean()) < 0.001
    assert failures(target) == []
    assert MossAudioConfig.from_pretrained(target).adapter_hidden_size == (96 if encoder == "whole" else 8192)


def test_a_new_encoder_is_initialised_as_the_model_does_it(decoder, tmp_path):
    config = tmp_path / "encoder.json"
    config.write_text(json.dumps(SMALL_ENCODER), encoding="utf-8")
    target = assemble(str(tmp_path / "target"), str(decoder), audio_config=str(config))
    tensors = tensors_of(target)
    for name, tensor in tensors.items():
        if name.startswith("language_model.") or name == "lm_head.weight":
            continue
        if name.endswith("bias"):
            assert not tensor.any(), name
        elif "norm" in name:
            assert (tensor == 1).all(), name
        elif tensor.numel() > 1000:
            assert abs(tensor.std() - 0.02) < 0.002, name
    assert tensors["audio_encoder.out_proj.weight"].shape == (48, 32)
    model = MossAudioModel.from_pretrained(target)
    processor = MossAudioProcessor.from_pretrained(target)
    loss = model(**(inputs := processor(text="Hm?", audio=torch.zeros(40000))), labels=inputs["input_ids"]).loss
    assert torch.isfinite(loss)
    assert failures(target) == []


def test_the_seed_decides_what_is_new(decoder, tmp_path):
    config = json.dumps(SMALL_ENCODER)
    first, again, other = (
        tensors_of(assemble(str(tmp_path / name), str(decoder), audio_config=config, seed=seed))
        for name, seed in (("first", 1), ("again", 1), ("other", 2))
    )
    assert_same_tensors(first, again)
    name = "audio_encoder.layers.0.fc1.weight"
    assert not torch.equal(first[name], other[name])
    assert not torch.equal(first[name], first["audio_encoder.layers.1.fc1.weight"])


@pytest.mark.parametrize("tied", [True, False])
def test_a_decoder_that_transformers_saved_goes_in_and_comes_out(tmp_path, tied):
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = Qwen3Config(**sizes, vocab_size=151936, num_key_value_heads=1, head_dim=16, tie_word_embeddings=tied)
    decoder = tmp_path / "decoder"
    Qwen3ForCausalLM(config).to(torch.bfloat16).save_pretrained(decoder)
    for path in QWEN3_TOKENIZER.iterdir():
        shutil.copy(path, decoder)
    target = assemble(str(tmp_path / "target"), str(decoder), audio_config=json.dumps(SMALL_ENCODER))
    assert failures(target) == []
    model, info = MossAudioModel.from_pretrained(target, dtype="auto", output_loading_info=True)
    assert not any(info.values()) and model.dtype == torch.bfloat16
    assert torch.equal(model.lm_head.weight, model.language_model.embed_tokens.weight) is tied
    assert model.config.audio_token_id == 151654
    extract(str(target), str(tmp_path / "again"), "decoder")
    assert_same_tensors(tensors_of(tmp_path / "again"), tensors_of(decoder))
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again", dtype="auto").eval()
    original = AutoModelForCausalLM.from_pretrained(decoder, dtype="auto").eval()
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(again(ids).logits, original(ids).logits)


def test_an_encoder_of_another_dtype_is_cast_to_the_decoders(tmp_path, decoder):
    convert(str(TINY), str(tmp_path / "half"), dtype="bfloat16")
    target = assemble(str(tmp_path / "target"), str(decoder), str(tmp_path / "half"))
    assert {tensor.dtype for tensor in tensors_of(target).values()} == {torch.float32}
    name = "audio_encoder.conv2.weight"
    assert torch.equal(tensors_of(target)[name], tensors_of(TINY)[name].bfloat16().float())


def another_decoder(folder):
    change(folder / "config.json", model_type="qwen2")


def short_decoder(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def no_tokenizer(folder):
    (folder / "vocab.json").unlink()


def full_vocabulary(folder):
    """No embedding is left for the audio tokens."""
    config = read(folder / "config.json")
    change(folder / "config.json", vocab_size=301)
    tensors = load_file(folder / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = tensors[name][:301].contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert config["vocab_size"] == 320


@pytest.mark.parametrize(
    "damage, options, message",
    [
        (another_decoder, {}, "`model_type` 'qwen2'; it must be a dense Qwen3"),
        (short_decoder, {}, "decoder .* do not fit its config.json: 1 of .* language_model.norm.weight"),
        (no_tokenizer, {}, "has no tokenizer"),
        (full_vocabulary, {}, "lies beyond the decoder's `vocab_size` 301"),
        (None, {"encoder": "nowhere"}, "`encoder` 'nowhere' is no folder"),
        (None, {"encoder": "{decoder}"}, "encoder .* has `model_type` 'qwen3'"),
        (None, {"audio_config": "{broken"}, "`audio_config` '{broken' is neither"),
        (None, {"audio_config": '{"n_window": 3}'}, "`n_window` 3 makes windows"),
        (None, {"encoder": str(TINY), "audio_config": '{"d_model": 32}'}, "the parts do not fit .* audio_encoder"),
    ],
)
def test_parts_that_do_not_fit(decoder, tmp_path, damage, options, message):
    folder = tmp_path / "decoder"
    shutil.copytree(decoder, folder)
    if damage is not None:
        damage(folder)
    options = {name: str(folder) if value == "{decoder}" else value for name, value in options.items()}
    with pytest.raises(ConversionError, match=message):
        assemble(str(tmp_path / "target"), str(folder), **options)
    assert [path.name for path in tmp_path.iterdir()] == ["decoder"]


# ------------------------------------------------------------------------------------------------------------- scaffolding


def test_a_scaffold_has_the_released_layout(tmp_path):
    folder = scaffold(str(tmp_path / "tiny"))
    config = read(folder / "config.json")
    assert set(config["auto_map"]) == {"AutoConfig", "AutoProcessor"} and "audio_token_id" not in config
    assert not list(folder.glob("*.py"))
    assert {tensor.dtype for tensor in tensors_of(folder).values()} == {torch.bfloat16}
    assert {name: tuple(tensor.shape) for name, tensor in tensors_of(folder).items()} == tensor_manifest(
        MossAudioConfig(**config)
    )
    convert(str(folder), str(tmp_path / "native"))
    assert failures(tmp_path / "native") == []


def test_the_seed_decides_a_scaffold_however_it_is_cut(tmp_path):
    first = tensors_of(scaffold(str(tmp_path / "first"), seed=5))
    again = tensors_of(scaffold(str(tmp_path / "again"), seed=5, max_shard_size="100KB"))
    other = tensors_of(scaffold(str(tmp_path / "other"), seed=6))
    assert len(list((tmp_path / "again").glob("*.safetensors"))) > 5
    assert_same_tensors(first, again)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])


def test_the_made_up_tokenizer_of_the_large_sizes_has_the_released_ids(tmp_path, monkeypatch):
    monkeypatch.setattr("moss_audio.conversion.scaffold.write_shards", lambda *_: None)
    tokenizer = AutoTokenizer.from_pretrained(scaffold(str(tmp_path / "large"), size="4b"), trust_remote_code=False)
    released = AutoTokenizer.from_pretrained(QWEN3_TOKENIZER)
    assert len(tokenizer) == len(released) == 151669
    assert tokenizer.get_added_vocab() == released.get_added_vocab()
    assert len(tokenizer("0123456789")["input_ids"]) == 10


@pytest.mark.parametrize(
    "options, message",
    [
        ({"size": "2b"}, "`size` '2b' is none of tiny, 0.6b, 4b, 8b"),
        ({"dtype": "int4"}, "`dtype` 'int4'"),
        ({"seed": -1}, "`seed` -1"),
        ({"max_shard_size": "x"}, "`max_shard_size` 'x'"),
        ({"tokenizer": str(GOLDEN)}, "has no tokenizer"),
        ({"tokenizer": str(TINY)}, "ends before id 301"),
    ],
)
def test_scaffolds_that_cannot_be(tmp_path, options, message):
    with pytest.raises(ConversionError, match=message):
        scaffold(str(tmp_path / "target"), **options)
    assert not list(tmp_path.iterdir())
