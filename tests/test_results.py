"""What the pipeline makes of answers: segments, how sure the model was of them, and segments as they close."""

import json
import math
import threading

import pytest
import torch
from transformers import LogitsProcessor, LogitsProcessorList, pipeline

from moss_audio import Segment, SegmentStreamer, parse_transcript, token_ends, with_confidence
from moss_audio.generation_moss_audio import TokenLogprobs, span_logprobs
from tests.conftest import waveform
from tests.hearing import Listener, speech, times


CLIP = waveform(1, 40000)


class Script(LogitsProcessor):
    """Makes the model say a text, each token with a probability of its own."""

    def __init__(self, ids, prompt_length, probabilities=None):
        self.ids, self.prompt_length = ids, prompt_length
        self.probabilities = probabilities or [0.9] * len(ids)

    def __call__(self, input_ids, scores):
        step = min(input_ids.shape[1] - self.prompt_length, len(self.ids) - 1)
        rest = (1 - self.probabilities[step]) / (scores.shape[1] - 1)
        said = torch.full_like(scores, math.log(rest))
        said[:, self.ids[step]] = math.log(self.probabilities[step])
        return said


@pytest.fixture(scope="module")
def pipe(tiny_folder):
    return pipeline("audio-text-to-text", model=str(tiny_folder), device="cpu")


def says(pipe, said, probabilities=None, /, **arguments):
    """Arguments of the pipeline that make the model answer with a text."""
    ids = pipe.processor.tokenizer(said + "<|im_end|>")["input_ids"]
    prompt = next(iter(pipe.preprocess(CLIP, **pipe._sanitize_parameters(**arguments)[0])))
    length = prompt["features"]["input_ids"].shape[1]
    return {**arguments, "logits_processor": LogitsProcessorList([Script(ids, length, probabilities)])}


# ----------------------------------------------------------------------------------------------------------------- tasks


def test_a_transcript_has_segments(pipe):
    result = pipe(CLIP, **says(pipe, "[0.00]hello there[2.01][2.01]good day[4.32]", return_timestamps=True))
    assert result["generated_text"] == "[0.00]hello there[2.01][2.01]good day[4.32]"
    assert result["segments"] == [
        {"start": 0.0, "end": 2.01, "text": "hello there", "speaker": None, "span": [6, 17]},
        {"start": 2.01, "end": 4.32, "text": "good day", "speaker": None, "span": [29, 37]},
    ]
    assert result["repairs"] == [] and result["duration"] == 2.5 and result["cut_off"] is False
    json.dumps(result)


def test_speakers_reasoning_and_repairs(pipe):
    text = "<think>\n[9.00]no[9.50]\n</think>\n\n[0.00][S01]Hello.[1.50][2.00][S02]Hi"
    result = pipe(CLIP, **says(pipe, text, speakers=True))
    assert [(s["speaker"], s["text"], s["end"]) for s in result["segments"]] == [
        ("S01", "Hello.", 1.5),
        ("S02", "Hi", None),
    ]
    assert [repair["kind"] for repair in result["repairs"]] == ["no_end"]
    assert result["reasoning"] == "[9.00]no[9.50]"
    first = result["segments"][0]
    assert result["generated_text"][slice(*first["span"])] == first["text"]


def test_one_option_of_a_transcript_is_enough(pipe):
    plain = pipe(CLIP, **says(pipe, "Hello.", task="transcribe"))
    assert [segment["text"] for segment in plain["segments"]] == ["Hello."]
    for options in ({"keywords": ["a"]}, {"language": "de"}, {"return_timestamps": "word"}, {"speakers": True}):
        assert "segments" in pipe(CLIP, **says(pipe, "Hello.", **options))
    assert set(pipe(CLIP, **says(pipe, "Hello."))) == {"generated_text", "reasoning"}


def test_attributes_and_choices(pipe):
    answer = '```json\n{"gender": "female", "age": "young",}\n```'
    assert pipe(CLIP, **says(pipe, answer, task="attributes"))["attributes"] == {"gender": "female", "age": "young"}
    assert pipe(CLIP, **says(pipe, "I cannot say.", task="attributes"))["attributes"] is None
    options = {"task": "choice", "text": "Which?", "options": ["a dog", "a cat"]}
    assert pipe(CLIP, **says(pipe, "B. a cat", **options))["choice"] == "B"
    assert pipe(CLIP, **says(pipe, "A dog.", **options))["choice"] == "A"
    options.pop("task")
    assert pipe(CLIP, **says(pipe, "(B)", **options))["choice"] == "B"


