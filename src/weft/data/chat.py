"""A conversation through a tokenizer's chat template, cut into what the model reads and what it is to say."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from weft.errors import DataError

_GENERATION_BLOCK = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True)
class Segment:
    """A stretch of text; `is_answer` if the assistant says it, so that the loss is taken on it."""

    text: str
    is_answer: bool


def chat_segments(messages: Any, tokenizer: PreTrainedTokenizerBase, where: str) -> list[Segment]:
    """The segments of one conversation, up to the end of the last assistant turn.

    Where the template marks what the assistant says (``{% generation %}``), the marks are followed. Otherwise
    a turn's answer is what the template adds to the generation prompt when it is given that turn too; this
    needs a template that only ever extends what it wrote for fewer messages.

    Args:
        messages: a list of {"role": ..., "content": ...}, or the same as JSON text.
        tokenizer: one with a chat template.
        where: the row, for messages.

    Raises:
        DataError: no template, malformed messages, no assistant turn or an empty one, or a template for which
            neither way works.
    """
    template = tokenizer.chat_template
    if not isinstance(template, str):
        raise DataError(
            f"{where}: the row holds chat messages, but the tokenizer has no chat template; use a base with one, set "
            "tokenizer.chat_template, or give prompt and completion columns"
        )
    turns = _turns(messages, where)
    try:
        if _GENERATION_BLOCK.search(template):
            segments = _marked(turns, tokenizer, template)
        else:
            segments = _extended(turns, tokenizer, where)
    except TemplateError as error:
        raise DataError(f"{where}: the chat template refuses these messages: {error}") from error
    last = max((i for i, segment in enumerate(segments) if segment.is_answer and segment.text.strip()), default=None)
    if last is None:
        raise DataError(f"{where}: the chat template renders no assistant turn of these messages")
    return segments[: last + 1]


def _turns(messages: Any, where: str) -> list[dict[str, Any]]:
    """The messages, checked; null fields (which tables fill in) left out."""
    if isinstance(messages, str):
        try:
            messages = json.loads(messages)
        except ValueError as error:
            raise DataError(f"{where}: expected messages as a list, or as JSON text: {error}") from error
    if not isinstance(messages, Sequence) or not messages:
        raise DataError(f"{where}: expected a list of messages, found {messages!r}")
    turns: list[dict[str, Any]] = []
    for message in messages:
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise DataError(f"{where}: expected a message with a role and a content, found {message!r}")
        turns.append({key: value for key, value in message.items() if value is not None})
    answers = [turn for turn in turns if turn["role"] == "assistant"]
    if not answers:
        roles = ", ".join(dict.fromkeys(turn["role"] for turn in turns))
        raise DataError(f"{where}: no message has the role 'assistant' (found: {roles}), so there is nothing to learn")
    for answer in answers:
        content = answer.get("content")
        if "tool_calls" not in answer and (not content or (isinstance(content, str) and not content.strip())):
            raise DataError(f"{where}: an assistant message is empty")
    return turns


def _marked(turns: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, template: str) -> list[Segment]:
    special: dict[str, Any] = dict(tokenizer.special_tokens_map)
    rendered: Any = render_jinja_template(
        [turns], chat_template=template, return_assistant_tokens_mask=True, **special
    )  # (texts, the characters' spans), one each for a conversation
    text, spans = rendered[0][0], rendered[1][0]
    segments, end = [], 0
    for start, stop in spans:
        segments += [Segment(text[end:start], False), Segment(text[start:stop], True)]
        end = stop
    return segments


def _extended(turns: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, where: str) -> list[Segment]:
    full = _render(turns, tokenizer)
    segments, end = [], 0
    for place, turn in enumerate(turns):
        if turn["role"] != "assistant":
            continue
        before = _render(turns[:place], tokenizer, add_generation_prompt=True)
        after = _render(turns[: place + 1], tokenizer)
        if not (full.startswith(after) and after.startswith(before) and len(before) >= end):
            raise DataError(
                f"{where}: the chat template rewrites earlier turns, so what the assistant says in message {place + 1} "
                "cannot be told from what it reads; put {% generation %} ... {% endgeneration %} around it in the "
                "template, or give prompt and completion columns"
            )
        answer = full[len(before) : len(after)].rstrip()  # what follows the mark of the turn's end is not said
        segments += [Segment(full[end : len(before)], False), Segment(answer, True)]
        end = len(before) + len(answer)
    return segments


def _render(
    turns: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, *, add_generation_prompt: bool = False
) -> str:
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=add_generation_prompt)
    assert isinstance(text, str)
    return text
