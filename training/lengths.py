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
import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Optional

from torch.utils.data import Dataset

from moss_audio.processing_moss_audio import load_audio

from .collator import MossAudioDataCollator, TooLongError, audio_parts
from .data import DataError


THREADS = 8  # decoding and reading from disks leave Python free


class Length(NamedTuple):
    """Sound and tokens of a sample, or why it has none."""

    seconds: float
    tokens: int
    error: Optional[DataError] = None


def quick_length(collator: MossAudioDataCollator, sample: dict[str, Any]) -> Length:
    """
    A sample's length by the headers of its recordings: nothing is decoded where a file says how long it is.

    Raises:
        DataError: where the sample or a recording cannot be used.
    """
    messages = collator.conversation(sample)
    try:
        clips = [_samples_by_header(part, collator.processor.sampling_rate) for part in audio_parts(messages)]
    except (OSError, ValueError) as error:
        raise DataError(f"{sample.get('origin', 'sample')}: {error}") from error
    return Length(sum(clips) / collator.processor.sampling_rate, collator.count_tokens(messages, clips))


def exact_length(collator: MossAudioDataCollator, sample: dict[str, Any]) -> Length:
    """A sample's length, everything decoded, as training will do it; what is wrong is in `error`."""
    try:
        messages = collator.load(sample)
    except TooLongError as error:
        return Length(error.seconds, error.tokens, error)
    except DataError as error:
        return Length(0.0, 0, error)
    clips = [part["audio"].shape[0] for part in audio_parts(messages)]
    return Length(sum(clips) / collator.processor.sampling_rate, collator.count_tokens(messages, clips))


def _samples_by_header(part: dict[str, Any], rate: int) -> int:
    """Samples that a recording will have at `rate`."""
    source = part.get("path")
    if isinstance(source, dict) and source.get("bytes") is not None:
        source = io.BytesIO(source["bytes"])
    if isinstance(source, (str, io.BytesIO)) and not str(source).startswith(("http://", "https://", "data:")):
        import soundfile

        try:
            header = soundfile.info(source)
            return math.ceil(header.frames * rate / header.samplerate)
        except RuntimeError:  # not a file that soundfile opens: reading it will say so, or do it
            pass
    return load_audio(next(value for key, value in part.items() if key != "type"), target_rate=rate).shape[0]


def quick_lengths(collator: MossAudioDataCollator, samples: Dataset, progress: bool = False) -> list[Length]:
    """`quick_length` of all samples, in order."""
    from tqdm.auto import tqdm

    with ThreadPoolExecutor(THREADS) as pool:
        lengths = pool.map(lambda index: quick_length(collator, samples[index]), range(len(samples)))
        return list(tqdm(lengths, "Lengths", len(samples), unit="sample", disable=not progress))


__all__ = ["Length", "exact_length", "quick_length", "quick_lengths"]
