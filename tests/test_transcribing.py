"""`moss-audio transcribe` and `caption`: recordings and folders, printed or written, resumably."""

import json
import shutil
import subprocess
import sys

import pytest
import soundfile
from transformers import pipeline
from typer.testing import CliRunner

import moss_audio
from moss_audio import cli
from moss_audio.batches import answer_all
from moss_audio.outputs import RECORD, Outputs, Recording, find_recordings, seconds_of
from tests.conftest import DATA
from tests.hearing import Listener, speech


WORDS = " ".join(f"w{number}" for number in range(12))


@pytest.fixture
def pipe(tiny_folder, monkeypatch):
    """The pipeline that the commands load: with a stand-in for the model that understands speech of tones."""
    pipe = pipeline("audio-text-to-text", model=str(tiny_folder), device="cpu")
    pipe.listener = Listener(pipe.processor)
    monkeypatch.setattr(pipe.model, "generate", pipe.listener)
    pipe.loaded = []
    monkeypatch.setattr(cli, "load_pipeline", lambda *arguments: pipe.loaded.append(arguments) or pipe)
    return pipe


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Recordings: two beside each other, one below, one that is none, and a text that is of no interest."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in" / "deep").mkdir(parents=True)
    soundfile.write(tmp_path / "in" / "a.wav", speech(12), 16000)
    soundfile.write(tmp_path / "in" / "b.flac", speech(3), 16000)
    soundfile.write(tmp_path / "in" / "deep" / "c.wav", speech(60), 16000)
    (tmp_path / "in" / "notes.txt").write_text("nothing to hear")
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(cli.app, [*map(str, arguments), "--model", "tiny"])


def test_one_recording_is_printed(pipe, folder):
    done = run("transcribe", "in/a.wav", "--timestamps", "word")
    assert done.exit_code == 0 and done.stdout == WORDS + "\n"
    pipe.listener.answer = lambda words: "Plain."
    assert run("transcribe", "in/a.wav").stdout == "Plain.\n"


def test_formats_that_have_times_ask_for_them(pipe, folder):
    done = run("transcribe", "in/b.flac", "--format", "srt")
    assert done.exit_code == 0 and "00:00:00,2" in done.stdout and " --> " in done.stdout and "w0" in done.stdout
    pipe.listener.answer = lambda words: "[0.00][S01]Hello.[7.56]"
    assert "SPEAKER b 1 0.000" in run("transcribe", "in/b.flac", "--format", "rttm").stdout
    assert "SPEAKER b 1 0.000" in run("transcribe", "in/b.flac", "--format", "rttm", "--prompt", "Who?").stdout


def test_several_are_printed_in_order(pipe, folder):
    done = run("transcribe", "in/b.flac", "in/a.wav", "--timestamps", "word")
    assert done.stdout == f"in/b.flac:\nw0 w1 w2\n\nin/a.wav:\n{WORDS}\n\n"
    done = run("transcribe", "in/b.flac", "missing.wav", "in/a.wav", "--format", "json", "--timestamps", "word")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["audio"] for line in lines] == ["in/b.flac", "missing.wav", "in/a.wav"] and done.exit_code == 1
    assert len(lines[2]["segments"]) == 12 and lines[2]["model"] == "tiny"
    assert "no audio file" in lines[1]["error"]
    assert "1 of 3 recordings failed:\n  missing.wav: there is no audio file" in done.stderr
    assert "3/3 recordings" in done.stderr and "s of audio" in done.stderr


def test_a_folder_is_written_as_a_folder(pipe, folder):
    done = run(
        "transcribe", "in", "--output", "out", "--format", "srt,json", "--timestamps", "word", "--chunk-length", 10
    )
    assert done.exit_code == 0 and not done.stdout
    names = sorted(path.relative_to(folder / "out").as_posix() for path in (folder / "out").rglob("*.*"))
    assert names == ["a.json", "a.srt", "b.json", "b.srt", "deep/c.json", "deep/c.srt", RECORD]
    result = json.loads((folder / "out" / "deep" / "c.json").read_text(encoding="utf-8"))
    assert [segment["text"] for segment in result["segments"]] == [f"w{number}" for number in range(60)]
    assert {"audio", "duration", "model", "generated_text", "reasoning", "cut_off"} <= set(result)
    assert max(pipe.listener.seconds) <= 10


