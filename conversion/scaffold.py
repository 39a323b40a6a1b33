# Copyright 2026 The moss-audio authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""A checkpoint in the released layout with random weights: for tests and benchmarks at full size without the real ones."""

import shutil
from pathlib import Path
from typing import Any, Optional

from tokenizers.pre_tokenizers import ByteLevel

from moss_audio.configuration_moss_audio import RELEASED_8B_DECODER

from . import ConversionError
from .assemble import new_entries
from .convert import DEFAULT_SHARD_SIZE
from .manifest import parse_config, tensor_manifest
from .native import CONFIG, GENERATION_CONFIG, LICENSE_FILE, PROCESSOR_CONFIG, license_text, native_processor_config
from .progress import progress
from .target import Job, building, check_space, check_target, folder_identity, is_done, resolve
from .tokenizer import FILES, AudioIds, TokenizerFiles
from .weights import TYPES, parse_size, write_json, write_shards, write_text, written_shards


RELEASED_ENCODER = {
    "d_model": 1280,
    "output_dim": 1280,
    "num_mel_bins": 128,
    "encoder_layers": 32,
    "encoder_attention_heads": 20,
    "encoder_ffn_dim": 5120,
    "downsample_hidden_size": 480,
    "deepstack_encoder_layer_indexes": [8, 16, 24],
}
TINY_ENCODER = {
    **RELEASED_ENCODER,
    "d_model": 64,
    "output_dim": 64,
    "encoder_layers": 5,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 128,
    "downsample_hidden_size": 8,
    "deepstack_encoder_layer_indexes": [1, 2, 3],
}
# For each size: encoder, decoder, inner width of the adapters.
SIZES: dict[str, tuple[dict[str, Any], dict[str, Any], int]] = {
    "tiny": (
        TINY_ENCODER,
        {
            "vocab_size": 320,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "max_position_embeddings": 2048,
        },
        96,
    ),
    "0.6b": (
        RELEASED_ENCODER,
        {
            **RELEASED_8B_DECODER,
            "hidden_size": 1024,
            "intermediate_size": 3072,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
        },
        8192,
    ),
    "4b": (RELEASED_ENCODER, {**RELEASED_8B_DECODER, "hidden_size": 2560, "intermediate_size": 9728}, 8192),
    "8b": (RELEASED_ENCODER, RELEASED_8B_DECODER, 8192),
}
RELEASED_VOCAB_SIZE = 151936
FIRST_ADDED_ID = 151643  # of the released tokenizer

# Qwen3's added tokens in their order, and whether they are special.
ADDED_TOKENS = {
    **dict.fromkeys(("<|endoftext|>", "<|im_start|>", "<|im_end|>"), True),
    **dict.fromkeys(
        tuple(f"<|{name}_{end}|>" for name in ("object_ref", "box", "quad", "vision") for end in ("start", "end")),
        True,
    ),
    **dict.fromkeys(("<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"), True),
    **dict.fromkeys(("<tool_call>", "</tool_call>"), False),
    **dict.fromkeys(tuple(f"<|fim_{name}|>" for name in ("prefix", "middle", "suffix", "pad")), False),
    **dict.fromkeys(
        ("<|repo_name|>", "<|file_sep|>", "<tool_response>", "</tool_response>", "<think>", "</think>"), False
    ),
}


def scaffold(
    target: str,
    size: str = "tiny",
    seed: int = 0,
    dtype: str = "bfloat16",
    tokenizer: Optional[str] = None,
    max_shard_size: str = DEFAULT_SHARD_SIZE,
    overwrite: bool = False,
) -> Path:
    """
    Writes a checkpoint of a size in the released layout, with random weights, file by file.

    Args:
        target: the folder to make.
        size: "tiny" (0.4 M parameters), "0.6b" (the released encoder with a decoder of Qwen3-0.6B's sizes: 1.4 G), "4b"
            or "8b".
        seed: of the weights. Seed, size and dtype decide them, however they are cut into files.
        dtype: "bfloat16" as the released checkpoints, "float16" or "float32".
        tokenizer: folder with a Qwen3 tokenizer. By default one is made up that writes single bytes, with the released
            ids of added tokens for the large sizes. With a real one, "tiny" has the released vocabulary, too.
        max_shard_size: size of the files.
        overwrite: whether to replace a checkpoint that is there.

    Returns:
        The target's path.

    Raises:
        ConversionError: with what is wrong with an argument, or where the disk has no room.
    """
    _check_arguments(size, seed, dtype)
    path, limit = resolve(target), parse_size(max_shard_size)
    files = None if tokenizer is None else TokenizerFiles(Path(tokenizer).expanduser())
    inputs = {} if files is None else {"tokenizer": folder_identity(files.folder)}
    options = {"size": size, "seed": seed, "dtype": dtype, "max_shard_size": max_shard_size}
    job = Job("scaffold", inputs, options)
    if is_done(path, job):
        return path
    check_target(path, overwrite)
    made_up = files is None and size == "tiny"
    config = released_config(size, dtype, None if made_up else RELEASED_VOCAB_SIZE)
    if files is not None:
        files.name_audio_tokens(AudioIds())  # refuses a tokenizer that does not fit; the files are copied as they are
    parsed = parse_config(config)
    shards = written_shards(new_entries(parsed, tensor_manifest(parsed), {}, TYPES[dtype], seed), limit)
    check_space(path, sum(shard.space for shard in shards))
    with building(path, job) as work:
        write_json(work / CONFIG, config)
        if files is None:
            write_processor(work, size)
        else:
            _write_processor_config(work, AudioIds())
            _copy_tokenizer(files.folder, work)
        write_json(work / GENERATION_CONFIG, {"do_sample": False, **TokenizerFiles(work).ends})
        write_text(work / LICENSE_FILE, license_text())
        write_text(work / "README.md", f"A MOSS-Audio checkpoint of size {size} with random weights, for tests.\n")
        with progress(shards, path.name) as report:
            write_shards(work, shards, report)
    return path