def test_the_prompts_are_the_processors(pipe):
    for arguments, request in [
        ({"task": "transcribe"}, pipe.processor.apply_transcription_request(CLIP)),
        ({"return_timestamps": "word"}, pipe.processor.apply_transcription_request(CLIP, timestamps="word")),
        (
            {"task": "caption", "enable_thinking": False},
            pipe.processor.apply_caption_request(CLIP, enable_thinking=False),
        ),
        ({"task": "summarize", "text": "In a word?"}, pipe.processor.apply_summary_request(CLIP, "In a word?")),
    ]:
        inputs = next(iter(pipe.preprocess(CLIP, **pipe._sanitize_parameters(**arguments)[0])))
        assert torch.equal(inputs["features"]["input_ids"], request["input_ids"])
        assert torch.equal(inputs["features"]["audio_data"], request["audio_data"])


@pytest.mark.parametrize(
    "options, message",
    [
        ({"task": "sing"}, "`task` 'sing' is none of"),
        ({"task": "caption", "speakers": True}, "`speakers` does not go with the task 'caption'"),
        ({"task": "choice"}, "needs a question"),
        ({"return_timestamps": "chars"}, "`timestamps` 'chars' is none of"),
        ({"language": ["de", "en"]}, r"`language` \['de', 'en'\] must be a code"),
    ],
)
def test_what_does_not_go_together(options, message, pipe):
    with pytest.raises(ValueError, match=message):
        pipe(CLIP, **options)


def test_transcripts_have_room(pipe, monkeypatch):
    limits = []

    def generate(input_ids, max_new_tokens=None, **kwargs):
        limits.append(max_new_tokens)
        return torch.cat((input_ids, torch.full((len(input_ids), 1), 295)), dim=1)

    monkeypatch.setattr(pipe.model, "generate", generate)
    for options in (
        {"task": "transcribe"},
        {"return_timestamps": "word"},
        {"task": "transcribe", "max_new_tokens": 7},
        {"task": "caption"},
    ):
        pipe(CLIP, **options)
    assert limits[:3] == [1024 + 25, 1024 + 100, 7] and limits[3] in (None, 1024)


def test_an_answer_without_an_end_is_marked(pipe):
    said = says(pipe, "Hello, hello, hello.", task="transcribe")
    assert pipe(CLIP, **said, max_new_tokens=5)["cut_off"] is True
    assert pipe(CLIP, **said)["cut_off"] is False
    assert pipe(CLIP, **said, max_new_tokens=5, stop_strings=["He"], tokenizer=pipe.tokenizer)["cut_off"] is False


# ------------------------------------------------------------------------------------------------------------ confidence


def test_confidence_by_hand():
    text = "[0.00]ab[1.00][1.00]cd é[2.00]"
    tokens = ["[0.00]", "a", "b", "[1.00][", "1.00]c", "d", " ", b"\xc3", b"\xa9", "[2.00]", ""]
    data = [token if isinstance(token, bytes) else token.encode() for token in tokens]

    def decode(ids):
        return b"".join(data[index] for index in ids).decode(errors="replace")

    logprobs = [-9.0, -0.5, -0.1, -9.0, -0.2, -0.4, -0.3, -0.6, -0.7, -9.0, -9.0]
    ends = token_ends(list(range(len(tokens))), decode)
    assert decode(range(len(tokens))) == text
    assert ends == [6, 7, 8, 15, 21, 22, 23, 23, 24, 30, 30]
    first, second = with_confidence(parse_transcript(text), ends, logprobs)
    assert (first.logprob_mean, first.logprob_min) == pytest.approx((-0.3, -0.5))
    # "c" comes with a part of the time before it, "é" in two bytes.
    assert second.logprob_mean == pytest.approx(-(0.2 + 0.4 + 0.3 + 0.6 + 0.7) / 5)
    assert second.logprob_min == -0.7
    assert span_logprobs((0, 0), ends, logprobs) == []


