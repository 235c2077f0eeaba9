"""Verdicts on the catalogue: items without a name, and items of one name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmrec_cli.data.audit import Finding
from llmrec_cli.data.leakage import Measured
from llmrec_cli.data.verdicts.verdict import Verdict, examples_of, level_of, part
from llmrec_cli.recipe.data import format_of


def items_without_a_name(catalogue: Mapping[str, Any], data: Mapping[str, Any]) -> Verdict:
    """Args:
    catalogue, data: of the manifest.
    """
    check, count = "items without a name", int(catalogue["of these without a name, dropped"])
    # Further items leave a source that is cleaned, so there is no total to compare with.
    of = catalogue["items"] + count if data["split"] == "given" else None
    if not count:
        return Verdict(check, "ok", 0, of, "Every item has a name.")
    among = f" of {of:,}" if of else ""
    text = (
        f"{count:,}{among} items have no usable title and were dropped, with the rows whose target "
        "they are: all figures are about the others."
    )
    return Verdict(check, "note", count, of, text, examples_of(catalogue["examples"]))


def shared_identity(
    audit: Mapping[str, Any], data: Mapping[str, Any], measured: Measured | None
) -> Verdict:
    """Items whose title (or token sequence) others have too, and the targets among them."""
    found: Finding = audit["items that share a title or tokens"]
    test: Finding = audit["test targets that share a title or tokens"]
    name = "token sequence" if format_of(data["format"]).items_are_tokens else "title"
    check, count, of = f"items that share a {name}", found["count"], found["of"]
    if not count:
        return Verdict(check, "ok", 0, of, f"Every one of {of:,} items has a {name} of its own.")
    surplus = count - found["groups"]
    targets = f"{part(test)} test targets"
    if measured:
        targets += f" and {part(measured.shared_valid)} validation targets"
    more = f"{surplus:,} more item{'' if surplus == 1 else 's'} than {name}s"
    text = (
        f"{count:,} of {of:,} items share a {name} with another one: {more}. No model can tell "
        f"them apart, so items of one {name} are one entry of the catalogue, and any of them is a "
        f"hit: so it is for {targets}."
    )
    return Verdict(
        check,
        level_of(test, least="note"),
        count,
        of,
        text,
        examples_of(found["examples"]),
        {f"more items than {name}s": surplus, "test targets": test["count"]},
    )
