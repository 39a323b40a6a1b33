"""`moss-audio convert`: what it makes, what it refuses, and that a target is there as a whole or not at all."""

import errno
import json
import os
import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer
from typer.testing import CliRunner

from moss_audio import MossAudioProcessor
from moss_audio.cli import app
from moss_audio.conversion import ConversionError, weights
from moss_audio.conversion.convert import convert, released_name
from moss_audio.conversion.manifest import LEFTOVER
from moss_audio.conversion.scaffold import scaffold
from moss_audio.conversion.target import CODE, MARKER, RECORD, package_file
from moss_audio.conversion.weights import format_size, parse_size
from tests.conversion_helpers import (
    DATA,
    GOLDEN,
    QWEN3_TOKENIZER,
    TINY,
    change,
    read,
    run_python,
    shard,
    tensors_of,
    waveform,
)


INDEX = "model.safetensors.index.json"
AUDIO = {"<|AUDIO|>": 151654, "<|audio_bos|>": 151669, "<|audio_eos|>": 151670}


@pytest.fixture
def source(tmp_path) -> Path:
    """The tiny checkpoint in the released layout, to be changed."""
    folder = tmp_path / "source"
    shutil.copytree(TINY, folder)
    return folder


@pytest.fixture
def target(tmp_path) -> Path:
    return tmp_path / "target"


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """What tells whether a file was written again."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.iterdir()}


def assert_nothing_written(target: Path):
    assert not target.exists()
    assert [path.name for path in target.parent.iterdir() if path.name.startswith(target.name)] == []


# ------------------------------------------------------------------------------------------------------- what it is for


USE = """
import json, torch, transformers
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForCausalLM, AutoProcessor, pipeline

cases = {}
for name, tensor in load_file(sys.argv[1]).items():
    case, _, name = name.partition(".")
    cases.setdefault(case, {})[name] = tensor
autos = [AutoModel, AutoModelForCausalLM, getattr(transformers, "AutoModelForMultimodalLM", AutoModel)]
for folder, auto in zip(sys.argv[2:], autos):
    model, info = auto.from_pretrained(folder, trust_remote_code=True, dtype="auto", output_loading_info=True)
    assert not any(info.values()), info
    for case in cases.values():
        names = ("input_ids", "attention_mask", "audio_data", "audio_data_seqlens")
        inputs = {name: case[name] for name in names if name in case}
        with torch.no_grad():
            logits = model.eval()(**inputs).logits[:, -24:]
        torch.testing.assert_close(logits, case["logits"], atol=1e-5, rtol=0)
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    inputs = processor(text="Describe this audio.", audio=torch.zeros(80000))
    assert processor.decode(inputs["input_ids"][0, -20:-10]), processor
    pipe = pipeline("audio-text-to-text", model=folder, trust_remote_code=True)
    assert set(pipe(torch.zeros(8000), max_new_tokens=2)) == {"generated_text", "reasoning"}
    print(type(model).__module__)
"""


def test_golden_logits_in_a_process_without_the_package(tmp_path):
    sharded, loose = tmp_path / "sharded", tmp_path / "loose"
    for folder in (sharded, loose):
        shutil.copytree(TINY, folder)
        shard(folder, 3, index=folder == sharded)
    for folder in (TINY, sharded, loose):
        convert(str(folder), str(tmp_path / f"native_{folder.name}"))
    natives = [tmp_path / f"native_{name}" for name in ("model_tiny", "sharded", "loose")]
    output = run_python(USE, GOLDEN / "cases.safetensors", *natives, cwd=tmp_path)
    assert all(line.startswith("transformers_modules.") for line in output.split()) and len(output.split()) == 3


PROCESS = """
import json
import numpy as np
from transformers import AutoProcessor

processor = AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)
clips = dict(np.load(sys.argv[2]))
rows = []
for case in json.loads(sys.argv[3]):
    sounds = [clips[f"{clip['seed']}_{clip['samples']}"] for clip in case["clips"]]
    for markers in (True, False):
        inputs = processor(text=case["text"], audio=sounds, enable_time_marker=markers)
        rows.append(inputs["input_ids"][0].tolist())
