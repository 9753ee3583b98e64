"""Parameter counts that the literature states, from plans on the real architectures, built without memory."""

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

import weft


def whisper_large_v2() -> WhisperConfig:
    """Radford et al., 2022, arXiv 2212.04356: 32 blocks on each side, 1280 wide, 20 heads."""
    return WhisperConfig(
        d_model=1280,
        encoder_layers=32,
        decoder_layers=32,
        encoder_attention_heads=20,
        decoder_attention_heads=20,
        encoder_ffn_dim=5120,
        decoder_ffn_dim=5120,
    )


def llama_7b() -> LlamaConfig:
    """Touvron et al., 2023, arXiv 2302.13971."""
    return LlamaConfig(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32)


def gpt3_175b() -> OPTConfig:
    """Brown et al., 2020, arXiv 2005.14165: 96 blocks, 12288 wide, in an architecture with q and v of their own."""
    return OPTConfig(
        hidden_size=12288, ffn_dim=49152, num_hidden_layers=96, num_attention_heads=96, word_embed_proj_dim=12288
    )


@pytest.mark.parametrize(
    ("config", "kind", "rank", "parameters", "share"),
    [
        (whisper_large_v2(), WhisperForConditionalGeneration, 32, 15_728_640, 0.0101),  # "15.7 million, 1%"
        (llama_7b(), LlamaForCausalLM, 4, 2_097_152, 0.00031),  # "2.1 million, 0.03%"
        (gpt3_175b(), OPTForCausalLM, 1, 4_718_592, 0.000027),  # Hu et al., 2021, table 5: 4.7 million
    ],
    ids=["whisper-large-v2", "llama-7b", "gpt3-175b"],
)
def test_counts_on_queries_and_values(
    config: PreTrainedConfig, kind: type[PreTrainedModel], rank: int, parameters: int, share: float
) -> None:
    with torch.device("meta"):
        model = kind(config)
    planned = weft.plan(model, weft.LoRAConfig(rank=rank, targets=("q_proj", "v_proj")))
    assert planned.parameters == parameters
    assert planned.share == pytest.approx(share, rel=0.03)
    assert planned.nbytes == 4 * parameters  # of the whisper adapter, exactly 60 MiB: "60 MB"
