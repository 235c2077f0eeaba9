"""The audit of prepared data: counts of leaks, duplicates and ties, and their meaning.

    split files, items -> Check.measures -> counts of the manifest ("audit"), when data are prepared
    any prepared folder -> measure -> Measured, what those counts do not show
    manifest, Measured, Pop's scores -> Check.judge -> a Verdict per check

``CHECKS`` lists the checks.  Rows are lazy frames over the split files, read in batches.  Memory
grows with users, items, distinct times and the rows of validation and test.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import polars as pl

from llmrec_cli.config.data import find_format
from llmrec_cli.data.catalog import EXAMPLES, has_tokens, mark_shared_identity
from llmrec_cli.data.prepared import Manifest, Prepared
from llmrec_cli.data.schema import (
    AS_READ,
    COUNT,
    CUT_ITEMS,
    CUT_ROWS,
    HISTORY,
    ITEM,
    ITEM_ID,
    ITEMS_FILE,
    NEGATIVES,
    NO_TARGET,
    PREFERENCE,
    SHORT_HISTORY,
    SPLITS,
    TARGET,
    TIMESTAMP,
    TITLE,
    TOKENS,
    USER,
    USER_ID,
    split_file,
)

Finding: TypeAlias = dict[str, Any]
"""Cases (``count``) of how many (``of``), with a few ``examples``; further figures by name."""
PopScores: TypeAlias = Mapping[str, Mapping[str, Mapping[str, float]]]
"""Split -> ``keep`` or ``remove`` -> ``HR`` or ``NDCG`` -> mean over rows."""
Level = Literal["ok", "note", "warning"]
"""``note``: a reader of the results has to know it; ``warning``: figures may mislead."""

Count: TypeAlias = "Callable[[Rows], Any]"
Judge: TypeAlias = "Callable[[Check, Evidence], Verdict | None]"

MUCH: Final = 0.05  # of the rows: from here on a count that may mislead is a warning, else a note
HEAVY_HEAD: Final = 0.2  # of the training interactions, on 1 % of the items: a head to know about
DAY: Final = 86_400_000  # milliseconds
CUTOFF: Final = 10
HR, NDCG = f"hr@{CUTOFF}", f"ndcg@{CUTOFF}"  # of Pop
SHARED: Final = "items that share a title or tokens"
SHARED_TARGETS: Final = "test targets that share a title or tokens"
LATER: Final = "training rows later than the earliest test row"
_PAIRS: Final = (("train", "valid"), ("train", "test"), ("valid", "test"))


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of one check.  ``text`` has nothing from the data; ``examples`` are unchanged."""

    check: str  # what was looked for, short: "targets in their own history"
    level: Level
    count: int | None  # cases; None: the check is not a count, or could not be made
    of: int | None
    text: str  # a few sentences: the figures, and what they mean
    examples: tuple[str, ...] = ()  # ids or titles
    figures: Mapping[str, float] = field(default_factory=dict)  # further ones, by name

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Rows:
    """What is counted: the rows of all splits, and the catalogue."""

    items: pl.DataFrame  # the catalogue with COUNT
    splits: Mapping[str, pl.LazyFrame]  # train, valid, test; of pairs, perhaps those to align on
    tied: Finding | None  # see ``count_findings``
    clock: bool  # times compare across users

    @property
    def has_pairs(self) -> bool:
        """Whether each row has candidates that were not liked."""
        return NEGATIVES in self.splits["test"].collect_schema()


@dataclass(frozen=True, slots=True)
class Ahead:
    """How much of the training split is later than the rows of a split."""

    mean: float  # over rows: share of training targets later than the row's, [0, 1]
    median: float
    days: float  # median over rows: from the row to the last training target; 0: none is later


