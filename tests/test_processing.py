"""The processor against the reference's numbers, every kind of source, and input that is no sound."""

import base64
import copy
import dataclasses
import functools
import http.server
import io
import json
import pickle
import re
import sys
import threading
import types
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file
from transformers import AutoProcessor, AutoTokenizer

from moss_audio import MossAudioProcessor, load_audio, log_mel, split_reasoning
from moss_audio.processing_moss_audio import count_clips, default_prompt, expand_clip
from tests.conftest import DATA, run_python, waveform


CASES = [case["name"] for case in json.loads((DATA / "golden" / "processor_cases.json").read_text("utf-8"))["cases"]]
SPAN = "<|audio_bos|><|AUDIO|><|audio_eos|>"


def run_length(ids: list[int]) -> list[list[int]]:
    runs: list[list[int]] = []
    for token in ids:
        if runs and runs[-1][0] == token:
            runs[-1][1] += 1
        else:
            runs.append([token, 1])
    return runs


def clips_of(case: dict) -> list[np.ndarray]:
    return [waveform(**clip) for clip in case["clips"]]


# -------------------------------------------------------------------------------------------------------------- golden


@pytest.mark.parametrize("markers, key", [(True, "input_ids_rle_time_markers"), (False, "input_ids_rle_no_markers")])
@pytest.mark.parametrize("name", CASES)
def test_golden_token_ids(name, markers, key, processor_cases, qwen3_processor):
    case = next(case for case in processor_cases if case["name"] == name)
    inputs = qwen3_processor(text=case["text"], audio=clips_of(case), enable_time_marker=markers)
    assert run_length(inputs["input_ids"][0].tolist()) == case[key]
    assert inputs["attention_mask"].all()
    if case["clips"]:
        assert inputs["audio_data_seqlens"].tolist() == case["audio_data_seqlens"]
        assert inputs["audio_data"].dtype == torch.float32
    else:
        assert "audio_data" not in inputs


def test_golden_log_mel():
    expected = load_file(DATA / "golden" / "mel_cases.safetensors")
    assert len(expected) == 5
    for name, features in expected.items():
        seed, samples = map(int, re.findall(r"\d+", name))
        actual = log_mel(torch.from_numpy(waveform(seed, samples)))
        torch.testing.assert_close(actual, features, atol=1e-4, rtol=0)


def test_log_mel_does_not_depend_on_its_blocks(monkeypatch):
    clip = torch.from_numpy(waveform(1, 50000))
    expected = log_mel(clip)
    monkeypatch.setattr("moss_audio.processing_moss_audio.FRAMES_PER_BLOCK", 7)
    torch.testing.assert_close(log_mel(clip), expected, atol=1e-6, rtol=0)


def test_a_batch_pads_on_the_left_and_keeps_the_golden_ids(processor_cases, qwen3_processor):
    cases = [case for case in processor_cases if len(case["clips"]) < 2]
    inputs = qwen3_processor(text=[case["text"] for case in cases], audio=[clips_of(case) for case in cases])
    for row, case in enumerate(cases):
        keep = inputs["attention_mask"][row].bool()
        assert run_length(inputs["input_ids"][row, keep].tolist()) == case["input_ids_rle_time_markers"]
        assert (inputs["input_ids"][row, ~keep] == 151643).all() and keep[-1]
    lengths = [length for case in cases for length in case.get("audio_data_seqlens", [])]
    assert inputs["audio_data_seqlens"].tolist() == lengths
    for clip, length in zip(inputs["audio_data"], lengths):
        assert not clip[:, length:].any()


def test_digital_silence_is_sound(processor, model):
    inputs = processor(text="Describe this audio.", audio=np.zeros(16000, dtype=np.float32))
    assert (inputs["audio_data"] == -1.5).all()
    assert model.generate(**inputs, max_new_tokens=4, eos_token_id=None).shape[1] == inputs["input_ids"].shape[1] + 4


# ---------------------------------------------------------------------------------------------------------------- text


def test_markers_are_on_unless_somebody_says_otherwise(tiny_folder, tmp_path):
    released = json.loads((tiny_folder / "processor_config.json").read_text())
    for file in tiny_folder.glob("*"):
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    clip, markers = waveform(1, 32000), {}
    for said in (None, True, False):
        (tmp_path / "processor_config.json").write_text(json.dumps({**released, "enable_time_marker": said}))
        if said is None:
            del released["enable_time_marker"]
            (tmp_path / "processor_config.json").write_text(json.dumps(released))
        loaded = MossAudioProcessor.from_pretrained(tmp_path)
        markers[said] = loaded(text="a", audio=clip)["input_ids"].shape[1]
        overridden = MossAudioProcessor.from_pretrained(tmp_path, enable_time_marker=said is False)
        assert overridden(text="a", audio=clip)["input_ids"].shape[1] == markers[said] + (1 if said is False else -1)
    assert markers[None] == markers[True] == markers[False] + 1


