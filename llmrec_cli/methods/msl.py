"""MSL: softmax over the legal tokens only (arXiv:2504.04178), with adaptive temperature (ATS)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from llmrec_cli.errors import RecipeError
from llmrec_cli.methods.contract import Batch, Forward, LossSums, Method, Options, State

if TYPE_CHECKING:
    from llmrec_cli.tensors.trie import Trie


class MslOptions(Options):
    """Options of MSL; the temperature is dimensionless and divides the logits."""

    tau: float | Literal["ats"] = Field(
        default=1.0, description='softmax temperature > 0, or "ats" to adapt it while training'
    )
    ats_eta: float = Field(
        default=0.25, gt=0, lt=1, description="wanted average probability of the first token, (0, 1)"
    )
    ats_rate: float = Field(
        default=0.05, gt=0, le=1, description="step of tau's moving average per update, (0, 1]"
    )
    ats_start: float = Field(default=1.5, gt=0, description="tau before the first update, > 0")
    ats_min: float = Field(default=1.5, gt=0, description="smallest tau, > 0")
    ats_max: float = Field(default=5.0, gt=0, description="largest tau, > 0")


def init_state(options: MslOptions, trie: Trie) -> State:
    """Start value of tau; checks that ATS can work on this catalogue (``N * eta > 1``)."""
    if options.tau != "ats":
        return {}
    fan_out = _first_fan_out(trie)
    if fan_out * options.ats_eta <= 1:
        raise RecipeError(
            f"[align.msl] ats_eta = {options.ats_eta:g}: {fan_out} legal first tokens * ats_eta must "
            f"be > 1 (C = ln(N * eta) > 0, METHODS section 3); set ats_eta > {1 / fan_out:.3g} or a "
            "fixed tau"
        )
    return {"tau": options.ats_start}


def loss(forward: Forward, batch: Batch, options: MslOptions, state: State) -> LossSums:
    """MSL with a fixed tau divides by all response positions; ATS by the branching ones."""
    from llmrec_cli.tensors.losses import first_token_stats
    from llmrec_cli.tensors.masked import legal_logits
    from llmrec_cli.tensors.trie import first_branching_node

    legal = legal_logits(forward.hidden_PD, forward.head, batch.trie, batch.node_P, batch.target_P)
    if options.tau != "ats":
        nll_A = legal.nll(tau=options.tau)  # MSL eq. 5, arXiv:2504.04178
        return LossSums(nll_A.sum(), count=len(batch.target_P))
    tau = state["tau"]
    total = tau * legal.nll(tau=tau).sum()  # MSL eq. 8: the outer tau keeps the gradient's scale
    stats = first_token_stats(legal, legal.node_A == first_branching_node(batch.trie))
    return LossSums(total, count=len(legal.node_A), stats=stats)


def update_state(
    state: State, stats: Mapping[str, float], options: MslOptions, trie: Trie
) -> State:
    """One step of tau's moving average from the first tokens of a whole global batch."""
    from llmrec_cli.tensors.losses import adaptive_temperature

    if options.tau != "ats":
        return state
    wanted = adaptive_temperature(stats, fan_out=_first_fan_out(trie), eta=options.ats_eta)
    wanted = min(max(wanted, options.ats_min), options.ats_max)
    return {"tau": (1 - options.ats_rate) * state["tau"] + options.ats_rate * wanted}


def _first_fan_out(trie: Trie) -> int:
    from llmrec_cli.tensors.trie import first_branching_node

    node = first_branching_node(trie)
    return int(trie.edge_start_N1[node + 1]) - int(trie.edge_start_N1[node])


METHOD = Method(
    summary="softmax over legal tokens only, masked before the softmax (arXiv:2504.04178)",
    options=MslOptions,
    loss=loss,
    init_state=init_state,
    update_state=update_state,
)
