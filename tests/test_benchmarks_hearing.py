"""The benchmarks of features and encoder, and that of fine-tuning, at tiny sizes: what they report, never how fast it was."""

import json

import pytest
import torch

from moss_audio import MossAudioModel
from moss_audio.benchmarks import encoder_floor, encoder_length, finetuning, log_mel, measuring, mp3_inputs, parsing
from moss_audio.configuration_moss_audio import frames_to_tokens


@pytest.fixture
def reported(tmp_path, capsys):
    """Runs a benchmark's command and returns its JSON file and what it printed."""

    def run(main, *arguments):
        main([*map(str, arguments), "--device", "cpu", "--json", str(tmp_path / "result.json")])
        printed = capsys.readouterr().out
        result = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
        assert all(len(row) == len(result["header"]) for row in result["rows"])
        lines = printed.splitlines()
        assert lines[1].startswith("| --- |") and len(lines) > len(result["rows"]) + 3
        assert all(note in lines for note in result["notes"])
        assert {"moss_audio", "transformers", "torch", "python"} <= set(result["versions"]) and result["device"]
        return result, printed

    return run


@pytest.fixture
def peaks_here(monkeypatch):
    """Peaks of memory as if measured: the functions are called in this process, which takes no seconds to start."""
    calls = []

    def peak(function, *arguments, device):
        function(*arguments)()
        calls.append((function, arguments, device))
        return 100.0 * len(calls)

    for module in (log_mel, encoder_length):
        monkeypatch.setattr(module, "peak_megabytes", peak)
    return calls


def test_features(reported, peaks_here):
    result, _ = reported(log_mel.main, "--seconds", 2, "--rounds", 2)
    assert [row[0] for row in result["rows"]] == [log_mel.OURS, log_mel.NUMPY, log_mel.TORCH]
    assert [len(seconds) for seconds in result["values"]["seconds"].values()] == [2, 2, 2]
    assert [function.__name__ for function, _, _ in peaks_here] == ["ready_ours", "ready_numpy", "ready_torch"]
    assert result["values"]["share_of_memory"] == 0.5 and "(target: at most 0.5, met)" in result["notes"][1]
    assert "target: at least 3, " in result["notes"][0] and "numpy" in result["versions"]


def test_the_features_are_compared_with_the_numpy_path(monkeypatch):
    from transformers import WhisperFeatureExtractor

    called = []
    for name in ("_np_extract_fbank_features", "_torch_extract_fbank_features"):
        path = getattr(WhisperFeatureExtractor, name)
        monkeypatch.setattr(
            WhisperFeatureExtractor, name, lambda *args, n=name, p=path, **kw: called.append(n) or p(*args, **kw)
        )
    features = log_mel.ready_numpy(1.5, 0)()
    assert set(called) == {"_np_extract_fbank_features"} and features.shape == (128, 150)
    assert log_mel.ready_torch(1.5, 0, "cpu")().shape == (128, 150)


def test_a_peak_is_measured_in_a_process_of_its_own():
    assert measuring.peak_megabytes(log_mel.ready_ours, 60, 0, "cpu") >= 128 * 6000 * 4 / 1e6  # its own output


def test_different_answers_are_not_measured():
    one = torch.ones(2, 3)
    assert measuring.largest_difference(one, one + 0.25, 0.25) == 0.25
    with pytest.raises(ValueError, match="differ by 0.25; they must agree to 0.1"):
        measuring.largest_difference(one, one + 0.25, 0.1)
    with pytest.raises(ValueError, match="differ by nan"):
        measuring.largest_difference(one, one * float("nan"), 0.1)
    with pytest.raises(ValueError, match="shapes"):
        measuring.largest_difference(one, one[0], 0.1)


def test_from_mp3_to_inputs(reported):
    result, _ = reported(mp3_inputs.main, "--seconds", 11, "--rounds", 1)
    assert [row[0] for row in result["rows"]] == [mp3_inputs.ALONE, mp3_inputs.LOADING, mp3_inputs.WHOLE]
    assert "target: at most 1.5, " in result["notes"][0]
    assert {"soundfile", "soxr", "librosa"} <= set(result["versions"]) and result["values"]["file_megabytes"] > 0.05


def test_the_mp3_is_what_it_is_said_to_be(tmp_path):
    import soundfile

    mp3_inputs.make_mp3(tmp_path / "a.mp3", 10.5, 0)
    info = soundfile.info(tmp_path / "a.mp3")
    assert (info.samplerate, info.channels, info.format) == (44100, 2, "MP3")
    assert abs(info.duration - 10.5) < 0.2
    left, right = soundfile.read(tmp_path / "a.mp3")[0].T
    assert 0.1 < left.std() < 0.3 and abs(left - right).std() > 0.1


