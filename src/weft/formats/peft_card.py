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
    companions = ", ".join(c.name for c in adapter.config.companions) if adapter.companions else ""
    hub_id = isinstance(base, str) and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", base)
    front = [f"base_model: {json.dumps(base)}"] if hub_id else []
    rows = {
        "base": base or "not recorded",
        "rank": ", ".join(map(str, ranks)) or "no factors",
        "variant": adapter.config.variant.name,
        "adapted": f"{len(adapter.factors)} modules ({', '.join(names)})",
        "trained whole": ", ".join(adapter.config.train_modules) or "nothing",
        **({"companions": companions} if companions else {}),
        "parameters": f"{adapter.num_parameters:,}",
        "made with": f"weft {version('weft')}",
    }
    if adapter.factors:
        front.append("library_name: peft")
    lines = [
        "---", *front, "tags:", "- lora", "- weft", "---", MARK, "",
        f"# A LoRA adapter for {base or 'a base that was not recorded'}", "",
        "| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items()), "",
        "```python", *_loading(adapter, companions),
        "",
    ]  # fmt: skip
    return "\n".join(lines)


def _loading(adapter: Adapter, companions: str) -> list[str]:
    """How it is loaded, and what PEFT makes of it."""
    ours, theirs = "weft.attach(model, weft.load(path))", "peft.PeftModel.from_pretrained(model, path)"
    if not adapter.factors:
        return [ours, "```", "", "PEFT cannot load this adapter: it has no low-rank factors."]
    if companions:
        return [ours, "```", "", f"PEFT loads the low-rank factors alone, without {companions}: not what was trained."]
    return [f"{ours}  # or", theirs, "```"]
