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
"""Recordings longer than the model should hear at once: cut at quiet places, and the transcripts of the pieces made one.

The pieces follow each other without gap and overlap, so that no word is heard twice or not at all.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Optional

import torch

from .transcripts_moss_audio import Repair, Segment, Transcript, format_transcript, join_texts


CHUNK_SECONDS = 600.0  # the longest that the authors recommend in one pass
PAUSE_SECONDS = 0.3  # over which quietness is measured: a pause between sentences
GAP_SECONDS = 0.03  # the same, where speech leaves nothing longer than a gap between words
SHORTEST_PIECE = 1.0  # seconds


@dataclass
class Piece:
    """A stretch of a recording: `samples` `(samples,)` from `start` to `end`, in seconds."""

    start: float
    end: float
    samples: torch.Tensor
    is_last: bool


def cut_audio(
    blocks: Iterable[torch.Tensor], sampling_rate: int, max_seconds: float = CHUNK_SECONDS
) -> Iterator[Piece]:
    """
    A recording in pieces of at most `max_seconds`, cut in the middle of the longest pause of the last tenth (of the last
    10 s, where that is more, but never before the half). No more than a piece is held at a time.

    Args:
        blocks: mono samples in blocks of any length, as from [`stream_audio`].
        sampling_rate: samples per second.
        max_seconds: the longest piece. None is shorter than a second, unless the recording is.

    Returns:
        [`Piece`]s; joined they are the recording, sample by sample. At least one, which may be empty.

    Raises:
        ValueError: where `max_seconds` is less than 2.
    """
    if not max_seconds >= 2:
        raise ValueError(f"pieces of {max_seconds} s are too short to be understood; take 2 s or more.")
    limit, shortest = int(max_seconds * sampling_rate), int(SHORTEST_PIECE * sampling_rate)
    earliest = limit - int(max(max_seconds / 10, min(max_seconds / 2, 10.0)) * sampling_rate)
    held: list[torch.Tensor] = []
    start = length = 0
    for block in blocks:
        held.append(block)
        length += block.shape[0]
        while length > limit + shortest:
            samples = held[0] if len(held) == 1 else torch.cat(held)
            cut = quietest_place(samples, earliest, limit, sampling_rate)
            yield Piece(start / sampling_rate, (start + cut) / sampling_rate, samples[:cut], False)
            held, start, length = [samples[cut:]], start + cut, length - cut
    samples = held[0] if len(held) == 1 else torch.cat(held) if held else torch.zeros(0)
    if length > limit:
        cut = quietest_place(samples, earliest, length - shortest, sampling_rate)
        yield Piece(start / sampling_rate, (start + cut) / sampling_rate, samples[:cut], False)
        samples, start = samples[cut:], start + cut
    yield Piece(start / sampling_rate, (start + samples.shape[0]) / sampling_rate, samples, True)


def quietest_place(samples: torch.Tensor, low: int, high: int, sampling_rate: int) -> int:
    """
    The sample between `low` and `high` around which there is least sound: the middle of the longest stretch that is as quiet
    as any, give or take 3 dB; the last of several. In speech without a pause it is in a gap between words.
    """
    pause = _middle_of_quiet(samples, low, high, sampling_rate, PAUSE_SECONDS)
    near = int(PAUSE_SECONDS * sampling_rate)
    return _middle_of_quiet(samples, max(low, pause - near), min(high, pause + near), sampling_rate, GAP_SECONDS)


def _middle_of_quiet(samples: torch.Tensor, low: int, high: int, sampling_rate: int, seconds: float) -> int:
    """The middle of the longest stretch in which any so many seconds are as quiet as the quietest, give or take 3 dB."""
    hop = max(1, sampling_rate // 100)
    frames = (high - low) // hop
    if frames < 1:
        return high
    power = samples[low : low + frames * hop].view(frames, hop).square().mean(dim=1)
    width = min(frames, round(seconds * sampling_rate / hop))
    loudness = torch.nn.functional.avg_pool1d(power[None, None], width, stride=1)[0, 0]
    first, longest, run = 0, 0, 0
    for index, quiet in enumerate((loudness <= 2 * loudness.min()).tolist()):  # within 3 dB
        run = run + 1 if quiet else 0
        if run >= longest:
            first, longest = index - run + 1, run
    return low + int((first + (longest - 1) / 2 + width / 2) * hop)


def stitch_transcripts(pieces: Sequence[tuple[float, float, Transcript]]) -> Transcript:
    """
    One transcript of a recording from those of its pieces.

    Args:
        pieces: where each begins and ends in the recording, in seconds, and its transcript, with times from its beginning.

    Returns:
        [`Transcript`] in the order of time: starts never fall, and no segment leaves its piece. A time that did is set to
        the piece's end, and a segment that came too late put where it starts; both are listed as repairs. Segments have no
        `span`: there is no answer that they all stand in.
    """
    whole = Transcript()
    for start, end, transcript in pieces:
        whole.repairs.extend(transcript.repairs)
        moved = []
        for segment in transcript.shifted(start):
            inside = within_piece(segment, start, end)
            if (inside.start, inside.end) != (segment.start, segment.end):
                message = f"a segment reaches beyond the {end - start:.2f} s that were heard; it ends there"
                whole.repairs.append(Repair("beyond_end", message, segment.span[0] if segment.span else 0))
            moved.append(replace(inside, span=None))
        whole.segments.extend(_in_order(moved, start))
    return whole


def within_piece(segment: Segment, start: float, end: float) -> Segment:
    """The segment with its times inside a piece; those that are None stay None."""
    times = (None if time is None else min(max(time, start), end) for time in (segment.start, segment.end))
    begin, finish = times
    return replace(segment, start=begin, end=finish)


def _in_order(segments: list[Segment], start: float) -> list[Segment]:
    """Segments by their starts; one without goes with the one before it."""
    keys: list[float] = []
    for segment in segments:
        keys.append(segment.start if segment.start is not None else keys[-1] if keys else start)
    return [segments[index] for index in sorted(range(len(segments)), key=keys.__getitem__)]


def stitched_text(transcript: Transcript, answers: Sequence[str]) -> str:
    """The answer for a whole recording: in the format of the released checkpoints where it has times, else as text."""
    if any(segment.start is not None or segment.end is not None for segment in transcript):
        try:
            return format_transcript(transcript)
        except ValueError:  # a text with brackets, say; the segments have it all
            return transcript.text
    return join_texts(answer for answer in answers if answer)


def clock(seconds: Optional[float]) -> str:
    """Seconds as H:MM:SS."""
    whole = int(seconds or 0)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


__all__ = ["CHUNK_SECONDS", "Piece", "cut_audio", "quietest_place", "stitch_transcripts"]
