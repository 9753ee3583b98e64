"""A whole training run: `weft train` against transformers' Trainer with peft, on the same rows.

    python -m benchmarks.train [quick] [--rows FILE.jsonl]

Same rows, same number of optimizer steps, rank, alpha, learning rate and batch size; every run in a process of its own.
The peer runs at its defaults (random order, padded to the longest of the batch, fused AdamW), and at the best settings
that its user can choose: rows of like length together. In bfloat16 the base is bfloat16; the peer's Trainer
computes under autocast, and its factors stay in float32. Evaluation is outside the time, and the same for all.

Rows are prompts and completions, chat messages or plain text; without any given, the functions of Python's standard
library with what they do, as in `weft demo`.
"""

import random
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import peft
import torch
from transformers import (
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    LlamaForCausalLM,
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.utils import logging

import weft
from benchmarks.harness import Case, Options, PeakMemory, device, in_fresh_process, main
from benchmarks.models import ALPHA, linear_layers, llama
from benchmarks.records import Figures, Setting
from weft.data.text import TextDataset, context_length, load_text
from weft.demo.stdlib import functions
from weft.demo.tasks import SUMMARIZE
from weft.tasks import TextRun, evaluate
from weft.training import load_base, run

RANK, BATCH, LEARNING_RATE = 16, 8, 1e-3
PEER, PEER_AT_BEST = "peft", "peft, best settings"
BASES = ("bundled", "39M")


@dataclass(frozen=True)
class Run:
    """What every variant trains.

    Attributes:
        base: the folder of the base model.
        train, eval: JSONL files.
        dtype: the base's.
        seed: of the factors and the order of rows.
    """

    base: Path
    train: Path
    eval: Path
    dtype: str
    seed: int


def train(variant: str, job: Run) -> dict[str, float]:
    """Trains one variant; its label tokens a second, peak of memory over the loaded model, and held-out loss.

    The peak is over what was in use before the base was loaded, less the bytes of the base's weights.
    """
    warnings.simplefilter("ignore")
    logging.disable_progress_bar()
    load_base(job.base)  # so that what is imported and cached at first use is there before the measuring begins
    memory = PeakMemory()
    with tempfile.TemporaryDirectory() as folder:
        model, seconds, data = (_weft if variant == "weft" else _peer)(variant, job, Path(folder))
        peak = memory.over_start()
    base = load_base(job.base, dtype=getattr(torch, job.dtype))
    peak -= sum(parameter.nbytes for parameter in base.model.parameters())
    after = evaluate(model, base.tokenizer, _data(job.eval, model, job.base)).loss
    before = evaluate(base.model.to(device()), base.tokenizer, _data(job.eval, model, job.base)).loss
    return {
        "label_tokens_per_second": data.report.label_tokens / seconds,
        "peak_bytes": peak,
        "loss_before": before,
        "loss_after": after,
    }


def _weft(variant: str, job: Run, folder: Path) -> tuple[PreTrainedModel, float, TextDataset]:
    config = TextRun(
        base=str(job.base),
        output=folder / "run",
        train=str(job.train),
        rank=RANK,
        alpha=ALPHA,
        batch_size=BATCH,
        learning_rate=LEARNING_RATE,
        warmup=0,
        bf16=job.dtype == "bfloat16",
        seed=job.seed,
        tensorboard=False,
    )
    result = run(config)
    model = load_base(job.base, dtype=getattr(torch, job.dtype)).model.to(device())
    weft.attach(model, weft.load(result.adapter))
    return model, result.seconds, _data(job.train, model, job.base)


def _peer(variant: str, job: Run, folder: Path) -> tuple[PreTrainedModel, float, TextDataset]:
    base = load_base(job.base, dtype=getattr(torch, job.dtype))
    data = _data(job.train, base.model, job.base)
    set_seed(job.seed)
    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=linear_layers(base.model), task_type="CAUSAL_LM")
    model = peft.get_peft_model(base.model, config)
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=BATCH,
        num_train_epochs=1,
        learning_rate=LEARNING_RATE,
        bf16=job.dtype == "bfloat16",
        seed=job.seed,
        use_cpu=device() == "cpu",  # bf16 wants to be told
        report_to="none",
        disable_tqdm=True,
        train_sampling_strategy="group_by_length" if variant == PEER_AT_BEST else "random",
        optim="adamw_torch_fused",  # the default where torch has it
    )
    collate = DataCollatorForSeq2Seq(base.tokenizer)
    trainer = Trainer(model=model, args=arguments, train_dataset=data, data_collator=collate)
    trainer.remove_callback(PrinterCallback)
    start = time.perf_counter()
    trainer.train()
    return model, time.perf_counter() - start, data


