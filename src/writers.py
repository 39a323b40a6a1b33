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
"""Results as files: SRT, WebVTT, RTTM, JSON, TSV and plain text.

A result is the dict that a pipeline gives for one recording, with what else is known of it: see [`complete`]. Subtitles
are cut into cues and lines as they should be read; the other formats have the segments as they are.
"""

import bisect
import csv
import html
import io
import itertools
import json
import logging
import os
import re
import tempfile
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional, Union

from .transcripts_moss_audio import UNSPACED, Segment, Transcript, join_texts, parse_transcript


logger = logging.getLogger(__name__)

LINE_WIDTH, MAX_LINES = 42, 2  # columns, of which a wide character (Chinese, Japanese, Korean) has two
MIN_SECONDS, MAX_SECONDS = 1.0, 7.0  # of a cue
READING_SPEED = 17.0  # columns a second
_PAUSE = 0.8  # seconds between two words after which a new cue begins
_SENTENCE_END = re.compile(r"[.!?…。！？．｡][\"'”’»)\]）」』]*\Z")
_CLAUSE_END = re.compile(r"[,;:–—、，；：､][\"'”’»)\]）」』]*\Z")
_NO_LINE_START = "、。，．！？；：）」』】〉》〕’”…‥ー～・々ゝぁぃぅぇぉっゃゅょァィゥェォッャュョ!?,.;:)]}%％"
_NO_LINE_END = "（「『【〈《〔“‘([{"


# ------------------------------------------------------------------------------------------------------------- results


def complete(result: Mapping[str, Any]) -> dict[str, Any]:
    """
    A result with all its keys, as the JSON files have them.

    Args:
        result: a dict with `generated_text` or `segments`, or both: of a pipeline, a line of `moss-audio ask --json`, or
            what a JSON file holds. `segments` are [`Segment`]s, dicts with `start`, `end`, `text` and `speaker`, or a
            [`Transcript`]; where there are none, they are parsed from `generated_text`.

    Returns:
        A dict that JSON can hold, with `audio` (the recording as it was named), `duration` (seconds), `model`,
        `generated_text` (the answer), `reasoning`, `segments` and `repairs`, then whatever else the result has. What is not
        known is None.

    Raises:
        ValueError: where it is not such a dict.
    """
    if not isinstance(result, Mapping):
        raise ValueError(f"a result is {result!r:.80}; expected a dict with `generated_text` or `segments`.")
    if result.get("error") is not None and result.get("generated_text") is None:
        raise ValueError(f"the result for {result.get('audio')} is an error: {result['error']}")
    if result.get("generated_text") is None and result.get("segments") is None:
        raise ValueError(f"a result has keys {sorted(map(str, result))}; it needs `generated_text` or `segments`.")
    transcript = transcript_of(result)
    text = result.get("generated_text")
    known = {
        "audio": None if result.get("audio") is None else os.fspath(result["audio"]),
        "duration": result.get("duration"),
        "model": result.get("model"),
        "generated_text": transcript.text if text is None else text,
        "reasoning": result.get("reasoning"),
        "segments": [segment.to_dict() for segment in transcript],
        "repairs": transcript.to_dict()["repairs"],
    }
    return {**known, **{name: value for name, value in result.items() if name not in known}}


def transcript_of(result: Mapping[str, Any]) -> Transcript:
    """The transcript in a result: see [`complete`]."""
    segments = result.get("segments")
    if segments is None:
        return parse_transcript(result["generated_text"])
    if isinstance(segments, Transcript):
        return segments
    dicts = [segment.to_dict() if isinstance(segment, Segment) else segment for segment in segments]
    repairs = [repair if isinstance(repair, Mapping) else vars(repair) for repair in result.get("repairs") or ()]
    return Transcript.from_dict({"segments": dicts, "repairs": repairs})


def read_results(path: Union[str, os.PathLike]) -> list[dict[str, Any]]:
    """
    The results in a JSON file: one object, an array of them, or one a line (as `moss-audio ask --json` prints them).

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: where it holds something else. Recordings that failed are left out.
    """
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
        try:
            found = json.loads(text)
        except json.JSONDecodeError:
            found = [json.loads(line) for line in text.split("\n") if line.strip()]
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is neither JSON nor has it an object on each line: {error}.") from error
    found = found if isinstance(found, list) else [found]
    return [complete(item) for item in found if not (isinstance(item, dict) and item.get("error"))]


