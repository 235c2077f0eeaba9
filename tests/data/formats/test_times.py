"""Times of every unit, with fractions, and as dates; none loses its order."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrec_cli.config.data import DataSection
from llmrec_cli.config.recipe import Recipe
from llmrec_cli.data.formats import parsing, read_source
from llmrec_cli.data.formats.base import Source
from llmrec_cli.data.formats.checks import to_milliseconds
from llmrec_cli.data.formats.delimited import read_times
from llmrec_cli.errors import DataError
from llmrec_cli.pipeline.prepare import prepare_data

SECOND = 1_529_193_600  # 2018-06-17
HEAD = "user_id,item_id,timestamp\n"
UNITS = {"seconds": 1, "milliseconds": 10**3, "microseconds": 10**6, "nanoseconds": 10**9}


def read_file(folder: Path, data: bytes, **section: Any) -> Source:
    (folder / "scratch").mkdir(exist_ok=True)
    (folder / "r").write_bytes(data)
    chosen = {"format": "interactions", "reviews": "r", **section}
    return read_source(DataSection.model_validate(chosen), folder.joinpath, folder / "scratch")


def frame_of(source: Source) -> pl.DataFrame:
    assert source.interactions is not None
    return pl.read_parquet(source.interactions)


def table_of(times: pa.Array, folder: Path) -> bytes:
    ids = {"user_id": ["u"] * len(times), "item_id": [f"i{n}" for n in range(len(times))]}
    pq.write_table(pa.table({**ids, "timestamp": times}), folder / "t")
    return (folder / "t").read_bytes()


def csv_of(*times: object) -> bytes:
    rows = "".join(f"u,i{n},{time}\n" for n, time in enumerate(times))
    return (HEAD + rows).encode()


def json_of(*times: object) -> bytes:
    rows = [{"user_id": "u", "item_id": f"i{n}", "timestamp": t} for n, t in enumerate(times)]
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("make", [csv_of, json_of])
def test_the_unit_shows_in_the_numbers(unit: str, make: Any, tmp_path: Path) -> None:
    source = read_file(tmp_path, make(SECOND * UNITS[unit], (SECOND + 1) * UNITS[unit]))
    assert frame_of(source)["timestamp"].to_list() == [SECOND * 1000, SECOND * 1000 + 1000]
    assert source.notes["reviews"]["r"]["timestamp"] == unit


@pytest.mark.parametrize("form", ["amazon2014", "amazon2018", "amazon2023"])
def test_whole_numbers_may_be_written_as_floats(form: str, tmp_path: Path) -> None:
    names = ("user_id", "parent_asin", "rating", "timestamp")
    if form != "amazon2023":
        names = ("reviewerID", "asin", "overall", "unixReviewTime")
    row = dict(zip(names, ("A", "B", 5, 1500000000000.0), strict=True))
    source = read_file(tmp_path, json.dumps(row).encode(), format=form)
    assert frame_of(source)["timestamp"].to_list() == [1500000000000]


@pytest.mark.parametrize("make", [csv_of, json_of])
def test_fractions_count_to_the_microsecond(make: Any, tmp_path: Path) -> None:
    seconds = make("1500000000.123456" if make is csv_of else 1500000000.123456, 1500000000)
    found = frame_of(read_file(tmp_path, seconds))
    assert found["timestamp"].to_list() == [1500000000123, 1500000000000]
    assert (found["position"] // 2**43).to_list() == [456_000, 0]
    found = frame_of(read_file(tmp_path, make(1500000000000.5)))
    assert found["timestamp"].to_list() == [1500000000000]


@given(
    times=st.lists(st.integers(0, 3 * 10**6), min_size=1, max_size=30),
    unit=st.sampled_from(["microseconds", "nanoseconds"]),
)
def test_what_is_finer_than_milliseconds_keeps_its_order(times: list[int], unit: str) -> None:
    full = [SECOND * UNITS[unit] + time for time in times]
    found = to_milliseconds(full, "t", None, None)
    in_ns = [f * (10**9 // UNITS[unit]) for f in full]
    pairs = zip(found.millisecond_N.tolist(), found.finer_N.tolist(), strict=True)
    assert [ms * 10**6 + finer for ms, finer in pairs] == in_ns
    assert found.clock is not None
    assert found.clock.name == unit


@pytest.mark.parametrize("make", [csv_of, json_of])
def test_nanoseconds_that_floats_round_keep_their_order(make: Any, tmp_path: Path) -> None:
    first = SECOND * 10**9
    found = frame_of(read_file(tmp_path, make(first + 3, first + 1, first + 2)))
    assert found.sort("timestamp", "position")["item_id"].to_list() == ["i1", "i2", "i0"]


def test_the_last_item_is_the_last_by_the_full_time(tmp_path: Path) -> None:
    """Microseconds that tie in milliseconds decide which item is tested, and tie no more."""
    micros = [(u, n, SECOND * 10**6 + 100 * u + (9 - n)) for u in range(3) for n in range(4)]
    rows = "".join(f"u{u},i{n},{time}\n" for u, n, time in micros)
    (tmp_path / "r.csv").write_text(HEAD + rows)
    section = DataSection(
        format="interactions", reviews=(str(tmp_path / "r.csv"),), k_core=0, untitled="id"
    )
    told = list[str]()
    prepared = prepare_data(Recipe(name="x", out=str(tmp_path), data=section), Path, told.append)
    items = prepared.items["item_id"]
    assert [items[n] for n in prepared.split("test")["target"]] == ["i0"] * 3
    assert [items[n] for n in prepared.split("valid")["target"]] == ["i1"] * 3
    assert prepared.manifest["audit"]["interactions that tie in time"]["count"] == 0
    assert any(line.endswith("12 interactions, times: microseconds") for line in told)


DATES = {
    "2018-06-17": 0,
    "2018-06-17T00:00:01Z": 1,
    "2018-06-17 00:00:02": 2,
    "2018-06-17T02:00:03+02:00": 3,
    "2018-06-17T00:00:04.250": 4.25,
}


@pytest.mark.parametrize("make", [csv_of, json_of])
def test_iso_dates_are_times(make: Any, tmp_path: Path) -> None:
    source = read_file(tmp_path, make(*DATES))
    expected = [int((SECOND + seconds) * 1000) for seconds in DATES.values()]
    assert frame_of(source)["timestamp"].to_list() == expected
    assert source.notes["reviews"]["r"]["timestamp"] == "ISO dates"
    finer = make("2018-06-17T00:00:00.000000002", "2018-06-17T00:00:00.000000001")
    found = frame_of(read_file(tmp_path, finer)).sort("timestamp", "position")
    assert found["item_id"].to_list() == ["i1", "i0"]


NOON = datetime(2018, 6, 17, 12, tzinfo=UTC)
TYPED = {
    "seconds": pa.array([NOON], pa.timestamp("s")),
    "milliseconds, zone": pa.array([NOON], pa.timestamp("ms", "Europe/Berlin")),
    "microseconds": pa.array([NOON], pa.timestamp("us")),
    "nanoseconds": pa.array([NOON], pa.timestamp("ns", "UTC")),
    "text": pa.array(["2018-06-17T12:00:00Z"], pa.large_string()),
    "text view": pa.array(["2018-06-17T14:00:00+02:00"], pa.string_view()),
    "number": pa.array([int(NOON.timestamp())], pa.uint32()),
    "categorical": pa.array([int(NOON.timestamp())]).dictionary_encode(),
    "decimal": pa.array([int(NOON.timestamp())]).cast(pa.decimal128(25, 2)),
    "float": pa.array([NOON.timestamp()], pa.float64()),
}


@pytest.mark.parametrize("times", TYPED.values(), ids=TYPED)
def test_times_of_every_type_in_parquet(times: pa.Array, tmp_path: Path) -> None:
    found = frame_of(read_file(tmp_path, table_of(times, tmp_path)))
    assert found["timestamp"].to_list() == [int(NOON.timestamp() * 1000)]


@pytest.mark.parametrize("kind", [pa.date32(), pa.date64()])
def test_days_in_parquet(kind: pa.DataType, tmp_path: Path) -> None:
    found = frame_of(read_file(tmp_path, table_of(pa.array([date(2018, 6, 17)], kind), tmp_path)))
    assert found["timestamp"].to_list() == [SECOND * 1000]


WRONG = {
    "seconds, then milliseconds": (csv_of(SECOND, SECOND * 1000), 3, "in milliseconds, but the"),
    "milliseconds, then microseconds": (
        json_of(SECOND * 10**3, SECOND * 10**6),
        2,
        "in microseconds, but the lines before are in milliseconds; expected one unit",
    ),
    "a number, then a date": (csv_of(SECOND, "2018-06-17"), 3, "expected a number"),
    "a date, then a number": (csv_of("2018-06-17", SECOND), 3, "expected an ISO date"),
    "a date, then a number, JSON": (json_of("2018-06-17", SECOND), 2, "expected an ISO date"),
    "a number, then a date, JSON": (json_of(SECOND, "2018-06-17"), 2, "expected a number"),
    "no day of that month": (csv_of("2018-02-30"), 2, "'2018-02-30', expected an ISO date"),
    "before 1990": (csv_of("1970-01-01"), 2, "a date between the years 1990 and 2100"),
    "no time at all": (csv_of("today"), 2, "or an ISO date such as 2018-06-30"),
    "no time, JSON": (json_of(SECOND, None), 2, '"timestamp" is empty, expected a time'),
    "a hexadecimal number": (csv_of("0x5b25a580"), 2, "expected a number"),
}


@pytest.mark.parametrize(("data", "line", "words"), WRONG.values(), ids=WRONG)
def test_what_is_no_time_or_of_another_unit_is_named(
    data: bytes, line: int, words: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=rf"r:{line}: .*{words}"):
        read_file(tmp_path, data)


def test_a_type_states_its_unit_whatever_the_numbers_look_like(tmp_path: Path) -> None:
    """1.5e12 microseconds are in January 1970; taken for milliseconds they would be in 2017."""
    early = pa.array([1_500_000_000_000], pa.timestamp("us"))
    with pytest.raises(DataError, match="between the years 1990 and 2100"):
        read_file(tmp_path, table_of(early, tmp_path))


def test_dates_hold_for_the_whole_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parsing, "BLOCK", 12)
    with pytest.raises(DataError, match="expected a number, as the lines before have"):
        read_file(tmp_path, csv_of(*[SECOND] * 9, *["2018-06-17"] * 9))


def test_zones_are_heeded(tmp_path: Path) -> None:
    east = datetime(2018, 6, 17, 2, tzinfo=timezone(timedelta(hours=2)))
    found = frame_of(read_file(tmp_path, csv_of(east.isoformat(), "2018-06-16T23:00:00-01:00")))
    assert found["timestamp"].to_list() == [SECOND * 1000] * 2


@pytest.mark.parametrize("form", ["csv", "jsonl"])
@pytest.mark.parametrize("dates", [False, True])
def test_the_first_notation_of_a_file_holds_across_its_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, dates: bool
) -> None:
    """A time of the other notation at the beginning of a block is the bad line, and no other is."""
    monkeypatch.setattr(parsing, "BLOCK", 1 << 10)
    good, odd = ("2018-06-30", 1_530_000_000) if dates else (1_530_000_000, "2018-06-30")
    for bad_line in range(20, 60):
        times = [odd if n == bad_line else good for n in range(80)]
        file = tmp_path / f"{bad_line}.{form}"
        rows = [{"user_id": f"u{n}", "item_id": "i", "timestamp": t} for n, t in enumerate(times)]
        if form == "csv":
            text = ["user_id,item_id,timestamp", *(",".join(map(str, r.values())) for r in rows)]
        else:
            text = [json.dumps(row) for row in rows]
        file.write_text("\n".join(text) + "\n")
        section = DataSection.model_validate(
            {"format": "interactions", "reviews": str(file), "on_bad_line": "skip"}
        )
        source = read_source(section, Path, tmp_path)
        assert source.notes["bad_lines"]["skipped"] == 1
        assert f":{bad_line + 1 + (form == 'csv')}:" in source.notes["bad_lines"]["first"][0]


@pytest.mark.parametrize("bad", ["x", "", "nan"])
def test_a_line_without_a_time_leaves_the_others_exact(bad: str, tmp_path: Path) -> None:
    """Neighbours that float64 rounds to the same number: one line later, they are apart."""
    start = SECOND * UNITS["nanoseconds"]
    lines = [f"u,i{n},{start + n}" for n in range(3)]
    data = HEAD + "\n".join([lines[0], f"u,j,{bad}", *lines[1:]]) + "\n"
    read, clock, problems = read_times(
        pa.array([line.rpartition(",")[2] for line in data.splitlines()[1:]]), "timestamp"
    )
    assert clock is None
    assert list(problems) == [1]
    assert read.to_pylist() == [start, None, start + 1, start + 2]
    assert read_file(tmp_path, data.encode(), on_bad_line="skip").notes["bad_lines"]["skipped"] == 1
