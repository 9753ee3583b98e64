"""`weft.extract`: base and adapter together are the fine-tuned model, within the error that is stated."""

import copy
import json
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import transformers as t
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import weft
from weft import linalg
from weft.errors import ConfigError, FormatError, TargetError
from weft.model import difference
from weft.model.extract import extract_with_report
from weft.nn import layer_kind_of

SIZE = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 48}
LLAMA = {**SIZE, "num_key_value_heads": 1, "max_position_embeddings": 32, "pad_token_id": 0}
IDS = torch.randint(3, 40, (4, 8), generator=torch.Generator().manual_seed(1))


@dataclass(frozen=True)
class Sort:
    """A sort of model, what it is fed, and what a training step minimises."""

    make: Callable[[], t.PreTrainedModel]
    auto: type
    inputs: Callable[[], dict[str, Tensor]]

    def base(self) -> t.PreTrainedModel:
        """Always the same; with no vector or scale at a value that hides a mix-up."""
        torch.manual_seed(0)
        model = self.make().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
        return model

    def output(self, model: nn.Module) -> Tensor:
        logits: Tensor = model(**self.inputs()).logits
        return logits


def pixels() -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(2))}


def speech() -> dict[str, Tensor]:
    features = torch.randn(2, 8, 16, generator=torch.Generator().manual_seed(2))
    return {"input_features": features, "decoder_input_ids": IDS[:2]}