def test_expand_clip():
    assert expand_clip(24) == "<|AUDIO|>" * 24
    assert expand_clip(25, audio_token="A") == "A" * 25 + "2"
    assert expand_clip(51, audio_token="A") == "A" * 25 + "2" + "A" * 25 + "4" + "A"
    assert expand_clip(51, enable_time_marker=False, audio_token="A") == "A" * 51
    assert "A98" + "A" * 25 + "100A" in expand_clip(1251, audio_token="A").replace("A" * 25 + "98", "A98")


def test_the_marker_digits_are_the_tokenizers(processor):
    """The tiny tokenizer's digits have other ids than Qwen3's."""
    ids = processor(text="a", audio=waveform(1, 12 * 16000))["input_ids"][0]
    written = [processor.tokenizer.decode(run) for run, _ in run_length(ids.tolist())]
    inside = written[written.index("<|audio_bos|>") + 1 : written.index("<|audio_eos|>")]
    assert [text for text in inside if text != "<|vision_pad|>"] == ["2", "4", "6", "8", "1", "0", "1", "2"]


def test_several_clips_without_a_span_stand_a_line_each(processor):
    inputs = processor(text="Compare.", audio=[waveform(1, 8000), waveform(2, 8000)], enable_time_marker=False)
    spelled = f"{SPAN}\n{SPAN}\nCompare.".replace("<|AUDIO|>", "<|vision_pad|>" * 7)
    assert spelled in processor.decode(inputs["input_ids"][0])


def test_spans_may_be_written_in_either_name_and_with_several_tokens(processor):
    clip = waveform(1, 8000)
    expected = processor(text=f"a{SPAN}b", audio=clip)["input_ids"]
    for token in ("<|vision_pad|>", "<|AUDIO|><|AUDIO|><|AUDIO|>"):
        text = f"a{SPAN}b".replace("<|AUDIO|>", token)
        assert torch.equal(processor(text=text, audio=clip)["input_ids"], expected)


CLIP = waveform(1, 3200)
LAYOUTS = {
    "one clip for one text": ("a", CLIP, [1]),
    "a list for one text": ("a", [CLIP, CLIP], [2]),
    "no clip": ("a", None, [0]),
    "a list for a batch of one": (["a"], [CLIP, CLIP], [2]),
    "a nested list for a batch of one": (["a"], [[CLIP, CLIP]], [2]),
    "one each": (["a", "b"], [CLIP, CLIP], [1, 1]),
    "lists and none": (["a", "b", "c"], [[CLIP, CLIP], None, CLIP], [2, 0, 1]),
    "a flat list for spans": ([f"{SPAN}{SPAN}", "b", SPAN], [CLIP, CLIP, CLIP], [2, 0, 1]),
    "a flat list as long as the batch": ([f"{SPAN}{SPAN}", "b"], [CLIP, CLIP], [2, 0]),
    "a batch of one without a clip": (["a"], [None], [0]),
    "samples as a list": ("a", CLIP.tolist(), [1]),
    "samples as lists": (["a", "b"], [CLIP.tolist(), CLIP], [1, 1]),
}


@pytest.mark.parametrize("text, audio, clips", LAYOUTS.values(), ids=LAYOUTS)
def test_which_clip_belongs_to_which_text(text, audio, clips, processor):
    inputs = processor(text=text, audio=audio)
    assert (inputs["input_ids"] == processor.audio_start_id).sum(1).tolist() == clips
    assert inputs.get("audio_data_seqlens", torch.zeros(0)).shape == (sum(clips),)


def test_pad_joins_calls_as_one_call_would(processor, mixed_batch):
    calls = [
        processor(text="Describe this audio.", audio=waveform(1, 150000)),
        processor(text="What is 2+2?"),
        processor(text="Compare the two.", audio=[waveform(2, 9000), waveform(3, 70000)]),
        processor(text="Transcribe.", audio=waveform(4, 64000)),
    ]
    joined = processor.pad(calls)
    assert set(joined) == set(mixed_batch)
    assert all(torch.equal(joined[name], mixed_batch[name]) for name in joined)


