"""The rank-pair task: which of two candidates the user likes more (DMPO).

The answer is both titles, the liked one first (arXiv:2405.16127).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from llmrec_cli.config.formats import join_words
from llmrec_cli.methods import find_method
from llmrec_cli.tasks.base import Task

if TYPE_CHECKING:
    from llmrec_cli.config.training import AlignSection

DRAWS: Final = ("uniform", "popularity", "disliked")
"""What the other candidate of a pair can be drawn by."""
_NO_SEARCH: Final = 'task "rank-pair" asks for one of two candidates; nothing is searched'


def check_method(section: AlignSection, has_rejected: bool) -> Iterator[str]:
    """What keeps a method from learning on chosen and rejected texts; at most one problem.

    Args:
        has_rejected: the source's files bring the rejected answers.
    """
    method = find_method(section.method)
    needs = method.needs(section.options)
    negatives, reference = needs.negatives, needs.reference
    draws = f" (with negatives = {join_words(DRAWS)}, but for lml)"
    known = f"expected method dmpo, dpo, sdpo or lml{'' if has_rejected else draws}"
    legal, compares = method.legal_only(section.options), negatives is not None
    if legal and (compares or "support" not in type(section.options).model_fields):
        what = f'method = "{section.method}": looks at the catalogue\'s tokens only'
        instead = "" if compares else f", which it has not; {known}"
        yield f'{what}; task "rank-pair" ranks texts and needs support = "vocab"{instead}'
    elif negatives is None and section.method != "lml":
        yield (
            f'method = "{section.method}": task "rank-pair" knows chosen and rejected '
            f"answers; {known}"
        )
    elif reference is not None and reference.moves:
        yield (
            f'method = "{section.method}": task "rank-pair" asks no model for rejected answers; '
            f"{known}"
        )
    elif negatives is not None and negatives.draw not in DRAWS and not has_rejected:
        yield (
            f'negatives = "{negatives.draw}": task "rank-pair" draws the other candidate '
            f"without asking a model, by {', '.join(DRAWS)}"
        )


RANK_PAIR: Final = Task(
    name="rank-pair",
    summary="says which of two items a user likes more",
    ranks_catalogue=False,
    shows_candidates=True,
    select=("auc", "loss"),
    rows=("window",),
    packs=True,
    answer_items=3,  # two titles, and their wording
    policies=("pairs",),
    candidates="two candidates ({})",
    baselines=("pop",),
    own_formats={
        "rank-pairs": 'with a wording such as "games" as its template, and train.select = "auc" '
        'or "loss"'
    },
    unfit_formats={"semantic-ids": "ranks titles; it has none"},
    unused={
        ("eval", "decode"): _NO_SEARCH,
        ("eval", "seen"): _NO_SEARCH,
        ("eval", "cutoffs"): _NO_SEARCH,
        ("eval", "auc"): 'task "rank-pair" has it in every report',
    },
    check_method=check_method,
)
