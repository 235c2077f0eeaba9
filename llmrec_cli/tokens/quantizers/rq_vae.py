"""RQ-VAE: an autoencoder whose latent is quantized level by level (arXiv:2305.05065, TIGER)."""

from __future__ import annotations

from typing import TYPE_CHECKING

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


class RqVaeOptions(AutoencoderOptions):
    """Residual quantization inside an autoencoder."""

    latent: int = Field(default=32, ge=1, description="width of what is quantized")
    commitment: float = Field(
        default=0.25, ge=0, description="weight of the encoder's distance from its codes"
    )


def _fit(
    options: RqVaeOptions, vectors_ID: Tensor, size: Size, seed: int, advance: Advance
) -> Tensors:
    import torch
    from torch import nn

    from llmrec_cli.tokens.quantizers._autoencoder import (
        Training,
        make_autoencoder,
        train_autoencoder,
    )
    from llmrec_cli.tokens.quantizers._kmeans import find_nearest_codes, fit_kmeans

    model = make_autoencoder(vectors_ID, options.hidden, options.latent, seed)
    generator = torch.Generator().manual_seed(seed)
    first = torch.randperm(len(vectors_ID), generator=generator)[
        : max(options.train_batch, 4 * size.codes)
    ]
    with torch.no_grad():  # codebooks start from k-means of the first latents
        left_NK, books = (
            model.encoder(model.standardize(vectors_ID[first.to(vectors_ID.device)])),
            [],
        )
        for level in range(size.levels):
            books.append(fit_kmeans(left_NK, size.codes, 20, seed + level))
            left_NK = left_NK - books[-1][find_nearest_codes(left_NK, books[-1])[0]]
    book_LCK = nn.Parameter(torch.stack(books))
    used_LC = torch.zeros(book_LCK.shape[:2], dtype=torch.int64, device=vectors_ID.device)

    def quantize(latent_NK: Tensor) -> tuple[Tensor, Tensor]:
        left_NK, total_NK = latent_NK, torch.zeros_like(latent_NK)
        added = latent_NK.new_zeros(())
        for level, book_CK in enumerate(book_LCK):
            code_N, _ = find_nearest_codes(left_NK.detach(), book_CK.detach())
            used_LC[level] += torch.bincount(code_N, minlength=size.codes)
            chosen_NK = book_CK[code_N]
            added = added + ((chosen_NK - left_NK.detach()) ** 2).mean()
            added = added + options.commitment * ((chosen_NK.detach() - left_NK) ** 2).mean()
            left_NK = left_NK - chosen_NK.detach()
            total_NK = total_NK + chosen_NK.detach()
        return latent_NK + (total_NK - latent_NK).detach(), added

    def refresh(latent_NK: Tensor) -> None:
        """Codes that nothing used in an epoch move to residuals of its last batch."""
        left_NK = latent_NK
        for level in range(size.levels):
            book_CK = book_LCK.data[level]
            dead = (used_LC[level] == 0).nonzero()[:, 0]
            drawn = torch.randperm(len(left_NK), generator=generator)[: len(dead)]
            book_CK[dead[: len(drawn)]] = left_NK[drawn.to(left_NK.device)]
            left_NK = left_NK - book_CK[find_nearest_codes(left_NK, book_CK)[0]]
        used_LC.zero_()

    training = Training(options.epochs, options.train_batch, options.learning_rate, seed)
    train_autoencoder(model, quantize, [book_LCK], vectors_ID, training, advance, refresh)
    return {"codebooks": book_LCK.detach(), **model.state_dict()}


def _encode(options: RqVaeOptions, tensors: Tensors, vectors_ID: Tensor, size: Size) -> Codes:
    import torch

    from llmrec_cli.tokens.quantizers._autoencoder import load_autoencoder, measure_loss
    from llmrec_cli.tokens.quantizers._residual import quantize_residual

    width = vectors_ID.shape[1]
    model = load_autoencoder(tensors, width, options.hidden, options.latent)
    with torch.no_grad():
        latent_IK = model.encoder(model.standardize(vectors_ID))
    found = quantize_residual(latent_IK, tensors["codebooks"])
    lost = measure_loss(model, vectors_ID, [latent_IK - left_IK for left_IK in found.left_LID])
    return Codes(found.code_IL, found.last_IK, tensors["codebooks"][-1], lost)


QUANTIZER = Quantizer(
    summary="an autoencoder with a residual-quantized latent (TIGER)",
    options=RqVaeOptions,
    fit=_fit,
    encode=_encode,
    work=lambda options, size: int(options.epochs),
)
