"""The training of the small checkpoint: in miniature, but all of it."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import EvalPrediction, TrainerState, pipeline

import moss_audio
from moss_audio import MossAudioModel, MossAudioProcessor, log_mel
from moss_audio.checkpoints import TINY
from moss_audio.training import MossAudioDataCollator, train_tiny
from moss_audio.training.tiny_world import LABELS, WORDS, Clip, Event, ask, listed, messages, questions
from moss_audio.training.train_tiny import (
    IGNORED,
    Settings,
    frame_labels,
    make_model,
    make_processor,
    train,
)


@pytest.fixture(scope="module")
def made():
    return make_processor()


def test_the_tokenizer_writes_digits_one_by_one_and_labels_in_few_tokens(made):
    tokenizer = made.tokenizer
    assert tokenizer.tokenize("[10.52]seven") == ["[", "1", "0", ".", "5", "2", "]", "seven"]
    assert all(len(tokenizer.tokenize(f" {label}")) <= len(label.split()) for label in LABELS)
    for text in ("Ünïcödé 音\t\n  x", "<think>\n1.25 to 1.50: beep\n</think>\n\n2."):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    thought = tokenizer("<think>\n\n</think>\n\nYes.<|im_end|>")["input_ids"]
    assert tokenizer.decode(thought, skip_special_tokens=True) == "<think>\n\n</think>\n\nYes."


def test_the_model_has_every_part_and_is_small(made):
    model = make_model(made)
    assert sum(parameter.numel() for parameter in model.parameters()) * 2 < 15.9e6  # bytes in bfloat16
    assert (
        len(model.deepstack_audio_merger_list) == 3
        and model.generation_config.eos_token_id == made.tokenizer.eos_token_id
    )
    assert len(make_model(made, taps=0).deepstack_audio_merger_list) == 0


def test_frame_labels():
    events = [Event(0.10, 0.33, "seven"), Event(3.92, 4.21, "bell")]
    labels = frame_labels(events, 60)
    seven, bell = 1 + LABELS.index("seven"), 1 + LABELS.index("bell")
    assert labels[:5, 0].tolist() == [0, seven, seven, seven, 0]  # centres 0.04, 0.12, 0.20, 0.28, 0.36
    assert labels[48:54, 0].tolist() == [0, bell, bell, bell, bell, 0]  # 3.88, 3.96, 4.04, 4.12, 4.20, 4.28
    none = [IGNORED] * 2
    assert labels[1, 1:].tolist() == [1, 3, 0, 2, *none]  # it starts 20 ms into the second token
    assert labels[2, 1:].tolist() == [1, 3, *none, *none]
    assert labels[4, 1:].tolist() == [*none, *none, 3, 1]  # and ends 10 ms into the fifth
    assert labels[49, 1:].tolist() == [9, IGNORED, 2, 0, *none]  # it ends in the next window
    assert labels[51, 1:].tolist() == [IGNORED, 2, *none, *none]  # it began in the one before
    assert labels[52, 1:].tolist() == [IGNORED, 2, *none, 1, 5]
    assert (labels[[0, 5, 48, 54, 59], 1:] == IGNORED).all()
    # Where two overlap, the later one is heard, its times and no others.
    both = frame_labels([Event(3.2, 3.9, "bell"), Event(3.6, 4.3, "one")], 60)
    assert both[46].tolist() == [1 + LABELS.index("one"), 6, IGNORED, *none, *none]


def test_what_has_happened_so_far():
    events = [Event(0.10, 0.33, "seven"), Event(0.50, 0.75, "bell"), Event(0.75, 0.95, "seven")]
    seven, bell = 1 + LABELS.index("seven"), 1 + LABELS.index("bell")
    labels = train_tiny.so_far(events, 13)
    assert labels[1:4].tolist() == [[1, 1, 0]] * 3  # centres 0.12, 0.20, 0.28
    assert labels[6:9].tolist() == [[2, IGNORED, seven]] * 3  # 0.52, 0.60, 0.68
    assert labels[9:12].tolist() == [[3, 2, bell]] * 3
    assert (labels[[0, 4, 5, 12]] == IGNORED).all()
    assert labels[13].tolist() == [3, 2, seven]  # at the end of the clip
    assert train_tiny.so_far([], 2).tolist() == [[IGNORED] * 3, [IGNORED] * 3, [0, 0, 0]]


def test_a_batch_tells_which_event_comes_next(made):
    events = [Event(0.10, 0.33, "five"), Event(0.50, 0.75, "bell"), Event(0.90, 1.2, "five")]
    clip = Clip(np.zeros(24000, dtype=np.float32), events)
    asked = [train_tiny.Question("presence", "Is there speech?", "Yes.")]
    rows = [[ask(clip, task, np.random.default_rng(0))] for task in ("transcription", "timestamps", "description")]
    rows.append([*asked, ask(clip, "count", np.random.default_rng(0), think=True)])
    samples = [
        {
            "messages": messages({"audio": clip.waveform}, row),
            "told": (events, [(question.answer, listed(question, clip), question.task) for question in row]),
        }
        for row in rows
    ]
    batch = train_tiny.UnevenCollator(made)([*samples, {"messages": messages(None, asked)}])
    so_far, ids = batch["so_far"], batch["input_ids"]
    assert so_far.shape == (5, ids.shape[1], 3) and (so_far[4] == IGNORED).all()
    expected = train_tiny.so_far(events, 19).tolist()
    told = []
    for row, tokens, labels in zip(so_far[:4], ids, batch["labels"]):
        heard = (tokens == made.audio_token_id) | (tokens == made.audio_end_id)
        assert row[heard].tolist() == expected
        rest = row.masked_fill(heard[:, None], IGNORED)
        assert (rest[:, 2] == IGNORED).all()
        next_ones = {}  # the tokens of each event by its number
        for index, column in (rest != IGNORED).nonzero().tolist():
            next_ones.setdefault((column, int(rest[index, column])), []).append(int(labels[index + 1]))
        told.append({key: made.tokenizer.decode(value) for key, value in next_ones.items()})
    assert told[0] == {(1, 1): "five", (1, 2): " five", (1, 3): "<|im_end|>"}
    assert told[1] == {(1, 1): "[0.10]five[0.33]", (1, 2): "[0.90]five[1.20]", (1, 3): "<|im_end|>"}
    assert told[2] == {
        (0, 1): 'The word "five',
        (0, 2): '", then a bell',
        (0, 3): ', then the word "five',
        (0, 4): '". The clip lasts 2 seconds.<|im_end|>',
    }
    assert told[3][0, 1] == "<think>\n0.10 to 0.33: five" and told[3][0, 3] == "\n0.90 to 1.20: five"
    assert told[3][0, 4].startswith("\n</think>\n\n") and told[3][0, 4].endswith(".<|im_end|>")


def test_what_happened_so_far_is_read_from_the_layers_that_are_to_know_it():
    torch.manual_seed(0)
    heads, labels = train_tiny.SoFar(8), torch.full((2, 5, 3), IGNORED)
    assert heads([torch.randn(2, 5, 8)] * 4, labels) == 0
    for column, layer in enumerate(train_tiny.SO_FAR_LAYERS):
        labels.fill_(IGNORED)[1, 3, column] = 2
        states = [torch.randn(2, 5, 8, requires_grad=True) for _ in range(4)]
        heads(states, labels).backward()
        moved = [
            (index, *place)
            for index, state in enumerate(states)
            if state.grad is not None
            for place in state.grad.abs().sum(-1).nonzero().tolist()
        ]
        assert moved == [(layer, 1, 3)]


def test_what_is_read_and_heard_is_alike_from_the_start(made):
    torch.manual_seed(0)
    model, heads = make_model(made), train_tiny.Heads(256).linear.weight
    train_tiny.embed_what_is_heard(model, made.tokenizer, heads)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    heard = heads[1 : 1 + len(LABELS)]
    for space, labels in ((" ", LABELS), ("", WORDS)):
        tokens = [made.tokenizer(space + label)["input_ids"][-1] for label in labels]
        read = model.get_input_embeddings().weight[tokens]
        alike = torch.nn.functional.cosine_similarity(read[:, None], heard[None], dim=-1)
        assert alike.argmax(1).tolist() == [LABELS.index(label) for label in labels]
        assert alike.max(1).values.min() > 0.7
    digits = [made.tokenizer(str(digit))["input_ids"][-1] for digit in range(10)]
    read = model.get_input_embeddings().weight[digits]
    for column in (1, 2, 3, 5):  # tenths and hundredths of start and end
        heard = heads.split(train_tiny.HEARD)[column]
        alike = torch.nn.functional.cosine_similarity(read[:, None], heard[None], dim=-1)
        assert alike.argmax(1).tolist() == list(range(10)) and alike.max(1).values.min() > 0.3


def test_a_new_decoder_hands_on_what_it_attends_to(made):
    model = make_model(made)
    train_tiny.hand_on_what_is_attended_to(model)
    states = torch.randn(1, 1, 256)  # alone, it attends to itself
    for layer in model.language_model.layers:
        angles = model.language_model.rotary_emb(states, torch.zeros(1, 1, dtype=torch.long))
        with torch.no_grad():
            handed_on, _ = layer.self_attn(states, angles, attention_mask=None)
        torch.testing.assert_close(handed_on, states, rtol=0, atol=1e-4)


@torch.no_grad()
def test_tokens_are_not_drowned_by_the_layers_of_a_new_decoder(made):
    model = make_model(made)
    train_tiny.hand_on_what_is_attended_to(model)
    tokens = torch.randint(1, 600, (2, 50))
    drowned = sizes_of_layers(model, tokens)
    states = model.get_input_embeddings()(tokens)
    logits = model.get_output_embeddings()(model.language_model.norm(states))
    train_tiny.speak_up(model)
    sizes = sizes_of_layers(model, tokens)
    assert drowned[1] > 5 * drowned[0]
    assert 0.9 < sizes[0] < 1.1 and all(later - size < 0.5 for size, later in zip(sizes, sizes[1:-1]))
    states = model.get_input_embeddings()(tokens)
    again = model.get_output_embeddings()(model.language_model.norm(states))
    torch.testing.assert_close(again, logits, rtol=1e-3, atol=1e-3)


def sizes_of_layers(model, tokens):
    states = model(input_ids=tokens, attention_mask=torch.ones_like(tokens), output_hidden_states=True).hidden_states
    return [state.pow(2).mean().sqrt().item() for state in states]


@torch.no_grad()
def test_a_new_decoder_looks_back_and_for_the_same_label(made):
    torch.manual_seed(0)
    model, heads = make_model(made), train_tiny.Heads(256).linear.weight
    train_tiny.embed_what_is_heard(model, made.tokenizer, heads)
    train_tiny.hand_on_what_is_attended_to(model)
    train_tiny.speak_up(model)
    train_tiny.look_back(model, made.tokenizer)
    model.set_attn_implementation("eager")
    text = "A. seven\nB. bell\nC. up\nD. chord\nWhat comes after the up?"
    tokens = torch.tensor([made.tokenizer(text)["input_ids"]])
    attentions = model(input_ids=tokens, attention_mask=torch.ones_like(tokens), output_attentions=True).attentions
    for head, distance in enumerate((1, 2, 3)):
        there = attentions[0][0, head].diagonal(-distance)
        assert (
            there[distance:] > 0.5
        ).float().mean() > 0.6  # queries of tokens apart from the others point the wrong way
    read, again = (tokens[0] == made.tokenizer(" up")["input_ids"][0]).nonzero().flatten().tolist()
    for layer in attentions[1:]:
        for found in layer[0, :2, again]:
            assert sorted(found.topk(2).indices.tolist()) == [read, again] and found[read] > 0.15


def test_what_the_mergers_add_begins_small(made):
    torch.manual_seed(0)
    model, features = make_model(made), torch.randn(3, 128, 160)
    with torch.no_grad():
        for layer in model.audio_encoder.layers:  # as in an ear that has learned, intermediate states are large
            layer.fc2.weight.mul_(20)
    before = sizes_of_what_is_heard(model, features)
    train_tiny.quieten_mergers(model, features)
    after = sizes_of_what_is_heard(model, features)
    assert len(after) == 4 and min(before[1:]) > 2 * before[0]
    assert after[0] == before[0] and all(0.02 * after[0] < size < 0.5 * after[0] for size in after[1:])


@torch.no_grad()
def sizes_of_what_is_heard(model, features):
    heard = model.get_audio_features(features, torch.full((len(features),), features.shape[-1]), return_dict=True)
    return [states.pow(2).mean().sqrt().item() for states in (heard.pooler_output, *heard.deepstack_features)]


def test_in_training_bands_of_frequencies_are_left_out():
    for split in ("train", "dev"):
        world = train_tiny.TinyWorld(split, 0, train_tiny.SilentVocabulary())
        clips, again, left_out = train_tiny.Clips(world, 20), train_tiny.Clips(world, 20), []
        for index in range(20):
            features, whole = clips[index]["features"], log_mel(torch.from_numpy(world[index].waveform))
            assert torch.equal(features, again[index]["features"])
            gone = (features != whole).any(1)
            left_out.append(int(gone.sum()))
            assert gone.diff().sum() <= 4  # two bands, each with a beginning and an end
            assert len(features[gone].unique()) <= 2  # flat
        if split == "dev":
            assert max(left_out) == 0
        else:
            assert max(left_out) <= 2 * train_tiny.MOST_MASKED and len(set(left_out)) > 5


def test_positions_jump_at_time_markers_alone(made):
    clips = [np.zeros(16000 * seconds, dtype=np.float32) for seconds in (11, 3, 1)]
    asked = [train_tiny.Question("presence", "Is there speech?", "No.")] * 2
    samples = [{"messages": messages({"audio": clip}, asked), "jumps": 7} for clip in [*clips, clips[0]]]
    samples[-1]["jumps"] = None
    even, uneven, again = (
        collator(samples)
        for collator in (MossAudioDataCollator(made), train_tiny.UnevenCollator(made), train_tiny.UnevenCollator(made))
    )
    assert all(torch.equal(value, uneven[name]) for name, value in even.items())
    assert torch.equal(uneven["position_ids"], again["position_ids"])  # a resumed run repeats itself
    steps = uneven["position_ids"].diff()
    jumped = []
    for row, ids, there in zip(steps, uneven["input_ids"], uneven["attention_mask"].bool()):
        row = row[there[1:] & there[:-1]]
        tokens = made.tokenizer.convert_ids_to_tokens(ids[there])
        before = [index for index, step in enumerate(row.tolist()) if step != 1]
        assert all(tokens[index] == "<|AUDIO|>" and tokens[index + 1].isdigit() for index in before)
        assert row.min() == 1 and row.max() <= 1 + train_tiny.MOST_JUMP
        jumped.append(len(before))
    assert jumped[0] in range(3, 6) and jumped[1] in (0, 1) and jumped[2:] == [0, 0]  # a marker every two seconds
    assert (uneven["position_ids"].amin(1) == 0).all()


def test_the_exam_asks_what_a_data_file_does_and_marks_whole_answers(made):
    world = train_tiny.TinyWorld("dev", 0, train_tiny.SilentVocabulary())
    exam, collator = train_tiny.Exam(world, 6), MossAudioDataCollator(made)
    expected = [question for index in range(6) for question in questions(world[index], world.generator(index, 1))]
    chats = [exam[row]["messages"] for row in range(len(exam))]
    assert [chat[0]["content"][1]["text"] for chat in chats] == [question.prompt for question in expected]
    assert {len(chat) for chat in chats} == {2}
    labels = collator([exam[row] for row in range(len(exam))])["labels"].numpy()
    said = np.roll(labels, -1, axis=1)  # what logits say at a token is the next one
    said[labels[:, [*range(1, labels.shape[1]), 0]] == IGNORED] = 5  # nobody asks there
    marks = exam.mark(EvalPrediction(said, labels))
    assert marks == {f"right_{question.task}": 1.0 for question in expected}
    row = next(index for index, question in enumerate(expected) if question.task == "count")
    said[row, (labels[row] != IGNORED).argmax() - 1] += 1
    count = sum(question.task == "count" for question in expected)
    assert exam.mark(EvalPrediction(said, labels)) == {**marks, "right_count": 1 - 1 / count}


def test_of_a_model_s_outputs_the_likeliest_tokens_are_kept():
    logits = torch.tensor([[[0.0, 2.0, 1.0], [3.0, 2.0, 1.0]]])
    for outputs in (logits, (logits, torch.zeros(7, 4))):
        assert train_tiny.likeliest(outputs, torch.zeros(1, 2)).tolist() == [[1, 0]]


def test_texts_come_before_all_sound(made, tmp_path):
    world = train_tiny.TinyWorld("train", 0, train_tiny.SilentVocabulary())
    data = train_tiny.Conversations(world, 48, texts=16, lists=16, practice=4, uneven=True)
    content = [[part["type"] for part in data[index]["messages"][0]["content"]] for index in range(48)]
    assert content == [["text"]] * 16 + [["text"], *[["audio", "text"]] * 3] * 8
    read = [data[index]["messages"][0]["content"][-1]["text"] for index in (*range(16), *range(16, 48, 4))]
    kinds = [
        "lookups" if "Which signs have these" in text else "reading" if " clip lasts " in text else "matching"
        for text in read
    ]
    assert kinds[:5] == ["lookups"] * 5 and set(kinds[5:]) == {"lookups", "matching", "reading"}
    args = train_tiny.training_arguments(Settings(batch_size=4, workers=0), tmp_path, 12, 1e-3)
    collator = train_tiny.UnevenCollator(made)
    trainer = train_tiny.TinyTrainer(make_model(made), args, collator, data, data, short_steps=2)
    order = trainer._get_train_sampler()
    assert sorted(order[:5]) == list(range(5)) and sorted(order[5:16]) == list(range(5, 16))
    assert sorted(order[16:32]) == list(range(16, 32))
    tokens = [collator([data[index]])["input_ids"].shape[1] for index in range(16)]
    guessed = [data.lengths(index, made.tokenizer)[1] for index in range(16)]
    assert np.ptp(np.subtract(tokens, guessed)) == 0 < np.ptp(tokens)
    batch = collator([data[index] for index in range(4)])
    assert "audio_data" not in batch and torch.isfinite(make_model(made)(**batch).loss)


def test_lists_about_short_clips_come_first_then_other_lists_and_each_comes_once(made, tmp_path):
    data = train_tiny.Conversations(train_tiny.TinyWorld("train", 0, train_tiny.SilentVocabulary()), 96, lists=64)
    settings = Settings(batch_size=8, workers=0)
    args = train_tiny.training_arguments(settings, tmp_path, 12, 1e-3)
    trainer = train_tiny.TinyTrainer(
        model=make_model(made),
        args=args,
        train_dataset=data,
        eval_dataset=data,
        data_collator=MossAudioDataCollator(made),
        short_steps=3,
    )
    order = trainer._get_train_sampler()
    assert sorted(order) == list(range(96))
    seconds = [data.lengths(index, made.tokenizer)[0] for index in order]
    assert sorted(order[:64]) == list(range(64)) and max(seconds[:24]) <= min(seconds[24:64])
    asked = [data[index]["messages"] for index in order[:64]]
    assert {len(chat) for chat in asked} == {2, 4} and any(len(data[index]["messages"]) > 4 for index in order[64:])
    tokens = [data.lengths(index, made.tokenizer)[1] for index in order[24:64]]
    batches = [tokens[start : start + 8] for start in range(0, 40, 8)]
    assert sum(np.ptp(batch) for batch in batches) < 0.5 * len(batches) * np.ptp(tokens)  # of like length
    assert batches != sorted(batches) and batches != sorted(batches, reverse=True)
    sounds = [data[index]["messages"][0]["content"][0]["audio"] for index in order]
    assert seconds == [len(sound) / 16000 for sound in sounds]  # though no clip was made


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")
def test_two_minutes_of_training_lower_the_loss(tmp_path, monkeypatch):
    """And leave a checkpoint that loads without code of its own; an interrupted run goes on."""
    monkeypatch.setattr(train_tiny, "Vocabulary", lambda split: moss_audio.training.tiny_world.Vocabulary(split, 3))
    trainer = {"logging_steps": 1, "eval_steps": 20, "save_steps": 20, "dataloader_persistent_workers": False}
    steps = {"encoder_steps": 20, "word_steps": 20, "steps": 40, "text_steps": 5, "list_steps": 15, "short_steps": 10}
    settings = Settings(
        **steps, batch_size=8, warmup_steps=5, clips=200, dev_clips=8, exam_clips=4, workers=0, trainer=trainer
    )
    folder = train(settings, tmp_path)
    for stage, drop in (("encoder", 0.9), ("model", 0.75)):
        log = json.loads((tmp_path / stage / "log.json").read_text())
        losses = [entry["loss"] for entry in log if "loss" in entry]
        assert np.mean(losses[-3:]) < drop * np.mean(losses[:3]), stage
    known = [entry["so_far_loss"] for entry in log if "so_far_loss" in entry]
    assert len(known) == 40 and known[:5] == [0] * 5  # the first steps are about text alone
    assert np.mean(known[-3:]) < np.mean(known[5:8])
    names = {path.name for path in folder.iterdir()}
    assert {
        "config.json",
        "model.safetensors",
        "processor_config.json",
        "tokenizer.json",
        "chat_template.jinja",
    } <= names
    assert not any(name.endswith(".py") for name in names)
    taught, weights = torch.load(tmp_path / "encoder.pt", weights_only=True), load_file(folder / "model.safetensors")
    assert not any("so_far" in name for name in weights)
    for name, value in taught["audio_encoder"].items():  # the second stage leaves the ear as it is
        torch.testing.assert_close(weights[f"audio_encoder.{name}"], value.to(torch.bfloat16))
    model = MossAudioModel.from_pretrained(folder, dtype="auto")
    assert model.dtype == torch.bfloat16 and MossAudioProcessor.from_pretrained(folder).enable_time_marker
    pipe = pipeline("audio-text-to-text", model=str(folder))
    assert isinstance(pipe(np.zeros(16000, dtype=np.float32), max_new_tokens=3)["generated_text"], str)

    weights = (folder / "model.safetensors").read_bytes()
    shutil.rmtree(folder)
    shutil.rmtree(tmp_path / "model" / "checkpoint-40")
    assert train(settings, tmp_path) == folder  # from step 20 on
    assert (folder / "model.safetensors").read_bytes() == weights
    train_tiny.draw_curves(tmp_path, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 5000
    with pytest.raises(ValueError, match="other settings"):
        train(Settings(seed=1), tmp_path)

    # Without learning, a run that goes on from another one's end comes to the same end.
    on = replace(
        settings, after=str(folder), seed=1, steps=2, text_steps=1, list_steps=0, short_steps=0, learning_rate=0.0
    )
    assert (train(on, tmp_path / "on") / "model.safetensors").read_bytes() == weights
    heads = torch.load(tmp_path / train_tiny.HEADS, weights_only=True)
    assert heads["linear.0.weight"].shape == (train_tiny.SO_FAR[0], 256)
    for name, value in torch.load(tmp_path / "on" / train_tiny.HEADS, weights_only=True).items():
        torch.testing.assert_close(value, heads[name], rtol=0, atol=0)
    train_tiny.draw_curves(tmp_path / "on", tmp_path / "on.png")
    ends = []
    for name, halfway in (("full", False), ("half", True)):
        learning = replace(on, learning_rate=1e-3, halfway=halfway)
        ends.append(load_file(train(learning, tmp_path / name) / "model.safetensors"))
    learned = [name for name in ends[0] if not name.startswith(train_tiny.PARTS)]
    beginning = load_file(folder / "model.safetensors")
    begun, full, half = (
        torch.cat([state[name].float().flatten() for name in learned]) for state in (beginning, *ends)
    )
    assert (half - (begun + full) / 2).abs().mean() < 0.3 * (full - begun).abs().mean()  # bfloat16 leaves something
    (tmp_path / "half" / train_tiny.HEADS).write_bytes(b"other")
    with pytest.raises(ValueError, match="so_far.pt has no heads of this command"):
        train(replace(on, after=str(tmp_path / "half/moss-audio-tiny")), tmp_path / "lost")
    with pytest.raises(FileNotFoundError, match="nowhere' is not the folder of a checkpoint"):
        train(replace(on, after="nowhere"), tmp_path / "lost")
    assert not (tmp_path / "lost").exists()

    # With the ear of a checkpoint, only what reads from it is taught.
    short = replace(settings, encoder_steps=20, word_steps=0, steps=2, text_steps=0, list_steps=1, short_steps=0)
    taken = train(short, tmp_path / "taken", Path(TINY))
    before, after = (load_file(path / "model.safetensors") for path in (Path(TINY), taken))
    for name, value in before.items():
        if name.startswith(train_tiny.PARTS):
            torch.testing.assert_close(after[name], value, rtol=0, atol=0)
    losses = [
        entry["loss"] for entry in json.loads((tmp_path / "taken/encoder/log.json").read_text()) if "loss" in entry
    ]
    assert np.mean(losses[-3:]) < 0.9 * np.mean(losses[:3])
    values = json.loads((taken / "config.json").read_text())
    assert {values["dtype"], values["audio_config"]["dtype"], values["language_config"]["dtype"]} == {"bfloat16"}
    with pytest.raises(ValueError, match="other settings"):
        train(short, tmp_path / "taken")  # with an ear of its own
    # A decoder may go on with another ear, that of a file.
    moved = load_file(train(on, tmp_path / "moved", tmp_path / "taken/encoder.pt") / "model.safetensors")
    for name, value in load_file(folder / "model.safetensors").items():
        expected = before[name] if name.startswith(train_tiny.PARTS) else value
        torch.testing.assert_close(moved[name], expected, rtol=0, atol=0)
    # Of an ear that was taught elsewhere there is no log; the curves are those of the decoder alone.
    train(short, tmp_path / "elsewhere", tmp_path / "encoder.pt")
    train_tiny.draw_curves(tmp_path / "elsewhere", tmp_path / "elsewhere.png")


def test_halfway_is_the_mean_of_before_and_after(made):
    model = make_model(made)
    weight, kept = model.audio_adapter.gate_proj.weight, model.language_model.norm.weight.clone()
    before = {"audio_adapter.gate_proj.weight": weight.detach().clone()}
    with torch.no_grad():
        weight += 2
    train_tiny._go_half_back(model, before)
    torch.testing.assert_close(weight, before["audio_adapter.gate_proj.weight"] + 1)
    torch.testing.assert_close(model.language_model.norm.weight, kept)


def test_steps_that_do_not_fit_each_other_are_refused(tmp_path):
    for wrong in ({"steps": 100}, {"short_steps": 2000}):
        with pytest.raises(ValueError, match="list_steps .* steps"):
            train(Settings(**wrong), tmp_path / "run")
    for wrong in ({"encoder_steps": 0, "word_steps": 0}, {"encoder_steps": 1000}):
        with pytest.raises(ValueError, match=f"word_steps .* encoder_steps {wrong['encoder_steps']}"):
            train(Settings(**wrong), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")
def test_an_ear_that_was_taught_something_else_is_refused(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(train_tiny, "Vocabulary", lambda split: moss_audio.training.tiny_world.Vocabulary(split, 1))
    torch.save({"heads": {"linear.weight": torch.zeros(89, 256)}}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="other.pt was taught other labels"):
        train(Settings(), tmp_path / "run", tmp_path / "other.pt")
    with pytest.raises(ValueError, match="audio_encoder` in .* other shapes"):
        train(Settings(), tmp_path / "run", tiny_folder)


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")
def test_an_ear_that_is_not_there_or_not_wanted_is_refused(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(bytes(100))
    torch.save({"audio_encoder": {}}, tmp_path / "headless.pt")
    for wrong, error, words in (
        ("nowhere", FileNotFoundError, "nowhere is neither"),
        ("", FileNotFoundError, "is neither"),  # a folder, but of no checkpoint
        ("model.safetensors", ValueError, "model.safetensors is no `encoder.pt`"),
        ("headless.pt", ValueError, "headless.pt is no `encoder.pt`"),
    ):
        with pytest.raises(error, match=words):
            train(Settings(), tmp_path / "run", tmp_path / wrong)
    with pytest.raises(ValueError, match="must be an `encoder.pt`"):
        train(Settings(after="there"), tmp_path / "run", Path(TINY))
    with pytest.raises(ValueError, match="halfway .* needs after"):
        train(Settings(halfway=True), tmp_path / "run")
    with pytest.raises(ValueError, match="does not go with taps"):
        train(Settings(after="there", taps=0), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_times_count_for_more_once_the_words_are_known(made):
    ear = train_tiny.Ear(make_model(made))
    callback = train_tiny.TimesLater(100)
    for step, share in ((0, 0.1), (99, 0.1), (100, 0.4), (5000, 0.4)):  # a resumed run has its step from the start
        callback.on_step_begin(None, TrainerState(global_step=step), None, model=ear)
        assert ear.heads.times_share == share
    states, labels = torch.randn(6, 256), torch.full((6, 7), IGNORED)
    labels[:, 0], labels[2:4, 3] = torch.tensor([0, 0, 3, 4, 0, 1]), 7
    losses = {}
    for ear.heads.times_share in (0.0, 0.1, 0.4):
        losses[ear.heads.times_share] = ear.heads(states, labels)[0].item()
    assert losses[0.4] - losses[0.0] == pytest.approx(4 * (losses[0.1] - losses[0.0]), rel=1e-4)
    assert losses[0.1] > losses[0.0]
