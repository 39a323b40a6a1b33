"""Fine-tuning runs: what is learned, what stays as it is, what comes out, and that runs can be repeated and resumed."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer, TrainingArguments

from moss_audio import MossAudioModel, MossAudioProcessor
from moss_audio.training import MossAudioDataCollator, MossAudioTrainer, finetune, load_samples
from moss_audio.training.merge import merge
from tests.conftest import CODE_FILES, run_python
from tests.conversion_helpers import Hub
from tests.finetuning_helpers import ANSWERS, losses, run_options, sample, tones_file, train, uneven_file, write_lines


ANSWER = """
import json
from transformers import pipeline
pipe = pipeline("audio-text-to-text", model=sys.argv[1], trust_remote_code=True, device="cpu")
recordings = [f"{sys.argv[2]}/{number}.wav" for number in range(8)]
print(json.dumps([result["generated_text"] for result in pipe(recordings, text="Name it.", max_new_tokens=16)]))
"""


@pytest.fixture(scope="module")
def tones(tmp_path_factory):
    return tones_file(tmp_path_factory.mktemp("tones"))


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    return uneven_file(tmp_path_factory.mktemp("uneven"))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def changed_parts(before: Path, after: Path) -> set[str]:
    """Which parts have a tensor that is not bit by bit the same."""
    old, new = weights(before), weights(after)
    assert old.keys() - new.keys() <= {"audio_encoder.embed_positions.inv_timescales"} and new.keys() <= old.keys()
    changed = [name for name in new if not torch.equal(old[name], new[name])]
    return {part for part, prefixes in finetune.PARTS.items() for name in changed if name.startswith(prefixes)}


@pytest.fixture(scope="module")
def overfitted(native_folder, tones, tmp_path_factory):
    """A run on eight samples until it knows them."""
    output = tmp_path_factory.mktemp("runs") / "overfitted"
    options = {"max_steps": 60, "learning_rate": 3e-3, "per_device_train_batch_size": 8, "logging_steps": 10}
    evaluation = {"eval_files": tones, "eval_metric": "wer", "eval_max_new_tokens": 16}
    return train(native_folder, tones, output, **options, **evaluation), output


def test_eight_samples_are_learned_word_for_word(overfitted, tones, tmp_path):
    """Loss below 0.1; the saved folder answers in a process that has neither this package nor the trained model."""
    trainer, output = overfitted
    assert losses(trainer)[-1] < 0.1
    assert set(CODE_FILES) <= {path.name for path in output.iterdir()}
    folder = tmp_path / "elsewhere"
    shutil.copytree(output, folder)
    said = run_python(ANSWER, folder, tones.parent, cwd=tmp_path, blocked=("moss_audio",))
    assert json.loads(said.splitlines()[-1]) == ANSWERS


def test_values_of_groups_are_logged_and_evaluated(overfitted):
    trainer, _ = overfitted
    entry = next(entry for entry in trainer.state.log_history if "loss" in entry)
    assert {"token_accuracy", "loss_a", "loss_b", "token_accuracy_a", "token_accuracy_b"} <= set(entry)
    final = trainer.state.log_history[-1]
    assert final["eval_wer"] == final["eval_wer_a"] == final["eval_wer_b"] == 0
    assert final["eval_token_accuracy"] == 1 and final["eval_loss"] < 0.1
    assert final["eval_loss_a"] != final["eval_loss_b"]


def test_groups_are_logged_whatever_a_log_covers_and_they_are_called(native_folder, uneven, tmp_path):
    """Numbers as groups; one sample a log; and records with an `origin` of their own, which all count."""
    records = [json.loads(line) for line in uneven.read_text(encoding="utf-8").splitlines()]
    records = [{**record, "group": number % 2, "origin": "corpus"} for number, record in enumerate(records)]
    data = write_lines(uneven.parent / "numbered.jsonl", records)
    found = [
        train(native_folder, file, tmp_path / file.stem, eval_files=file, per_device_train_batch_size=1, max_steps=12)
        for file in (data, uneven)
    ]
    entries = [entry for entry in found[0].state.log_history if "loss" in entry]
    values = [{"loss_0", "loss_1"} & set(entry) for entry in entries]
    first = values.index({"loss_0"}) if {"loss_0"} in values else 12
    first = min(
        first, values.index({"loss_1"}) if {"loss_1"} in values else 12
    )  # when the second group was first seen
    assert first < 11 and all(len(value) == 1 for value in values[first:])
    for name, known in (("eval_loss", "eval_loss"), ("eval_loss_0", "eval_loss_a"), ("eval_loss_1", "eval_loss_b")):
        assert found[0].state.log_history[-1][name] == found[1].state.log_history[-1][known]


def test_the_adapter_stage_leaves_all_else_as_it_was(native_folder, uneven, tmp_path):
    # one at a time: half of the batches have no clip, and so nothing that learns
    train(native_folder, uneven, tmp_path, stage="adapter", per_device_train_batch_size=1, max_steps=8)
    assert changed_parts(native_folder, tmp_path) == {"adapter", "mergers"}


def test_parts_can_be_frozen(native_folder, uneven, tmp_path, capsys):
    train(native_folder, uneven, tmp_path, freeze=["encoder", "embeddings"])
    assert changed_parts(native_folder, tmp_path) == {"adapter", "mergers", "decoder"}
    for options, message in (
        ({"freeze": "ears"}, "--freeze ears: there are the parts encoder"),
        ({"freeze": "encoder", "stage": "lora"}, "--freeze goes with --stage full"),
        ({"eval_metric": "wer"}, "--eval_metric needs --eval_files"),
        ({"mixture": "m.json"}, "give either --train_files or --mixture"),
        ({"label_smoothing_factor": 0.1}, "--label_smoothing_factor does not work here"),
        ({"learnig_rate": 1}, "there is no --learnig_rate 1"),
        ({"load_best_model_at_end": True, "eval_strategy": "steps"}, "requires the save and eval strategy to match"),
        ({"resume_from_checkpoint": "nowhere"}, "--resume_from_checkpoint nowhere: there is no such folder"),
    ):
        with pytest.raises(SystemExit):
            finetune.parse_arguments(run_options(native_folder, uneven, tmp_path, **options))
        assert message in capsys.readouterr().err
    with pytest.raises(finetune.FinetuneError, match="leaves nothing to learn"):
        train(native_folder, uneven, tmp_path / "none", freeze=list(finetune.PARTS))


def test_one_process_uses_one_gpu(native_folder, uneven, tmp_path, monkeypatch, capsys):
    """Transformers would split a batch by rows among all that the process sees; its clips are no rows."""
    monkeypatch.setattr(TrainingArguments, "n_gpu", 2)
    with pytest.raises(SystemExit):
        finetune.parse_arguments(run_options(native_folder, uneven, tmp_path))
    assert "one process sees 2 GPUs: start one for each by `accelerate launch`" in capsys.readouterr().err
    with pytest.raises(ValueError, match="one process sees 2 GPUs"):
        MossAudioTrainer(
            model=MossAudioModel.from_pretrained(native_folder),
            args=TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True),
            data_collator=MossAudioDataCollator(MossAudioProcessor.from_pretrained(native_folder)),
        )


def test_a_finished_checkpoint_is_not_overwritten(native_folder, uneven, tmp_path, capsys):
    (tmp_path / "config.json").write_text("{}")
    options = run_options(native_folder, uneven, tmp_path)
    with pytest.raises(SystemExit):
        finetune.parse_arguments(options)
    said = capsys.readouterr().err
    assert "holds a checkpoint already (config.json): choose another folder" in said and said.count("\n") < 4
    assert finetune.parse_arguments([*options, "--resume_from_checkpoint", "true"])


def test_an_option_is_written_in_full(native_folder, uneven, tmp_path, capsys):
    with pytest.raises(SystemExit):
        finetune.parse_arguments([*run_options(native_folder, uneven, tmp_path), "--learning_rat", "1e-4"])
    assert "there is no --learning_rat" in capsys.readouterr().err


def test_every_parameter_belongs_to_one_part(model):
    for name, _ in model.named_parameters():
        assert sum(name.startswith(prefixes) for prefixes in finetune.PARTS.values()) == 1, name


@pytest.mark.parametrize("encoder", [False, True])
def test_lora_gives_an_adapter_that_loads_and_merges(native_folder, uneven, tmp_path, encoder):
    from peft import PeftModel

    trainer = train(
        native_folder, uneven, tmp_path / "lora", stage="lora", lora_on_encoder=encoder, learning_rate=0.02
    )
    assert losses(trainer)[-1] < losses(trainer)[0]
    adapter = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    assert any("audio_encoder" in name for name in adapter) == encoder
    layers = 4 * 7 + (5 * 6 if encoder else 0)
    assert len(adapter) == 2 * layers and not (tmp_path / "lora" / "model.safetensors").exists()

    processor = MossAudioProcessor.from_pretrained(tmp_path / "lora")
    inputs = MossAudioDataCollator(processor)([load_samples(uneven)[3]])
    base = MossAudioModel.from_pretrained(native_folder, dtype=torch.float32).eval()
    with torch.no_grad():
        plain = base(**inputs).logits
        loaded = PeftModel.from_pretrained(base, tmp_path / "lora").eval()(**inputs).logits
        merge(tmp_path / "lora", tmp_path / "merged")
        merged = MossAudioModel.from_pretrained(tmp_path / "merged").eval()(**inputs).logits
    assert (loaded - plain).abs().max() > 1e-2
    torch.testing.assert_close(merged, loaded, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(trainer.model.eval()(**inputs).logits, loaded, atol=1e-5, rtol=1e-5)
    assert set(CODE_FILES) <= {path.name for path in (tmp_path / "merged").iterdir()}
    with pytest.raises(ValueError, match="holds a checkpoint already"):
        merge(tmp_path / "lora", tmp_path / "merged")
    with pytest.raises(ValueError, match="holds no adapter_config.json"):
        merge(tmp_path / "merged", tmp_path / "other")


def test_the_same_seed_gives_the_same_losses_and_a_resumed_run_too(native_folder, uneven, tmp_path):
    """Dropout, order and optimizer included; over the end of an epoch, with batches of like length and workers."""
    options = {
        "max_steps": 6,
        "save_strategy": "steps",
        "save_steps": 3,
        "batch_by_length": True,
        "dataloader_num_workers": 1,
        "weights": 0.5,  # each epoch draws another half
    }
    whole = losses(train(native_folder, uneven, tmp_path / "a", **options))
    assert losses(train(native_folder, uneven, tmp_path / "b", **options)) == whole
    shutil.rmtree(tmp_path / "b" / "checkpoint-6")  # as if it had been interrupted after the third step
    resumed = train(native_folder, uneven, tmp_path / "b", resume_from_checkpoint=True, **options)
    assert losses(resumed) == whole and len(whole) == 6
    first, second = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert losses(train(native_folder, uneven, tmp_path / "c", **{**options, "seed": 1})) != whole


@pytest.fixture(scope="module")
def still_folder(native_folder, tmp_path_factory):
    """The checkpoint without dropout: runs that cut a batch differently then do the same."""
    folder = tmp_path_factory.mktemp("still") / "checkpoint"
    shutil.copytree(native_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    config["audio_config"].update(dropout=0.0, attention_dropout=0.0)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_accumulated_steps_and_a_loss_in_chunks_change_nothing(still_folder, uneven, tmp_path):
    whole = train(still_folder, uneven, tmp_path / "whole")
    parts = train(
        still_folder,
        uneven,
        tmp_path / "parts",
        per_device_train_batch_size=1,
        gradient_accumulation_steps=4,
        loss_chunk_size=3,
    )
    checkpointed = train(
        still_folder, uneven, tmp_path / "checkpointed", gradient_checkpointing=True, loss_chunk_size=100
    )
    names = ("loss", "grad_norm", "token_accuracy", "loss_a", "loss_b", "token_accuracy_a", "token_accuracy_b")
    for other in (parts, checkpointed):
        for name in names:
            assert losses(other, name) == pytest.approx(losses(whole, name), rel=2e-4, abs=2e-4), name


@pytest.mark.parametrize("items", [None, 37])
@pytest.mark.parametrize("chunk", [1, 3, 1000])
def test_a_loss_in_chunks_is_the_loss(tiny_folder, uneven, items, chunk):
    model = MossAudioModel.from_pretrained(tiny_folder, dtype=torch.float32).eval()
    samples = load_samples(uneven)
    batch = MossAudioDataCollator(MossAudioProcessor.from_pretrained(tiny_folder))([samples[i] for i in range(4)])
    gradients = []
    for options in ({}, {"loss_chunk_size": chunk}):
        model.zero_grad()
        output = model(**batch, num_items_in_batch=None if items is None else torch.tensor(items), **options)
        output.loss.backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
        if not options:
            plain = output
    assert output.logits is None
    torch.testing.assert_close(output.loss, plain.loss, atol=1e-6, rtol=1e-6)
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-6, rtol=1e-5)
    targets = batch["labels"][:, 1:]
    hits = (plain.logits[:, :-1].argmax(-1) == targets) & (targets != -100)
    assert torch.equal(output.token_hits[:, :-1], hits)
    count = (targets != -100).sum() if items is None else items
    torch.testing.assert_close(output.token_losses.sum() / count, plain.loss.detach(), atol=1e-6, rtol=1e-6)


def test_logits_are_held_for_a_chunk_at_most(tiny_folder, uneven):
    """Forward and backward: of all tensors made, none is larger than a chunk of logits."""
    from torch.utils._python_dispatch import TorchDispatchMode

    model = MossAudioModel.from_pretrained(tiny_folder, dtype=torch.float32)
    samples = load_samples(uneven)
    batch = MossAudioDataCollator(MossAudioProcessor.from_pretrained(tiny_folder))([samples[i] for i in range(4)])
    widest = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, (tuple, list)) else [result]:
                if isinstance(tensor, torch.Tensor) and tensor.ndim and tensor.shape[-1] == 320:
                    widest.append(tensor.numel() // 320)
            return result

    for options, limit in (({"loss_chunk_size": 2}, 2), ({}, batch["input_ids"].numel())):
        widest.clear()
        with Watch():
            model(**batch, **options).loss.backward()
        assert (
            max(rows for rows in widest if rows not in (64,)) == limit
        )  # 64 rows: the gradient of `lm_head` transposed


def test_a_batch_without_labels_costs_nothing(model, uneven, processor):
    batch = MossAudioDataCollator(processor)([load_samples(uneven)[0]])
    batch["labels"][:] = -100
    output = model(**batch, loss_chunk_size=4, num_items_in_batch=torch.tensor(5))
    assert output.loss == 0 and not output.token_hits.any()


def test_too_long_samples_are_left_out_of_a_run(native_folder, uneven, tmp_path, caplog):
    caplog.set_level("WARNING")
    trainer = train(native_folder, uneven, tmp_path, max_length=100, max_steps=1)
    assert len(trainer.train_dataset) == trainer.train_dataset.draws == 10
    assert "6 of 16 samples have more than 100 tokens; the first is" in caplog.text
    options = run_options(native_folder, uneven, tmp_path, max_length=100, too_long="raise")
    with pytest.raises(SystemExit) as stopped:
        finetune.main(options)
    assert stopped.value.code == 2


def test_a_run_names_what_is_wrong(native_folder, tmp_path, capsys):
    data = write_lines(tmp_path / "data.jsonl", [sample(["missing.wav"], "A?", "a")])
    with pytest.raises(SystemExit) as stopped:
        finetune.main(run_options(native_folder, data, tmp_path / "out"))
    assert stopped.value.code == 2
    assert "data.jsonl, line 1: `messages[0].content[0].path` is 'missing.wav'" in capsys.readouterr().err
    data = write_lines(tmp_path / "data.jsonl", [sample([], "A?", "a")])
    for options, message in (
        ({"max_length": 99999}, "`max_length` 99999 must be between 1 and 2048"),
        ({"model": "./none"}, "moss-audio: "),
        ({"chat_template": "none.jinja"}, "--chat_template none.jinja: there is no such file"),
    ):
        with pytest.raises(SystemExit) as stopped:
            model = options.pop("model", native_folder)
            finetune.main(run_options(model, data, tmp_path / "out", **options))
        assert stopped.value.code == 2 and message in capsys.readouterr().err


def test_weights_keep_the_dtype_of_the_checkpoint(native_folder, uneven, tmp_path):
    MossAudioModel.from_pretrained(native_folder, dtype=torch.bfloat16).save_pretrained(tmp_path / "half")
    MossAudioProcessor.from_pretrained(native_folder).save_pretrained(tmp_path / "half")
    trainer = train(tmp_path / "half", uneven, tmp_path / "out", bf16=True, max_steps=2)
    assert all(state["exp_avg"].dtype == torch.float32 for state in trainer.optimizer.state.values())
    assert {tensor.dtype for tensor in weights(tmp_path / "out").values()} == {torch.bfloat16}
    assert MossAudioModel.from_pretrained(tmp_path / "out", dtype="auto").dtype == torch.bfloat16


def test_what_training_changed_is_saved_with_the_processor(native_folder, uneven, tmp_path):
    template = MossAudioProcessor.from_pretrained(native_folder).chat_template.replace("helpful", "tuned")
    (tmp_path / "chat.jinja").write_text(template)
    train(
        native_folder, uneven, tmp_path / "out", max_steps=1, time_markers=False, chat_template=tmp_path / "chat.jinja"
    )
    processor = MossAudioProcessor.from_pretrained(tmp_path / "out")
    assert processor.enable_time_marker is False
    assert "You are a tuned assistant." in processor.apply_chat_template([{"role": "user", "content": "A?"}])


def test_the_standard_trainer_takes_collator_and_samples(native_folder, uneven, tmp_path):
    processor = MossAudioProcessor.from_pretrained(native_folder)
    trainer = Trainer(
        model=MossAudioModel.from_pretrained(native_folder, dtype=torch.float32),
        args=TrainingArguments(
            output_dir=str(tmp_path), max_steps=2, remove_unused_columns=False, report_to="none", use_cpu=True
        ),
        train_dataset=load_samples(uneven),
        data_collator=MossAudioDataCollator(processor),
        processing_class=processor,
    )
    trainer.train()
    trainer.save_model()
    assert {"model.safetensors", "processor_config.json", *CODE_FILES} <= {path.name for path in tmp_path.iterdir()}


def test_the_trainer_reads_whole_samples_by_default(native_folder, uneven, tmp_path):
    """Transformers' own default leaves a sample nothing but keys that the model knows, and it knows none."""
    trainer = MossAudioTrainer(
        model=MossAudioModel.from_pretrained(native_folder, dtype=torch.float32),
        args=TrainingArguments(output_dir=str(tmp_path), max_steps=1, report_to="none", use_cpu=True),
        train_dataset=load_samples(uneven),
        data_collator=MossAudioDataCollator(MossAudioProcessor.from_pretrained(native_folder)),
    )
    assert trainer.train().training_loss > 0


PUSH = """
from moss_audio.training.finetune import main
main(sys.argv[1:])
"""


def test_a_run_pushes_to_the_hub(native_folder, uneven, tmp_path):
    hub = Hub()
    try:
        options = {"max_steps": 1, "push_to_hub": True, "hub_model_id": "someone/tuned"}
        arguments = run_options(native_folder, uneven, tmp_path / "out", **options)
        run_python(PUSH, *arguments, cwd=tmp_path, **hub.environment(tmp_path / "cache"))
    finally:
        hub.close()
    assert {"model.safetensors", "config.json", "processor_config.json", *CODE_FILES} <= set(
        hub.uploads["someone/tuned"]
    )


def test_help_is_short_and_complete(capsys):
    with pytest.raises(SystemExit) as stopped:
        finetune.main(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert "--train_files TRAIN_FILES" in text and "--lora-rank" not in text and len(text.splitlines()) < 90
    for option in ("--learning_rate", "--help_all"):
        assert option in text
    with pytest.raises(SystemExit):
        finetune.main(["--help_all"])
    assert "--weight_decay" in capsys.readouterr().out
