"""Nearest neighbours by a blocked product and top-k, with every row as a candidate.

N rows, D features, Q queries. Squared distances of float32 rows lose what is small beside the rows themselves; rows
are given around their mean, and queries whose neighbours are nearer than the rounding are searched again in float64.
"""

import torch
from torch import Tensor

# Distances that are held at once.
BLOCK_BYTES = 16 * 2**20
# Each block reads all rows: so many queries make it worth that, whatever memory they take beside so many rows.
LEAST_QUERIES = 64
# A squared distance of less than so many roundings of the squares that it is the difference of is not trusted.
ROUNDINGS = 64


def nearest(rows: Tensor, k: int, queries: Tensor) -> Tensor:
    """The nearest other rows of some rows.

    Args:
        rows: (N, D) float32 around their mean, finite.
        k: less than N.
        queries: (Q,) positions of the rows that are asked for.

    Returns:
        (Q, k) int32 positions, nearest first, the row itself left out.
    """
    squares = squared_norms(rows)
    at_once = max(LEAST_QUERIES, BLOCK_BYTES // (4 * len(rows)))
    found = torch.empty(len(queries), k, dtype=torch.int32, device=rows.device)
    for first in range(0, len(queries), at_once):
        block = queries[first : first + at_once]
        distances, nearest_of = _search(rows, squares, block, k)
        found[first : first + at_once] = nearest_of
        rounding = torch.finfo(rows.dtype).eps * (squares[block] + squares[nearest_of[:, 0]])
        unsure = distances[:, 0] + squares[block] < ROUNDINGS * rounding
        if unsure.any():
            again = unsure.nonzero().flatten()
            found[first + again] = _exactly(rows, block[again], k).int()
    return found


def squared_norms(rows: Tensor) -> Tensor:
    """(N,) of each row, without a second copy of them."""
    return torch.cat([block.square().sum(dim=1) for block in rows.split(2048)])


def _search(rows: Tensor, squares: Tensor, block: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Squared distances, less the query's own square, and positions."""
    distances = torch.addmm(squares, rows[block], rows.T, alpha=-2)
    distances[torch.arange(len(block), device=rows.device), block] = torch.inf
    return distances.topk(k, largest=False)


def _exactly(rows: Tensor, block: Tensor, k: int) -> Tensor:
    """The neighbours of a block in float64, chunk by chunk of the candidates."""
    asked = rows[block].double()
    distances = torch.cat(
        [(chunk.square().sum(dim=1) - 2 * asked @ chunk.T) for part in rows.split(4096) for chunk in [part.double()]],
        dim=1,
    )
    distances[torch.arange(len(block), device=rows.device), block] = torch.inf
    return distances.topk(k, largest=False).indices
