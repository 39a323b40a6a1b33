"""Saving and loading in the ways that people do it; by other versions of Transformers, too."""

import copy
import json
import os
import shutil

import pytest
import torch
import transformers
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoProcessor, AutoTokenizer, pipeline

import moss_audio
from moss_audio import MossAudioConfig, MossAudioModel, MossAudioProcessor
from tests.conftest import CODE_FILES, run_python, waveform


@pytest.fixture(scope="module")
def inputs(processor):
    return processor(text=["What?", "Why is it so?"], audio=[waveform(1, 70000), None])


@pytest.fixture(scope="module")
def expected(model, inputs):
    with torch.no_grad():
        return model(**inputs).logits


@torch.no_grad()
def logits(model, inputs):
    return model.eval()(**inputs).logits


def fresh(**changes) -> MossAudioModel:
    """A tiny model with new random weights and another configuration."""
    torch.manual_seed(0)
    config = MossAudioConfig.from_pretrained(moss_folder())
    values = config.to_dict()
    values["language_config"].update({name: changes[name] for name in changes if name != "tie_word_embeddings"})
    values.update({name: changes[name] for name in changes if name == "tie_word_embeddings"})
    if "rope_parameters" in changes:
        for name in ("rope_theta", "rope_scaling"):
            values["language_config"].pop(name)
    values["language_config"].pop("tie_word_embeddings", None)
    return MossAudioModel(MossAudioConfig(**values)).eval()


def moss_folder():
    from tests.conftest import DATA

    return DATA / "model_tiny"


# -------------------------------------------------------------------------------------------------------------- folders


def test_a_saved_folder_is_complete_and_loads_alike(model, processor, inputs, expected, tmp_path):
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    for name in ("config.json", "generation_config.json", "model.safetensors", "processor_config.json", *CODE_FILES):
        assert (tmp_path / name).is_file(), name
    for auto in (AutoModel, AutoModelForCausalLM):
        assert torch.equal(logits(auto.from_pretrained(tmp_path), inputs), expected)
    again = AutoProcessor.from_pretrained(tmp_path)
    batch = again(text=["What?", "Why is it so?"], audio=[waveform(1, 70000), None])
    assert all(torch.equal(batch[name], inputs[name]) for name in inputs)


def test_saving_does_not_change_the_model(tiny_folder, inputs, expected, tmp_path):
    model = MossAudioModel.from_pretrained(tiny_folder)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(model, inputs), expected)
    MossAudioModel.from_pretrained(tmp_path).save_pretrained(tmp_path / "twice")
    configs = [json.loads((folder / "config.json").read_text()) for folder in (tmp_path, tmp_path / "twice")]
    assert configs[0] == configs[1]


def test_the_names_of_the_tensors_are_the_released_ones(model, tiny_folder, tmp_path):
    from safetensors import safe_open

    model.save_pretrained(tmp_path)
    with (
        safe_open(tmp_path / "model.safetensors", "pt") as saved,
        safe_open(tiny_folder / "model.safetensors", "pt") as old,
    ):
        assert set(saved.keys()) == set(old.keys()) - {"audio_encoder.embed_positions.inv_timescales"}
        assert all(torch.equal(saved.get_tensor(name), old.get_tensor(name)) for name in saved.keys())


