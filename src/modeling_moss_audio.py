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
"""MOSS-Audio: an audio encoder, a gated adapter, and a Qwen3 decoder that hears through DeepStack.

What is special about it, in the order of the data:
- The encoder cuts a clip into windows of 4 s that do not see each other; 100 frames of log-mel become 12.5 tokens.
- An adapter maps its output to the decoder's width, in the place of the audio tokens' embeddings.
- Intermediate layers are tapped, too: merger k maps tap k, and the result is added to the output of decoder layer k.
- Rows of a batch may hold any number of clips. Clips are not rows: they come packed, in the order of their tokens.
"""

import copy
import inspect
import math
from dataclasses import dataclass
from typing import Any, Callable, NamedTuple, Optional, Union

import torch
from torch import nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from torch.utils.checkpoint import checkpoint
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache
from transformers.generation import GenerationConfig, GenerationMixin, LogitsProcessorList
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling, CausalLMOutputWithPast, ModelOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.models.qwen3.configuration_qwen3 import Qwen3Config
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer, Qwen3ForCausalLM, Qwen3Model
from transformers.processing_utils import Unpack
from transformers.quantizers import AutoQuantizationConfig
from transformers.utils import TransformersKwargs, can_return_tuple
from transformers.utils.deprecation import deprecate_kwarg
from transformers.utils.quantization_config import QuantizationConfigMixin

from .configuration_moss_audio import (
    FRAMES_PER_TOKEN,
    MossAudioConfig,
    MossAudioEncoderConfig,
    decoder_positions,
    frames_to_tokens,
    longest_clip_seconds,
    span_tokens,
)
from .generation_moss_audio import RELEASED_THINKING_TOKEN_IDS, ThinkingBudgetLogitsProcessor


FLOAT16_MARGIN = 1000  # float16 activations are kept this far below the largest finite value
STEM_WINDOWS = 16  # go through the convolutions at once, whose first output takes 12 MB a window in bfloat16
END_OF_TURN_ID, PADDING_ID = 151645, 151643  # `<|im_end|>` and `<|endoftext|>` of the released tokenizer

# What the installed Transformers calls a cache of keys and values: `cache` since 5.24, `past_key_values` before.
CACHE_NAME = "cache" if "cache" in inspect.signature(Qwen3Model.forward).parameters else "past_key_values"


def cache_by_either_name(forward: Callable) -> Callable:
    """
    A method with an argument `cache` that takes `past_key_values` for it, too: with the warning of Transformers' models
    where they give one. Its signature, by which `generate` goes, has the name of the installed version.
    """
    version = "5.40.0" if CACHE_NAME == "cache" else "0"  # where the old name ends; no warning comes after that
    method = deprecate_kwarg("past_key_values", version, new_name="cache")(forward)
    signature = inspect.signature(forward)
    parameters = signature.parameters.values()
    parameters = [each.replace(name=CACHE_NAME) if each.name == "cache" else each for each in parameters]
    method.__signature__ = signature.replace(parameters=parameters)
    return method


@dataclass
class MossAudioEncoderOutput(ModelOutput):
    """
    Output of [`MossAudioEncoder`]. Clips are packed: the tokens of all clips follow each other without padding.

    Args:
        last_hidden_state (`torch.FloatTensor` of shape `(tokens, output_dim)`):
            Output of the last layer after the final layer norm.
        deepstack_hidden_states (`tuple[torch.FloatTensor]`, each of shape `(tokens, output_dim)`):
            Outputs of the tapped layers, in the order of `config.deepstack_encoder_layer_indexes`.
        hidden_states (`tuple[torch.FloatTensor]`, each of shape `(tokens, d_model)`, *optional*):
            Input of the first layer and outputs of all layers.
        attentions (`tuple[torch.FloatTensor]`, each of shape `(windows, heads, window_tokens, window_tokens)`, *optional*):
            Attention weights of all layers, windows in the order of the clips, padded with zeros.
    """

    last_hidden_state: Optional[torch.FloatTensor] = None
    deepstack_hidden_states: Optional[tuple[torch.FloatTensor, ...]] = None
    hidden_states: Optional[tuple[torch.FloatTensor, ...]] = None
    attentions: Optional[tuple[torch.FloatTensor, ...]] = None


@dataclass
class MossAudioFeaturesOutput(BaseModelOutputWithPooling):
    """
    Output of [`MossAudioModel.get_audio_features`]: [`MossAudioEncoderOutput`]'s fields and what the decoder gets.

    Args:
        pooler_output (`torch.FloatTensor` of shape `(tokens, hidden_size)`):
            The audio embeddings: the encoder's output after the adapter.
        deepstack_features (`tuple[torch.FloatTensor]`, each of shape `(tokens, hidden_size)`):
            The k-th tap after the k-th merger, to be added to the output of decoder layer k.
    """

    deepstack_features: Optional[tuple[torch.FloatTensor, ...]] = None


@dataclass
class MossAudioCausalLMOutputWithPast(CausalLMOutputWithPast):
    """
    Output of [`MossAudioModel`]: [`~transformers.modeling_outputs.CausalLMOutputWithPast`] and the audio embeddings.

    Args:
        audio_hidden_states (`torch.FloatTensor` of shape `(tokens, hidden_size)`, *optional*):
            The embeddings that took the place of the audio tokens', where the call had clips.
        token_losses (`torch.FloatTensor` of shape `(batch, seq)`, *optional*):
            With `loss_chunk_size`, what predicting the token after each position cost: float32, without gradients, 0
            where there is no label.
        token_hits (`torch.BoolTensor` of shape `(batch, seq)`, *optional*):
            With `loss_chunk_size`, whether the likeliest token was the label.
    """

    audio_hidden_states: Optional[torch.FloatTensor] = None
    token_losses: Optional[torch.FloatTensor] = None
    token_hits: Optional[torch.BoolTensor] = None


class Window(NamedTuple):
    """A stretch of a clip that the encoder sees as a whole, in frames."""

    clip: int
    start: int
    frames: int  # frames of sound in it
    stem_frames: int  # frames that the conv stem sees: those and, in a long clip's tail, zero frames behind them


def cut_into_windows(lengths: list[int], window_frames: int) -> list[Window]:
    """
    The windows of clips of `lengths` frames, clip by clip.

    A clip shorter than one window is not padded at all, so that the convolutions see its end as the end. The tail of a
    longer one is padded with zero frames: the next multiple of 8 gives what a full window would, because no token
    reaches further.
    """
    windows = []
    for clip, length in enumerate(lengths):
        for start in range(0, length, window_frames):
            frames = min(window_frames, length - start)
            padded = frames_to_tokens(frames) * FRAMES_PER_TOKEN
            windows.append(Window(clip, start, frames, frames if length < window_frames else padded))
    return windows


