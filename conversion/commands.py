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
"""The commands of `moss-audio` that make and check checkpoints. What they do is in the other modules, which are imported
when a command runs.

A message on standard error and exit status 2 say that a command could not do its work; `verify` ends with 1 where a check
failed.
"""

import contextlib
import sys
from collections.abc import Iterator
from enum import Enum
from typing import Annotated, Optional

import typer

from . import ConversionError


class Dtype(str, Enum):
    """What `convert` may do to the weights."""

    keep = "keep"
    bfloat16 = "bfloat16"
    float16 = "float16"
    float32 = "float32"


class StoredDtype(str, Enum):
    """What weights may be stored as."""

    bfloat16 = "bfloat16"
    float16 = "float16"
    float32 = "float32"


class Size(str, Enum):
    """Shapes that `scaffold` knows."""

    tiny = "tiny"
    b06 = "0.6b"
    b4 = "4b"
    b8 = "8b"


class Part(str, Enum):
    """Parts of a checkpoint that can stand alone."""

    decoder = "decoder"
    encoder = "encoder"


Target = Annotated[str, typer.Argument(help="Folder to make.", show_default=False)]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a checkpoint that is there.")]


@contextlib.contextmanager
def reported_errors() -> Iterator[None]:
    """What cannot be done becomes a message and exit status 2."""
    try:
        yield
    except (ConversionError, OSError) as error:
        print(f"moss-audio: {error}", file=sys.stderr)
        raise typer.Exit(2) from error
    except KeyboardInterrupt as error:
        print("moss-audio: interrupted; the same command goes on where it was.", file=sys.stderr)
        raise typer.Exit(130) from error


def convert(
    source: Annotated[
        str,
        typer.Argument(help="Released checkpoint: an id on the Hugging Face Hub, or a folder.", show_default=False),
    ],
    target: Target,
    revision: Annotated[
        Optional[str], typer.Option(help="Branch, tag or commit on the Hub.", show_default=False)
    ] = None,
    dtype: Annotated[Dtype, typer.Option(help="Cast the weights, or keep them.")] = Dtype.keep,
    link: Annotated[
        bool,
        typer.Option(
            "--link/--copy",
            help="Hard-link weight files that need no change: they take no space, but whoever changes one changes both.",
        ),
    ] = False,
    max_shard_size: Annotated[
        Optional[str],
        typer.Option(
            help="Cut larger weight files. By default the source's stay as they are, and those that a new dtype makes have "
            "5GB.",
            show_default=False,
        ),
    ] = None,
    overwrite: Overwrite = False,
    push_to_hub: Annotated[
        Optional[str], typer.Option(help="Upload the result to this repository.", metavar="ID", show_default=False)
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make that repository private.")] = False,
):
    """Turn a released checkpoint into a folder that Transformers loads by itself.

    Everything is written beside TARGET and renamed at the end: what is
    there is complete. The same command again goes on after an interruption,
    and leaves a complete TARGET as it is.
    """
    with reported_errors():
        from .convert import convert as make
        from .publish import check_push, push

        if push_to_hub is not None:
            check_push(push_to_hub)
        elif private:
            raise ConversionError("--private is for --push-to-hub ID.")
        path = make(source, target, revision, dtype.value, link, max_shard_size, overwrite)
        print(f"{path} is complete. `moss-audio verify` checks it.")
        if push_to_hub is not None:
            print(f"Uploaded to {push(path, push_to_hub, private)}")


def verify(
    folder: Annotated[str, typer.Argument(help="A converted checkpoint.", show_default=False)],
    deep: Annotated[bool, typer.Option("--deep", help="Read all weights, in search of NaN and infinity.")] = False,
):
    """Check a converted checkpoint: a table of verdicts, and exit status 1 where one failed.

    The code in the folder is run only if it is the installed package's.
    """
    with reported_errors():
        from .verify import FAILED, PASSED, verify
        from .verify import Check as Row

        checks: list[Row] = []
        for check in verify(folder, deep):
            checks.append(check)
            print(f"{check.verdict:8}{check.name:24}{check.detail}", flush=True)
        passed = sum(check.verdict == PASSED for check in checks)
        print(f"{passed} of {len(checks)} checks passed.")
        if any(check.verdict == FAILED for check in checks):
            raise typer.Exit(1)


def assemble(
    target: Target,
    decoder: Annotated[str, typer.Option(help="Folder of a Qwen3 checkpoint, of any size.", show_default=False)],
    encoder: Annotated[
        Optional[str],
        typer.Option(
            help="Folder of a checkpoint to take the audio encoder from; new by default.", show_default=False
        ),
    ] = None,
    audio_config: Annotated[
        Optional[str],
        typer.Option(
            help="Values of `audio_config` that differ from the encoder's, or from the released ones: JSON, or a file.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the weights that are new.")] = 0,
    overwrite: Overwrite = False,
):
    """Make a new checkpoint of a Qwen3 decoder and an audio encoder: where pretraining starts."""
    with reported_errors():
        from .assemble import assemble as make

        print(f"{make(target, decoder, encoder, audio_config, seed, overwrite)} is complete.")


def extract(
    folder: Annotated[str, typer.Argument(help="A checkpoint, released or converted.", show_default=False)],
    target: Target,
    part: Annotated[
        Part, typer.Option(help="The decoder as a plain Qwen3ForCausalLM, or the audio encoder.", show_default=False)
    ],
    overwrite: Overwrite = False,
):
    """Take a part of a checkpoint as a folder of its own, its tensors bit by bit the same."""
    with reported_errors():
        from .assemble import extract as make

        print(f"{make(folder, target, part.value, overwrite)} is complete.")


def scaffold(
    target: Target,
    size: Annotated[Size, typer.Option(help="Shape: 4b and 8b are those of the released checkpoints.")] = Size.tiny,
    seed: Annotated[int, typer.Option(min=0, help="Of the weights.")] = 0,
    dtype: Annotated[StoredDtype, typer.Option(help="Of the weights.")] = StoredDtype.bfloat16,
    tokenizer: Annotated[
        Optional[str],
        typer.Option(help="Folder of a Qwen3 tokenizer; by default one of single bytes is made.", show_default=False),
    ] = None,
    max_shard_size: Annotated[str, typer.Option(help="Size of the weight files.")] = "5GB",
    overwrite: Overwrite = False,
):
    """Write a checkpoint with random weights in the released layout, for tests and benchmarks."""
    with reported_errors():
        from .scaffold import scaffold as make

        print(f"{make(target, size.value, seed, dtype.value, tokenizer, max_shard_size, overwrite)} is complete.")


def register(app: typer.Typer):
    """Adds the commands to an application."""
    for command in (convert, verify, assemble, extract, scaffold):
        app.command()(command)
