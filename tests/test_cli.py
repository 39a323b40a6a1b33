"""The command line, as a user types it."""

import json
import re
import subprocess
import sys

import pytest
import soundfile
from typer.testing import CliRunner

import moss_audio
from moss_audio.cli import app
from moss_audio.loading import check_checkpoint
from tests.conftest import waveform


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recordings")
    soundfile.write(folder / "a.wav", waveform(1, 40000), 16000)
    soundfile.write(folder / "b b.mp3", waveform(2, 9000), 16000, format="MP3")
    (folder / "c.wav").write_text("not sound")
    (folder / "another").mkdir()
    (folder / "another" / "config.json").write_text('{"model_type": "qwen3"}')
    return folder


@pytest.fixture(scope="module")
def answers(tiny_folder, recordings):
    pipe = moss_audio.AudioTextToTextPipeline(
        model=moss_audio.MossAudioModel.from_pretrained(tiny_folder),
        processor=moss_audio.MossAudioProcessor.from_pretrained(tiny_folder),
        device="cpu",
    )
    return {
        name: pipe(recordings / name, text="Describe this audio.", max_new_tokens=6) for name in ("a.wav", "b b.mp3")
    }


def command(*arguments, cwd):
    options = {"cwd": cwd, "capture_output": True, "text": True, "encoding": "utf-8"}
    return subprocess.run([sys.executable, "-m", "moss_audio", *map(str, arguments)], **options)


def ask(*arguments, model, cwd):
    return command("ask", *arguments, "--model", model, "--device", "cpu", "--max-new-tokens", "6", cwd=cwd)


def test_one_recording_prints_its_answer_alone(tiny_folder, recordings, answers):
    done = ask("a.wav", model=tiny_folder, cwd=recordings)
    assert done.returncode == 0, done.stderr
    assert done.stdout == answers["a.wav"]["generated_text"] + "\n"


@pytest.mark.parametrize("batch_size", [1, 8])
def test_several_print_in_the_order_given(batch_size, tiny_folder, recordings, answers):
    done = ask("b b.mp3", "a.wav", "b b.mp3", "--batch-size", batch_size, model=tiny_folder, cwd=recordings)
    assert done.returncode == 0, done.stderr
    names = ["b b.mp3", "a.wav", "b b.mp3"]
    assert done.stdout == "".join(f"{name}:\n{answers[name]['generated_text']}\n\n" for name in names)
    assert "3/3" in done.stderr  # the progress bar


def test_json_and_unreadable_files(tiny_folder, recordings, answers):
    done = ask("a.wav", "c.wav", "missing.wav", "b b.mp3", "--json", model=tiny_folder, cwd=recordings)
    assert done.returncode == 1
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert lines[0] == {"audio": "a.wav", **answers["a.wav"]} and lines[3] == {
        "audio": "b b.mp3",
        **answers["b b.mp3"],
    }
    assert "cannot be read as sound" in lines[1]["error"] and "no audio file" in lines[2]["error"]
    assert "c.wav" in done.stderr and "missing.wav" in done.stderr and "2 of 4 recordings failed" in done.stderr


def test_a_recording_too_long_for_the_decoder_costs_itself_only(tiny_folder, recordings, answers, tmp_path):
    soundfile.write(tmp_path / "long.wav", waveform(1, 16000 * 170), 16000)
    done = ask("a.wav", tmp_path / "long.wav", "--json", model=tiny_folder, cwd=recordings)
    assert done.returncode == 1
    first, second = (json.loads(line) for line in done.stdout.splitlines())
    assert first == {"audio": "a.wav", **answers["a.wav"]}
    assert "2048 positions" in second["error"]


def test_prompt_and_dtype(tiny_folder, recordings, answers):
    done = ask("a.wav", "--prompt", "Who?", "--dtype", "float32", "--json", model=tiny_folder, cwd=recordings)
    assert done.returncode == 0 and json.loads(done.stdout)["generated_text"] != answers["a.wav"]["generated_text"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["a.wav", "--model", "no/such/folder"], "there is no folder 'no/such/folder'"),
        (["a.wav", "--model", ".", "--dtype", "int3"], "'int3' is none of auto, bfloat16, float16, float32"),
        (["a.wav", "--model", "./folder"], "there is no folder './folder'"),
        (["a.wav", "--model", ".", "--device", "gpu"], "'gpu' cannot be used"),
        (["a.wav", "--model", "another"], "its config.json has `model_type` 'qwen3', not 'moss_audio'"),
        (["a.wav"], "--model"),
        (["--model", "."], "recordings"),
    ],
)
def test_what_cannot_run_at_all_has_status_2(arguments, message, recordings):
    done = command("ask", *arguments, cwd=recordings)
    assert done.returncode == 2 and not done.stdout
    assert message.lower() in re.sub(r"[\s│]+", " ", done.stderr).lower()
    assert "Traceback" not in done.stderr


def test_help():
    done = command("--help", cwd=None)
    assert done.returncode == 0 and "ask" in done.stdout
    assert "--max-new-tokens" in command("ask", "--help", cwd=None).stdout


@pytest.mark.parametrize(
    "name, message",
    [
        ("nofolder", "there is no folder 'nofolder', and an id on the Hugging Face Hub is of the form OWNER/NAME"),
        ("a/b/c", "there is no folder 'a/b/c'"),
        ("./folder", "there is no folder './folder'"),
        ("empty", "the folder empty holds no checkpoint: it has no config.json"),
        ("lora", "`moss-audio merge lora TARGET` makes one"),
        ("file", "file is a file"),
    ],
)
def test_what_cannot_be_a_checkpoint(name, message, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "adapter_config.json").write_text("{}")
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=re.escape(message)):
        check_checkpoint(name)


def test_what_may_be_one(tiny_folder):
    check_checkpoint(str(tiny_folder))
    check_checkpoint("OpenMOSS-Team/MOSS-Audio-4B-Instruct")


def test_the_version():
    done = CliRunner().invoke(app, ["--version"])
    assert done.exit_code == 0 and done.stdout.startswith(f"moss-audio {moss_audio.__version__}, Transformers ")
