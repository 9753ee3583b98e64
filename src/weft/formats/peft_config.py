"""PEFT's adapter_config.json: what it says of an adapter, and how to say it.

PEFT takes the rank and alpha of a module from the first key of `rank_pattern` and `alpha_pattern`, in file
order, for which ``(.*\\.)?(KEY)$`` matches the module's path, else from `r` and `lora_alpha`; the scaling is
alpha/r, or alpha/sqrt(r) with `use_rslora`. Fields have come and gone since 0.5; one that is not known here
is accepted only where its value says that it is off.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from weft.adapter import Adapter
from weft.config import ALL_LINEAR, DoRA, LoRA, LoRAConfig, RankStabilized, Standard
from weft.errors import ConfigError, FormatError

# Fields that change nothing in what a saved adapter computes.
_IGNORED = {
    "auto_mapping", "corda_config", "eva_config", "fan_in_fan_out", "inference_mode", "loftq_config", "lora_ga_config",
    "megatron_core", "merge_weights", "peft_version", "qalora_group_size", "revision", "runtime_config",
    "base_model_name_or_path", "task_type",
}  # fmt: skip

_NUMBER, _TEXTS = (int, float), (list, str)
_TYPES: dict[str, tuple[type, ...]] = {
    "r": (int,),
    "lora_alpha": _NUMBER,
    "lora_dropout": _NUMBER,
    "bias": (str,),
    "use_dora": (bool,),
    "use_rslora": (bool,),
    "init_lora_weights": (bool, str),
    "target_modules": _TEXTS,
    "exclude_modules": _TEXTS,
    "modules_to_save": (list,),
    "layers_to_transform": (list, int),
    "layers_pattern": _TEXTS,
    "rank_pattern": (dict,),
    "alpha_pattern": (dict,),
    "peft_type": (str,),
}
_DEFAULTS = {"r": 8, "lora_alpha": 8, "lora_dropout": 0.0, "bias": "none", "rank_pattern": {}, "alpha_pattern": {}}

_ADVICE = {
    "lora_bias": "a bias inside the adapter is no change of the weight; fold it into the base's bias first",
    "target_parameters": "adapters of raw parameters (experts) are not read from this format; merge it with PEFT",
    "trainable_token_indices": "trained token rows are not read; merge them into the base's embedding with PEFT",
    "layer_replication": "the base it was made for repeats layers; build that base first and save the adapter on it",
    "megatron_config": "Megatron's sharded layers are not read; save it from an unsharded model",
    "alora_invocation_tokens": "activated LoRA acts only after given tokens; weft's adapters act on all",
    "arrow_config": "Arrow routes between several adapters; load those one by one",
    "use_qalora": "QALoRA pools the layer's input by groups; merge it with PEFT",
    "use_bdlora": "block-diagonal LoRA has another layout of its factors; merge it with PEFT",
    "kasa_config": "KaSA truncates the base's weights; merge it with PEFT",
    "ensure_weight_tying": "save it with the tied modules named one by one in target_modules or modules_to_save",
}

# A path without signs that a regular expression reads otherwise; a dot matches itself, and any other sign.
_PLAIN_PATH = re.compile(r"[\w.-]+")

# Initializers that subtract the starting B A from the base's weight, when training starts and whenever PEFT loads.
_MOVES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")

# Modules that PEFT's task classes add to modules_to_save by themselves; without them, its loading fails.
_HEADS = {
    "CAUSAL_LM": (),
    "SEQ_2_SEQ_LM": (),
    "FEATURE_EXTRACTION": (),
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
    "QUESTION_ANS": ("qa_outputs",),
}


def read_peft_config(path: Path) -> dict[str, Any]:
    """The fields of an adapter_config.json that describes LoRA or DoRA, defaults filled in.

    Raises:
        FormatError: it is not JSON, not PEFT's, or describes something that weft cannot represent.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise FormatError(
            f"{path} is not JSON: {error}; it was cut short or damaged, fetch or save it again"
        ) from error
    if not isinstance(values, dict):
        raise FormatError(f"{path}: expected a JSON object with PEFT's fields, found a {type(values).__name__}")
    kind = values.get("peft_type")
    if kind != "LORA":
        found = "no peft_type (is it another tool's file?)" if kind is None else f"peft_type {kind!r}"
        raise FormatError(f"{path}: found {found}; weft reads peft_type 'LORA' only")
    values = {name: value for name, value in values.items() if not (value is None and name in _TYPES)}
    problems = [problem for name in sorted(values) if (problem := _problem(name, values[name])) is not None]
    if problems:
        raise FormatError(f"{path} cannot be read:\n  " + "\n  ".join(problems))
    return _DEFAULTS | values


