"""Many L2-regularised multinomial logistic regressions on the same rows at once.

N rows, D features, K classes, P problems. All problems advance together: an iteration of limited-memory BFGS (Liu and
Nocedal 1989, doi:10.1007/BF01589116) is two matrix products of the rows for all of them. What keeps the iterations
few is their first guess of the curvature: one eigendecomposition of the features' correlations, which every training
set and every penalty shares, and the probabilities that the classes have by then. The length of a step is tried on
the scores of the rows, which are linear in it and need no product.

Standardising is part of the weights: no training set has a copy of its own.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Converged is what has no larger entry in its mean gradient, and whose next step promises to lower the loss by less
# than this share of it: the first says little where few rows still matter, the second where the penalty is strong.
GRADIENT, PROMISE = 3e-4, 1e-2
ITERATIONS, MEMORY = 200, 8
# Armijo's condition, and how often a step is halved at most.
DECREASE, HALVINGS = 1e-4, 20
# Of so many features all directions of variance are looked for, of more only the leading ones.
ALL_DIRECTIONS, LEADING = 1024, 256
# A class that is certain everywhere still has some curvature.
LEAST_SPREAD = 1e-4
# Scores that are worked on at once.
BLOCK_BYTES = 4 * 2**20
# A variance of less than so many roundings of the squared mean is that of a constant.
ROUNDINGS = 16


@dataclass(frozen=True)
class Problems:
    """What is fitted.

    Attributes:
        weights: (P, N) 1 for rows that a problem is trained on, else 0.
        strengths: (P,) C, the inverse of the penalty.
        mean, scale: (P, D) of the features over each problem's training rows.
    """

    weights: Tensor
    strengths: Tensor
    mean: Tensor
    scale: Tensor

    def only(self, chosen: Tensor) -> "Problems":
        """Some of the problems."""
        return Problems(self.weights[chosen], self.strengths[chosen], self.mean[chosen], self.scale[chosen])


@dataclass(frozen=True)
class Curvature:
    """Directions in which standardised features vary, and how much.

    Attributes:
        values: (r,) variances.
        directions: (D, r), a column each.
        rest: mean variance in all other directions.
    """

    values: Tensor
    directions: Tensor
    rest: float


def curvature_of(rows: Tensor) -> Curvature:
    """Of (N, D) rows around their mean: all directions; of many features the leading ones, by subspace iteration."""
    N, D = rows.shape
    scale = torch.linalg.vector_norm(rows, dim=0) / N**0.5
    varying = int((scale > 0).sum())
    scale = torch.where(scale > 0, scale, 1)[:, None]
    if D <= ALL_DIRECTIONS:
        values, directions = torch.linalg.eigh(rows.T @ rows / (N * scale) / scale.T)
        return Curvature(values.clamp(min=0), directions, 1.0)
    start = torch.randn(D, LEADING, generator=torch.Generator().manual_seed(0)).to(rows)
    for _ in range(2):
        basis = torch.linalg.qr(start).Q
        start = rows.T @ (rows @ (basis / scale)) / (N * scale)
    values, turn = torch.linalg.eigh(basis.T @ start)
    values = values.clamp(min=0)
    rest = (varying - float(values.sum())) / (D - LEADING)
    return Curvature(values, basis @ turn, max(rest, float(values.min()) / 10))


def problems_of(rows: Tensor, training: Tensor, strengths: Sequence[Sequence[float]]) -> Problems:
    """A problem for each training set and each of its strengths.

    Args:
        rows: (N, D).
        training: (F, N) whether a row is in each training set.
        strengths: values of C for each of the F sets.
    """
    weights = training.double()
    sums, squares = (weights.new_zeros(len(weights), rows.shape[1]) for _ in range(2))
    for block, own in zip(rows.split(2048), weights.split(2048, dim=1), strict=True):
        wide = block.double()
        sums += own @ wide
        squares += own @ wide.square_()
    n = weights.sum(dim=1, keepdim=True)
    mean = sums / n
    variance = squares / n - mean.square()
    constant = variance <= ROUNDINGS * torch.finfo(rows.dtype).eps * mean.square()
    scale = torch.where(constant, 1, variance.clamp(min=0).sqrt())
    times = torch.tensor([len(own) for own in strengths], device=rows.device)
    flat = torch.tensor([C for own in strengths for C in own], dtype=rows.dtype, device=rows.device)
    weights, mean, scale = (part.to(rows.dtype).repeat_interleave(times, dim=0) for part in (weights, mean, scale))
    return Problems(weights, flat, mean, scale)


def fit_predict(rows: Tensor, y: Tensor, K: int, problems: Problems, curvature: Curvature) -> Tensor:
    """Fit all problems and predict all rows.

    Args:
        rows: (N, D) float32.
        y: (N,) int64 classes, 0 to K - 1.
        problems: P of them.
        curvature: of the rows, or of rows like them.

    Returns:
        (P, N) int64 classes.
    """
    fits = _Fits(rows, y, K, problems, curvature)
    for _ in range(ITERATIONS):
        if not fits.advance():
            break
    fits.retire(torch.ones_like(fits.n, dtype=torch.bool))
    return fits.predicted


@dataclass(frozen=True)
class _Point:
    """Weights of standardised features (P, K, D) and intercepts (P, K), or a gradient or a step of them."""

    V: Tensor
    b: Tensor

    def dot(self, other: "_Point") -> Tensor:
        return (self.V * other.V).sum(dim=(1, 2)) + (self.b * other.b).sum(dim=1)

    def plus(self, other: "_Point", times: Tensor) -> "_Point":
        """(P,) times the other one added."""
        return _Point(
            torch.addcmul(self.V, times[:, None, None], other.V), torch.addcmul(self.b, times[:, None], other.b)
        )

    def only(self, chosen: Tensor) -> "_Point":
        return _Point(self.V[chosen], self.b[chosen])


@dataclass(frozen=True)
class _Step:
    """A step that was taken, how it changed the gradient, and their product (P,)."""

    step: _Point
    change: _Point
    curved: Tensor

    def only(self, chosen: Tensor) -> "_Step":
        return _Step(self.step.only(chosen), self.change.only(chosen), self.curved[chosen])


class _Fits:
    """The problems that are not done yet, all at the same iteration.

    The rows are the last axis of everything that has one: products with few columns and softmax over few classes are
    several times as fast as the other way round.
    """

    def __init__(self, rows: Tensor, y: Tensor, K: int, problems: Problems, curvature: Curvature) -> None:
        self.rows, self.y, self.K, self.curvature, self.problems = rows, y, K, curvature, problems
        P, (N, D) = len(problems.strengths), rows.shape
        self.predicted = torch.zeros(P, N, dtype=torch.int64, device=rows.device)
        self.alive = torch.arange(P, device=rows.device)
        self.n = problems.weights.sum(dim=1)
        self.at = _Point(rows.new_zeros(P, K, D), rows.new_zeros(P, K))
        self.scores = rows.new_zeros(P, K, N)
        self.steps: list[_Step] = []
        self.gradient: _Point
        self.loss: Tensor
        self.spread: Tensor
        self._evaluate()

    def advance(self) -> bool:
        """One iteration; False where no problem is left."""
        direction = self._direction()
        slope = direction.dot(self.gradient)
        largest = torch.maximum(self.gradient.V.abs().amax(dim=(1, 2)), self.gradient.b.abs().amax(dim=1))
        settled = (largest <= GRADIENT) & (-slope <= PROMISE * self.loss)
        if settled.any():
            self.retire(settled)
            direction, slope = direction.only(~settled), slope[~settled]
        if not len(self.alive):
            return False
        move = self._scores_of(direction)
        length = self._length(direction, slope, move)
        before = self.gradient
        self.at = self.at.plus(direction, length)
        self.scores.addcmul_(length[:, None, None], move)
        self._evaluate()
        step = _Point(direction.V * length[:, None, None], direction.b * length[:, None])
        change = _Point(self.gradient.V - before.V, self.gradient.b - before.b)
        self.steps = [*self.steps[1 - MEMORY :], _Step(step, change, step.dot(change))]
        # What no step improves any more, for the rounding of its loss, is as good as it gets.
        self.retire(length == 0)
        return bool(len(self.alive))

    def retire(self, done: Tensor) -> None:
        """Keep what finished problems predict, and go on without them."""
        if not done.any():
            return
        for block in self._blocks():
            self.predicted[self.alive[done], block] = self.scores[done, :, block].max(dim=1).indices
        keep = ~done
        self.problems, self.at, self.gradient = self.problems.only(keep), self.at.only(keep), self.gradient.only(keep)
        self.steps = [step.only(keep) for step in self.steps]
        self.alive, self.n, self.loss, self.spread = self.alive[keep], self.n[keep], self.loss[keep], self.spread[keep]
        self.scores = self.scores[keep]

    def _blocks(self) -> Iterator[slice]:
        """Rows in blocks whose scores are worked on at once."""
        at_once = max(1, BLOCK_BYTES // (4 * max(1, len(self.alive) * self.K)))
        for first in range(0, len(self.rows), at_once):
            yield slice(first, first + at_once)

    def _losses(self, block: slice, scores: Tensor) -> Tensor:
        """(P,) sums over the training rows of a block, of scores (P, K, B)."""
        own = scores.gather(1, self.y[None, None, block].expand(len(scores), 1, -1))[:, 0]
        return ((scores.logsumexp(dim=1) - own) * self.problems.weights[:, block]).sum(dim=1)

    def _penalty(self, V: Tensor) -> Tensor:
        return V.square().sum(dim=(1, 2)) / (2 * self.problems.strengths * self.n)

    def _evaluate(self) -> None:
        """The mean loss, its gradient, and each class's mean p (1 - p), at the present weights."""
        p = self.problems
        P, D = p.mean.shape
        product = self.rows.new_zeros(P * self.K, D)
        residuals, spread = (torch.zeros_like(self.at.b) for _ in range(2))
        loss = torch.zeros_like(self.n)
        for block in self._blocks():
            scores, weights = self.scores[:, :, block], p.weights[:, None, block]
            loss += self._losses(block, scores)
            residual = scores.softmax(dim=1).mul_(weights)
            spread += residual.sum(dim=2) - residual.square().sum(dim=2)
            residual.scatter_add_(1, self.y[None, None, block].expand(P, 1, -1), -weights)
            residuals += residual.sum(dim=2)
            product.addmm_(residual.reshape(P * self.K, -1), self.rows[block])
        gb = residuals / self.n[:, None]
        gV = product.reshape(P, self.K, D) / self.n[:, None, None]
        gV = (gV - p.mean[:, None] * gb[:, :, None]) / p.scale[:, None]
        self.gradient = _Point(gV + self.at.V / (p.strengths * self.n)[:, None, None], gb)
        self.loss = loss / self.n + self._penalty(self.at.V)
        self.spread = (spread / self.n[:, None]).clamp(min=LEAST_SPREAD)

    def _direction(self) -> _Point:
        """Where the two-loop recursion of L-BFGS points."""
        q = self.gradient
        used = []
        for pair in reversed(self.steps):
            rho = torch.where(pair.curved > 0, 1 / pair.curved, 0)
            a = rho * pair.step.dot(q)
            q = q.plus(pair.change, -a)
            used.append((a, rho))
        q = self._divided_by_curvature(q)
        for pair, (a, rho) in zip(self.steps, reversed(used), strict=True):
            q = q.plus(pair.step, a - rho * pair.change.dot(q))
        return _Point(-q.V, -q.b)

    def _divided_by_curvature(self, q: _Point) -> _Point:
        """As if no class saw the others and every training set had the features of all rows."""
        P, K, D = q.V.shape
        Q, penalty = self.curvature.directions, (1 / (self.problems.strengths * self.n))[:, None, None]
        spread = self.spread[:, :, None]
        inside = (q.V.reshape(-1, D) @ Q).reshape(P, K, -1)
        divided = inside / (self.curvature.values * spread + penalty)
        if Q.shape[1] == D:
            return _Point((divided.reshape(P * K, -1) @ Q.T).reshape(P, K, D), q.b / self.spread)
        outside = self.curvature.rest * spread + penalty
        back = ((divided - inside / outside).reshape(P * K, -1) @ Q.T).reshape(P, K, D)
        return _Point(q.V / outside + back, q.b / self.spread)

    def _scores_of(self, point: _Point) -> Tensor:
        """(P, K, N) what weights make of the rows."""
        scaled = point.V / self.problems.scale[:, None]
        offset = point.b - (self.problems.mean[:, None] * scaled).sum(dim=2)
        product = scaled.reshape(-1, scaled.shape[2]) @ self.rows.T
        return product.reshape(*offset.shape, -1).add_(offset[:, :, None])

    def _length(self, direction: _Point, slope: Tensor, move: Tensor) -> Tensor:
        """(P,) the longest of 1, 1/2, 1/4, ... that lowers the loss as it should; 0 where none does."""
        length = torch.ones_like(slope)
        good = torch.zeros_like(slope, dtype=torch.bool)
        for _ in range(HALVINGS):
            loss = torch.zeros_like(self.loss)
            for block in self._blocks():
                tried = torch.addcmul(self.scores[:, :, block], length[:, None, None], move[:, :, block])
                loss += self._losses(block, tried)
            loss = loss / self.n + self._penalty(self.at.V + length[:, None, None] * direction.V)
            good = loss <= self.loss + DECREASE * length * slope
            if good.all():
                break
            length = torch.where(good, length, length / 2)
        return torch.where(good, length, 0)