def test_tensors_of_other_libraries_and_none(processor):
    arrays = processor(text=["a", "bc"], audio=[CLIP, None], return_tensors="np")
    assert all(isinstance(value, np.ndarray) for value in arrays.values())
    lists = processor(text=["a", "bc"], audio=[CLIP, None], return_tensors=None)
    assert lists["input_ids"] == arrays["input_ids"].tolist()


def test_the_device_is_where_tensors_come_back(processor):
    inputs = processor(text="a", audio=CLIP, device="cpu")
    assert {value.device.type for value in inputs.values()} == {"cpu"}


def test_reasoning_is_split_off():
    assert split_reasoning("<think>\nhm\n</think>\n\nyes") == ("hm", "yes")
    assert split_reasoning("<think>\n\n</think>\n\nyes") == ("", "yes")
    assert split_reasoning("yes") == (None, "yes")
    assert split_reasoning("<think>cut off") == ("cut off", "")
    assert split_reasoning("hm\n</think>\n\nyes") == ("hm", "yes")  # the prompt opened the block


def test_the_thinking_tokens_survive_decoding(processor, qwen3_processor):
    for each in (processor, qwen3_processor):
        ids = each.tokenizer("<think>a</think>b<|im_end|>")["input_ids"]
        assert each.decode(ids, skip_special_tokens=True) == "<think>a</think>b"
        assert each.batch_decode([ids], skip_special_tokens=True) == ["<think>a</think>b"]


# -------------------------------------------------------------------------------------------------------------- folders


@pytest.mark.parametrize("folder", ["model_tiny", "qwen3-tokenizer"])
def test_save_and_load_round_trips(folder, tmp_path):
    original = MossAudioProcessor.from_pretrained(DATA / folder, enable_time_marker=False)
    original.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "processor_config.json").read_text())
    assert saved["enable_time_marker"] is False and saved["audio_token_id"] == original.audio_token_id
    assert all(type(saved["mel_config"][name]) is int for name in ("mel_sr", "mel_dim", "mel_n_fft", "mel_hop_length"))
    clip = waveform(1, 40000)
    for again in (MossAudioProcessor.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)):
        assert type(again) is MossAudioProcessor
        assert again.tokenizer.get_vocab() == original.tokenizer.get_vocab()
        assert again.chat_template == original.chat_template
        expected, actual = original(text="a<think>b", audio=clip), again(text="a<think>b", audio=clip)
        assert all(torch.equal(actual[name], expected[name]) for name in expected)


def test_what_a_user_changes_is_kept(tmp_path):
    changed = MossAudioProcessor.from_pretrained(DATA / "model_tiny", chat_template="{{ messages[0].content }}")
    assert changed.apply_chat_template([{"role": "user", "content": "hello"}]) == "hello"
    changed.save_pretrained(tmp_path)
    again = MossAudioProcessor.from_pretrained(tmp_path)
    assert again.apply_chat_template([{"role": "user", "content": "hello"}]) == "hello"


@pytest.mark.parametrize("keys", [{}, {"processor_class": "MossAudioProcessor"}], ids=["bare", "with its class"])
def test_the_template_of_a_released_folder_does_not_count(keys, tiny_folder, tmp_path):
    """It ignores `enable_thinking` where there is audio."""
    for file in tiny_folder.glob("*"):
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    released = json.loads((tmp_path / "processor_config.json").read_text())
    (tmp_path / "processor_config.json").write_text(json.dumps({**released, **keys}))
    (tmp_path / "chat_template.jinja").write_text("as released")
    loaded = MossAudioProcessor.from_pretrained(tmp_path)
    assert loaded.chat_template == MossAudioProcessor.from_pretrained(tiny_folder).chat_template


def test_other_tokens_of_the_tokenizer_are_unchanged(qwen3_processor):
    plain = AutoTokenizer.from_pretrained(DATA / "qwen3-tokenizer")
    added = {"<|audio_bos|>": 151669, "<|audio_eos|>": 151670}
    assert qwen3_processor.tokenizer.get_vocab() == {**plain.get_vocab(), **added}


def test_a_tokenizer_that_cannot_have_the_tokens_is_refused():
    tokenizer = AutoTokenizer.from_pretrained(DATA / "model_tiny")
    with pytest.raises(ValueError, match=r"no special token at id 151654 for <\|AUDIO\|>, and with its 301 tokens"):
        MossAudioProcessor(tokenizer)


def test_it_pickles_and_copies(processor):
    for again in (pickle.loads(pickle.dumps(processor)), copy.deepcopy(processor)):
        assert torch.equal(again(text="a", audio=CLIP)["input_ids"], processor(text="a", audio=CLIP)["input_ids"])


