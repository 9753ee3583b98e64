"""Law 7: what would do nothing, or something else than was asked for, is an error that says what to do."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from harness import Anatomy, identical, output
from torch import Tensor, nn

import weft
from weft import LoRAConfig
from weft.config import Initializer, Variant
from weft.errors import ConfigError, StateError, TargetError, WeftError


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj = nn.Linear(6, 6)
        self.v_proj = nn.Linear(6, 6)
        self.norm = nn.LayerNorm(6)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.act(self.v_proj(self.q_proj(self.norm(x))))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 6)
        self.layers = nn.ModuleList([Block(), Block(), Block()])
        self.score = nn.Linear(6, 4)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        return self.score(x)


def refuses(model: nn.Module, config: LoRAConfig, message: str, error: type[WeftError] = TargetError) -> None:
    """Attaching (and, where nothing starts, planning) fails with the message and leaves the model as it was."""
    before = Anatomy.of(model)
    with pytest.raises(error, match=message):
        weft.attach(model, config)
    before.check_restored(model)


SETTINGS = {
    "a target": (dict(targets="q_prj"), r"targets: 'q_prj' matches nothing; did you mean 'q_proj'"),
    "one of several targets": (dict(targets=("q_proj", "k_proj")), r"targets: 'k_proj' matches nothing; did you mean"),
    "a target beside all-linear": (dict(targets=("all-linear", "embd")), r"targets: 'embd' .*did you mean 'embed'"),
    "a target unlike any": (dict(targets="zzzzz"), r"'zzzzz' matches nothing; the modules are called embed, layers"),
    "a glob": (dict(targets="decoder.*.q_proj"), r"targets: 'decoder\.\*\.q_proj' matches nothing"),
    "a regular expression": (dict(targets=r"re:layers\.\d"), r"targets: .* names 'layers\.0', a Block"),
    "a broken regular expression": (dict(targets="re:("), r"'re:\(' is not a regular expression"),
    "a container": (dict(targets="layers.0"), r"'layers\.0', a Block; name the layers inside it: 'q_proj', 'v_proj'"),
    "a list of containers": (dict(targets="layers"), r"'layers', a ModuleList; name the layers inside it: 'q_proj'"),
    "a norm": (dict(targets="norm"), r"'norm' names 'layers\.0\.norm', a LayerNorm; weft adapts linear layers"),
    "exclude": (dict(exclude=("o_proj",)), r"exclude: 'o_proj' matches nothing; did you mean 'v_proj'"),
    "exclude everything": (dict(targets="q_proj", exclude=("q_proj",)), r"targets: 'q_proj' chose no module"),
    "rank_pattern": (dict(rank_pattern={"k_proj": 4}), r"rank_pattern: 'k_proj' matches nothing; did you mean"),
    "rank_pattern on another module": (
        dict(targets="q_proj", rank_pattern={"v_proj": 4}),
        r"rank_pattern: 'v_proj' matches nothing; did you mean 'q_proj'",
    ),
    "alpha_pattern": (dict(alpha_pattern={"k_proj": 4.0}), r"alpha_pattern: 'k_proj' matches nothing"),
    "train_modules": (dict(train_modules=("scor",)), r"train_modules: 'scor' matches nothing; did you mean 'score'"),
    "train_modules without parameters": (dict(train_modules=("act",)), r"'layers\.0\.act' \(ReLU\) has no parameters"),
    "train_modules that are never called": (
        dict(train_modules=("layers",), targets="score"),
        r"'layers' \(ModuleList\) only holds modules and is never called itself; name those inside it",
    ),
    "layers out of range": (dict(layers=(7,)), r"layers: there is no block 7 in this model; the blocks are 0 to 2"),
    "layers partly out of range": (dict(layers=(0, 7)), r"layers: there is no block 7"),
    "layers where there are none": (dict(targets="score", layers=(0,)), r"layers: .*'score'"),
    "a rank larger than the layer": (
        dict(rank=7),
        r"rank 7 is larger than 'layers\.0\.q_proj' \(6 x 6\) can use; lower it to at most 6.*rank_pattern",
    ),
    "dropout on token ids": (dict(targets="embed", dropout=0.1), r"'embed' cannot be adapted: dropout.*dropout=0"),
}


@pytest.mark.parametrize("what", SETTINGS)
def test_a_setting_that_does_nothing_is_named_with_what_to_do(what: str) -> None:
    settings, message = SETTINGS[what]
    error = ConfigError if "broken" in what else TargetError
    refuses(Model(), LoRAConfig(**{"rank": 2, **settings}), message, error)  # type: ignore[arg-type]


VALUES = {
    "rank": (dict(rank=0), "rank: expected a whole number of at least 1, found 0"),
    "a fractional rank": (dict(rank=2.5), "rank: .*found 2.5"),
    "a true rank": (dict(rank=True), "rank: .*found True"),
    "a rank of a pattern": (dict(rank_pattern={"q": 0}), r"rank_pattern\['q'\]: .*found 0"),
    "alpha zero": (dict(alpha=0), "alpha: expected a finite number other than 0"),
    "alpha not a number": (dict(alpha=float("nan")), "alpha: expected a finite number"),
    "an alpha of a pattern": (dict(alpha_pattern={"q": 0}), r"alpha_pattern\['q'\]"),
    "dropout one": (dict(dropout=1.0), "dropout: .*found 1.0"),
    "no targets": (dict(targets=()), "targets: nothing is named"),
    "exclude as a string": (dict(exclude="q_proj"), r"exclude: expected several values.*write \('q_proj',\)"),
    "layers as a number": (dict(layers=3), r"layers: expected several values, found 3; write \(3,\)"),
    "bias": (dict(bias="lora_only"), "bias: expected 'none', 'adapted' or 'all', found 'lora_only'"),
    "init as a string": (dict(init="pissa"), r"init: expected an initializer such as PiSSA"),
    "variant as a string": (dict(variant="dora"), "variant: expected a variant such as LoRA"),
    "scaling as a number": (dict(scaling=2.0), "scaling: expected a scaling such as RankStabilized"),
}


@pytest.mark.parametrize("what", VALUES)
def test_a_value_that_cannot_be_is_refused_when_it_is_written(what: str) -> None:
    settings, message = VALUES[what]
    with pytest.raises(ConfigError, match=message):
        LoRAConfig(**settings)  # type: ignore[arg-type]


def test_names_from_a_file_are_checked_with_the_nearest() -> None:
    for values, message in (
        ({"rnak": 8}, "unknown setting 'rnak' of an adapter; did you mean 'rank'"),
        ({"init": "pisa"}, r"there is no initializer 'pisa'; did you mean 'pissa'\? \(there are: gaussian, kaiming"),
        ({"init": {"name": "pissa", "niter": 4}}, "init 'pissa' has no setting 'niter'"),
        ({"init": {"num_power_iters": 4}}, "init: expected a name, or a mapping with a name"),
        ({"variant": "dorra"}, "there is no variant 'dorra'"),
        ({"scaling": "rank_stabilised"}, "did you mean 'rank_stabilized'"),
    ):
        with pytest.raises(ConfigError, match=message):
            LoRAConfig.from_dict(values)


def test_a_configuration_survives_plain_values() -> None:
    config = LoRAConfig(
        rank=4, alpha=8, targets=("q", "v"), exclude=("o",), layers=(0, 2), rank_pattern={"q": 2},
        train_modules=("score",), bias="adapted", init=weft.PiSSA(num_power_iters=None), scaling=weft.RankStabilized(),
    )  # fmt: skip
    assert LoRAConfig.from_dict(config.to_dict()) == config
    assert LoRAConfig.from_dict({}) == LoRAConfig()


@dataclass(frozen=True)
class Unregistered(Initializer):
    name: ClassVar[str] = "unregistered"


@dataclass(frozen=True)
class UnregisteredVariant(Variant):
    name: ClassVar[str] = "unregistered"


def test_choices_without_code_are_refused() -> None:
    config = LoRAConfig(rank=2, init=Unregistered())
    refuses(Model(), config, r"no code is registered for the initializer Unregistered\(\)")
    refuses(Model(), LoRAConfig(rank=2, variant=UnregisteredVariant()), "no code is registered for the variant",
            ConfigError)  # fmt: skip


def test_an_optimizer_over_nothing_is_refused() -> None:
    model = Model()
    with pytest.raises(StateError, match=r"no adapter is attached to this Model; call weft\.attach"):
        list(weft.trainable_parameters(model))
    weft.attach(model, LoRAConfig(rank=2))
    adapter = weft.collect(model)
    weft.detach(model)
    weft.attach(model, adapter, name="frozen")
    with pytest.raises(StateError, match=r"none of the attached adapters \(frozen\) is trainable"):
        list(weft.trainable_parameters(model))
    with pytest.raises(StateError, match="frozen, it would never do anything"):
        weft.attach(model, LoRAConfig(rank=2), name="new", trainable=False)


def test_the_wrong_module_is_told_from_one_without_an_adapter() -> None:
    model = nn.Sequential(Model())
    weft.attach(model, LoRAConfig(rank=2))
    for call in (weft.merge, weft.unmerge, weft.detach, weft.collect, lambda m: weft.activate(m, "default")):
        with pytest.raises(StateError, match=r"pass the same module that was passed to weft\.attach"):
            call(model[0])


def test_names_that_are_not_attached_are_named_with_the_nearest() -> None:
    model = Model()
    weft.attach(model, LoRAConfig(rank=2), name="style")
    for call in (weft.activate, weft.collect, weft.merge, weft.detach):
        with pytest.raises(StateError, match=r"no adapter named 'stile' is attached; did you mean 'style'"):
            call(model, "stile")
    with pytest.raises(StateError, match="'stile'"), weft.active(model, ["style", "stile"]):
        pass


def test_embeddings_that_rewrite_their_weight_are_refused() -> None:
    refuses(nn.Sequential(nn.Embedding(9, 6, max_norm=1.0)), LoRAConfig(rank=2, targets="0"), "'0'.*max_norm")


class Scaled(nn.Embedding):
    def forward(self, input: Tensor) -> Tensor:
        return 2.5 * super().forward(input)


class Positions(nn.Embedding):
    """Takes something else than ids, as some models' positional embeddings do."""

    def forward(self, mask: Tensor, past: int = 0) -> Tensor:
        return super().forward(mask.cumsum(dim=1) - 1 + past)


