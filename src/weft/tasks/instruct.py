"""Instructions: a causal language model learns to follow them, in one turn or many."""

from pathlib import Path
from typing import Self

from rich.console import Console
from transformers import PreTrainedTokenizerBase

from weft.data.chat_templates import INPUT_HEADING, chat_template
from weft.data.instructions import InstructionColumns, load_instructions
from weft.data.text import TextDataset
from weft.errors import ConfigError
from weft.tasks.language.task import LanguageTask, in_shell, open_base
from weft.tasks.settings.instruct import InstructRun


class InstructTask(LanguageTask):
    """A run on instructions; its tokenizer has the template that it is trained with."""

    config: InstructRun

    @classmethod
    def open(cls, config: InstructRun, console: Console | None) -> Self:  # type: ignore[override] # its own settings
        base, config = open_base(config)
        config = _templated(config, base.tokenizer, console)
        columns = InstructionColumns(
            messages=config.messages_column,
            conversations=config.conversations_column,
            instruction=config.instruction_column,
            input=config.input_column,
            output=config.output_column,
            prompt=config.prompt_column,
            completion=config.completion_column,
            system=config.system_column,
        )

        def load(source: str, split: str) -> TextDataset:
            rows, layout = load_instructions(
                source,
                base.tokenizer,
                split=split,
                columns=columns,
                heading=INPUT_HEADING if config.template == "alpaca" else "\n\n",
                max_length=config.max_length,
                long_rows=config.long_rows,
            )
            if console is not None:
                console.print(f"{source}: the layout is {layout}", soft_wrap=True, markup=False)
            return rows

        return cls.with_rows(config, base, load, console)

    def save_beside(self, folder: Path) -> None:
        """The tokenizer, if it has got a template that the base's own does not have."""
        if self.config.template != "chat":
            self.base.tokenizer.save_pretrained(folder)

    def usage(self, adapter: Path) -> str:
        return "\n".join(in_shell(self.config, adapter, '--chat --prompt "..."'))


def _templated(config: InstructRun, tokenizer: PreTrainedTokenizerBase, console: Console | None) -> InstructRun:
    """The settings with the template that is to be used; the tokenizer gets it, and it is printed.

    Raises:
        ConfigError: the base's own template is asked for, and it has none.
    """
    own = isinstance(tokenizer.chat_template, str)
    template = config.template
    if template == "auto":
        template = "chat" if own else "plain"
    if template == "chat" and not own:
        raise ConfigError(f"template: the base {config.base!r} has no chat template; set it to 'plain' or 'alpaca'")
    if template != "chat":
        tokenizer.chat_template = chat_template(template, tokenizer)
    if console is not None:
        said = {
            "chat": "the base's own chat template",
            "plain": "weft's plain template, which is saved beside the adapter",
            "alpaca": "Stanford Alpaca's prompt, which is saved beside the adapter",
        }
        why = "" if own or config.template != "auto" else " (the base has none of its own)"
        console.print(f"conversations are written with {said[template]}{why}", soft_wrap=True)
    return config.model_copy(update={"template": template})
