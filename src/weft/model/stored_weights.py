"""The weights that an adapter changes, read from the base's files one at a time."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from weft.adapter import Adapter
from weft.errors import BindingError
from weft.model.modules import base_modules, sharing
from weft.model.stored import StoredModel
from weft.nn import layer_kind_of


@dataclass(frozen=True)
class StoredWeights:
    """The weights that an adapter changes.

    Attributes:
        base: the model that they are of.
        keys: adapted module -> key of the stored tensor that is its weight.
    """

    base: StoredModel
    keys: Mapping[str, str]

    @classmethod
    def of(cls, base: StoredModel, adapter: Adapter, *, any_base: bool = False) -> "StoredWeights":
        """Finds the weights of every module that the adapter changes; reads none.

        Raises:
            BaseMismatchError: the adapter was made for another base, and `any_base` is not given.
            BindingError: changes that fit no module, or no stored tensor; all are listed.
        """
        base.check(adapter, any_base=any_base)
        tensors, stored = base.checkpoint.tensors, {name: key for key, name in base.names.items()}
        for paths in sharing(base_modules(base.model)).values():
            keys = [stored[f"{path}.weight"] for path in paths if f"{path}.weight" in stored]
            stored |= {f"{path}.weight": keys[0] for path in paths if keys}
        found = {path: stored[f"{path}.weight"] for path in adapter.factors if f"{path}.weight" in stored}
        problems = [f"{path}: no tensor of the files is its weight" for path in adapter.factors if path not in found]
        for path, key in found.items():
            tensor, expected = tensors[key], base.model.get_submodule(path).get_parameter("weight")
            if tensor.shape != tuple(expected.shape):
                problems.append(f"{path}: found {tensor.shape} in {tensor.file}, expected {tuple(expected.shape)}")
            elif tensor.dtype is None:
                problems.append(
                    f"{path}: stored as {tensor.dtype_name} in {tensor.file}; an unquantised base is needed"
                )
        if problems:
            raise BindingError(
                f"{len(problems)} changes did not fit the files in {base.checkpoint.folder}:\n  "
                + "\n  ".join(problems)
            )
        return cls(base, found)

    def matrix(self, path: str) -> Tensor:
        """The weight of an adapted module as the matrix (out, in) that its factors change, in float32 or wider."""
        layer = copy.deepcopy(self.base.model.get_submodule(path))
        weight = self.base.checkpoint.read(self.keys[path])
        layer.register_parameter("weight", nn.Parameter(weight, requires_grad=False))
        kind = layer_kind_of(layer)
        assert kind is not None  # the adapter was attached to it
        return kind.matrix(layer).detach().to(torch.promote_types(weight.dtype, torch.float32))
