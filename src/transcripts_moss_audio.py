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
"""From what the model answers to what a program can use: segments with times and speakers, reasoning, JSON.

Nothing here raises on an answer, whatever is in it; times are read and never made up, and what had to be repaired is said.
"""

import itertools
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Optional, Union


THINK, END_OF_THINK = "<think>", "</think>"
_OPENERS, _CLOSERS = r"[\[［【]", r"[\]］】]"
_TAG = re.compile(
    _OPENERS
    + r"[ \u3000]{0,3}(?:(?P<time>[\d:：.．,]{1,24})[ \u3000]{0,2}s?|(?P<label>[Ss]\d{1,4}))[ \u3000]{0,3}"
    + _CLOSERS
    + f"|{THINK}|{END_OF_THINK}"
)
_TIME = re.compile(r"(?:(?:(\d{1,3}):)?(\d{1,4}):)?(\d{1,6})([.,]\d{1,9})?")
_LONGEST_TAG = 40  # characters; no match of `_TAG` is longer
_BEGUN_TAG = re.compile(_OPENERS + r"[ \u3000\d:：.．,Ss]*\Z")
_CUT_TAG = re.compile(_OPENERS + r" ?[\dSs]")
_NUMBER_AT_END = re.compile(_OPENERS + r"[ \u3000]*\d{1,6}[ \u3000]*s?[ \u3000]*" + _CLOSERS + r"\Z")
_BLANK_LINE = re.compile(r"\n[^\S\n]*\n")

# Kinds of repairs, and what they stand for.
REPAIRS = {
    "shared_time": "one timestamp stands between two texts; it ends the first and starts the second",
    "outside": "text stands outside of timestamps in an answer that has some; it has no times",
    "no_end": "a text with a start has no timestamp after it; its end is None",
    "no_start": "a text has a timestamp after it and none before; its start is None",
    "reversed": "the end is before the start; it is None",
    "empty": "timestamps or a label have no text; they are left out",
    "out_of_order": "a segment starts before the one before it; both are kept as they are",
    "overlap": "a segment starts before the one before it, by the same speaker, has ended; both are kept as they are",
    "cut_off": "the answer ends within a timestamp or label, which is left out, or within its reasoning",
}


