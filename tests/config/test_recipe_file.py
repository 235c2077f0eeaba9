"""Recipes: what is refused, how it is said, and what survives a round trip."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from llmrec_cli import methods
from llmrec_cli.config.loader import read_recipe
from llmrec_cli.config.recipe import Recipe
from llmrec_cli.config.training import (
    ALIGNMENTS,
    CONVENTIONAL,
    OWN_TRAIN,
    TRAIN_OF,
    AlignSection,
    NamedTables,
    TrainSection,
    list_baseline_options,
)
from llmrec_cli.errors import RecipeError
from llmrec_cli.methods.contract import Options
from llmrec_cli.methods.ilrec import IlrecOptions
from llmrec_cli.runs.run import experiment_of

GOOD = """
name = "good"
[data]
format = "amazon2018"
reviews = ["raw/reviews.json"]
metadata = "./meta.json"
[train]
epochs = 7
[sft.train]
batch = 16
[align.msl]
parent = "base"
tau = "ats"
[align.fixed]
method = "msl"
tau = 4.5
[align.fixed.train]
epochs = 2
"""


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "good.toml"
    path.write_text(GOOD)
    return path


def problems(path: Path, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        read_recipe(str(path), overrides)
    return str(caught.value)


def test_stages_inherit_the_shared_train_table(good: Path) -> None:
    recipe = read_recipe(str(good))
    assert recipe.sft.train.epochs == 7
    assert recipe.sft.train.batch == 16
    assert recipe.align["msl"].train.epochs == 7
    assert recipe.align["fixed"].train.epochs == 2
    assert experiment_of(recipe).names == ["baseline-pop", "sft", "align-msl", "align-fixed"]


def test_a_resolved_recipe_loads_to_the_same_recipe(good: Path, tmp_path: Path) -> None:
    recipe = read_recipe(str(good), ["train.clip=0.5"])
    again = tmp_path / "again.toml"
    again.write_text(tomli_w.dumps(recipe.to_table()))
    assert read_recipe(str(again)) == recipe


def test_dotted_paths_are_relative_to_the_recipe(good: Path, tmp_path: Path) -> None:
    data = read_recipe(str(good)).data
    assert data.metadata == (str(tmp_path / "meta.json"),)
    assert data.reviews == ("raw/reviews.json",)


def test_overrides_win_and_may_add_tables(good: Path) -> None:
    recipe = read_recipe(str(good), ["train.learning_rate=3e-3", "align.msl.tau=2", "name=other"])
    assert recipe.train.learning_rate == 3e-3
    assert recipe.align["msl"].options.tau == 2  # type: ignore[attr-defined]  # options of msl
    assert recipe.name == "other"


def test_a_wanted_alignment_gets_default_options(good: Path) -> None:
    recipe = read_recipe(str(good), aligns=["lml"])
    assert recipe.align["lml"].parent == "sft"


def test_extends_is_one_level_and_the_nearer_value_wins(good: Path, tmp_path: Path) -> None:
    child = tmp_path / "child.toml"
    child.write_text('extends = "good.toml"\nname = "child"\n[train]\nepochs = 1\n')
    recipe = read_recipe(str(child))
    assert (recipe.name, recipe.train.epochs, recipe.data.format) == ("child", 1, "amazon2018")
    grandchild = tmp_path / "grandchild.toml"
    grandchild.write_text('extends = "child.toml"\n')
    assert "one level" in problems(grandchild)


def test_every_problem_is_reported_at_once(good: Path) -> None:
    text = problems(
        good,
        "train.learning_rte=1e-4",
        "train.epochs=-1",
        "model.quantize=8bit",
        "align.msl.tau=-1",
        "align.mls.x=1",
        "data.k_core=five",
    )
    assert text.splitlines()[0].endswith("good.toml: 6 problems")
    assert "[train] learning_rte = 0.0001: unknown key. Did you mean learning_rate?" in text
    assert "[train] epochs = -1: expected greater than 0" in text
    assert '[model] quantize = "8bit" needs tuning = "lora"' in text
    assert "[align.msl] tau = -1: expected" in text
    assert '[align.mls] method = "mls": unknown method' in text
    assert "Did you mean msl?" in text
    assert '[data] k_core = "five": expected a valid integer' in text


def test_a_recipe_is_validated_once(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    validated: list[type[BaseModel]] = []
    validate: Any = vars(BaseModel)["model_validate"].__func__
    init = BaseModel.__init__

    def counted(cls: type[BaseModel], *args: Any, **keywords: Any) -> Any:
        validated.append(cls)
        return validate(cls, *args, **keywords)

    def made(self: BaseModel, /, **values: Any) -> None:
        validated.append(type(self))
        init(self, **values)

    monkeypatch.setattr(BaseModel, "model_validate", classmethod(counted))
    monkeypatch.setattr(BaseModel, "__init__", made)
    recipe = read_recipe(str(good), ["model.scratch.hidden=64"], ["ilrec"], ["sasrec", "gru4rec"])
    assert validated == [Recipe]
    assert recipe.align["ilrec"].options == IlrecOptions.model_construct()
    assert recipe.baseline["gru4rec"].train.learning_rate == 2e-3


def test_the_tables_of_stages_are_a_discriminated_union() -> None:
    """Of one class for each method or model there is, which a table's own key tells apart."""
    for tables, names in (
        (ALIGNMENTS, methods.list_methods()),
        (CONVENTIONAL, list(list_baseline_options())),
    ):
        schema = Recipe.model_json_schema()["properties"][tables.table]["additionalProperties"]
        assert len(schema["oneOf"]) == len(set(names) - set(tables.alone))
        for name in names:
            recipe = Recipe.model_validate(
                {
                    "name": "x",
                    "data": {"format": "amazon2018", "reviews": "a"},
                    tables.table: {name: {}},
                }
            )
            found: Any = getattr(recipe, tables.table)[name]
            assert type(found.options) is tables.registry()[name]
            assert type(found) is tables.kinds()[name]


