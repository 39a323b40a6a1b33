"""Evaluation: a data file through the pipeline, and what is made of its answers."""

import json
import re

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from moss_audio import AudioTextToTextPipeline
from moss_audio.cli import app
from moss_audio.training import DataError
from moss_audio.training.evaluate import METRICS, METRICS_OF_TASKS, answers, evaluate, read_samples, save, table
from moss_audio.transcripts_moss_audio import split_reasoning
from tests.conftest import DATA


EVENTS = [{"start": 0.1, "end": 0.4, "label": "beep"}, {"start": 0.5, "end": 0.9, "label": "go"}]


def line(answer, task=None, question="What?", **extra):
    content = [{"type": "audio", "path": "a.wav"}, {"type": "text", "text": question}]
    chat = [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
    return {"messages": chat, **({} if task is None else {"task": task}), **extra}


@pytest.fixture
def data(tmp_path):
    """Writes a data file beside a recording."""
    soundfile.write(tmp_path / "a.wav", np.zeros(8000), 16000)

    def write(*lines):
        path = tmp_path / "data.jsonl"
        path.write_text("".join(json.dumps(entry) + "\n" for entry in lines))
        return path

    return write


class ScriptedPipeline:
    """Gives the answers of a script by the question; records the batches it was given."""

    def __init__(self, script):
        self.script, self.batches = script, []

    def _sanitize_parameters(self, **parameters):
        return {}, parameters, {}

    def preprocess(self, inputs):
        question = inputs["messages"][-1]["content"][-1]["text"]
        if question == "broken":
            raise ValueError("this is no sound")
        yield {"prompt": question, "is_last": True, "start": None, "end": None}

    def forward(self, batch, **generate_kwargs):
        self.batches.append((batch["prompt"], generate_kwargs))
        return {"ids": [self.script[question] for question in batch["prompt"]]}

    def postprocess(self, outputs):
        reasoning, answer = split_reasoning(outputs[0]["ids"])
        return {"generated_text": answer, "reasoning": reasoning}


def test_how_tasks_are_measured(data):
    path = data(
        line("seven go", "transcription"),
        line("[0.10]go[0.50]", "timestamps"),
        line("A beep.", "description", events=EVENTS),
        line("A beep.", "description"),
        line("At 0.50 seconds.", "when"),
        line("<think>\nbeep\n</think>\n\n1.", "count-thinking"),
        line("B", "choice"),
        line("free words"),
        line("B"),
        line("[0.10][S01]Hi.[0.50]", "meetings"),
        line("free words", metric="cer"),
    )
    samples = read_samples(path, {"choice": "wer"})
    expected = ["wer", "timestamps", "events", "wer", "times", "exact", "wer", "wer", "choice", "timestamps", "cer"]
    assert [sample.metric for sample in samples] == expected
    assert samples[5].reference == "1." and samples[7].task == "all" and samples[2].events == ["beep", "go"]
    assert [message["role"] for message in samples[0].messages] == ["user"]
    assert len(read_samples(path, limit=3)) == 3


def test_what_cannot_be_measured(data):
    path = data(line("A beep.", "sounds"), line("A beep.", "sounds", metric="bleu"))
    with pytest.raises(ValueError, match="'bleu' of task 'sounds' is none of wer, cer"):
        read_samples(path, {"sounds": "bleu"})
    with pytest.raises(DataError, match="line 1: task 'sounds' is measured by events.*has no `events`"):
        read_samples(path, {"sounds": "events"})
    with pytest.raises(DataError, match="line 2: `metric` is 'bleu'"):
        read_samples(path)
    with pytest.raises(DataError, match=r"line 1: `events` must be a list of .*'beep'"):
        read_samples(data(line("A beep.", "description", events=["beep"])))
    with pytest.raises(DataError, match="line 1: `duration` must be a number of seconds; it is 'long'"):
        read_samples(data(line("A beep.", "qa", duration="long")))
    with pytest.raises(ValueError, match="task 'sound', which no sample has; there are qa, sounds"):
        read_samples(data(line("a", "sounds"), line("a", "qa")), {"sound": "cer"})


def test_interrupted_it_measures_what_was_answered(data):
    pipe = ScriptedPipeline({"a": "yes"})  # the third question is not in the script
    forward = pipe.forward

    def interrupted(batch, **generate_kwargs):
        if "c" in batch["prompt"]:
            raise KeyboardInterrupt
        return forward(batch, **generate_kwargs)

    pipe.forward = interrupted
    path = data(*(line("yes", "qa", question, duration=index) for index, question in enumerate("aac")))
    report = evaluate(pipe, read_samples(path), batch_size=2, progress=False)
    assert report["tasks"]["qa"] == {"metric": "exact", "samples": 2, "accuracy": 1}
    assert [row.get("error") for row in report["answers"]] == [None, None, "interrupted before its answer"]


def test_answers_are_measured_by_task(data, tmp_path):
    path = data(
        line("seven go", "transcription", "t1"),
        line("one", "transcription", "t2"),
        line("[0.10]go[0.50]", "timestamps", "s1"),
        line("A beep, then go.", "description", "d1", events=EVENTS),
        line("2.", "count-thinking", "c1"),
        line("1.", "count", "c2"),
        line("0.", "count", "broken"),
    )
    script = {
        "t1": "Seven, no.",
        "t2": "one",
        "s1": "[0.12]go[0.50]",
        "d1": "Go, then a beep.",
        "c1": "<think>\n2 or 1\n</think>\n\n2.",
        "c2": "2.",
    }
    pipe = ScriptedPipeline(script)
    report = evaluate(pipe, read_samples(path), batch_size=2, progress=False, max_new_tokens=5)
    tasks = report["tasks"]
    assert tasks["transcription"] == {"metric": "wer", "samples": 2, "wer": pytest.approx(1 / 3)}
    assert tasks["timestamps"]["aas_ms"] == pytest.approx(10) and tasks["timestamps"]["matched"] == 1
    assert tasks["description"]["event_f1"] == pytest.approx(0.5)
    assert tasks["count-thinking"] == {"metric": "exact", "samples": 1, "accuracy": 1}
    assert tasks["count"] == {"metric": "exact", "samples": 1, "accuracy": 0}
    assert [row.get("wrong") for row in report["answers"]] == [True, False, False, True, False, True, None]
    assert report["answers"][4]["reasoning"] == "2 or 1"
    assert "no sound" in report["answers"][6]["error"] and report["answers"][6]["origin"].endswith("line 7")
    assert sum(len(questions) for questions, _ in pipe.batches) == 6
    assert all(options == {"do_sample": False, "max_new_tokens": 5} for _, options in pipe.batches)

    save(report, tmp_path / "new" / "report.json")
    assert json.loads((tmp_path / "new" / "report.json").read_text()) == report
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["report.json"]
    assert table(tasks).splitlines() == [
        "| task           | samples |    WER |   right | event F1 |     AAS | matched |",
        "| -------------- | ------: | -----: | ------: | -------: | ------: | ------: |",
        "| count          |       1 |        |   0.00% |          |         |         |",
        "| count-thinking |       1 |        | 100.00% |          |         |         |",
        "| description    |       1 |        |         |   0.5000 |         |         |",
        "| timestamps     |       1 |  0.00% |         |          | 10.0 ms | 100.00% |",
        "| transcription  |       2 | 33.33% |         |          |         |         |",
    ]


def test_samples_of_a_task_may_be_measured_in_two_ways(data):
    """Some have events to be compared and others have not: each is measured by what it has."""
    path = data(line("A beep.", "description", "d1", events=EVENTS[:1]), line("A dog.", "description", "d2"))
    pipe = ScriptedPipeline({"d1": "A beep.", "d2": "A cat."})
    report = evaluate(pipe, read_samples(path), progress=False)
    assert report["tasks"]["description (events)"]["event_f1"] == 1
    assert report["tasks"]["description (wer)"] == {"metric": "wer", "samples": 1, "wer": 0.5}
    assert [row["wrong"] for row in report["answers"]] == [False, True]


def test_samples_of_like_length_go_together(data):
    path = data(*(line("x", question=f"q{index}", duration=duration) for index, duration in enumerate((3, 9, 2, 8))))
    pipe = ScriptedPipeline(dict.fromkeys(("q0", "q1", "q2", "q3"), "x"))
    order = [index for index, _ in answers(pipe, read_samples(path), batch_size=2)]
    assert order == [2, 0, 3, 1] and [questions for questions, _ in pipe.batches] == [["q2", "q0"], ["q3", "q1"]]


def test_a_conversation_is_answered_at_its_end(data, model, processor):
    """Through the real pipeline: what stands before the last answer is the prompt, and batches answer as rows do."""
    turns = [*line("yes", question="First?")["messages"], {"role": "user", "content": "And then?"}]
    path = data(
        {"messages": [*turns, {"role": "assistant", "content": "no"}]}, line("yes", question="Longer question?")
    )
    pipe = AudioTextToTextPipeline(model=model, processor=processor)
    samples = read_samples(path)
    assert [message["role"] for message in samples[0].messages] == ["user", "assistant", "user"]
    options = {"progress": False, "max_new_tokens": 4}
    together = evaluate(pipe, samples, batch_size=2, **options)["answers"]
    alone = evaluate(pipe, samples, batch_size=1, **options)["answers"]
    assert together == alone
    expected = pipe(samples[0].messages, max_new_tokens=4, do_sample=False)["generated_text"]
    assert together[0]["answer"] == expected and together[0]["question"] == "And then?"


def test_the_command(data, tmp_path, tiny_folder):
    path = data(line("yes", "presence"), line("one two", "transcription"))
    arguments = ["evaluate", "--model", str(tiny_folder), "--data", str(path), "--max-new-tokens", "4"]
    report = tmp_path / "report.json"
    done = CliRunner().invoke(app, [*arguments, "--output", str(report), "--metric", "presence=cer"])
    assert done.exit_code == 0, done.output
    assert "| presence " in done.stdout and "presence: 1 not right:" in done.stdout and "right:  'yes'" in done.stdout
    kept = json.loads(report.read_text(encoding="utf-8"))
    assert kept["model"] == str(tiny_folder) and kept["tasks"]["presence"]["metric"] == "cer"
    assert [row["origin"].endswith(f"line {number}") for number, row in enumerate(kept["answers"], 1)] == [True, True]

    (tmp_path / "a.wav").write_bytes(b"no sound")
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 1 and "2 of 2 samples could not be answered" in done.stderr
    for wrong, message in (
        (["--metric", "presence=bleu"], "'bleu'"),
        (["--data", "no.jsonl"], "no.jsonl"),
        (["--output", str(tmp_path)], "is a folder"),
    ):
        done = CliRunner().invoke(app, [*arguments, *wrong])
        assert done.exit_code == 2 and message in done.stderr


def test_the_documentation_names_all_metrics():
    page = (DATA.parent.parent / "docs" / "evaluation.md").read_text(encoding="utf-8")
    named = {
        row.split("`")[1]: set(re.findall(r"`([\w-]+)`", row.rsplit(" | ", 1)[1]))
        for row in re.findall(r"^\| `.*", page, re.M)
    }
    assert set(named) == set(METRICS)
    for task, metric in METRICS_OF_TASKS.items():
        assert task in named[metric]
    sample = json.loads(re.search(r"```json\n(.*?)\n```", page)[1])
    assert set(sample) == {"messages", "task", "events", "duration"}
