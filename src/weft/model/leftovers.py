"""What changed in a model and got no factors: what of it an adapter can carry whole, and why it lacks the rest."""

import re
from collections.abc import Collection
from dataclasses import dataclass

from torch import nn

from weft.model.plan import Plan
from weft.model.stored import StoredModel
from weft.nn import BiasLayer, layer_kind_of


@dataclass(frozen=True)
class Carried:
    """What of one module is carried whole: its bias, or all of it.

    Attributes:
        path: the module.
        tensors: the names of its parameters and buffers that are carried.
        bias: whether it is the bias alone.
    """

    path: str
    tensors: tuple[str, ...]
    bias: bool

    @property
    def pattern(self) -> str:
        """A pattern that matches this module alone."""
        return f"re:{re.escape(self.path)}"


@dataclass(frozen=True, eq=False)
class Leftovers:
    """The tensors that changed and got no factors.

    Attributes:
        base: the model.
        plan: which of its modules are to be carried whole, and why others were skipped.
        vectors: whether vectors are carried.
        changed: the first names of these tensors, or the keys of those that are no parameter.
    """

    base: StoredModel
    plan: Plan
    vectors: bool
    changed: Collection[str]

    def carried(self) -> list[Carried]:
        """What of them is carried."""
        first = self.base.first_names
        whole = [Carried(path, self._state(path), bias=False) for path in self.plan.trained]
        found = [part for part in whole if any(first[name] in self.changed for name in part.tensors)]
        done = {first[name] for part in found for name in part.tensors}
        for name, one in first.items() if self.vectors else ():
            place = self._place(name) if one in self.changed and one not in done else None
            if place is not None:
                found.append(place)
                done |= {first[each] for each in place.tensors}
        return found

    def reason(self, name: str) -> str:
        """Why one of them is not carried."""
        if name not in self.base.aliases:
            return "transformers makes another tensor of it as it loads"
        for alias in self.base.aliases[name]:
            path, _, leaf = alias.rpartition(".")
            module = self.base.survey.modules.get(path)
            if module is not None and leaf == "weight":
                if path in self.plan.skipped:
                    return self.plan.skipped[path]
                if unknown_forward(module):
                    return f"its class {type(module).__name__} has a forward of its own"
                if layer_kind_of(module) is not None:
                    return "not among the targets"
            if self._place(alias) is not None:
                return "a vector, which vectors=True (--vectors) carries"
        return "of no layer that weft adapts"

    def _place(self, name: str) -> Carried | None:
        """How a vector can be carried: as its layer's bias, or with its whole module, which holds vectors alone."""
        path, _, leaf = name.rpartition(".")
        module = self.base.survey.modules.get(path)
        if module is None or not path or any(inside(path, whole) for whole in self.plan.trained):
            return None
        own = [parameter for parameter in module._parameters.values() if parameter is not None]
        only_vectors = bool(own) and all(parameter.ndim == 1 for parameter in own) and not module._modules
        state = self._state(path)
        alone = [each for each in state if self.base.first_names[each] in self.changed] == [name]
        if leaf == "bias" and BiasLayer.serves(module) and (alone or not only_vectors):
            return Carried(path, (name,), bias=True)
        return Carried(path, state, bias=False) if only_vectors else None

    def _state(self, path: str) -> tuple[str, ...]:
        return tuple(f"{path}.{key}" for key in self.base.survey.modules[path].state_dict())


def inside(name: str, path: str) -> bool:
    """Whether a module or tensor is the module at `path`, or stands in it."""
    return name == path or name.startswith(f"{path}.")


def unknown_forward(module: nn.Module) -> bool:
    """Whether a linear layer or embedding is of a class with a forward of its own.

    Attaching tries out what such a forward computes; a model without weights has nothing to try.
    """
    plain = (nn.Linear.forward, nn.Embedding.forward)
    return isinstance(module, nn.Linear | nn.Embedding) and type(module).forward not in plain
