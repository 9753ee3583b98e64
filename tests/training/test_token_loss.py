"""The loss in chunks of learned tokens: the same loss, gradients and scores as from all logits at once."""

import dataclasses
from collections.abc import Callable

import pytest
import torch
import transformers as t
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

import weft
from tests.families import FAMILIES, GEMMA, LLAMA
from weft.data.packed import PackedCollator
from weft.data.text import Collator
from weft.training.packing import packing
from weft.training.token_loss import Head, batch_loss, batch_scores, head_of, token_loss

MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: t.LlamaForCausalLM(t.LlamaConfig(**LLAMA)),
    "gpt2, tied": next(family.base for family in FAMILIES if family.name == "gpt2"),
    "gpt_neox": next(family.base for family in FAMILIES if family.name == "gpt_neox"),
    "opt, projected": next(family.base for family in FAMILIES if family.name == "opt"),
    "gemma2, capped": lambda: t.Gemma2ForCausalLM(
        t.Gemma2Config(**GEMMA, query_pre_attn_scalar=8, final_logit_softcapping=2.0)
    ),
    "cohere, scaled": lambda: t.CohereForCausalLM(t.CohereConfig(**LLAMA, logit_scale=3.0)),
    "granite, scaled": lambda: t.GraniteForCausalLM(t.GraniteConfig(**LLAMA, logits_scaling=0.2)),
}


def rows() -> list[dict[str, list[int]]]:
    draw = torch.Generator().manual_seed(0)
    ids = [torch.randint(3, 30, (length,), generator=draw).tolist() for length in (9, 4, 12)]
    return [{"input_ids": row, "labels": [-100] * 2 + row[2:]} for row in ids]


def adapted(make: Callable[[], PreTrainedModel], config: weft.LoRAConfig) -> PreTrainedModel:
    torch.manual_seed(0)
    model = weft.attach(make().double().eval(), config)
    with torch.no_grad():
        for parameter in weft.trainable_parameters(model):
            parameter.normal_(std=0.3)
    return model


def in_chunks(model: PreTrainedModel, chunk: int) -> Head:
    head = head_of(model)
    assert head is not None
    return dataclasses.replace(head, chunk=chunk)


def assert_same_gradients(found: Tensor, expected: Tensor, parameters: list[nn.Parameter]) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    mine, theirs = (torch.autograd.grad(loss, parameters) for loss in (found, expected))
    for a, b in zip(mine, theirs, strict=True):
        assert (a - b).norm() <= 1e-5 * b.norm()  # float64 but for the softmax, and some families' norms


@pytest.mark.parametrize("items", [None, 7])
@pytest.mark.parametrize("name", MODELS)
def test_loss_and_gradients_are_the_model_s_own(name: str, items: int | None) -> None:
    model = adapted(MODELS[name], weft.LoRAConfig(rank=2))
    batch = Collator(0)(rows())
    expected = model(**batch, **({} if items is None else {"num_items_in_batch": items})).loss
    found = batch_loss(model, in_chunks(model, 5), batch, items)
    assert_same_gradients(found, expected, list(weft.trainable_parameters(model)))


TRAINED_HEADS = {
    "an adapted head": weft.LoRAConfig(rank=2, targets=["lm_head", "q_proj"]),
    "a tied embedding, adapted": weft.LoRAConfig(rank=2, targets=["embed_tokens", "q_proj"]),
    "a head trained whole": weft.LoRAConfig(rank=2, targets=["q_proj"], train_modules=["lm_head"]),
    "nothing but the head": weft.LoRAConfig(rank=2, targets=["lm_head"]),
}


@pytest.mark.parametrize("name", TRAINED_HEADS)
def test_a_head_that_is_trained_gets_its_gradient(name: str) -> None:
    tied = "tied" in name
    model = adapted(lambda: t.LlamaForCausalLM(t.LlamaConfig(**LLAMA, tie_word_embeddings=tied)), TRAINED_HEADS[name])
    batch = Collator(0)(rows())
    expected = model(**batch).loss
    parameters = list(weft.trainable_parameters(model))
    found = batch_loss(model, in_chunks(model, 5), batch, None)
    assert_same_gradients(found, expected, parameters)


@pytest.mark.parametrize("chunk", [1, 4, 23, 24, 100])
def test_any_chunk_gives_the_same(chunk: int) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(6, 11, dtype=torch.float64)
    hidden = torch.randn(24, 6, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 11, (24,))
    expected = F.cross_entropy(linear(hidden), targets, reduction="sum")
    found = token_loss(Head(linear, lambda z: z, chunk), hidden, targets)
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=0)  # the softmax is in float32
    inputs = [hidden, *linear.parameters()]
    for a, b in zip(*(torch.autograd.grad(3 * loss, inputs) for loss in (found, expected)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_bfloat16_is_no_worse_than_the_model_s_own() -> None:
    exact = adapted(MODELS["llama"], weft.LoRAConfig(rank=2))
    batch = Collator(0)(rows())
    model = adapted(MODELS["llama"], weft.LoRAConfig(rank=2)).bfloat16()
    parameters = [list(weft.trainable_parameters(each)) for each in (exact, model)]
    truth = torch.autograd.grad(exact(**batch).loss, parameters[0])

    def error(loss: Tensor) -> float:
        gradients = torch.autograd.grad(loss, parameters[1])
        return float(sum((a.double() - b).square().sum() for a, b in zip(gradients, truth, strict=True)) ** 0.5)

    assert error(batch_loss(model, in_chunks(model, 5), batch, None)) < 1.2 * error(model(**batch).loss)


def test_no_more_logits_than_a_chunk_are_made() -> None:
    model = adapted(MODELS["llama"], weft.LoRAConfig(rank=2))
    head = in_chunks(model, 5)
    sizes: list[int] = []
    head.module.register_forward_hook(lambda module, args, output: sizes.append(len(output)))
    with packing(model):
        batch_loss(model, head, PackedCollator()(rows()), None).backward()
        with torch.no_grad():
            found = batch_scores(model, head, PackedCollator()(rows()))
    assert sizes == [5, 5, 5, 4] * 2
    assert found.loss.shape == found.correct.shape == (19,)


def test_the_gradient_is_not_differentiated_again() -> None:
    hidden = torch.randn(3, 6, requires_grad=True)
    loss = token_loss(Head(nn.Linear(6, 11), lambda z: z, 2), hidden, torch.tensor([1, 2, 3]))
    (gradient,) = torch.autograd.grad(loss, hidden, create_graph=True)
    with pytest.raises(RuntimeError):
        gradient.sum().backward()


class Louder(t.LlamaForCausalLM):
    """A model that does something of its own to its logits."""

    def forward(self, **inputs: Tensor) -> t.modeling_outputs.CausalLMOutputWithPast:  # type: ignore[override]
        output = super().forward(**inputs)
        output.logits = output.logits * 1.0001
        return output


def test_a_model_whose_loss_is_more_than_its_head_s_is_left_alone() -> None:
    torch.manual_seed(0)
    experts = t.MixtralConfig(**LLAMA, num_local_experts=4, output_router_logits=True)
    assert head_of(t.MixtralForCausalLM(experts).eval()) is None
    experts.output_router_logits = False
    assert head_of(t.MixtralForCausalLM(experts).eval()) is not None
    assert head_of(Louder(t.LlamaConfig(**LLAMA))) is None
    assert head_of(nn.Linear(2, 2)) is None
    assert head_of(next(family.base() for family in FAMILIES if family.name == "t5")) is None
    assert head_of(next(family.base() for family in FAMILIES if family.name == "bert")) is None
