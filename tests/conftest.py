"""What the tests share: the golden numbers, a tiny checkpoint in the released layout, and sounds made by formula."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file


os.environ.setdefault("HF_HUB_OFFLINE", "1")  # every checkpoint here is a local folder

import moss_audio  # noqa: E402  (after the environment is set)


DATA = Path(__file__).parent / "data"
CODE = Path(moss_audio.__file__).parent
CODE_FILES = [
    f"{name}_moss_audio.py"
    for name in (
        "audio",
        "configuration",
        "generation",
        "long",
        "modeling",
        "pipeline",
        "processing",
        "tasks",
        "transcripts",
    )
]
AUDIO_TOKEN_ID = 300  # of the tiny checkpoint


def waveform(seed: int, samples: int) -> np.ndarray:
    """The clips of the golden cases, float32 at 16 kHz, by their formula."""
    t = np.arange(samples) / 16000
    tone = 0.3 * np.sin(2 * np.pi * (220 + 40 * seed) * t) * np.exp(-3 * (t % 1))
    return (tone + 0.02 * np.random.default_rng(seed).standard_normal(samples)).astype(np.float32)


def run_python(
    code: str, *arguments: Any, cwd: Path, path: list[Path] = (), blocked: tuple[str, ...] = (), **environment: str
) -> str:
    """
    Runs code in a fresh interpreter that looks for modules in `path` first and cannot import those of `blocked`, and
    returns what it prints. Remote code is cached in `cwd`.
    """
    preamble = "import sys\n" + "".join(f"sys.modules[{name!r}] = None\n" for name in blocked)
    env = {**os.environ, "HF_MODULES_CACHE": str(cwd / "modules"), "PYTHONIOENCODING": "utf-8", **environment}
    env["PYTHONPATH"] = os.pathsep.join([*map(str, path), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-c", preamble + code, *map(str, arguments)],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def golden() -> dict[str, dict[str, torch.Tensor]]:
    """The golden cases of the tiny model: tensors by case and name."""
    cases: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in load_file(DATA / "golden" / "cases.safetensors").items():
        case, _, name = name.partition(".")
        cases.setdefault(case, {})[name] = tensor
    return cases


@pytest.fixture(scope="session")
def processor_cases() -> list[dict]:
    """Prompts and clips with the token ids that they must become."""
    return json.loads((DATA / "golden" / "processor_cases.json").read_text(encoding="utf-8"))["cases"]


@pytest.fixture(scope="session")
def tiny_folder() -> Path:
    """A complete checkpoint in the released layout: random weights, a byte-level tokenizer, no code. Not to be changed."""
    return DATA / "model_tiny"


@pytest.fixture(scope="session")
def native_folder(tiny_folder, tmp_path_factory) -> Path:
    """The tiny checkpoint with the code files beside it and a config.json that names them. Not to be changed."""
    folder = tmp_path_factory.mktemp("native") / "checkpoint"
    shutil.copytree(tiny_folder, folder)
    for name in CODE_FILES:
        shutil.copy(CODE / name, folder)
    config = json.loads((folder / "config.json").read_text())
    config.update(moss_audio.modeling_moss_audio.code_references())
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="session")
def model(tiny_folder) -> moss_audio.MossAudioModel:
    """The tiny model in float32. Not to be changed."""
    return moss_audio.MossAudioModel.from_pretrained(tiny_folder, dtype=torch.float32).eval()


@pytest.fixture(scope="session")
def processor(tiny_folder) -> moss_audio.MossAudioProcessor:
    """The tiny checkpoint's processor. Not to be changed."""
    return moss_audio.MossAudioProcessor.from_pretrained(tiny_folder)


@pytest.fixture(scope="session")
def qwen3_processor() -> moss_audio.MossAudioProcessor:
    """A processor around the real tokenizer, from a folder that holds nothing else. Not to be changed."""
    return moss_audio.MossAudioProcessor.from_pretrained(DATA / "qwen3-tokenizer")


@pytest.fixture(scope="session")
def mixed_batch(processor) -> dict[str, torch.Tensor]:
    """A batch whose rows hold a long clip, none, two short ones, and one that ends with a window."""
    return processor(
        text=["Describe this audio.", "What is 2+2?", "Compare the two.", "Transcribe."],
        audio=[waveform(1, 150000), None, [waveform(2, 9000), waveform(3, 70000)], waveform(4, 64000)],
    )


def rows_alone(batch: dict[str, torch.Tensor], clips: list[int]) -> list[dict[str, torch.Tensor]]:
    """The rows of a batch as batches of their own, without padding; `clips` says how many clips each row holds."""
    alone, start = [], 0
    for row, count in enumerate(clips):
        keep = batch["attention_mask"][row].bool()
        inputs = {name: batch[name][row, keep][None] for name in ("input_ids", "attention_mask")}
        if count:
            lengths = batch["audio_data_seqlens"][start : start + count]
            inputs["audio_data"] = batch["audio_data"][start : start + count, :, : int(lengths.max())]
            inputs["audio_data_seqlens"] = lengths
            start += count
        alone.append(inputs)
    return alone
