"""What tokenizers over a `Quantizer` share."""

from __future__ import annotations

from torch import Tensor

from blip3o.tokenizers.base import TrainableTokenizer
from blip3o.tokenizers.quantizers import Quantizer


class QuantizedTokenizer(TrainableTokenizer):
    """A tokenizer whose ids are those of a quantizer.

    Attributes:
        quantizer: snaps the encoder's vectors to codes; one vector a cell of the grid.
    """

    quantizer: Quantizer

    @property
    def codebook_size(self) -> int:
        """Number of different ids."""
        return self.quantizer.codebook_size

    @property
    def feature_dim(self) -> int:
        """Width of a token's feature: a code's."""
        return self.quantizer.dim

    @property
    def tokens_per_cell(self) -> int:
        """Tokens of each cell of the grid: those that name a vector."""
        return self.quantizer.tokens_per_vector

    def embed(self, ids: Tensor) -> Tensor:
        """Codes (B, N, D) of ids (B, N), in the precision of the parameters."""
        self.check_ids(ids)
        return self.quantizer.codes(ids).to(next(self.parameters()).dtype)
