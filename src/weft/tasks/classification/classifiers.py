"""Loading a base with a head that tells labels apart: any encoder, decoder or encoder-decoder that has such a class."""

import inspect
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from weft.data.text import context_length, pad_id
from weft.errors import ConfigError
from weft.training.base import checked_path, reason


@dataclass(frozen=True)
class Classifier:
    """A base with a head, in evaluation mode.

    Attributes:
        model: answers with logits, (rows, labels).
        heads: the paths of the modules above the base, and of those that the base's files did not have.
        new: of these, the ones that the files did not have, and that chance filled in.
    """

    model: PreTrainedModel
    heads: tuple[str, ...]
    new: tuple[str, ...]

    @property
    def tells_texts_apart(self) -> bool:
        """Whether the model is told which of two texts a token is in."""
        return "token_type_ids" in inspect.signature(self.model.forward).parameters

    @property
    def context(self) -> int | None:
        """The longest row, in tokens, that the model can take; None if it names no limit."""
        context = context_length(self.model)
        for name, module in self.model.named_modules():
            learned = isinstance(module, nn.Embedding) and name.endswith("position_embeddings")
            if context is not None and learned and module.padding_idx is not None:
                return context - module.padding_idx - 1  # RoBERTa's kind counts positions from behind its padding's
        return context


def load_tokenizer(name: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a base.

    Raises:
        ConfigError: there is no such folder, or transformers cannot load what is there.
    """
    path = checked_path(name)
    try:
        return AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"base: transformers cannot load a tokenizer from {path!r}: {reason(error)}") from error


def in_order_of(name: str | Path, labels: Sequence[str]) -> tuple[str, ...]:
    """The labels, in the order that a base's head has them in, if it has these very ones; else in their own.

    Raises:
        ConfigError: there is no such folder, or transformers cannot load what is there.
    """
    path = checked_path(name)
    try:
        known = AutoConfig.from_pretrained(path).id2label
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"base: transformers cannot load a configuration from {path!r}: {reason(error)}") from error
    ordered = tuple(known[index] for index in sorted(known))
    return ordered if sorted(ordered) == sorted(labels) else tuple(labels)


def load_classifier(
    name: str | Path,
    labels: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Classifier:
    """Loads a base with a head for these labels.

    Args:
        name: a folder, a hub id, or ``bundled``.
        labels: the labels, in the order of the head's outputs; the model's configuration gets them.
        tokenizer: the base's; the model's configuration gets its padding token.
        dtype: the weights' dtype.
        seed: of a new head's weights; the global generator is left as it is.

    Raises:
        ConfigError: there is no such folder, or transformers has no class that puts a head on what is there.
    """
    path = checked_path(name)
    try:
        with _quiet(), torch.random.fork_rng():
            torch.manual_seed(seed)
            model, info = AutoModelForSequenceClassification.from_pretrained(
                path,
                dtype=dtype,
                id2label=dict(enumerate(labels)),
                label2id={label: index for index, label in enumerate(labels)},
                problem_type="single_label_classification",
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"base: transformers cannot load {path!r} as a sequence classifier: {reason(error)}"
        ) from error
    for config in (model.config, model.config.get_text_config()):
        config.pad_token_id = pad_id(tokenizer)  # a decoder looks for the last token before the padding
    missing = {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}
    new = _wholly(model, missing)
    above = [
        path
        for path, child in model.named_children()
        if path != model.base_model_prefix and any(True for _ in child.parameters())
    ]
    return Classifier(model.eval(), tuple(_outermost([*above, *new])), tuple(new))


def _wholly(model: nn.Module, missing: Collection[str]) -> list[str]:
    """The outermost modules of which every parameter is missing."""
    found = []
    for path, module in model.named_modules():
        names = [f"{path}.{name}" for name, _ in module.named_parameters()]
        called = type(module).forward is not nn.Module.forward  # and no mere list of modules
        if path and called and names and all(name in missing for name in names):
            found.append(path)
    return _outermost(found)


def _outermost(paths: Sequence[str]) -> list[str]:
    return [path for path in dict.fromkeys(paths) if not any(path.startswith(f"{other}.") for other in paths)]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' report of what is new: it is known, and will be trained."""
    was = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(was)
