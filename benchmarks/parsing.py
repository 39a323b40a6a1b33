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
"""Whether the time to parse an answer grows with its length and no faster, whatever the answer is made of: texts of one
piece, repeated, against texts twice as long.

    python -m moss_audio.benchmarks.parsing
"""

import gc
from typing import Any, Optional

from moss_audio import parse_transcript
from moss_audio.transcripts_moss_audio import parse_json

from .measuring import Report, make_parser, publish, ratios, take_turns, verdict


# Well-formed segments, and what tempts a parser to start over: openings without an end.
PIECES = ("[0.00]a[1.00]", "[", "a\n", "[0.0", "{", '{"a":', "[1,", '"', " ", "[5]", "</think")
TARGET = 2.5


def parse(text: str):
    """Both parsers, each of which may be given any text."""
    parse_transcript(text)
    parse_json(text)


def measure(characters: int, rounds: int, pieces: tuple[str, ...] = PIECES) -> Report:
    """Texts of `characters` against texts of twice as many, in turns."""
    rows: list[list[Any]] = []
    found = {}
    for piece in pieces:
        short, long = (piece * (count // len(piece)) for count in (characters, 2 * characters))
        gc.disable()  # as timeit does: when it comes depends on what else lives in the process
        times = take_turns({"short": lambda: parse(short), "long": lambda: parse(long)}, rounds)  # noqa: B023
        gc.enable()
        found[piece] = ratios(times["long"], times["short"])
        milliseconds = [1000 * sorted(times[name])[rounds // 2] for name in ("short", "long")]
        rows.append([f"`{piece!r}`", *milliseconds, found[piece]["median"]])
    worst = max(found, key=lambda piece: found[piece]["median"])
    times_as_long = found[worst]["median"]
    met = verdict(f"at most {TARGET}", times_as_long <= TARGET)
    return Report(
        header=["made of", f"{characters:,} characters, ms", "twice as many, ms", "times as long"],
        rows=rows,
        notes=[f"At most {times_as_long:.3g} times the time for twice the text ({worst!r}; {met})."],
        values={"times_as_long": found},
    )


def main(arguments: Optional[list[str]] = None):
    parser = make_parser("parsing", __doc__)
    parser.add_argument("--characters", type=int, default=100_000, help="length of the shorter texts; default: 100000")
    options = parser.parse_args(arguments)
    publish(measure(options.characters, options.rounds), options)


if __name__ == "__main__":
    main()
