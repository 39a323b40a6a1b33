"""The configurations: released values, files of either major version of Transformers, refusals."""

import copy
import json

import pytest
import torch
from transformers import AutoConfig, Qwen3Config

from moss_audio import MossAudioConfig, MossAudioEncoderConfig
from moss_audio.configuration_moss_audio import (
    frames_to_tokens,
    longest_clip_seconds,
    marker_seconds,
    samples_to_frames,
    span_tokens,
)
from tests.conftest import DATA


def rope_theta(config: Qwen3Config) -> float:
    return config.rope_theta if hasattr(config, "rope_theta") else config.rope_parameters["rope_theta"]


def test_defaults_are_those_of_the_released_8b():
    config = MossAudioConfig()
    encoder, decoder = config.audio_config, config.language_config
    assert (encoder.num_mel_bins, encoder.d_model, encoder.output_dim, encoder.encoder_layers) == (128, 1280, 1280, 32)
    assert (encoder.encoder_attention_heads, encoder.encoder_ffn_dim, encoder.downsample_hidden_size) == (
        20,
        5120,
        480,
    )
    assert (encoder.n_window, encoder.window_frames, encoder.conv_chunksize) == (200, 400, 64)
    assert encoder.deepstack_encoder_layer_indexes == [8, 16, 24] and config.deepstack_num_inject_layers == 3
    assert (encoder.dropout, encoder.attention_dropout, encoder.layer_norm_eps) == (0.1, 0.1, 1e-5)
    assert (decoder.hidden_size, decoder.intermediate_size, decoder.num_hidden_layers) == (4096, 12288, 36)
    assert (decoder.num_attention_heads, decoder.num_key_value_heads, decoder.head_dim) == (32, 8, 128)
    assert (decoder.vocab_size, decoder.max_position_embeddings, rope_theta(decoder)) == (151936, 40960, 1e6)
    assert (config.audio_token_id, config.audio_start_id, config.audio_end_id) == (151654, 151669, 151670)
    assert (config.adapter_hidden_size, config.ignore_index) == (8192, -100)
    assert config.tie_word_embeddings is False and decoder.tie_word_embeddings is False


def test_sizes_are_the_decoders():
    config = MossAudioConfig(language_config={"vocab_size": 320, "hidden_size": 64, "num_hidden_layers": 5})
    assert (config.vocab_size, config.hidden_size, config.num_hidden_layers) == (320, 64, 5)
    for end in ({}, {"decoder": True}, {"encoder": True}):
        assert config.get_text_config(**end) is config.language_config


def test_a_released_file_loads_and_keeps_its_unknown_keys(tmp_path):
    released = json.loads((DATA / "golden" / "config.json").read_text())
    released.update(a_new_key={"nested": [1, 2]})
    released["audio_config"]["another_new_key"] = 3
    (tmp_path / "config.json").write_text(json.dumps(released))
    config = AutoConfig.from_pretrained(tmp_path)
    assert type(config) is MossAudioConfig
    config.save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert saved["a_new_key"] == {"nested": [1, 2]} and saved["audio_config"]["another_new_key"] == 3
    # These fix a choice of the caller's, name the writer, or are written anew.
    special = {"_attn_implementation", "transformers_version", "auto_map"}
    for name, value in released.items():
        if name in ("audio_config", "language_config"):
            assert all(saved[name][key] == value[key] for key in value if key not in special), name
        elif name not in special:
            assert saved[name] == value, name


@pytest.mark.parametrize("missing", ["deepstack_num_inject_layers", "adapter_hidden_size", "ignore_index"])
def test_missing_keys_have_the_released_defaults(missing):
    released = json.loads((DATA / "golden" / "config.json").read_text())
    del released[missing]
    expected = {"deepstack_num_inject_layers": 3, "adapter_hidden_size": 8192, "ignore_index": -100}
    assert getattr(MossAudioConfig(**released), missing) == expected[missing]


def test_the_files_attention_implementation_does_not_bind():
    released = json.loads((DATA / "golden" / "config.json").read_text())
    assert released["audio_config"]["_attn_implementation"] == "eager"
    assert MossAudioConfig(**released).audio_config._attn_implementation is None


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
ROPES = {
    "version 4": ({"rope_theta": 5e5}, 5e5, None),
    "version 4 with scaling": ({"rope_theta": 5e5, "rope_scaling": YARN}, 5e5, YARN),
    "version 5": ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, 5e5, None),
    "version 5 with scaling": ({"rope_parameters": {**YARN, "rope_theta": 5e5}}, 5e5, YARN),
}