@dataclass(frozen=True, slots=True)
class Measured:
    """Counts of the split files that are not in the manifest; None: unknown."""

    ahead: Mapping[str, Ahead]  # of valid and test; empty: times do not compare across users
    undecided: Finding | None  # users whose validation and test targets have one time
    shared_valid: Finding  # as the audit's of test
    unseen_valid: Finding
    unheard: Finding  # test targets that are in no training row and in no validation row


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything that verdicts depend on."""

    manifest: Mapping[str, Any]  # of a prepared folder, with its whole ``audit``
    measured: Measured | None
    pop: PopScores | None

    @property
    def data(self) -> Mapping[str, Any]:
        """``[data]`` of the recipe that the folder was prepared with."""
        data: Mapping[str, Any] = self.manifest["data"]
        return data

    @property
    def manifest_counts(self) -> Mapping[str, Any]:
        """The counts of the manifest; None: they cannot be counted."""
        counts: Mapping[str, Any] = self.manifest["audit"]
        return counts


@dataclass(frozen=True, slots=True)
class Check:
    """One check.

    Attributes:
        name: what is looked for, short.
        judge: (check, evidence) -> a verdict; None: the check does not apply.
        measures: what is counted when data are prepared, by its name in the manifest.
        of_pairs: the counts are made of rows of pairs only.
    """

    name: str
    judge: Judge
    measures: Mapping[str, Count] = field(default_factory=dict)
    of_pairs: bool = False

    def ok(self, text: str, count: int | None = 0, of: int | None = None) -> Verdict:
        """The verdict that there is nothing to know."""
        return Verdict(self.name, "ok", count, of, text)

    def found(
        self,
        level: Level,
        found: Mapping[str, Any],
        text: str,
        figures: Mapping[str, float] | None = None,
    ) -> Verdict:
        """The verdict on cases, with examples; the tokens of a semantic ID are joined."""
        examples = tuple(
            "".join(e) if isinstance(e, list | tuple) else str(e) for e in found.get("examples", ())
        )
        return Verdict(self.name, level, found["count"], found["of"], text, examples, figures or {})


def count_findings(rows: Rows) -> Finding:
    """The ``audit`` of a manifest; None stands for what cannot be counted.

    ``rows.tied``: users with interactions at the same time as another one of theirs, where input
    order decides; None for sources that come split.
    """
    return {
        name: count(rows)
        for check in CHECKS
        if rows.has_pairs or not check.of_pairs
        for name, count in check.measures.items()
    }


def with_audit(prepared: Prepared) -> Manifest:
    """The manifest with its whole audit: what an older one lacks is counted from the files.

    Ties stay unknown: the files do not have the times of histories.
    """
    recorded = prepared.manifest.get("audit", {})
    if set(recorded) >= RECORDED:
        return prepared.manifest
    counted = count_findings(_open_rows(prepared))
    return {**prepared.manifest, "audit": counted | recorded}


def judge_all(
    manifest: Mapping[str, Any], measured: Measured | None = None, pop: PopScores | None = None
) -> tuple[Verdict, ...]:
    """One verdict per check, in the order of ``CHECKS``; a check that cannot be made says so.

    Args:
        manifest: of a prepared folder, with its whole ``audit`` (``with_audit``).
        measured: further counts of the split files; None: without those sentences.
        pop: scores of the Pop baseline; None: without that verdict.
    """
    evidence = Evidence(manifest, measured, pop)
    judged = (check.judge(check, evidence) for check in CHECKS)
    return tuple(verdict for verdict in judged if verdict is not None)


def select_raised(verdicts: Sequence[Verdict]) -> tuple[Verdict, ...]:
    """The verdicts that a reader has to know: warnings, then notes."""
    return tuple(v for level in ("warning", "note") for v in verdicts if v.level == level)


def has_times(data: Mapping[str, Any]) -> bool:
    """Whether the source of a ``[data]`` section has times that compare across users."""
    columns = data.get("columns", {})
    return find_format(data["format"]).compares_times(columns.get("timestamp"))


def measure_prepared(prepared: Prepared) -> Measured:
    """Measure a prepared folder of any version."""
    rows = _open_rows(prepared)
    train, valid, test = (rows.splits[name] for name in SPLITS)
    held_out = {"test": test, "valid": valid} if rows.clock else {}
    decides = rows.clock and prepared.manifest["data"]["split"] == "leave-one-out"
    return Measured(
        ahead={name: measure_ahead(train, split) for name, split in held_out.items()},
        undecided=find_undecided(valid, test) if decides else None,
        shared_valid=find_shared_targets(rows, "valid"),
        unseen_valid=find_unseen_targets(rows, "valid"),
        unheard=find_unheard(rows.items, [train, valid], test),
    )


def _open_rows(prepared: Prepared) -> Rows:
    """The files of a prepared folder; ties are not among them."""
    folder = prepared.folder
    splits = {n: pl.scan_parquet(folder / split_file(n), glob=False) for n in prepared.splits}
    items = pl.read_parquet(folder / ITEMS_FILE, glob=False)
    return Rows(items, splits, None, has_times(prepared.manifest["data"]))


def _judge_names(check: Check, evidence: Evidence) -> Verdict:
    catalogue = evidence.manifest["catalogue"]
    count = int(catalogue["of these without a name, dropped"])
    # Cleaning removes further items, so there is no total to compare with.
    of = catalogue["items"] + count if evidence.data["split"] == "given" else None
    if not count:
        return check.ok("Every item has a name.", 0, of)
    among = f" of {of:,}" if of else ""
    text = (
        f"{count:,}{among} items have no usable title and were dropped, with the rows whose target "
        "they are: all figures are about the others."
    )
    return check.found("note", {**catalogue, "count": count, "of": of}, text)


def find_shared_items(rows: Rows) -> Finding:
    """Items whose title (or tokens) another item has too."""
    items = rows.items
    shared = items.filter(mark_shared_identity(items))
    name = TOKENS if has_tokens(items) else TITLE
    found = _find_hits(shared.lazy().select(name), len(items))
    return found | {"groups": shared[name].n_unique()}


def find_shared_targets(rows: Rows, split: str = "test") -> Finding:
    """Rows of a split whose target cannot be distinguished from another item."""
    return _find_targets(rows.items.filter(mark_shared_identity(rows.items)), rows.splits[split])


def _judge_identity(check: Check, evidence: Evidence) -> Verdict:
    found: Finding = evidence.manifest_counts[SHARED]
    test: Finding = evidence.manifest_counts[SHARED_TARGETS]
    by_tokens = find_format(evidence.data["format"]).items_are_tokens
    name = "token sequence" if by_tokens else "title"
    check = Check(f"items that share a {name}", check.judge)
    count, of = found["count"], found["of"]
    if not count:
        return check.ok(f"Every one of {of:,} items has a {name} of its own.", 0, of)
    surplus = count - found["groups"]
    targets = f"{tell_part(test)} test targets"
    if evidence.measured:
        targets += f" and {tell_part(evidence.measured.shared_valid)} validation targets"
    more = f"{surplus:,} more item{'' if surplus == 1 else 's'} than {name}s"
    text = (
        f"{count:,} of {of:,} items share a {name} with another one: {more}. No model can tell "
        f"them apart, so items of one {name} are one entry of the catalogue, and any of them is a "
        f"hit: so it is for {targets}."
    )
    figures = {f"more items than {name}s": surplus, "test targets": test["count"]}
    return check.found(_choose_level(test, least="note"), found, text, figures)


def find_repeated_rows(rows: Rows) -> dict[str, Finding]:
    """Rows whose target is also in their history, by split."""
    repeats = pl.col(HISTORY).list.contains(pl.col(TARGET))
    return {
        name: _find_hits(split.filter(repeats).select(USER_ID), _count_rows(split))
        for name, split in rows.splits.items()
    }


def _judge_repeats(check: Check, evidence: Evidence) -> Verdict:
    found: Mapping[str, Finding] = evidence.manifest_counts[check.name]
    test = found["test"]
    where = [f"{tell_part(rows)} in {name}" for name, rows in found.items() if rows["count"]]
    if not where:
        return check.ok("No target stands in its own history.", 0, test["of"])
    text = (
        f"Bought again: {', '.join(where)}. A model that copies its prompt finds these; with "
        'seen = "remove" the target is the one item of the history that stays a candidate.'
    )
    examples = next(rows["examples"] for rows in (test, *found.values()) if rows["count"])
    return check.found(_choose_level(test, least="note"), test | {"examples": examples}, text)


def find_unseen_targets(rows: Rows, split: str = "test") -> Finding:
    """Rows of a split whose target is in no training row."""
    return _find_targets(rows.items.filter(pl.col(COUNT) == 0), rows.splits[split])


def find_unheard(items: pl.DataFrame, shown: list[pl.LazyFrame], test: pl.LazyFrame) -> Finding:
    """Test rows whose target is not in ``shown``, neither as a target nor in a history."""
    parts = [rows.select(pl.col(HISTORY).alias(ITEM)).explode(ITEM).drop_nulls() for rows in shown]
    parts += [rows.select(pl.col(TARGET).alias(ITEM)) for rows in shown]
    known = pl.concat(parts).unique().collect()
    unknown = items.join(known, on=ITEM, how="anti").select(pl.col(ITEM).alias(TARGET), ITEM_ID)
    targets = test.select(TARGET).collect()
    hits = targets.join(unknown, on=TARGET, maintain_order="left")[ITEM_ID]
    examples = hits.unique(maintain_order=True).head(EXAMPLES).to_list()
    return {"count": len(hits), "of": len(targets), "examples": examples}


def _judge_unseen(check: Check, evidence: Evidence) -> Verdict:
    test: Finding = evidence.manifest_counts[check.name]
    count, of = test["count"], test["of"]
    sentences = [f"All {of:,} test targets occur in training."]
    if count:
        # About: an item that is never seen may share its entry with one that is.
        ends = f", and its HR ends at about {tell_percent(1 - _share_of(test))}"
        ends = "" if find_format(evidence.data["format"]).pairs else ends
        sentences = [
            f"{tell_part(test)} test targets occur in no training row: a model that knows items by "
            f"number has nothing to go by{ends}; a language model has their titles."
        ]
    figures = {"test": _share_of(test)}
    if evidence.measured:
        valid, unheard = evidence.measured.unseen_valid, evidence.measured.unheard
        figures |= {
            "test, validation counted as seen": _share_of(unheard),
            "valid": _share_of(valid),
        }
        if count:
            sentences.append(f"{tell_part(unheard)} occur in no validation row either.")
        sentences.append(f"Of the validation targets, {tell_part(valid)} are unseen.")
    return check.found(_choose_level(test), test, " ".join(sentences), figures)


def count_common_users(rows: Rows) -> Finding:
    """Users with rows in more than one split, by pair of splits."""
    users = {name: split.select(USER).unique().collect() for name, split in rows.splits.items()}
    pairs = list(_PAIRS)
    if PREFERENCE in users:
        pairs += [("train", PREFERENCE), (PREFERENCE, "valid"), (PREFERENCE, "test")]
    return {f"{a} and {b}": len(users[a].join(users[b], on=USER, how="semi")) for a, b in pairs}


def _judge_users(check: Check, evidence: Evidence) -> Verdict:
    """Users in two splits.  Only a split by user excludes them: few-shot, and given pairs.

    The other protocols split a user's sequence, or time.
    """
    split, found = evidence.data["split"], evidence.manifest_counts[check.name]
    by_user = split == "few-shot" or find_format(evidence.data["format"]).pairs
    sides = {pair: n for pair, n in found.items() if pair != "train and preference"}
    counts = ", ".join(f"{n:,} in {pair}" for pair, n in sides.items() if n)
    most = {"count": max(sides.values()), "of": None}
    if not by_user:
        text = f'split = "{split}" does not part users ({counts or "none is in two"}).'
        return check.found("ok", most, text, sides)
    if not most["count"]:
        return check.ok("The split is by user, and nobody is in two splits.")
    text = (
        f"The split is by user, and some are on both sides: {counts}. What training shows of them "
        "makes their rows easier than a new user's."
    )
    return check.found("warning", most, text, sides)


def find_common_rows(rows: Rows) -> dict[str, Finding]:
    """Rows of a later split that an earlier one has too, by pair of splits.

    Two rows are the same if user, target and history are.  Where times compare across users, they
    are also the same if user, target and time are (the history may have been cut elsewhere).  Of
    pairs, the candidates must be the same too.
    """
    candidates, splits = [NEGATIVES] if rows.has_pairs else [], rows.splits
    keys = [[USER_ID, TARGET, HISTORY, *candidates]]
    if rows.clock:
        keys.append([USER_ID, TARGET, TIMESTAMP, *candidates])
    return {f"{a} and {b}": _find_common_rows(splits[a], splits[b], keys) for a, b in _PAIRS}


def _find_common_rows(a: pl.LazyFrame, b: pl.LazyFrame, keys: list[list[str]]) -> Finding:
    """Rows of ``b`` that are in ``a`` by any of ``keys``; it takes 8 bytes per row of ``b``."""
    users = b.select(USER_ID)
    hits = pl.Series([False], dtype=pl.Boolean)
    for key in keys:
        hashed = pl.struct(key).hash().alias("key")  # 64 bits
        wanted = b.select(hashed).collect(engine="streaming")["key"]
        asked = pl.LazyFrame({"key": wanted.unique()})
        found = a.select(hashed).join(asked, on="key", how="semi").unique()
        hits = hits | wanted.is_in(found.collect(engine="streaming")["key"].implode())
    return _find_hits(
        users.with_columns(hits.alias("hit")).filter("hit").select(USER_ID), len(hits)
    )


def _judge_rows(check: Check, evidence: Evidence) -> Verdict:
    found: Mapping[str, Finding] = evidence.manifest_counts[check.name]
    where = [
        f"{tell_part(rows)} {pair.split()[-1]} rows stand in {pair.split()[0]}"
        for pair, rows in found.items()
        if rows["count"]
    ]
    if not where:
        return check.ok("No row stands in two splits.", 0, found["train and test"]["of"])
    text = (
        f"The same user, target and history (or time): {'; '.join(where)}. A model has learnt "
        "these answers, so the figures are too good. Expected splits without a row in common."
    )
    much = any(_choose_level(rows) == "warning" for rows in found.values())
    trained = [rows for pair, rows in found.items() if pair.startswith("train")]
    worst = max(trained, key=_share_of)
    worst = worst if worst["count"] else found["valid and test"]
    figures = {f"{pair}: rows": float(rows["count"]) for pair, rows in found.items()}
    return check.found("warning" if much else "note", worst, text, figures)


def find_undecided(valid: pl.LazyFrame, test: pl.LazyFrame) -> Finding:
    """Test rows at the very time of their user's validation row: input order separates them."""
    key = [USER, TIMESTAMP]
    hits = test.select(*key, USER_ID).join(valid.select(key), on=key, how="semi").sort(USER)
    tied = hits.select(USER_ID).collect()[USER_ID]
    return {"count": len(tied), "of": _count_rows(test), "examples": tied.head(EXAMPLES).to_list()}


