"""Chat templates for bases that have none: each is Jinja, as a tokenizer keeps it, and marks what is learned.

A tokenizer that was given one renders, trains and generates as with a template of its own, and saves it.
"""

from typing import Literal

from transformers import PreTrainedTokenizerBase

INPUT_HEADING = "\n\n### Input:\n"  # between an instruction and its input, in Alpaca's wording

# ### User:
# What is a weft?
#
# ### Assistant:
# The thread that is woven through.<end>
_PLAIN = """\
{%- for message in messages %}
{%- if message.role == 'system' %}
{{- message.content + '\n\n' }}
{%- elif message.role == 'user' %}
{{- '### User:\n' + message.content + '\n\n' }}
{%- elif message.role == 'assistant' %}
{{- '### Assistant:\n' }}
{%- generation %}
{{- message.content + eos_token }}
{%- endgeneration %}
{{- '\n\n' }}
{%- else %}
{{- raise_exception('this template knows the roles system, user and assistant, and not ' + message.role) }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '### Assistant:\n' }}
{%- endif %}"""

# The prompt of Taori et al., Stanford Alpaca (2023), letter for letter; a system message stands in for its opening.
_ALPACA = """\
{%- for message in messages %}
{%- if message.role == 'system' %}
{{- message.content + '\n\n' }}
{%- elif message.role == 'user' %}
{%- if loop.first %}
{{- 'Below is an instruction that describes a task' }}
{{- ', paired with an input that provides further context' if '\n\n### Input:\n' in message.content else '' }}
{{- '. Write a response that appropriately completes the request.\n\n' }}
{%- endif %}
{{- '### Instruction:\n' + message.content + '\n\n### Response:' }}
{%- elif message.role == 'assistant' %}
{%- generation %}
{{- message.content + eos_token }}
{%- endgeneration %}
{{- '\n\n' }}
{%- else %}
{{- raise_exception('this template knows the roles system, user and assistant, and not ' + message.role) }}
{%- endif %}
{%- endfor %}"""


def chat_template(name: Literal["plain", "alpaca"], tokenizer: PreTrainedTokenizerBase) -> str:
    """A template by name, which begins with the mark of the beginning where the tokenizer would give a prompt one."""
    start: list[int] = tokenizer("a")["input_ids"]
    begins = tokenizer.bos_token_id is not None and start[0] == tokenizer.bos_token_id
    return ("{{- bos_token }}" if begins else "") + {"plain": _PLAIN, "alpaca": _ALPACA}[name]
