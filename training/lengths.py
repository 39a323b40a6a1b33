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
"""How long samples are, in seconds and tokens: what `check-data` reports, and what batches of like length go by."""

import io
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Optional, Union

from torch.utils.data import Dataset
from tqdm.auto import tqdm

from moss_audio.processing_moss_audio import load_audio

from .collator import MossAudioDataCollator, TooLongError, audio_parts, recording
from .data import REMOTE, DataError


# Decoding, and reading from disks, leave Python free. Tokens are counted in one thread: tokenizers bear no other.
THREADS = 8
BLOCK = 256  # samples that are read ahead


class Entry(NamedTuple):
    """A record of a data file: a sample, or what is wrong with it."""

    origin: str
    sample: Optional[dict[str, Any]]
    error: Optional[DataError] = None


class Length(NamedTuple):
    """Sound and tokens of a record, or why it has none."""

    entry: Entry
    seconds: float
    tokens: int
    error: Optional[DataError] = None


def quick_lengths(collator: MossAudioDataCollator, samples: Dataset, progress: bool = False) -> list[int]:
    """
    The lengths of samples in tokens, by the headers of their recordings: nothing is decoded where a file says how long it
    is.

    Raises:
        DataError: where a sample or a recording cannot be used.
    """

    def read(index: int) -> tuple[list[dict[str, Any]], list[int]]:
        sample = samples[index]
        messages = collator.conversation(sample)
        try:
            return messages, [
                _samples_by_header(part, collator.processor.sampling_rate) for part in audio_parts(messages)
            ]
        except (OSError, ValueError) as error:
            raise DataError(f"{sample.get('origin', 'sample')}: {error}") from error

    found = in_threads(read, range(len(samples)))
    found = tqdm(found, "Lengths", len(samples), unit="sample", disable=not progress)
    return [collator.count_tokens(messages, clips) for messages, clips in found]


def exact_lengths(collator: MossAudioDataCollator, entries: Iterable[Entry]) -> Iterator[Length]:
    """The lengths of samples in order, everything decoded, as training will do it; what is wrong is in `error`."""

    def read(entry: Entry) -> Union[list[dict[str, Any]], DataError]:
        try:
            return collator.decode(entry.sample) if entry.error is None else entry.error
        except DataError as error:
            return error

    for entry, messages in in_threads(lambda entry: (entry, read(entry)), entries):
        if isinstance(messages, DataError):
            yield Length(entry, 0.0, 0, messages)
            continue
        try:
            yield Length(entry, *collator.measure(messages, entry.origin))
        except TooLongError as error:
            yield Length(entry, error.seconds, error.tokens, error)
        except ValueError as error:  # the chat template's
            yield Length(entry, 0.0, 0, DataError(f"{entry.origin}: {error}"))


def in_threads(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
    """Results in order, a block of items at a time."""
    items = iter(items)
    with ThreadPoolExecutor(THREADS) as pool:
        while block := list(itertools.islice(items, BLOCK)):
            yield from pool.map(function, block)


def _samples_by_header(part: dict[str, Any], rate: int) -> int:
    """Samples that a recording will have at `rate`."""
    source = recording(part)
    encoded = source.get("bytes") if isinstance(source, Mapping) else source
    if isinstance(encoded, bytes) or isinstance(encoded, str) and not encoded.startswith(REMOTE):
        import soundfile

        try:
            header = soundfile.info(io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded)
            return math.ceil(header.frames * rate / header.samplerate)
        except RuntimeError:  # not a file that soundfile opens: reading it will say so, or do it
            pass
    return load_audio(source, target_rate=rate).shape[0]


__all__ = ["Entry", "Length", "exact_lengths", "quick_lengths"]
