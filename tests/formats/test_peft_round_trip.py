"""Both directions against PEFT itself: what weft saves PEFT computes alike, and the other way round."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedModel,
)

import weft
from weft.errors import BindingError, FormatError

TOLERANCE = dict(rtol=1e-5, atol=2e-6)  # float32: the sums run in another order


class Layers(nn.Module):
    """A few layers in a row, inside a module of their own so that paths have two parts."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.net = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.net(x)
        return output


class Tower(nn.Module):
    """Paths of which one is the end of another, on both sides of what is adapted."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(6, 6)
        self.inner = nn.ModuleDict({"proj": nn.Linear(6, 6), "deep": nn.ModuleDict({"proj": nn.Linear(6, 6)})})

    def forward(self, x: Tensor) -> Tensor:
        deep: Any = self.inner["deep"]
        output: Tensor = deep["proj"](self.inner["proj"](self.proj(x).relu()).relu())
        return output


def _llama(kind: type[PreTrainedModel] = LlamaForCausalLM, **settings: Any) -> PreTrainedModel:
    config = LlamaConfig(
        vocab_size=24, hidden_size=16, intermediate_size=20, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=16, pad_token_id=0, **{"tie_word_embeddings": False} | settings,
    )  # fmt: skip
    return kind(config)


def _gpt2() -> PreTrainedModel:
    return GPT2LMHeadModel(GPT2Config(vocab_size=24, n_positions=16, n_embd=12, n_layer=2, n_head=2))


def _ids() -> Tensor:
    return torch.tensor([[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 5, 8]])


@dataclass(frozen=True)
class Case:
    """One model, adapted by weft and by PEFT; a side that is None is not for that direction."""

    name: str
    make: Callable[[], nn.Module]
    weft: weft.LoRAConfig | None
    peft: dict[str, Any] | None
    batch: Callable[[], Tensor] = _ids
    expected: dict[str, Any] = field(default_factory=dict)

    def base(self) -> nn.Module:
        torch.manual_seed(7)
        return self.make().eval()


def _config(targets: str | tuple[str, ...], **settings: Any) -> weft.LoRAConfig:
    return weft.LoRAConfig(**{"rank": 2, "alpha": 6, "targets": targets} | settings)


def _peft(target_modules: str | list[str], **settings: Any) -> dict[str, Any]:
    return {"r": 2, "lora_alpha": 6, "target_modules": target_modules} | settings


_ATTENTION = ("q_proj", "v_proj")
_VARIED = {"rank_pattern": {"q_proj": 4, "layers.1.self_attn.v_proj": 1}, "alpha_pattern": {"v_proj": 5}}
CASES = [
    Case("llama", _llama, _config(_ATTENTION), _peft(list(_ATTENTION))),
    Case("all linear", _llama, _config("all-linear"), _peft("all-linear")),
    Case(
        "regular expression, left out, one layer",
        _llama,
        _config(("*.self_attn.*_proj", "down_proj", "*.up*"), exclude=("up_proj",), layers=(1,)),
        _peft(r".*layers\.1\..*_proj", exclude_modules=["up_proj"]),
    ),
    Case(
        "layers",
        _llama,
        None,
        _peft(["down_proj"], layers_to_transform=[1], layers_pattern="layers"),
        expected={"layers": (1,)},
    ),
    Case(
        "patterns",
        _llama,
        _config(_ATTENTION, rank_pattern=_VARIED["rank_pattern"], alpha_pattern=_VARIED["alpha_pattern"]),
        _peft(list(_ATTENTION), **_VARIED),
    ),
    Case(
        "rank-stabilised",
        _llama,
        _config(_ATTENTION, scaling=weft.RankStabilized(), rank_pattern={"q_proj": 3}),
        _peft(list(_ATTENTION), use_rslora=True, rank_pattern={"q_proj": 3}),
        expected={"scaling": weft.RankStabilized()},
    ),
    Case("GPT-2", _gpt2, _config(("c_attn", "c_proj", "c_fc")), _peft(["c_attn", "c_proj", "c_fc"])),
    Case("GPT-2, told", _gpt2, None, _peft(["c_attn"], fan_in_fan_out=True)),
    Case("embedding", _llama, _config(("embed_tokens", "q_proj")), _peft(["embed_tokens", "q_proj"])),
    Case("output head", _llama, _config(("lm_head", "q_proj")), _peft(["lm_head", "q_proj"])),
    Case("tied", partial(_llama, tie_word_embeddings=True), _config(("embed_tokens",)), _peft(["embed_tokens"])),
    Case(
        "classifier",
        partial(_llama, LlamaForSequenceClassification, num_labels=3),
        _config(_ATTENTION, train_modules=("score",)),
        _peft(list(_ATTENTION), task_type="SEQ_CLS"),
        expected={"train_modules": ("score",)},
    ),
    Case(
        "whole modules named by PEFT's looser rule",
        _llama,
        None,
        _peft(["q_proj"], modules_to_save=["1.input_layernorm", "norm"]),
    ),
    *(
        Case(
            f"{bias} biases",
            lambda: Layers(nn.Linear(5, 6), nn.LayerNorm(6), nn.Linear(6, 4)),
            _config(("net.0",), bias=bias),
            _peft(["net.0"], bias=theirs),
            partial(torch.randn, 3, 5),
            {"bias": bias},
        )
        for bias, theirs in (("adapted", "lora_only"), ("all", "all"))
    ),
    Case(
        "all biases beside a whole module",
        lambda: Layers(nn.Linear(5, 6), nn.LayerNorm(6), nn.Linear(6, 4)),
        _config(("net.0",), bias="all", train_modules=("net.2",)),
        _peft(["net.0"], bias="all", modules_to_save=["net.2"]),
        partial(torch.randn, 3, 5),
    ),
    *(
        Case(
            f"conv{d}d",
            lambda conv=conv: Layers(conv(3, 4, 3, stride=2, padding=1), conv(4, 5, 2)),
            _config(("net.0", "net.1")),
            _peft(["net.0", "net.1"]),
            partial(torch.randn, 2, 3, *(7, 6, 5)[:d]),
        )
        for d, conv in enumerate((nn.Conv1d, nn.Conv2d, nn.Conv3d), start=1)
    ),
    Case(
        "grouped",
        lambda: Layers(nn.Conv2d(4, 6, 3, groups=2), nn.Conv2d(6, 6, 2, groups=6)),
        _config(("net.0", "net.1"), rank_pattern={"net.1": 1}),
        None,
        partial(torch.randn, 2, 4, 6, 6),
    ),
    Case(
        "grouped, rank-stabilised",
        lambda: Layers(nn.Conv1d(4, 6, 3, groups=2)),
        _config(("net.0",), scaling=weft.RankStabilized()),
        None,
        partial(torch.randn, 2, 4, 6),
    ),
    Case("bare names", Tower, _config(("re:proj", "inner.deep.proj")), None, partial(torch.randn, 3, 6)),
    Case(
        "one path the end of another",
        Tower,
        _config(("inner.proj", "inner.deep.proj", "proj"), rank_pattern={"re:proj": 3, "re:inner.proj": 1}),
        None,
        partial(torch.randn, 3, 6),
    ),
]

_DORA = (
    "llama", "patterns", "rank-stabilised", "GPT-2", "GPT-2, told", "embedding", "output head", "tied", "classifier",
    "adapted biases", "all biases", "conv1d", "conv2d", "conv3d", "one path the end of another",
)  # fmt: skip
CASES += [
    replace(
        case,
        name=f"{case.name}, DoRA",
        # PEFT adapts the embedding of a tied pair alone; weft refuses to train that, and reads it.
        weft=None if case.weft is None or case.name == "tied" else replace(case.weft, variant=weft.DoRA()),
        peft=None if case.peft is None else case.peft | {"use_dora": True},
        expected=case.expected | {"variant": weft.DoRA()},
    )
    for case in CASES
    if case.name in _DORA
]


def _output(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        output = model(x)
    return output if isinstance(output, Tensor) else output.logits


def _randomise(parameters: Any) -> None:
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(torch.randn_like(parameter) * 0.3)


def _trained_by_weft(case: Case) -> tuple[nn.Module, weft.Adapter]:
    assert case.weft is not None
    model = weft.attach(case.base(), case.weft)
    _randomise(weft.trainable_parameters(model))
    return model, weft.collect(model)


def _trained_by_peft(case: Case, base: nn.Module | None = None) -> peft.PeftModel:
    assert case.peft is not None
    model = peft.get_peft_model(base or case.base(), peft.LoraConfig(**case.peft)).eval()
    _randomise(p for p in model.parameters() if p.requires_grad)
    return model


def _read_by_peft(base: nn.Module, folder: Path) -> peft.PeftModel:
    """The folder in PEFT; every one of its tensors bound, and nothing else expected."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*(missing|unexpected).*", category=UserWarning)
        model = peft.PeftModel.from_pretrained(base, folder).eval()
    stored = load_file(folder / "adapter_model.safetensors")
    bound = model.state_dict()
    for key, tensor in stored.items():
        name, _, last = key.rpartition(".")
        places = (
            key, f"{name}.default.{last}", f"{key}.default", f"{name}.modules_to_save.default.{last}",
            f"{name}.base_layer.{last}", f"{key}.default.weight",
        )  # fmt: skip
        assert any(place in bound and torch.equal(bound[place], tensor) for place in places), key
    adapted = {name for name, module in model.base_model.model.named_modules() if isinstance(module, LoraLayer)}
    assert adapted == {key.removeprefix("base_model.model.").split(".lora_")[0] for key in stored if ".lora_" in key}
    return model


