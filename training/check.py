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
"""Reading a data file as training would, sample by sample, without a model: what is wrong, how long, how many tokens."""

import statistics
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .collator import MossAudioDataCollator, TooLongError
from .data import DataError, load_samples, normalise, read_records
from .lengths import Entry, Length, exact_lengths


@dataclass
class Report:
    """What was found in a file."""

    samples: int = 0
    problems: int = 0
    too_long: int = 0
    seconds: list[float] = field(default_factory=list)  # of the samples that can be read
    tokens: list[int] = field(default_factory=list)
    groups: Counter = field(default_factory=Counter)

    def summary(self) -> list[str]:
        """Lines for people."""
        lines = [f"{self.samples} samples, {self.problems} with problems ({self.too_long} too long)."]
        if self.tokens:
            hours = sum(self.seconds) / 3600
            lines.append(f"sound: {hours:.2f} h in all, {max(self.seconds):.1f} s in the longest sample.")
            lines.append(
                f"tokens: {min(self.tokens)} to {max(self.tokens)}, median {statistics.median_low(self.tokens)}, "
                f"{sum(self.tokens)} in all."
            )
        if len(self.groups) > 1:
            lines.append("groups: " + ", ".join(f"{name} {count}" for name, count in self.groups.most_common()))
        return lines

    def as_dict(self) -> dict[str, Any]:
        return {
            "samples": self.samples,
            "problems": self.problems,
            "too_long": self.too_long,
            "hours": round(sum(self.seconds) / 3600, 4),
            "longest_seconds": round(max(self.seconds, default=0), 2),
            "longest_tokens": max(self.tokens, default=0),
            "tokens": sum(self.tokens),
            "groups": dict(self.groups),
        }


def check_file(path: Path, collator: MossAudioDataCollator, report: Report) -> Iterator[Length]:
    """
    The length of each sample of a file, with an error where something is wrong; `report` is kept up to date.

    Raises:
        DataError: where the file itself cannot be read.
    """
    for length in exact_lengths(collator, _entries(path)):
        own = (length.entry.sample or {}).get("group")
        report.groups[path.stem if own in (None, "") else str(own)] += 1
        report.samples += 1
        report.problems += length.error is not None
        report.too_long += isinstance(length.error, TooLongError)
        if length.tokens:
            report.seconds.append(length.seconds)
            report.tokens.append(length.tokens)
        yield length


def _entries(path: Path) -> Iterator[Entry]:
    """All records of a file."""
    if path.is_dir() or path.suffix == ".parquet":
        rows = load_samples(path)
        for index in range(len(rows)):
            try:
                sample = rows[index]
                yield Entry(sample["origin"], sample)
            except DataError as error:
                yield Entry(f"{path}, row {index}", None, error)
        return
    for record in read_records(path):
        try:
            if record.error is not None:
                raise record.error
            yield Entry(record.origin, normalise(record.value, record.origin, path.parent, check_files=True))
        except DataError as error:
            yield Entry(record.origin, None, error)


__all__ = ["Report", "check_file"]
