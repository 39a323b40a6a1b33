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
"""What it takes from 10 minutes of 44.1 kHz stereo MP3 to the model's inputs: the whole call of the processor, against
decoding and resampling alone.

    python -m moss_audio.benchmarks.mp3_inputs

Decoding and resampling alone are soundfile, the mean of the two channels, and soxr at its default quality: all at once, with which
the processor's samples are compared, too, or piece by piece as `load_audio` does it. The faster of the two counts. The tokenizer is made up, with a vocabulary of the released size.
"""

import statistics
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Optional

import numpy as np
import torch

from moss_audio import MossAudioProcessor, load_audio, log_mel
from moss_audio.configuration_moss_audio import frames_to_tokens

from .measuring import Report, against_target, largest_difference, make_parser, publish, ratios, take_turns
from .models import QUESTION, make_processor


RATE = 44100
AGREEMENT = 1e-6  # of samples between -1 and 1
ALONE, LOADING, WHOLE = "decoding and resampling, all at once", "the same by `load_audio`", "the processor's call"


def make_mp3(path: Path, seconds: float, seed: int):
    """A recording of tones in noise, other ones on the left and on the right, encoded as MP3 block by block."""
    import soundfile

    random, total, block = np.random.default_rng(seed), round(RATE * seconds), 10 * RATE
    with soundfile.SoundFile(path, "w", RATE, 2, format="MP3") as file:
        for start in range(0, total, block):
            times = np.arange(start, min(start + block, total))[:, None] / RATE  # (samples, 1)
            tones = np.sin(2 * np.pi * np.array([300, 500]) * times + 100 * np.sin(2 * times))
            file.write(0.2 * tones + 0.05 * random.standard_normal(tones.shape))


def decode_and_resample(path: Path, rate: int = 16000) -> np.ndarray:
    """The recording as mono samples `(samples,)`, float32, by as few calls as there can be."""
    import soundfile
    import soxr

    channels, recorded_rate = soundfile.read(path, dtype="float32")
    mono = channels[:, 0] + channels[:, 1]
    mono /= 2
    return soxr.resample(mono, recorded_rate, rate)


def check(processor: MossAudioProcessor, path: Path) -> float:
    """The largest difference of the samples; and the inputs hold the features and the tokens of these samples."""
    samples = load_audio(path)
    difference = largest_difference(samples, torch.from_numpy(decode_and_resample(path)), AGREEMENT)
    inputs = processor(text=QUESTION, audio=path)
    largest_difference(inputs["audio_data"][0], log_mel(samples), 0)
    tokens, expected = int((inputs["input_ids"] == processor.audio_token_id).sum()), len(samples) // 160
    if tokens != frames_to_tokens(expected):
        raise ValueError(f"the prompt has {tokens} audio tokens; the recording has {expected} frames.")
    return difference


def measure(seconds: float, rounds: int, seed: int, device: str) -> Report:
    """The three ways in turns, over one file."""
    with tempfile.TemporaryDirectory() as folder:
        path, processor = Path(folder) / "recording.mp3", make_processor("4b")
        make_mp3(path, seconds, seed)
        difference = check(processor, path)
        ways = {
            ALONE: lambda: decode_and_resample(path),
            LOADING: lambda: load_audio(path),
            WHOLE: lambda: processor(text=QUESTION, audio=path, device=device),
        }
        times = take_turns(ways, rounds, device)
        megabytes = path.stat().st_size / 1e6
    faster = [min(pair) for pair in zip(times[ALONE], times[LOADING])]
    whole, loading = ratios(times[WHOLE], faster), ratios(times[LOADING], times[ALONE])
    medians = {name: statistics.median(each) for name, each in times.items()}
    return Report(
        header=["", "seconds", "seconds of audio a second"],
        rows=[[name, medians[name], seconds / medians[name]] for name in ways],
        notes=[
            against_target(
                "Time of the processor's call over that of decoding and resampling, by the faster way of each round",
                whole,
                "at most 1.5",
                whole["median"] <= 1.5,
            ),
            f"`load_audio` takes {loading['median']:.3g} times as long as all at once. A file of {megabytes:.1f} MB; the samples differ by "
            f"{difference:.2g} at most.",
        ],
        values={"whole": whole, "loading": loading, "seconds": times, "file_megabytes": megabytes},
        versions={name: version(name) for name in ("soundfile", "soxr", "librosa", "tokenizers")},
    )


def main(arguments: Optional[list[str]] = None):
    parser = make_parser("mp3_inputs", __doc__)
    parser.add_argument("--seconds", type=float, default=600.0, help="length of the recording; default: 600")
    options = parser.parse_args(arguments)
    publish(measure(options.seconds, options.rounds, options.seed, options.device), options)


if __name__ == "__main__":
    main()
