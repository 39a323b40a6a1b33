"""Recordings in blocks, and what only ffmpeg can read."""

import io
import shutil
import subprocess

import numpy as np
import pytest
import soundfile
import torch

import moss_audio
from moss_audio import load_audio, stream_audio
from tests.conftest import waveform


needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """The same sound as WAV, as M4A, in a video, and a video without any."""
    folder = tmp_path_factory.mktemp("films")
    soundfile.write(folder / "a.wav", waveform(1, 48000), 16000)
    picture = ["-f", "lavfi", "-i", "color=s=32x32:d=3"]
    for arguments in (
        ["-i", "a.wav", "a.m4a"],
        ["-i", "a.wav", "-c:a", "aac", "a.aac"],
        [*picture, "-i", "a.wav", "-c:v", "mpeg4", "-shortest", "-a.mp4"],
        [*picture, "-i", "a.wav", "-c:v", "mpeg4", "-c:a", "pcm_s16le", "-ac", "2", "a.mkv"],
        [*picture, "-c:v", "mpeg4", "silent.mp4"],
    ):
        *arguments, name = arguments
        command = ["ffmpeg", "-v", "error", "-y", *arguments, f"file:{name}"]
        subprocess.run(command, cwd=folder, check=True)
    return folder


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 44100, 48000])
@pytest.mark.parametrize("channels", [1, 2])
def test_blocks_joined_are_the_recording(rate, channels, tmp_path):
    sound = np.random.default_rng(0).uniform(-0.5, 0.5, (rate * 45 + 7, channels)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", sound, rate)
    blocks = list(stream_audio(tmp_path / "a.wav"))
    assert len(blocks) > 1 and all(block.dtype == torch.float32 and block.ndim == 1 for block in blocks)
    assert torch.equal(torch.cat(blocks), load_audio(tmp_path / "a.wav"))


def test_samples_are_a_block():
    clip = waveform(1, 20000)
    assert torch.equal(torch.cat(list(stream_audio(clip))), torch.from_numpy(clip))
    resampled = torch.cat(list(stream_audio({"array": clip, "sampling_rate": 8000})))
    assert torch.equal(resampled, load_audio(clip, sampling_rate=8000))


def test_a_bad_sample_is_found_in_its_block(tmp_path):
    sound = np.zeros(16000 * 60, dtype=np.float32)
    sound[900000] = np.nan
    soundfile.write(tmp_path / "a.wav", sound, 16000, subtype="FLOAT")
    blocks = stream_audio(tmp_path / "a.wav")
    next(blocks)
    with pytest.raises(ValueError, match="a sample that is nan, at 900000"):
        list(blocks)


@needs_ffmpeg
@pytest.mark.parametrize("name", ["a.m4a", "a.aac", "-a.mp4", "a.mkv"])
def test_what_ffmpeg_reads(name, films, monkeypatch):
    monkeypatch.chdir(films)
    sound, expected = load_audio(name), load_audio("a.wav")
    assert abs(sound.shape[0] - expected.shape[0]) < 4000  # the frames of a codec
    length = min(sound.shape[0], expected.shape[0])
    spectra = [torch.fft.rfft(each[:length]).abs()[:3000] for each in (sound, expected)]
    assert torch.nn.functional.cosine_similarity(*spectra, dim=0) > 0.98
    if name == "a.mkv":
        assert torch.allclose(sound, expected, atol=1e-4)


@needs_ffmpeg
def test_bytes_and_file_objects_of_a_film(films, processor):
    expected = load_audio(films / "-a.mp4")
    data = (films / "-a.mp4").read_bytes()
    assert torch.equal(load_audio(data), expected)
    with open(films / "-a.mp4", "rb") as file:
        assert torch.equal(load_audio(file), expected)
    assert torch.equal(load_audio(io.BytesIO(data)), expected)
    inputs = processor.apply_transcription_request(str(films / "-a.mp4"))
    assert inputs["audio_data_seqlens"].tolist() == [expected.shape[0] // 160]


@needs_ffmpeg
def test_a_film_at_another_rate_and_taken_in_part(films):
    assert abs(load_audio(films / "a.m4a", target_rate=8000).shape[0] - 24000) < 2000
    blocks = stream_audio(films / "a.mkv")
    assert next(blocks).shape[0] > 0
    blocks.close()  # and ffmpeg with it


@needs_ffmpeg
def test_ffmpeg_says_what_is_wrong(films, tmp_path):
    with pytest.raises(ValueError, match="silent.mp4 has no sound track"):
        load_audio(films / "silent.mp4")
    (tmp_path / "text.mp4").write_text("no film")
    with pytest.raises(ValueError, match="text.mp4 cannot be read as sound; ffmpeg says: (?!.*0x).*Invalid data"):
        load_audio(tmp_path / "text.mp4")
    with pytest.raises(ValueError, match="audio of 7 bytes cannot be read as sound; ffmpeg says"):
        load_audio(b"no film")


@needs_ffmpeg  # to make the film
def test_without_ffmpeg(films, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(
        ValueError, match="a.m4a cannot be read as sound .*the program ffmpeg is installed, which is not"
    ):
        load_audio(films / "a.m4a")
    assert moss_audio.load_audio(films / "a.wav").shape[0] == 48000
