"""``weft plan``: what an adapter would be, and cost, before anything is loaded."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from weft.cli import adapter_options as options
from weft.cli.output import print_json, quiet_transformers, results, size
from weft.cli.plan_run import plan_run, show_modules
from weft.errors import ConfigError

if TYPE_CHECKING:
    from weft.model import Plan


def plan(
    context: typer.Context,
    base: Annotated[
        str, typer.Argument(help="The base model: a folder, a hub id, or `bundled`. Or a run's YAML file.")
    ],
    rank: options.Rank = 16,
    alpha: options.Alpha = 32.0,
    targets: options.Targets = ["all-linear"],  # noqa: B006  # typer wants a list, and does not change it
    exclude: options.Exclude = [],  # noqa: B006
    layers: options.Layers = [],  # noqa: B006
    rank_pattern: options.RankPattern = [],  # noqa: B006
    alpha_pattern: options.AlphaPattern = [],  # noqa: B006
    train_modules: options.TrainModules = [],  # noqa: B006
    bias: options.Bias = "none",
    init: options.Init = "kaiming",
    variant: options.Variant = "lora",
    scaling: options.Scaling = "standard",
    companions: options.Companions = [],  # noqa: B006
    tiny: Annotated[bool, typer.Option("--tiny", help="Of a run: plan it on its stand-ins.")] = False,
    data: Annotated[
        bool, typer.Option("--data", help="Of a run: open its base and data too, and say how far these are apart.")
    ] = False,
    modules: Annotated[bool, typer.Option("--modules", help="One row for each module, not for each kind.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Show what would be adapted, why, and what it would cost.

    A dry run: the model is built without its weights, so a base larger than this machine can be planned too. The
    table says which modules the patterns chose, their ranks and parameters; below it stand the share of the base,
    the adapter's size, and the memory that weights, gradients and optimizer take in training. Of a run's YAML file,
    the memory is planned whole, activations and logits too.

    Examples:

        weft plan run.yaml

        weft plan bundled --rank 8 --targets q_proj,v_proj

        weft plan ./my-base --targets all-linear --exclude "*.mlp.*" --layers 0-3
    """
    if Path(base).suffix in (".yaml", ".yml"):
        plan_run(Path(base), tiny=tiny, data=data, modules=modules, as_json=as_json, given=_given(context))
        return
    if tiny or data:
        raise ConfigError("--tiny and --data are of a run: name its YAML file in the place of the base")
    config = options.adapter_config(
        rank, alpha, targets, exclude, layers, rank_pattern, alpha_pattern, train_modules, bias, init, variant, scaling,
        companions,
    )  # fmt: skip
    from weft.model import plan as plan_adapter
    from weft.training.skeleton import load_skeleton

    quiet_transformers()
    planned = plan_adapter(load_skeleton(base), config)
    if as_json:
        print_json({"base": base, **planned.to_dict(), "training_memory": _training_memory(planned)})
    else:
        _show(planned, modules)


def _given(context: typer.Context) -> list[str]:
    """The options on the command line that describe an adapter."""
    own = ("base", "tiny", "data", "modules", "as_json")
    sources = {name: context.get_parameter_source(name) for name in context.params if name not in own}
    return [name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]


def _training_memory(planned: "Plan") -> dict[str, int]:
    """Bytes in training, activations left out: they depend on the batch and on the length of its rows."""
    return {
        "base_float32": 4 * planned.base_parameters,
        "base_bfloat16": 2 * planned.base_parameters,
        "adapter": planned.nbytes,
        "gradients": planned.nbytes,
        "adamw": 2 * planned.nbytes,  # both moments in float32
    }


def _show(planned: "Plan", each: bool) -> None:
    show_modules(planned, each=each)
    console = results()
    memory = _training_memory(planned)
    base = f"{size(memory.pop('base_float32'))} in float32 or {size(memory.pop('base_bfloat16'))} in bfloat16"
    console.print(
        f"Memory in training: the base, {base}, and {size(sum(memory.values()))} for the adapter, its gradients and "
        "AdamW's moments. Activations are not counted: they depend on the batch and the length of its rows."
    )
