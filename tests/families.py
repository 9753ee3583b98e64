"""Tiny random models of the families that people use, and what "all-linear" is to find in each."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import transformers as t
from torch import Tensor

SIZE = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 32}
LLAMA = {**SIZE, "num_key_value_heads": 1, "max_position_embeddings": 32, "pad_token_id": 0}
GEMMA = {**LLAMA, "head_dim": 8}
BERT = {**SIZE, "max_position_embeddings": 32}

SWIGLU = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
BERT_LINEAR = {"query", "key", "value", "dense"}


def ids() -> dict[str, Tensor]:
    """Two sequences of six tokens."""
    return {"input_ids": torch.randint(3, 30, (2, 6))}


def pixels() -> dict[str, Tensor]:
    """Two small images."""
    return {"pixel_values": torch.randn(2, 3, 8, 8)}


def encoder_decoder() -> dict[str, Tensor]:
    """A source and a target."""
    return {**ids(), "decoder_input_ids": torch.randint(3, 30, (2, 4))}


def speech() -> dict[str, Tensor]:
    """Two spectrograms, and a target."""
    return {"input_features": torch.randn(2, 8, 16), "decoder_input_ids": torch.randint(3, 30, (2, 4))}


@dataclass(frozen=True)
class Family:
    """One architecture.

    Attributes:
        name: how the test is called.
        model: the class.
        config: its configuration.
        endings: the last names of the modules that "all-linear" is to find, all of them.
        inputs: makes the arguments of its forward.
        left_alone: the last names of the linear layers that it is to leave alone: heads.
    """

    name: str
    model: type[t.PreTrainedModel]
    config: Callable[[], t.PretrainedConfig]
    endings: set[str]
    inputs: Callable[[], dict[str, Tensor]] = ids
    left_alone: frozenset[str] = frozenset({"lm_head"})

    def base(self) -> t.PreTrainedModel:
        """A fresh model, always the same, in evaluation mode."""
        torch.manual_seed(0)
        return self.model(self.config()).eval()

    def batch(self) -> dict[str, Tensor]:
        """The same batch on every call."""
        torch.manual_seed(1)
        return self.inputs()


FAMILIES = (
    Family("llama", t.LlamaForCausalLM, lambda: t.LlamaConfig(**LLAMA), SWIGLU),
    Family("llama_tied", t.LlamaForCausalLM, lambda: t.LlamaConfig(**LLAMA, tie_word_embeddings=True), SWIGLU),
    Family("mistral", t.MistralForCausalLM, lambda: t.MistralConfig(**LLAMA), SWIGLU),
    Family("qwen2", t.Qwen2ForCausalLM, lambda: t.Qwen2Config(**LLAMA, tie_word_embeddings=True), SWIGLU),
    Family("qwen3", t.Qwen3ForCausalLM, lambda: t.Qwen3Config(**LLAMA, head_dim=8), SWIGLU),
    Family("gemma", t.GemmaForCausalLM, lambda: t.GemmaConfig(**GEMMA), SWIGLU),
    Family("gemma2", t.Gemma2ForCausalLM, lambda: t.Gemma2Config(**GEMMA, query_pre_attn_scalar=8), SWIGLU),
    Family("gemma3", t.Gemma3ForCausalLM, lambda: t.Gemma3TextConfig(**GEMMA, query_pre_attn_scalar=8), SWIGLU),
    Family(
        "phi", t.PhiForCausalLM, lambda: t.PhiConfig(**LLAMA), {"q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"}
    ),
    Family(
        "phi3", t.Phi3ForCausalLM, lambda: t.Phi3Config(**LLAMA), {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}
    ),
    Family(
        "gpt2",
        t.GPT2LMHeadModel,
        lambda: t.GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=32, n_positions=32),
        {"c_attn", "c_proj", "c_fc"},
    ),
    Family(
        "gpt_neox",
        t.GPTNeoXForCausalLM,
        lambda: t.GPTNeoXConfig(**BERT),
        {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"},
    ),
    Family(
        "bloom",
        t.BloomForCausalLM,
        lambda: t.BloomConfig(hidden_size=16, n_layer=2, n_head=2, vocab_size=32),
        {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"},
    ),
    Family(
        "opt",
        t.OPTForCausalLM,
        lambda: t.OPTConfig(
            hidden_size=16, ffn_dim=24, num_hidden_layers=2, num_attention_heads=2, vocab_size=32,
            max_position_embeddings=32, word_embed_proj_dim=12,
        ),
        {"q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2", "project_in", "project_out"},
    ),
    Family(
        "t5",
        t.T5ForConditionalGeneration,
        lambda: t.T5Config(d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, vocab_size=32),
        {"q", "k", "v", "o", "wi", "wo"},
        encoder_decoder,
    ),
    Family("bert", t.BertForSequenceClassification, lambda: t.BertConfig(**BERT), BERT_LINEAR,
           left_alone=frozenset({"classifier"})),
    Family("bert_mlm", t.BertForMaskedLM, lambda: t.BertConfig(**BERT), BERT_LINEAR,
           left_alone=frozenset({"dense", "decoder"})),
    Family("roberta", t.RobertaForTokenClassification, lambda: t.RobertaConfig(**BERT), BERT_LINEAR,
           left_alone=frozenset({"classifier"})),
    Family(
        "distilbert",
        t.DistilBertForSequenceClassification,
        lambda: t.DistilBertConfig(dim=16, hidden_dim=24, n_layers=2, n_heads=2, vocab_size=32),
        {"q_lin", "k_lin", "v_lin", "out_lin", "lin1", "lin2"},
        left_alone=frozenset({"pre_classifier", "classifier"}),
    ),
    Family(
        "whisper",
        t.WhisperForConditionalGeneration,
        lambda: t.WhisperConfig(
            d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
            encoder_ffn_dim=24, decoder_ffn_dim=24, vocab_size=32, num_mel_bins=8, max_source_positions=8,
            max_target_positions=16, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
            suppress_tokens=None, begin_suppress_tokens=None,
        ),
        {"q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"},
        speech,
        frozenset({"proj_out"}),
    ),
    Family(
        "vit",
        t.ViTForImageClassification,
        lambda: t.ViTConfig(**{**SIZE, "image_size": 8, "patch_size": 4}),
        {"q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2"},
        pixels,
        frozenset({"classifier"}),
    ),
    Family(
        "clip",
        t.CLIPModel,
        lambda: t.CLIPConfig(
            text_config={**BERT, "bos_token_id": 1, "eos_token_id": 2},
            vision_config={**SIZE, "image_size": 8, "patch_size": 4},
            projection_dim=12,
        ),
        {"q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2", "text_projection", "visual_projection"},
        lambda: {**ids(), **pixels()},
        frozenset(),
    ),
)  # fmt: skip
