"""Training data: what is read, what is refused and how, which tokens are labelled, and how files are mixed."""

import base64
import json
import pickle
from collections import Counter

import numpy as np
import pytest
import soundfile
import torch
from torch.utils.data import DataLoader

from moss_audio.cli import app
from moss_audio.training import DataError, EpochSampler, MossAudioDataCollator, grouped, load_samples, weighted
from moss_audio.training.lengths import quick_lengths
from moss_audio.training.metrics import error_rates, means_of, row_sums, score_tokens
from moss_audio.training.mixture import Mixture, Source
from tests.conftest import DATA, waveform
from tests.finetuning_helpers import sample, tone, write_lines


SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
SHORT = "<|audio_bos|>" + 5 * "<|vision_pad|>" + "<|audio_eos|>"  # 0.4 s: 40 frames
LONG = "<|audio_bos|>" + 25 * "<|vision_pad|>" + "2" + 7 * "<|vision_pad|>" + "<|audio_eos|>"  # 2.5 s: 250 frames


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    soundfile.write(folder / "short.wav", tone(1, 0.4), 16000)
    soundfile.write(folder / "long.wav", tone(2, 2.5), 16000)
    return folder


def check_labels(processor, batch, row, pieces):
    """Ids and labels of a row against pieces of text, of which those marked True are labelled."""
    expected_ids, expected_labels = [], []
    for text, labelled in pieces:
        ids = processor.tokenizer(text)["input_ids"]
        expected_ids += ids
        expected_labels += ids if labelled else [-100] * len(ids)
    length = len(expected_ids)
    assert batch["input_ids"][row, :length].tolist() == expected_ids
    assert batch["labels"][row, :length].tolist() == expected_labels
    assert batch["attention_mask"][row].tolist() == [1] * length + [0] * (batch["labels"].shape[1] - length)
    assert (batch["labels"][row, length:] == -100).all()
    assert (batch["input_ids"][row, length:] == processor.tokenizer.pad_token_id).all()


def user(*parts):
    made = [
        {"type": "audio", "path": part} if part.endswith(".wav") else {"type": "text", "text": part} for part in parts
    ]
    return {"role": "user", "content": made}


def assistant(text, **more):
    return {"role": "assistant", "content": text, **more}


CONVERSATIONS = {
    "one turn": (
        [user("short.wav", "Say."), assistant("hé")],
        [
            (f"{SYSTEM}<|im_start|>user\n{SHORT}\nSay.<|im_end|>\n<|im_start|>assistant\n", False),
            ("hé<|im_end|>", True),
        ],
    ),
    "text only": (
        [user("2+2?"), assistant("4")],
        [(f"{SYSTEM}<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n", False), ("4<|im_end|>", True)],
    ),
    "several clips": (
        [{"role": "system", "content": "Be brief."}, user("long.wav", "short.wav", "Louder?"), assistant("  both\n")],
        [
            ("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n", False),
            (f"{LONG}\n{SHORT}\nLouder?<|im_end|>\n<|im_start|>assistant\n", False),
            ("both<|im_end|>", True),
        ],
    ),
    "several turns": (
        [user("long.wav", "A?"), assistant("a"), user("B?", "short.wav"), assistant("b b")],
        [
            (f"{SYSTEM}<|im_start|>user\n{LONG}\nA?<|im_end|>\n<|im_start|>assistant\n", False),
            ("a<|im_end|>", "not last"),
            (f"\n<|im_start|>user\nB?\n{SHORT}<|im_end|>\n<|im_start|>assistant\n", False),
            ("b b<|im_end|>", True),
        ],
    ),
    "reasoning, which earlier turns lose": (
        [
            user("A?"),
            assistant("<think>\nx\n</think>\n\na"),
            user("B?"),
            assistant("b", reasoning_content="why"),
        ],
        [
            (f"{SYSTEM}<|im_start|>user\nA?<|im_end|>\n<|im_start|>assistant\n", False),
            ("a<|im_end|>", "not last"),
            ("\n<|im_start|>user\nB?<|im_end|>\n<|im_start|>assistant\n", False),
            ("<think>\nwhy\n</think>\n\nb<|im_end|>", True),
        ],
    ),
    "an empty block of reasoning": (
        [user("A?"), assistant("<think>\n\n</think>\n\na")],
        [
            (f"{SYSTEM}<|im_start|>user\nA?<|im_end|>\n<|im_start|>assistant\n", False),
            ("<think>\n\n</think>\n\na<|im_end|>", True),
        ],
    ),
}


