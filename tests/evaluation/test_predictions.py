"""predictions.parquet: every row once, whole or not at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmrec_cli.errors import ArtefactError, MachineError
from llmrec_cli.evaluation.predictions import build_predictions, read_predictions, write_predictions

RANKED = [[4, 2], [1, 3], [0]]
SCORES = [[-0.5, -1.5], [-0.25, -0.25], [-2.0]]


def split_rows() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "row": np.array([5, 6, 9], dtype=np.int32),
            "user": np.array([0, 0, 1], dtype=np.int32),
            "user_id": ["007", "007", "z\u2028"],
            "history": [np.array(h, dtype=np.int32) for h in ([], [1], [1, 0, 3])],
            "target": np.array([2, 3, 4], dtype=np.int32),
            "timestamp": np.array([1, 2, 3]),
        }
    )


def whole(**columns: Any) -> pd.DataFrame:
    return build_predictions(split_rows(), RANKED, SCORES).assign(**columns)


def assert_same(a: pd.DataFrame, b: pd.DataFrame) -> None:
    assert a.columns.tolist() == b.columns.tolist()
    for column in a.columns:
        assert [np.asarray(x).tolist() for x in a[column]] == [
            np.asarray(x).tolist() for x in b[column]
        ]


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "predictions.parquet"
    write_predictions(path, whole(), expected_rows=[5, 6, 9])
    back = read_predictions(path, expected_rows=[9, 5, 6])
    assert_same(back, whole())
    assert back["ranked"][0].dtype == np.int32
    assert back["scores"][0].dtype == np.float32
    assert back["history"][0].shape == (0,)


def test_the_file_is_ordered_by_row_and_the_same_every_time(tmp_path: Path) -> None:
    write_predictions(tmp_path / "a", whole())
    write_predictions(tmp_path / "b", whole().iloc[[2, 0, 1]])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    schema = {f.name: str(f.type) for f in pq.read_schema(tmp_path / "a")}
    assert schema == {
        "row": "int32",
        "user_id": "string",
        "history": "list<element: int32>",
        "target": "int32",
        "ranked": "list<element: int32>",
        "scores": "list<element: float>",
    }


def test_the_beams_error_travels_when_asked(tmp_path: Path) -> None:
    frame = build_predictions(split_rows(), RANKED, SCORES, beam_differs=[True, False, True])
    write_predictions(tmp_path / "p", frame)
    assert read_predictions(tmp_path / "p")["beam_differs"].tolist() == [True, False, True]


def test_lists_of_one_length_stay_lists(tmp_path: Path) -> None:
    frame = build_predictions(split_rows(), [*np.ones((3, 2), dtype=int)], [*np.zeros((3, 2))])
    write_predictions(tmp_path / "p", frame)
    assert [x.tolist() for x in read_predictions(tmp_path / "p")["ranked"]] == [[1, 1]] * 3


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (whole(row=[5, 6, 6]), "row 6 occurs 2 times"),
        (whole().iloc[:2], "1 of 3 rows missing, first 9"),
        (whole(row=[5, 6, 10]), "1 of 3 rows missing, first 9"),
        (whole(row=[4, 5, 6]).iloc[:0], "3 of 3 rows missing"),
        (pd.concat([whole(), whole(row=[1, 2, 3])]), "3 of 3 rows unexpected, first 1"),
        (whole().drop(columns="scores"), "no column scores"),
        (whole(scores=[[-1.0], [-1.0, -2.0], [0.0]]), "row 5: 2 items and 1 scores"),
        (whole(scores=[[-1.0, -2.0], [-2.0, -1.0], [0.0]]), "row 6: .* above the one before"),
        (whole(scores=[[-1.0, -2.0], [-2.0, -2.0], [np.nan]]), "row 9: .* no NaN"),
    ],
)
def test_damaged_predictions_are_neither_written_nor_read(
    frame: pd.DataFrame, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "predictions.parquet"
    with pytest.raises(ArtefactError, match=message):
        write_predictions(path, frame, [5, 6, 9])
    assert list(tmp_path.iterdir()) == []
    if "scores" not in frame or len(frame) == 0:
        return
    with monkeypatch.context() as guard_off:
        guard_off.setattr("llmrec_cli.evaluation.predictions.check_predictions", lambda *_: None)
        write_predictions(path, frame, [5, 6, 9])  # the checks are what refused it
    with pytest.raises(ArtefactError, match=message):
        read_predictions(path, [5, 6, 9])


def test_minus_infinity_and_ties_are_scores(tmp_path: Path) -> None:
    frame = whole(scores=[[-np.inf, -np.inf], [0.0, 0.0], [np.inf]])
    write_predictions(tmp_path / "p", frame)


def test_a_rise_from_one_row_to_the_next_is_no_rise(tmp_path: Path) -> None:
    write_predictions(tmp_path / "p", whole(scores=[[-8.0, -9.0], [-1.0, -2.0], [-0.5]]))


def test_no_rows_and_uneven_parts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="no rows"):
        write_predictions(tmp_path / "p", whole().iloc[:0])
    with pytest.raises(ArtefactError, match="3 rows, but 2 ranked lists and 3 lists of scores"):
        build_predictions(split_rows(), RANKED[:2], SCORES)


def test_missing_and_damaged_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "predictions.parquet"
    with pytest.raises(ArtefactError, match=r"predictions\.parquet: no such file"):
        read_predictions(path)
    path.write_bytes(b"not parquet")
    with pytest.raises(ArtefactError, match=r"predictions\.parquet: not a readable parquet") as got:
        read_predictions(path)
    assert "\n" not in str(got.value)


def test_every_truncation_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "p"
    write_predictions(path, whole())
    content = path.read_bytes()
    for size in range(0, len(content), 97):
        path.write_bytes(content[:size])
        with pytest.raises(ArtefactError, match="not a readable parquet"):
            read_predictions(path)


def test_columns_of_another_kind_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "p"
    pd.DataFrame(whole()).assign(ranked="4 2").to_parquet(path)
    with pytest.raises(ArtefactError, match=f"{path}: "):
        read_predictions(path)
    frame = pd.DataFrame(whole())
    frame["user_id"] = [None, "a", "b"]
    frame.to_parquet(path)
    with pytest.raises(ArtefactError, match="user_id: 1 null"):
        read_predictions(path)


@pytest.mark.parametrize("step", ["pq.write_table", "os.fsync", "Path.replace"])
def test_a_failing_disk_leaves_the_old_file_and_nothing_else(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "predictions.parquet"
    write_predictions(path, whole())
    before = path.read_bytes()

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    room = "evaluation.predictions" if step.startswith("pq") else "utils.files"
    monkeypatch.setattr(f"llmrec_cli.{room}.{step}", fail)
    with pytest.raises(MachineError, match="No space left"):
        write_predictions(path, whole(target=0))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_folder_is_the_machines_fault(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="absent/p: cannot be written"):
        write_predictions(tmp_path / "absent" / "p", whole())


def _changed(table: pa.Table, name: str, column: pa.Array) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), name, column)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.slice(0, 0), "no rows"),
        (
            lambda table: _changed(table, "ranked", pa.array([[None, 2], [1, 3], [0]])),
            "ranked: 1 null in its lists",
        ),
        (
            lambda table: _changed(
                table, "user_id", pa.array([b"a", b"\xbb", b"c"]).view(pa.string())
            ),
            "UTF",
        ),
    ],
)
def test_files_that_nobody_wrote_here_are_refused(
    change: Callable[[pa.Table], pa.Table], message: str, tmp_path: Path
) -> None:
    write_predictions(tmp_path / "p", whole())
    pq.write_table(change(pq.read_table(tmp_path / "p")), tmp_path / "q")
    with pytest.raises(ArtefactError, match=message):
        read_predictions(tmp_path / "q")
