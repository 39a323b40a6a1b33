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
"""A run of `moss-audio transcribe` or `caption`: recordings answered in batches, results printed or written as they come,
progress by the second of audio, and what failed said at the end.
"""

import json
import logging
import sys
from collections.abc import Sequence
from typing import Any, Optional

from tqdm.auto import tqdm

from .batches import answer_all
from .outputs import Outputs, Recording, seconds_of
from .writers import render, write_atomically


class Run:
    """
    Args:
        recordings: what to answer about.
        formats: what to make of each result; a single one without `outputs`.
        outputs: where the results go; None prints them.
        model: what the checkpoint is called in results.
        overwrite: whether to replace files that stem from other options or recordings.
    """

    def __init__(
        self,
        recordings: Sequence[Recording],
        formats: Sequence[str],
        outputs: Optional[Outputs],
        model: str,
        overwrite: bool,
    ):
        self.recordings, self.formats, self.outputs, self.model = list(recordings), list(formats), outputs, model
        self.failures: list[tuple[str, str]] = []
        self.cut_off: list[str] = []
        self.todo: list[tuple[Recording, list[str]]] = []
        for recording in self.recordings:
            try:
                missing = self.formats if outputs is None else outputs.missing(recording, overwrite)
            except OSError as error:
                self._fail(recording, str(error))
                continue
            if missing:
                self.todo.append((recording, missing))
        skipped = len(self.recordings) - len(self.todo) - len(self.failures)
        if skipped:
            print(f"{skipped} of {len(self.recordings)} recordings are finished already.", file=sys.stderr)

    def answer(self, pipe: Any, batch_size: int, **parameters):
        """Answers what is to be done, and writes or prints each result as soon as it is there."""
        logging.getLogger(type(pipe).__module__).setLevel(logging.ERROR)  # what it warns of is reported here
        total = sum(seconds_of(recording.source) or 0.0 for recording, _ in self.todo)
        layout = "{desc} |{bar}| {n:.0f}/{total:.0f} s of audio [{elapsed}<{remaining}]"
        with tqdm(total=total, unit="s", file=sys.stderr, bar_format=layout, desc=self._done(0)) as progress:

            def heard(seconds: float):
                progress.total = max(progress.total, progress.n + seconds)  # headers do not know it all
                progress.update(seconds)

            sources = [recording.source for recording, _ in self.todo]
            results = answer_all(pipe, sources, batch_size, heard, **parameters)
            for count, ((recording, formats), result) in enumerate(zip(self.todo, results), start=1):
                with tqdm.external_write_mode():
                    self._finish(recording, formats, result)
                progress.set_description_str(self._done(count))

    def _done(self, count: int) -> str:
        return f"{count}/{len(self.todo)} recordings"

    def _finish(self, recording: Recording, formats: list[str], result: dict[str, Any]):
        if "error" in result:
            self._fail(recording, result["error"].removeprefix(f"{recording.source} "))
            if self.outputs is None and self.formats == ["json"]:
                self._print(recording, result)
            return
        result = {"audio": recording.source, "model": self.model, **result}
        if result["cut_off"]:
            self.cut_off.append(recording.source)
            print(f"moss-audio: {recording.source}: the answer was cut off at --max-new-tokens.", file=sys.stderr)
        if self.outputs is None:
            self._print(recording, result)
            return
        try:
            self.outputs.begin(recording, formats)
        except (OSError, ValueError) as error:
            self._fail(recording, f"its results cannot be written: {error}")
            return
        for name, path in self.outputs.files(recording).items():
            if name in formats:  # one that cannot be written does not hold up the others
                try:
                    write_atomically(path, _rendered(result, name))
                except (OSError, ValueError) as error:
                    self._fail(recording, f"{path.name} cannot be written: {error}")

    def _print(self, recording: Recording, result: dict[str, Any]):
        several = len(self.recordings) > 1
        if self.formats == ["json"]:
            text = json.dumps({"audio": recording.source, **result}, ensure_ascii=False)
        else:
            try:
                text = _rendered(result, self.formats[0]).rstrip("\n")
            except ValueError as error:
                self._fail(recording, f"{error} The answer was: {result['generated_text']}")
                return
        print(f"{recording.source}:\n{text}\n" if several and self.formats == ["txt"] else text, flush=True)

    def _fail(self, recording: Recording, message: str):
        self.failures.append((recording.source, message))
        print(f"moss-audio: {recording.source}: {message}", file=sys.stderr)

    def report(self) -> bool:
        """Says what went wrong; whether nothing did."""
        if self.cut_off:
            again = "." if self.outputs is None else ", and --overwrite them."
            print(
                f"{_count(len(self.cut_off), 'answer')} cut off (`cut_off` in JSON): raise --max-new-tokens or lower "
                f"--chunk-length{again}",
                file=sys.stderr,
            )
        if self.failures:
            failed = len({source for source, _ in self.failures})
            print(f"{failed} of {_count(len(self.recordings), 'recording')} failed:", file=sys.stderr)
            for source, message in self.failures:
                print(f"  {source}: {message}", file=sys.stderr)
        return not self.failures


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _rendered(result: dict[str, Any], format: str) -> str:
    """The text of a file. One that is for reading says itself where the answer is not complete."""
    if format != "txt":
        return render(result, format)
    if "repairs" not in result:  # a caption, with paragraphs of its own
        result = {**result, "segments": []}
    return render(result, format) + ("[cut off]\n" if result["cut_off"] else "")
