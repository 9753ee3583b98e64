"""What companions compute, against the plain formula; and where they have to keep computing it."""

import math

import pytest
import torch
import transformers as t
from families import LLAMA
from harness import identical, pretend_training
from torch import Tensor, nn
from torch.nn import functional as F

import weft
from companions.cases import CASES, FAMILY
from weft import Bottleneck, LoRAConfig, Prefix, Prompt
from weft.errors import ConfigError, StateError, TargetError


def trained(name: str, *companions: weft.config.Companion, dtype: torch.dtype = torch.float64) -> t.PreTrainedModel:
    """A family's model with companions that, as it were, have been trained."""
    model = weft.attach(FAMILY[name].base().to(dtype), LoRAConfig(targets=(), companions=companions))
    pretend_training(model)
    assert isinstance(model, t.PreTrainedModel)
    return model


def seen(model: nn.Module, path: str, batch: dict[str, Tensor], names: object = "default") -> tuple[Tensor, Tensor]:
    """What a layer reads and answers in a forward pass."""
    found: list[tuple[Tensor, Tensor]] = []
    layer = model.get_submodule(path)
    handle = layer.register_forward_hook(lambda module, x, y: found.append((x[0].detach(), y.detach())))
    with weft.active(model, names), torch.no_grad():  # type: ignore[arg-type]
        model(**batch)
    handle.remove()
    return found[0]


@pytest.mark.parametrize(
    ("name", "query", "output", "heads"),
    [
        ("llama", "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.o_proj", 2),
        ("gpt2", "transformer.h.0.attn.c_attn", "transformer.h.0.attn.c_proj", 2),
        ("t5", "encoder.block.0.layer.0.SelfAttention.q", "encoder.block.0.layer.0.SelfAttention.o", 2),
    ],
)
def test_a_prefix_is_gated_attention_to_learned_keys_and_values(name: str, query: str, output: str, heads: int) -> None:
    model, batch = trained(name, Prefix(length=3)), FAMILY[name].batch()
    tensors = weft.collect(model).companions
    keys, values, gate = (tensors[f"{output}.prefix.{part}"] for part in ("keys", "values", "gate"))
    x, _ = seen(model, output, batch, None)
    _, q = seen(model, query, batch, None)
    size = x.shape[-1] // heads
    expected = x.clone()
    for head in range(heads):
        mine = slice(head * size, (head + 1) * size)
        weights = torch.softmax(q[..., mine] @ keys[head].T / math.sqrt(size), dim=-1)
        expected[..., mine] += gate[head] * weights @ values[head]
    assert torch.allclose(seen(model, output, batch)[0], expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("activation", "f"), [("gelu", F.gelu), ("relu", torch.relu), ("silu", F.silu)], ids=["gelu", "relu", "silu"]
)
def test_a_bottleneck_adds_a_small_network_of_the_output(activation: str, f: object) -> None:
    path = "bert.encoder.layer.0.output.dense"
    bottleneck = Bottleneck(width=4, activation=activation, after=(path,))  # type: ignore[arg-type]
    model, batch = trained("bert", bottleneck), FAMILY["bert"].batch()
    tensors = weft.collect(model).companions
    assert set(tensors) == {f"{path}.bottleneck.{part}" for part in ("down", "down_bias", "up", "up_bias")}
    down, down_bias, up, up_bias = tensors.values()
    _, y = seen(model, path, batch, None)
    expected = y + f(y @ down.T + down_bias) @ up.T + up_bias  # type: ignore[operator]
    assert torch.allclose(seen(model, path, batch)[1], expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["llama", "bert", "gpt2"])
def test_a_prompt_is_vectors_before_the_input(name: str) -> None:
    model, batch = trained(name, Prompt(length=3)), FAMILY[name].batch()
    (vectors,) = weft.collect(model).companions.values()
    with torch.no_grad():
        embedded = model.get_input_embeddings()(batch["input_ids"])
        expected = model(inputs_embeds=torch.cat([vectors.expand(2, -1, -1), embedded], dim=1)).logits
        ids = torch.tensor([weft.with_prompt(model, row) for row in batch["input_ids"].tolist()])
        assert torch.equal(ids[:, :3], torch.tensor([[32, 33, 34]] * 2))
        assert torch.allclose(model(input_ids=ids).logits, expected, rtol=1e-10, atol=1e-12)


def test_a_prompt_starts_as_vectors_of_the_vocabulary() -> None:
    model = weft.attach(FAMILY["llama"].base(), LoRAConfig(targets=(), companions=(Prompt(length=5),)))
    (vectors,) = weft.collect(model).companions.values()
    table = model.get_input_embeddings().weight
    assert all((table == vector).all(dim=1).any() for vector in vectors)


def test_a_prompt_stands_behind_a_special_first_token() -> None:
    model = trained("bert", Prompt(length=2))
    assert weft.with_prompt(model, [5, 6, 7]) == [32, 33, 5, 6, 7]
    assert weft.with_prompt(model, [5, 6, 7], special=[5, 7]) == [5, 32, 33, 6, 7]
    weft.attach(model, LoRAConfig(rank=2), "other")
    assert weft.with_prompt(model, [], "default") == [32, 33]


