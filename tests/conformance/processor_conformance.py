"""Transformers' common processor tests against MOSS-Audio's; `python tests/conformance` runs them."""

import tempfile
import unittest
import wave
from pathlib import Path

import numpy as np
from parameterized import parameterized
from transformers_tests import test_processing_common
from transformers_tests.test_processing_common import ProcessorTesterMixin

from moss_audio import MossAudioProcessor


TOKENIZER = Path(__file__).resolve().parents[1] / "data" / "qwen3-tokenizer"  # that of the released checkpoints


def write_recordings(folder: str) -> list[str]:
    """Two clips of noise, in the place of the Hub's."""
    paths = []
    for seconds in (1, 2):
        paths.append(str(Path(folder) / f"{seconds}.wav"))
        samples = np.random.default_rng(seconds).integers(-(2**12), 2**12, seconds * 16000, dtype=np.int16)
        with wave.open(paths[-1], "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(16000)
            file.writeframes(samples.tobytes())
    return paths


class MossAudioProcessorConformance(ProcessorTesterMixin, unittest.TestCase):
    processor_class = MossAudioProcessor
    audio_input_name = "audio_data"
    full_tmpdirname = None

    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.tmpdirname = folder.name
        MossAudioProcessor.from_pretrained(TOKENIZER).save_pretrained(cls.tmpdirname)
        cls.recordings = write_recordings(cls.tmpdirname)
        cls.audio_token = "<|audio_bos|><|AUDIO|><|audio_eos|>"  # what a clip is written as in a text

    def get_subprocessor_name(self, modality, *args):
        # Features are the processor's own work, done by no part with a name. The tests of a call's arguments apply all
        # the same, and are skipped where the part is missing: so name the one that is there.
        return "tokenizer" if modality == "audio" else super().get_subprocessor_name(modality, *args)

    def _get_valid_processor_kwargs_names(self):
        # `enable_time_marker` is both in released `processor_config.json` files and an argument of a call.
        return super()._get_valid_processor_kwargs_names() - {"enable_time_marker"}

    @parameterized.expand([(1, "np"), (1, "pt"), (2, "np"), (2, "pt")])
    def test_apply_chat_template_audio(self, batch_size, return_tensors):
        """The original, which asks for a part that makes features first."""
        names = ("audio", batch_size, return_tensors, "audio_input_name", "tokenizer")
        self._test_apply_chat_template(*names, self.recordings)


if hasattr(test_processing_common, "MODALITY_TEST_SPECS"):  # since version 5
    # An argument of audio for the test that passes one twice: the mixin has none.
    test_processing_common.MODALITY_TEST_SPECS["audio"]["init_time_kwargs"] = {"sampling_rate": 16000}

SKIPPED = {
    "test_subprocessor_defaults_0_text": "a bare text is wrapped in the default prompt, as the released models expect",
    "test_subprocessor_defaults_3_audio": "no part of the processor takes audio by itself",
    "test_chat_template_message_objects": "its message shows an image, which is refused; test_processing.py has sounds",
}
for name, reason in SKIPPED.items():
    if hasattr(ProcessorTesterMixin, name):
        setattr(MossAudioProcessorConformance, name, unittest.skip(reason)(getattr(ProcessorTesterMixin, name)))
