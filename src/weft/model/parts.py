"""An adapter's part on each module: new from a plan, or bound from an adapter's tensors.

Nothing here touches the model: the parts are made and checked first, and put into the banks by `attach`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from weft.adapter import Adapter, Layout
from weft.companions import part_for
from weft.config import Companion, LoRAConfig
from weft.errors import BindingError, ConfigError, StateError, TargetError
from weft.init import start_factors
from weft.linalg import LowRank
from weft.model.late import LateStart, start_late
from weft.model.modules import Survey
from weft.model.plan import Plan, PlannedModule
from weft.nn import (
    Adapted,
    BiasLayer,
    CompanionLayer,
    CompanionPart,
    Factors,
    LoRALayer,
    ReplacedModule,
    Site,
    TrainedBias,
    VariantRule,
    layer_kind_of,
    unweave,
)
from weft.nn.bank import foreign_forward
from weft.nn.offload import onboard
from weft.nn.replaced import replacing, trained_copy
from weft.patterns import first_match
from weft.variants import rule_for


@dataclass(frozen=True, eq=False)
class Part:
    """One adapter's part on one module.

    Attributes:
        path: the module's path.
        module: the module of the base.
        kind: what it must be woven into.
        content: what goes into its bank.
        start: what gives the content its first values if it was made without memory.
        site: where the module is to be inserted, if it is a companion's and not in the base yet.
    """

    path: str
    module: nn.Module
    kind: type[Adapted]
    content: nn.Module
    start: Callable[[nn.Module], None] | None = None
    site: Site | None = None

    def __post_init__(self) -> None:
        if isinstance(self.module, Adapted) and not isinstance(self.module, self.kind):
            carried = type(self.module).__bases__[0].__name__
            raise StateError(
                f"{self.path!r} carries an adapter as {carried} already and cannot carry another as "
                f"{self.kind.__name__}; detach that one first"
            )


def new_parts(survey: Survey, plan: Plan) -> list[Part]:
    """The parts of a new adapter, started by its initializer.

    Raises:
        TargetError: the initializer cannot serve a module.
        StateError: a module carries an adapter of another sort.
    """
    by_path = survey.modules
    rule = rule_for(plan.config.variant)
    made: dict[str, Factors] = {}
    late: dict[str, LateStart] = {}
    parts = []
    for planned in sorted(plan.modules, key=lambda planned: planned.shares is not None):  # owners of factors first
        module = by_path[planned.path]
        kind = layer_kind_of(module)
        assert kind is not None
        with onboard(module):
            if planned.shares is None:
                made[planned.path] = content = _started(planned, plan.config, rule, module, kind)
            else:
                content = _sharing(made[planned.shares], _own_bias(planned, module))
        start = _late_start(content, planned, plan.config)
        if start is not None:
            start = late.setdefault(planned.shares or planned.path, start)
        parts.append(Part(planned.path, module, kind, content, start))
    for path in plan.trained:
        parts.append(Part(path, by_path[path], replacing(by_path[path]), _twin(by_path[path], trainable=True)))
    for path in plan.biases:
        with onboard(by_path[path]):
            bias = by_path[path]._parameters["bias"]
            assert bias is not None
            parts.append(Part(path, by_path[path], BiasLayer, TrainedBias(_wide_copy(bias), trainable=True)))
    for settings in plan.config.companions:
        kind_of_part = part_for(settings)
        sites = kind_of_part.sites(settings, by_path)
        for companion in plan.companions:
            if companion.name == settings.name:
                site = sites[companion.beside]
                with onboard(site.layer):
                    part = _new_companion(kind_of_part, settings, site)
                parts.append(_inserted(survey, site, settings, part))
    return parts


def _new_companion(kind: type[CompanionPart], settings: Companion, site: Site) -> CompanionPart:
    """A companion with its first values; without memory where the base has none."""
    weight = _own_tensor(site.layer)
    shapes = kind.shapes(settings, site)
    empty = {
        name: torch.empty(shape, dtype=_factor_dtype(weight), device=weight.device) for name, shape in shapes.items()
    }
    part = kind(settings, empty)
    if not weight.is_meta:
        with torch.no_grad():
            part.start(site)
    return part


def _own_tensor(layer: nn.Module) -> Tensor:
    """One of a layer's tensors: its weight, or what that is stored in."""
    return next(t for t in (*layer._parameters.values(), *layer._buffers.values()) if t is not None)


