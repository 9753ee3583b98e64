"""The fingerprint of a base: what stands in adapter files must stay comparable."""

import json

import torch

from weft.fingerprint import fingerprint

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
