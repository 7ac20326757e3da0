"""k-means from many starts at once: each iteration is one matrix product for all that have not converged.

N rows, D features, K clusters, S starts, T candidates. The starts are scikit-learn's: greedy k-means++ (Arthur and
Vassilvitskii 2007) with the same draws from the same random state, and the same rules of convergence, so that both
find the same clusters but for rounding.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raysep.scoring.torch_knn import squared_norms

ITERATIONS, TOLERANCE = 300, 1e-4
# Scores of rows against centres that are held at once.
BLOCK_BYTES = 8 * 2**20


@dataclass(frozen=True)
class Found:
    """What came of the starts.

    Attributes:
        labels: (S, N) int64.
        centres: (S, K, D).
        inertia: (S,).
        iterations: of all starts together.
    """

    labels: Tensor
    centres: Tensor
    inertia: NDArray[np.float64]
    iterations: int


def kmeans(rows: Tensor, K: int, starts: int, seed: int) -> Found:
    """Cluster rows from several starts.

    Args:
        rows: (N, D) float32 around their mean, N >= K, finite.
        K: clusters.
        starts: S.
        seed: of the numpy random state that goes through all starts.
    """
    squares = squared_norms(rows)
    centres = _seeds(rows, squares, K, starts, seed)
    # scikit-learn stops where centres move less than this, summed over all of them.
    tolerance = TOLERANCE * float(squares.mean(dtype=torch.float64)) / rows.shape[1]
    N, D = rows.shape
    labels = torch.full((starts, N), -1, device=rows.device)
    sums = torch.zeros(starts * K, D, dtype=torch.float64, device=rows.device)
    active = torch.arange(starts, device=rows.device)
    iterations = 0
    for _ in range(ITERATIONS):
        iterations += len(active)
        new = assign(rows, centres[active])
        changed = new != labels[active]
        _move(rows, sums, labels, new, changed, active, K)
        labels[active] = new
        settled = ~changed.any(dim=1)
        moved = _means(rows, sums, labels, centres, active, K)
        shift = (moved - centres[active]).square().sum(dim=(1, 2))
        centres[active] = moved
        still = ~settled & (shift > tolerance)
        # Where centres hardly moved, rows may still change sides once more.
        late = active[~settled & ~still]
        if len(late):
            labels[late] = assign(rows, centres[late])
        active = active[still]
        if not len(active):
            break
    if len(active):
        labels[active] = assign(rows, centres[active])
    return Found(labels, centres, inertia(rows, labels, centres), iterations)


def assign(rows: Tensor, centres: Tensor) -> Tensor:
    """(S, N) the nearest of the (S, K, D) centres of each start; the first of those that are equally near."""
    S, K, D = centres.shape
    flat = centres.reshape(S * K, D)
    # Of the squared distance, what differs between centres.
    constant = flat.square().sum(dim=1)
    at_once = max(1, BLOCK_BYTES // (4 * S * K))
    # Few centres times many rows: several times as fast as the other way round.
    blocks = [
        torch.addmm(constant[:, None], flat, block.T, alpha=-2).reshape(S, K, -1).min(dim=1).indices
        for block in rows.split(at_once)
    ]
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=1)


def _seeds(rows: Tensor, squares: Tensor, K: int, starts: int, seed: int) -> Tensor:
    """(S, K, D) first centres: each next one is the best of T rows drawn by their squared distance."""
    N, T = len(rows), 2 + int(math.log(K))
    first, draws = _draws(N, K, T, starts, seed)
    chosen = torch.empty(starts, K, dtype=torch.int64, device=rows.device)
    chosen[:, 0] = first.to(rows.device)
    closest = _distances(rows, squares, chosen[:, 0])
    each = torch.arange(starts, device=rows.device)
    for step in range(1, K):
        cumulative = closest.cumsum(dim=1, dtype=torch.float64)
        wanted = draws[step - 1].to(rows.device) * cumulative[:, -1:]
        candidates = torch.searchsorted(cumulative, wanted).clamp(max=N - 1)
        distances = _distances(rows, squares, candidates.reshape(-1)).reshape(starts, T, N)
        torch.minimum(distances, closest[:, None], out=distances)
        best = distances.sum(dim=2, dtype=torch.float64).argmin(dim=1)
        chosen[:, step] = candidates[each, best]
        closest = distances[each, best]
    return rows[chosen]


def _draws(N: int, K: int, T: int, starts: int, seed: int) -> tuple[Tensor, Tensor]:
    """The first row of each start (S,), and uniform draws (K - 1, S, T), in the order of scikit-learn's."""
    state = np.random.RandomState(seed)
    first, uniform = [], np.empty((K - 1, starts, T))
    even = np.full(N, 1 / N)
    for start in range(starts):
        first.append(state.choice(N, p=even))
        uniform[:, start] = state.uniform(size=(K - 1, T))
    return torch.tensor(first), torch.from_numpy(uniform)