@pytest.mark.parametrize("answers", ["all", "last"])
def test_labels_are_the_answers_token_by_token(processor, folder, answers):
    data = write_lines(folder / "labels.jsonl", [{"messages": messages} for messages, _ in CONVERSATIONS.values()])
    samples = load_samples(data)
    batch = MossAudioDataCollator(processor, answers=answers)([samples[i] for i in range(len(samples))])
    assert batch["labels"].dtype == torch.long
    for row, (_, pieces) in enumerate(CONVERSATIONS.values()):
        pieces = [(text, answers == "all" if labelled == "not last" else labelled) for text, labelled in pieces]
        # What follows the last answer belongs to nobody.
        check_labels(processor, batch, row, [*pieces, ("\n", False)])


def test_labels_with_the_released_tokenizer(qwen3_processor, folder):
    """Ids written by hand: `<|im_start|>` 151644, `<|im_end|>` 151645, the audio tokens' 151654, 151669 and 151670."""
    record = {"messages": [user(str(folder / "long.wav"), "Say hello."), assistant("Hello world")]}
    batch = MossAudioDataCollator(qwen3_processor)([record])
    system = [151644, 8948, 198, 2610, 525, 264, 10950, 17847, 13, 151645, 198]
    clip = [151669, *[151654] * 25, 17, *[151654] * 7, 151670]
    prompt = [*system, 151644, 872, 198, *clip, 198, 45764, 23811, 13, 151645, 198, 151644, 77091, 198]
    assert batch["input_ids"][0].tolist() == [*prompt, 9707, 1879, 151645, 198]
    assert batch["labels"][0].tolist() == [-100] * len(prompt) + [9707, 1879, 151645, -100]


def test_a_batch_has_what_its_members_have_alone(processor, folder):
    samples = load_samples(write_lines(folder / "all.jsonl", [{"messages": m} for m, _ in CONVERSATIONS.values()]))
    collate = MossAudioDataCollator(processor, pad_to_multiple_of=64)
    batch = collate([samples[i] for i in range(len(samples))])
    assert batch["input_ids"].shape[1] % 64 == 0
    clip = 0
    for row in range(len(samples)):
        alone = MossAudioDataCollator(processor)([samples[row]])
        length = alone["input_ids"].shape[1]
        for name in ("input_ids", "labels", "attention_mask"):
            assert torch.equal(batch[name][row, :length], alone[name][0])
        for features, frames in zip(alone.get("audio_data", []), alone.get("audio_data_seqlens", [])):
            assert torch.equal(batch["audio_data"][clip, :, :frames], features[:, :frames])
            assert batch["audio_data_seqlens"][clip] == frames
            clip += 1
    assert clip == len(batch["audio_data"]) == 5
    assert "audio_data" not in MossAudioDataCollator(processor)([samples[1]])


def test_inputs_are_those_of_inference(processor, folder):
    """Time markers included: a prompt that is trained on is the prompt that the pipeline makes."""
    record = {"messages": [user(str(folder / "long.wav"), "Say."), assistant("x")]}
    batch = MossAudioDataCollator(processor)([record])
    prompt = processor(text="Say.", audio=str(folder / "long.wav"))
    length = prompt["input_ids"].shape[1]
    assert torch.equal(batch["input_ids"][:, :length], prompt["input_ids"])
    assert (batch["labels"][:, :length] == -100).all() and batch["labels"][0, length] != -100
    torch.testing.assert_close(batch["audio_data"], prompt["audio_data"], atol=0, rtol=0)
    plain = MossAudioDataCollator(processor, enable_time_marker=False)([record])
    assert plain["input_ids"].shape[1] == batch["input_ids"].shape[1] - 1