def test_bytes_that_are_no_character_do_not_hold_up_the_rest():
    data = [b"\xff"] * 7 + [b"a"]

    def decode(ids):
        return b"".join(data[index] for index in ids).decode(errors="replace")

    ends = token_ends(list(range(8)), decode)
    assert ends == sorted(ends) and ends[-1] == len(decode(range(8)))


PROBABILITIES = [0.99] * 6 + [0.5, 0.8] + [0.99] * 12 + [0.25, 0.75] + [0.99] * 20


@pytest.mark.parametrize(
    "options", [{}, {"do_sample": True, "top_k": 1}, {"num_beams": 2}, {"prompt_lookup_num_tokens": 2}]
)
def test_confidence_of_segments(options, pipe):
    said = says(pipe, "[0.00]ab[1.00][1.00]cd[2.00]", PROBABILITIES, return_timestamps=True)
    assert [len(pipe.processor.tokenizer(text)["input_ids"]) for text in ("[0.00]", "ab", "[1.00][1.00]")] == [
        6,
        2,
        12,
    ]
    result = pipe(CLIP, **said, **options, output_scores=True, max_new_tokens=40)
    first, second = result["segments"]
    logs = [math.log(value) for value in (0.5, 0.8, 0.25, 0.75)]
    assert first["logprob_mean"] == pytest.approx((logs[0] + logs[1]) / 2, abs=1e-4)
    assert first["logprob_min"] == pytest.approx(logs[0], abs=1e-4)
    assert second["logprob_mean"] == pytest.approx((logs[2] + logs[3]) / 2, abs=1e-4)
    assert result["logprob_min"] == pytest.approx(logs[2], abs=1e-4)
    assert "logprob_mean" not in pipe(CLIP, **said, **options)["segments"][0]


def test_the_log_probabilities_are_those_of_transformers(pipe):
    inputs = pipe.processor(text=["What?", "A longer question."], audio=[CLIP, CLIP[:9000]])
    scores = TokenLogprobs()
    options = {"max_new_tokens": 9, "suppress_tokens": [295]}
    ids = pipe.model.generate(**inputs, **options, logits_processor=LogitsProcessorList([scores]))
    output = pipe.model.generate(**inputs, **options, output_scores=True, return_dict_in_generate=True)
    expected = pipe.model.compute_transition_scores(output.sequences, output.scores, normalize_logits=True)
    assert torch.equal(ids, output.sequences)
    torch.testing.assert_close(scores.of(ids), expected)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_confidence_in_batches_and_of_any_answer(batch_size, pipe):
    options = {"text": "What?", "output_scores": True, "max_new_tokens": 6}
    clips = [CLIP, CLIP[:9000], CLIP[:20000]]
    results = pipe(clips, batch_size=batch_size, **options)
    for clip, result in zip(clips, results):
        alone = pipe(clip, **options)
        assert result["generated_text"] == alone["generated_text"]
        assert result["logprob_mean"] == pytest.approx(alone["logprob_mean"], abs=1e-4)
        assert result["logprob_min"] <= result["logprob_mean"] <= 0
    several = pipe(CLIP, **options, num_return_sequences=2, do_sample=True)
    assert all("logprob_mean" in result for result in several)


def test_reasoning_does_not_count(pipe):
    text = "<think>abc</think>de"
    probabilities = [0.1] * 5 + [0.8, 0.8] + [0.1] * 9
    result = pipe(CLIP, **says(pipe, text, probabilities, text="What?"), output_scores=True)
    assert result["generated_text"] == "de" and result["logprob_min"] == pytest.approx(math.log(0.8), abs=1e-4)


# ------------------------------------------------------------------------------------------------------------- streaming


def test_segments_come_as_they_close(pipe):
    said = says(pipe, "<think>[8.00]?[9.00]</think>[0.00]hé你[1.00][1.00]there[2.00] end", return_timestamps=True)
    prompt_length = said["logits_processor"][0].prompt_length
    length = len(pipe.processor.tokenizer("<think>[8.00]?[9.00]</think>[0.00]hé你[1.00]")["input_ids"])
    allowed = threading.Event()

    class Wait(LogitsProcessor):
        """Lets the model go on when the first segment has been seen."""

        def __call__(self, input_ids, scores):
            assert input_ids.shape[1] - prompt_length < length + 1 or allowed.wait(20)
            return scores

    said["logits_processor"].append(Wait())
    segments = pipe.stream(CLIP, **said)
    assert next(segments) == Segment(0.0, 1.0, "hé你")
    allowed.set()
    assert list(segments) == [Segment(1.0, 2.0, "there"), Segment(None, None, "end")]


