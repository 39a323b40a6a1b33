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
"""What the models do on a GPU: time to the first token, decoding speed as a share of what the memory allows, the encoder, weights
in fewer bits, and the longest clip that fits. 4B and 8B in bfloat16 with random weights.

    python -m moss_audio.benchmarks.gpu --json gpu.json

Each part is a table, printed and written as soon as it is there; `--parts` and `--sizes` choose. What does not fit, or needs
a package that is not there, is a cell that says so. On a CPU, `--sizes tiny --seconds 1 2` runs all but the CUDA graphs.
"""

import inspect
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import StaticCache

from moss_audio import MossAudioModel
from moss_audio.configuration_moss_audio import decoder_positions, longest_clip_seconds
from moss_audio.modeling_moss_audio import CACHE_NAME

from .measuring import Report, complete, make_parser, on_gpu, relative_error, verdict, wait
from .models import (
    QUESTION,
    StepClock,
    attempt,
    bytes_per_step,
    decode,
    free_memory,
    generate,
    make_config,
    make_model,
    make_processor,
    prompts,
    quantize,
    sound,
    torchao_config,
    weight_bytes,
)


TARGET = 0.75  # of the bound, one row, compiled with CUDA graphs
PROMPT_SECONDS = 10.0  # of the clip in the prompt, where decoding is measured
WORDS = {
    "dynamic": "dynamic",
    "static": "static",
    "compiled": "static, compiled",
    "loop": "the same without `generate`",
}
KINDS = ("bfloat16", "fp8", "fp8-dynamic", "int8", "int4")


class Bench:
    """One size of the model at a time, on the device, and what the parts ask about it."""

    def __init__(self, size: str, options: Any):
        self.size, self.options, self.device = size, options, options.device
        self.config, self.processor = make_config(size), make_processor(size)
        self.notes: list[str] = []
        self.model = self.new_model()

    def new_model(self) -> MossAudioModel:
        """A model with the random weights of this benchmark."""
        return make_model(self.config, torch.bfloat16, self.device, self.options.seed)

    def inputs(self, seconds: float, rows: int = 1) -> dict[str, torch.Tensor]:
        """A prompt with a clip of so many seconds in each row."""
        return dict(prompts(self.processor, self.model, [seconds] * rows, self.options.seed))

    def attempt(self, what: str, function: Callable[[], Any]) -> Any:
        """What the function gives, or a cell that says why it gives nothing; the reason becomes a note."""
        return attempt(function, f"{self.size}, {what}", self.notes)

    def median(self, function: Callable[[], Any], warm: int = 1) -> float:
        """Median of the seconds that a function takes."""
        seconds = []
        for number in range(warm + self.options.rounds):
            wait(self.device)
            start = time.perf_counter()
            function()
            wait(self.device)
            if number >= warm:
                seconds.append(time.perf_counter() - start)
        return statistics.median(seconds)

    def with_peak(self, function: Callable[[], Any]) -> tuple[Any, Any]:
        """What a function gives, and the peak of the GPU's memory meanwhile in GB, the weights included."""
        if not on_gpu(self.device):
            return function(), ""
        free_memory()
        torch.cuda.reset_peak_memory_stats()
        result = function()
        return result, torch.cuda.max_memory_allocated() / 1e9


def copy_bandwidth(device: str) -> float:
    """Bytes a second that are read and written by copying from the device's memory to itself."""
    size = 1 << 30 if on_gpu(device) else 1 << 24
    source, target = (torch.zeros(size, dtype=torch.uint8, device=device) for _ in range(2))
    seconds = []
    for _ in range(20):
        wait(device)
        start = time.perf_counter()
        for _ in range(4):
            target.copy_(source)
        wait(device)
        seconds.append((time.perf_counter() - start) / 4)
    return 2 * size / statistics.median(seconds[4:])


def use_attention(model: MossAudioModel, implementation: str):
    """
    Sets the attention of encoder and decoder.

    Raises:
        ImportError: where it cannot be had.
    """
    model.set_attn_implementation(implementation)
    for part in (model.audio_encoder, model.language_model):
        # Without its package FlashAttention may come as a kernel from the Hub, under that one's name.
        if implementation.split("_")[0] not in part.config._attn_implementation:
            raise ImportError(f"{implementation} could not be set")


