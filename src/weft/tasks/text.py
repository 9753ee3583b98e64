"""Text: a causal language model learns completions, what an assistant says, or plain text."""

from pathlib import Path
from typing import Self

from rich.console import Console

from weft.data.text import INPUT, Columns, TextDataset, load_text
from weft.tasks.language.task import LanguageTask, in_shell, open_base
from weft.tasks.settings.text import TextRun


class TextTask(LanguageTask):
    """A run on text."""

    @classmethod
    def open(cls, config: TextRun, console: Console | None) -> Self:  # type: ignore[override] # its own settings
        base, config = open_base(config)
        columns = Columns(config.messages_column, config.prompt_column, config.completion_column, config.text_column)

        def load(source: str, split: str) -> TextDataset:
            return load_text(
                source,
                base.tokenizer,
                split=split,
                columns=columns,
                prompt=config.prompt_template or INPUT,
                max_length=config.max_length,
                long_rows=config.long_rows,
            )

        return cls.with_rows(config, base, load, console)

    def usage(self, adapter: Path) -> str:
        return "\n".join(in_shell(self.config, adapter, '--prompt "..."'))