class Doubled(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


class TwoInputs(nn.Linear):
    def forward(self, input: Tensor, gate: Tensor) -> Tensor:
        return super().forward(input) * gate


class OwnConv(nn.Conv1d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).relu()


@pytest.mark.parametrize("layer", [Scaled(9, 6), Positions(9, 6), Doubled(6, 6), TwoInputs(6, 6), OwnConv(6, 6, 3)],
                         ids=lambda layer: type(layer).__name__)  # fmt: skip
def test_a_subclass_that_computes_something_else_is_refused_by_name(layer: nn.Module) -> None:
    model = nn.Sequential(layer)
    refuses(model, LoRAConfig(rank=2, targets="0"), rf"'0' cannot be adapted: its class {type(layer).__name__}")


def test_looking_at_a_subclass_calls_no_hook_and_leaves_its_mode() -> None:
    calls: list[str] = []
    model = nn.Sequential(Doubled(6, 6), nn.Linear(6, 6))
    model[0].register_forward_hook(lambda module, args, y: calls.append("called"))
    before = Anatomy.of(model)
    plan = weft.plan(model, LoRAConfig(rank=2))
    assert [m.path for m in plan.modules] == ["1"]
    assert "Doubled" in plan.skipped["0"]
    assert calls == []
    before.check_restored(model)


def test_attention_that_reads_the_weight_itself_is_refused() -> None:
    model = nn.Sequential(nn.MultiheadAttention(8, 2))
    refuses(model, LoRAConfig(rank=2, targets="out_proj"), r"'0\.out_proj' cannot be adapted: nn\.MultiheadAttention")
    with pytest.raises(TargetError, match="chose no module"):
        weft.plan(model, LoRAConfig(rank=2))


def test_the_fast_path_of_an_encoder_layer_is_refused_until_it_is_off() -> None:
    # Frozen first: torch takes another attention kernel, right to the last bit but one, where nothing needs gradients.
    model = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)).eval().requires_grad_(False)
    config, x = LoRAConfig(rank=2, targets=("linear1", "linear2")), torch.randn(2, 3, 8)
    refuses(model, config, r"set_fastpath_enabled\(False\)")
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        expected = output(model, x)
        weft.attach(model, config)
        assert identical(output(model, x), expected)
        with torch.no_grad():
            model[0].linear1.adapters["default"].lora_B.fill_(1.0)
        assert not torch.equal(output(model, x), expected)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