def by_attention(bench: Bench, what: str, width: int, measure: Callable[[float], list[Any]]) -> list[list[Any]]:
    """Rows of what `measure` gives, `width` cells, for each attention implementation and length of a clip."""
    rows = []
    for implementation in bench.options.attention:
        for seconds in bench.options.seconds:

            def run(seconds=seconds, implementation=implementation) -> list[Any]:
                use_attention(bench.model, implementation)
                return measure(seconds)

            row = bench.attempt(f"{what}, {implementation}, {seconds:g} s", run)
            rows.append([bench.size, implementation, f"{seconds:g}", *_cells(row, width)])
    bench.attempt("sdpa", lambda: use_attention(bench.model, "sdpa"))
    return rows


# ----------------------------------------------------------------------------------------------------------------- parts


def first_token(bench: Bench) -> Report:
    """Seconds from a waveform in memory to the first token, with each attention implementation."""

    def measure(seconds: float) -> list[Any]:
        clip = sound(seconds, bench.options.seed)

        def prepare() -> dict[str, torch.Tensor]:
            return dict(bench.processor(text=QUESTION, audio=clip, device=bench.device).to(bench.device))

        features, inputs = bench.median(prepare), prepare()
        model = bench.median(lambda: generate(bench.model, inputs, 1))
        both, peak = bench.with_peak(lambda: bench.median(lambda: generate(bench.model, prepare(), 1)))
        return [inputs["input_ids"].shape[1], 1000 * features, 1000 * model, 1000 * both, peak]

    rows = by_attention(bench, "first token", 5, measure)
    header = ["size", "attention", "seconds of sound", "prompt tokens", "features, ms", "model, ms", "together, ms"]
    notes = [
        "Features are log-mel and tokens, made on the model's device; the model's part is encoder, prefill and the first token."
    ]
    return Report([*header, "peak GB"], rows, notes)


def encoder(bench: Bench) -> Report:
    """Seconds of sound that the encoder alone, with adapter and mergers, works through in a second."""

    def measure(seconds: float) -> list[Any]:
        inputs = bench.inputs(seconds)
        arguments = (inputs["audio_data"].to(bench.model.dtype), inputs["audio_data_seqlens"])

        @torch.no_grad()
        def encode():
            bench.model.get_audio_features(*arguments)

        taken, peak = bench.with_peak(lambda: bench.median(encode))
        return [1000 * taken, seconds / taken, peak]

    rows = by_attention(bench, "encoder", 3, measure)
    return Report(["size", "attention", "seconds of sound", "ms", "seconds of sound a second", "peak GB"], rows, [])


def decoding(bench: Bench) -> Report:
    """Milliseconds of a decoding step by batch and cache, and which share of the bound that is."""
    bandwidth = copy_bandwidth(bench.device)
    bound = bytes_per_step(bench.model) / bandwidth
    rows, reached = [], {}
    for batch in bench.options.batches:
        torch._dynamo.reset()
        expected = None
        for cache in bench.options.caches:
            result = bench.attempt(
                f"decoding, batch {batch}, {cache}",
                lambda batch=batch, cache=cache: bench.with_peak(lambda: steps(bench, batch, cache)),
            )
            if isinstance(result, str):
                rows.append([bench.size, batch, WORDS[cache], *_cells(result, 5)])
                continue
            (seconds, tokens), peak = result
            expected = tokens if expected is None else expected
            same = (tokens == expected).long().cumprod(1).float().mean().item()
            speed = [1000 * seconds, batch / seconds, f"{bound / seconds:.0%}"]
            rows.append([bench.size, batch, WORDS[cache], *speed, peak, f"{same:.0%}"])
            if batch == 1 and cache == "compiled":
                reached[WORDS[cache]] = bound / seconds
    notes = [
        f"The bound is {1000 * bound:.3g} ms a step: {bytes_per_step(bench.model) / 1e9:.3g} GB of weights at "
        f"{bandwidth / 1e9:.4g} GB a second, as copying on the device was measured (bytes read and written). Keys and values "
        "are not counted. The last column is how much of the answers is the same before they part; kernels round differently."
    ]
    if not on_gpu(bench.device):
        notes.append("On a CPU nothing is compiled here, and there are no CUDA graphs.")
    for cache, share in reached.items() if on_gpu(bench.device) else ():
        met = verdict(f"at least {TARGET:.0%}", share >= TARGET)
        notes.append(f"One row, {cache}: {share:.0%} of the bound ({met}).")
    header = ["size", "batch", "cache", "ms a step", "tokens a second", "share of the bound", "peak GB", "same tokens"]
    return Report(header, rows, notes, {"bound_seconds": bound, "bytes_a_second": bandwidth})


