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
"""The small checkpoint that ships with the package, and clips to try it on: two folders, as strings."""

from pathlib import Path


TINY = str(Path(__file__).parent / "moss-audio-tiny")
DEMO = str(Path(__file__).parent / "demo")  # first.wav, second.wav, and demo.clips.jsonl with what is in them

__all__ = ["DEMO", "TINY"]
