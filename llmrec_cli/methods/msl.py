"""MSL: softmax over the legal tokens only (arXiv:2504.04178), with adaptive temperature (ATS)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from llmrec_cli.errors import RecipeError
from llmrec_cli.methods.contract import Batch, Forward, LossSums, Method, Options, State

if TYPE_CHECKING:
    from llmrec_cli.tensors.trie import Trie


class MslOptions(Options):
    """Options of MSL; the temperature is dimensionless and divides the logits."""

    tau: Annotated[float, Field(gt=0)] | Literal["ats"] = Field(
        default=1.0, description='softmax temperature > 0, or "ats" to adapt it while training'
    )
    ats_eta: float = Field(
        default=0.25, gt=0, lt=1, description="wanted mean probability of the first token, (0, 1)"
    )
    ats_rate: float = Field(
        default=0.05, gt=0, le=1, description="step of tau's moving average per update, (0, 1]"
    )
    ats_start: float = Field(default=1.5, gt=0, description="tau before the first update, > 0")
    ats_min: float = Field(default=1.5, gt=0, description="smallest tau, > 0")
    ats_max: float = Field(default=5.0, gt=0, description="largest tau, >= ats_min")

    @model_validator(mode="after")
    def _ordered(self) -> MslOptions:
        if self.ats_min > self.ats_max:
            raise ValueError(f"ats_min = {self.ats_min:g} must be <= ats_max = {self.ats_max:g}")
        return self


def idle(options: MslOptions) -> dict[str, str]:
    """ATS's options, where tau is fixed."""
    if options.tau == "ats":
        return {}
    why = f'tau = {options.tau:g} is fixed, and not "ats"'
    return {name: why for name in MslOptions.model_fields if name.startswith("ats_")}


def init_state(options: MslOptions, trie: Trie) -> State:
    """Start value of tau.

    Raises:
        RecipeError: ATS cannot work on this catalogue: it needs ``C = ln(N * eta) > 0``.
    """
    if options.tau != "ats":
        return {}
    fan_out = _first_fan_out(trie)
    if fan_out * options.ats_eta <= 1:
        raise RecipeError(
            f"ats_eta = {options.ats_eta:g}: ats_eta * N must be > 1, and the first branching node "
            f"has N = {fan_out} legal tokens; " + _advice(fan_out)
        )
    return {"tau": options.ats_start}


def loss(forward: Forward, batch: Batch, options: MslOptions, state: State) -> LossSums:
    """``-sum_t log softmax_{V_t}(z_t / tau)(y_t)``.

    A fixed tau divides by all response positions; ATS by the branching ones, and multiplies by tau.
    """
    from llmrec_cli.tensors.losses import first_token_stats
    from llmrec_cli.tensors.masked import legal_logits
    from llmrec_cli.tensors.trie import first_branching_node

    legal = legal_logits(
        forward.hidden_PD,
        forward.head,
        batch.trie,
        batch.node_P,
        batch.target_P,
        dense_head=batch.dense_head,
    )
    if options.tau != "ats":
        total = legal.nll(tau=options.tau).sum()  # MSL eq. 5, arXiv:2504.04178
        return LossSums(total, count=batch.positions)
    tau = state["tau"]
    total = tau * legal.nll(tau=tau).sum()  # MSL eq. 8: the outer tau keeps the gradient's scale
    stats = first_token_stats(legal, legal.node_A == first_branching_node(batch.trie))
    return LossSums(total, count=len(legal.node_A), stats=stats)


def update_state(
    state: State, stats: Mapping[str, float], options: MslOptions, trie: Trie
) -> State:
    """One step of tau's moving average from the first tokens of a whole global batch."""
    from llmrec_cli.tensors.losses import adaptive_temperature

    if options.tau != "ats" or not stats["first_rows"]:
        return state
    wanted = adaptive_temperature(stats, fan_out=_first_fan_out(trie), eta=options.ats_eta)
    wanted = min(max(wanted, options.ats_min), options.ats_max)
    return {"tau": (1 - options.ats_rate) * state["tau"] + options.ats_rate * wanted}


def _first_fan_out(trie: Trie) -> int:
    from llmrec_cli.tensors.trie import first_branching_node

    node = first_branching_node(trie)
    return int(trie.edge_start_N1[node + 1]) - int(trie.edge_start_N1[node])


def _advice(fan_out: int) -> str:
    return f"set ats_eta > {1 / fan_out:.3g}, or a fixed tau" if fan_out > 1 else "set a fixed tau"


METHOD = Method(
    summary="softmax over legal tokens only, masked before the softmax (arXiv:2504.04178)",
    options=MslOptions,
    loss=loss,
    legal_only=lambda options: True,
    idle=idle,
    init_state=init_state,
    update_state=update_state,
)
