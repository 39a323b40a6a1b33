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
"""Measures a checkpoint on a data file: its answers against the last answer of every sample, by task.

`moss-audio evaluate` is this module as a command. The data is in the layouts of fine-tuning; a sample's `task` sorts it
into a row of the table, and `metric` says how it is measured.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Optional, Union

from torch.utils.data import Dataset

from moss_audio.batches import answer_all
from moss_audio.transcripts_moss_audio import parse_transcript, split_reasoning

from . import scoring
from .data import DataError, load_samples


THINKING = "-thinking"  # the end of a task's name: its answers are measured like the task's, without the reasoning

# What the tasks that people name are measured by.
METRICS_OF_TASKS = {
    **dict.fromkeys(("transcription", "transcribe", "asr"), "wer"),
    **dict.fromkeys(("timestamps", "word-timestamps", "sentence-timestamps", "diarization"), "timestamps"),
    **dict.fromkeys(("question", "qa", "count", "order", "presence", "no-speech"), "exact"),
    **dict.fromkeys(("choice", "multiple-choice"), "choice"),
    **dict.fromkeys(("description", "describe", "caption"), "events"),
    "when": "times",
}
METRICS = ("wer", "cer", "timestamps", "exact", "choice", "times", "events")


class Sample(NamedTuple):
    """A sample to be answered: the conversation up to the answer, and the answer."""

    origin: str
    task: str
    metric: str
    messages: list[dict[str, Any]]
    reference: str
    events: Optional[list[str]]
    seconds: float


def read_samples(
    data: Union[str, Path, Dataset], chosen: Optional[Mapping[str, str]] = None, limit: Optional[int] = None
) -> list[Sample]:
    """
    The samples of a data file (see [`~moss_audio.training.load_samples`]) as they are measured.

    Args:
        chosen: task to metric, where the defaults do not fit.
        limit: how many to read; all by default.

    Raises:
        DataError: where the data cannot be used, or a sample lacks what its metric needs.
        ValueError: for a metric that does not exist, or one of a task that no sample has.
    """
    for task, metric in (chosen or {}).items():
        if metric not in METRICS:
            raise ValueError(f"the metric {metric!r} of task {task!r} is none of {', '.join(METRICS)}.")
    rows = load_samples(data)
    count = len(rows) if limit is None else min(limit, len(rows))
    samples = [_sample(rows[index], chosen or {}) for index in range(count)]
    tasks = {sample.task for sample in samples}
    for task in (chosen or {}).keys() - tasks - {task.removesuffix(THINKING) for task in tasks}:
        raise ValueError(
            f"a metric is given for task {task!r}, which no sample has; there are {', '.join(sorted(tasks))}."
        )
    return samples


def _sample(row: Mapping[str, Any], chosen: Mapping[str, str]) -> Sample:
    *messages, answer = row["messages"]
    content = answer["content"]
    text = content if isinstance(content, str) else "".join(part["text"] for part in content)
    _, reference = split_reasoning(text)
    events = row.get("events")
    task = str(row.get("task") or "all")
    general = task.removesuffix(THINKING)
    metric = chosen.get(task) or chosen.get(general) or row.get("metric") or _metric(general, reference, events)
    if metric not in METRICS:
        raise DataError(f"{row['origin']}: `metric` is {metric!r}; expected one of {', '.join(METRICS)}.")
    if metric == "events" and events is None:
        raise DataError(
            f"{row['origin']}: task {task!r} is measured by events, and the sample has no `events`, a list of "
            f'{{"label": …}}; add them, or choose another metric (`--metric {task}=wer`).'
        )
    try:
        labels = None if events is None else [str(event["label"]) for event in events]
    except (TypeError, KeyError) as error:
        raise DataError(f'{row["origin"]}: `events` must be a list of {{"label": …}}; it is {events!r}.') from error
    try:
        seconds = float(row.get("duration") or 0)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{row['origin']}: `duration` must be a number of seconds; it is {row['duration']!r}."
        ) from error
    return Sample(row["origin"], task, metric, messages, reference, labels, seconds)


def _metric(task: str, reference: str, events: Any) -> str:
    """How a task is measured about which nothing was said."""
    if task in METRICS_OF_TASKS:
        metric = METRICS_OF_TASKS[task]
        return "wer" if metric == "events" and events is None else metric
    if any(segment.start is not None for segment in parse_transcript(reference)):
        return "timestamps"
    return "choice" if re.fullmatch("[A-D]", reference) else "wer"


def answers(
    pipe: Any, samples: Sequence[Sample], batch_size: int = 8, **generate_kwargs
) -> Iterator[tuple[int, dict[str, Any]]]:
    """
    The pipeline's result for each sample, with its index; those of like length go together.

    A sample that cannot be answered, because a recording is no sound, say, gives `{"error": …}`.
    """
    order = sorted(range(len(samples)), key=lambda index: (samples[index].seconds, len(str(samples[index].messages))))
    chats = ({"messages": samples[index].messages} for index in order)
    yield from zip(order, answer_all(pipe, chats, batch_size, **generate_kwargs))


def evaluate(
    pipe: Any,
    samples: Sequence[Sample],
    batch_size: int = 8,
    progress: bool = True,
    **generate_kwargs,
) -> dict[str, Any]:
    """
    Answers all samples and measures the answers. Interrupted (Ctrl-C), it measures what was answered; the other samples
    have an `error`.

    Args:
        pipe ([`~moss_audio.AudioTextToTextPipeline`]): of the checkpoint.
        samples: see [`read_samples`].
        batch_size: samples answered at once.
        generate_kwargs: e.g. `max_new_tokens`; greedy unless said otherwise.

    Returns:
        `tasks`: for each task (`TASK (METRIC)` where its samples are measured in several ways) its `metric`, the number of
        `samples` and the figures of the metric (see [`~moss_audio.training.scoring`]); `answers`: a dict with `origin`, `task`, `question`, `reference`, `answer`,
        `reasoning` and `wrong` for each sample, or with `error`.
    """
    from tqdm.auto import tqdm

    generate_kwargs = {"do_sample": False, **generate_kwargs}
    results: list[dict[str, Any]] = [{"error": "interrupted before its answer"}] * len(samples)
    with tqdm(total=len(samples), unit="sample", disable=not progress) as bar, suppress(KeyboardInterrupt):
        for index, result in answers(pipe, samples, batch_size, **generate_kwargs):
            results[index] = result
            bar.update()
    rows = [_row(sample, result) for sample, result in zip(samples, results)]
    labels = sorted({label for sample in samples for label in sample.events or ()})
    tasks = {}
    measured = sorted({(sample.task, sample.metric) for sample in samples})
    for task, metric in measured:
        chosen = [index for index, sample in enumerate(samples) if (sample.task, sample.metric) == (task, metric)]
        chosen = [index for index in chosen if "error" not in rows[index]]
        if not chosen:
            continue
        name = task if sum(task == other for other, _ in measured) == 1 else f"{task} ({metric})"
        score = _score(
            metric, [samples[index] for index in chosen], [rows[index]["answer"] for index in chosen], labels
        )
        for index, wrong in zip(chosen, score.wrong):
            rows[index]["wrong"] = wrong
        tasks[name] = {"metric": metric, "samples": len(chosen), **score.figures}
    return {"tasks": tasks, "answers": rows}


def _row(sample: Sample, result: Mapping[str, Any]) -> dict[str, Any]:
    question = sample.messages[-1]["content"]
    if not isinstance(question, str):
        question = "\n".join(part["text"] for part in question if part["type"] == "text")
    row = {"origin": sample.origin, "task": sample.task, "question": question, "reference": sample.reference}
    if "error" in result:
        return {**row, "error": result["error"]}
    return {**row, "answer": result["generated_text"], "reasoning": result["reasoning"]}


def _score(metric: str, samples: Sequence[Sample], found: list[str], labels: Sequence[str]) -> scoring.Score:
    references = [sample.reference for sample in samples]
    if metric == "events":
        named = [scoring.find_events(answer, labels) for answer in found]
        return scoring.event_f1([sample.events for sample in samples], named)
    functions = {
        "wer": scoring.word_error_rate,
        "cer": scoring.character_error_rate,
        "timestamps": scoring.timestamp_score,
        "exact": scoring.exact_match,
        "choice": scoring.chosen_letters,
        "times": scoring.time_answers,
    }
    return functions[metric](references, found)


# --------------------------------------------------------------------------------------------------------------- report

_FIGURES = {
    "wer": ("WER", "{:.2%}"),
    "cer": ("CER", "{:.2%}"),
    "accuracy": ("right", "{:.2%}"),
    "event_f1": ("event F1", "{:.4f}"),
    "aas_ms": ("AAS", "{:.1f} ms"),
    "matched": ("matched", "{:.2%}"),
}


def table(tasks: Mapping[str, Mapping[str, Any]]) -> str:
    """The figures as a Markdown table, a row for each task."""
    columns = [name for name in _FIGURES if any(row.get(name) is not None for row in tasks.values())]
    header = ["task", "samples", *(_FIGURES[name][0] for name in columns)]
    rows = [
        [task, str(row["samples"]), *("" if row.get(n) is None else _FIGURES[n][1].format(row[n]) for n in columns)]
        for task, row in tasks.items()
    ]
    widths = [max(map(len, column)) for column in zip(header, *rows)]
    rule = ["-" * width if index == 0 else "-" * (width - 1) + ":" for index, width in enumerate(widths)]

    def line(cells: list[str]) -> str:
        padded = [
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(cells, widths))
        ]
        return f"| {' | '.join(padded)} |"

    return "\n".join([line(header), line(rule), *map(line, rows)])


def wrong_answers(rows: Sequence[Mapping[str, Any]], most: int) -> Iterator[str]:
    """The first wrong answers of each task, to be printed: where, what was asked, said, and right."""
    for task in sorted({row["task"] for row in rows}):
        wrong = [row for row in rows if row["task"] == task and row.get("wrong")]
        if wrong and most:
            yield f"\n{task}: {len(wrong)} not right" + (f", the first {most}:" if len(wrong) > most else ":")
        for row in wrong[:most]:
            question = " ".join(row["question"].split())
            yield f"  {row['origin']}: {question if len(question) < 120 else f'{question[:40]} … {question[-76:]}'}"
            yield f"    answer: {row['answer']!r}"
            yield f"    right:  {row['reference']!r}"


def save(report: Mapping[str, Any], path: Union[str, Path]):
    """Writes a report as JSON; the file is there as a whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(report, ensure_ascii=False, indent=1), encoding="utf-8")
    partial.replace(path)
