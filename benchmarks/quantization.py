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
"""How fast int8 and int4 weights by torchao decode, how much memory they take, and what they cost in accuracy, against
bfloat16 and float32.

    python -m moss_audio.benchmarks.quantization --model checkpoints/moss-audio-tiny --data tiny/test.jsonl

Speed and memory are those of a decoder of 0.6 G parameters with random weights; the accuracy is that of a trained checkpoint
on a data file (`python -m moss_audio.training.tiny_world`), and is left out without one. `--compiled` adds decoding steps
that torch.compile has compiled (on a CPU that needs a C++ compiler): torchao leaves it to the compiler to fuse what it does.
"""

import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Callable

import torch
from transformers import TorchAoConfig, pipeline

from moss_audio import MossAudioModel, MossAudioProcessor
from moss_audio.training.evaluate import evaluate, read_samples
from moss_audio.training.scoring import import_jiwer

from .measuring import Report, Seconds, make_parser, publish, ratios, take_turns
from .models import (
    attempt,
    decode,
    free_memory,
    make_config,
    make_model,
    make_processor,
    prompts,
    quantize,
    torchao_config,
    weight_bytes,
)


BASE = "bfloat16"
PLAIN = {"float32": torch.float32, BASE: torch.bfloat16}
QUANTIZED = ("int8", "int8-dynamic", "int4")
WORDS = {
    "int8": "int8 weights",
    "int8-dynamic": "int8 weights and activations",
    "int4": "int4 weights",
    **{name: name for name in PLAIN},
}
FIGURES = ("wer", "cer", "accuracy", "event_f1", "aas_ms", "matched")


def make_variant(kind: str, size: str, device: str, seed: int) -> MossAudioModel:
    """The decoder of a size with random weights, the same ones in all kinds but float32."""
    model = make_model(make_config(size, small_encoder=True), PLAIN.get(kind, PLAIN[BASE]), device, seed)
    if kind not in PLAIN:
        quantize(model, torchao_config(kind, device))
    return model


def measure_speed(
    kinds: Sequence[str], size: str, seconds: float, steps: int, compiled: bool, rounds: int, device: str, seed: int
) -> tuple[list[list[Any]], dict[str, dict[str, float]], list[str]]:
    """Rows (kind, tokens a second, times those of bfloat16, megabytes of weights), the ratios, and notes."""
    notes: list[str] = []
    torch._dynamo.config.recompile_limit = 64  # the kinds share their code: beyond the limit it would not be compiled
    processor, models = make_processor(size), {}
    for kind in kinds:
        models[kind] = attempt(lambda kind=kind: make_variant(kind, size, device, seed), WORDS[kind], notes)
    caches = ("dynamic", "compiled") if compiled else ("dynamic",)
    ways: dict[tuple[str, str], Callable[[], Seconds]] = {}
    failed: dict[tuple[str, str], str] = {}
    for cache in caches:
        for kind, model in models.items():
            if isinstance(model, str):
                failed[kind, cache] = model
                continue
            inputs = prompts(processor, model, [seconds], seed)

            def step(model=model, inputs=inputs, cache=cache) -> Seconds:
                return Seconds(decode(model, inputs, steps, cache, warm=0)[0])

            if cache == "compiled" and kind == "float32":
                continue
            first = attempt(step, f"{WORDS[kind]}, {cache}", notes)  # what does not work fails here
            if isinstance(first, str):
                failed[kind, cache] = first
            else:
                ways[kind, cache] = step
    taken = take_turns({f"{kind} {cache}": way for (kind, cache), way in ways.items()}, rounds, device, warm=0)
    rows, found = [], {}
    for cache in caches:
        for kind in kinds:
            name = f"{kind} {cache}"
            label = WORDS[kind] + (", compiled" if cache == "compiled" else "")
            if (kind, cache) not in ways and (kind, cache) not in failed:
                continue
            if (kind, cache) in failed:
                rows.append([label, failed[kind, cache], "", ""])
                continue
            times = ratios(taken[f"{BASE} dynamic"], taken[name])
            found[name] = times
            pairs = f"{times['median']:.2f} ({times['lowest']:.2f} to {times['highest']:.2f})"
            speed = 1 / statistics.median(taken[name])
            rows.append([label, speed, pairs, weight_bytes(models[kind]) / 1e6])
    return rows, found, notes