@pytest.mark.parametrize("model", sorted({*TRAIN_OF, "sasrec"}))
def test_how_a_conventional_model_trains_is_valid(model: str) -> None:
    """These values are laid over a table that was validated, and are not validated again."""
    own = TrainSection.model_validate(OWN_TRAIN | TRAIN_OF.get(model, {}))
    assert own.model_dump(exclude_unset=True) == OWN_TRAIN | TRAIN_OF.get(model, {})


def test_an_option_cannot_take_the_name_of_a_stages_key() -> None:
    class Doubled(Options):
        parent: str = "x"

    tables = NamedTables("align", "method", AlignSection, lambda: {"bad": Doubled}, "align.bad")
    with pytest.raises(TypeError, match="Doubled: parent: a key of every align"):
        tables.kinds()


def every_key() -> list[str]:
    recipe = Recipe.model_validate(
        {"name": "x", "data": {"format": "amazon2018", "reviews": "a", "metadata": "b"}}
    )

    def walk(table: dict[str, object], prefix: str) -> list[str]:
        keys = []
        for key, value in table.items():
            keys.append(prefix + key)
            if isinstance(value, dict):
                keys += walk(value, f"{prefix}{key}.")
        return keys

    return walk(recipe.to_table(), "")


@pytest.mark.parametrize("key", every_key())
def test_a_misspelt_key_is_refused_with_the_right_one(good: Path, key: str) -> None:
    *tables, last = key.split(".")
    misspelt = ".".join([*tables, last[:-1] + "q" + last[-1]])
    text = problems(good, f"{misspelt}=1")
    assert f"{misspelt.rsplit('.', 1)[-1]} = 1: unknown key" in text
    assert "Did you mean" in text