# ---------------------------------------------------------------------------------------------------------------- chat


def test_the_default_case_is_the_default_prompt(processor):
    messages = [{"role": "user", "content": [{"type": "audio", "path": "x.wav"}, {"type": "text", "text": "TEXT"}]}]
    expected = (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        f"{SPAN}\nTEXT<|im_end|>\n<|im_start|>assistant\n"
    )
    assert processor.apply_chat_template(messages, add_generation_prompt=True) == expected == default_prompt("TEXT", 1)
    text_only = [{"role": "user", "content": "TEXT"}]
    assert processor.apply_chat_template(text_only, add_generation_prompt=True) == default_prompt("TEXT", 0)


def test_a_tokenized_chat_is_the_processors_call(processor, tmp_path):
    soundfile.write(tmp_path / "a.wav", waveform(1, 40000), 16000, subtype="FLOAT")
    encoded = (tmp_path / "a.wav").read_bytes()
    expected = processor(text="TEXT", audio=waveform(1, 40000))
    sources = [
        {"path": str(tmp_path / "a.wav")},
        {"url": str(tmp_path / "a.wav")},
        {"audio": waveform(1, 40000)},
        {"audio": torch.from_numpy(waveform(1, 40000))},
        {"base64": base64.b64encode(encoded).decode()},
        {"base64": "data:audio/wav;base64," + base64.b64encode(encoded).decode()},
    ]
    for source in sources:
        messages = [{"role": "user", "content": [{"type": "audio", **source}, {"type": "text", "text": "TEXT"}]}]
        options = {"tokenize": True, "add_generation_prompt": True}
        inputs = processor.apply_chat_template(messages, return_dict=True, **options)
        assert set(inputs) == set(expected)
        assert all(torch.equal(inputs[name], expected[name]) for name in expected)
        assert torch.equal(processor.apply_chat_template(messages, **options), expected["input_ids"])


def test_a_conversation_of_several_turns(processor):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "First:"}, {"type": "audio", "audio": CLIP}]},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nA dog."},
        {"role": "user", "content": [{"type": "audio", "audio": CLIP}, {"type": "audio", "audio": CLIP}]},
    ]
    assert processor.apply_chat_template(messages, add_generation_prompt=True, enable_thinking=False) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        f"<|im_start|>user\nFirst:\n{SPAN}<|im_end|>\n"
        "<|im_start|>assistant\nA dog.<|im_end|>\n"
        f"<|im_start|>user\n{SPAN}\n{SPAN}<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )
    inputs = processor.apply_chat_template(messages, tokenize=True, return_dict=True)
    assert inputs["audio_data"].shape[0] == 3


def test_messages_may_be_objects(processor):
    @dataclasses.dataclass
    class Item:
        type: str
        text: str = None
        audio: np.ndarray = None

    @dataclasses.dataclass
    class Message:
        role: str
        content: list
        reasoning_content: str = None

    class Answer:
        def model_dump(self, exclude_none=False):
            return {"role": "assistant", "content": "A."} if exclude_none else pytest.fail("None is rendered")

    objects = [
        Message("user", [Item("audio", audio=CLIP), {"type": "text", "text": "q"}, Item("text", "r")]),
        Answer(),
    ]
    parts = [{"type": "audio", "audio": CLIP}, {"type": "text", "text": "q"}, {"type": "text", "text": "r"}]
    messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": "A."}]
    options = {"tokenize": True, "return_dict": True}
    inputs, expected = (processor.apply_chat_template([chat], **options) for chat in (objects, messages))
    assert all(torch.equal(inputs[name], expected[name]) for name in ("audio_data", *expected))


def test_reasoning_is_kept_in_the_last_answer(processor):
    question = {"role": "user", "content": "q"}
    for answer in ({"content": "<think>\nhm\n</think>\n\nA."}, {"content": "A.", "reasoning_content": "hm"}):
        rendered = processor.apply_chat_template([question, {"role": "assistant", **answer}])
        assert rendered.endswith("<|im_start|>assistant\n<think>\nhm\n</think>\n\nA.<|im_end|>\n")


def test_a_final_message_is_continued(processor):
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": [{"type": "text", "text": "The"}]}]
    rendered = processor.apply_chat_template(messages, continue_final_message=True)
    assert rendered.endswith("<|im_start|>assistant\nThe")


