"""Prompt tuning: learned vectors before the input, as rows that the input embedding has beyond its table.

The ids V to V + n - 1 of a table of V rows are answered from the adapter's n. Laid before a row's own ids, they pass
through padding, packing, masks, position ids and a cache as any others do.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from weft.companions.part import part_for
from weft.config import Companion, Prompt
from weft.errors import StateError, TargetError
from weft.nn import CompanionLayer, CompanionPart, Site
from weft.patterns import matches, nothing_matched


@runtime_checkable
class _ReadsInput(Protocol):
    """What transformers' models say of what reads their input."""

    def get_input_embeddings(self) -> nn.Module: ...


@runtime_checkable
class _HasEncoder(Protocol):
    def get_encoder(self) -> nn.Module: ...


class PromptLayer(CompanionLayer):
    """Answers for the ids beyond an embedding's table with the active adapter's rows."""

    sums = False

    def hooks(self, site: Site) -> Iterator[RemovableHandle]:
        yield site.layer.register_forward_pre_hook(self.before)  # after all others: the ids as the table gets them
        yield site.layer.register_forward_hook(self.after, prepend=True)

    def before(self, embedding: nn.Embedding, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        """Keeps the ids, (..., T), and gives the embedding such that it has.

        Raises:
            StateError: there are ids of a prompt, and no adapter with one is active. On a GPU, where looking would
                cost time, the embedding itself fails.
        """
        ids, *others = inputs
        own = embedding.num_embeddings
        if self.active:
            self.__dict__["ids"] = ids
            return (ids.where(ids < own, 0), *others)
        if ids.device.type == "cpu" and ids.numel() and int(ids.max()) >= own:
            raise StateError(
                f"the input has id {int(ids.max())}, of a prompt, and no adapter with a prompt is active; activate "
                "one, or give the input without"
            )
        return None

    def after(self, embedding: nn.Embedding, inputs: Any, output: Tensor) -> Tensor | None:
        """What the embedding is to answer instead."""
        return self(self.__dict__.pop("ids") - embedding.num_embeddings, output) if self.active else None

    def forward(self, rows: Tensor, embedded: Tensor) -> Tensor:
        """embedded (..., T, d), with the prompt's vectors where `rows`, (..., T), is not negative."""
        for part, _ in self.parts():  # one at most: `weft.activate` sees to that
            embedded = torch.where(rows[..., None] >= 0, part(rows.clamp(min=0)).to(embedded.dtype), embedded)
        return embedded


class PromptPart(CompanionPart):
    """vectors (length, d)."""

    layer_type = PromptLayer
    needs_base = True
    vectors: Tensor

    @classmethod
    def sites(cls, settings: Companion, modules: Mapping[str, nn.Module]) -> dict[str, Site]:
        assert isinstance(settings, Prompt)
        tables = {path: module for path, module in modules.items() if isinstance(module, nn.Embedding)}
        if settings.embedding is not None:
            found = [path for path in tables if matches(settings.embedding, path)]
            if not found:
                raise nothing_matched("prompt: embedding", settings.embedding, tables)
        else:
            known = _input_embedding(modules[""])
            found = [path for path, module in tables.items() if module is known]
            if not found:
                raise TargetError(
                    f"prompt: this {type(modules['']).__name__} does not say that an embedding of tokens reads its "
                    "input, and learned vectors can stand before tokens alone; if one does, name it, "
                    'Prompt(embedding="embed_tokens")'
                )
        return {path: Site(path, tables[path]) for path in found}

    @classmethod
    def shapes(cls, settings: Companion, site: Site) -> dict[str, tuple[int, ...]]:
        assert isinstance(settings, Prompt)
        assert isinstance(site.layer, nn.Embedding)
        return {"vectors": (settings.length, site.layer.embedding_dim)}

    def start(self, site: Site | None) -> None:
        """The vectors of tokens drawn at random (Lester et al., 2021, section 3.2)."""
        assert site is not None
        assert isinstance(site.layer, nn.Embedding)
        length, table = self.vectors.shape[0], site.layer
        drawn = torch.randint(table.num_embeddings, (1, length), device=table.weight.device)
        self.vectors.copy_(table(drawn)[0])

    def forward(self, rows: Tensor) -> Tensor:
        """The vectors of these rows, (..., d)."""
        return F.embedding(rows, self.vectors)


@part_for.register
def _(settings: Prompt) -> type[CompanionPart]:
    return PromptPart


def _input_embedding(model: nn.Module) -> nn.Module | None:
    """The embedding of tokens that reads a model's input: its encoder's, if it has one that reads tokens."""
    readers = [model.get_encoder()] if isinstance(model, _HasEncoder) else []
    for reader in [*readers, model]:
        try:
            found = reader.get_input_embeddings() if isinstance(reader, _ReadsInput) else None
        except (NotImplementedError, AttributeError):  # how some transformers models say that they have none
            continue
        if isinstance(found, nn.Embedding):
            return found
    return None
