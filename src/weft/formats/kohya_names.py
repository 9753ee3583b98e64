"""kohya's names of modules, which ComfyUI and AUTOMATIC1111 took over: a module's path with ``_`` for ``.``.

The dots cannot be told from the underscores by the name alone, so it is taken apart by the words that diffusers and
transformers build paths from. kohya's own SDXL files name the UNet's blocks as Stability's code does
(``input_blocks_4_1``); with two layers in a block, as SDXL has, those stand for diffusers' blocks as follows:

| Stability's | diffusers' |
|---|---|
| input_blocks i j | down_blocks (i-1)//3, layer (i-1)%3: resnets (j=0), attentions (j=1); layer 2 is the downsampler |
| middle_block i | mid_block: resnets 0, attentions 0, resnets 1 |
| output_blocks i j | up_blocks i//3, layer i%3: resnets (j=0), attentions (j=1); the last is the upsampler |
"""

import re

from weft.formats.image_pairs import stored_path

UNET = "lora_unet_"
PREFIXES = {
    UNET: "unet",
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
}
_WORDS = (
    "down_blocks", "up_blocks", "mid_block", "transformer_blocks", "time_emb_proj", "time_embedding", "add_embedding",
    "class_embedding", "encoder_hid_proj", "add_k_proj", "add_v_proj", "linear_1", "linear_2", "cond_proj", "conv_in",
    "conv_out", "conv_shortcut", "conv_norm_out", "proj_in", "proj_out", "to_q", "to_k", "to_v", "to_out", "text_model",
    "text_projection", "token_embedding", "position_embedding", "final_layer_norm", "layer_norm1", "layer_norm2",
    "self_attn", "q_proj", "k_proj", "v_proj", "out_proj",
)  # fmt: skip
_PIECE = re.compile("|".join([*sorted(_WORDS, key=len, reverse=True), r"[a-zA-Z0-9]+"]))
_LAYERS = 2  # in a block of SDXL's UNet
_INSIDE_RESNET = {
    "in_layers_2": "conv1",
    "out_layers_3": "conv2",
    "emb_layers_1": "time_emb_proj",
    "skip_connection": "conv_shortcut",
}
_OUTSIDE_BLOCKS = {
    "input_blocks_0_0": "conv_in",
    "time_embed_0": "time_embedding_linear_1",
    "time_embed_2": "time_embedding_linear_2",
    "label_emb_0_0": "add_embedding_linear_1",
    "label_emb_0_2": "add_embedding_linear_2",
    "out_2": "conv_out",
}
_SIDE_BLOCK = re.compile(r"(?P<side>input|output)_blocks_(?P<block>\d+)_(?P<part>\d+)_(?P<rest>.+)")
_MIDDLE_BLOCK = re.compile(r"middle_block_(?P<part>[012])_(?P<rest>.+)")


def kohya_name(path: str, two_text_encoders: bool) -> str:
    """The name of a module, such as ``lora_unet_mid_block_attentions_0_proj_in``.

    Args:
        path: its path, which begins with the pipeline's part: unet, text_encoder or text_encoder_2.
        two_text_encoders: the file is for a pipeline that has two, whose first one then is ``lora_te1``.
    """
    part, _, rest = stored_path(path).partition(".")
    prefix = {"unet": UNET, "text_encoder_2": "lora_te2_"}.get(part, "lora_te1_" if two_text_encoders else "lora_te_")
    return prefix + rest.replace(".", "_")


def stored_module(name: str) -> str | None:
    """The path that a name stands for, as files have it (see `stored_path`); None if it has none of the prefixes."""
    prefix = next((prefix for prefix in PREFIXES if name.startswith(prefix)), None)
    if prefix is None:
        return None
    rest = name.removeprefix(prefix)
    if prefix == UNET:
        rest = _diffusers_block(rest)
    return ".".join([PREFIXES[prefix], *_PIECE.findall(rest)])


def _diffusers_block(name: str) -> str:
    """The name of a UNet's module with diffusers' blocks instead of Stability's, if it has these."""
    if name in _OUTSIDE_BLOCKS:
        return _OUTSIDE_BLOCKS[name]
    middle = _MIDDLE_BLOCK.fullmatch(name)
    if middle is not None:
        part = int(middle["part"])
        kind, index = ("attentions", 0) if part == 1 else ("resnets", part // 2)
        return f"mid_block_{kind}_{index}_{_inside(kind, middle['rest'])}"
    side = _SIDE_BLOCK.fullmatch(name)
    if side is None:
        return name
    down, part, rest = side["side"] == "input", int(side["part"]), side["rest"]
    block, layer = divmod(int(side["block"]) - down, _LAYERS + 1)
    blocks = f"{'down' if down else 'up'}_blocks_{block}"
    if rest in ("op", "conv"):
        return f"{blocks}_{'down' if down else 'up'}samplers_0_conv"
    kind = ("resnets", "attentions")[min(part, 1)]
    return f"{blocks}_{kind}_{layer}_{_inside(kind, rest)}"


def _inside(kind: str, rest: str) -> str:
    return _INSIDE_RESNET.get(rest, rest) if kind == "resnets" else rest