def test_a_batch_of_chats(processor):
    chats = [
        [{"role": "user", "content": [{"type": "audio", "audio": CLIP}, {"type": "text", "text": "a"}]}],
        [{"role": "user", "content": "a longer text without sound"}],
    ]
    options = {"add_generation_prompt": True, "enable_time_marker": False}
    inputs = processor.apply_chat_template(chats, tokenize=True, return_dict=True, **options)
    expected = processor(text=["a", "a longer text without sound"], audio=[CLIP, None], enable_time_marker=False)
    assert all(torch.equal(inputs[name], expected[name]) for name in expected)
    assert processor.apply_chat_template(chats, add_generation_prompt=True) == [
        default_prompt("a", 1),
        default_prompt("a longer text without sound", 0),
    ]


def test_the_published_clients_code(tiny_folder):
    """As clients of the published model write it."""
    from moss_audio import MossAudioModel

    model = MossAudioModel.from_pretrained(tiny_folder, trust_remote_code=True, dtype="auto", device_map="cpu")
    processor = MossAudioProcessor.from_pretrained(tiny_folder, trust_remote_code=True, enable_time_marker=True)
    rate = processor.config.mel_sr
    assert rate == 16000
    inputs = processor(text="Describe this audio.", audios=[waveform(1, 2 * rate)], return_tensors="pt").to(
        model.device
    )
    inputs["audio_data"] = inputs["audio_data"].to(model.dtype)
    inputs["audio_input_mask"] = inputs["input_ids"] == processor.audio_token_id
    ids = model.generate(**inputs, max_new_tokens=5, do_sample=True, num_beams=1, temperature=1.0, use_cache=True)
    text = processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert isinstance(text, str) and ids.shape[1] <= inputs["input_ids"].shape[1] + 5


# --------------------------------------------------------------------------------------------------------------- sources


@pytest.fixture(scope="module")
def recording(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("recording") / "with space ü.wav"
    soundfile.write(path, waveform(1, 20000), 16000, subtype="FLOAT")
    return path


@pytest.fixture(scope="module")
def server(recording):
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(recording.parent))
    handler.log_message = lambda *args: None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class Unseekable(io.RawIOBase):
    """A stream such as a pipe."""

    def __init__(self, data: bytes):
        self._stream = io.BytesIO(data)

    def readable(self):
        return True

    def read(self, size=-1):
        return self._stream.read(size)


SOURCES = {
    "path": lambda path: path,
    "string": lambda path: str(path),
    "bytes": lambda path: path.read_bytes(),
    "file object": lambda path: io.BytesIO(path.read_bytes()),
    "stream": lambda path: Unseekable(path.read_bytes()),
    "data URL": lambda path: "data:audio/wav;base64," + base64.b64encode(path.read_bytes()).decode(),
    "mapping with bytes": lambda path: {"bytes": path.read_bytes(), "path": None},
    "mapping with a path": lambda path: {"bytes": None, "path": str(path)},
    "mapping with an array": lambda path: {"array": waveform(1, 20000).astype(float), "sampling_rate": 16000},
    "decoder": lambda path: types.SimpleNamespace(
        get_all_samples=lambda: types.SimpleNamespace(
            data=torch.from_numpy(waveform(1, 20000))[None], sample_rate=16000
        )
    ),
    "array": lambda path: waveform(1, 20000),
    "stereo": lambda path: np.stack([waveform(1, 20000)] * 2),
    "stereo, time first": lambda path: np.stack([waveform(1, 20000)] * 2, axis=1),
    "tensor": lambda path: torch.from_numpy(waveform(1, 20000)),
    "tensor with a gradient": lambda path: torch.from_numpy(waveform(1, 20000)).requires_grad_(),
    "big-endian": lambda path: waveform(1, 20000).astype(">f4"),
    "reversed view": lambda path: waveform(1, 20000)[::-1][::-1],
    "list": lambda path: waveform(1, 20000).tolist(),
}


@pytest.mark.parametrize("make", SOURCES.values(), ids=SOURCES)
def test_every_source_gives_the_same_samples(make, recording):
    samples = load_audio(make(recording))
    assert samples.dtype == torch.float32 and samples.shape == (20000,)
    torch.testing.assert_close(samples, torch.from_numpy(waveform(1, 20000)), atol=1e-7, rtol=0)


def test_a_url_is_downloaded(server):
    samples = load_audio(f"{server}/with%20space%20%C3%BC.wav")
    torch.testing.assert_close(samples, torch.from_numpy(waveform(1, 20000)), atol=1e-7, rtol=0)
    with pytest.raises(ValueError, match="missing.wav cannot be downloaded: HTTP Error 404"):
        load_audio(f"{server}/missing.wav")


