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
"""What the benchmarks share: ways that take turns, ratios of neighbours, peaks of memory, and a report of it all.

Machines are noisy, so no number stands alone: two ways run in turn, and what counts is the median of the ratios of
neighbouring runs, with their spread.
"""

import argparse
import gc
import json
import platform
import statistics
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Callable, Optional

import torch
import transformers

from moss_audio import __version__


@dataclass
class Report:
    """
    What a benchmark found: `rows` under `header` (strings and numbers), and the sentences that go below, among them the
    ratio with its target. `device` and `versions` are filled in; `versions` may name more packages that a number depends on.
    """

    header: list[str]
    rows: list[list[Any]]
    notes: list[str]
    values: dict[str, Any] = field(default_factory=dict)  # the numbers behind the notes, for the JSON file
    device: str = ""
    versions: dict[str, str] = field(default_factory=dict)

    def markdown(self) -> str:
        """The table, then the notes, the device and the versions."""
        lines = ["| " + " | ".join(self.header) + " |", "| --- |" + " ---: |" * (len(self.header) - 1)]
        lines += ["| " + " | ".join(map(_cell, row)) + " |" for row in self.rows]
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        return "\n".join([*lines, "", *self.notes, f"{self.device}; {versions}."])


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"
    return str(value)


def on_gpu(device: str) -> bool:
    """Whether the device is one of CUDA's."""
    return device.startswith("cuda")


def device_name(device: str) -> str:
    """The device in words: the GPU's name, or the processor with the number of threads that torch uses."""
    if on_gpu(device):
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        name = models[0] if models else name
    return f"{name}, {torch.get_num_threads()} threads"


def versions() -> dict[str, str]:
    """The versions that a number depends on."""
    return {
        "moss_audio": __version__,
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def wait(device: str):
    """Returns when the device has done what it was given."""
    if on_gpu(device):
        torch.cuda.synchronize()


class Seconds(float):
    """What a way returns where only a part of it counts: the seconds of that part."""


def turn(ways: Iterable[str], number: int) -> list[str]:
    """The order of the ways in a round: it turns around from round to round."""
    return list(ways)[:: 1 if number % 2 else -1]


def take_turns(
    ways: dict[str, Callable[[], Any]], rounds: int, device: str = "cpu", warm: int = 1
) -> dict[str, list[float]]:
    """
    Runs every way once a round, in the order of [`turn`].

    Args:
        ways: functions by name. One that returns [`Seconds`] says itself how long it took.
        warm: rounds before those that count.

    Returns:
        The seconds of each way, a number a round.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(warm + rounds):
        for name in turn(ways, number):
            gc.collect()
            wait(device)
            start = time.perf_counter()
            result = ways[name]()
            wait(device)
            elapsed = time.perf_counter() - start
            if number >= warm:
                seconds[name].append(float(result) if isinstance(result, Seconds) else elapsed)
    return seconds


def ratios(numerator: list[float], denominator: list[float]) -> dict[str, float]:
    """Median, lowest and highest of the ratios of neighbouring runs."""
    each = [above / below for above, below in zip(numerator, denominator)]
    return {"median": statistics.median(each), "lowest": min(each), "highest": max(each)}


def against_target(what: str, ratio: dict[str, float], target: str, met: bool) -> str:
    """A note: the ratio, its spread, its target, and whether it was reached."""
    return f"{what}: {ratio['median']:.3g} ({spread(ratio)}; {verdict(target, met)})."


def spread(ratio: dict[str, float]) -> str:
    """The lowest and the highest of a ratio's pairs, in words."""
    return f"pairs from {ratio['lowest']:.3g} to {ratio['highest']:.3g}"


def verdict(target: str, met: bool) -> str:
    """A target, and whether it was reached."""
    return f"target: {target}, {'met' if met else 'not met'}"


@dataclass
class Cost:
    """What a function needed in a process of its own: time, memory above what was there before; and its result."""

    seconds: float
    megabytes: float  # of 10⁶ bytes
    result: Any


def peak_megabytes(function: Callable[..., Any], *arguments: Any, device: str = "cpu") -> float:
    """The memory that [`cost`] finds, in MB."""
    return cost(function, *arguments, device=device, keep_result=False).megabytes


def cost(function: Callable[..., Any], *arguments: Any, device: str = "cpu", keep_result: bool = True) -> Cost:
    """
    What `function(*arguments)` needs: seconds, and the peak of memory above what was there before.

    `function` is importable; it is called with the arguments in a process of its own, where it prepares what does not
    count and returns the function without arguments that does. That one's result is sent here: keep it small.
    """
    context = get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(sender, function, arguments, device, keep_result))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError as error:
        raise RuntimeError(f"{function.__name__} did not end well in its process; see above.") from error
    finally:
        process.join()


def _measure(sender: Any, function: Callable[..., Any], arguments: tuple, device: str, keep_result: bool):
    counted = function(*arguments)
    gc.collect()
    if on_gpu(device):
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    else:
        before = _resident_peak(reset=True)
    start = time.perf_counter()
    result = counted()
    wait(device)
    seconds = time.perf_counter() - start
    peak = torch.cuda.max_memory_allocated() if on_gpu(device) else _resident_peak()
    sender.send(Cost(seconds, (peak - before) / 1e6, result if keep_result else None))


def _resident_peak(reset: bool = False) -> float:
    """
    The highest resident memory of this process so far, in bytes; with `reset`, from now on where the system can do that
    (Linux), else from the start: then the preparation must have stayed below what is measured.
    """
    status = Path("/proc/self/status")
    if status.exists():
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return 1024.0 * int(line.split()[1])
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak if sys.platform == "darwin" else 1024 * peak)


def largest_difference(ours: torch.Tensor, theirs: torch.Tensor, allowed: float) -> float:
    """
    The largest difference of numbers that two ways must agree on.

    Raises:
        ValueError: where it is beyond `allowed`, or the shapes differ: then a wrong answer would be measured.
    """
    if ours.shape != theirs.shape:
        raise ValueError(f"the two ways give shapes {tuple(ours.shape)} and {tuple(theirs.shape)}; they must agree.")
    difference = float((ours.double().cpu() - theirs.double().cpu()).abs().max())
    if not difference <= allowed:
        raise ValueError(f"the two ways differ by {difference:.3g}; they must agree to {allowed:g}.")
    return difference


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The norm of the difference as a share of the norm of `theirs`."""
    return float((ours - theirs).norm() / theirs.norm())


def make_parser(name: str, description: Optional[str], rounds: Optional[int] = 5) -> argparse.ArgumentParser:
    """The options of every benchmark: `--device`, `--rounds` (not where `rounds` is None), `--seed` and `--json`."""
    parser = argparse.ArgumentParser(
        prog=f"python -m moss_audio.benchmarks.{name}", description=(description or "").split("\n\n")[0]
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    if rounds is not None:
        parser.add_argument("--rounds", type=int, default=rounds, help=f"how often each way runs; default: {rounds}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="also write the result there")
    return parser


def complete(report: Report, device: str):
    """Fills in where and with what the report was made."""
    report.device, report.versions = device_name(device), {**versions(), **report.versions}


def publish(report: Report, options: argparse.Namespace):
    """Prints the table; writes the JSON file if one is wanted."""
    complete(report, options.device)
    print(report.markdown())
    if options.json:
        options.json.write_text(json.dumps(asdict(report), indent=2) + "\n", encoding="utf-8")
