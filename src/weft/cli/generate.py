"""``weft generate``: answers of a base under one adapter, or under several side by side."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.live import Live
from rich.markup import escape
from rich.table import Column, Table
from rich.text import Text

from weft.cli.adapters import named_paths
from weft.cli.output import errors, print_json, quiet_transformers, results
from weft.cli.quantize import Quantization, QuantizeOption
from weft.errors import ConfigError
from weft.training.config import Quantize

if TYPE_CHECKING:
    from weft.training.base import Base


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    Attributes:
        max_new_tokens: at most so many.
        greedy: always the likeliest; the three below do not count then.
        temperature: of the distribution.
        top_p: only the likeliest tokens that hold this share of the probability.
        top_k: only so many of the likeliest; 0 for all.
        seed: of the random numbers, the same for every answer.
    """

    max_new_tokens: int
    greedy: bool
    temperature: float
    top_p: float
    top_k: int
    seed: int


@dataclass(frozen=True)
class Answer:
    """One answer. `adapter` is None for the base alone; `tokens_per_second` counts reading the prompt too."""

    adapter: str | None
    text: str
    tokens: int
    seconds: float
    tokens_per_second: float


@dataclass
class Voice:
    """One voice: the base under an adapter (None: alone), and in a conversation what it has heard and said.

    Attributes:
        adapter: the adapter's name.
        template: the chat template that it was trained with, if not the base's own.
        messages: heard and said so far.
    """

    adapter: str | None
    template: str | None = None
    messages: list[dict[str, str]] = field(default_factory=list)

    @property
    def title(self) -> str:
        """What stands above its answers."""
        return self.adapter or "base alone"


