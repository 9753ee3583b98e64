"""`run`: a training run from its settings to the adapter in its folder. The loop is transformers' Trainer."""

import dataclasses
import importlib.util
import os
import shutil
import time
from contextlib import nullcontext
from typing import Any

import torch
from rich.console import Console
from transformers import (
    EarlyStoppingCallback,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from weft.analysis.plots import plot_losses
from weft.data.packed import PackedCollator
from weft.data.text import Collator, Columns, TextDataset, context_length, load_text, pad_id
from weft.errors import ConfigError, TrainingError
from weft.model import attach, collect, plan
from weft.model.plan import Plan
from weft.training.allocator import keep_freed_memory
from weft.training.base import Base, load_base
from weft.training.card import card
from weft.training.checkpoint import latest, remove_incomplete, step_of
from weft.training.config import RunConfig
from weft.training.evaluation import EvalResult, evaluate
from weft.training.folder import FINAL, RunFolder, write_whole
from weft.training.frozen_blocks import FrozenBlocks
from weft.training.frozen_cache import Collate, FrozenCache, frozen_cache
from weft.training.packing import obstacle, packing
from weft.training.progress import LogBeforeSaving, MetricsWriter, ProgressBar, StepTimer
from weft.training.result import RunResult
from weft.training.trainer import AdapterTrainer

__all__ = ["run"]


def run(
    config: RunConfig, *, resume: bool = False, overwrite: bool = False, console: Console | None = None
) -> RunResult:
    """Trains an adapter as the settings say, and leaves everything in ``config.output``.

    On the CPU, a run that was killed at any moment and resumed ends in the same weights, bit for bit.

    Args:
        config: the settings.
        resume: continue the run in ``config.output`` from its newest checkpoint, or from the start if it has none.
        overwrite: replace a run that is there.
        console: where to show progress; None shows nothing.

    Raises:
        ConfigError: settings that do not fit the base, a folder that is taken, or a resumed run with other settings.
        DataError: data that cannot be used.
        TargetError: a pattern that matches nothing, or a module that cannot be adapted.
        TrainingError: the run would train nothing, went wrong, or the disk did not take it. A run that fails before
            its first checkpoint leaves nothing behind.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            "weft train runs in one process; under torchrun, use weft.training.AdapterTrainer in a script of your own"
        )
    config = config.resolved()
    folder = RunFolder(config.output)
    bf16 = _bf16(config)
    base = load_base(config.base, dtype=torch.bfloat16 if bf16 else torch.float32)
    if not torch.cuda.is_available():
        keep_freed_memory()
    config = config.model_copy(update={"bf16": bf16, "max_length": _max_length(config, base)})
    train_data, eval_data = _data(config, base)
    batching, reason = _batching(config, base, train_data)
    if reason is not None and console is not None:
        console.print(f"batches are padded, and sorted by length, not packed: {reason}")
    config = config.model_copy(update={"batching": batching})
    if resume:
        _check_same(config, folder)
    planned = plan(base.model, config.lora())  # before the folder is made, so that a wrong pattern leaves no trace
    if not resume:
        folder.start(config, overwrite=overwrite)
    try:
        return _run(config, folder, base, planned, train_data, eval_data, console)
    except Exception as error:
        kept = latest(folder.checkpoints)
        if kept is None and not resume:
            folder.clear()
        reason = _reason(error, folder)
        if reason is None:
            raise
        raise TrainingError(reason + (f" (the last good checkpoint is {kept})" if kept else "")) from error


def _run(
    config: RunConfig,
    folder: RunFolder,
    base: Base,
    planned: Plan,
    train_data: TextDataset,
    eval_data: TextDataset | None,
    console: Console | None,
) -> RunResult:
    set_seed(config.seed)
    attach(base.model, config.lora())
    if not config.cache_frozen:
        return _train(config, folder, base, planned, train_data, eval_data, None, console)
    with (
        packing(base.model) if config.batching == "packed" else nullcontext(),
        frozen_cache(
            FrozenBlocks(base.model),
            [train_data] if eval_data is None else [train_data, eval_data],
            _collator(config, base),
            folder.frozen_states,
            batch_size=config.batch_size,
            console=console,
        ) as cache,
    ):
        train_data, eval_data = cache.datasets[0], cache.datasets[1] if eval_data else None
        result = _train(config, folder, base, planned, train_data, eval_data, cache, console)
    shutil.rmtree(folder.frozen_states, ignore_errors=True)
    return result


def _train(
    config: RunConfig,
    folder: RunFolder,
    base: Base,
    planned: Plan,
    train_data: TextDataset,
    eval_data: TextDataset | None,
    cache: FrozenCache | None,
    console: Console | None,
) -> RunResult:
    remove_incomplete(folder.checkpoints)
    checkpoint = latest(folder.checkpoints)
    folder.rewind(step_of(checkpoint) if checkpoint else -1)

    timer = StepTimer()
    bar = ProgressBar(console) if console is not None else None
    trainer = _RunTrainer(config, folder, base, train_data, eval_data, cache, [timer, *([bar] if bar else [])])
    if trainer.head is None and console is not None:
        console.print("the loss is taken from all learned logits of a batch at once: it is more than the head's output")
    before = _first_evaluation(trainer, folder, resumed=checkpoint is not None)
    start = time.perf_counter()
    try:
        output = trainer.train(str(checkpoint) if checkpoint else None)
    finally:
        if bar:
            bar.close()
    seconds = time.perf_counter() - start
    best_step = trainer.load_best() if config.keep_best else None

    after = trainer.score() if eval_data else None
    if after is not None:
        folder.log({"step": output.global_step, FINAL: True, **_prefixed(after)})
    losses = [line["loss"] for line in folder.lines() if "loss" in line]
    adapter = collect(base.model)
    provenance = {**adapter.provenance, "base": config.base, "data": config.train, "steps": output.global_step}
    dataclasses.replace(adapter, provenance=provenance).save(folder.adapter)
    result = RunResult(
        folder=folder.root,
        adapter=folder.adapter,
        before=before,
        after=after,
        train_data=train_data.report,
        eval_data=eval_data.report if eval_data else None,
        steps=output.global_step,
        best_step=best_step,
        seconds=seconds,
        seconds_per_step=timer.seconds / timer.steps if timer.steps else None,
        train_loss=losses[-1] if losses else None,
        trainable=planned.parameters,
        share=planned.share,
    )
    plot_losses({folder.root.name: [line for line in folder.lines() if FINAL not in line]}, folder.plot)
    write_whole(folder.card, card(config, result, train_data.report))
    return result


class _RunTrainer(AdapterTrainer):
    """The Trainer of a run: its arguments from the settings, its evaluation from `weft.training.evaluate`."""

    def __init__(
        self,
        config: RunConfig,
        folder: RunFolder,
        base: Base,
        train_data: TextDataset,
        eval_data: TextDataset | None,
        cache: FrozenCache | None,
        callbacks: list[TrainerCallback],
    ) -> None:
        self.config, self.cache = config, cache
        self.tokenizer: PreTrainedTokenizerBase = base.tokenizer
        collate = _collator(config, base)
        super().__init__(
            model=base.model,
            args=_arguments(config, folder, has_eval=eval_data is not None),
            train_dataset=train_data,
            eval_dataset=eval_data,
            data_collator=collate if cache is None else cache.collator(collate),
            callbacks=[LogBeforeSaving(), MetricsWriter(folder), *callbacks, *_optional_callbacks(config, folder)],
            nested=config.nested,
        )
        self.remove_callback(PrinterCallback)

    def score(self, generate_rows: int | None = None) -> EvalResult:
        """The evaluation of the model as it is now."""
        assert isinstance(self.eval_dataset, TextDataset)
        assert isinstance(self.model, PreTrainedModel)
        return evaluate(
            self.model,
            self.tokenizer,
            self.eval_dataset,
            batch_size=self.config.batch_size,
            generate_rows=self.config.generate_rows if generate_rows is None else generate_rows,
            max_new_tokens=self.config.max_new_tokens,
            cache=self.cache,
        )

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """The evaluation during training: loss and accuracy per learned token, no answers."""
        metrics = _prefixed(self.score(generate_rows=0))
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def _arguments(config: RunConfig, folder: RunFolder, *, has_eval: bool) -> TrainingArguments:
    arguments = TrainingArguments(
        output_dir=str(folder.checkpoints),
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=config.gradient_accumulation,
        activation_checkpointing=config.gradient_checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False},
        num_train_epochs=config.epochs,
        max_steps=config.max_steps or -1,
        optim="adamw_torch_fused",
        learning_rate=config.learning_rate,
        lr_scheduler_type="constant_with_warmup" if config.schedule == "constant" else config.schedule,
        warmup_steps=config.warmup,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        train_sampling_strategy="group_by_length" if config.batching == "sorted" else "random",
        logging_steps=config.log_every,
        logging_nan_inf_filter=False,  # a loss that is not a number stops the run instead
        eval_strategy="steps" if has_eval else "no",
        eval_steps=config.eval_every,
        save_strategy="steps",
        save_steps=config.save_every,
        save_total_limit=2,
        metric_for_best_model="loss",
        greater_is_better=False,
        restore_callback_states_from_checkpoint=True,
        seed=config.seed,
        report_to="none",
        remove_unused_columns=False,  # the collator reads what the model does not
        disable_tqdm=True,
        log_level="error",
        dataloader_pin_memory=torch.cuda.is_available(),
        ddp_find_unused_parameters=False,
    )
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1  # DataParallel copies the model in every step; one run takes one GPU
    return arguments


def _optional_callbacks(config: RunConfig, folder: RunFolder) -> list[TrainerCallback]:
    callbacks: list[TrainerCallback] = []
    if config.early_stopping is not None:
        callbacks.append(EarlyStoppingCallback(config.early_stopping))
    installed = importlib.util.find_spec("tensorboard") is not None
    if config.tensorboard is True and not installed:
        raise ConfigError("tensorboard: it is not installed; pip install tensorboard, or set it to false")
    if config.tensorboard and installed:
        from torch.utils.tensorboard import SummaryWriter
        from transformers.integrations.integration_utils import TensorBoardCallback

        callbacks.append(TensorBoardCallback(SummaryWriter(str(folder.tensorboard))))
    return callbacks


def _first_evaluation(trainer: _RunTrainer, folder: RunFolder, *, resumed: bool) -> EvalResult | None:
    """The base's evaluation; that of the first start, if the run was resumed. A new adapter changes nothing yet."""
    if trainer.eval_dataset is None:
        return None
    if resumed:
        lines = [line for line in folder.lines() if line["step"] == 0 and "eval_loss" in line]
        if lines:
            fields = {field.name for field in dataclasses.fields(EvalResult)}
            found = {key.removeprefix("eval_"): value for key, value in lines[0].items()}
            return EvalResult(**{key: value for key, value in found.items() if key in fields})
        return None
    result = trainer.score()
    folder.log({"step": 0, **_prefixed(result)})
    return result


def _data(config: RunConfig, base: Base) -> tuple[TextDataset, TextDataset | None]:
    columns = Columns(config.messages_column, config.prompt_column, config.completion_column, config.text_column)

    def load(source: str, split: str) -> TextDataset:
        return load_text(
            source,
            base.tokenizer,
            split=split,
            columns=columns,
            max_length=config.max_length,
            long_rows=config.long_rows,
        )

    train_data = load(config.train, config.train_split)
    if config.eval is not None:
        return train_data, load(config.eval, config.eval_split)
    if config.eval_share is not None:
        return train_data.split(config.eval_share, config.seed)
    return train_data, None


def _bf16(config: RunConfig) -> bool:
    """Whether to hold the base in bfloat16: as asked, or where the GPU computes in it natively."""
    if config.bf16 == "auto":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return config.bf16


def _batching(config: RunConfig, base: Base, data: TextDataset) -> tuple[str, str | None]:
    """How batches are made, and why they are not packed where they would be if the base could take it."""
    if config.batching not in ("auto", "packed"):
        return config.batching, None
    reason = obstacle(base.model, data.longest)
    if reason is None:
        return "packed", None
    if config.batching == "packed":
        raise ConfigError(f"batching: this base cannot take packed batches: {reason}; set it to 'auto' or 'sorted'")
    return "sorted", reason


def _collator(config: RunConfig, base: Base) -> Collate:
    return PackedCollator() if config.batching == "packed" else Collator(pad_id(base.tokenizer))


def _max_length(config: RunConfig, base: Base) -> int | None:
    context = context_length(base.model)
    if config.max_length is not None and context is not None and config.max_length > context:
        raise ConfigError(f"max_length: {config.max_length} tokens are more than the base's context holds ({context})")
    return context if config.max_length is None else config.max_length


def _check_same(config: RunConfig, folder: RunFolder) -> None:
    """Raises ConfigError unless the folder holds a run with these very settings."""
    if not folder.config.is_file():
        raise ConfigError(f"there is no run to resume in {folder.root}: it has no config.yaml")
    saved = RunConfig.from_yaml(folder.config).model_dump()
    given = config.model_dump(exclude={"output"})  # the folder may have been moved
    changed = [f"{name} was {saved[name]!r}, is {given[name]!r}" for name in given if given[name] != saved[name]]
    if changed:
        raise ConfigError(
            f"the run in {folder.root} has other settings, and resumed with these it would become another run: "
            f"{'; '.join(changed)}. Resume it with 'weft train --resume {folder.root}', or start a new one"
        )


def _reason(error: Exception, folder: RunFolder) -> str | None:
    """What went wrong, for the errors that a run's settings or its disk can cause; None for any other."""
    if isinstance(error, TrainingError):
        return str(error)
    if isinstance(error, torch.OutOfMemoryError):
        return (
            "the device has too little memory for this run; lower batch_size (and raise gradient_accumulation by as "
            "much), turn gradient_checkpointing on, or lower max_length"
        )
    return f"cannot write the run's folder {folder.root}: {error}" if isinstance(error, OSError) else None


def _prefixed(result: EvalResult) -> dict[str, Any]:
    return {f"eval_{key}": value for key, value in result.to_dict().items() if value is not None}
