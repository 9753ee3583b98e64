"""One of each part that can be added, from outside the package, each in one section, through the common harness.

These are also the shortest examples of how to write one.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import torch
import yaml
from harness import (
    DTYPES,
    LAYERS,
    MODELS,
    Anatomy,
    Case,
    adapted,
    check_laws,
    identical,
    output,
    pretend_training,
)
from pydantic import Field
from rich.console import Console
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from typer.testing import CliRunner

import weft
from weft import Adapter, Layout, LoRAConfig, LowRank, ops
from weft.adapter import file_formats
from weft.algebra import Method, methods, truncated
from weft.cli import app
from weft.companions import part_for
from weft.config import (
    Companion,
    Initializer,
    Scaling,
    Variant,
    companion_names,
    initializer_names,
    scaling_names,
    variant_names,
)
from weft.data.rows import read_rows
from weft.errors import ConfigError, FormatError, MergeError
from weft.init import Start, start_factors
from weft.linalg import Limit, Truncation
from weft.nn import (
    CompanionLayer,
    CompanionPart,
    Factors,
    LoRALayer,
    Site,
    Storage,
    VariantRule,
    register_storage,
    storage_of,
)
from weft.nn.base import register_layer_kind
from weft.training import Evaluation, Metric, RunConfig, Sample, Task, run
from weft.training.config import run_settings
from weft.variants import rule_for

# ---- an initializer -------------------------------------------------------------------------------------------------


@initializer_names.register("test_orthogonal")
@dataclass(frozen=True)
class Orthogonal(Initializer):
    """The rows of A orthonormal, times a gain; B zero."""

    name: ClassVar[str] = "test_orthogonal"
    gain: float = 1.0


@start_factors.register
def _(init: Orthogonal, W: Tensor, rank: int, scaling: float, dtype: torch.dtype) -> Start:
    out, width = W.shape
    A = init.gain * torch.linalg.qr(torch.randn(width, rank, dtype=dtype, device=W.device)).Q.T
    return Start(A.contiguous(), torch.zeros(out, rank, dtype=dtype, device=W.device))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", LAYERS, ids=lambda case: case.name)
def test_an_initializer(case: Case, dtype: torch.dtype) -> None:
    check_laws(case.with_config(init=Orthogonal(gain=0.5)), dtype)


def test_an_initializer_is_written_and_read_by_name() -> None:
    config = LoRAConfig(rank=2, init=Orthogonal(gain=0.5))
    assert LoRAConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    model = weft.attach(nn.Sequential(nn.Linear(6, 6)), replace(config, targets="0"))
    A = model[0].adapters["default"].lora_A
    assert torch.allclose(A @ A.T, 0.25 * torch.eye(2), atol=1e-6)


# ---- a variant ------------------------------------------------------------------------------------------------------


@variant_names.register("test_hadamard")
@dataclass(frozen=True)
class Hadamard(Variant):
    """W' = W * (1 + s B A), entry by entry: a change of full rank (Huang et al., HiRA, ICLR 2025)."""

    name: ClassVar[str] = "test_hadamard"


@dataclass(frozen=True)
class HadamardRule(VariantRule):
    """Computes the product with W * (s B A) as that with its trivial factors, the identity and itself."""

    def output(self, layer: LoRALayer, output: Tensor | None, x: Tensor, factors: Factors, scale: float) -> Tensor:
        output = layer.base_output(x) if output is None else output
        W = layer.matrix(layer).detach()
        A, B = factors.pair()
        change = W * (factors.scaling * B @ A).to(W.dtype)
        product = layer.product(layer.branch_input(x, factors), torch.eye(W.shape[1], dtype=W.dtype), change)
        return torch.add(output, product, alpha=scale)

    def weight(self, layer: LoRALayer, weight: Tensor, base: Tensor, factors: Factors, scale: float) -> Tensor:
        return weight.addcmul_(base, factors.low_rank().dense(weight.dtype), value=scale)


