"""The card of a trained adapter: base, data, settings, results, and how to use it."""

from weft.data.text import DataReport
from weft.training.config import RunConfig
from weft.training.evaluation import EvalResult
from weft.training.result import RunResult

_SHOWN = (
    "rank", "alpha", "dropout", "targets", "exclude", "layers", "rank_pattern", "alpha_pattern", "train_modules",
    "bias", "init", "variant", "scaling", "nested", "learning_rate", "schedule", "warmup", "weight_decay", "epochs",
    "max_steps", "batch_size", "gradient_accumulation", "batching", "max_length", "bf16", "seed",
)  # fmt: skip

_METRICS = (
    ("loss", "loss (nats per learned token)", "{:.4f}"),
    ("perplexity", "perplexity", "{:.3f}"),
    ("token_accuracy", "token accuracy", "{:.2%}"),
    ("rouge_l", "ROUGE-L", "{:.1f}"),
    ("chrf", "chrF", "{:.1f}"),
    ("exact_match", "exact match (%)", "{:.1f}"),
)


def metric_rows(*results: EvalResult) -> list[tuple[str, ...]]:
    """Rows of a table: the metric's name, and its value in each result; those that no result has are left out."""
    rows = []
    for key, title, form in _METRICS:
        values = [getattr(result, key) for result in results]
        if any(value is not None for value in values):
            rows.append((title, *("" if value is None else form.format(value) for value in values)))
    return rows


def card(config: RunConfig, result: RunResult, data: DataReport) -> str:
    """The card as Markdown."""
    settings = config.model_dump(mode="json")
    lines = [
        f"# {result.folder.name}: a LoRA adapter for {config.base}",
        "",
        f"Trained with weft on `{config.train}` ({data}); {result.steps:,} steps, {result.trainable:,} trained "
        f"parameters, {result.share:.2%} of the base's.",
        "",
        "## Results",
        "",
    ]
    if result.before is not None and result.after is not None:
        held_out = f"`{config.eval}`" if config.eval is not None else f"{config.eval_share:.0%} of the rows"
        lines += [f"On {result.after.rows:,} held-out rows ({held_out}):", "", "| | base | with the adapter |"]
        lines += ["|---|---|---|", *(f"| {' | '.join(row)} |" for row in metric_rows(result.before, result.after))]
        if result.best_step is not None:
            lines += ["", f"The weights are those of step {result.best_step}, the best evaluation."]
    else:
        lines += ["No data was held out, so nothing is known of how well it does on rows it has not seen."]
    lines += ["", "![losses](loss.png)", "", "## Settings", "", "| setting | value |", "|---|---|"]
    lines += [f"| {name} | {settings[name]} |" for name in _SHOWN]
    lines += [
        "",
        "All of them are in `config.yaml`; `weft train config.yaml --output ANOTHER` is the same run again.",
        "",
        "## Use",
        "",
        "```",
        f'weft generate --base {config.base} --adapter {result.adapter} --prompt "..."',
        "```",
        "",
        "```python",
        "import weft",
        "from weft.training import load_base",
        "",
        f"base = load_base({config.base!r})",
        f"weft.attach(base.model, weft.load({str(result.adapter)!r}))",
        "```",
        "",
    ]
    return "\n".join(lines)