def _judge_ties(check: Check, evidence: Evidence) -> Verdict:
    found: Finding | None = evidence.manifest_counts[check.name]
    if found is None:
        given = evidence.data["split"] == "given"
        why = "the source comes split" if given else "it was not counted"
        return check.ok(f"Whether interactions of a user tie cannot be told: {why}.", None)
    if not has_times(evidence.data):
        return check.ok("The source has an order and no times.", None)
    if not found["count"]:
        return check.ok("No user has two interactions at one time.", 0, found["of"])
    text = (
        f"{tell_part(found)} users have interactions at one and the same time "
        f"({found['interactions']:,} interactions): input order decides which comes first."
    )
    figures = {"interactions": float(found["interactions"])}
    if evidence.measured and (undecided := evidence.measured.undecided):
        text += (
            f" {tell_part(undecided)} test targets tie with their user's validation target: "
            "which of the two is tested is the file's choice."
        )
        figures["test targets that tie with validation's"] = undecided["count"]
    return check.found("note", found, text, figures)


def find_later_training(rows: Rows) -> Finding | None:
    """Training targets later than the earliest test target: what a global cut would not allow."""
    if not rows.clock:
        return None
    train, test = rows.splits["train"], rows.splits["test"]
    earliest = test.select(pl.col(TIMESTAMP).min()).collect().item()
    return {
        "count": _count_rows(train.filter(pl.col(TIMESTAMP) > earliest)),
        "of": _count_rows(train),
    }


