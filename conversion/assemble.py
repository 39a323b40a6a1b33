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
"""New checkpoints from parts, and parts from checkpoints: a Qwen3 decoder and an audio encoder."""

import inspect
import json
import shutil
from pathlib import Path
from typing import Any, Optional

from transformers import Qwen3Config

from moss_audio.configuration_moss_audio import MossAudioConfig, MossAudioEncoderConfig, portable_rope

from . import ConversionError
from .card import write_card
from .convert import DEFAULT_SHARD_SIZE, optional_json, resulting_dtype
from .manifest import HEAD, LEFTOVER, Shape, compare, decoder_manifest, parse_config, tensor_manifest
from .native import (
    CONFIG,
    GENERATION_CONFIG,
    LICENSE_FILE,
    TEMPLATE_FILE,
    audio_ids,
    copy_code,
    license_text,
    write_native_files,
)
from .progress import progress
from .target import Job, building, check_space, check_target, folder_identity, is_done, resolve
from .tokenizer import FILES, TokenizerFiles
from .weights import (
    TYPES,
    Entry,
    Shard,
    Weights,
    check_dtypes,
    initial_entry,
    parse_size,
    read_json,
    read_weights,
    stored_entry,
    write_json,
    write_shards,
    write_text,
    written_shards,
)


ENCODER, DECODER = "audio_encoder.", "language_model."  # prefixes in a whole checkpoint
QWEN3 = "model."  # the decoder's prefix in a checkpoint of its own
DEFAULT_ADAPTER_SIZE = 8192


def assemble(
    target: str,
    decoder: str,
    encoder: Optional[str] = None,
    audio_config: Optional[str] = None,
    seed: int = 0,
    overwrite: bool = False,
) -> Path:
    """
    A new checkpoint from a Qwen3 decoder and an encoder; adapter and mergers are new.

    Args:
        target: the folder to make, in the native layout.
        decoder: folder of a Qwen3 checkpoint, of any size.
        encoder: folder of a MOSS-Audio checkpoint, or of an encoder that `extract` made. By default the encoder is new.
        audio_config: a JSON object, or a file that holds one, with values of `audio_config` that differ from the
            encoder's, or from the released ones where it is new.
        seed: of what is new.
        overwrite: whether to replace a checkpoint that is there.

    Returns:
        The target's path.

    Raises:
        ConversionError: with what does not fit, before anything is written.
    """
    path, changes = resolve(target), _parse_audio_config(audio_config)
    folders = {"decoder": _folder(decoder, "decoder")}
    if encoder is not None:
        folders["encoder"] = _folder(encoder, "encoder")
    identities = {role: folder_identity(folder) for role, folder in folders.items()}
    job = Job("assemble", identities, {"audio_config": changes, "seed": seed})
    if is_done(path, job):
        return path
    check_target(path, overwrite, tuple(folders.values()))

    decoder_config, decoder_weights = _read_decoder(folders["decoder"])
    dtype = resulting_dtype(decoder_config, decoder_weights, "keep")
    stored = {
        _joined_name(name): stored_entry(tensor, name=_joined_name(name))
        for name, tensor in decoder_weights.tensors.items()
    }
    base: dict[str, Any] = {}
    if encoder is not None:
        base, entries = _read_encoder(folders["encoder"], TYPES[dtype])
        stored.update(entries)
    tokenizer = TokenizerFiles(folders["decoder"])
    config = _joined_config(
        decoder_config, {**base, "audio_config": {**base.get("audio_config", {}), **changes}}, dtype
    )
    config.update(tokenizer.suggest_audio_ids()._asdict())
    ids = audio_ids(config, {})
    shards = _joined_shards(config, stored, TYPES[dtype], seed)
    check_space(path, sum(shard.space for shard in shards))
    generation_config = optional_json(folders["decoder"] / GENERATION_CONFIG)
    with building(path, job) as work:
        write_native_files(work, config, {}, generation_config, tokenizer, ids, dtype)
        write_card(work, model_id=path.name, source=path.name)
        with progress(shards, path.name) as report:
            write_shards(work, shards, report)
    return path