def test_what_is_finished_is_left_alone(pipe, folder):
    arguments = ("transcribe", "in", "--output", "out", "--timestamps", "word")
    run(*arguments)
    (folder / "out" / "b.txt").unlink()
    before = (folder / "out" / "a.txt").stat().st_mtime_ns
    heard = len(pipe.listener.seconds)
    done = run(*arguments)
    assert done.exit_code == 0 and "2 of 3 recordings are finished already" in done.stderr
    assert len(pipe.listener.seconds) == heard + 1 and (folder / "out" / "b.txt").read_text() == "w0 w1 w2\n"
    assert (folder / "out" / "a.txt").stat().st_mtime_ns == before
    loaded = len(pipe.loaded)
    assert run(*arguments).exit_code == 0 and len(pipe.loaded) == loaded  # nothing to do, so no model


def test_another_format_is_added(pipe, folder):
    run("transcribe", "in/a.wav", "--output", "out", "--timestamps", "word")
    (folder / "out" / "a.txt").write_text("edited")
    assert (
        run("transcribe", "in/a.wav", "--output", "out", "--timestamps", "word", "--format", "txt,vtt").exit_code == 0
    )
    assert (folder / "out" / "a.txt").read_text() == "edited"
    assert (folder / "out" / "a.vtt").read_text().startswith("WEBVTT")


def test_results_of_other_options_are_noticed(pipe, folder):
    run("transcribe", "in", "--output", "out", "--timestamps", "word")
    done = run("transcribe", "in", "--output", "out", "--timestamps", "sentence")
    assert done.exit_code == 1
    assert (
        "stems from other options (return_timestamps was 'word', now 'sentence'); --overwrite replaces it"
        in done.stderr
    )
    done = run("transcribe", "in", "--output", "out", "--timestamps", "sentence", "--overwrite")
    assert done.exit_code == 0 and "finished already" not in done.stderr
    soundfile.write(folder / "in" / "b.flac", speech(4), 16000)
    done = run("transcribe", "in", "--output", "out", "--timestamps", "sentence")
    assert done.exit_code == 1 and "b.txt is there, and the recording has changed since" in done.stderr
    (folder / "out" / RECORD).unlink()
    done = run("transcribe", "in", "--output", "out", "--timestamps", "sentence")
    assert done.exit_code == 1 and "this command has no record of it" in done.stderr


def test_an_older_file_of_another_format_is_not_taken_for_finished(pipe, folder):
    run("transcribe", "in/a.wav", "--output", "out", "--timestamps", "word", "--format", "srt")
    run("transcribe", "in/a.wav", "--output", "out", "--timestamps", "sentence", "--overwrite")
    done = run("transcribe", "in/a.wav", "--output", "out", "--timestamps", "sentence", "--format", "txt,srt")
    assert done.exit_code == 1
    assert "a.srt is there, and stems from other options (return_timestamps was 'word'" in done.stderr
    done = run(
        "transcribe", "in/a.wav", "--output", "out", "--timestamps", "sentence", "--format", "txt,srt", "--overwrite"
    )
    assert done.exit_code == 0


def test_formats_of_different_options_are_finished_beside_each_other(pipe, folder):
    runs = [
        ("transcribe", "in", "--output", "out", "--format", "json"),
        ("transcribe", "in", "--output", "out", "--format", "srt"),  # asks for times
    ]
    assert [run(*arguments).exit_code for arguments in runs] == [0, 0]
    heard = len(pipe.listener.seconds)
    for arguments in runs:
        done = run(*arguments)
        assert done.exit_code == 0 and "3 of 3 recordings are finished already" in done.stderr
    assert len(pipe.listener.seconds) == heard


def test_hidden_files_are_no_recordings(folder):
    shutil.copy(folder / "in" / "a.wav", folder / "in" / "._a.wav")
    assert len(find_recordings(["in"])) == 3


