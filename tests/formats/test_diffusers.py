"""diffusers' own file, in both directions against diffusers: the pictures are the same."""

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from pipelines import PIPELINES, computed, parts_of, trained
from safetensors.torch import load_file, save_file

import weft
from weft.errors import FormatError

TOLERANCE = dict(rtol=1e-4, atol=1e-4)  # float32: after two steps of sampling, in which latents are about 1
FILE = "pytorch_lora_weights.safetensors"


@pytest.mark.parametrize("kind", PIPELINES)
def test_diffusers_reads_what_weft_saves(kind: str, tmp_path: Path) -> None:
    pipeline, adapter = trained(kind)
    adapter.save(tmp_path, format="diffusers")
    expected, base, theirs = computed(pipeline), computed(PIPELINES[kind]()), PIPELINES[kind]()
    theirs.load_lora_weights(tmp_path)
    assert torch.allclose(computed(theirs), expected, **TOLERANCE)
    assert not torch.allclose(base, expected, rtol=0, atol=0.05)
    injected = {name.rpartition(".lora_A")[0] for part in parts_of(theirs).values() for name, _ in
                part.named_modules() if name.endswith(".lora_A")}  # fmt: skip
    assert injected == {path.partition(".")[2] for path in adapter.factors}


@pytest.mark.parametrize("kind", PIPELINES)
def test_weft_reads_back_what_it_saved(kind: str, tmp_path: Path) -> None:
    pipeline, adapter = trained(kind, rank=4, alpha=32.0)
    path = adapter.save(tmp_path / "mine.safetensors", format="diffusers")
    again = weft.load(path)
    assert again.factors.keys() == adapter.factors.keys()
    assert (again.config, again.base) == (adapter.config, adapter.base)
    fresh = PIPELINES[kind]()
    weft.attach(parts_of(fresh), again)
    assert torch.equal(computed(fresh), computed(pipeline))  # a scaling that is a power of two moves no bit


@pytest.mark.parametrize("alphas", ["in the header", "none"])
@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_weft_reads_what_diffusers_saves(kind: str, alphas: str, tmp_path: Path) -> None:
    pipeline: Any = PIPELINES[kind]()
    settings = dict(r=3, lora_alpha=3 if alphas == "none" else 12, init_lora_weights=False)
    if alphas != "none":
        settings["rank_pattern"] = {"mid_block.attentions.0.transformer_blocks.0.attn1.to_q": 2}
    torch.manual_seed(2)
    unet = peft.LoraConfig(target_modules=["to_q", "to_out.0", "conv1"], **settings)
    text = peft.LoraConfig(target_modules=["q_proj", "out_proj"], **settings | {"rank_pattern": {}})
    pipeline.unet.add_adapter(unet)
    pipeline.text_encoder.add_adapter(text)
    saver = StableDiffusionXLPipeline if kind == "sdxl" else StableDiffusionPipeline
    layers = dict(
        unet_lora_layers=peft.get_peft_model_state_dict(pipeline.unet),
        text_encoder_lora_layers=peft.get_peft_model_state_dict(pipeline.text_encoder, adapter_name="default"),
    )
    header = {}
    if alphas != "none":
        header = dict(unet_lora_adapter_metadata=unet.to_dict(), text_encoder_lora_adapter_metadata=text.to_dict())
    saver.save_lora_weights(tmp_path, **layers, **header)
    fresh = PIPELINES[kind]()
    weft.attach(parts_of(fresh), weft.load(tmp_path))
    assert torch.allclose(computed(fresh), computed(pipeline), **TOLERANCE)


def test_the_older_spellings_of_diffusers_are_read(tmp_path: Path) -> None:
    _, adapter = trained("sd15", targets=("to_q", "to_out.0", "re:text_encoder.*q_proj"))
    adapter.save(tmp_path, format="diffusers")
    tensors = load_file(tmp_path / FILE)
    old = {
        key.replace(".to_q.lora_A", ".processor.to_q_lora.down")
        .replace(".to_q.lora_B", ".processor.to_q_lora.up")
        .replace(".to_out.0.lora_A", ".to_out.0.lora.down")
        .replace(".to_out.0.lora_B", ".to_out.0.lora.up")
        .replace(".q_proj.lora_linear_layer.", ".to_q_lora."): tensor
        for key, tensor in tensors.items()
    }
    assert old.keys().isdisjoint(tensors)
    save_file(old, tmp_path / "old.safetensors")
    again = weft.load(tmp_path / "old.safetensors")
    assert again.factors.keys() == adapter.factors.keys()
    for path, factors in adapter.factors.items():
        assert torch.allclose(again.factors[path].dense(), factors.dense())


@pytest.mark.parametrize(
    ("key", "tensor", "expected"),
    [
        ("unet.conv_in.lora_magnitude_vector", torch.ones(3), "conv_in.lora_magnitude_vector: it is no plain LoRA"),
        ("vae.conv.lora_A.weight", torch.ones(2, 3), r"vae.conv.lora_A.weight: it is no plain LoRA of a pipeline"),
        ("unet.lonely.lora_A.weight", torch.ones(2, 3), r"unet.lonely: found lora_A \(2, 3\) without its lora_B"),
        ("unet.x.lora.up.weight", torch.ones(2, 3, dtype=torch.int8), "x.lora.up.weight: found torch.int8"),
    ],
)
def test_what_is_no_plain_lora_is_refused_by_name(
    key: str, tensor: torch.Tensor, expected: str, tmp_path: Path
) -> None:
    _, adapter = trained("sd15", targets=("to_q",))
    adapter.save(tmp_path, format="diffusers")
    save_file(load_file(tmp_path / FILE) | {key: tensor}, tmp_path / FILE)
    with pytest.raises(FormatError, match=expected):
        weft.load(tmp_path)


def test_a_header_with_dora_is_refused(tmp_path: Path) -> None:
    _, adapter = trained("sd15", targets=("to_q",))
    adapter.save(tmp_path, format="diffusers")
    header = {"lora_adapter_metadata": json.dumps({"unet.r": 3, "unet.lora_alpha": 3, "unet.use_dora": True})}
    save_file(load_file(tmp_path / FILE), tmp_path / FILE, metadata=header)
    with pytest.raises(FormatError, match="unet: use_dora is on"):
        weft.load(tmp_path)


def test_what_the_file_cannot_hold_is_refused_with_nothing_written(tmp_path: Path) -> None:
    pipeline = PIPELINES["sd15"]()
    parts = weft.attach(
        parts_of(pipeline), weft.LoRAConfig(targets=("to_q", "token_embedding"), rank=2, bias="adapted")
    )
    with pytest.raises(FormatError, match=r"diffusers cannot hold this adapter:\n  .*embedding, expected a linear"):
        weft.collect(parts).save(tmp_path / "out", format="diffusers")
    weft.detach(parts)
    weft.attach(parts, weft.LoRAConfig(targets=("to_q",), rank=2, variant=weft.DoRA()))
    with pytest.raises(FormatError, match=r"holds plain LoRA, and this adapter's variant is DoRA\(\)"):
        weft.collect(parts).save(tmp_path / "out", format="diffusers")
    bare = weft.attach(PIPELINES["sd15"]().unet, weft.LoRAConfig(targets=("to_q",), rank=2))
    with pytest.raises(FormatError, match="expected a path that begins with unet, transformer"):
        weft.collect(bare).save(tmp_path / "out", format="diffusers")
    assert not (tmp_path / "out").exists()
