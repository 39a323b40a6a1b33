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
"""Fine-tuning: data files to samples, samples to batches, and what the standard Trainer lacks for MOSS-Audio."""

from .collator import MossAudioDataCollator, TooLongError
from .data import DataError, RowDataset, SampleDataset, load_samples, normalise, read_records
from .mixture import EpochSampler, Mixture, grouped, weighted


def __getattr__(name: str):
    if name == "MossAudioTrainer":  # needs accelerate, which a collator does not
        from .trainer import MossAudioTrainer

        return MossAudioTrainer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "DataError",
    "EpochSampler",
    "Mixture",
    "MossAudioDataCollator",
    "MossAudioTrainer",
    "RowDataset",
    "SampleDataset",
    "TooLongError",
    "grouped",
    "load_samples",
    "normalise",
    "read_records",
    "weighted",
]
