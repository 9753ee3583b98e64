"""The fingerprint of a base: what stands in adapter files must stay comparable."""

import copy
import itertools
import json
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import BitsAndBytesConfig, GPT2Config, GPT2LMHeadModel

import weft
from weft.fingerprint import Fingerprint, fingerprint

PARAMETERS = {
    "a.weight": torch.arange(60.0).view(3, 4, 5) / 7,
    "a.bias": (torch.arange(9.0) - 3).bfloat16(),
    "b.scale": torch.tensor(2.5),
    "b.index": torch.ones(3, dtype=torch.int8),
    "c.weight": (torch.arange(30.0) / 3).view(5, 6).T.half(),  # not contiguous
}
AS_WRITTEN = """{
    "structure": "351b61637aef4528ccbeaf5a056d37aa",
    "names": "3000a30679833cffb6aeeeadca80cd04",
    "samples": {
        "a.bias": [0.0, 4.0, -1.0, 3.0, -2.0, 2.0, -3.0, 1.0],
        "a.weight": [2.14286, 6.57143, 2.42857, 6.85714, 2.71429, 7.14286, 3.0, 7.42857],
        "b.scale": [2.5],
        "c.weight": [0.666504, 2.0, 5.33203, 6.66797, 8.0, 1.66699, 3.0, 4.33203]
    }
}"""


def test_it_is_what_earlier_files_hold() -> None:
    assert fingerprint(PARAMETERS).to_dict() == json.loads(AS_WRITTEN)


def test_it_sees_a_change_that_no_version_counter_does() -> None:
    weight = torch.nn.Parameter(torch.ones(4, 4))
    before, version = fingerprint({"weight": weight}), weight._version
    weight.data.mul_(2)
    assert weight._version == version
    assert before.difference(fingerprint({"weight": weight})) is not None


def test_a_base_without_values_has_no_samples() -> None:
    assert fingerprint({"weight": torch.empty(4, 4, device="meta")}).samples == {}
    assert fingerprint({"weight": torch.empty(0, 4)}).samples == {}


def models() -> dict[str, nn.Module]:
    """One base in the forms that people load it in; beside it another one."""
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    torch.manual_seed(0)
    plain = nn.Sequential(nn.Embedding(9, 32), nn.Linear(32, 96), nn.Linear(96, 32))
    made: dict[str, nn.Module] = {"fp32": plain, "bf16": copy.deepcopy(plain).bfloat16()}
    for name, make in (
        ("8bit", partial(Linear8bitLt, has_fp16_weights=False)),
        ("8bit of bf16", partial(Linear8bitLt, has_fp16_weights=False)),
        ("nf4", partial(Linear4bit, quant_type="nf4")),
        ("fp4", partial(Linear4bit, quant_type="fp4", compress_statistics=False)),
    ):
        source = made["bf16" if "bf16" in name else "fp32"]
        quantised = nn.Sequential(nn.Embedding(9, 32), make(32, 96), make(96, 32))
        quantised.load_state_dict({key: value.float() for key, value in source.state_dict().items()})
        made[name] = quantised.to("cpu")
    return made


def test_the_same_base_quantised_matches_in_both_directions() -> None:
    found = {name: weft.base_fingerprint(model) for name, model in models().items()}
    for a, b in itertools.permutations(found, 2):
        assert found[a].difference(found[b]) is None, (a, b)
        again = Fingerprint.from_dict(json.loads(json.dumps(found[a].to_dict())))
        assert again == found[a]


@pytest.mark.parametrize("form", ["8bit", "nf4", "fp4"])
def test_another_base_does_not_match_a_quantised_one(form: str) -> None:
    model = models()[form]
    known = weft.base_fingerprint(model)
    other = models()["fp32"]
    with torch.no_grad():
        for i in (1, 2):
            nn.init.kaiming_uniform_(other[i].weight, a=5**0.5)
    assert "weights differ in 2 of 5 sampled tensors" in str(known.difference(weft.base_fingerprint(other)))
    assert "weights differ in 2 of 5 sampled tensors" in str(weft.base_fingerprint(other).difference(known))


def test_a_fine_tuned_copy_does_not_match_an_8_bit_one() -> None:
    known = weft.base_fingerprint(models()["8bit"])
    tuned = models()["fp32"]
    with torch.no_grad():
        tuned[1].weight += 0.03 * tuned[1].weight.std() * torch.randn_like(tuned[1].weight)
    assert known.difference(weft.base_fingerprint(tuned)) is not None


def test_it_is_the_same_before_and_after_a_quantised_layer_has_run() -> None:
    for form in ("8bit", "nf4"):
        model = models()[form].eval()
        before = weft.base_fingerprint(model)
        model(torch.arange(9))
        assert weft.base_fingerprint(model) == before


def test_an_adapter_of_a_quantised_base_goes_onto_the_plain_one_and_back() -> None:
    made = models()
    config = weft.LoRAConfig(rank=2, targets=("1", "2"))
    for a, b in (("8bit", "fp32"), ("fp32", "8bit"), ("8bit", "bf16"), ("nf4", "8bit")):
        adapter = weft.collect(weft.attach(made[a], config))
        weft.detach(made[a])
        weft.detach(weft.attach(made[b], adapter))


def test_a_transposed_weight_is_known_again_once_it_is_quantised(tmp_path: Path) -> None:
    """GPT-2's Conv1D becomes a linear layer."""
    config = GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=48, n_positions=16)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    plain = weft.base_fingerprint(GPT2LMHeadModel.from_pretrained(tmp_path))
    for how in ({"load_in_8bit": True}, {"load_in_4bit": True}):
        model = GPT2LMHeadModel.from_pretrained(tmp_path, quantization_config=BitsAndBytesConfig(**how))
        assert plain.difference(weft.base_fingerprint(model)) is None
