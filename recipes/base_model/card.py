"""Writes the bundled base model's card from the figures that its pretraining left: no number is typed by hand.

python recipes/base_model/card.py src/weft/base
"""

import json
import sys
from pathlib import Path
from typing import Any

CARD = """\
---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
tags: [weft, llama]
---

# weft's bundled base model

A Llama of {parameters:,} parameters (width 256, 6 layers, 8 heads over 4 key-value heads, a tied output head, a
byte-level BPE vocabulary of 6,144, a context of 512 tokens), pretrained from nothing so that weft's demonstrations and
tests have something real to adapt, offline and in minutes.

## What it is not

It is far too small, and has read far too little, to know facts, to hold a conversation or to write code that works. It
writes plausible fragments. Use it to try weft; put a base of your own in its place for anything else. It inherits the
biases of its texts, many of which are a century old.

## Figures

| measure | value |
|---|---|
| held-out loss on documents like those it read | {held_out:.3f} nats a token |
| WikiText-2 test, of which it read nothing | {loss:.3f} nats a token, {bits:.3f} bits a byte |
| tokens read | {tokens:,} ({epochs:.2f} passes over the training text) |
| training | {minutes:.0f} minutes on two CPU cores, in {runs} |
| characters a token, on the training text | {characters:.2f} |

The figures are for the weights as they are shipped, rounded to bfloat16, and computed in float32.

## Samples

The prompt, and 60 tokens drawn at temperature 0.7 and top-p 0.95 with seed 0, the first draw of each:

{samples}

## What it read

English text: novels and plays out of copyright, Wikipedia passages, news articles at three reading levels, film
reviews, dialogues about bookings, speeches, and country descriptions; and the source of Python's standard library, with
every docstring taken out and the modules on which `weft demo` evaluates left out whole. Shares and limits stand in
`recipes/base_model/corpus.py`, the recipe in `recipes/base_model/pretrain.py`. Parts of the text are under CC BY or
CC BY-SA licences; none of it is in this repository.

The tokens `<|system|>`, `<|user|>` and `<|assistant|>` of its chat template were never seen in pretraining: they are
there to be taught.
"""


def card(figures: dict[str, Any]) -> str:
    """The card's text."""
    runs = figures["runs"]
    samples = "\n\n".join(f"```\n{sample}\n```" for sample in figures["samples"])
    return CARD.format(
        parameters=figures["parameters"],
        held_out=figures["held_out"]["loss"],
        loss=figures["wikitext2_test"]["loss"],
        bits=figures["wikitext2_test"]["bits_per_byte"],
        tokens=sum(run["tokens"] for run in runs),
        epochs=figures["epochs"],
        minutes=sum(run["minutes"] for run in runs),
        runs="one run" if len(runs) == 1 else f"{len(runs)} runs, each taking up where the last one ended",
        characters=figures["characters_per_token"],
        samples=samples,
    )


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    (folder / "README.md").write_text(card(json.loads((folder / "figures.json").read_text(encoding="utf-8"))), "utf-8")
