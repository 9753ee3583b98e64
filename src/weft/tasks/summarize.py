"""Summaries: a decoder or an encoder-decoder learns to write a short text for a long one."""

from pathlib import Path
from typing import Self

from rich.console import Console
from transformers import PreTrainedConfig

from weft.data.pairs import PairColumns, load_pairs
from weft.data.seq2seq import load_seq2seq
from weft.data.text import INPUT
from weft.tasks.language.task import LanguageTask, Rows, in_shell, open_base
from weft.tasks.settings.summarize import SummarizeRun

_T5 = ("t5", "mt5", "umt5", "longt5")


class SummarizeTask(LanguageTask):
    """A run on summaries; what the model reads is the input in the wording of its template."""

    config: SummarizeRun

    @classmethod
    def open(cls, config: SummarizeRun, console: Console | None) -> Self:  # type: ignore[override] # its own settings
        base, config = open_base(config, encoder_decoders=True)
        if config.prompt_template is None:
            config = config.model_copy(update={"prompt_template": default_template(base.model.config)})
            if console is not None:
                console.print(f"prompt_template: {config.prompt_template!r}", soft_wrap=True, markup=False)
        names = config.summary_column
        columns = PairColumns(config.input_column, (names,) if isinstance(names, str) else names)

        def load(source: str, split: str) -> Rows:
            read = load_seq2seq if base.model.config.is_encoder_decoder else load_pairs
            return read(
                source,
                base.tokenizer,
                columns,
                prompt=config.prompt_template or INPUT,
                split=split,
                max_length=config.max_length,
                long_rows=config.long_rows,
            )

        return cls.with_rows(config, base, load, console)

    def usage(self, adapter: Path) -> str:
        base, held, template = self.config.base, self.config.quantize, self.config.prompt_template or INPUT
        if not self.base.model.config.is_encoder_decoder:
            prompt = template.replace(INPUT, "...").replace("\n", "\\n")
            return "\n".join(in_shell(self.config, adapter, f"--prompt $'{prompt}'"))
        return "\n".join(
            [
                "```python",
                "import weft",
                "from weft.tasks.language.generation import generate_texts",
                "from weft.training import load_base",
                "",
                f"base = load_base({base!r}{'' if held == 'none' else f', quantize={held!r}'}, encoder_decoders=True)",
                f"weft.attach(base.model, weft.load({str(adapter)!r}))",
                f'ids = base.tokenizer({template!r}.replace("{INPUT}", "..."))["input_ids"]',
                "print(generate_texts(base.model, base.tokenizer, [ids])[0])",
                "```",
            ]
        )


def default_template(config: PreTrainedConfig) -> str:
    """What the model is asked with: T5 was trained with a prefix, other encoder-decoders without any words."""
    if config.model_type in _T5:
        return f"summarize: {INPUT}"
    if config.is_encoder_decoder:
        return INPUT
    return f"Summarize the following text.\n\n{INPUT}\n\nSummary:\n"
