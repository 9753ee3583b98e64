"""The loss of an optimizer step does not depend on how the step is cut into batches, whatever the model."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as t
from torch import Tensor

import weft
from tests.families import BERT, LLAMA
from weft.data.text import IGNORED, Collator
from weft.training import AdapterTrainer
from weft.training.token_loss import head_of

Rows = list[dict[str, Any]]
Collate = Callable[[Rows], dict[str, Tensor]]


def t5() -> t.PreTrainedModel:
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2, "vocab_size": 32}
    return t.T5ForConditionalGeneration(t.T5Config(**sizes, dropout_rate=0, decoder_start_token_id=0))


def bart() -> t.PreTrainedModel:
    sizes = {f"{side}_{name}": n for side in ("encoder", "decoder") for name, n in
             (("layers", 1), ("attention_heads", 2), ("ffn_dim", 24))}  # fmt: skip
    config = t.BartConfig(vocab_size=32, d_model=16, max_position_embeddings=32, dropout=0, **sizes)
    return t.BartForConditionalGeneration(config)


def bert() -> t.PreTrainedModel:
    config = t.BertConfig(**BERT, hidden_dropout_prob=0, attention_probs_dropout_prob=0)
    return t.BertForSequenceClassification(config)


def classes(rows: Rows) -> dict[str, Tensor]:
    batch = Collator(0)([{"input_ids": row["input_ids"], "labels": []} for row in rows])
    return batch | {"labels": torch.tensor([len(row["labels"]) % 2 for row in rows])}


# Few labels beside many: a mean of the batches' means is another number.
ROWS: Rows = [
    {"input_ids": [5, 6, 7], "labels": [8, 9]},
    {"input_ids": [5, 6, 7, 8, 9, 10], "labels": [11, 12, 13, 14, 15, 16, 17]},
    {"input_ids": [11, 12], "labels": [13]},
    {"input_ids": [14, 15, 16, 17], "labels": [18, 19, 20, 21, 22]},
]
PADDED = [{"input_ids": row["input_ids"], "labels": [IGNORED, *row["input_ids"][1:]]} for row in ROWS]


@pytest.mark.parametrize(
    ("make", "collate", "rows"),
    [
        (t5, Collator(0), ROWS),
        (bart, Collator(1), ROWS),
        (bert, classes, ROWS),
        (lambda: t.LlamaForCausalLM(t.LlamaConfig(**LLAMA)), Collator(0), PADDED),
    ],
    ids=["t5", "bart", "bert", "llama"],
)
def test_accumulated_batches_are_one_batch(
    tmp_path: Path, make: Callable[[], t.PreTrainedModel], collate: Collate, rows: Rows
) -> None:
    found = {}
    for size in (4, 2, 1):
        torch.manual_seed(0)
        model = weft.attach(make(), weft.LoRAConfig(rank=2, targets="all-linear"))
        gradients: dict[str, Tensor] = {}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.1)
                parameter.register_post_accumulate_grad_hook(partial(_keep, gradients, name))
        arguments = t.TrainingArguments(
            str(tmp_path), max_steps=1, per_device_train_batch_size=size, gradient_accumulation_steps=4 // size,
            logging_steps=1, max_grad_norm=0, save_strategy="no", report_to="none", disable_tqdm=True, use_cpu=True,
            remove_unused_columns=False,
        )  # fmt: skip
        trainer = AdapterTrainer(model=model, args=arguments, train_dataset=rows, data_collator=collate)
        found[size] = (trainer.train().training_loss, gradients)
    batch = collate(rows)
    torch.manual_seed(0)
    fresh = weft.attach(make(), weft.LoRAConfig(rank=2, targets="all-linear"))
    for parameter in weft.trainable_parameters(fresh):
        torch.nn.init.normal_(parameter, std=0.1)
    with torch.no_grad():
        own = float(fresh(**batch).loss)
    for loss, gradients in found.values():
        assert loss == pytest.approx(own, rel=1e-4)  # the model's own, of all rows at once
        _same(gradients, found[4][1])


def test_an_encoder_decoders_head_is_not_used_apart() -> None:
    assert head_of(t5()) is None
    assert head_of(bart()) is None


def _keep(gradients: dict[str, Tensor], name: str, parameter: Tensor) -> None:
    assert parameter.grad is not None
    gradients[name] = parameter.grad.clone()


def _same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-6)