@rule_for.register
def _(variant: Hadamard) -> VariantRule:
    return HadamardRule()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", LAYERS, ids=lambda case: case.name)
def test_a_variant(case: Case, dtype: torch.dtype) -> None:
    check_laws(case.with_config(variant=Hadamard()), dtype)


def test_a_variant_does_what_it_says_beside_plain_lora() -> None:
    model, x = nn.Sequential(nn.Linear(5, 7)).double(), torch.randn(3, 5, dtype=torch.float64)
    W, b = model[0].weight.detach().clone(), model[0].bias.detach()
    changes = {}
    for name, variant in (("plain", weft.LoRA()), ("hadamard", Hadamard())):
        weft.attach(model, LoRAConfig(rank=2, targets="0", variant=variant), name=name)
        factors = model[0].adapters[name]
        nn.init.normal_(factors.lora_B)
        changes[name] = factors.scaling * factors.lora_B.detach() @ factors.lora_A.detach()
    weft.activate(model, {"plain": 0.5, "hadamard": 2.0})
    expected = nn.functional.linear(x, W + 0.5 * changes["plain"] + 2.0 * W * changes["hadamard"], b)
    assert torch.allclose(output(model, x), expected)


# ---- a companion ----------------------------------------------------------------------------------------------------


@companion_names.register("test_offset")
@dataclass(frozen=True)
class Offset(Companion):
    """A trained vector, a number of times, added to the output of one linear layer."""

    name: ClassVar[str] = "test_offset"
    layer: str = "0"
    times: float = 1.0


class OffsetLayer(CompanionLayer):
    """Adds the vectors of the active adapters."""

    def hooks(self, site: Site) -> Iterator[RemovableHandle]:
        yield site.layer.register_forward_hook(lambda layer, x, y: self(y) if self.active else None, prepend=True)

    def forward(self, y: Tensor) -> Tensor:
        return sum((scale * part() for part, scale in self.parts()), y)


class OffsetPart(CompanionPart):
    layer_type = OffsetLayer
    vector: Tensor

    @classmethod
    def sites(cls, settings: Companion, modules: Mapping[str, nn.Module]) -> dict[str, Site]:
        assert isinstance(settings, Offset)
        return {settings.layer: Site(settings.layer, modules[settings.layer])}

    @classmethod
    def shapes(cls, settings: Companion, site: Site) -> dict[str, tuple[int, ...]]:
        return {"vector": (site.layer.weight.shape[0],)}

    def start(self, site: Site | None) -> None:
        nn.init.zeros_(self.vector)

    def forward(self) -> Tensor:
        assert isinstance(self.settings, Offset)
        return self.settings.times * self.vector


@part_for.register
def _(settings: Offset) -> type[CompanionPart]:
    return OffsetPart


def test_a_companion(tmp_path: Path) -> None:
    model, x = nn.Sequential(nn.Linear(5, 7)), torch.randn(3, 5)
    base = output(model, x)
    weft.attach(model, LoRAConfig(targets=(), companions=(Offset(times=2.0),)))
    assert torch.equal(output(model, x), base)
    with torch.no_grad():
        next(weft.trainable_parameters(model)).fill_(0.5)
    assert torch.equal(output(model, x), base + 1.0)
    path = weft.collect(model).save(tmp_path / "adapter")
    weft.detach(model)
    assert torch.equal(output(weft.attach(model, weft.load(path)), x), base + 1.0)


# ---- a scaling ------------------------------------------------------------------------------------------------------


@scaling_names.register("test_fixed")
@dataclass(frozen=True)
class Fixed(Scaling):
    """Alpha times a factor, whatever the rank."""

    name: ClassVar[str] = "test_fixed"
    factor: float = 1.0

    def __call__(self, alpha: float, rank: int) -> float:
        return self.factor * alpha


