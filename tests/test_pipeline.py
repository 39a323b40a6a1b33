"""`pipeline("audio-text-to-text")` in all its calling conventions."""

import itertools

import numpy as np
import pytest
import soundfile
import torch
from torch.utils.data import Dataset
from transformers import TextStreamer, pipeline

import moss_audio
from tests.conftest import waveform


SPAN = "<|audio_bos|><|AUDIO|><|audio_eos|>"
CLIPS = [waveform(1, 70000), waveform(2, 9000), waveform(3, 40000)]


@pytest.fixture(scope="module")
def pipe(tiny_folder):
    """The tiny checkpoint's pipeline, made to answer with eight tokens, all of them text."""
    pipe = pipeline("audio-text-to-text", model=str(tiny_folder), device="cpu")
    for config in (pipe.model.generation_config, getattr(pipe, "generation_config", None)):
        if config is not None:  # version 4 of Transformers keeps a copy in the pipeline
            config.update(max_new_tokens=8, eos_token_id=None, suppress_tokens=list(range(293, 320)))
    return pipe


@pytest.fixture(scope="module")
def expected(pipe):
    """The answers that the parts give without the pipeline."""

    def answer(text, audio):
        inputs = pipe.processor(text=text, audio=audio)
        ids = pipe.model.generate(**inputs)
        new = pipe.processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return {"generated_text": new.strip(), "reasoning": None}

    return answer


def messages(clip, text="What?"):
    return [{"role": "user", "content": [{"type": "audio", "audio": clip}, {"type": "text", "text": text}]}]


def test_it_is_ours(pipe):
    assert type(pipe) is moss_audio.AudioTextToTextPipeline and type(pipe.model) is moss_audio.MossAudioModel


def test_one_input_gives_a_dict(pipe, expected):
    answer = expected("What?", CLIPS[0])
    assert answer["generated_text"]
    assert pipe(CLIPS[0], text="What?") == answer
    assert pipe({"audio": CLIPS[0], "text": "What?"}) == answer
    assert pipe({"audio": CLIPS[0]}, text="What?") == answer
    assert pipe({"array": CLIPS[0], "sampling_rate": 16000}, text="What?") == answer
    assert pipe(torch.from_numpy(CLIPS[0]), text="What?") == answer
    assert pipe(messages(CLIPS[0])) == answer
    assert pipe(text=messages(CLIPS[0])) == answer
    assert pipe({"messages": messages(CLIPS[0])}) == answer


def test_the_question_is_for_a_description_by_default(pipe, expected):
    assert pipe(CLIPS[0]) == expected("Describe this audio.", CLIPS[0])


def test_questions_without_a_recording(pipe, expected):
    assert pipe(text="What is 2+2?") == expected("What is 2+2?", None)
    assert pipe(text=["What is 2+2?", "Hello."]) == [expected("What is 2+2?", None), expected("Hello.", None)]
    assert pipe(text=[{"role": "user", "content": "Hello."}]) == expected("Hello.", None)


def test_several_clips_for_one_question(pipe, expected):
    assert pipe({"audio": CLIPS[:2], "text": "Compare."}) == expected("Compare.", CLIPS[:2])
    assert pipe({"audio": CLIPS[:2], "text": f"{SPAN}a{SPAN}b"}) == expected(f"{SPAN}a{SPAN}b", CLIPS[:2])


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_a_list_gives_a_list_in_any_batch_size(batch_size, pipe, expected):
    answers = [expected("What?", clip) for clip in CLIPS]
    assert pipe(CLIPS, text="What?", batch_size=batch_size) == answers
    assert pipe([messages(clip) for clip in CLIPS], batch_size=batch_size) == answers
    rows = [{"audio": clip, "text": "What?"} for clip in CLIPS]
    assert pipe(rows, batch_size=batch_size) == answers


