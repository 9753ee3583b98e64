"""A run's settings as transformers' Trainer takes them: arguments and callbacks."""

import importlib.util

import torch
from transformers import EarlyStoppingCallback, TrainerCallback, TrainingArguments

from weft.errors import ConfigError
from weft.training.folder import RunFolder
from weft.training.task import Task


def arguments(task: Task, folder: RunFolder, *, best_only: bool = False, autocast: bool = False) -> TrainingArguments:
    """The Trainer's arguments.

    Args:
        task: the opened run.
        folder: its folder.
        best_only: keep the weights of the best evaluation, if the settings ask for them, and nothing to resume from.
        autocast: compute in bfloat16 what may be.
    """
    config = task.config
    saving = "steps"
    if best_only:
        saving = "best" if config.keep_best and task.eval_data is not None else "no"
    best = next(metric for metric in task.metrics if metric.key == task.best)
    made = TrainingArguments(
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
        train_sampling_strategy=task.sampling,
        logging_steps=config.log_every,
        logging_nan_inf_filter=False,  # a loss that is not a number stops the run instead
        eval_strategy="no" if task.eval_data is None else "steps",
        eval_steps=config.eval_every,
        save_strategy=saving,
        save_steps=config.save_every,
        save_total_limit=1 if best_only else 2,
        save_only_model=best_only,
        bf16=autocast,
        use_cpu=autocast and not torch.cuda.is_available(),  # it wants to be told
        metric_for_best_model=best.key,
        greater_is_better=best.greater_is_better,
        restore_callback_states_from_checkpoint=True,
        seed=config.seed,
        report_to="none",
        remove_unused_columns=False,  # the collator reads what the model does not
        disable_tqdm=True,
        log_level="error",
        dataloader_pin_memory=torch.cuda.is_available(),
        ddp_find_unused_parameters=False,
    )
    if made.n_gpu > 1:
        made._n_gpu = 1  # DataParallel copies the model in every step; one run takes one GPU
    return made


def optional_callbacks(task: Task, folder: RunFolder) -> list[TrainerCallback]:
    """Early stopping and TensorBoard, if they are wanted.

    Raises:
        ConfigError: TensorBoard is wanted and not installed.
    """
    config = task.config
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
