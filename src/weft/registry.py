"""Named parts: how one new file adds an initializer, a variant, a layer kind or a file format.

A registry maps a name to its part. Looking up a name that is not there raises one message with the
names that are. Nothing is imported because a file said so: a name in a file can only choose among the
parts that the running program has registered.
"""

from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Generic, TypeVar

from weft.errors import ConfigError, nearest

T = TypeVar("T")


class Registry(Generic[T]):
    """Parts of one sort, by name.

    Args:
        sort: what the parts are, for messages.
        home: the package that registers weft's own, imported at the first look; None where they stand beside.
    """

    def __init__(self, sort: str, home: str | None = None) -> None:
        self._sort = sort
        self._home = home
        self._parts: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """A decorator that adds a part under `name`; a name that is taken is an error, never replaced."""

        def add(part: T) -> T:
            if name in self._parts:
                raise ConfigError(f"the {self._sort} {name!r} is registered already; choose another name")
            self._parts[name] = part
            return part

        return add

    def __getitem__(self, name: str) -> T:
        if name not in self:
            known = ", ".join(sorted(self._parts))
            raise ConfigError(f"there is no {self._sort} {name!r}{nearest(name, self._parts)} (there are: {known})")
        return self._parts[name]

    def __contains__(self, name: str) -> bool:
        self._arrive()
        return name in self._parts

    def __len__(self) -> int:
        """How many there are; torch.compile asks, of a registry that a forward pass looks into."""
        self._arrive()
        return len(self._parts)

    def __iter__(self) -> Iterator[str]:
        """The names, in the order of registration."""
        self._arrive()
        return iter(self._parts)

    def _arrive(self) -> None:
        if self._home is not None:
            import_module(self._home)
