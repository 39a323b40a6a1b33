"""The checkpoint that ships with the package: it hears what is there, whatever the company, dtype and Transformers."""

import json
import re
import shutil
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import pipeline
from typer.testing import CliRunner

from moss_audio import (
    AudioTextToTextPipeline,
    MossAudioModel,
    MossAudioProcessor,
    parse_transcript,
    split_reasoning,
)
from moss_audio.checkpoints import TINY, demo
from moss_audio.checkpoints.demo import main_questions, read_clips
from moss_audio.cli import app
from moss_audio.training import tiny_world
from moss_audio.training.evaluate import THINKING, evaluate, read_samples, table
from moss_audio.training.tiny_world import (
    ASKERS,
    DESCRIBE,
    NO_SPEECH,
    RATE,
    TIMESTAMPS,
    TRANSCRIBE,
    coloured_noise,
    description,
    transcript,
    words_of,
)
from tests.conftest import run_python


ROOT = Path(__file__).parents[1]
REPORT = json.loads((ROOT / "checkpoints/evaluation/report.json").read_text(encoding="utf-8"))["tasks"]
CLIPS = read_clips()
PATHS = [str(path) for path, _ in CLIPS]
THE = r'the (word "\w+"|[\w ]+)'
FORMS = {
    "when": rf"T{THE[1:]} (starts|ends) at \d+\.\d\d seconds\.",
    "count": r"\d\.",
    "order": rf"((First|Last) comes|(After|Before) {THE} comes) (the word \"\w+\"|a [\w ]+|clicks|nothing)\.",
    "presence": r"Yes\.|No\.",
    "choice": "[ABCD]",
}
CLOSE = 0.1  # seconds that a timestamp of these clips may be off


def waveform(path: Path) -> np.ndarray:
    with wave.open(str(path)) as file:
        return np.frombuffer(file.readframes(file.getnframes()), dtype="<i2").astype(np.float32) / 32768


@pytest.fixture(scope="module")
def pipe():
    return pipeline("audio-text-to-text", model=TINY, dtype=torch.float32)


def texts(results) -> list[str]:
    return [result["generated_text"] for result in results]


def deviations(answer: str, clip) -> list[float]:
    """Seconds by which the starts and ends in an answer are off; it must have the clip's words."""
    segments, events = parse_transcript(answer), words_of(clip)
    assert [segment.text for segment in segments] == [event.label for event in events], answer
    pairs = [(s.start, e.start) for s, e in zip(segments, events)] + [(s.end, e.end) for s, e in zip(segments, events)]
    return [abs(said - is_there) for said, is_there in pairs]


def test_the_folder_holds_data_alone_and_is_small():
    files = list(Path(TINY).iterdir())
    assert {"config.json", "model.safetensors", "processor_config.json", "tokenizer.json", "chat_template.jinja"} <= {
        path.name for path in files
    }
    assert not any(path.suffix == ".py" for path in files)
    assert sum(path.stat().st_size for path in files) <= 16e6
    assert not re.search(r"auto_map|custom_pipelines", Path(TINY, "config.json").read_text(encoding="utf-8"))


def test_the_readme_tells_how_well_it_listens():
    """By the evaluation that is kept: the table is what `moss-audio evaluate` made of its figures."""
    shown = table(REPORT)
    assert shown in (ROOT / "README.md").read_text(encoding="utf-8")
    assert (ROOT / "checkpoints/evaluation/report.md").read_text(encoding="utf-8").startswith(shown)


