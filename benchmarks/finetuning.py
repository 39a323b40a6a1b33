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
"""How many samples a second fine-tuning takes: batches of 8 padded to their longest, against one sample at a time padded to
8192 tokens, as the published script does it.

    python -m moss_audio.benchmarks.finetuning

Both train the same decoder of about 0.1 G parameters (random weights) on clips of 5 to 15 s, in one run and in turn, so that
whatever else the machine does slows down both.
"""

import statistics
import time
from typing import Any, Optional

import numpy as np
import torch

from moss_audio import MossAudioConfig, MossAudioModel, MossAudioProcessor
from moss_audio.training import MossAudioDataCollator

from .measuring import Report, against_target, make_parser, publish, ratios, wait
from .models import QUESTION, make_processor


PADDED = 8192  # tokens
DECODER = {
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "vocab_size": 8192,
    "max_position_embeddings": PADDED,
    "rope_theta": 1e6,
    "eos_token_id": 0,
}
ENCODER = {
    "d_model": 256,
    "encoder_layers": 6,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 1024,
    "downsample_hidden_size": 64,
    "deepstack_encoder_layer_indexes": [1, 3, 5],
}


def make_model(ids: dict[str, int], seed: int) -> MossAudioModel:
    """Random weights around a decoder of about 0.1 G parameters."""
    torch.manual_seed(seed)
    config = MossAudioConfig(
        audio_config=dict(ENCODER), language_config=dict(DECODER), adapter_hidden_size=1024, **ids
    )
    return MossAudioModel(config).train()


def make_samples(count: int, seed: int) -> list[dict[str, Any]]:
    """Noise of 5 to 15 s, and answers as long as what is said in such a time: about 15 bytes a second."""
    random = np.random.default_rng(seed)
    samples = []
    for number in range(count):
        seconds = random.uniform(5, 15)
        sound = (0.1 * random.standard_normal(int(16000 * seconds))).astype(np.float32)
        question = [{"type": "audio", "audio": sound}, {"type": "text", "text": QUESTION}]
        answer = "".join(random.choice(list("etaoin shrdlu"), int(15 * seconds))).strip()
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": f"{number} {answer}"}]
        samples.append({"messages": messages})
    return samples


def step(model: MossAudioModel, optimizer: torch.optim.Optimizer, collate: Any, samples: list, device: str) -> float:
    """Seconds that a training step takes, the collator's work included."""
    start = time.perf_counter()
    batch = {name: tensor.to(device) for name, tensor in collate(samples).items()}
    with torch.autocast(torch.device(device).type, torch.bfloat16):
        loss = model(**batch, use_cache=False).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    wait(device)
    return time.perf_counter() - start


def measure(processor: MossAudioProcessor, batches: int, alone: int, seed: int, device: str) -> Report:
    """Samples per second of both ways, each over its own steps, taken in turn after a short one that does not count."""
    ids = {name: getattr(processor, name) for name in ("audio_token_id", "audio_start_id", "audio_end_id")}
    model = make_model(ids, seed).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    samples = make_samples(max(8 * batches, alone), seed)
    ways = {
        "batches of 8": (MossAudioDataCollator(processor), 8, batches),
        f"one at a time, {PADDED} tokens": (MossAudioDataCollator(processor, pad_to_multiple_of=PADDED), 1, alone),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    step(model, optimizer, MossAudioDataCollator(processor), samples[:1], device)
    for number in range(max(batches, alone)):
        for name, (collate, size, steps) in ways.items():
            if number < steps:
                chosen = samples[size * number : size * (number + 1)]
                seconds[name].append(step(model, optimizer, collate, chosen, device))
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    # A step of 8 samples against 8 steps of one: samples a second, from neighbouring steps.
    batched, single = seconds.values()
    faster = ratios([8 * each for each in single], batched)
    parameters = sum(parameter.numel() for parameter in model.language_model.parameters())
    return Report(
        header=["", "steps", "seconds a step", "samples a second"],
        rows=[[name, len(seconds[name]), medians[name], size / medians[name]] for name, (_, size, _) in ways.items()],
        notes=[
            against_target("Times as many samples a second", faster, "at least 10", faster["median"] >= 10),
            f"The decoder has {(parameters + model.lm_head.weight.numel()) / 1e9:.2f} G parameters.",
        ],
        values={
            "ratio": faster,
            "seconds": seconds,
            "decoder_parameters": parameters + model.lm_head.weight.numel(),
        },
    )


def main(arguments: Optional[list[str]] = None):
    parser = make_parser("finetuning", __doc__, rounds=None)
    parser.add_argument("--batches", type=int, default=5, help="steps with 8 samples")
    parser.add_argument("--alone", type=int, default=3, help=f"steps with one sample padded to {PADDED} tokens")
    options = parser.parse_args(arguments)
    processor = make_processor("tiny")
    processor.max_position_embeddings = PADDED
    publish(measure(processor, options.batches, options.alone, options.seed, options.device), options)


if __name__ == "__main__":
    main()