def test_a_reader_that_goes_stops_the_model(pipe):
    said = says(pipe, "[0.00]a[0.01]" + "b" * 500, return_timestamps=True)
    steps, before = [], threading.active_count()
    said["logits_processor"].append(lambda input_ids, scores: steps.append(1) or scores)
    segments = pipe.stream(CLIP, **said, max_new_tokens=1500)
    assert next(segments).text == "a"
    segments.close()
    assert threading.active_count() == before and 0 < len(steps) < 1500


def test_an_error_of_the_model_reaches_the_reader(pipe):
    with pytest.raises(ValueError, match="no_such_argument"):
        list(pipe.stream(CLIP, no_such_argument=1))
    with pytest.raises(FileNotFoundError):
        list(pipe.stream("nothing.wav"))


def test_a_long_recording_is_streamed_piece_by_piece(pipe, monkeypatch):
    listener = Listener(pipe.processor)

    def generate(input_ids, streamer, **kwargs):
        ids = listener(input_ids, **kwargs)
        streamer.put(input_ids)
        for token in ids[0, input_ids.shape[1] :]:
            streamer.put(token[None])
        streamer.end()
        return ids

    monkeypatch.setattr(pipe.model, "generate", generate)
    segments = list(pipe.stream(speech(40), return_timestamps="word", chunk_length_s=10))
    assert [segment.text for segment in segments] == [f"w{number}" for number in range(40)]
    for segment, (start, end) in zip(segments, times(40)):
        assert abs(segment.start - start) < 0.03 and abs(segment.end - end) < 0.03
    assert len(listener.batches) > 2


def test_a_streamer_of_ones_own(pipe):
    inputs = pipe.processor.apply_transcription_request(CLIP, timestamps="sentence")
    ids = pipe.processor.tokenizer("[0.00]hello[1.00]<|im_end|>")["input_ids"]
    script = LogitsProcessorList([Script(ids, inputs["input_ids"].shape[1])])
    streamer = SegmentStreamer(pipe.processor, timeout=20)
    arguments = {**inputs, "streamer": streamer, "logits_processor": script}
    thread = threading.Thread(target=pipe.model.generate, kwargs=arguments)
    thread.start()
    assert [segment.text for segment in streamer] == ["hello"] and streamer.transcript[0].end == 1.0
    thread.join()


def test_a_prompt_that_has_opened_the_reasoning(pipe):
    streamer = SegmentStreamer(pipe.processor)
    for text in ("<|im_start|>assistant\n<think>\n", "[5.00]not", " this[6.00]</think>\n\n[0.00]this[1.00]"):
        streamer.put(torch.tensor([pipe.processor.tokenizer(text)["input_ids"]]))
    streamer.end()
    assert [segment.text for segment in streamer] == ["this"]


def test_clips_and_words_of_ones_own_are_streamed(pipe):
    source = {"audio": [CLIP, CLIP], "text": "Write down both."}
    inputs = next(iter(pipe.preprocess(source, task="transcribe")))
    ids = pipe.processor.tokenizer("[0.00]hello[1.00]<|im_end|>")["input_ids"]
    script = LogitsProcessorList([Script(ids, inputs["features"]["input_ids"].shape[1])])
    assert list(pipe.stream(source, logits_processor=script)) == [Segment(0.0, 1.0, "hello")]


def test_what_cannot_be_streamed(pipe):
    with pytest.raises(ValueError, match="one recording at a time"):
        next(pipe.stream([CLIP, CLIP]))
    with pytest.raises(ValueError, match="`output_scores` are known when"):
        next(pipe.stream(CLIP, output_scores=True))
    with pytest.raises(ValueError, match="a batch of 2 cannot be streamed"):
        SegmentStreamer(pipe.processor).put(torch.zeros(2, 4, dtype=torch.long))
