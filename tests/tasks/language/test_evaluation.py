import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from weft.data.text import IGNORED
from weft.tasks import evaluate, generate_answers
from weft.tasks.language.generation import Decoding
from weft.training import TextDataset, load_text


@pytest.fixture
def data(pairs: Path, tokenizer: PreTrainedTokenizerFast) -> TextDataset:
    return load_text(pairs, tokenizer)


def test_loss_and_accuracy_are_means_over_label_tokens(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, data: TextDataset
) -> None:
    losses, hits = [], []
    with torch.no_grad():
        for example in data.examples:  # one row at a time, no padding
            logits = model(torch.tensor([list(example.input_ids)])).logits[0]
            for place in range(1, len(example.labels)):
                if example.labels[place] != IGNORED:
                    target = torch.tensor(example.labels[place])
                    losses.append(F.cross_entropy(logits[place - 1], target).item())
                    hits.append(int(logits[place - 1].argmax()) == int(target))
    random_state = torch.get_rng_state()
    model.train()
    result = evaluate(model, tokenizer, data, batch_size=7)
    assert model.training
    assert torch.equal(torch.get_rng_state(), random_state)
    assert (result.rows, result.scores["tokens"]) == (20, len(losses))
    assert result.scores["tokens"] == data.report.label_tokens
    assert result.loss == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert result.scores["perplexity"] == pytest.approx(math.exp(result.loss))
    assert result.scores["token_accuracy"] == pytest.approx(sum(hits) / len(hits))
    assert "rouge_l" not in result.scores


def test_answers_in_a_padded_batch_are_those_of_single_prompts(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, data: TextDataset
) -> None:
    answers = generate_answers(model, tokenizer, data, rows=5, batch_size=5, decoding=Decoding(6))
    prompts = ["0:", "very very very very 4:", "very very very 8:", "very very 12:", "very 16:"]
    assert [answer.input for answer in answers] == prompts
    assert {answer.reference for answer in answers} == {"even"}
    for answer in answers:
        ids = tokenizer(answer.input, return_tensors="pt")
        alone = model.generate(**ids, do_sample=False, max_new_tokens=6, eos_token_id=tokenizer.eos_token_id)
        text = tokenizer.decode(alone[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
        assert answer.answer == text.strip()


class Parrot(LlamaForCausalLM):
    """Says what it was told to after each prompt, then the end: a model whose answers are known."""

    said: list[int]

    def forward(self, input_ids: Any, **options: Any) -> Any:
        output = super().forward(input_ids, **options)
        for row in range(output.logits.shape[0]):
            last = int(input_ids[row, -1])
            following = self.said[self.said.index(last) + 1] if last in self.said[:-1] else self.said[0]
            output.logits[row, -1] = F.one_hot(torch.tensor(following), output.logits.shape[-1]).float()
        return output


def test_text_metrics_of_known_answers(base: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    rows = [{"prompt": "A:", "completion": "xyz"}, {"prompt": "B:", "completion": "uvw"}]
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = load_text(tmp_path / "d.jsonl", tokenizer)
    parrot = Parrot.from_pretrained(base)
    parrot.said = tokenizer("xyz")["input_ids"] + [tokenizer.eos_token_id]
    result = evaluate(parrot, tokenizer, data, generate_rows=9, decoding=Decoding(20))
    assert result.scores["generated_rows"] == 2
    assert result.scores["exact_match"] == 50
    assert result.scores["rouge_l"] == 50
    assert result.scores["chrf"] is not None
    assert 0 < result.scores["chrf"] < 100


def test_plain_text_has_no_answers(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text('{"text": "abc"}\n')
    result = evaluate(model, tokenizer, load_text(tmp_path / "d.jsonl", tokenizer), generate_rows=3)
    assert "generated_rows" not in result.scores
    assert result.samples == []
    assert result.scores["tokens"] == 3  # b, c and the end: nothing comes before a