@pytest.mark.parametrize("key", every_key())
def test_a_value_of_the_wrong_type_is_refused_with_its_key(good: Path, key: str) -> None:
    """A table where a value belongs, and a value where a table belongs."""
    *_, last = key.split(".")
    text = problems(good, f"{key}=3" if isinstance(every_value()[key], dict) else f"{key}.zz=3")
    assert last in text
    assert "None" not in text


def every_value() -> dict[str, object]:
    plain: dict[str, object] = {}
    recipe = Recipe.model_validate(
        {"name": "x", "data": {"format": "amazon2018", "reviews": "a", "metadata": "b"}}
    ).to_table()
    for key in every_key():
        value: object = recipe
        for part in key.split("."):
            assert isinstance(value, dict)
            value = value[part]
        plain[key] = value
    return plain


NUMBERS = [key for key, value in every_value().items() if type(value) in (int, float)]


@pytest.mark.parametrize("value", ["nan", "-1e300", "true", '"4"'])
@pytest.mark.parametrize("key", NUMBERS)
def test_a_number_that_is_none_is_refused_with_its_key(good: Path, key: str, value: str) -> None:
    assert f"{key.rsplit('.', 1)[-1]} = " in problems(good, f"{key}={value}")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("seed=99999999999", "expected less than 4294967296"),
        ('out=""', 'out = "": expected some text'),
        ('model.backbone=""', "expected some text"),
        ('data.columns.user=""', "expected some text"),
        ("data.reviews=5", "expected a list"),
        ("model=x", 'model = "x": expected a table'),
        ("train.epochs=nan", "expected a finite number"),
        ("train.batch=1.5", "expected a valid integer"),
        ('train.batch="4"', "expected a valid integer"),
        ("train.schedule=cosin", "expected 'linear', 'cosine' or 'constant'"),
        ("train.betas=[0.9]", "betas"),
        ("train.betas=[1.5,0.9]", "betas"),
        ("eval.cutoffs=[]", "cutoffs"),
        ("eval.cutoffs=[5,5]", "expected different numbers"),
        ("data.start=yesterday", "expected an ISO date"),
        ("model.scratch.heads=3", "must be an even multiple"),
        ("eval.decode.beams=0", "expected greater than or equal to 1"),
        ("eval.decode.length_penalty=1.0", "cannot be searched exactly"),
        ("data.split=given", 'format "amazon2018" needs'),
        ("data.min_history=30", "must be <= history"),
        ("data.reviews=[]", "needs the file names in reviews"),
        ("train=3", "train = 3"),
        ("name=../escape", "name"),
        ("seed=-1", "expected greater than or equal to 0"),
        ("train.epochs", "expected key=value"),
        ("name.x=1", "name is a value, not a table"),
    ],
)
def test_bad_values_name_key_value_and_expectation(
    good: Path, override: str, expected: str
) -> None:
    assert expected in problems(good, override)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"[data\n", "not valid TOML"),
        (b"seed = 1\nseed = 2\n", "not valid TOML"),
        (b"name = '\xff'\n", "not UTF-8"),
        (b"extends = 3\n", "expected the path"),
        (b"extends = 'nowhere.toml'\n", "no such file"),
        (b"", "data: missing"),
        (b"align = 3\n", "expected tables"),
        (b"#" * (2 << 20), "larger than"),
        (b"seed = " + b"9" * 5000, "not valid TOML"),
        (b"seed = 0x" + b"f" * 5000, "a whole number beyond 64 bits"),
        (b"a" + b".a" * 3000 + b" = 1", "nested more than 50 deep"),
        (b"a = " + b"[" * 5000, "nested more than 50 deep"),
    ],
)
def test_bad_files_are_one_clear_error(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_bytes(content)
    assert expected in problems(path)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("seed=" + "9" * 5000, 'seed = "9999'),
        ("seed=0x" + "f" * 5000, 'seed = "0xffff'),
        ("seed=" + "[" * 5000, 'seed = "[[[['),
        ("a" + ".a" * 3000 + "=1", "nested more than 50 deep, by an override"),
    ],
)
def test_an_override_without_measure_is_refused(good: Path, override: str, expected: str) -> None:
    assert expected in problems(good, override)