def _inserted(survey: Survey, site: Site, settings: Companion, content: CompanionPart) -> Part:
    """The part that puts a companion beside the site's layer."""
    path = f"{site.path}.{settings.name}"
    there = survey.modules.get(path)
    if there is not None and not isinstance(there, CompanionLayer):
        raise StateError(
            f"the base has a module {path!r} of its own, where the companion {settings.name!r} would stand"
        )
    late = any(tensor.is_meta for tensor in content.parameters()) and not content.needs_base
    return Part(
        path,
        nn.Module() if there is None else there,
        content.layer_type,
        content,
        start_late if late else None,
        site if there is None else None,
    )


def _started(
    planned: PlannedModule, config: LoRAConfig, rule: VariantRule, module: nn.Module, kind: type[LoRALayer]
) -> Factors:
    matrix = kind.matrix(module).detach()
    try:
        start = start_factors(config.init, matrix, planned.rank, planned.scaling, _factor_dtype(matrix))
    except ConfigError as error:
        raise TargetError(f"targets: {planned.path!r} cannot be adapted: {error}") from error
    factors = Factors(
        start.A,
        start.B,
        planned.scaling,
        rule,
        dropout=config.dropout,
        bias=_own_bias(planned, module),
        offset=start.offset,
    )
    magnitude = rule.start_magnitude(kind, matrix, factors)
    if magnitude is not None:
        factors.magnitude = nn.Parameter(magnitude)
    return factors


def _late_start(factors: Factors, planned: PlannedModule, config: LoRAConfig) -> LateStart | None:
    """What starts factors without memory; None for those that have some, and where the base's values are needed too."""
    if not factors.pair()[0].is_meta or any(t is not None for t in (factors.bias, factors.magnitude, factors.offset_A)):
        return None
    return LateStart(config.init, planned.shape, planned.rank, planned.scaling)


def _own_bias(planned: PlannedModule, module: nn.Module) -> Tensor | None:
    bias = module._parameters["bias"] if planned.bias else None
    return None if bias is None else _wide_copy(bias)


def _sharing(factors: Factors, bias: Tensor | None) -> Factors:
    """Factors of a module that shares its weight with that of `factors`: the same but for its own bias."""
    offset = None if factors.offset_A is None or factors.offset_B is None else (factors.offset_A, factors.offset_B)
    twin = Factors(
        factors.lora_A,
        factors.lora_B,
        factors.scaling,
        factors.rule,
        dropout=factors.dropout,
        bias=bias,
        offset=offset,
    )
    _share(factors, twin)
    return twin


def _share(factors: Factors, twin: Factors) -> None:
    """Gives `twin` the very parameters of `factors`, not copies."""
    twin.lora_A, twin.lora_B, twin.magnitude = factors.lora_A, factors.lora_B, factors.magnitude


def loaded_parts(survey: Survey, adapter: Adapter, trainable: bool) -> list[Part]:
    """The parts of a given adapter; every one of its tensors is bound exactly once.

    Raises:
        BindingError: some did not fit; all of them are listed.
        StateError: a module carries an adapter of another sort.
    """
    binding = _Binding(survey.modules, adapter, trainable, rule_for(adapter.config.variant), dict(adapter.tensors))
    for path, value in adapter.factors.items():
        with onboard(survey.modules.get(path)):
            binding.bind_factors(path, value)
    for path in binding.whole_modules():
        binding.bind_whole(path)
    for key in list(binding.left):
        binding.bind_bias(key)
    binding.bind_companions(survey)
    if binding.problems:
        total = len(adapter.factors) + len(adapter.magnitudes) + len(adapter.tensors) + len(adapter.companions)
        raise BindingError(
            f"{len(binding.problems)} of the adapter's {total} entries did not fit this {type(survey.model).__name__}; "
            "nothing was attached:\n  " + "\n  ".join(binding.problems)
        )
    _share_where_equal(survey, binding.parts)
    return binding.parts


def _share_where_equal(survey: Survey, parts: list[Part]) -> None:
    """Gives modules that share a weight the very same factors, so that further training keeps them one."""
    contents = {part.path: part.content for part in parts}
    for paths in survey.sharing.values():
        holders = [content for path in paths if isinstance(content := contents.get(path), Factors)]
        for other in holders[1:]:
            if holders[0].equals(other):
                _share(holders[0], other)


