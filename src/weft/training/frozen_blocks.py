"""The blocks below the lowest adapted one, which training leaves as they are, so that they need not run again.

Their output for a row is the same in every epoch. Here a model is taught to take it beside its token ids
(`FROZEN_STATES`), and to skip those blocks whenever it is given. What is frozen, and that skipping changes nothing,
is found by running the model, not by knowing it.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from weft.errors import ConfigError
from weft.model.modules import adapted_modules

FROZEN_STATES = "frozen_states"
"""The name under which a model takes the output of its frozen blocks, (rows, T, d), beside input_ids."""

_OFF = "or turn cache_frozen off"


class FrozenBlocks:
    """The blocks of a model with an adapter attached that come before the lowest adapted one.

    Attributes:
        model: the model.
        path: of the list of blocks, such as ``model.layers``.
        count: how many of them are frozen: blocks 0 to count - 1.

    Raises:
        ConfigError: no block is frozen, or it cannot be told which; the message says what to do.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        places = [place for path, _ in adapted_modules(model) if (place := _block(model, path)) is not None]
        paths = sorted({path for path, _ in places})
        if len(paths) != 1:
            found = f"in {', '.join(paths)}" if paths else "in none"
            raise ConfigError(f"cache_frozen: adapt modules in one stack of blocks (they are {found}), {_OFF}")
        self.model = model
        self.path = paths[0]
        self.count = min(index for _, index in places)
        if self.count == 0:
            raise ConfigError(
                f"cache_frozen: block 0 of {self.path} is adapted, so that nothing below is frozen; adapt upper "
                f"blocks alone, with layers, {_OFF}"
            )
        blocks = model.get_submodule(self.path)
        assert isinstance(blocks, nn.ModuleList)
        self._blocks = list(blocks[: self.count])
        self._given: Tensor | None = None
        self._in_tuple = False  # whether a block returns its output as the first of several things

    @torch.no_grad()
    def states(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """The frozen blocks' output, (rows, T, d), for a batch without labels; nothing above them is run."""

        def stop(block: nn.Module, arguments: Any, output: Tensor | tuple[Tensor, ...]) -> None:
            self._in_tuple = isinstance(output, tuple)
            raise _Reached(output[0] if isinstance(output, tuple) else output)

        hook = self._blocks[-1].register_forward_hook(stop)
        try:
            self.model(**inputs, use_cache=False)
        except _Reached as reached:
            return reached.states
        finally:
            hook.remove()
        raise ConfigError(f"cache_frozen: {type(self.model).__name__} did not run {self.path}; turn cache_frozen off")

    def check(self, inputs: Mapping[str, Tensor], real: Tensor) -> Tensor:
        """Makes sure, by running it on a batch, that the model may skip its frozen blocks; returns their output.

        Args:
            inputs: a batch without labels.
            real: (rows, T), which positions hold tokens, not padding.

        Raises:
            ConfigError: an adapted module runs before or inside the frozen blocks, they are random in training, or the
                model gives something else when they are skipped.
        """
        name, was_training = type(self.model).__name__, self.model.training
        try:
            self.model.eval()
            with _called(self.model) as called:
                states = self.states(inputs)
            if called:
                raise ConfigError(
                    f"cache_frozen: {', '.join(called)} is trained and comes before block {self.count} of {self.path}, "
                    f"the lowest adapted one; leave it out, {_OFF}"
                )
            if states.shape[:-1] != real.shape:
                raise self._irreplaceable()
            self.model.train()
            with torch.random.fork_rng(devices=[states.device] if states.is_cuda else []):
                random = not torch.equal(self.states(inputs)[real], states[real])
            if random:
                raise ConfigError(
                    f"cache_frozen: the frozen blocks of {name} compute something else in training (dropout of the "
                    f"base, as a rule); set it to 0 in the base's config.json, {_OFF}"
                )
            self.model.eval()
            with torch.no_grad(), self.skippable():
                expected = self.model(**inputs, use_cache=False).logits[real]
                padded = states.where(real[..., None], 0)
                try:
                    found = self.model(**inputs, **{FROZEN_STATES: padded}, use_cache=False).logits[real]
                except (LookupError, TypeError, AttributeError, ValueError) as error:  # it misses what it needs
                    raise self._irreplaceable() from error
            # The same products on the same numbers: equal, but for a GPU that adds in any order.
            tolerance = 16 * torch.finfo(expected.dtype).eps * expected.abs().max().item()
            if not torch.allclose(found, expected, rtol=0, atol=tolerance, equal_nan=True):
                raise self._irreplaceable()
        finally:
            self.model.train(was_training)
        return states

    def _irreplaceable(self) -> ConfigError:
        return ConfigError(
            f"cache_frozen: {type(self.model).__name__} uses more of its lower blocks than their output, so that they "
            "cannot be skipped; turn cache_frozen off"
        )

    @contextmanager
    def skippable(self) -> Iterator[None]:
        """While open, the model takes `FROZEN_STATES`; called without, it runs as ever."""
        own = [block.__dict__.get("forward") for block in self._blocks]
        for block in self._blocks:
            block.forward = partial(self._forward, block.forward)
        hooks = []
        for module in dict.fromkeys((self.model, self.model.base_model)):  # either may be the one that is called
            hooks += [
                module.register_forward_pre_hook(self._take, with_kwargs=True),
                module.register_forward_hook(self._forget, always_call=True),
            ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            for block, forward in zip(self._blocks, own, strict=True):
                del block.forward
                if forward is not None:
                    block.forward = forward

    def _forward(self, forward: Callable[..., Any], *inputs: Any, **options: Any) -> Any:
        """A frozen block's forward."""
        if self._given is None:
            return forward(*inputs, **options)
        return (self._given,) if self._in_tuple else self._given

    def _take(self, module: nn.Module, inputs: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if FROZEN_STATES in options:
            self._given = options.pop(FROZEN_STATES)
        return inputs, options

    def _forget(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self._given = None


class _Reached(Exception):
    """Ends a forward pass at the last frozen block."""

    def __init__(self, states: Tensor) -> None:
        self.states = states


def _block(model: nn.Module, path: str) -> tuple[str, int] | None:
    """(path of the list, index) of the block that a module is or stands in; None if it stands in none."""
    parts = path.split(".")
    for i, part in enumerate(parts):
        if part.isdigit() and isinstance(model.get_submodule(".".join(parts[:i])), nn.ModuleList):
            return ".".join(parts[:i]), int(part)
    return None


@contextmanager
def _called(model: nn.Module) -> Iterator[list[str]]:
    """The paths of the adapted modules that are called while it is open."""
    called: list[str] = []

    def note(path: str, *_: Any) -> None:
        called.append(path)

    hooks = [module.register_forward_pre_hook(partial(note, path)) for path, module in adapted_modules(model)]
    try:
        yield called
    finally:
        for hook in hooks:
            hook.remove()
