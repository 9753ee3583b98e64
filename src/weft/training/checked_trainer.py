"""`CheckedTrainer`: what weft adds to transformers' Trainer whatever is trained, an adapter or a whole model.

The loss of learned tokens in chunks, packed batches, an order of rows that a resumed run repeats, one evaluation at
will, and a stop with one message when a loss or a gradient is not a number.
"""

import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import DistributedType
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import PreTrainedModel, Trainer, TrainerState, TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler, get_length_grouped_indices
from transformers.trainer_utils import TrainOutput

from weft.data.lengths import KnowsLengths
from weft.data.packed import PackedCollator
from weft.data.text import IGNORED, TextDataset
from weft.errors import TrainingError
from weft.model import prompt_ids
from weft.training.checkpoint import require_latest
from weft.training.logits import keeps_logits, with_learned_logits
from weft.training.packing import obstacle, packing
from weft.training.token_loss import Head, batch_loss, head_of, is_causal


class CheckedTrainer(Trainer, ABC):
    """A Trainer; takes the same arguments, and one more.

    Args:
        score: evaluates the model as it is after so many steps, in the place of the Trainer's own evaluation; its
            metrics' names begin with ``eval_``.

    Raises (from `train`):
        TrainingError: the batches are packed and the model cannot take them, or a loss or a gradient is not a finite
            number.
    """

    def __init__(
        self,
        model: nn.Module | None = None,
        args: TrainingArguments | None = None,
        *others: Any,
        score: Callable[[int], Mapping[str, Any]] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(model, args, *others, **options)
        self._score = score
        self._gradients_checked = False
        self._is_causal = is_causal(self.module)
        self._keeps_logits = self.model_accepts_loss_kwargs and keeps_logits(self.module)

    @abstractmethod
    def check_gradients(self) -> None:
        """Raises TrainingError if the first backward pass left something that should learn without a gradient."""

    @abstractmethod
    def write_state(self, checkpoint: Path) -> None:
        """Writes what is trained, as it is in the midst of training, into a checkpoint."""

    @abstractmethod
    def read_state(self, checkpoint: Path) -> None:
        """Reads it back, in place."""

    @abstractmethod
    def write_trained(self, folder: Path) -> None:
        """Writes what was trained, as its users take it."""

    @property
    def module(self) -> nn.Module:
        """The model."""
        assert isinstance(self.model, nn.Module)
        return self.model

    @cached_property
    def head(self) -> Head | None:
        """What the loss in chunks needs of the model; None where it cannot be had, as for a model over processes."""
        return head_of(self.module) if self.accelerator.distributed_type == DistributedType.NO else None

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Trains, or goes on training."""
        self._gradients_checked = False
        if resume_from_checkpoint is True:
            resume_from_checkpoint = str(require_latest(str(self.args.output_dir)))
        if isinstance(resume_from_checkpoint, str) and _is_finished(Path(resume_from_checkpoint)):
            return self._restore(Path(resume_from_checkpoint))
        if not isinstance(self.data_collator, PackedCollator):
            return super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)
        with packing(self._packable()):
            return super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """The evaluation in the midst of training."""
        if self._score is None:
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        metrics = dict(self._score(self.state.global_step))
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """One forward and backward pass, with the checks."""
        with self._step():
            loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        if not torch.isfinite(loss).all():
            raise self._not_finite("loss", float(loss))
        if not self._gradients_checked:
            self.check_gradients()
            self._gradients_checked = True
        return loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The model's own loss: in chunks of learned tokens where its head allows, else from fewer logits.

        Of a model that is no causal language model, it is the mean over a batch's labels, whatever the Trainer says of
        the other batches of the step; each counts for its share of the labels here, so that the result does not depend
        on how a step is cut. Where `model` wraps the one that was given (over several devices, or compiled), the
        wrapper has to be called.
        """
        own_loss = self.compute_loss_func is None and self.label_smoother is None
        if own_loss and not return_outputs and "labels" in inputs:
            if self.head is not None and model is self.module and isinstance(model, PreTrainedModel):
                with self.accelerator.autocast():
                    return batch_loss(model, self.head, inputs, num_items_in_batch)
            if self._keeps_logits:
                inputs = with_learned_logits(inputs)
            elif not self._is_causal and num_items_in_batch is not None:
                labels = (inputs["labels"] != IGNORED).sum()
                processes = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
                return super().compute_loss(model, inputs) * (processes * labels / num_items_in_batch)
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Writes what was trained; inside a checkpoint, its raw tensors, so that resuming is exact."""
        if not self.args.should_save:
            return
        folder = output_dir or self.args.output_dir
        assert folder is not None
        if _internal_call:
            self.write_state(Path(folder))
        else:
            self.write_trained(Path(folder))

    def load_best(self) -> int | None:
        """Puts the weights of the best evaluation back, and returns its step; None if there was no evaluation."""
        step = self.state.best_global_step
        if not step:
            return None
        self.read_state(Path(str(self.args.output_dir)) / f"checkpoint-{step}")
        return int(step)

    def _step(self) -> AbstractContextManager[None]:
        """What holds in a forward and backward pass."""
        return nullcontext()

    def _restore(self, checkpoint: Path) -> TrainOutput:
        """The end of a run whose last step is done already."""
        self.read_state(checkpoint)
        self.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        losses = [entry["loss"] for entry in self.state.log_history if "loss" in entry]
        return TrainOutput(self.state.global_step, losses[-1] if losses else float("nan"), {})

    def _packable(self) -> PreTrainedModel:
        """The model, if it can take packed batches."""
        longest = self.train_dataset.longest if isinstance(self.train_dataset, TextDataset) else sys.maxsize
        reason = obstacle(self.module, longest + len(prompt_ids(self.module)))
        if reason is not None or not isinstance(self.module, PreTrainedModel):
            raise TrainingError(
                f"the model cannot take packed batches: {reason}; use weft.data.text.Collator as the data collator"
            )
        return self.module

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        self.read_state(Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        self.load_best()

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        is_best = bool(super()._determine_best_metric(metrics, trial))
        if is_best and self.args.save_strategy != "no":
            self.control.should_save = True  # so that evaluating and saving need not share their steps
        return is_best

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int] | None:
        data = self.train_dataset if train_dataset is None else train_dataset
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        if self.args.train_sampling_strategy == "group_by_length" and isinstance(data, KnowsLengths):
            rows = self.args.train_batch_size * self.args.gradient_accumulation_steps
            return EpochLengthSampler(data.lengths, rows, seed)
        sampler = super()._get_train_sampler(train_dataset)  # makes every row, to see how long it is
        if isinstance(sampler, LengthGroupedSampler):
            return EpochLengthSampler(sampler.lengths, sampler.batch_size, seed)
        return sampler

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        norm = super()._clip_grad_norm(model)
        if norm is not None and not self.args.fp16 and not torch.isfinite(torch.as_tensor(norm)).all():
            raise self._not_finite("gradient", float(norm))  # in fp16 the scaler expects some, and skips the step
        return norm

    def _not_finite(self, what: str, found: float) -> TrainingError:
        return TrainingError(
            f"the {what} is {found} at step {self.state.global_step + 1}; lower the learning rate (now "
            f"{self.args.learning_rate:g}), or look for rows that the base cannot take"
        )


class EpochLengthSampler(Sampler[int]):
    """Rows of like length together, in an order that the seed and the epoch decide alone.

    The Trainer's own sampler draws from the global generator, whose state at the start of an epoch is lost when a
    run is resumed in the middle of it.

    Args:
        lengths: of each row, in any unit.
        batch_size: rows in an optimizer step.
        seed: the run's seed.
    """

    def __init__(self, lengths: list[int], batch_size: int, seed: int) -> None:
        self.lengths, self.batch_size, self.seed = lengths, batch_size, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the data loader at the start of each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        return iter(get_length_grouped_indices(self.lengths, self.batch_size, generator=generator))


def _is_finished(checkpoint: Path) -> bool:
    """Whether a checkpoint was made at a run's last step, so that the Trainer would train beyond the end."""
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    stopped = state["stateful_callbacks"].get("TrainerControl", {}).get("args", {}).get("should_training_stop", False)
    return bool(stopped) or state["global_step"] >= state["max_steps"]
