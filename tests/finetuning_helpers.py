"""What the tests of fine-tuning share: small data files of tones, and runs of `moss-audio finetune`."""

import json
import os
from pathlib import Path
from typing import Any, Optional
from unittest import mock

import numpy as np
import soundfile

from moss_audio.training import finetune
from moss_audio.training.trainer import MossAudioTrainer


ANSWERS = ["red", "green", "blue", "one two", "Yes.", "no no", "C sharp", "tä"]


def tone(number: int, seconds: float) -> np.ndarray:
    t = np.arange(round(16000 * seconds)) / 16000
    return (0.3 * np.sin(2 * np.pi * (200 + 150 * number) * t)).astype(np.float32)


def sample(clips: list[str], question: str, answer: str, **extra: Any) -> dict[str, Any]:
    """A record of one turn."""
    parts = [*({"type": "audio", "path": clip} for clip in clips), {"type": "text", "text": question}]
    messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": answer}]
    return {"messages": messages, **extra}


def write_lines(path: Path, records: list[Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def tones_file(folder: Path) -> Path:
    """Eight tones, and what each is called: nothing but the sound tells them apart."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(len(ANSWERS)):
        soundfile.write(folder / f"{number}.wav", tone(number, 0.4 + 0.2 * number), 16000)
    records = [sample([f"{n}.wav"], "Name it.", answer, group="ab"[n % 2]) for n, answer in enumerate(ANSWERS)]
    return write_lines(folder / "tones.jsonl", records)


def uneven_file(folder: Path) -> Path:
    """Sixteen samples with no clip, one, two, short and long: the encoder is called differently often for each."""
    folder.mkdir(parents=True, exist_ok=True)
    records = []
    for number in range(16):
        seconds = [[], [0.5], [5.2], [0.3, 9.0], [], [], [], [4.0]][number % 8]
        for clip, duration in enumerate(seconds):
            soundfile.write(folder / f"{number}_{clip}.wav", tone(number + clip, duration), 16000)
        clips = [f"{number}_{clip}.wav" for clip in range(len(seconds))]
        answer = "n" * (1 + number % 5) + str(number)
        records.append(sample(clips, f"What is {number}?", answer, group="ab"[number % 2]))
    return write_lines(folder / "uneven.jsonl", records)


def run_options(model: Path, data: Path, output: Path, **options: Any) -> list[str]:
    """Arguments of a short run on the CPU, as one types them."""
    options = {
        "model": model,
        "train_files": data,
        "output_dir": output,
        "max_steps": 4,
        "learning_rate": 1e-3,
        "per_device_train_batch_size": 4,
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        **options,
    }
    arguments = []
    for name, value in options.items():
        values = value if isinstance(value, list) else [value]
        arguments += [f"--{name}", *(str(value) for value in values)]
    return arguments


def train(model: Path, data: Path, output: Path, **options: Any) -> MossAudioTrainer:
    """A run in this process, whose environment it leaves alone: version 4 of Transformers notes its precision there."""
    with mock.patch.dict(os.environ):
        return finetune.run(*finetune.parse_arguments(run_options(model, data, output, **options)))


def losses(trainer: MossAudioTrainer, name: str = "loss", since: Optional[int] = None) -> list[float]:
    """The logged values of a run, after step `since`."""
    return [entry[name] for entry in trainer.state.log_history if name in entry and entry["step"] > (since or 0)]
