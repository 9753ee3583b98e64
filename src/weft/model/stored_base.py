"""A base in its files: whether it is the one that an adapter was made for, and its weights, one at a time."""

import copy
import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from weft.adapter import Adapter
from weft.errors import BaseMismatchError, BindingError
from weft.fingerprint import Fingerprint, fingerprint
from weft.model.attach import attach, detach
from weft.model.modules import base_modules, sharing
from weft.model.shards import Checkpoint
from weft.model.state import base_fingerprint
from weft.nn import layer_kind_of


def check_files(model: nn.Module, names: Mapping[str, str], source: Checkpoint, adapter: Adapter) -> None:
    """Raises BaseMismatchError if the files are not the base that the adapter was made for.

    Args:
        model: the base on the meta device.
        names: key of a stored tensor -> name of the model's parameter or buffer that it is.
        source: the base's files.
        adapter: the adapter.
    """
    if adapter.base is None:
        return
    # The files' own values at the places that the fingerprint samples: a few pages of each are read.
    stored = {name: key for key, name in names.items() if source.tensors[key].dtype is not None}
    sampled = fingerprint({name: source.read(stored[name]) for name in adapter.base.samples if name in stored})
    here = base_fingerprint(model)
    difference = adapter.base.difference(Fingerprint(here.structure, here.names, sampled.samples))
    if difference is not None:
        made_for = adapter.provenance.get("base")
        raise BaseMismatchError(
            f"this adapter was made for another base{f' ({made_for})' if made_for else ''}: in {source.folder}, "
            f"{difference}. Name the base that it was made for, or pass any_base (--any-base) if you know that they fit"
        )


@dataclass(frozen=True)
class StoredWeights:
    """The weights that an adapter changes, read from the base's files one at a time.

    Attributes:
        model: the base on the meta device.
        source: its files.
        keys: adapted module -> key of the stored tensor that is its weight.
    """

    model: nn.Module
    source: Checkpoint
    keys: Mapping[str, str]

    @classmethod
    def open(
        cls,
        model: nn.Module,
        names: Mapping[str, str],
        source: Checkpoint,
        adapter: Adapter,
        *,
        any_base: bool = False,
    ) -> "StoredWeights":
        """Finds the weights of every module that the adapter changes; reads none.

        Args:
            model: the base on the meta device: it says how the factors lie in the weights, and which are tied.
            names: key of a stored tensor -> name of the model's parameter or buffer that it is.
            source: the base's files.
            adapter: the adapter.
            any_base: take an adapter that was made for another base.

        Raises:
            BaseMismatchError: the adapter was made for another base.
            BindingError: changes that fit no module, or no stored tensor; all are listed.
        """
        if not any_base:
            check_files(model, names, source, adapter)
        with warnings.catch_warnings():
            # torch: values copied to the meta device are dropped. So they are.
            warnings.simplefilter("ignore", UserWarning)
            detach(attach(model, adapter, any_base=True))  # binds every entry, or says which do not fit
        stored = {name: key for key, name in names.items()}
        for paths in sharing(base_modules(model)).values():
            keys = [stored[f"{path}.weight"] for path in paths if f"{path}.weight" in stored]
            stored |= {f"{path}.weight": keys[0] for path in paths if keys}
        found = {path: stored[f"{path}.weight"] for path in adapter.factors if f"{path}.weight" in stored}
        problems = [f"{path}: no tensor of the files is its weight" for path in adapter.factors if path not in found]
        for path, key in found.items():
            tensor, expected = source.tensors[key], model.get_submodule(path).get_parameter("weight")
            if tensor.shape != tuple(expected.shape):
                problems.append(f"{path}: found {tensor.shape} in {tensor.file}, expected {tuple(expected.shape)}")
            elif tensor.dtype is None:
                problems.append(
                    f"{path}: stored as {tensor.dtype_name} in {tensor.file}; an unquantised base is needed"
                )
        if problems:
            raise BindingError(
                f"{len(problems)} changes did not fit the files in {source.folder}:\n  " + "\n  ".join(problems)
            )
        return cls(model, source, found)

    def matrix(self, path: str) -> Tensor:
        """The weight of an adapted module as the matrix (out, in) that its factors change, in float32 or wider."""
        layer = copy.deepcopy(self.model.get_submodule(path))
        weight = self.source.read(self.keys[path])
        layer.register_parameter("weight", nn.Parameter(weight, requires_grad=False))
        kind = layer_kind_of(layer)
        assert kind is not None  # the adapter was attached to it
        return kind.matrix(layer).detach().to(torch.promote_types(weight.dtype, torch.float32))
