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
"""Checks of a native folder, one verdict each: what it holds, whether it fits together, and whether it loads.

A folder from elsewhere is not trusted: its code runs only where it is, by hash, the installed package's.
"""

import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import transformers
from transformers import AutoTokenizer

from moss_audio.configuration_moss_audio import MossAudioConfig
from moss_audio.modeling_moss_audio import code_references
from moss_audio.processing_moss_audio import RELEASED_MEL_CONFIG, default_prompt

from . import ConversionError
from .manifest import LEFTOVER, compare_names, compare_shapes, parameter_count, parse_config, some, tensor_manifest
from .native import CONFIG, GENERATION_CONFIG, ID_KEYS, PROCESSOR_CONFIG, TEMPLATE_FILE, audio_ids
from .target import CODE, MARKER, code_hashes, file_hash
from .tokenizer import TokenizerFiles
from .weights import NAMES, Weights, check_dtypes, format_size, read_json, read_weights


PASSED, FAILED, SKIPPED = "passed", "FAILED", "skipped"
LOAD_TIMEOUT = 600  # seconds


class Check(NamedTuple):
    """A check and what came out."""

    name: str
    verdict: str
    detail: str


class Skip(Exception):
    """A check that cannot be made, and why."""


class Folder:
    """A folder under test; what several checks need is read once."""

    def __init__(self, path: Path):
        self.path = path

    @functools.cached_property
    def config(self) -> dict[str, Any]:
        return read_json(self.path / CONFIG)

    @functools.cached_property
    def parsed(self) -> MossAudioConfig:
        return parse_config(self.config)

    @functools.cached_property
    def weights(self) -> Weights:
        return read_weights(self.path)

    @functools.cached_property
    def processor_config(self) -> dict[str, Any]:
        return read_json(self.path / PROCESSOR_CONFIG)

    @functools.cached_property
    def tokenizer(self) -> Any:
        TokenizerFiles(self.path)  # Transformers 5 makes up an empty tokenizer where there is none
        try:
            return AutoTokenizer.from_pretrained(self.path, trust_remote_code=False)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise ConversionError(f"the tokenizer cannot be loaded: {error}") from error

    def needs(self, name: str) -> Any:
        """One of the above; a check that needs it is skipped where it cannot be had, and another says why."""
        try:
            return getattr(self, name)
        except ConversionError as error:
            raise Skip(str(error)) from error


def verify(folder: str, deep: bool = False) -> Iterator[Check]:
    """
    Checks a native folder.

    Args:
        folder: the folder.
        deep: whether to read all weights, in search of values that are not finite.

    Returns:
        The checks, one by one as they are made.

    Raises:
        ConversionError: where there is no such folder.
    """
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise ConversionError(f"there is no folder {folder}.")
    subject = Folder(path.resolve())
    for name, check in CHECKS.items():
        if name != "values" or deep:
            yield _made(name, check, subject)


def _made(name: str, check: Callable[[Folder], str], subject: Folder) -> Check:
    try:
        return Check(name, PASSED, check(subject))
    except Skip as reason:
        return Check(name, SKIPPED, str(reason))
    except ConversionError as error:
        return Check(name, FAILED, str(error))


def _fail_if(problems: list[str]):
    if problems:
        raise ConversionError("; ".join(problems))


# --------------------------------------------------------------------------------------------------------------- checks


def check_complete(folder: Folder) -> str:
    """No command left it unfinished."""
    _fail_if([f"{MARKER} says that it is incomplete"] if (folder.path / MARKER).exists() else [])
    _fail_if([f"{path.name} is part of a file" for path in folder.path.glob("*.part")])
    return "no unfinished work"


def check_config(folder: Folder) -> str:
    """config.json describes a model, and names the code and the ids."""
    config, references = folder.config, code_references()
    problems = [
        f"`{key}.{name}` is {config.get(key, {}).get(name)!r}, not {value!r}"
        for key, expected in references.items()
        for name, value in expected.items()
        if config.get(key, {}).get(name) != value
    ]
    problems += [f"`{key}` is missing" for key in ID_KEYS if key not in config]
    if config.get("architectures") != ["MossAudioModel"]:
        problems.append(f"`architectures` is {config.get('architectures')}, not ['MossAudioModel']")
    decoder, tied = folder.parsed.language_config, config.get("tie_word_embeddings")
    if config["language_config"].get("tie_word_embeddings") != tied:
        problems.append("`tie_word_embeddings` differs between the top and `language_config`")
    if "rope_theta" not in config["language_config"]:
        problems.append("`language_config` has no `rope_theta`, without which Transformers 4 falls back to 10000")
    _fail_if(problems)
    return f"{decoder.num_hidden_layers} layers of width {decoder.hidden_size}, all classes named"


