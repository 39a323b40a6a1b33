"""The model against the reference's numbers, in batches, and against inputs that do not fit."""

import json
import logging

import pytest
import torch
from safetensors.torch import load_file, save_file

from moss_audio import MossAudioConfig, MossAudioModel
from moss_audio.modeling_moss_audio import cut_into_windows
from tests.conftest import AUDIO_TOKEN_ID, DATA, rows_alone


CASES = [
    "batch_of_two",
    "exact_chunks_8s",
    "left_padded",
    "one_clip_9s",
    "short_beside_long",
    "short_clip_309_frames",
    "short_tail_3s",
    "text_only",
    "two_clips",
]
EXACT = {"atol": 1e-5, "rtol": 0}


def audio_of(case: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: case[name] for name in ("audio_data", "audio_data_seqlens") if name in case}


def inputs_of(case: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {**{name: case[name] for name in ("input_ids", "attention_mask")}, **audio_of(case)}


def test_all_golden_cases_are_here(golden):
    assert sorted(golden) == CASES


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_golden_logits_and_loss(name, attention, golden, tiny_folder):
    model = MossAudioModel.from_pretrained(tiny_folder, attn_implementation=attention)
    case = golden[name]
    outputs = model.eval()(**inputs_of(case), labels=case["labels"])
    torch.testing.assert_close(outputs.logits[:, -case["logits"].shape[1] :], case["logits"], **EXACT)
    torch.testing.assert_close(outputs.loss[None], case["loss"], **EXACT)


@pytest.mark.parametrize("name", [name for name in CASES if name not in ("text_only", "left_padded")])
@torch.no_grad()
def test_golden_encoder_adapter_and_mergers(name, golden, model):
    """As close as torch takes float32 to be: some of these values are near ten, where 1e-5 is but a few roundings."""
    case = golden[name]
    encoded = model.audio_encoder(**audio_of(case))
    features = model.get_audio_features(**audio_of(case))
    torch.testing.assert_close(encoded.last_hidden_state, case["encoder_last_hidden_state"])
    torch.testing.assert_close(features.last_hidden_state, case["encoder_last_hidden_state"])
    torch.testing.assert_close(features.pooler_output, case["audio_embeds"])
    assert len(encoded.deepstack_hidden_states) == len(features.deepstack_features) == 3
    for tap in range(3):
        torch.testing.assert_close(encoded.deepstack_hidden_states[tap], case[f"encoder_deepstack.{tap}"])
        torch.testing.assert_close(features.deepstack_features[tap], case[f"deepstack_embeds.{tap}"])


@pytest.mark.parametrize("name", CASES)
def test_golden_greedy_tokens(name, golden, model):
    case = golden[name]
    ids = model.generate(**inputs_of(case), max_new_tokens=16, eos_token_id=None, pad_token_id=0, do_sample=False)
    assert torch.equal(ids[:, case["input_ids"].shape[1] :], case["generated"])


def test_the_mask_may_be_given(golden, model):
    case = golden["two_clips"]
    mask = case["input_ids"] == AUDIO_TOKEN_ID
    with torch.no_grad():
        expected = model(**inputs_of(case)).logits
        # Only the mask says where the audio is: its tokens could have any id.
        given = model(
            **{**inputs_of(case), "input_ids": case["input_ids"].masked_fill(mask, 5)}, audio_input_mask=mask
        )
    assert torch.equal(given.logits, expected)


def test_released_files_load_without_an_audio_token_id(golden, tmp_path, tiny_folder):
    (tmp_path / "config.json").write_text((DATA / "golden" / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes((tiny_folder / "model.safetensors").read_bytes())
    model = MossAudioModel.from_pretrained(tmp_path, audio_token_id=AUDIO_TOKEN_ID)
    case = golden["one_clip_9s"]
    with torch.no_grad():
        logits = model(**inputs_of(case)).logits
    torch.testing.assert_close(logits[:, -case["logits"].shape[1] :], case["logits"], **EXACT)


# ------------------------------------------------------------------------------------------------------------- loading


def loading_report(folder, caplog) -> dict[str, set]:
    with caplog.at_level(logging.WARNING, logger="transformers"):
        _, info = MossAudioModel.from_pretrained(folder, output_loading_info=True, ignore_mismatched_sizes=True)
    return {name: set(info[name]) for name in ("missing_keys", "unexpected_keys", "mismatched_keys")}


def edited_checkpoint(tmp_path, tiny_folder, **tensors) -> None:
    """The tiny checkpoint with tensors added or, by None, left out."""
    weights = load_file(tiny_folder / "model.safetensors")
    assert "audio_encoder.embed_positions.inv_timescales" in weights
    weights.update(tensors)
    kept = {name: tensor for name, tensor in weights.items() if tensor is not None}
    save_file(kept, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text((tiny_folder / "config.json").read_text())


@pytest.fixture
def library_warnings(caplog, monkeypatch):
    """What Transformers warns of; its loggers do not propagate by themselves."""
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    return caplog


def test_the_leftover_buffer_is_ignored_in_silence(tiny_folder, library_warnings):
    report = loading_report(tiny_folder, library_warnings)
    assert report == {"missing_keys": set(), "unexpected_keys": set(), "mismatched_keys": set()}
    assert "inv_timescales" not in library_warnings.text


def test_a_missing_tensor_is_reported(tmp_path, tiny_folder, library_warnings):
    edited_checkpoint(tmp_path, tiny_folder, **{"audio_adapter.up_proj.weight": None})
    assert loading_report(tmp_path, library_warnings)["missing_keys"] == {"audio_adapter.up_proj.weight"}
    assert "audio_adapter.up_proj.weight" in library_warnings.text


def test_an_extra_tensor_is_reported(tmp_path, tiny_folder, library_warnings):
    edited_checkpoint(tmp_path, tiny_folder, **{"audio_encoder.extra.weight": torch.zeros(2)})
    assert loading_report(tmp_path, library_warnings)["unexpected_keys"] == {"audio_encoder.extra.weight"}
    assert "audio_encoder.extra.weight" in library_warnings.text


def test_a_misshapen_tensor_is_reported(tmp_path, tiny_folder, library_warnings):
    edited_checkpoint(tmp_path, tiny_folder, **{"audio_adapter.up_proj.weight": torch.zeros(2, 3)})
    keys = loading_report(tmp_path, library_warnings)["mismatched_keys"]
    assert "audio_adapter.up_proj.weight" in str(keys)
    with pytest.raises(RuntimeError, match="audio_adapter.up_proj.weight|mismatch"):
        MossAudioModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("hidden, ffn, parameters", [(2560, 9728, 5.223e9), (4096, 12288, 9.052e9)], ids=["4B", "8B"])
def test_the_released_tensors(hidden, ffn, parameters):
    decoder = {**MossAudioConfig().to_dict()["language_config"], "hidden_size": hidden, "intermediate_size": ffn}
    with torch.device("meta"):
        model = MossAudioModel(MossAudioConfig(language_config=decoder))
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    expected = {
        "audio_encoder.conv1.weight": (480, 1, 3, 3),
        "audio_encoder.conv2.weight": (480, 480, 3, 3),
        "audio_encoder.conv3.weight": (480, 480, 3, 3),
        "audio_encoder.stem_proj.weight": (1280, 7680),
        "audio_encoder.stem_proj.bias": (1280,),
        "audio_encoder.layer_norm.weight": (1280,),
        "audio_encoder.layer_norm.bias": (1280,),
        "language_model.embed_tokens.weight": (151936, hidden),
        "language_model.norm.weight": (hidden,),
        "lm_head.weight": (151936, hidden),
        **{f"audio_encoder.conv{index}.bias": (480,) for index in (1, 2, 3)},
    }
    for part in ["audio_adapter", *(f"deepstack_audio_merger_list.{index}" for index in range(3))]:
        expected[f"{part}.gate_proj.weight"] = expected[f"{part}.up_proj.weight"] = (8192, 1280)
        expected[f"{part}.down_proj.weight"] = (hidden, 8192)
    for layer in (f"audio_encoder.layers.{index}" for index in range(32)):
        for name in ("q", "k", "v", "out"):
            expected[f"{layer}.self_attn.{name}_proj.weight"] = (1280, 1280)
            if name != "k":
                expected[f"{layer}.self_attn.{name}_proj.bias"] = (1280,)
        for name in ("self_attn_layer_norm", "final_layer_norm"):
            expected[f"{layer}.{name}.weight"] = expected[f"{layer}.{name}.bias"] = (1280,)
        expected.update({f"{layer}.fc1.weight": (5120, 1280), f"{layer}.fc1.bias": (5120,)})
        expected.update({f"{layer}.fc2.weight": (1280, 5120), f"{layer}.fc2.bias": (1280,)})
    for layer in (f"language_model.layers.{index}" for index in range(36)):
        expected[f"{layer}.self_attn.q_proj.weight"] = (4096, hidden)
        expected[f"{layer}.self_attn.k_proj.weight"] = expected[f"{layer}.self_attn.v_proj.weight"] = (1024, hidden)
        expected[f"{layer}.self_attn.o_proj.weight"] = (hidden, 4096)
        expected[f"{layer}.self_attn.q_norm.weight"] = expected[f"{layer}.self_attn.k_norm.weight"] = (128,)
        expected[f"{layer}.mlp.gate_proj.weight"] = expected[f"{layer}.mlp.up_proj.weight"] = (ffn, hidden)
        expected[f"{layer}.mlp.down_proj.weight"] = (hidden, ffn)
        for name in ("input_layernorm", "post_attention_layernorm"):
            expected[f"{layer}.{name}.weight"] = (hidden,)
    assert len(expected) == 901
    assert shapes == expected
    assert sum(tensor.numel() for tensor in model.parameters()) == pytest.approx(parameters, rel=1e-3)


def test_an_output_projection_exists_where_the_widths_differ():
    encoder = {**json.loads((DATA / "golden" / "config.json").read_text())["audio_config"], "output_dim": 48}
    config = MossAudioConfig(audio_config=encoder, language_config={"hidden_size": 32, "num_hidden_layers": 4})
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in MossAudioModel(config).state_dict().items()}
    assert shapes["audio_encoder.out_proj.weight"] == (48, 64) and "audio_encoder.out_proj.bias" not in shapes
    assert shapes["audio_adapter.gate_proj.weight"] == (8192, 48)


def test_new_weights_are_normal_and_biases_zero():
    torch.manual_seed(0)
    config = json.loads((DATA / "golden" / "config.json").read_text())
    model = MossAudioModel(MossAudioConfig(**config))
    weight = torch.cat([merger.down_proj.weight.flatten() for merger in model.deepstack_audio_merger_list])
    assert weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert model.audio_encoder.conv2.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert not model.audio_encoder.stem_proj.bias.any() and not model.audio_encoder.conv1.bias.any()
    assert (model.audio_encoder.layer_norm.weight == 1).all()


def test_generation_defaults(tmp_path, tiny_folder):
    model = MossAudioModel.from_pretrained(tiny_folder)
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "generation_config.json").read_text())
    assert (saved["max_new_tokens"], saved["eos_token_id"], saved["pad_token_id"]) == (1024, 295, 293)
    assert not saved.get("do_sample")


def test_generation_defaults_of_a_folder_that_has_none(tmp_path, tiny_folder):
    config = json.loads((tiny_folder / "config.json").read_text())
    config["language_config"].update(vocab_size=151936, hidden_size=8)
    config.pop("vocab_size")
    MossAudioModel(MossAudioConfig(**config)).save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").unlink()
    generation = MossAudioModel.from_pretrained(tmp_path).generation_config
    assert (generation.max_new_tokens, generation.eos_token_id, generation.pad_token_id) == (1024, 151645, 151643)
    assert not generation.do_sample


def test_generation_defaults_of_a_file_that_says_little(tmp_path, tiny_folder):
    for file in tiny_folder.glob("*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "generation_config.json").write_text(json.dumps({"do_sample": True, "eos_token_id": 7}))
    generation = MossAudioModel.from_pretrained(tmp_path).generation_config
    assert (generation.max_new_tokens, generation.eos_token_id, generation.do_sample) == (1024, 7, True)
    (tmp_path / "generation_config.json").write_text(json.dumps({"max_length": 77}))
    model, _ = MossAudioModel.from_pretrained(tmp_path, output_loading_info=True)
    assert (model.generation_config.max_new_tokens, model.generation_config.max_length) == (None, 77)


# ------------------------------------------------------------------------------------------------------------- batches


@torch.no_grad()
def test_a_batch_gives_what_its_rows_give_alone(mixed_batch, model):
    together = model(**mixed_batch).logits
    for row, inputs in enumerate(rows_alone(mixed_batch, [1, 0, 2, 1])):
        alone = model(**inputs).logits
        torch.testing.assert_close(together[row, -alone.shape[1] :], alone[0], atol=2e-5, rtol=0)


def test_greedy_answers_of_a_batch_are_those_of_its_rows_alone(mixed_batch, model):
    options = {"max_new_tokens": 24, "eos_token_id": None, "do_sample": False}
    together = model.generate(**mixed_batch, **options)[:, mixed_batch["input_ids"].shape[1] :]
    for row, inputs in enumerate(rows_alone(mixed_batch, [1, 0, 2, 1])):
        alone = model.generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :]
        assert torch.equal(together[row], alone[0]), row


@torch.no_grad()
def test_a_clip_is_encoded_as_if_alone(mixed_batch, model):
    together = model.get_audio_features(mixed_batch["audio_data"], mixed_batch["audio_data_seqlens"])
    start = 0
    for clip, length in zip(mixed_batch["audio_data"], mixed_batch["audio_data_seqlens"]):
        alone = model.get_audio_features(clip[None, :, :length], length[None])
        tokens = alone.pooler_output.shape[0]
        assert tokens == -(-int(length) // 8)
        for name in ("last_hidden_state", "pooler_output"):
            torch.testing.assert_close(together[name][start : start + tokens], alone[name], **EXACT)
        for tap, expected in zip(together.deepstack_features, alone.deepstack_features):
            torch.testing.assert_close(tap[start : start + tokens], expected, atol=2e-5, rtol=0)
        start += tokens
    assert start == together.pooler_output.shape[0]


@torch.no_grad()
def test_what_stands_behind_a_clips_end_does_not_matter(mixed_batch, model):
    audio, lengths = mixed_batch["audio_data"].clone(), mixed_batch["audio_data_seqlens"]
    expected = model.get_audio_features(audio, lengths).pooler_output
    for clip, length in zip(audio, lengths):
        clip[:, length:] = 7.0
    assert torch.equal(model.get_audio_features(audio, lengths).pooler_output, expected)


@pytest.mark.parametrize("chunk, stem", [(1, 16), (2, 1), (5, 2), (5, 16)])
@torch.no_grad()
def test_the_encoder_works_through_groups_of_windows(chunk, stem, mixed_batch, model, monkeypatch):
    audio = (mixed_batch["audio_data"], mixed_batch["audio_data_seqlens"])
    expected = model.get_audio_features(*audio).pooler_output
    sizes, encode = [], model.audio_encoder._encode
    monkeypatch.setattr(
        model.audio_encoder,
        "_encode",
        lambda data, group, *args, **kw: sizes.append(len(group)) or encode(data, group, *args, **kw),
    )
    monkeypatch.setattr(model.audio_encoder.config, "conv_chunksize", chunk)
    monkeypatch.setattr("moss_audio.modeling_moss_audio.STEM_WINDOWS", stem)
    torch.testing.assert_close(model.get_audio_features(*audio).pooler_output, expected, **EXACT)
    assert max(sizes) <= chunk and sum(sizes) == len(cut_into_windows(audio[1].tolist(), 400))


def test_the_encoder_gives_the_same_with_and_without_gradients(mixed_batch, model):
    audio = (mixed_batch["audio_data"], mixed_batch["audio_data_seqlens"])
    kept = model.audio_encoder(*audio)
    assert kept.last_hidden_state.requires_grad
    with torch.no_grad():
        alone = model.audio_encoder(*audio)
    assert torch.equal(alone.last_hidden_state, kept.last_hidden_state)


def test_windows():
    assert cut_into_windows([400], 400) == [(0, 0, 400, 400)]
    assert cut_into_windows([309], 400) == [(0, 0, 309, 309)]  # a short clip is not padded
    assert cut_into_windows([7, 801], 400) == [(0, 0, 7, 7), (1, 0, 400, 400), (1, 400, 400, 400), (1, 800, 1, 8)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@torch.no_grad()
def test_features_of_any_floating_type_are_cast(dtype, golden, model):
    case = golden["one_clip_9s"]
    inputs = inputs_of(case)
    expected = model(**{**inputs, "audio_data": inputs["audio_data"].to(dtype).float()}).logits
    assert torch.equal(model(**{**inputs, "audio_data": inputs["audio_data"].to(dtype)}).logits, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_half_precision(dtype, golden, tiny_folder):
    model = MossAudioModel.from_pretrained(tiny_folder, dtype=dtype).eval()
    case = golden["short_tail_3s"]
    logits = model(**inputs_of(case)).logits[:, -case["logits"].shape[1] :]
    assert logits.dtype == dtype and torch.isfinite(logits).all()
    agreement = torch.nn.functional.cosine_similarity(logits.float().flatten(), case["logits"].flatten(), dim=0)
    assert agreement > 0.999


def test_float16_layers_stay_below_the_largest_number(tiny_folder):
    layer = MossAudioModel.from_pretrained(tiny_folder, dtype=torch.float16).audio_encoder.layers[0].eval()
    with torch.no_grad():
        layer.fc2.bias.fill_(60000)
        hidden_states, _ = layer(torch.full((1, 4, 64), 30000.0, dtype=torch.float16))
    assert hidden_states.max() == torch.finfo(torch.float16).max - 1000


@torch.no_grad()
def test_prefill_computes_logits_for_the_last_position_only(mixed_batch, model, monkeypatch):
    positions, forward = [], model.lm_head.forward
    monkeypatch.setattr(model.lm_head, "forward", lambda states: positions.append(states.shape[1]) or forward(states))
    model.generate(**mixed_batch, max_new_tokens=3, eos_token_id=None)
    assert positions == [1, 1, 1]


def test_the_encoder_runs_once_in_a_generation(mixed_batch, model, monkeypatch):
    calls, encode = [], model.get_audio_features
    monkeypatch.setattr(model, "get_audio_features", lambda *args, **kw: calls.append(1) or encode(*args, **kw))
    model.generate(**mixed_batch, max_new_tokens=4, eos_token_id=None)
    assert len(calls) == 1


def test_the_loss_is_a_mean_over_num_items_in_batch(golden, model):
    case = golden["two_clips"]
    with torch.no_grad():
        mean = model(**inputs_of(case), labels=case["labels"]).loss
        items = int((case["labels"][:, 1:] != -100).sum())
        doubled = model(**inputs_of(case), labels=case["labels"], num_items_in_batch=2 * items).loss
    torch.testing.assert_close(doubled, mean / 2)


def test_dropout_stands_where_the_encoder_was_trained_with_it(golden, tiny_folder):
    """Noise comes from the encoder's 0.1 alone: without that, training and evaluation give the same numbers."""
    model = MossAudioModel.from_pretrained(tiny_folder).train()
    inputs = inputs_of(golden["one_clip_9s"])
    with torch.no_grad():
        noisy = [model(**inputs).logits for _ in range(2)]
        for config in (model.audio_encoder.config,):
            config.attention_dropout = 0.0
        for layer in model.audio_encoder.layers:
            layer.dropout = 0.0
        quiet = model(**inputs).logits
        expected = model.eval()(**inputs).logits
    assert not torch.equal(*noisy)
    assert torch.equal(quiet, expected)


# ----------------------------------------------------------------------------------------------------------- bad input


def clip(model, frames: int = 96) -> dict[str, torch.Tensor]:
    ids = torch.tensor([[5, 6, *[AUDIO_TOKEN_ID] * (frames // 8), 7]])
    return {"input_ids": ids, "audio_data": torch.zeros(1, 128, frames), "audio_data_seqlens": torch.tensor([frames])}


BAD_INPUTS = {
    "no lengths": ({"audio_data_seqlens": None}, "without `audio_data_seqlens`"),
    "too many lengths": ({"audio_data_seqlens": torch.tensor([8, 8])}, "2 lengths for 1 clips"),
    "a length beyond the features": ({"audio_data_seqlens": torch.tensor([97])}, "clip 0 has 97 frames.* have 96"),
    "a length of nothing": ({"audio_data_seqlens": torch.tensor([0])}, "clip 0 has 0 frames"),
    "a clip without its dimension": (
        {"audio_data": torch.zeros(128, 96)},
        r"shape \(128, 96\); expected \(clips, 128",
    ),
    "other mels": ({"audio_data": torch.zeros(1, 80, 96)}, r"shape \(1, 80, 96\); expected \(clips, 128, frames\)"),
    "a mask of another shape": ({"audio_input_mask": torch.ones(1, 3)}, r"shape \(1, 3\), the tokens have \(1, 15\)"),
    "a mask of another number": ({"audio_input_mask": torch.ones(1, 15).bool()}, r"15 audio tokens; .* have \[12\]"),
    "too few audio tokens": ({"input_ids": torch.tensor([[5, AUDIO_TOKEN_ID]])}, r"1 audio tokens; .* have \[12\]"),
    "no audio token": ({"input_ids": torch.tensor([[5, 6]])}, "has 1 clips, but .* first 0"),
    "nothing": ({"input_ids": None}, "either `input_ids` or `inputs_embeds`"),
}


@pytest.mark.parametrize("change, message", BAD_INPUTS.values(), ids=BAD_INPUTS)
def test_inputs_that_do_not_fit_are_refused_before_the_encoder_runs(change, message, model, monkeypatch):
    monkeypatch.setattr(model.audio_encoder, "forward", lambda *args, **kwargs: pytest.fail("the encoder ran"))
    with pytest.raises(ValueError, match=message):
        model(**{**clip(model), **change})


def test_clips_that_straddle_rows_are_refused(model):
    ids = torch.full((2, 10), 5)
    ids[0, :9] = ids[1, :3] = AUDIO_TOKEN_ID  # 12 tokens in all, but no clip has 9
    with pytest.raises(
        ValueError, match=r"Row 0 of the batch has 9 audio tokens; the clips from clip 0 on have \[6, 6\]"
    ):
        model(ids, audio_data=torch.zeros(2, 128, 48), audio_data_seqlens=torch.tensor([48, 48]))


def test_training_refuses_audio_tokens_without_audio(model):
    ids = clip(model)["input_ids"]
    with pytest.raises(ValueError, match="12 audio tokens, but there is no `audio_data`"):
        model(ids, labels=ids)


def test_clips_are_not_read_in_chunks(model):
    with pytest.raises(ValueError, match="`prefill_chunk_size` does not work with clips"):
        model.generate(**clip(model), max_new_tokens=2, prefill_chunk_size=4)


def test_no_clips_are_none(model):
    with pytest.raises(ValueError, match=r"shape \(0, 128, 0\).* or None where there is no clip"):
        model(torch.ones(1, 3, dtype=torch.long), audio_data=torch.zeros(0, 128, 0), audio_data_seqlens=torch.zeros(0))


def test_generation_refuses_audio_tokens_without_audio(model):
    with pytest.raises(ValueError, match="12 audio tokens, but there is no `audio_data`"):
        model.generate(clip(model)["input_ids"], max_new_tokens=2)


def test_a_prompt_beyond_the_decoders_positions_is_refused(model, monkeypatch):
    monkeypatch.setattr(model.audio_encoder, "forward", lambda *args, **kwargs: pytest.fail("the encoder ran"))
    with pytest.raises(
        ValueError, match=r"3003 tokens; the decoder has 2048 positions.* 240 s, and about 149 s is the longest"
    ):
        model(**clip(model, frames=24000))