def published(messages):
    """The same conversation in the published layout."""
    entries = []
    for message in messages:
        content = message["content"]
        for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            entries.append(
                {"role": message["role"], "message_type": part["type"], "content": part.get("path") or part["text"]}
            )
    return {"conversation": entries}


@pytest.mark.parametrize("kind", ["lines", "array", "datasets", "arrow", "list"])
def test_both_layouts_and_all_files_give_the_same_batch(processor, folder, tmp_path, kind):
    names = ("one turn", "text only", "several clips", "several turns")
    chats = [{"messages": CONVERSATIONS[name][0], "task": name} for name in names]
    collate = MossAudioDataCollator(processor, extra_keys=["task"])
    expected = load_samples(write_lines(folder / "chats.jsonl", chats))
    expected = collate([expected[i] for i in range(len(names))])
    assert expected.pop("extras") == {"task": list(names)}
    for records in (chats, [{**published(chat["messages"]), "task": chat["task"]} for chat in chats]):
        if kind in ("lines", "array"):
            path = folder / f"{kind}.json"
            path.write_text("\ufeff" + json.dumps(records, indent=1), encoding="utf-8")
            found = load_samples(write_lines(path, records) if kind == "lines" else path)
        elif kind == "list":
            found = load_samples(records, audio_root=folder)
        else:
            import datasets

            # Arrow wants one type for all contents.
            for record in records:
                for message in record.get("messages", ()):
                    if isinstance(message["content"], str):
                        message["content"] = [{"type": "text", "text": message["content"]}]
            found = datasets.Dataset.from_list(records)
            if kind == "arrow":
                found.to_parquet(folder / "data.parquet")
                found = load_samples(folder / "data.parquet")
            else:
                found = load_samples(found, audio_root=folder)
        batch = collate([found[i] for i in range(len(names))])
        assert batch.pop("extras") == {"task": list(names)}
        assert batch.keys() == expected.keys()
        assert all(torch.equal(batch[name], expected[name]) for name in expected)


def test_recordings_of_a_column(processor, folder):
    """As a dataset with an Audio column has them: beside the messages, in order."""
    audio = [
        {"array": waveform(1, 8000), "sampling_rate": 16000},
        {"array": waveform(2, 6400), "sampling_rate": 16000},
    ]
    turn = {"role": "user", "content": [{"type": "audio"}, {"type": "audio"}, {"type": "text", "text": "Which?"}]}
    batch = MossAudioDataCollator(processor)([{"messages": [turn, assistant("this")], "audio": audio}])
    assert batch["audio_data_seqlens"].tolist() == [50, 40]
    with pytest.raises(DataError, match="`audio` has 3 recordings, and the messages have 2"):
        MossAudioDataCollator(processor)([{"messages": [turn, assistant("this")], "audio": [*audio, audio[0]]}])


def test_lengths_by_headers_are_those_of_decoded_recordings(processor, folder):
    soundfile.write(folder / "rate.flac", tone(3, 1.3), 44100)
    content = (folder / "long.wav").read_bytes()
    sources = [
        {"path": str(folder / "rate.flac")},
        {"path": str(DATA / "speech.mp3")},
        {"base64": base64.b64encode(content).decode()},
        {"audio": {"bytes": content, "path": None}},
        {"audio": {"bytes": None, "path": "long.wav"}},
        {"audio": waveform(1, 8000)},
        {"audio": {"array": waveform(1, 11025), "sampling_rate": 22050}},
    ]
    chats = [
        {"role": "user", "content": [{"type": "audio", **source}, {"type": "text", "text": "A?"}]}
        for source in sources
    ]
    samples = load_samples([{"messages": [chat, assistant("a")]} for chat in chats], audio_root=folder)
    collate = MossAudioDataCollator(processor)
    exact = [int(collate([samples[i]])["attention_mask"].sum()) for i in range(len(samples))]
    assert quick_lengths(collate, samples) == exact
    assert exact[2] == exact[3] == exact[4] and exact[5] == exact[6]