def render(
    result: Mapping[str, Any],
    format: str,
    line_width: int = LINE_WIDTH,
    max_lines: int = MAX_LINES,
    max_seconds: float = MAX_SECONDS,
) -> str:
    """
    A result as the text of a file.

    Args:
        result: see [`complete`].
        format: one of `FORMATS`: "srt", "vtt", "rttm", "json", "tsv" or "txt".
        line_width: columns of a subtitle's line; a wide character has two.
        max_lines: lines of a cue.
        max_seconds: how long a cue stays at most.

    Returns:
        The text, with line feeds, ending with one.

    Raises:
        ValueError: where there is no such format, or where it needs times and the result has segments but no time.
        ImportError: where subtitles are asked for and pysubs2 is not installed.
    """
    if format not in _WRITERS:
        raise ValueError(f"`format` is {format!r}; it must be one of {', '.join(FORMATS)}.")
    limits = _Limits(line_width, max_lines, max_seconds)
    return _WRITERS[format](complete(result), limits)


def write(result: Mapping[str, Any], path: Union[str, os.PathLike], format: Optional[str] = None, **options) -> Path:
    """
    Writes a result to a file, in UTF-8 with line feeds on every system. The file is there complete or not at all.

    Args:
        result: see [`complete`].
        path: the file; its folder is made where there is none.
        format: see [`render`]; by default what the file's name ends in.
        options: of [`render`].

    Returns:
        The path.

    Raises:
        ValueError, ImportError: as [`render`] does; the file is then left as it was.
    """
    path = Path(path)
    return write_atomically(path, render(result, format or path.suffix[1:].lower(), **options))