def test_a_list_may_mix_everything(pipe, expected):
    inputs = [CLIPS[0], {"audio": CLIPS[:2], "text": "Compare."}, {"text": "No sound."}, messages(CLIPS[2])]
    answers = [
        expected("Default.", CLIPS[0]),
        expected("Compare.", CLIPS[:2]),
        expected("No sound.", None),
        expected("What?", CLIPS[2]),
    ]
    assert pipe(inputs, text="Default.", batch_size=4) == answers


def test_a_question_each(pipe, expected):
    texts = ["a", "b", "c"]
    assert pipe(CLIPS, text=texts, batch_size=3) == [expected(*pair) for pair in zip(texts, CLIPS)]
    with pytest.raises(ValueError, match="`text` has 2 questions for 3 recordings"):
        pipe(CLIPS, text=["a", "b"])
    with pytest.raises(ValueError, match="`text` has 2 questions for one recording"):
        pipe(CLIPS[0], text=["a", "b"])


@pytest.mark.parametrize(
    "make", [lambda: (clip for clip in CLIPS), lambda: iter(CLIPS), lambda: map(np.asarray, CLIPS)]
)
def test_a_generator_gives_an_iterator(make, pipe, expected):
    answers = pipe(make(), text="What?", batch_size=2)
    assert not isinstance(answers, list)
    assert list(answers) == [expected("What?", clip) for clip in CLIPS]


def test_a_generator_of_chats(pipe, expected):
    answers = pipe((messages(clip) for clip in CLIPS), batch_size=2)
    assert list(answers) == [expected("What?", clip) for clip in CLIPS]


class Recordings(Dataset):
    def __len__(self):
        return len(CLIPS)

    def __getitem__(self, index):
        return {"audio": {"array": CLIPS[index], "sampling_rate": 16000}, "sentence": "another column"}


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_dataset_gives_an_iterator(num_workers, pipe, expected):
    answers = pipe(Recordings(), text="What?", batch_size=2, num_workers=num_workers)
    assert list(answers) == [expected("What?", clip) for clip in CLIPS]


class Endless(Recordings):
    """As many datasets are: it takes any index, and `len` alone says where it ends."""

    def __getitem__(self, index):
        return super().__getitem__(index % len(CLIPS))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_dataset_ends_where_its_length_says(num_workers, pipe, expected):
    answers = itertools.islice(pipe(Endless(), text="What?", batch_size=2, num_workers=num_workers), 2 * len(CLIPS))
    assert list(answers) == [expected("What?", clip) for clip in CLIPS]


def test_a_dataset_of_chats(pipe, expected):
    class Chats(Recordings):
        def __getitem__(self, index):
            return messages(CLIPS[index])

    assert list(pipe(Chats(), batch_size=2)) == [expected("What?", clip) for clip in CLIPS]


def test_files(pipe, expected, tmp_path):
    soundfile.write(tmp_path / "a.wav", CLIPS[0], 16000, subtype="FLOAT")
    soundfile.write(tmp_path / "b.mp3", CLIPS[2], 16000, format="MP3")
    mp3 = moss_audio.load_audio(tmp_path / "b.mp3")
    answers = [expected("What?", CLIPS[0]), expected("What?", mp3)]
    assert pipe([str(tmp_path / "a.wav"), tmp_path / "b.mp3"], text="What?", batch_size=2) == answers
    assert pipe((tmp_path / "a.wav").read_bytes(), text="What?") == answers[0]
    with open(tmp_path / "a.wav", "rb") as file:
        assert pipe(file, text="What?") == answers[0]


@pytest.mark.parametrize("batch_size", [1, 2])
def test_several_answers_to_each_input(batch_size, pipe):
    options = {"num_return_sequences": 3, "num_beams": 4, "batch_size": batch_size}
    answers = pipe(CLIPS, text="What?", **options)
    assert [len(each) for each in answers] == [3, 3, 3]
    assert answers[0] == pipe(CLIPS[0], text="What?", **options)
    assert all(set(answer) == {"generated_text", "reasoning"} for each in answers for answer in each)
    best = pipe(CLIPS[0], text="What?", num_beams=4)
    assert answers[0][0] == best


