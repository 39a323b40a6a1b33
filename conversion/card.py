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
"""Model cards: one template, rendered for a variant of the model."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from huggingface_hub import ModelCard, ModelCardData

from moss_audio.configuration_moss_audio import TOKENS_PER_SECOND, longest_clip_seconds

from .manifest import parameter_count, parse_config
from .native import CONFIG
from .weights import TYPES, format_size, read_json, write_text


TEMPLATE = Path(__file__).with_name("model_card.md")
CARD_FILE = "README.md"
ORGANISATION = "OpenMOSS-Team"
BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}


@dataclass(frozen=True)
class Variant:
    """What a card says that differs between checkpoints."""

    model_id: str  # how the snippets name the checkpoint
    title: str
    base_model: Optional[str]  # the released checkpoint that it was made from, if it was
    thinking: bool
    parameters: int
    positions: int

    @property
    def values(self) -> dict[str, Any]:
        """The template's variables."""
        sizes = {dtype: format_size(self.parameters * BYTES[dtype]) for dtype in TYPES}
        return {
            "model_id": self.model_id,
            "title": self.title,
            "base_model_id": self.base_model,
            "thinking": self.thinking,
            "parameters": f"{self.parameters / 1e9:.2f} G" if self.parameters >= 1e7 else f"{self.parameters:,}",
            "sizes": sizes,
            "positions": self.positions,
            "longest_minutes": longest_clip_seconds(self.positions) // 60,
            "tokens_per_second": TOKENS_PER_SECOND,
        }


def describe(folder: Path, model_id: str, source: str) -> Variant:
    """
    The variant that a native folder is, by its configuration and the name of what it was made from.

    Raises:
        ConversionError: where the folder's config.json is not MOSS-Audio's.
    """
    config = parse_config(read_json(folder / CONFIG), str(folder / CONFIG))
    released = re.fullmatch(r"MOSS-Audio-(4B|8B)-(Instruct|Thinking)", source)
    return Variant(
        model_id=model_id,
        title=source,
        base_model=f"{ORGANISATION}/{source}" if released else None,
        thinking=bool(released) and released[2] == "Thinking",
        parameters=parameter_count(config),
        positions=config.language_config.max_position_embeddings,
    )


def render_card(variant: Variant) -> str:
    """The card's text, with the metadata that the Hub reads at its top."""
    data = ModelCardData(
        license="apache-2.0",
        library_name="transformers",
        pipeline_tag="audio-text-to-text",
        base_model=variant.base_model,
        language=["en", "zh"],
        tags=["moss-audio", "audio", "speech", "automatic-speech-recognition", "audio-captioning", "custom_code"],
    )
    return str(ModelCard.from_template(data, template_path=str(TEMPLATE), **variant.values)).rstrip() + "\n"


def write_card(folder: Path, model_id: str, source: str):
    """Writes README.md into a native folder."""
    write_text(folder / CARD_FILE, render_card(describe(folder, model_id, source)))
