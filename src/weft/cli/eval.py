"""``weft eval``: the base, and each adapter on it, on held-out text, in one table."""

from pathlib import Path
from typing import Annotated

import typer

from weft.cli import data_options as options
from weft.cli.adapters import adapter_path
from weft.cli.output import errors, print_json, quiet_transformers, results, table


def evaluate(
    data: options.Data,
    base: Annotated[str, typer.Option(help="The base model: a folder, a hub id, or 'bundled'.")] = "bundled",
    adapter: Annotated[
        list[Path] | None,
        typer.Option(help="An adapter, the folder of a run, or a name in the library; repeat it for several."),
    ] = None,
    split: options.Split = "test",
    messages_column: options.MessagesColumn = "messages",
    prompt_column: options.PromptColumn = "prompt",
    completion_column: options.CompletionColumn = "completion",
    text_column: options.TextColumn = "text",
    max_length: options.MaxLength = None,
    generate_rows: Annotated[int, typer.Option(help="Rows to answer greedily, for the text metrics.", min=0)] = 50,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens in an answer at most.", min=1)] = 64,
    batch_size: Annotated[int, typer.Option(help="Rows at a time.", min=1)] = 8,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, and no table.")] = False,
) -> None:
    """Evaluate the base and each adapter: loss (nats per learned token), accuracy, and greedy answers."""
    import weft
    from weft.data.text import Columns
    from weft.tasks import evaluate as evaluate_model
    from weft.tasks.text import TextTask
    from weft.training import load_base
    from weft.training.task import metric_rows

    quiet_transformers()
    paths = [adapter_path(path) for path in adapter or []]
    loaded = load_base(base)
    columns = Columns(messages_column, prompt_column, completion_column, text_column)
    dataset = options.held_out(loaded, data, split, columns, max_length)
    for number, path in enumerate(paths):
        weft.attach(loaded.model, weft.load(path), name=f"adapter{number}")
    names: list[str | None] = [None, *(f"adapter{number}" for number in range(len(paths)))]
    found = []
    with errors().status("evaluating") as status:
        for number, name in enumerate(names):
            status.update(f"evaluating {number + 1} of {len(names)}")
            if paths:
                weft.activate(loaded.model, name)
            found.append(
                evaluate_model(
                    loaded.model,
                    loaded.tokenizer,
                    dataset,
                    batch_size=batch_size,
                    generate_rows=generate_rows,
                    max_new_tokens=max_new_tokens,
                )
            )
    if as_json:
        named = zip([None, *map(str, adapter or [])], found, strict=True)
        documents = [{"adapter": path, **result.to_dict()} for path, result in named]
        print_json({"base": base, "data": data, "results": documents})
        return
    out = results()
    out.print(f"{data}: {dataset.report}", soft_wrap=True, markup=False)
    titles = (base, *map(str, adapter or []))
    out.print(table([("held out", *titles), *metric_rows(TextTask.metrics, *found)], right=titles))
    if found[0].samples:
        out.print(f"text metrics from {len(found[0].samples)} greedy answers")