def check_files(folder: Folder) -> str:
    """The files of the weights are there, and whole."""
    weights = folder.weights
    total = sum(path.stat().st_size for path in weights.files)
    return f"{len(weights.files)} file{'s' * (len(weights.files) > 1)}, {format_size(total)}"


def check_tensors(folder: Folder) -> str:
    """All tensors that the configuration asks for, and no others."""
    manifest = tensor_manifest(folder.needs("parsed"))
    _fail_if(compare_names(folder.needs("weights").tensors, manifest))
    leftover = " and the leftover buffer" if LEFTOVER in folder.weights.tensors else ""
    return f"{len(manifest)} tensors{leftover}, {parameter_count(folder.parsed):,} parameters"


def check_shapes(folder: Folder) -> str:
    """They have the shapes that the configuration asks for."""
    manifest = tensor_manifest(folder.needs("parsed"))
    _fail_if(compare_shapes(folder.needs("weights").shapes, manifest))
    return "as config.json asks for"


def check_tensor_dtypes(folder: Folder) -> str:
    """They are floating-point numbers, of the dtype that config.json names."""
    weights, config = folder.needs("weights"), folder.needs("config")
    check_dtypes(weights, folder.path)
    found = {NAMES[code]: count for code, count in weights.dtypes.items()}
    named = config.get("dtype") or config.get("torch_dtype")
    _fail_if([] if named in found else [f"config.json names {named!r}; the tensors are {', '.join(found)}"])
    return ", ".join(f"{count} in {dtype}" for dtype, count in sorted(found.items()))


def check_values(folder: Folder) -> str:
    """All of their values are finite."""
    bad = []
    for name, tensor in folder.needs("weights").tensors.items():
        if tensor.dtype in NAMES and not all(values.isfinite().all() for values in tensor.values()):
            bad.append(name)
    _fail_if([f"{len(bad)} tensors hold NaN or infinity: {some(bad)}"] if bad else [])
    return "all finite"


def check_tokenizer(folder: Folder) -> str:
    """The audio tokens have their names and ids, and digits, of which time markers are made, one token each."""
    tokenizer, config = folder.tokenizer, folder.needs("config")
    ids = audio_ids(config, {})
    problems = [
        f"{name} is {tokenizer.convert_tokens_to_ids(name)}, not {token_id}"
        for token_id, name in ids.names.items()
        if tokenizer.convert_tokens_to_ids(name) != token_id or tokenizer(name)["input_ids"] != [token_id]
    ]
    digits = "0123456789"
    if len(tokenizer(digits)["input_ids"]) != len(digits):
        problems.append("digits are not one token each")
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id in ids:
        problems.append(f"the padding token is {tokenizer.pad_token!r}")
    if len(tokenizer) > config["language_config"]["vocab_size"]:
        problems.append(f"{len(tokenizer)} tokens for {config['language_config']['vocab_size']} embeddings")
    _fail_if(problems)
    return f"{len(tokenizer)} tokens; " + ", ".join(f"{name} {token_id}" for token_id, name in ids.names.items())


def check_processor_config(folder: Folder) -> str:
    """The keys that every reader of it needs, at its top, with integers."""
    config, mel = folder.processor_config, folder.processor_config.get("mel_config") or {}
    problems = [f"`{key}` is missing" for key in ("enable_time_marker", *ID_KEYS) if key not in config]
    problems += [
        f"`{key}` is {config[key]}, in config.json {folder.needs('config').get(key)}"
        for key in ID_KEYS
        if key in config and config[key] != folder.needs("config").get(key)
    ]
    for key, released in RELEASED_MEL_CONFIG.items():
        if type(mel.get(key)) is not type(released):
            problems.append(f"`mel_config.{key}` is {mel.get(key)!r}, no {type(released).__name__}")
    named = (config.get("auto_map") or {}).get("AutoProcessor")
    if named != code_references()["auto_map"]["AutoProcessor"]:
        problems.append(f"`auto_map.AutoProcessor` is {named!r}")
    _fail_if(problems)
    return f"time markers {'on' if config['enable_time_marker'] else 'off'}, {mel['mel_sr']} Hz, {mel['mel_dim']} mels"


def check_generation_config(folder: Folder) -> str:
    """Generation ends where a turn ends."""
    config, tokenizer = read_json(folder.path / GENERATION_CONFIG), folder.needs("tokenizer")
    ends = config.get("eos_token_id")
    ends = ends if isinstance(ends, list) else [ends]
    turn = tokenizer.convert_tokens_to_ids("<|im_end|>")
    _fail_if(
        [] if turn in ends else [f"`eos_token_id` {config.get('eos_token_id')} does not hold <|im_end|> ({turn})"]
    )
    _fail_if([] if config.get("pad_token_id") is not None else ["`pad_token_id` is missing"])
    return f"ends at {', '.join(map(str, ends))}"


