"""Which blocks are frozen, and that a model that skips them answers as it did."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import (
    Gemma3ForCausalLM,
    Gemma3nForCausalLM,
    Gemma3nTextConfig,
    Gemma3TextConfig,
    Gemma4ForCausalLM,
    Gemma4TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
)

import weft
from weft.errors import ConfigError
from weft.training.frozen_blocks import FROZEN_STATES, FrozenBlocks

WIDTH, LAYERS = 16, 4


def llama(**changes: float) -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=40, hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=LAYERS, num_attention_heads=2,
            **changes,
        )
    )  # fmt: skip


def gpt2(dropout: float = 0.0) -> GPT2LMHeadModel:
    """Adds learned positions to the embeddings."""
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=40, n_embd=WIDTH, n_layer=LAYERS, n_head=2, n_positions=32, resid_pdrop=dropout,
            embd_pdrop=dropout, attn_pdrop=dropout,
        )
    )  # fmt: skip


def opt() -> OPTForCausalLM:
    return OPTForCausalLM(
        OPTConfig(
            vocab_size=40, hidden_size=WIDTH, ffn_dim=32, num_hidden_layers=LAYERS, num_attention_heads=2,
            max_position_embeddings=32, word_embed_proj_dim=WIDTH, dropout=0.0,
        )
    )  # fmt: skip


def gemma3() -> Gemma3ForCausalLM:
    """Scales its embeddings, and gives each block a mask by its place."""
    return Gemma3ForCausalLM(
        Gemma3TextConfig(
            vocab_size=40, hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=LAYERS, num_attention_heads=2,
            num_key_value_heads=1, head_dim=8, sliding_window=3,
            layer_types=["sliding_attention", "full_attention"] * 2,
        )
    )  # fmt: skip


def mixtral() -> MixtralForCausalLM:
    return MixtralForCausalLM(
        MixtralConfig(
            vocab_size=40, hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=LAYERS, num_attention_heads=2,
            num_key_value_heads=1, num_local_experts=2,
        )
    )  # fmt: skip


def gemma3n() -> Gemma3nForCausalLM:
    """Keeps two streams of hidden states."""
    return Gemma3nForCausalLM(
        Gemma3nTextConfig(
            vocab_size=40, vocab_size_per_layer_input=40, hidden_size=WIDTH, hidden_size_per_layer_input=4,
            intermediate_size=32, num_hidden_layers=LAYERS, num_attention_heads=2, num_key_value_heads=1, head_dim=8,
            num_kv_shared_layers=0, laurel_rank=2, altup_num_inputs=2, sliding_window=3,
            layer_types=["sliding_attention", "full_attention"] * 2, activation_sparsity_pattern=[0.0] * LAYERS,
        )
    )  # fmt: skip


def gemma4() -> Gemma4ForCausalLM:
    """Its upper blocks read the keys and values of lower ones."""
    return Gemma4ForCausalLM(
        Gemma4TextConfig(
            vocab_size=40, vocab_size_per_layer_input=40, hidden_size=WIDTH, hidden_size_per_layer_input=4,
            intermediate_size=32, num_hidden_layers=LAYERS, num_attention_heads=2, num_key_value_heads=1, head_dim=8,
            global_head_dim=8, num_kv_shared_layers=2, sliding_window=3,
            layer_types=["sliding_attention", "full_attention"] * 2,
        )
    )  # fmt: skip


def attached(model: PreTrainedModel, layer: int = LAYERS - 1) -> PreTrainedModel:
    weft.attach(model, weft.LoRAConfig(rank=2, layers=(layer,)))
    for parameter in weft.trainable_parameters(model):
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def batch() -> tuple[dict[str, Tensor], Tensor]:
    """Three rows of 7, 4 and 2 tokens, padded on the right, and where their tokens are."""
    real = torch.arange(7) < torch.tensor([7, 4, 2])[:, None]
    ids = torch.randint(1, 40, (3, 7))
    return {"input_ids": torch.where(real, ids, 0), "attention_mask": real.long()}, real


@pytest.mark.parametrize("make", [llama, gpt2, opt, gemma3, mixtral], ids=lambda make: make.__name__)
def test_a_model_that_skips_its_frozen_blocks_answers_as_it_did(make: Callable[[], PreTrainedModel]) -> None:
    model = attached(make()).eval()
    inputs, real = batch()
    blocks = FrozenBlocks(model)
    assert blocks.count == LAYERS - 1
    runs: list[int] = []
    frozen = model.get_submodule(blocks.path)
    for block in list(frozen)[: blocks.count]:
        for part in block.modules():
            if part is not block:
                part.register_forward_hook(lambda *_: runs.append(1))
    states = blocks.check(inputs, real)
    expected = model(**inputs, use_cache=False).logits
    runs.clear()
    with blocks.skippable():
        found = model(**inputs, **{FROZEN_STATES: states}, use_cache=False).logits
        body = model.base_model(**inputs, **{FROZEN_STATES: states}, use_cache=False)[0]
        assert not runs
        assert torch.equal(found[real], expected[real])
        assert torch.equal(body[real], model.base_model(**inputs, use_cache=False)[0][real])
        assert torch.equal(model(**inputs, use_cache=False).logits, expected)  # not given, not skipped
        assert runs
    assert torch.equal(model(**inputs, use_cache=False).logits, expected)
    assert "forward" not in frozen[0].__dict__


def test_an_error_on_the_way_forgets_what_was_given() -> None:
    model = attached(llama()).eval()
    inputs, real = batch()
    blocks = FrozenBlocks(model)
    states, expected = blocks.check(inputs, real), model(**inputs, use_cache=False).logits
    with blocks.skippable():
        with pytest.raises(RuntimeError):
            model(**inputs, **{FROZEN_STATES: states[:, :, 1:]}, use_cache=False)
        assert torch.equal(model(**inputs, use_cache=False).logits, expected)


def test_checking_leaves_the_mode_and_the_random_state() -> None:
    model = attached(llama()).train()
    inputs, real = batch()
    before = torch.get_rng_state()
    FrozenBlocks(model).check(inputs, real)
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)


def test_some_block_must_be_frozen() -> None:
    model = llama()
    weft.attach(model, weft.LoRAConfig(rank=2))
    with pytest.raises(ConfigError, match=r"block 0 of model\.layers is adapted, .* with layers"):
        FrozenBlocks(model)
    model = llama()
    weft.attach(model, weft.LoRAConfig(rank=2, targets="lm_head"))
    with pytest.raises(ConfigError, match=r"in one stack of blocks \(they are in none\)"):
        FrozenBlocks(model)


@pytest.mark.parametrize(
    "config",
    [
        weft.LoRAConfig(rank=2, targets="re:.*(layers.3.*proj|embed_tokens)"),
        weft.LoRAConfig(rank=2, layers=(3,), train_modules=("embed_tokens",)),
    ],
    ids=["factors", "whole"],
)
def test_an_adapter_below_is_named(config: weft.LoRAConfig) -> None:
    model = llama()
    weft.attach(model, config)
    with pytest.raises(ConfigError, match=r"model\.embed_tokens is trained and comes before block 3 of model\.layers"):
        FrozenBlocks(model).check(*batch())


def test_a_head_that_is_trained_is_above() -> None:
    model = llama()
    weft.attach(model, weft.LoRAConfig(rank=2, layers=(2,), train_modules=("lm_head", "model.norm")))
    blocks = FrozenBlocks(model)
    assert blocks.count == 2
    blocks.check(*batch())


@pytest.mark.parametrize("model", [gpt2(0.1), llama(attention_dropout=0.1)], ids=["modules", "attention"])
def test_dropout_in_the_frozen_blocks_is_refused(model: PreTrainedModel) -> None:
    with pytest.raises(ConfigError, match=r"compute something else in training \(dropout"):
        FrozenBlocks(attached(model)).check(*batch())


@pytest.mark.parametrize("make", [gemma3n, gemma4], ids=lambda make: make.__name__)
def test_a_model_whose_upper_blocks_need_more_is_refused(make: Callable[[], PreTrainedModel]) -> None:
    with pytest.raises(ConfigError, match="ForCausalLM uses more of its lower blocks than their output"):
        FrozenBlocks(attached(make())).check(*batch())


def test_a_model_that_answers_otherwise_is_refused() -> None:
    """Block 3 adds what block 0 has computed inside, if it has."""
    model, seen = attached(llama()), dict[str, Tensor]()
    model.model.layers[0].mlp.register_forward_hook(lambda module, inputs, output: seen.update(inside=output))
    model.model.layers[3].register_forward_hook(lambda module, inputs, output: output + seen.pop("inside", 0))
    with pytest.raises(ConfigError, match="LlamaForCausalLM uses more of its lower blocks"):
        FrozenBlocks(model).check(*batch())
