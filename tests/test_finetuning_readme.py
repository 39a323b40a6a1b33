"""The README's way from a folder of recordings to a fine-tuned folder, as it is written, on the tiny checkpoint; and the
snippets of docs/finetuning.md.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import soundfile
from transformers import TrainingArguments

from moss_audio import MossAudioModel, training
from tests.conftest import CODE_FILES, DATA
from tests.finetuning_helpers import tone
from tests.test_readme import FINETUNING


CHECKPOINT = "OpenMOSS-Team/MOSS-Audio-4B-Instruct"
DOCS = (DATA.parent.parent / "docs" / "finetuning.md").read_text(encoding="utf-8")
# What a run here needs that a reader's does not: few steps, and no GPU.
SHORT = "--max_steps 2 --use_cpu true --report_to none --logging_steps 1 --eval_max_new_tokens 4 --dataloader_num_workers 0"


def run_command(line: str, folder: Path) -> str:
    """A line of the README; `accelerate launch` with its configuration for GPUs becomes a single process."""
    launch = re.match(r"accelerate launch --config_file training/(\S+) --num_processes 8 ", line)
    if launch:
        assert (Path(training.__file__).parent / launch[1]).is_file()
        line = "python " + line[launch.end() :]
    line = re.sub(r"^moss-audio", "python -m moss_audio", line)
    if "finetune" in line:
        line += f" {SHORT}"
    command = shlex.split(line)
    assert command[0] == "python", line
    done = subprocess.run(
        [sys.executable, *command[1:]],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, f"{line}\n{done.stderr}"
    return done.stdout


def test_from_a_folder_of_recordings_to_a_fine_tuned_folder(native_folder, tmp_path):
    (tmp_path / "recordings").mkdir()
    for number in range(6):
        soundfile.write(tmp_path / "recordings" / f"{number}.wav", tone(number, 1 + number), 16000)
        (tmp_path / "recordings" / f"{number}.txt").write_text(f"tone {number}\n")
    shutil.copy(DATA / "beeps.wav", tmp_path / "recording.wav")
    section = FINETUNING.replace(CHECKPOINT, native_folder.as_posix())
    blocks = re.findall(r"```(bash|python)\n(.*?)```", section, flags=re.DOTALL)
    assert [language for language, _ in blocks] == ["bash", "python", "bash", "bash", "python", "bash"]
    said = []
    for language, block in blocks:
        if language == "python":
            code = block.replace('tuned("recording.wav"', 'tuned("recording.wav", max_new_tokens=4')
            (tmp_path / "snippet.py").write_text(code, encoding="utf-8")
            said.append(run_command("python snippet.py", tmp_path))
            continue
        for line in block.replace("\\\n", " ").splitlines():
            if not line.startswith("pip install"):
                said.append(run_command(line, tmp_path))
    assert "6 samples, 0 with problems" in said[1]
    assert "eval_wer" in said[2]
    for folder in ("tuned", "tuned-full"):
        assert set(CODE_FILES) <= {path.name for path in (tmp_path / folder).iterdir()}
        assert MossAudioModel.from_pretrained(tmp_path / folder) is not None


def test_the_snippets_of_the_documentation_run(native_folder, tmp_path, monkeypatch):
    shutil.copy(DATA / "beeps.wav", tmp_path / "recording.wav")
    snippets = re.findall(r"```python\n(.*?)```", DOCS, flags=re.DOTALL)
    assert len(snippets) == 2
    code = "\n".join(snippets).replace(CHECKPOINT, native_folder.as_posix())
    code = code.replace("max_length=8192", "max_length=2048").replace(
        "max_steps=1", "max_steps=1, report_to='none', use_cpu=True"
    )
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "docs/finetuning.md", "exec"), {})
    assert (tmp_path / "tuned").is_dir()


def test_only_flags_of_both_versions_are_used():
    """`TrainingArguments` of Transformers 4.57 and 5.24 have these; all others are ours."""
    from moss_audio.training.finetune import DataArguments, ModelArguments

    common = {
        "output_dir",
        "learning_rate",
        "num_train_epochs",
        "per_device_train_batch_size",
        "bf16",
        "gradient_checkpointing",
        "dataloader_num_workers",
        "save_total_limit",
        "resume_from_checkpoint",
        "logging_steps",
        "eval_strategy",
        "save_strategy",
        "use_cpu",
    }
    assert common <= set(
        TrainingArguments.__dataclass_fields__
    )  # of the installed version; the other's run asks its own
    ours = {*ModelArguments.__dataclass_fields__, *DataArguments.__dataclass_fields__}
    used = set(re.findall(r"--(\w+_\w+|bf16)", FINETUNING)) - {"config_file", "num_processes"}
    assert used <= common | ours
