"""The adapter that turns one checkpoint into another, from their files; neither model is ever in memory."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from weft.adapter import Adapter, Layout
from weft.algebra.lineage import with_lineage
from weft.config import ALL_LAYERS, LoRAConfig
from weft.errors import ConfigError, FormatError
from weft.linalg import SVD, Limit, LowRank, RandomizedSVD, randomized_svd_of_blocks
from weft.linalg.limit import ROUNDING, truncation_errors
from weft.model.difference import Difference, Sizes
from weft.model.extraction import ExtractedModule, Extraction, LeftOut
from weft.model.leftovers import Leftovers, inside, unknown_forward
from weft.model.plan import Plan, PlannedModule, plan_of
from weft.model.shards import StoredTensor
from weft.model.stored import StoredModel, stored_models
from weft.nn import LoRALayer, layer_kind_of

_LISTED = 12
# Rounding to the nearest moves a value by a uniform error of deviation ulp / sqrt(12); with mantissas that are spread
# evenly on a logarithmic scale, that is on average so much of the value times eps.
_STORED_ROUNDING = math.sqrt(0.75 / (2 * math.log(2)) / 12)


def extract(
    base: str | Path,
    finetuned: str | Path,
    *,
    rank: int | None = None,
    energy: float | None = None,
    error: float | None = None,
    targets: str | Sequence[str] = ALL_LAYERS,
    exclude: Sequence[str] = (),
    layers: Sequence[int] | None = None,
    whole: Sequence[str] = (),
    vectors: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Adapter:
    """The adapter of low rank that turns a base into a model that was fine-tuned from it.

    Both are transformers checkpoints in safetensors files, which are read one tensor, or one block of a large tensor,
    at a time; differences are taken in float32. What was not of low rank is lost: `extract_with_report` says how much,
    module by module, and which tensors changed that are not in the adapter.

    Args:
        base: the base: a folder, a hub id, or ``bundled``. The adapter is made for it.
        finetuned: the fine-tuned model, of the same architecture.
        rank: the largest rank of a module.
        energy: the smallest share of a module's squared singular values to keep; each module gets its own rank.
        error: the largest relative Frobenius error of a module's change; likewise.
        targets: which modules get factors; patterns as in `LoRAConfig`.
        exclude: patterns of modules that get none.
        layers: indices of the blocks whose modules get factors; None for all.
        whole: patterns of modules that are carried whole, such as a head that was trained from nothing.
        vectors: also carry biases and norms, which are vectors, whole.
        dtype: that of the factors; what is carried whole keeps its own.

    Raises:
        ConfigError: not exactly one limit, or one out of range; two architectures; models that do not differ, or in
            nothing that the adapter could hold.
        FormatError: files that cannot be read, or that hold NaN, infinity or quantised weights.
        TargetError: a pattern that matches nothing, or a module that cannot be adapted.
    """
    return extract_with_report(
        base,
        finetuned,
        rank=rank,
        energy=energy,
        error=error,
        targets=targets,
        exclude=exclude,
        layers=layers,
        whole=whole,
        vectors=vectors,
        dtype=dtype,
    ).adapter


def extract_with_report(
    base: str | Path,
    finetuned: str | Path,
    *,
    rank: int | None = None,
    energy: float | None = None,
    error: float | None = None,
    targets: str | Sequence[str] = ALL_LAYERS,
    exclude: Sequence[str] = (),
    layers: Sequence[int] | None = None,
    whole: Sequence[str] = (),
    vectors: bool = False,
    dtype: torch.dtype = torch.float32,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Extraction:
    """As `extract`, with what was kept and what was left out.

    `progress` is called after each of the base's tensors, with the bytes of those that are done and of all.
    """
    limit = Limit(rank, energy, error)
    config = LoRAConfig(
        rank=1,  # the smallest that a plan takes; the ranks come from the changes
        targets=targets if isinstance(targets, str) else tuple(targets),
        exclude=tuple(exclude),
        layers=None if layers is None else tuple(layers),
        train_modules=tuple(whole),
    )
    open_stored = stored_models["transformers"]
    original, tuned = open_stored(base, "base"), open_stored(finetuned, "finetuned")
    _check_one_architecture(original, tuned)
    extracting = _Extracting(original, tuned, plan_of(original.survey, config), limit, vectors, dtype)
    done = 0
    for stored in original.checkpoint.tensors.values():
        extracting.take(stored)
        done += stored.nbytes
        progress(done, original.checkpoint.nbytes)
    return extracting.result()


@dataclass(eq=False)
class _Extracting:
    """An extraction on its way.

    Attributes:
        base, tuned: the two models.
        plan: which modules are to get factors, and which are carried whole.
        limit: how far the changes are reduced.
        vectors: whether changed vectors are carried.
        dtype: that of the factors.
        values: first name of a weight -> its factors.
        modules: what was kept; see `Extraction`.
        others: name -> the change of each tensor that got no factors; None where it has no norm.
        unchanged: how many tensors are the base's.
        noise: the norm of what rounding put into each changed tensor, about.
    """

    base: StoredModel
    tuned: StoredModel
    plan: Plan
    limit: Limit
    vectors: bool
    dtype: torch.dtype
    values: dict[str, LowRank] = field(default_factory=dict)
    modules: dict[str, ExtractedModule] = field(default_factory=dict)
    others: dict[str, Sizes | None] = field(default_factory=dict)
    unchanged: int = 0
    noise: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        for path in self.plan.trained:
            self._check_not_tied(path)
        largest = max((min(m.shape) for m in self.plan.modules), default=0)
        if self.limit.rank is not None and self.plan.modules and self.limit.rank > largest:
            raise ConfigError(f"rank: {self.limit.rank} is more than any of the modules can have ({largest}); lower it")

    @cached_property
    def weights(self) -> dict[str, list[PlannedModule]]:
        """First name of a weight -> the modules that are to get factors for it."""
        found: dict[str, list[PlannedModule]] = {}
        for planned in self.plan.modules:
            name = self.base.first_names[f"{planned.path}.weight"]
            found.setdefault(name, []).append(planned)
        return {
            name: sharers
            for name, sharers in found.items()
            if not any(unknown_forward(self._module(planned.path)) for planned in sharers)
        }

    def take(self, stored: StoredTensor) -> None:
        """Takes one of the base's stored tensors: finds out whether, and how, it changed."""
        name = self.base.names.get(stored.name)
        one = stored.name if name is None else self.base.first_names[name]
        if name is not None and self.base.keys[one] != stored.name:
            return  # a tied weight that is stored twice is taken once
        tuned = self.tuned.checkpoint.tensors[stored.name if name is None else self.tuned.keys[one]]
        difference = Difference(self.base.checkpoint, stored.name, self.tuned.checkpoint, tuned.name)
        if not difference.changed():
            self.unchanged += 1
            return
        planned = self.weights.get(one)
        if stored.dtype is None or tuned.dtype is None:
            if planned is not None:
                odd = stored if stored.dtype is None else tuned
                raise FormatError(
                    f"{planned[0].path}: its weight is stored as {odd.dtype_name} in {odd.file}; extract from "
                    "checkpoints that are not quantised"
                )
            self.others[one] = None
            return
        sizes = difference.sizes()
        if tuned.dtype.itemsize < 4:
            self.noise.append(_STORED_ROUNDING * torch.finfo(tuned.dtype).eps * sizes.base)
        if planned is None:
            self.others[one] = sizes
        else:
            self._reduce(one, planned, difference, sizes)

    def _reduce(self, name: str, planned: Sequence[PlannedModule], difference: Difference, sizes: Sizes) -> None:
        rank = None if self.limit.rank is None else min(self.limit.rank, *difference.shape)
        found = randomized_svd_of_blocks(difference, rank=rank, energy=self.limit.energy, error=self.limit.error)
        exact = _low_rank(found, self._is_transposed(planned[0], difference))
        self.values[name] = value = exact.to(dtype=self.dtype)
        # What is lost is orthogonal to what is kept, and so, but for a second-order part, to the rounding of that.
        rounding = 0.0 if value.dtype == exact.dtype else float((exact - value.to(dtype=exact.dtype)).norm())
        relative_error = math.hypot(float(found.relative_error), rounding / sizes.change)
        paths = tuple(each.path for each in planned)
        self.modules[paths[0]] = ExtractedModule(paths, value.rank, sizes, relative_error)

    def _is_transposed(self, planned: PlannedModule, difference: Difference) -> bool:
        """Whether the stored rows are the columns of the module's matrix, as in GPT-2's Conv1D."""
        module = self._module(planned.path)
        matrix = _kind(module).matrix(module)
        if not matrix.is_contiguous() and not matrix.T.is_contiguous():
            raise ConfigError(
                f"{planned.path}: the matrix of a {type(module).__name__} is not the stored weight's rows or columns; "
                f"leave it out with exclude=({planned.path!r},)"
            )
        return not matrix.is_contiguous()

    def result(self) -> Extraction:
        """The adapter, and the report on it.

        Raises:
            ConfigError: nothing changed, or nothing that the adapter could hold.
        """
        if not self.modules and not self.others:
            raise ConfigError(
                f"{self.base.name} and {self.tuned.name} do not differ: all {self.unchanged} tensors are equal; "
                "is one a copy of the other?"
            )
        leftovers = Leftovers(self.base, self.plan, self.vectors, self.others.keys())
        carried = leftovers.carried()
        tensors = {name: self._tuned_tensor(name) for part in carried for name in part.tensors}
        first = self.base.first_names
        held = {first[name] for name in tensors}
        left_out = {
            name: LeftOut(sizes, leftovers.reason(name)) for name, sizes in self.others.items() if name not in held
        }
        if not self.modules and not tensors:
            listed = _listed(f"{name}: {missed.reason}" for name, missed in left_out.items())
            raise ConfigError(f"nothing that changed can be in the adapter:\n  {listed}")
        order = {path: place for place, path in enumerate(self.base.survey.modules)}
        modules = dict(sorted(self.modules.items(), key=lambda item: order[item[0]]))
        factors = {path: self.values[first[f"{key}.weight"]] for key, each in modules.items() for path in each.modules}
        layouts = {path: self._layout(path) for path in factors}
        largest = max((value.rank for value in factors.values()), default=1)
        biases = {part.path for part in carried if part.bias}
        config = replace(
            self.plan.config,
            rank=largest,
            alpha=float(largest),
            train_modules=tuple(part.pattern for part in carried if not part.bias),
            bias="none" if not biases else "adapted" if biases <= factors.keys() else "all",
        )
        adapter = Adapter(config, factors, layouts, tensors, self.base.fingerprint(), {"base": self.base.name})
        adapter = with_lineage(adapter, "extract", [{"name": self.tuned.name}], {"limit": self.limit.to_dict()})
        extraction = Extraction(
            adapter,
            modules,
            {name: sizes for name, sizes in self.others.items() if name in held and sizes is not None},
            left_out,
            self.unchanged,
            0.0,
        )
        return replace(extraction, rounding=math.hypot(*self.noise) / (extraction.norm or 1.0))

    def _check_not_tied(self, path: str) -> None:
        for key in self._module(path).state_dict():
            one = self.base.first_names[f"{path}.{key}"]
            outside = [name for name in self.base.aliases[one] if not inside(name, path)]
            if outside:
                raise ConfigError(
                    f"whole: {path!r} shares its {key} with {outside[0]!r}, which would stay the base's; leave it out, "
                    "then both get the same factors"
                )

    def _module(self, path: str) -> nn.Module:
        return self.base.survey.modules[path]

    def _layout(self, path: str) -> Layout:
        module = self._module(path)
        return _kind(module).layout(module)

    def _tuned_tensor(self, name: str) -> Tensor:
        if name not in self.tuned.keys:
            raise FormatError(f"{self.tuned.checkpoint.folder} does not hold {name}, of a module to be carried whole")
        return self.tuned.checkpoint.read(self.tuned.keys[name]).clone()