print(json.dumps(rows))
"""


def test_golden_ids_of_a_scaffold_with_the_real_tokenizer(tmp_path):
    cases = read(GOLDEN / "processor_cases.json")["cases"]
    scaffold(str(tmp_path / "released"), tokenizer=str(QWEN3_TOKENIZER), max_shard_size="10MB")
    convert(str(tmp_path / "released"), str(tmp_path / "native"))
    clips = {(clip["seed"], clip["samples"]) for case in cases for clip in case["clips"]}
    np.savez(tmp_path / "clips.npz", **{f"{seed}_{samples}": waveform(seed, samples) for seed, samples in clips})
    output = run_python(PROCESS, tmp_path / "native", tmp_path / "clips.npz", json.dumps(cases), cwd=tmp_path)
    expected = [
        [token for token, count in case[f"input_ids_rle_{kind}"] for _ in range(count)]
        for case in cases
        for kind in ("time_markers", "no_markers")
    ]
    assert json.loads(output.splitlines()[-1]) == expected


def test_the_target_holds_what_it_should(target):
    assert convert(str(TINY), str(target)) == target.resolve()
    assert {path.name for path in target.iterdir()} == {
        *CODE,
        "LICENSE",
        "README.md",
        "chat_template.jinja",
        "config.json",
        RECORD,
        "generation_config.json",
        "merges.txt",
        "model.safetensors",
        "processor_config.json",
        "tokenizer_config.json",
        "vocab.json",
    }
    assert (target / "model.safetensors").read_bytes() == (TINY / "model.safetensors").read_bytes()
    assert LEFTOVER in tensors_of(target)
    assert all((target / name).read_bytes() == package_file(name).read_bytes() for name in CODE)
    assert (target / "LICENSE").read_text(encoding="utf-8") == (DATA.parents[1] / "LICENSE").read_text(
        encoding="utf-8"
    )
    assert not any(str(TINY.parent) in path.read_text(encoding="utf-8") for path in target.glob("*.json"))


def test_config_keeps_all_released_keys_and_gets_the_missing_ones(source, target):
    change(source / "config.json", audio_token_id=None, audio_start_id=None, audio_end_id=None, custom={"kept": [1]})
    convert(str(source), str(target))
    before, after = read(source / "config.json"), read(target / "config.json")
    for key in set(before) - {"auto_map", "language_config"}:
        assert after[key] == before[key], key
    assert before["language_config"].items() <= after["language_config"].items()
    assert after["language_config"]["rope_parameters"] == {"rope_theta": 1e6, "rope_type": "default"}
    assert [after[key] for key in ("audio_token_id", "audio_start_id", "audio_end_id")] == [300, 301, 302]
    model = "modeling_moss_audio.MossAudioModel"
    assert after["auto_map"] == {
        "AutoConfig": "configuration_moss_audio.MossAudioConfig",
        "AutoModel": model,
        "AutoModelForCausalLM": model,
        "AutoModelForMultimodalLM": model,
        "AutoProcessor": "processing_moss_audio.MossAudioProcessor",
    }
    assert after["custom_pipelines"]["audio-text-to-text"]["pt"] == ["AutoModel"]


def test_processor_config_is_written_out_with_integers(source, target):
    mel = {"mel_sr": 16000.0, "mel_dim": 128.0, "mel_n_fft": "400"}
    change(source / "processor_config.json", mel_config=mel, enable_time_marker=None, extra=1)
    convert(str(source), str(target))
    assert read(target / "processor_config.json") == {
        "enable_time_marker": True,
        "audio_token_id": 300,
        "audio_start_id": 301,
        "audio_end_id": 302,
        "extra": 1,
        "max_position_embeddings": 2048,
        "processor_class": "MossAudioProcessor",
        "auto_map": {"AutoProcessor": "processing_moss_audio.MossAudioProcessor"},
        "mel_config": {
            "mel_sr": 16000,
            "mel_dim": 128,
            "mel_n_fft": 400,
            "mel_hop_length": 160,
            "mel_dtype": "bfloat16",
            "use_whisper_feature_extractor": True,
        },
    }
    assert '"mel_sr": 16000,' in (target / "processor_config.json").read_text(encoding="utf-8")


def test_generation_config_is_kept_or_made(source, target, tmp_path):
    change(
        source / "generation_config.json",
        do_sample=True,
        temperature=0.7,
        max_new_tokens=None,
        eos_token_id=[295, 293],
    )
    convert(str(source), str(target))
    expected = {
        "do_sample": True,
        "temperature": 0.7,
        "max_new_tokens": 1024,
        "eos_token_id": [295, 293],
        "pad_token_id": 293,
    }
    assert read(target / "generation_config.json") == expected
    (source / "generation_config.json").unlink()
    convert(str(source), str(tmp_path / "made"))
    expected = {"do_sample": False, "max_new_tokens": 1024, "eos_token_id": 295, "pad_token_id": 293}
    assert read(tmp_path / "made" / "generation_config.json") == expected


# --------------------------------------------------------------------------------------------------------- the tokenizer


TEXTS = [
    "<|im_start|>user\nWas ist das? 你好, été 12345\n\n  x<|im_end|>",
    "<think>\nhm\n</think> <tool_call>{}</tool_call><|vision_start|><|image_pad|><|vision_end|><|endoftext|>",
]


def fast_only(folder: Path):
    """As Transformers 5 saves it: one file for the tokens, and a list under a name that version 4 wants a dict in."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    special = list(read(folder / "tokenizer_config.json")["additional_special_tokens"])
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        (folder / name).unlink()
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "backend": "tokenizers",
        "eos_token": "<|im_end|>",
        "extra_special_tokens": special,
        "pad_token": "<|endoftext|>",
        "tokenizer_class": "Qwen2Tokenizer",
        "chat_template": "{{ messages }}",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


