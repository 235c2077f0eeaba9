"""FSQ: an autoencoder whose latent is rounded to a fixed grid (arXiv:2309.15505).

A token is a group of latent numbers.  To make the first token the coarsest, the decoder is trained
on beginnings of the groups (nested dropout, arXiv:1402.0915): how many it sees is drawn per row.

Shape suffixes: I items, N rows of a batch, L levels, G numbers of a group, C codes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from llmrec_cli.tokens.quantizers.contract import (
    AutoencoderOptions,
    Codes,
    Quantizer,
    Size,
    Tensors,
)
from llmrec_cli.utils.progress import Advance

if TYPE_CHECKING:
    from torch import Tensor


class FsqOptions(AutoencoderOptions):
    """Finite scalar quantization: no codebook is learned."""

    grid: Annotated[tuple[Annotated[int, Field(ge=2)], ...], Field(strict=False)] = Field(
        default=(4, 4, 4, 4),
        min_length=1,
        description="values of each number of a token; their product is `codes`",
    )


def _round(bounded: Tensor, grid_G: Tensor) -> tuple[Tensor, Tensor]:
    """The cell of each number of (-1, 1), and the middle of that cell."""
    digit = ((bounded + 1) / 2 * grid_G).floor().clamp(min=0).minimum(grid_G - 1)
    return digit, (2 * digit + 1) / grid_G - 1


def _fit(
    options: FsqOptions, vectors_ID: Tensor, size: Size, seed: int, advance: Advance
) -> Tensors:
    import torch

    from llmrec_cli.tokens.quantizers._autoencoder import (
        Training,
        make_autoencoder,
        train_autoencoder,
    )

    width = len(options.grid)
    model = make_autoencoder(vectors_ID, options.hidden, size.levels * width, seed)
    generator = torch.Generator().manual_seed(seed)
    grid_G = torch.tensor(options.grid, device=vectors_ID.device)

    def quantize(latent_NK: Tensor) -> tuple[Tensor, Tensor]:
        bounded_NLG = latent_NK.tanh().unflatten(1, (size.levels, width))
        _, middle_NLG = _round(bounded_NLG.detach(), grid_G)
        passed_NLG = bounded_NLG + (middle_NLG - bounded_NLG).detach()
        seen_N = torch.randint(1, size.levels + 1, (len(latent_NK),), generator=generator)
        kept_NL = torch.arange(size.levels) < seen_N[:, None]
        kept_NLG = passed_NLG * kept_NL.to(latent_NK.device)[:, :, None]
        return kept_NLG.flatten(1), latent_NK.new_zeros(())

    training = Training(options.epochs, options.train_batch, options.learning_rate, seed)
    train_autoencoder(model, quantize, [], vectors_ID, training, advance)
    return dict(model.state_dict())


def _encode(options: FsqOptions, tensors: Tensors, vectors_ID: Tensor, size: Size) -> Codes:
    import torch

    from llmrec_cli.tokens.quantizers._autoencoder import load_autoencoder, measure_loss

    grid, width = options.grid, len(options.grid)
    model = load_autoencoder(tensors, vectors_ID.shape[1], options.hidden, size.levels * width)
    with torch.no_grad():
        latent_IK = model.encoder(model.standardize(vectors_ID))
    bounded_ILG = latent_IK.tanh().unflatten(1, (size.levels, width))
    grid_G = torch.tensor(grid, device=vectors_ID.device)
    digit_ILG, middle_ILG = _round(bounded_ILG, grid_G)
    places = [math.prod(grid[at + 1 :]) for at in range(width)]
    place_G = torch.tensor(places, device=vectors_ID.device)
    code_IL = (digit_ILG.long() * place_G).sum(dim=2)
    digit_CG = torch.arange(size.codes, device=vectors_ID.device)[:, None] // place_G % grid_G
    beginnings = [middle_ILG.clone() for _ in range(size.levels)]
    for level, seen_ILG in enumerate(beginnings, start=1):
        seen_ILG[:, level:] = 0
    lost = measure_loss(model, vectors_ID, [seen_ILG.flatten(1) for seen_ILG in beginnings])
    return Codes(code_IL, bounded_ILG[:, -1], (2 * digit_CG + 1) / grid_G - 1, lost)


def _check(options: FsqOptions, size: Size) -> str | None:
    product = math.prod(options.grid)
    if product == size.codes:
        return None
    factors = " x ".join(map(str, options.grid))
    return f"grid = {list(options.grid)}: {factors} = {product}, expected codes = {size.codes}"


QUANTIZER = Quantizer(
    summary="an autoencoder with a latent on a fixed grid (FSQ)",
    options=FsqOptions,
    fit=_fit,
    encode=_encode,
    work=lambda options, size: int(options.epochs),
    check=_check,
)
