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
"""Configuration of MOSS-Audio: the audio encoder's, and the whole model's around a Qwen3 decoder's.

Lengths (samples, frames, tokens, seconds) are converted here and nowhere else, so that processor and model agree.
"""

import bisect
import math
import sys
from typing import Any, Optional, Union

import transformers
from transformers import PretrainedConfig, Qwen3Config


try:
    import transformers.processing_utils
except (ImportError, OSError, RuntimeError, AttributeError):
    # Version 5 of Transformers imports torchaudio wherever it is installed, with every model and processor, and fails
    # with one that was built against another torch or CUDA. What cannot be imported is as good as absent: None says so.
    try:
        import torchaudio  # noqa: F401
    except (ImportError, OSError, RuntimeError, AttributeError):
        sys.modules["torchaudio"] = None
        getattr(transformers.utils.import_utils.is_torchaudio_available, "cache_clear", lambda: None)()
    import transformers.processing_utils


FRAMES_PER_TOKEN = 8  # three convolutions of stride 2
TOKENS_PER_SECOND = 12.5  # 16000 samples / 160 samples a frame / 8 frames a token
TIME_MARKER_SECONDS = 2  # a marker stands after every 25 audio tokens


def frames_to_tokens(frames: int) -> int:
    """Number of audio tokens of a clip of `frames` log-mel frames (10 ms each): `ceil(frames / 8)`."""
    return -(-frames // FRAMES_PER_TOKEN)


def samples_to_frames(samples: int, hop_length: int = 160) -> int:
    """Number of log-mel frames of a clip of `samples` samples: `samples // hop_length`, nothing padded."""
    return samples // hop_length


def marker_seconds(tokens: int) -> range:
    """The elapsed whole seconds that are written into a clip of `tokens` audio tokens: 2, 4, … up to its end."""
    return range(TIME_MARKER_SECONDS, int(tokens / TOKENS_PER_SECOND) + 1, TIME_MARKER_SECONDS)


def span_tokens(tokens: int, enable_time_marker: bool = True) -> int:
    """Prompt tokens that a clip of `tokens` audio tokens takes up: they, a token per marker digit, and the two ends."""
    markers = marker_seconds(tokens) if enable_time_marker else ()
    return tokens + sum(len(str(second)) for second in markers) + 2


def longest_clip_seconds(positions: int, text_tokens: int = 0, enable_time_marker: bool = True) -> int:
    """Whole seconds of the longest clip that fits a prompt of `positions` tokens beside `text_tokens` others."""

    def fits(seconds: int) -> bool:
        return text_tokens + span_tokens(math.ceil(seconds * TOKENS_PER_SECOND), enable_time_marker) <= positions

    candidates = range(1, math.ceil(positions / TOKENS_PER_SECOND) + 1)
    return bisect.bisect_left(candidates, True, key=lambda seconds: not fits(seconds))


def decoder_positions(language_config: Union[Qwen3Config, dict[str, Any]]) -> int:
    """How many positions a decoder has, those of a scaled rope (YaRN, say) included."""
    values = language_config if isinstance(language_config, dict) else language_config.to_dict()
    rope = values.get("rope_scaling") or values.get("rope_parameters") or {}
    positions = values["max_position_embeddings"]
    return max(positions, int(rope.get("original_max_position_embeddings", 0) * rope.get("factor", 1)))


def portable_rope(language_config: dict[str, Any]) -> dict[str, Any]:
    """A decoder's config with its rope in the keys of both major versions of Transformers.

    Version 5 reads and writes `rope_parameters`; version 4 reads and writes `rope_theta` and `rope_scaling`, and falls
    back to theta 10000 in silence where they are missing. The keys of version 4 win where both are there, because
    version 4 carries `rope_parameters` along without reading it.
    """
    rope = dict(language_config.get("rope_parameters") or {})
    rope.update(language_config.get("rope_scaling") or {})
    theta = language_config.get("rope_theta", rope.get("rope_theta"))
    if theta is None:
        return language_config
    rope.update(rope_theta=theta, rope_type=rope.get("rope_type", "default"))
    scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
    return {
        **language_config,
        "rope_theta": theta,
        "rope_scaling": scaling if rope["rope_type"] != "default" else None,
        "rope_parameters": rope,
    }


class MossAudioEncoderConfig(PretrainedConfig):
    r"""
    Configuration of [`MossAudioEncoder`]: a convolutional stem and Whisper-like layers over windows of `2 * n_window`
    frames that do not see each other. The defaults are those of the released checkpoints.

    Args:
        num_mel_bins (`int`, *optional*, defaults to 128):
            Number of log-mel bins of the input features.
        d_model (`int`, *optional*, defaults to 1280):
            Width of the layers.
        output_dim (`int`, *optional*, defaults to `d_model`):
            Width of the output. Where it differs from `d_model`, the output goes through a projection `out_proj`.
        encoder_layers (`int`, *optional*, defaults to 32):
            Number of layers.
        encoder_attention_heads (`int`, *optional*, defaults to 20):
            Number of attention heads.
        encoder_ffn_dim (`int`, *optional*, defaults to 5120):
            Width of the feed-forward networks.
        activation_function (`str`, *optional*, defaults to `"gelu"`):
            Activation of the feed-forward networks; the stem's is always GELU.
        dropout (`float`, *optional*, defaults to 0.1):
            Dropout on both residual branches of a layer.
        attention_dropout (`float`, *optional*, defaults to 0.1):
            Dropout on the attention weights.
        layer_norm_eps (`float`, *optional*, defaults to 1e-5):
            Epsilon of the layer norms.
        downsample_hidden_size (`int`, *optional*, defaults to 480):
            Channels of the stem's three convolutions.
        n_window (`int`, *optional*, defaults to 200):
            Half the length of a window in frames. `2 * n_window` must be a multiple of 8.
        conv_chunksize (`int`, *optional*, defaults to 64):
            Number of windows that go through the layers at once: it bounds the memory, not the result.
        deepstack_encoder_layer_indexes (`list[int]`, *optional*, defaults to `[8, 16, 24]`):
            The taps: layers (counted from 0) whose outputs go to the decoder besides the last one's.
        initializer_range (`float`, *optional*, defaults to 0.02):
            Standard deviation of the initial weights.
        kwargs:
            Further keys of released checkpoints are kept and have no effect.

    Raises:
        ValueError: where a tap is no layer, a window is no multiple of 8 frames, or the heads do not divide the width.
    """

    model_type = "moss_audio_encoder"
    base_config_key = "audio_config"
    attribute_map = {
        "hidden_size": "d_model",
        "num_hidden_layers": "encoder_layers",
        "num_attention_heads": "encoder_attention_heads",
        "intermediate_size": "encoder_ffn_dim",
        "hidden_act": "activation_function",
    }

    def __init__(
        self,
        num_mel_bins: int = 128,
        d_model: int = 1280,
        output_dim: Optional[int] = None,
        encoder_layers: int = 32,
        encoder_attention_heads: int = 20,
        encoder_ffn_dim: int = 5120,
        activation_function: str = "gelu",
        dropout: float = 0.1,
        attention_dropout: float = 0.1,
        layer_norm_eps: float = 1e-5,
        downsample_hidden_size: int = 480,
        n_window: int = 200,
        conv_chunksize: int = 64,
        deepstack_encoder_layer_indexes: Optional[list[int]] = None,
        initializer_range: float = 0.02,
        **kwargs,
    ):
        # Released files fix this to "eager"; which kernel computes the attention is the caller's choice.
        kwargs.pop("_attn_implementation", None)
        self.num_mel_bins = num_mel_bins
        self.d_model = kwargs.pop("hidden_size", d_model)
        self.output_dim = self.d_model if output_dim is None else output_dim
        self.encoder_layers = kwargs.pop("num_hidden_layers", encoder_layers)
        self.encoder_attention_heads = kwargs.pop("num_attention_heads", encoder_attention_heads)
        self.encoder_ffn_dim = kwargs.pop("intermediate_size", encoder_ffn_dim)
        self.activation_function = kwargs.pop("hidden_act", activation_function)
        self.dropout = dropout
        self.attention_dropout = attention_dropout
        self.layer_norm_eps = layer_norm_eps
        self.downsample_hidden_size = downsample_hidden_size
        self.n_window = n_window
        self.conv_chunksize = conv_chunksize
        self.deepstack_encoder_layer_indexes = list(
            [8, 16, 24] if deepstack_encoder_layer_indexes is None else deepstack_encoder_layer_indexes
        )
        self.initializer_range = initializer_range
        self._check()
        super().__init__(**kwargs)

    def _check(self):
        beyond = [tap for tap in self.deepstack_encoder_layer_indexes if not 0 <= tap < self.encoder_layers]
        if beyond:
            raise ValueError(
                f"`deepstack_encoder_layer_indexes` {self.deepstack_encoder_layer_indexes} names layers {beyond}; the "
                f"encoder has `encoder_layers` {self.encoder_layers}, counted from 0 to {self.encoder_layers - 1}."
            )
        if self.n_window <= 0 or self.window_frames % FRAMES_PER_TOKEN:
            raise ValueError(
                f"`n_window` {self.n_window} makes windows of {self.window_frames} frames; they must be a positive "
                f"multiple of {FRAMES_PER_TOKEN}, so choose a multiple of {FRAMES_PER_TOKEN // 2} (released: 200)."
            )
        if self.conv_chunksize < 1:
            raise ValueError(f"`conv_chunksize` {self.conv_chunksize} must be at least 1 window (released: 64).")
        if self.d_model % self.encoder_attention_heads:
            raise ValueError(
                f"`d_model` {self.d_model} is no multiple of `encoder_attention_heads` {self.encoder_attention_heads}."
            )

    @property
    def window_frames(self) -> int:
        """Length of a window in frames."""
        return 2 * self.n_window


def _decoder_size(name: str, doc: str) -> property:
    """A size of the decoder as the whole model's: read there and set there."""
    return property(
        lambda self: getattr(self.language_config, name),
        lambda self, value: setattr(self.language_config, name, value),
        doc=doc,
    )


class MossAudioConfig(PretrainedConfig):
    r"""
    Configuration of [`MossAudioModel`]. The defaults are those of the released 8B checkpoints.

    Args:
        audio_config (`MossAudioEncoderConfig` or `dict`, *optional*):
            The audio encoder.
        language_config (`Qwen3Config` or `dict`, *optional*):
            The decoder.
        adapter_hidden_size (`int`, *optional*, defaults to 8192):
            Inner width of the adapter and of the DeepStack mergers.
        deepstack_num_inject_layers (`int`, *optional*):
            How many taps are used: the first ones of `audio_config.deepstack_encoder_layer_indexes`. All of them by
            default.
        audio_token_id (`int`, *optional*, defaults to 151654):
            The token that stands for 80 ms of sound.
        audio_start_id (`int`, *optional*, defaults to 151669):
            The token before a clip.
        audio_end_id (`int`, *optional*, defaults to 151670):
            The token after a clip.
        ignore_index (`int`, *optional*, defaults to -100):
            The label that the loss leaves out.
        tie_word_embeddings (`bool`, *optional*):
            Whether the output embeddings are the input's. The decoder's value by default.
        kwargs:
            Further keys of released checkpoints are kept.

    Raises:
        ValueError: where more taps are injected than the encoder has or the decoder has layers for.

    ```python
    >>> from moss_audio import MossAudioConfig, MossAudioModel

    >>> config = MossAudioConfig()
    >>> config.audio_config.window_frames, config.language_config.hidden_size
    (400, 4096)
    ```
    """

    model_type = "moss_audio"
    sub_configs = {"audio_config": MossAudioEncoderConfig, "language_config": Qwen3Config}
    # The cache (by its name before Transformers 5.24, too) and the packed features are no rows, and what the loss was made
    # of is no prediction.
    keys_to_ignore_at_inference = ["cache", "past_key_values", "audio_hidden_states", "token_losses", "token_hits"]

    def __init__(
        self,
        audio_config: Optional[Union[MossAudioEncoderConfig, dict[str, Any]]] = None,
        language_config: Optional[Union[Qwen3Config, dict[str, Any]]] = None,
        adapter_hidden_size: int = 8192,
        deepstack_num_inject_layers: Optional[int] = None,
        audio_token_id: int = 151654,
        audio_start_id: int = 151669,
        audio_end_id: int = 151670,
        ignore_index: int = -100,
        tie_word_embeddings: Optional[bool] = None,
        **kwargs,
    ):
        if audio_config is None:
            audio_config = {}
        if isinstance(audio_config, dict):
            audio_config = MossAudioEncoderConfig(**audio_config)
        if language_config is None:
            language_config = RELEASED_8B_DECODER
        if isinstance(language_config, dict):
            language_config = Qwen3Config(**portable_rope(language_config))
        # The decoder's own value is the one that counts: Transformers 4 reads it there, Transformers 5 at the top.
        if tie_word_embeddings is None:
            tie_word_embeddings = language_config.tie_word_embeddings
        language_config.tie_word_embeddings = tie_word_embeddings

        self.audio_config = audio_config
        self.language_config = language_config
        self.adapter_hidden_size = adapter_hidden_size
        taps = len(audio_config.deepstack_encoder_layer_indexes)
        self.deepstack_num_inject_layers = taps if deepstack_num_inject_layers is None else deepstack_num_inject_layers
        if not 0 <= self.deepstack_num_inject_layers <= min(taps, language_config.num_hidden_layers):
            raise ValueError(
                f"`deepstack_num_inject_layers` {self.deepstack_num_inject_layers} must be between 0 and the number of "
                f"taps ({taps}) and of decoder layers ({language_config.num_hidden_layers})."
            )
        self.audio_token_id = audio_token_id
        self.audio_start_id = audio_start_id
        self.audio_end_id = audio_end_id
        self.ignore_index = ignore_index
        for name in _DECODER_SIZES:  # released files repeat them at the top; the decoder's own are the ones that count
            kwargs.pop(name, None)
        super().__init__(tie_word_embeddings=tie_word_embeddings, **kwargs)

    def get_text_config(self, decoder: Optional[bool] = None, encoder: Optional[bool] = None) -> Qwen3Config:
        """The decoder's configuration, whichever end is asked for: text goes in and comes out there."""
        return self.language_config

    vocab_size = _decoder_size("vocab_size", "Number of rows of the decoder's embeddings.")
    hidden_size = _decoder_size("hidden_size", "Width of the decoder.")
    num_hidden_layers = _decoder_size("num_hidden_layers", "Number of layers of the decoder.")

    def to_dict(self) -> dict[str, Any]:
        return self._complete(super().to_dict())

    def to_diff_dict(self) -> dict[str, Any]:
        output = super().to_diff_dict()
        for name in self.sub_configs:
            output[name] = getattr(self, name).to_diff_dict()
            for key in ("transformers_version", "_pre_quantization_dtype"):  # of no use there, and the latter no JSON
                output[name].pop(key, None)
        return self._complete(output)

    def _complete(self, output: dict[str, Any]) -> dict[str, Any]:
        """What either major version of Transformers needs to read from a file that the other one wrote."""
        language = {**output["language_config"], "tie_word_embeddings": self.tie_word_embeddings}
        output["language_config"] = portable_rope({**language, **self._current_rope()})
        output["tie_word_embeddings"] = self.tie_word_embeddings
        output.update({name: getattr(self, name) for name in _DECODER_SIZES})
        return output

    def _current_rope(self) -> dict[str, Any]:
        """The rope that the installed Transformers uses, in its own keys: it may have been changed since loading."""
        if "rope_theta" in self.language_config.__dict__:  # version 4; version 5 has no such attribute
            names = ("rope_theta", "rope_scaling")
            return {**{name: getattr(self.language_config, name) for name in names}, "rope_parameters": None}
        rope = self.language_config.rope_parameters
        theta = rope.get("rope_theta", self.language_config.default_theta)
        return {"rope_theta": theta, "rope_scaling": None, "rope_parameters": rope}


_DECODER_SIZES = ("vocab_size", "hidden_size", "num_hidden_layers")

RELEASED_8B_DECODER = {
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40960,
    "rope_theta": 1e6,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}

# A saved folder brings the code that reads it: Transformers copies the file of a class that has an auto class.
MossAudioConfig.register_for_auto_class()

__all__ = ["MossAudioConfig", "MossAudioEncoderConfig"]
