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
"""LoRA weights folded into their checkpoint."""

import json
from pathlib import Path
from typing import Optional, Union

from moss_audio.modeling_moss_audio import MossAudioModel
from moss_audio.processing_moss_audio import MossAudioProcessor


ADAPTER_CONFIG = "adapter_config.json"


def merge(
    adapter: Union[str, Path], target: Union[str, Path], model: Optional[str] = None, dtype: str = "auto"
) -> Path:
    """
    Writes a complete checkpoint: that below an adapter, with the adapter in its weights.

    Args:
        adapter: the folder that PEFT, or `moss-audio finetune --stage lora`, wrote.
        target: the folder to make.
        model: the checkpoint below it; by default the one that the adapter names.
        dtype: of the weights, "auto" for the checkpoint's.

    Returns:
        The folder.

    Raises:
        ValueError: where there is no adapter, it names no checkpoint, the target holds a checkpoint already, or `dtype` is
            none.
        ImportError: where PEFT is not installed.
    """
    adapter, target = Path(adapter).expanduser(), Path(target).expanduser()
    if not (adapter / ADAPTER_CONFIG).is_file():
        raise ValueError(f"{adapter} holds no {ADAPTER_CONFIG}; give the folder that `--stage lora` wrote.")
    if (target / "config.json").exists():
        raise ValueError(f"{target} holds a checkpoint already; give another folder, or remove it.")
    if dtype not in ("auto", "bfloat16", "float16", "float32"):
        raise ValueError(f"--dtype {dtype!r} is none of auto, bfloat16, float16, float32.")
    try:
        from peft import PeftModel
    except ImportError as error:
        raise ImportError("`merge` needs PEFT: `pip install peft`.") from error
    named = json.loads((adapter / ADAPTER_CONFIG).read_text(encoding="utf-8")).get("base_model_name_or_path")
    model = model or named
    if not model:
        raise ValueError(f"{adapter / ADAPTER_CONFIG} names no checkpoint; give it by --model.")
    base = MossAudioModel.from_pretrained(model, dtype=dtype)
    merged = PeftModel.from_pretrained(base, adapter).merge_and_unload(safe_merge=True)
    merged.save_pretrained(target)
    # The adapter's folder has a processor of its own where training changed one: its template, its time markers.
    own = (adapter / "processor_config.json").is_file()
    MossAudioProcessor.from_pretrained(adapter if own else model).save_pretrained(target)
    return target


__all__ = ["merge"]