def load(kind: str, folder: Path, device: str) -> MossAudioModel:
    """A checkpoint as a user would load it in a kind."""
    options: dict[str, Any] = {"dtype": PLAIN.get(kind, PLAIN[BASE])}
    if kind not in PLAIN:
        options["quantization_config"] = TorchAoConfig(quant_type=torchao_config(kind, device))
    if device != "cpu":
        options["device_map"] = device
    return MossAudioModel.from_pretrained(folder, **options).eval()


def measure_accuracy(
    kind: str, folder: Path, samples: Sequence[Any], batch_size: int, tokens: int, device: str
) -> Mapping[str, Mapping[str, Any]]:
    """The figures of each task, as `moss-audio evaluate` gives them."""
    processor = MossAudioProcessor.from_pretrained(folder)
    pipe = pipeline("audio-text-to-text", model=load(kind, folder, device), processor=processor)
    report = evaluate(pipe, samples, batch_size, progress=False, max_new_tokens=tokens)
    failed = [row["error"] for row in report["answers"] if "error" in row]
    if failed:
        raise RuntimeError(f"{len(failed)} of {len(samples)} samples could not be answered: {failed[0]}")
    return report["tasks"]


def figures(tasks: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Each figure of each task as a cell, by the name of its column."""
    cells = {}
    for task, row in tasks.items():
        for name in FIGURES:
            if row.get(name) is not None:
                value = f"{row[name]:.1f}" if name == "aas_ms" else f"{row[name]:.4f}"
                cells[f"{task}: {name}"] = value
    return cells


def measure(options: Any) -> Report:
    """Speed and memory of every kind, and the accuracy beside them."""
    kinds = [*PLAIN, *options.kinds]
    samples = []
    if options.model is not None:  # what is wrong with the data, and what is missing, is to be known before the speed
        samples = read_samples(options.data, limit=options.limit)
        import_jiwer()
    shape = (options.size, options.seconds, options.steps, options.compiled)
    rows, found, notes = measure_speed(kinds, *shape, options.rounds, options.device, options.seed)
    free_memory()
    accuracy: dict[str, dict[str, str]] = {}
    tasks: dict[str, Any] = {}
    if options.model is not None:
        for kind in kinds:
            found_tasks = attempt(
                lambda kind=kind: measure_accuracy(
                    kind, options.model, samples, options.batch_size, options.tokens, options.device
                ),
                f"accuracy of {WORDS[kind]}",
                notes,
            )
            tasks[kind] = found_tasks
            accuracy[kind] = {} if isinstance(found_tasks, str) else figures(found_tasks)
        notes.append(f"Accuracy on {len(samples)} samples, greedy, loaded with the defaults of this package.")
    columns = list(dict.fromkeys(name for cells in accuracy.values() for name in cells))
    for row, kind in zip(rows, kinds):  # compiled rows follow, with the same accuracy
        row += [accuracy.get(kind, {}).get(name, "") for name in columns]
    for row in rows[len(kinds) :]:
        row += [""] * len(columns)
    notes.append(
        f"One row, a prompt with a clip of {options.seconds:g} s, a decoder of size {options.size}; embeddings and `lm_head` "
        f"stay in {BASE}, as they do by default."
    )
    header = ["weights", "tokens a second", f"times {BASE}", "MB of weights", *columns]
    return Report(header, rows, notes, {"ratios": found, "tasks": tasks})


def main():
    parser = make_parser("quantization", __doc__, rounds=3)
    parser.add_argument("--size", default="0.6b", help="of the decoder: tiny, 0.6b, 4b or 8b; default: 0.6b")
    parser.add_argument("--kinds", nargs="*", choices=QUANTIZED, default=list(QUANTIZED))
    parser.add_argument("--seconds", type=float, default=10, help="of the clip in the prompt")
    parser.add_argument("--steps", type=int, default=8, help="decoding steps of which a round takes the median")
    parser.add_argument("--compiled", action="store_true", help="also compile the decoding steps")
    parser.add_argument("--model", type=Path, help="folder of a trained checkpoint, for the accuracy")
    parser.add_argument("--data", type=Path, help="data file to measure the accuracy on")
    parser.add_argument("--limit", type=int, help="how many samples of it; default: all")
    parser.add_argument("--batch-size", type=int, default=32, help="samples answered at once")
    parser.add_argument("--tokens", type=int, default=256, help="of an answer at most, where accuracy is measured")
    options = parser.parse_args()
    if (options.model is None) != (options.data is None):
        parser.error("--model and --data go together: a checkpoint and what to measure it on")
    try:
        publish(measure(options), options)
    except (ImportError, OSError, ValueError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