SORTS = {
    "llama": Sort(
        lambda: t.LlamaForCausalLM(t.LlamaConfig(**LLAMA, attention_bias=True)),
        t.AutoModelForCausalLM,
        lambda: {"input_ids": IDS},
    ),
    "tied": Sort(
        lambda: t.LlamaForCausalLM(t.LlamaConfig(**LLAMA, tie_word_embeddings=True)),
        t.AutoModelForCausalLM,
        lambda: {"input_ids": IDS},
    ),
    "gpt2": Sort(
        lambda: t.GPT2LMHeadModel(
            t.GPT2Config(n_embd=24, n_layer=2, n_head=2, vocab_size=48, n_positions=32, bos_token_id=0, eos_token_id=0)
        ),
        t.AutoModelForCausalLM,
        lambda: {"input_ids": IDS},
    ),
    "whisper": Sort(
        lambda: t.WhisperForConditionalGeneration(
            t.WhisperConfig(
                d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
                encoder_ffn_dim=24, decoder_ffn_dim=24, vocab_size=48, num_mel_bins=8, max_source_positions=8,
                max_target_positions=16, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
                suppress_tokens=None, begin_suppress_tokens=None,
            )
        ),
        t.AutoModelForSpeechSeq2Seq,
        speech,
    ),
    "convnext": Sort(
        lambda: t.ConvNextForImageClassification(
            t.ConvNextConfig(num_stages=2, depths=[1, 1], hidden_sizes=[8, 12], patch_size=2, num_labels=5)
        ),
        t.AutoModelForImageClassification,
        pixels,
    ),
}  # fmt: skip


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Path -> the matrix of each layer that weft adapts."""
    found = {path: (layer_kind_of(module), module) for path, module in model.named_modules()}
    return {path: kind.matrix(module) for path, (kind, module) in found.items() if kind is not None}


def add_low_rank(model: nn.Module, rank: int) -> None:
    """Adds a change of this rank (or the largest that there is) to every matrix."""
    seen: set[int] = set()
    with torch.no_grad():
        for matrix in weights(model).values():
            if matrix.data_ptr() not in seen:
                seen.add(matrix.data_ptr())
                m, n = matrix.shape
                r = min(rank, m, n)
                matrix += linalg.LowRank(torch.randn(m, r), torch.randn(r, n), 0.2 / math.sqrt(m * r)).dense()


def trained(sort: Sort, model: t.PreTrainedModel, steps: int = 4) -> t.PreTrainedModel:
    """The model after a few real steps of full fine-tuning."""
    tuned = copy.deepcopy(model).train()
    optimizer = torch.optim.AdamW(tuned.parameters(), lr=2e-3)
    for _ in range(steps):
        sort.output(tuned)[..., 3].mean().neg().backward()
        optimizer.step()
        optimizer.zero_grad()
    return tuned.eval()


def saved(model: t.PreTrainedModel, folder: Path, **options: object) -> Path:
    model.save_pretrained(folder, **options)
    return folder


Damage = Callable[[dict[str, Tensor]], object]


def damaged(folder: Path, damage: Damage) -> None:
    stored = load_file(folder / "model.safetensors")
    damage(stored)
    save_file(stored, folder / "model.safetensors", {"format": "pt"})


Pair = tuple[Path, Path]


@pytest.fixture
def low_rank_pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Sort, Pair]:
    sort = SORTS[request.param]
    model = sort.base()
    base = saved(model, tmp_path / "base")
    add_low_rank(model, 3)
    return sort, (base, saved(model, tmp_path / "tuned"))


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).detach().norm() / expected.detach().norm())


@pytest.mark.parametrize("low_rank_pair", SORTS, indirect=True)
def test_a_known_low_rank_is_recovered_exactly(low_rank_pair: tuple[Sort, Pair], tmp_path: Path) -> None:
    sort, (base, tuned) = low_rank_pair
    expected, model = sort.auto.from_pretrained(tuned).eval(), sort.auto.from_pretrained(base).eval()
    limit = {"error": 1e-4}  # float32: W + D was rounded to 6e-8 of W, which is up to a hundred times D
    found = extract_with_report(base, tuned, **limit)
    matrices = weights(model)
    unknown = {path for path in matrices if path.endswith("decoder.embed_positions")}  # Whisper's: a forward of its own
    assert found.adapter.factors.keys() == matrices.keys() - unknown
    for path, value in found.adapter.factors.items():
        assert value.rank == min(3, *matrices[path].shape), path
    if not unknown:
        assert not found.left_out
        assert found.relative_error < 1e-4

    assert found.adapter.base == weft.base_fingerprint(model)
    read = weft.load(found.adapter.save(tmp_path / "adapter"))
    weft.attach(model, read)
    weft.merge(model)
    for path, matrix in weights(model).items():
        if path not in unknown:
            assert relative(matrix, weights(expected)[path]) < 1e-5, path
    if not unknown:
        torch.testing.assert_close(sort.output(model), sort.output(expected), rtol=1e-3, atol=1e-4)


@pytest.fixture(scope="module")
def trained_pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    """Bases, and what a few steps of full fine-tuning made of them."""
    found = {}
    for name, sort in SORTS.items():
        folder = tmp_path_factory.mktemp(name)
        base = sort.base()
        tuned = saved(trained(sort, base), folder / "tuned")
        found[name] = (saved(base, folder / "base", max_shard_size="20KB"), tuned)  # shards on one side alone
    return found


@pytest.mark.parametrize("limit", [{"rank": 4}, {"energy": 0.9}, {"error": 0.2}])
@pytest.mark.parametrize("name", SORTS)
def test_the_stated_errors_are_true(trained_pairs: dict[str, Pair], name: str, limit: dict[str, float]) -> None:
    base, tuned = trained_pairs[name]
    found = extract_with_report(base, tuned, **limit)
    auto = SORTS[name].auto
    original, final = (auto.from_pretrained(folder).requires_grad_(False) for folder in (base, tuned))
    before, after = weights(original), weights(final)
    lost = 0.0
    for path, module in found.modules.items():
        change = after[path] - before[path]
        residual = change - found.adapter.factors[path].dense()
        assert module.sizes.change == pytest.approx(float(change.norm()), rel=1e-4)
        assert module.sizes.base == pytest.approx(float(before[path].norm()), rel=1e-4)
        assert module.relative_error == pytest.approx(float(residual.norm() / change.norm()), rel=1e-3, abs=1e-5)
        rank = module.rank
        assert module.relative_error <= 1.01 * float(linalg.best_rank(change, rank).relative_error) + 1e-5
        if "rank" in limit:
            assert rank == min(4, *change.shape)
        else:
            assert module.relative_error <= limit.get("error", (1 - limit.get("energy", 1)) ** 0.5)
            if rank > 1:
                assert linalg.best_rank(change, rank - 1).relative_error > limit.get("error", 0.1**0.5) * 0.999
        lost += float(residual.norm()) ** 2
    state = dict(original.named_parameters())
    changes = {key: value - state[key] for key, value in final.named_parameters()}
    missed = sum(float(changes[key].norm()) ** 2 for key in found.left_out)
    whole = sum(float(change.norm()) ** 2 for change in changes.values())
    assert found.norm == pytest.approx(whole**0.5, rel=1e-4)
    assert found.relative_error == pytest.approx(((lost + missed) / whole) ** 0.5, rel=1e-3)
    assert found.energy_left_out == pytest.approx(missed / whole, rel=1e-3)
    in_factors = {f"{path}.weight" for module in found.modules.values() for path in module.modules}
    assert found.left_out.keys() == {key for key, change in changes.items() if change.any()} - in_factors


@pytest.mark.parametrize("name", ["llama", "tied", "gpt2"])
def test_with_vectors_and_full_rank_the_model_is_the_finetuned_one(
    trained_pairs: dict[str, Pair], name: str, tmp_path: Path
) -> None:
    sort, (base, tuned) = SORTS[name], trained_pairs[name]
    found = extract_with_report(base, tuned, error=0, vectors=True)
    assert found.relative_error < 1e-5
    assert not found.left_out
    assert found.carried.keys() == {key for key in found.adapter.tensors}
    norms = [key for key in found.carried if "norm" in key or "ln_" in key]
    assert len(norms) >= 5

    expected, model = sort.auto.from_pretrained(tuned).eval(), sort.auto.from_pretrained(base).eval()
    weft.attach(model, weft.load(found.adapter.save(tmp_path / "adapter")))
    torch.testing.assert_close(sort.output(model), sort.output(expected), rtol=1e-3, atol=1e-4)
    for key, tensor in found.adapter.tensors.items():
        assert torch.equal(tensor, expected.get_parameter(key))


def test_what_is_left_out_is_named_with_its_reason(trained_pairs: dict[str, Pair]) -> None:
    found = extract_with_report(*trained_pairs["whisper"], rank=2, exclude=("fc1",))
    vector = "a vector, which vectors=True (--vectors) carries"
    reasons = {key: missed.reason for key, missed in found.left_out.items()}
    assert reasons["model.encoder.layers.0.fc1.weight"] == "exclude 'fc1'"
    assert reasons["model.encoder.layers.0.fc1.bias"] == vector
    assert reasons["model.encoder.layers.0.final_layer_norm.weight"] == vector
    assert "WhisperPositionalEmbedding has a forward of its own" in reasons["model.decoder.embed_positions.weight"]
    found = extract_with_report(*trained_pairs["convnext"], rank=2, targets="all-linear", vectors=True)
    reasons = {key: missed.reason for key, missed in found.left_out.items()}
    assert reasons["convnext.embeddings.patch_embeddings.weight"] == "not among the targets"
    assert reasons["convnext.encoder.stages.0.layers.0.layer_scale_parameter"] == "of no layer that weft adapts"
    assert vector not in reasons.values()


def test_running_statistics_are_carried_with_their_norm(tmp_path: Path) -> None:
    config = t.ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic", num_labels=5)
    sort = Sort(lambda: t.ResNetForImageClassification(config), t.AutoModelForImageClassification, pixels)
    model = sort.base()
    tuned = trained(sort, model)
    norms = [path for path, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    with torch.no_grad():
        for path in norms:  # so that of each norm the bias and the statistics change, and the scale does not
            tuned.get_parameter(f"{path}.weight").copy_(model.get_parameter(f"{path}.weight"))
    found = extract_with_report(
        saved(model, tmp_path / "base"), saved(tuned, tmp_path / "tuned"), error=0, vectors=True
    )
    assert not found.left_out
    assert {f"{path}.running_mean" for path in norms} <= found.adapter.tensors.keys()
    assert len(found.adapter.config.train_modules) == len(norms)
    assert found.adapter.config.bias == "adapted"  # the classifier's; those of the norms come with their modules
    weft.attach(model, weft.load(found.adapter.save(tmp_path / "adapter")))
    torch.testing.assert_close(sort.output(model), sort.output(tuned), rtol=1e-3, atol=1e-4)


def test_experts_that_transformers_joins_are_left_out_and_reported(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = t.MixtralForCausalLM(t.MixtralConfig(**{**LLAMA, "num_local_experts": 2, "num_hidden_layers": 1}))
    base = saved(model, tmp_path / "base")
    tuned = saved(trained(SORTS["llama"], model, steps=1), tmp_path / "tuned")
    found = extract_with_report(base, tuned, rank=2)
    experts = {key for key in load_file(tuned / "model.safetensors") if ".experts." in key}
    assert len(experts) == 6
    for key in experts:
        assert found.left_out[key].reason == "transformers makes another tensor of it as it loads"
        assert found.left_out[key].sizes is not None


def test_a_tied_weight_is_reduced_once(trained_pairs: dict[str, Pair]) -> None:
    found = extract_with_report(*trained_pairs["tied"], rank=2)
    factors = found.adapter.factors
    assert factors["model.embed_tokens"] is factors["lm_head"]
    assert found.modules["model.embed_tokens"].modules == ("model.embed_tokens", "lm_head")
    assert "lm_head" not in found.modules
    assert found.adapter.layouts["model.embed_tokens"].kind == "embedding"
    assert found.adapter.layouts["lm_head"].kind == "linear"
    excluded = extract_with_report(*trained_pairs["tied"], rank=2, exclude=("lm_head",))
    assert not {"model.embed_tokens", "lm_head"} & excluded.adapter.factors.keys()
    assert "model.embed_tokens.weight" in excluded.left_out


def test_whole_modules_are_carried_as_they_are(trained_pairs: dict[str, Pair], tmp_path: Path) -> None:
    sort, (base, tuned) = SORTS["convnext"], trained_pairs["convnext"]
    adapter = weft.extract(base, tuned, error=0, whole=("classifier", "layernorm"), vectors=True)
    assert "classifier" not in adapter.factors
    expected, model = sort.auto.from_pretrained(tuned).eval(), sort.auto.from_pretrained(base).eval()
    assert torch.equal(adapter.tensors["classifier.weight"], expected.classifier.weight)
    weft.attach(model, weft.load(adapter.save(tmp_path / "adapter")))
    scale = "convnext.encoder.stages.{}.layers.0.layer_scale_parameter"  # alone is left out: a parameter of a block
    with torch.no_grad():
        for stage in (0, 1):
            model.get_parameter(scale.format(stage)).copy_(expected.get_parameter(scale.format(stage)))
    torch.testing.assert_close(sort.output(model), sort.output(expected), rtol=1e-3, atol=1e-4)
    with pytest.raises(ConfigError, match=r"whole: 'lm_head' shares its weight with 'model\.embed_tokens\.weight'"):
        weft.extract(*trained_pairs["tied"], rank=2, whole=("lm_head",))


def test_what_did_not_change_gets_no_factors(tmp_path: Path) -> None:
    sort = SORTS["llama"]
    model = sort.base()
    base = saved(model, tmp_path / "base")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3] += 0.1  # one row: rank 1
        model.model.embed_tokens.weight[[5, 9]] += torch.randn(2, 24)
    found = extract_with_report(base, saved(model, tmp_path / "tuned"), rank=8)
    ranks = {path: value.rank for path, value in found.adapter.factors.items()}
    assert ranks == {"model.embed_tokens": 2, "model.layers.1.mlp.up_proj": 1}
    assert found.unchanged == len(load_file(base / "model.safetensors")) - 2
    assert found.adapter.config.rank == 2


def test_half_precision_differences_are_taken_in_float32_and_their_rounding_is_told(tmp_path: Path) -> None:
    sort = SORTS["llama"]
    model = sort.base().bfloat16()
    base = saved(model, tmp_path / "base")
    model.float()
    add_low_rank(model, 2)
    tuned = saved(model.bfloat16(), tmp_path / "tuned")
    found = extract_with_report(base, tuned, rank=2)
    # All that the rank misses is the rounding of W + D; the estimate is made from the size of W.
    assert found.rounding == pytest.approx(found.relative_error, rel=0.15)
    before, after = load_file(base / "model.safetensors"), load_file(tuned / "model.safetensors")
    for path, module in found.modules.items():
        change = after[f"{path}.weight"].double() - before[f"{path}.weight"].double()
        assert module.sizes.change == pytest.approx(float(change.norm()), rel=1e-5)
    narrow = extract_with_report(base, tuned, rank=2, dtype=torch.bfloat16)
    for path, module in narrow.modules.items():
        value = narrow.adapter.factors[path]
        assert value.dtype == torch.bfloat16
        change = after[f"{path}.weight"].double() - before[f"{path}.weight"].double()
        residual = change - value.to(dtype=torch.float64).dense()
        assert module.relative_error == pytest.approx(float(residual.norm() / change.norm()), rel=1e-2)
        assert module.relative_error > found.modules[path].relative_error


def test_a_copy_in_another_dtype_is_no_change(tmp_path: Path) -> None:
    model = SORTS["llama"].base()
    base, half = saved(model, tmp_path / "base"), saved(model.bfloat16(), tmp_path / "half")
    for first, second in ((base, half), (half, base)):
        if first is half:
            saved(SORTS["llama"].base().bfloat16().float(), base)
        with pytest.raises(ConfigError, match=r"do not differ: all \d+ tensors are equal"):
            weft.extract(first, second, rank=2)


def test_blocks_of_rows_give_what_whole_tensors_give(
    trained_pairs: dict[str, Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("gpt2", "convnext"):
        whole = extract_with_report(*trained_pairs[name], rank=3)
        with monkeypatch.context() as patch:
            patch.setattr(difference, "BLOCK_VALUES", 100)
            patch.setattr(difference, "PIECE_VALUES", 30)
            blocks = extract_with_report(*trained_pairs[name], rank=3)
        for path, value in whole.adapter.factors.items():
            torch.testing.assert_close(blocks.adapter.factors[path].dense(), value.dense(), rtol=1e-4, atol=1e-7)
        assert blocks.relative_error == pytest.approx(whole.relative_error, rel=1e-5)


def test_memory_is_bounded_by_a_block(trained_pairs: dict[str, Pair], tmp_path: Path) -> None:
    """The change of the embedding alone would be 80 MiB in float32."""
    rows = 40960
    config = t.LlamaConfig(**{**LLAMA, "hidden_size": 512, "num_hidden_layers": 1, "tie_word_embeddings": True})
    model = t.LlamaForCausalLM(config).bfloat16()
    table, change = torch.ones(rows, 512), torch.randn(rows, 1) @ torch.randn(1, 512)
    for name, embedding in (("base", table), ("tuned", table + change)):
        folder = saved(model, tmp_path / name)
        damaged(folder, lambda stored, new=embedding: stored.update({"model.embed_tokens.weight": new.bfloat16()}))
        values = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(values | {"vocab_size": rows}))
    code = """
