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

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Optional, Union


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
        return {name: value for name, value in asdict(self).items() if name in always or value is not None}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Segment":
        """
        The segment that [`Segment.to_dict`] was called on. Keys that are unknown are passed over.

        Raises:
            ValueError: where `data` has no text, or a time that is no number.
        """
        return _segment_from_dict(cls, data)


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
        raise NotImplementedError


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

    def __init__(self, reasoning_open: bool = False):
        self.transcript = Transcript()

    def feed(self, text: str) -> list[Segment]:
        """Reads on; returns the segments that this piece has closed."""
        raise NotImplementedError

    def close(self) -> list[Segment]:
        """Ends the answer; returns the segments that were still open. To be called once, after the last piece."""
        raise NotImplementedError


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
    parser.feed(text)
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
    raise NotImplementedError


def parse_json(text: str) -> Union[dict[str, Any], list[Any], None]:
    """
    The JSON object (or else array) in an answer: whatever stands around it, in a fence or not, with trailing commas, with
    line breaks inside strings, or cut off (what is complete is kept).

    Args:
        text: an answer, with or without reasoning. Any string will do.

    Returns:
        The object or array; None where there is none.
    """
    raise NotImplementedError


def split_reasoning(text: str) -> tuple[Optional[str], str]:
    """
    The reasoning and the answer of a generated text: what its `<think>` block holds, None without one, and what comes
    after it. A block that the answer was cut off in has no end; then the answer is empty.
    """
    head, opened, rest = text.partition("<think>")
    if not opened:
        reasoning, closed, answer = text.partition("</think>")  # the prompt opened the block
        return (reasoning.strip(), answer.strip()) if closed else (None, text.strip())
    reasoning, _, answer = rest.partition("</think>")
    return reasoning.strip(), (head + answer).strip()


def join_texts(texts: Iterable[str]) -> str:
    """Texts one after another, with a space between them unless the script has none there (Chinese, Japanese, Thai…)."""
    raise NotImplementedError


def _segment_from_dict(cls: type, data: Mapping[str, Any]) -> Segment:
    known = {item.name for item in fields(cls)}
    return cls(**{name: value for name, value in data.items() if name in known})


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