def test_generation_parameters(pipe):
    both = {"generate_kwargs": {"max_new_tokens": 2}}
    assert pipe(CLIPS[0], **both) == pipe(CLIPS[0], max_new_tokens=2) != pipe(CLIPS[0])
    with pytest.raises(ValueError, match=r"\['max_new_tokens'\] stand both in `generate_kwargs` and beside it"):
        pipe(CLIPS[0], max_new_tokens=3, **both)
    with pytest.raises(ValueError, match="no_such_argument"):
        pipe(CLIPS[0], no_such_argument=1)


def test_parameters_of_the_pipeline_hold_for_every_call(tiny_folder, pipe):
    other = pipeline(
        "audio-text-to-text", model=str(tiny_folder), device="cpu", text="What?", max_new_tokens=2, batch_size=2
    )
    assert other(CLIPS[0]) == pipe(CLIPS[0], text="What?", max_new_tokens=2)
    assert other(CLIPS[0], text="Who?") == pipe(CLIPS[0], text="Who?", max_new_tokens=2)


def test_a_question_of_the_pipelines_holds_for_lists_too(pipe, tiny_folder, expected):
    other = pipeline("audio-text-to-text", model=str(tiny_folder), device="cpu", text="What?", max_new_tokens=8)
    other.model.generation_config = pipe.model.generation_config
    if hasattr(other, "generation_config"):
        other.generation_config = pipe.generation_config
    assert other(CLIPS[:2]) == [expected("What?", clip) for clip in CLIPS[:2]]
    assert other(CLIPS[:2], text="Who?") == [expected("Who?", clip) for clip in CLIPS[:2]]


def test_nothing_gives_nothing(pipe):
    assert pipe([]) == []


def test_full_text(pipe, expected):
    answer = expected("What?", CLIPS[0])["generated_text"]
    assert pipe(CLIPS[0], text="What?", return_full_text=True)["generated_text"] == "What?" + answer
    chat = messages(CLIPS[0])
    full = pipe(chat, return_full_text=True)["generated_text"]
    assert full[:1] == chat and full[1] == {"role": "assistant", "content": answer}


@pytest.mark.parametrize("content", ["The", [{"type": "text", "text": "The"}]])
def test_an_open_answer_is_continued(content, pipe):
    chat = [*messages(CLIPS[0]), {"role": "assistant", "content": content}]
    prompt = pipe.processor.apply_chat_template(chat, continue_final_message=True)
    assert prompt.endswith("assistant\nThe")
    new = pipe(chat)["generated_text"]
    full = pipe(chat, return_full_text=True)["generated_text"][-1]
    assert full == {
        "role": "assistant",
        "content": f"The{new}" if content == "The" else [{"type": "text", "text": f"The{new}"}],
    }
    assert pipe(chat, continue_final_message=False, return_full_text=True)["generated_text"][-1]["role"] == "assistant"


def scripted(pipe, monkeypatch, text):
    """Makes the model answer with a text."""
    ids = pipe.processor.tokenizer(text, return_tensors="pt")["input_ids"]
    monkeypatch.setattr(
        pipe.model, "generate", lambda input_ids, **kw: torch.cat((input_ids, ids.expand(len(input_ids), -1)), dim=1)
    )


def test_an_answer_that_goes_on_keeps_its_space(pipe, monkeypatch):
    scripted(pipe, monkeypatch, " world<|im_end|>")
    chat = [{"role": "user", "content": "Say it."}, {"role": "assistant", "content": "Hello"}]
    assert pipe(chat)["generated_text"] == " world"
    assert pipe(chat, return_full_text=True)["generated_text"][-1]["content"] == "Hello world"
    assert pipe(chat[:1])["generated_text"] == "world"