def extract(folder: str, target: str, part: str, overwrite: bool = False) -> Path:
    """
    A part of a checkpoint as a folder of its own, its tensors bit by bit the same.

    Args:
        folder: a MOSS-Audio checkpoint, released or converted.
        target: the folder to make.
        part: "decoder" for a plain `Qwen3ForCausalLM` with the tokenizer, "encoder" for a `MossAudioEncoder`, which
            `AutoModel` loads with `trust_remote_code=True`.
        overwrite: whether to replace a checkpoint that is there.

    Returns:
        The target's path.

    Raises:
        ConversionError: with what does not fit, before anything is written.
    """
    if part not in _PARTS:
        raise ConversionError(f"`part` {part!r} is none of {', '.join(_PARTS)}.")
    path, source = resolve(target), _folder(folder, "folder")
    job = Job("extract", {"files": folder_identity(source)}, {"part": part})
    if is_done(path, job):
        return path
    check_target(path, overwrite, (source,))
    config, weights = _read_whole(source)
    dtype = resulting_dtype(config, weights, "keep")
    rename, write_files = _PARTS[part]
    names = {name: new for name in weights.tensors if (new := rename(name)) is not None}
    entries = [stored_entry(weights.tensors[name], name=new) for name, new in names.items()]
    shards = written_shards(entries, parse_size(DEFAULT_SHARD_SIZE))
    check_space(path, sum(shard.space for shard in shards))
    with building(path, job) as work:
        write_files(source, work, config, dtype)
        write_text(work / LICENSE_FILE, license_text())
        with progress(shards, path.name) as report:
            write_shards(work, shards, report)
    return path


# ------------------------------------------------------------------------------------------------------------- reading


def _folder(name: str, argument: str) -> Path:
    folder = Path(name).expanduser()
    if not folder.is_dir():
        raise ConversionError(
            f"`{argument}` {name!r} is no folder; download a repository with `hf download {name}` first."
        )
    return folder.resolve()


def _parse_audio_config(text: Optional[str]) -> dict[str, Any]:
    """Values of `audio_config`, from JSON or from a file with it."""
    if text is None:
        return {}
    if not text.lstrip().startswith("{"):
        return read_json(Path(text).expanduser())
    try:
        return json.loads(text)
    except ValueError as error:
        raise ConversionError(f"`audio_config` {text!r} is neither a file nor a JSON object: {error}.") from error


def _read_decoder(folder: Path) -> tuple[dict[str, Any], Weights]:
    """Configuration and weights of a Qwen3 checkpoint."""
    config = read_json(folder / CONFIG)
    if config.get("model_type") != "qwen3":
        raise ConversionError(
            f"the decoder {folder} has `model_type` {config.get('model_type')!r}; it must be a dense Qwen3 checkpoint "
            "('qwen3'). From a MOSS-Audio checkpoint, `moss-audio extract` makes one."
        )
    weights = read_weights(folder)
    expected = {
        DECODER + name: shape for name, shape in decoder_manifest(Qwen3Config(**portable_rope(config))).items()
    }
    if not Qwen3Config(**portable_rope(config)).tie_word_embeddings:
        expected[HEAD] = expected[f"{DECODER}embed_tokens.weight"]
    for problem in compare({_joined_name(name): shape for name, shape in weights.shapes.items()}, expected):
        raise ConversionError(f"the weights of the decoder {folder} do not fit its config.json: {problem}.")
    check_dtypes(weights, folder)
    return config, weights


def _read_encoder(folder: Path, dtype: str) -> tuple[dict[str, Any], dict[str, Entry]]:
    """What an encoder's folder says about a whole checkpoint's configuration, and the encoder's tensors in it."""
    config = read_json(folder / CONFIG)
    if config.get("model_type") == MossAudioConfig.model_type:
        config, weights = _read_whole(folder)
        own = {
            name: tensor for name, tensor in weights.tensors.items() if name.startswith(ENCODER) and name != LEFTOVER
        }
        kept = ("audio_config", "adapter_hidden_size", "deepstack_num_inject_layers", "ignore_index")
        base = {key: config[key] for key in kept if key in config}
        return base, {name: stored_entry(tensor, dtype) for name, tensor in own.items()}
    if config.get("model_type") != MossAudioEncoderConfig.model_type:
        raise ConversionError(
            f"the encoder {folder} has `model_type` {config.get('model_type')!r}; it must be a MOSS-Audio checkpoint, or "
            "an encoder that `moss-audio extract --part encoder` made."
        )
    weights = read_weights(folder)
    check_dtypes(weights, folder)
    base = {"audio_config": {key: value for key, value in config.items() if key not in _FOLDER_KEYS}}
    return base, {
        ENCODER + name: stored_entry(tensor, dtype, ENCODER + name) for name, tensor in weights.tensors.items()
    }


def _read_whole(folder: Path) -> tuple[dict[str, Any], Weights]:
    """Configuration and weights of a MOSS-Audio checkpoint, checked."""
    config, weights = read_json(folder / CONFIG), read_weights(folder)
    for problem in compare(weights.shapes, tensor_manifest(parse_config(config, str(folder / CONFIG)))):
        raise ConversionError(f"the weights of {folder} do not fit its config.json: {problem}.")
    check_dtypes(weights, folder)
    return config, weights


# ------------------------------------------------------------------------------------------------------------- joining


# Of a folder rather than of the model in it.
_FOLDER_KEYS = (
    "_name_or_path",
    "architectures",
    "auto_map",
    "custom_pipelines",
    "dtype",
    "torch_dtype",
    "transformers_version",
)