def everything(folder: Path):
    """As Transformers 4 saves it: the same tokens in five files."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    settings = read(folder / "tokenizer_config.json")
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    added = {token["content"]: int(token_id) for token_id, token in settings["added_tokens_decoder"].items()}
    (folder / "added_tokens.json").write_text(json.dumps(added), encoding="utf-8")
    special = {name: settings[name] for name in ("additional_special_tokens", "pad_token")}
    special["eos_token"] = settings["added_tokens_decoder"]["151645"]
    (folder / "special_tokens_map.json").write_text(json.dumps(special), encoding="utf-8")


def padded_with_the_audio_token(folder: Path):
    """As some redistributed Qwen3 checkpoints are."""
    change(folder / "tokenizer_config.json", pad_token="<|vision_pad|>")


def bare(folder: Path):
    """Nothing but the one file."""
    fast_only(folder)
    (folder / "tokenizer_config.json").unlink()


def in_the_vocabulary(folder: Path):
    """Some tokenizers list added tokens among the others, too."""
    everything(folder)
    added = read(folder / "added_tokens.json")
    change(folder / "vocab.json", **added)
    content = read(folder / "tokenizer.json")
    content["model"]["vocab"].update(added)
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")


@pytest.fixture(scope="module")
def released(tmp_path_factory) -> Path:
    """A tiny checkpoint with the real tokenizer. Not to be changed."""
    folder = tmp_path_factory.mktemp("released") / "checkpoint"
    return scaffold(str(folder), tokenizer=str(QWEN3_TOKENIZER))


@pytest.mark.parametrize(
    "change_files", [None, fast_only, everything, padded_with_the_audio_token, bare, in_the_vocabulary]
)
def test_audio_tokens_get_their_names_and_nothing_else_changes(released, tmp_path, change_files):
    folder = tmp_path / "released"
    shutil.copytree(released, folder)
    before = AutoTokenizer.from_pretrained(QWEN3_TOKENIZER)
    if change_files is not None:
        change_files(folder)
    convert(str(folder), str(tmp_path / "native"), link=True)
    after = AutoTokenizer.from_pretrained(tmp_path / "native", trust_remote_code=False)
    expected = before.get_vocab()
    del expected["<|vision_pad|>"]
    assert after.get_vocab() == {**expected, **AUDIO}
    for text in TEXTS:
        assert after(text)["input_ids"] == before(text)["input_ids"]
    assert after("".join(AUDIO))["input_ids"] == list(AUDIO.values())
    assert set(AUDIO) <= set(after.all_special_tokens)
    assert (after.pad_token, after.eos_token) == ("<|endoftext|>", "<|im_end|>")
    assert MossAudioProcessor.from_pretrained(tmp_path / "native").audio_token == "<|AUDIO|>"
    written = [path.read_text(encoding="utf-8") for path in (tmp_path / "native").glob("*token*.json")]
    assert not any("<|vision_pad|>" in text for text in written)


def test_a_converted_folder_converts_to_the_same(released, tmp_path):
    convert(str(released), str(tmp_path / "once"), link=True)
    convert(str(tmp_path / "once"), str(tmp_path / "twice"), link=True)
    differing = {
        path.name
        for path in (tmp_path / "once").iterdir()
        if path.read_bytes() != (tmp_path / "twice" / path.name).read_bytes()
    }
    assert differing == {RECORD, "README.md"}


# ----------------------------------------------------------------------------------------------------------- the weights


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_dtype_is_cast_as_torch_casts(dtype, source, target):
    shard(source, 2)
    convert(str(source), str(target), dtype=dtype)
    before, after = tensors_of(source), tensors_of(target)
    assert before.keys() == after.keys()
    for name, tensor in after.items():
        expected = before[name] if name == LEFTOVER else before[name].to(getattr(torch, dtype))
        assert tensor.dtype == expected.dtype and torch.equal(tensor, expected), name
    assert read(target / "config.json")["dtype"] == dtype


def test_the_dtype_that_it_has_is_copied(target):
    convert(str(TINY), str(target), dtype="float32")
    assert (target / "model.safetensors").read_bytes() == (TINY / "model.safetensors").read_bytes()


def test_all_names_of_the_dtype_follow(source, target):
    config = read(source / "config.json")
    change(
        source / "config.json",
        torch_dtype="float32",
        language_config={**config["language_config"], "dtype": "float32"},
    )
    convert(str(source), str(target), dtype="bfloat16")
    config = read(target / "config.json")
    assert config["dtype"] == config["torch_dtype"] == config["language_config"]["dtype"] == "bfloat16"
    assert "dtype" not in config["audio_config"]


def test_files_are_cut_on_request_and_bits_stay(source, target):
    convert(str(source), str(target), max_shard_size="500KB")
    files = sorted(target.glob("*.safetensors"))
    assert [path.name for path in files] == [
        f"model-{n:05d}-of-{len(files):05d}.safetensors" for n in range(1, len(files) + 1)
    ]
    assert len(files) == 4
    for path in files:
        assert sum(tensor.nbytes for tensor in load_file(path).values()) <= 500_000
    before, after = tensors_of(source), tensors_of(target)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    index = read(target / INDEX)
    assert set(index["weight_map"]) == set(before)
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in before.values())


def test_links_are_the_same_files(source, target):
    shard(source, 2)
    convert(str(source), str(target), link=True)
    for path in source.glob("*.safetensors"):
        assert os.path.samefile(path, target / path.name)


def test_a_file_that_is_not_marked_as_pytorchs_is_written_anew(source, target):
    tensors = load_file(source / "model.safetensors")
    save_file(tensors, source / "model.safetensors", metadata={"format": "np"})
    convert(str(source), str(target))
    with safe_open(target / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in tensors_of(target).items())


def test_a_single_file_gets_the_name_that_loaders_look_for(source, target):
    (source / "model.safetensors").rename(source / "weights.safetensors")
    convert(str(source), str(target))
    assert (target / "model.safetensors").is_file() and not (target / INDEX).exists()


def test_memory_does_not_grow_with_a_tensor(source, target, monkeypatch):
    """No piece of a tensor that is read or written is larger than a block."""
    monkeypatch.setattr(weights, "BLOCK_BYTES", 4096)
    largest = []
    write = weights.write_safetensors
    monkeypatch.setattr(weights, "write_safetensors", lambda path, group, report: write(path, group, largest.append))
    convert(str(source), str(target), dtype="bfloat16")
    assert 0 < max(largest) <= 4096
    assert all(tensor.dtype == torch.bfloat16 for name, tensor in tensors_of(target).items() if name != LEFTOVER)


# ---------------------------------------------------------------------------------------------------------- what it refuses


def edit_tensors(folder: Path, **changed):
    """Sets tensors by name, dots written as double underscores; None removes one."""
    path = folder / "model.safetensors"
    tensors = {**load_file(path), **{name.replace("__", "."): tensor for name, tensor in changed.items()}}
    save_file(
        {name: tensor for name, tensor in tensors.items() if tensor is not None}, path, metadata={"format": "pt"}
    )


def another_model(folder):
    change(folder / "config.json", model_type="qwen3", architectures=["Qwen3ForCausalLM"])


def no_config(folder):
    (folder / "config.json").unlink()


def broken_config(folder):
    (folder / "config.json").write_text("{", encoding="utf-8")


def impossible_config(folder):
    change(folder / "config.json", deepstack_num_inject_layers=7)


def missing_shard(folder):
    shard(folder, 3)
    (folder / "model-00002-of-00003.safetensors").unlink()


def missing_shard_without_index(folder):
    shard(folder, 3, index=False)
    (folder / "model-00003-of-00003.safetensors").unlink()


def truncated(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def git_lfs_pointer(folder):
    (folder / "model.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\n", encoding="utf-8"
    )


def pickle(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def no_weights(folder):
    (folder / "model.safetensors").unlink()


def unknown_tensor(folder):
    edit_tensors(folder, lm_head__lora=torch.zeros(2))


def missing_tensor(folder):
    edit_tensors(folder, lm_head__weight=None)


def wrong_shape(folder):
    edit_tensors(folder, lm_head__weight=torch.zeros(319, 64))


def wrong_dtype(folder):
    edit_tensors(folder, lm_head__weight=torch.zeros(320, 64, dtype=torch.int8))


def another_dtype_than_named(folder):
    change(folder / "config.json", dtype="bfloat16")


def index_astray(folder):
    shard(folder, 2)
    index = read(folder / INDEX)
    first, second = index["weight_map"]["lm_head.weight"], sorted(set(index["weight_map"].values()))
    index["weight_map"]["lm_head.weight"] = next(name for name in second if name != first)
    (folder / INDEX).write_text(json.dumps(index), encoding="utf-8")


def index_outside(folder):
    (folder / INDEX).write_text(json.dumps({"weight_map": {"lm_head.weight": "../x.safetensors"}}), encoding="utf-8")


def twice(folder):
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    save_file({"lm_head.weight": torch.zeros(320, 64)}, folder / "b.safetensors")


def no_tokenizer(folder):
    (folder / "merges.txt").unlink()


def truncated_tokenizer(folder):
    (folder / "tokenizer.json").write_text('{"added_tokens": [], "model": {"vocab"', encoding="utf-8")


def no_bpe_tokenizer(folder):
    (folder / "tokenizer.json").write_text('{"added_tokens": [], "model": {"vocab": []}}', encoding="utf-8")
    (folder / "vocab.json").unlink()


def another_tokenizer(folder):
    change(folder / "processor_config.json", audio_start_id=310)
    change(folder / "config.json", audio_start_id=310)


def taken_id(folder):
    change(folder / "processor_config.json", audio_token_id=299)
    change(folder / "config.json", audio_token_id=299)


def disagreeing_ids(folder):
    change(folder / "processor_config.json", audio_token_id=299)


def id_beyond_embeddings(folder):
    change(folder / "processor_config.json", audio_end_id=320)
    change(folder / "config.json", audio_end_id=None)


def fractional_mel(folder):
    change(folder / "processor_config.json", mel_config={"mel_dim": 127.5})


@pytest.mark.parametrize(
    "damage, message",
    [
        (another_model, r"`model_type` 'qwen3' and `architectures` \['Qwen3ForCausalLM'\]"),
        (no_config, "has no config.json"),
        (broken_config, "config.json cannot be read as JSON"),
        (impossible_config, "`deepstack_num_inject_layers` 7 must be between 0"),
        (missing_shard, "lacks 1 of the 3 files .* model-00002-of-00003.safetensors"),
        (missing_shard_without_index, "lacks 1 of 00003 files: model-00003-of-00003.safetensors"),
        (truncated, "is no whole safetensors file"),
        (git_lfs_pointer, "pointer of Git LFS"),
        (pickle, r"pickles \(pytorch_model.bin\)"),
        (no_weights, "holds no weights"),
        (unknown_tensor, "1 tensors do not belong to this configuration: lm_head.lora"),
        (missing_tensor, "1 of 144 tensors are missing: lm_head.weight"),
        (wrong_shape, r"lm_head.weight is \(319, 64\), not \(320, 64\)"),
        (wrong_dtype, "lm_head.weight is I8"),
        (another_dtype_than_named, "`dtype` 'bfloat16', but the tensors are float32: pass --dtype"),
        (index_astray, "names tensors that are not in their files: lm_head.weight"),
        (index_outside, "names files outside of the folder"),
        (twice, "lm_head.weight is both in a.safetensors and in b.safetensors"),
        (no_tokenizer, "has no tokenizer"),
        (truncated_tokenizer, "tokenizer.json is not whole"),
        (no_bpe_tokenizer, "has no `vocab`: it is not the file of a BPE tokenizer"),
        (another_tokenizer, "ends before id 301"),
        (taken_id, "has '</think>' at 299"),
        (disagreeing_ids, "has `audio_token_id` 299, config.json 300"),
        (id_beyond_embeddings, "lies beyond the decoder's `vocab_size` 320"),
        (fractional_mel, "`mel_config.mel_dim` 127.5"),
    ],
)
def test_a_source_that_does_not_fit_is_refused_before_anything_is_written(source, target, damage, message):
    damage(source)
    with pytest.raises(ConversionError, match=message):
        convert(str(source), str(target))
    assert_nothing_written(target)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"dtype": "int8"}, "`dtype` 'int8' is none of keep"),
        ({"revision": "main"}, "`revision` 'main' is for the Hub"),
        ({"max_shard_size": "large"}, "`max_shard_size` 'large' is no size"),
        ({"link": True, "dtype": "bfloat16"}, "--link cannot be used, because --dtype bfloat16 changes"),
        ({"link": True, "max_shard_size": "1MB"}, "--link cannot be used, because model.safetensors is larger"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_anything_is_written(target, options, message):
    with pytest.raises(ConversionError, match=message):
        convert(str(TINY), str(target), **options)
    assert_nothing_written(target)


def test_a_value_beyond_float16_is_refused_and_leaves_nothing(source, target):
    edit_tensors(source, lm_head__weight=torch.full((320, 64), 7e4))
    with pytest.raises(ConversionError, match="lm_head.weight holds 70000, beyond float16's largest number 65504"):
        convert(str(source), str(target), dtype="float16")
    assert_nothing_written(target)


def test_infinity_stays_infinity(source, target):
    edit_tensors(source, lm_head__weight=torch.full((320, 64), torch.inf))
    convert(str(source), str(target), dtype="float16")
    assert tensors_of(target)["lm_head.weight"].isinf().all()


def test_a_full_disk_leaves_nothing(target, monkeypatch):
    def fill(source, path, report):
        path.write_bytes(b"some")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("moss_audio.conversion.convert.copy_file", fill)
    with pytest.raises(ConversionError, match="the disk of .* is full"):
        convert(str(TINY), str(target))
    assert_nothing_written(target)


def test_too_little_space_is_known_before(target, monkeypatch):
    Usage = namedtuple("Usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 10**9, 10**6))
    with pytest.raises(ConversionError, match="needs 51.8 MB, and its disk has 1.0 MB free"):
        convert(str(TINY), str(target))
    assert_nothing_written(target)


def test_a_link_that_cannot_be_made_is_an_error_and_leaves_nothing(target, monkeypatch):
    def refuse(source, path):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(ConversionError, match="cannot be linked .* pass --copy"):
        convert(str(TINY), str(target), link=True)
    assert_nothing_written(target)


# ------------------------------------------------------------------------------------------------------ whole or not at all


KILLED = """
import os
import moss_audio.conversion.convert as module