def write_atomically(path: Path, text: str) -> Path:
    """Writes a text in UTF-8 beside its file and renames it; a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:50]}.", suffix=".part")
    try:
        with open(descriptor, "w", encoding="utf-8", errors="replace", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(part, path.stat().st_mode if path.exists() else 0o666 & ~_umask())
        os.replace(part, path)
    except BaseException:
        os.unlink(part)
        raise
    return path


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


# ------------------------------------------------------------------------------------------------- tables and plain text


def _json(result: dict[str, Any], limits: "_Limits") -> str:
    return json.dumps(result, ensure_ascii=False, indent=2, allow_nan=False) + "\n"


_COLUMNS = ("start", "end", "speaker", "logprob_mean", "logprob_min", "text")


def _tsv(result: dict[str, Any], limits: "_Limits") -> str:
    """A line for each segment under a line of names; what is not known is empty, and a tab in a text is a space."""
    file = io.StringIO()
    table = csv.writer(file, delimiter="\t", lineterminator="\n")
    table.writerow(_COLUMNS)
    for segment in result["segments"]:
        table.writerow([_field(segment.get(name)) for name in _COLUMNS])
    return file.getvalue()


def _field(value: Any) -> Any:
    return f"{value:.3f}" if isinstance(value, (int, float)) else re.sub(r"[\t\r\n]+", " ", value or "")


def _txt(result: dict[str, Any], limits: "_Limits") -> str:
    """A line for each turn of a speaker, or else for each segment; words are joined to one line."""
    segments = [Segment.from_dict(segment) for segment in result["segments"]]
    if not segments:
        return result["generated_text"].strip() + "\n"
    if any(segment.speaker for segment in segments):
        turns = itertools.groupby(segments, key=lambda segment: segment.speaker)
        lines = [(f"[{name}] " if name else "") + join_texts(s.text for s in turn) for name, turn in turns]
    elif are_words(segments):
        lines = [join_texts(segment.text for segment in segments)]
    else:
        lines = [segment.text for segment in segments]
    return "".join(" ".join(line.split("\n")) + "\n" for line in lines)


def _rttm(result: dict[str, Any], limits: "_Limits") -> str:
    """A line for each segment that has both times: who spoke when, as diarization tools read it."""
    segments = [Segment.from_dict(segment) for segment in result["segments"]]
    timed = [segment for segment in segments if segment.start is not None and segment.end is not None]
    _check_timed(segments, timed, "rttm")
    name = _word(Path(result["audio"] or "recording").stem)
    return "".join(
        f"SPEAKER {name} 1 {segment.start:.3f} {segment.end - segment.start:.3f} <NA> <NA> "
        f"{_word(segment.speaker or '<NA>')} <NA> <NA>\n"
        for segment in sorted(timed, key=lambda segment: segment.start)
    )


def _word(name: str) -> str:
    """A name without whitespace, for a format whose columns it stands between."""
    return "_".join(name.split()) or "_"


def _check_timed(segments: Sequence[Segment], timed: Sequence[Segment], format: str):
    """Refuses to write a file without what it is for; warns where some of it is missing."""
    if segments and not timed:
        raise ValueError(
            f"{format} needs times, and none of the {len(segments)} segments has any; ask for timestamps, or write txt, "
            "tsv or json."
        )
    if missing := len(segments) - len(timed):
        first = next(segment for segment in segments if segment not in timed)
        logger.warning("%s leaves out %d segments without times; the first is %.60r.", format, missing, first.text)


# ----------------------------------------------------------------------------------------------------------- subtitles


@dataclass(frozen=True)
class _Limits:
    line_width: int
    max_lines: int
    max_seconds: float

    def __post_init__(self):
        for name, value, least in (
            ("line_width", self.line_width, 4),
            ("max_lines", self.max_lines, 1),
            ("max_seconds", self.max_seconds, 0.1),
        ):
            if not value >= least:
                raise ValueError(f"`{name}` is {value}; it must be at least {least}.")


@dataclass(frozen=True)
class Cue:
    """What a subtitle shows at a time: lines, from `start` to `end` in seconds."""

    start: float
    end: float
    lines: tuple[str, ...]
    speaker: Optional[str] = None


@dataclass(frozen=True)
class _Piece:
    """A part of a text that no line break may cut: a word, or a character where the script has no spaces."""

    text: str
    spaced: bool  # whether a space stands before it
    start: float = 0.0
    end: float = 0.0

    @property
    def width(self) -> int:
        return self.spaced + width(self.text)


@dataclass
class _Unit:
    """What is said without a break by one speaker, to be cut into cues."""

    speaker: Optional[str]
    pieces: list[_Piece] = field(default_factory=list)


def subtitle_cues(
    segments: Iterable[Segment],
    line_width: int = LINE_WIDTH,
    max_lines: int = MAX_LINES,
    max_seconds: float = MAX_SECONDS,
    labels: bool = False,
) -> list[Cue]:
    """
    Segments cut into cues, in order of time: few lines of few columns each, a few seconds long, cut after sentences and
    clauses where possible, and long enough on the screen to be read where the next cue leaves the time.

    A cue needs both times. Within a segment they are set by the share of the text; one with a start alone lasts until the
    next or as long as it takes to read; segments without times are left out. Single words are joined.

    Args:
        segments: segments in any order.
        line_width, max_lines, max_seconds: see [`render`].
        labels: whether a speaker's first cue begins with the label.
    """
    limits = _Limits(line_width, max_lines, max_seconds)
    cues, last = [], None
    for unit in _units(_with_both_times(segments)):
        if labels and unit.speaker is not None and unit.speaker != last:
            first = unit.pieces[0]
            label = _Piece(f"[{unit.speaker}]", False, first.start, first.start)
            unit.pieces[:1] = [label, _Piece(first.text, True, first.start, first.end)]
        last = unit.speaker
        for pieces in _cut(unit.pieces, limits):
            lines = tuple(_text(line) for line in _wrap(pieces, limits))
            cues.append(Cue(pieces[0].start, max(piece.end for piece in pieces), lines, unit.speaker))
    return _readable(sorted(cues, key=lambda cue: cue.start), max_seconds)


def width(text: str) -> int:
    """Columns of a text: two for a wide character, none for a combining mark."""
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text
    )


def are_words(segments: Sequence[Segment]) -> bool:
    """Whether most segments are single words, as an answer to a question for timestamps by word has them."""
    single = sum(
        not re.search(r"\s", segment.text) and len(segment.text) <= (4 if UNSPACED.match(segment.text) else 20)
        for segment in segments
    )
    return len(segments) > 2 and single >= 0.8 * len(segments)


def _with_both_times(segments: Iterable[Segment]) -> list[Segment]:
    """Segments that have a time, in order, with the other one where it is missing."""
    timed = [segment for segment in segments if segment.start is not None or segment.end is not None]
    starts = [*sorted(segment.start for segment in timed if segment.start is not None), float("inf")]
    result, before = [], 0.0
    for segment in timed:
        needed = max(MIN_SECONDS, width(segment.text) / READING_SPEED)
        start, end = segment.start, segment.end
        if start is None:
            start = max(0.0, min(before, end) if before > end - needed else end - needed)
        elif end is None:
            end = min(start + needed, starts[bisect.bisect_right(starts, start)])
        before = end
        result.append(Segment(start, max(start, end), segment.text, segment.speaker))
    return sorted(result, key=lambda segment: segment.start)


def _units(segments: list[Segment]) -> list[_Unit]:
    """Each segment with its pieces; single words in a row, without a pause or the end of a sentence, as one."""
    words, units, before = are_words(segments), [], None
    for segment in segments:
        pieces = _pieces(segment)
        if not pieces:
            continue
        joined = (
            words
            and before is not None
            and segment.speaker == before.speaker
            and segment.start - before.end <= _PAUSE
            and not _SENTENCE_END.search(before.text)
        )
        if joined:
            spaced = join_texts((before.text, segment.text)) != before.text + segment.text
            first = pieces[0]
            units[-1].pieces += [_Piece(first.text, spaced, first.start, first.end), *pieces[1:]]
        else:
            units.append(_Unit(segment.speaker, pieces))
        before = segment
    return units


# One character of such a script, or as many others as there are in a row.
_PART = re.compile(f"{UNSPACED.pattern}|[^{UNSPACED.pattern[1:]}+")


def _pieces(segment: Segment) -> list[_Piece]:
    """The pieces of a segment, each with its share of the time."""
    parts: list[tuple[str, bool]] = []
    for word in segment.text.split():
        begins = bool(parts)
        for part in _parts(word):
            parts.append((part, begins))
            begins = False
    total = sum(spaced + width(text) for text, spaced in parts) or 1
    pieces, done, duration = [], 0, segment.end - segment.start
    for text, spaced in parts:
        start = segment.start + duration * done / total
        done += spaced + width(text)
        pieces.append(_Piece(text, spaced, start, segment.start + duration * done / total))
    return pieces


def _parts(word: str) -> list[str]:
    """A word as what may stand on lines of its own: itself, or its characters where the script has no spaces."""
    parts: list[str] = []
    for part in _PART.findall(word):
        keep = parts and (
            part[0] in _NO_LINE_START or parts[-1][-1] in _NO_LINE_END or unicodedata.category(part[0])[0] == "M"
        )
        if keep:
            parts[-1] += part
        else:
            parts.append(part)
    return parts


def _cut(pieces: list[_Piece], limits: _Limits) -> list[list[_Piece]]:
    """Pieces as cues that are within the limits, at the least cost: few, of even length, that end where a clause does."""
    pieces = [part for piece in pieces for part in _narrow(piece, limits.line_width)]
    capacity = limits.line_width * limits.max_lines
    widths, bare = [piece.width for piece in pieces], [width(piece.text) for piece in pieces]
    costs = [0.0] + [float("inf")] * len(pieces)  # of the first n pieces
    begins = [0] * (len(pieces) + 1)  # where the last cue of the first n pieces begins
    for start in range(len(pieces)):
        lines, line, columns = 1, 0, 0
        for stop in range(start + 1, len(pieces) + 1):
            last = pieces[stop - 1]
            line = line + widths[stop - 1] if line else bare[stop - 1]
            if line > limits.line_width:
                lines, line = lines + 1, bare[stop - 1]
            columns += widths[stop - 1]
            # Less than a line in so much time is slow speech or a pause: one cue, that ends earlier.
            long = last.end - pieces[start].start > limits.max_seconds and columns >= limits.line_width
            if stop > start + 1 and (lines > limits.max_lines or long):
                break
            cost = 6.0 + 6.0 * (1 - min(1.0, columns / capacity)) ** 2
            cost += costs[start] + (_break_cost(last) if stop < len(pieces) else 0.0)
            if cost < costs[stop]:
                costs[stop], begins[stop] = cost, start
    cuts, stop = [], len(pieces)
    while stop:
        cuts.append(pieces[begins[stop] : stop])
        stop = begins[stop]
    return cuts[::-1]


def _break_cost(piece: _Piece) -> float:
    return 0.0 if _SENTENCE_END.search(piece.text) else 2.0 if _CLAUSE_END.search(piece.text) else 6.0


def _narrow(piece: _Piece, line_width: int) -> list[_Piece]:
    """A piece as it is, or cut where it is wider than a line."""
    if width(piece.text) <= line_width:
        return [piece]
    chunks = [""]
    for char in piece.text:
        if chunks[-1] and width(chunks[-1] + char) > line_width:
            chunks.append("")
        chunks[-1] += char
    step = (piece.end - piece.start) / len(chunks)
    return [
        _Piece(chunk, piece.spaced and not index, piece.start + index * step, piece.start + (index + 1) * step)
        for index, chunk in enumerate(chunks)
    ]


def _fill(pieces: Sequence[_Piece], line_width: int) -> list[list[_Piece]]:
    """Pieces on as few lines as they need."""
    lines: list[list[_Piece]] = [[]]
    columns = 0
    for piece in pieces:
        if lines[-1] and columns + piece.width > line_width:
            lines.append([])
        columns = columns + piece.width if lines[-1] else width(piece.text)
        lines[-1].append(piece)
    return lines


def _wrap(pieces: list[_Piece], limits: _Limits) -> list[list[_Piece]]:
    """The lines of a cue: two of them are made as even as they can be, with the break after a clause if there is one."""
    lines = _fill(pieces, limits.line_width)
    if len(lines) != 2:
        return lines

    def unevenness(at: int) -> float:
        first, second = width(_text(pieces[:at])), width(_text(pieces[at:]))
        fits = max(first, second) <= limits.line_width
        return (abs(first - second) + 2 * _break_cost(pieces[at - 1])) if fits else float("inf")

    at = min(range(1, len(pieces)), key=unevenness)
    return [pieces[:at], pieces[at:]]


def _text(pieces: Sequence[_Piece]) -> str:
    return "".join(" " * piece.spaced + piece.text for piece in pieces).strip()


def _readable(cues: list[Cue], max_seconds: float) -> list[Cue]:
    """Cues that stay long enough to be read where the next one leaves the time, not too long, and never for no time."""
    result, starts = [], [cue.start for cue in cues] + [float("inf")]
    for cue in cues:
        later = starts[bisect.bisect_right(starts, cue.start)]
        needed = max(MIN_SECONDS, sum(map(width, cue.lines)) / READING_SPEED)
        end = min(max(cue.end, min(cue.start + needed, later)), cue.start + max_seconds)
        result.append(Cue(cue.start, max(end, cue.start + 0.1), cue.lines, cue.speaker))
    return result


def _srt(result: dict[str, Any], limits: _Limits) -> str:
    """SubRip. It has no escapes: of a text only an arrow that would read as a line of times is changed."""

    def text(cue: Cue) -> str:
        return "\n".join(cue.lines).replace("-->", "→")

    return _subtitles(result, limits, "srt", labels=True, text=text)


def _vtt(result: dict[str, Any], limits: _Limits) -> str:
    """WebVTT, with speakers as voices."""

    def text(cue: Cue) -> str:
        voice = "" if cue.speaker is None else f"<v {html.escape(' '.join(cue.speaker.split()), quote=False)}>"
        return voice + html.escape("\n".join(cue.lines), quote=False)

    return _subtitles(result, limits, "vtt", labels=False, text=text)


def _subtitles(result: dict[str, Any], limits: _Limits, format: str, labels: bool, text: Callable[[Cue], str]) -> str:
    try:
        import pysubs2
    except ImportError as error:
        raise ImportError(f"writing {format} needs pysubs2, which is not installed: `pip install pysubs2`.") from error
    segments = [Segment.from_dict(segment) for segment in result["segments"]]
    timed = [segment for segment in segments if segment.start is not None or segment.end is not None]
    _check_timed(segments, timed, format)
    cues = subtitle_cues(timed, limits.line_width, limits.max_lines, limits.max_seconds, labels)
    texts = [text(cue) for cue in cues]
    # pysubs2 takes texts to be in the language of SubStation, where these have a meaning and cannot be escaped: they go
    # through it as characters that no text has.
    unused = (char for char in map(chr, range(0xE000, 0xF900)) if not any(char in text for text in texts))
    stand_ins = dict(zip("\\{}", unused))
    file = pysubs2.SSAFile()
    for cue, content in zip(cues, texts):
        for char, stand_in in stand_ins.items():
            content = content.replace(char, stand_in)
        times = {"start": round(1000 * cue.start), "end": round(1000 * cue.end)}
        file.append(pysubs2.SSAEvent(text=content.replace("\n", r"\N"), **times))
    written = file.to_string(format, keep_ssa_tags=True)
    for char, stand_in in stand_ins.items():
        written = written.replace(stand_in, char)
    return written.rstrip("\n") + "\n" if written else ""


_WRITERS = {"srt": _srt, "vtt": _vtt, "rttm": _rttm, "json": _json, "tsv": _tsv, "txt": _txt}
FORMATS = tuple(_WRITERS)

__all__ = ["FORMATS", "Cue", "complete", "read_results", "render", "subtitle_cues", "write"]
