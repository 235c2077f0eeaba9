"""The interface of a quantizer: a value that ``llmrec tokenize`` uses.

A file of this folder defines one module-level ``QUANTIZER = Quantizer(...)``; the file name is the
quantizer's.  Options are parsed without torch, so a file imports it inside its functions.

Shape suffixes: I items, D width of a vector, L levels, C codes of a level, K width at a level.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from llmrec_cli.methods.contract import Options
from llmrec_cli.utils.progress import Advance

if TYPE_CHECKING:
    from torch import Tensor

Tensors = Mapping[str, "Tensor"]
"""What a fitted quantizer is stored as, by name."""


@dataclass(frozen=True)
class Size:
    """How long an ID is, and how many values each of its tokens may have."""

    levels: int  # tokens of an ID
    codes: int  # values of a token


@dataclass(frozen=True)
class Codes:
    """The codes of some items, and what the choice of the last one was between."""

    code_IL: Tensor  # int64, 0..C-1
    last_IK: Tensor  # what the last level quantized
    last_CK: Tensor  # what its codes stand for; an item's code is the nearest one
    error_L: list[float]  # share of the vectors' variance that is lost up to each level


class AutoencoderOptions(Options):
    """Options of every quantizer that trains an autoencoder."""

    hidden: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(strict=False)] = Field(
        default=(512, 256, 128), description="widths of the encoder; the decoder mirrors it"
    )
    epochs: int = Field(default=200, ge=1, description="passes over the items")
    train_batch: int = Field(default=1024, ge=1, description="items per update")
    learning_rate: float = Field(default=1e-3, gt=0, description="learning rate of AdamW")


@dataclass(frozen=True)
class Quantizer:
    """One way to turn vectors into codes, level by level.

    ``fit(options, vectors_ID, size, seed, advance)`` gives tensors to store, on the device of the
    vectors; the same arguments give the same tensors.  ``advance`` counts its ``work`` units.
    ``encode(options, tensors, vectors_ID, size)`` gives the codes of any vectors of that width.
    ``check(options, size)`` says why the options do not fit the size; None: they do.
    """

    summary: str  # one line, with the paper
    options: type[Options]
    fit: Callable[[Any, Tensor, Size, int, Advance], Tensors]
    encode: Callable[[Any, Tensors, Tensor, Size], Codes]
    work: Callable[[Any, Size], int]
    check: Callable[[Any, Size], str | None] = lambda options, size: None
