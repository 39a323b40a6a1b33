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
"""How much memory above the weights the prefill of a 10-minute clip takes: `generate` up to its first token, which asks for
the logits of the last position only, against a forward pass that gives the logits of every position.

    python -m moss_audio.benchmarks.prefill_memory

Encoder included. Every run has a process of its own; all must give the same logits for the first token.
"""

import statistics
from typing import Callable

import torch

from .measuring import Report, against_target, cost, make_parser, publish, ratios, relative_error, turn
from .models import DTYPES, make_config, make_model, make_processor, prompts


TARGET = 0.6
GENERATE, LAST, EVERY = (
    "`generate`, one token",
    "forward, logits of the last position",
    "forward, logits of every position",
)


def prepare(way: str, size: str, seconds: float, dtype: str, device: str, seed: int) -> Callable[[], list[float]]:
    """Model and inputs; the function that is measured gives some of the first token's logits."""
    model = make_model(make_config(size), DTYPES[dtype], device, seed)
    inputs = prompts(make_processor(size), model, [seconds], seed)

    @torch.no_grad()
    def prefill() -> list[float]:
        if way == GENERATE:
            options = {"return_dict_in_generate": True, "output_logits": True}
            logits = model.generate(**inputs, max_new_tokens=1, do_sample=False, **options).logits[0]
        else:
            keep = 1 if way == LAST else 0
            logits = model(**inputs, use_cache=True, logits_to_keep=keep).logits[:, -1]
        return logits[0, :: max(1, logits.shape[-1] // 256)].float().tolist()

    return prefill


def check_same(logits: dict[str, list[float]]):
    """
    Raises:
        RuntimeError: where logits differ by more than their rounding.
    """
    expected = torch.tensor(logits[EVERY])
    for way, values in logits.items():
        error = relative_error(torch.tensor(values), expected)
        if not error < 0.05:
            raise RuntimeError(f"the first token's logits by {way} are off by {error:.1%}.")


def measure(size: str, seconds: float, dtype: str, rounds: int, device: str, seed: int) -> Report:
    """Peak memory and time of the three ways."""
    ways = (GENERATE, LAST, EVERY)
    costs = {way: [] for way in ways}
    for number in range(rounds):
        for way in turn(ways, number):
            costs[way].append(cost(prepare, way, size, seconds, dtype, device, seed, device=device))
        check_same({way: costs[way][-1].result for way in ways})
    megabytes = {way: [each.megabytes for each in costs[way]] for way in ways}
    rows = [
        [way, statistics.median(megabytes[way]), statistics.median(each.seconds for each in costs[way])]
        for way in ways
    ]
    ratio = ratios(megabytes[GENERATE], megabytes[EVERY])
    notes = [
        against_target(
            "Peak memory above the weights, `generate` over every position",
            ratio,
            f"at most {TARGET:.0%}",
            ratio["median"] <= TARGET,
        ),
        f"Size {size}, {dtype}, a clip of {seconds:g} s; the cache of keys and values is part of the peak.",
    ]
    return Report(["way", "peak above the weights, MB", "seconds"], rows, notes, {"ratio": ratio})


def main():
    parser = make_parser("prefill_memory", __doc__, rounds=1)
    parser.add_argument("--size", default="0.6b", help="tiny, 0.6b, 4b or 8b; default: 0.6b")
    parser.add_argument("--seconds", type=float, default=600, help="of the clip; default: 600")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    options = parser.parse_args()
    arguments = (options.size, options.seconds, options.dtype, options.rounds, options.device, options.seed)
    publish(measure(*arguments), options)


if __name__ == "__main__":
    main()