copy, copied = module.copy_file, []
def copy_or_die(source, path, report):
    if copied:
        path.write_bytes(source.read_bytes()[:1000])
        os._exit(9)
    copied.append(path)
    copy(source, path, report)
module.copy_file = copy_or_die
try:
    module.convert(sys.argv[1], sys.argv[2])
finally:
    os._exit(1)
"""


def test_a_killed_conversion_leaves_no_target_and_is_gone_on_with(source, target, tmp_path):
    shard(source, 3)
    with pytest.raises(AssertionError):
        run_python(KILLED, source, target, cwd=tmp_path, blocked=())
    work = tmp_path / "target.incomplete"
    assert not target.exists()
    assert "incomplete" in read(work / MARKER)["note"]
    done = snapshot(work)["model-00001-of-00003.safetensors"]
    assert (work / "model-00002-of-00003.safetensors.part").exists()
    convert(str(source), str(target))
    assert snapshot(target)["model-00001-of-00003.safetensors"] == done
    assert not work.exists() and not (target / MARKER).exists() and not list(target.glob("*.part"))
    before, after = tensors_of(source), tensors_of(target)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_an_interruption_keeps_what_is_done(source, target, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("moss_audio.conversion.convert.copy_file", interrupt)
        result = CliRunner().invoke(app, ["convert", str(source), str(target)])
    assert result.exit_code == 130 and "the same command goes on" in result.output
    assert not target.exists() and (tmp_path / "target.incomplete" / MARKER).exists()
    convert(str(source), str(target))
    assert not (tmp_path / "target.incomplete").exists()


def test_what_another_job_left_is_not_gone_on_with(target, tmp_path):
    work = tmp_path / "target.incomplete"
    work.mkdir()
    (work / MARKER).write_text("{", encoding="utf-8")
    (work / "model.safetensors").write_bytes(b"of another")
    convert(str(TINY), str(target))
    assert (target / "model.safetensors").read_bytes() == (TINY / "model.safetensors").read_bytes()
    assert not work.exists()


def test_a_complete_target_of_the_same_call_is_left(source, target):
    convert(str(source), str(target), dtype="bfloat16")
    before = snapshot(target)
    convert(str(source), str(target), dtype="bfloat16")
    convert(str(source), str(target), dtype="bfloat16", overwrite=True)
    assert snapshot(target) == before


def other_options(source, target):
    return {"dtype": "float16"}


def other_source(source, target):
    change(source / "processor_config.json", enable_time_marker=False)
    return {}


def other_weights(source, target):
    os.utime(source / "model.safetensors", ns=(1, 1))
    return {}


def other_code(source, target):
    record = read(target / RECORD)
    change(target / RECORD, code={**record["code"], CODE[0]: "0"})
    return {}


def no_record(source, target):
    (target / RECORD).unlink()
    return {}


def incomplete(source, target):
    (target / MARKER).write_text("{}", encoding="utf-8")
    return {}


@pytest.mark.parametrize("difference", [other_options, other_source, other_weights, other_code, no_record, incomplete])
def test_any_other_target_needs_overwrite(source, target, difference):
    convert(str(source), str(target))
    (target / "mine.txt").write_text("mine", encoding="utf-8")
    options = difference(source, target)
    before = snapshot(target)
    with pytest.raises(ConversionError, match="exists, .* pass --overwrite"):
        convert(str(source), str(target), **options)
    assert snapshot(target) == before
    convert(str(source), str(target), overwrite=True, **options)
    assert not (target / "mine.txt").exists() and not (target / MARKER).exists()
    assert sorted(path.name for path in target.parent.iterdir()) == ["source", "target"]


def test_overwriting_deletes_checkpoints_only(target):
    target.mkdir()
    convert(str(TINY), str(target))  # an empty folder may be filled
    shutil.rmtree(target)
    target.mkdir()
    (target / "thesis.txt").write_text("years of work", encoding="utf-8")
    with pytest.raises(ConversionError, match="is no checkpoint: --overwrite deletes nothing else"):
        convert(str(TINY), str(target), overwrite=True)
    assert (target / "thesis.txt").read_text(encoding="utf-8") == "years of work"


def test_a_source_is_never_overwritten(source, tmp_path):
    before = snapshot(source)
    for target in (source, tmp_path):
        with pytest.raises(ConversionError, match="holds the source"):
            convert(str(source), str(target), overwrite=True)
    assert snapshot(source) == before


def test_a_failed_replacement_leaves_the_old_target(source, target, monkeypatch):
    convert(str(source), str(target))
    before = snapshot(target)
    edit_tensors(source, lm_head__weight=torch.full((320, 64), 7e4))
    with pytest.raises(ConversionError, match="beyond float16's"):
        convert(str(source), str(target), dtype="float16", overwrite=True)
    assert snapshot(target) == before


# ------------------------------------------------------------------------------------------------------------ the command


def test_the_command(target):
    result = CliRunner().invoke(app, ["convert", str(TINY), str(target), "--dtype", "bfloat16"])
    assert result.exit_code == 0, result.output
    assert f"{target.resolve()} is complete" in result.output
    result = CliRunner().invoke(app, ["convert", str(TINY), str(target)])
    assert result.exit_code == 2
    assert "moss-audio: the target" in result.output and "--overwrite" in result.output


def test_help_names_all_commands():
    output = CliRunner().invoke(app, ["--help"]).output
    for command in ("ask", "convert", "verify", "assemble", "extract", "scaffold"):
        assert f" {command} " in output
        assert CliRunner().invoke(app, [command, "--help"]).exit_code == 0


@pytest.mark.parametrize(
    "text, size",
    [("5GB", 5 * 10**9), ("500 MB", 5 * 10**8), ("2GiB", 2 * 2**30), ("1.5kb", 1500), ("7B", 7)],
)
def test_sizes_are_read(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "5", "GB", "-1GB", "0GB", "5 apples"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ConversionError, match="is no size"):
        parse_size(text)


def test_sizes_are_written_for_readers():
    assert [format_size(size) for size in (12, 1234, 5_300_000, 10.45e9)] == [
        "12 bytes",
        "1.2 KB",
        "5.3 MB",
        "10.45 GB",
    ]


@pytest.mark.parametrize(
    "text, name",
    [
        ("OpenMOSS-Team/MOSS-Audio-4B-Instruct", "MOSS-Audio-4B-Instruct"),
        ("/cache/models--OpenMOSS-Team--MOSS-Audio-8B-Thinking/snapshots/0", "MOSS-Audio-8B-Thinking"),
        (r"C:\checkpoints\MOSS-Audio-4B-Thinking", "MOSS-Audio-4B-Thinking"),
        ("/data/MOSS-Audio-4B-Instruct-finetuned", None),
        ("/data/other", None),
    ],
)
def test_released_names_are_recognised(text, name):
    assert released_name(text) == name