@pytest.mark.parametrize("case", [c for c in CASES if c.weft], ids=lambda c: c.name)
@pytest.mark.filterwarnings("ignore")
def test_peft_computes_what_weft_saved(case: Case, tmp_path: Path) -> None:
    model, adapter = _trained_by_weft(case)
    x = case.batch()
    expected = _output(model, x)
    assert not torch.allclose(expected, _output(case.base(), x), **TOLERANCE), "the adapter changes nothing"

    adapter.save(tmp_path / "adapter")
    theirs = _read_by_peft(case.base(), tmp_path / "adapter")
    torch.testing.assert_close(_output(theirs, x), expected, **TOLERANCE)
    for path, value in adapter.factors.items():
        assert theirs.base_model.model.get_submodule(path).scaling["default"] == value.scaling

    ours = weft.attach(case.base(), weft.load(tmp_path / "adapter"))
    assert torch.equal(_output(ours, x), expected)


@pytest.mark.parametrize("case", [c for c in CASES if c.peft], ids=lambda c: c.name)
@pytest.mark.filterwarnings("ignore")
def test_weft_computes_what_peft_saved(case: Case, tmp_path: Path) -> None:
    model = _trained_by_peft(case)
    x = case.batch()
    expected = _output(model, x)
    assert not torch.allclose(expected, _output(case.base(), x), **TOLERANCE), "the adapter changes nothing"

    model.save_pretrained(tmp_path / "theirs")
    adapter = weft.load(tmp_path / "theirs")
    for name, value in case.expected.items():
        assert getattr(adapter.config, name) == value
    ours = weft.attach(case.base(), adapter)
    torch.testing.assert_close(_output(ours, x), expected, **TOLERANCE)

    adapter.save(tmp_path / "ours")
    again = _read_by_peft(case.base(), tmp_path / "ours")
    torch.testing.assert_close(_output(again, x), expected, **TOLERANCE)