@dataclass(frozen=True)
class Segment:
    """
    A piece of a transcript: who said what, from when to when.

    Args:
        start: seconds from the beginning of the recording; None where the answer has no time for it.
        end: the same for its end.
        text: what was said, without whitespace at its ends.
        speaker: the label that the answer gives, such as "S01"; None without one.
        logprob_mean: mean log-probability (natural logarithm, at most 0) of the tokens that `text` was made of; None where
            scores were not asked for.
        logprob_min: the lowest of them.
        span: where `text` stands in the answer that it was read from: `answer[span[0] : span[1]] == text`. None where it
            was not read from one.
    """

    start: Optional[float]
    end: Optional[float]
    text: str
    speaker: Optional[str] = None
    logprob_mean: Optional[float] = None
    logprob_min: Optional[float] = None
    span: Optional[tuple[int, int]] = None

    def shifted(self, seconds: float) -> "Segment":
        """The segment with its times moved by so many seconds; those that are None stay None."""
        start, end = (None if time is None else time + seconds for time in (self.start, self.end))
        return replace(self, start=start, end=end)

    def to_dict(self) -> dict[str, Any]:
        """All fields by name, for JSON; those of confidence and `span` only where they are known."""
        always = ("start", "end", "text", "speaker")
        data = {name: value for name, value in asdict(self).items() if name in always or value is not None}
        return data if self.span is None else {**data, "span": list(self.span)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Segment":
        """
        The segment that [`Segment.to_dict`] was called on. Keys that are unknown are passed over.

        Raises:
            ValueError: where `data` has no text, or a time that is no number.
        """
        if not isinstance(data, Mapping) or not isinstance(data.get("text"), str):
            raise ValueError(
                f"a segment is {data!r:.80}; it needs a `text`, and may have `start` and `end` in seconds."
            )
        values = {item.name: data[item.name] for item in fields(cls) if data.get(item.name) is not None}
        for name, value in values.items():
            if name in ("start", "end", "logprob_mean", "logprob_min") and not _is_finite(value):
                raise ValueError(f"`{name}` of segment {data['text']!r:.40} is {value!r}; it must be a finite number.")
            if name == "speaker" and not isinstance(value, str):
                raise ValueError(f"`speaker` of segment {data['text']!r:.40} is {value!r}; it must be a string.")
        if "span" in values:
            if not isinstance(values["span"], (list, tuple)) or len(values["span"]) != 2:
                raise ValueError(f"`span` of segment {data['text']!r:.40} is {values['span']!r}; it must be a pair.")
            values["span"] = tuple(values["span"])
        return cls(**{"start": None, "end": None, **values})


@dataclass(frozen=True)
class Repair:
    """
    Something that an answer has and its format does not.

    Args:
        kind: a short name to tell such things apart; one of `REPAIRS`.
        message: what it is and what was made of it, in a sentence.
        position: the character of the answer where it is.
    """

    kind: str
    message: str
    position: int

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Repair":
        """
        The repair whose fields by name these are.

        Raises:
            ValueError: where one is missing.
        """
        names = [item.name for item in fields(cls)]
        if not isinstance(data, Mapping) or not all(name in data for name in names):
            raise ValueError(f"a repair is {data!r:.80}; it needs {', '.join(names)}.")
        return cls(**{name: data[name] for name in names})


@dataclass
class Transcript:
    """
    Segments in the order of the answer: a sequence of [`Segment`], with what had to be repaired.

    Args:
        segments: the segments.
        repairs: what the answer has that its format has not; empty for a clean one.
    """

    segments: list[Segment] = field(default_factory=list)
    repairs: list[Repair] = field(default_factory=list)

    def __iter__(self) -> Iterator[Segment]:
        return iter(self.segments)

    def __len__(self) -> int:
        return len(self.segments)

    def __getitem__(self, index: Union[int, slice]) -> Union[Segment, list[Segment]]:
        return self.segments[index]

    @property
    def text(self) -> str:
        """What was said, without times and speakers: the segments with a space between them where the script has any."""
        return join_texts(segment.text for segment in self.segments)

    def shifted(self, seconds: float) -> "Transcript":
        """A transcript whose times are later by so many seconds, as for a piece cut out of a longer recording."""
        return Transcript([segment.shifted(seconds) for segment in self.segments], list(self.repairs))

    def to_dict(self) -> dict[str, Any]:
        """`{"text": …, "segments": [{…}], "repairs": [{…}]}`, for JSON."""
        return {
            "text": self.text,
            "segments": [segment.to_dict() for segment in self.segments],
            "repairs": [asdict(repair) for repair in self.repairs],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Transcript":
        """
        The transcript that [`Transcript.to_dict`] was called on.

        Raises:
            ValueError: where `data` has no list of segments, or one of them is none.
        """
        segments = data.get("segments")
        if not isinstance(segments, (list, tuple)):
            raise ValueError(f"a transcript with keys {sorted(map(str, data))} has no list `segments`.")
        return cls(
            [Segment.from_dict(segment) for segment in segments],
            [Repair.from_dict(repair) for repair in data.get("repairs") or ()],
        )


class TranscriptParser:
    """
    Reads an answer while it is generated. In whatever pieces it comes, the transcript is that of the whole.

    Args:
        reasoning_open: whether the prompt has opened a `<think>` block, so that the answer begins with reasoning.

    ```python
    >>> parser = TranscriptParser()
    >>> for piece in streamer:
    ...     for segment in parser.feed(piece):
    ...         print(segment.start, segment.text)
    >>> parser.close()
    >>> parser.transcript
    ```
    """

    # A text is what stands between two tags (timestamps, labels). Its start is the timestamp right before it, its end the
    # one right after it. Where one timestamp stands between two texts, it belongs to the one that it stands closer to:
    # touching, on the same line, on another line; where it is as close to either, to both.

    def __init__(self, reasoning_open: bool = False):
        self.transcript = Transcript()
        self._unread = ""  # the end of what was fed, where it may be the beginning of a tag
        self._position = 0  # of `_unread` in the answer
        self._in_reasoning = reasoning_open
        self._had_reasoning = reasoning_open
        self._restart()

    def _restart(self):
        self.transcript.segments.clear()
        self.transcript.repairs.clear()
        self._closed: list[Segment] = []
        self._run, self._run_position = "", self._position  # characters since the last tag
        self._time: Optional[_Time] = None  # the last timestamp, where no text has started with it
        self._label: Optional[tuple[str, int]] = None  # the last label, where no text has it
        self._waiting: Optional[Segment] = None  # a text that `_time` may be the end of
        self._any_time = self._any_tag = self._whole_seconds = False
        self._last_start: Optional[float] = None
        self._last_end: dict[Optional[str], float] = {}  # by speaker

    def feed(self, text: str) -> list[Segment]:
        """Reads on; returns the segments that this piece has closed."""
        self._unread += text
        while self._unread and (self._skip_reasoning() if self._in_reasoning else self._read_tag()):
            pass
        if not self._in_reasoning:
            self._read_text(len(self._unread) - self._begun_tag())
        closed, self._closed = self._closed, []
        return closed

    def close(self) -> list[Segment]:
        """Ends the answer; returns the segments that were still open. To be called once, after the last piece."""
        if self._in_reasoning:
            self._repair("cut_off", "the answer ends within its reasoning", self._position)
        elif self._any_tag and _CUT_TAG.match(self._unread):
            self._repair("cut_off", f"the answer ends within {self._unread!r}", self._position)
        else:
            self._read_text(len(self._unread))
        self._unread = ""
        self._end_run()
        closed, self._closed = self._closed, []
        return closed

    # Reading: characters to tags and texts. Each step takes something off `_unread`.

    def _skip_reasoning(self) -> bool:
        """Passes over reasoning; whether its end was found."""
        end = self._unread.find(END_OF_THINK)
        self._advance(len(self._unread) - len(END_OF_THINK) + 1 if end < 0 else end + len(END_OF_THINK))
        if end >= 0:
            self._in_reasoning = False
            self._run, self._run_position = "", self._position
        return end >= 0

    def _read_tag(self) -> bool:
        """Reads up to the end of the next tag; whether there is one."""
        for match in _TAG.finditer(self._unread):
            if match["time"]:
                seconds = self._seconds(match)
                if seconds is None:
                    continue
                self._read_text(match.start())
                self._on_time(seconds)
            elif match["label"]:
                self._read_text(match.start())
                self._on_label(match["label"])
            elif self._had_reasoning:
                continue
            else:
                self._read_text(match.start())
                self._on_reasoning(match.group())
            self._advance(len(match.group()))
            self._run, self._run_position = "", self._position
            return True
        return False

    def _seconds(self, match: re.Match) -> Optional[float]:
        """The time of a tag in seconds; None where its brackets hold no time."""
        time = _TIME.fullmatch(match["time"].translate(_NARROW))
        if time is None:
            return None
        hours, minutes, seconds, fraction = time.groups()
        if minutes is None and (fraction or "").startswith(","):
            return None  # [1,234] is a number
        if minutes is not None and (len(seconds) > 2 or int(seconds) > 59 or hours is not None and int(minutes) > 59):
            return None
        if minutes is None and fraction is None and not self._whole_seconds:
            # [5] may be a footnote or the number of a list: where it opens the answer and touches a text, it is a time.
            before = self._run + self._unread[: match.start()]
            after = self._unread[match.end() : match.end() + 1]
            if self._any_tag or before.strip() or not after or after.isspace():
                return None
            self._whole_seconds = True
        fraction = (fraction or ".0").replace(",", ".")
        return 3600.0 * int(hours or 0) + 60.0 * int(minutes or 0) + float(seconds + fraction)

    def _begun_tag(self) -> int:
        """How many characters at the end of `_unread` may be the beginning of a tag."""
        tail = self._unread[-_LONGEST_TAG:]
        if begun := _BEGUN_TAG.search(tail):
            return len(tail) - begun.start()
        if not self._had_reasoning and (index := tail.rfind("<")) >= 0:
            if any(tag.startswith(tail[index:]) for tag in (THINK, END_OF_THINK)):
                return len(tail) - index
        # Whether a whole number that opens the answer is a time depends on the next character.
        number = None if self._any_tag else _NUMBER_AT_END.search(tail)
        return 0 if number is None else len(tail) - number.start()

    def _read_text(self, count: int):
        """Adds characters of `_unread` to the run."""
        piece = self._unread[:count]
        begins = bool(piece.strip()) and (not self._run or self._run.isspace())
        self._run += piece
        self._advance(count)
        if begins:
            self._settle(_distance(self._run[: len(self._run) - len(self._run.lstrip())]))
        while (end := self._end_of_text()) is not None:
            rest, position = self._run[end:], self._run_position + end
            self._run = self._run[:end]
            self._emit(self._take_run(), None)
            self._run, self._run_position = rest, position

    def _end_of_text(self) -> Optional[int]:
        """
        Where a line break in the run has ended a text: any line break does where no tag stands before it, a blank line
        always. Only what is followed by another text, as what ends the last one is not yet known.
        """
        if "\n" not in self._run:
            return None
        body = self._run.rstrip()
        begin = len(body) - len(body.lstrip())
        if self._time is None and self._label is None:
            end = body.find("\n", begin)
            return None if end < 0 else end
        blank_line = _BLANK_LINE.search(body, begin)
        return None if blank_line is None else blank_line.start()

    def _advance(self, count: int):
        count = max(0, count)
        self._unread, self._position = self._unread[count:], self._position + count

    # Understanding: tags and texts to segments.

    def _on_time(self, seconds: float):
        time = _Time(seconds, self._position, distance=_distance(self._run[len(self._run.rstrip()) :]))
        self._any_time = self._any_tag = True
        if self._run.strip():
            text = self._take_run()
            if text.start is not None and not time.distance:
                self._emit(text, time)
                time.has_ended = True
            else:
                self._waiting = text
        elif self._waiting is not None:  # two timestamps in a row: the first ends what is before them
            self._emit_waiting(self._time)
        elif self._time is not None and not self._time.has_ended:
            self._repair("empty", f"{_clock(self._time.seconds)} has no text", self._time.position)
            self._label = None
        self._time = time

    def _on_label(self, label: str):
        self._any_tag = True
        if self._run.strip():
            self._emit(self._take_run(), None)
        else:
            self._settle(_distance(self._run))
            if self._label is not None:
                self._repair("empty", f"[{self._label[0]}] has no text", self._label[1])
        self._label = (label, self._position)

    def _on_reasoning(self, tag: str):
        self._had_reasoning = True
        if tag == THINK:
            self._end_run()
            self._in_reasoning = True
        else:  # the prompt had opened the block: all so far was reasoning
            self._restart()

    def _end_run(self):
        """Closes whatever is open, where nothing can follow."""
        if self._run.strip():
            self._emit(self._take_run(), None)
        elif self._waiting is not None:
            self._emit_waiting(self._time)
        elif self._time is not None and not self._time.has_ended:
            self._repair("empty", f"{_clock(self._time.seconds)} has no text", self._time.position)
        elif self._label is not None:
            self._repair("empty", f"[{self._label[0]}] has no text", self._label[1])
        self._run, self._time, self._label = "", None, None

    def _settle(self, distance: int):
        """Decides whose the last timestamp is, when what comes after it stands at a distance."""
        time = self._time
        if time is None or time.settled:
            return
        time.settled = True
        if time.has_ended:
            if time.distance < distance:
                self._time = None
        elif self._waiting is not None:
            # The first text of an answer may be a remark before the timestamps: it ends with none on its line's end.
            remark = self._waiting.start is None
            if time.distance < distance and (not remark or distance == _OTHER_LINE):
                self._emit_waiting(time)
                self._time = None
            elif time.distance > distance or remark:
                self._emit_waiting(None)
            else:
                self._emit_waiting(time)
                time.has_ended = True

    def _take_run(self) -> Segment:
        segment = self._segment(self._run, self._run_position)
        if self._time is not None and self._time.has_ended:
            self._repair(
                "shared_time", f"{_clock(self._time.seconds)} ends a text and starts one", self._time.position
            )
        self._run, self._time, self._label = "", None, None
        return segment

    def _segment(self, text: str, position: int) -> Segment:
        """A text with what stands before it; its end is not known yet."""
        start = position + len(text) - len(text.lstrip())
        text = text.strip()
        return Segment(
            start=None if self._time is None else self._time.seconds,
            end=None,
            text=text,
            speaker=None if self._label is None else self._label[0],
            span=(start, start + len(text)),
        )

    def _emit_waiting(self, time: Optional["_Time"]):
        text, self._waiting = self._waiting, None
        self._emit(text, time)

    def _emit(self, segment: Segment, time: Optional["_Time"]):
        """Closes a text, with the timestamp that ends it."""
        start, end, position = segment.start, None if time is None else time.seconds, segment.span[0]
        quoted = repr(segment.text if len(segment.text) <= 30 else segment.text[:29] + "…")
        if start is not None and end is not None and end < start:
            self._repair("reversed", f"{quoted} starts at {_clock(start)} and ends at {_clock(end)}", time.position)
            end = None
        elif start is not None and end is None:
            self._repair("no_end", f"{quoted} has no end", position)
        elif start is None and end is not None:
            self._repair("no_start", f"{quoted} has no start", position)
        elif start is None and self._any_time:
            self._repair("outside", f"{quoted} stands outside of timestamps", position)
        self._compare(start, segment.speaker, quoted, position)
        if end is not None:
            self._last_end[segment.speaker] = end
        segment = replace(segment, end=end)
        self.transcript.segments.append(segment)
        self._closed.append(segment)

    def _compare(self, start: Optional[float], speaker: Optional[str], quoted: str, position: int):
        """Notes where a segment does not follow the ones before it."""
        if start is None:
            return
        if self._last_start is not None and start < self._last_start:
            self._repair("out_of_order", f"{quoted} starts before the segment before it", position)
        elif start < self._last_end.get(speaker, start):
            self._repair("overlap", f"{quoted} starts before the same speaker has ended", position)
        self._last_start = start

    def _repair(self, kind: str, message: str, position: int):
        self.transcript.repairs.append(Repair(kind, message, position))


@dataclass
class _Time:
    """A timestamp that was read: how far it stands from what is before it, whether it ended that, and whose it is."""

    seconds: float
    position: int
    distance: int
    has_ended: bool = False
    settled: bool = False


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


_NARROW = str.maketrans("：．", ":.")
_OTHER_LINE = 2
_PIECE = 2000  # characters that a long answer is read in, for each tag costs the rest of the piece


def _distance(whitespace: str) -> int:
    """How far apart two things are between which there is whitespace: touching 0, on one line 1, on two lines 2."""
    return 0 if not whitespace else _OTHER_LINE if "\n" in whitespace else 1


def _clock(seconds: float) -> str:
    return f"[{seconds + 0.0:.2f}]"  # -0.0 has no sign then


def parse_transcript(text: str) -> Transcript:
    """
    The transcript in an answer: with times by sentence or word (`[0.00]hello[2.01][2.01]there[4.32]`), with speakers
    (`[0.00][S01]Hello.[7.56]`), or plain text, which gives segments without times, one a line.

    Args:
        text: an answer, with or without reasoning (which is passed over). Any string will do.

    Returns:
        [`Transcript`]; times may be written as seconds, MM:SS or HH:MM:SS.
    """
    parser = TranscriptParser()
    for start in range(0, len(text), _PIECE):
        parser.feed(text[start : start + _PIECE])
    parser.close()
    return parser.transcript


def format_transcript(segments: Iterable[Segment]) -> str:
    """
    Segments in the format of the released checkpoints, as for training: `[0.00]hello there[2.01][2.01]good day[4.32]`,
    or `[0.00][S01]Hello.[7.56]` for those with a speaker. [`parse_transcript`] gives them back, with times rounded to
    centiseconds, line breaks as spaces, and no confidence.

    Args:
        segments: segments, or a [`Transcript`].

    Raises:
        ValueError: where a segment cannot be written so that it is read back: without text, with a time that is negative
            or before the start, with a speaker that is no label, with a text in which there are timestamps or labels.
    """
    segments = list(segments)
    parts: list[str] = []
    for index, segment in enumerate(segments):
        _check_times(index, segment)
        before = segments[index - 1] if index else None
        # Where a time is missing, a blank line keeps the neighbour's text and time away.
        parts.append("\n\n" if before is not None and (before.end is None or segment.start is None) else "")
        parts.append("" if segment.start is None else _clock(segment.start))
        parts.append("" if segment.speaker is None else f"[{segment.speaker}]")
        parts.append(_one_line(segment.text))
        parts.append("" if segment.end is None else _clock(segment.end))
    text = "".join(parts)
    read = parse_transcript(text).segments
    for index, segment in enumerate(segments):
        if index >= len(read) or not _same(segment, read[index]):
            raise ValueError(
                f"segment {index} ({segment.text!r:.60}, speaker {segment.speaker!r}, {segment.start} to {segment.end}) "
                "cannot be written so that it is read back: it needs a text without timestamps, labels like [S01] and "
                "<think> in it, a speaker like 'S01' or None, and an end that is not before its start."
            )
    if len(read) > len(segments):
        raise ValueError(f"the last segment's text ends in the beginning of a timestamp: {segments[-1].text!r:.60}.")
    return text


def _check_times(index: int, segment: Segment):
    for name, time in (("start", segment.start), ("end", segment.end)):
        if time is not None and not 0 <= time < 1e6:
            raise ValueError(
                f"`{name}` of segment {index} is {time}; it must be in seconds, from 0 to 999999, or None."
            )


def _one_line(text: str) -> str:
    return " ".join(filter(None, (line.strip() for line in re.split("[\r\n]+", text))))


def _same(segment: Segment, read: Segment) -> bool:
    """Whether a segment was read as it was written."""
    times = all(
        (time is None) == (other is None) and (time is None or abs(time - other) < 0.0051)
        for time, other in ((segment.start, read.start), (segment.end, read.end))
    )
    return times and segment.speaker == read.speaker and _one_line(segment.text) == read.text


def parse_json(text: str) -> Union[dict[str, Any], list[Any], None]:
    """
    The JSON object (or else array) in an answer: whatever stands around it, in a fence or not, with trailing commas, with
    line breaks inside strings, or cut off (what is complete is kept).

    Args:
        text: an answer, with or without reasoning. Any string will do.

    Returns:
        The object or array; None where there is none.
    """
    # Behind other text, a `<think>` without an end may be part of a string.
    unopened = END_OF_THINK not in text and not text.lstrip().startswith(THINK)
    answer = text if unopened else split_reasoning(text)[1]
    array, end = None, 0
    for opener in itertools.islice(re.finditer(r"[{\[]", answer), _JSON_ATTEMPTS):
        if opener.start() < end:
            continue  # inside of an array that was read
        value, stop = _read_json(answer, opener.start())
        if isinstance(value, dict):
            return value
        if value is not None and array is None:
            array, end = value, stop
    return array


_JSON_ATTEMPTS, _JSON_CUTS, _JSON_DEPTH = 100, 10, 100  # an answer that is nothing but brackets must not take forever
_JSON_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\],]|[^"{}\[\],]+|"', re.DOTALL)


def _read_json(text: str, start: int) -> tuple[Union[dict[str, Any], list[Any], None], int]:
    """The object or array that opens at a bracket, and where it ends; None where there is none, or it is cut off empty."""
    tokens: list[str] = []
    closers = ""
    complete: list[tuple[int, str]] = []  # how many tokens make something whole, with these brackets behind them
    for match in _JSON_TOKEN.finditer(text, start):
        token = match.group()
        if token == '"':
            break  # the answer ends within a string
        if token in "}]":
            if not closers.startswith(token):
                return None, match.end()
            closers = closers[1:]
            while tokens[-1].isspace() or tokens[-1] == ",":  # a trailing comma
                tokens.pop()
        elif token in "{[":
            if len(closers) == _JSON_DEPTH:
                return None, match.end()
            closers = ("}" if token == "{" else "]") + closers
        elif token == ",":
            complete.append((len(tokens), closers))
        tokens.append(token)
        if not closers:
            return _decode_json("".join(tokens)), match.end()
        if token in "}]":
            complete.append((len(tokens), closers))
    for count, brackets in reversed(complete[-_JSON_CUTS:]):
        if value := _decode_json("".join(tokens[:count]) + brackets):
            return value, len(text)
    return None, len(text)


def _decode_json(text: str) -> Union[dict[str, Any], list[Any], None]:
    try:
        return json.loads(text, strict=False, parse_constant=lambda name: None)
    except (ValueError, RecursionError):
        return None


def split_reasoning(text: str) -> tuple[Optional[str], str]:
    """
    The reasoning and the answer of a generated text: what its `<think>` block holds, None without one, and what comes
    after it. A block that the answer was cut off in has no end; then the answer is empty.
    """
    start, end = text.find(THINK), text.find(END_OF_THINK)
    if end >= 0 and (start < 0 or end < start):  # the prompt opened the block
        return text[:end].strip(), text[end + len(END_OF_THINK) :].strip()
    if start < 0:
        return None, text.strip()
    reasoning, _, answer = text[start + len(THINK) :].partition(END_OF_THINK)
    return reasoning.strip(), (text[:start] + answer).strip()


def join_texts(texts: Iterable[str]) -> str:
    """
    Texts one after another, with a space between them unless the script has none there (Chinese, Japanese, Thai…), or one
    is nothing but closing punctuation.
    """
    joined = ""
    for text in texts:
        unspaced = not joined or not text or UNSPACED.match(joined[-1]) or UNSPACED.match(text[0])
        spaced = not (unspaced or _PUNCTUATION.fullmatch(text))
        joined += " " + text if spaced else text
    return joined


# Scripts without spaces between words: Thai, Lao, Burmese, Khmer, the signs and kana of Chinese and Japanese with their
# punctuation and wide forms.
UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3000-\u303f\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff]"
)
_PUNCTUATION = re.compile(r"[,.!?;:…)\]}%]+")


__all__ = [
    "Repair",
    "Segment",
    "Transcript",
    "TranscriptParser",
    "format_transcript",
    "parse_json",
    "parse_transcript",
    "split_reasoning",
]