def generate(
    base: Annotated[str, typer.Option(help="The base model: a folder, a hub id, or `bundled`.")] = "bundled",
    adapter: Annotated[
        list[str],
        typer.Option(
            help="An adapter, a run, or a name in the library: PATH or NAME=PATH. Repeat it to compare several.",
            show_default=False,
        ),
    ] = [],  # noqa: B006  # typer wants a list, and does not change it
    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", help="The prompt; without it, standard input.", show_default=False)
    ] = None,
    chat: Annotated[
        bool,
        typer.Option(
            "--chat",
            help="Speak through the chat template: the base's, or one beside an adapter. Without --prompt, a turn for "
            "each line.",
        ),
    ] = False,
    system: Annotated[str | None, typer.Option(help="The system message of a chat.", show_default=False)] = None,
    with_base: Annotated[bool, typer.Option("--with-base", help="Let the base answer too, without adapters.")] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens in an answer at most.")] = 128,
    greedy: Annotated[bool, typer.Option("--greedy", help="Always the likeliest token, instead of sampling.")] = False,
    temperature: Annotated[float, typer.Option(min=0.01, help="Sampling: lower is more certain.")] = 0.7,
    top_p: Annotated[float, typer.Option(min=0.01, max=1, help="Sampling: the share of probability kept.")] = 0.9,
    top_k: Annotated[int, typer.Option(min=0, help="Sampling: the number of tokens kept; 0 for all.")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Sampling: the seed, the same for every answer.")] = 0,
    device: Annotated[
        str | None, typer.Option(help="Where to run, such as cpu or cuda; a GPU by default if there is one.")
    ] = None,
    quantize: QuantizeOption = Quantization.none,
    any_base: Annotated[bool, typer.Option("--any-base", help="Take adapters that name another base.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Generate text with a base and its adapters, and compare them.

    With one voice, tokens are printed as they come. With several adapters, or `--with-base`, the answers stand side
    by side: the base is loaded once, and switching adapters costs nothing. All answers to a prompt start from the
    same seed.

    Examples:

        weft generate --adapter runs/mine/adapter --prompt "def read_lines("

        weft generate --adapter a=runs/a/adapter --adapter b=runs/b/adapter --with-base --greedy -p "Once"

        echo "What is a weft?" | weft generate --base ./my-base --chat
    """
    if system is not None and not chat:
        raise ConfigError("system: a system message needs --chat")
    sampling = Sampling(max_new_tokens, greedy, temperature, top_p, top_k, seed)
    paths = named_paths(adapter)
    prompts: Iterable[str] = _lines() if chat and prompt is None else [_text() if prompt is None else prompt]
    quiet_transformers()
    resident = _load(base, paths, device, quantize.setting, any_base)
    names = [*([None] if with_base or not paths else []), *paths]
    start = [{"role": "system", "content": system}] if system is not None else []
    templates = {each: _template_beside(path) for each, path in paths.items()}
    voices = [Voice(each, templates[each] if each else None, list(start)) for each in names]
    turns = []
    for text in prompts:
        answers = _turn(resident, voices, text, chat, sampling, quiet=as_json)
        turns.append({"prompt": text, "answers": [asdict(answer) for answer in answers]})
    if as_json:
        adapters = {name: str(path) for name, path in paths.items()}
        print_json({"base": base, "adapters": adapters, "sampling": asdict(sampling), "turns": turns})


def _load(name: str, paths: dict[str, Path], device: str | None, quantize: Quantize, any_base: bool) -> "Base":
    """The base with every adapter attached."""
    import torch

    from weft.formats import load
    from weft.model import attach
    from weft.training.base import load_base

    adapters = {each: load(path) for each, path in paths.items()}
    try:
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        dtype = torch.bfloat16 if place.type == "cuda" else torch.float32
        resident = load_base(name, dtype=dtype, quantize=quantize)
        torch.nn.Module.to(resident.model, place)  # transformers' own `to` is not typed
    except RuntimeError as error:
        raise ConfigError(f"device: cannot use {device!r}: {str(error).splitlines()[0]}") from error
    for each, adapter in adapters.items():
        attach(resident.model, adapter, each, any_base=any_base)
    return resident


def _text() -> str:
    """The prompt on standard input.

    Raises:
        ConfigError: there is none.
    """
    text = sys.stdin.read()
    if not text.strip():
        raise ConfigError("prompt: there is none; give --prompt TEXT, or text on standard input")
    return text.rstrip("\n")


def _lines() -> Iterator[str]:
    """A conversation's turns: the lines of standard input, as they come."""
    while True:
        if sys.stdin.isatty():
            print("\n> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.strip()


def _turn(
    resident: "Base", voices: list[Voice], text: str, chat: bool, sampling: Sampling, quiet: bool
) -> list[Answer]:
    """One prompt's answers, shown as they come unless `quiet`."""
    answers: list[Answer] = []
    with _display([voice.title for voice in voices], quiet) as show:
        for place, voice in enumerate(voices):
            voice.messages.append({"role": "user", "content": text})
            ids = _encode(resident, voice.messages if chat else text, voice.template)
            answer = _answer(resident, voice.adapter, ids, sampling, partial(show, place))
            voice.messages.append({"role": "assistant", "content": answer.text})
            answers.append(answer)
    if not quiet:
        for voice, answer in zip(voices, answers, strict=True):
            title = f"{voice.title}: " if len(voices) > 1 else ""
            remark = f"{title}{answer.tokens} tokens, {answer.tokens_per_second:.1f} tokens/s"
            errors().print(remark, style="dim", markup=False)
    return answers


@contextmanager
def _display(titles: list[str], quiet: bool) -> Iterator[Callable[[int, str], None]]:
    """Shows pieces of text as they come, (column, piece): one column as it is, several as a table that fills."""
    if quiet:
        yield lambda place, piece: None
        return
    if len(titles) == 1:
        yield lambda place, piece: print(piece, end="", flush=True)
        print()
        return
    texts = [Text() for _ in titles]
    side_by_side = Table(*(Column(escape(title), overflow="fold", ratio=1) for title in titles), expand=True)
    side_by_side.add_row(*texts)
    with Live(side_by_side, console=results(), refresh_per_second=8):

        def append(place: int, piece: str) -> None:
            texts[place].append(piece)

        yield append


def _template_beside(adapter: Path) -> str | None:
    """The chat template beside an adapter, which `weft train --task instruct` leaves where it is not the base's."""
    path = adapter / "chat_template.jinja"
    return path.read_text(encoding="utf-8") if path.is_file() else None


def _encode(resident: "Base", prompt: str | list[dict[str, str]], template: str | None) -> list[int]:
    """The token ids of a prompt, or of a conversation through a chat template: the base's own for None.

    Raises:
        ConfigError: the base has no chat template, or it refuses the conversation.
    """
    tokenizer = resident.tokenizer
    if isinstance(prompt, str):
        return list(tokenizer(prompt)["input_ids"])
    if not (template or tokenizer.chat_template):
        raise ConfigError(f"chat: the base {resident.name!r} has no chat template; leave out --chat")
    from jinja2.exceptions import TemplateError

    try:
        text = tokenizer.apply_chat_template(prompt, chat_template=template, add_generation_prompt=True, tokenize=False)
    except TemplateError as error:
        raise ConfigError(f"chat: the chat template refuses these messages: {error}") from error
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return list(ids)


def _answer(
    resident: "Base", adapter: str | None, ids: list[int], sampling: Sampling, show: Callable[[str], None]
) -> Answer:
    """One answer; its text is given to `show` as it comes.

    Raises:
        ConfigError: the prompt is empty, or leaves no room for an answer.
    """
    import torch
    from transformers import GenerationConfig, TextStreamer

    from weft.data.prompts import lay_prompt
    from weft.data.text import beginnings, context_length, pad_id
    from weft.model import activate, adapter_names, prompt_ids
    from weft.tasks.language.generation import end_ids

    model, tokenizer = resident.model, resident.tokenizer
    limit = context_length(model)
    if not ids:
        raise ConfigError("prompt: it holds no tokens; give some text")
    if adapter_names(model):
        activate(model, adapter)
    ids = lay_prompt(prompt_ids(model), ids, beginnings(tokenizer))
    if limit is not None and len(ids) >= limit:
        raise ConfigError(f"prompt: {len(ids)} tokens, and the base reads at most {limit}; shorten it")

    class Streamer(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            show(text)

    room = sampling.max_new_tokens if limit is None else min(sampling.max_new_tokens, limit - len(ids))
    chosen = {} if sampling.greedy else {
        "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k
    }  # fmt: skip
    settings = GenerationConfig(
        do_sample=not sampling.greedy,
        max_new_tokens=room,
        pad_token_id=pad_id(tokenizer),
        eos_token_id=end_ids(model, tokenizer),
        **chosen,
    )
    torch.manual_seed(sampling.seed)
    prompt = torch.tensor([ids], device=model.device)
    started = time.perf_counter()
    output = model.generate(  # type: ignore[operator]  # every causal language model has it
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        generation_config=settings,
        streamer=Streamer(tokenizer, skip_prompt=True, skip_special_tokens=True),
    )
    seconds = time.perf_counter() - started
    new = output[0, len(ids) :]
    text = tokenizer.decode(new, skip_special_tokens=True)
    assert isinstance(text, str)  # one row in, one text out
    return Answer(adapter, text, len(new), seconds, len(new) / seconds)
