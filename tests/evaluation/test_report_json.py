"""``report.json``: both policies, the protocol, and nothing that JSON does not know."""

from __future__ import annotations

import json

import pytest

from llmrec_cli.evaluation.metrics import score_rows
from llmrec_cli.evaluation.predictions import build_report, to_jsonable
from tests.evaluation.sample_entries import LEAVES, predictions_of, protocol


def test_a_report_holds_both_policies_and_its_protocol() -> None:
    predictions = predictions_of(1, hit=0.4)
    report = build_report({"keep": predictions, "remove": predictions}, LEAVES, protocol(), 200, 3)
    assert (report["rows"], report["users"]) == (40, predictions["user_id"].nunique())
    assert (report["items"], report["entries"]) == (12, 11)
    pairs = zip(predictions["history"], predictions["target"], strict=True)
    assert report["repeats"] == sum(t % 11 in set(h % 11) for h, t in pairs) > 0  # 11 is on leaf 0
    assert report["protocol"]["hashes"] == {"data": "abc"}
    assert report["bootstrap"] == {"resamples": 200, "seed": 3}
    for seen in ("keep", "remove"):
        rows = score_rows(predictions, LEAVES, [1, 5], seen)
        metrics = report[seen]["metrics"]
        assert list(metrics) == ["hr@1", "ndcg@1", "hr@5", "ndcg@5", "mrr@5"]
        for name, value in metrics.items():
            assert value["mean"] == pytest.approx(rows[name].mean())
            assert value["low"] <= value["mean"] <= value["high"]
    assert report["keep"]["metrics"] != report["remove"]["metrics"]
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_a_beam_gives_its_own_frame_for_remove_and_its_error() -> None:
    keep = predictions_of(1).assign(beam_differs=[True] * 10 + [False] * 30)
    remove = predictions_of(1, hit=1.0)
    report = build_report({"keep": keep, "remove": remove}, LEAVES, protocol(), 200)
    assert report["keep"]["beam_error"] == {"rows": 10, "share": 0.25}
    assert "beam_error" not in report["remove"]
    assert report["remove"]["metrics"]["hr@1"]["mean"] == 1


def test_jsonable_leaves_strangers_to_json() -> None:
    assert to_jsonable({"a": (1.5, float("nan"), [float("inf")])}) == {"a": [1.5, None, [None]]}
    with pytest.raises(TypeError):
        json.dumps(to_jsonable({"a": object()}))


def test_unknown_ends_are_null() -> None:
    lonely = predictions_of(1, n_users=1)
    report = build_report({"keep": lonely, "remove": lonely}, LEAVES, protocol(), 200)
    assert report["keep"]["metrics"]["hr@5"]["low"] is None
    json.dumps(report, allow_nan=False)


def test_reports_are_the_same_every_time() -> None:
    frames = [predictions_of(4) for _ in range(2)]
    first, second = (build_report({"keep": f, "remove": f}, LEAVES, protocol(), 50) for f in frames)
    assert first == second
