"""A model on disk: its files, and its shape on the meta device, without its weights."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from weft.adapter import Adapter
from weft.errors import BaseMismatchError, FormatError
from weft.fingerprint import Fingerprint, fingerprint
from weft.model.attach import attach, detach
from weft.model.modules import Survey
from weft.model.shards import Checkpoint
from weft.registry import Registry


@dataclass(frozen=True, eq=False)
class StoredModel:
    """A model on disk.

    Attributes:
        name: what it was asked for by.
        model: the model on the meta device: every module, shape and tie, no weights.
        checkpoint: its files.
        names: key of a stored tensor -> name of the parameter or buffer that it is; keys that are none as they stand
            (transformers makes one tensor of several, for some architectures) are not in it.
    """

    name: str
    model: nn.Module
    checkpoint: Checkpoint
    names: Mapping[str, str]

    @cached_property
    def survey(self) -> Survey:
        """The model's modules and parameters."""
        return Survey(self.model)

    @cached_property
    def first_names(self) -> dict[str, str]:
        """Name of a parameter or buffer -> the first of the names that it has: a tied one has several."""
        named = (self.model.named_parameters, self.model.named_buffers)
        first: dict[int, str] = {}
        return {
            name: first.setdefault(id(tensor), name) for find in named for name, tensor in find(remove_duplicate=False)
        }

    @cached_property
    def aliases(self) -> dict[str, list[str]]:
        """The first name of a parameter or buffer -> all of its names."""
        found: dict[str, list[str]] = {}
        for name, first in self.first_names.items():
            found.setdefault(first, []).append(name)
        return found

    @cached_property
    def keys(self) -> dict[str, str]:
        """Name of a parameter or buffer -> the key that it is stored by; a tied one under each of its names.

        Raises:
            FormatError: a tied weight is stored twice, with two values.
        """
        stored: dict[str, str] = {}
        for key, name in self.names.items():
            one = self.first_names[name]
            other = stored.setdefault(one, key)
            if other != key and not torch.equal(self.checkpoint.read(other), self.checkpoint.read(key)):
                raise FormatError(
                    f"{self.name}: {other} and {key} are one tied weight in this architecture, but the files in "
                    f"{self.checkpoint.folder} hold two different ones; set tie_word_embeddings to false in both "
                    "configurations if they are meant to differ"
                )
        return {name: stored[one] for name, one in self.first_names.items() if one in stored}

    def fingerprint(self) -> Fingerprint:
        """What `weft.base_fingerprint` gives for the model once it is loaded; a few pages of the files are read."""
        parameters: dict[str, Tensor] = {}
        for name, parameter in self.survey.parameters.items():
            key = self.keys.get(name)
            plain = key is not None and self.checkpoint.tensors[key].dtype is not None
            parameters[name] = self.checkpoint.read(key) if key is not None and plain else parameter
        return fingerprint(parameters)

    def check(self, adapter: Adapter, *, any_base: bool = False) -> None:
        """Finds out that an adapter fits this model; of the weights only what the fingerprint samples is read.

        Raises:
            BaseMismatchError: it was made for another base, and `any_base` is not given.
            BindingError: entries of the adapter that fit no module; all are listed.
        """
        difference = None if any_base or adapter.base is None else adapter.base.difference(self.fingerprint())
        if difference is not None:
            made_for = adapter.provenance.get("base")
            raise BaseMismatchError(
                f"this adapter was made for another base{f' ({made_for})' if made_for else ''}: in "
                f"{self.checkpoint.folder}, {difference}. Name the base that it was made for, or pass any_base "
                "(--any-base) if you know that they fit"
            )
        with warnings.catch_warnings():
            # torch: values copied to the meta device are dropped. So they are.
            warnings.simplefilter("ignore", UserWarning)
            detach(attach(self.model, adapter, any_base=True))  # binds every entry, or says which do not fit


stored_models: Registry[Callable[[str | Path, str], StoredModel]] = Registry("model library", "weft.training.skeleton")
"""Library -> what opens a model of it on disk, from what it is asked for by and the setting that says so."""
