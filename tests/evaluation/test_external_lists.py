"""Lists of other tools: read in every format, scored under our protocol, or refused in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from llmrec_cli.data.catalog import gather_entries
from llmrec_cli.errors import ArtefactError, DataError, UserError
from llmrec_cli.evaluation.comparison import ComparisonConfig, Entry, EvaluatedData
from llmrec_cli.evaluation.external_lists import load_external_entry
from llmrec_cli.evaluation.metrics import score_rows
from llmrec_cli.evaluation.predictions import build_predictions, read_predictions, write_predictions
from tests.experiments import make_experiment, typed

ITEMS = [f"B00{at}" for at in range(6)]
LEAVES = gather_entries(pd.DataFrame({"count": range(6)}), [0, 1, 2, 3, 4, 0])  # 0 and 5 are one
ROWS = pd.DataFrame(
    {
        "row": range(3),
        "user_id": ["ann", "bob", "7"],
        "history": [np.array([1]), np.array([2, 3]), np.array([4])],
        "target": [0, 1, 2],
    }
)
WANTED = {0: [0, 1, 2], 1: [3, 1], 2: [4, 5, 2]}  # places of the targets: 1, 2, 3


def evaluated_data(rows: pd.DataFrame = ROWS) -> EvaluatedData:
    names = ("items", "train", "valid", "test")
    files = {f"{name}.parquet": {"sha256": name, "rows": len(rows)} for name in names}
    items = pd.DataFrame({"item_id": ITEMS})
    return EvaluatedData(Path("prepared"), {"files": files}, "test", items, rows, LEAVES)


def asked(**changes: Any) -> ComparisonConfig:
    values: dict[str, Any] = {
        "split": "test",
        "policies": ("keep", "remove"),
        "headline": "keep",
        "cutoffs": (1, 3),
        "compared": "ndcg@3",
        "baseline": None,
        "resamples": 100,
        "seed": 0,
    }
    return ComparisonConfig(**{**values, **changes})


def opened(
    path: Path, missing: Any = "refuse", rows: pd.DataFrame = ROWS
) -> tuple[Entry, list[str]]:
    return load_external_entry("other", path, evaluated_data(rows), asked(), missing, None)


def lists(entry: Entry) -> dict[int, list[int]]:
    frame = entry.evaluations[0].predictions
    assert frame is not None
    return {row: ranked.tolist() for row, ranked in zip(frame["row"], frame["ranked"], strict=True)}


def lines(by: str = "user_id") -> list[dict[str, Any]]:
    """One per recommended item, shuffled, with rank and score."""
    found = [
        {
            "user_id": ROWS["user_id"][row],
            "row": row,
            "item_id": ITEMS[item],
            "rank": place + 1,
            "score": 1 / (place + 2),
        }
        for row, items in WANTED.items()
        for place, item in enumerate(items)
    ]
    order = np.random.default_rng(0).permutation(len(found))
    return [found[at] for at in order]


def table(*columns: str, separator: str = ",", names: dict[str, str] | None = None) -> str:
    renamed = names or {}
    head = separator.join(renamed.get(name, name) for name in columns)
    body = [separator.join(str(line[name]) for name in columns) for line in lines()]
    return "\n".join([head, *body]) + "\n"


RECBOLE = {name: f"{name}:token" for name in ("user_id", "item_id")} | {"score": "score:float"}
TREC = "".join(
    f"{line['user_id']} Q0 {line['item_id']} {line['rank']} {line['score']} tag\n"
    for line in lines()
)
FILES = {
    "score.csv": table("user_id", "item_id", "score"),
    "rank.csv": table("rank", "item_id", "user_id"),
    "row.csv": table("row", "item_id", "rank"),
    "both.tsv": table("user_id", "item_id", "rank", "score", separator="\t"),
    "windows.csv": table("user_id", "item_id", "score").replace("\n", "\r\n"),
    "bom.csv": "\ufeff" + table("user_id", "item_id", "score"),
    "recbole.inter": table("user_id", "item_id", "score", separator="\t", names=RECBOLE),
    "lists.trec": TREC,
    "tabs.trec": TREC.replace(" ", "\t"),
    "rows.trec": TREC.replace("ann", "0").replace("bob", "1").replace("7 Q0", "2 Q0"),
}


@pytest.mark.parametrize("name", FILES)
def test_every_text_format_gives_the_same_lists(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(FILES[name], newline="")
    entry, notes = opened(path)
    assert lists(entry) == WANTED
    assert entry.kind == "external"
    assert entry.evaluations[0].label == name
    assert notes[-1].startswith("other: another tool's lists")
    assert (any("row numbers" in note for note in notes)) == (name == "rows.trec")


@pytest.mark.parametrize(
    "columns", [("user_id", "score"), ("row", "rank"), ("row", "rank", "score")]
)
def test_parquet_gives_the_same_lists(columns: tuple[str, ...], tmp_path: Path) -> None:
    frame = pd.DataFrame(lines())[["item_id", *columns]]
    frame.to_parquet(tmp_path / "x.parquet")
    assert lists(opened(tmp_path / "x.parquet")[0]) == WANTED


def test_the_metrics_are_those_of_our_protocol(tmp_path: Path) -> None:
    """Item 5 shares its entry with item 0; targets stand at 1, 2 and 3."""
    (tmp_path / "x.csv").write_text(FILES["score.csv"])
    frame = opened(tmp_path / "x.csv")[0].evaluations[0].predictions
    assert frame is not None
    rows = score_rows(frame, LEAVES, (1, 3), "keep", "miss")
    assert rows["rank"].tolist() == [1, 2, 3]
    assert rows["ndcg@3"].tolist() == pytest.approx([1, 1 / np.log2(3), 1 / 2])


def test_the_score_decides_then_the_rank_then_the_line(tmp_path: Path) -> None:
    """As trec_eval has it; many tools write a constant rank, others a constant score."""
    body = ["ann,B001,2,.5", "ann,B000,1,.5", "bob,B003,9,2", "bob,B001,1,1"]
    body += [f"7,B00{at},0,1" for at in (4, 5, 2)]
    (tmp_path / "x.csv").write_text("\n".join(["user_id,item_id,rank,score", *body]))
    assert lists(opened(tmp_path / "x.csv")[0]) == {0: [0, 1], 1: [3, 1], 2: [4, 5, 2]}


SCORES = FILES["score.csv"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (SCORES + "eve,B001,1\n", r"x.csv:10: user 'eve' has no test row"),
        (SCORES + "ann,B999,1\n", r"x.csv:10: item 'B999' is not among the 6 of the catalogue"),
        (SCORES + "ann,B003,nan\n", r'x.csv:10: "score" is \'nan\', expected a number'),
        (SCORES + "ann,B003,\n", r'x.csv:10: "score" is \'\', expected a number'),
        (SCORES + "ann,B003\n", r"x.csv:10: 2 cells, expected 3"),
        (SCORES + "\nann,B000,0.1\n", r"x.csv:11: the item 'B000' occurs twice"),
        (FILES["row.csv"] + "3,B001,4\n", r"x.csv:10: unknown row '3', expected 0 to 2"),
        (FILES["row.csv"] + "-1,B001,4\n", r"x.csv:10: unknown row '-1'"),
        (FILES["row.csv"] + "00,B003,4\n", r"x.csv:10: unknown row '00'"),
        (FILES["row.csv"] + "0,B003,2\n", r"x.csv:10: the rank '2' occurs twice in a list"),
        (
            "user_id,item_id\nann,B000\n",
            r"x.csv:1: columns 'user_id, item_id', expected item_id, u",
        ),
        ("user,item,score\nann,B000,1\n", r"x.csv:1: columns 'user, item, score', expected item_i"),
        ("user_id,item_id,score\n", r"x.csv: no line of a recommended item"),
        ("user_id,item_id,score,score\na,b,1,1\n", r"x.csv:1: empty or repeated column names"),
        ("", r"x.csv:1: the file is empty"),
        ('{"user_id": 1}\n', r"x.csv:1: JSON, expected CSV"),
        ("PK\x03\x04", r"x.csv:1: this is a zip archive"),
        (TREC + "ann Q0 B003 4 nan tag\n", r'x.csv:9: "score" is not a number'),
        (TREC + "ann Q0 B003 4 best tag\n", r'x.csv:9: "score" is \'best\', expected a number'),
        (TREC + "ann Q0 B003 4\n", r"x.csv:9: 4 cells, expected a TREC run"),
        (TREC + "eve Q0 B003 4 1 tag\n", r"x.csv:9: user 'eve' has no test row"),
        (FILES["rows.trec"] + "9 Q0 B003 4 1 tag\n", r"x.csv:9: unknown user or row '9'"),
        ("PAR1 and no more", r"x.csv:1: no readable parquet file"),
    ],
)
def test_a_bad_line_is_named(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text(content)
    with pytest.raises(UserError, match=message) as error:
        opened(path)
    assert "\n" not in str(error.value)


def test_a_bad_row_of_parquet_is_named(tmp_path: Path) -> None:
    frame = pd.DataFrame(lines())[["user_id", "item_id", "score"]]
    frame.loc[4, "score"] = np.nan
    frame.to_parquet(tmp_path / "x.parquet")
    with pytest.raises(UserError, match=r'x.parquet:5: "score" is not a number'):
        opened(tmp_path / "x.parquet")
    frame.loc[4, "score"] = -1e39
    frame.to_parquet(tmp_path / "x.parquet")
    with pytest.raises(UserError, match=r'x.parquet:5: "score" is -1e\+39, expected at most 3.4e'):
        opened(tmp_path / "x.parquet")
    frame.astype({"score": str}).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(UserError, match=r'column "score" is .*string, expected numbers'):
        opened(tmp_path / "x.parquet")


def test_a_user_with_several_rows_must_be_named_by_row(tmp_path: Path) -> None:
    rows = ROWS.assign(user_id=["ann", "bob", "ann"])
    (tmp_path / "x.csv").write_text(table("row", "item_id", "rank"))
    assert lists(opened(tmp_path / "x.csv", rows=rows)[0]) == WANTED
    (tmp_path / "x.csv").write_text("user_id,item_id,rank\nbob,B001,1\nann,B000,1\n")
    with pytest.raises(UserError, match=r"x.csv:3: user 'ann' has several test rows: .* \"row\""):
        opened(tmp_path / "x.csv", rows=rows)


def test_a_row_without_a_list_is_refused_or_a_miss(tmp_path: Path) -> None:
    kept = "".join(line for line in SCORES.splitlines(keepends=True) if not line.startswith("bob"))
    (tmp_path / "x.csv").write_text(kept)
    with pytest.raises(ArtefactError, match=r"no list for 1 of 3 rows, first row 1 \(user 'bob'\)"):
        opened(tmp_path / "x.csv")
    entry, notes = opened(tmp_path / "x.csv", missing="miss")
    assert lists(entry) == WANTED | {1: []}
    assert notes[0] == "other: no list for 1 of 3 rows: misses"
    frame = entry.evaluations[0].predictions
    assert frame is not None
    assert score_rows(frame, LEAVES, (3,), "keep", "miss")["hr@3"].tolist() == [1, 0, 1]


def test_lists_that_leave_the_history_out_are_found_out(tmp_path: Path) -> None:
    """Thirty rows with half of the catalogue behind them: by chance, 45 of their items."""
    rng = np.random.default_rng(1)
    histories = [rng.permutation(5)[:3] for _ in range(30)]
    rows = pd.DataFrame(
        {
            "row": range(30),
            "user_id": [f"u{at}" for at in range(30)],
            "history": histories,
            "target": 0,
        }
    )
    rest = [[at for at in range(5) if at not in history] for history in histories]
    body = [
        f"{row},B00{item},{place}"
        for row, items in enumerate(rest)
        for place, item in enumerate(items)
    ]
    path = tmp_path / "x.csv"
    path.write_text("\n".join(["row,item_id,rank", *body]))
    entry, notes = opened(path, rows=rows)
    assert entry.without_history
    assert "other: no list holds an item of its row's history; compare with --seen remove" in notes
    path.write_text("\n".join(["row,item_id,rank", *body, f"3,B00{histories[3][0]},9"]))
    assert not opened(path, rows=rows)[0].without_history
    path.write_text("row,item_id,rank\n0,B000,1\n1,B001,1\n2,B002,1\n")
    assert not opened(path)[0].without_history  # no hit on a history, but too few lists to tell


def test_a_task_of_pairs_has_no_lists(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text(SCORES)
    pairs = asked(policies=("pairs",), cutoffs=())
    with pytest.raises(ArtefactError, match='task "rank-pair" ranks two candidates'):
        load_external_entry("x", tmp_path / "x.csv", evaluated_data(), pairs, "refuse", None)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("external")
    make_experiment(home, "x")
    return home


@pytest.fixture
def home(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(made)
    return made


def as_recbole(home: Path, run: str, depth: int = 10) -> str:
    """What a RecBole user writes after ``full_sort_topk``: external ids and scores, tabs."""
    frame = read_predictions(home / f"runs/x/{run}/predictions.parquet")
    ids = pd.read_parquet(home / "runs/x/prepared/items.parquet")["item_id"]
    body = [
        f"{user}\t{ids[item]}\t{float(score)!r}"
        for user, ranked, scores in zip(
            frame["user_id"], frame["ranked"], frame["scores"], strict=True
        )
        for item, score in list(zip(ranked, scores, strict=True))[:depth]
    ]
    return "\n".join(["user_id:token\titem_id:token\tscore:float", *body]) + "\n"


@pytest.mark.slow
def test_a_recbole_entry_enters_the_board_with_the_figures_of_its_lists(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """ItemKNN's own lists, written as RecBole's users write theirs: the same figures and test."""
    (home / "knn.tsv").write_text(as_recbole(home, "baseline-itemknn"))
    words = ["compare", "runs/x", "--external", "recbole=knn.tsv"]
    found = json.loads(typed(capsys, *words, "--json").out)
    by_name = {standing["name"]: standing for standing in found["standings"]}
    ours, theirs = by_name["baseline-itemknn"], by_name["recbole"]
    assert theirs["kind"] == "external"
    assert theirs["why_not"] is None
    assert theirs["sources"] == ["knn.tsv"]
    assert theirs["metrics"]["keep"] == ours["metrics"]["keep"]
    assert set(theirs["cost"].values()) == {None}
    for name, contrast in theirs["contrasts"]["keep"].items():
        expected = ours["contrasts"]["keep"][name]
        assert {k: contrast[k] for k in ("mean", "low", "high", "p")} == {
            k: expected[k] for k in ("mean", "low", "high", "p")
        }
    shown = typed(capsys, *words).out
    assert "recbole " in shown
    assert "note: recbole: another tool's lists" in shown


@pytest.mark.slow
def test_our_own_file_and_a_baseline_of_another_tool(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lists = "runs/x/baseline-pop/predictions.parquet"
    words = ["compare", "runs/x/sft", "--external", f"pop={lists}", "--baseline", "pop", "--json"]
    found = json.loads(typed(capsys, *words).out)
    report = json.loads((home / "runs/x/baseline-pop/report.json").read_text())
    for policy in ("keep", "remove"):
        ours = found["standings"][1]["metrics"][policy]["ndcg@10"]["mean"]
        assert ours == pytest.approx(report[policy]["metrics"]["ndcg@10"]["mean"])
    assert found["baseline"] == "pop"
    assert found["standings"][0]["contrasts"]["keep"]["ndcg@10"]["p"] <= 1


def test_another_tool_may_be_compared_before_anything_was_trained(
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    experiment = tmp_path / "fresh"
    experiment.mkdir()
    (experiment / "prepared").symlink_to(home / "runs/x/prepared")
    (tmp_path / "knn.tsv").write_text(as_recbole(home, "baseline-itemknn"))
    words = ["compare", "fresh", "--external", "a=knn.tsv", "--missing", "miss", "--json"]
    monkeypatch.chdir(tmp_path)
    found = json.loads(typed(capsys, *words).out)
    assert found["n_rows"] == 969
    assert found["notes"][0] == "a: no list for 909 of 969 rows: misses"
    assert found["standings"][0]["metrics"]["keep"]["hr@10"]["mean"] > 0


def test_a_name_that_an_entry_has_is_refused(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "knn.tsv").write_text(as_recbole(home, "baseline-itemknn"))
    done = typed(capsys, "compare", "runs/x", "--external", "sft=knn.tsv")
    assert done.code == 2
    assert "--external sft=knn.tsv: an entry has that name" in done.err


def test_our_own_lists_of_another_catalogue_are_refused(tmp_path: Path) -> None:
    frame = build_predictions(ROWS, [[0, 6], [1], [2]], [[0.5, 0.25], [0.5], [0.5]])
    write_predictions(tmp_path / "x.parquet", frame)
    with pytest.raises(DataError, match=r"x\.parquet: item 6, expected 0 to 5"):
        opened(tmp_path / "x.parquet")
