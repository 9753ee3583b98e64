"""`AdapterTrainer`: transformers' Trainer, taught what an adapter is. The loop is theirs.

What differs from the Trainer: checkpoints hold the adapter alone; a run resumes bit for bit, whatever the
order of rows; and a run that would train nothing, or that went wrong, stops with one message.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import DistributedType
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler, get_length_grouped_indices
from transformers.trainer_utils import TrainOutput

from weft.data.packed import PackedCollator
from weft.data.text import IGNORED, TextDataset
from weft.errors import TrainingError
from weft.model import collect, trainable_parameters
from weft.model.modules import adapted_modules
from weft.model.state import state_of
from weft.nn import Factors
from weft.training.checkpoint import load_state, require_latest, save_state
from weft.training.logits import keeps_logits, with_learned_logits
from weft.training.nested import Nesting
from weft.training.packing import obstacle, packing
from weft.training.token_loss import Head, batch_loss, head_of, is_causal

_LISTED = 8  # modules named in a message before "and N more"


class AdapterTrainer(Trainer):
    """A Trainer for a model with a trainable adapter attached; takes the same arguments, and one more.

    ``save_model(folder)`` writes the adapter, in PEFT's format. ``train(resume_from_checkpoint=True)`` takes the
    newest checkpoint that was written to its end. With ``nested=True`` each prefix of the factors is trained; see
    `weft.training.nested`.

    Raises (from `train`):
        StateError: no trainable adapter is attached.
        ConfigError: the adapter cannot be nested.
        TrainingError: the Trainer is to shard the model, the batches are packed and the model cannot take them, the
            first backward pass left an adapter's B without a gradient, or a loss or a gradient is not a finite number.
    """

    def __init__(
        self,
        model: nn.Module | None = None,
        args: TrainingArguments | None = None,
        *others: Any,
        nested: bool = False,
        **options: Any,
    ) -> None:
        if args is not None and args.ddp_find_unused_parameters is None:
            args.ddp_find_unused_parameters = False  # the first-step check will make sure that there are none
        super().__init__(model, args, *others, **options)
        self.add_callback(InputsWithoutGradients())
        self._nested = nested
        self._nesting: Nesting | None = None
        self._gradients_checked = False
        self._is_causal = is_causal(self.attached)
        self._keeps_logits = self.model_accepts_loss_kwargs and keeps_logits(self.attached)

    @property
    def attached(self) -> nn.Module:
        """The model that the adapters are attached to."""
        assert isinstance(self.model, nn.Module)
        return self.model

    @cached_property
    def head(self) -> Head | None:
        """What the loss in chunks needs of the model; None where it cannot be had, as for a model over processes."""
        return head_of(self.attached) if self.accelerator.distributed_type == DistributedType.NO else None

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Trains, or goes on training, the attached trainable adapters."""
        if self.args.fsdp or self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise TrainingError(
                "the Trainer cannot write checkpoints of a model that it shards (fsdp, deepspeed), since they hold the "
                "adapter alone, whole; train over several processes without, or call fully_shard in a loop of your own"
            )
        if not any(parameter.requires_grad for parameter in trainable_parameters(self.attached)):
            raise TrainingError(
                "the attached adapter is trainable, but none of its parameters requires a gradient; "
                "something called requires_grad_(False) after weft.attach"
            )
        state = state_of(self.attached)
        if not any(state.adapters[name].trainable for name in state.active):
            raise TrainingError(
                "no trainable adapter is active, so the loss depends on none; call weft.activate(model, name) first"
            )
        self._nesting = Nesting(self.attached, self.args.seed) if self._nested else None
        self._gradients_checked = False
        if resume_from_checkpoint is True:
            resume_from_checkpoint = str(require_latest(str(self.args.output_dir)))
        if isinstance(resume_from_checkpoint, str) and _is_finished(Path(resume_from_checkpoint)):
            return self._restore(resume_from_checkpoint)
        if not isinstance(self.data_collator, PackedCollator):
            return super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)
        with packing(self._packable()):
            return super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """One forward and backward pass, with the checks."""
        with self._prefix():
            loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        if not torch.isfinite(loss).all():
            raise self._not_finite("loss", float(loss))
        if not self._gradients_checked:
            self._check_gradients()
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
        on how a step is cut. Where `model` wraps the attached one (over several devices, or compiled), the wrapper has
        to be called.
        """
        own_loss = self.compute_loss_func is None and self.label_smoother is None
        if own_loss and not return_outputs and "labels" in inputs:
            if self.head is not None and model is self.attached and isinstance(model, PreTrainedModel):
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
        """Writes the adapter in PEFT's format; inside a checkpoint, its raw tensors, so that resuming is exact."""
        if not self.args.should_save:
            return
        folder = output_dir or self.args.output_dir
        assert folder is not None
        if _internal_call:
            save_state(self.attached, folder)
            return
        names = [name for name, record in state_of(self.attached).adapters.items() if record.trainable]
        for name in names:
            collect(self.attached, name).save(Path(folder) if len(names) == 1 else Path(folder) / name)

    def load_best(self) -> int | None:
        """Puts the weights of the best evaluation back, and returns its step; None if there was no evaluation."""
        step = self.state.best_global_step
        if not step:
            return None
        load_state(self.attached, Path(str(self.args.output_dir)) / f"checkpoint-{step}")
        self._mark(step)
        return int(step)

    def _prefix(self) -> AbstractContextManager[None]:
        """The part of the factors that takes part in this step."""
        if self._nesting is None:
            return nullcontext()
        assert self.optimizer is not None
        return self._nesting.step(self.state.global_step, self.state.max_steps, self.optimizer)

    def _mark(self, step: int) -> None:
        """Says of weights that were read back, and not trained, whether they are nested."""
        if self._nesting is not None:
            self._nesting.mark(step, self.state.max_steps)

    def _packable(self) -> PreTrainedModel:
        """The model, if it can take packed batches."""
        longest = self.train_dataset.longest if isinstance(self.train_dataset, TextDataset) else sys.maxsize
        reason = obstacle(self.attached, longest)
        if reason is not None or not isinstance(self.attached, PreTrainedModel):
            raise TrainingError(
                f"the model cannot take packed batches: {reason}; use weft.data.text.Collator as the data collator"
            )
        return self.attached

    def _restore(self, checkpoint: str) -> TrainOutput:
        """The end of a run whose last step is done already."""
        load_state(self.attached, checkpoint)
        self.state = TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json"))
        self._mark(self.state.global_step)
        losses = [entry["loss"] for entry in self.state.log_history if "loss" in entry]
        return TrainOutput(self.state.global_step, losses[-1] if losses else float("nan"), {})

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        load_state(self.attached if model is None else model, resume_from_checkpoint)

    def _load_best_model(self) -> None:
        self.load_best()

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        is_best = bool(super()._determine_best_metric(metrics, trial))
        if is_best and self.args.save_strategy != "no":
            self.control.should_save = True  # so that evaluating and saving need not share their steps
        return is_best

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int] | None:
        sampler = super()._get_train_sampler(train_dataset)
        if isinstance(sampler, LengthGroupedSampler):
            seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
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

    def _check_gradients(self) -> None:
        """Raises TrainingError if some trainable part got no gradient from the first backward pass."""
        state = state_of(self.attached)
        missing: list[str] = []
        for path, module in adapted_modules(self.attached):
            for name, part in module.adapters.items():
                if not state.adapters[name].trainable:
                    continue
                if isinstance(part, Factors):  # A gets one too, but zero while B is
                    learns = all(p.grad is not None for p in (part.lora_B, part.magnitude) if p is not None)
                else:
                    learns = any(parameter.grad is not None for parameter in part.parameters())
                if not learns:
                    missing.append(path if name in state.active else f"{path} (the adapter {name!r} is not active)")
        if missing:
            listed = "\n  ".join(missing[:_LISTED]) + (
                f"\n  and {len(missing) - _LISTED} more" if len(missing) > _LISTED else ""
            )
            raise TrainingError(
                f"after the first backward pass, the adapter got no gradient in {len(missing)} modules:\n  {listed}\n"
                "the loss does not depend on them. Leave them out with exclude, activate the adapter, or, with "
                "reentrant gradient checkpointing, use the non-reentrant one"
            )


class InputsWithoutGradients(TrainerCallback):
    """Undoes what transformers does for gradient checkpointing: make the embeddings' output require a gradient.

    Only reentrant checkpointing needs it; else it makes the backward pass run down to the first layer, whatever is
    adapted.
    """

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any
    ) -> None:
        settings, model = args.activation_checkpointing_kwargs, rest["model"]
        reentrant = isinstance(settings, dict) and settings.get("use_reentrant", False)
        if args.activation_checkpointing and not reentrant and isinstance(model, PreTrainedModel):
            model.disable_input_require_grads()


class EpochLengthSampler(Sampler[int]):
    """Rows of like length together, in an order that the seed and the epoch decide alone.

    The Trainer's own sampler draws from the global generator, whose state at the start of an epoch is lost when a
    run is resumed in the middle of it.

    Args:
        lengths: of each row, in tokens.
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
