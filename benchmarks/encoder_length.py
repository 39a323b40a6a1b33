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
"""Whether the encoder's time grows with the length of a clip and its memory does not: 600 s against 60 s.

    python -m moss_audio.benchmarks.encoder_length

In a turn the short clip is encoded as often as it fits into the long one, so that both sides take equally long. The peaks of
memory are those above weights and features, the encoder's output included, each in a process of its own.
"""

import argparse
import statistics
from collections.abc import Callable
from typing import Any, Optional

from .encoder_floor import add_encoder_options, encoding, make_encoder, make_features
from .measuring import Report, against_target, make_parser, peak_megabytes, publish, ratios, take_turns, verdict


def ready(size: str, dtype: str, seconds: float, seed: int, device: str) -> Callable[[], Any]:
    """A run over a clip, after a short one: what is made once a process does not count."""
    encoder = make_encoder(size, dtype, seed, device)
    encoding(encoder, make_features(encoder, 1, seed))()
    return encoding(encoder, make_features(encoder, seconds, seed))


def measure(options: argparse.Namespace) -> Report:
    """Time in turns, peaks of memory in processes of their own."""
    lengths = {"short": options.short, "long": options.long}
    times, megabytes = measure_times(lengths, options)
    for name, seconds in lengths.items():
        arguments = (options.size, options.dtype, seconds, options.seed, options.device)
        megabytes[name] = peak_megabytes(ready, *arguments, device=options.device)
    return make_report(lengths, times, megabytes, options)


def measure_times(
    lengths: dict[str, float], options: argparse.Namespace
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """The seconds that each clip takes, a number a round; and the megabytes of the weights and of the long one's output."""
    encoder = make_encoder(options.size, options.dtype, options.seed, options.device)
    runs = {
        name: encoding(encoder, make_features(encoder, seconds, options.seed)) for name, seconds in lengths.items()
    }
    repeats = max(1, round(lengths["long"] / lengths["short"]))

    def short_ones():
        for _ in range(repeats):
            runs["short"]()

    times = take_turns({"short": short_ones, "long": runs["long"]}, options.rounds, options.device)
    times["short"] = [seconds / repeats for seconds in times["short"]]
    output = runs["long"]()
    tensors = {
        "output of the long clip": (output.last_hidden_state, *output.deepstack_hidden_states),
        "weights": encoder.parameters(),
    }
    megabytes = {
        name: sum(tensor.numel() * tensor.element_size() for tensor in group) / 1e6 for name, group in tensors.items()
    }
    return times, megabytes


def make_report(
    lengths: dict[str, float],
    times: dict[str, list[float]],
    megabytes: dict[str, float],
    options: argparse.Namespace,
) -> Report:
    """Both ratios against their targets; the target of time is the ratio of the lengths and 3 % more."""
    longer, memory = ratios(times["long"], times["short"]), megabytes["long"] / megabytes["short"]
    allowed = 1.03 * options.long / options.short
    weights, output = megabytes["weights"], megabytes["output of the long clip"]
    with_weights = (megabytes["long"] + weights) / (megabytes["short"] + weights)
    medians = {name: statistics.median(each) for name, each in times.items()}
    return Report(
        header=["", "seconds", "seconds of audio a second", "peak of memory above weights, MB"],
        rows=[
            [f"{lengths[name]:g} s", median, lengths[name] / median, megabytes[name]]
            for name, median in medians.items()
        ],
        notes=[
            against_target(
                "Time of the long clip over that of the short one",
                longer,
                f"at most {allowed:.3g}",
                longer["median"] <= allowed,
            ),
            f"It takes {memory:.3g} times the peak of memory above weights "
            f"({verdict('at most 1.2', memory <= 1.2)}), and {with_weights:.3g} times with the weights of {weights:,.0f} MB. "
            f"Its output, taps included, has {output:,.1f} MB.",
            f"{options.dtype}, encoder of size {options.size!r}.",
        ],
        values={
            "times_as_long": longer,
            "times_the_memory": memory,
            "times_the_memory_with_weights": with_weights,
            "seconds": times,
            "megabytes": megabytes,
        },
    )


def main(arguments: Optional[list[str]] = None):
    parser = make_parser("encoder_length", __doc__)
    parser.add_argument("--short", type=float, default=60.0, help="seconds of the short clip; default: 60")
    parser.add_argument("--long", type=float, default=600.0, help="seconds of the long clip; default: 600")
    add_encoder_options(parser)
    options = parser.parse_args(arguments)
    publish(measure(options), options)


if __name__ == "__main__":
    main()
