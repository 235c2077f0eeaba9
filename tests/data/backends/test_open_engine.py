"""Asking for an engine: recipe keys, and what is said where Spark is not installed."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmrec_cli.config.data import DataSection
from llmrec_cli.config.loader import read_recipe
from llmrec_cli.config.recipe import Recipe
from llmrec_cli.data.backends import open_engine
from llmrec_cli.errors import MachineError, RecipeError
from llmrec_cli.pipeline.prepare import prepare_data


def section(**keys: object) -> DataSection:
    return DataSection.model_validate({"format": "ratings2023", "reviews": ("r.csv",)} | keys)


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("data.engine=sparc", r"\[data\] engine = \"sparc\": expected 'polars' or 'spark'"),
        ("data.memory=63", r"\[data\] memory = 63: expected greater than or equal to 64"),
        ("data.memory=1e3", r"\[data\] memory = 1000.0: expected a valid integer"),
        ("data.spark.mastr=x", r"\[data\.spark\] mastr = .*Did you mean master\?"),
        ("data.spark.master=x", r'\[data\] spark is set, and engine = "polars": expected "spark"'),
        (
            "data.spark.options={ a = 1 }",
            r"\[data\.spark\.options\] a = 1: expected a valid string",
        ),
        ("data.spark.options.a.b=c", r"\[data\.spark\.options\] a = .*: expected a valid string"),
    ],
)
def test_keys_of_the_engine_are_checked(override: str, problem: str) -> None:
    with pytest.raises(RecipeError, match=problem):
        read_recipe("quickstart", [override])


def test_spark_takes_its_settings_from_the_recipe() -> None:
    options = '{ "spark.driver.memory" = "4g" }'
    recipe = read_recipe(
        "quickstart",
        ["data.engine=spark", "data.spark.master=local[2]", f"data.spark.options={options}"],
    )
    assert recipe.data.spark.master == "local[2]"
    assert recipe.data.spark.options == {"spark.driver.memory": "4g"}


def test_without_pyspark_the_message_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("llmrec_cli.data.backends.spark.find_spec", lambda name: None)
    with (
        pytest.raises(
            MachineError, match=r"pyspark is not installed: pip install 'llmrec\[spark\]'"
        ) as failed,
        open_engine(section(engine="spark"), tmp_path / "log"),
    ):
        pass
    assert failed.value.exit_code == 3


def test_sources_that_come_split_need_no_spark(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("llmrec_cli.data.backends.spark.find_spec", lambda name: None)
    header = "user_id,parent_asin,rating,timestamp,history\n"
    splits = {}
    for name in ("train", "valid", "test"):
        splits[name] = str(tmp_path / f"{name}.csv")
        Path(splits[name]).write_text(header + "u,b,5.0,1500000000000,a\n")
    data = {"format": "split2023", "split": "given", "splits": splits, "untitled": "id"}
    asked = {"name": "given", "out": str(tmp_path), "data": data | {"engine": "spark"}}
    assert len(prepare_data(Recipe.model_validate(asked), Path).split("test")) == 1
