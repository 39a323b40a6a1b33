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
"""What can be said about the name of a checkpoint before anything is downloaded or loaded."""

from pathlib import Path


def check_checkpoint(model: str):
    """
    Refuses what cannot be a checkpoint: a folder without one, or a name that is neither a folder's nor an id's.

    Raises:
        ValueError: with what it is instead, and the way out.
    """
    folder = Path(model).expanduser()
    if (folder / "config.json").is_file():
        return
    if (folder / "adapter_config.json").is_file():
        raise ValueError(
            f"{model} holds LoRA weights and no checkpoint; `moss-audio merge {model} TARGET` makes one of them."
        )
    if folder.is_dir():
        raise ValueError(f"the folder {model} holds no checkpoint: it has no config.json.")
    if folder.is_file():
        raise ValueError(f"{model} is a file; a checkpoint is a folder, or an id on the Hugging Face Hub.")
    if model.startswith((".", "/", "~")) or "\\" in model or model.count("/") != 1 or model.endswith("/"):
        raise ValueError(f"there is no folder {model!r}, and an id on the Hugging Face Hub is of the form OWNER/NAME.")