def sinusoidal_positions(tokens: int, width: int, device: torch.device) -> torch.Tensor:
    """`[sin(t * w_i), cos(t * w_i)]` with `w_i = exp(-ln(10000) * i / (width / 2 - 1))`, `(tokens, width)`, float32."""
    half = width // 2
    rates = torch.exp(-math.log(10000) / (half - 1) * torch.arange(half, dtype=torch.float32, device=device))
    angles = torch.arange(tokens, dtype=torch.float32, device=device)[:, None] * rates
    return torch.cat((angles.sin(), angles.cos()), dim=1)


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Optional[torch.Tensor],
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention in plain PyTorch, in the signature of `ALL_ATTENTION_FUNCTIONS`."""
    weights = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        weights = weights + attention_mask
    weights = nn.functional.softmax(weights, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class MossAudioAttention(nn.Module):
    """Multi-head attention inside a window, without a bias on the keys, as in Whisper."""

    def __init__(self, config: MossAudioEncoderConfig):
        super().__init__()
        self.config = config
        self.head_dim = config.d_model // config.encoder_attention_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        self.q_proj = nn.Linear(config.d_model, config.d_model)
        self.k_proj = nn.Linear(config.d_model, config.d_model, bias=False)
        self.v_proj = nn.Linear(config.d_model, config.d_model)
        self.out_proj = nn.Linear(config.d_model, config.d_model)

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: Optional[torch.Tensor] = None, **kwargs
    ) -> tuple[torch.Tensor, Optional[torch.Tensor]]:
        shape = (*hidden_states.shape[:-1], -1, self.head_dim)
        query = self.q_proj(hidden_states).view(shape).transpose(1, 2)  # (windows, heads, tokens, head_dim)
        key = self.k_proj(hidden_states).view(shape).transpose(1, 2)
        value = self.v_proj(hidden_states).view(shape).transpose(1, 2)
        attend = ALL_ATTENTION_FUNCTIONS.get(self.config._attn_implementation, eager_attention_forward)
        output, weights = attend(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.config.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            is_causal=False,
            **kwargs,
        )
        return self.out_proj(output.reshape(*hidden_states.shape[:-1], -1)), weights


class MossAudioEncoderLayer(GradientCheckpointingLayer):
    """A pre-norm Whisper layer."""

    def __init__(self, config: MossAudioEncoderConfig):
        super().__init__()
        self.self_attn = MossAudioAttention(config)
        self.self_attn_layer_norm = nn.LayerNorm(config.d_model, eps=config.layer_norm_eps)
        self.fc1 = nn.Linear(config.d_model, config.encoder_ffn_dim)
        self.fc2 = nn.Linear(config.encoder_ffn_dim, config.d_model)
        self.final_layer_norm = nn.LayerNorm(config.d_model, eps=config.layer_norm_eps)
        self.activation = ACT2FN[config.activation_function]
        self.dropout = config.dropout

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: Optional[torch.Tensor] = None, **kwargs
    ) -> tuple[torch.Tensor, Optional[torch.Tensor]]:
        residual = hidden_states
        hidden_states, weights = self.self_attn(self.self_attn_layer_norm(hidden_states), attention_mask, **kwargs)
        hidden_states = residual + nn.functional.dropout(hidden_states, p=self.dropout, training=self.training)
        residual = hidden_states
        hidden_states = self.fc2(self.activation(self.fc1(self.final_layer_norm(hidden_states))))
        hidden_states = residual + nn.functional.dropout(hidden_states, p=self.dropout, training=self.training)
        if hidden_states.dtype == torch.float16:
            limit = torch.finfo(torch.float16).max - FLOAT16_MARGIN
            hidden_states = hidden_states.clamp(min=-limit, max=limit)
        return hidden_states, weights


class MossAudioGatedMLP(nn.Module):
    """`down(silu(gate(x)) * up(x))`: the adapter, and each of the mergers."""

    def __init__(self, input_dim: int, hidden_dim: int, output_dim: int):
        super().__init__()
        self.gate_proj = nn.Linear(input_dim, hidden_dim, bias=False)
        self.up_proj = nn.Linear(input_dim, hidden_dim, bias=False)
        self.down_proj = nn.Linear(hidden_dim, output_dim, bias=False)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.down_proj(nn.functional.silu(self.gate_proj(hidden_states)) * self.up_proj(hidden_states))


class MossAudioDecoderLayer(Qwen3DecoderLayer):
    """A Qwen3 layer that adds its DeepStack features to its output, at the positions of the audio tokens."""

    layer_idx: int

    def forward(
        self,
        hidden_states: torch.Tensor,
        *args,
        deepstack_features: Optional[tuple[torch.Tensor, ...]] = None,  # each (audio tokens, hidden_size)
        audio_positions: Optional[torch.LongTensor] = None,  # (audio tokens,) into (batch * seq,)
        **kwargs,
    ) -> torch.Tensor:
        hidden_states = super().forward(hidden_states, *args, **kwargs)
        if deepstack_features is None or self.layer_idx >= len(deepstack_features):
            return hidden_states
        features = deepstack_features[self.layer_idx].to(hidden_states.device, hidden_states.dtype)
        flat = hidden_states.flatten(0, 1)
        return flat.index_add(0, audio_positions.to(flat.device), features).view_as(hidden_states)


class MossAudioPreTrainedModel(PreTrainedModel):
    """What encoder, decoder and whole model have in common: which of Transformers' features they support."""

    config_class = MossAudioConfig
    base_model_prefix = "model"
    input_modalities = ("audio", "text")
    supports_gradient_checkpointing = True
    # The encoder is one piece: how often its layers are called depends on the clips, and FSDP, which wraps these modules,
    # must gather their weights equally often in all processes.
    _no_split_modules = ["MossAudioEncoder", "MossAudioDecoderLayer"]
    _skip_keys_device_placement = ["cache", "past_key_values"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        # Transformers would look for a line in this file, another one in each of its major versions.
        return True

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: Optional[dict[str, Any]] = None, **kwargs
    ) -> None:
        """
        Turns gradient checkpointing on (see [`PreTrainedModel.gradient_checkpointing_enable`]), non-reentrant.

        Raises:
            ValueError: for `use_reentrant=True`: DeepStack features reach the layers as keyword arguments, through
                which reentrant checkpointing loses the gradients.
        """
        options = {"use_reentrant": False, **(gradient_checkpointing_kwargs or {})}
        if options["use_reentrant"]:
            raise ValueError(
                "`gradient_checkpointing_kwargs` {'use_reentrant': True} does not work with MOSS-Audio, whose layers "
                "take features as keyword arguments; leave it out or set it to False."
            )
        # Newer versions of Transformers come here from `activation_checkpointing_enable`; their parent method of this
        # name would warn of it.
        enable = getattr(super(), "_activation_checkpointing_enable", super().gradient_checkpointing_enable)
        enable(options, **kwargs)


