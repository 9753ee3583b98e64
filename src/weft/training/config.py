"""`RunConfig`: everything that decides a training run, as one checked value. Imports neither torch nor transformers.

A YAML file, the flags of ``weft train`` and Python all fill in this one model. It has what every run has; each task
adds its own settings in a subclass (`weft.tasks`), flat beside these.
"""

import dataclasses
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from weft.config import LoRAConfig, Prompt
from weft.errors import ConfigError, nearest
from weft.registry import Registry

if TYPE_CHECKING:
    from weft.training.task import Task

_LORA_FIELDS = tuple(field.name for field in dataclasses.fields(LoRAConfig))


run_settings: "Registry[type[RunConfig]]" = Registry("task", home="weft.tasks")

DEFAULT_TASK = "text"

Quantize = Literal["none", "8bit"]


class RunConfig(BaseModel, ABC):
    """The settings that every training run has. A task's own class adds to them, and is registered in `run_settings`.

    Raises:
        ConfigError: an unknown setting (the message names the nearest), or a value that cannot be.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    paths: ClassVar[tuple[str, ...]] = ("base", "train", "eval")  # settings that may be a local path

    task: str = Field(
        DEFAULT_TASK, description="What is learned: the name of a task. It decides which settings follow."
    )
    base: str = Field("bundled", description="The base model: a folder, a hub id, or 'bundled'.")
    output: Path = Field(description="The run's folder: configuration, metrics, checkpoints, adapter, card.")
    stand_in: str = Field(
        "llama", description="What stands in for the base with --tiny: the name of a small generated one."
    )

    train: str = Field(
        description="Training data: a .jsonl, .csv, .tsv or .parquet file, a folder saved by datasets, or a hub id "
        "('id' or 'id:config')."
    )
    eval: str | None = Field(None, description="Held-out data, in the same forms.")
    eval_share: float | None = Field(
        None, gt=0, lt=1, description="Instead of eval: the share of the training rows to hold out."
    )
    train_split: str = Field("train", description="The split to train on, of data that has several.")
    eval_split: str = Field("test", description="The split to evaluate on, of data that has several.")

    rank: int = Field(16, ge=1, description="r, the inner size of B A.")
    alpha: float = Field(32.0, description="The numerator of the scaling alpha / r.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on the input of the adapter's branch.")
    targets: str | tuple[str, ...] = Field(
        "all-linear", description="The modules to adapt: all-linear, or patterns (a name, a glob, or re:REGEX)."
    )
    exclude: tuple[str, ...] = Field((), description="Patterns of modules to leave alone.")
    layers: tuple[int, ...] | None = Field(None, description="Indices of the blocks to adapt. Default: all.")
    rank_pattern: dict[str, int] = Field({}, description="Pattern: rank, for the modules that it matches.")
    alpha_pattern: dict[str, float] = Field({}, description="Pattern: alpha, for the modules that it matches.")
    train_modules: tuple[str, ...] = Field((), description="Patterns of whole modules to train beside the factors.")
    bias: Literal["none", "adapted", "all"] = Field("none", description="The biases to train.")
    init: str | dict[str, Any] = Field(
        "kaiming", description="How the factors start: a name, or {name: pissa, num_power_iters: 4}."
    )
    variant: str | dict[str, Any] = Field("lora", description="How the factors change the layer: a name.")
    scaling: str | dict[str, Any] = Field(
        "standard", description="How alpha and rank become the scaling: standard (alpha/r), or rank_stabilized."
    )
    companions: tuple[str | dict[str, Any], ...] = Field(
        (),
        description="Small modules to train beside the factors: prefix, bottleneck, prompt; or with settings, such as "
        "{name: prefix, length: 32}.",
    )
    nested: bool = Field(
        False,
        description="In the second half of the run, also train the ranks 1, 2, 4, ...: those of the factors' first "
        "rows and columns. So the rank can be chosen afterwards, with weft curve.",
    )

    learning_rate: float = Field(
        5e-4,
        gt=0,
        description="The peak learning rate. A good one is about ten times that of full fine-tuning, at any rank; "
        "small bases take more (1e-3 to 5e-3).",
    )
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "linear", description="The learning rate after the warmup: constant, or falling to 0."
    )
    warmup: float = Field(
        0.03, ge=0, description="Steps in which the learning rate rises from 0; below 1: that share of all steps."
    )
    weight_decay: float = Field(0.0, ge=0, description="AdamW's weight decay.")
    max_grad_norm: float = Field(1.0, ge=0, description="Clip the gradient to this norm; 0 for never.")
    epochs: float = Field(1.0, gt=0, description="Passes over the training data.")
    max_steps: int | None = Field(None, ge=1, description="Optimizer steps in all; overrides epochs.")
    batch_size: int = Field(8, ge=1, description="Rows in a batch.")
    gradient_accumulation: int = Field(1, ge=1, description="Batches in an optimizer step.")
    gradient_checkpointing: bool = Field(
        False, description="Compute activations again in the backward pass: less memory, about a third more time."
    )
    bf16: bool | Literal["auto"] = Field(
        "auto", description="Hold the frozen base in bfloat16 (the factors stay in float32); auto: on GPUs made for it."
    )
    quantize: Quantize = Field(
        "none",
        description="Hold the frozen base's linear layers in 8 bits (bitsandbytes): a quarter of the memory that they "
        "take in float32, for slower steps.",
    )
    seed: int = Field(42, ge=0, description="The seed of the factors, the order of rows, dropout and eval_share.")

    log_every: int = Field(10, ge=1, description="Steps between two lines of metrics.")
    eval_every: int = Field(100, ge=1, description="Steps between two evaluations, if there is held-out data.")
    save_every: int = Field(100, ge=1, description="Steps between two checkpoints. The last and the best are kept.")
    early_stopping: int | None = Field(
        None, ge=1, description="Stop after this many evaluations in a row without a new best. Default: never."
    )
    keep_best: bool = Field(True, description="End with the weights of the best evaluation instead of the last step's.")
    tensorboard: bool | Literal["auto"] = Field("auto", description="Write TensorBoard events; auto: if installed.")

    def __init__(self, **values: Any) -> None:
        for key in values:
            if key not in type(self).model_fields:
                raise ConfigError(self._unknown(key))
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigError("; ".join(map(_in_words, error.errors()))) from None

    @model_validator(mode="after")
    def _fits_together(self) -> "RunConfig":
        if self.eval is not None and self.eval_share is not None:
            raise ConfigError("eval and eval_share are both given; held-out data comes from one of them")
        if self.early_stopping is not None and not self.has_eval:
            raise ConfigError("early_stopping needs held-out data: give eval or eval_share")
        self.lora()
        return self

    @property
    def has_eval(self) -> bool:
        """Whether there is held-out data."""
        return self.eval is not None or self.eval_share is not None

    @property
    def prompt_length(self) -> int:
        """Learned vectors before each row: those of the companion "prompt"."""
        return sum(companion.length for companion in self.lora().companions if isinstance(companion, Prompt))

    def lora(self) -> LoRAConfig:
        """The configuration of the adapter."""
        return LoRAConfig.from_dict({name: getattr(self, name) for name in _LORA_FIELDS})

    @classmethod
    @abstractmethod
    def implementation(cls) -> "type[Task]":
        """What runs these settings; imported at the call, since it may take seconds."""

    def resolved(self) -> Self:
        """The same run from any working folder: local paths made absolute."""
        paths = {name: _absolute(getattr(self, name)) for name in self.paths}
        return type(self)(**(self.model_dump() | paths | {"output": Path(os.path.abspath(self.output.expanduser()))}))

    def with_settings(self, changes: Mapping[str, Any]) -> Self:
        """The same run with some settings changed, checked again.

        Raises:
            ConfigError: an unknown setting, or a value that cannot be.
        """
        return type(self)(**(self.model_dump() | dict(changes)))

    def to_yaml(self) -> str:
        """Every setting, in order, as YAML that `from_yaml` reads back."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> "RunConfig":
        """A run's settings, of the class that its task has."""
        return run_settings[str(values.get("task", DEFAULT_TASK))](**values)

    @staticmethod
    def from_yaml(path: str | Path, overrides: Mapping[str, Any] | None = None) -> "RunConfig":
        """A run's settings from a YAML file; `overrides` win over the file.

        Raises:
            ConfigError: no such file, no YAML mapping in it, or settings that cannot be.
        """
        path = Path(path)
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"cannot read the run file {path}: {error.strerror}") from error
        except yaml.YAMLError as error:
            raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
        if not isinstance(values, dict):
            raise ConfigError(f"{path}: expected settings such as 'rank: 16', found {type(values).__name__}")
        try:
            return RunConfig.from_dict({str(key): value for key, value in values.items()} | dict(overrides or {}))
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None

    @classmethod
    def _unknown(cls, key: str) -> str:
        """Why a setting cannot be given to this task's runs."""
        others = [name for name in run_settings if key in run_settings[name].model_fields]
        if others:
            task = cls.model_fields["task"].default
            return f"the task {task!r} has no setting {key!r}; it belongs to the task {' or '.join(map(repr, others))}"
        return f"unknown setting {key!r}{nearest(key, cls.model_fields)}"


def _absolute(value: str | None) -> str | None:
    if value is None or not Path(value).expanduser().exists():
        return value
    return os.path.abspath(Path(value).expanduser())


def _in_words(error: Any) -> str:
    """One of pydantic's errors as the setting, what was expected, and what was found."""
    if error["type"] == "value_error":  # one of ours, whole already
        return str(error["ctx"]["error"])
    name = str(error["loc"][0]) if error["loc"] else "settings"
    if error["type"] == "missing":
        return f"the setting {name!r} is missing"
    message = error["msg"].removeprefix("Input should be ").removeprefix("a valid ")
    return f"{name}: expected {message}, found {error['input']!r}"
