"""The whole of `prepare`: genuine data with known answers, determinism, reuse and refusal."""

from __future__ import annotations

import csv
import gzip
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from llmrec_cli.config.loader import read_recipe
from llmrec_cli.config.recipe import Recipe
from llmrec_cli.data.audit import judge_all
from llmrec_cli.data.prepared import Prepared
from llmrec_cli.data.schema import (
    CUT_ITEMS,
    CUT_ROWS,
    DISLIKED,
    HISTORY,
    ITEM_ID,
    RATING,
    TARGET,
    TIMESTAMP,
    UNSAMPLED,
    USER_ID,
)
from llmrec_cli.errors import ArtefactError, DataError
from llmrec_cli.pipeline.prepare import prepare_data

GIFT_CARDS = {
    "format": "amazon2018",
    "reviews": "amazon2018-gift-cards/Gift_Cards_5.json.gz",
    "metadata": "amazon2018-gift-cards/meta_Gift_Cards.json.gz",
}
DIGITAL_MUSIC = {
    "format": "amazon2014",
    "reviews": "amazon2014-digital-music/reviews_Digital_Music_5.json.gz",
    "metadata": "amazon2014-digital-music/meta_Digital_Music.json.gz",
}
BEAUTY = "amazon2023-all-beauty"
PUBLISHED = {name: f"{BEAUTY}/published.{name}.csv.gz" for name in ("train", "valid", "test")}
BEAUTY_SOURCES: dict[str, dict[str, object]] = {
    "raw": {
        "format": "amazon2023",
        "reviews": f"{BEAUTY}/All_Beauty.jsonl.gz",
        "metadata": f"{BEAUTY}/meta_All_Beauty.jsonl.gz",
    },
    "rating_only": {
        "format": "ratings2023",
        "reviews": f"{BEAUTY}/All_Beauty.rating_only.csv.gz",
        "untitled": "id",
    },
    "published": {"format": "split2023", "split": "given", "splits": PUBLISHED, "untitled": "id"},
}
INSTRUMENTS = {
    "format": "semantic-ids",
    "reviews": "sid-instruments/Instruments.inter.json.gz",
    "index": "sid-instruments/Instruments.index.json.gz",
}
BOOKS = {
    "format": "msl-windows",
    "split": "given",
    "splits": {"train": "msl-books/train_10000.csv.gz", "test": "msl-books/test.csv.gz"},
    "metadata": "msl-books/id2name4Rec.json.gz",
    "min_history": 4,
    "history": 10,
}

SAMPLE = [f"u{n % 7},i{n * n % 11},{1 + n % 5}.0,{1_500_000_000_000 + n // 3}" for n in range(60)]


def recipe(out: Path, data: Mapping[str, object], **keys: object) -> Recipe:
    return Recipe.model_validate({"name": "case", "out": str(out), "data": data} | keys)


@pytest.fixture
def ratings(tmp_path: Path) -> dict[str, object]:
    """The data section of a small ratings file with ties in time and repeated pairs."""
    file = tmp_path / "ratings.csv"
    file.write_text("\n".join(["user_id,parent_asin,rating,timestamp", *SAMPLE]) + "\n")
    return {"format": "ratings2023", "reviews": str(file), "untitled": "id", "k_core": 2}


def core(prepared: Prepared) -> tuple[int, int, int]:
    last = prepared.manifest["cleaning"][-1]
    return last["users"], last["items"], last["interactions"]


def test_gift_cards_2018_five_core(shared_data: Path, tmp_path: Path) -> None:
    prepared = prepare_data(recipe(tmp_path, GIFT_CARDS), lambda name: shared_data / name)
    assert core(prepared) == (453, 147, 2941)
    found = prepared.manifest["audit"]
    assert found["items that share a title or tokens"]["count"] == 2
    assert found["users in several splits"]["train and test"] == 453
    assert len(prepared.split("valid")) == len(prepared.split("test")) == 453


