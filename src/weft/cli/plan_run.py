"""``weft plan run.yaml``: the adapter and the memory of a run, before it starts."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from weft.cli.output import errors, print_json, quiet_transformers, results, table
from weft.errors import ConfigError
from weft.training.config import RunConfig

if TYPE_CHECKING:
    from weft.model import Plan


def plan_run(run: Path, *, tiny: bool, data: bool, modules: bool, as_json: bool, given: Sequence[str]) -> None:
    """Prints what a run will adapt, and what memory it will take.

    Args:
        run: its YAML file.
        tiny: plan it on stand-ins.
        data: open its base and data, and say how far these are apart.
        modules: a row for each module.
        as_json: print one JSON document.
        given: options that describe an adapter, of which there may be none: the file does.
    """
    if given:
        named = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise ConfigError(f"{named}: the run's file describes its adapter; change it there")
    config = RunConfig.from_yaml(run)
    from weft.model import plan
    from weft.training.job import uses_bf16
    from weft.training.run_memory import move_to_device, run_memory

    quiet_transformers()
    if tiny:
        from weft.tasks.tiny import tiny_run

        config = tiny_run(config)
    config = config.model_copy(update={"bf16": uses_bf16(config)})
    sketch = None if data else config.implementation().early_sketch(config)
    task = config.implementation().open(config, errors()) if sketch is None else None
    if task is not None:
        config, sketch = task.config, task.sketch()
    assert sketch is not None
    planned = plan(sketch.model, config.lora())
    memory = run_memory(config, sketch, opened=task is not None)
    distance = None
    if task is not None and data:
        move_to_device(task.model)
        distance = task.distance()
    if as_json:
        found = {"base": config.base, "task": config.task, **planned.to_dict(), "memory": memory.to_dict()}
        print_json(found | ({"distance": None if distance is None else distance.to_dict()} if data else {}))
        return
    show_modules(planned, each=modules)
    console = results()
    console.print()
    console.print(str(memory), markup=False)
    if memory.too_much is not None:
        console.print(f"[yellow]warning:[/] {memory.too_much}")
    if distance is not None:
        console.print()
        console.print(str(distance), markup=False, soft_wrap=True)


def show_modules(planned: "Plan", *, each: bool) -> None:
    """Prints what an adapter is made of."""
    console = results()
    console.print(table(planned.rows(each=each), right=("count", "out x in", "rank", "scaling", "parameters")))
    console.print()
    for remark in planned.remarks():
        console.print(remark, markup=False)
