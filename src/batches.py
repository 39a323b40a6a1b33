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
"""Many recordings through the pipeline in full batches, for the commands: whatever fails costs itself only.

Pieces of recordings, long or short, fill a batch together; results come in the order of the recordings.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Optional


@dataclass
class _Job:
    """A recording on its way: what was generated for its pieces so far."""

    outputs: list[dict[str, Any]] = field(default_factory=list)
    pieces: int = 0
    is_complete: bool = False  # all pieces have been made
    error: Optional[str] = None

    @property
    def is_done(self) -> bool:
        return self.error is not None or self.is_complete and len(self.outputs) == self.pieces


def answer_all(
    pipe: Any,
    recordings: Iterable[Any],
    batch_size: int = 8,
    heard: Callable[[float], None] = lambda seconds: None,
    **parameters,
) -> Iterator[dict[str, Any]]:
    """
    The pipeline's results for recordings, in order; one that cannot be used gives `{"error": message}`.

    Args:
        pipe: an [`AudioTextToTextPipeline`].
        recordings: what the pipeline takes for one input each.
        batch_size: pieces answered at once.
        heard: called with the seconds of every piece that has been answered.
        parameters: of the pipeline's call.

    Raises:
        ValueError: where parameters do not go together.
    """
    preprocess, forward, postprocess = pipe._sanitize_parameters(**parameters)
    jobs: deque[_Job] = deque()
    batch: list[tuple[_Job, dict[str, Any]]] = []

    def finished(at_least: int) -> Iterator[dict[str, Any]]:
        if len(batch) >= at_least and batch:
            _run(pipe, batch, forward, heard)
            batch.clear()
        while jobs and jobs[0].is_done:
            job = jobs.popleft()
            yield {"error": job.error} if job.error is not None else pipe.postprocess(job.outputs, **postprocess)

    for recording in recordings:
        jobs.append(_Job())
        for piece in _pieces(pipe, recording, jobs[-1], preprocess):
            batch.append((jobs[-1], piece))
            yield from finished(batch_size)
        yield from finished(batch_size)
    yield from finished(1)


def _pieces(pipe: Any, recording: Any, job: _Job, preprocess: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The inputs for a recording's pieces, until one fails."""
    try:
        for piece in pipe.preprocess(recording, **preprocess):
            if job.error is not None:
                return
            job.pieces += 1
            job.is_complete = piece["is_last"]
            yield piece
    except (OSError, ValueError, ImportError) as error:
        job.error = str(error).removeprefix("clip 0: ")  # each recording is its only clip


def _run(pipe: Any, batch: list[tuple[_Job, dict[str, Any]]], forward: dict[str, Any], heard: Callable[[float], None]):
    """Answers a batch; where that fails, one piece after another, so that only the culprit is lost."""
    batch = [(job, piece) for job, piece in batch if job.error is None]
    if not batch:
        return
    failure = None
    try:
        outputs = pipe.forward({name: [piece[name] for _, piece in batch] for name in batch[0][1]}, **forward)
    except (ValueError, RuntimeError) as error:
        failure = str(error)  # the error itself would keep the memory of the batch, which may be what was missing
    if failure is not None and len(batch) == 1:
        batch[0][0].error = failure
    elif failure is not None:
        for one in batch:
            _run(pipe, [one], forward, heard)
    else:
        for row, (job, piece) in enumerate(batch):
            job.outputs.append({name: None if value is None else value[row] for name, value in outputs.items()})
            heard((piece["end"] or 0.0) - (piece["start"] or 0.0))
