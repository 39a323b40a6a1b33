"""Training: gradients and where they reach, gradient checkpointing, and the Trainer."""

import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from moss_audio import MossAudioModel


CHECKPOINT = Path(__file__).parent / "data" / "model_tiny"
CASES = CHECKPOINT.parent / "golden" / "cases.safetensors"
NAMES = ("input_ids", "attention_mask", "labels", "audio_data", "audio_data_seqlens")


@pytest.fixture
def model():
    return MossAudioModel.from_pretrained(CHECKPOINT).train()


@pytest.fixture(scope="module")
def batch():
    """A row with two clips, one of them a window and a tail."""
    cases = load_file(CASES)
    return {name: cases[f"two_clips.{name}"] for name in NAMES}


def gradients(model, batch) -> dict[str, torch.Tensor]:
    """Gradients of the loss, with the dropout of one seed."""
    model.zero_grad()
    torch.manual_seed(0)
    model(**batch, use_cache=False).loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def enable_checkpointing(model, **options):
    """By its newer name where there is one."""
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    enable(options or None)


def test_gradients_reach_every_parameter(model, batch):
    found = gradients(model, batch)
    assert set(found) == {name for name, _ in model.named_parameters()}
    assert all(gradient.isfinite().all() and gradient.any() for gradient in found.values())


@pytest.mark.parametrize("merger", range(3))
def test_gradients_reach_the_encoder_below_a_tap_through_its_merger(model, batch, merger):
    """With every other way from the encoder to the decoder shut, all that reaches the encoder comes through one tap."""
    with torch.no_grad():
        model.audio_adapter.down_proj.weight.zero_()
        for index, other in enumerate(model.deepstack_audio_merger_list):
            if index != merger:
                other.down_proj.weight.zero_()
    found = gradients(model, batch)
    tap = model.config.audio_config.deepstack_encoder_layer_indexes[merger]
    for index, layer in enumerate(model.audio_encoder.layers):
        for name, _ in layer.named_parameters():
            gradient = found.get(f"audio_encoder.layers.{index}.{name}")
            assert (gradient is not None and bool(gradient.any())) == (index <= tap), (index, name)
    assert found["audio_encoder.conv1.weight"].any()


def test_checkpointing_gives_the_same_gradients(model, batch):
    expected = gradients(model, batch)
    enable_checkpointing(model)
    layers = [*model.audio_encoder.layers, *model.language_model.layers]
    calls = []
    for layer in layers:
        assert layer.gradient_checkpointing
        checkpoint = layer._gradient_checkpointing_func
        layer._gradient_checkpointing_func = lambda *args, layer=layer, inner=checkpoint: (
            calls.append(layer),
            inner(*args),
        )[1]
    found = gradients(model, batch)
    assert set(calls) == set(layers)
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], msg=lambda text, name=name: f"{name}: {text}")


def test_checkpointing_of_adapters_on_frozen_embeddings(model, batch):
    """As PEFT trains: only some weights learn, and inputs are made to require gradients."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("self_attn.q_proj.weight" in name)
    expected = gradients(model, batch)
    assert len(expected) == len(model.audio_encoder.layers) + len(model.language_model.layers)
    enable_checkpointing(model)
    model.enable_input_require_grads()
    found = gradients(model, batch)
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("part", ["model", "audio_encoder", "language_model"])
def test_checkpointing_is_not_reentrant(model, part):
    part = model if part == "model" else getattr(model, part)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        enable_checkpointing(part)
    for layer in part.modules():
        if getattr(layer, "gradient_checkpointing", False):
            assert layer._gradient_checkpointing_func.keywords["use_reentrant"] is False
    assert any(getattr(layer, "gradient_checkpointing", False) for layer in part.modules())
    for enable in (enable_checkpointing, lambda part, **options: part.gradient_checkpointing_enable(options)):
        with pytest.raises(ValueError, match="'use_reentrant': True.*leave it out"):
            enable(part, use_reentrant=True)


def test_a_batch_without_clips_reaches_every_parameter(model, batch):
    """DDP waits for all gradients, and where the audio parts alone learn there are no others; theirs are zero then."""
    text = {"input_ids": torch.arange(1, 9)[None], "labels": torch.arange(1, 9)[None]}
    expected = gradients(model.eval(), text)
    assert not any(name.startswith("audio_encoder") for name in expected)
    found = gradients(model.train(), text)
    assert set(found) == {name for name, _ in model.named_parameters()}
    for name, gradient in found.items():
        assert torch.equal(gradient, expected[name]) if name in expected else not gradient.any(), name
    model.language_model.requires_grad_(False)
    model.lm_head.requires_grad_(False)
    assert not any(gradient.any() for gradient in gradients(model, text).values())


class Rows(Dataset):
    """The same row again and again; clips are no rows, so the collator has nothing to stack."""

    def __init__(self, batch):
        self.batch = batch

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return self.batch


def trainer(model, batch, folder, **arguments) -> Trainer:
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=2,
        per_device_train_batch_size=1,
        learning_rate=1e-2,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        remove_unused_columns=False,
        use_cpu=True,
        **arguments,
    )
    return Trainer(model, arguments, train_dataset=Rows(batch), data_collator=lambda rows: dict(rows[0]))


def test_the_trainer_checkpoints(model, batch, tmp_path):
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    run = trainer(model, batch, tmp_path, gradient_checkpointing=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*checkpointing.*")
        run.train()
    layers = [*model.audio_encoder.layers, *model.language_model.layers]
    assert all(layer.gradient_checkpointing for layer in layers)
    unchanged = [name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])]
    assert not unchanged


def test_the_trainer_refuses_reentrant_checkpointing(model, batch, tmp_path):
    options = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}
    with pytest.raises(ValueError, match="'use_reentrant': True"):
        trainer(model, batch, tmp_path, **options).train()


def test_the_trainer_evaluates_rows_with_and_without_clips(model, batch, tmp_path):
    """Its predictions are logits, a row each: what is packed by clips stays out of them."""
    bare = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
    bare["input_ids"] = bare["input_ids"].masked_fill(bare["input_ids"] == model.config.audio_token_id, 5)
    shapes = []

    def metrics(prediction):
        shapes.append(prediction.predictions.shape)
        return {}

    arguments = {"report_to": [], "per_device_eval_batch_size": 1, "remove_unused_columns": False, "use_cpu": True}
    evaluation = Trainer(
        model=model,
        args=TrainingArguments(output_dir=str(tmp_path), disable_tqdm=True, **arguments),
        eval_dataset=[batch, bare],
        data_collator=lambda rows: rows[0],
        compute_metrics=metrics,
    )
    assert evaluation.evaluate()["eval_loss"] > 0
    assert shapes == [(2, batch["input_ids"].shape[1], 320)]
