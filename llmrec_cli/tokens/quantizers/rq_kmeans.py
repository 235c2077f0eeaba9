"""RQ-KMeans: k-means on the vectors, then again and again on what is left of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from llmrec_cli.methods.contract import Options
from llmrec_cli.tokens.quantizers.contract import Codes, Quantizer, Size, Tensors
from llmrec_cli.utils.progress import Advance

if TYPE_CHECKING:
    from torch import Tensor


class RqKmeansOptions(Options):
    """Residual k-means; nothing is trained."""

    rounds: int = Field(default=50, ge=1, description="most rounds of Lloyd's algorithm at a level")
    balanced: bool = Field(
        default=False,
        description="give all codes of a level about equally many items: fewer items share their "
        "codes, and a little more of the vectors is lost",
    )


def _fit(
    options: RqKmeansOptions, vectors_ID: Tensor, size: Size, seed: int, advance: Advance
) -> Tensors:
    import torch
    from torch import Tensor

    from llmrec_cli.tokens.quantizers._kmeans import (
        balance_clusters,
        find_nearest_codes,
        fit_kmeans,
    )

    left_ID, books, prices = vectors_ID, list[Tensor](), list[Tensor]()
    for level in range(size.levels):
        book_CD = fit_kmeans(left_ID, size.codes, options.rounds, seed + level)
        price_C = book_CD.new_zeros(len(book_CD))
        if options.balanced:
            book_CD, price_C = balance_clusters(left_ID, book_CD)
        left_ID = left_ID - book_CD[find_nearest_codes(left_ID, book_CD, price_C)[0]]
        books.append(book_CD)
        prices.append(price_C)
        advance(1)
    found = {"codebooks": torch.stack(books), "mean": vectors_ID.mean(dim=0)}
    return found | ({"prices": torch.stack(prices)} if options.balanced else {})


def _encode(options: RqKmeansOptions, tensors: Tensors, vectors_ID: Tensor, size: Size) -> Codes:
    from llmrec_cli.tokens.quantizers._residual import quantize_residual

    variance = float(((vectors_ID - tensors["mean"]) ** 2).sum(dim=1).mean())
    found = quantize_residual(vectors_ID, tensors["codebooks"], tensors.get("prices"))
    lost = [float((left_ID**2).sum(dim=1).mean()) for left_ID in found.left_LID]
    return Codes(
        found.code_IL,
        found.last_IK,
        tensors["codebooks"][-1],
        [one / variance if variance else 0.0 for one in lost],
    )


QUANTIZER = Quantizer(
    summary="k-means, level by level on the residuals",
    options=RqKmeansOptions,
    fit=_fit,
    encode=_encode,
    work=lambda options, size: size.levels,
)
