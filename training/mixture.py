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
"""Several data files as one training set: how often each is drawn from in an epoch, and in which order.

All follows from the seed and the number of the epoch, so that every process, and a run that resumes, draws the same.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional, Union

import numpy as np
from torch.utils.data import ConcatDataset, Dataset, Sampler

from .data import DataError, load_samples


MEGA_BATCHES = 50  # batches that are sorted by length together: more pad less, and shuffle less


@dataclass(frozen=True)
class Source:
    """Samples of one file, and how many of them are drawn in an epoch."""

    samples: Dataset
    draws: int
    group: str


class Mixture(ConcatDataset):
    """Samples of several sources; each has a `group`, its own (as text) or the source's."""

    def __init__(self, sources: Sequence[Source]):
        super().__init__([source.samples for source in sources])
        self.sources = list(sources)

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = range(len(self))[index]
        sample = super().__getitem__(index)
        group = self.sources[int(np.searchsorted(self.cumulative_sizes, index, side="right"))].group
        own = sample.get("group")
        return {**sample, "group": group if own in (None, "") else str(own)}

    @property
    def draws(self) -> int:
        """Samples in an epoch."""
        return sum(source.draws for source in self.sources)


def weighted(files: Sequence[str], weights: Sequence[float] = ()) -> Mixture:
    """
    Files with weights: how often an epoch goes through each. With 2 every sample comes twice, with 0.5 one half in each
    epoch, in turn.

    Raises:
        DataError: where a file cannot be used, or files and weights are not of one number.
    """
    weights = list(weights) or [1.0] * len(files)
    if len(weights) != len(files):
        raise DataError(f"`weights` has {len(weights)} numbers for {len(files)} files; give one for each, or none.")
    sources = []
    for file, weight in zip(files, weights):
        if not weight > 0:
            raise DataError(f"`weights` gives {file} {weight}; a weight must be positive.")
        samples = load_samples(file)
        sources.append(Source(samples, max(1, round(weight * len(samples))), Path(file).stem))
    return Mixture(sources)


def grouped(recipe: Union[str, Path]) -> Mixture:
    """
    A mixture by groups, as a JSON file describes it:

        {"groups": {"asr": {"share": 0.3, "files": ["a.jsonl", "b.jsonl"]}, …}, "samples_per_epoch": 100000}

    A group gets its share of the epoch, and in a group a file gets a share by the square root of its size. An epoch has
    as many samples as all files together, unless the recipe says otherwise. Paths start at the recipe.

    Raises:
        DataError: where the recipe or one of its files cannot be used.
    """
    recipe = Path(recipe).expanduser()
    try:
        content = json.loads(recipe.read_text(encoding="utf-8"))
        groups = {name: (float(group["share"]), group["files"]) for name, group in content["groups"].items()}
        total = int(content.get("samples_per_epoch") or 0)
    except (OSError, json.JSONDecodeError) as error:
        raise DataError(f"{recipe} cannot be read as JSON: {error}") from error
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DataError(
            f'{recipe} is no recipe ({error!r}); expected {{"groups": {{NAME: {{"share": 0.3, "files": […]}}}}}}.'
        ) from error
    for name, (share, files) in groups.items():
        if not (share > 0 and isinstance(files, list) and files):
            raise DataError(f"{recipe}: group {name!r} needs a positive `share` and a list of `files`.")
    if not groups or total < 0:
        raise DataError(f"{recipe}: it needs at least one group, and `samples_per_epoch` must be positive.")
    shares = sum(share for share, _ in groups.values())
    loaded = {name: [load_samples(recipe.parent / file) for file in files] for name, (_, files) in groups.items()}
    total = total or sum(len(samples) for group in loaded.values() for samples in group)
    sources = []
    for name, (share, _) in groups.items():
        roots = [math.sqrt(len(samples)) for samples in loaded[name]]
        for samples, root in zip(loaded[name], roots):
            sources.append(Source(samples, max(1, round(total * share / shares * root / sum(roots))), name))
    return Mixture(sources)


class EpochSampler(Sampler[int]):
    """
    The order of an epoch. A source's samples are all drawn once before any comes again, also from epoch to epoch.

    Args:
        mixture: what is drawn from.
        seed: of the order.
        lengths: of all samples; with them batches hold samples of like length, and the longest batch comes first, so that
            a lack of memory shows at once.
        batch_size: samples that one step of all processes takes together.
    """

    def __init__(self, mixture: Mixture, seed: int, lengths: Optional[Sequence[int]] = None, batch_size: int = 1):
        self.mixture, self.seed, self.lengths, self.batch_size = mixture, seed, lengths, batch_size
        self.epoch = 0

    def set_epoch(self, epoch: int):
        self.epoch = epoch

    def __len__(self) -> int:
        return self.mixture.draws

    def __iter__(self) -> Iterator[int]:
        starts = [0, *self.mixture.cumulative_sizes]
        drawn = [
            start + self._draw(number, len(source.samples), source.draws)
            for number, (start, source) in enumerate(zip(starts, self.mixture.sources))
        ]
        random = np.random.default_rng([self.seed, self.epoch])
        order = random.permutation(np.concatenate(drawn))
        return iter((order if self.lengths is None else self._like_lengths(order, random)).tolist())

    def _draw(self, source: int, size: int, draws: int) -> np.ndarray:
        """The epoch's part of an endless row of permutations of a source."""
        first, last = self.epoch * draws, (self.epoch + 1) * draws
        rounds = range(first // size, -(-last // size))
        row = np.concatenate([np.random.default_rng([self.seed, source, 1, r]).permutation(size) for r in rounds])
        return row[first - rounds.start * size :][:draws]

    def _like_lengths(self, order: np.ndarray, random: np.random.Generator) -> np.ndarray:
        lengths, mega = np.asarray(self.lengths), MEGA_BATCHES * self.batch_size
        batches = []
        for start in range(0, len(order), mega):
            block = order[start : start + mega]
            block = block[np.argsort(-lengths[block], kind="stable")]
            batches += [block[i : i + self.batch_size] for i in range(0, len(block), self.batch_size)]
        last = [batches.pop()] if len(batches[-1]) < self.batch_size else []  # a small one stays at the end
        batches = [batches[i] for i in random.permutation(len(batches))]
        if batches:
            longest = max(range(len(batches)), key=lambda index: lengths[batches[index]].max())
            batches.insert(0, batches.pop(longest))
        return np.concatenate([*batches, *last])


__all__ = ["EpochSampler", "Mixture", "Source", "grouped", "weighted"]