def test_a_scaling() -> None:
    for case in LAYERS:
        check_laws(case.with_config(scaling=Fixed(factor=0.25)))
    model = weft.attach(nn.Sequential(nn.Linear(6, 6)), LoRAConfig(rank=3, alpha=8, scaling=Fixed(factor=0.25)))
    assert weft.collect(model).factors["0"].scaling == 2.0


# ---- a layer kind ---------------------------------------------------------------------------------------------------


class HeadedLinear(nn.Module):
    """y[..., h, o] = sum over i of x[..., i] W[i, h, o] + b[h, o]: a projection into heads, as some models write it."""

    def __init__(self, width: int, heads: int, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.3 * torch.randn(width, heads, size))
        self.bias = nn.Parameter(torch.randn(heads, size))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("...i,iho->...ho", x, self.weight) + self.bias


@register_layer_kind
class LoRAHeadedLinear(LoRALayer):
    """The weight as a matrix: (heads * size, width)."""

    kind = "test_headed_linear"

    @classmethod
    def serves(cls, module: nn.Module) -> bool:
        return isinstance(module, HeadedLinear)

    @classmethod
    def shape(cls, module: nn.Module) -> tuple[int, int]:
        width, heads, size = module.weight.shape
        return heads * size, width

    @classmethod
    def layout(cls, module: nn.Module) -> Layout:
        return Layout("linear")

    @classmethod
    def matrix(cls, module: nn.Module) -> Tensor:
        return module.weight.flatten(1).T

    @classmethod
    def as_weight(cls, module: nn.Module, matrix: Tensor) -> Tensor:
        return matrix.T.unflatten(1, module.weight.shape[1:])

    def as_bias(self, bias: Tensor) -> Tensor:
        return bias.reshape(self.weight.shape[1:])

    def product(self, x: Tensor, A: Tensor, B: Tensor) -> Tensor:
        return ops.linear(x, A, B).unflatten(-1, self.weight.shape[1:])


HEADED = (
    Case("headed_linear", lambda: [HeadedLinear(5, 2, 3)], partial(torch.randn, 2, 4, 5)),
    Case("headed_linear_in_a_model", lambda: [HeadedLinear(5, 2, 3), nn.Flatten(-2), nn.Linear(6, 4)],
         partial(torch.randn, 4, 5), LoRAConfig(rank=2, targets="all-linear", bias="adapted")),
)  # fmt: skip


# PiSSA's start is a part of W, which is zero in W + s (B A - B0 A0) alone: it does not go with every variant.
COMBINATIONS = [
    (weft.LoRA(), weft.Kaiming()),
    (weft.LoRA(), weft.PiSSA()),
    (weft.DoRA(), weft.Kaiming()),
    (Hadamard(), Orthogonal()),
]


@pytest.mark.parametrize(("variant", "init"), COMBINATIONS, ids=repr)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", HEADED, ids=lambda case: case.name)
def test_a_layer_kind(case: Case, dtype: torch.dtype, variant: Variant, init: Initializer) -> None:
    check_laws(case.with_config(variant=variant, init=init), dtype)


def test_a_layer_kind_is_found_by_all_linear_and_planned() -> None:
    plan = weft.plan(HEADED[1].model(), HEADED[1].config)
    assert [(m.path, m.kind, m.shape) for m in plan.modules] == [
        ("0", "test_headed_linear", (6, 5)),
        ("2", "linear", (4, 6)),
    ]


# ---- a storage ------------------------------------------------------------------------------------------------------