def test_a_system_prompt_of_the_run_is_for_samples_without_one(processor, folder):
    own = [{"role": "system", "content": "Mine."}, user("A?"), assistant("a")]
    collate = MossAudioDataCollator(processor, system_prompt="Ours.")
    batch = collate([{"messages": own}, {"messages": own[1:]}])
    texts = [processor.tokenizer.decode(ids) for ids in batch["input_ids"]]
    assert "system\nMine.<" in texts[0] and "system\nOurs.<" in texts[1]


WRONG = {
    "role": (
        {"messages": [{"role": "asistant", "content": "x"}]},
        r"`messages\[0\].role` is 'asistant'; expected \"sys",
    ),
    "role, published": (
        {"conversation": [{"role": "human", "message_type": "text", "content": "x"}]},
        r"`conversation\[0\].role` is 'human'",
    ),
    "kind": (
        {"conversation": [{"role": "user", "message_type": "video", "content": "x"}]},
        r"`conversation\[0\].message_type` is 'video'; expected \"text\" or \"audio\"",
    ),
    "no layout": ({"text": "x"}, r"has keys \['text'\]; expected exactly one of `messages`"),
    "no object": (["x"], r"is \['x'\]; expected an object"),
    "empty answer": ({"messages": [user("A?"), assistant(" \n")]}, r"`messages\[1\]` is an empty answer"),
    "no answer": ({"messages": [user("A?")]}, "the last message is no answer"),
    "two questions": (
        {"messages": [user("A?"), user("B?"), assistant("a")]},
        r"`messages\[1\].role` is \"user\"; expected",
    ),
    "no such file": (
        {"messages": [user("missing.wav", "A?"), assistant("a")]},
        r"`messages\[0\].content\[0\].path` is 'missing.wav', and there is no such file \(.*missing.wav: paths start at",
    ),
    "no source": (
        {"messages": [{"role": "user", "content": [{"type": "audio", "file": "a.wav"}]}, assistant("a")]},
        r"`messages\[0\].content\[0\]` is an audio part with keys \['file', 'type'\]",
    ),
    "part": (
        {"messages": [{"role": "user", "content": [{"type": "image", "path": "a.png"}]}, assistant("a")]},
        r"`messages\[0\].content\[0\]` is {'type': 'image'",
    ),
    "text": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": 3}]}, assistant("a")]},
        r"`messages\[0\].content\[0\].text` is 3; expected a string",
    ),
    "sound in an answer": (
        {"messages": [user("A?"), {"role": "assistant", "content": [{"type": "audio", "path": "short.wav"}]}]},
        r"`messages\[1\]` is the assistant's and holds audio",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_named_with_file_line_and_key(folder, name):
    record, message = WRONG[name]
    good = sample(["short.wav"], "A?", "a")
    path = write_lines(folder / "wrong.jsonl", [good, good, record])
    with pytest.raises(DataError, match=r"wrong\.jsonl, line 3: " + message):
        load_samples(path)
    path.write_text("[\n" + json.dumps(good) + ",\n\n" + json.dumps(record) + "\n]")
    with pytest.raises(DataError, match=r"wrong\.jsonl, line 4: "):
        load_samples(path)


def test_every_sample_has_an_origin_of_its_own(folder, tmp_path):
    """Whatever a record calls `origin`: messages and the evaluation of several processes go by it."""
    record = {"messages": [{"role": "user", "content": "A?"}, assistant("a")], "origin": "corpus"}
    lines = load_samples(write_lines(tmp_path / "a.jsonl", [record, record]))
    assert [lines[index]["origin"] for index in range(2)] == [f"{tmp_path / 'a.jsonl'}, line {n}" for n in (1, 2)]
    with pytest.raises(DataError, match=r"a\.jsonl, line 1: `messages\[1\]` is an empty answer"):
        load_samples(write_lines(tmp_path / "a.jsonl", [{**record, "messages": [user("A?"), assistant("")]}]))
    import datasets

    for name in "bc":
        datasets.Dataset.from_list([record]).to_parquet(tmp_path / f"{name}.parquet")
    origins = [load_samples(tmp_path / f"{name}.parquet")[0]["origin"] for name in "bc"]
    assert origins == [f"{tmp_path / name}.parquet, row 0" for name in "bc"]


def test_what_is_no_data_file(folder):
    path = folder / "broken.jsonl"
    path.write_text(json.dumps(sample([], "A?", "a")) + '\n{"messages": [}\n{"a": 1}\n')
    with pytest.raises(DataError, match=r"(?s)line 2: this is not JSON \(.*1 more are wrong; `moss-audio check-data"):
        load_samples(path)
    path.write_text("\n")
    with pytest.raises(DataError, match="holds no sample"):
        load_samples(path)
    with pytest.raises(DataError, match="no such data file"):
        load_samples(folder / "none.jsonl")


def test_bad_recordings_and_texts_are_named_by_the_collator(processor, folder):
    (folder / "noise.wav").write_text("not sound")
    samples = load_samples(write_lines(folder / "bad.jsonl", [sample(["noise.wav"], "A?", "a")]))
    with pytest.raises(DataError, match=r"bad.jsonl, line 1: `messages\[0\]`: .*noise.wav cannot be read as sound"):
        MossAudioDataCollator(processor)([samples[0]])
    for token in ("<|im_end|>", "<|audio_bos|>", "<|vision_pad|>", "<|AUDIO|>"):
        with pytest.raises(DataError, match="holds .*, a token that steers the model"):
            MossAudioDataCollator(processor)([{"messages": [user(f"A{token}?"), assistant("a")]}])


def test_too_long_a_sample_is_dropped_and_counted_or_refused(processor, folder, monkeypatch):
    short, long = sample([str(folder / "short.wav")], "A?", "a"), sample([str(folder / "long.wav")], "A?", "a")
    fits = MossAudioDataCollator(processor)([short])["input_ids"].shape[1]
    collate = MossAudioDataCollator(processor, max_length=fits)
    said = []
    monkeypatch.setattr("moss_audio.training.collator.logger.warning", said.append)
    batch = collate([long, short, long])
    assert batch["input_ids"].shape == (1, fits) and len(batch["audio_data"]) == 1
    assert collate.dropped == 2 and len(said) == 2 and f"`max_length` is {fits}" in said[0] and "so far 2" in said[1]
    with pytest.raises(DataError, match="all 1 samples of a batch"):
        collate([long])
    with pytest.raises(DataError, match=rf"sample has {fits + 28} tokens \(2 s of sound\); `max_length` is {fits}"):
        MossAudioDataCollator(processor, max_length=fits, too_long="raise")([long])
    with pytest.raises(ValueError, match="`max_length` 4096 must be between 1 and 2048"):
        MossAudioDataCollator(processor, max_length=4096)
    with pytest.raises(ValueError, match="`too_long` is 'cut'"):
        MossAudioDataCollator(processor, too_long="cut")


TAGGED = (
    "{% for m in messages %}[{{ m.role }}]{{ nl }}"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}<|im_end|>"
    "{% else %}{{ m.content }}{% endif %}{{ nl }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{{ nl }}{% endif %}"
).replace("nl", r"'\n'")


