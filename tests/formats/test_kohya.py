"""kohya's file, which ComfyUI reads, against the reader of it that can be installed: diffusers' own."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.loaders.lora_conversion_utils import _maybe_map_sgm_blocks_to_diffusers
from pipelines import PIPELINES, computed, parts_of, trained
from safetensors.torch import load_file, save_file

import weft
from weft.errors import FormatError
from weft.formats.image_pairs import stored_path
from weft.formats.kohya_names import kohya_name, stored_module

TOLERANCE = dict(rtol=1e-4, atol=1e-4)  # float32: after two steps of sampling, in which latents are about 1
KINDS = ["sd15", "sdxl"]
# diffusers' reader of this format wants CLIP's out_proj among the modules of a text encoder; ComfyUI's does not.
TARGETS = {
    "sd15": (
        "to_q",
        "to_out.0",
        "ff.net.0.proj",
        "conv1",
        "proj_in",
        "time_emb_proj",
        "re:text_encoder.*(q_proj|out_proj)",
    ),
    "sdxl": ("to_k", "to_out.0", "ff.net.2", "conv2", "proj_out", "conv_shortcut", "re:text_encoder.*(fc1|out_proj)"),
}


@pytest.mark.parametrize("alpha", [6.0, 2.5])
@pytest.mark.parametrize("kind", KINDS)
def test_diffusers_reads_what_weft_saves(kind: str, alpha: float, tmp_path: Path) -> None:
    pipeline, adapter = trained(kind, alpha=alpha, targets=TARGETS[kind])
    path = adapter.save(tmp_path / "mine.safetensors", format="kohya")
    theirs = PIPELINES[kind]()
    theirs.load_lora_weights(path)
    assert torch.allclose(computed(theirs), computed(pipeline), **TOLERANCE)
    assert [entry.name for entry in tmp_path.iterdir()] == ["mine.safetensors"]


@pytest.mark.parametrize("alpha", [6.0, 0.1])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_read_back_is_what_was_saved(kind: str, alpha: float, tmp_path: Path) -> None:
    _, adapter = trained(kind, alpha=alpha)
    again = weft.load(adapter.save(tmp_path / "mine.safetensors", format="kohya"))
    assert (again.config, again.base, again.layouts) == (adapter.config, adapter.base, adapter.layouts)
    for path, factors in adapter.factors.items():
        assert torch.equal(again.factors[path].A, factors.A)
        assert torch.equal(again.factors[path].B, factors.B)
        assert again.factors[path].scaling == factors.scaling


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_without_our_header_is_read_by_its_names(kind: str, tmp_path: Path) -> None:
    pipeline, adapter = trained(kind)
    path = adapter.save(tmp_path / "mine.safetensors", format="kohya")
    save_file(load_file(path), path)
    fresh = PIPELINES[kind]()
    weft.attach(parts_of(fresh), weft.load(path))
    assert torch.equal(computed(fresh), computed(pipeline))


@pytest.mark.parametrize("kind", KINDS)
def test_every_modules_name_is_taken_apart_again(kind: str) -> None:
    for path, module in parts_of(PIPELINES[kind]()).named_modules():
        if list(module.parameters(recurse=False)) and "." in path:
            assert stored_module(kohya_name(path, kind == "sdxl")) == stored_path(path)


def test_no_alpha_or_zero_is_a_scaling_of_one(tmp_path: Path) -> None:
    _, adapter = trained("sd15", alpha=12.0, targets=("to_q",))
    path = adapter.save(tmp_path / "mine.safetensors", format="kohya")
    tensors = load_file(path)
    keys = [key for key in tensors if key.endswith(".alpha")]
    tensors[keys[0]] = torch.zeros(())
    del tensors[keys[1]]
    save_file(tensors, path)
    scalings = [factors.scaling for factors in weft.load(path).factors.values()]
    assert sorted(scalings) == [1.0, 1.0, *[4.0] * (len(keys) - 2)]


STABILITY = {
    "input_blocks_1_0_in_layers_2": "down_blocks.0.resnets.0.conv1",
    "input_blocks_3_0_op": "down_blocks.0.downsamplers.0.conv",
    "input_blocks_4_0_skip_connection": "down_blocks.1.resnets.0.conv_shortcut",
    "input_blocks_5_1_transformer_blocks_1_attn2_to_k": "down_blocks.1.attentions.1.transformer_blocks.1.attn2.to_k",
    "input_blocks_8_1_proj_in": "down_blocks.2.attentions.1.proj_in",
    "middle_block_0_emb_layers_1": "mid_block.resnets.0.time_emb_proj",
    "middle_block_1_transformer_blocks_0_ff_net_0_proj": "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj",
    "middle_block_2_out_layers_3": "mid_block.resnets.1.conv2",
    "output_blocks_0_1_transformer_blocks_9_attn1_to_q": "up_blocks.0.attentions.0.transformer_blocks.9.attn1.to_q",
    "output_blocks_2_2_conv": "up_blocks.0.upsamplers.0.conv",
    "output_blocks_8_0_in_layers_2": "up_blocks.2.resnets.2.conv1",
    "input_blocks_0_0": "conv_in",
    "time_embed_2": "time_embedding.linear_2",
    "label_emb_0_0": "add_embedding.linear_1",
    "out_2": "conv_out",
}  # fmt: skip


def test_stabilitys_names_of_sdxl_are_diffusers_blocks() -> None:
    assert {name: stored_module(f"lora_unet_{name}") for name in STABILITY} == {
        name: f"unet.{path}" for name, path in STABILITY.items()
    }


def test_diffusers_maps_stabilitys_names_to_the_same_modules() -> None:
    unet: Any = PIPELINES["sdxl"]().unet
    attention = [name for name in STABILITY if "transformer_blocks" in name or "proj" in name]
    mapped = _maybe_map_sgm_blocks_to_diffusers(
        {f"lora_unet_{name}.lora_down.weight": index for index, name in enumerate(attention)}, unet.config
    )
    for key, index in mapped.items():  # the numbers are diffusers'; the blocks' own names it replaces in its next step
        name = key.partition(".")[0].replace("input_blocks", "down_blocks").replace("middle_block", "mid_block")
        assert stored_module(name.replace("output_blocks", "up_blocks")) == f"unet.{STABILITY[attention[index]]}"


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("lora_unet_conv_in.hada_w1_a", "conv_in.hada_w1_a: it is no part of a plain LoRA"),
        ("lora_unet_conv_in.dora_scale", "conv_in.dora_scale: it is no part of a plain LoRA"),
        ("lora_vae_conv_in.lora_down.weight", "expected a name that begins with lora_unet_, lora_te_"),
        ("lora_unet_conv_in.alpha", "unet.conv_in: found alpha, and no factors"),
        ("lora_unet_conv_in.lora_down.weight", r"unet.conv_in: found lora_A \(1\) without its lora_B"),
    ],
)
def test_what_is_no_plain_lora_is_refused_by_name(key: str, expected: str, tmp_path: Path) -> None:
    _, adapter = trained("sd15", targets=("to_q",))
    path = adapter.save(tmp_path / "mine.safetensors", format="kohya")
    save_file(load_file(path) | {key: torch.ones(1)}, path)
    with pytest.raises(FormatError, match=expected):
        weft.load(path)


def test_a_folder_and_other_pipelines_are_refused_for_saving(tmp_path: Path) -> None:
    _, adapter = trained("sd3", targets=("to_q",))
    with pytest.raises(FormatError, match=r"a name that ends with \.safetensors"):
        adapter.save(tmp_path, format="kohya")
    with pytest.raises(FormatError, match="ComfyUI cannot hold this adapter:\n  transformer"):
        adapter.save(tmp_path / "mine.safetensors", format="kohya")
    assert not list(tmp_path.iterdir())
