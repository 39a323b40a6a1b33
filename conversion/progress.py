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
"""A progress bar on standard error, in bytes; silent where that is no terminal."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from tqdm.auto import tqdm

from .weights import Shard


@contextlib.contextmanager
def progress(shards: list[Shard], name: str) -> Iterator[Callable[[int], Any]]:
    """What is to be told of every piece of these files that is written."""
    total = sum(size for shard in shards for size in shard.tensors.values())
    with tqdm(total=total, desc=name, unit="B", unit_scale=True, disable=None) as bar:
        yield bar.update