def test_weights_shard(model, inputs, expected, tmp_path):
    model.save_pretrained(tmp_path, max_shard_size="500KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert torch.equal(logits(MossAudioModel.from_pretrained(tmp_path), inputs), expected)


def test_parts_of_a_folder_load_by_themselves(native_folder, tiny_folder):
    for folder in (native_folder, tiny_folder):
        assert type(AutoConfig.from_pretrained(folder)) is MossAudioConfig
        assert len(AutoTokenizer.from_pretrained(folder)) == 301
        assert type(AutoProcessor.from_pretrained(folder)) is MossAudioProcessor


def test_tied_embeddings_are_saved_once_and_stay_tied(inputs, tmp_path):
    model = fresh(tie_word_embeddings=True)
    assert model.lm_head.weight is model.language_model.embed_tokens.weight
    model.save_pretrained(tmp_path)
    again = MossAudioModel.from_pretrained(tmp_path)
    assert again.lm_head.weight is again.language_model.embed_tokens.weight
    assert torch.equal(logits(again, inputs), logits(model, inputs))


def test_resized_embeddings(model, inputs, tmp_path):
    larger = copy.deepcopy(model)
    larger.resize_token_embeddings(330)
    assert larger.config.vocab_size == larger.config.language_config.vocab_size == 330
    assert larger.lm_head.weight.shape == larger.get_input_embeddings().weight.shape == (330, 64)
    torch.testing.assert_close(logits(larger, inputs)[..., :320], logits(model, inputs))
    larger.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["vocab_size"] == saved["language_config"]["vocab_size"] == 330
    assert torch.equal(logits(MossAudioModel.from_pretrained(tmp_path), inputs), logits(larger, inputs))


def test_a_pipeline_from_a_saved_folder(model, processor, tmp_path):
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    pipe = pipeline("audio-text-to-text", model=str(tmp_path), trust_remote_code=True, device="cpu")
    original = moss_audio.AudioTextToTextPipeline(model=model, processor=processor, device="cpu")
    clip = waveform(1, 70000)
    assert pipe(clip, max_new_tokens=6) == original(clip, max_new_tokens=6)


@pytest.mark.skipif(
    "any-to-any" not in transformers.pipelines.PIPELINE_REGISTRY.get_supported_tasks(),
    reason="this version of Transformers has no any-to-any pipeline",
)
def test_the_any_to_any_pipeline(model, processor, tiny_folder):
    pipe = pipeline("any-to-any", model=model, processor=processor, device="cpu")
    messages = [
        {
            "role": "user",
            "content": [{"type": "audio", "audio": waveform(1, 70000)}, {"type": "text", "text": "What?"}],
        }
    ]
    answer = pipe(text=messages, max_new_tokens=6, return_full_text=False)[0]["generated_text"]
    inputs = processor(text="What?", audio=waveform(1, 70000))
    ids = model.generate(**inputs, max_new_tokens=6)
    assert answer == processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


# -------------------------------------------------------------------------------------------------------------- loading


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", torch.bfloat16, "auto"])
def test_dtypes(dtype, tiny_folder, inputs, tmp_path):
    model = MossAudioModel.from_pretrained(tiny_folder, dtype=dtype)
    wanted = {"auto": torch.float32}.get(dtype, dtype)
    wanted = getattr(torch, wanted) if isinstance(wanted, str) else wanted
    assert {parameter.dtype for parameter in model.parameters()} == {wanted}
    assert torch.isfinite(logits(model, inputs)).all()
    model.save_pretrained(tmp_path)
    assert MossAudioModel.from_pretrained(tmp_path, dtype="auto").dtype == wanted


def test_low_cpu_mem_usage_and_device_contexts(tiny_folder, inputs, expected):
    assert torch.equal(logits(MossAudioModel.from_pretrained(tiny_folder, low_cpu_mem_usage=True), inputs), expected)
    with torch.device("cpu"):
        assert torch.equal(logits(MossAudioModel.from_pretrained(tiny_folder), inputs), expected)


@pytest.mark.parametrize(
    "device_map",
    [
        "auto",
        "cpu",
        {"": "cpu"},
        {
            "audio_encoder": "cpu",
            "audio_adapter": "disk",
            "deepstack_audio_merger_list": "disk",
            "language_model": "cpu",
            "lm_head": "disk",
        },
        {
            "audio_encoder": "disk",
            "audio_adapter": "cpu",
            "deepstack_audio_merger_list": "cpu",
            "language_model": "disk",
            "lm_head": "cpu",
        },
    ],
    ids=["auto", "cpu", "all on cpu", "adapter and head on disk", "encoder and decoder on disk"],
)
def test_device_maps_and_offloading(device_map, tiny_folder, inputs, expected, tmp_path):
    options = {"device_map": device_map, "offload_folder": tmp_path}
    if device_map == "auto":
        options["max_memory"] = {"cpu": "10GB"}
    model = MossAudioModel.from_pretrained(tiny_folder, **options)
    assert torch.equal(logits(model, inputs).cpu(), expected)
    greedy = MossAudioModel.from_pretrained(tiny_folder).generate(**inputs, max_new_tokens=4)
    assert torch.equal(model.generate(**inputs, max_new_tokens=4).cpu(), greedy)


# ------------------------------------------------------------------------------------------------ things that people do


def test_half_and_back(tiny_folder, inputs, expected):
    model = MossAudioModel.from_pretrained(tiny_folder).half()
    assert torch.isfinite(logits(model, inputs)).all() and model.generate(**inputs, max_new_tokens=3).shape[0] == 2
    torch.testing.assert_close(logits(model.float(), inputs), expected, atol=0.05, rtol=0)


def test_to_the_cpu(tiny_folder, inputs, expected):
    assert torch.equal(logits(MossAudioModel.from_pretrained(tiny_folder).to("cpu"), inputs), expected)
    if torch.cuda.is_available():
        model = MossAudioModel.from_pretrained(tiny_folder).to("cuda")
        assert torch.isfinite(logits(model, inputs.to("cuda"))).all()
        assert torch.equal(logits(model.to("cpu"), inputs.to("cpu")), expected)


def test_copies_of_model_and_config(model, inputs, expected):
    clone = copy.deepcopy(model)
    assert torch.equal(logits(clone, inputs), expected)
    with torch.no_grad():
        clone.lm_head.weight.zero_()
    assert torch.equal(logits(model, inputs), expected)
    config = copy.deepcopy(model.config)
    assert config.to_dict() == model.config.to_dict() and config.audio_config is not model.config.audio_config


@torch.no_grad()
def test_the_encoder_is_exported(model, inputs):
    audio, lengths = inputs["audio_data"], inputs["audio_data_seqlens"].tolist()
    expected = model.audio_encoder(audio, lengths)
    program = torch.export.export(model.audio_encoder, (audio, lengths))
    exported = program.module()(audio * 1.0, lengths)
    assert torch.equal(exported.last_hidden_state, expected.last_hidden_state)
    louder = program.module()(audio + 0.1, lengths)
    torch.testing.assert_close(louder.last_hidden_state, model.audio_encoder(audio + 0.1, lengths).last_hidden_state)


def test_the_processor_in_dataloader_workers(processor, inputs):
    texts = ["What?", "Why is it so?"]
    rows = [(texts[0], waveform(1, 70000)), (texts[1], None)]

    def collate(batch):
        return processor(text=[text for text, _ in batch], audio=[clip for _, clip in batch])

    loader = torch.utils.data.DataLoader(rows, batch_size=2, num_workers=1, collate_fn=collate)
    (batch,) = loader
    assert all(torch.equal(batch[name], inputs[name]) for name in inputs)


# ----------------------------------------------------------------------------------------------------------------- LoRA


def lora(**options) -> LoraConfig:
    projections = r"(audio_encoder|language_model)\.layers\.\d+\.self_attn\.(q|k|v)_proj"
    return LoraConfig(r=4, lora_alpha=8, target_modules=projections, **options)


def trained(model, inputs):
    """A LoRA after two steps."""
    torch.manual_seed(0)
    peft = get_peft_model(copy.deepcopy(model), lora(task_type="CAUSAL_LM")).train()
    optimizer = torch.optim.AdamW([p for p in peft.parameters() if p.requires_grad], lr=0.05)
    losses = []
    for _ in range(3):
        loss = peft(**inputs, labels=inputs["input_ids"]).loss
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0]
    changed = {name for name, p in peft.named_parameters() if "lora_B" in name and p.abs().sum() > 0}
    assert any("audio_encoder" in name for name in changed) and any("language_model" in name for name in changed)
    return peft.eval()


