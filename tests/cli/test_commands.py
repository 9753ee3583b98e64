"""The command line as a whole, and plan, inspect and generate."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import weft
from weft.cli.adapters import named_paths
from weft.errors import ConfigError

from .conftest import Made, Run, python

COMMANDS = ("demo", "plan", "train", "eval", "generate", "inspect", "merge", "curve")


def test_python_m_weft_shows_the_version() -> None:
    result = python("-m", "weft", "--version")
    assert (result.returncode, result.stdout, result.stderr) == (0, f"weft {weft.__version__}\n", "")


def test_help_needs_neither_torch_nor_transformers() -> None:
    code = "from weft.cli import main\ntry: main()\nfinally: import sys; print(*sys.modules)"
    result = python("-c", code, "--help")
    assert result.returncode == 0
    assert not {"torch", "transformers", "numpy"} & set(result.stdout.splitlines()[-1].split())
    for command in COMMANDS:
        assert f"│ {command} " in result.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, run: Run) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    assert "Usage" in result.stdout
    if command != "demo":  # it prints as it goes
        assert "--json" in result.stdout


def test_a_missing_package_names_the_extra_to_install() -> None:
    code = "import sys; sys.modules['transformers'] = None; from weft.cli import main; main()"
    result = python("-c", code, "plan", "bundled")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == (
        "error: this command needs transformers, which is not installed; run: pip install 'weft[train]'\n"
    )


def test_ctrl_c_is_quiet() -> None:
    # It waits for the prompt on standard input.
    process = subprocess.Popen(
        [sys.executable, "-m", "weft", "generate"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # a background job ignores it
    )
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=3)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout, stderr) == (130, b"", b"")


def test_bad_usage_exits_with_2(run: Run) -> None:
    for words, named in ((["plann"], "plann"), (["plan", "bundled", "--rank", "x"], "--rank"), (["merge"], "base")):
        result = run(*words)
        assert result.exit_code == 2
        assert named in result.stderr
        assert result.stdout == ""


# plan


def test_plan_is_that_of_the_library(llama: Made, run: Run) -> None:
    common = (
        *("plan", llama.base, "--rank", 4, "--targets", "q_proj,v_proj", "--targets", "down_proj"),
        *("--rank-pattern", "v_proj=2", "--alpha-pattern", "q_proj=16", "--layers", "1"),
        *("--scaling", "rank_stabilized", "--train-modules", "model.norm", "--json"),
    )
    result = run(*common, "--exclude", "*.nothing_there,lm_head")
    assert result.exit_code == 2  # a pattern that names nothing
    assert "nothing_there" in result.stderr
    result = run(*common)
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    config = weft.LoRAConfig(
        rank=4,
        targets=("q_proj", "v_proj", "down_proj"),
        rank_pattern={"v_proj": 2},
        alpha_pattern={"q_proj": 16},
        layers=(1,),
        scaling=weft.RankStabilized(),
        train_modules=("model.norm",),
    )
    expected = weft.plan(llama.model(), config)
    memory = document.pop("training_memory")
    assert document == {"base": str(llama.base), **expected.to_dict()}
    assert memory["base_float32"] == 4 * sum(p.numel() for p in llama.model().parameters())
    assert memory["adapter"] + memory["gradients"] + memory["adamw"] == 16 * expected.parameters


def test_plan_prints_a_table(llama: Made, run: Run) -> None:
    result = run("plan", llama.base, "--targets", "self_attn.?_proj", "--targets", "*.down_proj")
    assert result.exit_code == 2
    result = run("plan", llama.base, "--rank", 2, "--targets", "*.self_attn.[qk]_proj", "--layers", "0-1")
    assert result.exit_code == 0, result.output
    assert "under model.layers.*.self_attn:" in result.stdout
    assert "*.self_attn.[qk]_proj" in result.stdout  # as it was given, not as markup
    assert "448 trained parameters in 4 modules" in result.stdout
    assert "Activations are not counted" in " ".join(result.stdout.split())
    assert "0.self_attn.q_proj" in run("plan", llama.base, "--rank", 2, "--targets", "q_proj", "--modules").stdout


def test_plan_and_inspect_show_magnitudes(llama: Made, run: Run, tmp_path: Path) -> None:
    words = ("plan", llama.base, "--rank", 2, "--targets", "q_proj", "--variant", "dora")
    model = llama.model()
    adapter = weft.collect(weft.attach(model, weft.LoRAConfig(rank=2, targets="q_proj", variant=weft.DoRA())))
    magnitudes = sum(m.numel() for m in adapter.magnitudes.values())
    assert f"{magnitudes} of them are magnitudes" in " ".join(run(*words).stdout.split())
    document = json.loads(run(*words, "--json").stdout)
    assert sum(m["magnitudes"] for m in document["modules"]) == magnitudes
    assert document["parameters"] == adapter.num_parameters

    adapter.save(tmp_path)
    document = json.loads(run("inspect", tmp_path, "--json").stdout)
    assert document["config"]["variant"] == "dora"
    assert document["bytes"] == adapter.nbytes
    means = {path: m.mean().item() for path, m in adapter.magnitudes.items()}
    assert {m["path"]: m["magnitude"] for m in document["modules"]} == pytest.approx(means)
    assert "before the weight is scaled to the magnitudes" in " ".join(run("inspect", tmp_path).stdout.split())


def test_plan_takes_a_classifier_as_its_configuration_names_it(classifier: Made, run: Run) -> None:
    result = run("plan", classifier.base, "--rank", 2, "--train-modules", "classifier", "--targets", "query", "--json")
    assert json.loads(result.stdout)["trained"] == {"classifier": 3 * 32 + 3}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--targets", "q_prj"], "did you mean 'q_proj'"),
        (["--init", "pisa"], "did you mean 'pissa'"),
        (["--scaling", "x"], "there is no scaling 'x'"),
        (["--bias", "some"], "expected 'none', 'adapted' or 'all', found 'some'"),
        (["--rank", "0"], "expected a whole number of at least 1, found 0"),
        (["--rank", "99"], "rank 99 is larger than"),
        (["--layers", "a-b"], "layers: expected indices such as"),
        (["--rank-pattern", "q_proj"], "rank_pattern: expected PATTERN=int, found 'q_proj'"),
        (["--alpha-pattern", "q_proj=x"], "alpha_pattern: expected PATTERN=float, found 'q_proj=x'"),
    ],
)
def test_plan_says_what_is_wrong(words: list[str], message: str, llama: Made, fail: Callable[..., str]) -> None:
    assert message in fail("plan", llama.base, *words)


def test_a_base_that_transformers_cannot_read(tmp_path: Path, fail: Callable[..., str]) -> None:
    assert f"there is no folder {tmp_path / 'nothing'}" in fail("plan", tmp_path / "nothing")
    (tmp_path / "config.json").write_text("{")
    assert f"cannot build the model of '{tmp_path}'" in fail("plan", tmp_path)


# inspect


def test_inspect_says_what_the_factors_say(llama: Made, run: Run) -> None:
    result = run("inspect", llama.adapter_path, "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["format"] == "peft"
    assert document["config"] == llama.adapter.config.to_dict()
    assert document["parameters"] == llama.adapter.num_parameters
    assert document["bytes"] == llama.adapter.nbytes
    assert document["base"] == llama.adapter.base.to_dict()
    modules = {m["path"]: m for m in document["modules"]}
    assert modules.keys() == llama.adapter.factors.keys()
    for path, factors in llama.adapter.factors.items():
        assert modules[path]["norm"] == pytest.approx(float(factors.dense().norm()), rel=1e-4)
        assert (modules[path]["rank"], modules[path]["scaling"]) == (factors.rank, factors.scaling)


def test_inspect_prints_tables(classifier: Made, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    result = run("inspect", classifier.adapter_path.parent)  # the folder of a run
    assert result.exit_code == 0, result.output
    for word in ("word_embeddings", "classifier.weight", "attention.self.query", "rank", "stable"):
        assert word in result.stdout
    line = next(line for line in result.stdout.splitlines() if "attention.self.query" in line)
    assert line.split()[1] == "2"  # one row for both layers
    assert (
        run("inspect", classifier.adapter_path, "--modules").stdout.count("attention.self.query") == 4
    )  # with the biases


def test_inspect_names_a_damaged_file(llama: Made, fail: Callable[..., str], tmp_path: Path) -> None:
    assert f"there is no adapter at {tmp_path / 'nothing'}" in fail("inspect", tmp_path / "nothing")
    assert "holds no adapter" in fail("inspect", tmp_path)
    llama.adapter.save(tmp_path / "adapter")
    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-50])
    assert "adapter_model.safetensors" in fail("inspect", tmp_path / "adapter")


# generate


def reference(made: Made, adapter: bool, prompt: str, tokens: int) -> str:
    """transformers' own greedy answer, the adapter attached in Python."""
    model = AutoModelForCausalLM.from_pretrained(made.base, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(made.base)
    if adapter:
        weft.attach(model, weft.load(made.adapter_path))
    ids = tokenizer(prompt, return_tensors="pt")
    output = model.generate(**ids, max_new_tokens=tokens, do_sample=False)
    return tokenizer.decode(output[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)


def test_generate_answers_as_the_model_does(llama: Made, run: Run) -> None:
    words = ("generate", "--base", llama.base, "--greedy", "--max-new-tokens", 12, "--json")
    both = run(*words, "--adapter", f"mine={llama.adapter_path}", "--with-base", "--prompt", "the weft")
    assert both.exit_code == 0, both.output
    document = json.loads(both.stdout)
    (turn,) = document["turns"]
    assert turn["prompt"] == "the weft"
    base, mine = turn["answers"]
    assert (base["adapter"], mine["adapter"]) == (None, "mine")
    assert base["text"] == reference(llama, False, "the weft", 12)
    assert mine["text"] == reference(llama, True, "the weft", 12)
    assert base["text"] != mine["text"]
    assert 0 < mine["tokens"] <= 12
    assert mine["tokens_per_second"] == pytest.approx(mine["tokens"] / mine["seconds"])

    streamed = run(*words[:-1], input="the weft\n")
    assert streamed.stdout == base["text"] + "\n"
    assert "tokens/s" in streamed.stderr


def test_several_adapters_stand_side_by_side(llama: Made, run: Run, tmp_path: Path) -> None:
    other = llama.adapter.save(tmp_path / "other")
    result = run(
        *("generate", "--base", llama.base, "--adapter", llama.adapter_path, "--adapter", other, "--with-base"),
        *("--prompt", "the weft", "--max-new-tokens", 4),
    )
    assert result.exit_code == 0, result.output
    heading = next(line for line in result.stdout.splitlines() if "base alone" in line)
    assert heading.index("base alone") < heading.index("run") < heading.index("other")
    assert result.stderr.count("tokens/s") == 3


def test_sampling_follows_its_seed(llama: Made, run: Run) -> None:
    def texts(*words: object) -> list[str]:
        result = run("generate", "--base", llama.base, "-p", "the", "--max-new-tokens", 16, "--json", *words)
        return [answer["text"] for answer in json.loads(result.stdout)["turns"][0]["answers"]]

    hot = ("--temperature", 5, "--top-p", 1)
    assert texts(*hot, "--seed", 1) == texts(*hot, "--seed", 1)
    assert texts(*hot, "--seed", 1) != texts(*hot, "--seed", 2)
    assert texts("--top-k", 1, "--seed", 1) == texts("--greedy")


def test_chat_goes_through_the_template_and_remembers(llama: Made, run: Run) -> None:
    words = ("generate", "--base", llama.base, "--greedy", "--max-new-tokens", 3, "--json")
    result = run(*words, "--chat", "--system", "weave", input="the\n\nweft\n")
    assert result.exit_code == 0, result.output
    first, second = json.loads(result.stdout)["turns"]
    said = first["answers"][0]["text"]
    heard = f"<|system|>weave<|user|>the<|assistant|>{said}<|user|>weft<|assistant|>"
    assert second["answers"][0]["text"] == reference(llama, False, heard, 3)


@pytest.mark.parametrize(
    ("words", "input", "message"),
    [
        ([], "", "prompt: there is none"),
        (["-p", ""], "", "holds no tokens"),
        (["-p", "warp " * 60], "", "the base reads at most 128; shorten it"),
        (["-p", "x", "--system", "y"], "", "needs --chat"),
        (["-p", "x", "--device", "nowhere"], "", "device: cannot use 'nowhere'"),
        (["-p", "x", "--adapter", "a=/nothing"], "", "there is no adapter at /nothing"),
        (["-p", "x", "--adapter", "a=/x", "--adapter", "a=/y"], "", "two are called 'a'"),
        (["-p", "x", "--base", "./nothing"], "", "there is no folder ./nothing"),
    ],
)
def test_generate_says_what_is_wrong(
    words: list[str], input: str, message: str, llama: Made, fail: Callable[..., str]
) -> None:
    assert message in fail("generate", "--base", llama.base, *words, input=input)


def test_an_adapter_for_another_base_is_refused(llama: Made, wide_llama: Made, fail: Callable[..., str]) -> None:
    words = ("generate", "--base", wide_llama.base, "--adapter", llama.adapter_path, "-p", "x")
    assert "made for another base" in fail(*words)
    assert "did not fit" in fail(*words, "--any-base")


def test_an_answer_ends_where_the_context_does(llama: Made, run: Run) -> None:
    result = run("generate", "--base", llama.base, "-p", "the weft " * 12, "--max-new-tokens", 500, "--json")
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)["turns"][0]["answers"][0]
    prompt = AutoTokenizer.from_pretrained(llama.base)("the weft " * 12)["input_ids"]
    assert answer["tokens"] <= 128 - len(prompt)


def test_names_of_adapters(tmp_path: Path) -> None:
    for run_name in ("one", "two", "2.5"):
        (tmp_path / run_name / "adapter").mkdir(parents=True)
    paths = [str(tmp_path / "one" / "adapter"), str(tmp_path / "two"), str(tmp_path / "2.5"), f"x={tmp_path / 'one'}"]
    assert named_paths(paths) == {
        "one": tmp_path / "one" / "adapter",
        "two": tmp_path / "two" / "adapter",
        "2-5": tmp_path / "2.5" / "adapter",
        "x": tmp_path / "one" / "adapter",
    }
    with pytest.raises(ConfigError, match="two are called 'one'"):
        named_paths(["one=a", "one=b"])
