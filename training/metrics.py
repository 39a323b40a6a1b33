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
"""What is logged besides the loss: loss and token accuracy of each group, and error rates of generated answers.

Sums are kept, not means, so that they add up over batches, gradient accumulation and processes.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence

import torch

from .scoring import character_error_rate, word_error_rate


LABELS_AT_ONCE = 512  # whose logits are looked at together


@torch.no_grad()
def score_tokens(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """
    What each label cost, and whether it was the likeliest token.

    Args:
        logits: `(batch, seq, vocabulary)`.
        labels: `(batch, seq)`, -100 where there is none; the label at t + 1 is what the logits at t should say.

    Returns:
        Losses, float32 `(batch, seq)`, and hits, bool `(batch, seq)`: those of the next token at each position.
    """
    targets = torch.nn.functional.pad(labels, (0, 1), value=-100)[:, 1:]
    losses, hits = torch.zeros(targets.shape, device=logits.device), torch.zeros_like(targets, dtype=torch.bool)
    for rows, columns in zip(*(index.split(LABELS_AT_ONCE) for index in (targets != -100).nonzero(as_tuple=True))):
        chosen, target = logits[rows, columns].float(), targets[rows, columns]
        losses[rows, columns] = torch.nn.functional.cross_entropy(chosen, target, reduction="none")
        hits[rows, columns] = chosen.argmax(-1) == target
    return losses, hits


def row_sums(losses: torch.Tensor, hits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Loss, hits and number of labels of each row, float32 `(batch, 3)`: Apple's GPUs have nothing wider."""
    counts = (labels[:, 1:] != -100).sum(1)
    return torch.stack([losses.float().sum(1), hits.float().sum(1), counts.float()], dim=1)


def means_of(
    rows: Iterable[tuple[str, Sequence[float]]], prefix: str = "", known: Iterable[str] = ()
) -> dict[str, float]:
    """
    `loss_GROUP` and `token_accuracy_GROUP` of rows `(group, (loss, hits, labels))`, and of all rows `token_accuracy` and
    `loss`. Where there is a single group, among the rows and those `known`, it has no values of its own.
    """
    totals = defaultdict(lambda: [0.0, 0.0, 0.0])
    for group, sums in rows:
        totals[group] = [total + value for total, value in zip(totals[group], sums)]
    everything = [sum(values) for values in zip(*totals.values())]
    if len({*totals, *known}) < 2:
        totals = {}
    if everything:
        totals = {**totals, "": everything}
    means = {}
    for group in sorted(totals):
        loss, hits, labels = totals[group]
        if labels:
            suffix = f"_{group}" if group else ""
            means[f"{prefix}loss{suffix}"] = loss / labels
            means[f"{prefix}token_accuracy{suffix}"] = hits / labels
    return means


def error_rates(pairs: Iterable[tuple[str, str, str]], metric: str, prefix: str = "") -> dict[str, float]:
    """
    Word or character error rate of answers, over all and by group.

    Args:
        pairs: group, reference and answer of each sample. A group whose references have no word has no rate.
        metric: "wer" or "cer".

    Raises:
        ImportError: where jiwer is not installed.
    """
    rate = {"wer": word_error_rate, "cer": character_error_rate}[metric]
    by_group: dict[str, tuple[list[str], list[str]]] = defaultdict(lambda: ([], []))
    for group, reference, answer in pairs:
        for name in {"", group}:
            by_group[name][0].append(reference)
            by_group[name][1].append(answer)
    if len(by_group) == 2:  # one group and all
        by_group = {"": by_group[""]}
    names = {group: f"{prefix}{metric}_{group}" if group else f"{prefix}{metric}" for group in sorted(by_group)}
    values = {name: rate(*by_group[group]).figures[metric] for group, name in names.items()}
    return {name: value for name, value in values.items() if value is not None}


__all__ = ["error_rates", "means_of", "row_sums", "score_tokens"]