def test_lora_on_encoder_and_decoder(model, inputs, expected, native_folder, tmp_path):
    peft = trained(model, inputs)
    tuned = logits(peft, inputs)
    assert not torch.allclose(tuned, expected, atol=1e-2)
    with peft.disable_adapter():
        assert torch.equal(logits(peft, inputs), expected)
    peft.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(MossAudioModel.from_pretrained(native_folder), tmp_path / "adapter")
    assert torch.equal(logits(again, inputs), tuned)
    merged = again.merge_and_unload()
    assert type(merged) is MossAudioModel
    torch.testing.assert_close(logits(merged, inputs), tuned, atol=1e-4, rtol=0)
    merged.save_pretrained(tmp_path / "merged")
    torch.testing.assert_close(
        logits(MossAudioModel.from_pretrained(tmp_path / "merged"), inputs), tuned, atol=1e-4, rtol=0
    )


def test_an_adapter_folder_finds_its_model(native_folder, inputs, tmp_path):
    model = MossAudioModel.from_pretrained(native_folder)
    peft = trained(model, inputs)
    peft.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"] == str(native_folder)
    again = AutoPeftModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits(again, inputs), logits(peft, inputs))


# -------------------------------------------------------------------------------------------------------- other versions


YARN = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 1024, "rope_theta": 5e5}
MODELS = {
    "as released": {},
    "tied": {"tie_word_embeddings": True},
    "another rope": {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
    "a scaled rope": {"rope_parameters": YARN},
}

EXCHANGE = """
import json, sys
import torch
import transformers
from moss_audio import MossAudioModel, MossAudioProcessor

processor = MossAudioProcessor.from_pretrained({source!r} + "/processor")
batch = processor(text=["What?", "Why is it so?<think>"], audio=[torch.zeros(8000), None])
torch.save(dict(batch), {target!r} + "/batch.pt")
processor.save_pretrained({target!r} + "/processor")
inputs = torch.load({inputs!r})
for name in {names!r}:
    model = MossAudioModel.from_pretrained({source!r} + "/" + name).eval()
    with torch.no_grad():
        torch.save(model(**inputs).logits, {target!r} + "/" + name + ".pt")
    model.to({dtype}).save_pretrained({target!r} + "/" + name)
print(transformers.__version__)
"""


@pytest.mark.skipif(
    "MOSS_AUDIO_OTHER_PYTHON" not in os.environ,
    reason="MOSS_AUDIO_OTHER_PYTHON names no interpreter with the package and another version of Transformers",
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_folders_go_from_one_version_to_another_and_back(dtype, inputs, processor, tmp_path, monkeypatch):
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
    models = {name: fresh(**copy.deepcopy(changes)) for name, changes in MODELS.items()}
    for name, model in models.items():
        model.save_pretrained(here / name)
    processor.save_pretrained(here / "processor")
    torch.save(dict(inputs), tmp_path / "inputs.pt")
    monkeypatch.setattr("sys.executable", os.environ["MOSS_AUDIO_OTHER_PYTHON"])
    code = EXCHANGE.format(
        inputs=str(tmp_path / "inputs.pt"), names=list(MODELS), source=str(here), target=str(there), dtype=dtype
    )
    version = run_python(code, cwd=tmp_path).split()[-1]
    assert version != transformers.__version__
    batch = processor(text=["What?", "Why is it so?<think>"], audio=[torch.zeros(8000), None])
    again = MossAudioProcessor.from_pretrained(there / "processor")
    for other in (
        torch.load(there / "batch.pt"),
        again(text=["What?", "Why is it so?<think>"], audio=[torch.zeros(8000), None]),
    ):
        assert all(torch.equal(other[name], batch[name]) for name in batch)
    assert set(again.tokenizer.all_special_tokens) == set(processor.tokenizer.all_special_tokens)
    for name, model in models.items():
        expected = logits(model, inputs)
        torch.testing.assert_close(torch.load(there / f"{name}.pt"), expected, atol=1e-5, rtol=0)
        back = MossAudioModel.from_pretrained(there / name, dtype="auto")
        assert back.dtype == dtype and back.config.tie_word_embeddings == model.config.tie_word_embeddings
        assert (back.lm_head.weight is back.get_input_embeddings().weight) == model.config.tie_word_embeddings
        if dtype == torch.float32:
            torch.testing.assert_close(logits(back, inputs), expected, atol=1e-5, rtol=0)
        else:
            assert torch.equal(
                logits(back, inputs), logits(MossAudioModel.from_pretrained(here / name, dtype=dtype), inputs)
            )
    shutil.rmtree(there)
