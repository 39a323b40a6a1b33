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
"""What the benchmarks of whole models share: models of the real shapes with random weights, sounds, steps of generation.

Speed does not depend on the weights. They are drawn in place and in their dtype, so that a model never takes more memory
than it will have.
"""

import gc
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Optional, Union

import numpy as np
import torch
from transformers import CompileConfig, LogitsProcessor, LogitsProcessorList, pipeline

from moss_audio import MossAudioConfig, MossAudioModel, MossAudioProcessor
from moss_audio.configuration_moss_audio import decoder_positions
from moss_audio.conversion.scaffold import RELEASED_VOCAB_SIZE, TINY_ENCODER, released_config, write_processor
from moss_audio.modeling_moss_audio import spare_small_parts

from .measuring import Seconds, on_gpu


DTYPES = {name: getattr(torch, name) for name in ("bfloat16", "float16", "float32")}
QUESTION = "Transcribe the audio."


def make_config(size: str, small_encoder: bool = False) -> MossAudioConfig:
    """
    The configuration of a size that `moss-audio scaffold` knows.

    Args:
        small_encoder: whether the encoder is that of "tiny", where only the decoder is measured.
    """
    config = released_config(size, "float32", None if size == "tiny" else RELEASED_VOCAB_SIZE)
    if small_encoder:
        config["audio_config"].update(TINY_ENCODER)
    processor = make_processor(size)
    config.update({name: getattr(processor, name) for name in ("audio_token_id", "audio_start_id", "audio_end_id")})
    return MossAudioConfig.from_dict(config)


def make_processor(size: str) -> MossAudioProcessor:
    """A processor for models of a size, around a tokenizer that writes single bytes."""
    with tempfile.TemporaryDirectory() as folder:
        write_processor(Path(folder), size)
        return MossAudioProcessor.from_pretrained(folder)


def make_model(config: MossAudioConfig, dtype: torch.dtype, device: str = "cpu", seed: int = 0) -> MossAudioModel:
    """
    A model with norms of 1, biases of 0, and normal weights so large that activations keep their size, as in a trained
    one: with those that training begins with, all clips would get the same answer.
    """
    with torch.device("meta"):
        model = MossAudioModel(config)
    model = materialize(model, dtype, device, seed)
    restore_rope(model, device)
    return model.requires_grad_(False)


def materialize(model: torch.nn.Module, dtype: torch.dtype, device: str, seed: int) -> Any:
    """A model that was made on the meta device, with the weights of [`make_model`]."""
    model = model.to(dtype).to_empty(device=device).eval()
    generator = torch.Generator(device).manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, parameter[0].numel() ** -0.5, generator=generator)
            else:
                parameter.fill_(float(name.endswith("norm.weight")))
    return model


def make_pipeline(size: str, dtype: torch.dtype, device: str, seed: int) -> Any:
    """`pipeline("audio-text-to-text")` around a model of a size."""
    model = make_model(make_config(size), dtype, device, seed)
    return pipeline("audio-text-to-text", model=model, processor=make_processor(size), device=device)


def restore_rope(model: Any, device: str):
    """Computes the decoder's rope again, the one thing that is no parameter and was lost on the way."""
    decoder = model.get_decoder()
    decoder.rotary_emb = type(decoder.rotary_emb)(config=decoder.config).to(device)


def sound(seconds: float, seed: int) -> np.ndarray:
    """A clip, float32 at 16 kHz: tones of a quarter of a second in noise, others for every seed."""
    random = np.random.default_rng(seed)
    time = np.arange(round(16000 * seconds)) / 16000
    tones = np.exp(random.uniform(np.log(100), np.log(6000), int(4 * seconds) + 1))[(4 * time).astype(int)]
    clip = 0.3 * np.sin(2 * np.pi * tones * time) + 0.01 * random.standard_normal(len(time))
    return clip.astype(np.float32)


def prompts(
    processor: MossAudioProcessor, model: MossAudioModel, seconds: Sequence[float], seed: int
) -> Mapping[str, torch.Tensor]:
    """The model's inputs for a question about a clip of each length, on its device."""
    clips = [sound(each, seed + row) for row, each in enumerate(seconds)]
    inputs = processor(text=[QUESTION] * len(clips), audio=clips).to(model.device)
    positions = decoder_positions(model.config.language_config)
    if inputs["input_ids"].shape[1] > positions:
        raise ValueError(
            f"a clip of {max(seconds):g} s makes {inputs['input_ids'].shape[1]} tokens, and the decoder has {positions} "
            "positions; take a shorter one."
        )
    return inputs


def attempt(function: Callable[[], Any], what: str, notes: list[str]) -> Any:
    """
    The function's result, or where it fails a few words for a cell of a table: one part that does not fit, or needs a package
    that is not there, must not cost the others. `notes` gets what happened.
    """
    try:
        return function()
    except Exception as error:
        cell = _failure(error)
        reason = " ".join(str(error).split())
        notes.append(f"{what}: {cell} ({type(error).__name__}: {reason[:300]}).")
    free_memory()  # the error is gone, and with it what its frames held
    return cell