@pytest.mark.parametrize("name", ["llama", "patterns", "regular expression, left out, one layer", "embedding"])
@pytest.mark.filterwarnings("ignore")
def test_the_configuration_read_from_peft_chooses_the_same_modules_and_ranks(name: str, tmp_path: Path) -> None:
    case = next(c for c in CASES if c.name == name)
    _trained_by_peft(case).save_pretrained(tmp_path)
    adapter = weft.load(tmp_path)
    planned = {m.path: (m.rank, m.scaling) for m in weft.plan(case.base(), adapter.config).modules}
    assert planned == {path: (value.rank, value.scaling) for path, value in adapter.factors.items()}


@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Conv2d])
@pytest.mark.filterwarnings("ignore")
def test_a_grouped_convolution_of_peft_is_read_where_it_is_one_and_refused_where_not(
    kind: type[nn.Module], tmp_path: Path
) -> None:
    size = (6,) if kind is nn.Conv1d else (6, 6)
    case = Case(
        "", lambda: Layers(kind(4, 6, 3, groups=2)), None, _peft(["net.0"], r=4), partial(torch.randn, 2, 4, *size)
    )
    model = _trained_by_peft(case)
    model.save_pretrained(tmp_path / "mixed")
    with pytest.raises(FormatError, match=r"net\.0: its convolution has 2 groups.*no change of the grouped weight"):
        weft.load(tmp_path / "mixed")

    A = model.base_model.model.net[0].lora_A["default"].weight  # (R, in, *k): group i has rows 2i, 2i + 1
    with torch.no_grad():
        A[:2, 2:] = 0
        A[2:, :2] = 0
    model.save_pretrained(tmp_path / "blocks")
    adapter = weft.load(tmp_path / "blocks")
    assert adapter.factors["net.0"].rank == 4
    x = case.batch()
    ours = weft.attach(case.base(), adapter)
    torch.testing.assert_close(_output(ours, x), _output(model, x), **TOLERANCE)
    adapter.save(tmp_path / "ours")
    torch.testing.assert_close(
        _output(_read_by_peft(case.base(), tmp_path / "ours"), x), _output(model, x), **TOLERANCE
    )


