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
"""The command line: `moss-audio ask`, `transcribe`, `caption`, `view`, `demo` and the commands of `moss_audio.conversion` and
`moss_audio.training`, also as `python -m moss_audio`.

Answers go to standard output in the order of the recordings; progress, warnings and failures go to standard error. The
exit status is 0 where everything was answered, 1 where a recording failed, 2 where the command cannot run at all.
"""

import json
import sys
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from .conversion import commands as conversion_commands
from .loading import check_checkpoint
from .training import commands as training_commands


app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="MOSS-Audio: ask about recordings, in sound and text; convert, check, make and fine-tune checkpoints.",
)


def _show_version(wanted: bool):
    if wanted:
        import torch
        import transformers

        from . import __version__

        print(f"moss-audio {__version__}, Transformers {transformers.__version__}, torch {torch.__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the versions and exit.")
    ] = False,
):
    """What goes before a command."""


Model = Annotated[
    str, typer.Option(help="Checkpoint: a folder, or an id on the Hugging Face Hub.", show_default=False)
]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps; auto takes an accelerator if there is one.")]
Dtype = Annotated[str, typer.Option(help="bfloat16, float16, float32; auto is the checkpoint's.")]
Recordings = Annotated[
    list[str],
    typer.Argument(help="Files, URLs, and folders to search for sound and video.", show_default=False),
]
Formats = Annotated[
    str, typer.Option(help="What to write: txt, json, srt, vtt, tsv, rttm; several with commas.", metavar="LIST")
]
Output = Annotated[
    Optional[str],
    typer.Option(help="Folder for the results; by default they are printed.", metavar="DIR", show_default=False),
]
ChunkLength = Annotated[float, typer.Option(help="Longest piece in seconds; a longer recording is cut. 0 never cuts.")]
MaxNewTokens = Annotated[
    Optional[int], typer.Option(min=1, help="Longest answer in tokens; by default by length.", show_default=False)
]
ThinkingBudget = Annotated[
    Optional[int],
    typer.Option(min=0, help="Tokens of thinking after which to answer.", metavar="N", show_default=False),
]
Thinking = Annotated[bool, typer.Option("--thinking/--no-thinking", help="Whether Thinking checkpoints may think.")]
Scores = Annotated[bool, typer.Option("--scores", help="Add to JSON how sure the model was of each segment.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace results that stem from other options.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Recordings, or pieces of them, answered at once.")]
Prompt = Annotated[
    Optional[str], typer.Option(help="A wording of your own instead of the released one.", show_default=False)
]


@app.command()
def ask(
    recordings: Annotated[list[str], typer.Argument(help="Files or URLs.", show_default=False)],
    model: Annotated[str, typer.Option(help="Checkpoint: a folder, or an id on the Hugging Face Hub.")],
    prompt: Annotated[str, typer.Option(help="The question or task.")] = "Describe this audio.",
    device: Annotated[
        str, typer.Option(help="cpu, cuda, cuda:1, mps; auto takes an accelerator if there is one.")
    ] = "auto",
    dtype: Annotated[str, typer.Option(help="bfloat16, float16, float32; auto is the checkpoint's.")] = "auto",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer in tokens.")] = 1024,
    batch_size: Annotated[int, typer.Option(min=1, help="Recordings answered at once.")] = 8,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line for each recording.")] = False,
):
    """Ask a question about one or more recordings."""
    from tqdm.auto import tqdm  # heavy imports wait until a command runs

    from .batches import answer_all

    pipe = load_pipeline(model, device, dtype)
    failed = 0
    results = answer_all(pipe, recordings, batch_size, text=prompt, max_new_tokens=max_new_tokens)
    with tqdm(total=len(recordings), unit="recording", file=sys.stderr, disable=len(recordings) == 1) as progress:
        for name, result in zip(recordings, results):
            failed += "error" in result
            with tqdm.external_write_mode():
                _print_result(name, result, as_json, headed=len(recordings) > 1)
            progress.update()
    if failed:
        print(f"{failed} of {len(recordings)} recordings failed.", file=sys.stderr)
        raise typer.Exit(1)


class Timestamps(str, Enum):
    """What a transcript may have times for."""

    sentence = "sentence"
    word = "word"