def free_memory():
    """Gives back what nothing refers to any more, the GPU's memory included."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _failure(error: Exception) -> str:
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error):
        return "out of memory"
    if isinstance(error, NotImplementedError):
        return "not on this device"
    return "package missing" if isinstance(error, ImportError) else "failed"


# ------------------------------------------------------------------------------------------------------------ generation


class StepClock(LogitsProcessor):
    """Takes down when the scores of each step of a generation are there; on a GPU by events, which nothing waits for."""

    def __init__(self):
        self._marks: list[Any] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.mark(scores.device.type)
        return scores

    def mark(self, device: str):
        """Takes down that a step is done."""
        if device == "cuda":
            self._marks.append(torch.cuda.Event(enable_timing=True))
            self._marks[-1].record()
        else:
            self._marks.append(time.perf_counter())

    def steps(self) -> list[float]:
        """Seconds of each step after the one that read the prompt."""
        pairs = zip(self._marks, self._marks[1:])
        if self._marks and isinstance(self._marks[0], torch.cuda.Event):
            torch.cuda.synchronize()
            return [before.elapsed_time(after) / 1000 for before, after in pairs]
        return [after - before for before, after in pairs]

    def median(self) -> Seconds:
        """The median of the steps."""
        return Seconds(statistics.median(self.steps()))


def generate(
    model: Any, inputs: Mapping[str, Any], steps: int, clock: Optional[StepClock] = None, **options
) -> torch.Tensor:
    """Greedy answers of exactly `steps` tokens, `(rows, steps)`: no token ends them."""
    processors = LogitsProcessorList([] if clock is None else [clock])
    options = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, **options}
    ids = model.generate(**inputs, max_new_tokens=steps, min_new_tokens=steps, logits_processor=processors, **options)
    new = ids[:, inputs["input_ids"].shape[1] :]
    if new.shape[1] != steps:
        raise RuntimeError(f"{new.shape[1]} tokens were generated instead of {steps}.")
    return new


def cache_options(cache: str, device: str, backend: str = "inductor") -> dict[str, Any]:
    """
    The arguments of `generate` for a kind of cache: "dynamic", "static", or "compiled" (static, its steps compiled; on a
    GPU with CUDA graphs).
    """
    if cache == "dynamic":
        return {}
    if cache == "static":
        return {"cache_implementation": "static", "disable_compile": True}
    mode = "reduce-overhead" if on_gpu(device) else "default"
    compiled = CompileConfig(dynamic=False, mode=mode, backend=backend)
    compiled._compile_all_devices = True  # Transformers compiles on GPUs only, unless it is told to
    return {"cache_implementation": "static", "compile_config": compiled}


def decode(
    model: Any, inputs: Mapping[str, Any], steps: int, cache: str, rounds: int = 1, warm: int = 1
) -> tuple[float, torch.Tensor]:
    """
    Seconds of a decoding step inside `generate`, the median of `rounds` generations after `warm` others; and the tokens,
    `(rows, steps)`, the one that the prompt gives and those of all steps but the last.
    """
    medians = []
    for number in range(warm + rounds):
        clock = StepClock()
        ids = generate(model, inputs, steps + 1, clock, **cache_options(cache, model.device.type))
        if number >= warm:
            medians.append(clock.median())
    return statistics.median(medians), ids[:, :-1]


# ---------------------------------------------------------------------------------------------------------- quantization


def weight_bytes(weights: Union[torch.nn.Module, torch.Tensor]) -> int:
    """Bytes of a module's parameters, or of a tensor, those that are quantized included."""
    if isinstance(weights, torch.nn.Module):
        return sum(weight_bytes(parameter) for parameter in weights.parameters())
    if hasattr(weights, "__tensor_flatten__"):  # made of several tensors
        names, _ = weights.__tensor_flatten__()
        return sum(weight_bytes(getattr(weights, name)) for name in names)
    return weights.numel() * weights.element_size()


def bytes_per_step(model: MossAudioModel) -> int:
    """Bytes of the weights that a decoding step reads: the decoder's layers and the head, not the embeddings."""
    decoder = model.language_model
    return weight_bytes(decoder) - weight_bytes(decoder.embed_tokens) + weight_bytes(model.lm_head)


def torchao_config(kind: str, device: str) -> Any:
    """
    torchao's configuration of "int8" or "int4" weights, "int8-dynamic" (activations, too), "fp8" weights or "fp8-dynamic".

    Raises:
        ImportError: without torchao.
        ValueError: for another kind.
    """
    import torchao.quantization as ao

    if kind == "int4":
        return _int4_config(ao, device)
    makers = {
        "int8": lambda: ao.Int8WeightOnlyConfig(),
        "int8-dynamic": lambda: ao.Int8DynamicActivationInt8WeightConfig(),
        "fp8": lambda: ao.Float8WeightOnlyConfig(),
        "fp8-dynamic": lambda: ao.Float8DynamicActivationFloat8WeightConfig(granularity=ao.PerRow()),
    }
    if kind not in makers:
        raise ValueError(f"{kind!r} is none of int4, {', '.join(makers)}.")
    return makers[kind]()


def _int4_config(ao: Any, device: str) -> Any:
    """int4 in the layout of the kernel that comes with torch on that device; torchao's default needs another package."""
    if on_gpu(device):
        return ao.Int4WeightOnlyConfig(group_size=128, int4_packing_format="tile_packed_to_4d")
    try:  # where newer versions of torchao keep what is for CPUs
        from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig
    except ImportError:
        return ao.Int4WeightOnlyConfig(group_size=32, int4_packing_format="opaque")
    return PrototypeInt4WeightOnlyConfig(group_size=32)


def quantize(model: MossAudioModel, config: Any):
    """Quantizes the layers of encoder and decoder in place: what `from_pretrained` does with such a config."""
    from torchao.quantization import quantize_
    from transformers import TorchAoConfig

    spared = spare_small_parts(TorchAoConfig(quant_type=config)).modules_to_not_convert

    def is_chosen(module: torch.nn.Module, name: str) -> bool:
        return isinstance(module, torch.nn.Linear) and not any(f"{name}.".startswith(f"{part}.") for part in spared)

    quantize_(model, config, filter_fn=is_chosen)
