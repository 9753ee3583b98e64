from pathlib import Path
from typing import Any

import pytest

from weft.config import LoRAConfig, PiSSA, RankStabilized
from weft.errors import ConfigError
from weft.tasks import TextRun
from weft.training import RunConfig


def test_the_adapters_settings_have_the_defaults_of_its_own_configuration() -> None:
    assert TextRun(output="o", train="t").lora() == LoRAConfig()


def test_every_setting_survives_yaml(tmp_path: Path) -> None:
    config = TextRun(
        output="o", train="t", eval="e", targets=["q_proj", "v_proj"], layers=[0, 2], rank_pattern={"q_proj": 4},
        init={"name": "pissa", "num_power_iters": 2}, scaling="rank_stabilized", learning_rate="1e-3", bf16=True,
    )  # fmt: skip
    (tmp_path / "run.yaml").write_text(config.to_yaml())
    again = RunConfig.from_yaml(tmp_path / "run.yaml")
    assert again == config
    assert again.learning_rate == 1e-3
    assert again.lora() == LoRAConfig(
        targets=("q_proj", "v_proj"), layers=(0, 2), rank_pattern={"q_proj": 4}, init=PiSSA(2), scaling=RankStabilized()
    )
    assert RunConfig.from_yaml(tmp_path / "run.yaml", {"rank": 3}).rank == 3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"learning_rte": 1}, "unknown setting 'learning_rte'; did you mean 'learning_rate'"),
        ({"rank": 0}, "rank: expected greater than or equal to 1, found 0"),
        ({"rank": "many"}, "rank: expected .*integer.*, found 'many'"),
        ({"schedule": "cosin"}, "schedule: expected 'constant', 'linear' or 'cosine', found 'cosin'"),
        ({"init": "pisa"}, "there is no initializer 'pisa'; did you mean 'pissa'"),
        ({"init": {"name": "pissa", "iters": 2}}, "init 'pissa' has no setting 'iters'"),
        ({"eval": "e", "eval_share": 0.1}, "eval and eval_share are both given"),
        ({"early_stopping": 2}, "early_stopping needs held-out data"),
        ({"train": None}, "train: expected"),
    ],
)
def test_a_setting_that_cannot_be_is_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TextRun(**({"output": "o", "train": "t"} | values))
    with pytest.raises(ConfigError, match="the setting 'train' is missing"):
        TextRun(output="o")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rank: [", "run.yaml is not YAML"),
        ("just words", "run.yaml: expected settings such as 'rank: 16', found str"),
        ("output: o\ntrain: t\nrnak: 4", "run.yaml: unknown setting 'rnak'; did you mean 'rank'"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        RunConfig.from_yaml(tmp_path / "run.yaml")
    with pytest.raises(ConfigError, match=r"cannot read the run file .*none.yaml"):
        RunConfig.from_yaml(tmp_path / "none.yaml")


def test_every_setting_is_described() -> None:
    assert [name for name, field in RunConfig.model_fields.items() if not field.description] == []
