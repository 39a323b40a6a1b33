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
"""The standard Trainer, and what it lacks for MOSS-Audio: values by group, mixtures, batches of like length, a loss in chunks,
and an evaluation that generates.
"""

import contextlib
from collections.abc import Sequence
from typing import Any, Literal, Optional

import torch
from accelerate.utils import gather_object
from torch.utils.data import DataLoader, Dataset, SequentialSampler, Subset
from transformers import Trainer

from moss_audio.processing_moss_audio import split_reasoning

from .collator import MossAudioDataCollator
from .metrics import error_rates, means_of, row_sums, score_tokens
from .mixture import EpochSampler, Mixture
from .scoring import import_jiwer


class MossAudioTrainer(Trainer):
    """
    [`~transformers.Trainer`] for datasets of samples and a [`MossAudioDataCollator`].

    Args:
        lengths (`list[int]`, *optional*):
            Of all training samples, which must then be a [`Mixture`]: batches hold samples of like length.
        loss_chunk_size (`int`, *optional*):
            Labels whose logits are held at once; by default all logits of a batch are.
        eval_metric ("wer" or "cer", *optional*):
            Generate the last answer of each evaluation sample and report its error rate.
        eval_max_new_tokens (`int`, *optional*, defaults to 256):
            Longest generated answer.
        args, kwargs:
            As [`~transformers.Trainer`] takes them.

    Raises:
        ValueError: for another collator, with label smoothing, or where one process would use several GPUs.
    """

    def __init__(
        self,
        *args,
        lengths: Optional[Sequence[int]] = None,
        loss_chunk_size: Optional[int] = None,
        eval_metric: Optional[Literal["wer", "cer"]] = None,
        eval_max_new_tokens: int = 256,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        if not isinstance(self.data_collator, MossAudioDataCollator):
            raise ValueError(
                f"`data_collator` is a {type(self.data_collator).__name__}; pass a MossAudioDataCollator, or use "
                "Transformers' own Trainer."
            )
        if self.label_smoother is not None:
            raise ValueError(
                "`label_smoothing_factor` does not work with MOSS-Audio: Transformers shifts the labels for classes that it "
                "knows, and for no others. Leave it out."
            )
        if self.args.n_gpu > 1:
            raise ValueError(
                f"one process sees {self.args.n_gpu} GPUs, and would split batches by their rows, which clips are not. Start "
                "a process for each by `accelerate launch` or `torchrun`, or set CUDA_VISIBLE_DEVICES=0."
            )
        if eval_metric is not None:
            import_jiwer()  # now, not after the first epoch
        self.data_collator.extra_keys = tuple(dict.fromkeys((*self.data_collator.extra_keys, "group", "origin")))
        self.args.remove_unused_columns = False  # the collator reads samples, not the model's inputs
        self.lengths = lengths
        self.loss_chunk_size = loss_chunk_size
        self.eval_metric, self.eval_max_new_tokens = eval_metric, eval_max_new_tokens
        self._trained: list[tuple[list[str], torch.Tensor]] = []  # since the last log: groups, and sums of each row
        self._groups: set[str] = set()  # in which something was trained
        self._evaluated: list[tuple[list[str], list[str], torch.Tensor]] = []  # also where the rows come from

    # Order

    def _get_train_sampler(self, train_dataset: Optional[Dataset] = None) -> Optional[torch.utils.data.Sampler]:
        train_dataset = self.train_dataset if train_dataset is None else train_dataset
        if not isinstance(train_dataset, Mixture):
            return super()._get_train_sampler(train_dataset)
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        step = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        return EpochSampler(train_dataset, seed, self.lengths, step)

    def _get_eval_sampler(self, eval_dataset: Dataset) -> Optional[torch.utils.data.Sampler]:
        return SequentialSampler(eval_dataset) if self.args.world_size <= 1 else None  # like lengths are for training

    # Loss

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Optional[torch.Tensor] = None,
    ) -> Any:
        inputs = dict(inputs)
        extras, labels = inputs.pop("extras"), inputs["labels"]
        if self.loss_chunk_size is not None:
            inputs["loss_chunk_size"] = self.loss_chunk_size
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if self.loss_chunk_size is None:
            losses, hits = score_tokens(outputs["logits"], labels)
        else:
            losses, hits = outputs["token_losses"], outputs["token_hits"]
        sums, groups = row_sums(losses, hits, labels), [str(group or "other") for group in extras["group"]]
        if model.training:
            self._trained.append((groups, sums))
        else:
            self._evaluated.append((groups, extras["origin"], sums))
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        if "loss" in logs and self._trained:
            rows = [row for groups, sums in self._trained for row in zip(groups, sums.tolist())]
            self._trained.clear()
            rows = self._of_all_processes(rows)
            self._groups.update(group for group, _ in rows)
            means = means_of(rows, known=self._groups)
            logs = {**logs, **{name: value for name, value in means.items() if name != "loss"}}
        super().log(logs, *args, **kwargs)

    def _of_all_processes(self, values: list) -> list:
        return gather_object(values) if self.args.world_size > 1 else values

    # Evaluation

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: Optional[bool] = None,
        ignore_keys: Optional[list[str]] = None,
        metric_key_prefix: str = "eval",
    ) -> Any:
        """The loss is a mean over labels, as in training, and each sample counts once however many processes there are."""
        self._evaluated.clear()
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        rows = [row for groups, origins, sums in self._evaluated for row in zip(origins, groups, sums.tolist())]
        self._evaluated.clear()
        if self.args.world_size > 1:  # processes whose share is smaller get samples twice: where they come from tells
            everything = enumerate(self._of_all_processes(rows))
            rows = list({origin or index: (origin, *row) for index, (origin, *row) in everything}.values())
        output.metrics.update(means_of([row for _, *row in rows], f"{metric_key_prefix}_"))
        if self.eval_metric is not None:
            pairs = self.generate_answers(dataloader.dataset)
            output.metrics.update(error_rates(pairs, self.eval_metric, f"{metric_key_prefix}_"))
        return output

    @torch.no_grad()
    def generate_answers(self, dataset: Dataset) -> list[tuple[str, str, str]]:
        """
        What the model says in place of each sample's last answer.

        Returns:
            Group, reference and answer of each sample, in no particular order; reasoning is left out of both texts.
        """
        mine = list(range(self.args.process_index, len(dataset), self.args.world_size))
        share = -(-len(dataset) // self.args.world_size)  # all processes generate equally often: FSDP needs that
        repeated = [*mine, *[0] * (share - len(mine))]
        prompts = DataLoader(
            Subset(dataset, repeated),
            batch_size=self.args.eval_batch_size,
            collate_fn=PromptCollator(self.data_collator),
            num_workers=self.args.dataloader_num_workers,
        )
        model = self.accelerator.unwrap_model(self.model)
        was_training = model.training
        model.eval()
        found = []
        for batch in prompts:
            inputs = batch["inputs"].to(self.args.device)
            with self._autocast():
                ids = model.generate(
                    **inputs,
                    max_new_tokens=self.eval_max_new_tokens,
                    do_sample=False,
                    num_beams=1,
                    synced_gpus=self.is_fsdp_enabled,
                )
            texts = self.data_collator.processor.batch_decode(
                ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
            )
            found += [(*pair, split_reasoning(text)[1]) for pair, text in zip(batch["references"], texts)]
        model.train(was_training)
        return self._of_all_processes(found[: len(mine)])

    def _autocast(self) -> contextlib.AbstractContextManager:
        full = self.args.bf16_full_eval or self.args.fp16_full_eval
        return contextlib.nullcontext() if full else self.accelerator.autocast()


class PromptCollator:
    """Samples without their last answer, as prompts padded on the left, beside group and answer of each."""

    def __init__(self, collator: MossAudioDataCollator):
        self.collator = collator

    def __call__(self, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        conversations = [self.collator.load(sample) for sample in samples]
        inputs = self.collator.processor.apply_chat_template(
            [messages[:-1] for messages in conversations],
            self.collator.chat_template,
            tokenize=True,
            return_dict=True,
            add_generation_prompt=True,
            enable_time_marker=self.collator.enable_time_marker,
        )
        answers = [split_reasoning(messages[-1]["content"])[1] for messages in conversations]
        groups = [str(sample.get("group") or "other") for sample in samples]
        return {"inputs": inputs, "references": list(zip(groups, answers))}


__all__ = ["MossAudioTrainer", "PromptCollator"]