def test_keywords_of_a_file_are_options(pipe, folder, monkeypatch):
    prompts = []
    preprocess = pipe.preprocess
    monkeypatch.setattr(
        pipe, "preprocess", lambda source, **kwargs: prompts.append(kwargs["keywords"]) or preprocess(source, **kwargs)
    )
    (folder / "names.txt").write_text("\ufeffQwen\n\n MOSS Audio \n", encoding="utf-8")
    done = run("transcribe", "in/b.flac", "--keywords", "names.txt", "--language", "de")
    assert done.exit_code == 0 and prompts == [["Qwen", "MOSS Audio"]]


def test_an_answer_without_times_is_not_lost(pipe, folder):
    pipe.listener.answer = lambda words: "No times at all."
    done = run("transcribe", "in/b.flac", "--format", "srt")
    assert done.exit_code == 1 and "srt needs times" in done.stderr
    assert "The answer was: No times at all." in done.stderr and done.stdout == ""
    done = run("transcribe", "in/b.flac", "--format", "srt,json,txt", "--output", "out")
    assert done.exit_code == 1 and "1 of 1 recording failed:\n  in/b.flac: b.srt cannot be written" in done.stderr
    assert (folder / "out" / "b.txt").read_text() == "No times at all.\n" and not (folder / "out" / "b.srt").exists()
    assert json.loads((folder / "out" / "b.json").read_text())["generated_text"] == "No times at all."
    pipe.listener.answer = lambda words: "[0.00]Times.[1.00]"
    done = run("transcribe", "in/b.flac", "--format", "srt,json,txt", "--output", "out")  # what was missing
    assert done.exit_code == 0 and "Times." in (folder / "out" / "b.srt").read_text()
    assert (folder / "out" / "b.txt").read_text() == "No times at all.\n"


def test_failures_cost_themselves_only(pipe, folder):
    (folder / "in" / "bad.wav").write_text("no sound")
    done = run("transcribe", "in", "--output", "out", "--timestamps", "word")
    assert done.exit_code == 1 and "1 of 4 recordings failed:\n  in/bad.wav: cannot be read as sound" in done.stderr
    assert (folder / "out" / "a.txt").read_text() == WORDS + "\n" and not (folder / "out" / "bad.txt").exists()


def test_an_interrupted_run_goes_on(pipe, folder, monkeypatch):
    def interrupted(*args, **kwargs):
        if len(pipe.listener.batches) == 1:
            raise KeyboardInterrupt
        return pipe.listener(*args, **kwargs)

    monkeypatch.setattr(pipe.model, "generate", interrupted)
    arguments = ("transcribe", "in", "--output", "out", "--timestamps", "word", "--batch-size", "1")
    done = run(*arguments)
    assert done.exit_code == 130 and "goes on where it was" in done.stderr
    assert [path.name for path in (folder / "out").glob("*.txt")] == ["a.txt"]
    with open(folder / "out" / RECORD, "a") as file:
        file.write('{"name": "b", "reco')  # and within a line of the record
    monkeypatch.setattr(pipe.model, "generate", pipe.listener)
    done = run(*arguments)
    assert done.exit_code == 0 and "1 of 3 recordings are finished already" in done.stderr
    assert len(list((folder / "out").rglob("*.txt"))) == 3 and run(*arguments).exit_code == 0


def test_a_cut_off_answer_is_marked(pipe, folder, tiny_folder, monkeypatch):
    real = pipeline("audio-text-to-text", model=str(tiny_folder), device="cpu")
    monkeypatch.setattr(cli, "load_pipeline", lambda *arguments: real)
    done = run("transcribe", "in/b.flac", "--max-new-tokens", "3", "--output", "out", "--format", "txt,json")
    assert done.exit_code == 0 and "in/b.flac: the answer was cut off at --max-new-tokens" in done.stderr
    assert (folder / "out" / "b.txt").read_text(encoding="utf-8").endswith("[cut off]\n")
    assert json.loads((folder / "out" / "b.json").read_text(encoding="utf-8"))["cut_off"] is True