def test_a_forward_replaced_on_the_object_is_refused() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    model[0].forward = lambda x: x  # type: ignore[method-assign]
    refuses(model, LoRAConfig(rank=2, targets="0"), "'0' cannot be adapted: its forward was replaced on the object")
    assert weft.plan(model, LoRAConfig(rank=2)).skipped == {
        "0": "its forward was replaced on the object, so an adapter would never be called"
    }


def test_a_tied_module_that_cannot_follow_is_named() -> None:
    embedding, head = Scaled(9, 6), nn.Linear(6, 9, bias=False)
    head.weight = embedding.weight
    model = nn.Sequential(embedding, nn.Linear(6, 6), head)
    refuses(model, LoRAConfig(rank=2, targets="2"), r"'2' shares its weight with '0', which cannot be adapted with it")
    plain = nn.Embedding(9, 6)
    plain.weight = head.weight
    model[0] = plain
    refuses(model, LoRAConfig(rank=2, targets="2", exclude=("0",)), r"shares its weight with '0'.*exclude '0'")


def test_biases_that_cannot_be_trained_beside_the_bases_are_named() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Bilinear(6, 6, 2))
    refuses(model, LoRAConfig(rank=2, targets="0", bias="all"), r"bias of '1' \(Bilinear\).*train_modules=\('1',\)")


