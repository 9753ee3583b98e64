"""``--tiny``: a run as it is written, on stand-ins for its base and its data, for a few steps."""

from typing import TypeVar

from weft.tasks.tiny.registry import bases, build, data
from weft.training.config import RunConfig

R = TypeVar("R", bound=RunConfig)

_RANK = 4  # a stand-in's modules are narrow
_AT_MOST = {"rank": _RANK, "max_steps": 2, "batch_size": 2, "gradient_accumulation": 2, "log_every": 1, "eval_every": 2,
            "save_every": 2, "generate_rows": 2, "max_new_tokens": 8}  # fmt: skip


def tiny_run(config: R) -> R:
    """The same run on stand-ins: a small random base of the same architecture, generated data, two steps.

    What a stand-in gives replaces a setting that the run has, so that no held-out file is added to a run without one.
    The names of columns and splits are those of the generated data. The output's name gets ``-tiny``.

    Raises:
        ConfigError: no stand-in has the name that the setting `stand_in` gives, or there are no data for the task.
        FormatError: the disk did not take what is generated.
    """
    fields = type(config).model_fields
    given = {name: getattr(config, name) for name in fields}
    changed = {name: field.default for name, field in fields.items() if name.endswith(("_column", "_split"))}
    made = build(data, config.task) | build(bases, config.stand_in)
    changed |= {name: value for name, value in made.items() if given.get(name) is not None}
    for name, most in _AT_MOST.items():
        if name in fields:
            changed[name] = most if given[name] is None else min(given[name], most)
    changed["rank_pattern"] = {pattern: min(rank, _RANK) for pattern, rank in config.rank_pattern.items()}
    changed["output"] = config.output.with_name(f"{config.output.name}-tiny")
    return type(config)(**(given | changed))