@pytest.mark.parametrize(
    "type", ["float16", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32"]
)
@pytest.mark.parametrize("as_tensor", [False, True])
def test_every_number_type_is_scaled(type, as_tensor):
    sound = waveform(1, 4000).astype(np.float64)
    dtype = np.dtype(type)
    if dtype.kind == "f":
        typed, tolerance = sound.astype(dtype), 1e-3
    else:
        scale = 2.0 ** (8 * dtype.itemsize - 1)
        tolerance = 2 / scale + 1e-6
        typed = np.round(sound * (scale - 1) + (scale if dtype.kind == "u" else 0)).astype(dtype)
    samples = load_audio(torch.from_numpy(typed) if as_tensor else typed)
    assert samples.dtype == torch.float32
    torch.testing.assert_close(samples, torch.from_numpy(sound).float(), atol=tolerance, rtol=0)


@pytest.mark.parametrize("bits", [16, 32])
def test_plain_integers_are_scaled_as_they_were_recorded(bits):
    sound = waveform(1, 4000)
    integers = [int(sample * (2.0 ** (bits - 1) - 1)) for sample in sound]
    for given in (integers, np.array(integers, dtype=np.int64)):
        torch.testing.assert_close(load_audio(given), torch.from_numpy(sound), atol=1e-4, rtol=0)


def test_bfloat16_tensors():
    sound = torch.from_numpy(waveform(1, 4000)).bfloat16()
    assert torch.equal(load_audio(sound), sound.float())


@pytest.mark.parametrize("format", ["WAV", "FLAC", "OGG", "MP3"])
def test_compressed_stereo_at_another_rate(format):
    rate, t = 44100, np.arange(44100) / 44100
    left, right = 0.5 * np.sin(2 * np.pi * 440 * t), 0.1 * np.sin(2 * np.pi * 440 * t)
    file = io.BytesIO()
    soundfile.write(file, np.stack([left, right], axis=1), rate, format=format)
    samples = load_audio(file.getvalue())
    assert abs(samples.shape[0] - 16000) < 2000  # MP3 and OGG pad a little
    spectrum = np.abs(np.fft.rfft(samples.numpy()[2000:14000] * np.hanning(12000)))
    assert abs(np.argmax(spectrum) * 16000 / 12000 - 440) < 2
    assert samples[2000:14000].abs().max() == pytest.approx(0.3, abs=0.03)


def test_a_long_file_is_read_to_its_end(tmp_path):
    sound = np.arange(16000 * 40, dtype=np.float32) / (16000 * 40)
    soundfile.write(tmp_path / "long.wav", sound, 16000, subtype="FLOAT")
    assert torch.equal(load_audio(tmp_path / "long.wav"), torch.from_numpy(sound))


def test_a_known_rate_is_resampled(processor):
    tone = np.sin(2 * np.pi * 440 * np.arange(48000) / 48000).astype(np.float32)
    expected = np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
    for samples in (load_audio(tone, 48000), load_audio({"array": tone, "sampling_rate": 48000})):
        assert samples.shape == (16000,)
        assert np.abs(samples.numpy() - expected)[400:-400].max() < 1e-3
    assert processor(text="a", audio=tone, sampling_rate=48000)["audio_data_seqlens"].tolist() == [100]
    assert processor(text="a", audio=tone)["audio_data_seqlens"].tolist() == [300]  # no rate: the model's


# ------------------------------------------------------------------------------------------------------------ bad input


def wav(samples: np.ndarray) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, 16000, format="WAV", subtype="FLOAT")
    return file.getvalue()


BAD_AUDIO = {
    "empty": (np.zeros(0), r"0 samples \(0 ms at 16 kHz\); the model needs at least 400 \(25 ms\)"),
    "empty file": (wav(np.zeros(0)), "0 samples"),
    "too short": (np.zeros(80), r"clip 0: the audio has 80 samples \(5 ms at 16 kHz\)"),
    "too short file": (wav(np.zeros(399)), "399 samples"),
    "no channel": (np.zeros((0, 5)), "0 samples"),
    "not a number": (np.array([0.0] * 500 + [np.nan]), "a sample that is nan, at 500"),
    "infinite": (torch.full((500,), torch.inf), "a sample that is inf, at 0"),
    "not a number in a file": (wav(np.full(500, np.nan)), "a sample that is nan"),
    "three dimensions": (np.zeros((2, 2, 500)), r"shape \(2, 2, 500\) has 3 dimensions"),
    "no dimension": (5.0, "0 dimensions"),
    "booleans": (np.ones(500, dtype=bool), "neither samples nor a recording"),
    "boolean tensor": (torch.ones(500, dtype=torch.bool), "dtype torch.bool is not sound"),
    "complex tensor": (torch.ones(500, dtype=torch.complex64), "dtype torch.complex64 is not sound"),
    "an object": (object(), "neither samples nor a recording"),
    "not a recording": (b"not a recording", "audio of 15 bytes cannot be read as sound"),
    "not base64": ("data:audio/wav;base64,@@@", "is not base64"),
    "no base64 URL": ("data:audio/wav,abc", "is not base64; expected"),
    "an empty mapping": ({"text": "a"}, r"keys \['text'\]; it needs `array` and `sampling_rate`"),
    "a rate of 0": ({"array": np.zeros(500), "sampling_rate": 0}, "`sampling_rate` 0 must be positive"),
}


