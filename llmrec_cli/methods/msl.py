"""MSL: softmax over the legal tokens only (arXiv:2504.04178), with adaptive temperature (ATS)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from llmrec_cli.errors import RecipeError
from llmrec_cli.methods.contract import Batch, Forward, LossSums, Method, Options, Spell, State

if TYPE_CHECKING:
    from llmrec_cli.tensors.trie import Trie

RECENT = 0.02
"""Step of the moving average over updates by which ``warning`` judges: half of it is 35 of them."""


class MslOptions(Options):
    """Options of MSL; the temperature is dimensionless and divides the logits."""

    tau: Annotated[float, Field(gt=0)] | Literal["ats"] = Field(
        default=1.0, description='softmax temperature > 0, or "ats" to adapt it during training'
    )
    ats_eta: float = Field(
        default=0.25,
        gt=0,
        lt=1,
        description="ATS: desired mean probability of the target at the node with the most legal "
        "tokens, in (0, 1)",
    )
    ats_rate: float = Field(
        default=0.05,
        gt=0,
        le=1,
        description="ATS: step of tau's moving average per update, in (0, 1]",
    )
    ats_start: float = Field(
        default=1.5, gt=0, description="ATS: tau before the first update, in ats_min..ats_max"
    )
    ats_min: float = Field(default=1.5, gt=0, description="ATS: smallest tau")
    ats_max: float = Field(default=5.0, gt=0, description="ATS: largest tau, at least ats_min")

    @model_validator(mode="after")
    def _check_order(self) -> MslOptions:
        if self.ats_min > self.ats_max:
            raise ValueError(f"ats_min = {self.ats_min:g} must be <= ats_max = {self.ats_max:g}")
        if self.tau == "ats" and not self.ats_min <= self.ats_start <= self.ats_max:
            raise ValueError(
                f"ats_start = {self.ats_start:g} must be in ats_min = {self.ats_min:g} .. "
                f"ats_max = {self.ats_max:g}"
            )
        return self


def _idle(options: MslOptions) -> dict[str, str]:
    """ATS's options, where tau is fixed."""
    if options.tau == "ats":
        return {}
    why = f'tau = {options.tau:g} is fixed, and not "ats"'
    return {name: why for name in MslOptions.model_fields if name.startswith("ats_")}


def init_state(options: MslOptions, trie: Trie) -> State:
    """Start values: ``tau``, and ``tau_outside``, of which ``update_state`` says what it is.

    Raises:
        RecipeError: ATS cannot work on this catalogue: it needs ``C = ln(N * eta) > 0``.
    """
    if options.tau != "ats":
        return {}
    fan_out = _widest_fan_out(trie)
    if fan_out * options.ats_eta <= 1:
        raise RecipeError(
            f"ats_eta = {options.ats_eta:g}: ats_eta * N must be > 1, and the widest choice of the "
            f"catalogue has N = {fan_out} legal tokens; " + _advice(fan_out)
        )
    return {"tau": options.ats_start, "tau_outside": 0.0}


def loss(forward: Forward, batch: Batch, options: MslOptions, state: State) -> LossSums:
    """``-sum_t log softmax_{V_t}(z_t / tau)(y_t)``.

    A fixed tau divides by all response positions; ATS by the branching ones, and multiplies by tau.
    """
    from llmrec_cli.tensors.legal_softmax import legal_logits
    from llmrec_cli.tensors.losses import choice_stats
    from llmrec_cli.tensors.trie import widest_node

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
    stats = choice_stats(legal, legal.node_A == widest_node(batch.trie))
    return LossSums(total, count=len(legal.node_A), stats=stats)


def update_state(
    state: State, stats: Mapping[str, float], options: MslOptions, trie: Trie
) -> State:
    """One step of tau's moving average, from the widest choice in a whole global batch.

    ``tau_outside`` is the share of recent updates whose wanted tau lay outside the limits: a moving
    average with the step ``RECENT``.  A batch without a row at that node changes nothing.
    """
    wanted = _find_wanted_tau(stats, options, trie)
    if wanted is None:
        return state
    kept = _clamp_tau(wanted, options)
    moved = (1 - options.ats_rate) * state["tau"] + options.ats_rate * kept
    return {
        "tau": _clamp_tau(moved, options),  # rounding alone moves it out of the limits
        "tau_outside": (1 - RECENT) * state["tau_outside"] + RECENT * (wanted != kept),
    }


def _metrics(
    stats: Mapping[str, float], count: float, options: MslOptions, trie: Trie
) -> dict[str, float]:
    """``tau_wanted``: what ATS asks for at this update, before the limits."""
    wanted = _find_wanted_tau(stats, options, trie)
    return {} if wanted is None else {"tau_wanted": wanted}


def _warning(logged: Mapping[str, float], options: MslOptions) -> str | None:
    """A tau that stays at a limit: it adapts to nothing."""
    share = logged.get("tau_outside", 0.0)
    if share <= 0.5:
        return None
    now = f", now at {logged['tau_wanted']:.3g}" if "tau_wanted" in logged else ""
    return (
        f"the wanted tau lay outside ats_min = {options.ats_min:g} .. ats_max = "
        f"{options.ats_max:g} in {share:.0%} of the recent updates{now}: tau is held at a "
        "limit; move the limit, change ats_eta, or set a fixed tau"
    )


def describe(options: MslOptions, trie: Trie, spell: Spell) -> str | None:
    """At which choice ATS measures: its tokens, its N, and the share of items that pass it."""
    from llmrec_cli.tensors.trie import items_below, tokens_to, widest_node

    if options.tau != "ats":
        return None
    node = widest_node(trie)
    before, below = tokens_to(trie, node), items_below(trie, node)
    behind = f", behind {spell(before)!r}" if before else ""
    return (
        f"ATS sets tau by the widest choice of the catalogue: token {len(before) + 1} of an item"
        f"{behind}, N = {_widest_fan_out(trie):,} legal tokens; {below:,} of {trie.n_items:,} "
        f"items ({below / trie.n_items:.1%}) pass it"
    )


def _find_wanted_tau(stats: Mapping[str, float], options: MslOptions, trie: Trie) -> float | None:
    """The tau that a global batch asks for, not clamped; None without ATS, or without a row."""
    from llmrec_cli.tensors.losses import adaptive_temperature

    if options.tau != "ats" or not stats["choice_rows"]:
        return None
    return adaptive_temperature(stats, _widest_fan_out(trie), options.ats_eta)


def _clamp_tau(tau: float, options: MslOptions) -> float:
    return min(max(tau, options.ats_min), options.ats_max)


def _widest_fan_out(trie: Trie) -> int:
    return int(trie.edge_start_N1.diff().max())


def _advice(fan_out: int) -> str:
    return f"set ats_eta > {1 / fan_out:.3g}, or a fixed tau" if fan_out > 1 else "set a fixed tau"


METHOD = Method(
    summary="softmax over legal tokens only, masked before the softmax (arXiv:2504.04178)",
    options=MslOptions,
    loss=loss,
    legal_only=lambda options: True,
    idle=_idle,
    init_state=init_state,
    update_state=update_state,
    metrics=_metrics,
    warning=_warning,
    describe=describe,
)
