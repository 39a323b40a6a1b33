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
measures them on a data file of `tiny_world`; every seed has an ear and conversations of its own. Interrupted, it goes on
with what is missing. Positions jump at the markers while the models with markers learn (see
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
from moss_audio.training.train_tiny import Settings, import_pyplot, train


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


def measure(checkpoint: Path, data: Path, limit: Optional[int]) -> dict[str, Any]:
    """The tasks of [`~moss_audio.training.evaluate.evaluate`] for a checkpoint."""
    model = MossAudioModel.from_pretrained(checkpoint, dtype=torch.float32).eval()
    pipe = AudioTextToTextPipeline(model=model, processor=MossAudioProcessor.from_pretrained(checkpoint))
    return evaluate(pipe, read_samples(data, limit=limit), batch_size=32, max_new_tokens=200)


def run(
    folder: Path, data: Path, settings: dict[str, Any], seeds: list[int], limit: Optional[int], encoder: Optional[Path]
) -> dict[str, list]:
    """
    Trains and measures every variant with the first seed, then the full model with the others, then all that is left.

    Args:
        encoder: weights of a taught encoder for all of them, which leaves its share out of the spread; by default each
            seed teaches one of its own.

    Returns:
        The tasks of each run, by variant. The table and the picture are written after each, as far as they go.

    Raises:
        ValueError: where `folder` holds an ablation with other options, seeds aside.
        DataError: where `data` cannot be used.
        ImportError: where jiwer or matplotlib is missing.
    """
    read_samples(data, limit=limit)  # what is wrong with it is to be known before the trainings, and what is missing
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
    results: dict[str, list] = {}
    for variant, seed in sorted(product(VARIANTS, seeds), key=lambda one: (one[1] != seeds[0], one[0] != "full")):
        home = folder / f"{variant.replace(' ', '-')}-{seed}"
        kept = home / "results.json"
        if not kept.exists():
            own = folder / f"full-{seed}" / "encoder.pt"  # the variants of a seed share their encoder
            taught = encoder or (own if variant != "full" else None)
            checkpoint = train(Settings(**{**settings, **VARIANTS[variant], "seed": seed}), home, taught)
            save(measure(checkpoint, data, limit), kept)
        results.setdefault(variant, []).append(json.loads(kept.read_text(encoding="utf-8"))["tasks"])
        (folder / "ablation.md").write_text(table(results) + "\n", encoding="utf-8")
        draw(results, folder / "ablation.png")
    return results


def table(results: dict[str, list]) -> str:
    """Means over the seeds, with the lowest and highest, as a Markdown table."""
    lines = [
        "| model | " + " | ".join(name for *_, name, _ in FIGURES) + " |",
        "| --- |" + " ---: |" * len(FIGURES),
    ]
    for variant, runs in results.items():
        cells = []
        for task, figure, _, form in FIGURES:
            values = _values(runs, task, figure)
            spread = f" ({form.format(min(values))} to {form.format(max(values))})" if len(values) > 1 else ""
            cells.append(form.format(mean(values)) + spread if values else "")
        lines.append(f"| {variant} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _values(runs: list, task: str, figure: str) -> list[float]:
    """A figure of each run that has it: nothing is matched where nothing is heard."""
    values = [tasks.get(task, {}).get(figure) for tasks in runs]
    return [value for value in values if value is not None]


def draw(results: dict[str, list], path: Path):
    """Draws each figure of the table: a bar for the mean of a variant, a dot for each seed."""
    pyplot = import_pyplot()
    figure, axes = pyplot.subplots(2, len(FIGURES) // 2, figsize=(11, 5), layout="constrained")
    for axis, (task, name, title, _) in zip(axes.flat, FIGURES):
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
    parser.add_argument("--encoder", type=Path, help="an `encoder.pt` of train_tiny for all, instead of one a seed")
    options = parser.parse_args(arguments)
    settings = {name: getattr(options, name) for name in defaults}
    try:
        print(table(run(options.folder, options.data, settings, options.seeds, options.limit, options.encoder)))
    except (ImportError, OSError, ValueError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