def test_it_has_every_part():
    model = MossAudioModel.from_pretrained(TINY, dtype="auto")
    assert model.dtype == torch.bfloat16
    assert (
        len(model.deepstack_audio_merger_list) == len(model.config.audio_config.deepstack_encoder_layer_indexes) == 3
    )
    processor = MossAudioProcessor.from_pretrained(TINY)
    assert processor.enable_time_marker
    assert processor.tokenizer.tokenize("[10.52]") == ["[", "1", "0", ".", "5", "2", "]"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_transcribes_the_clips(dtype):
    pipe = pipeline("audio-text-to-text", model=TINY, dtype=dtype)
    assert texts(pipe(PATHS, text="Transcribe the audio.")) == [transcript(clip) for _, clip in CLIPS]
    for (_, clip), answer in zip(CLIPS, texts(pipe(PATHS, text=TIMESTAMPS[0]))):
        assert max(deviations(answer, clip)) < CLOSE


def test_a_batch_gives_what_its_members_give_alone(pipe):
    sounds = [waveform(path) for path, _ in CLIPS]
    clips = [*sounds, sounds[0][: 3 * RATE], sounds[1][2 * RATE : 5 * RATE], np.zeros(2 * RATE, dtype=np.float32)]
    questions = [TIMESTAMPS[0], "Describe this audio.", "How many words are spoken? Think first.", "Is there speech?"]
    inputs = [{"audio": clip, "text": question} for clip in clips for question in questions]
    alone = [pipe(one, max_new_tokens=128) for one in inputs]
    assert pipe(inputs, batch_size=len(inputs), max_new_tokens=128) == alone
    assert len(set(texts(alone))) > len(clips)


@pytest.mark.parametrize("seconds", [2.5, 7.0])
def test_silence_and_noise_are_no_words(pipe, seconds):
    random = np.random.default_rng(0)
    count = int(seconds * RATE)
    quiet = [np.zeros(count, dtype=np.float32)]
    quiet += [0.02 * coloured_noise(random, count, np.float32(exponent)) for exponent in (0, 0.5, 1)]
    assert texts(pipe(quiet, text="Transcribe the audio.")) == [NO_SPEECH] * 4
    assert texts(pipe(quiet, text=TIMESTAMPS[0])) == [NO_SPEECH] * 4
    assert texts(pipe(quiet, text="Is there speech?")) == ["No."] * 4


def test_thinking_lists_the_events(pipe):
    for path, clip in CLIPS:
        result = pipe(str(path), text="How many words are spoken? Think first.", max_new_tokens=256)
        assert result["generated_text"] == f"{len(words_of(clip))}."
        listed, there = (
            [line.split(": ")[1] for line in result["reasoning"].splitlines()],
            [e.label for e in clip.events],
        )
        assert there[: len(listed)] == listed and len(listed) >= len(there) - 1  # the checkpoint may stop early


def save(folder: Path):
    MossAudioModel.from_pretrained(TINY, dtype="auto").save_pretrained(folder)
    MossAudioProcessor.from_pretrained(TINY).save_pretrained(folder)


def convert(folder: Path):
    done = CliRunner().invoke(app, ["convert", str(TINY), str(folder)])
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize("write", [save, convert])
def test_saved_or_converted_it_answers_the_same_without_the_package(write, pipe, tmp_path):
    write(tmp_path / "saved")
    np.save(tmp_path / "clip.npy", waveform(CLIPS[0][0]))
    code = f"""
import json
import numpy as np, torch
from transformers import pipeline
pipe = pipeline("audio-text-to-text", model="saved", trust_remote_code=True, dtype=torch.float32, device="cpu")
print("RESULT" + json.dumps(pipe(np.load("clip.npy"), text={TIMESTAMPS[0]!r})["generated_text"]))
"""
    output = run_python(code, cwd=tmp_path, blocked=["moss_audio"])
    assert json.loads(output.split("RESULT")[1]) == pipe(PATHS[0], text=TIMESTAMPS[0])["generated_text"]


def test_a_long_recording_has_no_seams(pipe):
    """Four clips in a row, cut by the pipeline where it likes: no word is lost, doubled or out of place."""
    order = [CLIPS[index % len(CLIPS)] for index in range(4)]
    sound = np.concatenate([waveform(path) for path, _ in order])
    result = pipe(sound, task="transcribe", return_timestamps="sentence", chunk_length_s=10, batch_size=4)
    expected, shift = [], 0.0
    for _, clip in order:
        expected += [(event.label, event.start + shift, event.end + shift) for event in words_of(clip)]
        shift += clip.seconds
    assert [segment["text"] for segment in result["segments"]] == [label for label, *_ in expected]
    for segment, (_, start, end) in zip(result["segments"], expected):
        # A word that touches a chord is heard to end 0.11 s late; a seam in the wrong place would shift words by seconds.
        assert abs(segment["start"] - start) < CLOSE and abs(segment["end"] - end) < 1.5 * CLOSE


@pytest.mark.parametrize("prompt", DESCRIBE)
def test_every_wording_asks_for_the_same_description(pipe, prompt):
    for answer, (_, clip) in zip(texts(pipe(PATHS, text=prompt)), CLIPS):
        assert answer == description(clip)


@pytest.mark.parametrize("prompt", TRANSCRIBE)
def test_every_wording_asks_for_the_same_transcript(pipe, prompt):
    assert texts(pipe(PATHS, text=prompt)) == [transcript(clip) for _, clip in CLIPS]


@pytest.mark.parametrize("index", range(len(CLIPS)))
def test_every_kind_of_question_is_answered_in_its_form(pipe, index):
    """Whether rightly is measured on many clips, by `moss-audio evaluate`."""
    path, clip = CLIPS[index]
    asked = main_questions(clip, index)
    assert {question.task for question in asked} >= set(ASKERS)
    answers = texts(pipe([{"audio": str(path), "text": question.prompt} for question in asked], max_new_tokens=256))
    for question, answer in zip(asked, answers):
        form = FORMS.get(question.task.removesuffix("-thinking"))
        assert form is None or re.fullmatch(form, answer), (question.prompt, answer)


@pytest.fixture(scope="module")
def new_samples(tmp_path_factory) -> list:
    """Questions about 60 clips of their own, with voices that were never heard."""
    if shutil.which("espeak-ng") is None:
        pytest.skip("espeak-ng is not installed")
    folder = tmp_path_factory.mktemp("world")
    tiny_world.main([str(folder), "--split", "test", "--clips", "60", "--seed", "7"])
    return read_samples(folder / "test.jsonl")


def test_without_time_markers_the_timestamps_are_worse(pipe, new_samples):
    samples = [sample for sample in new_samples if sample.task == "timestamps"]
    processor = MossAudioProcessor.from_pretrained(TINY)
    processor.enable_time_marker = False
    unmarked = AudioTextToTextPipeline(model=pipe.model, processor=processor)
    marked, lost = (evaluate(one, samples, batch_size=32)["tasks"]["timestamps"] for one in (pipe, unmarked))
    assert marked["samples"] > 40 and marked["matched"] > 0.9
    assert lost["aas_ms"] > 1.5 * marked["aas_ms"]


def test_about_new_clips_it_is_as_often_right_as_the_readme_tells(pipe, new_samples):
    """By more than chance leaves open: bounds are four standard deviations of so few samples below what 500 clips gave."""
    samples = [sample for sample in new_samples if not sample.task.endswith(THINKING)]
    tasks = evaluate(pipe, samples, batch_size=32, max_new_tokens=256)["tasks"]
    for task in ("choice", "count", "order", "presence", "when", "no-speech"):
        told, count = REPORT[task]["accuracy"], tasks[task]["samples"]
        assert count >= 10
        assert tasks[task]["accuracy"] >= told - 4 * (told * (1 - told) / count) ** 0.5, task
    assert tasks["transcription"]["wer"] < 3 * REPORT["transcription"]["wer"]
    assert tasks["description"]["event_f1"] > 1 - 2 * (1 - REPORT["description"]["event_f1"])


def test_the_demo(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["demo"])
    assert done.exit_code == 0, done.output
    for path, clip in CLIPS:
        assert path.name in done.output and all(f": {event.label}\n" in done.output for event in clip.events)
    assert len(re.findall(r"^  \d+ answers in \d+\.\d s\.$", done.output, re.MULTILINE)) == len(CLIPS)


def test_the_demo_shows_what_is_wrong():
    class Wrong:
        """Answers everything by "7."."""

        def __call__(self, inputs, **kwargs):
            return [{"generated_text": "7.", "reasoning": None} for _ in inputs]

    shown = demo.run(Wrong())
    asked = [question for index, (_, clip) in enumerate(CLIPS) for question in main_questions(clip, index)]
    assert shown.count("    7.\n") == shown.count("    in the clip: ") == len(asked)
    assert all(f"    in the clip: {split_reasoning(question.answer)[1]}\n" in shown for question in asked)
