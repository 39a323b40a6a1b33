"""Long recordings: cut at quiet places, answered piece by piece, and made one transcript again."""

import itertools

import numpy as np
import pytest
import soundfile
import torch
from transformers import pipeline

import moss_audio
from moss_audio import Segment, Transcript, cut_audio, stitch_transcripts
from moss_audio.long_moss_audio import clock, quietest_place
from tests.conftest import run_python, waveform
from tests.hearing import RATE, Listener, speech, times, understood


WORDS = 120  # 66 s


@pytest.fixture
def pipe(tiny_folder, monkeypatch):
    """The tiny checkpoint's pipeline with a stand-in for the model that understands speech of tones."""
    pipe = pipeline("audio-text-to-text", model=str(tiny_folder), device="cpu")
    listener = Listener(pipe.processor)
    monkeypatch.setattr(pipe.model, "generate", listener)
    pipe.listener = listener
    return pipe


def test_the_stand_in_understands(processor):
    heard = understood(processor.extract_features(torch.from_numpy(speech(WORDS))))
    assert [number for _, number, _ in heard] == list(range(WORDS))
    for (start, _, end), (true_start, true_end) in zip(heard, times(WORDS)):
        assert abs(start - true_start) < 0.03 and abs(end - true_end) < 0.03


@pytest.mark.parametrize("max_seconds", [2, 3.7, 10, 25, 60, 65.9, 66, 600])
@pytest.mark.parametrize("block", [777, 16000, 10**7])
def test_pieces_are_the_recording_cut_between_words(max_seconds, block):
    samples = torch.from_numpy(speech(WORDS))
    pieces = list(cut_audio(samples.split(block), RATE, max_seconds))
    assert torch.equal(torch.cat([piece.samples for piece in pieces]), samples)
    assert [piece.is_last for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert pieces[0].start == 0 and all(a.end == b.start for a, b in itertools.pairwise(pieces))
    for piece in pieces:
        assert piece.end - piece.start == pytest.approx(piece.samples.shape[0] / RATE)
        assert piece.samples.shape[0] <= max_seconds * RATE
        assert piece.end - piece.start >= min(1, max_seconds / 2)
        assert piece.is_last or not any(start - 0.01 < piece.end < end + 0.01 for start, end in times(WORDS))
        assert piece.is_last or piece.end - piece.start >= max_seconds / 2 - 0.01
    assert len(pieces) == 1 if max_seconds >= 66.5 else len(pieces) >= 66 / max_seconds


def test_blocks_do_not_change_where_it_is_cut():
    samples = torch.from_numpy(speech(WORDS))
    cuts = [
        [piece.end for piece in cut_audio(samples.split(block), RATE, 20)] for block in (1000, 50000, len(samples))
    ]
    assert cuts[0] == cuts[1] == cuts[2] and len(cuts[0]) == 4


def test_the_quietest_place_is_in_the_middle_of_the_longest_silence():
    samples = torch.ones(16000 * 4)
    samples[8000:14000] = 0  # 0.375 s
    samples[30000:46000] = 0  # 1 s
    assert abs(quietest_place(samples, 0, len(samples), RATE) - 38000) <= 160
    assert quietest_place(samples, 100, 120, RATE) == 120  # less than a frame


@pytest.mark.parametrize("pause", [0.04, 0.06, 0.1, 0.15])
def test_speech_without_pauses_is_cut_between_words(pause):
    samples = torch.from_numpy(speech(WORDS, pause))
    cuts = [piece.end for piece in cut_audio([samples], RATE, 12)][:-1]
    assert len(cuts) >= 3
    assert not any(start < cut < end for cut in cuts for start, end in times(WORDS, pause))


def test_a_recording_without_a_pause_is_cut_all_the_same():
    pieces = list(cut_audio([torch.ones(16000 * 31)], RATE, 10))
    assert sum(piece.samples.shape[0] for piece in pieces) == 16000 * 31
    assert all(1 <= piece.end - piece.start <= 10 for piece in pieces)


def test_nothing_is_one_empty_piece():
    assert [piece.samples.shape for piece in cut_audio([], RATE, 10)] == [(0,)]


def test_pieces_that_are_too_short():
    with pytest.raises(ValueError, match="pieces of 1 s are too short to be understood; take 2 s or more"):
        next(cut_audio([], RATE, 1))


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_no_word_is_lost_or_doubled(batch_size, pipe, tmp_path):
    soundfile.write(tmp_path / "long.wav", speech(WORDS), RATE)
    result = pipe(str(tmp_path / "long.wav"), return_timestamps="word", chunk_length_s=15, batch_size=batch_size)
    assert [segment["text"] for segment in result["segments"]] == [f"w{number}" for number in range(WORDS)]
    for segment, (start, end) in zip(result["segments"], times(WORDS)):
        assert abs(segment["start"] - start) < 0.03 and abs(segment["end"] - end) < 0.03
    starts = [segment["start"] for segment in result["segments"]]
    assert starts == sorted(starts)
    assert result["duration"] == pytest.approx(len(speech(WORDS)) / RATE) and not result["cut_off"]
    assert moss_audio.parse_transcript(result["generated_text"]).text == " ".join(f"w{n}" for n in range(WORDS))
    assert max(pipe.listener.seconds) <= 15 and len(pipe.listener.seconds) >= 5
    full, rest = divmod(len(pipe.listener.seconds), batch_size)
    assert [len(batch) for batch in pipe.listener.batches] == [batch_size] * full + [rest] * bool(rest)


def test_another_rate_and_stereo(pipe, tmp_path):
    import soxr

    sound = soxr.resample(speech(WORDS), RATE, 44100)
    soundfile.write(tmp_path / "long.flac", np.stack([sound, sound], axis=1), 44100)
    result = pipe(tmp_path / "long.flac", return_timestamps=True, chunk_length_s=20, batch_size=2)
    assert [segment["text"] for segment in result["segments"]] == [f"w{number}" for number in range(WORDS)]
    assert (
        pipe(sound, sampling_rate=44100, return_timestamps=True, chunk_length_s=20)["segments"] == result["segments"]
    )


def test_plain_text_is_joined(pipe):
    pipe.listener.answer = lambda words: " ".join(f"w{number}" for _, number, _ in words)
    result = pipe(speech(WORDS), task="transcribe", chunk_length_s=20)
    assert result["generated_text"] == " ".join(f"w{number}" for number in range(WORDS))
    assert all(segment["start"] is None for segment in result["segments"])


def test_recordings_of_all_lengths_in_one_batch(pipe):
    recordings = [speech(5), speech(WORDS), speech(30)]
    results = pipe(recordings, return_timestamps="word", chunk_length_s=20, batch_size=4)
    assert [len(result["segments"]) for result in results] == [5, WORDS, 30]
    assert results[0]["segments"][0]["span"] == [6, 8] and "span" not in results[1]["segments"][0]


def test_ten_minutes_are_the_default_for_transcripts_and_captions_only(pipe):
    sound = np.tile(speech(WORDS), 10)  # 11 minutes
    pipe.processor.max_position_embeddings = 0
    for options, pieces in [
        ({"task": "transcribe"}, 2),
        ({"task": "caption"}, 2),
        ({"task": "transcribe", "chunk_length_s": 0}, 1),
        ({"task": "question", "text": "Who?"}, 1),
        ({"text": "Who?"}, 1),
        ({"text": "Who?", "chunk_length_s": 600}, 2),
    ]:
        pipe.listener.batches.clear()
        pipe(sound, **options)
        assert len(pipe.listener.seconds) == pieces


def test_answers_to_pieces_stand_under_their_times(pipe):
    pipe.listener.answer = lambda words: f"{len(words)} words."
    result = pipe(speech(WORDS), task="caption", chunk_length_s=40)
    first, second = result["segments"]
    assert first["start"] == 0 and first["end"] == second["start"] and second["end"] == result["duration"]
    assert result["generated_text"] == f"0:00:00\n{first['text']}\n\n{clock(second['start'])}\n{second['text']}"
    assert int(first["text"].split()[0]) + int(second["text"].split()[0]) == WORDS
    pipe.listener.answer = lambda words: '{"gender": "none"}'
    assert pipe(speech(WORDS), task="attributes", chunk_length_s=40)["attributes"] == [{"gender": "none"}] * 2
    pipe.listener.answer = lambda words: "B"
    assert pipe(speech(9), task="choice", text="Which?")["choice"] == "B"


def test_several_sequences_of_pieces(pipe):
    listener = pipe.listener

    def twice(input_ids, **kwargs):
        rows = listener(input_ids, **kwargs)
        return rows.repeat_interleave(2, dim=0)

    pipe.model.generate = twice
    results = pipe(speech(WORDS), return_timestamps="word", chunk_length_s=30, num_return_sequences=2)
    assert [len(result["segments"]) for result in results] == [WORDS, WORDS]


def test_reasoning_of_pieces(pipe):
    pipe.listener.answer = lambda words: f"<think>\n{len(words)}\n</think>\n\nw"
    result = pipe(speech(WORDS), task="transcribe", chunk_length_s=40)
    assert result["generated_text"] == "w w" and sum(map(int, result["reasoning"].split("\n\n"))) == WORDS


def test_a_cut_off_piece_is_marked(pipe, monkeypatch, caplog):
    assert not pipe(speech(WORDS), task="transcribe", chunk_length_s=40)["cut_off"]
    pipe.listener.processor = None

    def endless(input_ids, **kwargs):
        return torch.cat((input_ids, torch.full((len(input_ids), 3), 40)), dim=1)

    monkeypatch.setattr(pipe.model, "generate", endless)
    monkeypatch.setattr(
        "moss_audio.pipeline_moss_audio.logger.warning", lambda message: caplog.records.append(message)
    )
    assert pipe(speech(WORDS), task="transcribe", chunk_length_s=40)["cut_off"] is True
    assert "max_new_tokens" in caplog.records[-1]


def test_the_tiny_model_itself(tiny_folder):
    """Its answers mean nothing, but each piece must give what it gives alone."""
    pipe = pipeline("audio-text-to-text", model=str(tiny_folder), device="cpu", max_new_tokens=6)
    sound = waveform(1, 16000 * 50)
    whole = pipe(sound, task="caption", chunk_length_s=20, batch_size=4)
    alone = [
        pipe(piece.samples, task="caption")["generated_text"]
        for piece in cut_audio([torch.from_numpy(sound)], RATE, 20)
    ]
    assert [segment["text"] for segment in whole["segments"]] == alone and len(alone) == 3


def test_what_does_not_go_with_pieces(pipe):
    with pytest.raises(ValueError, match="`chunk_length_s` cuts one recording"):
        pipe({"audio": [speech(3), speech(3)], "text": "Compare."}, chunk_length_s=10)
    with pytest.raises(ValueError, match="do not go with a chat"):
        pipe([{"role": "user", "content": "Hello."}], task="transcribe")
    with pytest.raises(ValueError, match="at least 400"):
        pipe(np.zeros(10, dtype=np.float32), task="transcribe")


# ----------------------------------------------------------------------------------------------------------- transcripts


def test_transcripts_are_stitched_in_order_and_inside_their_pieces():
    first = Transcript([Segment(0.0, 2.0, "a"), Segment(1.5, 99.0, "b", "S01"), Segment(1.0, 1.2, "c")])
    second = Transcript([Segment(None, None, "d"), Segment(0.5, None, "e")])
    whole = stitch_transcripts([(0.0, 10.0, first), (10.0, 12.5, second)])
    assert list(whole) == [
        Segment(0.0, 2.0, "a"),
        Segment(1.0, 1.2, "c"),
        Segment(1.5, 10.0, "b", "S01"),
        Segment(None, None, "d"),
        Segment(10.5, None, "e"),
    ]
    assert [repair.kind for repair in whole.repairs] == ["beyond_end"] and "10.00 s" in whole.repairs[0].message


def test_a_clock():
    assert [clock(seconds) for seconds in (0, 59.9, 61, 3600, 7325.5)] == [
        "0:00:00",
        "0:00:59",
        "0:01:01",
        "1:00:00",
        "2:02:05",
    ]


# ---------------------------------------------------------------------------------------------------------------- memory

TWO_HOURS = """
import resource, sys
import numpy as np, soundfile, torch
import moss_audio
from moss_audio.pipeline_moss_audio import AudioTextToTextPipeline

path, checkpoint = sys.argv[1:]
block = (3000 * np.sin(np.arange(22050 * 60) / 20)).astype(np.int16)
block[22050 * 30 : 22050 * 31] = 0
with soundfile.SoundFile(path, "w", 22050, 1) as file:
    for _ in range(120):
        file.write(block)

processor = moss_audio.MossAudioProcessor.from_pretrained(checkpoint)
model = moss_audio.MossAudioModel.from_pretrained(checkpoint)
pipe = AudioTextToTextPipeline(model=model, processor=processor, device="cpu")
processor.max_position_embeddings = 0
seconds = []

def generate(input_ids, audio_data, audio_data_seqlens, **kwargs):
    seconds.extend(length / 100 for length in audio_data_seqlens.tolist())
    answer = torch.tensor([processor.tokenizer("[0.00]a[1.00]<|im_end|>")["input_ids"]])
    return torch.cat((input_ids, answer.expand(len(input_ids), -1)), dim=1)

model.generate = generate
pipe(np.zeros(16000, dtype=np.float32), task="transcribe")
unit = 1 if sys.platform == "darwin" else 1024
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
result = pipe(path, return_timestamps=True, batch_size=2)
more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit - before
print(len(result["segments"]), round(sum(seconds)), round(max(seconds) <= 600), round(more / 1e6))
"""


@pytest.mark.skipif("sys.platform == 'win32'", reason="there is no module resource")
def test_two_hours_take_little_memory(tiny_folder, tmp_path):
    printed = run_python(TWO_HOURS, tmp_path / "long.wav", tiny_folder, cwd=tmp_path)
    segments, seconds, short, megabytes = map(int, printed.split())
    assert (segments, seconds, short) == (13, 7201, 1)  # and the second before
    assert megabytes < 400  # a batch of two pieces; all in one would be more than that as samples alone
