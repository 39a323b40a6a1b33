"""Transformers' common model tests against MOSS-Audio; `python tests/conformance` runs them."""

import tempfile
import unittest

import torch
from transformers.testing_utils import torch_device
from transformers_tests import test_modeling_common
from transformers_tests.test_modeling_common import GenerationTesterMixin, ModelTesterMixin, floats_tensor, ids_tensor

from moss_audio import MossAudioConfig, MossAudioModel


try:
    from transformers_tests.test_training_mixin import TrainingTesterMixin
except ImportError:  # version 4 has none

    class TrainingTesterMixin:
        pass


# The tests look here for the classes that take `labels`; that of `AutoModelForCausalLM` knows nothing of ours.
test_modeling_common.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES = {"moss_audio": MossAudioModel.__name__}


class MossAudioModelTester:
    """A tiny model and a batch: in every row a clip of its own length, then text."""

    causal_lm_class = MossAudioModel
    is_training = True
    batch_size = 3
    clip_frames = (20, 13, 40)  # the last is a window and a tail
    seq_length = 12
    encoder_seq_length = 12
    hidden_size = 32
    num_hidden_layers = 2
    num_attention_heads = 4
    audio_token_id = 20  # below the ids that resized embeddings lose, above those of the training test

    def __init__(self, parent):
        self.parent = parent
        self.audio_config = {
            "num_mel_bins": 16,
            "d_model": 32,
            "num_hidden_layers": 2,
            "encoder_attention_heads": 4,
            "encoder_ffn_dim": 37,
            "downsample_hidden_size": 4,
            "n_window": 16,
            "deepstack_encoder_layer_indexes": [0, 1],
            "dropout": 0.0,
            "attention_dropout": 0.0,
        }
        self.language_config = {
            "vocab_size": 99,
            "hidden_size": self.hidden_size,
            "intermediate_size": 37,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "max_position_embeddings": 64,
            "pad_token_id": 0,
        }

    def get_config(self) -> MossAudioConfig:
        return MossAudioConfig(
            audio_config=dict(self.audio_config),
            language_config=dict(self.language_config),
            adapter_hidden_size=24,
            audio_token_id=self.audio_token_id,
            audio_start_id=21,
            audio_end_id=22,
        )

    def prepare_config_and_inputs_for_common(self):
        input_ids = ids_tensor([self.batch_size, self.seq_length], 60) + 23  # text
        for row, frames in zip(input_ids, self.clip_frames):
            row[1 : 1 + -(-frames // 8)] = self.audio_token_id
        inputs = {
            "input_ids": input_ids,
            "attention_mask": torch.ones_like(input_ids),
            "audio_data": floats_tensor([self.batch_size, self.audio_config["num_mel_bins"], max(self.clip_frames)]),
            "audio_data_seqlens": torch.tensor(self.clip_frames, device=torch_device),
        }
        return self.get_config(), inputs


REENTRANT = "DeepStack features are keywords of the layers: refused with an error, which tests/test_training.py shows"
SKIPPED = {
    "test_training_gradient_checkpointing_use_reentrant": REENTRANT,  # its name in version 4
    "test_training_gradient_checkpointing_use_reentrant_true": REENTRANT,  # and in version 5
    "test_model_base_model_prefix": "`lm_head` stands beside encoder and decoder in released files: no base model in it",
}


class MossAudioModelConformance(ModelTesterMixin, GenerationTesterMixin, TrainingTesterMixin, unittest.TestCase):
    all_model_classes = (MossAudioModel,)
    model_tester = property(MossAudioModelTester)
    _is_composite = True
    # Version 4 only, which removed heads and masked them in some models; Qwen3 can do neither.
    test_pruning = False
    test_head_masking = False
    # Clips are packed, `(tokens, width)`, and their argument is called `audio_data`: the test of the shape expects
    # `(clips, ..., width)` of `input_features`. That an output comes, and of which type, is still tested.
    skip_test_audio_features_output_shape = True

    def test_sdpa_can_dispatch_composite_models(self):
        """Overwritten, as the original asks for where the parts have other names than it knows."""
        config, _ = self.model_tester.prepare_config_and_inputs_for_common()
        with tempfile.TemporaryDirectory() as folder:
            MossAudioModel(config).save_pretrained(folder)
            for asked, expected in ((None, "sdpa"), ("sdpa", "sdpa"), ("eager", "eager")):
                model = MossAudioModel.from_pretrained(folder, attn_implementation=asked)
                for name, module in model.named_modules():
                    if name in ("", "audio_encoder", "language_model") or name.endswith("self_attn"):
                        self.assertEqual(module.config._attn_implementation, expected, name)


for name, reason in SKIPPED.items():
    if hasattr(ModelTesterMixin, name):
        setattr(MossAudioModelConformance, name, unittest.skip(reason)(getattr(MossAudioModelConformance, name)))
