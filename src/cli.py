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
"""The command line: `moss-audio ask` and the commands of `moss_audio.conversion` and `moss_audio.training`, also as
`python -m moss_audio`.

Answers go to standard output in the order of the recordings; progress, warnings and failures go to standard error. The
exit status is 0 where everything was answered, 1 where a recording failed, 2 where the command cannot run at all.
"""

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from .conversion import commands as conversion_commands
from .training import commands as training_commands


app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="MOSS-Audio: ask about recordings, in sound and text; convert, check, make and fine-tune checkpoints.",
)


@app.command()
def ask(
    recordings: Annotated[list[str], typer.Argument(help="Files or URLs: WAV, FLAC, OGG, MP3.", show_default=False)],
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

    pipe = _load_pipeline(model, device, dtype)
    failed = 0
    with tqdm(total=len(recordings), unit="recording", file=sys.stderr, disable=len(recordings) == 1) as progress:
        for start in range(0, len(recordings), batch_size):
            names = recordings[start : start + batch_size]
            results = _answer(pipe, names, prompt, max_new_tokens)
            for name, result in zip(names, results):
                failed += "error" in result
                with tqdm.external_write_mode():
                    _print_result(name, result, as_json, headed=len(recordings) > 1)
            progress.update(len(names))
    if failed:
        print(f"{failed} of {len(recordings)} recordings failed.", file=sys.stderr)
        raise typer.Exit(1)


def _load_pipeline(model: str, device: str, dtype: str) -> Any:
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
    if model.startswith((".", "/", "~")) and not Path(model).expanduser().is_dir():
        raise typer.BadParameter(f"there is no folder {model!r}.", param_hint="--model")
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


def _answer(pipe: Any, names: list[str], prompt: str, max_new_tokens: int) -> list[dict[str, Optional[str]]]:
    """Answers for recordings, in order; one that cannot be used gets an `error` and does not hold up the others."""
    inputs, results = [], []
    for name in names:
        try:
            inputs.append(pipe.preprocess({"audio": name, "text": prompt}))
            results.append({})
        except (OSError, ValueError, ImportError) as error:
            results.append({"error": str(error).removeprefix("clip 0: ")})  # each recording is its only clip
    answers = iter(_run(pipe, inputs, max_new_tokens))
    return [result or next(answers) for result in results]


def _run(pipe: Any, inputs: list[dict[str, Any]], max_new_tokens: int) -> list[dict[str, Optional[str]]]:
    """Answers for prepared inputs as one batch; where that fails, one by one, so that only the culprit is lost."""
    if not inputs:
        return []
    failure = None
    try:
        batch = {key: [item[key] for item in inputs] for key in inputs[0]}
        outputs = pipe.forward(batch, max_new_tokens=max_new_tokens)
    except (ValueError, RuntimeError) as error:
        failure = str(error)  # the error itself would keep the memory of the batch, which may be what was missing
    if failure is not None:
        if len(inputs) == 1:
            return [{"error": failure}]
        return [result for item in inputs for result in _run(pipe, [item], max_new_tokens)]
    return [pipe.postprocess({"prompt": [text], "ids": [ids]}) for text, ids in zip(outputs["prompt"], outputs["ids"])]


def _print_result(name: str, result: dict[str, Optional[str]], as_json: bool, headed: bool):
    if "error" in result:
        print(f"moss-audio: {name}: {result['error']}", file=sys.stderr)
    if as_json:
        print(json.dumps({"audio": name, **result}, ensure_ascii=False), flush=True)
    elif "error" not in result:
        print(f"{name}:\n{result['generated_text']}\n" if headed else result["generated_text"], flush=True)


conversion_commands.register(app)
training_commands.register(app)


def main():
    """Entry point of the console script."""
    for stream in (sys.stdout, sys.stderr):  # answers are in any language, also where the terminal's code page is not
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8")
    app(prog_name="moss-audio")
