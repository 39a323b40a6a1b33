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
"""What batches gain where clips are sorted by their length before they go through the pipeline.

    python -m moss_audio.benchmarks.sorting

Clips of 2 to 30 s in a random order, and answers as long as transcripts are: so many tokens a second of sound. A batch goes on
until its longest answer has ended, and its prompts are padded to the longest.
"""

import statistics
from typing import Any

import numpy as np
import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from moss_audio.configuration_moss_audio import TOKENS_PER_SECOND

from .measuring import Report, make_parser, publish, ratios, spread, take_turns
from .models import DTYPES, QUESTION, make_pipeline, sound


class EndsInProportion(StoppingCriteria):
    """Ends each answer when it has so many tokens for every audio token of its prompt, and counts the steps."""

    def __init__(self, audio_token_id: int, share: float):
        self.audio_token_id, self.share, self.steps = audio_token_id, share, 0
        self._prompts = torch.zeros(0, 0)
        self._limits = torch.zeros(0)

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs) -> torch.Tensor:
        begun = input_ids[:, : self._prompts.shape[1]]
        if begun.shape != self._prompts.shape or not torch.equal(begun, self._prompts):  # another batch
            self._prompts = input_ids[:, :-1].clone()
            heard = (self._prompts == self.audio_token_id).sum(1)
            self._limits = self._prompts.shape[1] + (self.share * heard).ceil().clamp(min=1)
        self.steps += 1
        return input_ids.shape[1] >= self._limits


def measure(
    size: str,
    clips: int,
    seconds: tuple[float, float],
    batch_size: int,
    rate: float,
    dtype: torch.dtype,
    rounds: int,
    device: str,
    seed: int,
) -> Report:
    """Seconds and decoding steps with the clips as they come and sorted."""
    pipe = make_pipeline(size, dtype, device, seed)
    lengths = np.random.default_rng(seed).uniform(*seconds, clips)
    given = [sound(length, seed + clip) for clip, length in enumerate(lengths)]
    orders = {"as they come": given, "sorted by length": sorted(given, key=len)}
    steps = {}

    def answer(name: str, sounds: list[np.ndarray]):
        ends = EndsInProportion(pipe.model.config.audio_token_id, rate / TOKENS_PER_SECOND)
        limit = int(max(lengths) * rate) + 2
        options = {"stopping_criteria": StoppingCriteriaList([ends]), "max_new_tokens": limit, "min_new_tokens": limit}
        results = pipe(sounds, text=QUESTION, batch_size=batch_size, do_sample=False, **options)
        assert len(results) == len(sounds)
        steps[name] = ends.steps

    answer("warm", [min(given, key=len)])  # a round takes minutes
    ways = {name: lambda name=name: answer(name, orders[name]) for name in orders}
    taken = take_turns(ways, rounds, device, warm=0)
    rows = [[name, statistics.median(taken[name]), steps[name]] for name in orders]
    ratio = ratios(*taken.values())
    notes = [
        f"Seconds, as they come over sorted: {ratio['median']:.3g} ({spread(ratio)}).",
        f"Size {size}, {clips} clips of {seconds[0]:g} to {seconds[1]:g} s in batches of {batch_size}, {rate:g} tokens a "
        "second of sound.",
    ]
    return Report(
        ["clips", "seconds", "decoding steps"],
        rows,
        notes,
        {"ratio": ratio, "steps": [steps[name] for name in orders]},
    )


def main():
    parser = make_parser("sorting", __doc__, rounds=2)
    parser.add_argument("--size", default="0.6b", help="tiny, 0.6b, 4b or 8b; default: 0.6b")
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--seconds", type=float, nargs=2, default=(2, 30), help="of the shortest and the longest clip")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--rate", type=float, default=4, help="tokens of an answer for a second of sound")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    options = parser.parse_args()
    shape = (options.size, options.clips, tuple(options.seconds), options.batch_size, options.rate)
    publish(measure(*shape, DTYPES[options.dtype], options.rounds, options.device, options.seed), options)


if __name__ == "__main__":
    main()
