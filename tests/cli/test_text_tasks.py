"""What runs on text leave is used as it was trained: its template, its columns, its wording."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, LlamaForCausalLM
from typer.testing import CliRunner

import weft
from weft.cli import app


def invoke(*words: str | Path) -> dict[str, Any]:
    result = CliRunner().invoke(app, [*map(str, words), "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def rows(path: Path, *values: dict[str, str]) -> Path:
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return path


def test_a_chat_speaks_the_template_that_its_adapter_was_trained_with(base: Path, tmp_path: Path) -> None:
    data = rows(tmp_path / "d.jsonl", *({"instruction": f"Say {c}.", "output": c * 3} for c in "abcd"))
    words = ["--task", "instruct", "--template", "plain", "--rank", "2", "--max-steps", "2", "--learning-rate", "0.05"]
    result = invoke("train", "--base", base, "--train", data, "--output", tmp_path / "run", "--tensorboard", "false",
                    *words)  # fmt: skip
    said = invoke(
        "generate", "--base", base, "--adapter", tmp_path / "run", "--chat", "--greedy", "--max-new-tokens", "8",
        "--prompt", "Say a.",
    )  # fmt: skip
    model, tokenizer = LlamaForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    weft.attach(model, weft.load(result["adapter"]))
    ids = tokenizer("### User:\nSay a.\n\n### Assistant:\n", return_tensors="pt")
    output = model.generate(**ids, do_sample=False, max_new_tokens=8)[0, ids["input_ids"].shape[1] :]
    assert said["turns"][0]["answers"][0]["text"] == tokenizer.decode(output, skip_special_tokens=True)


def test_a_run_is_evaluated_with_its_columns_and_wording(base: Path, tmp_path: Path) -> None:
    held_out = [{"mr": "name[A]", "ref": "A is here."}, {"mr": "name[A]", "ref": "Here is A."}]
    train = rows(tmp_path / "d.jsonl", *({"mr": f"name[{c}]", "ref": f"{c} is here."} for c in "BCDE"))
    data = rows(tmp_path / "e.jsonl", *held_out)
    result = invoke(
        "train", "--base", base, "--train", train, "--eval", data, "--output", tmp_path / "run", "--rank", "2",
        "--prompt-column", "mr", "--completion-column", "ref", "--prompt-template", "{input} -> ", "--max-steps", "2",
        "--generate-rows", "1", "--max-new-tokens", "6", "--num-beams", "2", "--tensorboard", "false",
    )  # fmt: skip
    found = invoke("eval", "--base", base, "--data", data, "--adapter", tmp_path / "run", "--max-new-tokens", "6")
    again = found["results"][1]
    assert again["loss"] == pytest.approx(result["after"]["loss"], rel=1e-6)
    assert again["chrf"] == pytest.approx(result["after"]["chrf"])
    assert again["generated_rows"] == 1  # two references of one meaning representation
    renamed = rows(tmp_path / "f.jsonl", *({"asked": row["mr"], "ref": row["ref"]} for row in held_out))
    other = invoke("eval", "--base", base, "--data", renamed, "--adapter", tmp_path / "run", "--prompt-column", "asked",
                   "--max-new-tokens", "6")  # fmt: skip
    assert other["results"][1]["loss"] == pytest.approx(again["loss"], rel=1e-6)
