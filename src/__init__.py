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
"""MOSS-Audio for Hugging Face Transformers.

Importing this package registers its classes with Transformers: from then on the Auto classes and
`pipeline("audio-text-to-text")` load MOSS-Audio checkpoints, released or converted.
"""

import transformers

from .audio_moss_audio import load_audio, stream_audio
from .configuration_moss_audio import MossAudioConfig, MossAudioEncoderConfig
from .generation_moss_audio import SegmentStreamer, ThinkingBudgetLogitsProcessor, token_ends, with_confidence
from .long_moss_audio import cut_audio, stitch_transcripts
from .modeling_moss_audio import MossAudioEncoder, MossAudioModel
from .pipeline_moss_audio import AudioTextToTextPipeline
from .processing_moss_audio import MossAudioProcessor, log_mel
from .tasks_moss_audio import chosen_letter, task_prompt
from .transcripts_moss_audio import (
    Repair,
    Segment,
    Transcript,
    TranscriptParser,
    format_transcript,
    parse_json,
    parse_transcript,
    split_reasoning,
)


__version__ = "0.1.0"


def _register():
    transformers.AutoConfig.register(MossAudioConfig.model_type, MossAudioConfig, exist_ok=True)
    transformers.AutoConfig.register(MossAudioEncoderConfig.model_type, MossAudioEncoderConfig, exist_ok=True)
    transformers.AutoModel.register(MossAudioEncoderConfig, MossAudioEncoder, exist_ok=True)
    for name in ("AutoModel", "AutoModelForCausalLM", "AutoModelForMultimodalLM"):
        if hasattr(transformers, name):
            getattr(transformers, name).register(MossAudioConfig, MossAudioModel, exist_ok=True)
    transformers.AutoProcessor.register(MossAudioConfig, MossAudioProcessor, exist_ok=True)
    registry = transformers.pipelines.PIPELINE_REGISTRY
    if "audio-text-to-text" not in registry.get_supported_tasks():
        registry.register_pipeline(
            "audio-text-to-text",
            pipeline_class=AudioTextToTextPipeline,
            pt_model=transformers.AutoModel,
            type="multimodal",
        )


_register()

__all__ = [
    "AudioTextToTextPipeline",
    "MossAudioConfig",
    "MossAudioEncoder",
    "MossAudioEncoderConfig",
    "MossAudioModel",
    "MossAudioProcessor",
    "Repair",
    "Segment",
    "SegmentStreamer",
    "ThinkingBudgetLogitsProcessor",
    "Transcript",
    "TranscriptParser",
    "chosen_letter",
    "cut_audio",
    "format_transcript",
    "load_audio",
    "log_mel",
    "parse_json",
    "parse_transcript",
    "split_reasoning",
    "stitch_transcripts",
    "stream_audio",
    "task_prompt",
    "token_ends",
    "with_confidence",
]
