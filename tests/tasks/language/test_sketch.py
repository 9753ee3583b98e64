"""What a run of a language model will hold of its base."""

from pathlib import Path

import torch

from weft.tasks import TextRun
from weft.tasks.language.sketch import language_sketch
from weft.training.base import load_base


def test_the_weights_of_an_8_bit_base_are_what_bitsandbytes_holds(base: Path) -> None:
    run = TextRun(base=str(base), train="x", output="y", quantize="8bit", bf16=False)
    loaded = load_base(base, dtype=torch.float32, quantize="8bit").model
    held = {tensor.data_ptr(): tensor.nbytes for tensor in (*loaded.parameters(), *loaded.buffers())}
    scales = [tensor for parameter in loaded.parameters() if (tensor := getattr(parameter, "SCB", None)) is not None]
    assert scales
    expected = sum(held.values()) + sum(scale.nbytes for scale in scales if scale.data_ptr() not in held)
    assert language_sketch(run).weights == expected


def test_one_that_is_whole_counts_its_own(base: Path) -> None:
    sketch = language_sketch(TextRun(base=str(base), train="x", output="y", max_length=7, batch_size=3, bf16=True))
    assert sketch.weights is None
    assert next(sketch.model.parameters()).dtype == torch.bfloat16
    assert sketch.batch["input_ids"].shape == (3, 7)