def test_a_window_that_holds_nothing_is_refused(good: Path) -> None:
    text = problems(good, "data.start=2021-01-01", "data.end=2020-01-01")
    assert "start = 2021-01-01, end = 2020-01-01: expected start before end" in text


def test_a_check_across_sections_is_a_recipe_error_too(good: Path) -> None:
    text = problems(good, "align.msl.train.rows=sequence", "prompt.template=books")
    assert '[align.msl.train] rows = "sequence" needs prompt.template = "sequence"' in text


def test_an_unknown_recipe_names_the_nearest_shipped_one() -> None:
    assert "Did you mean quickstart?" in problems(Path("quikstart"))


@pytest.mark.starts_python("it shows that no torch is imported")
def test_recipes_are_checked_without_torch(good: Path) -> None:
    code = (
        "import sys\n"
        "from llmrec_cli.config.loader import read_recipe\n"
        f"read_recipe({str(good)!r})\n"
        "sys.exit('torch' in sys.modules or 'pandas' in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


scalars = st.one_of(
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    st.text(max_size=8),
    st.dates(),
    st.sampled_from(["sft", "base", "uniform", "1e-3", "ndcg"]),
)
KEYS = st.sampled_from(
    [
        *("name", "seed", "data", "format", "reviews", "train", "epochs", "batch", "sft", "align"),
        *("msl", "method", "tau", "parent", "model", "lora", "eval", "cutoffs", "decode", "beams"),
        *("prompt", "template", "baseline", "sasrec", "hidden", "sweep", "space", "track", "split"),
    ]
)
trees = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(KEYS | st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=12,
)
documents = st.dictionaries(KEYS | st.text(max_size=5), trees, max_size=5)


@given(documents, st.booleans())
@settings(max_examples=60, deadline=None)
def test_any_document_is_a_recipe_or_is_refused_by_its_keys(
    document: dict[str, Any], over_a_good_one: bool
) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "drawn.toml")
        base = tomllib.loads(GOOD) if over_a_good_one else {}
        path.write_text(tomli_w.dumps({**base, **document}), encoding="utf-8")
        try:
            recipe = read_recipe(str(path))
        except RecipeError as error:
            first, *problems = str(error).split("\n  ")
            assert first.startswith(str(path))
            assert problems or ": " in first
            return
        Path(name, "again.toml").write_text(tomli_w.dumps(recipe.to_table()), encoding="utf-8")
        assert read_recipe(str(Path(name, "again.toml"))) == recipe


GOOD_VALUES = st.fixed_dictionaries(
    {},
    optional={
        "seed": st.integers(0, 2**32 - 1),
        "description": st.text(max_size=20),
        "train.epochs": st.integers(1, 50),
        "train.learning_rate": st.floats(1e-8, 1.0, exclude_min=True),
        "train.batch": st.integers(1, 512),
        "eval.cutoffs": st.lists(st.integers(1, 100), min_size=1, max_size=4, unique=True),
        "data.history": st.integers(1, 100),
        "data.start": st.dates().map(str),
        "align.msl.tau": st.floats(0.01, 100),
        "model.scratch.hidden": st.sampled_from([16, 32, 64]),
    },
)


@given(GOOD_VALUES)
@settings(max_examples=40, deadline=None)
def test_a_recipe_of_drawn_values_survives_its_resolved_form(values: dict[str, Any]) -> None:
    overrides = [
        f"{key}={tomli_w.dumps({'v': value})[4:].strip()}" for key, value in values.items()
    ]
    with tempfile.TemporaryDirectory() as name:
        path, again = Path(name, "good.toml"), Path(name, "again.toml")
        path.write_text(GOOD)
        recipe = read_recipe(str(path), overrides)
        again.write_text(tomli_w.dumps(recipe.to_table()), encoding="utf-8")
        assert read_recipe(str(again)) == recipe
        assert recipe.seed == values.get("seed", 0)