import re, sys, torch, weft
from pathlib import Path
from weft.model import difference
torch.set_num_threads(1)
block, *folders = sys.argv[1:]
weft.extract(*folders[2:], rank=4)  # what is imported, and linear algebra's own code
difference.BLOCK_VALUES = difference.PIECE_VALUES = int(block)
def memory(field): return int(re.search(field + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024
Path("/proc/self/clear_refs").write_text("5")  # the peak is counted anew from here
before = memory("VmRSS")
adapter = weft.extract(*folders[:2], rank=4)
assert adapter.factors["model.embed_tokens"].rank == 4
print(memory("VmHWM") - before)
"""

    def grown(block: int) -> float:
        folders = [tmp_path / "base", tmp_path / "tuned", *trained_pairs["llama"]]
        words = [sys.executable, "-c", code, str(block), *map(str, folders)]
        return float(subprocess.run(words, capture_output=True, text=True, check=True).stdout)

    assert grown(2**19) < 70  # MiB: a block is 2, the products with 20 vectors are 3 each; the rest is code


@pytest.fixture
def llama_pair(tmp_path: Path) -> Pair:
    model = SORTS["llama"].base()
    base = saved(model, tmp_path / "base")
    add_low_rank(model, 2)
    return base, saved(model, tmp_path / "tuned")


Q_PROJ = "model.layers.0.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda s: s.pop(Q_PROJ), rf"not of the base's architecture; 1 tensors.*\n  {Q_PROJ}: only in .*base"),
        (lambda s: s.update({Q_PROJ: torch.zeros(3, 3)}), rf"{Q_PROJ}: \(24, 24\) in .*base, \(3, 3\) in .*tuned"),
    ],
)
def test_files_of_another_architecture_are_refused(llama_pair: Pair, damage: Damage, message: str) -> None:
    damaged(llama_pair[1], damage)
    with pytest.raises(ConfigError, match=message):
        weft.extract(*llama_pair, rank=2)


def test_another_model_is_refused_with_the_first_dozen_differences(llama_pair: Pair, tmp_path: Path) -> None:
    other = saved(SORTS["gpt2"].base(), tmp_path / "other")
    with pytest.raises(ConfigError, match=r"only in (?s:.*)and \d+ more") as caught:
        weft.extract(llama_pair[0], other, rank=2)
    assert len(str(caught.value).splitlines()) == 15
    with pytest.raises(ConfigError, match="finetuned: there is no folder"):
        weft.extract(llama_pair[0], tmp_path / "nothing", rank=2)


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nan_and_infinity_are_named(llama_pair: Pair, side: int, value: float) -> None:
    damaged(llama_pair[side], lambda stored: stored[Q_PROJ][1].fill_(value))
    with pytest.raises(FormatError, match=rf"{llama_pair[side]}/model.safetensors: {Q_PROJ} holds NaN or infinity"):
        weft.extract(*llama_pair, rank=2)


def test_quantised_weights_are_refused(llama_pair: Pair) -> None:
    damaged(llama_pair[1], lambda stored: stored.update({Q_PROJ: stored[Q_PROJ].to(torch.int8)}))
    with pytest.raises(FormatError, match=r"q_proj: its weight is stored as I8 in .*not quantised"):
        weft.extract(*llama_pair, rank=2)


def test_a_tied_weight_that_was_torn_apart_is_refused(trained_pairs: dict[str, Pair], tmp_path: Path) -> None:
    model = SORTS["tied"].base()
    torn = saved(model, tmp_path / "torn")
    damaged(torn, lambda stored: stored.update({"lm_head.weight": stored["model.embed_tokens.weight"] + 1}))
    with pytest.raises(FormatError, match="are one tied weight in this architecture"):
        weft.extract(trained_pairs["tied"][0], torn, rank=2)
    damaged(torn, lambda stored: stored.update({"lm_head.weight": stored["model.embed_tokens.weight"].clone()}))
    assert weft.extract(torn, trained_pairs["tied"][1], rank=2).factors.keys() >= {"lm_head"}  # twice the same is one


def test_limits_and_patterns_that_cannot_be_are_refused(llama_pair: Pair) -> None:
    with pytest.raises(ConfigError, match="exactly one of rank, energy and error; found none"):
        weft.extract(*llama_pair)
    with pytest.raises(ConfigError, match="found rank and error"):
        weft.extract(*llama_pair, rank=2, error=0.1)
    with pytest.raises(ConfigError, match=r"rank: 25 is more than any of the modules can have \(24\)"):
        weft.extract(*llama_pair, rank=25)
    with pytest.raises(TargetError, match="targets: 'q_porj' matches nothing; did you mean 'q_proj'"):
        weft.extract(*llama_pair, rank=2, targets="q_porj")
    with pytest.raises(TargetError, match="train_modules: 'heads' matches nothing"):
        weft.extract(*llama_pair, rank=2, whole=("heads",))


def test_only_vectors_that_changed_need_the_option(tmp_path: Path) -> None:
    model = SORTS["llama"].base()
    base = saved(model, tmp_path / "base")
    with torch.no_grad():
        model.model.norm.weight += 1
        model.model.layers[0].self_attn.q_proj.bias += 1
    tuned = saved(model, tmp_path / "tuned")
    with pytest.raises(ConfigError, match=r"nothing that changed can be in the adapter:\n(?s:.*)norm.weight: a vector"):
        weft.extract(base, tuned, rank=2)
    adapter = weft.load(weft.extract(base, tuned, rank=2, vectors=True).save(tmp_path / "adapter"))
    restored = t.AutoModelForCausalLM.from_pretrained(base)
    weft.attach(restored, adapter)
    torch.testing.assert_close(SORTS["llama"].output(restored), SORTS["llama"].output(model))
