"""The tokenizer's code vectors as the language model reads them: frozen, summed over depth, projected.

Source: DualToken, arXiv 2503.14324, section 3.3. V image positions, D depths, K codes, C channels of a code,
G codebooks of a stream (one for all depths, or one for each), H channels of the trunk.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer
from torch import Tensor, nn

from dualtoken.model.quantize.finite_scalar import ScalarQuantizer
from dualtoken.model.quantize.residual import ResidualQuantizer
from dualtoken.model.quantize.split import SplitQuantizer

AnyQuantizer = ResidualQuantizer | SplitQuantizer | ScalarQuantizer


class CodeVectors(nn.Module):
    """One stream's code vectors: `table[g, k]` is what code k adds to the sum of its position."""

    table: Float[Tensor, "G K C"]

    def __init__(self, num_codebooks: int, num_codes: int, width: int) -> None:
        super().__init__()
        self.register_buffer("table", torch.zeros(num_codebooks, num_codes, width))

    def load_quantizer(self, quantizer: AnyQuantizer) -> None:
        """Take the vectors of a tokenizer's quantiser."""
        self.table.copy_(code_table(quantizer))

    @torch.no_grad()
    def standardize(self, codes: Integer[Tensor, "V D"]) -> None:
        """Shift and scale the vectors: those of these positions get mean 0 and variance 1 in each channel.

        Tokenizers' vectors may have one channel that is never 0 and another that hardly moves, and streams
        may differ in scale: the trunk would learn from the larger ones first. A channel that never moves is
        shifted alone.
        """
        vectors = self(codes)[:, -1]
        deviation = vectors.std(dim=0)
        deviation[deviation == 0] = 1
        self.table.sub_(vectors.mean(dim=0) / codes.shape[1]).div_(deviation)

    def forward(self, codes: Integer[Tensor, "V D"]) -> Float[Tensor, "V D C"]:
        """Return the sums of the codes up to each depth; the last is the position's own vector."""
        num_codebooks, num_codes, width = self.table.shape
        rows = codes.long()
        if num_codebooks > 1:
            rows = rows + num_codes * torch.arange(num_codebooks, device=rows.device)
        return F.embedding(rows, self.table.view(-1, width)).float().cumsum(dim=1)


@torch.no_grad()
def code_table(quantizer: AnyQuantizer) -> Float[Tensor, "G K C"]:
    """Return what each code adds to its position's vector: a table for all depths, or one for each."""
    if isinstance(quantizer, ResidualQuantizer):
        return quantizer.codebooks.clone()
    # Each depth has channels of its own: the vector of one code at all depths holds what it is at each.
    depth = quantizer.config.depth
    codes = torch.arange(quantizer.config.num_codes)
    at_all_depths = quantizer.lookup(codes[None, :, None].expand(-1, -1, depth))[0]  # (K, C)
    tables = torch.zeros(depth, *at_all_depths.shape)
    own_width = at_all_depths.shape[1] // depth
    for place in range(depth):
        own = slice(place * own_width, (place + 1) * own_width)
        tables[place, :, own] = at_all_depths[:, own]
    return tables


class VisualProjector(nn.Module):
    """Code vectors of all streams that are read, side by side, to a position of the trunk."""

    def __init__(self, code_width: int, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(code_width, width)
        self.out = nn.Linear(width, width)

    def forward(self, vectors: Float[Tensor, "V _"]) -> Float[Tensor, "V H"]:
        """Project with one hidden layer and a GELU."""
        return self.out(F.gelu(self.up(vectors)))
