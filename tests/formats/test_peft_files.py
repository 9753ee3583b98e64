"""What a PEFT folder may hold, old and new, and what is refused by name."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft.utils.other import get_pattern_key
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import weft
from weft.errors import FormatError
from weft.fingerprint import fingerprint
from weft.formats.peft_config import PeftScaling

Q = "base_model.model.layers.0.q"
FACTORS = {f"{Q}.lora_A.weight": torch.ones(2, 3), f"{Q}.lora_B.weight": torch.ones(4, 2)}
CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q"]}

# Every field that these versions of PEFT write, as they write them.
PEFT_0_5 = {
    "auto_mapping": None, "base_model_name_or_path": "some/base", "bias": "none", "fan_in_fan_out": False,
    "inference_mode": True, "init_lora_weights": True, "layers_pattern": None, "layers_to_transform": None,
    "lora_alpha": 4, "lora_dropout": 0.05, "modules_to_save": None, "peft_type": "LORA", "r": 2, "revision": None,
    "target_modules": ["q"], "task_type": "CAUSAL_LM",
}  # fmt: skip
PEFT_0_10 = PEFT_0_5 | {
    "alpha_pattern": {}, "rank_pattern": {}, "layer_replication": None, "loftq_config": {}, "megatron_config": None,
    "megatron_core": "megatron.core", "use_dora": False, "use_rslora": False, "init_lora_weights": "gaussian",
}  # fmt: skip
PEFT_0_21 = PEFT_0_10 | {
    "alora_invocation_tokens": None, "arrow_config": None, "corda_config": None, "ensure_weight_tying": False,
    "eva_config": None, "exclude_modules": None, "kasa_config": None, "lora_bias": False, "lora_ga_config": None,
    "monteclora_config": None, "peft_version": "0.21.2", "qalora_group_size": 16, "target_parameters": None,
    "trainable_token_indices": None, "use_bdlora": None, "use_qalora": False, "velora_config": None,
    "auto_mapping": {"base_model_class": "Net", "parent_library": "evil_module"},
}  # fmt: skip
TOMORROW = PEFT_0_21 | {"use_something": False, "something_config": None, "something_map": {}, "something_list": []}


def _write(folder: Path, config: Any = CONFIG, tensors: Mapping[str, Tensor] = FACTORS) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    save_file(dict(tensors), folder / "adapter_model.safetensors", {"format": "pt"})
    return folder


def _adapter(**fields: Any) -> weft.Adapter:
    value = weft.LowRank(torch.randn(4, 2), torch.randn(2, 3), 2.0)
    values: dict[str, Any] = {
        "config": weft.LoRAConfig(rank=2, alpha=4, targets=("q",)),
        "factors": {"layers.0.q": value},
        "layouts": {"layers.0.q": weft.Layout()},
    }
    return weft.Adapter(**values | fields)


@pytest.mark.parametrize("config", [CONFIG, PEFT_0_5, PEFT_0_10, PEFT_0_21, TOMORROW], ids=len)
def test_configurations_of_every_age_are_read(config: dict[str, Any], tmp_path: Path) -> None:
    adapter = weft.load(_write(tmp_path, config))
    assert adapter.factors["layers.0.q"].scaling == 2
    assert torch.equal(adapter.factors["layers.0.q"].dense(), torch.full((4, 3), 4.0))
    assert adapter.provenance.get("base") == config.get("base_model_name_or_path")
    assert adapter.config.targets == ("q",)
    assert adapter.config.dropout == config.get("lora_dropout", 0)
    assert adapter.base is None


def test_peft_defaults_stand_in_for_missing_fields(tmp_path: Path) -> None:
    tensors = {f"{Q}.lora_A.weight": torch.ones(8, 3), f"{Q}.lora_B.weight": torch.ones(4, 8)}
    adapter = weft.load(_write(tmp_path, {"peft_type": "LORA", "target_modules": ["q"]}, tensors))
    assert (adapter.config.rank, adapter.config.alpha, adapter.factors["layers.0.q"].scaling) == (8, 8, 1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"use_dora": True}, r"layers\.0\.q: found no lora_magnitude_vector, which use_dora asks for"),
        ({"use_dora": 1}, "use_dora: expected bool, found 1"),
        ({"lora_bias": True}, "lora_bias: True"),
        ({"target_parameters": ["experts.w1"]}, r"target_parameters: \['experts.w1'\] .*raw parameters"),
        ({"trainable_token_indices": [3]}, r"trainable_token_indices: \[3\]"),
        ({"layer_replication": [[0, 4]]}, "layer_replication: .*repeats layers"),
        ({"megatron_config": {"a": 1}}, "megatron_config"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
        ({"arrow_config": {"top_k": 3}}, "arrow_config"),
        ({"use_qalora": True}, "use_qalora"),
        ({"kasa_config": {"beta": 1}}, "kasa_config: .*merge it with PEFT"),
        ({"use_something": True}, "use_something: True is not supported; weft does not know this field"),
        ({"something": 0}, "something: 0 is not supported"),
        ({"peft_type": "LOHA"}, "found peft_type 'LOHA'; weft reads peft_type 'LORA' only"),
        ({"peft_type": None}, "no peft_type"),
        ({"r": "2"}, "r: expected int, found '2'"),
        ({"r": True}, "r: expected int, found True"),
        ({"r": 0}, "r: expected a whole number of at least 1, found 0"),
        ({"target_modules": [1]}, r"target_modules: expected names, found \[1\]"),
        ({"layers_to_transform": ["1"]}, "layers_to_transform: expected whole numbers"),
        ({"bias": "some"}, "bias: expected 'none', 'all' or 'lora_only', found 'some'"),
        ({"rank_pattern": {"(": 2}}, r"rank_pattern: '\(' is not a regular expression"),
        ({"rank_pattern": {"q": 1.5}}, "rank_pattern: expected a rank for 'q', found 1.5"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights: 'pissa_niter_4' changes the base's weights"),
        ({"lora_dropout": 1.0}, "dropout: expected a number from 0"),
        ({"rank_pattern": {"q": 3}}, r"layers\.0\.q: its tensors have rank 2, but rank_pattern\['q'\] .* is 3"),
        ({"r": 4}, r"layers\.0\.q: its tensors have rank 2, but r in adapter_config\.json is 4"),
        ({"lora_alpha": float("nan")}, "scaling"),
    ],
    ids=str,
)
def test_what_weft_cannot_represent_is_refused_by_name(fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=message):
        weft.load(_write(tmp_path, CONFIG | fields))


def test_all_refused_fields_are_in_one_message(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"(?s)lora_bias.*use_qalora"):
        weft.load(_write(tmp_path, CONFIG | {"use_qalora": True, "lora_bias": True}))


@pytest.mark.parametrize("end", ["", ".weight", ".default", ".default.weight", ".weight.weight"])
def test_the_key_of_doras_magnitudes_as_every_version_of_peft_has_it(end: str, tmp_path: Path) -> None:
    tensors = FACTORS | {f"{Q}.lora_magnitude_vector{end}": torch.arange(4.0)}
    adapter = weft.load(_write(tmp_path, CONFIG | {"use_dora": True}, tensors))
    assert adapter.config.variant == weft.DoRA()
    assert torch.equal(adapter.magnitudes["layers.0.q"], torch.arange(4.0))


def test_use_dora_that_was_edited_is_noticed(tmp_path: Path) -> None:
    dora = weft.LoRAConfig(rank=2, alpha=4, targets=("q",), variant=weft.DoRA())
    _adapter(config=dora, magnitudes={"layers.0.q": torch.ones(4)}).save(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["use_dora"] is True
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"use_dora": False}))
    with pytest.raises(FormatError, match=r"use_dora in adapter_config\.json is False, but .*variant=DoRA\(\)"):
        weft.load(tmp_path)


def test_a_grouped_convolution_with_magnitudes_is_refused_both_ways(tmp_path: Path) -> None:
    value, layout = weft.LowRank(torch.randn(4, 2), torch.randn(2, 6), 2.0), weft.Layout("conv", (3,), groups=2)
    adapter = _adapter(
        config=weft.LoRAConfig(rank=2, alpha=4, targets=("q",), variant=weft.DoRA()),
        factors={"layers.0.q": value}, layouts={"layers.0.q": layout}, magnitudes={"layers.0.q": torch.ones(4)},
    )  # fmt: skip
    with pytest.raises(FormatError, match=r"layers\.0\.q: PEFT's DoRA .* grouped convolution"):
        adapter.save(tmp_path / "ours")
    tensors = {
        f"{Q}.lora_A.weight": torch.ones(2, 4, 3), f"{Q}.lora_B.weight": torch.ones(4, 1, 1),
        f"{Q}.lora_magnitude_vector": torch.ones(1, 4, 1),
    }  # fmt: skip
    with pytest.raises(FormatError, match=r"layers\.0\.q: PEFT's DoRA .* grouped convolution"):
        weft.load(_write(tmp_path / "theirs", CONFIG | {"use_dora": True}, tensors))


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({f"{Q}.lora_magnitude_vector": torch.ones(4)}, r"q: found lora_magnitude_vector \(DoRA\), but use_dora"),
        ({f"{Q}.lora_magnitude_vector": torch.ones(3)}, r"q: found lora_magnitude_vector \(3\) .*expected \(4,\)"),
        ({"base_model.model.x.lora_magnitude_vector": torch.ones(4)}, "x: found lora_magnitude_vector without lora_A"),
        (
            {f"{Q}.lora_magnitude_vector{end}": torch.ones(4) for end in ("", ".weight")},
            "a second lora_magnitude_vector of layers.0.q",
        ),
        ({f"{Q}.lora_B.bias": torch.ones(4)}, "a bias inside the adapter"),
        ({f"{Q}.lora_diag": torch.ones(2)}, "part of a LoRA variant that weft does not know"),
        ({"base_model.model.e.token_adapter.trainable_tokens_delta": torch.ones(1, 2)}, "trained token rows"),
        (
            {
                "base_model.model.attn.base_layer.out_proj.lora_A.weight": torch.ones(2, 3),
                "base_model.model.attn.base_layer.out_proj.lora_B.weight": torch.ones(3, 2),
            },
            "nn.MultiheadAttention",
        ),
        ({"model.q.lora_A.weight": torch.ones(2, 3)}, "expected a name that starts with 'base_model.model.'"),
        ({"base_model.model.k.lora_A.weight": torch.ones(2, 3)}, r"k: found lora_A \(2, 3\) without its lora_B"),
        (
            {"base_model.model.k.lora_embedding_B": torch.ones(2, 3)},
            "k: found lora_embedding_B .* without its lora_emb",
        ),
        (
            {
                "base_model.model.k.lora_A.weight": torch.ones(2, 3),
                "base_model.model.k.lora_B.weight": torch.ones(4, 3),
            },
            r"k: found lora_A \(2, 3\) and lora_B \(4, 3\); the ranks 2 and 3 differ",
        ),
        (
            {
                "base_model.model.k.lora_A.weight": torch.ones(2, 3, 3, 3),
                "base_model.model.k.lora_B.weight": torch.ones(4, 2),
            },
            "expected two dimensions each",
        ),
        (
            {
                "base_model.model.k.lora_A.weight": torch.ones(2, 3, dtype=torch.int8),
                "base_model.model.k.lora_B.weight": torch.ones(4, 2, dtype=torch.int8),
            },
            "expected float16, bfloat16, float32 or float64",
        ),
        (
            {
                "base_model.model.k.lora_A.other.weight": torch.ones(2, 3),
                "base_model.model.k.lora_B.other.weight": torch.ones(4, 2),
            },
            r"several adapters \('\(no name\)' in .*, 'other' in ",
        ),
        ({"base_model.model.k.lora_A.weight": torch.ones(0)}, "no values"),
        ({"base_model.model.norm.gain": torch.ones(3)}, "norm.gain: it is no factor, no bias"),
        (
            {"base_model.model.s.modules_to_save.bias": torch.ones(3), "base_model.model.s.bias": torch.zeros(3)},
            r"s\.bias: the file holds two different tensors",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_a_key_that_is_not_understood_is_refused(extra: dict[str, Tensor], message: str, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=message):
        weft.load(_write(tmp_path, CONFIG, FACTORS | extra))


def test_all_bad_keys_are_in_one_message(tmp_path: Path) -> None:
    bad = {f"base_model.model.{name}.lora_A.weight": torch.ones(2, 3) for name in "abc"}
    with pytest.raises(FormatError, match=r"(?s)3 of its 5 tensors.*a: found.*b: found.*c: found"):
        weft.load(_write(tmp_path, CONFIG, FACTORS | bad))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("adapter_config.json", b'{"peft_type": "LORA"', "is not JSON"),
        ("adapter_config.json", b"\xff\xfe", "is not JSON"),
        ("adapter_config.json", b"[1, 2]", "expected a JSON object with PEFT's fields, found a list"),
        ("adapter_config.json", b"", "is not JSON"),
        ("adapter_model.safetensors", b"", "not a whole safetensors file"),
        ("adapter_model.safetensors", b"version https://git-lfs.github.com/spec/v1\n", "not a whole safetensors file"),
    ],
)
def test_damaged_files_are_one_clear_error(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (_write(tmp_path) / name).write_bytes(content)
    with pytest.raises(FormatError, match=f"{name}.*{message}|{message}"):
        weft.load(tmp_path)


@pytest.mark.parametrize("kept", [4, 40, -1])
def test_truncated_weights_are_refused(kept: int, tmp_path: Path) -> None:
    weights = _write(tmp_path) / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:kept])
    with pytest.raises(FormatError, match="cut short or damaged"):
        weft.load(tmp_path)


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    (_write(tmp_path / "a") / "adapter_config.json").unlink()
    with pytest.raises(FormatError, match=r"holds no adapter_config\.json"):
        weft.load(tmp_path / "a")
    (_write(tmp_path / "b") / "adapter_model.safetensors").unlink()
    with pytest.raises(FormatError, match=r"holds no adapter_model\.safetensors"):
        weft.load(tmp_path / "b")
    with pytest.raises(FormatError, match=r"holds several adapters; name one: .*a, .*b"):
        weft.load(tmp_path)


def test_one_of_the_files_names_the_folder(tmp_path: Path) -> None:
    _write(tmp_path)
    assert weft.load(tmp_path / "adapter_model.safetensors").factors.keys() == {"layers.0.q"}
    assert weft.load(tmp_path / "adapter_config.json").factors.keys() == {"layers.0.q"}


class _Bomb:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def test_nothing_is_unpickled_or_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = _write(tmp_path / "adapter", PEFT_0_21)
    mark = tmp_path / "exploded"
    torch.save({"x": _Bomb(mark)}, folder / "adapter_model.bin")
    (tmp_path / "evil_module.py").write_text(f"import os; os.mkdir({str(mark)!r})")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    weft.load(folder)
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(FormatError, match=r"adapter_model\.bin is a pickle.*save_file"):
        weft.load(folder)
    assert not mark.exists()
    assert "evil_module" not in sys.modules


def test_the_advice_for_a_pickle_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = _write(tmp_path)
    (folder / "adapter_model.safetensors").unlink()
    torch.save(FACTORS, folder / "adapter_model.bin")
    with pytest.raises(FormatError) as caught:
        weft.load(folder)
    command = str(caught.value).partition('python -c "')[2].removesuffix('"')
    monkeypatch.chdir(folder)
    exec(command, {})
    assert weft.load(folder).factors.keys() == {"layers.0.q"}


def test_what_only_weft_knows_comes_back(tmp_path: Path) -> None:
    base = fingerprint({"layers.0.q.weight": torch.randn(4, 3)})
    config = weft.LoRAConfig(
        rank=2, alpha=4, dropout=0.1, targets=("q",), exclude=("k",), layers=(0, 3),
        rank_pattern={"z.q": 2, "a.q": 2}, init=weft.PiSSA(num_power_iters=None),
    )  # fmt: skip
    adapter = _adapter(config=config, base=base, provenance={"base": "some/base", "steps": 3, "notes": ["a", None]})
    loaded = weft.load(adapter.save(tmp_path / "adapter"))
    assert loaded.config == config
    assert list(loaded.config.rank_pattern) == ["z.q", "a.q"]  # the first match counts
    assert loaded.base == base
    assert loaded.provenance == adapter.provenance
    with safe_open(tmp_path / "adapter/adapter_model.safetensors", "pt") as file:
        assert file.metadata()["format"] == "pt"
    written = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert written["base_model_name_or_path"] == "some/base"


def test_an_alpha_edited_by_hand_counts(tmp_path: Path) -> None:
    folder = _adapter().save(tmp_path / "adapter")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 40}))
    assert weft.load(folder).factors["layers.0.q"].scaling == 20


@pytest.mark.parametrize(
    ("change", "message"),
    [("{", "cannot be read"), ("[]", "cannot be read"), ('{"config": {"rnk": 1}}', "unknown setting 'rnk'")],
)
def test_a_header_that_weft_did_not_write_is_refused(change: str, message: str, tmp_path: Path) -> None:
    folder = _write(tmp_path)
    save_file(FACTORS, folder / "adapter_model.safetensors", {"format": "pt", "weft": change})
    with pytest.raises(FormatError, match=message):
        weft.load(folder)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"factors": {}, "layouts": {}}, "nothing to save"),
        ({"layouts": {"layers.0.q": weft.Layout("experts")}}, "PEFT has no place for a layer of the kind 'experts'"),
        ({"tensors": {"norm.weight": torch.ones(3)}}, "no module that train_modules names: norm.weight"),
        ({"tensors": {"q.bias": torch.ones(0)}}, r"base_model\.model\.q\.bias: it has no values, shape \(0\)"),
        ({"tensors": {"q.bias": torch.ones(3, device="meta")}}, r"q\.bias: it has no values, shape \(3\)"),
        ({"tensors": {"q.bias": torch.ones(3, dtype=torch.complex64)}}, "complex64"),
        ({"provenance": {"when": Path}}, "must be plain values"),
        (
            {
                "factors": {"lora_A": weft.LowRank(torch.ones(4, 2), torch.ones(2, 3))},
                "layouts": {"lora_A": weft.Layout()},
                "tensors": {"lora_A.bias": torch.ones(4)},
            },
            r"(?s)could not be read again.*lora_A\.base_layer\.bias",
        ),
    ],
    ids=str,
)
def test_what_peft_cannot_hold_is_refused_and_nothing_is_written(
    fields: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(FormatError, match=message):
        _adapter(**fields).save(tmp_path / "adapter")
    assert list(tmp_path.iterdir()) == []


def test_patterns_are_short_where_a_name_has_one_rank_and_exact_where_not(tmp_path: Path) -> None:
    def value(rank: int) -> weft.LowRank:
        return weft.LowRank(torch.ones(4, rank), torch.ones(rank, 4), 1.0)

    ranks = {"a.q": 1, "b.a.q": 2, "a.k": 3, "b.k": 3, "a.v": 4, "b.v": 2, "x.a_v": 2, "c.o": 2, "x.c-o": 5, "d.q": 2}
    adapter = _adapter(
        factors={path: value(rank) for path, rank in ranks.items()}, layouts=dict.fromkeys(ranks, weft.Layout())
    )
    folder = adapter.save(tmp_path / "adapter")
    pattern = json.loads((folder / "adapter_config.json").read_text())["rank_pattern"]
    # "a.q" is an end of "b.a.q" too, and the dot of "a.v" would match the other sign of "a_v".
    assert pattern == {r"^a\.q": 1, "k": 3, r"^a\.v": 4, "c-o": 5}
    assert {path: factors.rank for path, factors in weft.load(folder).factors.items()} == ranks


_SCRIPT = """
import sys, torch, weft
value = weft.LowRank(torch.ones(4, 2), torch.ones(2, 3), 0.7)
paths = ["layers.%d.%s" % (i, n) for i in range(11) for n in "qkv"]
config = weft.LoRAConfig(targets=("q", "k", "v"), rank_pattern={"q": 2, "k": 2})
provenance = {"base": "some/base", "b": 1, "a": 2}
layouts = dict.fromkeys(paths, weft.Layout())
weft.Adapter(config, dict.fromkeys(paths, value), layouts, provenance=provenance).save(sys.argv[1])
"""


def test_the_same_adapter_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there, here = tmp_path / "there", tmp_path / "here"
    subprocess.run([sys.executable, "-c", _SCRIPT, there], env=os.environ | {"PYTHONHASHSEED": "1"}, check=True)
    monkeypatch.setattr(sys, "argv", ["", str(here)])
    exec(_SCRIPT, {})  # in this process, whose hash seed is another
    for name in ("adapter_model.safetensors", "adapter_config.json", "README.md"):
        assert (here / name).read_bytes() == (there / name).read_bytes(), name


_SHORT = st.text("ab._1", min_size=1, max_size=4)


@settings(max_examples=300)
@given(
    st.lists(_SHORT | st.sampled_from(["^a", "a|b", "[ab].1", ".*", "a.?b"]), max_size=6, unique=True),
    st.lists(_SHORT, min_size=1, max_size=3).map(".".join),
)
def test_a_pattern_gives_each_path_the_value_that_peft_gives_it(keys: list[str], path: str) -> None:
    alphas = {key: float(place + 2) for place, key in enumerate(keys)}
    expected = alphas.get(get_pattern_key(list(alphas), path), 1.0)
    assert PeftScaling({"r": 1, "lora_alpha": 1.0, "alpha_pattern": alphas})(path, 1) == expected


def test_many_modules_with_ranks_of_their_own_take_seconds(tmp_path: Path) -> None:
    paths = [f"layers.{i}.experts.{j}.{name}" for i in range(10) for j in range(100) for name in ("up", "down")]
    ranks = {path: 1 + place % 3 for place, path in enumerate(paths)}
    factors = {path: weft.LowRank(torch.ones(4, rank), torch.ones(rank, 4), 1.0) for path, rank in ranks.items()}
    start = time.process_time()
    folder = _adapter(factors=factors, layouts=dict.fromkeys(paths, weft.Layout())).save(tmp_path / "adapter")
    loaded = weft.load(folder)
    assert time.process_time() - start < 5  # trying each key on each module takes longer
    assert {path: value.rank for path, value in loaded.factors.items()} == ranks


def test_layers_come_in_their_natural_order(tmp_path: Path) -> None:
    value = weft.LowRank(torch.ones(4, 2), torch.ones(2, 3), 0.7)
    paths = [f"layers.{i}.q" for i in range(12)]
    folder = _adapter(factors=dict.fromkeys(paths, value), layouts=dict.fromkeys(paths, weft.Layout())).save(
        tmp_path / "a"
    )
    assert list(weft.load(folder).factors) == paths


def test_the_model_card_says_what_it_is(tmp_path: Path) -> None:
    folder = _adapter(provenance={"base": "some/base"}).save(tmp_path / "adapter")
    card = (folder / "README.md").read_text()
    assert card.startswith('---\nbase_model: "some/base"\nlibrary_name: peft\n')
    assert "| rank | 2 |" in card
    local = _adapter(provenance={"base": "/data/models/base"}).save(tmp_path / "local")
    assert "base_model:" not in (local / "README.md").read_text()  # a hub refuses a path there


_NAMES = st.text("abcxyz_-+?$é", min_size=1, max_size=5) | st.sampled_from(["0", "1", "10", "q_proj"])
_PATHS = st.lists(_NAMES, min_size=1, max_size=4).map(".".join).filter(lambda p: not p.startswith(("head", "norm")))
_SCALINGS = st.floats(-1e3, 1e3) | st.builds(lambda a, r: a / r, st.integers(1, 64), st.integers(1, 16))


@st.composite
def _adapters(draw: st.DrawFn) -> weft.Adapter:
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    factors, layouts, magnitudes = {}, {}, {}
    variant = draw(st.sampled_from([weft.LoRA(), weft.DoRA()]))
    for path in draw(st.lists(_PATHS, max_size=6, unique=True)):
        rank, out, kernel, groups = (
            draw(st.integers(1, 5)),
            6,
            (3, 1, 2)[: draw(st.integers(1, 3))],
            draw(st.sampled_from([1, 2, 3] if variant == weft.LoRA() else [1])),
        )
        kind = draw(st.sampled_from(["linear", "embedding", "conv"]))
        width = 2 * (int(torch.tensor(kernel).prod()) if kind == "conv" else 2)
        factors[path] = weft.LowRank(random(out, rank), random(rank, width), draw(_SCALINGS))
        layouts[path] = weft.Layout("conv", kernel, groups) if kind == "conv" else weft.Layout(kind)
        if variant == weft.DoRA():
            magnitudes[path] = random(width if kind == "embedding" else out)
    tensors = {"head.dense.weight": random(3, 4), "head.dense.count": torch.tensor(3), "norm.bias": random(4)}
    tensors |= {f"{path}.bias": random(6) for path in list(factors)[:1]}
    config = weft.LoRAConfig(
        rank=draw(st.integers(1, 64)),
        alpha=draw(st.floats(0.1, 100)),
        targets=("a", "re:b.*"),
        train_modules=("head",),
        bias="all",
        variant=variant,
        scaling=draw(st.sampled_from([weft.Standard(), weft.RankStabilized()])),
    )
    return weft.Adapter(config, factors, layouts, tensors, None, {"text": draw(st.text(max_size=5))}, magnitudes)


@settings(max_examples=40)
@given(_adapters())
def test_what_is_read_back_is_what_was_saved_bit_for_bit(adapter: weft.Adapter) -> None:
    with tempfile.TemporaryDirectory() as folder:
        loaded = weft.load(adapter.save(Path(folder) / "adapter"))
    assert loaded.factors.keys() == adapter.factors.keys()
    for path, value in adapter.factors.items():
        found = loaded.factors[path]
        assert found.dtype == value.dtype
        assert torch.equal(found.A, value.A)
        assert torch.equal(found.B, value.B)
        assert found.scaling == value.scaling
    assert loaded.layouts == adapter.layouts
    assert loaded.magnitudes.keys() == adapter.magnitudes.keys()
    assert all(torch.equal(loaded.magnitudes[path], m) for path, m in adapter.magnitudes.items())
    assert loaded.tensors.keys() == adapter.tensors.keys()
    assert all(torch.equal(loaded.tensors[key], value) for key, value in adapter.tensors.items())
    assert (loaded.config, loaded.provenance) == (adapter.config, adapter.provenance)


def test_values_read_do_not_hang_on_the_file(tmp_path: Path) -> None:
    folder = _write(tmp_path)
    adapter = weft.load(folder)
    (folder / "adapter_model.safetensors").write_bytes(b"")  # another program rewrites it in place
    assert torch.equal(adapter.factors["layers.0.q"].A, torch.ones(2, 3))


def test_tensors_of_a_model_view_are_written_whole(tmp_path: Path) -> None:
    wide = torch.randn(8, 6)
    value = weft.LowRank(wide.T[:4, ::4], wide[:2, :3], 2.0)  # strided views over one storage
    folder = _adapter(factors={"layers.0.q": value}).save(tmp_path / "adapter")
    stored = load_file(folder / "adapter_model.safetensors")
    assert torch.equal(stored[f"{Q}.lora_B.weight"], wide.T[:4, ::4])
    assert torch.equal(stored[f"{Q}.lora_A.weight"], wide[:2, :3])


def test_a_module_trained_whole_alone_comes_back(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    weft.attach(model, weft.LoRAConfig(targets="1", train_modules=("1",)))
    adapter = weft.collect(model)
    loaded = weft.load(adapter.save(tmp_path / "adapter"))
    assert loaded.factors == {}
    assert all(torch.equal(loaded.tensors[key], value) for key, value in adapter.tensors.items())
