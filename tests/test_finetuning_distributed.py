"""Two processes on one machine, DDP and FSDP2: they must learn what one does with the same batches."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from moss_audio import training
from tests.conftest import CODE_FILES
from tests.finetuning_helpers import run_options, train, uneven_file


# As `python -m moss_audio.training.finetune`, but for how the processes end. Accelerate shards on accelerators only: FSDP
# itself does on a CPU, too, so that is kept from it.
WORKER = """
import json
import os
import shutil
import sys
import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from torch.distributed.fsdp import FSDPModule
from moss_audio.training import finetune

options = finetune.parse_arguments(sys.argv[1:])
if "ACCELERATE_USE_FSDP" in os.environ:
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
trainer = finetune.run(*options)
if trainer.args.process_index == 0:
    sharded = [name for name, module in trainer.model.named_modules() if isinstance(module, FSDPModule)]
    print("RESULT", json.dumps({"sharded": sharded, "log": trainer.state.log_history}))
torch.distributed.barrier()
torch.distributed.destroy_process_group()
sys.stdout.flush()
os._exit(0)  # threads of gloo that outlive their group abort a process now and then while the interpreter shuts down
"""
OPTIONS = {"max_steps": 6, "eval_metric": "cer", "eval_max_new_tokens": 6}
NAMES = ("loss", "token_accuracy", "loss_a", "loss_b", "grad_norm", "eval_loss", "eval_token_accuracy_b", "eval_cer")

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="PyTorch was built without torch.distributed"
)


@pytest.fixture(scope="module")
def checkpoint(tiny_folder, tmp_path_factory):
    """Without dropout; the encoder runs for each window by itself, so that processes differ in how often it does."""
    folder = tmp_path_factory.mktemp("checkpoint") / "still"
    shutil.copytree(tiny_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    config["audio_config"].update(dropout=0.0, attention_dropout=0.0, conv_chunksize=1)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return uneven_file(tmp_path_factory.mktemp("uneven"))


@pytest.fixture(scope="module")
def alone(checkpoint, data, tmp_path_factory):
    """One process with the batches of both."""
    output = tmp_path_factory.mktemp("alone")
    trainer = train(checkpoint, data, output, eval_files=data, **OPTIONS)
    return values(trainer.state.log_history), output


def values(log: list[dict]) -> dict[str, list[float]]:
    return {name: [entry[name] for entry in log if name in entry] for name in NAMES}


def run_two(folder: Path, checkpoint: Path, data: Path, environment: dict[str, str], **options) -> dict:
    worker = folder / "worker.py"
    worker.write_text(WORKER)
    options = {"per_device_train_batch_size": 2, "ddp_backend": "gloo", "eval_files": data, **OPTIONS, **options}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(worker)]
    done = subprocess.run(
        [*command, *run_options(checkpoint, data, folder / "out", **options)],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.partition("RESULT ")[2].splitlines()[0])


def shipped(name: str) -> dict[str, str]:
    """What `accelerate launch --config_file` hands to the processes, less the bfloat16."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    config = Path(training.__file__).with_name(name)
    assert config.is_file()
    arguments = launch_command_parser().parse_args(["--config_file", str(config), "--num_processes", "2", "script.py"])
    arguments, *_ = _validate_launch_command(arguments)
    assert arguments.mixed_precision == "bf16"
    arguments.mixed_precision = "no"
    environment = prepare_multi_gpu_env(arguments)
    return {key: value for key, value in environment.items() if os.environ.get(key) != value}


def compare(found: dict, alone: dict[str, list[float]]):
    for name, expected in alone.items():
        assert expected, name
        assert values(found["log"])[name] == pytest.approx(expected, rel=2e-4, abs=2e-4), name


def check_folder(output: Path, expected: Path):
    assert {"config.json", "processor_config.json", *CODE_FILES} <= {path.name for path in output.iterdir()}
    assert sorted(path.name for path in output.glob("*.py")) == sorted(CODE_FILES)
    assert json.loads((output / "config.json").read_text()) == json.loads((expected / "config.json").read_text())
    found, other = load_file(output / "model.safetensors"), load_file(expected / "model.safetensors")
    assert found.keys() == other.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, other[name], atol=2e-4, rtol=2e-4)


def test_ddp_learns_what_one_process_does(checkpoint, data, alone, tmp_path):
    found = run_two(tmp_path, checkpoint, data, shipped("ddp.yaml"))
    assert not found["sharded"]
    compare(found, alone[0])
    check_folder(tmp_path / "out", alone[1])


def test_fsdp_learns_what_one_process_does(checkpoint, data, alone, tmp_path):
    """Though some batches have no clip and others several of many windows; and the whole checkpoint comes out."""
    found = run_two(tmp_path, checkpoint, data, shipped("fsdp2.yaml"), loss_chunk_size=3)
    assert {"", "audio_encoder", *(f"language_model.layers.{i}" for i in range(4))} <= set(found["sharded"])
    assert not any(name.startswith("audio_encoder.") for name in found["sharded"])
    compare(found, alone[0])
    check_folder(tmp_path / "out", alone[1])


def test_fsdp_resumes_where_it_was(checkpoint, data, alone, tmp_path):
    environment, options = shipped("fsdp2.yaml"), {"save_strategy": "steps", "save_steps": 3}
    run_two(tmp_path, checkpoint, data, environment, **{**options, "max_steps": 3}, lr_scheduler_type="constant")
    found = run_two(
        tmp_path, checkpoint, data, environment, resume_from_checkpoint=True, lr_scheduler_type="constant", **options
    )
    assert len(values(found["log"])["loss"]) == 6
    whole = train(checkpoint, data, tmp_path / "whole", eval_files=data, lr_scheduler_type="constant", **OPTIONS)
    assert values(found["log"])["loss"] == pytest.approx(values(whole.state.log_history)["loss"], rel=2e-4)
