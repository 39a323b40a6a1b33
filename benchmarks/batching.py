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
"""How many tokens a second 16 clips of 10 s with answers of 64 tokens give as batches, against one by one.

    python -m moss_audio.benchmarks.batching

Through the pipeline, as a user would call it: `batch_size=16` against `batch_size=1`. Log-mel, encoder, prefill and decoding
are included on both sides. In float32 the first tokens of some answers must be the same, which is looked at first; bfloat16
rounds differently in a batch, and with random weights the likeliest tokens are so close that many answers then part somewhere.
"""

import statistics
from typing import Any

import numpy as np
import torch

from .measuring import Report, against_target, make_parser, publish, ratios, spread, take_turns
from .models import DTYPES, QUESTION, make_pipeline, restore_rope, sound


TARGETS = {"cpu": 3.0, "cuda": 8.0}
CHECKED_TOKENS, CHECKED_CLIPS = 8, 4  # of each answer, in float32


def answers(pipe: Any, clips: list[np.ndarray], tokens: int, batch_size: int) -> list[str]:
    """The pipeline's answers of exactly so many tokens."""
    options = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False, "return_raw_text": True}
    results = pipe(clips, text=QUESTION, batch_size=batch_size, **options)
    return [result["raw_text"] for result in results]


def common(left: str, right: str) -> float:
    """The share of two texts up to where they part."""
    same = next((index for index, pair in enumerate(zip(left, right)) if pair[0] != pair[1]), None)
    return 1.0 if left == right else (len(min(left, right, key=len)) if same is None else same) / len(left)


def measure(
    size: str, clips: int, seconds: float, tokens: int, dtype: torch.dtype, rounds: int, device: str, seed: int
) -> Report:
    """Tokens a second of both ways, and whether they answer the same."""
    pipe = make_pipeline(size, torch.float32, device, seed)
    sounds = [sound(seconds, seed + clip) for clip in range(clips)]
    checked, some = min(CHECKED_TOKENS, tokens), sounds[:CHECKED_CLIPS]
    if answers(pipe, some, checked, 1) != answers(pipe, some, checked, len(some)):
        raise RuntimeError(
            f"in float32, the first {checked} tokens of the answers differ between batches and one by one."
        )
    restore_rope(pipe.model.to(dtype), device)
    answers(pipe, some, checked, len(some))  # warm: a round takes minutes
    sizes = {"one by one": 1, f"a batch of {clips}": clips}
    single, batch = sizes
    texts: dict[str, list[str]] = {}
    ways = {
        name: lambda name=name, size=size: texts.update({name: answers(pipe, sounds, tokens, size)})
        for name, size in sizes.items()
    }
    begun = {name: lambda size=size: answers(pipe, sounds, 1, size) for name, size in sizes.items()}
    taken = take_turns({**ways, **{f"{name}, one token": way for name, way in begun.items()}}, rounds, device, warm=0)
    rows, rest = [], {}
    for name in sizes:
        median, first = (statistics.median(taken[way]) for way in (name, f"{name}, one token"))
        rest[name] = [whole - start for whole, start in zip(taken[name], taken[f"{name}, one token"])]
        rows.append([name, median, first, clips * tokens / median, median / clips])
    ratio = ratios(taken[single], taken[batch])
    target = TARGETS[device.split(":")[0]]
    shares = [common(*pair) for pair in zip(texts[single], texts[batch])]
    notes = [
        against_target(
            "Tokens a second, in batches over one by one", ratio, f"at least {target:g}", ratio["median"] >= target
        ),
        f"In {str(dtype).removeprefix('torch.')} {sum(share == 1 for share in shares)} of {clips} answers are the same, and "
        f"{statistics.mean(shares):.0%} of the text before they part; in float32 the first {checked} tokens of {len(some)} are.",
        f"Size {size}, {clips} clips of {seconds:g} s, {tokens} tokens each; {len(set(texts[single]))} different answers.",
    ]
    if min(map(min, rest.values())) > 0:  # a short answer may be lost in the noise
        decoding = ratios(rest[single], rest[batch])
        notes.insert(1, f"The same of all tokens but the first: {decoding['median']:.3g} ({spread(decoding)}).")
    return Report(
        ["way", "seconds", "of them to the first token", "tokens a second", "seconds a clip"],
        rows,
        notes,
        {"ratio": ratio, "seconds": taken, "same": shares},
    )


def main():
    parser = make_parser("batching", __doc__, rounds=2)
    parser.add_argument("--size", help="tiny, 0.6b, 4b or 8b; default: 0.6b on a CPU, 4b on a GPU")
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=10, help="of each clip")
    parser.add_argument("--tokens", type=int, default=64, help="of each answer")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    options = parser.parse_args()
    size = options.size or ("0.6b" if options.device == "cpu" else "4b")
    shape = (size, options.clips, options.seconds, options.tokens, DTYPES[options.dtype])
    publish(measure(*shape, options.rounds, options.device, options.seed), options)


if __name__ == "__main__":
    main()