def check_chat_template(folder: Folder) -> str:
    """A chat of one turn gives the prompt that the checkpoints were trained with."""
    path = folder.path / TEMPLATE_FILE
    if not path.is_file():
        raise ConversionError(f"there is no {TEMPLATE_FILE}")
    parts = [{"type": "audio", "path": "a.wav"}, {"type": "text", "text": "Describe this audio."}]
    try:
        prompt = folder.needs("tokenizer").apply_chat_template(
            [{"role": "user", "content": parts}],
            chat_template=path.read_text(encoding="utf-8"),
            tokenize=False,
            add_generation_prompt=True,
        )
    except Exception as error:  # a template may raise anything
        if isinstance(error, Skip):
            raise
        raise ConversionError(f"{TEMPLATE_FILE} cannot be rendered: {error}") from error
    expected = default_prompt("Describe this audio.", 1)
    _fail_if([] if prompt == expected else [f"it gives {prompt!r}, not {expected!r}"])
    return "gives the default prompt"


def check_code(folder: Folder) -> str:
    """The code files are the installed package's, so that it is known what `trust_remote_code=True` trusts."""
    expected = code_hashes()
    problems = [f"{name} is missing" for name in CODE if not (folder.path / name).is_file()]
    problems += [
        f"{name} is not the installed package's"
        for name in CODE
        if (folder.path / name).is_file() and file_hash(folder.path / name) != expected[name]
    ]
    _fail_if(problems)
    others = sorted(path.name for path in folder.path.glob("*.py") if path.name not in CODE)
    return f"{len(CODE)} files as installed" + (f"; besides, unknown: {', '.join(others)}" if others else "")


def check_loading(folder: Folder) -> str:
    """A fresh process that cannot import this package builds everything by the folder's own code."""
    for check in (check_config, check_code):
        try:
            check(folder)
        except ConversionError as error:
            raise Skip("the folder's code is not run, because it or config.json is not as it should be") from error
    with tempfile.TemporaryDirectory() as cache:
        env = {**os.environ, "HF_MODULES_CACHE": cache, "HF_HUB_OFFLINE": "1", "PYTHONIOENCODING": "utf-8"}
        done = subprocess.run(
            [sys.executable, "-c", _LOAD, str(folder.path)],
            env=env,
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=LOAD_TIMEOUT,
            cwd=cache,  # the working folder is importable, and may hold anything
        )
    if done.returncode:
        raise ConversionError((done.stderr.strip().splitlines() or ["it failed without a message"])[-1])
    result = json.loads(done.stdout.strip().splitlines()[-1])
    shapes = {name: tuple(shape) for name, shape in result["shapes"].items()}
    _fail_if(compare_names(folder.needs("weights").tensors, shapes) + compare_shapes(folder.weights.shapes, shapes))
    return f"{', '.join(result['classes'])} (Transformers {transformers.__version__})"


# Weights are not loaded: the model is built without memory, and the parent compares its tensors with the files'.
_LOAD = """
import json, sys
sys.modules["moss_audio"] = None  # nothing but the folder's own code
import torch, transformers
from transformers.dynamic_module_utils import get_class_from_dynamic_module

folder, trust = sys.argv[1], {"trust_remote_code": True}
config = transformers.AutoConfig.from_pretrained(folder, **trust)
processor = transformers.AutoProcessor.from_pretrained(folder, **trust)
inputs = processor(text="Describe this audio.", audio=torch.zeros(16000))
assert int((inputs["input_ids"] == config.audio_token_id).sum()) == 13, "a clip of 1 s does not make 13 audio tokens"
get_class_from_dynamic_module(config.custom_pipelines["audio-text-to-text"]["impl"], folder)
classes = ["AutoConfig", "AutoProcessor", "pipeline"]
for name in config.auto_map:
    if name.startswith("AutoModel") and hasattr(transformers, name):
        with torch.device("meta"):
            model = getattr(transformers, name).from_config(config, **trust)
        classes.append(name)
tied = config.tie_word_embeddings
shapes = {n: list(t.shape) for n, t in model.state_dict().items() if not (tied and n == "lm_head.weight")}
print(json.dumps({"classes": classes, "shapes": shapes}))
"""

CHECKS: dict[str, Callable[[Folder], str]] = {
    "complete": check_complete,
    "config.json": check_config,
    "weight files": check_files,
    "tensors": check_tensors,
    "shapes": check_shapes,
    "dtypes": check_tensor_dtypes,
    "values": check_values,
    "tokenizer": check_tokenizer,
    "processor_config.json": check_processor_config,
    "generation_config.json": check_generation_config,
    "chat template": check_chat_template,
    "code files": check_code,
    "loading": check_loading,
}