def test_the_encoder_against_its_products(reported):
    result, printed = reported(encoder_floor.main, "--size", "tiny", "--seconds", 9, "--rounds", 2, "--profile")
    assert [row[0] for row in result["rows"]] == ["the encoder", "its matrix products alone"]
    assert "target: at most 1.25, " in result["notes"][0] and "aten::addmm" in printed
    # Two full windows in one group, and a tail: three convolutions, a projection and five layers of eight products.
    assert result["values"]["products"] == 2 * (3 + 1 + 5 * 8)


def flops_by_formula(encoder, frames: list[int]) -> int:
    """Two for each multiplication of the windows of so many frames."""
    config, flops = encoder.config, 0
    width, inner, channels = config.d_model, config.encoder_ffn_dim, config.downsample_hidden_size
    for count in frames:
        mels, inputs = config.num_mel_bins, 1
        for _ in range(3):
            mels, count = (mels + 1) // 2, (count + 1) // 2
            flops += 2 * channels * mels * count * inputs * 9
            inputs = channels
        flops += 2 * count * width * channels * mels
        flops += config.encoder_layers * (2 * count * (4 * width**2 + 2 * width * inner) + 4 * count**2 * width)
    return flops


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_all_products_are_taken_down(attention, dtype):
    encoder = encoder_floor.make_encoder("tiny", dtype, 0, "cpu")
    encoder.set_attn_implementation(attention)
    assert all(weight.dtype == getattr(torch, dtype) and weight.isfinite().all() for weight in encoder.parameters())
    run = encoder_floor.encoding(encoder, encoder_floor.make_features(encoder, 9, 0))
    taken = encoder_floor.products_of(encoder, run)
    assert taken.flops == flops_by_formula(encoder, [400, 400, frames_to_tokens(100) * 8])
    results = [product() for product in taken.products]
    assert all(result.dtype == getattr(torch, dtype) for result in results)
    assert run().last_hidden_state.shape == (113, 64)


def test_products_by_unknown_operators_are_told_of(monkeypatch):
    encoder = encoder_floor.make_encoder("tiny", "float32", 0, "cpu")
    monkeypatch.setattr(encoder_floor, "_MULTIPLICATIONS", {})
    run = encoder_floor.encoding(encoder, encoder_floor.make_features(encoder, 4, 0))
    with pytest.raises(RuntimeError, match="operators that are not known here"):
        encoder_floor.products_of(encoder, run)


def test_a_long_clip_against_a_short_one(reported, peaks_here):
    result, _ = reported(encoder_length.main, "--size", "tiny", "--short", 4, "--long", 12, "--rounds", 2)
    assert [row[0] for row in result["rows"]] == ["4 s", "12 s"]
    assert [arguments[2] for _, arguments, _ in peaks_here] == [4, 12]
    assert result["values"]["times_the_memory"] == 2 and "(target: at most 1.2, not met)" in result["notes"][1]
    assert "target: at most 3.09, " in result["notes"][0]
    assert result["values"]["megabytes"]["output of the long clip"] == 150 * 64 * 2 * 4 / 1e6
    assert 1 < result["values"]["times_the_memory_with_weights"] < 2


def test_fine_tuning(reported, monkeypatch):
    small = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "head_dim": 16,
    }
    monkeypatch.setattr(finetuning, "PADDED", 1024)
    monkeypatch.setattr(finetuning, "DECODER", {**finetuning.DECODER, **small, "num_key_value_heads": 1})
    monkeypatch.setattr(finetuning, "ENCODER", {**finetuning.ENCODER, "d_model": 32, "downsample_hidden_size": 4})
    lengths, forward = [], MossAudioModel.forward

    def watch(self, input_ids, **kwargs):
        lengths.append(tuple(input_ids.shape))
        return forward(self, input_ids=input_ids, **kwargs)

    monkeypatch.setattr(MossAudioModel, "forward", watch)
    result, _ = reported(finetuning.main, "--batches", 2, "--alone", 1)
    assert [row[:2] for row in result["rows"]] == [["batches of 8", 2], ["one at a time, 1024 tokens", 1]]
    assert [rows for rows, _ in lengths] == [1, 8, 1, 8] and lengths[2][1] == 1024 > lengths[1][1]
    assert set(result["values"]["ratio"]) == {"median", "lowest", "highest"}
    assert "target: at least 10, " in result["notes"][0]


def test_parsing(reported):
    result, _ = reported(parsing.main, "--characters", 400, "--rounds", 2)
    assert [row[0] for row in result["rows"]] == [f"`{piece!r}`" for piece in parsing.PIECES]
    assert set(result["values"]["times_as_long"]) == set(parsing.PIECES)
    assert "target: at most 2.5, " in result["notes"][0]
