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
"""A recording and its result on one page: waveform, spectrogram, segments on the time axis, play on click.

The page is one file that needs no network. What a model answered is not to be trusted: the template escapes all of it,
and the page's own policy forbids every script but its own and every request.
"""

import base64
import hashlib
import html
import io
import math
import os
import re
import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional, Union

import numpy as np

from .transcripts_moss_audio import Segment
from .writers import are_words, complete, write_atomically


EMBEDDED_MEGABYTES = 25.0
LEAST_COLUMNS, MOST_COLUMNS, COLUMNS_A_SECOND = 2400, 12000, 4  # of the pictures
FRAMES_AT_ONCE = 6000  # of features, to bound memory
SPEAKER_COLORS = 8
DOUBTFUL_MEAN, DOUBTFUL_TOKEN = 0.6, 0.1  # probabilities below which a segment is marked for checking


def write_page(
    recording: Union[str, os.PathLike],
    result: Mapping[str, Any],
    output: Union[str, os.PathLike],
    embedded_megabytes: float = EMBEDDED_MEGABYTES,
) -> Path:
    """
    Writes a page to look at a result and listen to its recording.

    Args:
        recording: a file that [`load_audio`] reads.
        result: see [`moss_audio.writers.complete`].
        output: the page, an HTML file.
        embedded_megabytes: the sound is written into the page as MP3, mono at 16 kHz, where that takes no more; else the
            page plays the recording itself, by its path relative to the page.

    Returns:
        The path of the page.

    Raises:
        ValueError: where the recording cannot be read as sound, `result` is no result, or `output` is the recording.
        FileNotFoundError: where there is no recording.
        ImportError: where matplotlib or Jinja2 are not installed.
    """
    try:
        import jinja2
        import matplotlib  # noqa: F401  (before the recording is read)
    except ImportError as error:
        raise ImportError(
            f"a page needs {error.name}, which is not installed: `pip install matplotlib jinja2`."
        ) from error
    from .processing_moss_audio import load_audio

    output, result = Path(output), complete(result)
    if output.exists() and output.samefile(recording):
        raise ValueError(f"`output` {output} is the recording; name another file for the page.")
    samples = load_audio(os.fspath(recording)).numpy()
    source = _embedded(samples, embedded_megabytes)
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    template = environment.from_string(Path(__file__).with_name("view.html.jinja").read_text(encoding="utf-8"))
    page = template.render(
        **_described(result, len(samples) / 16000),
        name=Path(recording).name,
        embedded=source is not None,
        source=source or _linked(Path(recording), output.parent),
        waveform=_data_url(_waveform(samples), "image/png"),
        spectrogram=_data_url(_spectrogram(samples), "image/jpeg"),
    )
    return write_atomically(output, _with_policy(page))


def _described(result: dict[str, Any], duration: float) -> dict[str, Any]:
    """What the template shows of a result."""
    segments = [Segment.from_dict(segment) for segment in result["segments"]]
    speakers = sorted({segment.speaker for segment in segments if segment.speaker is not None})
    names = [*speakers, None]
    rows = [_row(index, segment, names.index(segment.speaker), duration) for index, segment in enumerate(segments)]
    timed = any(row["left"] is not None for row in rows)
    return {
        "duration": duration,
        "length": clock(duration),
        "model": _short(result["model"]),
        "cut_off": bool(result.get("cut_off")),
        "answer": result["generated_text"],
        "reasoning": result["reasoning"],
        "repairs": result["repairs"],
        "rows": rows,
        "lanes": [lane for lane in _lanes(names, rows) if lane["rows"]],
        "speakers": bool(speakers),
        "timed": timed,
        "words": are_words(segments),
        "scored": any(row["confidence"] is not None for row in rows),
        "doubtful": sum(row["doubtful"] for row in rows),
    }


def _short(model: Optional[str]) -> Optional[str]:
    """A checkpoint's name: of a folder the last part, for the others are nobody's business on a page that is passed on."""
    is_id = model and model.count("/") == 1 and not model.startswith((".", "/", "~"))
    return model if not model or is_id else re.split(r"[/\\]", model.rstrip("/\\"))[-1]


