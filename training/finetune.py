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
"""Fine-tuning by the standard Trainer: `moss-audio finetune`, and `python -m moss_audio.training.finetune` for
`accelerate launch` and `torchrun`.

The options are the ones below and all of Transformers' TrainingArguments.
"""

import argparse
import dataclasses
import logging
import os
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Optional

import torch
from torch.utils.data import Dataset, Subset
from transformers import HfArgumentParser, TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint

from moss_audio.configuration_moss_audio import MossAudioConfig
from moss_audio.loading import check_checkpoint
from moss_audio.modeling_moss_audio import MossAudioModel
from moss_audio.processing_moss_audio import MossAudioProcessor

from .collator import MossAudioDataCollator
from .data import DataError
from .lengths import quick_lengths
from .mixture import Mixture, Source, grouped, weighted
from .trainer import MossAudioTrainer


logger = logging.getLogger(__name__)

PARTS = {
    "encoder": ("audio_encoder.",),
    "adapter": ("audio_adapter.",),
    "mergers": ("deepstack_audio_merger_list.",),
    "decoder": ("language_model.layers.", "language_model.norm."),
    "embeddings": ("language_model.embed_tokens.", "lm_head."),
}
LORA_DECODER = r"(.*\.)?language_model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"
LORA_ENCODER = r"(.*\.)?audio_encoder\.layers\.\d+\.(self_attn\.([qkv]|out)_proj|fc1|fc2)"


class FinetuneError(ValueError):
    """Options that do not go together, and the way out."""


@dataclass
class ModelArguments:
    """What is trained."""

    model: str = field(metadata={"help": "Checkpoint to start from: a folder, or an id on the Hugging Face Hub."})
    stage: Literal["full", "adapter", "lora"] = field(
        default="full",
        metadata={"help": "What learns: everything; adapter and DeepStack mergers alone; or LoRA weights by PEFT."},
    )
    freeze: list[str] = field(
        default_factory=list, metadata={"help": f"Parts that do not learn: {', '.join(PARTS)}.", "metavar": "PART"}
    )
    lora_rank: int = field(default=16, metadata={"help": "Rank of the LoRA weights."})
    lora_alpha: int = field(default=32, metadata={"help": "Scale of the LoRA weights, divided by the rank."})
    lora_dropout: float = field(default=0.05, metadata={"help": "Dropout before the LoRA weights."})
    lora_on_encoder: bool = field(
        default=False, metadata={"help": "LoRA on the encoder's layers, too, not the decoder's alone."}
    )
    dtype: Literal["default", "auto", "float32", "bfloat16", "float16"] = field(
        default="default",
        metadata={
            "help": "Of the weights in training: float32 by default, the checkpoint's (auto) for LoRA, whose own weights are "
            "float32. --bf16 computes in bfloat16 whatever the weights are in."
        },
    )
    attn_implementation: Optional[str] = field(default=None, metadata={"help": "eager, sdpa, flash_attention_2, …"})
    loss_chunk_size: Optional[int] = field(
        default=None,
        metadata={"help": "Labels whose logits are held at once, e.g. 1024: less memory for long answers, same loss."},
    )


@dataclass
class DataArguments:
    """What it is trained on."""

    train_files: list[str] = field(
        default_factory=list, metadata={"help": "JSON Lines, JSON or Parquet files, or folders of datasets."}
    )
    weights: list[float] = field(
        default_factory=list,
        metadata={"help": "How often an epoch goes through each of them, e.g. 1 0.5 3; once by default."},
    )
    mixture: Optional[str] = field(
        default=None, metadata={"help": "Instead of --train_files, a recipe of groups and their shares (JSON)."}
    )
    eval_files: list[str] = field(default_factory=list, metadata={"help": "Data to evaluate on."})
    eval_metric: Optional[Literal["wer", "cer"]] = field(
        default=None,
        metadata={"help": "Generate answers when evaluating; report their word or character error rate."},
    )
    eval_max_new_tokens: int = field(default=256, metadata={"help": "Longest generated answer."})
    system_prompt: Optional[str] = field(default=None, metadata={"help": "For samples without one of their own."})
    answers: Literal["all", "last"] = field(
        default="all", metadata={"help": "Which of the assistant's turns are learned."}
    )
    max_length: Optional[int] = field(
        default=None, metadata={"help": "Longest sample in tokens (12.5 a second of sound, and the text)."}
    )
    too_long: Literal["drop", "raise"] = field(
        default="drop", metadata={"help": "Leave longer samples out with a warning, or stop."}
    )
    batch_by_length: bool = field(default=False, metadata={"help": "Batches of samples of like length: less padding."})
    pad_to_multiple_of: Optional[int] = field(default=None, metadata={"help": "Pad batches to a multiple of this."})
    time_markers: Optional[bool] = field(
        default=None,
        metadata={"help": "Write elapsed seconds between audio tokens; by default as the processor does."},
    )
    chat_template: Optional[str] = field(default=None, metadata={"help": "A Jinja file; it is saved with the result."})


