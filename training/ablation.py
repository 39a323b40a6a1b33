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
"""What DeepStack and time markers are good for: small models trained alike, with both, without the one, without the other.

`python -m moss_audio.training.ablation OUT --data TEST.jsonl` trains them with the same ear on the same conversations, and
measures them on a data file of `tiny_world`; every seed has conversations of its own, and an ear of its own where none is
given. Interrupted, it goes on with what is missing; given several times at once, the commands share the work. Positions jump at
the markers while the models with markers learn (see [`~moss_audio.training.train_tiny.UnevenCollator`]), and those of the model
without them are even: each tells the time by what it will have.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any, Optional

import torch
from filelock import FileLock, Timeout

from moss_audio import AudioTextToTextPipeline, MossAudioModel, MossAudioProcessor
from moss_audio.training.evaluate import evaluate, read_samples, save
from moss_audio.training.scoring import import_jiwer
from moss_audio.training.train_tiny import ENCODER_HELP, Settings, import_pyplot, teach, train


# Name, and what it changes of the settings.
VARIANTS = {
    "full": {},
    "without DeepStack": {"taps": 0},
    "without time markers": {"time_markers": False},
}
FIGURES = (
    ("transcription", "wer", "WER", "{:.2%}"),
    ("timestamps", "aas_ms", "AAS", "{:.0f} ms"),
    ("timestamps", "matched", "matched", "{:.1%}"),
    ("description", "event_f1", "event F1", "{:.3f}"),
    ("when", "accuracy", "times right", "{:.1%}"),
    ("count", "accuracy", "counts right", "{:.1%}"),
    ("order", "accuracy", "order right", "{:.1%}"),
    ("choice", "accuracy", "choices right", "{:.1%}"),
)
RESULTS = "results.json"


def measure(checkpoint: Path, data: Path, limit: Optional[int]) -> dict[str, Any]:
    """The tasks of [`~moss_audio.training.evaluate.evaluate`] for a checkpoint."""
    model = MossAudioModel.from_pretrained(checkpoint, dtype=torch.float32).eval()
    pipe = AudioTextToTextPipeline(model=model, processor=MossAudioProcessor.from_pretrained(checkpoint))
    report = evaluate(pipe, read_samples(data, limit=limit), batch_size=32, max_new_tokens=200)
    failed = [row["error"] for row in report["answers"] if "error" in row]
    if failed:
        raise RuntimeError(f"{len(failed)} of {len(report['answers'])} samples were not answered: {failed[0]}")
    return report


def run(
    folder: Path,
    data: Path,
    settings: dict[str, Any],
    seeds: Sequence[int] = (0, 1),
    other_seeds: Sequence[int] = (0,),
    limit: Optional[int] = None,
    encoder: Optional[Path] = None,
) -> dict[str, list]:
    """
    Trains and measures what nobody else does: every variant with the first seed, then with the others.

    Args:
        settings: of [`~moss_audio.training.train_tiny.Settings`], for all of them.
        seeds: of the full model.
        other_seeds: of the variants.
        encoder: an ear for all of them, as [`~moss_audio.training.train_tiny.train`] takes it, which leaves its share out of
            the spread; by default each seed teaches one of its own.

    Returns:
        The tasks of each run in the folder, by variant. The table and the picture are written after each, as far as they go.

    Raises:
        ValueError: where `folder` holds an ablation with other options, seeds aside, or `data` has nothing to compare.
        DataError: where `data` cannot be used.
        RuntimeError: where not every sample was answered.
        ImportError: where jiwer or matplotlib is missing.
    """
    # What is wrong with the data, and what is missing, is to be known before the trainings.
    found, known = {sample.task for sample in read_samples(data, limit=limit)}, {task for task, *_ in FIGURES}
    if not found & known:
        raise ValueError(f"{data} has none of the tasks {', '.join(sorted(known))}: there is nothing to compare.")
    import_jiwer()
    import_pyplot()
    written = json.dumps(
        {**settings, "data": str(data), "limit": limit, "encoder": encoder and str(encoder)}, indent=2
    )
    folder.mkdir(parents=True, exist_ok=True)
    options, words = folder / "options.json", folder / "vocabulary.npz"
    with FileLock(folder / "lock"):
        if options.exists() and options.read_text(encoding="utf-8") != written:
            raise ValueError(f"{folder} holds an ablation with other options (see {options}); choose another folder.")
        options.write_text(written, encoding="utf-8")
    wanted = [(variant, seed) for variant in VARIANTS for seed in (seeds if variant == "full" else other_seeds)]
    for variant, seed in sorted(wanted, key=lambda one: (one[1] != seeds[0], one[0] != "full")):
        home = folder / f"{_slug(variant)}-{seed}"
        home.mkdir(exist_ok=True)
        own = Settings(**{**settings, **VARIANTS[variant], "seed": seed})
        try:
            with FileLock(home / "lock", timeout=0):
                if not (home / RESULTS).exists():
                    taught = _ear(folder, Settings(**{**settings, "seed": seed}), encoder, words)
                    save(measure(train(own, home, taught, words), data, limit), home / RESULTS)
        except Timeout:
            print(f"{home} is left to the command that is at it.", file=sys.stderr)
        with FileLock(folder / "lock"):
            results = gather(folder)
            if measured(results):
                (folder / "ablation.md").write_text(table(results) + "\n", encoding="utf-8")
                draw(results, folder / "ablation.png")
    return results


def _ear(folder: Path, settings: Settings, encoder: Optional[Path], words: Path) -> Path:
    """The `encoder.pt` that the models of a seed share; whoever comes first teaches it, and the others wait."""
    if encoder is not None and encoder.is_file():
        return encoder
    home = folder / f"ear-{settings.seed}"
    home.mkdir(exist_ok=True)
    with FileLock(home / "lock"):
        return teach(settings, home, encoder, words)


def _slug(variant: str) -> str:
    return variant.replace(" ", "-")


def gather(folder: Path) -> dict[str, list]:
    """The tasks of each run that has been measured, by variant."""
    results = {}
    for variant in VARIANTS:
        kept = sorted(folder.glob(f"{_slug(variant)}-*/{RESULTS}"))
        if kept:
            results[variant] = [json.loads(path.read_text(encoding="utf-8"))["tasks"] for path in kept]
    return results


def table(results: dict[str, list]) -> str:
    """Means over the seeds, with the lowest and highest, as a Markdown table of what was measured."""
    figures = measured(results)
    lines = [
        "| model | seeds | " + " | ".join(name for *_, name, _ in figures) + " |",
        "| --- | ---: |" + " ---: |" * len(figures),
    ]
    for variant, runs in results.items():
        cells = []
        for task, figure, _, form in figures:
            values = _values(runs, task, figure)
            spread = f" ({form.format(min(values))} to {form.format(max(values))})" if len(values) > 1 else ""
            cells.append(form.format(mean(values)) + spread if values else "")
        lines.append(f"| {variant} | {len(runs)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def measured(results: dict[str, list]) -> list[tuple[str, str, str, str]]:
    """Those of `FIGURES` that any run has: a data file need not have all tasks."""
    everything = [run for runs in results.values() for run in runs]
    return [row for row in FIGURES if _values(everything, *row[:2])]


def _values(runs: list, task: str, figure: str) -> list[float]:
    """A figure of each run that has it: nothing is matched where nothing is heard."""
    values = [tasks.get(task, {}).get(figure) for tasks in runs]
    return [value for value in values if value is not None]


def draw(results: dict[str, list], path: Path):
    """Draws each figure of the table: a bar for the mean of a variant, a dot for each seed."""
    pyplot, figures = import_pyplot(), measured(results)
    columns = min(4, len(figures))
    rows = -(-len(figures) // columns)
    size = (2.8 * columns, 2.3 * rows + 0.4)
    figure, axes = pyplot.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    for axis in axes.flat[len(figures) :]:
        axis.set_visible(False)
    for axis, (task, name, title, form) in zip(axes.flat, figures):
        for index, (variant, runs) in enumerate(results.items()):
            values = _values(runs, task, name)
            axis.bar(index, mean(values) if values else 0, color=f"C{index}", alpha=0.6, label=variant)
            axis.plot([index] * len(values), values, "k.", markersize=5)
        axis.set(title=title, xticks=[])
        axis.yaxis.set_major_formatter(lambda value, _, form=form: form.format(value))
    figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(results))
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main(arguments: Optional[list[str]] = None):
    """The command `python -m moss_audio.training.ablation`."""
    parser = argparse.ArgumentParser(prog="python -m moss_audio.training.ablation", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="OUT")
    parser.add_argument("--data", type=Path, required=True, help="a data file of tiny_world to measure on")
    parser.add_argument("--limit", type=int, help="measure on its first so many samples; default: all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="of the full model; default: 0 1")
    parser.add_argument("--other-seeds", type=int, nargs="+", default=[0], help="of those without a part; default: 0")
    defaults = {name: getattr(Settings, name) for name in ("encoder_steps", "word_steps", "short_steps", "batch_size")}
    defaults.update(steps=2000, text_steps=0, list_steps=1000)
    for name, default in defaults.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default, help=f"default: {default}")
    parser.add_argument(
        "--encoder", type=Path, metavar="PATH", help=f"{ENCODER_HELP}; default: each seed teaches an ear"
    )
    parser.add_argument("--compile", action="store_true", help="compile the decoder's layers; needs a C++ compiler")
    options = parser.parse_args(arguments)
    settings = {name: getattr(options, name) for name in (*defaults, "compile")}
    chosen = (options.seeds, options.other_seeds, options.limit, options.encoder)
    try:
        print(table(run(options.folder, options.data, settings, *chosen)))
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
