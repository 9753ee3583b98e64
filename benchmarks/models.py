"""The models that benchmarks run on, random, of several sizes; and the same model under each of the peers.

Variants of one model share its frozen weights, so that they differ by what is measured alone, and fit in memory.
"""

import copy
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import peft
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM, PreTrainedModel

import weft
from benchmarks.harness import device

ALPHA = 32
HAS_LORALIB = importlib.util.find_spec("loralib") is not None


@dataclass(frozen=True)
class Size:
    """A model's shape, and the batch it is measured on.

    Attributes:
        config: makes the model's configuration.
        rows, tokens: the batch.
    """

    config: Callable[[], LlamaConfig | BertConfig]
    rows: int
    tokens: int

    def model(self, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
        """A random model, always the same, in training mode on the device."""
        torch.manual_seed(0)
        config = self.config()
        kind = BertForSequenceClassification if isinstance(config, BertConfig) else LlamaForCausalLM
        with torch.device(device()):
            return kind(config).to(dtype).train()

    def batch(self) -> dict[str, Tensor]:
        """Random ids with what is to be learned: every token, or a class a row."""
        torch.manual_seed(1)
        config = self.config()
        ids = torch.randint(0, config.vocab_size, (self.rows, self.tokens), device=device())
        if isinstance(config, BertConfig):
            return {"input_ids": ids, "labels": torch.randint(0, 2, (self.rows,), device=device())}
        return {"input_ids": ids, "labels": ids}


def llama(width: int, inner: int, layers: int, heads: int, vocabulary: int, **rest: int) -> Callable[[], LlamaConfig]:
    """A Llama's configuration."""
    return lambda: LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=2048,
        use_cache=False,
        **rest,
    )


def minilm() -> BertConfig:
    """The shape of MiniLM (Wang et al., 2020), 6 layers; without its own dropout, which costs every variant alike."""
    return BertConfig(
        vocab_size=30522,
        hidden_size=384,
        intermediate_size=1536,
        num_hidden_layers=6,
        num_attention_heads=12,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )


SIZES = {
    "0.5M": Size(llama(96, 256, 4, 4, 512), 8, 64),
    "5M": Size(llama(256, 704, 4, 4, 4096), 8, 128),
    "MiniLM 23M": Size(minilm, 16, 64),
    "39M": Size(llama(512, 1792, 8, 8, 8192), 8, 128),
    "124M": Size(llama(768, 2048, 12, 12, 50257, tie_word_embeddings=True), 4, 128),
    "8B": Size(llama(4096, 14336, 32, 32, 128256, num_key_value_heads=8), 2, 2048),
}
"""By the number of parameters; Llamas but for one."""


def sharing_weights(model: nn.Module) -> nn.Module:
    """A copy of the model's modules that holds the very same parameters and buffers."""
    return copy.deepcopy(model, {id(each): each for each in (*model.parameters(), *model.buffers())})


def with_weft(model: nn.Module, rank: int, dropout: float = 0.0) -> nn.Module:
    """The model under a weft adapter on all linear layers."""
    config = weft.LoRAConfig(rank=rank, alpha=ALPHA, dropout=dropout)
    return weft.attach(sharing_weights(model), config).train()


def with_peft(model: nn.Module, rank: int, dropout: float = 0.0) -> nn.Module:
    """The model under a peft adapter on the same layers."""
    config = peft.LoraConfig(r=rank, lora_alpha=ALPHA, lora_dropout=dropout, target_modules=linear_layers(model))
    return peft.get_peft_model(sharing_weights(model), config).train()


def with_loralib(model: nn.Module, rank: int, dropout: float = 0.0) -> nn.Module:
    """The model with the same layers replaced by loralib's."""
    import loralib

    result = sharing_weights(model)
    for path in linear_layers(model):
        base = result.get_submodule(path)
        assert isinstance(base, nn.Linear)
        with torch.device(base.weight.device):
            layer = loralib.Linear(
                base.in_features,
                base.out_features,
                r=rank,
                lora_alpha=ALPHA,
                lora_dropout=dropout,
                merge_weights=False,
                bias=base.bias is not None,
            ).to(base.weight.dtype)
        layer.weight, layer.bias = base.weight, base.bias
        result.set_submodule(path, layer)
    loralib.mark_only_lora_as_trainable(result)
    return result.train()


def linear_layers(model: nn.Module) -> list[str]:
    """The paths of the layers that weft adapts, so that every variant adapts the same ones."""
    return [module.path for module in weft.plan(model, weft.LoRAConfig()).modules]