def _distances(rows: Tensor, squares: Tensor, chosen: Tensor) -> Tensor:
    """(C, N) squared distances of all rows to the chosen ones, which are 0 from themselves."""
    distances = torch.addmm(squares, rows[chosen], rows.T, alpha=-2)
    distances += squares[chosen][:, None]
    distances.clamp_(min=0)
    distances[torch.arange(len(chosen), device=rows.device), chosen] = 0
    return distances


def _move(rows: Tensor, sums: Tensor, labels: Tensor, new: Tensor, changed: Tensor, active: Tensor, K: int) -> None:
    """Take the rows that changed sides out of the sums of their old cluster and into those of the new one."""
    at, row = changed.nonzero(as_tuple=True)
    start = active[at]
    to, was = start * K + new[at, row], labels[start, row]
    left = was >= 0
    place = torch.stack([torch.cat([to, (start * K + was)[left]]), torch.cat([row, row[left]])])
    sign = torch.ones(place.shape[1], dtype=rows.dtype, device=rows.device)
    sign[len(to) :] = -1
    with torch.sparse.check_sparse_tensor_invariants(False):
        change = torch.sparse_coo_tensor(place, sign, (len(sums), len(rows))).coalesce()
        sums += torch.sparse.mm(change, rows)


def _means(rows: Tensor, sums: Tensor, labels: Tensor, centres: Tensor, active: Tensor, K: int) -> Tensor:
    """(A, K, D) means of the clusters of the active starts; an empty one takes the row that is worst off."""
    own = sums.reshape(-1, K, sums.shape[1])[active]
    sizes = torch.stack([torch.bincount(labels[start], minlength=K) for start in active.tolist()]).to(own.dtype)
    for position in (sizes == 0).any(dim=1).nonzero().flatten().tolist():
        start = int(active[position])
        _refill(rows, own[position], sizes[position], labels[start], centres[start])
    return (own / sizes.clamp(min=1)[:, :, None]).to(rows.dtype)


def _refill(rows: Tensor, sums: Tensor, sizes: Tensor, labels: Tensor, centres: Tensor) -> None:
    """Give empty clusters the rows furthest from their centres, in place."""
    far = (rows - centres[labels]).square().sum(dim=1)
    if not far.any():
        return
    empty = (sizes == 0).nonzero().flatten()
    for cluster, row in zip(empty.tolist(), far.topk(len(empty)).indices.tolist(), strict=True):
        old = int(labels[row])
        sums[old] -= rows[row]
        sizes[old] -= 1
        sums[cluster], sizes[cluster] = rows[row].to(sums.dtype), 1


def inertia(rows: Tensor, labels: Tensor, centres: Tensor) -> NDArray[np.float64]:
    """(S,) sums of squared distances to the centre of each row's cluster.

    From the sums of the clusters: differences of all rows would be as large as the rows, once for each start.
    """
    total = squared_norms(rows).sum(dtype=torch.float64)
    found = []
    for own, of in zip(labels, centres.double(), strict=True):
        sums = torch.zeros_like(of)
        for block, label in zip(rows.split(8192), own.split(8192), strict=True):
            sums += torch.zeros_like(of, dtype=rows.dtype).index_add_(0, label, block)
        sizes = torch.bincount(own, minlength=len(of))
        found.append(float(total - 2 * (sums * of).sum() + (sizes * of.square().sum(dim=1)).sum()))
    return np.array(found).clip(min=0)
