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
"""The tensors that a configuration asks for: names and shapes, without a model.

It is what weights are checked against before anything is written, and what new checkpoints are made from.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from transformers import Qwen3Config

from moss_audio.configuration_moss_audio import MossAudioConfig, MossAudioEncoderConfig, frames_to_tokens

from . import ConversionError


# A buffer that some released files carry. It has no effect, every loader here ignores it, and conversion keeps it.
LEFTOVER = "audio_encoder.embed_positions.inv_timescales"
HEAD, EMBEDDINGS = "lm_head.weight", "language_model.embed_tokens.weight"

Shape = tuple[int, ...]


def parse_config(config: dict[str, Any], where: str = "config.json") -> MossAudioConfig:
    """
    The configuration of a MOSS-Audio checkpoint, from the contents of its config.json.

    Raises:
        ConversionError: where it is another model's, or its values do not fit each other.
    """
    if config.get("model_type") != MossAudioConfig.model_type:
        raise ConversionError(
            f"{where} has `model_type` {config.get('model_type')!r} and `architectures` {config.get('architectures')}; "
            f"this needs a MOSS-Audio checkpoint, with `model_type` {MossAudioConfig.model_type!r}."
        )
    missing = [name for name in ("audio_config", "language_config") if not isinstance(config.get(name), dict)]
    if missing:
        raise ConversionError(f"{where} has no {' and no '.join(missing)}; a released config.json has both.")
    try:
        return MossAudioConfig(**config)
    except (ValueError, TypeError) as error:
        raise ConversionError(f"{where} describes no model: {error}") from error


def tensor_manifest(config: MossAudioConfig) -> dict[str, Shape]:
    """
    Names and shapes of the tensors of a checkpoint, in the order of the model. The released sizes have 901.

    With tied embeddings there is no `lm_head.weight`.
    """
    encoder, decoder = config.audio_config, config.language_config
    gated = dict(_gated(encoder.output_dim, config.adapter_hidden_size, decoder.hidden_size))
    return {
        **_prefixed("audio_encoder.", encoder_manifest(encoder)),
        **_prefixed("audio_adapter.", gated),
        **{
            name: shape
            for merger in range(config.deepstack_num_inject_layers)
            for name, shape in _prefixed(f"deepstack_audio_merger_list.{merger}.", gated).items()
        },
        **_prefixed("language_model.", decoder_manifest(decoder)),
        **({} if config.tie_word_embeddings else {HEAD: (decoder.vocab_size, decoder.hidden_size)}),
    }


def encoder_manifest(config: MossAudioEncoderConfig) -> dict[str, Shape]:
    """Names and shapes of the encoder's own tensors, without the prefix that they have in a whole checkpoint."""
    width, channels, inner = config.d_model, config.downsample_hidden_size, config.encoder_ffn_dim
    shapes = {}
    for name, inputs in (("conv1", 1), ("conv2", channels), ("conv3", channels)):
        shapes.update({f"{name}.weight": (channels, inputs, 3, 3), f"{name}.bias": (channels,)})
    shapes.update(_linear("stem_proj", channels * frames_to_tokens(config.num_mel_bins), width))
    for index in range(config.encoder_layers):
        layer = {
            **_linear("self_attn.q_proj", width, width),
            "self_attn.k_proj.weight": (width, width),
            **_linear("self_attn.v_proj", width, width),
            **_linear("self_attn.out_proj", width, width),
            **_layer_norm("self_attn_layer_norm", width),
            **_linear("fc1", width, inner),
            **_linear("fc2", inner, width),
            **_layer_norm("final_layer_norm", width),
        }
        shapes.update(_prefixed(f"layers.{index}.", layer))
    shapes.update(_layer_norm("layer_norm", width))
    if config.output_dim != width:
        shapes["out_proj.weight"] = (config.output_dim, width)
    return shapes


def decoder_manifest(config: Qwen3Config) -> dict[str, Shape]:
    """Names and shapes of a Qwen3 decoder's tensors, without prefix and without its `lm_head`."""
    width = config.hidden_size
    head_dim = getattr(config, "head_dim", None) or width // config.num_attention_heads
    queries, keys = config.num_attention_heads * head_dim, config.num_key_value_heads * head_dim
    shapes = {"embed_tokens.weight": (config.vocab_size, width)}
    for index in range(config.num_hidden_layers):
        layer: dict[str, Shape] = {}
        for name, inputs, outputs in (
            ("q_proj", width, queries),
            ("k_proj", width, keys),
            ("v_proj", width, keys),
            ("o_proj", queries, width),
        ):
            projection = _linear(f"self_attn.{name}", inputs, outputs)
            layer[f"self_attn.{name}.weight"] = projection[f"self_attn.{name}.weight"]
            if config.attention_bias:
                layer.update(projection)
        layer.update({"self_attn.q_norm.weight": (head_dim,), "self_attn.k_norm.weight": (head_dim,)})
        layer.update(_prefixed("mlp.", dict(_gated(width, config.intermediate_size, width))))
        layer.update({"input_layernorm.weight": (width,), "post_attention_layernorm.weight": (width,)})
        shapes.update(_prefixed(f"layers.{index}.", layer))
    shapes["norm.weight"] = (width,)
    return shapes


def compare(found: dict[str, Shape], expected: dict[str, Shape]) -> list[str]:
    """What is wrong with tensors, one line a kind: missing ones, unknown ones, shapes that do not fit."""
    return compare_names(found, expected) + compare_shapes(found, expected)


def compare_names(found: Iterable[str], expected: Iterable[str]) -> list[str]:
    """Which tensors are missing, and which do not belong there."""
    found, expected, problems = set(found), list(expected), []
    if missing := [name for name in expected if name not in found]:
        problems.append(f"{len(missing)} of {len(expected)} tensors are missing: {some(missing)}")
    # A checkpoint with tied embeddings may carry the head a second time.
    if unknown := sorted(found - set(expected) - {LEFTOVER, HEAD}):
        problems.append(f"{len(unknown)} tensors do not belong to this configuration: {some(unknown)}")
    return problems


def compare_shapes(found: dict[str, Shape], expected: dict[str, Shape]) -> list[str]:
    """Which tensors have a shape that does not fit."""
    if EMBEDDINGS in expected:
        expected = {HEAD: expected[EMBEDDINGS], **expected}
    wrong = [
        f"{name} is {found[name]}, not {shape}" for name, shape in expected.items() if found.get(name, shape) != shape
    ]
    return [f"{len(wrong)} tensors have another shape than config.json asks for: {some(wrong)}"] if wrong else []


def parameter_count(config: MossAudioConfig) -> int:
    """Number of parameters: 5.223e9 and 9.052e9 for the released sizes."""
    total = 0
    for shape in tensor_manifest(config).values():
        elements = 1
        for size in shape:
            elements *= size
        total += elements
    return total


def some(items: list[str], count: int = 4) -> str:
    """The first few of many, for a message."""
    rest = len(items) - count
    return "; ".join(items[:count]) + (f"; and {rest} more" if rest > 0 else "")


def _linear(name: str, inputs: int, outputs: int) -> dict[str, Shape]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _layer_norm(name: str, width: int) -> dict[str, Shape]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _gated(inputs: int, inner: int, outputs: int) -> Iterator[tuple[str, Shape]]:
    yield "gate_proj.weight", (inner, inputs)
    yield "up_proj.weight", (inner, inputs)
    yield "down_proj.weight", (outputs, inner)


def _prefixed(prefix: str, shapes: dict[str, Shape]) -> dict[str, Shape]:
    return {prefix + name: shape for name, shape in shapes.items()}
