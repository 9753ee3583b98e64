"""Companions: small trained modules beside the base's layers, which change what a layer reads or answers.

A `CompanionLayer` is inserted into the base as a child of the layer that it stands beside, and called through hooks of
that layer, whatever class it has: so companions and factors meet on one layer, in any order. Its bank holds the
adapters' parts as every other bank does. `weft.companions` has one file for each companion.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from weft.config import Companion
from weft.nn.bank import Adapted


@dataclass(frozen=True, eq=False)
class Site:
    """Where a companion can stand.

    Attributes:
        path: of the layer.
        layer: the layer that it stands beside.
    """

    path: str
    layer: nn.Module


class CompanionPart(nn.Module, ABC):
    """One adapter's companion at one site: the trained tensors, and what they compute.

    Attributes:
        layer_type: what it is a part of.
        needs_base: whether `start` reads the base's values.
        settings: the companion's configuration.
    """

    layer_type: ClassVar[type["CompanionLayer"]]
    needs_base: ClassVar[bool] = False
    settings: Companion

    def __init__(self, settings: Companion, tensors: Mapping[str, Tensor], trainable: bool = True) -> None:
        super().__init__()
        self.settings = settings
        for name, tensor in tensors.items():
            self.register_parameter(name, nn.Parameter(tensor, requires_grad=trainable))

    @classmethod
    @abstractmethod
    def sites(cls, settings: Companion, modules: Mapping[str, nn.Module]) -> dict[str, Site]:
        """path -> site, of a base whose modules by path are these.

        Raises:
            TargetError: there is none, or one that this companion cannot serve; the message says what to do.
        """

    @classmethod
    @abstractmethod
    def shapes(cls, settings: Companion, site: Site) -> dict[str, tuple[int, ...]]:
        """The shapes of the trained tensors by name."""

    @abstractmethod
    def start(self, site: Site | None) -> None:
        """Gives the tensors, which are empty, their first values: the base's output stays what it is.

        Args:
            site: where it stands; None where the base had no values yet, unless `needs_base`.
        """

    def extra_repr(self) -> str:
        return ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in self.named_parameters())


class CompanionLayer(Adapted):
    """The companions of all adapters at one site.

    Attributes:
        sums: whether several adapters can have such a companion active at one site, each by a factor.
    """

    sums: ClassVar[bool] = True

    @abstractmethod
    def hooks(self, site: Site) -> Iterator[RemovableHandle]:
        """Registers the hooks that call this layer, ahead of those that are there."""

    def parts(self) -> Iterator[tuple[nn.Module, float]]:
        """The active adapters' parts, each with its factor."""
        for name, scale in self.active.items():
            yield self.adapters[name], scale

    def insert(self, site: Site, name: str) -> None:
        """Takes its place beside the site's layer."""
        site.layer._modules[name] = self
        self.__dict__["handles"] = list(self.hooks(site))

    def take_out(self, layer: nn.Module, name: str) -> None:
        """The inverse of `insert`."""
        for handle in self.__dict__["handles"]:
            handle.remove()
        del layer._modules[name]
