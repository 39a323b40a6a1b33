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
"""The commands of `moss-audio` that train: check-data, finetune, merge. What they do is in the other modules, which are
imported when a command runs.
"""

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Optional

import typer


def check_data(
    files: Annotated[list[Path], typer.Argument(help="JSON Lines, JSON or Parquet files.", show_default=False)],
    model: Annotated[str, typer.Option(help="Checkpoint whose processor counts: a folder, or an id on the Hub.")],
    max_length: Annotated[
        Optional[int], typer.Option(help="Longest sample in tokens; the decoder's positions by default.")
    ] = None,
    system_prompt: Annotated[Optional[str], typer.Option(help="For samples without one of their own.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object a sample, and one in the end.")
    ] = False,
):
    """Read training data as training would, and say what is wrong with it, line by line.

    No weights are loaded. The exit status is 1 where something is wrong,
    2 where a file cannot be read at all.
    """
    from moss_audio.loading import check_checkpoint
    from moss_audio.processing_moss_audio import MossAudioProcessor

    from .check import Report, check_file
    from .collator import MossAudioDataCollator
    from .data import DataError

    try:
        check_checkpoint(model)
        processor = MossAudioProcessor.from_pretrained(model)
        collator = MossAudioDataCollator(processor, max_length=max_length, system_prompt=system_prompt)
        report = Report()
        for file in files:
            for length in check_file(file, collator, report):
                _print_length(length, as_json)
    except (DataError, OSError, ValueError, ImportError) as error:
        _fail(error)
    print(json.dumps(report.as_dict()) if as_json else "\n".join(report.summary()))
    if report.problems:
        raise typer.Exit(1)


def _print_length(length: Any, as_json: bool):
    if as_json:
        values = {"origin": length.entry.origin, "seconds": round(length.seconds, 2), "tokens": length.tokens}
        print(json.dumps({**values, **({"error": str(length.error)} if length.error else {})}, ensure_ascii=False))
    elif length.error is not None:
        print(length.error)


def finetune(context: typer.Context):
    """Fine-tune a checkpoint by the standard Trainer. --help lists the options."""
    try:
        from .finetune import main
    except ImportError as error:  # accelerate, say
        _fail(ImportError(f"{error}; fine-tuning needs `pip install accelerate datasets peft`."))
    main(context.args)


def merge(
    adapter: Annotated[str, typer.Argument(help="Folder that --stage lora wrote.", show_default=False)],
    target: Annotated[str, typer.Argument(help="Folder to make.", show_default=False)],
    model: Annotated[
        Optional[str], typer.Option(help="Checkpoint under it; by default the one it was trained on.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="bfloat16, float16, float32; auto is the checkpoint's.")] = "auto",
):
    """Fold LoRA weights into their checkpoint: a folder like any other."""
    try:
        from .merge import merge as fold

        print(f"{fold(adapter, target, model, dtype)} is complete.")
    except (OSError, ValueError, ImportError) as error:
        _fail(error)


def evaluate(
    model: Annotated[str, typer.Option(help="Checkpoint: a folder, or an id on the Hugging Face Hub.")],
    data: Annotated[Path, typer.Option(help="Data file in a layout of fine-tuning.", show_default=False)],
    output: Annotated[
        Optional[Path], typer.Option(help="JSON file for figures and answers.", show_default=False)
    ] = None,
    metric: Annotated[
        Optional[list[str]],
        typer.Option(
            help="TASK=METRIC where the default does not fit: wer, cer, timestamps, exact, choice, times, events.",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[Optional[int], typer.Option(min=1, help="Measure on the first so many samples.")] = None,
    show_wrong: Annotated[int, typer.Option(min=0, help="List so many wrong answers of each task.")] = 3,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples answered at once.")] = 8,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer in tokens.")] = 512,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps; auto takes an accelerator.")] = "auto",
    dtype: Annotated[str, typer.Option(help="bfloat16, float16, float32; auto is the checkpoint's.")] = "auto",
):
    """Answer a data file and measure the answers by task.

    Error rates, deviation of timestamps, exact matches, event F1. The exit
    status is 1 where a sample could not be answered.
    """
    from moss_audio.cli import load_pipeline

    from .data import DataError
    from .evaluate import evaluate as measure
    from .evaluate import read_samples, save, table, wrong_answers
    from .scoring import import_jiwer

    try:
        import_jiwer()
        if output is not None and output.is_dir():
            raise ValueError(f"--output {output} is a folder; name a JSON file.")
        pairs = [entry.partition("=") for entry in metric or ()]
        if bare := [task for task, sign, _ in pairs if not sign]:
            raise ValueError(f"--metric {bare[0]} names no metric; write TASK=METRIC, e.g. {bare[0]}=exact.")
        samples = read_samples(data, {task: name for task, _, name in pairs}, limit)
    except (DataError, OSError, ValueError, ImportError) as error:
        _fail(error)
    pipe = load_pipeline(model, device, dtype)
    report = measure(pipe, samples, batch_size, max_new_tokens=max_new_tokens)
    print(table(report["tasks"]))
    for line in wrong_answers(report["answers"], show_wrong):
        print(line)
    if output is not None:
        try:
            save({"model": model, "data": str(data), **report}, output)
        except OSError as error:
            _fail(error)
    failed = [row for row in report["answers"] if "error" in row]
    for row in failed:
        print(f"moss-audio: {row['origin']}: {row['error']}", file=sys.stderr)
    if failed:
        print(f"{len(failed)} of {len(samples)} samples could not be answered.", file=sys.stderr)
        raise typer.Exit(1)


def _fail(error: Exception):
    print(f"moss-audio: {error}", file=sys.stderr)
    raise typer.Exit(2) from error


def register(app: typer.Typer):
    """Adds the commands to an application."""
    app.command("check-data")(check_data)
    # What follows `finetune` is read by Transformers' own parser of arguments, `--help` included.
    passed_on = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
    app.command("finetune", context_settings=passed_on, add_help_option=False)(finetune)
    app.command("merge")(merge)
    app.command("evaluate")(evaluate)
