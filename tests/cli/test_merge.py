"""`weft merge`: the files that it writes are bit for bit what merging in memory and saving gives."""

import json
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaModel

import weft
from weft.errors import BaseMismatchError, BindingError, ConfigError, FormatError, MergeError
from weft.model.checkpoint import CheckpointReport, merge_checkpoint
from weft.training.skeleton import stored_model

from .conftest import Made, Run


def tensors(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def merged_in_memory(made: Made, folder: Path) -> dict[str, Tensor]:
    model = made.model()
    weft.attach(model, made.adapter)
    weft.merge(model, undo=None)
    weft.detach(model)
    model.save_pretrained(folder)
    return tensors(folder)


def merge_files(base: Path, adapter: weft.Adapter, output: Path, **options: object) -> CheckpointReport:
    return merge_checkpoint(stored_model(base), adapter, output, **options)


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


@contextmanager
def nothing_written(output: Path) -> Iterator[None]:
    """Asserts that a failed merge leaves the output's place, and what is around it, as it was."""
    before = sorted(output.parent.rglob("*"))
    yield
    assert sorted(output.parent.rglob("*")) == before


@pytest.mark.parametrize("name", ["llama", "gpt2", "classifier"])
def test_files_are_bit_for_bit_those_of_merging_in_memory(
    name: str, request: pytest.FixtureRequest, run: Run, tmp_path: Path
) -> None:
    made: Made = request.getfixturevalue(name)
    result = run("merge", made.base, made.adapter_path, "--output", tmp_path / "merged", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)

    expected = merged_in_memory(made, tmp_path / "expected")
    assert_same(tensors(tmp_path / "merged"), expected)
    base = tensors(made.base)
    changed = [key for key in base if not torch.equal(base[key], expected[key])]
    assert report["changed"] == len(changed) > 0
    assert report["tensors"] == len(base)
    assert report["bytes"] == sum(tensor.nbytes for tensor in base.values())
    assert report["changed_bytes"] == sum(base[key].nbytes for key in changed)
    weights = [f"{path}.weight" for path in made.adapter.factors if f"{path}.weight" in base]
    relative = [float((expected[w].double() - base[w].double()).norm() / base[w].double().norm()) for w in weights]
    assert report["mean_relative_change"] == pytest.approx(sum(relative) / len(relative), rel=1e-4)


@pytest.mark.parametrize(("name", "targets"), [("llama", "all-linear"), ("gpt2", ("c_attn", "c_fc"))])
def test_dora_is_merged_alike(name: str, targets: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    made: Made = request.getfixturevalue(name)
    model = made.model()
    weft.attach(model, weft.LoRAConfig(rank=2, targets=targets, variant=weft.DoRA()))
    with torch.no_grad():
        for parameter in weft.trainable_parameters(model):
            parameter += 0.1 * torch.randn_like(parameter)
    dora = replace(made, adapter=weft.collect(model))
    merge_files(made.base, dora.adapter, tmp_path / "merged")
    assert_same(tensors(tmp_path / "merged"), merged_in_memory(dora, tmp_path / "expected"))


def test_companions_are_not_left_out_silently(llama: Made, tmp_path: Path) -> None:
    config = replace(llama.adapter.config, companions=(weft.Prefix(length=2),))
    adapter = weft.collect(weft.attach(llama.model(), config))
    with pytest.raises(MergeError, match=r"nothing was written: the adapter has a companion \(prefix\)"):
        merge_files(llama.base, adapter, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_the_result_is_a_plain_checkpoint_with_its_tokenizer(llama: Made, run: Run, tmp_path: Path) -> None:
    (llama.base / "README.md").write_text("the base's card")
    result = run("merge", llama.base, llama.adapter_path.parent, "-o", tmp_path / "new" / "merged")  # a run's folder
    assert result.exit_code == 0, result.output
    assert "changed 14 of them" in result.stdout
    output = tmp_path / "new" / "merged"
    assert {path.name for path in output.iterdir()} == {p.name for p in llama.base.iterdir()} - {"README.md"}
    assert len(list(output.glob("*.safetensors"))) > 1
    assert AutoTokenizer.from_pretrained(output)("the weft")["input_ids"]

    plain, adapted = AutoModelForCausalLM.from_pretrained(output, dtype=torch.float32), llama.model().float()
    weft.attach(adapted, llama.adapter, any_base=True)
    ids = torch.arange(12).unsqueeze(0)
    # bfloat16 weights were rounded once, by at most 2^-9 of their size.
    torch.testing.assert_close(plain(ids).logits, adapted(ids).logits, rtol=0.05, atol=0.05)


def test_another_dtype_rounds_once(llama: Made, run: Run, tmp_path: Path) -> None:
    assert run("merge", llama.base, llama.adapter_path, "-o", tmp_path / "m", "--dtype", "float32").exit_code == 0
    found, base = tensors(tmp_path / "m"), tensors(llama.base)
    for key, tensor in found.items():
        path = key.removesuffix(".weight")
        change = llama.adapter.factors[path].dense() if path in llama.adapter.factors else 0.0
        torch.testing.assert_close(tensor, base[key].float() + change, rtol=1e-6, atol=1e-7)
    assert json.loads((tmp_path / "m" / "config.json").read_text())["dtype"] == "float32"
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype="auto").dtype == torch.float32
    index = json.loads((tmp_path / "m" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in found.values())


def test_keys_that_transformers_renames_on_loading_keep_their_names(llama: Made, tmp_path: Path) -> None:
    """A checkpoint of the backbone alone has no ``model.`` before its keys."""
    backbone = LlamaModel.from_pretrained(llama.base, dtype="auto")
    backbone.save_pretrained(tmp_path / "backbone")
    config = json.loads((tmp_path / "backbone" / "config.json").read_text())
    (tmp_path / "backbone" / "config.json").write_text(json.dumps(config | {"architectures": ["LlamaForCausalLM"]}))
    assert all(not key.startswith("model.") for key in tensors(tmp_path / "backbone"))

    merge_files(tmp_path / "backbone", llama.adapter, tmp_path / "merged")
    expected = merged_in_memory(llama, tmp_path / "expected")
    found = tensors(tmp_path / "merged")
    assert_same(found, {key.removeprefix("model."): t for key, t in expected.items() if key.startswith("model.")})


def test_another_base_is_refused_unless_asked_for(
    llama: Made, wide_llama: Made, fail: Callable[..., str], run: Run, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(llama.base, other)
    file = sorted(other.glob("*.safetensors"))[0]
    save_file({key: tensor + 0.5 for key, tensor in load_file(file).items()}, file)
    output = tmp_path / "merged"
    with nothing_written(output):
        message = fail("merge", other, llama.adapter_path, "-o", output)
        assert "made for another base" in message
        assert "its weights differ in" in message
        assert "--any-base" in message
        assert "other shapes" in fail("merge", wide_llama.base, llama.adapter_path, "-o", output)
        with pytest.raises(BaseMismatchError):
            merge_files(other, llama.adapter, output)
    assert run("merge", other, llama.adapter_path, "-o", output, "--any-base").exit_code == 0

    expected = merged_in_memory(replace(llama, base=other, adapter=replace(llama.adapter, base=None)), tmp_path / "e")
    assert_same(tensors(output), expected)


def test_the_same_base_in_another_dtype_is_the_same_base(llama: Made, tmp_path: Path) -> None:
    llama.model().float().save_pretrained(tmp_path / "float32")
    report = merge_files(tmp_path / "float32", llama.adapter, tmp_path / "merged")
    assert report.changed == 14


def test_shapes_that_do_not_fit_are_listed_together(
    llama: Made, wide_llama: Made, fail: Callable[..., str], tmp_path: Path
) -> None:
    with nothing_written(tmp_path / "merged"):
        message = fail("merge", wide_llama.base, llama.adapter_path, "-o", tmp_path / "merged", "--any-base")
    assert message.count("self_attn.q_proj: found B (32, 2) and A (2, 32)") == 2
    assert "expected B (48, r)" in message


def test_every_change_must_find_its_tensor(gpt2: Made, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(gpt2.base, base)
    stored = load_file(base / "model.safetensors")
    del stored["transformer.h.1.attn.c_attn.weight"], stored["transformer.h.0.mlp.c_fc.bias"]
    stored["transformer.h.0.attn.c_attn.weight"] = torch.zeros(3, 3)
    save_file(stored, base / "model.safetensors")
    with nothing_written(tmp_path / "merged"), pytest.raises(BindingError, match="3 changes did not fit") as caught:
        merge_files(base, gpt2.adapter, tmp_path / "merged", any_base=True)
    message = str(caught.value)
    assert "transformer.h.1.attn.c_attn.weight: no tensor of the files" in message
    assert "transformer.h.0.mlp.c_fc.bias: no tensor of the files" in message
    assert "transformer.h.0.attn.c_attn.weight: found (3, 3) in model.safetensors, expected (32, 96)" in message


def test_a_tied_weight_must_change_alike_everywhere(gpt2: Made, tmp_path: Path) -> None:
    factors, layouts = dict(gpt2.adapter.factors), dict(gpt2.adapter.layouts)
    del factors["lm_head"], layouts["lm_head"]
    one_sided = replace(gpt2.adapter, factors=factors, layouts=layouts)
    with nothing_written(tmp_path / "m"), pytest.raises(MergeError, match=r"transformer\.wte.*also that of 'lm_head'"):
        merge_files(gpt2.base, one_sided, tmp_path / "m")


def test_a_tied_weight_that_is_stored_twice_is_changed_twice(gpt2: Made, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(gpt2.base, base)
    stored = load_file(base / "model.safetensors")
    stored["lm_head.weight"] = stored["transformer.wte.weight"].clone()
    save_file(stored, base / "model.safetensors")
    merge_files(base, gpt2.adapter, tmp_path / "merged")
    found = tensors(tmp_path / "merged")
    assert torch.equal(found["lm_head.weight"], found["transformer.wte.weight"])
    assert not torch.equal(found["lm_head.weight"], stored["lm_head.weight"])


def test_a_weight_that_overflows_is_refused(llama: Made, fail: Callable[..., str], tmp_path: Path) -> None:
    huge = replace(llama.adapter, factors={path: 1e6 * value for path, value in llama.adapter.factors.items()})
    huge.save(tmp_path / "huge")
    output = tmp_path / "out" / "merged"
    output.parent.mkdir()
    with nothing_written(output):
        message = fail("merge", llama.base, tmp_path / "huge", "-o", output, "--dtype", "float16")
    assert "do not fit torch.float16" in message


def test_the_output_is_never_written_over_by_accident(
    llama: Made, fail: Callable[..., str], run: Run, tmp_path: Path
) -> None:
    output = tmp_path / "merged"
    output.mkdir()
    assert run("merge", llama.base, llama.adapter_path, "-o", output).exit_code == 0  # an empty folder is no one's
    (output / "model-00009-of-00009.safetensors").write_text("a shard of something else")
    with nothing_written(output):
        assert "is not empty" in fail("merge", llama.base, llama.adapter_path, "-o", output)
        assert "is, or holds" in fail("merge", llama.base, llama.adapter_path, "-o", llama.base, "--overwrite")
        assert "is, or holds" in fail("merge", llama.base, llama.adapter_path, "-o", llama.base.parent, "--overwrite")
    with nothing_written(output), pytest.raises(ConfigError, match="is, or holds"):
        merge_files(llama.base, llama.adapter, llama.base.parent, overwrite=True)
    assert run("merge", llama.base, llama.adapter_path, "-o", output, "--overwrite").exit_code == 0
    assert not (output / "model-00009-of-00009.safetensors").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["merged"]
    file = tmp_path / "file"
    file.write_text("")
    assert "is a file" in fail("merge", llama.base, llama.adapter_path, "-o", file)


def test_a_disk_that_is_full_leaves_what_was_there(llama: Made, tmp_path: Path) -> None:
    output = tmp_path / "merged"
    output.mkdir()
    (output / "kept").write_text("kept")
    stored = stored_model(llama.base)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limit[1]))  # files may not grow beyond this: a small disk
    try:
        with nothing_written(output), pytest.raises(FormatError, match=r"cannot write to .*merged"):
            merge_checkpoint(stored, llama.adapter, output, overwrite=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert (output / "kept").read_text() == "kept"


@pytest.fixture
def copy(llama: Made, tmp_path: Path) -> Path:
    shutil.copytree(llama.base, tmp_path / "base")
    return tmp_path / "base"


def test_a_damaged_file_is_named(copy: Path, llama: Made, fail: Callable[..., str], tmp_path: Path) -> None:
    first, second, *_ = sorted(copy.glob("*.safetensors"))
    first.write_bytes(first.read_bytes()[:-100])
    assert f"{first.name} is damaged" in fail("merge", copy, llama.adapter_path, "-o", tmp_path / "merged").replace(
        "\n", ""
    )
    first.unlink()
    assert f"there is no {first}" in fail("merge", copy, llama.adapter_path, "-o", tmp_path / "merged")
    shutil.copy(second, first)
    assert "promises" in fail("merge", copy, llama.adapter_path, "-o", tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_an_index_that_is_not_one_is_refused(copy: Path, llama: Made, tmp_path: Path) -> None:
    index = copy / "model.safetensors.index.json"
    for text, problem in (
        ("{", "is not an index"),
        ('{"weight_map": 3}', "is not an index"),
        ('{"weight_map": {"a": "../../etc/passwd"}}', "outside its folder"),
    ):
        index.write_text(text)
        with pytest.raises(FormatError, match=problem):
            merge_files(copy, llama.adapter, tmp_path / "merged")


def test_pickles_are_not_read(copy: Path, llama: Made, fail: Callable[..., str], tmp_path: Path) -> None:
    for file in copy.glob("*.safetensors*"):
        file.unlink()
    (copy / "pytorch_model.bin").write_bytes(b"")
    assert "a pickle, which weft does not read" in fail("merge", copy, llama.adapter_path, "-o", tmp_path / "merged")


def test_a_base_that_is_not_there(llama: Made, fail: Callable[..., str], tmp_path: Path) -> None:
    message = fail("merge", tmp_path / "nothing", llama.adapter_path, "-o", tmp_path / "merged")
    assert f"there is no folder {tmp_path / 'nothing'}" in message
    assert "there is no adapter" in fail("merge", llama.base, tmp_path / "nothing", "-o", tmp_path / "merged")
