"""The tensor-parallel plan: the decoder's own, and two processes that answer together what one does."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import Qwen3ForCausalLM

from moss_audio import MossAudioConfig, MossAudioModel


DATA = Path(__file__).parent / "data"

# Each process holds half of every layer of the decoder; both must give the golden answer.
WORKER = """
import os
import sys
import torch
import transformers
from safetensors.torch import load_file
from moss_audio import MossAudioModel

data = sys.argv[1]
try:
    from transformers.distributed.configuration_utils import DistributedConfig
    plan = {"distributed_config": DistributedConfig(tp_plan="auto", tp_size=2)}
except TypeError:  # version 4, whose class of this name is about experts
    plan = {"tp_plan": "auto"}
model = MossAudioModel.from_pretrained(f"{data}/model_tiny", dtype=torch.float32, **plan).eval()
attention = model.language_model.layers[0].self_attn
assert attention.q_proj.weight.to_local().shape[0] == 32, attention.q_proj.weight.to_local().shape
cases = load_file(f"{data}/golden/cases.safetensors")
names = ("input_ids", "attention_mask", "audio_data", "audio_data_seqlens")
inputs = {name: cases[f"two_clips.{name}"] for name in names}
with torch.no_grad():
    logits = model(**inputs).logits[:, -24:]
torch.testing.assert_close(logits, cases["two_clips.logits"], atol=1e-5, rtol=1e-5)
generated = model.generate(**inputs, max_new_tokens=16, eos_token_id=None, pad_token_id=0, do_sample=False)
assert torch.equal(generated[:, -16:], cases["two_clips.generated"])
print("agreed", flush=True)
torch.distributed.barrier()
torch.distributed.destroy_process_group()
os._exit(0)  # threads of gloo that outlive their group abort a process now and then while the interpreter shuts down
"""


def test_the_plan_is_the_decoders():
    config = MossAudioConfig.from_pretrained(DATA / "model_tiny")
    model = MossAudioModel(config)
    plan = {f"language_model.{name}": style for name, style in config.language_config.base_model_tp_plan.items()}
    assert plan and plan.items() <= model.tp_plan.items()
    assert type(model)._tp_plan == Qwen3ForCausalLM._tp_plan  # of `lm_head`, by the style's name in this version


@pytest.mark.skipif(not torch.distributed.is_available(), reason="PyTorch was built without torch.distributed")
def test_two_processes_answer_as_one(tmp_path):
    worker = tmp_path / "worker.py"
    worker.write_text(WORKER)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=2",
        str(worker),
        str(DATA),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("agreed") == 2