def _lanes(names: list[Optional[str]], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What stands on the time axis, speaker by speaker."""
    return [
        {"name": name, "rows": [row for row in rows if row["lane"] == lane and row["left"] is not None]}
        for lane, name in enumerate(names)
    ]


def _row(index: int, segment: Segment, lane: int, duration: float) -> dict[str, Any]:
    """A segment with its place on the time axis in percent, None where it has no time."""
    start, end = segment.start, segment.end
    at = start if start is not None else end
    left = None if at is None else 100 * min(max(at, 0.0), duration) / duration
    right = 100 * min(max(at if end is None else end, 0.0), duration) / duration if left is not None else None
    mean = None if segment.logprob_mean is None else math.exp(min(0.0, segment.logprob_mean))
    lowest = None if segment.logprob_min is None else math.exp(min(0.0, segment.logprob_min))
    return {
        "index": index,
        "text": segment.text,
        "speaker": segment.speaker,
        "lane": lane,
        "color": lane % SPEAKER_COLORS,
        "start": at,
        "end": end,
        "time": " – ".join("?" if time is None else clock(time) for time in (start, end))
        if at is not None
        else "no time",
        "left": left,
        "width": None if left is None else right - left,
        "confidence": mean,
        "lowest": lowest,
        "doubtful": (mean is not None and mean < DOUBTFUL_MEAN) or (lowest is not None and lowest < DOUBTFUL_TOKEN),
    }


def clock(seconds: float) -> str:
    """A time as 1:02:03.4, without hours where there are none."""
    tenths = round(10 * seconds)
    minutes, hours = tenths // 600 % 60, tenths // 36000
    return (f"{hours}:{minutes:02d}" if hours else f"{minutes}") + f":{tenths // 10 % 60:02d}.{tenths % 10}"


def _embedded(samples: np.ndarray, megabytes: float) -> Optional[str]:
    """The sound as a data URL; None where it is too large for one."""
    import soundfile

    mp3 = "MP3" in soundfile.available_formats()
    if len(samples) * (0.1 if mp3 else 2) > megabytes * 1e6:  # less than any MP3 of it has
        return None
    file = io.BytesIO()
    soundfile.write(file, np.clip(samples, -1, 1), 16000, format="MP3" if mp3 else "WAV")
    if file.tell() > megabytes * 1e6:
        return None
    return _data_url(file.getvalue(), "audio/mpeg" if mp3 else "audio/wav")


def _linked(recording: Path, folder: Path) -> str:
    """The recording as a URL relative to the page; an absolute one where it is on another drive."""
    try:
        relative = os.path.relpath(recording.resolve(), folder.resolve())
    except ValueError:
        return recording.resolve().as_uri()
    return urllib.parse.quote(Path(relative).as_posix())


def _columns(samples: np.ndarray, steps: int) -> np.ndarray:
    """Where the columns of a picture begin that shows so many steps of a recording."""
    columns = min(max(LEAST_COLUMNS, COLUMNS_A_SECOND * len(samples) // 16000), MOST_COLUMNS, steps)
    return np.linspace(0, steps, columns, endpoint=False).astype(int)


def _waveform(samples: np.ndarray) -> bytes:
    """The waveform as PNG: the lowest and the highest sample of each column."""
    from matplotlib.figure import Figure

    starts = _columns(samples, len(samples))
    low, high = np.minimum.reduceat(samples, starts), np.maximum.reduceat(samples, starts)
    figure = Figure(figsize=(max(len(starts), LEAST_COLUMNS) / 100, 1.2), dpi=100)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.fill_between(np.arange(len(starts)), low, high, color="#4f86d9", linewidth=0.6)
    loudest = max(float(np.abs(samples).max()), 0.01)
    axes.set(xlim=(0, len(starts) - 1), ylim=(-loudest, loudest))
    axes.set_axis_off()
    file = io.BytesIO()
    figure.savefig(file, format="png", transparent=True)
    return file.getvalue()


def _spectrogram(samples: np.ndarray) -> bytes:
    """The log-mel features that the model hears as JPEG, low frequencies at the bottom; the loudest frame of each column."""
    import torch
    from matplotlib.image import imsave

    from .processing_moss_audio import log_mel

    frames = len(samples) // 160
    starts = _columns(samples, frames)
    groups = np.array_split(starts, math.ceil(frames / FRAMES_AT_ONCE))
    ends = [*(int(group[0]) for group in groups[1:]), frames]
    columns = []
    for group, end in zip(groups, ends):
        features = log_mel(torch.from_numpy(samples[160 * int(group[0]) : 160 * end]).float()).numpy()
        columns.append(np.maximum.reduceat(features, group - group[0], axis=1))
    image = np.concatenate(columns, axis=1)
    file = io.BytesIO()
    highest = float(image.max())
    scale = {"vmin": highest - 2, "vmax": max(highest, -1.49)}  # the model's features have this range; silence is dark
    imsave(file, image, format="jpeg", cmap="magma", origin="lower", pil_kwargs={"quality": 85}, **scale)
    return file.getvalue()


def _data_url(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _with_policy(page: str) -> str:
    """The page with a policy that lets its own script run, and nothing be loaded but what stands in it or beside it."""
    script = page.rpartition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    policy = (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data:; "
        "media-src data: blob: file: 'self'; base-uri 'none'; form-action 'none'"
    )
    meta = f'<meta http-equiv="Content-Security-Policy" content="{html.escape(policy)}">'
    return page.replace("<!-- policy -->", meta, 1)


__all__ = ["write_page"]