def _check_one_architecture(base: StoredModel, tuned: StoredModel) -> None:
    """Raises ConfigError unless both hold the same tensors in the same shapes."""
    mine, theirs = _shapes(base), _shapes(tuned)
    problems = [f"{name}: only in {base.name}" for name in mine if name not in theirs]
    problems += [f"{name}: only in {tuned.name}" for name in theirs if name not in mine]
    problems += [
        f"{name}: {shape} in {base.name}, {theirs[name]} in {tuned.name}"
        for name, shape in mine.items()
        if theirs.get(name, shape) != shape
    ]
    if problems:
        raise ConfigError(
            f"finetuned: {tuned.name} is not of the base's architecture; {len(problems)} tensors do not match:\n  "
            f"{_listed(problems)}\nName the base that it was fine-tuned from (with its vocabulary resized likewise)"
        )


def _shapes(model: StoredModel) -> dict[str, tuple[int, ...]]:
    """Name (of keys that are no parameter as they stand, the key) -> shape in the files."""
    stored = model.checkpoint.tensors
    return {name: stored[key].shape for name, key in model.keys.items()} | {
        key: tensor.shape for key, tensor in stored.items() if key not in model.names
    }


def _listed(lines: Iterable[str]) -> str:
    shown = list(lines)
    more = [f"and {len(shown) - _LISTED} more"] if len(shown) > _LISTED else []
    return "\n  ".join([*shown[:_LISTED], *more])


def _kind(module: nn.Module) -> type[LoRALayer]:
    kind = layer_kind_of(module)
    assert kind is not None  # a plan names no others
    return kind


def _low_rank(found: RandomizedSVD, transposed: bool) -> LowRank:
    """The factors (of the transpose, if so), without triplets that are nothing but rounding."""
    S = found.svd.S
    errors = truncation_errors(S.tolist(), float(found.frobenius_error))
    svd = found.svd.leading(Limit(error=0).kept_rank(errors, ROUNDING * torch.finfo(S.dtype).eps))
    value = LowRank.from_svd(SVD(svd.Vh.T, svd.S, svd.U.T) if transposed else svd)
    return LowRank(value.B.contiguous(), value.A.contiguous())
