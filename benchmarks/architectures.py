"""Which architectures compute in llmrec what they compute alone: ``docs/architectures.md``.

    python -m benchmarks.architectures              every causal language model of transformers
    python -m benchmarks.architectures llama mpt    these alone, on the screen

Each is built small and random (``decoding.probe``) and looked at as a run looks at its backbone
(``decoding.probe``), with both attention implementations that take a mask.
"""

from __future__ import annotations

import importlib.metadata
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from llmrec_cli.config.model import TREE_ATTENTION
from llmrec_cli.decoding.probe import CALL, build_twin, probe, windows_within
from llmrec_cli.models.loading import first_line

PAGE: Final = Path(__file__).resolve().parents[1] / "docs/architectures.md"
BEGIN: Final = "<!-- written by python -m benchmarks.architectures -->"
END: Final = "<!-- end -->"
YES, NO, NONE, UNKNOWN = "yes", "no", "has none", "not built"
_FAR: Final = 1 << 40  # tokens: past every window
_ROTARY: Final = {"rope_theta": 10000.0, "original_max_position_embeddings": 64}
# Settings that change what a model type computes; what is not set is the library's default.
VARIANTS: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "bert, is_decoder": ("bert", {"is_decoder": True}),
    "bigbird, is_decoder": ("big_bird", {"is_decoder": True}),
    "falcon, alibi": ("falcon", {"alibi": True}),
    "gemma4, soft cap in text_config": (
        "gemma4",
        {"text_config": {"model_type": "gemma4_text", "final_logit_softcapping": 30.0}},
    ),
    "gemma4_text, soft cap": ("gemma4_text", {"final_logit_softcapping": 30.0}),
    "granite, logits_scaling": ("granite", {"logits_scaling": 8.0}),
    "llama, dynamic": (
        "llama",
        {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0, **_ROTARY}},
    ),
    "llama, llama3": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                **_ROTARY,
            }
        },
    ),
    "llama, yarn": ("llama", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, **_ROTARY}}),
    "phi3, longrope": (
        "phi3",
        {
            "original_max_position_embeddings": 64,
            "rope_parameters": {
                "rope_type": "longrope",
                "factor": 32.0,
                "short_factor": [1.0] * 48,
                "long_factor": [8.0] * 48,
                **_ROTARY,
            },
        },
    ),
    "qwen2, sliding": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 16},
    ),
    "roberta, is_decoder": ("roberta", {"is_decoder": True}),
}


@dataclass(frozen=True)
class Row:
    """One architecture of the table."""

    name: str
    cells: tuple[str, ...]  # for each of TREE_ATTENTION
    note: str

    @property
    def line(self) -> str:
        return f"| {self.name} | {' | '.join(self.cells)} | {self.note} |"


def names() -> list[str]:
    """Every model type that transformers opens as a causal language model, and the variants."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return sorted([*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *VARIANTS])


def look_at(name: str) -> Row:
    """Build one architecture and look at it."""
    found = [_look(name, attention) for attention in TREE_ATTENTION]
    notes = dict.fromkeys(note for cell, note in found if note and cell != NONE)
    return Row(name, tuple(cell for cell, _ in found), "; ".join(notes))


def _look(name: str, attention: str) -> tuple[str, str]:
    """A cell, and what is to be said of it."""
    from transformers import CONFIG_MAPPING

    model_type, settings = VARIANTS.get(name, (name, {}))
    try:
        config = CONFIG_MAPPING[model_type](**settings)
        model = build_twin(config, attention)
    except Exception as error:
        if "attention implementation" in str(error):
            return NONE, ""
        return UNKNOWN, f"{type(error).__name__}: {_short(first_line(error))}"
    reach = _FAR if windows_within(config, _FAR) else 0
    verdict = probe(model, "", reach)
    if CALL in verdict.faults:
        return UNKNOWN, _short(verdict.faults[CALL])
    if verdict.faults:
        parts = [
            f"{part} {_figure(verdict.differences[part])}" if part in verdict.differences else part
            for part in verdict.faults
        ]
        why = next((w for p, w in verdict.faults.items() if p not in verdict.differences), "")
        return NO, ", ".join(parts) + (f" ({_short(why)})" if why else "")
    if verdict.past:
        return f"up to `{'`, `'.join(verdict.past)}`", "; ".join(
            f"past it: {what.partition(':')[0]}" for what in verdict.past.values()
        )
    return YES, "; ".join(f"`{name}`: not looked at" for name in verdict.unseen)


def _figure(share: float) -> str:
    """One digit, as a plain number."""
    return f"{share:.0f}" if share >= 1 else f"{share:.1g}"


def _short(text: str) -> str:
    plain = text.replace("|", "/").replace("<", "").replace(">", "").replace("`", "'")
    return plain if len(plain) <= 90 else plain[:87] + "..."


def with_table(text: str, rows: list[Row]) -> str:
    """The page with another table between its two marks."""
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    built = sum(set(row.cells) - {UNKNOWN, NONE} != set() for row in rows)
    right = sum(YES in row.cells for row in rows)
    said = (
        f"transformers {importlib.metadata.version('transformers')}: {len(rows)} entries, {built} "
        f"could be built small, {right} agree with at least one attention implementation."
    )
    head = ["| model type | `sdpa` | `eager` | what differs |", "|---|---|---|---|"]
    return "\n".join([before + BEGIN, said, "", *head, *(row.line for row in rows), END + after])


def main() -> None:
    """Write the page, or show the rows of the names on the command line."""
    asked = sys.argv[1:]
    rows = []
    for name in asked or names():
        rows.append(look_at(name))
        print(rows[-1].line, flush=True)
    if not asked:
        text = PAGE.read_text(encoding="utf-8")
        PAGE.write_text(with_table(text, rows), encoding="utf-8")


if __name__ == "__main__":
    main()
