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
"""A target folder that is there as a whole or not at all.

A job builds beside its target in a folder that says that it is incomplete, and renames that at the end. What a finished
target was made from stands in a record inside it, so that a rerun can tell its own work from anything else.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import moss_audio

from . import ConversionError
from .weights import DISK_FULL, format_size, read_json, write_json


RECORD = "conversion.json"  # in a finished folder
MARKER = "INCOMPLETE.json"  # in one that is not
CODE = tuple(
    f"{name}_moss_audio.py"
    for name in (
        "configuration",
        "modeling",
        "processing",
        "pipeline",
        "audio",
        "generation",
        "long",
        "tasks",
        "transcripts",
    )
)
SMALL_FILES_SPACE = 50_000_000  # what a target needs beside its weights, in bytes, generously


@dataclass(frozen=True)
class Job:
    """What makes a target: a command, what it reads, and the options that change the result."""

    command: str
    inputs: dict[str, Any]
    options: dict[str, Any]

    @property
    def record(self) -> dict[str, Any]:
        """What is written into the target: no path of this machine, since the folder may be published."""
        content = {"command": self.command, "inputs": self.inputs, "options": self.options, "code": code_hashes()}
        return {"moss_audio": moss_audio.__version__, **json.loads(json.dumps(content))}


def resolve(target: Any) -> Path:
    """The absolute path of a target; a leading `~` is the home folder."""
    return Path(target).expanduser().resolve()


def is_done(target: Path, job: Job) -> bool:
    """Whether the target is there, complete, from the same inputs and options."""
    return not (target / MARKER).exists() and _holds(target / RECORD, job.record)


def _holds(path: Path, content: dict[str, Any]) -> bool:
    """Whether a JSON file is there and has this content; one that a killed run left half-written has not."""
    try:
        return read_json(path) == content
    except ConversionError:
        return False


def check_target(target: Path, overwrite: bool, sources: tuple[Path, ...] = ()):
    """
    Refuses a target that must not be written.

    Raises:
        ConversionError: where it exists, without `overwrite`; where it is no checkpoint that could be overwritten; where
            a source is in it.
    """
    for source in sources:
        if target == source.resolve() or target in source.resolve().parents:
            raise ConversionError(f"the target {target} holds the source {source}; name another target.")
    if not target.exists() or target.is_dir() and not any(target.iterdir()):
        return
    if not target.is_dir():
        raise ConversionError(f"the target {target} is a file; name a folder.")
    if not overwrite:
        raise ConversionError(
            f"the target {target} exists, and is not the complete result of this very command; pass --overwrite to "
            "replace it, or name another."
        )
    if not (target / "config.json").is_file():
        raise ConversionError(
            f"the target {target} is no checkpoint: --overwrite deletes nothing else. Remove it yourself."
        )


def check_space(target: Path, needed: int):
    """
    Refuses a job that the disk has no room for.

    Raises:
        ConversionError: with what is needed and what there is.
    """
    folder = target
    while not folder.exists():
        folder = folder.parent
    work = working_folder(target)
    done = sum(path.stat().st_size for path in work.iterdir()) if work.is_dir() else 0
    free = shutil.disk_usage(folder).free
    if needed + SMALL_FILES_SPACE - done > free:
        raise ConversionError(
            f"the target {target} needs {format_size(needed + SMALL_FILES_SPACE)}, and its disk has {format_size(free)} "
            "free; make room, name another target, or pass --link where the command has it."
        )


def working_folder(target: Path) -> Path:
    """Where a target is built."""
    return target.with_name(f"{target.name}.incomplete")


@contextlib.contextmanager
def building(target: Path, job: Job) -> Iterator[Path]:
    """
    A folder to fill, which becomes the target at the end.

    What a killed run of the same job left there is found in it again. On an error it is removed.

    Raises:
        ConversionError: where the disk is full.
    """
    work = working_folder(target)
    marker = {
        "note": f"This folder is incomplete. The command that makes {target.name} goes on from it.",
        **job.record,
    }
    if work.exists() and not _holds(work / MARKER, marker):
        shutil.rmtree(work)
    try:
        work.mkdir(parents=True, exist_ok=True)
        write_json(work / MARKER, marker)
        yield work
        write_json(work / RECORD, job.record)
        _put_in_place(work, target)
    except OSError as error:
        shutil.rmtree(work, ignore_errors=True)
        if error.errno not in DISK_FULL:
            raise
        raise ConversionError(
            f"the disk of {target} is full ({error.strerror}); what was written is removed."
        ) from error
    except Exception:
        shutil.rmtree(work, ignore_errors=True)
        raise


def _put_in_place(work: Path, target: Path):
    """Renames the finished folder; one that it replaces is moved away first, because folders cannot be swapped."""
    replaced = target.with_name(f"{target.name}.replaced")
    if target.exists():
        if replaced.exists():
            shutil.rmtree(replaced)
        os.replace(target, replaced)
    (work / MARKER).unlink()
    os.replace(work, target)
    if replaced.exists():
        shutil.rmtree(replaced)


def code_hashes() -> dict[str, str]:
    """SHA-256 of the files of the installed package that travel inside a checkpoint."""
    return {name: file_hash(package_file(name)) for name in CODE}


def package_file(name: str) -> Path:
    """A file of the installed package."""
    return Path(moss_audio.__file__).parent / name


def file_hash(path: Path) -> str:
    """SHA-256 of a small file, with line feeds as line ends: a checkout on Windows has others."""
    return hashlib.sha256(path.read_bytes().replace(b"\r\n", b"\n")).hexdigest()


def folder_identity(folder: Path) -> dict[str, Any]:
    """What tells a local folder's contents from another's: small files by hash, large ones by size and time."""
    identity: dict[str, Any] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix in (".json", ".txt", ".jinja") or path.name == "LICENSE":
            identity[path.name] = file_hash(path)
        elif path.suffix == ".safetensors":
            status = path.stat()
            identity[path.name] = [status.st_size, status.st_mtime_ns]
    return identity
