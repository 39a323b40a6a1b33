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
"""What a decoding step costs, at several lengths of the cache, against a plain `Qwen3ForCausalLM` with the same weights: the
forward pass alone, and the step inside `generate`, after a prompt with a clip.

    python -m moss_audio.benchmarks.decoding_step

The cache is filled with random keys and values. Both models have the same tensors for weights, and must give the same logits.
"""

import statistics
from typing import Any, Callable

import torch
from transformers import DynamicCache, Qwen3ForCausalLM

from moss_audio import MossAudioModel
from moss_audio.modeling_moss_audio import CACHE_NAME

from .measuring import Report, Seconds, against_target, make_parser, publish, ratios, take_turns
from .models import DTYPES, StepClock, generate, make_config, make_model, make_processor, prompts, restore_rope


TARGET = 1.05
TOKEN = 100  # what the cache stands for does not matter, as long as it is no audio token
OURS, PLAIN = "MOSS-Audio", "Qwen3ForCausalLM"


def plain_decoder(model: MossAudioModel) -> Qwen3ForCausalLM:
    """A Qwen3 model whose weights are the tensors of ours."""
    with torch.device("meta"):
        plain = Qwen3ForCausalLM(model.config.language_config)
    weights = {f"model.{name}": tensor for name, tensor in model.language_model.state_dict().items()}
    plain.load_state_dict({**weights, "lm_head.weight": model.lm_head.weight}, assign=True)
    restore_rope(plain, model.device)
    plain.generation_config.max_length = None  # `max_new_tokens` decides
    return plain.eval().requires_grad_(False)


def filled_cache(model: MossAudioModel, length: int, seed: int) -> DynamicCache:
    """Random keys and values for `length` tokens of one row."""
    decoder = model.config.language_config
    cache = DynamicCache(config=decoder)
    shape = (1, decoder.num_key_value_heads, length, decoder.head_dim)
    generator = torch.Generator(model.device).manual_seed(seed)
    for layer in range(decoder.num_hidden_layers):
        keys, values = (
            torch.randn(shape, generator=generator, device=model.device, dtype=model.dtype) for _ in range(2)
        )
        cache.update(keys, values, layer)
    return cache


@torch.no_grad()
def forward_step(model: Any, cache: DynamicCache, steps: int) -> Seconds:
    """Seconds of a forward pass with one token; the cache is left as it was."""
    length, clock = cache.get_seq_length(), StepClock()
    ids = torch.full((1, 1), TOKEN, device=model.device)
    for step in range(steps + 1):
        mask = torch.ones(1, length + step + 1, dtype=torch.long, device=model.device)
        model(input_ids=ids, attention_mask=mask, use_cache=True, **{CACHE_NAME: cache})
        clock.mark(model.device.type)
    cache.crop(-(steps + 1))
    return clock.median()


def generate_step(model: Any, cache: DynamicCache, prompt: dict[str, torch.Tensor], steps: int) -> Seconds:
    """Seconds of a step of `generate` that goes on from a cache with a prompt; the cache is left as it was."""
    length, clock = cache.get_seq_length(), StepClock()
    before = torch.full((1, length), TOKEN, device=model.device)
    ids = torch.cat((before, prompt["input_ids"]), dim=1)
    inputs = {**prompt, "input_ids": ids, "attention_mask": torch.ones_like(ids), CACHE_NAME: cache}
    generate(model, inputs, steps + 1, clock)
    cache.crop(length - cache.get_seq_length())
    return clock.median()


@torch.no_grad()
def check_same(ours: MossAudioModel, plain: Qwen3ForCausalLM, cache: DynamicCache):
    """
    Raises:
        RuntimeError: where the two do not give the same logits.
    """
    logits = []
    for model in (ours, plain):
        ids = torch.full((1, 1), TOKEN, device=model.device)
        logits.append(model(input_ids=ids, use_cache=True, **{CACHE_NAME: cache}).logits)
        cache.crop(-1)
    if not torch.equal(*logits):
        raise RuntimeError(f"the logits differ by up to {(logits[0] - logits[1]).abs().max():g}.")


def measure(
    size: str, lengths: list[int], steps: int, rounds: int, dtype: torch.dtype, device: str, seed: int
) -> Report:
    """Milliseconds of a step of both models at every length, forward alone and inside `generate`."""
    processor = make_processor(size)
    ours = make_model(make_config(size, small_encoder=True), dtype, device, seed)
    plain = plain_decoder(ours)
    prompt = dict(prompts(processor, ours, [1.0], seed))
    text = {"input_ids": prompt["input_ids"]}
    rows, found = [], {"forward": [], "generate": []}
    for length in lengths:
        cache = filled_cache(ours, length, seed)
        check_same(ours, plain, cache)
        places: dict[str, dict[str, Callable[[], Seconds]]] = {
            "forward": {
                OURS: lambda cache=cache: forward_step(ours, cache, steps),
                PLAIN: lambda cache=cache: forward_step(plain, cache, steps),
            },
            "generate": {
                OURS: lambda cache=cache: generate_step(ours, cache, prompt, steps),
                PLAIN: lambda cache=cache: generate_step(plain, cache, text, steps),
            },
        }
        for place, ways in places.items():
            seconds = take_turns(ways, rounds, device)
            ratio = ratios(seconds[OURS], seconds[PLAIN])
            found[place].append(ratio)
            milliseconds = [1000 * statistics.median(seconds[name]) for name in (PLAIN, OURS)]
            spread = f"{ratio['lowest']:.3f} to {ratio['highest']:.3f}"
            rows.append([length, place, *milliseconds, f"{ratio['median']:.3f}", spread])
    notes = []
    for place, each in found.items():
        worst = max(each, key=lambda ratio: ratio["median"])
        what = f"Time of a step in `{place}`, at the length where the ratio is highest"
        notes.append(against_target(what, worst, f"at most {TARGET}", worst["median"] <= TARGET))
    parameters = sum(parameter.numel() for parameter in plain.parameters()) / 1e9
    notes.append(f"A decoder of {parameters:.2g} G parameters in {str(dtype).removeprefix('torch.')}, one row.")
    header = ["tokens in the cache", "where", f"{PLAIN}, ms", f"{OURS}, ms", "ratio", "pairs from, to"]
    return Report(header, rows, notes, {"ratios": found, "lengths": lengths})


def main():
    parser = make_parser("decoding_step", __doc__, rounds=8)
    parser.add_argument("--size", default="0.6b", help="of the decoder: tiny, 0.6b, 4b or 8b; default: 0.6b")
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 1024, 8192], help="tokens in the cache")
    parser.add_argument("--steps", type=int, default=4, help="steps of which a round takes the median")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    options = parser.parse_args()
    arguments = (options.size, options.lengths, options.steps, options.rounds, DTYPES[options.dtype])
    publish(measure(*arguments, options.device, options.seed), options)


if __name__ == "__main__":
    main()
