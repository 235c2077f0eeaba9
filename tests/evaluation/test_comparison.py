"""Entries against a baseline: what the figures are, who is drawn, and who does not compare."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from llmrec_cli.errors import ArtefactError
from llmrec_cli.evaluation.comparison import Entry, _group_by_rows, build_comparability_keys
from llmrec_cli.evaluation.metrics import score_rows
from llmrec_cli.evaluation.statistics import correct_holm, paired_differences, sum_by_user
from tests.evaluation.sample_entries import LEAVES, TRAIN, compared, entry_of, predictions_of


def rows_of(entry: Entry, at: int = 0, seen: Any = "keep") -> pd.DataFrame:
    frame = entry.evaluations[at].predictions
    assert frame is not None
    return score_rows(frame, LEAVES, (1, 5), seen)


def test_one_seed_has_the_reports_own_figures_under_both_policies() -> None:
    pop, msl = entry_of("pop", 1), entry_of("msl", 2, hit=0.5)
    found = compared(pop, msl, resamples=100)
    for entry, standing in zip((pop, msl), found.standings, strict=True):
        for policy in ("keep", "remove"):
            for name, recorded in entry.evaluations[0].report[policy]["metrics"].items():
                ours = standing.metrics[policy][name]
                figures = (ours.mean, ours.low, ours.high)
                assert figures == pytest.approx(tuple(recorded.values()))
                assert ours.by_seed == pytest.approx((recorded["mean"],))
                assert np.isnan(ours.seed_low)
            lists = entry.evaluations[0].report[policy]["lists"]
            assert dict(standing.lists[policy]) == pytest.approx(
                {name: lists[name] for name in standing.lists[policy]}
            )


def test_a_contrast_is_the_paired_difference_over_users() -> None:
    base, ours = entry_of("base", 1), entry_of("ours", 2, hit=0.6)
    found = compared(base, ours, baseline="base").standings
    assert found[0].contrasts == {"keep": {}, "remove": {}}
    for policy in ("keep", "remove"):
        a, b = rows_of(ours, seen=policy), rows_of(base, seen=policy)
        for name, contrast in found[1].contrasts[policy].items():
            delta = (a[name] - b[name]).to_numpy()
            alone = paired_differences(sum_by_user(a["user_id"], delta[:, None]), 200, 0)
            figures = (contrast.mean, contrast.low, contrast.high, contrast.p, contrast.detectable)
            assert figures == pytest.approx([float(column[0]) for column in alone])
            assert contrast.p_holm == contrast.p  # nobody else
            assert contrast.mean == pytest.approx(delta.mean())
            assert contrast.by_seed == pytest.approx((delta.mean(),))


def test_p_values_are_corrected_over_the_entries_of_one_metric() -> None:
    entries = [entry_of(f"e{seed}", seed, hit=seed / 40) for seed in range(1, 6)]
    found = compared(*entries, baseline="e1").standings[1:]
    for policy in ("keep", "remove"):
        for name in ("hr@1", "ndcg@5", "mrr@5"):
            contrasts = [standing.contrasts[policy][name] for standing in found]
            assert [c.p_holm for c in contrasts] == correct_holm([c.p for c in contrasts])
            assert any(c.p_holm > c.p for c in contrasts)


def test_seeds_are_a_second_level() -> None:
    """Users are drawn with all rows of all seeds; seeds have their own interval and pairs."""
    base, ours = entry_of("base", 1, 2, 3), entry_of("ours", 1, 2, 3, hit=0.3)
    standing = compared(base, ours, baseline="base").standings[1]
    assert standing.seeds == (1, 2, 3)
    frames = [rows_of(ours, at) for at in range(3)]
    means = [frame["ndcg@5"].mean() for frame in frames]
    estimate, contrast = standing.metrics["keep"]["ndcg@5"], standing.contrasts["keep"]["ndcg@5"]
    assert estimate.by_seed == pytest.approx(means)
    assert estimate.mean == pytest.approx(np.mean(means))
    over_seeds = scipy.stats.ttest_1samp(means, 0).confidence_interval()
    assert (estimate.seed_low, estimate.seed_high) == pytest.approx(tuple(over_seeds))
    theirs = [rows_of(base, at)["ndcg@5"].mean() for at in range(3)]
    assert contrast.by_seed == pytest.approx(np.subtract(means, theirs))
    matched = scipy.stats.ttest_rel(means, theirs).confidence_interval()
    assert (contrast.seed_low, contrast.seed_high) == pytest.approx(tuple(matched))
    averaged = np.mean([frame["ndcg@5"] for frame in frames], axis=0)
    averaged -= np.mean([rows_of(base, at)["ndcg@5"] for at in range(3)], axis=0)
    sums = sum_by_user(frames[0]["user_id"], averaged[:, None])
    alone = paired_differences(sums, 200, 0)
    assert (contrast.low, contrast.high, contrast.p) == pytest.approx(
        (float(alone.low_M[0]), float(alone.high_M[0]), float(alone.p_M[0]))
    )


def test_seeds_that_do_not_match_are_set_against_the_mean() -> None:
    base, ours = entry_of("base", 7, 8), entry_of("ours", 1, 2, 3, hit=0.3)
    contrast = compared(base, ours, baseline="base").standings[1].contrasts["keep"]["hr@5"]
    means = [rows_of(ours, at)["hr@5"].mean() for at in range(3)]
    theirs = [rows_of(base, at)["hr@5"].mean() for at in range(2)]
    welch = scipy.stats.ttest_ind(means, theirs, equal_var=False).confidence_interval()
    assert contrast.by_seed == pytest.approx(np.array(means) - np.mean(theirs))
    assert (contrast.seed_low, contrast.seed_high) == pytest.approx(tuple(welch))


@pytest.mark.slow
def test_p_is_uniform_where_entries_swap_their_names_by_user() -> None:
    """The whole path, a hundred and fifty sets: rows of one user go to the same side."""
    p_values, rng = [], np.random.default_rng(5)
    first, second = predictions_of(1, 60, 25), predictions_of(2, 60, 25)
    a, b = entry_of("a", rows=60), entry_of("b", rows=60)
    for seed in range(150):
        coin = rng.random(25) < 0.5
        swap = coin[first["user_id"].str[1:].astype(int)]
        sides = []
        for one, frames in ((a, (first, second)), (b, (second, first))):
            lists = frames[0].assign(ranked=frames[0]["ranked"].where(~swap, frames[1]["ranked"]))
            sides.append(
                replace(one, evaluations=(replace(one.evaluations[0], predictions=lists),))
            )
        found = compared(*sides, baseline="a", seed=seed, policies=("keep",))
        p_values.append(found.standings[1].contrasts["keep"]["mrr@5"].p)
    assert scipy.stats.kstest(p_values, "uniform").pvalue > 0.01


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"hashes": {"train": "x"}}, "other training rows"),
        ({"hashes": {"items": "x", "test": "y"}}, "other items and test rows"),
        ({"rows": 39}, "evaluated: 39 of 39 rows, baseline 40 of 40 rows"),
        ({"candidates": "100 drawn"}, "candidates: 100 drawn, baseline whole catalogue"),
        ({"decoder": {"search": "beam", "beams": 20}}, "search: beam of 20, baseline exact"),
        (
            {"decoder": {"search": "all", "mask": "after", "temperature": 1.0}},
            'decoding: mask "after", temperature 1, baseline mask "before", temperature 1',
        ),
        (
            {"train": TRAIN | {"validate_rows": 50}},
            "checkpoint: best ndcg@5 on 50 validation rows, baseline best ndcg@5 on 300 "
            "validation rows",
        ),
        (
            {"train": TRAIN | {"select": "loss"}},
            "checkpoint: best loss on 300 validation rows, baseline best ndcg@5 on 300 "
            "validation rows",
        ),
    ],
)
def test_what_does_not_compare_stays_with_its_figures_and_the_reason(
    changes: dict[str, Any], reason: str
) -> None:
    base, other, last = entry_of("base", 1), entry_of("other", 2, **changes), entry_of("last", 3)
    found = compared(base, other, last, baseline="base").standings
    assert found[1].why_not == reason
    assert found[1].contrasts == {"keep": {}, "remove": {}}
    frame = rows_of(other)
    assert found[1].metrics["keep"]["hr@5"].mean == pytest.approx(frame["hr@5"].mean())
    assert found[2].why_not is None
    assert found[2].contrasts["keep"]["hr@5"].p_holm == found[2].contrasts["keep"]["hr@5"].p


@pytest.mark.parametrize(
    "changes",
    [
        {"decoder": {"search": "all", "mask": "before", "temperature": 1.0}},
        {"kind": "conventional", "decoder": {"search": "all"}},
        {"train": TRAIN | {"learning_rate": 0.1}},
        {"train": TRAIN | {"validate_rows": 300, "patience": 4}},
        {"seen": "remove"},  # the headline of a report; its lists serve both
        {"hashes": {"other": "x"}},
    ],
)
def test_what_changes_nothing_compares(changes: dict[str, Any]) -> None:
    found = compared(entry_of("base", 1), entry_of("other", 2, **changes), baseline="base")
    assert found.standings[1].why_not is None
    assert found.standings[1].contrasts["keep"]


@pytest.mark.parametrize("validations", [1, 4, None])
def test_a_rule_with_one_checkpoint_to_choose_from_chose_nothing(validations: int | None) -> None:
    """Whatever the rule: such a run compares with all, as one that was counted does."""
    base = entry_of("base", 1, validations=4)
    other = entry_of("other", 2, train=TRAIN | {"select": "loss"}, validations=validations)
    why_not = compared(base, other, baseline="base").standings[1].why_not
    assert (why_not is None) == (validations == 1)


def test_the_rows_of_each_entry_are_told() -> None:
    few, many = entry_of("few", rows=10), entry_of("many", rows=40)
    found = compared(few, many)
    assert [one.n_rows for one in found.standings] == [10, 40]
    assert [one.n_users for one in found.standings] == [
        rows_of(one)["user_id"].nunique() for one in (few, many)
    ]
    assert not found.has_equal_rows
    assert compared(many, replace(many, name="again")).has_equal_rows
    assert list(found.to_frame("ndcg@5")["rows"]) == [10, 40]


def test_validation_rows_count_as_far_as_there_are_any() -> None:
    """500 validation rows are prepared: 1,000 or 2,000 of them is the same choice."""
    ours, theirs = (entry_of(str(n), train=TRAIN | {"validate_rows": n}) for n in (1000, 2000))
    assert compared(ours, theirs, baseline="1000").standings[1].why_not is None


def test_a_list_without_history_compares_only_where_it_is_removed() -> None:
    base = entry_of("base", 1)
    other = replace(entry_of("other", 2), without_history=True)
    kept = compared(base, other, baseline="base").standings[1]
    assert kept.why_not == "its lists leave the history out: compare with --seen remove"
    assert kept.contrasts["keep"] == {}
    assert kept.contrasts["remove"]
    removed = compared(base, other, baseline="base", headline="remove").standings[1]
    assert removed.why_not is None
    turned = compared(base, other, baseline="other").standings[0]
    assert (
        turned.why_not == "the baseline's lists leave the history out: compare with --seen remove"
    )


def test_without_a_baseline_there_are_no_contrasts() -> None:
    found = compared(entry_of("a", 1), entry_of("b", 2, candidates="100 drawn"))
    assert found.baseline is None
    assert all(not standing.contrasts["keep"] for standing in found.standings)
    assert found.standings[1].why_not is not None  # from the first one


def test_the_order_of_rows_in_a_file_changes_nothing() -> None:
    base, ours = entry_of("base", 1), entry_of("ours", 2, hit=0.5)
    frame = ours.evaluations[0].predictions
    assert frame is not None
    run = replace(ours.evaluations[0], predictions=frame[::-1])
    traits = build_comparability_keys(run, ours.evaluated_data, ours.kind)
    turned = replace(ours, evaluations=(run,), traits=traits)
    assert compared(base, turned, baseline="base") == compared(base, ours, baseline="base")


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (["a", "a"], {}, "different names"),
        ([], {}, "different names"),
        (["a"], {"baseline": "pop"}, "no baseline 'pop'; there is a"),
        (["a"], {"compared": "auc"}, "no metric 'auc'; there is hr@1, ndcg@1"),
    ],
)
def test_bad_requests_are_one_clear_line(
    names: list[str], options: dict[str, str], message: str
) -> None:
    with pytest.raises(ArtefactError, match=message):
        compared(*(entry_of(name) for name in names), **options)


def test_entries_of_other_validation_rows_are_not_drawn_together() -> None:
    ours, theirs = (
        replace(entry, evaluated_data=replace(entry.evaluated_data, split="valid"))
        for entry in (entry_of("ours"), entry_of("theirs", hashes={"valid": "other"}))
    )
    assert _group_by_rows([ours, theirs]) == [[ours], [theirs]]