@pytest.mark.parametrize("companion", [Prefix(length=3), Bottleneck(width=4), Prompt(length=3)], ids=lambda c: c.name)
def test_generating_with_a_cache_and_left_padding_gives_what_a_row_alone_gives(
    companion: weft.config.Companion,
) -> None:
    model = trained("llama", companion)
    rows = [[3, 4, 5, 6], [7, 8]]
    if isinstance(companion, Prompt):
        rows = [weft.with_prompt(model, row) for row in rows]
    longest = max(map(len, rows))
    padded = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
    options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    together = model.generate(input_ids=padded, attention_mask=(padded != 0).long(), **options)[:, longest:]
    for row, answer in zip(rows, together, strict=True):
        for use_cache in (True, False):
            alone = model.generate(input_ids=torch.tensor([row]), use_cache=use_cache, **options)
            assert torch.equal(alone[0, len(row) :], answer)


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.family.name in ("llama", "bert")], ids=lambda c: c.name
)
def test_gradient_checkpointing_and_autocast(case: object) -> None:
    gradients, model = {}, trained(case.family.name, case.companion, dtype=torch.float32).train()  # type: ignore[attr-defined]
    batch = case.family.batch()  # type: ignore[attr-defined]
    if isinstance(case.companion, Prompt):  # type: ignore[attr-defined]
        batch |= case.laid(model, batch)  # type: ignore[attr-defined]
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    for checkpointing in (False, True):
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        model.zero_grad()
        model(**batch).logits.square().sum().backward()
        gradients[checkpointing] = [p.grad for p in weft.trainable_parameters(model)]
    assert all(identical(a, b) for a, b in zip(gradients[False], gradients[True], strict=True))
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        low = model(**batch).logits
    with torch.no_grad():
        high = model(**batch).logits
    assert torch.allclose(low.float(), high, rtol=0.1, atol=0.02)


@pytest.mark.parametrize("companion", [Prefix(length=4), Bottleneck(width=4), Prompt(length=4)], ids=lambda c: c.name)
def test_each_alone_learns(companion: weft.config.Companion) -> None:
    torch.manual_seed(0)
    config = t.LlamaConfig(**LLAMA, initializer_range=0.3)
    model = weft.attach(t.LlamaForCausalLM(config), LoRAConfig(targets=(), companions=(companion,)))
    ids = torch.randint(3, 30, (4, 8), generator=torch.Generator().manual_seed(2))
    ids[:, 1::2] = 7  # every other token is the same
    labels = ids
    if isinstance(companion, Prompt):
        ids = torch.tensor([weft.with_prompt(model, row) for row in ids.tolist()])
        labels = torch.cat([torch.full((4, 4), -100), labels], dim=1)
    optimizer = torch.optim.AdamW(weft.trainable_parameters(model), lr=0.02)
    losses = []
    for _ in range(30):
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.3


def test_bitfit_is_an_adapter_of_biases_alone(tmp_path: object) -> None:
    family = FAMILY["bert"]
    model = family.base()
    weft.attach(model, LoRAConfig(targets=(), bias="all"))
    assert all(p.ndim == 1 for p in weft.trainable_parameters(model))
    pretend_training(model)
    adapter = weft.collect(model)
    assert not adapter.factors
    assert all(key.endswith("bias") for key in adapter.tensors)
    loaded = weft.load(adapter.save(tmp_path / "adapter"))  # type: ignore[operator]
    assert loaded.config == adapter.config
    fresh = weft.attach(family.base(), loaded)
    with torch.no_grad():
        answer = model(**family.batch()).logits
        assert identical(fresh(**family.batch()).logits, answer)
        with weft.merged(fresh):
            assert torch.allclose(fresh(**family.batch()).logits, answer, atol=1e-5)
    with pytest.raises(TargetError, match=r"nothing to train: .* finds no bias in this LlamaForCausalLM"):
        weft.attach(FAMILY["llama"].base(), LoRAConfig(targets=(), bias="all"))


