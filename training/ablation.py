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
given. Interrupted, it goes on with what is missing; with `--variants` several commands share the work on one folder. Positions jump at the markers while the models with markers learn (see
[`~moss_audio.training.train_tiny.UnevenCollator`]), and those of the model without them are even: each tells the time by what it
will have.
"""

import argparse
import json
import sys
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any, Optional

import torch

from moss_audio import AudioTextToTextPipeline, MossAudioModel, MossAudioProcessor
from moss_audio.training.evaluate import evaluate, read_samples, save
from moss_audio.training.scoring import import_jiwer
from moss_audio.training.train_tiny import ENCODER_HELP, Settings, import_pyplot, train


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
    return evaluate(pipe, read_samples(data, limit=limit), batch_size=32, max_new_tokens=200)


def run(
    folder: Path,
    data: Path,
    settings: dict[str, Any],
    seeds: list[int],
    limit: Optional[int],
    encoder: Optional[Path],
    variants: Optional[list[str]] = None,
) -> dict[str, list]:
    """
    Trains and measures every variant with the first seed, then the full model with the others, then all that is left.

    Args:
        encoder: an ear for all of them, as [`~moss_audio.training.train_tiny.train`] takes it, which leaves its share out of
            the spread; by default each seed teaches one of its own.
        variants: those to train now; by default all.

    Returns:
        The tasks of each run in the folder, by variant. The table and the picture are written after each, as far as they go.

    Raises:
        ValueError: where `folder` holds an ablation with other options, seeds aside.
        DataError: where `data` cannot be used.
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
    options = folder / "options.json"
    if options.exists() and options.read_text(encoding="utf-8") != written:
        raise ValueError(f"{folder} holds an ablation with other options (see {options}); choose another folder.")
    folder.mkdir(parents=True, exist_ok=True)
    options.write_text(written, encoding="utf-8")
    wanted = product(variants or VARIANTS, seeds)
    for variant, seed in sorted(wanted, key=lambda one: (one[1] != seeds[0], one[0] != "full")):
        home = folder / f"{_slug(variant)}-{seed}"
        if not (home / RESULTS).exists():
            own = folder / f"full-{seed}" / "encoder.pt"  # the variants of a seed share their ear
            taught = own if variant != "full" and own.exists() else encoder
            checkpoint = train(Settings(**{**settings, **VARIANTS[variant], "seed": seed}), home, taught)
            save(measure(checkpoint, data, limit), home / RESULTS)
        results = gather(folder)
        (folder / "ablation.md").write_text(table(results) + "\n", encoding="utf-8")
        draw(results, folder / "ablation.png")
    return results


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
        "| model | " + " | ".join(name for *_, name, _ in figures) + " |",
        "| --- |" + " ---: |" * len(figures),
    ]
    for variant, runs in results.items():
        cells = []
        for task, figure, _, form in figures:
            values = _values(runs, task, figure)
            spread = f" ({form.format(min(values))} to {form.format(max(values))})" if len(values) > 1 else ""
            cells.append(form.format(mean(values)) + spread if values else "")
        lines.append(f"| {variant} | " + " | ".join(cells) + " |")
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
    for axis, (task, name, title, _) in zip(axes.flat, figures):
        for index, (variant, runs) in enumerate(results.items()):
            values = _values(runs, task, name)
            axis.bar(index, mean(values) if values else 0, color=f"C{index}", alpha=0.6, label=variant)
            axis.plot([index] * len(values), values, "k.", markersize=5)
        axis.set(title=title, xticks=[])
    figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(results))
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main(arguments: Optional[list[str]] = None):
    """The command `python -m moss_audio.training.ablation`."""
    parser = argparse.ArgumentParser(prog="python -m moss_audio.training.ablation", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="OUT")
    parser.add_argument("--data", type=Path, required=True, help="a data file of tiny_world to measure on")
    parser.add_argument("--limit", type=int, help="measure on its first so many samples; default: all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    defaults = {name: getattr(Settings, name) for name in ("encoder_steps", "word_steps", "short_steps", "batch_size")}
    defaults.update(steps=2000, text_steps=0, list_steps=1000)
    for name, default in defaults.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default, help=f"default: {default}")
    parser.add_argument(
        "--encoder", type=Path, metavar="PATH", help=f"{ENCODER_HELP}; default: each seed teaches an ear"
    )
    parser.add_argument("--compile", action="store_true", help="compile the decoder's layers; needs a C++ compiler")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, help="those to train now; default: all")
    options = parser.parse_args(arguments)
    settings = {name: getattr(options, name) for name in (*defaults, "compile")}
    chosen = (options.seeds, options.limit, options.encoder, options.variants)
    try:
        print(table(run(options.folder, options.data, settings, *chosen)))
    except (ImportError, OSError, ValueError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
