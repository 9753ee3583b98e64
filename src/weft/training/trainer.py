"""`AdapterTrainer`: transformers' Trainer, taught what an adapter is. The loop is theirs.

What differs from the Trainer: checkpoints hold the adapter alone; a run resumes bit for bit, whatever the
order of rows; and a run that would train nothing, or that went wrong, stops with one message.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import TrainOutput

from weft.errors import TrainingError
from weft.model import collect, trainable_parameters
from weft.model.modules import adapted_modules
from weft.model.state import state_of
from weft.nn import CompanionPart, Factors
from weft.training.checked_trainer import CheckedTrainer
from weft.training.checkpoint import load_state, save_state
from weft.training.nested import Nesting

_LISTED = 8  # modules named in a message before "and N more"


class AdapterTrainer(CheckedTrainer):
    """A Trainer for a model with a trainable adapter attached; takes the same arguments, and two more.

    ``save_model(folder)`` writes the adapter, in PEFT's format. ``train(resume_from_checkpoint=True)`` takes the
    newest checkpoint that was written to its end. With ``nested=True`` each prefix of the factors is trained; see
    `weft.training.nested`. `score` evaluates in the Trainer's place; see `weft.training.checked_trainer`.

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
        score: Callable[[int], Mapping[str, Any]] | None = None,
        **options: Any,
    ) -> None:
        if args is not None and args.ddp_find_unused_parameters is None:
            args.ddp_find_unused_parameters = False  # the first-step check will make sure that there are none
        with _taken_for_adapted(model):
            super().__init__(model, args, *others, score=score, **options)
        self.add_callback(InputsWithoutGradients())
        self._nested = nested
        self._nesting: Nesting | None = None

    @property
    def attached(self) -> nn.Module:
        """The model that the adapters are attached to."""
        return self.module

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
        return super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)

    def write_state(self, checkpoint: Path) -> None:
        """Writes the adapter's raw tensors, so that resuming is exact."""
        save_state(self.attached, checkpoint)

    def read_state(self, checkpoint: Path) -> None:
        """Reads them back, in place."""
        load_state(self.attached, checkpoint)

    def write_trained(self, folder: Path) -> None:
        """Writes the adapter in PEFT's format; several, each to a folder of its own."""
        names = [name for name, record in state_of(self.attached).adapters.items() if record.trainable]
        for name in names:
            collect(self.attached, name).save(folder if len(names) == 1 else folder / name)

    def load_best(self) -> int | None:
        """Puts the weights of the best evaluation back, and returns its step; None if there was no evaluation."""
        step = super().load_best()
        if step is not None:
            self._mark(step)
        return step

    def _step(self) -> AbstractContextManager[None]:
        """The part of the factors that takes part in this step."""
        if self._nesting is None:
            return nullcontext()
        assert self.optimizer is not None
        return self._nesting.step(self.state.global_step, self.state.max_steps, self.optimizer)

    def _mark(self, step: int) -> None:
        """Says of weights that were read back, and not trained, whether they are nested."""
        if self._nesting is not None:
            self._nesting.mark(step, self.state.max_steps)

    def _restore(self, checkpoint: Path) -> TrainOutput:
        output = super()._restore(checkpoint)
        self._mark(self.state.global_step)
        return output

    def check_gradients(self) -> None:
        """Raises TrainingError if some trainable part got no gradient from the first backward pass."""
        state = state_of(self.attached)
        missing: list[str] = []
        for path, module in adapted_modules(self.attached):
            for name, part in module.adapters.items():
                if not state.adapters[name].trainable:
                    continue
                if isinstance(part, Factors):  # A gets one too, but zero while B is
                    learns = all(p.grad is not None for p in (part.lora_B, part.magnitude) if p is not None)
                elif isinstance(part, CompanionPart):  # a prompt that stands in no row gets one, of zeros
                    learns = any(p.grad is not None and bool(p.grad.any()) for p in part.parameters())
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


@contextmanager
def _taken_for_adapted(model: nn.Module | None) -> Iterator[None]:
    """A quantised model with what tells transformers of PEFT's adapters; without, the Trainer refuses to train it."""
    if not isinstance(model, PreTrainedModel) or not getattr(model, "is_quantized", False):
        yield
        return
    model._hf_peft_config_loaded = True
    try:
        yield
    finally:
        del model._hf_peft_config_loaded


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
