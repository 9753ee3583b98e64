"""The prompt of an attached adapter, laid before the ids of a row."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from torch import nn

from weft.companions.prompt import PromptLayer, PromptPart
from weft.config import Prompt
from weft.data.prompts import Rows, head_of, lay_at, lay_labels, lay_prompt
from weft.errors import StateError
from weft.model.modules import adapted_modules
from weft.model.state import has_state, require_adapter, state_of


def prompt_ids(model: nn.Module, name: str | None = None) -> range:
    """The ids that stand for an adapter's prompt: those after the input embedding's own. Empty if there is none.

    Args:
        model: a model with adapters attached.
        name: the adapter; None for the active one that has a prompt.

    Raises:
        StateError: no adapter of this name is attached.
    """
    if name is None and not has_state(model):
        return range(0)
    state = state_of(model)
    names = list(state.active) if name is None else [name]
    for each in names:
        require_adapter(state, each)
    names = [each for each in names if any(isinstance(c, Prompt) for c in state.adapters[each].config.companions)]
    for path, module in adapted_modules(model) if names else ():
        part = next((module.adapters[each] for each in names if each in module.adapters), None)
        if isinstance(module, PromptLayer) and isinstance(part, PromptPart):
            first = model.get_submodule(path.rpartition(".")[0]).num_embeddings
            assert isinstance(first, int)
            return range(first, first + len(part.vectors))
    return range(0)


def with_prompt(
    model: nn.Module, ids: Sequence[int], name: str | None = None, *, special: Collection[int] = ()
) -> list[int]:
    """The ids of one row, not padded, with the prompt of an attached adapter before them.

    Args:
        model: a model with an adapter attached that has a prompt.
        ids: the row's.
        name: the adapter; None for the active one that has a prompt.
        special: ids of special tokens (``tokenizer.all_special_ids``): if the row starts with one, which marks its
            beginning, the prompt stands behind that one.

    Raises:
        StateError: nothing is attached, or not under this name, or it has no prompt.
    """
    prompt = prompt_ids(model, name)
    if not prompt:
        raise StateError(
            f"{'no active adapter' if name is None else repr(name)} has a prompt; attach one with "
            "LoRAConfig(companions=(Prompt(length=20),)), or activate it"
        )
    return lay_prompt(prompt, ids, special)


@dataclass(frozen=True, eq=False)
class LayPrompt:
    """Lays the prompt of the active adapter, if it has one, into the rows of a batch: what a collator calls.

    Attributes:
        model: the model.
        special: as in `with_prompt`.
        ignored: the label of what is not learned, where the rows have a label for each id; None where they have none.
    """

    model: nn.Module
    special: Collection[int] = ()
    ignored: int | None = None

    def __call__(self, rows: Rows) -> Rows:
        prompt = prompt_ids(self.model)
        if not prompt:
            return rows
        laid = []
        for row in rows:
            head = head_of(row["input_ids"], self.special)
            new = {**row, "input_ids": lay_at(head, prompt, row["input_ids"])}
            if self.ignored is not None:
                new["labels"] = lay_labels(head, len(prompt), row["labels"], self.ignored)
            if "token_type_ids" in row:  # of two texts, the prompt stands in the first
                new["token_type_ids"] = lay_at(head, [0] * len(prompt), row["token_type_ids"])
            laid.append(new)
        return laid