COMMON = """\
the most used of Transformers' training arguments:
  --output_dir FOLDER                   where checkpoints and the result go
  --num_train_epochs 3, --max_steps N   how long
  --learning_rate 1e-5                  e.g. 1e-4 for lora, 1e-3 for adapter
  --lr_scheduler_type cosine, --warmup_steps N
  --per_device_train_batch_size 8, --gradient_accumulation_steps 1
  --bf16 true, --gradient_checkpointing true
  --eval_strategy steps, --eval_steps N, --logging_steps 10
  --save_steps 500, --save_total_limit 2, --resume_from_checkpoint true
  --dataloader_num_workers 4, --seed 42, --report_to none
  --use_cpu true where there is no GPU
  --push_to_hub true, --hub_model_id USER/NAME
--help_all lists all of them.
"""


# ------------------------------------------------------------------------------------------------------------- options


def parse_arguments(arguments: list[str]) -> tuple[ModelArguments, DataArguments, TrainingArguments]:
    """The options of a run; help and mistakes end the program, as with argparse."""
    if "--help" in arguments or "-h" in arguments:
        parser = _parser((ModelArguments, DataArguments))
        parser.epilog = COMMON
        parser.print_help()
        raise SystemExit(0)
    parser = _parser((ModelArguments, DataArguments, TrainingArguments))
    if "--help_all" in arguments:
        parser.print_help()
        raise SystemExit(0)
    try:
        model, data, training, unknown = parser.parse_args_into_dataclasses(arguments, return_remaining_strings=True)
    except (ValueError, ImportError) as error:  # settings that TrainingArguments finds do not go together
        parser.error(str(error))
    if unknown:
        parser.error(f"there is no {' '.join(unknown)}; --help and --help_all list the options")
    _check(model, data, parser)
    if training.n_gpu > 1:
        parser.error(
            f"one process sees {training.n_gpu} GPUs: start one for each by `accelerate launch` or `torchrun`, with -m "
            "moss_audio.training.finetune, or set CUDA_VISIBLE_DEVICES=0"
        )
    if training.label_smoothing_factor:
        parser.error("--label_smoothing_factor does not work here: Transformers would not shift the labels")
    training.remove_unused_columns = False  # the collator reads samples, not the model's inputs
    training.label_names = ["labels"]  # PEFT's class would not tell
    training.prediction_loss_only = True
    if data.batch_by_length:
        ask_for_like_lengths(training)
    resume = training.resume_from_checkpoint
    if resume is not None and resume.lower() in ("true", "false"):
        found = get_last_checkpoint(training.output_dir) if os.path.isdir(training.output_dir) else None
        if resume.lower() == "true" and found is None:
            logger.warning(
                "%s holds no checkpoint to resume from; training starts at the beginning.", training.output_dir
            )
        training.resume_from_checkpoint = found if resume.lower() == "true" else None
    elif resume is not None and not os.path.isdir(resume):
        parser.error(f"--resume_from_checkpoint {resume}: there is no such folder")
    if resume is None and not getattr(training, "overwrite_output_dir", False):
        _check_output(training.output_dir, parser)
    return model, data, training


