"""`run_full`: full fine-tuning on a run's task and settings, to hold an adapter against.

The base's own parameters learn, in place, and no copy of them is made, so that memory and time are those of full
fine-tuning. Everything else is the adapter's run: data, loss in chunks, Trainer, evaluation, folder. What comes out is
the weights of a whole model, and no adapter.
"""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import TrainerCallback

from weft.errors import ConfigError, TrainingError
from weft.training.arguments import arguments
from weft.training.checked_trainer import CheckedTrainer
from weft.training.config import RunConfig
from weft.training.folder import RunFolder
from weft.training.job import Learner, run_with, trainer_of, uses_bf16
from weft.training.result import RunResult
from weft.training.task import Evaluation, Task

_WEIGHTS = "model.safetensors"


def run_full(
    config: RunConfig, *, overwrite: bool = False, before: Evaluation | None = None, console: Console | None = None
) -> RunResult:
    """Trains every parameter of the base that its task does not freeze; the settings of the adapter are not looked at.

    With ``bf16`` the weights stay in float32, as small updates are lost in bfloat16, and matrix products are computed
    in bfloat16 (autocast). Of checkpoints, only the best weights are kept, so that a killed run starts anew.

    Args:
        config: the settings.
        overwrite: replace a run that is there.
        before: the evaluation of the base alone, where it is known already and need not be done.
        console: where to show progress; None shows nothing.

    Returns:
        The result of a run, with the folder of the trained weights in the place of the adapter's.

    Raises:
        ConfigError, DataError, TrainingError: as `weft.training.run` does, and for a base that is quantized.
    """
    learner = _Whole(autocast=uses_bf16(config))
    whole = config.model_copy(update={"bf16": False})
    return run_with(learner, whole, resume=False, overwrite=overwrite, before=before, console=console)


def load_whole(model: nn.Module, folder: Path) -> None:
    """Puts the weights that `run_full` left in a folder into a model, in place."""
    found = load_file(folder / _WEIGHTS)
    state = model.state_dict()
    for name, tensor in found.items():
        state[name].copy_(tensor)


class _Whole(Learner):
    """The base itself."""

    def __init__(self, autocast: bool) -> None:
        self._autocast = autocast

    def size(self, task: Task) -> tuple[int, float]:
        if not all(parameter.is_floating_point() for parameter in task.model.parameters()):
            raise ConfigError(
                "full fine-tuning trains the base's own weights, and this base is quantized; leave one out"
            )
        trained = sum(parameter.numel() for parameter in task.model.parameters() if parameter.requires_grad)
        return trained, trained / sum(parameter.numel() for parameter in task.model.parameters())

    def prepare(self, task: Task) -> None:
        pass  # a base is loaded ready to be trained

    def trainer(self, task: Task, folder: RunFolder, callbacks: Sequence[TrainerCallback]) -> CheckedTrainer:
        settings = arguments(task, folder, best_only=True, autocast=self._autocast)
        return trainer_of(FullTrainer, task, folder, settings, callbacks)

    def save(self, task: Task, folder: RunFolder, steps: int) -> Path:
        _save(task.model, folder.model)
        task.save_beside(folder.model)
        return folder.model

    def describe(self, task: Task, folder: RunFolder, result: RunResult) -> None:
        pass  # a card is for an adapter


class FullTrainer(CheckedTrainer):
    """A Trainer for a whole model."""

    def check_gradients(self) -> None:
        """Raises TrainingError if nothing learns; that some parameters of a base stand idle is no mistake."""
        if all(parameter.grad is None for parameter in self.module.parameters()):
            raise TrainingError("after the first backward pass, no parameter of the base has a gradient")

    def write_state(self, checkpoint: Path) -> None:
        """Writes the weights."""
        _save(self.module, checkpoint)

    def read_state(self, checkpoint: Path) -> None:
        """Reads the weights back, in place."""
        load_whole(self.module, checkpoint)

    def write_trained(self, folder: Path) -> None:
        """Writes the weights."""
        _save(self.module, folder)


def _save(model: nn.Module, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.cpu().contiguous() for name, tensor in _tensors(model).items()}, folder / _WEIGHTS)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """What a model's file holds: its state but for what is frozen, and for the further names of tied tensors."""
    frozen = {parameter.data_ptr() for parameter in model.parameters() if not parameter.requires_grad}
    tensors = {tensor.data_ptr(): (name, tensor) for name, tensor in reversed(model.state_dict().items())}
    return {name: tensor for pointer, (name, tensor) in tensors.items() if pointer not in frozen}
