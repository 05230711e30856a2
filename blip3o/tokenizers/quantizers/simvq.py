"""SimVQ: a codebook seen through one learned linear layer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blip3o.tokenizers.quantizers.base import Quantizer, check_least


class SimVQ(Quantizer):
    """Vector quantisation with a codebook seen through one learned linear layer (SimVQ, arXiv 2411.02038).

    A step moves the whole codebook at once, which keeps its codes in use. The nearest code is the one of the smallest
    cosine distance, or Euclidean distance without `normalize`.

    Args:
        codebook_size: number of codes.
        dim: width of a code.
        normalize: compare vectors and codes on the unit sphere, as TA-Tok does.
        commitment_weight: weight of the term that pulls vectors to their codes; the term that pulls codes has 1.
        temperature: in training, ids are drawn from softmax(cosine / temperature), by torch's global generator as
            dropout is, instead of taking the nearest; needs `normalize`.

    Raises:
        ValueError: if there are fewer than two codes, a number is out of range, or the temperature lacks `normalize`.
    """

    def __init__(
        self,
        *,
        codebook_size: int = 512,
        dim: int = 16,
        normalize: bool = False,
        commitment_weight: float = 0.25,
        temperature: float | None = None,
    ) -> None:
        super().__init__()
        check_least(2, codebook_size=codebook_size)
        check_least(1, dim=dim)
        check_least(0, commitment_weight=commitment_weight)
        if temperature is not None and (temperature <= 0 or not normalize):
            raise ValueError(
                f"temperature ({temperature}) must be positive and needs normalize=True; None takes the nearest code."
            )
        self.normalize = normalize
        self.temperature = temperature
        self.commitment_weight = commitment_weight
        self.codebook = nn.Embedding(codebook_size, dim)
        nn.init.normal_(self.codebook.weight, std=dim**-0.5 if normalize else 1.0)
        self.codebook_proj = nn.Linear(dim, dim)
        with torch.no_grad():  # in float32: torch has no QR decomposition in half precision
            self.codebook_proj.weight.copy_(nn.init.orthogonal_(torch.empty(dim, dim, dtype=torch.float32)))
        nn.init.zeros_(self.codebook_proj.bias)

    @property
    def codebook_size(self) -> int:
        """Number of codes."""
        return self.codebook.num_embeddings

    @property
    def dim(self) -> int:
        """Width of a vector."""
        return self.codebook.embedding_dim

    def projected(self) -> Tensor:
        """The codes that are compared with: (codebook_size, dim)."""
        codes = self.codebook_proj(self.codebook.weight)
        return F.normalize(codes, dim=-1) if self.normalize else codes

    def quantize(self, vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Nearest or drawn codes; the loss is the squared distance, pulling codes and (weighted) vectors."""
        if self.normalize:
            vectors = F.normalize(vectors, dim=-1)
        projected = self.projected()
        ids = self._choose(vectors.detach(), projected.detach())
        codes = F.embedding(ids, projected)
        loss = F.mse_loss(codes, vectors.detach()) + self.commitment_weight * F.mse_loss(vectors, codes.detach())
        return vectors + (codes - vectors).detach(), ids, loss

    def codes(self, ids: Tensor) -> Tensor:
        """Codes of ids."""
        return F.embedding(ids, self.projected())

    def _choose(self, vectors: Tensor, projected: Tensor) -> Tensor:
        """Ids (...) of the codes for vectors (..., dim), compared in float32 also under autocast."""
        with torch.autocast("cpu" if vectors.is_meta else vectors.device.type, enabled=False):
            return self._nearest_or_drawn(vectors.float(), projected.float())

    def _nearest_or_drawn(self, vectors: Tensor, projected: Tensor) -> Tensor:
        if self.normalize:
            cosines = vectors @ projected.T
            if self.temperature is None or not self.training:
                return cosines.argmax(-1)
            shares = (cosines / self.temperature).softmax(-1)
            return torch.multinomial(shares.flatten(0, -2), 1).view(shares.shape[:-1])
        # |v - c|^2 = |v|^2 - 2 v.c + |c|^2; |v|^2 is the same for every code.
        return (projected.square().sum(-1) - 2 * vectors @ projected.T).argmin(-1)