def _parser(classes: tuple[type, ...]) -> HfArgumentParser:
    return HfArgumentParser(
        classes,
        prog="moss-audio finetune",
        usage="%(prog)s --model MODEL --train_files FILE … --output_dir DIR [options]",
        allow_abbrev=False,
        description="Fine-tune a MOSS-Audio checkpoint on recordings and what should be said about them.",
        formatter_class=_HelpFormatter,
    )


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults where there is one that says something."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=32, width=110)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        """Each option by its first name: some versions of Transformers have a second, with hyphens, for all."""
        names = action.option_strings
        shown = argparse.Action(
            names[-1:] if "-h" in names else names[:1], action.dest, action.nargs, metavar=action.metavar
        )
        shown.choices = action.choices
        return super()._format_action_invocation(shown)

    def _get_help_string(self, action: argparse.Action) -> str:
        return action.help if action.default in (None, [], argparse.SUPPRESS) else super()._get_help_string(action)


def _check(model: ModelArguments, data: DataArguments, parser: HfArgumentParser):
    if bool(data.train_files) == bool(data.mixture):
        parser.error("give either --train_files or --mixture")
    if data.weights and data.mixture:
        parser.error("--weights go with --train_files; a mixture has shares of its own")
    if data.eval_metric and not data.eval_files:
        parser.error("--eval_metric needs --eval_files")
    if unknown := sorted(set(model.freeze) - set(PARTS)):
        parser.error(f"--freeze {' '.join(unknown)}: there are the parts {', '.join(PARTS)}")
    if model.stage != "full" and model.freeze:
        parser.error(f"--freeze goes with --stage full: --stage {model.stage} says by itself what learns")
    if model.lora_on_encoder and model.stage != "lora":
        parser.error("--lora_on_encoder goes with --stage lora")


def _check_output(folder: str, parser: HfArgumentParser):
    finished = [name for name in ("config.json", "adapter_config.json") if os.path.exists(os.path.join(folder, name))]
    if finished:
        parser.error(
            f"--output_dir {folder} holds a checkpoint already ({finished[0]}): choose another folder, or go on with it "
            "by --resume_from_checkpoint true"
        )


def ask_for_like_lengths(training: TrainingArguments):
    """Says "batches of like length" in the words of the installed Transformers."""
    names = {setting.name for setting in dataclasses.fields(training)}
    if "group_by_length" in names:
        training.group_by_length = True
    else:
        training.train_sampling_strategy = "group_by_length"


def wants_like_lengths(training: TrainingArguments) -> bool:
    """Whether batches of like length are asked for, by our option or by Transformers' own."""
    strategy = getattr(training, "train_sampling_strategy", None)
    return getattr(training, "group_by_length", False) or strategy == "group_by_length"


# --------------------------------------------------------------------------------------------------------------- model


def load_model(options: ModelArguments) -> torch.nn.Module:
    """
    The checkpoint with what shall learn requiring gradients, and LoRA weights around it if asked for.

    Raises:
        FinetuneError: where nothing is left to learn.
    """
    dtype = {"default": "auto" if options.stage == "lora" else "float32"}.get(options.dtype, options.dtype)
    given = {} if options.attn_implementation is None else {"attn_implementation": options.attn_implementation}
    model = MossAudioModel.from_pretrained(options.model, dtype=dtype, **given)
    if options.stage == "lora":
        return _with_lora(model, options)
    frozen = (
        options.freeze if options.stage == "full" else [part for part in PARTS if part not in ("adapter", "mergers")]
    )
    prefixes = tuple(prefix for part in frozen for prefix in PARTS[part])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(prefixes))
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise FinetuneError(f"--freeze {' '.join(frozen)} leaves nothing to learn; leave a part out of it.")
    return model


def _with_lora(model: MossAudioModel, options: ModelArguments) -> torch.nn.Module:
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ImportError("--stage lora needs PEFT: `pip install peft`.") from error
    targets = f"({LORA_DECODER})|({LORA_ENCODER})" if options.lora_on_encoder else LORA_DECODER
    config = LoraConfig(
        r=options.lora_rank,
        lora_alpha=options.lora_alpha,
        lora_dropout=options.lora_dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)


# ---------------------------------------------------------------------------------------------------------------- data


def load_collator(options: DataArguments, processor: MossAudioProcessor) -> MossAudioDataCollator:
    """The collator of a run. A chat template of one's own becomes the processor's, so that it is saved with it."""
    if options.chat_template is not None:
        path = Path(options.chat_template).expanduser()
        if not path.is_file():
            raise FinetuneError(f"--chat_template {options.chat_template}: there is no such file.")
        processor.chat_template = path.read_text(encoding="utf-8")
    if options.time_markers is not None:
        processor.enable_time_marker = options.time_markers  # saved, too: inference must do as training did
    return MossAudioDataCollator(
        processor,
        answers=options.answers,
        system_prompt=options.system_prompt,
        max_length=options.max_length,
        too_long=options.too_long,
        pad_to_multiple_of=options.pad_to_multiple_of,
    )


def load_mixture(options: DataArguments) -> Mixture:
    return grouped(options.mixture) if options.mixture else weighted(options.train_files, options.weights)