@pytest.mark.parametrize("init", ["pissa", "olora"])
@pytest.mark.filterwarnings("ignore")
def test_an_initializer_that_moved_the_base_is_refused_until_converted(init: str, tmp_path: Path) -> None:
    case = Case("", _llama, None, _peft(["q_proj"], init_lora_weights=init))
    start = peft.get_peft_model(case.base(), peft.LoraConfig(**case.peft or {}))
    start.peft_config["default"].init_lora_weights = True  # what PEFT's own instructions say to save the start with
    start.save_pretrained(tmp_path / "start")
    model = _trained_by_peft(case)
    model.save_pretrained(tmp_path / "moved")
    with pytest.raises(
        FormatError, match=f"init_lora_weights: '{init}' changes the base's weights.*path_initial_model"
    ):
        weft.load(tmp_path / "moved")

    expected = _output(model, _ids())
    model.save_pretrained(tmp_path / "plain", path_initial_model_for_weight_conversion=str(tmp_path / "start"))
    ours = weft.attach(case.base(), weft.load(tmp_path / "plain"))
    torch.testing.assert_close(_output(ours, _ids()), expected, rtol=1e-4, atol=1e-5)  # float32, W - BA + BA


@pytest.mark.parametrize("init", ["gaussian", "orthogonal", "eva", "mica", False])
@pytest.mark.filterwarnings("ignore")
def test_an_initializer_that_leaves_the_base_alone_is_no_hindrance(init: str | bool, tmp_path: Path) -> None:
    case = Case("", _llama, None, _peft(["q_proj"], init_lora_weights=init))
    model = _trained_by_peft(case)
    model.save_pretrained(tmp_path)
    ours = weft.attach(case.base(), weft.load(tmp_path))
    torch.testing.assert_close(_output(ours, _ids()), _output(model, _ids()), **TOLERANCE)


def test_pissa_of_weft_reaches_peft_as_plain_factors(tmp_path: Path) -> None:
    case = Case("", _llama, _config(("q_proj",), init=weft.PiSSA()), None)
    model, adapter = _trained_by_weft(case)
    adapter.save(tmp_path / "adapter")
    theirs = _read_by_peft(case.base(), tmp_path / "adapter")
    torch.testing.assert_close(_output(theirs, _ids()), _output(model, _ids()), rtol=1e-4, atol=1e-5)


def test_tied_factors_are_written_for_both_modules(tmp_path: Path) -> None:
    case = next(c for c in CASES if c.name == "tied")
    _, adapter = _trained_by_weft(case)
    adapter.save(tmp_path / "adapter")
    loaded = weft.load(tmp_path / "adapter")
    assert set(loaded.factors) == {"model.embed_tokens", "lm_head"}
    assert torch.equal(loaded.factors["lm_head"].B, loaded.factors["model.embed_tokens"].B)
    weft.merge(weft.attach(case.base(), loaded))  # refused if the two were not the same change


@pytest.mark.filterwarnings("ignore")
def test_the_copy_of_a_targeted_embedding_is_checked_against_the_base(tmp_path: Path) -> None:
    case = next(c for c in CASES if c.name == "embedding")
    _trained_by_peft(case).save_pretrained(tmp_path / "theirs")
    assert any(
        key.endswith("embed_tokens.base_layer.weight")
        for key in load_file(tmp_path / "theirs/adapter_model.safetensors")
    )
    adapter = weft.load(tmp_path / "theirs")
    attached = weft.attach(case.base().to(torch.bfloat16), adapter)  # the same base, rounded
    assert "model.embed_tokens.weight" not in weft.collect(attached).tensors

    other = case.base()
    with torch.no_grad():
        other.get_input_embeddings().weight[-1] += 1  # type: ignore[operator]
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(BindingError, match=r"model\.embed_tokens\.weight: the base weight that came with the adapter"):
        weft.attach(other, adapter)
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())