@app.command()
def transcribe(
    recordings: Recordings,
    model: Model,
    format: Formats = "txt",
    output: Output = None,
    timestamps: Annotated[
        Optional[Timestamps],
        typer.Option(help="Times by sentence or word; by sentence where a format has times.", show_default=False),
    ] = None,
    speakers: Annotated[bool, typer.Option("--speakers", help="Label the sentences with speakers.")] = False,
    keywords: Annotated[
        Optional[str],
        typer.Option(help="File of names and terms that may occur, one a line.", metavar="FILE", show_default=False),
    ] = None,
    language: Annotated[Optional[str], typer.Option(help="Language spoken: de, German, …", show_default=False)] = None,
    prompt: Prompt = None,
    chunk_length: ChunkLength = 600.0,
    batch_size: BatchSize = 8,
    max_new_tokens: MaxNewTokens = None,
    thinking: Thinking = True,
    thinking_budget: ThinkingBudget = None,
    scores: Scores = False,
    overwrite: Overwrite = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
):
    """Transcribe recordings, of any length, to text, subtitles or JSON.

    With --output the same command goes on after an interruption: what is
    finished is left alone.
    """
    formats = _formats(format)
    if "rttm" in formats and not prompt:
        speakers = True
    if timestamps is None and not speakers and not prompt and set(formats) & {"srt", "vtt", "tsv"}:
        timestamps = Timestamps.sentence
    options = {
        "text": prompt,
        "return_timestamps": timestamps and timestamps.value,
        "speakers": speakers or None,
        "keywords": _lines(keywords),
        "language": language,
        **_generation_options(chunk_length, max_new_tokens, thinking, thinking_budget, scores),
    }
    _answer_all("transcribe", recordings, model, device, dtype, formats, output, options, batch_size, overwrite)


@app.command()
def caption(
    recordings: Recordings,
    model: Model,
    format: Formats = "txt",
    output: Output = None,
    prompt: Prompt = None,
    chunk_length: ChunkLength = 600.0,
    batch_size: BatchSize = 8,
    max_new_tokens: MaxNewTokens = None,
    thinking: Thinking = True,
    thinking_budget: ThinkingBudget = None,
    scores: Scores = False,
    overwrite: Overwrite = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
):
    """Describe what is heard in recordings; a long one is described piece by piece.

    With --output the same command goes on after an interruption: what is
    finished is left alone.
    """
    options = {
        "text": prompt,
        **_generation_options(chunk_length, max_new_tokens, thinking, thinking_budget, scores),
    }
    _answer_all("caption", recordings, model, device, dtype, _formats(format), output, options, batch_size, overwrite)


def _formats(given: str) -> list[str]:
    from .writers import FORMATS

    formats = list(dict.fromkeys(name.strip().lower() for name in given.split(",")))
    for name in formats:
        if name not in FORMATS:
            raise typer.BadParameter(f"{name!r} is none of {', '.join(FORMATS)}.", param_hint="--format")
    return formats


def _lines(path: Optional[str]) -> Optional[list[str]]:
    if path is None:
        return None
    try:
        lines = Path(path).expanduser().read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"{path} cannot be read: {error}", param_hint="--keywords") from error
    return [line.strip() for line in lines if line.strip()] or None


def _generation_options(
    chunk_length: float, max_new_tokens: Optional[int], thinking: bool, thinking_budget: Optional[int], scores: bool
) -> dict[str, Any]:
    return {
        "chunk_length_s": chunk_length,
        "max_new_tokens": max_new_tokens,
        "enable_thinking": None if thinking else False,
        "thinking_budget": thinking_budget,
        "output_scores": scores or None,
    }


def _answer_all(
    task: str,
    recordings: list[str],
    model: str,
    device: str,
    dtype: str,
    formats: list[str],
    output: Optional[str],
    options: dict[str, Any],
    batch_size: int,
    overwrite: bool,
):
    """What `transcribe` and `caption` do: everything but the task itself."""
    from .outputs import Outputs, find_recordings
    from .tasks_moss_audio import task_prompt

    options = {name: value for name, value in options.items() if value is not None}
    given = {"timestamps" if name == "return_timestamps" else name: value for name, value in options.items()}
    try:
        names = ("text", "timestamps", "speakers", "keywords", "language")
        task_prompt(task, **{name: given[name] for name in names if name in given})
        found = find_recordings(recordings)
        outputs = None
        if output is not None:
            said = str(Path(model).resolve()) if Path(model).is_dir() else model
            outputs = Outputs(Path(output).expanduser(), formats, {"task": task, "model": said, **options})
        elif len(formats) > 1 or len(found) > 1 and formats[0] not in ("txt", "json"):
            raise ValueError(f"{len(found)} recordings as {', '.join(formats)} need a folder; pass --output DIR.")
    except (OSError, ValueError) as error:
        print(f"moss-audio: {error}", file=sys.stderr)
        raise typer.Exit(2) from error
    from .transcribing import Run

    run = Run(found, formats, outputs, model, overwrite)
    try:
        if run.todo:
            pipe = load_pipeline(model, device, dtype)
            run.answer(pipe, batch_size, task=task, **options)
    except KeyboardInterrupt as error:
        print("moss-audio: interrupted; with --output the same command goes on where it was.", file=sys.stderr)
        raise typer.Exit(130) from error
    if not run.report():
        raise typer.Exit(1)


