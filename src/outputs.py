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
"""Files of results for many recordings: what is to be done, what is done already, and by which options.

Beside the results lies `moss-audio.jsonl`, with a line for each recording: what it was, which options, which files. A file
that does not stem from this recording and these options is never taken for finished, nor replaced unless that is asked for.
"""

import json
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional


RECORD = "moss-audio.jsonl"
SUFFIXES = frozenset(
    ".aac .ac3 .aif .aiff .amr .ape .au .avi .caf .flac .flv .m4a .m4b .m4v .mka .mkv .mov .mp2 .mp3 .mp4 .mpeg .mpg .mts "
    ".oga .ogg .ogv .opus .ts .wav .webm .wma .wmv".split()
)


@dataclass
class Recording:
    """A recording and where its results go."""

    source: str  # as given, or as found in a folder
    name: Path  # of the results in the output folder, without a suffix
    files: list[Path] = field(default_factory=list)


def find_recordings(sources: Sequence[str]) -> list[Recording]:
    """
    The recordings that arguments of a command name, in order: files and URLs as they are, folders searched for all files
    with a suffix of sound or video that are not hidden, in alphabetical order. Results of recordings in a folder lie as the
    recordings do; two recordings that differ in their suffix only keep it in the names of their results.

    Raises:
        FileNotFoundError: where a folder has no recording.
    """
    found: list[tuple[str, Path]] = []
    for source in sources:
        folder = Path(source).expanduser()
        if not folder.is_dir():
            found.append((source, Path(Path(source.split("?")[0]).name)))
            continue
        paths = sorted(
            path for path in folder.rglob("*") if _is_recording(path.relative_to(folder)) and path.is_file()
        )
        if not paths:
            raise FileNotFoundError(f"the folder {source!r} has no recordings (files such as .wav, .mp3, .m4a, .mp4).")
        found.extend((str(path), path.relative_to(folder)) for path in paths)
    known, distinct = set(), []
    for source, name in found:
        if source not in known:
            known.add(source)
            distinct.append((source, name))
    stems = Counter(name.with_suffix("") for _, name in distinct)
    named = [(source, name.with_suffix("") if stems[name.with_suffix("")] == 1 else name) for source, name in distinct]
    _check_names(named)
    return [Recording(source, name) for source, name in named]


def _is_recording(path: Path) -> bool:
    """Whether a name in a folder is one of sound or video, and not hidden (as the "._a.wav" that macOS leaves are)."""
    return path.suffix.lower() in SUFFIXES and not any(part.startswith(".") for part in path.parts)


def _check_names(named: Sequence[tuple[str, Path]]):
    first: dict[Path, str] = {}
    for source, name in named:
        if name in first:
            raise ValueError(
                f"{first[name]} and {source} would have results of the same name, {name}; run them apart."
            )
        first[name] = source


class Outputs:
    """
    The output folder of a command.

    Args:
        folder: where the results go; made where it is missing.
        formats: suffixes of the files for each recording.
        options: all that the results depend on beside the recording, for JSON.
    """

    def __init__(self, folder: Path, formats: Sequence[str], options: dict[str, Any]):
        self.folder, self.formats, self.options = folder, list(formats), json.loads(json.dumps(options))
        self.record = folder / RECORD
        folder.mkdir(parents=True, exist_ok=True)
        self._lines: dict[tuple[str, str], dict[str, Any]] = {}  # by name and format
        if self.record.is_file():
            text = self.record.read_text(encoding="utf-8")
            if text and not text.endswith("\n"):
                self._append("\n")
            for line in text.splitlines():
                try:
                    entry = json.loads(line)
                except ValueError:
                    continue  # the command was interrupted as it wrote this line
                if isinstance(entry, dict) and {"name", "recording", "options", "formats"} <= set(entry):
                    self._keep(entry)

    def files(self, recording: Recording) -> dict[str, Path]:
        """The files for a recording, by format."""
        base = self.folder / recording.name
        return {format: base.with_name(f"{base.name}.{format}") for format in self.formats}

    def missing(self, recording: Recording, overwrite: bool = False) -> list[str]:
        """
        The formats that are still to be written for a recording.

        Raises:
            FileExistsError: where a file is there that does not stem from this recording and these options, and `overwrite`
                is False.
        """
        missing = []
        for format, path in self.files(recording).items():
            reason = self._difference(self._lines.get((recording.name.as_posix(), format)), recording)
            if path.exists() and reason and not overwrite:
                raise FileExistsError(f"{path} is there, and {reason}; --overwrite replaces it.")
            if reason or not path.exists():
                missing.append(format)
        return missing

    def _difference(self, entry: Optional[dict[str, Any]], recording: Recording) -> Optional[str]:
        """Why a file is not what this run would make; None where it is."""
        if entry is None:
            return "this command has no record of it"
        if entry["recording"] != fingerprint(recording.source):
            return "the recording has changed since"
        before = entry["options"]
        names = [name for name in {**self.options, **before} if self.options.get(name) != before.get(name)]
        if names:
            name = names[0]
            return f"stems from other options ({name} was {before.get(name)!r}, now {self.options.get(name)!r})"
        return None

    def begin(self, recording: Recording, formats: Iterable[str]):
        """Takes down, before they are written, what the files of a recording are; what was there before goes."""
        paths, formats = self.files(recording), list(formats)
        for format in formats:
            paths[format].unlink(missing_ok=True)
            paths[format].parent.mkdir(parents=True, exist_ok=True)
        entry = {
            "name": recording.name.as_posix(),
            "recording": fingerprint(recording.source),
            "options": self.options,
            "formats": formats,
        }
        self._keep(entry)
        self._append(json.dumps(entry, ensure_ascii=False) + "\n")

    def _keep(self, entry: dict[str, Any]):
        """Files of one recording may stem from different options; the last line about a file counts."""
        self._lines.update({(entry["name"], format): entry for format in entry["formats"]})

    def _append(self, text: str):
        with open(self.record, "a", encoding="utf-8") as file:
            file.write(text)


def fingerprint(source: str) -> dict[str, Any]:
    """What tells one version of a recording from another: its name, size and time of change; for a URL itself."""
    path = Path(source).expanduser()
    if not path.is_file():
        return {"source": source}
    status = path.stat()
    return {"source": path.name, "bytes": status.st_size, "changed": status.st_mtime_ns}


def seconds_of(source: str) -> Optional[float]:
    """How long a recording lasts, by its header; None where that is not known without reading it."""
    path = Path(source).expanduser()
    if not path.is_file():
        return None
    try:
        import soundfile

        return soundfile.info(str(path)).duration
    except (ImportError, OSError, RuntimeError):
        pass
    program = shutil.which("ffprobe")
    if program is None:
        return None
    arguments = ["-v", "error", "-show_entries", "format=duration", "-of", "csv=p=0", f"file:{os.path.abspath(path)}"]
    done = subprocess.run([program, *arguments], capture_output=True, text=True)
    try:
        return float(done.stdout.strip())
    except ValueError:
        return None
