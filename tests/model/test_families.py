"""The sensible targets are found in every family, heads and tied weights are treated right, and the laws hold."""

import pytest
import torch
from families import FAMILIES, Family
from harness import Anatomy, identical, pretend_training
from torch import Tensor, nn
from transformers import GPT2Config, LlamaForCausalLM
from transformers.pytorch_utils import Conv1D

import weft
from weft.errors import TargetError
from weft.nn import layer_kind_of

CONFIG = weft.LoRAConfig(rank=2, alpha=4)
FAMILY = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
TIED = {"llama_tied", "qwen2", "gpt2", "bloom", "opt", "t5", "bert_mlm", "whisper"}


def named(name: str) -> Family:
    return next(family for family in FAMILIES if family.name == name)


def logits(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """The first output, which depends on every input."""
    output: Tensor = model(**batch)[0]
    return output


def ending(path: str) -> str:
    return path.rpartition(".")[2]


@FAMILY
def test_all_linear_finds_exactly_the_layers_of_the_backbone(family: Family) -> None:
    model = family.base()
    plan = weft.plan(model, CONFIG)
    chosen = {module.path for module in plan.modules}
    linear = {path for path, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)}
    assert {ending(path) for path in chosen} == family.endings
    assert {ending(path) for path in linear - chosen} == family.left_alone
    assert plan.skipped == dict.fromkeys(linear - chosen, "output head")
    assert all(module.reason == "all-linear" and module.shares is None for module in plan.modules)


@FAMILY
def test_all_layers_finds_every_layer_that_can_be_adapted(family: Family) -> None:
    model, batch = family.base(), family.batch()
    config = weft.LoRAConfig(rank=1, targets="all-layers")
    plan = weft.plan(model, config)
    chosen = {module.path for module in plan.modules}
    assert chosen | plan.skipped.keys() == {path for path, part in model.named_modules() if layer_kind_of(part)}
    assert {ending(path) for path in chosen} >= family.endings
    reasons = (
        "computes something other than W[ids]",
        "shares the weight of",
    )  # scaled embeddings, and heads tied to them
    assert all(any(reason in why for reason in reasons) for why in plan.skipped.values())
    base = logits(model, batch)
    assert torch.equal(logits(weft.attach(model, config), batch), base)


@FAMILY
def test_the_life_of_an_adapter(family: Family) -> None:
    model, batch = family.base(), family.batch()
    before = Anatomy.of(model)
    with torch.no_grad():
        base = logits(model, batch)
    weft.attach(model, CONFIG)
    with torch.no_grad():
        assert torch.equal(logits(model, batch), base)
    before.check_tensors_untouched(model)

    logits(model, batch).square().sum().backward()
    silent = [n for n, p in model.named_parameters() if n.endswith("lora_B") and (p.grad is None or not p.grad.any())]
    assert silent == []

    pretend_training(model)
    with torch.no_grad():
        trained = logits(model, batch)
        assert not torch.allclose(trained, base, atol=1e-3)
        for undo in ("snapshot", "patch"):
            with weft.merged(model, undo=undo):  # type: ignore[arg-type]
                # Two layers deep in float32, from one rounding of each weight: a few thousand units at most.
                assert torch.allclose(logits(model, batch), trained, rtol=1e-3, atol=1e-4)
            before.check_tensors_untouched(model)
        assert identical(logits(model, batch), trained)

    adapter = weft.collect(model)
    weft.detach(model)
    before.check_restored(model)
    with torch.no_grad():
        assert identical(logits(model, batch), base)
        weft.attach(model, adapter)
        assert identical(logits(model, batch), trained)


@pytest.mark.parametrize("name", sorted(TIED))
def test_tied_embeddings_are_adapted_as_one_whichever_is_named(name: str) -> None:
    family = named(name)
    model, batch = family.base(), family.batch()
    paths = {id(module): path for path, module in model.named_modules()}
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    assert table.weight is head.weight
    with torch.no_grad():
        base = logits(model, batch)
    plans = []
    for target in (paths[id(table)], paths[id(head)]):
        plan = weft.plan(model, weft.LoRAConfig(rank=2, targets=target))
        plans.append({module.path for module in plan.modules})
        assert sum(module.shares is None for module in plan.modules) == 1
        assert {paths[id(table)], paths[id(head)]} <= plans[-1]

        weft.attach(model, plan.config)
        assert len(list(weft.trainable_parameters(model))) == 2
        assert sum(p.numel() for p in weft.trainable_parameters(model)) == plan.parameters
        with torch.no_grad():
            assert torch.equal(logits(model, batch), base)
        pretend_training(model)
        with torch.no_grad():
            trained = logits(model, batch)
            assert weft.merge(model).tensors == 1
            assert table.weight is head.weight
            assert torch.allclose(logits(model, batch), trained, rtol=1e-3, atol=1e-4)
            weft.unmerge(model)
            assert identical(logits(model, batch), trained)
            weft.detach(model)
            assert identical(logits(model, batch), base)
    assert plans[0] == plans[1]