@pytest.mark.parametrize("written, theta, scaling", ROPES.values(), ids=ROPES)
def test_rope_is_read_from_and_written_for_either_version(written, theta, scaling, tmp_path):
    config = MossAudioConfig(language_config={"num_hidden_layers": 4, **copy.deepcopy(written)})
    assert rope_theta(config.language_config) == theta
    config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())["language_config"]
    assert saved["rope_theta"] == theta
    assert (saved["rope_scaling"] or {}).items() >= (scaling or {}).items()
    assert saved["rope_parameters"].items() >= {"rope_theta": theta, "rope_type": "default", **(scaling or {})}.items()
    again = MossAudioConfig.from_pretrained(tmp_path)
    assert again.to_dict()["language_config"] == config.to_dict()["language_config"]


def test_a_rope_changed_after_loading_is_what_is_saved(tmp_path):
    config = MossAudioConfig(language_config={"num_hidden_layers": 4, "rope_theta": 1e6})
    if hasattr(config.language_config, "rope_theta"):
        config.language_config.rope_theta = 2e6
    else:
        config.language_config.rope_parameters["rope_theta"] = 2e6
    config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())["language_config"]
    assert saved["rope_theta"] == saved["rope_parameters"]["rope_theta"] == 2e6


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("where", ["top", "decoder", "both"])
def test_ties_are_one_value_in_both_places(tied, where, tmp_path):
    top = {"tie_word_embeddings": tied} if where != "decoder" else {}
    decoder = {"tie_word_embeddings": tied} if where != "top" else {}
    config = MossAudioConfig(language_config={"num_hidden_layers": 4, **decoder}, **top)
    assert config.tie_word_embeddings is config.language_config.tie_word_embeddings is tied
    config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["tie_word_embeddings"] is saved["language_config"]["tie_word_embeddings"] is tied


def test_round_trips():
    config = MossAudioConfig(**json.loads((DATA / "golden" / "config.json").read_text()))
    assert MossAudioConfig.from_dict(json.loads(config.to_json_string())).to_dict() == config.to_dict()
    assert MossAudioConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()
    assert copy.deepcopy(config).to_dict() == config.to_dict()
    config.dtype = torch.bfloat16
    assert json.loads(config.to_json_string())["dtype"] == "bfloat16"


def test_sub_configs_are_config_objects_or_dicts():
    encoder, decoder = MossAudioEncoderConfig(d_model=64, encoder_attention_heads=4), Qwen3Config(num_hidden_layers=4)
    config = MossAudioConfig(audio_config=encoder, language_config=decoder)
    assert config.audio_config is encoder and config.language_config is decoder
    assert encoder.output_dim == 64 and encoder.hidden_size == 64 and encoder.num_hidden_layers == 32


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"deepstack_encoder_layer_indexes": [8, 32]}, r"layers \[32\].*counted from 0 to 31"),
        ({"deepstack_encoder_layer_indexes": [-1]}, r"layers \[-1\]"),
        ({"n_window": 201}, r"`n_window` 201 makes windows of 402 frames.*multiple of 4 \(released: 200\)"),
        ({"n_window": 0}, "`n_window` 0"),
        ({"conv_chunksize": 0}, "`conv_chunksize` 0 must be at least 1"),
        ({"encoder_attention_heads": 7}, "`d_model` 1280 is no multiple of `encoder_attention_heads` 7"),
    ],
)
def test_encoder_configs_that_cannot_work_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        MossAudioEncoderConfig(**arguments)


@pytest.mark.parametrize("taps", [-1, 4])
def test_more_taps_than_there_are_cannot_be_injected(taps):
    with pytest.raises(ValueError, match=f"`deepstack_num_inject_layers` {taps} must be between 0 and"):
        MossAudioConfig(deepstack_num_inject_layers=taps)


def test_lengths():
    assert [samples_to_frames(n) for n in (400, 31999, 32000, 164777)] == [2, 199, 200, 1029]
    assert [frames_to_tokens(n) for n in (1, 8, 9, 199, 200, 400, 1029)] == [1, 1, 2, 25, 25, 50, 129]
    assert (
        list(marker_seconds(24)) == []
        and list(marker_seconds(25)) == [2]
        and list(marker_seconds(129)) == [2, 4, 6, 8, 10]
    )
    assert span_tokens(129) == 129 + 4 + 2 + 2 and span_tokens(129, enable_time_marker=False) == 131


@pytest.mark.parametrize("markers", [True, False])
@pytest.mark.parametrize("positions, text", [(2048, 30), (40960, 100), (10, 9)])
def test_the_longest_clip_is_the_longest(positions, text, markers):
    seconds = longest_clip_seconds(positions, text, markers)
    used = [text + span_tokens(frames_to_tokens(100 * s), markers) for s in (seconds, seconds + 1)]
    assert used[1] > positions and (used[0] <= positions or seconds == 0)