def steps(bench: Bench, batch: int, cache: str) -> tuple[float, torch.Tensor]:
    """Seconds of a decoding step for a batch, and the tokens `(rows, steps)`."""
    if cache == "compiled" and not on_gpu(bench.device):
        raise NotImplementedError("CUDA graphs need a GPU")
    inputs = bench.inputs(PROMPT_SECONDS if on_gpu(bench.device) else min(bench.options.seconds), batch)
    count, rounds = bench.options.steps, bench.options.rounds
    skipped = _skipped_graphs()
    if cache == "loop":
        done = [loop(bench.model, inputs, count) for _ in range(1 + rounds)][1:]
        result = statistics.median(seconds for seconds, _ in done), done[-1][1]
    else:
        result = decode(bench.model, inputs, count, cache, rounds)
    skipped = _skipped_graphs() - skipped
    if skipped:
        bench.notes.append(
            f"{bench.size}, batch {batch}, {WORDS[cache]}: {skipped} compiled parts are no CUDA graphs (`TORCH_LOGS=cudagraphs` "
            "tells why)."
        )
    return result


def _skipped_graphs() -> int:
    """How often the compiler has given up to capture a CUDA graph in this process."""
    return torch._dynamo.utils.counters["inductor"]["cudagraph_skips"]


@torch.no_grad()
def loop(model: MossAudioModel, inputs: dict[str, torch.Tensor], count: int) -> tuple[float, torch.Tensor]:
    """
    Seconds of a greedy decoding step with as little around the model as can be, and the tokens: what `generate` could reach.
    On a GPU the step is compiled with CUDA graphs.
    """
    device, prompt = model.device, inputs["input_ids"].shape[1]
    past = StaticCache(config=model.config.language_config, max_cache_len=prompt + count + 1)
    # Version 4 is told where to write.
    told = "cache_position" in inspect.signature(model.language_model.forward).parameters

    def where(positions: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"position_ids": positions[None], **({"cache_position": positions} if told else {})}

    # The rows are equally long: no mask is needed but the causal one.
    heard = {name: tensor for name, tensor in inputs.items() if name != "attention_mask"}
    options = {CACHE_NAME: past, "use_cache": True, "logits_to_keep": 1}
    logits = model(**heard, **options, **where(torch.arange(prompt, device=device))).logits
    step = model.forward
    if on_gpu(device.type):
        step = torch.compile(step, mode="reduce-overhead", fullgraph=True, dynamic=False)
    position, clock, tokens = torch.tensor([prompt], device=device), StepClock(), []
    for _ in range(count):
        tokens.append(logits[:, -1:].argmax(-1))
        torch.compiler.cudagraph_mark_step_begin()
        logits = step(input_ids=tokens[-1], **options, **where(position)).logits
        position = position + 1
        clock.mark(device.type)
    return clock.median(), torch.cat(tokens, dim=1)


def quantization(bench: Bench) -> Report:
    """Decoding in one row with weights in fewer bits."""
    bandwidth, rows = copy_bandwidth(bench.device), []
    expected = None
    inputs = bench.inputs(min(bench.options.seconds))
    for kind in bench.options.kinds:
        bench.model = None
        free_memory()
        bench.model = bench.new_model()
        torch._dynamo.reset()
        done = bench.attempt(kind, lambda kind=kind: _quantize(bench.model, kind, bench.device))
        if isinstance(done, str):
            rows.append([bench.size, kind, "", done, *[""] * 5])
            continue
        logits = bench.attempt(f"{kind}, logits", lambda: _logits(bench.model, inputs))
        if expected is None:
            expected = logits
        error = "" if isinstance(logits, str) or isinstance(expected, str) else relative_error(logits, expected)
        bound = bytes_per_step(bench.model) / bandwidth
        for cache in ("dynamic", "compiled", "loop"):
            result = bench.attempt(f"{kind}, {cache}", lambda cache=cache: steps(bench, 1, cache))
            if isinstance(result, str):
                cells = _cells(result, 3)
            else:
                cells = [1000 * result[0], 1 / result[0], f"{bound / result[0]:.0%}"]
            rows.append([bench.size, kind, WORDS[cache], *cells, weight_bytes(bench.model) / 1e9, error])
    bench.model = None
    free_memory()
    bench.model = bench.new_model()
    notes = [
        "Layers of encoder and decoder are quantized; stem, adapter, mergers, embeddings and `lm_head` are not. The error is "
        "that of the prompt's logits against bfloat16's, with random weights: trained ones fare better."
    ]
    header = [
        "size",
        "weights",
        "cache",
        "ms a step",
        "tokens a second",
        "share of its bound",
        "GB of weights",
        "error",
    ]
    return Report(header, rows, notes)


