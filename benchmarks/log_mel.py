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
"""How fast and how lean are the features of a clip of 10 minutes: `log_mel` against `WhisperFeatureExtractor`'s NumPy path,
the one that the published processor uses.

    python -m moss_audio.benchmarks.log_mel

A `WhisperFeatureExtractor` that is called takes its torch path wherever torch is installed; the NumPy path is called by its
method here, and the torch path runs along. Both methods get the clip as it is, without padding to 30 s or truncation.
"""

import statistics
from collections.abc import Callable
from typing import Any, Optional

import numpy as np
import torch
from transformers import WhisperFeatureExtractor

from moss_audio import log_mel

from .measuring import (
    Report,
    against_target,
    largest_difference,
    make_parser,
    peak_megabytes,
    publish,
    ratios,
    take_turns,
    verdict,
)


RATE = 16000
AGREEMENT = 1e-4  # in features, whose unit is 40 dB: the NumPy path computes in float64
OURS, NUMPY, TORCH = "`log_mel`", "`WhisperFeatureExtractor`, NumPy", "`WhisperFeatureExtractor`, torch"


def make_sound(seconds: float, seed: int) -> np.ndarray:
    """Noise that swells and fades every 4 s, `(samples,)`, float32."""
    random = np.random.default_rng(seed)
    sound = random.standard_normal(round(RATE * seconds), dtype=np.float32)
    sound *= 0.1 * np.sin(np.pi / 4 / RATE * np.arange(len(sound), dtype=np.float32)) ** 2
    return sound


def ready_ours(seconds: float, seed: int, device: str) -> Callable[[], torch.Tensor]:
    """`log_mel` of a clip that lies on the device."""
    sound = torch.from_numpy(make_sound(seconds, seed)).to(device)
    log_mel(sound[:RATE])  # what is made once a process does not count
    return lambda: log_mel(sound)


def ready_numpy(seconds: float, seed: int, device: str = "cpu") -> Callable[[], np.ndarray]:
    """The NumPy path; there is none on other devices."""
    sound, extractor = make_sound(seconds, seed)[None], WhisperFeatureExtractor(feature_size=128)
    extractor._np_extract_fbank_features(sound[:, :RATE], "cpu")
    return lambda: extractor._np_extract_fbank_features(sound, "cpu")[0]


def ready_torch(seconds: float, seed: int, device: str) -> Callable[[], np.ndarray]:
    """The torch path, which copies the clip to the device and the features back."""
    sound, extractor = make_sound(seconds, seed), WhisperFeatureExtractor(feature_size=128)
    extractor._torch_extract_fbank_features(sound[:RATE], device)
    return lambda: extractor._torch_extract_fbank_features(sound, device)


def measure(seconds: float, rounds: int, seed: int, device: str) -> Report:
    """Time in turns, peaks of memory in processes of their own."""
    makers = {OURS: ready_ours, NUMPY: ready_numpy, TORCH: ready_torch}
    ways: dict[str, Callable[[], Any]] = {name: make(seconds, seed, device) for name, make in makers.items()}
    difference = largest_difference(ways[OURS](), torch.from_numpy(ways[NUMPY]()), AGREEMENT)
    times = take_turns(ways, rounds, device)
    peaks = {
        name: peak_megabytes(make, seconds, seed, device, device="cpu" if name == NUMPY else device)
        for name, make in makers.items()
    }
    faster = ratios(times[NUMPY], times[OURS])
    memory = peaks[OURS] / peaks[NUMPY]
    medians = {name: statistics.median(each) for name, each in times.items()}
    return Report(
        header=["", "seconds", "seconds of audio a second", "peak of memory, MB"],
        rows=[[name, medians[name], seconds / medians[name], peaks[name]] for name in makers],
        notes=[
            against_target("Times as fast as the NumPy path", faster, "at least 3", faster["median"] >= 3),
            f"Peak of memory, the features included, as a share of the NumPy path's: {memory:.3g} "
            f"({verdict('at most 0.5', memory <= 0.5)}).",
            f"The features differ by {difference:.2g} at most.",
        ],
        values={"times_as_fast": faster, "share_of_memory": memory, "seconds": times, "megabytes": peaks},
        versions={"numpy": np.__version__},
    )


def main(arguments: Optional[list[str]] = None):
    parser = make_parser("log_mel", __doc__)
    parser.add_argument("--seconds", type=float, default=600.0, help="length of the clip; default: 600")
    options = parser.parse_args(arguments)
    publish(measure(options.seconds, options.rounds, options.seed, options.device), options)


if __name__ == "__main__":
    main()