@pytest.mark.parametrize("audio, message", BAD_AUDIO.values(), ids=BAD_AUDIO)
def test_what_is_no_sound_is_refused(audio, message, processor, monkeypatch):
    monkeypatch.setattr(
        "moss_audio.processing_moss_audio.log_mel", lambda *args, **kw: pytest.fail("heavy work began")
    )
    with pytest.raises(ValueError, match=message):
        processor(text="a", audio=audio)


def test_the_shortest_clip():
    assert load_audio(np.zeros(400)).shape == (400,)


@pytest.mark.parametrize("rate", [0, -16000])
def test_a_rate_must_be_positive(rate, processor):
    with pytest.raises(ValueError, match=f"`sampling_rate` {rate} must be positive"):
        processor(text="a", audio=CLIP, sampling_rate=rate)


def test_files_that_are_not_there_or_not_sound(processor, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"clip 1: there is no audio file at .*nothing.wav"):
        processor(text="a", audio=[CLIP, tmp_path / "nothing.wav"])
    (tmp_path / "text.wav").write_text("not sound")
    with pytest.raises(ValueError, match=r"text.wav cannot be read as sound; ffmpeg says: .*Invalid data"):
        processor(text="a", audio=tmp_path / "text.wav")
    with pytest.raises(FileNotFoundError, match="there is no audio file at .*, which is a folder"):
        load_audio(tmp_path)


BAD_TEXTS = {
    "too many placeholders": (SPAN * 2, CLIP, "text 0 has 2 placeholders .* for 1 clips"),
    "too few placeholders": (SPAN, [CLIP, CLIP], "text 0 has 1 placeholders .* for 2 clips"),
    "a placeholder without a clip": (SPAN, None, "text 0 has 1 placeholders .* for 0 clips"),
    "a stray token": (f"<|AUDIO|>{SPAN}", CLIP, r"text 0 holds the audio token <\|AUDIO\|> outside of a placeholder"),
    "a stray Qwen3 token": ("a<|vision_pad|>", CLIP, r"holds the audio token <\|vision_pad\|>"),
    "an empty span": ("<|audio_bos|><|audio_eos|>", CLIP, r"holds the audio token <\|audio_bos\|>"),
    "the second of two": (["a", SPAN * 2], [CLIP, [CLIP]], "`audio` has 2 entries for 2 texts with"),
    "more clips than texts": (["a", "b"], [CLIP] * 3, r"`audio` has 3 entries for 2 texts with \[0, 0\] placeholders"),
    "one clip for two texts": (["a", "b"], CLIP, "`audio` has 1 entries for 2 texts"),
    "no text": (None, CLIP, "`text` is None; pass a question"),
    "no texts": ([], None, r"`text` is \[\]; pass a question"),
    "a text that is none": ([3], None, "text 0 is of type int"),
}


@pytest.mark.parametrize("text, audio, message", BAD_TEXTS.values(), ids=BAD_TEXTS)
def test_texts_and_clips_that_do_not_fit_are_refused(text, audio, message, processor, monkeypatch):
    monkeypatch.setattr("moss_audio.processing_moss_audio.load_audio", lambda *args: pytest.fail("heavy work began"))
    with pytest.raises(ValueError, match=message):
        processor(text=text, audio=audio)


@pytest.mark.parametrize("token", ["<|AUDIO|>", "<|vision_pad|>", "<|audio_bos|>", "<|audio_eos|>", SPAN])
@pytest.mark.parametrize("content", [str, lambda text: [{"type": "text", "text": text}]])
@pytest.mark.parametrize("role", ["user", "system", "assistant"])
def test_audio_tokens_in_a_message_are_refused(token, content, role, processor):
    messages = [{"role": "user", "content": "a"}, {"role": role, "content": content(f"x{token}y")}]
    with pytest.raises(ValueError, match="message 1 holds the audio token"):
        processor.apply_chat_template(messages)


