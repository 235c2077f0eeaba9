"""`validate` says of a source's first lines what `prepare` says, and reads no further."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tomli_w

from llmrec_cli.config.data import DataSection
from llmrec_cli.config.formats import FORMATS
from llmrec_cli.data.formats import check_beginnings, parsing, read_source
from llmrec_cli.errors import DataError
from tests.experiments import typed

R18 = {"reviewerID": "A1", "asin": "B1", "overall": 5.0, "unixReviewTime": 1529193600}
PAIR: dict[str, Any] = {"prompt": {"task": "rank-pair", "template": "games"}}
SELECT: dict[str, Any] = {"train": {"select": "auc"}}
GIVEN = {"split": "given", "splits": {"train": "bad", "test": "bad"}}

# format -> its keys, the first lines of a file of another kind, and words of the message
WRONG: dict[str, tuple[dict[str, Any], bytes, str]] = {
    "amazon2014": ({"reviews": "bad"}, b'{"asin": "B1"}\n', 'has no "reviewerID"'),
    "amazon2018": ({"reviews": "bad"}, b"user_id,item_id\n1,2\n", "is no JSON object"),
    "amazon2023": ({"reviews": "bad"}, json.dumps(R18).encode(), "this is an amazon2014 review"),
    "ratings2014": ({"reviews": "bad"}, b"B00000000A,A1B2C3D4E5F6,5,1529193600\n", "ratings2018"),
    "ratings2018": ({"reviews": "bad"}, b"A1B2C3D4E5F6,B00000000A,5,1529193600\n", "ratings2014"),
    "ratings2023": ({"reviews": "bad"}, b"user,item,rating,time\n", "expected the header"),
    "split2023": (
        {**GIVEN, "splits": {"train": "bad", "valid": "bad", "test": "bad"}},
        b"user_id,parent_asin,rating,timestamp\nA,B,5,1547589356557\n",
        'this is format "ratings2023"',
    ),
    "interactions": (
        {"reviews": "bad"},
        b"user_id,item_id,when\nu,i,3\n",
        'no column "timestamp" among',
    ),
    "sequences": ({"reviews": "bad"}, json.dumps(R18).encode(), "which is JSON"),
    "msl-windows": ({**GIVEN, "metadata": "good"}, b"user,items,time\n", "expected the header"),
    "semantic-ids": ({"reviews": "bad", "index": "good"}, b"[1, 2]\n", "expected one JSON object"),
    "rank-pairs": (GIVEN, b'[{"prompt": "x"}]\n', "instruction"),
}


@pytest.mark.parametrize("form", FORMATS)
def test_a_wrong_first_line_is_the_same_line_of_validate_and_prepare(
    form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    keys, data, words = WRONG[form]
    (tmp_path / "bad").write_bytes(data)
    (tmp_path / "good").write_bytes(b"{}")
    more = PAIR | SELECT if form == "rank-pairs" else {}
    recipe = {"data": {"format": form, **keys}, **more}
    (tmp_path / "recipe.toml").write_text(tomli_w.dumps(recipe))
    before = set(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    checked = typed(capsys, "validate", "recipe.toml", "--quiet")
    prepared = typed(capsys, "prepare", "recipe.toml", "--quiet")
    assert (checked.code, checked.out) == (prepared.code, prepared.out) == (2, "")
    assert words in checked.err
    assert checked.err == prepared.err.replace("llmrec prepare: ", "llmrec validate: ")
    assert set(tmp_path.rglob("*")) == before


def test_items_that_can_have_no_title_are_told_by_both(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{**R18, "reviewerID": f"A{n % 3}", "asin": f"B{n}"} for n in range(12)]
    (tmp_path / "r.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = '[data]\nformat = "amazon2018"\nreviews = "r.json"\nk_core = 0\n'
    (tmp_path / "recipe.toml").write_text(text)
    monkeypatch.chdir(tmp_path)
    checked = typed(capsys, "validate", "recipe.toml", "--quiet")
    prepared = typed(capsys, "prepare", "recipe.toml", "--quiet")
    assert checked.code == prepared.code == 2
    assert 'no metadata file is named: set data.untitled = "id"' in checked.err
    assert checked.err == prepared.err.replace("llmrec prepare: ", "llmrec validate: ")
    assert typed(capsys, "validate", "recipe.toml", "data.untitled=id", "--quiet").code == 0
    assert typed(capsys, "prepare", "recipe.toml", "data.untitled=id", "--quiet").code == 0


def check(folder: Path, **keys: Any) -> None:
    check_beginnings(DataSection(**keys), lambda name: folder / name)


def test_no_more_than_the_beginning_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault behind the first block is left to `prepare`; one inside of it is not."""
    monkeypatch.setattr(parsing, "BLOCK", 4096)
    good = (json.dumps(R18) + "\n").encode()
    late, early = good * 200 + b"late\n", good * 5 + b"early\n" + good * 200
    keys = {"format": "amazon2018", "reviews": "r"}
    for data, sees in ((late, False), (early, True)):
        (tmp_path / "r").write_bytes(data)
        scratch = tmp_path / "scratch"
        scratch.mkdir(exist_ok=True)
        with pytest.raises(DataError, match="is no JSON object"):
            read_source(DataSection(**keys), lambda name: tmp_path / name, scratch)  # type: ignore[arg-type]  # as TOML has them
        if sees:
            with pytest.raises(DataError, match="r:6: 'early' is no JSON object"):
                check(tmp_path, **keys)
        else:
            check(tmp_path, **keys)


def test_a_large_document_is_judged_by_its_complete_entries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parsing, "BLOCK", 512)
    monkeypatch.setattr(parsing, "DOCUMENT", 2048)
    histories = {f"user {n}": [f"item {m}" for m in range(n % 7 + 1)] for n in range(400)}
    index = {f"item {m}": ["<a_1>", f"<b_{m}>"] for m in range(7)}
    (tmp_path / "r").write_text(json.dumps(histories, indent=1))
    (tmp_path / "i").write_text(json.dumps(index))
    keys = {"format": "semantic-ids", "reviews": "r", "index": "i"}
    check(tmp_path, **keys)
    (tmp_path / "r").write_text(json.dumps({"first": [["nested"]], **histories}, indent=1))
    with pytest.raises(DataError, match="expected one JSON object"):
        check(tmp_path, **keys)


def test_of_parquet_one_batch_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    times = [1547589356557] * 70_000 + [5]
    table = pa.table({"user_id": ["u"] * 70_001, "item_id": ["i"] * 70_001, "timestamp": times})
    pq.write_table(table, tmp_path / "r")
    batches = pq.ParquetFile.iter_batches

    def counted(self: pq.ParquetFile, **more: Any) -> Any:
        for batch in batches(self, **more):
            seen.append(len(batch))
            yield batch

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", counted)
    check(tmp_path, format="interactions", reviews="r")
    assert len(seen) == 1