class Plain(nn.Module):
    """An attention block that no table knows."""

    def __init__(self) -> None:
        super().__init__()
        self.ask, self.key, self.answer = (nn.Linear(6, 6) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        weights = (self.ask(x) @ self.key(x).mT).softmax(-1)
        return self.answer(weights @ x)


def test_layers_of_any_name_can_be_named() -> None:
    model, x = nn.Sequential(Plain()), torch.randn(2, 3, 6)
    expected = model(x)
    named = (Prefix(length=2, query="ask", output="answer", heads=3), Bottleneck(width=2, after=("answer",)))
    weft.attach(model, LoRAConfig(targets=(), companions=named))
    assert torch.equal(model(x), expected)
    pretend_training(model)
    assert not torch.equal(model(x), expected)
    assert weft.collect(model).companions["0.answer.prefix.keys"].shape == (3, 2, 2)


REFUSALS = {
    "no attention block": (Plain, Prefix(), "prefix: no module has known query and output projections; name those"),
    "unknown heads": (Plain, Prefix(query="ask", output="answer"), r"an unknown number of heads; give their number"),
    "wrong heads": (Plain, Prefix(query="ask", output="answer", heads=4), "the 6 numbers .* are of 4 heads"),
    "no such names": (Plain, Prefix(query="ask", output="reply"), "no module has linear layers ask and reply"),
    "no block": (Plain, Bottleneck(), "bottleneck: no module has the linear layers of a known .* block"),
    "no such layer": (Plain, Bottleneck(after=("answr",)), "'answr' matches nothing; did you mean 'answer'"),
    "no tokens": (Plain, Prompt(), r"prompt: this \w+ does not say that an embedding of tokens reads its input"),
    "no embedding": (Plain, Prompt(embedding="embed"), "prompt: embedding: 'embed' matches nothing"),
    "attention never called": (
        lambda: nn.MultiheadAttention(6, 2),
        Bottleneck(after=("out_proj",)),
        r"bottleneck: '0\.out_proj' can have none: nn\.MultiheadAttention reads this layer's weight itself",
    ),
}


@pytest.mark.parametrize(("made", "companion", "message"), REFUSALS.values(), ids=REFUSALS)
def test_what_cannot_be_served_is_refused(made: object, companion: weft.config.Companion, message: str) -> None:
    model = nn.Sequential(made())  # type: ignore[operator]
    with pytest.raises(TargetError, match=message):
        weft.attach(model, LoRAConfig(targets=(), companions=(companion,)))
    assert weft.adapter_names(model) == ()


def test_fused_projections_that_mix_heads_are_refused_by_name() -> None:
    config = t.GPTNeoXConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, vocab_size=32
    )
    with pytest.raises(TargetError, match=r"attention\.query_key_value' gives 48 numbers and .* reads 16"):
        weft.plan(t.GPTNeoXForCausalLM(config), LoRAConfig(targets=(), companions=(Prefix(),)))


def test_a_vision_model_has_no_place_for_a_prompt() -> None:
    config = t.ViTConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4
    )
    with pytest.raises(TargetError, match="this ViTForImageClassification does not say that an embedding of tokens"):
        weft.plan(t.ViTForImageClassification(config), LoRAConfig(targets=(), companions=(Prompt(),)))


def test_two_prompts_are_not_summed_and_none_is_scaled_or_forgotten() -> None:
    model = trained("llama", Prompt(length=3))
    weft.attach(model, LoRAConfig(targets=(), companions=(Prompt(length=2),)), "other")
    with pytest.raises(StateError, match=r"'default' and 'other' each have their own prompt"):
        weft.activate(model, ["default", "other"])
    with pytest.raises(StateError, match=r"'other' has a prompt .* cannot be scaled"):
        weft.activate(model, {"other": 0.5})
    ids = torch.tensor([weft.with_prompt(model, [4, 5], "default")])
    with weft.active(model, None), pytest.raises(StateError, match="the input has id 34, of a prompt, and no adapter"):
        model(input_ids=ids)
    with pytest.raises(StateError, match="no active adapter has a prompt"), weft.active(model, None):
        weft.with_prompt(model, [4, 5])


def test_configurations_that_cannot_be() -> None:
    for make, message in (
        (lambda: LoRAConfig(targets=()), "targets: nothing is named; .* give what else is to be trained"),
        (lambda: LoRAConfig(targets=(), bias="adapted"), "targets: nothing is named"),
        (lambda: Prefix(length=0), "prefix: length: expected a whole number of at least 1, found 0"),
        (lambda: Prefix(query="q"), "prefix: query and output name the two projections"),
        (lambda: Bottleneck(activation="tanh"), "expected 'gelu', 'relu' or 'silu', found 'tanh'"),  # type: ignore[arg-type]
        (lambda: LoRAConfig(companions=(Prefix(), Prefix(length=3))), "companions: 'prefix' is given 2 times"),
        (lambda: LoRAConfig(companions=Prefix()), "companions: expected several values"),  # type: ignore[arg-type]
        (lambda: LoRAConfig(companions=("prefix",)), "companions: expected values such as Prefix"),  # type: ignore[arg-type]
        (
            lambda: LoRAConfig.from_dict({"companions": ["prefx"]}),
            "there is no companion 'prefx'; did you mean 'prefix'",
        ),
        (lambda: LoRAConfig.from_dict({"companions": [{"name": "prefix", "size": 3}]}), "has no setting 'size'"),
    ):
        with pytest.raises(ConfigError, match=message):
            make()
    config = LoRAConfig(companions=(Prefix(length=3), Bottleneck(after=("o_proj",)), Prompt()))
    assert LoRAConfig.from_dict(config.to_dict()) == config
    assert LoRAConfig.from_dict({"companions": ["prefix", {"name": "prompt", "length": 4}]}).companions == (
        Prefix(),
        Prompt(length=4),
    )