@pytest.mark.parametrize(
    "part",
    ["a string", {"audio": "a.wav"}, {"type": "audio_url", "audio_url": "a"}, {"type": "image", "path": "a.png"}],
)
def test_parts_that_the_template_would_pass_over_are_refused(part, processor):
    with pytest.raises(ValueError, match="message 0 holds .* which is neither text nor audio"):
        processor.apply_chat_template([{"role": "user", "content": [part, {"type": "text", "text": "a"}]}])


def test_conversations_that_cannot_be_rendered_are_refused(processor):
    with pytest.raises(ValueError, match="the conversation has no messages"):
        processor.apply_chat_template([])
    with pytest.raises(ValueError, match="`add_generation_prompt` opens a new message"):
        messages = [{"role": "user", "content": "a"}]
        processor.apply_chat_template(messages, add_generation_prompt=True, continue_final_message=True)


def test_audio_items_without_a_source_are_refused(processor):
    for item in ({}, {"path": None}, {"path": "a.wav", "url": "b.wav"}):
        with pytest.raises(ValueError, match="needs exactly one of `path`, `url`, `audio` or `base64`"):
            processor.apply_chat_template([{"role": "user", "content": [{"type": "audio", **item}]}], tokenize=True)


def test_the_positions_are_the_decoders(processor, qwen3_processor):
    assert (processor.max_position_embeddings, qwen3_processor.max_position_embeddings) == (2048, 40960)


def test_a_clip_is_never_cut(processor):
    with pytest.raises(ValueError, match="`truncation` left .* of a prompt's 50 audio tokens"):
        processor(text="a", audio=waveform(1, 64000), truncation=True, max_length=70)


def test_audio_given_twice_is_refused(processor):
    with pytest.raises(ValueError, match="two names of one argument"):
        processor(text="a", audio=CLIP, audios=CLIP)


def test_a_clip_beyond_the_decoders_positions_is_refused(qwen3_processor, monkeypatch):
    monkeypatch.setattr(
        "moss_audio.processing_moss_audio.log_mel", lambda *args, **kw: pytest.fail("heavy work began")
    )
    hour = torch.zeros(16000 * 3600)
    with pytest.raises(
        ValueError, match="3600 s makes a prompt of .* 40960 positions. .* beside this text is (\\d+) s"
    ) as info:
        qwen3_processor(text="a", audio=hour)
    longest = int(str(info.value).split("beside this text is ")[1].split()[0])
    monkeypatch.setattr("moss_audio.processing_moss_audio.log_mel", lambda *args, **kw: torch.zeros(128, 1))
    fits = qwen3_processor(text="a", audio=torch.zeros(16000 * longest))["input_ids"]
    assert 40960 - 20 < fits.shape[1] <= 40960
    with pytest.raises(ValueError, match="40960 positions"):
        qwen3_processor(text="a", audio=torch.zeros(16000 * (longest + 1)))


# ---------------------------------------------------------------------------------------------------------- environment


@pytest.mark.parametrize("module", ["librosa", "soundfile"])
def test_a_path_without_librosa_says_what_to_do(module, recording, processor, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match="needs librosa.*`pip install librosa`, or pass the samples as an array"):
        processor(text="a", audio=recording)
    assert processor(text="a", audio=waveform(1, 8000))["audio_data"].shape == (1, 128, 50)


def test_resampling_without_soxr_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "soxr", None)
    with pytest.raises(ImportError, match="8000 Hz must be resampled to 16000 Hz, which needs soxr"):
        load_audio(CLIP, 8000)


MEMORY = """
import resource, sys
import torch
from moss_audio import MossAudioProcessor
processor = MossAudioProcessor.from_pretrained({tokenizer!r})
clip = torch.rand(600 * 16000) - 0.5
processor(text="a", audio=clip[:160000])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
inputs = processor(text="a", audio=clip)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print((after - before) * (1 if sys.platform == "darwin" else 1024), tuple(inputs["audio_data"].shape))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no `resource` module")
def test_ten_minutes_take_little_memory(tmp_path):
    code = MEMORY.format(tokenizer=str(DATA / "qwen3-tokenizer"))
    used, shape = run_python(code, cwd=tmp_path).split(maxsplit=1)
    assert shape.strip() == "(1, 128, 60000)"
    assert int(used) < 200e6


def test_the_count_of_placeholders():
    assert [count_clips(text) for text in ("a", SPAN, f"{SPAN}\n{SPAN}", "<|AUDIO|>")] == [0, 1, 2, 0]
