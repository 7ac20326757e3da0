"""Exact nearest neighbours by brute force: blocked matrix products and top-k.

N rows, D features, Q queries. float32 dot products lose distances that are small compared with the norms of the rows.
So the rows are mean-centred, and queries whose nearest neighbour lies within rounding error are repeated in float64.
"""

import torch
from torch import Tensor

# Memory for the distances of a block of queries.
BLOCK_BYTES = 16 * 2**20
# Each block reads all rows: smaller blocks would cost more time than they save memory.
MIN_QUERIES = 64
# Squared distances below this multiple of their rounding error are recomputed in float64.
ROUNDINGS = 64


def nearest(rows: Tensor, k: int, queries: Tensor) -> Tensor:
    """The k nearest neighbours of the query rows.

    Args:
        rows: (N, D) float32, mean-centred, finite.
        k: less than N.
        queries: (Q,) positions of the query rows.

    Returns:
        (Q, k) int32 positions, nearest first, without the row itself.
    """
    squares = squared_norms(rows)
    at_once = max(MIN_QUERIES, BLOCK_BYTES // (4 * len(rows)))
    neighbors = torch.empty(len(queries), k, dtype=torch.int32, device=rows.device)
    for first in range(0, len(queries), at_once):
        block = queries[first : first + at_once]
        distances, positions = _search(rows, squares, block, k)
        neighbors[first : first + at_once] = positions
        rounding = torch.finfo(rows.dtype).eps * (squares[block] + squares[positions[:, 0]])
        unsure = distances[:, 0] + squares[block] < ROUNDINGS * rounding
        if unsure.any():
            repeated = unsure.nonzero().flatten()
            neighbors[first + repeated] = _search_float64(rows, block[repeated], k).int()
    return neighbors


def squared_norms(rows: Tensor) -> Tensor:
    """(N,) squared norms, in blocks, which avoids a full copy of the rows."""
    return torch.cat([block.square().sum(dim=1) for block in rows.split(2048)])


def _search(rows: Tensor, squares: Tensor, block: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Squared distances (less the squared norm of the query) and positions of the k nearest rows."""
    distances = torch.addmm(squares, rows[block], rows.T, alpha=-2)
    distances[torch.arange(len(block), device=rows.device), block] = torch.inf
    return distances.topk(k, largest=False)


def _search_float64(rows: Tensor, block: Tensor, k: int) -> Tensor:
    """Positions of the k nearest rows, computed in float64 over chunks of candidates."""
    targets = rows[block].double()
    distances = torch.cat(
        [(chunk.square().sum(dim=1) - 2 * targets @ chunk.T) for part in rows.split(4096) for chunk in [part.double()]],
        dim=1,
    )
    distances[torch.arange(len(block), device=rows.device), block] = torch.inf
    return distances.topk(k, largest=False).indices