@pytest.mark.filterwarnings("ignore")
def test_a_resized_vocabulary_comes_along(tmp_path: Path) -> None:
    case = next(c for c in CASES if c.name == "llama")
    base = case.base()
    assert isinstance(base, PreTrainedModel)
    base.resize_token_embeddings(26)
    model = _trained_by_peft(case, base)
    model.save_pretrained(tmp_path, save_embedding_layers=True)
    adapter = weft.load(tmp_path)
    assert set(adapter.config.train_modules) == {"model.embed_tokens", "lm_head"}
    with pytest.raises(BindingError, match=r"model\.embed_tokens\.weight: found \(26, 16\), expected \(24, 16\)"):
        weft.attach(case.base(), adapter)
    resized = case.base()
    assert isinstance(resized, PreTrainedModel)
    resized.resize_token_embeddings(26)
    torch.testing.assert_close(_output(weft.attach(resized, adapter), _ids()), _output(model, _ids()), **TOLERANCE)


@pytest.mark.parametrize("name", ["style", "default"])
@pytest.mark.filterwarnings("ignore")
def test_an_adapter_in_a_subfolder_of_its_name(name: str, tmp_path: Path) -> None:
    case = next(c for c in CASES if c.name == "llama")
    model = peft.get_peft_model(case.base(), peft.LoraConfig(**case.peft or {}), adapter_name=name).eval()
    _randomise(p for p in model.parameters() if p.requires_grad)
    model.save_pretrained(tmp_path)
    ours = weft.attach(case.base(), weft.load(tmp_path))
    torch.testing.assert_close(_output(ours, _ids()), _output(model, _ids()), **TOLERANCE)


@pytest.mark.filterwarnings("ignore")
def test_keys_that_still_hold_the_adapters_name(tmp_path: Path) -> None:
    case = next(c for c in CASES if c.name == "classifier")
    model = _trained_by_peft(case)
    model.save_pretrained(tmp_path)
    held = {
        key: value.clone()
        for key, value in model.state_dict().items()
        if "lora_" in key or ".modules_to_save." in key or ".original_module." in key
    }
    assert any(".lora_A.default.weight" in key for key in held)
    save_file(held, tmp_path / "adapter_model.safetensors")
    ours = weft.attach(case.base(), weft.load(tmp_path))
    torch.testing.assert_close(_output(ours, _ids()), _output(model, _ids()), **TOLERANCE)


@pytest.mark.filterwarnings("ignore")
def test_the_task_is_named_where_peft_then_finds_its_head(tmp_path: Path) -> None:
    case = next(c for c in CASES if c.name == "classifier")
    _, adapter = _trained_by_weft(case)
    replace(adapter, provenance={"task_type": "SEQ_CLS"}).save(tmp_path / "with")
    assert isinstance(_read_by_peft(case.base(), tmp_path / "with"), peft.PeftModelForSequenceClassification)
    bare = replace(case, weft=_config(_ATTENTION))
    _, adapter = _trained_by_weft(bare)
    replace(adapter, provenance={"task_type": "SEQ_CLS"}).save(tmp_path / "without")
    _read_by_peft(case.base(), tmp_path / "without")  # PEFT fails on a missing head


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_survives(dtype: torch.dtype, tmp_path: Path) -> None:
    case = next(c for c in CASES if c.name == "llama")
    _, adapter = _trained_by_weft(case)
    half = replace(adapter, factors={path: value.to(dtype=dtype) for path, value in adapter.factors.items()})
    half.save(tmp_path / "adapter")
    model = peft.PeftModel.from_pretrained(case.base().to(dtype), tmp_path / "adapter", autocast_adapter_dtype=False)
    ours = weft.attach(case.base().to(dtype), weft.load(tmp_path / "adapter"))
    # Both round each product to the dtype, in another order; the outputs are below 1.
    torch.testing.assert_close(
        _output(ours, _ids()), _output(model.eval(), _ids()), rtol=0, atol=8 * torch.finfo(dtype).eps
    )