class WholeLinear(nn.Linear):
    """A linear layer whose weight is whole numbers of thousandths."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__(width, out)
        self.weight = nn.Parameter((1000 * self.weight.detach()).round().to(torch.int16), requires_grad=False)

    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.linear(input, self.weight.to(input.dtype) / 1000, self.bias)


@register_storage
class Thousandths(Storage):
    """The weight of a `WholeLinear`."""

    name = "test_thousandths"

    @classmethod
    def serves(cls, module: nn.Module) -> bool:
        return isinstance(module, WholeLinear)

    def refusal(self) -> str | None:
        return None

    @property
    def shape(self) -> tuple[int, int]:
        out, width = self.module.weight.shape
        return out, width

    def dense(self) -> Tensor:
        return self.module.weight / 1000

    def sample(self, places: Tensor) -> tuple[Tensor, Tensor]:
        return self.module.weight.flatten()[places] / 1000, torch.full(places.shape, 0.0005)


@pytest.mark.parametrize("settings", [{}, {"init": weft.PiSSA()}, {"variant": weft.DoRA()}], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_storage(dtype: torch.dtype, settings: dict[str, object]) -> None:
    case = Case("whole_linear", lambda: [WholeLinear(5, 7)], partial(torch.randn, 3, 5)).with_config(**settings)
    model, x = case.model(dtype), case.input(dtype)
    before, base = Anatomy.of(model), output(model, x)
    weft.attach(model, case.config)
    assert torch.equal(output(model, x), base)
    x.requires_grad_()
    model(x).double().square().sum().backward()
    assert x.grad is not None
    assert all(p.grad is not None for p in weft.trainable_parameters(model))
    pretend_training(model)
    assert not torch.equal(output(model, x), base)
    with pytest.raises(MergeError, match="0: its weight is stored in test_thousandths"):
        weft.merge(model)
    adapter = weft.collect(model)
    weft.detach(model)
    before.check_restored(model)
    dense = nn.Sequential(nn.Linear(5, 7))
    dense.load_state_dict({"0.weight": storage_of(model[0]).dense() + 0.0004, "0.bias": model[0].bias})
    weft.attach(dense, adapter)  # the same base, before it was rounded


# ---- a file format --------------------------------------------------------------------------------------------------


class NumpyFormat:
    """Everything in one .npz file: arrays, and the configuration as JSON."""

    def recognises(self, path: Path) -> bool:
        return path.suffix == ".npz"

    def save(self, adapter: Adapter, path: Path) -> Path:
        arrays: dict[str, np.ndarray] = {f"tensor:{key}": t.float().numpy() for key, t in adapter.tensors.items()}
        modules = {}
        for key, factors in adapter.factors.items():
            arrays |= {f"A:{key}": factors.A.float().numpy(), f"B:{key}": factors.B.float().numpy()}
            modules[key] = {"scaling": factors.scaling, "layout": asdict(adapter.layouts[key])}
        base = None if adapter.base is None else adapter.base.to_dict()
        about = {"config": adapter.config.to_dict(), "modules": modules, "base": base, **adapter.provenance}
        arrays["about"] = np.frombuffer(json.dumps(about).encode(), dtype=np.uint8)
        unfinished = path.with_suffix(".part")
        with unfinished.open("wb") as file:
            np.savez(file, **arrays)
        os.replace(unfinished, path)
        return path

    def load(self, path: Path) -> Adapter:
        try:
            arrays: Mapping[str, np.ndarray] = dict(np.load(path, allow_pickle=False))
            about = json.loads(arrays["about"].tobytes())
        except (OSError, ValueError, KeyError) as error:
            raise FormatError(f"{path} is no adapter: {error}") from error
        factors, layouts = {}, {}
        for key, module in about["modules"].items():
            B, A = (torch.from_numpy(arrays[f"{side}:{key}"]) for side in "BA")
            factors[key] = LowRank(B, A, module["scaling"])
            layout = module["layout"]
            layouts[key] = Layout(layout["kind"], tuple(layout["kernel"]), layout["groups"])
        tensors = {key[7:]: torch.from_numpy(value) for key, value in arrays.items() if key.startswith("tensor:")}
        base = None if about["base"] is None else weft.fingerprint.Fingerprint.from_dict(about["base"])
        return Adapter(LoRAConfig.from_dict(about["config"]), factors, layouts, tensors, base)


file_formats.register("test_numpy")(NumpyFormat())


@pytest.mark.parametrize("case", LAYERS + MODELS + HEADED, ids=lambda case: case.name)
def test_a_file_format(case: Case, tmp_path: Path) -> None:
    model, x = adapted(case).eval(), case.input()
    path = weft.collect(model).save(tmp_path / "adapter.npz", format="test_numpy")
    fresh = weft.attach(case.model().eval(), weft.load(path))
    assert identical(output(fresh, x), output(model, x))
    assert weft.collect(fresh).config == case.config
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter.npz"]


def test_a_broken_file_of_it_is_named(tmp_path: Path) -> None:
    (tmp_path / "adapter.npz").write_bytes(b"PK not really")
    with pytest.raises(FormatError, match=r"adapter\.npz is no adapter"):
        weft.load(tmp_path / "adapter.npz")


# ---- a merge method -------------------------------------------------------------------------------------------------


@methods.register("test_louder")
@dataclass(frozen=True)
class Louder(Method):
    """Of each module the change that is largest once it is weighted, alone."""

    name: ClassVar[str] = "test_louder"
    least: float = 0.0

    def merge(
        self, path: str, terms: Sequence[LowRank | None], weights: Sequence[float], limit: Limit | None
    ) -> Truncation:
        present = [weight * term for term, weight in zip(terms, weights, strict=True) if term is not None]
        loudest = max(present, key=lambda term: float(term.norm()))
        kept = loudest if float(loudest.norm()) >= self.least else 0.0 * loudest
        return Truncation(kept, 0.0) if limit is None else truncated(kept, limit)


def test_a_merge_method() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6))
    a = weft.collect(weft.attach(model, LoRAConfig(rank=2, targets="0", init=Orthogonal()), "a"), "a")
    factors = {"0": LowRank(torch.randn(6, 2), torch.randn(2, 6))}
    a, b = replace(a, factors=factors), replace(a, factors={"0": 3 * factors["0"]})
    for method in ("test_louder", Louder(), {"name": "test_louder", "least": 0.0}):
        made = weft.combine([a, b], method)
        assert torch.equal(made.factors["0"].dense(), 0.5 * b.factors["0"].dense())
    assert made.provenance["lineage"]["method"] == {"name": "test_louder", "least": 0.0}
    assert weft.combine([a, b], Louder(least=1e6)).norm() == 0
    weft.attach(model, weft.combine([a, b], Louder(), rank=1), "made")
    with pytest.raises(ConfigError, match="method 'test_louder' has no setting 'leest'; did you mean 'least'"):
        weft.combine([a, b], {"name": "test_louder", "leest": 1})


# ---- a task ---------------------------------------------------------------------------------------------------------


@run_settings.register("test_regress")
class RegressRun(RunConfig):
    """A small network learns numbers from numbers."""

    task: Literal["test_regress"] = Field("test_regress", description="What is learned.")
    noise: float = Field(0.0, ge=0, description="The deviation of what is added to the inputs.")

    @classmethod
    def implementation(cls) -> type[Task]:
        return RegressTask


class Regressor(nn.Module):
    """Its loss is its own, as a run wants it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        prediction = self.layers(x).squeeze(-1)
        return {"loss": nn.functional.mse_loss(prediction, labels), "prediction": prediction}