def test_digital_music_2014_five_core(shared_data: Path, tmp_path: Path) -> None:
    prepared = prepare_data(recipe(tmp_path, DIGITAL_MUSIC), lambda name: shared_data / name)
    assert core(prepared) == (268, 206, 2480)


@pytest.mark.parametrize("k_core", [0, 5])
@pytest.mark.parametrize("source", BEAUTY_SOURCES)
def test_all_beauty_2023_equals_the_published_split(
    shared_data: Path, tmp_path: Path, source: str, k_core: int
) -> None:
    data = BEAUTY_SOURCES[source] | {"k_core": k_core, "min_history": 0, "history": 1000}
    prepared = prepare_data(recipe(tmp_path, data), lambda name: shared_data / name)
    for name, file in PUBLISHED.items():
        assert sorted(plain_rows(prepared, name)) == sorted(published_rows(shared_data / file))


def plain_rows(prepared: Prepared, name: str) -> list[tuple[str, str, float, int, str]]:
    ids = prepared.items[ITEM_ID].to_numpy()
    rows = prepared.split(name)
    histories = [" ".join(ids[history]) for history in rows[HISTORY]]
    targets = ids[rows[TARGET].to_numpy()]
    columns = (rows[USER_ID], targets, rows[RATING], rows[TIMESTAMP], histories)
    return list(zip(*columns, strict=True))


def published_rows(file: Path) -> list[tuple[str, str, float, int, str]]:
    with gzip.open(file, "rt") as lines:
        return [
            (r["user_id"], r["parent_asin"], float(r["rating"]), int(r["timestamp"]), r["history"])
            for r in csv.DictReader(lines)
        ]


def test_semantic_ids_need_no_titles(shared_data: Path, tmp_path: Path) -> None:
    prepared = prepare_data(recipe(tmp_path, INSTRUMENTS), lambda name: shared_data / name)
    assert core(prepared) == (24772, 9922, 206153)
    assert prepared.items["tokens"].map(len).eq(4).all()
    assert prepared.manifest["audit"]["items that share a title or tokens"]["count"] == 48
    assert len(prepared.split("test")) == 24772


def test_msl_books_keep_the_whole_title_list(shared_data: Path, tmp_path: Path) -> None:
    prepared = prepare_data(recipe(tmp_path, BOOKS), lambda name: shared_data / name)
    assert len(prepared.items) == 6343  # 6,344 titles, one of them empty
    assert len(prepared.split("test")) == 4383
    unseen = prepared.manifest["audit"]["test targets never seen in training"]["count"]
    assert unseen / 4383 == pytest.approx(0.65, abs=0.05)