def _joined_name(name: str) -> str:
    """The name in a whole checkpoint of a Qwen3 checkpoint's tensor."""
    return DECODER + name[len(QWEN3) :] if name.startswith(QWEN3) else name


def _joined_config(decoder: dict[str, Any], base: dict[str, Any], dtype: str) -> dict[str, Any]:
    """
    A config.json for a decoder and an encoder.

    Raises:
        ConversionError: where their values do not fit each other.
    """
    config = {
        "architectures": ["MossAudioModel"],
        "model_type": MossAudioConfig.model_type,
        "adapter_hidden_size": DEFAULT_ADAPTER_SIZE,
        "ignore_index": -100,
        **base,
        "language_config": {key: value for key, value in decoder.items() if key not in _FOLDER_KEYS},
        "dtype": dtype,
    }
    parsed = parse_config(config, "the joined configuration")
    encoder = parsed.audio_config
    named = [
        name
        for name in inspect.signature(MossAudioEncoderConfig.__init__).parameters
        if name not in ("self", "kwargs")
    ]
    config["audio_config"] = {**{name: getattr(encoder, name) for name in named}, **config["audio_config"]}
    config["deepstack_num_inject_layers"] = parsed.deepstack_num_inject_layers
    config["vocab_size"] = parsed.vocab_size
    return config


def _joined_shards(config: dict[str, Any], stored: dict[str, Entry], dtype: str, seed: int) -> list[Shard]:
    """
    The files of a whole checkpoint: tensors that there are, and new ones for the others.

    Raises:
        ConversionError: where those that there are do not fit.
    """
    parsed = parse_config(config)
    manifest = tensor_manifest(parsed)
    parts = [prefix for prefix in (ENCODER, DECODER) if any(name.startswith(prefix) for name in stored)]
    expected = {name: shape for name, shape in manifest.items() if name.startswith(tuple(parts))}
    found = {name: entry.shape for name, entry in stored.items()}
    for problem in compare(found, expected):
        raise ConversionError(f"the parts do not fit the configuration: {problem}.")
    return written_shards(
        new_entries(parsed, {**manifest, **found}, stored, dtype, seed), parse_size(DEFAULT_SHARD_SIZE)
    )


def new_entries(
    config: MossAudioConfig, shapes: dict[str, Shape], stored: dict[str, Entry], dtype: str, seed: int
) -> list[Entry]:
    """Tensors of these shapes: the stored ones, and the others as the model initialises them."""
    std = {ENCODER: config.audio_config.initializer_range, DECODER: config.language_config.initializer_range}
    entries = []
    for name, shape in shapes.items():
        spread = next((value for prefix, value in std.items() if name.startswith(prefix)), 0.02)
        entries.append(stored[name] if name in stored else initial_entry(name, shape, dtype, spread, seed))
    return entries


# -------------------------------------------------------------------------------------------------------------- parting


def _decoder_name(name: str) -> Optional[str]:
    """The name of a tensor in the decoder's own folder, None for those of other parts."""
    if name.startswith(DECODER):
        return QWEN3 + name[len(DECODER) :]
    return name if name == HEAD else None


def _encoder_name(name: str) -> Optional[str]:
    """The name of a tensor in the encoder's own folder, None for those of other parts and the buffer without effect."""
    return name[len(ENCODER) :] if name.startswith(ENCODER) and name != LEFTOVER else None


def _write_decoder_files(source: Path, work: Path, config: dict[str, Any], dtype: str):
    parsed = parse_config(config)
    language = {
        **portable_rope(config["language_config"]),
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "tie_word_embeddings": parsed.tie_word_embeddings,
        "dtype": dtype,
    }
    language.pop("torch_dtype", None)
    write_json(work / CONFIG, language)
    for name in (*FILES, GENERATION_CONFIG, TEMPLATE_FILE):
        if (source / name).is_file():
            shutil.copyfile(source / name, work / name)


def _write_encoder_files(source: Path, work: Path, config: dict[str, Any], dtype: str):
    references = {
        "AutoConfig": "configuration_moss_audio.MossAudioEncoderConfig",
        "AutoModel": "modeling_moss_audio.MossAudioEncoder",
    }
    encoder = {
        **{key: value for key, value in config["audio_config"].items() if key != "_attn_implementation"},
        "architectures": ["MossAudioEncoder"],
        "model_type": MossAudioEncoderConfig.model_type,
        "auto_map": references,
        "dtype": dtype,
    }
    encoder.pop("torch_dtype", None)
    write_json(work / CONFIG, encoder)
    copy_code(work)


_PARTS = {"decoder": (_decoder_name, _write_decoder_files), "encoder": (_encoder_name, _write_encoder_files)}