@dataclass(eq=False)
class _Binding:
    """The tensors of an adapter on their way to a model's modules.

    Attributes:
        by_path: the base's modules.
        adapter: what is bound.
        trainable: whether it will be trained further.
        rule: its variant's rule.
        left: its tensors that are not bound yet, beside the factors.
        parts: what was bound.
        problems: a line for each entry that did not fit.
    """

    by_path: Mapping[str, nn.Module]
    adapter: Adapter
    trainable: bool
    rule: VariantRule
    left: dict[str, Tensor]
    parts: list[Part] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def bind_factors(self, path: str, value: LowRank) -> None:
        module, layout = self.by_path.get(path), self.adapter.layouts[path]
        kind = None if module is None else layer_kind_of(module)
        misfit = self._misfit(module, kind, value, layout)
        if misfit is not None:
            found = f"found B {_shape(value.B)} and A {_shape(value.A)} ({layout})"
            self.problems.append(f"{path}: {found}, {misfit}")
            return
        assert module is not None  # else nothing would fit
        assert kind is not None
        magnitude = self.adapter.magnitudes.get(path)
        size = kind.shape(module)[kind.output_dim] if self.rule.trains_magnitude else None
        if (None if magnitude is None else tuple(magnitude.shape)) != (None if size is None else (size,)):
            expected = "none with this variant" if size is None else f"({size})"
            there = "none" if magnitude is None else _shape(magnitude)
            self.problems.append(f"{path}: found magnitudes {there}, expected {expected}")
            return
        key = f"{path}.weight"
        weight = self.left.pop(key, None)
        if weight is not None and not self._is_base(key, weight, kind.as_weight(module, kind.matrix(module))):
            return
        key = f"{path}.bias"
        bias = self.left.pop(key, None)
        if bias is not None and not self._fits(key, bias, module._parameters.get("bias")):
            return
        held = module.weight
        assert isinstance(held, Tensor)
        device = held.device
        content = Factors(
            self._own(value.A, device),
            self._own(value.B, device),
            value.scaling,
            self.rule,
            dropout=self.adapter.config.dropout if self.trainable and layout.kind != "embedding" else 0.0,
            bias=None if bias is None else self._own(bias, device),
            magnitude=None if magnitude is None else self._own(magnitude, device),
            trainable=self.trainable,
        )
        self.parts.append(Part(path, module, kind, content))

    def _misfit(
        self, module: nn.Module | None, kind: type[LoRALayer] | None, value: LowRank, layout: Layout
    ) -> str | None:
        """Why a module of this kind cannot take these factors, or None."""
        if module is None:
            return "but there is no such module"
        if kind is None:
            return f"but a {type(module).__name__} is no layer that weft adapts"
        if foreign_forward(module):
            return "but its forward was replaced on the object"
        refusal = kind.refusal(module) or self.rule.refusal(kind, module)
        if refusal is not None:
            return f"but {refusal}"
        (out, width), expected = kind.shape(module), kind.layout(module)
        if value.shape != (out, width) or layout != expected:
            return f"expected B ({out}, r) and A (r, {width}) ({expected})"
        return None

    def whole_modules(self) -> list[str]:
        """The outermost modules that the adapter trains whole."""
        patterns = self.adapter.config.train_modules
        found: list[str] = []
        for path in self.by_path if patterns else ():
            inside = any(path.startswith(f"{outer}.") for outer in found)
            if path and not inside and first_match(patterns, path) is not None:
                found.append(path)
        return found

    def bind_whole(self, path: str) -> None:
        module = self.by_path[path]
        twin = _twin(module, self.trainable)
        expected = twin.state_dict()
        own = {key: self.left.pop(f"{path}.{key}") for key in expected if f"{path}.{key}" in self.left}
        fits = [self._fits(f"{path}.{key}", own.get(key), tensor) for key, tensor in expected.items()]
        if all(fits):
            # On the meta device there is nothing to copy into: there the adapter's tensors take the place.
            in_memory = all(not tensor.is_meta for tensor in expected.values())
            twin.load_state_dict({key: tensor.clone() for key, tensor in own.items()}, assign=not in_memory)
            self.parts.append(Part(path, module, replacing(module), twin))

    def bind_bias(self, key: str) -> None:
        path, _, last = key.rpartition(".")
        module, bias = self.by_path.get(path), self.left.pop(key)
        if last != "bias" or module is None or not BiasLayer.serves(module):
            self.problems.append(f"{key}: found {_shape(bias)}, but nothing in the model takes it")
        elif self._fits(key, bias, module._parameters.get("bias")):
            device = module._parameters["bias"].device  # type: ignore[union-attr]  # it has one: it fits
            self.parts.append(Part(path, module, BiasLayer, TrainedBias(self._own(bias, device), self.trainable)))

    def bind_companions(self, survey: Survey) -> None:
        """Binds the adapter's companions; each stands beside one layer, with all of its tensors."""
        left: dict[str, dict[str, Tensor]] = {}
        for key, tensor in self.adapter.companions.items():
            path, _, name = key.rpartition(".")
            left.setdefault(path, {})[name] = tensor
        for settings in self.adapter.config.companions:
            mine = {path: left.pop(path) for path in list(left) if path.rpartition(".")[2] == settings.name}
            kind = part_for(settings)
            try:
                sites = kind.sites(settings, self.by_path) if mine else {}
            except TargetError as error:
                self.problems.append(f"{', '.join(mine)}: {error}")
                continue
            for path, tensors in mine.items():
                site = sites.get(path.rpartition(".")[0])
                if site is None:
                    self.problems.append(f"{path}: found {len(tensors)} tensors, but there is no place for them")
                    continue
                self._bind_companion(survey, path, site, settings, tensors)
        for path, tensors in left.items():
            self.problems.append(
                f"{path}: found {', '.join(tensors)}, of no companion that the adapter's configuration names"
            )

    def _bind_companion(
        self, survey: Survey, path: str, site: Site, settings: Companion, tensors: dict[str, Tensor]
    ) -> None:
        kind = part_for(settings)
        shapes = kind.shapes(settings, site)
        found = {name: _shape(tensor) for name, tensor in tensors.items()}
        expected = {name: f"({', '.join(map(str, shape))})" for name, shape in shapes.items()}
        if found != expected:
            self.problems += [
                f"{path}.{name}: found {found.get(name, 'nothing')}, expected {expected.get(name, 'nothing')}"
                for name in dict.fromkeys([*found, *expected])
                if found.get(name) != expected.get(name)
            ]
            return
        device = _own_tensor(site.layer).device
        own = {name: self._own(tensors[name], device) for name in shapes}
        self.parts.append(_inserted(survey, site, settings, kind(settings, own, self.trainable)))

    def _fits(self, key: str, found: Tensor | None, expected: Tensor | None) -> bool:
        """Whether a tensor has the shape that the model expects; notes a problem if not."""
        if found is not None and expected is not None and found.shape == expected.shape:
            return True
        shapes = ["nothing" if tensor is None else _shape(tensor) for tensor in (found, expected)]
        self.problems.append(f"{key}: found {shapes[0]}, expected {shapes[1]}")
        return False

    def _is_base(self, key: str, found: Tensor, weight: Tensor) -> bool:
        """Whether a base weight that came with the adapter is the model's own, up to rounding to another dtype."""
        if not self._fits(key, found, weight):
            return False
        if torch.allclose(found.to(weight), weight, rtol=2**-7, atol=1e-6):
            return True
        self.problems.append(
            f"{key}: the base weight that came with the adapter is not this model's (was the vocabulary resized?); "
            "load the base that the adapter was made for"
        )
        return False

    def _own(self, tensor: Tensor, device: torch.device) -> Tensor:
        """The tensor to put into a bank: a wide copy if it is to be trained, else the adapter's own, shared."""
        own = _wide_copy(tensor) if self.trainable else tensor.detach()
        # A base without values (on the meta device) says where the factors belong; they keep theirs.
        return own if device.type == "meta" else own.to(device)


def _twin(module: nn.Module, trainable: bool) -> nn.Module:
    """A copy of a whole module as the base has it, without what other adapters put there."""
    with onboard(module):
        twin = trained_copy(module, trainable)
    if isinstance(twin, ReplacedModule):
        unweave(twin)
    return twin


def _factor_dtype(matrix: Tensor) -> torch.dtype:
    """float32 for a half-precision or quantised base: AdamW's small steps would be rounded away in bfloat16."""
    return matrix.dtype if matrix.dtype in (torch.float32, torch.float64) else torch.float32


def _wide_copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to(_factor_dtype(tensor), copy=True)


def _shape(tensor: Tensor) -> str:
    return f"({', '.join(map(str, tensor.shape))})"