@dataclass(frozen=True)
class Counted:
    """What became of the rows."""

    rows: int

    def __str__(self) -> str:
        return f"{self.rows} rows of numbers"


class RegressTask(Task):
    """Rows are {"x": three numbers, "y": a number}."""

    metrics = (Metric("loss", "squared error", greater_is_better=False),)

    @classmethod
    def open(cls, config: RunConfig, console: Console | None) -> "RegressTask":
        task, torch_seed = cls(), torch.Generator().manual_seed(3)
        task.config, task.model = config, Regressor().eval()
        for parameter in task.model.parameters():
            nn.init.normal_(parameter, generator=torch_seed)
        task.train_data, task.train_report = cls.rows(config.train)
        task.eval_data, task.eval_report = cls.rows(config.eval) if config.eval else (None, None)
        return task

    @staticmethod
    def rows(path: str) -> tuple[list[dict[str, Any]], Counted]:
        rows = [dict(row.values) for row in read_rows(path)]
        return rows, Counted(len(rows))

    @property
    def collator(self) -> Callable[[list[Any]], dict[str, Tensor]]:
        return lambda rows: {"x": torch.tensor([r["x"] for r in rows]), "labels": torch.tensor([r["y"] for r in rows])}

    def evaluate(self) -> Evaluation:
        with torch.no_grad():
            found = self.model(**self.collator(self.eval_data))
        shown = zip(self.eval_data, found["prediction"].tolist(), strict=True)
        samples = [Sample(str(row["x"]), str(row["y"]), f"{value:.2f}") for row, value in shown]
        return Evaluation(len(self.eval_data), {"loss": float(found["loss"])}, samples)

    def save_beside(self, folder: Path) -> None:
        (folder / "notes.txt").write_text("three numbers in, one out")

    def usage(self, adapter: Path) -> str:
        return f"weft.load({str(adapter)!r})"