def test_labels_survive_a_template_of_ones_own(processor):
    chat = [{"messages": [user("A?"), assistant("a"), user("B?"), assistant("b")]}]
    plain = TAGGED.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    for template in (TAGGED, plain):
        batch = MossAudioDataCollator(processor, chat_template=template)(chat)
        pieces = [("[user]\nA?\n[assistant]\n", False), ("a<|im_end|>", True), ("\n[user]\nB?\n[assistant]\n", False)]
        check_labels(processor, batch, 0, [*pieces, ("b<|im_end|>", True), ("\n", False)])
    unlike = plain.replace("%}[assistant]", "%}[answer]")
    with pytest.raises(ValueError, match="does not render message 1 as an answer that is generated is"):
        MossAudioDataCollator(processor, chat_template=unlike)(chat)


def test_workers_give_the_same_batches(processor, folder):
    records = [sample([clip], "A?", answer) for clip in ("short.wav", "long.wav") for answer in "ab"]
    samples = load_samples(write_lines(folder / "workers.jsonl", records))
    collate = MossAudioDataCollator(processor)
    alone = list(DataLoader(samples, batch_size=2, collate_fn=collate))
    copied, collate = pickle.loads(pickle.dumps((samples, collate)))  # as where processes are spawned
    found = list(DataLoader(copied, batch_size=2, collate_fn=collate, num_workers=2))
    assert len(found) == len(alone) == 2
    assert all(torch.equal(one[name], other[name]) for one, other in zip(alone, found) for name in one)