def _problem(name: str, value: Any) -> str | None:
    """Why a field's value cannot be read, or None."""
    if name in _TYPES:
        right = isinstance(value, _TYPES[name]) and (not isinstance(value, bool) or bool in _TYPES[name])
        if not right:
            expected = " or ".join(kind.__name__ for kind in _TYPES[name])
            return f"{name}: expected {expected}, found {value!r}"
    if name in _TYPES and isinstance(value, list):
        expected, item_type = ("whole numbers", int) if name == "layers_to_transform" else ("names", str)
        if not all(type(item) is item_type for item in value):
            return f"{name}: expected {expected}, found {value!r}"
    if name in ("rank_pattern", "alpha_pattern"):
        return _pattern_problem(name, value)
    if name == "r" and value < 1:
        return f"r: expected a whole number of at least 1, found {value!r}"
    if name == "bias" and value not in ("none", "all", "lora_only"):
        return f"bias: expected 'none', 'all' or 'lora_only', found {value!r}"
    if name == "init_lora_weights" and isinstance(value, str) and value.lower().startswith(_MOVES_BASE):
        return (
            f"init_lora_weights: {value!r} changes the base's weights, and the factors in this file are a change of "
            "those, not of the base; save it from PEFT with path_initial_model_for_weight_conversion, which makes a "
            "plain LoRA of it"
        )
    off = value is None or value is False or (isinstance(value, dict | list) and not value)
    if name not in _TYPES and name not in _IGNORED and not off:
        return f"{name}: {value!r} is not supported; {_ADVICE.get(name, 'weft does not know this field')}"
    return None


def _pattern_problem(name: str, pattern: Mapping[str, Any]) -> str | None:
    for key, value in pattern.items():
        number = isinstance(value, int if name == "rank_pattern" else _NUMBER) and not isinstance(value, bool)
        if not number or (name == "rank_pattern" and value < 1):
            return f"{name}: expected a {'rank' if name == 'rank_pattern' else 'number'} for {key!r}, found {value!r}"
        try:
            re.compile(f"({key})")
        except re.error as error:
            return f"{name}: {key!r} is not a regular expression: {error}"
    return None