class MossAudioLanguageModel(MossAudioPreTrainedModel, Qwen3Model):
    """Qwen3 made of layers that take DeepStack features; `Qwen3Model.forward` hands them down as keywords."""

    config_class = Qwen3Config
    input_modalities = ("text",)

    def __init__(self, config):
        super().__init__(config)
        for layer_idx, layer in enumerate(self.layers):  # made into our kind instead of built twice
            layer.__class__ = MossAudioDecoderLayer
            layer.layer_idx = layer_idx


class MossAudioEncoder(MossAudioPreTrainedModel):
    """The audio encoder: log-mel frames in, 12.5 tokens a second out, each clip as if it were alone."""

    config_class = MossAudioEncoderConfig
    main_input_name = "audio_data"
    input_modalities = ("audio",)

    def __init__(self, config: MossAudioEncoderConfig):
        super().__init__(config)
        channels = config.downsample_hidden_size
        self.conv1 = nn.Conv2d(1, channels, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        self.conv3 = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        self.stem_proj = nn.Linear(channels * frames_to_tokens(config.num_mel_bins), config.d_model)
        self.layers = nn.ModuleList([MossAudioEncoderLayer(config) for _ in range(config.encoder_layers)])
        self.layer_norm = nn.LayerNorm(config.d_model, eps=config.layer_norm_eps)
        self.out_proj = (
            nn.Linear(config.d_model, config.output_dim, bias=False) if config.output_dim != config.d_model else None
        )
        self.gradient_checkpointing = False
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        audio_data: torch.Tensor,
        audio_data_seqlens: Union[torch.Tensor, list[int]],
        output_attentions: Optional[bool] = None,
        output_hidden_states: Optional[bool] = None,
        **kwargs,
    ) -> MossAudioEncoderOutput:
        r"""
        Args:
            audio_data (`torch.Tensor` of shape `(clips, num_mel_bins, frames)`):
                Log-mel features, padded behind each clip's end; any floating dtype.
            audio_data_seqlens (`torch.Tensor` or `list[int]` of shape `(clips,)`):
                Frames of each clip.
            output_attentions (`bool`, *optional*):
                Whether to return the attention weights (by "eager" attention only).
            output_hidden_states (`bool`, *optional*):
                Whether to return the outputs of all layers.

        Raises:
            ValueError: where shapes, lengths or number of clips do not fit.
        """
        config = self.config
        output_attentions = config.output_attentions if output_attentions is None else output_attentions
        output_hidden_states = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        lengths = clip_lengths(audio_data, audio_data_seqlens, config.num_mel_bins)
        windows = cut_into_windows(lengths, config.window_frames)
        # Windows of like length go together: full ones need no mask, and few tails differ in a group.
        order = sorted(range(len(windows)), key=lambda index: -windows[index].frames)
        full = sum(window.frames == config.window_frames for window in windows)
        starts = [*range(0, full, config.conv_chunksize), *range(full, len(windows), config.conv_chunksize)]
        groups = [[windows[index] for index in order[start:end]] for start, end in zip(starts, [*starts[1:], None])]
        # Nothing is larger than what the convolutions make: they are done with before the outputs of groups pile up.
        stems = [self._stem(audio_data, group) for group in groups]
        encoded = [
            self._encode(stems.pop(0), group, output_attentions, output_hidden_states, **kwargs) for group in groups
        ]

        restore = _restoring_index([frames_to_tokens(windows[index].frames) for index in order], order)
        restore = None if restore is None else torch.tensor(restore, device=audio_data.device)

        def pack(name: str) -> tuple[torch.Tensor, ...]:
            layers = [torch.cat(parts) for parts in zip(*(group[name] for group in encoded))]
            return tuple(layer if restore is None else layer.to(restore.device)[restore] for layer in layers)

        return MossAudioEncoderOutput(
            last_hidden_state=pack("last_hidden_state")[0],
            deepstack_hidden_states=pack("deepstack_hidden_states"),
            hidden_states=pack("hidden_states") if output_hidden_states else None,
            attentions=self._pack_attentions(encoded, order) if output_attentions else None,
        )

    def _encode(
        self,
        hidden_states: torch.Tensor,  # (windows, tokens, d_model), as the stem makes them
        group: list[Window],
        output_attentions: bool,
        output_hidden_states: bool,
        **kwargs,
    ) -> dict[str, tuple[torch.Tensor, ...]]:
        """Runs windows through the layers; hidden states come back without padding, `(tokens, width)`."""
        tokens = [frames_to_tokens(window.frames) for window in group]
        attention_mask = keep = None
        if min(tokens) < max(tokens):
            longest, device = hidden_states.shape[1], hidden_states.device
            keep = [window * longest + token for window, count in enumerate(tokens) for token in range(count)]
            keep = torch.tensor(keep, device=device)
            valid = torch.arange(longest, device=device) < torch.tensor(tokens, device=device)[:, None]
            attention_mask = self._attention_mask(valid, hidden_states.dtype)

        def unpad(states: torch.Tensor) -> torch.Tensor:
            states = states.flatten(0, 1)
            return states if keep is None else states[keep.to(states.device)]

        all_states, all_weights, taps = [], [], {}
        if output_hidden_states:
            all_states.append(unpad(hidden_states))
        for index, layer in enumerate(self.layers):
            hidden_states, weights = layer(hidden_states, attention_mask, **kwargs)
            if index in self.config.deepstack_encoder_layer_indexes:
                taps[index] = self._project(unpad(hidden_states))
            if output_hidden_states:
                all_states.append(unpad(hidden_states))
            if output_attentions and weights is not None:
                all_weights.append(weights)
        return {
            "last_hidden_state": (self._project(self.layer_norm(unpad(hidden_states))),),
            "deepstack_hidden_states": tuple(taps[index] for index in self.config.deepstack_encoder_layer_indexes),
            "hidden_states": tuple(all_states),
            "attentions": tuple(all_weights),
        }

    def _stem(self, audio_data: torch.Tensor, group: list[Window]) -> torch.Tensor:
        """Convolutions, projection and positions: `(clips, mels, frames)` to `(windows, tokens, d_model)`."""
        longest = max(window.stem_frames for window in group)
        parts = [group[start : start + STEM_WINDOWS] for start in range(0, len(group), STEM_WINDOWS)]
        hidden_states = torch.cat([self.stem_proj(self._convolve(audio_data, part, longest)) for part in parts])
        positions = sinusoidal_positions(hidden_states.shape[1], self.config.d_model, hidden_states.device)
        return hidden_states + positions.to(hidden_states.dtype)

    def _convolve(self, audio_data: torch.Tensor, windows: list[Window], longest: int) -> torch.Tensor:
        """Windows of at most `longest` frames through the convolutions: `(windows, tokens, channels * mels)`."""
        weight = self.conv1.weight
        # On CPUs bfloat16 convolutions of oneDNN now and then give NaN where their output is a single frame.
        width = max(longest, 2 * FRAMES_PER_TOKEN)
        hidden_states = audio_data.new_zeros(len(windows), 1, audio_data.shape[1], width, dtype=weight.dtype)
        for row, window in zip(hidden_states, windows):
            piece = audio_data[window.clip, :, window.start : window.start + window.frames]
            row[0, :, : window.frames] = piece
        if hidden_states.device.type != "mps":  # half the time in bfloat16, and the convolutions keep the layout
            hidden_states = hidden_states.to(memory_format=torch.channels_last)
        lengths = [window.stem_frames for window in windows]
        for conv in (self.conv1, self.conv2, self.conv3):
            if min(lengths) < hidden_states.shape[-1]:
                # A convolution must see zeros beyond a window's end, as it would if the window were alone.
                ends = torch.tensor(lengths, device=hidden_states.device)[:, None]
                beyond = torch.arange(hidden_states.shape[-1], device=hidden_states.device) >= ends
                hidden_states = hidden_states.masked_fill(beyond[:, None, None], 0)
            hidden_states = conv(hidden_states)  # (windows, channels, mels, frames)
            if torch.is_grad_enabled():
                hidden_states = nn.functional.gelu(hidden_states)
            else:  # in place: a copy of the first one would double the peak of memory
                hidden_states = torch.ops.aten.gelu_(hidden_states)
            lengths = [(length + 1) // 2 for length in lengths]
        return hidden_states.permute(0, 3, 1, 2).flatten(2)[:, : frames_to_tokens(longest)]

    def _attention_mask(self, valid: torch.Tensor, dtype: torch.dtype) -> Union[torch.Tensor, BlockMask]:
        """`valid` (windows, tokens) in the form that the attention implementation reads."""
        implementation = self.config._attn_implementation or ""
        if "flash" in implementation:
            return valid
        if implementation == "flex_attention":
            windows, tokens = valid.shape
            lengths = valid.sum(1)
            return create_block_mask(
                lambda window, head, query, key: key < lengths[window], windows, None, tokens, tokens, valid.device
            )
        mask = torch.zeros(valid.shape, dtype=dtype, device=valid.device)
        mask = mask.masked_fill(~valid, torch.finfo(dtype).min)
        return mask[:, None, None, :].expand(-1, 1, valid.shape[1], -1)  # (windows, 1, queries, keys)

    def _project(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states if self.out_proj is None else self.out_proj(hidden_states)

    def _pack_attentions(self, groups: list[dict], order: list[int]) -> tuple[torch.Tensor, ...]:
        """The weights of all windows in the order of the clips, `(windows, heads, tokens, tokens)` a layer."""
        widest = max((weights.shape[-1] for group in groups for weights in group["attentions"]), default=0)
        inverse = torch.tensor(order).argsort()

        def pad(weights: torch.Tensor) -> torch.Tensor:
            missing = widest - weights.shape[-1]
            return nn.functional.pad(weights, (0, missing, 0, missing))

        layers = zip(*(group["attentions"] for group in groups))
        return tuple(torch.cat([pad(weights) for weights in layer])[inverse.to(layer[0].device)] for layer in layers)


def clip_lengths(
    audio_data: torch.Tensor, audio_data_seqlens: Optional[Union[torch.Tensor, list[int]]], num_mel_bins: int
) -> list[int]:
    """
    The lengths of clips in frames, checked against their features.

    Raises:
        ValueError: where `audio_data` is not `(clips, num_mel_bins, frames)`, `audio_data_seqlens` is missing or has
            another number of clips, or a length is not between 1 and the number of frames.
    """
    if audio_data.ndim != 3 or audio_data.shape[1] != num_mel_bins or not audio_data.shape[0]:
        raise ValueError(
            f"`audio_data` has shape {tuple(audio_data.shape)}; expected (clips, {num_mel_bins}, frames) as the "
            "processor returns it, or None where there is no clip."
        )
    if audio_data_seqlens is None:
        raise ValueError(
            "`audio_data` comes without `audio_data_seqlens`, the frames of each clip; pass both as the processor "
            "returns them."
        )
    lengths = audio_data_seqlens.tolist() if isinstance(audio_data_seqlens, torch.Tensor) else list(audio_data_seqlens)
    if len(lengths) != audio_data.shape[0]:
        raise ValueError(f"`audio_data_seqlens` has {len(lengths)} lengths for {audio_data.shape[0]} clips.")
    for clip, length in enumerate(lengths):
        if not 1 <= length <= audio_data.shape[2]:
            raise ValueError(
                f"`audio_data_seqlens` says clip {clip} has {length} frames; its features have {audio_data.shape[2]}, "
                "so the length must be between 1 and that."
            )
    return lengths


def _restoring_index(counts: list[int], order: list[int]) -> Optional[list[int]]:
    """Where the tokens of each window stand after sorting; None where sorting moved nothing."""
    if order == sorted(order):
        return None
    starts, start = {}, 0
    for index, count in zip(order, counts):
        starts[index] = (start, count)
        start += count
    return [position for index in sorted(starts) for position in range(starts[index][0], sum(starts[index]))]


def spare_small_parts(quantization_config: Union[QuantizationConfigMixin, dict[str, Any]]) -> QuantizationConfigMixin:
    """A copy of a quantization config that leaves the parts around encoder and decoder alone, if it names none itself."""
    if isinstance(quantization_config, dict):
        quantization_config = AutoQuantizationConfig.from_dict(quantization_config)
    quantization_config = copy.deepcopy(quantization_config)
    for name in ("modules_to_not_convert", "llm_int8_skip_modules", "skip_modules"):  # each method has its own word
        if getattr(quantization_config, name, ()) is None:
            setattr(quantization_config, name, list(_UNQUANTIZED))
    return quantization_config


# A tenth of the weights, and all that the decoder hears and says goes through them.
_UNQUANTIZED = (
    "audio_encoder.conv1",
    "audio_encoder.conv2",
    "audio_encoder.conv3",
    "audio_encoder.stem_proj",
    "audio_adapter",
    "deepstack_audio_merger_list",
    "lm_head",
)


class MossAudioModel(MossAudioPreTrainedModel, GenerationMixin):
    r"""
    MOSS-Audio: sound and text in, text out. The class has the head for text and generates; it is what `AutoModel`,
    `AutoModelForCausalLM` and `AutoModelForMultimodalLM` give.

    Besides what it takes elsewhere, `generate` takes `thinking_budget`, tokens of thinking after which the answer is asked
    for (see [`ThinkingBudgetLogitsProcessor`]), and with a vocabulary that is not the released one
    `thinking_token_ids=processor.thinking_token_ids`.

    ```python
    >>> from moss_audio import MossAudioModel, MossAudioProcessor

    >>> model = MossAudioModel.from_pretrained("OpenMOSS-Team/MOSS-Audio-4B-Instruct", dtype="auto")
    >>> processor = MossAudioProcessor.from_pretrained("OpenMOSS-Team/MOSS-Audio-4B-Instruct")
    >>> inputs = processor(text="Describe this audio.", audio="recording.wav")
    >>> ids = model.generate(**inputs)
    >>> processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    ```
    """

    _tied_weights_keys = {"lm_head.weight": "language_model.embed_tokens.weight"}
    _keys_to_ignore_on_load_unexpected = [r"audio_encoder\.embed_positions\.inv_timescales"]
    _tp_plan = Qwen3ForCausalLM._tp_plan  # of `lm_head`, in the words of the installed version

    def __init__(self, config: MossAudioConfig):
        super().__init__(config)
        encoder, decoder = config.audio_config, config.language_config
        self.audio_encoder = MossAudioEncoder(encoder)
        sizes = (encoder.output_dim, config.adapter_hidden_size, decoder.hidden_size)
        self.audio_adapter = MossAudioGatedMLP(*sizes)
        self.deepstack_audio_merger_list = nn.ModuleList(
            [MossAudioGatedMLP(*sizes) for _ in range(config.deepstack_num_inject_layers)]
        )
        self.language_model = MossAudioLanguageModel(decoder)
        self.lm_head = nn.Linear(decoder.hidden_size, decoder.vocab_size, bias=False)
        self.loss_type = "ForCausalLM"
        self._set_generation_defaults()
        self.post_init()

    def _set_generation_defaults(self):
        """Greedy, up to 1024 tokens, to the end of the turn: what holds where generation_config.json does not say."""
        defaults = {"max_new_tokens": 1024} if self.generation_config.max_length in (None, 20) else {}
        if self.config.vocab_size > END_OF_TURN_ID:
            defaults.update(eos_token_id=END_OF_TURN_ID, pad_token_id=PADDING_ID)
        for name, value in defaults.items():
            if getattr(self.generation_config, name, None) is None:
                setattr(self.generation_config, name, value)

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        """
        Loads a checkpoint (see [`PreTrainedModel.from_pretrained`]). A `quantization_config` that names no modules to
        leave alone leaves the encoder's stem, adapter, mergers and `lm_head` alone.
        """
        if kwargs.get("quantization_config") is not None:
            kwargs["quantization_config"] = spare_small_parts(kwargs["quantization_config"])
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded  # with `output_loading_info`
        model._set_generation_defaults()
        return loaded

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.embed_tokens

    def set_input_embeddings(self, value: nn.Module):
        self.language_model.embed_tokens = value

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module):
        self.lm_head = new_embeddings

    def get_decoder(self) -> nn.Module:
        return self.language_model

    def set_decoder(self, decoder: nn.Module):
        self.language_model = decoder

    @can_return_tuple
    def get_audio_features(
        self, audio_data: torch.Tensor, audio_data_seqlens: Union[torch.Tensor, list[int]], **kwargs
    ) -> MossAudioFeaturesOutput:
        r"""
        What the decoder hears of clips: encoder, adapter and mergers.

        Args:
            audio_data (`torch.Tensor` of shape `(clips, num_mel_bins, frames)`):
                Log-mel features as the processor returns them.
            audio_data_seqlens (`torch.Tensor` of shape `(clips,)`):
                Frames of each clip.
            kwargs:
                `output_hidden_states` and `output_attentions`, for the encoder's.

        Returns:
            [`MossAudioFeaturesOutput`]: all clips packed into one dimension, `ceil(frames / 8)` tokens a clip.
        """
        outputs = self.audio_encoder(audio_data, audio_data_seqlens, **{**kwargs, "return_dict": True})
        taps = outputs.deepstack_hidden_states
        return MossAudioFeaturesOutput(
            last_hidden_state=outputs.last_hidden_state,
            pooler_output=self.audio_adapter(outputs.last_hidden_state),
            deepstack_features=tuple(merge(tap) for merge, tap in zip(self.deepstack_audio_merger_list, taps)),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    @cache_by_either_name
    @can_return_tuple
    def forward(
        self,
        input_ids: Optional[torch.LongTensor] = None,
        attention_mask: Optional[torch.Tensor] = None,
        position_ids: Optional[torch.LongTensor] = None,
        cache: Optional[Cache] = None,
        inputs_embeds: Optional[torch.FloatTensor] = None,
        labels: Optional[torch.LongTensor] = None,
        use_cache: Optional[bool] = None,
        audio_data: Optional[torch.Tensor] = None,
        audio_data_seqlens: Optional[Union[torch.Tensor, list[int]]] = None,
        audio_input_mask: Optional[torch.BoolTensor] = None,
        logits_to_keep: Union[int, torch.Tensor] = 0,
        loss_chunk_size: Optional[int] = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MossAudioCausalLMOutputWithPast:
        r"""
        Args:
            input_ids (`torch.LongTensor` of shape `(batch, seq)`):
                Token ids; every audio token stands for 80 ms of a clip. Rows may hold no clip, one or several.
            attention_mask (`torch.Tensor` of shape `(batch, seq)`, *optional*):
                1 for tokens, 0 for padding.
            position_ids (`torch.LongTensor` of shape `(batch, seq)`, *optional*):
                Positions of the tokens.
            cache (`Cache`, *optional*):
                What was computed for the tokens before; `past_key_values` before Transformers 5.24.
            inputs_embeds (`torch.FloatTensor` of shape `(batch, seq, hidden_size)`, *optional*):
                Embeddings instead of `input_ids`; audio tokens are recognised by the embedding of `audio_token_id`
                where `audio_input_mask` is not given.
            labels (`torch.LongTensor` of shape `(batch, seq)`, *optional*):
                Token ids to predict, `config.ignore_index` (-100) where the loss leaves a token out. They are shifted
                inside. The loss is a mean over labels, or over `num_items_in_batch` where that is given.
            use_cache (`bool`, *optional*):
                Whether to return the cache.
            audio_data (`torch.Tensor` of shape `(clips, num_mel_bins, frames)`, *optional*):
                Log-mel features of the clips in the order in which they appear in the flattened `input_ids`; any
                floating dtype.
            audio_data_seqlens (`torch.Tensor` of shape `(clips,)`, *optional*):
                Frames of each clip.
            audio_input_mask (`torch.BoolTensor` of shape `(batch, seq)`, *optional*):
                Where the audio tokens are; `input_ids == config.audio_token_id` by default.
            logits_to_keep (`int` or `torch.Tensor`, *optional*, defaults to 0):
                Compute logits for the last so many positions (0: all), or for these positions.
            loss_chunk_size (`int`, *optional*):
                Compute the loss for so many labels at a time, forward and backward, so that the logits of a long batch
                are never held as a whole. Loss and gradients are the same; the output has `token_losses` and
                `token_hits` instead of `logits`.

        Raises:
            ValueError: where features, lengths, mask and audio tokens do not fit each other, or the prompt is longer
                than the decoder's positions.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Pass either `input_ids` or `inputs_embeds`.")
        for name in ("output_attentions", "output_hidden_states"):
            if kwargs.get(name) is None:
                kwargs[name] = getattr(self.config, name)
        audio = None
        if audio_data is not None:
            lengths = clip_lengths(audio_data, audio_data_seqlens, self.config.audio_config.num_mel_bins)
            audio_input_mask = self._audio_mask(input_ids, inputs_embeds, audio_input_mask)
            clips_per_row(audio_input_mask, lengths)
            self._check_positions(audio_input_mask, lengths)
        elif labels is not None and input_ids is not None and not torch.compiler.is_compiling():
            self._check_no_clip_is_missing(input_ids, cache)
        if inputs_embeds is None:
            # Before the clips, as `_silence` comes after it: all processes must gather sharded weights in one order.
            inputs_embeds = self.get_input_embeddings()(input_ids)
        if audio_data is not None:
            audio = self.get_audio_features(audio_data, lengths)
            audio_positions = audio_input_mask.flatten().nonzero().squeeze(1).to(inputs_embeds.device)
            embeds = audio.pooler_output.to(inputs_embeds.device, inputs_embeds.dtype)
            inputs_embeds = inputs_embeds.flatten(0, 1).index_copy(0, audio_positions, embeds).view_as(inputs_embeds)
            kwargs.update(deepstack_features=audio.deepstack_features, audio_positions=audio_positions)
        elif self._must_hear_silence(cache):
            inputs_embeds = inputs_embeds + self._silence().to(inputs_embeds.device, inputs_embeds.dtype)

        outputs = self.language_model(
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **{CACHE_NAME: cache},
            **kwargs,
        )
        if labels is not None and loss_chunk_size is not None:
            scores = self._loss_in_chunks(outputs.last_hidden_state, labels, loss_chunk_size, **kwargs)
        else:
            keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            scores = {"logits": self.lm_head(outputs.last_hidden_state[:, keep, :])}
            if labels is not None:
                scores["loss"] = self.loss_function(
                    logits=scores["logits"],
                    labels=labels,
                    vocab_size=self.config.vocab_size,
                    ignore_index=self.config.ignore_index,
                    num_items_in_batch=kwargs.get("num_items_in_batch"),
                    shift_labels=kwargs.get("shift_labels"),
                )
        return MossAudioCausalLMOutputWithPast(
            **scores,
            **{CACHE_NAME: getattr(outputs, CACHE_NAME)},
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            audio_hidden_states=None if audio is None else audio.pooler_output,
        )

    def _loss_in_chunks(
        self,
        hidden_states: torch.Tensor,
        labels: torch.LongTensor,
        chunk_size: int,
        shift_labels: Optional[torch.LongTensor] = None,
        num_items_in_batch: Optional[Union[int, torch.Tensor]] = None,
        **kwargs,
    ) -> dict[str, torch.Tensor]:
        """The loss that `loss_function` would give, and what each label cost; logits exist for one chunk at a time."""
        if chunk_size < 1:
            raise ValueError(f"`loss_chunk_size` {chunk_size} must be at least 1 label, or None for all at once.")
        ignored = self.config.ignore_index
        if shift_labels is None:
            shift_labels = nn.functional.pad(labels, (0, 1), value=ignored)[:, 1:]
        targets = shift_labels.flatten().to(hidden_states.device)
        positions = (targets != ignored).nonzero().squeeze(1)
        if not positions.numel():  # `lm_head` takes part all the same: other processes may wait for its gradients
            positions = positions.new_zeros(1)
        hidden_states = hidden_states.flatten(0, 1)

        # One call of the module, about nothing, brings its weights to where FSDP has them gathered until the backward pass.
        # How many chunks there are depends on the labels, which differ between processes.
        head, nothing = self.lm_head, self.lm_head(hidden_states[:0]).sum()
        plain = isinstance(head, nn.Linear)

        def score(states: torch.Tensor, chunk: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            logits = (nn.functional.linear(states, head.weight, head.bias) if plain else head(states)).float()
            losses = nn.functional.cross_entropy(logits, chunk, ignore_index=ignored, reduction="none")
            return losses, logits.detach().argmax(-1) == chunk

        losses, hits = zip(
            *(
                checkpoint(score, hidden_states[chunk], targets[chunk], use_reentrant=False)
                for chunk in positions.split(chunk_size)
            )
        )
        losses, hits = torch.cat(losses), torch.cat(hits)
        items = len(positions) if num_items_in_batch is None else num_items_in_batch
        empty = torch.zeros(targets.shape, device=losses.device)
        return {
            "loss": (losses.sum() + nothing) / (items.to(losses.device) if isinstance(items, torch.Tensor) else items),
            "token_losses": empty.index_copy(0, positions, losses.detach()).view_as(labels),
            "token_hits": empty.bool().index_copy(0, positions, hits).view_as(labels),
        }

    def _must_hear_silence(self, cache: Optional[Cache]) -> bool:
        """
        Whether a batch without clips goes through the encoder all the same. In training it gives the audio parts gradients
        of zero: other processes may wait for them, and where nothing else learns there would be no backward pass. Where
        weights are sharded, other processes may wait at any time for the encoder's.
        """
        if self.training and torch.is_grad_enabled():
            return True
        if not _is_distributed():
            return False
        prefill = not isinstance(cache, Cache) or not cache.get_seq_length()
        return prefill and _is_sharded(self.audio_encoder)

    def _silence(self) -> torch.Tensor:
        """Zero, by way of every audio parameter."""
        frames = FRAMES_PER_TOKEN
        features = self.get_audio_features(
            torch.zeros(1, self.config.audio_config.num_mel_bins, frames, device=self.device), [frames]
        )
        return 0 * sum(part.sum() for part in (features.pooler_output, *features.deepstack_features))

    def _audio_mask(
        self,
        input_ids: Optional[torch.LongTensor],
        inputs_embeds: Optional[torch.FloatTensor],
        audio_input_mask: Optional[torch.Tensor],
    ) -> torch.BoolTensor:
        """Where the audio tokens are, `(batch, seq)`."""
        shape = inputs_embeds.shape[:2] if input_ids is None else input_ids.shape
        if audio_input_mask is not None:
            if audio_input_mask.shape != shape:
                raise ValueError(
                    f"`audio_input_mask` has shape {tuple(audio_input_mask.shape)}, the tokens have {tuple(shape)}; "
                    "leave it out, or make it `input_ids == audio_token_id`."
                )
            return audio_input_mask.bool()
        if input_ids is not None:
            return input_ids == self.config.audio_token_id
        token = torch.tensor(self.config.audio_token_id, device=inputs_embeds.device)
        return (inputs_embeds == self.get_input_embeddings()(token).to(inputs_embeds)).all(-1)

    def _check_positions(self, audio_input_mask: torch.Tensor, lengths: list[int]):
        """Refuses a prompt that the decoder has no positions for, before anything is computed."""
        limit, prompt = decoder_positions(self.config.language_config), audio_input_mask.shape[1]
        if prompt <= limit:
            return
        spans = sum(span_tokens(frames_to_tokens(length)) for length in lengths)
        longest = longest_clip_seconds(limit, max(0, prompt - spans))
        raise ValueError(
            f"The prompt has {prompt} tokens; the decoder has {limit} positions. Its clips last "
            f"{sum(lengths) / 100:.0f} s, and about {longest} s is the longest that fits: cut the recording into pieces."
        )

    def save_pretrained(self, save_directory, *args, **kwargs):
        """
        Writes a folder that works like the one the model came from, also where this package is not installed: weights,
        configurations, and the code of all classes (see [`PreTrainedModel.save_pretrained`]).
        """
        for name, references in code_references().items():
            setattr(self.config, name, references)
        made_by_fsdp = type(self)
        if _is_sharded(self):
            self.__class__ = made_by_fsdp.__bases__[-1]  # whose file is the one to be copied, and named in config.json
        try:
            return super().save_pretrained(save_directory, *args, **kwargs)
        finally:
            self.__class__ = made_by_fsdp

    # Generation: clips are not rows, and each is encoded once, in the step that reads its tokens.

    def prepare_inputs_for_generation(
        self, input_ids: torch.LongTensor, inputs_embeds: Optional[torch.FloatTensor] = None, **kwargs
    ) -> dict[str, Any]:
        inputs = super().prepare_inputs_for_generation(input_ids, inputs_embeds=inputs_embeds, **kwargs)
        if inputs.get("audio_data") is None:
            return inputs
        step = inputs["inputs_embeds"] if inputs.get("input_ids") is None else inputs["input_ids"]
        total = step.shape[1] if inputs.get("input_ids") is None else input_ids.shape[1]
        if inputs["audio_input_mask"].shape[1] > total:
            raise ValueError("`prefill_chunk_size` does not work with clips, which are read as a whole; leave it out.")
        mask = _pad_mask(inputs["audio_input_mask"], total)
        cached = total - step.shape[1]
        if cached:
            inputs.update(_clips_after(cached, mask, inputs["audio_data"], inputs["audio_data_seqlens"]))
        inputs["audio_input_mask"] = mask[:, cached:] if inputs["audio_data"] is not None else None
        return inputs

    def _update_model_kwargs_for_generation(
        self, outputs: ModelOutput, model_kwargs: dict[str, Any], *args, **kwargs
    ) -> dict[str, Any]:
        model_kwargs = super()._update_model_kwargs_for_generation(outputs, model_kwargs, *args, **kwargs)
        if model_kwargs.get("use_cache", True):  # the cache holds what was heard
            for name in _AUDIO_INPUTS:
                model_kwargs.pop(name, None)
        return model_kwargs

    def _expand_inputs_for_generation(
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: Optional[torch.LongTensor] = None,
        **model_kwargs,
    ) -> tuple[torch.LongTensor, dict[str, Any]]:
        """Repeats every row `expand_size` times, for beams and several answers, and with each row its clips."""
        audio = {name: model_kwargs.pop(name, None) for name in _AUDIO_INPUTS}
        if audio["audio_data"] is not None:
            num_mel_bins = self.config.audio_config.num_mel_bins
            lengths = clip_lengths(audio["audio_data"], audio["audio_data_seqlens"], num_mel_bins)
            embeds = model_kwargs.get("inputs_embeds")
            mask = audio["audio_input_mask"]
            if mask is not None and embeds is None:  # an assistant gets the mask of the prompt that it continues
                mask = _pad_mask(mask, input_ids.shape[1])
            mask = self._audio_mask(None if embeds is not None else input_ids, embeds, mask)
            per_row = clips_per_row(mask, lengths)
        elif input_ids is not None and model_kwargs.get("inputs_embeds") is None:
            self._check_no_clip_is_missing(input_ids, model_kwargs.get(CACHE_NAME))
        input_ids, model_kwargs = super()._expand_inputs_for_generation(
            expand_size=expand_size, is_encoder_decoder=is_encoder_decoder, input_ids=input_ids, **model_kwargs
        )
        if audio["audio_data"] is None:
            return input_ids, model_kwargs
        if expand_size > 1:
            rows = torch.arange(len(lengths)).split(per_row)
            clips = torch.cat([row for row in rows for _ in range(expand_size)]).to(audio["audio_data"].device)
            audio["audio_data"] = audio["audio_data"][clips]
            lengths = [lengths[clip] for clip in clips.tolist()]
            mask = mask.repeat_interleave(expand_size, dim=0)
        audio["audio_data_seqlens"] = torch.tensor(lengths)
        audio["audio_input_mask"] = mask
        return input_ids, {**model_kwargs, **audio}

    # `thinking_budget` and `thinking_token_ids` are parameters of generation like any other: arguments of `generate`,
    # or entries of a generation config.

    def _prepare_generation_config(
        self, generation_config: Optional[GenerationConfig], *args, **kwargs
    ) -> tuple[GenerationConfig, dict[str, Any]]:
        given = {name: kwargs.pop(name) for name in ("thinking_budget", "thinking_token_ids") if name in kwargs}
        generation_config, model_kwargs = super()._prepare_generation_config(generation_config, *args, **kwargs)
        for name, value in given.items():
            setattr(generation_config, name, value)
        return generation_config, model_kwargs

    def _get_logits_processor(
        self, generation_config: GenerationConfig, input_ids_seq_length: Optional[int] = None, *args, **kwargs
    ) -> LogitsProcessorList:
        processors = super()._get_logits_processor(generation_config, input_ids_seq_length, *args, **kwargs)
        budget = getattr(generation_config, "thinking_budget", None)
        if budget is None:
            return processors
        token_ids = getattr(generation_config, "thinking_token_ids", None)
        if token_ids is None and self.config.vocab_size > END_OF_TURN_ID:
            token_ids = RELEASED_THINKING_TOKEN_IDS
        if token_ids is None:
            raise ValueError(
                f"`thinking_budget={budget}` needs to know the tokens around the thinking, and this model's vocabulary of "
                f"{self.config.vocab_size} is not that of the released checkpoints; pass "
                "`thinking_token_ids=processor.thinking_token_ids`, too."
            )
        processors.append(ThinkingBudgetLogitsProcessor(budget, token_ids, input_ids_seq_length))
        return processors

    def _check_no_clip_is_missing(self, input_ids: torch.LongTensor, cache: Optional[Cache]):
        cached = int(cache.get_seq_length()) if isinstance(cache, Cache) else 0
        missing = int((input_ids[:, cached:] == self.config.audio_token_id).sum())
        if missing:
            raise ValueError(
                f"`input_ids` holds {missing} audio tokens, but there is no `audio_data`; pass all that the processor "
                "returns."
            )


def _is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _is_sharded(module: nn.Module) -> bool:
    """Whether FSDP gathers the module's weights when it is called: FSDP2 makes it a class of its own, FSDP wraps it."""
    if not _is_distributed():
        return False
    from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel

    return isinstance(module, (FSDPModule, FullyShardedDataParallel))


_AUDIO_INPUTS = ("audio_data", "audio_data_seqlens", "audio_input_mask")


def clips_per_row(audio_input_mask: torch.Tensor, lengths: list[int]) -> list[int]:
    """
    How many clips of `lengths` frames each row holds, by its audio tokens.

    Raises:
        ValueError: where a row's audio tokens are not those of whole clips, or clips are left over.
    """
    tokens = [frames_to_tokens(length) for length in lengths]
    counts, clip = [], 0
    for row, expected in enumerate(audio_input_mask.sum(1).tolist()):
        first, found = clip, 0
        while found < expected and clip < len(tokens):
            found += tokens[clip]
            clip += 1
        if found != expected:
            raise ValueError(
                f"Row {row} of the batch has {expected} audio tokens; the clips from clip {first} on have "
                f"{tokens[first:clip] or 'none'}. Clips must come in the order of their tokens, ceil(frames / 8) tokens "
                "a clip, as the processor returns them."
            )
        counts.append(clip - first)
    if clip < len(tokens):
        raise ValueError(
            f"`audio_data` has {len(tokens)} clips, but the audio tokens of the batch are those of the first {clip}."
        )
    return counts


def _pad_mask(audio_input_mask: torch.Tensor, total: int) -> torch.Tensor:
    """The mask of a prompt for `total` tokens: what was generated since holds no clip."""
    return nn.functional.pad(audio_input_mask, (0, max(0, total - audio_input_mask.shape[1])))


def _clips_after(
    cached: int, audio_input_mask: torch.Tensor, audio_data: torch.Tensor, audio_data_seqlens: torch.Tensor
) -> dict[str, Optional[torch.Tensor]]:
    """The clips whose tokens come after the first `cached` positions: those before are in the cache already."""
    lengths = audio_data_seqlens.tolist()
    per_row, keep, clip = clips_per_row(audio_input_mask, lengths), [], 0
    for row, heard in enumerate(audio_input_mask[:, :cached].sum(1).tolist()):
        for _ in range(per_row[row]):
            tokens = frames_to_tokens(lengths[clip])
            if 0 < heard < tokens:
                raise ValueError(
                    f"The cache ends inside clip {clip}, after {heard} of its {tokens} tokens; it must hold whole clips."
                )
            if heard <= 0:
                keep.append(clip)
            heard -= tokens
            clip += 1
    if not keep:
        return {"audio_data": None, "audio_data_seqlens": None}
    index = torch.tensor(keep, device=audio_data.device)
    return {"audio_data": audio_data[index], "audio_data_seqlens": audio_data_seqlens[torch.tensor(keep)]}


def code_references() -> dict[str, dict[str, Any]]:
    """
    What config.json must name for `trust_remote_code=True` to find the classes in the files beside it: `auto_map` and
    `custom_pipelines`.
    """
    # Transformers brings along the files that it finds imported in a model's file: here stand those that are missing.
    from .audio_moss_audio import load_audio  # noqa: F401
    from .long_moss_audio import cut_audio  # noqa: F401
    from .pipeline_moss_audio import AudioTextToTextPipeline
    from .processing_moss_audio import MossAudioProcessor
    from .tasks_moss_audio import TASKS  # noqa: F401
    from .transcripts_moss_audio import Transcript  # noqa: F401

    def name(cls: type) -> str:
        return f"{cls.__module__.rpartition('.')[2]}.{cls.__name__}"

    models = ("AutoModel", "AutoModelForCausalLM", "AutoModelForMultimodalLM")
    pipeline = {"impl": name(AudioTextToTextPipeline), "pt": ["AutoModel"], "type": "multimodal"}
    return {
        "auto_map": {
            "AutoConfig": name(MossAudioConfig),
            **{auto: name(MossAudioModel) for auto in models},
            "AutoProcessor": name(MossAudioProcessor),
        },
        "custom_pipelines": {"audio-text-to-text": pipeline},
    }


MossAudioModel.register_for_auto_class("AutoModel")

__all__ = ["MossAudioEncoder", "MossAudioModel", "MossAudioPreTrainedModel"]
