"""Keys that a recipe sets and nothing uses: refused or noted, in one line each."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, get_args

import pytest
import tomli_w

from llmrec_cli.config.data import Columns, DataFormat, DataSection, Splits, get_dotted
from llmrec_cli.config.formats import FORMATS
from llmrec_cli.config.loader import list_shipped_names, read_recipe
from llmrec_cli.data.formats import find_reader
from llmrec_cli.errors import RecipeError
from tests.experiments import typed

SOURCES: dict[str, dict[str, Any]] = {
    "split2023": {"splits": {"train": "a", "valid": "b", "test": "c"}},
    "msl-windows": {"splits": {"train": "a", "test": "c"}, "metadata": "m"},
    "semantic-ids": {"reviews": "r", "index": "i"},
    "rank-pairs": {"splits": {"train": "a", "test": "c"}},
}
PAIRS: dict[str, Any] = {
    "prompt": {"task": "rank-pair", "template": "games"},
    "train": {"select": "auc"},
}


def smallest(form: str) -> dict[str, Any]:
    """A recipe of a format with nothing that could be left out."""
    data = {"format": form, **SOURCES.get(form, {"reviews": "r"})}
    if FORMATS[form].pre_split:
        data["split"] = "given"
    return {"data": data, **(PAIRS if form == "rank-pairs" else {})}


def outcome(folder: Path, table: dict[str, Any], *overrides: str) -> tuple[list[str], list[str]]:
    """The problems of a recipe, and its notes."""
    path, notes = folder / "r.toml", list[str]()
    path.write_text(tomli_w.dumps(table))
    try:
        read_recipe(str(path), overrides, say=notes.append)
    except RecipeError as error:
        return str(error).split("\n  ")[1:], notes
    return [], notes


def test_every_format_says_what_it_uses() -> None:
    assert set(FORMATS) == set(get_args(DataFormat))
    keys = {*DataSection.model_fields, *(f"splits.{key}" for key in Splits.model_fields)}
    keys |= {f"columns.{key}" for key in Columns.model_fields}
    for form in FORMATS.values():
        assert {*form.needs, *form.uses} <= keys
        if not form.pre_split and form.has_clock:
            assert form.uses_key("start")


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_has_a_reader_in_the_file_that_it_names(form: str) -> None:
    reader = find_reader(form)
    assert reader.__module__.rpartition(".")[2] == FORMATS[form].reader
    assert list(inspect.signature(reader).parameters) == ["section", "locate", "scratch"]


@pytest.mark.parametrize("form", FORMATS)
def test_the_smallest_recipe_of_a_format_loads_and_so_does_its_resolved_form(
    form: str, tmp_path: Path
) -> None:
    """Every default is written out there, and what plays no part is not."""
    table = smallest(form)
    assert outcome(tmp_path, table) == ([], [])
    recipe = read_recipe(str(tmp_path / "r.toml"))
    resolved = recipe.to_table()
    assert outcome(tmp_path, resolved) == ([], [])
    assert read_recipe(str(tmp_path / "r.toml")) == recipe
    assert ("index" in resolved["data"]) == (form == "semantic-ids")
    assert ("k_core" in resolved["data"]) == FORMATS[form].uses_key("k_core")
    assert recipe.every_value()["data"]["k_core"] == 5  # a run's record compares all of them


WINDOWS, IDS = smallest("msl-windows"), smallest("semantic-ids")


@pytest.mark.parametrize("form", [form for form in FORMATS if form != "semantic-ids"])
def test_an_index_is_of_semantic_ids_alone(form: str, tmp_path: Path) -> None:
    """Seen: an index beside MSL windows gave 0 of 3,459 items their tokens."""
    assert outcome(tmp_path, smallest(form), "data.index=i.json")[0] == [
        f'[data] index = "i.json": format "{form}" does not use it, only "semantic-ids"; remove it'
    ]


@pytest.mark.parametrize("form", [form for form in FORMATS if form != "interactions"])
@pytest.mark.parametrize("key", ["title", "user", "timestamp"])
def test_columns_are_of_interactions_alone(form: str, key: str, tmp_path: Path) -> None:
    problem = f'[data.columns] {key} = "t": format "{form}" does not use it, only "interactions"'
    found = outcome(tmp_path, smallest(form), f"data.columns.{key}=t")[0]
    assert found == [f"{problem}; remove it"]


@pytest.mark.parametrize("form", [form for form in FORMATS if not FORMATS[form].pre_split])
def test_splits_are_of_sources_that_come_split(form: str, tmp_path: Path) -> None:
    (found,), _ = outcome(tmp_path, smallest(form), "data.splits.valid=v.csv")
    assert found.startswith(f'[data.splits] valid = "v.csv": format "{form}" does not use it, only')
    assert found.endswith('"split2023", "msl-windows" or "rank-pairs"; remove it')


@pytest.mark.parametrize("form", [form for form in FORMATS if FORMATS[form].pre_split])
@pytest.mark.parametrize(
    "override",
    [
        *("min_rating=4.0", "k_core=5", "k_core=10", "start=2020-01-01", "end=2020-01-01"),
        *("duplicates=first", "duplicates=last"),
    ],
)
def test_cleaning_of_what_comes_split_is_refused(form: str, override: str, tmp_path: Path) -> None:
    """The default too, where it is set: whoever sets it thinks that something is cleaned."""
    key, _, value = override.partition("=")
    shown = value if value[0].isdigit() else f'"{value}"'
    assert outcome(tmp_path, smallest(form), f"data.{override}")[0] == [
        f'[data] {key} = {shown}: format "{form}" comes split and is not cleaned; remove it'
    ]


@pytest.mark.parametrize(
    "override", ["k_core=0", "duplicates=keep", "reviews=[]", "index=", "columns={}"]
)
def test_what_is_true_anyway_may_be_said(override: str, tmp_path: Path) -> None:
    assert outcome(tmp_path, WINDOWS, f"data.{override}") == ([], [])


@pytest.mark.parametrize(
    ("table", "override", "words"),
    [
        (WINDOWS, "data.reviews=r.csv", 'reviews = "r.csv": format "msl-windows" does not use it'),
        (WINDOWS, "data.splits.preference=p", 'preference = "p": format "msl-windows" does not'),
        (smallest("rank-pairs"), "data.metadata=m", 'metadata = "m": format "rank-pairs" does not'),
        (smallest("rank-pairs"), "data.untitled=id", 'untitled = "id": format "rank-pairs" does'),
        (IDS, "data.min_rating=4", 'min_rating = 4: format "semantic-ids" does not use it'),
        (IDS, "data.start=2020-01-01", 'start = 2020-01-01: format "semantic-ids" does not use'),
        (IDS, "data.untitled=id", 'untitled = "id": format "semantic-ids" does not use it'),
        (IDS, "data.identity=disambiguate", "semantic IDs have no title to extend"),
        (
            smallest("interactions"),
            "data.min_rating=4",
            "min_rating = 4: no rating is read; name the rating column in columns.rating",
        ),
        (
            smallest("interactions"),
            "data.columns.title=t",
            'title = "t": titles and brands are read from data.metadata, which names no file',
        ),
        (smallest("interactions"), "data.metadata=m", "[data.columns] title is missing"),
        (
            smallest("interactions"),
            'data={ metadata = "m", columns = { title = "t",price = "p" } }',
            'price = "p": nothing reads it; add "price" to fields, or remove it',
        ),
        (
            smallest("interactions"),
            'data={ metadata = "m", columns = { title = "t" }, fields = "price" }',
            'fields has "price": expected the name of its column in columns.price',
        ),
        (
            smallest("amazon2018"),
            "data.fields=price",
            'fields = "price": fields of items are read from data.metadata, which names no file',
        ),
        (smallest("amazon2018"), 'data.fields=["price", "price"]', "expected each field once"),
        (smallest("amazon2018"), "data.fields=prize", "Did you mean price?"),
        *(
            (
                smallest(form),
                f"data.fields={field}",
                f'fields has "{field}": format "{form}" has no {named} of the items of a history;',
            )
            for form in ("split2023", "msl-windows", "rank-pairs")
            for field, named in (("rating", "ratings"), ("gap", "times"))
        ),
        (
            smallest("semantic-ids"),
            "data.fields=rating",
            'fields has "rating": format "semantic-ids" has no ratings of the items of a history;',
        ),
        (
            smallest("semantic-ids"),
            "data.fields=gap",
            'fields has "gap": format "semantic-ids" has no times, only an order; remove it',
        ),
        (
            smallest("rank-pairs"),
            "data.fields=price",
            'format "rank-pairs" does not use it',
        ),
        (
            smallest("interactions"),
            'data={ metadata = "m", untitled = "brand", columns = { title = "t" } }',
            'untitled = "brand": no brand is read; name the brand column in columns.brand',
        ),
        (
            smallest("sequences"),
            "data.untitled=brand",
            'untitled = "brand": format "sequences" has titles and no brands; expected "drop"',
        ),
        (
            smallest("msl-windows"),
            "data.untitled=brand",
            'untitled = "brand": format "msl-windows" has titles and no brands; expected "drop"',
        ),
        (smallest("amazon2018"), "baseline.pop.train.epochs=3", "pop is counted, not trained"),
        (
            smallest("amazon2018"),
            "baseline.itemknn.train.batch=3",
            "[baseline.itemknn.train] batch = 3: itemknn is counted, not trained; remove it",
        ),
    ],
)
def test_what_plays_no_part_is_refused(
    table: dict[str, Any], override: str, words: str, tmp_path: Path
) -> None:
    overrides = [override]
    if override.startswith("data={"):
        section = override.removeprefix("data={ ").removesuffix(" }")
        overrides = [f"data.{part}" for part in section.split(", ")]
    (problem,), _ = outcome(tmp_path, table, *overrides)
    assert words in problem


def test_the_data_to_evaluate_on_are_asked_the_same(tmp_path: Path) -> None:
    table = smallest("amazon2018")
    table["eval"] = {"data": {**WINDOWS["data"], "index": "i", "k_core": 10}}
    first, second = outcome(tmp_path, table, "data.index=j")[0], "format"
    assert [line.split(":")[0] for line in first] == [
        '[data] index = "j"',
        '[eval.data] index = "i"',
        "[eval.data] k_core = 10",
    ]
    assert all(second in line for line in first)


def test_all_of_them_are_said_at_once_with_other_problems(tmp_path: Path) -> None:
    found, _ = outcome(
        tmp_path, IDS, "data.min_rating=4", "data.columns.user=u", "data.split=global-time"
    )
    assert len(found) == 3


NOTES = [
    ("amazon2018", "data.few_shot_users=7", 'split = "leave-one-out" draws no training users'),
    ("amazon2018", "data.bad_line_limit=7", 'on_bad_line = "stop" leaves no line out'),
    ("msl-windows", "data.engine=spark", "comes split, and is read in this process"),
    ("msl-windows", "data.memory=99", "comes split, and is read in this process"),
    ("amazon2018", "model.lora.r=4", 'tuning = "full" trains all weights'),
    ("amazon2018", "model.revision=abc", "is not fetched from the hub"),
    ("amazon2018", "model.new_tokens=mean", "items are known by their titles"),
    ("semantic-ids", "model.new_tokens=text", 'backbone = "scratch" has random rows'),
    ("amazon2018", "train.skip_limit=4", 'on_nonfinite = "stop" leaves no update out'),
    ("amazon2018", "sft.train.skip_limit=4", 'on_nonfinite = "stop" leaves no update out'),
    ("amazon2018", "align.msl.ats_eta=0.5", 'tau = 1 is fixed, and not "ats"'),
    ("amazon2018", "align.dpo.below=2.0", 'negatives = "model" has no use for it'),
    ("amazon2018", "eval.decode.beams=40", 'search = "exact" has no beam'),
    ("amazon2018", "track.online=true", "no tracker of [track] sends to a server"),
    ("rank-pairs", "eval.auc=true", "has it in every report"),
    ("rank-pairs", "eval.seen=remove", "nothing is searched"),
    ("rank-pairs", "eval.cutoffs=[3]", "nothing is searched"),
    ("rank-pairs", "eval.decode.mask=after", "nothing is searched"),
    ("rank-pairs", "align.dmpo.negatives=uniform", "has its rejected answers in the files"),
]


@pytest.mark.parametrize(("form", "override", "words"), NOTES)
def test_a_key_that_another_one_switches_off_is_noted(
    form: str, override: str, words: str, tmp_path: Path
) -> None:
    problems, (note,) = outcome(tmp_path, smallest(form), override)
    table, _, key = override.partition("=")[0].rpartition(".")
    assert problems == []
    assert note.startswith(f"note: [{table}] {key} = ")
    assert words in note
    resolved = read_recipe(str(tmp_path / "r.toml"), [override]).to_table()
    problems, notes = outcome(tmp_path, resolved)
    assert problems == []
    assert note in notes  # what was set is not lost


@pytest.mark.parametrize(
    "overrides",
    [
        ["data.split=few-shot", "data.few_shot_users=7"],
        ["data.on_bad_line=skip", "data.bad_line_limit=7"],
        ["model.backbone=some/model", "model.revision=abc", "model.tuning=lora", "model.lora.r=4"],
        ["tokens.kind=semantic-id", "model.backbone=some/model", "model.new_tokens=mean"],
        ["train.skip_limit=4", "sft.train.on_nonfinite=skip"],
        ["align.msl.tau=ats", "align.msl.ats_eta=0.5"],
        ["align.dpo.negatives=disliked", "align.dpo.below=2.0"],
        ["eval.decode.beam_error=true", "eval.decode.beams=40"],
        ["track.trackers=wandb", "track.online=true"],
    ],
)
def test_what_plays_a_part_is_not_noted(overrides: list[str], tmp_path: Path) -> None:
    assert outcome(tmp_path, smallest("amazon2018"), *overrides) == ([], [])


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        (["model.weights=random"], 'weights = "random" draws the rows of all tokens'),
        (["data.metadata=[]"], "items have no titles: data.metadata names no file"),
    ],
)
def test_why_new_tokens_have_no_start_to_choose(
    overrides: list[str], why: str, tmp_path: Path
) -> None:
    words = ["data.metadata=m", "model.backbone=some/model", "model.new_tokens=mean"]
    assert outcome(tmp_path, IDS, *words) == ([], [])
    notes = [f'note: [model] new_tokens = "mean" plays no part: {why}']
    assert outcome(tmp_path, IDS, *words, *overrides) == ([], notes)


def test_one_note_for_one_table(tmp_path: Path) -> None:
    _, notes = outcome(tmp_path, smallest("amazon2018"), "model.lora.r=4", "model.lora.alpha=2")
    assert notes == [
        'note: [model.lora] r = 4, alpha = 2 play no part: tuning = "full" trains all weights'
    ]


def test_a_key_of_the_extended_file_is_named_with_its_file(tmp_path: Path) -> None:
    """ "Remove it" is no advice where the key is not in the recipe."""
    base = tmp_path / "shared" / "base.toml"
    base.parent.mkdir()
    cleaning = {"k_core": 5, "min_rating": 4.0, "duplicates": "first"}
    lora = {"lora": {"r": 4, "alpha": 2}}
    base.write_text(tomli_w.dumps({"data": cleaning, "model": lora}))
    table = {"extends": "shared/base.toml", **WINDOWS, "model": {"lora": {"alpha": 3}}}
    table["data"] = {**WINDOWS["data"], "duplicates": "last"}
    place = f"(in {base})"
    why = 'format "msl-windows" comes split and is not cleaned; remove it'
    assert outcome(tmp_path, table)[0] == [
        f'[data] duplicates = "last": {why}',
        f"[data] min_rating = 4.0 {place}: {why}",
        f"[data] k_core = 5 {place}: {why}, or set k_core = 0 over it",
    ]
    table["data"] |= {"duplicates": "keep", "k_core": 0}
    assert outcome(tmp_path, table)[0] == [f"[data] min_rating = 4.0 {place}: {why}"]
    typed_over = f"[data] min_rating = 3.0: {why}"
    assert outcome(tmp_path, table, "data.min_rating=3.0")[0] == [typed_over]
    base.write_text(tomli_w.dumps({"model": lora}))
    assert outcome(tmp_path, table)[1] == [
        f'note: [model.lora] r = 4 {place}, alpha = 3 play no part: tuning = "full" trains all '
        "weights"
    ]


@pytest.mark.parametrize("name", list_shipped_names())
def test_no_shipped_recipe_sets_what_plays_no_part(name: str) -> None:
    notes: list[str] = []
    recipe = read_recipe(name, say=notes.append)
    assert notes == []
    assert get_dotted(recipe.data, "format") in FORMATS


def test_a_runs_own_record_may_state_every_key(tmp_path: Path) -> None:
    """Older versions wrote all defaults into ``recipe.toml``."""
    path = tmp_path / "r.toml"
    path.write_text(tomli_w.dumps(WINDOWS))
    recipe = read_recipe(str(path))
    path.write_text(tomli_w.dumps(recipe.every_value()))
    with pytest.raises(RecipeError, match="k_core = 5: format"):
        read_recipe(str(path))
    assert read_recipe(str(path), whole=True) == recipe


def test_a_note_is_seen_once_by_whoever_types_a_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    note = 'note: [model.lora] r = 4 plays no part: tuning = "full" trains all weights\n'
    words = ("quickstart", "model.lora.r=4")
    assert typed(capsys, "validate", *words).out.endswith(note)
    assert typed(capsys, "validate", *words, "--quiet").out == f"valid\n{note}"
    prepared = typed(capsys, "prepare", *words)
    assert (prepared.code, prepared.err.count(note)) == (0, 1)
    monkeypatch.setenv("LLMREC_LAUNCHER", "1")  # who started this process has said it
    assert note not in typed(capsys, "prepare", *words).err