class PeftScaling:
    """The scaling that PEFT gives to each module."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        """Takes the fields from `read_peft_config`, or `peft_config`."""
        self._rank, self._alpha = values["r"], values["lora_alpha"]
        self._ranks, self._alphas = _Pattern(values.get("rank_pattern", {})), _Pattern(values.get("alpha_pattern", {}))
        self._rule = _rule(bool(values.get("use_rslora")))

    def __call__(self, path: str, rank: int) -> float:
        """The scaling of the module at `path`, whose tensors have this rank as PEFT counts it.

        Raises:
            ValueError: the file gives this module another rank.
        """
        key, expected = self._ranks.first(path) or ("", self._rank)
        if expected != rank:
            source = f"rank_pattern[{key!r}]" if key else "r"
            raise ValueError(f"{path}: its tensors have rank {rank}, but {source} in adapter_config.json is {expected}")
        _, alpha = self._alphas.first(path) or ("", self._alpha)
        return self._rule(alpha, rank)


class _Pattern:
    """A rank_pattern or alpha_pattern, indexed: with one key a module, trying each on each would be slow.

    Most keys hold no signs of a regular expression but the dot, which matches any one sign. Such a key matches a
    path that ends with its parts, one sign apart; so keys are found by their parts, for each sequence of lengths.
    """

    def __init__(self, pattern: Mapping[str, Any]) -> None:
        self._values = list(pattern.values())
        self._keys = list(pattern)
        self._by_parts: dict[tuple[int, ...], dict[tuple[str, ...], int]] = {}
        self._others: list[tuple[re.Pattern[str], int]] = []
        for place, key in enumerate(pattern):
            if _PLAIN_PATH.fullmatch(key):
                parts = tuple(key.split("."))
                self._by_parts.setdefault(tuple(map(len, parts)), {})[parts] = place
            else:
                self._others.append((re.compile(rf"(.*\.)?({key})$"), place))

    def first(self, path: str) -> tuple[str, Any] | None:
        """The first key that matches `path`, with its value."""
        place = min(self._places(path), default=None)
        return None if place is None else (self._keys[place], self._values[place])

    def matching(self, path: str) -> list[str]:
        """All keys that match `path`."""
        return [self._keys[place] for place in self._places(path)]

    def _places(self, path: str) -> Iterator[int]:
        for lengths, keys in self._by_parts.items():
            start = len(path) - sum(lengths) - len(lengths) + 1
            if start == 0 or (start > 0 and path[start - 1] == "."):
                parts = []
                for length in lengths:
                    parts.append(path[start : start + length])
                    start += length + 1
                if tuple(parts) in keys:
                    yield keys[tuple(parts)]
        yield from (place for regex, place in self._others if regex.match(path))


def lora_config(values: Mapping[str, Any], paths: Iterable[str], train_modules: tuple[str, ...]) -> LoRAConfig:
    """The configuration that a PEFT file without weft's own metadata amounts to.

    Args:
        values: from `read_peft_config`.
        paths: the adapted modules, which stand in for a target_modules that is not given.
        train_modules: the modules trained whole.

    Raises:
        FormatError: a value that weft cannot represent.
    """
    layers = values.get("layers_to_transform")
    try:
        return LoRAConfig(
            rank=values["r"],
            alpha=values["lora_alpha"],
            dropout=values["lora_dropout"],
            targets=_targets(values.get("target_modules")) or tuple(paths) or ALL_LINEAR,
            exclude=path_patterns(values.get("exclude_modules")),
            layers=None if not layers and layers != 0 else (layers,) if isinstance(layers, int) else tuple(layers),
            rank_pattern={_key_pattern(key): rank for key, rank in values["rank_pattern"].items()},
            alpha_pattern={_key_pattern(key): alpha for key, alpha in values["alpha_pattern"].items()},
            train_modules=train_modules,
            bias={"none": "none", "all": "all", "lora_only": "adapted"}[values["bias"]],  # type: ignore[arg-type]
            variant=DoRA() if values.get("use_dora") else LoRA(),
            scaling=_rule(bool(values.get("use_rslora"))),
        )
    except ConfigError as error:
        raise FormatError(f"adapter_config.json holds a value that weft cannot represent: {error}") from error


def peft_config(adapter: Adapter, ranks: Mapping[str, int], modules_to_save: list[str]) -> dict[str, Any]:
    """The fields of an adapter_config.json from which PEFT computes this adapter's ranks and scalings.

    Only fields that PEFT has had since 0.5 are written, and the patterns, `use_rslora` and `use_dora` where they are
    needed, so that old readers take the file too. `fan_in_fan_out` is false also for GPT-2's Conv1D: PEFT sets it for
    each layer itself.

    Args:
        adapter: the adapter.
        ranks: module path -> rank as PEFT counts it (for a grouped convolution, groups times weft's).
        modules_to_save: paths of the modules trained whole.
    """
    rank_stabilized = isinstance(adapter.config.scaling, RankStabilized)
    likely = [adapter.config.alpha, *adapter.config.alpha_pattern.values()]
    alphas = {
        path: _alpha(factors.scaling, ranks[path], rank_stabilized, likely) for path, factors in adapter.factors.items()
    }
    rank = _most_common(ranks.values(), adapter.config.rank)
    alpha = _most_common(alphas.values(), adapter.config.alpha)
    biased = [key.rpartition(".")[0] for key in adapter.tensors if key.endswith(".bias")]
    biased = [path for path in biased if not any(f"{path}.".startswith(f"{whole}.") for whole in modules_to_save)]
    values: dict[str, Any] = {
        "peft_type": "LORA",
        "base_model_name_or_path": adapter.provenance.get("base"),
        "revision": adapter.provenance.get("revision"),
        "task_type": _task_type(adapter.provenance.get("task_type"), modules_to_save),
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": adapter.config.dropout,
        "bias": "all" if not adapter.factors.keys() >= set(biased) else "lora_only" if biased else "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "target_modules": _exact_targets(list(adapter.factors)),
        "modules_to_save": modules_to_save or None,
        "layers_to_transform": None,
        "layers_pattern": None,
    }
    if rank_stabilized:
        values["use_rslora"] = True
    if isinstance(adapter.config.variant, DoRA):
        values["use_dora"] = True
    patterns = {"rank_pattern": _exact_pattern(ranks, rank), "alpha_pattern": _exact_pattern(alphas, alpha)}
    return values | {name: pattern for name, pattern in patterns.items() if pattern}


def _rule(rank_stabilized: bool) -> Standard | RankStabilized:
    return RankStabilized() if rank_stabilized else Standard()


def _targets(names: list[str] | str | None) -> str | tuple[str, ...]:
    return ALL_LINEAR if names == ALL_LINEAR else path_patterns(names)


def path_patterns(names: list[str] | str | None) -> tuple[str, ...]:
    """PEFT's list of endings, or regular expression over the whole path, as weft's patterns."""
    if isinstance(names, str):
        return (f"re:{names}",) if names else ()
    plain = re.compile(r"(?!re:)[^*?\[]+")
    return tuple(name if plain.fullmatch(name) else rf"re:(.*\.)?{re.escape(name)}" for name in names or ())


def _key_pattern(key: str) -> str:
    return rf"re:(.*\.)?({key})"


def _exact_pattern(wanted: Mapping[str, Any], otherwise: Any) -> dict[str, Any]:
    """A rank_pattern or alpha_pattern that gives each path its value, whatever the order of its keys.

    A last name of which all modules have one value becomes one key; other modules get one key each.
    """
    by_name: dict[str, set[Any]] = {}
    for path, value in wanted.items():
        by_name.setdefault(path.rpartition(".")[2], set()).add(value)
    plain = _Pattern({path: None for path in wanted if _PLAIN_PATH.fullmatch(path)})
    ambiguous = {key for path in wanted for key in plain.matching(path) if key != path}
    pattern = {}
    for path, value in wanted.items():
        name = path.rpartition(".")[2]
        if value == otherwise:
            continue
        if len(by_name[name]) == 1 and _PLAIN_PATH.fullmatch(name):
            pattern[name] = value
        elif _PLAIN_PATH.fullmatch(path) and path not in ambiguous:
            pattern[path] = value
        else:
            pattern[f"^{re.escape(path)}"] = value
    return pattern


def _exact_targets(paths: list[str]) -> list[str] | str:
    """The paths, or where one of them is a bare name, with which others may end, a regular expression."""
    if all("." in path for path in paths):
        return paths
    return "|".join(re.escape(path) for path in paths)


def _alpha(scaling: float, rank: int, rank_stabilized: bool, likely: list[float]) -> float:
    """The alpha from which PEFT computes the scaling exactly, if there is one, else to a rounding."""
    rule = _rule(rank_stabilized)
    product = scaling * (math.sqrt(rank) if rank_stabilized else rank)
    near = [float(round(product)), product, math.nextafter(product, math.inf), math.nextafter(product, -math.inf)]
    alpha = next((alpha for alpha in [*likely, *near] if rule(alpha, rank) == scaling), product)
    return int(alpha) if float(alpha).is_integer() and abs(alpha) < 2**53 else alpha


def _most_common(found: Iterable[Any], otherwise: Any) -> Any:
    return next((value for value, _ in Counter(found).most_common(1)), otherwise)


def _task_type(task: Any, modules_to_save: list[str]) -> str | None:
    """PEFT's name of the task, where the head that it then expects is in the file."""
    if not isinstance(task, str) or task not in _HEADS:
        return None
    heads = _HEADS[task]
    found = any(path.rpartition(".")[2] in heads for path in modules_to_save)
    return task if found or not heads else None
