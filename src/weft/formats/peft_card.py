"""The short README.md that stands beside an adapter, as model hubs show it."""

import json
import re
from importlib.metadata import version

from weft.adapter import Adapter

MARK = "<!-- written by weft; delete this line to keep your own text when the adapter is saved again -->"


def model_card(adapter: Adapter) -> str:
    """A short model card, as hubs show it."""
    base = adapter.provenance.get("base")
    ranks = sorted({value.rank for value in adapter.factors.values()})
    names = sorted({module.rpartition(".")[2] for module in adapter.factors})
    hub_id = isinstance(base, str) and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", base)
    front = [f"base_model: {json.dumps(base)}"] if hub_id else []
    rows = {
        "base": base or "not recorded",
        "rank": ", ".join(map(str, ranks)) or "no factors",
        "variant": adapter.config.variant.name,
        "adapted": f"{len(adapter.factors)} modules ({', '.join(names)})",
        "trained whole": ", ".join(adapter.config.train_modules) or "nothing",
        "parameters": f"{adapter.num_parameters:,}",
        "made with": f"weft {version('weft')}",
    }
    lines = [
        "---", *front, "library_name: peft", "tags:", "- lora", "- weft", "---", MARK, "",
        f"# A LoRA adapter for {base or 'a base that was not recorded'}", "",
        "| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items()), "",
        "```python", "weft.attach(model, weft.load(path))  # or", "peft.PeftModel.from_pretrained(model, path)", "```",
        "",
    ]  # fmt: skip
    return "\n".join(lines)
