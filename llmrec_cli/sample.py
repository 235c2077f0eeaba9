"""``llmrec sample``: synthetic raw review and metadata files with a known best possible score."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from llmrec_cli.data.synthetic import build_world, shop
from llmrec_cli.data.synthetic_oracle import histories, oracle_scores, popularity_scores
from llmrec_cli.data.synthetic_raw import FORMATS, SampleFormat, metadata_lines, review_lines
from llmrec_cli.files import machine_errors, write_atomically

ORACLE_FILE: Final = "oracle.json"
_NOTE: Final = (
    "Synthetic data. 'oracle' ranks the whole catalogue by the generator's true next-item "
    "probabilities given the history, on the leave-one-out test targets after de-duplication "
    "(first), untitled items dropped and iterated 5-core; 'popularity' ranks by training counts."
)


@dataclass(frozen=True)
class SampleReport:
    """What was written, and the scores that any model can be measured against."""

    reviews: Path
    metadata: Path
    oracle_file: Path
    counts: dict[str, int]  # review lines, users and items written and after the 5-core
    oracle: dict[str, float]  # HR@K and NDCG@K of the generator's own probabilities
    popularity: dict[str, float]  # of recommending the most popular items


def write_sample(
    out: Path, *, seed: int, users: int, items: int, format: SampleFormat
) -> SampleReport:
    """Write reviews, metadata and ``oracle.json`` into the folder ``out``.

    The files are a pure function of the arguments: same bytes on every run and machine.  Files of
    the same names are replaced.

    Raises:
        DataError: fewer than 40 items, no users, or a negative seed.
        MachineError: the folder cannot be written.
    """
    layout = FORMATS[format]
    world = build_world(seed, items)
    purchases = shop(world, seed, users)
    sequences = histories(world, purchases)
    report = SampleReport(
        reviews=out / layout.reviews,
        metadata=out / layout.metadata,
        oracle_file=out / ORACLE_FILE,
        counts={
            "reviews": len(purchases),
            "users": users,
            "items": items,
            "core_users": len(sequences),
            "core_items": len({item for sequence in sequences for item in sequence}),
            "core_interactions": sum(map(len, sequences)),
        },
        oracle=oracle_scores(world, sequences),
        popularity=popularity_scores(world, sequences),
    )
    arguments = {"seed": seed, "users": users, "items": items, "format": format}
    with machine_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    write_atomically(report.reviews, _packed(review_lines(world, purchases, seed, layout)))
    write_atomically(report.metadata, _packed(metadata_lines(world, seed, layout)))
    write_atomically(report.oracle_file, _oracle_text(report, arguments).encode())
    return report


def _packed(lines: Iterable[str]) -> bytes:
    """Gzip without a name and a time in its header, so that equal lines give equal bytes."""
    buffer = io.BytesIO()
    with gzip.GzipFile("", "wb", compresslevel=9, fileobj=buffer, mtime=0) as packed:
        for line in lines:
            packed.write(line.encode())
    return buffer.getvalue()


def _oracle_text(report: SampleReport, arguments: dict[str, Any]) -> str:
    content = {
        "note": _NOTE,
        "arguments": arguments,
        "counts": report.counts,
        "oracle": report.oracle,
        "popularity": report.popularity,
    }
    return json.dumps(content, indent=2) + "\n"