def _check_arguments(size: str, seed: int, dtype: str):
    if size not in SIZES:
        raise ConversionError(f"`size` {size!r} is none of {', '.join(SIZES)}.")
    if dtype not in TYPES:
        raise ConversionError(f"`dtype` {dtype!r} is none of {', '.join(TYPES)}.")
    if seed < 0:
        raise ConversionError(f"`seed` {seed} must not be negative.")


def released_config(size: str, dtype: str, vocab_size: Optional[int] = None) -> dict[str, Any]:
    """The config.json of a released checkpoint of a size."""
    encoder, decoder, adapter = SIZES[size]
    decoder = {**decoder, **({} if vocab_size is None else {"vocab_size": vocab_size})}
    return {
        "architectures": ["MossAudioModel"],
        "model_type": "moss_audio",
        "auto_map": {
            "AutoConfig": "configuration_moss_audio.MossAudioConfig",
            "AutoProcessor": "processing_moss_audio.MossAudioProcessor",
        },
        "audio_config": {
            **encoder,
            "dropout": 0.1,
            "attention_dropout": 0.1,
            "activation_function": "gelu",
            "layer_norm_eps": 1e-5,
            "n_window": 200,
            "conv_chunksize": 64,
            "downsample_rate": 8,
            "encoder_attention_window_size": 100,
            "max_source_positions": 1500,
            "_attn_implementation": "eager",
            "pretrained_path": "",
        },
        "language_config": {
            "model_type": "qwen3",
            **decoder,
            "attention_bias": False,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-6,
            "rope_theta": 1000000.0,
            "tie_word_embeddings": False,
        },
        "adapter_hidden_size": adapter,
        "deepstack_num_inject_layers": 3,
        "ignore_index": -100,
        "dtype": dtype,
        "tie_word_embeddings": False,
        "transformers_version": "4.57.1",
    }


def write_processor(folder: Path, size: str):
    """The files of a processor for a size, around a made-up tokenizer that writes single bytes."""
    tiny = size == "tiny"
    _write_processor_config(folder, _small_ids() if tiny else AudioIds())
    write_byte_tokenizer(folder, 256 if tiny else FIRST_ADDED_ID)


def _write_processor_config(folder: Path, ids: AudioIds):
    """The released file: the keys of this project's that the released one has not are left out."""
    content = native_processor_config({}, ids, 0)
    for key in ("processor_class", "auto_map", "max_position_embeddings"):
        del content[key]
    write_json(folder / PROCESSOR_CONFIG, content)


def _small_id(name: str) -> int:
    return 256 + list(ADDED_TOKENS).index(name)


def _small_ids() -> AudioIds:
    """The audio tokens of the made-up tokenizer of the tiny size."""
    end = 256 + len(ADDED_TOKENS)
    return AudioIds(_small_id("<|vision_pad|>"), end, end + 1)


def write_byte_tokenizer(folder: Path, first_added_id: int):
    """A tokenizer that writes single bytes, with Qwen3's added tokens from an id on; ids between stand for nothing."""
    tokens = sorted(ByteLevel.alphabet())
    tokens += [f"<unused{index}>" for index in range(len(tokens), first_added_id)]
    flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
    added = {
        str(first_added_id + index): {"content": content, **flags, "special": special}
        for index, (content, special) in enumerate(ADDED_TOKENS.items())
    }
    write_json(folder / "vocab.json", {token: index for index, token in enumerate(tokens)})
    write_text(folder / "merges.txt", "#version: 0.2\n")
    special = [content for content, is_special in ADDED_TOKENS.items() if is_special]
    settings = {
        "add_prefix_space": False,
        "added_tokens_decoder": added,
        "additional_special_tokens": special[1:],
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "pad_token": "<|endoftext|>",
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    write_json(folder / "tokenizer_config.json", settings)


def _copy_tokenizer(source: Path, folder: Path):
    for name in FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