@pytest.mark.parametrize("name", ["gemma", "gemma2", "gemma3"])
def test_an_embedding_that_scales_its_output_is_refused_with_the_head_that_shares_it(name: str) -> None:
    model = named(name).base()
    assert model.lm_head.weight is model.model.embed_tokens.weight
    with pytest.raises(TargetError, match=r"embed_tokens' cannot be adapted: its class Gemma.?TextScaledWordEmbedding"):
        weft.plan(model, weft.LoRAConfig(rank=2, targets="embed_tokens"))
    with pytest.raises(TargetError, match=r"'lm_head' shares its weight with 'model\.embed_tokens'"):
        weft.plan(model, weft.LoRAConfig(rank=2, targets="lm_head"))


def test_an_untied_head_can_be_named() -> None:
    model = named("llama").base()
    plan = weft.plan(model, weft.LoRAConfig(rank=2, targets=("all-linear", "lm_head")))
    assert [m.reason for m in plan.modules if m.path == "lm_head"] == ["lm_head"]
    assert plan.skipped == {}


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert", "vit"])
def test_a_classifier_is_trained_whole_beside_the_factors(name: str) -> None:
    family = named(name)
    model, batch = family.base(), family.batch()
    weft.attach(model, weft.LoRAConfig(rank=2, train_modules=("classifier",)))
    with torch.no_grad():
        base = logits(model, batch)
    logits(model, batch).square().sum().backward()
    assert model.classifier.adapters["default"].weight.grad.any()
    pretend_training(model)
    with torch.no_grad():
        trained = logits(model, batch)
        with weft.merged(model):
            assert torch.allclose(logits(model, batch), trained, rtol=1e-3, atol=1e-4)
        with weft.active(model, None):
            assert identical(logits(model, batch), base)
    assert set(weft.collect(model).tensors) == {"classifier.weight", "classifier.bias"}


@FAMILY
def test_every_bias_can_be_trained(family: Family) -> None:
    model, batch = family.base(), family.batch()
    with torch.no_grad():
        base = logits(model, batch)
        weft.attach(model, weft.LoRAConfig(rank=2, bias="all"))
        assert torch.equal(logits(model, batch), base)
        pretend_training(model)
        trained = logits(model, batch)
        with weft.merged(model):
            assert torch.allclose(logits(model, batch), trained, rtol=1e-3, atol=1e-4)
        weft.detach(model)
        assert identical(logits(model, batch), base)


@pytest.mark.parametrize("name", ["llama", "gpt2", "t5", "bert"])
def test_transformers_own_checkpointing_gives_the_same_gradients(name: str) -> None:
    family = named(name)
    model, batch = family.base().double(), family.batch()
    weft.attach(model, CONFIG)
    pretend_training(model)
    model.train()
    for module in model.modules():
        for attribute, value in vars(module).items():
            if attribute in ("p", "dropout", "attention_dropout") and isinstance(value, float):
                setattr(module, attribute, 0.0)
    parameters = list(weft.trainable_parameters(model))
    plain = torch.autograd.grad(logits(model, batch).square().sum(), parameters)
    model.gradient_checkpointing_enable()
    recomputed = torch.autograd.grad(logits(model, batch).square().sum(), parameters)
    for mine, theirs in zip(recomputed, plain, strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-9, atol=1e-9)


def test_generating_with_a_cache_says_the_same_merged_and_unmerged() -> None:
    model = named("llama").base().double()
    batch = named("llama").batch()
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    base = model.generate(**batch, **options)
    weft.attach(model, CONFIG)
    pretend_training(model)
    said = model.generate(**batch, **options)
    assert not torch.equal(said, base)
    with weft.merged(model):
        assert torch.equal(model.generate(**batch, **options), said)
    with weft.active(model, None):
        assert torch.equal(model.generate(**batch, **options), base)


def test_the_same_checkpoint_in_bfloat16_takes_the_adapter(tmp_path: object) -> None:
    family = named("llama_tied")
    model = family.base()
    model.save_pretrained(tmp_path)
    weft.attach(model, CONFIG)
    pretend_training(model)
    adapter = weft.collect(model)
    half = LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    weft.attach(half, adapter)
    assert weft.adapter_names(half) == ("default",)
    assert adapter.provenance == {}


def test_where_the_base_came_from_is_kept(tmp_path: object) -> None:
    named("llama").base().save_pretrained(tmp_path)
    model = LlamaForCausalLM.from_pretrained(tmp_path)
    weft.attach(model, CONFIG)
    assert weft.collect(model).provenance == {"base": str(tmp_path)}


def test_a_plan_of_a_large_model_needs_no_weights() -> None:
    from transformers import GPT2LMHeadModel

    with torch.device("meta"):
        model = GPT2LMHeadModel(GPT2Config(n_embd=1600, n_layer=48, n_head=25))
    plan = weft.plan(model, weft.LoRAConfig(rank=16))
    assert len(plan.modules) == 4 * 48
    assert plan.parameters == 48 * 16 * (1600 * (1 + 3) + 1600 * (1 + 1) + 2 * 1600 * (1 + 4))
    assert "h.*.attn.c_attn" in str(plan)