def test_rows_that_a_published_split_loses_are_told(shared_data: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    asked = recipe(tmp_path, BEAUTY_SOURCES["published"] | {"history": 5})
    prepared = prepare_data(asked, lambda name: shared_data / name, lines.append)
    empty = sum(not row[-1] for row in published_rows(shared_data / PUBLISHED["train"]))
    long = sum(len(row[-1].split()) > 5 for row in published_rows(shared_data / PUBLISHED["test"]))
    assert empty
    assert long
    [left_out] = [line for line in lines if line.startswith("train: left out")]
    assert left_out.startswith(f"train: left out {empty:,} of ")
    assert left_out.endswith("the history is shorter than data.min_history = 1")
    [cut] = [line for line in lines if line.startswith("test: ")]
    assert cut.startswith(f"test: {long:,} of {len(prepared.split('test')):,} rows have a history")


def test_the_same_rows_in_every_split_are_a_warning(tmp_path: Path) -> None:
    rows = ["user_id,item_ids,timestamp"]
    rows += [f'u{n},"[{n}, {n + 1}, {n + 2}]",{1_500_000_000 + n}' for n in range(9)]
    (tmp_path / "rows.csv").write_text("\n".join(rows) + "\n")
    titles = {str(n): f"title {n}" for n in range(12)}
    (tmp_path / "titles.json").write_text(json.dumps(titles))
    data: dict[str, object] = {
        "format": "msl-windows",
        "split": "given",
        "splits": dict.fromkeys(("train", "valid", "test"), str(tmp_path / "rows.csv")),
        "metadata": str(tmp_path / "titles.json"),
    }
    prepared = prepare_data(recipe(tmp_path, data), Path)
    [verdict] = [
        v for v in judge_all(prepared.manifest) if v.check == "rows that stand in two splits"
    ]
    assert (verdict.level, verdict.count, verdict.of) == ("warning", 9, 9)


def test_the_histories_that_a_log_cuts_are_counted(
    ratings: dict[str, object], tmp_path: Path
) -> None:
    whole = prepare_data(recipe(tmp_path, ratings | {"history": 50}, name="whole"), Path)
    cut = prepare_data(recipe(tmp_path, ratings | {"history": 2, "sample": {"train": 5}}), Path)
    for split in ("valid", "test"):
        longer = [len(history) - 2 for history in whole.split(split)[HISTORY] if len(history) > 2]
        counts = cut.manifest["splits"][split]
        assert (counts[CUT_ROWS], counts[CUT_ITEMS]) == (len(longer), sum(longer))
    assert cut.manifest["splits"]["train"][UNSAMPLED] == len(whole.split("train"))


def test_the_2014_head_without_its_metadata_stops(shared_data: Path, tmp_path: Path) -> None:
    data = {
        "format": "amazon2014",
        "reviews": "odd-samples/reviews_Musical_Instruments.head100.2014.json",
        "metadata": "odd-samples/meta_Musical_Instruments.head100.2014.json",
    }
    asked = recipe(tmp_path, data)
    with pytest.raises(DataError, match=r'7 of 8 items .* set data\.untitled = "id", or'):
        prepare_data(asked, lambda name: shared_data / name)
    assert not asked.folder.exists()


@pytest.mark.slow
def test_bytes_depend_on_neither_run_nor_threads(
    ratings: dict[str, object], tmp_path: Path
) -> None:
    data = ratings | {"few_shot_users": 2, "sample": {"train": 2}, "min_rating": 2.0}
    written = []
    for threads in (1, 4):
        out = tmp_path / str(threads)
        cases = [
            {"name": split, "out": str(out), "data": data | {"split": split}}
            for split in ("leave-one-out", "global-time", "few-shot")
        ]
        prepare_in_a_process(cases, threads)
        files = sorted(file for file in out.rglob("*") if file.suffix in (".parquet", ".json"))
        written.append({file.relative_to(out): file.read_bytes() for file in files})
    assert len(written[0]) == 15
    assert written[0] == written[1]


def prepare_in_a_process(cases: Sequence[Mapping[str, object]], threads: int) -> None:
    code = (
        "import json, sys; from pathlib import Path; import polars;"
        "from llmrec_cli.config.recipe import Recipe;"
        "from llmrec_cli.pipeline.prepare import prepare_data;"
        "[prepare_data(Recipe.model_validate(case), Path) for case in json.loads(sys.argv[1])];"
        "sys.exit(polars.thread_pool_size() != int(sys.argv[2]))"
    )
    environment = os.environ | {"POLARS_MAX_THREADS": str(threads)}
    command = [sys.executable, "-c", code, json.dumps(cases), str(threads)]
    subprocess.run(command, check=True, env=environment)


def test_the_manifest_holds_no_path(ratings: dict[str, object], tmp_path: Path) -> None:
    prepared = prepare_data(recipe(tmp_path, ratings), Path)
    text = (prepared.folder / "manifest.json").read_text()
    assert str(tmp_path) not in text
    assert '"name": "ratings.csv"' in text


def test_the_manifest_names_metadata_without_their_folder(tmp_path: Path) -> None:
    sample = read_recipe("quickstart", [f"out={tmp_path}"])
    files = sample.data.metadata
    prepared = prepare_data(sample, Path)
    assert prepared.manifest["reader"]["metadata"]["files"] == [Path(f).name for f in files]
    assert str(Path(files[0]).parent) not in (prepared.folder / "manifest.json").read_text()


def test_a_folder_is_reused_or_refused(ratings: dict[str, object], tmp_path: Path) -> None:
    first = prepare_data(recipe(tmp_path, ratings), Path)
    assert not first.reused
    written = {file: file.stat().st_mtime_ns for file in first.folder.iterdir()}
    again = prepare_data(recipe(tmp_path, ratings), Path)
    assert again.reused
    assert {file: file.stat().st_mtime_ns for file in first.folder.iterdir()} == written
    with pytest.raises(DataError, match=r"data\.k_core was 2, is now 3"):
        prepare_data(recipe(tmp_path, ratings | {"k_core": 3}), Path)
    with pytest.raises(DataError, match="seed was 0, is now 1"):
        prepare_data(recipe(tmp_path, ratings, seed=1), Path)
    with (tmp_path / "ratings.csv").open("a") as file:
        file.write("u9,i1,5.0,1500000000000\n")
    with pytest.raises(DataError, match=r"data\.reviews ratings\.csv differs in content"):
        prepare_data(recipe(tmp_path, ratings), Path)


def test_a_folder_edited_by_hand_is_not_reused(ratings: dict[str, object], tmp_path: Path) -> None:
    first = prepare_data(recipe(tmp_path, ratings), Path)
    with (first.folder / "test.parquet").open("ab") as file:
        file.write(b"x")
    with pytest.raises(ArtefactError, match=r"test\.parquet: changed since it was prepared"):
        prepare_data(recipe(tmp_path, ratings), Path)


def test_an_error_leaves_no_folder(ratings: dict[str, object], tmp_path: Path) -> None:
    asked = recipe(tmp_path, ratings | {"k_core": 50})
    with pytest.raises(DataError, match=r"left after: data\.k_core = 50"):
        prepare_data(asked, Path)
    assert not asked.folder.exists()


def test_only_a_rating_threshold_leaves_dislikes(
    ratings: dict[str, object], tmp_path: Path
) -> None:
    """Without one, neither rows nor manifest know of them: such folders stay as they were."""
    plain = prepare_data(recipe(tmp_path, ratings), Path)
    assert list(plain.split("train"))[-1] == RATING
    assert "disliked" not in (plain.folder / "manifest.json").read_text()
    some = prepare_data(recipe(tmp_path, ratings | {"min_rating": 3.0}, name="some"), Path)
    assert all(list(some.split(split))[-1] == DISLIKED for split in some.splits)
    assert some.manifest["rules"]["disliked"].startswith("catalogue items that the user rated")
    for split in some.splits:
        has = some.split(split)[DISLIKED].map(len) > 0
        assert some.manifest["splits"][split]["rows with disliked items"] == has.sum()
        users = some.split(split)[USER_ID][has].nunique()
        assert some.manifest["splits"][split]["users with disliked items"] == users > 0


def test_progress_is_told_every_step(ratings: dict[str, object], tmp_path: Path) -> None:
    lines: list[str] = []
    prepare_data(recipe(tmp_path, ratings), Path, lines.append)
    assert lines[:2] == ["checking the sources", "reading"]
    assert lines[2].endswith(": 60 interactions, times: milliseconds")
    assert lines[3].startswith("as read: 60 interactions, 7 users")
    assert lines[-1] == "writing"


def test_metadata_without_one_item_is_refused_whatever_is_skipped(
    shared_data: Path, tmp_path: Path
) -> None:
    wrapped = "odd-samples/meta_Gift_Cards.wrapped_in_array.2018.json"
    data = GIFT_CARDS | {"metadata": wrapped, "on_bad_line": "skip", "untitled": "id"}
    with pytest.raises(DataError, match="the file has no item"):
        prepare_data(recipe(tmp_path, data), lambda name: shared_data / name)