def measure_ahead(train: pl.LazyFrame, rows: pl.LazyFrame) -> Ahead:
    """How much of training is later than each of ``rows`` (at the same time is not later)."""
    times = train.group_by(TIMESTAMP).len().sort(TIMESTAMP).collect()
    time_T, count_T = times[TIMESTAMP].to_numpy(), times["len"].to_numpy().astype(np.int64)
    time_R = rows.select(TIMESTAMP).collect()[TIMESTAMP].to_numpy()
    at_most_T = np.concatenate([[0], np.cumsum(count_T)])
    later_R = at_most_T[-1] - at_most_T[np.searchsorted(time_T, time_R, "right")]
    share_R = later_R / count_T.sum()
    days_R = np.maximum(0, time_T[-1] - time_R) / DAY
    return Ahead(float(share_R.mean()), float(np.median(share_R)), float(np.median(days_R)))


def _judge_later_training(check: Check, evidence: Evidence) -> Verdict:
    found = evidence.manifest_counts[LATER]
    if found is None or not has_times(evidence.data):
        text = "Times do not compare across users: whether training looks ahead cannot be told."
        return check.ok(text, None)
    if not found["count"]:
        return check.ok("No training row is later than any test row.", 0, found["of"])
    split, ahead = evidence.data["split"], evidence.measured.ahead if evidence.measured else {}
    forbidden = split == "global-time"
    sentences = [
        f"{tell_part(found)} training rows are later than the earliest test row.",
        *(
            f"At the time of a {name} row, {tell_percent(of_split.mean)} of the training rows are "
            f"still to come (median {tell_percent(of_split.median)}), over {of_split.days:,.0f} "
            "days (median)."
            for name, of_split in ahead.items()
        ),
        "A split by time forbids that: prepare again."
        if forbidden
        else f'split = "{split}" allows it, and figures are better for it than a model '
        'could be on the day, most of all about what became popular later; split = "global-time" '
        "does not look ahead.",
    ]
    figures = {
        f"{name}: {what}": figure
        for name, of_split in ahead.items()
        for what, figure in (
            ("share of training that is later, mean", of_split.mean),
            ("share of training that is later, median", of_split.median),
            ("days to the end of training, median", of_split.days),
        )
    }
    return check.found("warning" if forbidden else "note", found, " ".join(sentences), figures)