def test_captions(pipe, folder):
    pipe.listener.answer = lambda words: f"{len(words)} words.\n\nIn all."
    assert run("caption", "in/a.wav").stdout == "12 words.\n\nIn all.\n"
    done = run("caption", "in/deep/c.wav", "--chunk-length", "20", "--format", "json")
    result = json.loads(done.stdout)
    assert len(result["segments"]) == 2 and result["segments"][1]["end"] == result["duration"]
    assert run("caption", "in", "--output", "out", "--format", "srt").exit_code == 0
    assert "12 words." in (folder / "out" / "a.srt").read_text()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["in/a.wav", "--format", "docx"], "'docx' is none of srt, vtt"),
        (["in/a.wav", "--format", "txt,json"], "1 recordings as txt, json need a folder; pass --output DIR"),
        (["in", "--format", "srt"], "3 recordings as srt need a folder"),
        (["in/a.wav", "--keywords", "nothing.txt"], "nothing.txt cannot be read"),
        (["in/a.wav", "--language", "xx"], "`language` 'xx' is no code"),
        (["in/a.wav", "--timestamps", "word", "--speakers"], "by sentence only"),
        (["in/a.wav", "--prompt", "Write.", "--speakers"], "`speakers=True` chooses a prompt"),
        (["empty"], "the folder 'empty' has no recordings"),
        (["in/a.wav", "in/deep/../deep/a.wav", "--output", "out"], "would have results of the same name"),
    ],
)
def test_what_cannot_run_at_all(arguments, message, pipe, folder):
    (folder / "empty").mkdir()
    done = run("transcribe", *arguments)
    assert done.exit_code == 2 and not done.stdout and not pipe.loaded
    assert message in " ".join(done.stderr.replace("│", " ").split())


def test_recordings_that_differ_in_their_suffix(folder):
    shutil.copy(folder / "in" / "a.wav", folder / "in" / "a.mp3")
    names = [(recording.source, recording.name.as_posix()) for recording in find_recordings(["in", "in/a.wav"])]
    assert names == [("in/a.mp3", "a.mp3"), ("in/a.wav", "a.wav"), ("in/b.flac", "b"), ("in/deep/c.wav", "deep/c")]


def test_urls_are_recordings(folder):
    (recording,) = find_recordings(["https://example.org/talks/one.mp3?key=1"])
    assert recording.name.as_posix() == "one"
    outputs = Outputs(folder / "out", ["txt"], {})
    outputs.begin(recording, ["txt"])
    assert outputs.missing(recording) == ["txt"]


def test_how_long_a_recording_lasts(folder):
    assert seconds_of("in/b.flac") == pytest.approx(len(speech(3)) / 16000)
    assert seconds_of("missing.wav") is None and seconds_of("in/notes.txt") is None
    if shutil.which("ffmpeg"):
        subprocess.run(["ffmpeg", "-v", "error", "-i", "in/b.flac", "b.m4a"], check=True)
        assert seconds_of("b.m4a") == pytest.approx(len(speech(3)) / 16000, abs=0.1)


def test_a_batch_that_fails_is_answered_one_by_one(pipe):
    def full(input_ids, **kwargs):
        if len(input_ids) > 1 or kwargs["audio_data"].shape[2] > 1000:
            raise RuntimeError("out of memory")
        return pipe.listener(input_ids, **kwargs)

    pipe.model.generate = full
    clips = [speech(3), speech(60), speech(5)]
    heard = []
    results = list(answer_all(pipe, clips, 2, heard.append, return_timestamps="word", chunk_length_s=20))
    assert [len(result.get("segments", ())) for result in results] == [3, 0, 5]
    assert results[1] == {"error": "out of memory"} and len(heard) == 2


def test_recording_names_are_kept(tmp_path):
    recording = Recording("a.b.wav", find_recordings(["a.b.wav"])[0].name)
    assert Outputs(tmp_path, ["srt"], {}).files(recording) == {"srt": tmp_path / "a.b.srt"}


def test_the_command_itself(tiny_folder, tmp_path):
    """As a user types it, on recordings that libsndfile reads."""
    arguments = [DATA / "beeps.wav", DATA / "speech.mp3", "--max-new-tokens", "4", "--device", "cpu"]
    done = subprocess.run(
        [sys.executable, "-m", "moss_audio", "transcribe", *map(str, arguments), "--model", str(tiny_folder)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("[cut off]") == 2 and "2/2 recordings" in done.stderr
    pipe = pipeline("audio-text-to-text", model=str(tiny_folder), device="cpu")
    result = pipe(moss_audio.load_audio(DATA / "beeps.wav"), task="transcribe", max_new_tokens=4)
    assert result["generated_text"] in done.stdout
