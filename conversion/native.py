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
"""The small files of a native folder: all that stands beside the weights, so that nothing else must be installed."""

import importlib.metadata
import shutil
from pathlib import Path
from typing import Any, Optional

from moss_audio.configuration_moss_audio import MossAudioConfig, decoder_positions, portable_rope
from moss_audio.modeling_moss_audio import code_references
from moss_audio.processing_moss_audio import CHAT_TEMPLATE, RELEASED_MEL_CONFIG, MossAudioProcessor

from . import ConversionError
from .target import CODE, package_file
from .tokenizer import AudioIds, TokenizerFiles
from .weights import write_json, write_text


CONFIG, PROCESSOR_CONFIG, GENERATION_CONFIG = "config.json", "processor_config.json", "generation_config.json"
TEMPLATE_FILE, LICENSE_FILE = "chat_template.jinja", "LICENSE"
ID_KEYS = AudioIds._fields


def audio_ids(config: dict[str, Any], processor_config: dict[str, Any]) -> AudioIds:
    """
    The ids of the audio tokens: processor_config.json's, else config.json's, else the released ones.

    Raises:
        ConversionError: where the two files disagree, or the decoder has no embedding at an id.
    """
    ids = {**AudioIds()._asdict()}
    for key in ID_KEYS:
        values = {source[key] for source in (processor_config, config) if source.get(key) is not None}
        if len(values) > 1:
            raise ConversionError(
                f"{PROCESSOR_CONFIG} has `{key}` {processor_config[key]}, config.json {config[key]}; make them agree."
            )
        ids[key] = values.pop() if values else ids[key]
    rows = config["language_config"].get("vocab_size", 0)
    if beyond := {key: value for key, value in ids.items() if not 0 <= value < rows}:
        raise ConversionError(
            f"{beyond} lies beyond the decoder's `vocab_size` {rows}; give the ids in {PROCESSOR_CONFIG}."
        )
    return AudioIds(**ids)


def native_config(config: dict[str, Any], ids: AudioIds, dtype: str) -> dict[str, Any]:
    """A released config.json's contents with what the Auto classes, the pipeline and both Transformers versions need."""
    # The decoder's own value is the one that counts, see MossAudioConfig; each version reads it in another place.
    tied = MossAudioConfig(**config).tie_word_embeddings
    native = {**config, "architectures": ["MossAudioModel"], "tie_word_embeddings": tied}
    native["audio_config"] = dict(config["audio_config"])
    native["language_config"] = {**portable_rope(config["language_config"]), "tie_word_embeddings": tied}
    native.update(ids._asdict())
    references = code_references()
    native["auto_map"] = {**(config.get("auto_map") or {}), **references["auto_map"]}
    native["custom_pipelines"] = {**(config.get("custom_pipelines") or {}), **references["custom_pipelines"]}
    native.setdefault("dtype", dtype)
    # Where this is missing, Transformers 4.57 takes a large tokenizer for one of Mistral's with a mistake, and warns.
    native.setdefault("transformers_version", "4.57.1")
    for part in (native, native["audio_config"], native["language_config"]):
        for key in ("dtype", "torch_dtype"):  # the name since version 4.56, and the one before
            if part.get(key) is not None:
                part[key] = dtype
    return native


def native_processor_config(processor_config: dict[str, Any], ids: AudioIds, positions: int) -> dict[str, Any]:
    """
    A processor_config.json that the released processor, ours and vLLM's can read: keys at the top, integers in
    `mel_config`, and what has a default written out.

    Raises:
        ConversionError: where a number of `mel_config` is none.
    """
    mel = {**RELEASED_MEL_CONFIG, **(processor_config.get("mel_config") or {})}
    for key, released in RELEASED_MEL_CONFIG.items():
        if isinstance(released, int) and not isinstance(released, bool):
            mel[key] = _integer(mel[key], key)
    return {
        **{key: value for key, value in processor_config.items() if key not in ("chat_template", "feature_extractor")},
        "processor_class": MossAudioProcessor.__name__,
        "auto_map": {"AutoProcessor": code_references()["auto_map"]["AutoProcessor"]},
        "enable_time_marker": processor_config.get("enable_time_marker", True),
        **ids._asdict(),
        "max_position_embeddings": positions,
        "mel_config": mel,
    }


def _integer(value: Any, key: str) -> int:
    try:
        if int(value) == float(value):
            return int(value)
    except (TypeError, ValueError):
        pass
    raise ConversionError(f"{PROCESSOR_CONFIG} has `mel_config.{key}` {value!r}; expected a whole number.")


def native_generation_config(generation_config: Optional[dict[str, Any]], ends: dict[str, int]) -> dict[str, Any]:
    """A generation_config.json as it was, or greedy where there was none, with the ends and a length if it has none."""
    given = {"do_sample": False} if generation_config is None else generation_config
    return {**ends, "max_new_tokens": 1024, **{key: value for key, value in given.items() if value is not None}}


def write_native_files(
    folder: Path,
    config: dict[str, Any],
    processor_config: dict[str, Any],
    generation_config: Optional[dict[str, Any]],
    tokenizer: TokenizerFiles,
    ids: AudioIds,
    dtype: str,
):
    """
    Writes all files of a native folder but weights and model card.

    Raises:
        ConversionError: where the tokenizer cannot have the audio tokens at their ids.
    """
    positions = decoder_positions(MossAudioConfig(**config).language_config)
    tokenizer.name_audio_tokens(ids)
    tokenizer.write(folder)
    write_json(folder / CONFIG, native_config(config, ids, dtype))
    write_json(folder / PROCESSOR_CONFIG, native_processor_config(processor_config, ids, positions))
    write_json(folder / GENERATION_CONFIG, native_generation_config(generation_config, tokenizer.ends))
    write_text(folder / TEMPLATE_FILE, CHAT_TEMPLATE)
    write_text(folder / LICENSE_FILE, license_text())
    copy_code(folder)


def copy_code(folder: Path):
    """Copies the files of the installed package that Transformers imports as remote code."""
    for name in CODE:
        shutil.copyfile(package_file(name), folder / name)


def license_text() -> str:
    """The license, from the installed distribution or the repository."""
    beside = Path(__file__).resolve().parents[1] / LICENSE_FILE
    if beside.is_file():
        return beside.read_text(encoding="utf-8")
    for file in importlib.metadata.files("moss-audio") or ():
        if file.name == LICENSE_FILE:
            return file.locate().read_text(encoding="utf-8")
    raise ConversionError("the installed package lacks its LICENSE; install moss-audio again.")
