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
"""How long it takes to load a checkpoint whose files are in the page cache, against reading their bytes, and how much memory
that needs beyond the weights.

    python -m moss_audio.benchmarks.loading

Every run has a process of its own, whose imports do not count. Loading ends when every byte of every weight has been
read: a file that is only mapped is not loaded yet. Reading copies through a buffer of 16 MiB again and again, in one thread;
nothing of it is kept. Files that are mapped are not copied, and so may be loaded in less time than that.
"""

import os
import statistics
import tempfile
from pathlib import Path
from typing import Any, Callable, Optional

import torch
from safetensors import safe_open

from moss_audio import MossAudioModel
from moss_audio.conversion.scaffold import scaffold

from .measuring import Report, against_target, cost, make_parser, publish, ratios, turn, verdict


TARGET = 1.3  # times the seconds
BEYOND = 1000  # MB
BUFFER = 1 << 24  # bytes


def weight_files(folder: str) -> list[Path]:
    """The files with the weights."""
    return sorted(Path(folder).glob("*.safetensors"))


def prepare_reading(folder: str) -> Callable[[], None]:
    """Reads all bytes of the weights' files."""
    buffer = bytearray(BUFFER)

    def read():
        for path in weight_files(folder):
            with path.open("rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass

    return read


def load(folder: str, device: str) -> MossAudioModel:
    """The model as a user would load it."""
    placed = {} if device == "cpu" else {"device_map": device}
    return MossAudioModel.from_pretrained(folder, dtype="auto", **placed)


def prepare_loading(folder: str, device: str) -> Callable[[], None]:
    """Loads the checkpoint and reads its weights; a small one before, as what is imported on the way does not count."""
    with tempfile.TemporaryDirectory() as temporary:
        load(str(scaffold(str(Path(temporary) / "tiny"), "tiny")), device)

    def load_and_read():
        model = load(folder, device)
        if device == "cpu":
            for tensor in model.state_dict().values():
                whole = tensor.flatten().view(torch.uint8)
                whole[: len(whole) // 8 * 8].view(torch.int64).sum()

    return load_and_read


def prepare_check(folder: str, device: str) -> Callable[[], list[str]]:
    """Gives the names of tensors that are not those of the files."""

    def check() -> list[str]:
        loaded, wrong = load(folder, device).state_dict(), []
        for path in weight_files(folder):
            with safe_open(path, "pt") as file:
                for name in file.keys():  # noqa: SIM118  (no dict)
                    if not torch.equal(loaded.pop(name).cpu(), file.get_tensor(name)):
                        wrong.append(name)
        return wrong + list(loaded)

    return check


def measure(folder: str, rounds: int, device: str) -> Report:
    """Seconds and memory of loading and reading in turns."""
    wrong = cost(prepare_check, folder, device, device=device).result
    if wrong:
        raise RuntimeError(f"{len(wrong)} tensors were not loaded as they are, {wrong[0]} among them.")
    if hasattr(os, "sync"):
        os.sync()  # what was just written is not to be on its way to the disk meanwhile
    size = sum(path.stat().st_size for path in weight_files(folder)) / 1e6
    ways: dict[str, tuple[Any, ...]] = {
        "reading the bytes": (prepare_reading, folder),
        "loading": (prepare_loading, folder, device),
    }
    reading, loading = ways
    costs = {name: [] for name in ways}
    for number in range(rounds):
        for name in turn(ways, number):
            prepare_reading(folder)()  # whatever has gone from the page cache comes back
            costs[name].append(cost(*ways[name], device=device if name == loading else "cpu"))
    seconds = {name: [each.seconds for each in costs[name]] for name in ways}
    beyond = statistics.median(each.megabytes for each in costs[loading]) - size
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    more = {reading: 0.0, loading: beyond}
    rows = [[name, median, size / 1000 / median, f"{more[name]:.0f}"] for name, median in medians.items()]
    ratio = ratios(seconds[loading], seconds[reading])
    notes = [
        against_target("Seconds, loading over reading", ratio, f"at most {TARGET}", ratio["median"] <= TARGET),
        f"Peak memory beyond the weights: {beyond:.0f} MB ({verdict(f'at most {BEYOND}', beyond <= BEYOND)}).",
        f"{size / 1000:.2f} GB of weights. Where the files are mapped into memory, their pages are the weights.",
    ]
    values = {"ratio": ratio, "beyond_megabytes": beyond, "weights_megabytes": size}
    return Report(["way", "seconds", "GB a second", "MB beyond the weights"], rows, notes, values)


def measure_scaffold(size: str, folder: Optional[Path], rounds: int, device: str, seed: int) -> Report:
    """The same for a checkpoint with random weights, in a folder to be kept or in a temporary one."""
    with tempfile.TemporaryDirectory() as temporary:
        path = scaffold(str(folder or Path(temporary) / size), size, seed)
        return measure(str(path), rounds, device)


def main():
    parser = make_parser("loading", __doc__, rounds=3)
    parser.add_argument("--size", default="4b", help="tiny, 0.6b, 4b (10.45 GB on the disk) or 8b; default: 4b")
    parser.add_argument("--folder", type=Path, help="where the checkpoint is, or is written to and kept")
    options = parser.parse_args()
    publish(measure_scaffold(options.size, options.folder, options.rounds, options.device, options.seed), options)


if __name__ == "__main__":
    main()