# ------------------------------------------------------------------------------------------------------------- mixtures


def texts_file(path, count):
    return write_lines(path, [sample([], f"{path.stem} {i}", "a") for i in range(count)])


def drawn(mixture, epoch, **options):
    sampler = EpochSampler(mixture, 7, **options)
    sampler.set_epoch(epoch)
    order = list(sampler)
    assert len(order) == len(sampler)
    return order


def test_weights_say_how_often_a_file_comes(tmp_path):
    files = [str(texts_file(tmp_path / f"{name}.jsonl", count)) for name, count in (("a", 6), ("b", 4), ("c", 5))]
    mixture = weighted(files, [1, 0.5, 2])
    epochs = [Counter(drawn(mixture, epoch)) for epoch in range(4)]
    for counts in epochs:
        assert sum(counts.values()) == mixture.draws == 6 + 2 + 10
        assert all(counts[index] == 1 for index in range(6)) and all(counts[index] == 2 for index in range(10, 15))
    halves = [{index for index in counts if 6 <= index < 10} for counts in epochs]
    assert all(len(half) == 2 for half in halves)
    assert halves[0] | halves[1] == halves[2] | halves[3] == {6, 7, 8, 9}  # in turn
    assert drawn(mixture, 1) == drawn(mixture, 1) != drawn(mixture, 2)
    assert mixture[6]["group"] == "b" and mixture[6]["messages"][0]["content"] == "b 0"
    with pytest.raises(DataError, match="`weights` has 1 numbers for 3 files"):
        weighted(files, [1])


def test_a_recipe_has_shares_and_square_roots(tmp_path):
    for name, count in (("a", 100), ("b", 25), ("c", 10)):
        texts_file(tmp_path / f"{name}.jsonl", count)
    groups = {"asr": {"share": 3, "files": ["a.jsonl", "b.jsonl"]}, "text": {"share": 1, "files": ["c.jsonl"]}}
    (tmp_path / "recipe.json").write_text(json.dumps({"groups": groups, "samples_per_epoch": 120}))
    mixture = grouped(tmp_path / "recipe.json")
    assert [(source.group, source.draws) for source in mixture.sources] == [("asr", 60), ("asr", 30), ("text", 30)]
    counts = Counter(mixture[index]["group"] for index in drawn(mixture, 0))
    assert counts == {"asr": 90, "text": 30}
    for wrong, message in (
        ({"groups": ["a.jsonl"]}, "is no recipe"),
        (
            {"groups": {"a": {"share": 1, "files": "a.jsonl"}}},
            "group 'a' needs a positive `share` and a list of `files`",
        ),
        ({"groups": {"a": {"share": 0, "files": ["a.jsonl"]}}}, "group 'a' needs a positive `share`"),
        ({"groups": {}}, "at least one group"),
        ({"groups": groups, "samples_per_epoch": -1}, "`samples_per_epoch` must be positive"),
        ({"groups": groups, "samples_per_epoch": "many"}, "is no recipe"),
    ):
        (tmp_path / "recipe.json").write_text(json.dumps(wrong))
        with pytest.raises(DataError, match=message):
            grouped(tmp_path / "recipe.json")


def test_batches_of_like_length(tmp_path):
    samples = load_samples(texts_file(tmp_path / "a.jsonl", 403))
    lengths = np.random.default_rng(0).integers(10, 500, 403)
    order = drawn(Mixture([Source(samples, 403, "a")]), 0, lengths=lengths, batch_size=8)
    assert sorted(order) == list(range(403))
    batches = [lengths[order[i : i + 8]] for i in range(0, 403, 8)]
    assert max(map(max, batches)) in batches[0]  # a lack of memory shows at once
    padding = sum(len(batch) * max(batch) - sum(batch) for batch in batches) / lengths.sum()
    shuffled = [lengths[i : i + 8] for i in range(0, 403, 8)]
    assert padding < 0.1 * sum(len(batch) * max(batch) - sum(batch) for batch in shuffled) / lengths.sum()
    assert [len(batch) for batch in batches][-1] == 3