@pytest.fixture
def regress_run(tmp_path: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 3, generator=generator)
    rows = [{"x": row, "y": sum(row)} for row in x.tolist()]
    for name, part in (("train", rows[:30]), ("held", rows[30:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    settings = {
        "task": "test_regress", "base": "none", "train": str(tmp_path / "train.jsonl"),
        "rank": 2, "rank_pattern": {"layers.2": 1},
        "eval": str(tmp_path / "held.jsonl"), "output": str(tmp_path / "run"), "learning_rate": 0.05, "max_steps": 30,
        "log_every": 10, "eval_every": 10, "save_every": 10, "tensorboard": False,
    }  # fmt: skip
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    return tmp_path / "run.yaml"


def test_a_task(regress_run: Path, tmp_path: Path) -> None:
    result = run(RunConfig.from_yaml(regress_run))
    assert result.after.loss < 0.5 * result.before.loss
    assert (result.trainable, str(result.train_data)) == (2 * (3 + 8) + 1 * (8 + 1), "30 rows of numbers")
    adapter = weft.load(result.adapter)
    assert sorted(adapter.factors) == ["layers.0", "layers.2"]
    assert adapter.provenance["task"] == "test_regress"
    assert (result.adapter / "notes.txt").is_file()
    assert "squared error" in (result.folder / "README.md").read_text()
    again = run(RunConfig.from_yaml(regress_run, {"output": tmp_path / "again"}))
    assert again.after == result.after


def test_a_task_is_evaluated_by_its_run(regress_run: Path, tmp_path: Path) -> None:
    result = run(RunConfig.from_yaml(regress_run))
    words = ["eval", "--adapter", str(result.folder), "--data", str(tmp_path / "held.jsonl"), "--json"]
    shown = json.loads(CliRunner().invoke(app, words).stdout)["results"]
    assert [each["loss"] for each in shown] == pytest.approx([result.before.loss, result.after.loss])


def test_settings_are_those_of_the_task(regress_run: Path) -> None:
    assert RunConfig.from_yaml(regress_run, {"noise": 0.5}).noise == 0.5
    with pytest.raises(ConfigError, match=r"'test_regress' has no setting 'max_length'; .* the task .*'text'"):
        RunConfig.from_yaml(regress_run, {"max_length": 5})
    with pytest.raises(ConfigError, match="there is no task 'test_regres'; did you mean 'test_regress'"):
        RunConfig.from_yaml(regress_run, {"task": "test_regres"})


# ---- and what registering guards against ----------------------------------------------------------------------------


def test_a_name_is_taken_once() -> None:
    for names, name in ((initializer_names, "pissa"), (variant_names, "lora"), (file_formats, "test_numpy")):
        with pytest.raises(ConfigError, match=f"{name!r} is registered already"):
            names.register(name)(object())  # type: ignore[arg-type]