def load_pipeline(model: str, device: str, dtype: str) -> Any:
    """The pipeline for a checkpoint; a message and exit status 2 where it cannot be loaded."""
    import torch

    from . import AudioTextToTextPipeline, MossAudioConfig, MossAudioModel, MossAudioProcessor

    if dtype not in ("auto", "bfloat16", "float16", "float32"):
        raise typer.BadParameter(f"{dtype!r} is none of auto, bfloat16, float16, float32.", param_hint="--dtype")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise typer.BadParameter(f"{device!r} cannot be used: {error}", param_hint="--device") from error
    try:
        check_checkpoint(model)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--model") from error
    try:
        config_dict, _ = MossAudioConfig.get_config_dict(model)
        if config_dict.get("model_type") != MossAudioConfig.model_type:
            raise ValueError(f"its config.json has `model_type` {config_dict.get('model_type')!r}, not 'moss_audio'.")
        processor = MossAudioProcessor.from_pretrained(model)
        loaded = MossAudioModel.from_pretrained(model, dtype=dtype)
        return AudioTextToTextPipeline(model=loaded, processor=processor, device=torch.device(device))
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        print(f"moss-audio: {model} cannot be loaded: {error}", file=sys.stderr)
        raise typer.Exit(2) from error


def _print_result(name: str, result: dict[str, Optional[str]], as_json: bool, headed: bool):
    if "error" in result:
        print(f"moss-audio: {name}: {result['error']}", file=sys.stderr)
    if as_json:
        print(json.dumps({"audio": name, **result}, ensure_ascii=False), flush=True)
    elif "error" not in result:
        print(f"{name}:\n{result['generated_text']}\n" if headed else result["generated_text"], flush=True)


@app.command()
def view(
    recording: Annotated[str, typer.Argument(help="The recording: WAV, FLAC, OGG, MP3.", show_default=False)],
    result: Annotated[
        str, typer.Argument(help="Its result: a JSON file, or the lines of `ask --json`.", show_default=False)
    ],
    output: Annotated[
        Optional[str],
        typer.Option("--output", "-o", help="The page; by default beside RESULT, as .html.", show_default=False),
    ] = None,
    embed_megabytes: Annotated[
        float, typer.Option(min=0, help="A page whose sound takes more plays the recording from where it is.")
    ] = 25.0,
):
    """Make a page to look at a result and listen to its recording: one file, no network."""
    from .view import write_page
    from .writers import read_results

    try:
        results = read_results(result)
        if len(results) > 1:
            results = [item for item in results if Path(item["audio"] or "").name == Path(recording).name]
        if len(results) != 1:
            raise ValueError(f"{result} has {len(results) or 'no'} results for {Path(recording).name}; it needs one.")
        page = write_page(recording, results[0], output or Path(result).with_suffix(".html"), embed_megabytes)
    except (OSError, ValueError, ImportError) as error:
        print(f"moss-audio: {error}", file=sys.stderr)
        raise typer.Exit(2) from error
    print(page)


@app.command()
def demo(
    model: Annotated[
        Optional[str], typer.Option(help="Another checkpoint than the small one.", show_default=False)
    ] = None,
    device: Device = "auto",
):
    """Ask the small checkpoint about the demo clips, and show what is really in them."""
    from .checkpoints import TINY
    from .checkpoints.demo import run

    print(run(load_pipeline(model or TINY, device, "auto")))


conversion_commands.register(app)
training_commands.register(app)


def main():
    """Entry point of the console script."""
    for stream in (sys.stdout, sys.stderr):  # answers are in any language, also where the terminal's code page is not
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8")
    app(prog_name="moss-audio")
