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
"""A native folder to the Hugging Face Hub."""

import re
from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from . import ConversionError
from .card import CARD_FILE, describe, render_card
from .target import MARKER
from .weights import write_text


def check_push(repository: str):
    """
    Refuses an upload that cannot work, before gigabytes are made for it.

    Raises:
        ConversionError: where the id is none, or there is no token.
    """
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise ConversionError(f"--push-to-hub {repository!r} is no id of a repository: {error}") from error
    if not get_token():
        raise ConversionError("--push-to-hub needs a token that may write: run `hf auth login`, or set HF_TOKEN.")


def push(folder: Path, repository: str, private: bool = False) -> str:
    """
    Uploads a native folder to a repository on the Hub, which is made if it is not there.

    The model card's snippets then name the repository, unless the card was changed by hand.

    Args:
        folder: the folder that `convert` or `assemble` made.
        repository: id on the Hub, like "user/name".
        private: whether a repository that is made is private; one that is there stays as it is.

    Returns:
        The repository's address.

    Raises:
        ConversionError: where the upload fails. The folder stays as it is.
    """
    api = HfApi()
    try:
        url = api.create_repo(repository, private=private, exist_ok=True)
        name_in_card(folder, repository)
        api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            commit_message="Upload MOSS-Audio checkpoint",
            ignore_patterns=[MARKER, "*.part"],
        )
    except Exception as error:  # whichever HTTP library huggingface_hub uses has errors of its own
        reason = str(error).strip().splitlines()
        raise ConversionError(
            f"{folder} could not be uploaded to {repository} ({reason[0] if reason else type(error).__name__}). The folder is "
            "complete; the same command uploads it again."
        ) from error
    return str(url)


def name_in_card(folder: Path, repository: str):
    """Puts the repository's id into the card's snippets, if the card is as it was made."""
    card = folder / CARD_FILE
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    title = re.search(r"^# (.+)$", text, re.MULTILINE)
    named = re.search(r'pipeline\("audio-text-to-text", model="([^"]+)"', text)
    if title and named and text == render_card(describe(folder, named[1], title[1])):
        write_text(card, render_card(describe(folder, repository, title[1])))
