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
"""A released repository into a native folder: the same weights, and beside them all that makes them load by themselves."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from moss_audio.configuration_moss_audio import decoder_positions

from . import ConversionError
from .card import write_card
from .manifest import LEFTOVER, compare, parse_config, tensor_manifest
from .native import CONFIG, GENERATION_CONFIG, PROCESSOR_CONFIG, audio_ids, native_processor_config, write_native_files
from .progress import progress
from .target import Job, building, check_space, check_target, folder_identity, is_done, resolve
from .tokenizer import AudioIds, TokenizerFiles
from .weights import (
    NAMES,
    TYPES,
    Shard,
    Weights,
    check_dtypes,
    copy_file,
    kept_shards,
    link_file,
    parse_size,
    read_json,
    read_weights,
    stored_entry,
    write_shards,
    written_shards,
)


DEFAULT_SHARD_SIZE = "5GB"  # of files that are written anew
SMALL_FILES = ["*.json", "*.txt", "*.jinja", "LICENSE", "README.md"]


@dataclass(frozen=True)
class Source:
    """A released checkpoint, checked: everything that can be known before something is written."""

    folder: Path
    name: str  # that its model card goes by
    config: dict[str, Any]
    processor_config: dict[str, Any]
    generation_config: Optional[dict[str, Any]]
    weights: Weights
    tokenizer: TokenizerFiles
    ids: AudioIds
    identity: dict[str, Any]


def convert(
    source: str,
    target: str,
    revision: Optional[str] = None,
    dtype: str = "keep",
    link: bool = False,
    max_shard_size: Optional[str] = None,
    overwrite: bool = False,
) -> Path:
    """
    Makes a folder that the Auto classes and the pipeline load with `trust_remote_code=True`, and nothing else installed.

    Args:
        source: a folder in the released layout, or the id of a repository on the Hub.
        target: the folder to make.
        revision: branch, tag or commit of a repository on the Hub.
        dtype: "bfloat16", "float16" or "float32" to cast the weights, "keep" to leave them.
        link: whether files that need no change become second names of the source's files instead of copies.
        max_shard_size: size of the files, like "5GB": larger ones of the source are cut. By default the source's files
            stay as they are, and files that are written anew have at most 5 GB.
        overwrite: whether to replace a checkpoint that is there.

    Returns:
        The target's path. One that is the complete result of the same call is left as it is.

    Raises:
        ConversionError: with what is wrong, before anything is written where that can be known.
    """
    if dtype != "keep" and dtype not in TYPES:
        raise ConversionError(f"`dtype` {dtype!r} is none of keep, {', '.join(TYPES)}.")
    limit = None if max_shard_size is None else parse_size(max_shard_size)
    path = resolve(target)
    folder, origin = fetch(source, revision)
    job = Job("convert", origin, {"dtype": dtype, "link": link, "max_shard_size": max_shard_size})
    if is_done(path, job):
        return path
    check_target(path, overwrite, (folder,))
    checked = read_source(folder, source, origin, dtype)
    shards = plan(checked.weights, TYPES.get(dtype), limit, link)
    check_space(path, sum(shard.space for shard in shards))
    with building(path, job) as work:
        write_native_files(
            work,
            checked.config,
            checked.processor_config,
            checked.generation_config,
            checked.tokenizer,
            checked.ids,
            resulting_dtype(checked.config, checked.weights, dtype),
        )
        write_card(work, model_id=path.name, source=checked.name)
        with progress(shards, path.name) as report:
            write_shards(work, shards, report)
    return path


# -------------------------------------------------------------------------------------------------------------- source


def fetch(source: str, revision: Optional[str] = None) -> tuple[Path, dict[str, Any]]:
    """
    The folder of a checkpoint, downloaded if need be, and what tells its contents from any other's.

    Raises:
        ConversionError: where there is neither such a folder nor such a repository, or it is another model.
    """
    local = Path(source).expanduser()
    if local.is_dir():
        if revision is not None:
            raise ConversionError(f"`revision` {revision!r} is for the Hub; the source {source} is a local folder.")
        return local.resolve(), {"files": folder_identity(local)}
    if local.exists():
        raise ConversionError(f"the source {source} is a file; name the folder that holds config.json.")
    # What the small files tell is checked before gigabytes are downloaded.
    folder = _download(source, revision, SMALL_FILES)
    parse_config(read_json(folder / CONFIG), f"config.json of {source}")
    commit = folder.name  # a branch may move between the two downloads
    return _download(source, commit, [*SMALL_FILES, "*.safetensors"]), {"repository": source, "commit": commit}


def _download(source: str, revision: Optional[str], patterns: list[str]) -> Path:
    try:
        return Path(huggingface_hub.snapshot_download(source, revision=revision, allow_patterns=patterns))
    except HFValidationError as error:
        raise ConversionError(
            f"the source {source!r} is no folder here, and no id of a repository on the Hub."
        ) from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ConversionError(
            f"the source {source!r} is no folder here, and cannot be downloaded from the Hub"
            f"{f' at revision {revision!r}' if revision else ''}: {str(error).strip().splitlines()[0]}"
        ) from error


def read_source(folder: Path, source: str, identity: dict[str, Any], dtype: str = "keep") -> Source:
    """
    Reads and checks a checkpoint: configuration, tensors (by the headers of their files), tokenizer and ids.

    Raises:
        ConversionError: with what is wrong with it.
    """
    config = read_json(folder / CONFIG)
    parsed = parse_config(config, str(folder / CONFIG))
    weights = read_weights(folder)
    for problem in compare(weights.shapes, tensor_manifest(parsed)):
        raise ConversionError(f"the weights of {folder} do not fit its config.json: {problem}.")
    check_dtypes(weights, folder)
    resulting_dtype(config, weights, dtype)
    processor_config = optional_json(folder / PROCESSOR_CONFIG) or {}
    ids = audio_ids({**config, "language_config": parsed.language_config.to_dict()}, processor_config)
    native_processor_config(processor_config, ids, decoder_positions(parsed.language_config))
    tokenizer = TokenizerFiles(folder)
    tokenizer.name_audio_tokens(ids)
    generation_config = optional_json(folder / GENERATION_CONFIG)
    name = (
        released_name(source) or released_name(str(folder)) or (folder if "files" in identity else Path(source)).name
    )
    return Source(folder, name, config, processor_config, generation_config, weights, tokenizer, ids, identity)


def optional_json(path: Path) -> Optional[dict[str, Any]]:
    """The object in a JSON file, None without one."""
    return read_json(path) if path.is_file() else None


def released_name(text: str) -> Optional[str]:
    """The released checkpoint that an id or a path names: "MOSS-Audio-4B-Instruct", None where it names none."""
    # In the Hub's cache a folder is called models--OpenMOSS-Team--MOSS-Audio-4B-Instruct.
    match = re.search(r"(?:^|[/\\]|--)(MOSS-Audio-(?:4B|8B)-(?:Instruct|Thinking))(?:$|[/\\])", text)
    return match[1] if match else None


def resulting_dtype(config: dict[str, Any], weights: Weights, dtype: str) -> str:
    """
    The dtype that config.json is to name: the chosen one, or with "keep" that of the weights.

    Raises:
        ConversionError: where config.json names one that no tensor has.
    """
    if dtype != "keep":
        return dtype
    found = {NAMES[code]: count for code, count in weights.dtypes.items()}
    named = config.get("dtype") or config.get("torch_dtype")
    if named is None:
        return max(found, key=found.get)
    if named not in found:
        raise ConversionError(
            f"config.json has `dtype` {named!r}, but the tensors are {' and '.join(found)}: pass --dtype with the one you want."
        )
    return named


# ------------------------------------------------------------------------------------------------------------- weights


def plan(weights: Weights, dtype: Optional[str], max_shard_size: Optional[int], link: bool) -> list[Shard]:
    """
    How the files of the target are made: the source's copied or linked, or tensors streamed into new ones.

    Raises:
        ConversionError: for links to files that must be changed.
    """
    reason = _reason_to_rewrite(weights, dtype, max_shard_size)
    if reason is None:
        if link:
            return kept_shards(weights, link_file, space=lambda path: 0)
        return kept_shards(weights, copy_file, space=lambda path: path.stat().st_size)
    if link:
        raise ConversionError(f"--link cannot be used, because {reason}: the files must be written anew; pass --copy.")
    entries = [stored_entry(tensor, None if name == LEFTOVER else dtype) for name, tensor in weights.tensors.items()]
    return written_shards(entries, parse_size(DEFAULT_SHARD_SIZE) if max_shard_size is None else max_shard_size)


def _reason_to_rewrite(weights: Weights, dtype: Optional[str], max_shard_size: Optional[int]) -> Optional[str]:
    """Why files cannot stay as they are; None where they can."""
    if dtype is not None and set(weights.dtypes) != {dtype}:
        return f"--dtype {NAMES[dtype]} changes the weights"
    for path in weights.files:
        sizes = [tensor.size for tensor in weights.tensors.values() if tensor.path == path]
        if max_shard_size is not None and len(sizes) > 1 and sum(sizes) > max_shard_size:
            return f"{path.name} is larger than --max-shard-size"
    for path, metadata in weights.metadata.items():
        if metadata and metadata.get("format") != "pt":
            return f"{path.name} is not marked as PyTorch's, without which Transformers refuses it"
    return None