def without_too_long(mixture: Mixture, collator: MossAudioDataCollator, progress: bool) -> tuple[Mixture, list[int]]:
    """
    The samples that fit, and their lengths in tokens. An epoch draws so much less.

    Raises:
        DataError: where none fits, or one does not and `too_long` says so.
    """
    lengths = quick_lengths(collator, mixture, progress)
    sources, kept_lengths, dropped = [], [], []
    starts = [0, *mixture.cumulative_sizes]
    for start, source in zip(starts, mixture.sources):
        own = lengths[start : start + len(source.samples)]
        kept = [index for index, tokens in enumerate(own) if tokens <= collator.max_length]
        dropped += [start + index for index, tokens in enumerate(own) if tokens > collator.max_length]
        if kept:
            draws = max(1, round(source.draws * len(kept) / len(own)))
            samples = source.samples if len(kept) == len(own) else Subset(source.samples, kept)
            sources.append(Source(samples, draws, source.group))
            kept_lengths += [own[index] for index in kept]
    if dropped:
        message = (
            f"{len(dropped)} of {len(lengths)} samples have more than {collator.max_length} tokens; the first is "
            f"{mixture[dropped[0]]['origin']} with {lengths[dropped[0]]}."
        )
        if collator.too_long == "raise" or not sources:
            raise DataError(f"{message} Cut them into pieces, raise --max_length, or leave them out: --too_long drop.")
        logger.warning("%s They are left out.", message)
    return Mixture(sources), kept_lengths


def load_eval_data(options: DataArguments, collator: MossAudioDataCollator) -> Optional[Dataset]:
    if not options.eval_files:
        return None
    return without_too_long(weighted(options.eval_files), collator, progress=False)[0]


# ----------------------------------------------------------------------------------------------------------------- run


def run(model_options: ModelArguments, data_options: DataArguments, training: TrainingArguments) -> MossAudioTrainer:
    """
    Trains, evaluates and saves.

    Returns:
        The trainer as it was at the end.

    Raises:
        DataError, FinetuneError: where data or options cannot be used; before the weights are loaded if possible.
    """
    set_seed(training.seed)
    main = training.process_index == 0
    try:
        check_checkpoint(model_options.model)
        processor = MossAudioProcessor.from_pretrained(model_options.model)
        collator = load_collator(data_options, processor)
        mixture, lengths = without_too_long(load_mixture(data_options), collator, main and not training.disable_tqdm)
        eval_data = load_eval_data(data_options, collator)
        model = load_model(model_options)
    except DataError:
        raise
    except ValueError as error:  # an id that is none, a length beyond the positions, …
        raise FinetuneError(str(error)) from error
    if main:
        _describe(mixture, lengths, model)
    trainer = MossAudioTrainer(
        model=model,
        args=training,
        train_dataset=mixture,
        eval_dataset=eval_data,
        data_collator=collator,
        processing_class=processor,
        lengths=lengths if wants_like_lengths(training) else None,
        loss_chunk_size=model_options.loss_chunk_size,
        eval_metric=data_options.eval_metric,
        eval_max_new_tokens=data_options.eval_max_new_tokens,
    )
    result = trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
    trainer.save_metrics("train", result.metrics)
    trainer.save_state()
    if eval_data is not None:
        metrics = trainer.evaluate()
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics)
    save(trainer, model_options)
    if main:
        then = "; `moss-audio merge` makes a checkpoint of it" if model_options.stage == "lora" else ""
        logger.info("%s is complete%s.", training.output_dir, then)
    if training.push_to_hub:
        trainer.push_to_hub()
    return trainer


def _describe(mixture: Mixture, lengths: list[int], model: torch.nn.Module):
    learning = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    total = sum(parameter.numel() for parameter in model.parameters())
    logger.info("%d of %d parameters learn.", learning, total)
    for source in mixture.sources:
        logger.info("%s: %d samples, %d drawn in an epoch.", source.group, len(source.samples), source.draws)
    logger.info("The longest sample has %d tokens, the mean is %d.", max(lengths), sum(lengths) / len(lengths))


def save(trainer: MossAudioTrainer, options: ModelArguments):
    """Model and processor to the output folder: one like that which went in, or an adapter's. Weights get its dtype back."""
    if trainer.is_fsdp_enabled:
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    if options.stage != "lora" and options.dtype == "default":
        config = MossAudioConfig.from_pretrained(options.model)
        dtype = getattr(config, "dtype", None)
        dtype = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
        if dtype is not None:
            trainer.accelerator.unwrap_model(trainer.model).to(dtype)
    trainer.save_model()


def main(arguments: Optional[list[str]] = None) -> None:
    """Entry point of the command and of `python -m moss_audio.training.finetune`."""
    model, data, training = parse_arguments(sys.argv[1:] if arguments is None else arguments)
    level = logging.INFO if training.process_index == 0 else logging.ERROR
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING, stream=sys.stderr)
    logging.getLogger("moss_audio").setLevel(level)
    try:
        run(model, data, training)
    except (DataError, FinetuneError, ImportError, OSError) as error:
        if training.process_index == 0:
            print(f"moss-audio: {re.sub(chr(10), chr(10) + '  ', str(error))}", file=sys.stderr)
        raise SystemExit(2) from error


if __name__ == "__main__":
    main()