# -------------------------------------------------------------------------------------------------------------- metrics


def test_scores_of_tokens():
    logits = torch.tensor([[[2.0, 0.0], [0.0, 3.0], [1.0, 0.0]]])
    losses, hits = score_tokens(logits, torch.tensor([[-100, 0, 0]]))
    expected = [-torch.log_softmax(logits[0, 0], 0)[0], -torch.log_softmax(logits[0, 1], 0)[0], torch.tensor(0.0)]
    torch.testing.assert_close(losses[0], torch.stack(expected))
    assert hits.tolist() == [[True, False, False]]


def test_sums_fit_devices_without_float64():
    sums = row_sums(
        torch.tensor([[0.5, 0.0, 2.0]]), torch.tensor([[True, False, False]]), torch.tensor([[-100, 1, 1]])
    )
    assert sums.tolist() == [[2.5, 1, 2]] and sums.dtype == torch.float32


def test_means_are_of_labels_not_of_batches():
    means = means_of([("a", (6.0, 1, 2)), ("b", (1.0, 1, 1)), ("a", (2.0, 2, 2))], "eval_")
    assert means == {
        "eval_loss": 9 / 5,
        "eval_token_accuracy": 4 / 5,
        "eval_loss_a": 2.0,
        "eval_token_accuracy_a": 3 / 4,
        "eval_loss_b": 1.0,
        "eval_token_accuracy_b": 1.0,
    }
    assert set(means_of([("a", (1.0, 1, 1))])) == {"loss", "token_accuracy"}
    assert means_of([("a", (1.0, 1, 1))], known={"a", "b"})["loss_a"] == 1
    assert means_of([]) == {}


def test_error_rates_are_of_plain_words():
    pairs = [("a", "One, two three.", "one two"), ("b", "四五", "四五"), ("b", "…", "left out")]
    # a character of a script without spaces is a word; words where there should be none are too many
    assert error_rates(pairs, "wer") == {"wer": 3 / 5, "wer_a": 1 / 3, "wer_b": 1.0}
    assert error_rates(pairs[1:2], "cer", "eval_") == {"eval_cer": 0.0}
    assert error_rates(pairs[2:], "wer") == {}


# ----------------------------------------------------------------------------------------------------------- check-data


def check_data(*arguments):
    from typer.testing import CliRunner

    return CliRunner().invoke(app, ["check-data", *map(str, arguments)])


def test_check_data_reads_a_whole_file(folder, tiny_folder):
    (folder / "noise.wav").write_text("not sound")
    records = [
        sample(["short.wav"], "A?", "a"),
        sample(["noise.wav"], "A?", "a"),
        sample(["long.wav"], "A?", "a", group="long"),
        sample(["short.wav"], "A?", ""),
        sample([], "A?", "a"),
    ]
    path = write_lines(folder / "check.jsonl", records)
    done = check_data(path, "--model", tiny_folder, "--max-length", 80)
    assert done.exit_code == 1
    lines = done.output.splitlines()
    assert "check.jsonl, line 2: `messages[0]`:" in lines[0] and "cannot be read as sound" in lines[0]
    assert "check.jsonl, line 3: this sample has" in lines[1] and "`max_length` is 80" in lines[1]
    assert "check.jsonl, line 4: `messages[1]` is an empty answer" in lines[2]
    assert lines[3] == "5 samples, 3 with problems (1 too long)."
    assert "2.5 s in the longest sample" in lines[4] and "groups: check 4, long 1" in lines[6]
    done = check_data(write_lines(path, records[::4]), "--model", tiny_folder, "--json")
    assert done.exit_code == 0
    entries = [json.loads(line) for line in done.output.splitlines()]
    assert [entry.get("seconds") for entry in entries] == [0.4, 0.0, None]
    assert entries[2]["samples"] == 2 and entries[2]["tokens"] == entries[0]["tokens"] + entries[1]["tokens"]
    done = check_data(folder / "none.jsonl", "--model", tiny_folder)
    assert done.exit_code == 2 and "no such data file" in done.output + done.stderr