def measure_concentration(rows: Rows) -> Finding:
    """Gini index of training interactions over items (0: all equal), and the top 1 %'s share."""
    ascending = np.sort(rows.items[COUNT].to_numpy().astype(np.float64))
    total, n = ascending.sum(), len(ascending)
    ranks = np.arange(1, n + 1)
    gini = 2 * (ranks * ascending).sum() / (n * total) - (n + 1) / n
    top = ascending[n - max(1, n // 100) :].sum() / total
    return {"gini": round(float(gini), 4), "share of the top 1 % of items": round(float(top), 4)}


def _judge_concentration(check: Check, evidence: Evidence) -> Verdict:
    found = evidence.manifest_counts[check.name]
    gini, top = found["gini"], found["share of the top 1 % of items"]
    text = (
        f"The most popular 1 % of the items hold {tell_percent(top)} of the training interactions "
        f"(Gini {gini:.2f}; 0: all alike)."
    )
    heavy = top >= HEAVY_HEAD
    if heavy:
        text += " Hits on them are cheap: look at coverage and long-tail share beside HR."
    figures = {"gini": gini, "share of the top 1 % of items": top}
    return check.found("note" if heavy else "ok", {"count": None, "of": None}, text, figures)


def _judge_pop(check: Check, evidence: Evidence) -> Verdict | None:
    """Scores of Pop, which every model must beat, beside entries drawn at random."""
    pop, shared = evidence.pop, evidence.manifest_counts[SHARED]
    if pop is None:
        return None
    entries = shared["of"] - shared["count"] + shared["groups"]
    chance = min(1.0, CUTOFF / entries)
    reached = "; ".join(f"{name}: {_tell_scores(scores)}" for name, scores in pop.items())
    text = f"Pop reaches {reached}. {CUTOFF} entries drawn at random: HR {chance:.4f}."
    weak = min(scores[HR] for scores in pop["test"].values()) < chance
    text += (
        " Less than chance: what is popular in training is not what is tested, and to beat Pop "
        "says little here."
        if weak
        else " A model that does not beat Pop has learnt nothing about its users."
    )
    figures = {
        f"{split}, {policy}: {metric}": value
        for split, by_policy in pop.items()
        for policy, scores in by_policy.items()
        for metric, value in scores.items()
    } | {f"{HR} at random": chance}
    return check.found("note" if weak else "ok", {"count": None, "of": None}, text, figures)


def _tell_scores(by_policy: Mapping[str, Mapping[str, float]]) -> str:
    words = {"keep": "with the history", "remove": "without"}
    return ", ".join(
        f"HR@{CUTOFF} {s[HR]:.4f} and NDCG@{CUTOFF} {s[NDCG]:.4f} {words[policy]}"
        for policy, s in by_policy.items()
    )


def _judge_lost_rows(check: Check, evidence: Evidence) -> Verdict | None:
    """Rows of a source that comes split that are in no split now."""
    if evidence.data["split"] != "given":
        return None
    cleaning: Mapping[str, Mapping[str, int]] = evidence.manifest["cleaning"]
    least = evidence.data["min_history"]
    lost = {
        name: {"count": counts[NO_TARGET] + counts[SHORT_HISTORY], "of": counts[AS_READ]}
        for name, counts in cleaning.items()
    }
    where = []
    for name, counts in cleaning.items():
        reasons = {
            f"{counts[SHORT_HISTORY]:,} have a history below {least}": counts[SHORT_HISTORY],
            f"{counts[NO_TARGET]:,} have a target without a title": counts[NO_TARGET],
        }
        why = ", ".join(text for text, count in reasons.items() if count)
        where += [f"{tell_part(lost[name])} {name} rows ({why})"] if why else []
    test = lost["test"]
    if not where:
        return check.ok("Every row of the source is kept.", 0, test["of"])
    text = f"Left out: {'; '.join(where)}. All figures are about the others."
    figures = {f"{name} rows": float(found["count"]) for name, found in lost.items()}
    return check.found(_choose_level(test, "note"), test, text, figures)


def _judge_cut_histories(check: Check, evidence: Evidence) -> Verdict | None:
    """Rows whose history is longer than ``data.history``, which keeps the newest items."""
    splits: Mapping[str, Mapping[str, int]] = evidence.manifest["splits"]
    if not all(CUT_ROWS in counts for counts in splits.values()):
        return None  # of an older version
    longest = evidence.data["history"]
    cut = {name: {"count": c[CUT_ROWS], "of": c["rows"]} for name, c in splits.items()}
    where = [f"{tell_part(found)} {name} rows" for name, found in cut.items() if found["count"]]
    if not where:
        return check.ok(f"No history is longer than {longest} items.", 0, cut["test"]["of"])
    items = sum(counts[CUT_ITEMS] for counts in splits.values())
    text = (
        f"The last {longest} items are kept of {', '.join(where)}; {items:,} older ones are left "
        "out, for every model alike."
    )
    level: Level = (
        "note" if _choose_level(cut["test"]) == "warning" else "ok"
    )  # a choice that a reader has to know
    return check.found(level, cut["test"], text)


def find_trained_pairs(rows: Rows) -> Finding:
    """Test pairs (same history, same candidates) that training or alignment shows too."""
    key = [USER_ID, TARGET, NEGATIVES]
    splits = rows.splits
    parts = [splits[name] for name in ("train", PREFERENCE) if name in splits]
    shown = pl.concat([part.select(key).explode(NEGATIVES) for part in parts]).unique()
    test = splits["test"].select(key).explode(NEGATIVES)
    hits = test.join(shown, on=key, how="semi", maintain_order="left")
    return _find_hits(hits.select(USER_ID), _count_rows(test))


def _judge_trained_pairs(check: Check, evidence: Evidence) -> Verdict | None:
    found: Finding | None = evidence.manifest["audit"].get(check.name)
    if found is None:
        return None
    if not found["count"]:
        return check.ok("Training shows no test pair.", 0, found["of"])
    text = (
        f"{tell_part(found)} test pairs are pairs of training, history and candidates alike: a "
        "leak. Reports give the figures of new users, too."
    )
    return check.found("warning", found, text)


def _make_check(name: str, judge: Judge, count: Count, of_pairs: bool = False) -> Check:
    """A check of one count, which has the check's name in the manifest."""
    return Check(name, judge, {name: count}, of_pairs)


CHECKS: Final = (
    Check("items without a name", _judge_names),
    Check(
        "items that share a title",  # or a token sequence
        _judge_identity,
        {SHARED: find_shared_items, SHARED_TARGETS: find_shared_targets},
    ),
    _make_check("targets in their own history", _judge_repeats, find_repeated_rows),
    _make_check("test targets never seen in training", _judge_unseen, find_unseen_targets),
    _make_check("users in several splits", _judge_users, count_common_users),
    _make_check("rows that stand in two splits", _judge_rows, find_common_rows),
    _make_check("interactions that tie in time", _judge_ties, lambda rows: rows.tied),
    Check("training later than test", _judge_later_training, {LATER: find_later_training}),
    _make_check("popularity in training", _judge_concentration, measure_concentration),
    Check("rows of the source that are left out", _judge_lost_rows),
    Check("histories cut to data.history", _judge_cut_histories),
    _make_check("test pairs that are trained on", _judge_trained_pairs, find_trained_pairs, True),
    Check("score of Pop", _judge_pop),
)
"""All checks, in the order in which they are reported."""
RECORDED: Final = {name for check in CHECKS if not check.of_pairs for name in check.measures}
"""The counts in the audit of every manifest of this version."""


def tell_part(found: Mapping[str, Any]) -> str:
    """``2,842 of 4,383 (65 %)``."""
    return f"{found['count']:,} of {found['of']:,} ({tell_percent(_share_of(found))})"


def tell_percent(fraction: float) -> str:
    """``65 %``; with a decimal where it matters.  Only exact values are 0 % or 100 %."""
    value = 100 * fraction
    if 0 < value < 0.05:
        return "under 0.1 %"
    if 99.95 <= value < 100:
        return "over 99.9 %"
    whole = 9.95 <= value <= 99 or value in (0, 100)
    return f"{value:.0f} %" if whole else f"{value:.1f} %"


def _choose_level(found: Mapping[str, Any], least: Level = "ok") -> Level:
    """The level by the share of the rows; with any case at all it is ``least`` or more."""
    if found["count"] and _share_of(found) >= MUCH:
        return "warning"
    return "note" if found["count"] else least


def _share_of(found: Mapping[str, Any]) -> float:
    """The share of cases, [0, 1]; 0 where there are no rows."""
    return float(found["count"] / found["of"]) if found["of"] else 0.0


def _find_targets(items: pl.DataFrame, rows: pl.LazyFrame) -> Finding:
    among = items.lazy().select(pl.col(ITEM).alias(TARGET), ITEM_ID)
    hits = rows.select(TARGET).join(among, on=TARGET, maintain_order="left")
    return _find_hits(hits.select(ITEM_ID), _count_rows(rows))


def _find_hits(hits: pl.LazyFrame, n: int) -> Finding:
    """How many hits, and the first few different ones; ``hits`` has one column."""
    examples = hits.unique(maintain_order=True).head(EXAMPLES).collect().to_series()
    return {"count": _count_rows(hits), "of": n, "examples": examples.to_list()}


def _count_rows(rows: pl.LazyFrame) -> int:
    return int(rows.select(pl.len()).collect().item())