def longest(bench: Bench) -> Report:
    """The longest clip whose first token comes, and what keeps longer ones from it."""
    positions = decoder_positions(bench.config.language_config)
    around = bench.inputs(1)["input_ids"].shape[1]  # more than the text's tokens by those of a second
    limit = longest_clip_seconds(positions, around)
    failures: list[str] = []

    def first_of(seconds: int) -> Any:
        def generate_one() -> list[Any]:
            return [bench.with_peak(lambda: generate(bench.model, bench.inputs(seconds), 1))[1]]

        return attempt(generate_one, f"{bench.size}, {seconds} s", failures)

    fits, fails, peak, why = 0, limit + 1, "", f"the decoder's {positions} positions"
    seconds = limit
    while fails - fits > max(1, fits // 50):
        found = first_of(seconds)
        if isinstance(found, str):
            fails, why = seconds, found
        else:
            fits, peak = seconds, found[0]
        seconds = (fits + fails) // 2
    bench.notes += failures[-1:]
    return Report(["size", "longest clip, s", "limited by", "peak GB"], [[bench.size, fits, why, peak]], [])


PARTS: dict[str, Callable[[Bench], Report]] = {
    "first-token": first_token,
    "encoder": encoder,
    "decoding": decoding,
    "longest": longest,
    "quantization": quantization,
}


def _cells(row: Any, width: int) -> Sequence[Any]:
    """The cells of a row, or the one that says why there are none."""
    return [row, *[""] * (width - 1)] if isinstance(row, str) else row


def _quantize(model: MossAudioModel, kind: str, device: str):
    if kind != "bfloat16":
        quantize(model, torchao_config(kind, device))


@torch.no_grad()
def _logits(model: MossAudioModel, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    return model(**inputs).logits.float()


def measure(options: Any) -> Iterator[tuple[str, Report]]:
    """The tables, one after another, by title."""
    for size in options.sizes:
        bench = Bench(size, options)
        for name in options.parts:
            report = PARTS[name](bench)
            report.notes += bench.notes
            bench.notes.clear()
            report.versions = _more_versions()
            complete(report, options.device)
            yield f"{size}: {name}", report
        del bench
        free_memory()


def _more_versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {"CUDA": torch.version.cuda or "none"}
    for name in ("torchao", "flash-attn", "kernels", "triton"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "none"
    return found


def main():
    parser = make_parser("gpu", __doc__, rounds=3)
    parser.add_argument("--sizes", nargs="+", default=["4b", "8b"], help="tiny, 0.6b, 4b, 8b; default: 4b 8b")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="default: all")
    parser.add_argument("--seconds", type=float, nargs="+", default=[10, 60, 600], help="of clips")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--caches", nargs="+", choices=WORDS, default=list(WORDS), help="for decoding; default: all")
    parser.add_argument("--steps", type=int, default=128, help="decoding steps of a round")
    parser.add_argument("--attention", nargs="+", default=["sdpa", "flash_attention_2"])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="of quantized weights")
    options = parser.parse_args()
    if not on_gpu(options.device) and {"4b", "8b"} & set(options.sizes):
        parser.error("there is no GPU; `--sizes tiny --seconds 1 2 --steps 4` runs all of it but CUDA graphs on a CPU")
    reports: dict[str, Any] = {}
    for title, report in measure(options):
        print(f"### {title}\n\n{report.markdown()}\n", flush=True)
        reports[title] = asdict(report)
        if options.json:
            Path(options.json).write_text(json.dumps(reports, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
