# Copyright 2026 The moss-audio authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""From a recording, wherever it is and whatever it is encoded as, to mono samples at one rate: `load_audio` all at once,
`stream_audio` block by block, so that hours of sound need little memory.

libsndfile reads WAV, FLAC, OGG and MP3; what it cannot read (M4A, the sound track of a video) goes to the program ffmpeg.
"""

import base64
import binascii
import contextlib
import importlib
import io
import math
import os
import re
import shutil
import subprocess
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Optional, Union

import numpy as np
import torch


MIN_SECONDS = 0.025  # one Fourier window of the features
DOWNLOAD_TIMEOUT = 60  # seconds
BYTES_PER_BLOCK = 1 << 20  # of ffmpeg's output

AudioSource = Union[str, os.PathLike, bytes, io.IOBase, np.ndarray, torch.Tensor, Mapping[str, Any], Sequence[float]]


def load_audio(source: AudioSource, sampling_rate: Optional[int] = None, target_rate: int = 16000) -> torch.Tensor:
    """
    Decodes a recording, mixes it to mono and resamples it.

    Args:
        source: a path, an http(s) URL, a base64 data URL, encoded bytes or a file object (of a video, its first sound
            track); or samples: a NumPy array, torch tensor or list, mono or multi-channel (the longer axis is time); or a
            mapping with `array` and `sampling_rate`, `bytes` or `path` as Datasets gives it. Integer samples are divided
            by the full scale of their type (those of 64 bits by the smallest of 16, 32 and 64 bits that holds them),
            floating ones are taken as they are.
        sampling_rate: samples per second of an array or tensor. Taken as `target_rate` where it is not given; a file
            knows its own.
        target_rate: samples per second of the result.

    Returns:
        `torch.FloatTensor` of shape `(samples,)`, float32, on the device of a given tensor, else on the CPU.

    Raises:
        ValueError: for samples that are not numbers, not finite, of more than two dimensions, too few, or of a rate
            that is not positive; for a file that cannot be read as sound, or a source of another type.
        FileNotFoundError: where there is no file at a path.
        ImportError: where reading a file needs librosa, or resampling needs soxr, and it is not installed.
    """
    rate, blocks = _open(source, sampling_rate, target_rate)
    parts = list(_finite(blocks))
    samples = parts[0] if len(parts) == 1 else torch.cat(parts) if parts else torch.zeros(0)
    samples = _resample(samples, rate, target_rate)
    check_length(samples.shape[0], target_rate)
    return samples


def stream_audio(
    source: AudioSource, sampling_rate: Optional[int] = None, target_rate: int = 16000
) -> Iterator[torch.Tensor]:
    """
    The samples of [`load_audio`], block by block: a file is decoded and resampled as the blocks are taken, without seams.

    Args:
        source, sampling_rate, target_rate: as for [`load_audio`].

    Returns:
        Blocks `(samples,)` of some seconds, float32, which joined are the recording; samples in memory are one block.

    Raises:
        ValueError, FileNotFoundError, ImportError: as [`load_audio`], but for a length: a block may be short, and so may
            the recording. Errors inside a file come when its bad block is read.
    """
    rate, blocks = _open(source, sampling_rate, target_rate)
    return _resampled(_finite(blocks), rate, target_rate)


def check_length(samples: int, sampling_rate: int):
    """
    Raises:
        ValueError: where so many samples are less than one Fourier window.
    """
    needed = round(MIN_SECONDS * sampling_rate)
    if samples < needed:
        raise ValueError(
            f"the audio has {samples} samples ({1000 * samples / sampling_rate:.0f} ms at {sampling_rate / 1000:g} kHz); "
            f"the model needs at least {needed} ({1000 * MIN_SECONDS:.0f} ms)."
        )


def _open(
    source: AudioSource, sampling_rate: Optional[int], target_rate: int
) -> tuple[Union[int, float], Iterator[torch.Tensor]]:
    """The rate of a recording and its mono samples in blocks."""
    if sampling_rate is not None and not sampling_rate > 0:
        raise ValueError(f"`sampling_rate` {sampling_rate} must be positive, in samples per second; e.g. 16000.")
    if isinstance(source, Mapping) or hasattr(source, "get_all_samples"):
        source, sampling_rate = _open_mapping(source, sampling_rate)
    if isinstance(source, (str, os.PathLike, bytes, bytearray)) or hasattr(source, "read"):
        return _open_recording(source, target_rate)
    return target_rate if sampling_rate is None else sampling_rate, iter([_to_mono(source)])


def _finite(blocks: Iterator[torch.Tensor]) -> Iterator[torch.Tensor]:
    """The blocks, refused where a sample is no finite number."""
    done = 0
    for block in blocks:
        if block.numel() and not all(map(math.isfinite, torch.stack(torch.aminmax(block)).tolist())):
            bad = int((~torch.isfinite(block)).nonzero()[0])
            raise ValueError(
                f"the audio has a sample that is {float(block[bad])}, at {done + bad}; all must be finite numbers."
            )
        done += block.shape[0]
        yield block


def _open_mapping(source: Any, sampling_rate: Optional[int]) -> tuple[Any, Optional[int]]:
    """What Datasets gives for a row: decoded samples with their rate, or an encoded file."""
    if hasattr(source, "get_all_samples"):  # a decoder of torchcodec
        decoded = source.get_all_samples()
        return decoded.data, decoded.sample_rate
    for name in ("array", "raw"):
        if source.get(name) is not None:
            rate = source.get("sampling_rate", sampling_rate)
            if rate is not None and not rate > 0:
                raise ValueError(f"`sampling_rate` {rate} must be positive, in samples per second; e.g. 16000.")
            return source[name], rate
    for name in ("bytes", "path", "url"):
        if source.get(name) is not None:
            return source[name], sampling_rate
    raise ValueError(
        f"an audio mapping has keys {sorted(source)}; it needs `array` and `sampling_rate`, or `bytes`, or `path`."
    )


def _to_mono(source: Any) -> torch.Tensor:
    """Samples of any type to float32 `(samples,)`."""
    samples = source.detach() if isinstance(source, torch.Tensor) else np.asarray(source)
    if isinstance(samples, np.ndarray) and samples.dtype.kind not in "iuf":
        raise ValueError(
            f"audio of type {type(source).__name__} (dtype {samples.dtype}) is neither samples nor a recording; pass a "
            "path, URL, bytes, file object, array or tensor."
        )
    if samples.ndim not in (1, 2):
        raise ValueError(
            f"audio of shape {tuple(samples.shape)} has {samples.ndim} dimensions; one clip is (samples,) or "
            "(channels, samples). Pass several clips as a list."
        )
    if isinstance(samples, np.ndarray):
        native = samples.astype(samples.dtype.newbyteorder("="), copy=False)
        samples = torch.from_numpy(np.ascontiguousarray(native))
    if samples.dtype == torch.bool or samples.is_complex():
        raise ValueError(f"audio of dtype {samples.dtype} is not sound; pass floating or integer samples.")
    if samples.ndim == 1:
        return _to_float(samples)
    channels = samples if samples.shape[0] <= samples.shape[1] else samples.T
    if not channels.shape[0]:
        return torch.zeros(0)
    return _mix(channels)


def _mix(channels: torch.Tensor) -> torch.Tensor:
    """The mean of `(channels, samples)`, float32; one by one, so that a long recording is not copied in full."""
    mono = _to_float(channels[0]).clone()
    for channel in channels[1:]:
        mono += _to_float(channel)
    return mono.div_(channels.shape[0])


def _to_float(samples: torch.Tensor) -> torch.Tensor:
    """Samples as float32; integers divided by the full scale of their type, unsigned ones centred."""
    if samples.is_floating_point():
        return samples.float()
    scale = 2.0 ** (8 * samples.element_size() - 1)
    if samples.element_size() == 8 and samples.numel():
        # Python and NumPy make 64 bits of plain integers: what fits into 16 or 32 bits was recorded so.
        loudest = float(samples.abs().max())
        scale = next(full for full in (2.0**15, 2.0**31, 2.0**63) if loudest <= full)
    unsigned = torch.iinfo(samples.dtype).min == 0
    return samples.float().div_(scale).sub_(1.0 if unsigned else 0.0)


def _open_recording(source: Any, target_rate: int) -> tuple[int, Iterator[torch.Tensor]]:
    """The rate of an encoded recording and its mono samples: by libsndfile, or at `target_rate` by ffmpeg."""
    name, source = _open_file(source)
    try:
        import librosa
        import soundfile
    except (ImportError, OSError) as error:
        raise ImportError(
            f"reading {name} needs librosa, which cannot be imported ({error}): `pip install librosa`, or pass the "
            "samples as an array."
        ) from error
    if isinstance(source, str) and not os.path.getsize(source):
        raise ValueError(f"{name} is an empty file.")
    try:
        file = soundfile.SoundFile(source)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        return target_rate, _ffmpeg_blocks(name, source, target_rate, error)

    def blocks() -> Iterator[torch.Tensor]:
        try:
            with file:
                # Frames as long as their hop are plain blocks. They are mixed to mono one by one, so that a long
                # recording is never held in full; here, because librosa's own mixing refuses samples that are not finite.
                for block in librosa.stream(file, block_length=64, frame_length=2048, hop_length=2048, mono=False):
                    samples = torch.from_numpy(block)
                    yield samples if samples.ndim == 1 else _mix(samples)
        except (soundfile.LibsndfileError, RuntimeError) as error:
            raise ValueError(f"{name} cannot be read as sound to its end ({error}).") from error

    return file.samplerate, blocks()


def _ffmpeg_blocks(name: str, source: Any, rate: int, reason: Exception) -> Iterator[torch.Tensor]:
    """The first sound track of what libsndfile cannot read, mixed and resampled by ffmpeg."""
    program = shutil.which("ffmpeg")
    if program is None:
        raise ValueError(
            f"{name} cannot be read as sound ({reason}). WAV, FLAC, OGG and MP3 are read as they are; M4A, videos and most "
            "others where the program ffmpeg is installed, which is not on the PATH."
        ) from reason

    def blocks() -> Iterator[torch.Tensor]:
        with _as_file(source) as path, tempfile.TemporaryFile() as messages:
            # `file:` and the list of protocols: a name is never an option, nor a playlist a way into the network.
            options = ["-nostdin", "-v", "error", "-protocol_whitelist", "file,pipe", "-i", f"file:{path}"]
            output = ["-map", "0:a:0", "-ac", "1", "-ar", str(rate), "-c:a", "pcm_f32le", "-f", "f32le", "pipe:1"]
            process = subprocess.Popen([program, *options, *output], stdout=subprocess.PIPE, stderr=messages)
            try:
                while data := process.stdout.read(BYTES_PER_BLOCK):
                    whole = data[: len(data) // 4 * 4]  # an ffmpeg that dies may leave a part of a sample
                    yield torch.from_numpy(np.frombuffer(whole, dtype="<f4").astype(np.float32))
                if process.wait():
                    messages.seek(0)
                    said = " ".join(messages.read().decode(errors="replace").split())
                    if "matches no streams" in said:
                        raise ValueError(f"{name} has no sound track.")
                    said = re.sub(r"\[[^\]]* @ 0x[0-9a-f]+\] ", "", said)  # where in ffmpeg's memory
                    raise ValueError(f"{name} cannot be read as sound; ffmpeg says: {said[-500:]}")
            finally:
                process.kill()
                process.stdout.close()
                process.wait()

    return blocks()


@contextlib.contextmanager
def _as_file(source: Any) -> Iterator[str]:
    """A path at which ffmpeg finds an encoded recording; it cannot read every format from a pipe."""
    if isinstance(source, str):
        yield os.path.abspath(source)
        return
    with tempfile.NamedTemporaryFile(delete=False) as copy:
        source.seek(0)
        shutil.copyfileobj(source, copy)
    try:
        yield copy.name
    finally:
        os.unlink(copy.name)


def _open_file(source: Any) -> tuple[str, Any]:
    """How to call an encoded recording in a message, and what soundfile opens: a path or a file object."""
    if isinstance(source, (bytes, bytearray)):
        return f"audio of {len(source)} bytes", io.BytesIO(source)
    if hasattr(source, "read"):
        seekable = hasattr(source, "seekable") and source.seekable()
        return f"file object {getattr(source, 'name', '')}".strip(), source if seekable else io.BytesIO(source.read())
    source = os.fspath(source)
    if source.startswith("data:"):
        return "audio of a data URL", io.BytesIO(decode_base64(source))
    if source.startswith(("http://", "https://")):
        try:
            request = urllib.request.Request(source, headers={"User-Agent": "moss-audio"})
            with urllib.request.urlopen(request, timeout=DOWNLOAD_TIMEOUT) as response:
                return source, io.BytesIO(response.read())
        except (urllib.error.URLError, OSError) as error:
            raise ValueError(f"{source} cannot be downloaded: {error}.") from error
    path = os.path.expanduser(source)
    if not os.path.isfile(path):
        folder = ", which is a folder: give the files in it" if os.path.isdir(path) else ""
        raise FileNotFoundError(f"there is no audio file at {path[:200]!r}{folder}.")
    return path, path


def decode_base64(data: str) -> bytes:
    """
    The bytes of a base64 string or of a base64 data URL (`data:audio/wav;base64,…`).

    Raises:
        ValueError: where it is neither.
    """
    header, comma, body = data.partition(",") if data.startswith("data:") else ("", "", data)
    if header and not (comma and header.endswith(";base64")):
        raise ValueError(
            f"a data URL that starts with {data[:40]!r} is not base64; expected `data:audio/wav;base64,…`."
        )
    try:
        return base64.b64decode("".join(body.split()), validate=True)
    except binascii.Error as error:
        raise ValueError(f"audio that starts with {data[:40]!r} is not base64: {error}.") from error


def _resample(samples: torch.Tensor, rate: Union[int, float], target_rate: int) -> torch.Tensor:
    """Mono samples at `target_rate`: by torchaudio on the tensor's device where it imports, by soxr otherwise."""
    if rate == target_rate or not samples.numel():
        return samples
    if samples.device.type != "cpu":
        try:
            functional = importlib.import_module("torchaudio.functional")
            return functional.resample(samples, int(rate), target_rate, lowpass_filter_width=64)
        except (ImportError, OSError, RuntimeError):  # built against another torch or CUDA: soxr does as well
            pass
    resampled = _import_soxr(rate, target_rate).resample(samples.cpu().numpy(), rate, target_rate)
    return torch.from_numpy(resampled).to(samples.device)


def _resampled(blocks: Iterator[torch.Tensor], rate: Union[int, float], target_rate: int) -> Iterator[torch.Tensor]:
    """Blocks at `target_rate`, as if they had been resampled in one."""
    if rate == target_rate:
        yield from blocks
        return
    stream = _import_soxr(rate, target_rate).ResampleStream(rate, target_rate, 1, dtype="float32")
    for block in blocks:
        yield torch.from_numpy(stream.resample_chunk(block.cpu().numpy()))
    yield torch.from_numpy(stream.resample_chunk(np.zeros(0, dtype=np.float32), last=True))


def _import_soxr(rate: Union[int, float], target_rate: int) -> Any:
    try:
        import soxr
    except ImportError as error:
        raise ImportError(
            f"audio at {rate} Hz must be resampled to {target_rate} Hz, which needs soxr: `pip install soxr`, or pass "
            f"samples at {target_rate} Hz."
        ) from error
    return soxr


def is_samples(source: Any) -> bool:
    """Whether a list is a waveform rather than a list of clips."""
    return isinstance(source, (list, tuple)) and bool(source) and isinstance(source[0], (int, float, np.number))


__all__ = ["load_audio", "stream_audio"]