def test_a_module_cannot_be_adapted_and_trained_whole_at_once() -> None:
    model = Model()
    weft.attach(model, LoRAConfig(rank=2, targets="q_proj", train_modules=("score",)), name="whole")
    with pytest.raises(TargetError, match=r"'score' cannot be adapted: another adapter trains .*exclude=\('score',\)"):
        weft.attach(model, LoRAConfig(rank=2), name="all")
    weft.attach(model, LoRAConfig(rank=2, exclude=("score",)), name="all")
    weft.detach(model)

    weft.attach(model, LoRAConfig(rank=2, targets="score"), name="factors")
    with pytest.raises(WeftError, match="'score'"):
        weft.attach(model, LoRAConfig(rank=2, targets="q_proj", train_modules=("score",)), name="whole")
    assert weft.adapter_names(model) == ("factors",)


def test_two_whole_modules_cannot_be_summed_or_scaled() -> None:
    model = Model()
    for name in ("a", "b"):
        weft.attach(model, LoRAConfig(rank=2, targets="q_proj", train_modules=("score",)), name=name)
    for call in (weft.activate, weft.merge):
        with pytest.raises(StateError, match="'a' and 'b' each have their own 'score'"):
            call(model, ["a", "b"])
        with pytest.raises(StateError, match=r"'score'.*cannot be scaled"):
            call(model, {"a": 0.5})
    weft.activate(model, "a")


def test_a_whole_module_does_not_hide_what_another_adapter_changes_inside_it() -> None:
    model = Model()
    weft.attach(model, LoRAConfig(rank=2, targets="score", train_modules=("layers.0",)), name="whole")
    weft.attach(model, LoRAConfig(rank=2, targets="layers.0.q_proj"), name="inside")
    for call in (weft.activate, weft.merge):
        with pytest.raises(StateError, match=r"'whole' has its own 'layers\.0', where what 'inside' changes"):
            call(model, ["whole", "inside"])
    weft.activate(model, "inside")


def test_the_plan_says_what_was_matched_and_why() -> None:
    model = Model()
    plan = weft.plan(
        model,
        LoRAConfig(rank=4, targets=("all-linear", "embed"), exclude=("v_proj",), layers=None,
                   rank_pattern={"layers.1.q_proj": 2}, train_modules=("score",)),
    )  # fmt: skip
    reasons = {m.path: (m.rank, m.reason) for m in plan.modules}
    assert reasons == {
        "embed": (4, "embed"),
        "layers.0.q_proj": (4, "all-linear"),
        "layers.1.q_proj": (2, "all-linear"),
        "layers.2.q_proj": (4, "all-linear"),
    }
    assert plan.skipped == {f"layers.{i}.v_proj": "exclude 'v_proj'" for i in range(3)} | {"score": "trained whole"}
    assert plan.trained == {"score": 28}
    assert plan.parameters == 4 * 15 + 12 * (4 + 2 + 4) + 28
    weft.attach(model, plan.config)
    assert sum(p.numel() for p in weft.trainable_parameters(model)) == plan.parameters
    assert weft.collect(model).num_parameters == plan.parameters


@pytest.mark.parametrize(
    ("targets", "layers", "expected"),
    [
        ("q_proj", None, ["layers.0.q_proj", "layers.1.q_proj", "layers.2.q_proj"]),
        ("1.q_proj", None, ["layers.1.q_proj"]),
        ("layers.2.v_proj", None, ["layers.2.v_proj"]),
        ("layers.[02].q*", None, ["layers.0.q_proj", "layers.2.q_proj"]),
        (r"re:layers\.[12]\.(q|v)_proj", (1,), ["layers.1.q_proj", "layers.1.v_proj"]),
        (("q_proj", "embed"), None, ["embed", "layers.0.q_proj", "layers.1.q_proj", "layers.2.q_proj"]),
        ("all-linear", (2, 0), ["layers.0.q_proj", "layers.0.v_proj", "layers.2.q_proj", "layers.2.v_proj"]),
    ],
)
def test_patterns_name_what_they_say(targets: object, layers: object, expected: list[str]) -> None:
    plan = weft.plan(Model(), LoRAConfig(rank=2, targets=targets, layers=layers))  # type: ignore[arg-type]
    assert [m.path for m in plan.modules] == expected


def test_a_plain_pattern_does_not_match_inside_a_name() -> None:
    refuses(Model(), LoRAConfig(rank=2, targets="proj"), r"targets: 'proj' matches nothing; did you mean")
