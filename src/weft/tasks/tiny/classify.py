"""Stand-ins for encoders, and for texts with labels."""

from pathlib import Path
from typing import Any

from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerBase, RobertaConfig, RobertaForMaskedLM

from weft.tasks.tiny.language import save_language_model, write_rows
from weft.tasks.tiny.registry import bases, data
from weft.tasks.tiny.tokens import byte_tokenizer

_PRAISE = (
    "a fine film",
    "moving and funny",
    "a joy to watch",
    "the cast is superb",
    "bright and warm",
    "go and see it",
)
_BLAME = ("a dull film", "flat and tired", "a chore to watch", "the cast is lost", "grey and cold", "stay at home")


@bases.register("bert")
def bert(folder: Path) -> dict[str, Any]:
    """BERT's encoder, with the head that fills in masked tokens, as it is published."""
    tokenizer = byte_tokenizer("<s> $A </s>", "<s> $A </s> $B:1 </s>:1")
    config = BertConfig(**_encoder(tokenizer), max_position_embeddings=128)
    return {"base": save_language_model(BertForMaskedLM(config), tokenizer, folder / "base")}


@bases.register("roberta")
def roberta(folder: Path) -> dict[str, Any]:
    """RoBERTa's encoder, with the head that fills in masked tokens, as it is published."""
    tokenizer = byte_tokenizer("<s> $A </s>", "<s> $A </s> </s> $B </s>")
    config = RobertaConfig(**_encoder(tokenizer), max_position_embeddings=130, type_vocab_size=1)
    return {"base": save_language_model(RobertaForMaskedLM(config), tokenizer, folder / "base")}


@data.register("classify")
def classify(folder: Path) -> dict[str, Any]:
    """Praise and blame in a few words."""
    rows = [
        {"text": text, "label": label}
        for pair in zip(_PRAISE, _BLAME, strict=True)
        for text, label in zip(pair, ("positive", "negative"), strict=True)
    ]
    return {
        "train": write_rows(folder / "train.jsonl", rows[:8]),
        "eval": write_rows(folder / "eval.jsonl", rows[8:]),
        "unlabeled": write_rows(folder / "unlabeled.jsonl", [{"text": f"{row['text']}, all in all"} for row in rows]),
    }


def _encoder(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