def _data(rows: Path, model: PreTrainedModel, base: Path) -> TextDataset:
    return load_text(rows, AutoTokenizer.from_pretrained(base), max_length=context_length(model))


def measure(
    base: str, dtype: str, rows: Path | None, sizes: tuple[int, int], variants: tuple[str, ...], rounds: int
) -> Figures:
    """Trains every variant once a round, each round with another seed."""
    figures: Figures = {variant: {} for variant in variants}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        files = write_rows(rows, folder, sizes)
        path = weft.bundled_base() if base == "bundled" else write_base(base, folder / "base")
        for seed in range(rounds):
            for variant in variants:
                found = in_fresh_process(train, variant, Run(path, *files, dtype, seed))
                for quantity, value in found.items():
                    figures[variant].setdefault(quantity, []).append(value)
    return figures


def write_rows(rows: Path | None, folder: Path, sizes: tuple[int, int]) -> tuple[Path, Path]:
    """Files of rows to train and to evaluate on, the very same for all, chosen at random from what is given."""
    if rows is None:
        files = SUMMARIZE.write(functions(), folder, 10**6)
        train, held_out = (file.read_text(encoding="utf-8").splitlines() for file in files)
    else:
        lines = rows.read_text(encoding="utf-8").splitlines()
        random.Random(0).shuffle(lines)
        train, held_out = lines[: sizes[0]], lines[sizes[0] :]
    paths = folder / "train.jsonl", folder / "eval.jsonl"
    for path, lines, size in zip(paths, (train, held_out), sizes, strict=True):
        path.write_text("\n".join(lines[:size]) + "\n", encoding="utf-8")
    return paths


def write_base(size: str, folder: Path) -> Path:
    """A random Llama with a vocabulary of 32,000, and the bundled base's tokenizer, whose ids are fewer."""
    config = {"39M": llama(512, 1792, 8, 8, 32000), "tiny": llama(32, 64, 2, 2, 32000)}[size]()
    tokenizer = AutoTokenizer.from_pretrained(weft.bundled_base())
    config.pad_token_id, config.eos_token_id, config.bos_token_id = tokenizer.pad_token_id, tokenizer.eos_token_id, None
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def cases(options: Options) -> Iterator[Case]:
    """Both bases, in float32 and bfloat16."""
    full = options.effort == "full"
    sizes, rounds = ((128, 64), 2) if full else ((8, 4), 1)
    variants = ("weft", PEER, PEER_AT_BEST) if full else ("weft", PEER)
    data = "standard library" if options.rows is None else options.rows.stem
    for base in BASES if full else BASES[:1]:
        for dtype in ("float32", "bfloat16") if full else ("float32",):
            setting: Setting = {
                "base": base,
                "dtype": dtype,
                "data": data,
                "rows": sizes[0],
                "rank": RANK,
                "device": device(),
            }

            def case(base: str = base, dtype: str = dtype) -> Figures:
                return measure(base, dtype, options.rows, sizes, variants, rounds)

            yield Case("train", setting, case)


if __name__ == "__main__":
    main(cases)
