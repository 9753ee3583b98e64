"""A tokenizer that needs no training: one token for each byte, and a chat template."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<mask>", "<|user|>", "<|assistant|>", "<|system|>")

CHAT = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def byte_tokenizer(single: str = "<s> $A", pair: str = "<s> $A $B") -> PreTrainedTokenizerFast:
    """264 tokens: `SPECIAL`, in their order, then the bytes.

    Args:
        single: the special tokens around a text, ``$A``; an encoder's would be ``<s> $A </s>``.
        pair: those around two texts, such as ``<s> $A </s> $B </s>``.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate([*SPECIAL, *alphabet])}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    numbered = [(token, i) for i, token in enumerate(SPECIAL)]
    inner.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=numbered)
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        mask_token="<mask>",
        sep_token="</s>",
        cls_token="<s>",
        additional_special_tokens=list(SPECIAL[5:]),
        chat_template=CHAT,
    )