def test_reasoning_is_returned_apart(pipe, monkeypatch):
    scripted(pipe, monkeypatch, "<think>\nA bell, I think.\n</think>\n\nA bell.<|im_end|><|endoftext|>")
    answer = {"generated_text": "A bell.", "reasoning": "A bell, I think."}
    assert pipe(CLIPS[0]) == answer and pipe(CLIPS, batch_size=3) == [answer] * 3
    raw = "<think>\nA bell, I think.\n</think>\n\nA bell.<|im_end|>"
    assert pipe(CLIPS[0], return_raw_text=True) == {**answer, "raw_text": raw}


def test_reasoning_that_the_chat_has_opened(pipe, monkeypatch):
    chat = [*messages(CLIPS[0]), {"role": "assistant", "content": "<think>\nLet me"}]
    scripted(pipe, monkeypatch, " listen.\n</think>\n\nA bell.<|im_end|>")
    assert pipe(chat) == {"generated_text": "A bell.", "reasoning": "listen."}
    scripted(pipe, monkeypatch, " listen. It may")  # cut off
    assert pipe(chat) == {"generated_text": "", "reasoning": "listen. It may"}
    chat[-1]["content"] = [{"type": "text", "text": "<think>\nA bell.\n</think>\n\nIt is"}]
    assert pipe(chat) == {"generated_text": " listen. It may", "reasoning": None}


def test_thinking_is_switched_off_in_the_prompt(pipe, monkeypatch):
    prompts = []
    generate = pipe.model.generate
    monkeypatch.setattr(pipe.model, "generate", lambda **kw: prompts.append(kw["input_ids"][0]) or generate(**kw))
    for given in (CLIPS[0], messages(CLIPS[0], "Describe this audio.")):
        pipe(given, enable_thinking=False)
        assert pipe.processor.decode(prompts[-1]).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
        pipe(given)
        assert pipe.processor.decode(prompts[-1]).endswith("<|im_start|>assistant\n")
        pipe(given, enable_thinking=True)
        assert torch.equal(prompts[-1], prompts[-2])


def test_markers_and_rates_reach_the_processor(pipe, monkeypatch):
    lengths = []
    generate = pipe.model.generate
    monkeypatch.setattr(
        pipe.model, "generate", lambda **kw: lengths.append(kw["input_ids"].shape[1]) or generate(**kw)
    )
    for options in ({}, {"enable_time_marker": False}, {"sampling_rate": 32000}):
        pipe(np.tile(CLIPS[2], 2), **options)
    assert lengths[1] == lengths[0] - 2  # 5 s: markers 2 and 4
    assert lengths[2] < lengths[0] - 25


def test_an_answer_is_streamed(pipe, expected, capsys):
    pipe(CLIPS[0], text="What?", streamer=TextStreamer(pipe.processor.tokenizer, skip_prompt=True))
    assert capsys.readouterr().out.strip() == expected("What?", CLIPS[0])["generated_text"]


def test_bad_input(pipe):
    with pytest.raises(ValueError, match="Pass a recording, a text, or the messages"):
        pipe()
    with pytest.raises(FileNotFoundError, match="no audio file at 'nothing.wav'"):
        pipe("nothing.wav")
    with pytest.raises(ValueError, match=r"holds the audio token <\|AUDIO\|> outside"):
        pipe(CLIPS[0], text="a <|AUDIO|>")
    with pytest.raises(ValueError, match="`text` does not go with a chat"):
        pipe(messages(CLIPS[0]), text="What?")
    with pytest.raises(ValueError, match="the decoder has 2048 positions.* The longest that fits"):
        pipe(np.zeros(16000 * 200, dtype=np.float32))


def test_a_saved_pipeline_is_a_checkpoint(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    model = moss_audio.MossAudioModel.from_pretrained(tmp_path)
    processor = moss_audio.MossAudioProcessor.from_pretrained(tmp_path)
    again = moss_audio.AudioTextToTextPipeline(model=model, processor=processor, device="cpu")
    assert again(CLIPS[0], max_new_tokens=8) == pipe(CLIPS[0], max_new_tokens=8)
