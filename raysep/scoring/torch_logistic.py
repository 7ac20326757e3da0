"""Batched L2-regularised multinomial logistic regressions on the same rows.

N rows, D features, K classes, P problems. All problems advance together: an L-BFGS iteration (Liu and Nocedal 1989,
doi:10.1007/BF01589116) is two matrix products of the rows for all problems. A preconditioner keeps the iterations few:
one eigendecomposition of the feature correlations, shared by all training sets and penalties, times the current
class variances. The line search works on the logits, which are linear in the step length and need no product.
Standardisation is folded into the weights, so that no training set needs a copy of the rows.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Convergence: largest entry of the mean gradient, and predicted relative decrease of the loss. Both, since the gradient
# is uninformative where few rows still matter, and the decrease where the penalty is strong.
GRADIENT_TOLERANCE, DECREASE_TOLERANCE = 3e-4, 1e-2
ITERATIONS, MEMORY = 200, 8
# Armijo's condition, and the maximum number of step halvings.
DECREASE, HALVINGS = 1e-4, 20
# Up to this many features: full eigendecomposition; beyond: this many leading eigenvectors.
ALL_DIRECTIONS, LEADING = 1024, 256
MIN_SPREAD = 1e-4  # lower bound of the class variance, for classes that are certain everywhere
# Memory for the logits of a block of rows.
BLOCK_BYTES = 4 * 2**20
# Features with a variance below this multiple of the rounding error of the squared mean are constant.
ROUNDINGS = 16


@dataclass(frozen=True)
class Problems:
    """The regression problems to fit.

    Attributes:
        weights: (P, N) 1 for training rows of a problem, else 0.
        strengths: (P,) C, the inverse of the penalty.
        mean, scale: (P, D) mean and standard deviation of the features over the training rows.
    """

    weights: Tensor
    strengths: Tensor
    mean: Tensor
    scale: Tensor

    def only(self, chosen: Tensor) -> "Problems":
        """Select problems by mask or index."""
        return Problems(self.weights[chosen], self.strengths[chosen], self.mean[chosen], self.scale[chosen])


@dataclass(frozen=True)
class Curvature:
    """Eigendecomposition of the correlation matrix of the features, possibly truncated.

    Attributes:
        values: (r,) eigenvalues.
        directions: (D, r) eigenvectors, as columns.
        rest: mean eigenvalue of all other directions.
    """

    values: Tensor
    directions: Tensor
    rest: float


def curvature_of(rows: Tensor) -> Curvature:
    """Eigenvectors of the features' correlations over (N, D) mean-centred rows: all, or of large D the leading ones."""
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
    values, rotation = torch.linalg.eigh(basis.T @ start)
    values = values.clamp(min=0)
    rest = (varying - float(values.sum())) / (D - LEADING)
    return Curvature(values, basis @ rotation, max(rest, float(values.min()) / 10))


def problems_of(rows: Tensor, training: Tensor, strengths: Sequence[Sequence[float]]) -> Problems:
    """Create a problem for each training set and strength.

    Args:
        rows: (N, D).
        training: (F, N) masks of the training sets.
        strengths: values of C for each of the F sets.
    """
    weights = training.double()
    sums, squares = (weights.new_zeros(len(weights), rows.shape[1]) for _ in range(2))
    for block, mask in zip(rows.split(2048), weights.split(2048, dim=1), strict=True):
        block64 = block.double()
        sums += mask @ block64
        squares += mask @ block64.square_()
    n = weights.sum(dim=1, keepdim=True)
    mean = sums / n
    variance = squares / n - mean.square()
    constant = variance <= ROUNDINGS * torch.finfo(rows.dtype).eps * mean.square()
    scale = torch.where(constant, 1, variance.clamp(min=0).sqrt())
    counts = torch.tensor([len(values) for values in strengths], device=rows.device)
    flat = torch.tensor([C for values in strengths for C in values], dtype=rows.dtype, device=rows.device)
    weights, mean, scale = (part.to(rows.dtype).repeat_interleave(counts, dim=0) for part in (weights, mean, scale))
    return Problems(weights, flat, mean, scale)


def fit_predict(rows: Tensor, y: Tensor, K: int, problems: Problems, curvature: Curvature) -> Tensor:
    """Fit all P problems and predict all rows.

    Args:
        rows: (N, D) float32.
        y: (N,) int64 classes, 0 to K - 1.
        curvature: curvature of these or similar rows.

    Returns:
        (P, N) int64 predicted classes.
    """
    fits = _Fits(rows, y, K, problems, curvature)
    for _ in range(ITERATIONS):
        if not fits.advance():
            break
    fits.retire(torch.ones_like(fits.n, dtype=torch.bool))
    return fits.predicted


@dataclass(frozen=True)
class _Point:
    """Weights (P, K, D) and intercepts (P, K) on standardised features; also used for gradients and steps."""

    V: Tensor
    b: Tensor

    def dot(self, other: "_Point") -> Tensor:
        return (self.V * other.V).sum(dim=(1, 2)) + (self.b * other.b).sum(dim=1)

    def plus(self, other: "_Point", factors: Tensor) -> "_Point":
        """Add (P,) multiples of another point."""
        V = torch.addcmul(self.V, factors[:, None, None], other.V)
        return _Point(V, torch.addcmul(self.b, factors[:, None], other.b))

    def only(self, chosen: Tensor) -> "_Point":
        return _Point(self.V[chosen], self.b[chosen])


@dataclass(frozen=True)
class _Step:
    """A past L-BFGS step, the change of the gradient, and their inner product (P,)."""

    step: _Point
    change: _Point
    curved: Tensor

    def only(self, chosen: Tensor) -> "_Step":
        return _Step(self.step.only(chosen), self.change.only(chosen), self.curved[chosen])


class _Fits:
    """Optimizer state of the unconverged problems, all at the same iteration.

    Rows are the last axis of every tensor: products and softmax over few classes are several times as fast this way.
    """

    def __init__(self, rows: Tensor, y: Tensor, K: int, problems: Problems, curvature: Curvature) -> None:
        self.rows, self.y, self.K, self.curvature, self.problems = rows, y, K, curvature, problems
        P, (N, D) = len(problems.strengths), rows.shape
        self.predicted = torch.zeros(P, N, dtype=torch.int64, device=rows.device)
        self.alive = torch.arange(P, device=rows.device)
        self.n = problems.weights.sum(dim=1)
        self.x = _Point(rows.new_zeros(P, K, D), rows.new_zeros(P, K))
        self.logits = rows.new_zeros(P, K, N)
        self.steps: list[_Step] = []
        self.gradient: _Point
        self.loss: Tensor
        self.spread: Tensor
        self._evaluate()

    def advance(self) -> bool:
        """Run one iteration; return whether unconverged problems remain."""
        direction = self._direction()
        slope = direction.dot(self.gradient)
        largest = torch.maximum(self.gradient.V.abs().amax(dim=(1, 2)), self.gradient.b.abs().amax(dim=1))
        converged = (largest <= GRADIENT_TOLERANCE) & (-slope <= DECREASE_TOLERANCE * self.loss)
        if converged.any():
            self.retire(converged)
            direction, slope = direction.only(~converged), slope[~converged]
        if not len(self.alive):
            return False
        logit_step = self._logits_of(direction)
        length = self._length(direction, slope, logit_step)
        before = self.gradient
        self.x = self.x.plus(direction, length)
        self.logits.addcmul_(length[:, None, None], logit_step)
        self._evaluate()
        step = _Point(direction.V * length[:, None, None], direction.b * length[:, None])
        change = _Point(self.gradient.V - before.V, self.gradient.b - before.b)
        self.steps = [*self.steps[1 - MEMORY :], _Step(step, change, step.dot(change))]
        # A failed line search means that the loss is minimal up to rounding.
        self.retire(length == 0)
        return bool(len(self.alive))

    def retire(self, done: Tensor) -> None:
        """Store the predictions of converged problems and drop their state."""
        if not done.any():
            return
        for block in self._blocks():
            self.predicted[self.alive[done], block] = self.logits[done, :, block].max(dim=1).indices
        keep = ~done
        self.problems, self.x, self.gradient = self.problems.only(keep), self.x.only(keep), self.gradient.only(keep)
        self.steps = [step.only(keep) for step in self.steps]
        self.alive, self.n, self.loss, self.spread = self.alive[keep], self.n[keep], self.loss[keep], self.spread[keep]
        self.logits = self.logits[keep]

    def _blocks(self) -> Iterator[slice]:
        """Slices of rows whose logits fit into `BLOCK_BYTES`."""
        at_once = max(1, BLOCK_BYTES // (4 * max(1, len(self.alive) * self.K)))
        for first in range(0, len(self.rows), at_once):
            yield slice(first, first + at_once)

    def _losses(self, block: slice, logits: Tensor) -> Tensor:
        """(P,) sums of the cross-entropy over the training rows of a block, from logits (P, K, B)."""
        of_label = logits.gather(1, self.y[None, None, block].expand(len(logits), 1, -1))[:, 0]
        return ((logits.logsumexp(dim=1) - of_label) * self.problems.weights[:, block]).sum(dim=1)

    def _penalty(self, V: Tensor) -> Tensor:
        return V.square().sum(dim=(1, 2)) / (2 * self.problems.strengths * self.n)

    def _evaluate(self) -> None:
        """Update the mean loss, its gradient and the class variances, mean p (1 - p), at the current point."""
        p = self.problems
        P, D = p.mean.shape
        product = self.rows.new_zeros(P * self.K, D)
        residuals, spread = (torch.zeros_like(self.x.b) for _ in range(2))
        loss = torch.zeros_like(self.n)
        for block in self._blocks():
            logits, weights = self.logits[:, :, block], p.weights[:, None, block]
            loss += self._losses(block, logits)
            residual = logits.softmax(dim=1).mul_(weights)
            spread += residual.sum(dim=2) - residual.square().sum(dim=2)
            residual.scatter_add_(1, self.y[None, None, block].expand(P, 1, -1), -weights)
            residuals += residual.sum(dim=2)
            product.addmm_(residual.reshape(P * self.K, -1), self.rows[block])
        gb = residuals / self.n[:, None]
        gV = product.reshape(P, self.K, D) / self.n[:, None, None]
        gV = (gV - p.mean[:, None] * gb[:, :, None]) / p.scale[:, None]
        self.gradient = _Point(gV + self.x.V / (p.strengths * self.n)[:, None, None], gb)
        self.loss = loss / self.n + self._penalty(self.x.V)
        self.spread = (spread / self.n[:, None]).clamp(min=MIN_SPREAD)

    def _direction(self) -> _Point:
        """The descent direction, by the two-loop recursion of L-BFGS."""
        q = self.gradient
        coefficients = []
        for past in reversed(self.steps):
            rho = torch.where(past.curved > 0, 1 / past.curved, 0)
            a = rho * past.step.dot(q)
            q = q.plus(past.change, -a)
            coefficients.append((a, rho))
        q = self._preconditioned(q)
        for past, (a, rho) in zip(self.steps, reversed(coefficients), strict=True):
            q = q.plus(past.step, a - rho * past.change.dot(q))
        return _Point(-q.V, -q.b)

    def _preconditioned(self, q: _Point) -> _Point:
        """Apply the preconditioner, which treats classes as independent and shares `curvature` among training sets."""
        (P, K, D), Q = q.V.shape, self.curvature.directions
        penalty = (1 / (self.problems.strengths * self.n))[:, None, None]
        spread = self.spread[:, :, None]
        inside = (q.V.reshape(-1, D) @ Q).reshape(P, K, -1)
        divided = inside / (self.curvature.values * spread + penalty)
        if Q.shape[1] == D:
            return _Point((divided.reshape(P * K, -1) @ Q.T).reshape(P, K, D), q.b / self.spread)
        outside = self.curvature.rest * spread + penalty
        back = ((divided - inside / outside).reshape(P * K, -1) @ Q.T).reshape(P, K, D)
        return _Point(q.V / outside + back, q.b / self.spread)

    def _logits_of(self, point: _Point) -> Tensor:
        """(P, K, N) logits of all rows at a point."""
        scaled = point.V / self.problems.scale[:, None]
        offset = point.b - (self.problems.mean[:, None] * scaled).sum(dim=2)
        product = scaled.reshape(-1, scaled.shape[2]) @ self.rows.T
        return product.reshape(*offset.shape, -1).add_(offset[:, :, None])

    def _length(self, direction: _Point, slope: Tensor, logit_step: Tensor) -> Tensor:
        """(P,) step lengths by backtracking: the longest of 1, 1/2, 1/4, ... with sufficient decrease; 0 for none."""
        length = torch.ones_like(slope)
        sufficient = torch.zeros_like(slope, dtype=torch.bool)
        for _ in range(HALVINGS):
            loss = torch.zeros_like(self.loss)
            for block in self._blocks():
                trial = torch.addcmul(self.logits[:, :, block], length[:, None, None], logit_step[:, :, block])
                loss += self._losses(block, trial)
            loss = loss / self.n + self._penalty(self.x.V + length[:, None, None] * direction.V)
            sufficient = loss <= self.loss + DECREASE * length * slope
            if sufficient.all():
                break
            length = torch.where(sufficient, length, length / 2)
        return torch.where(sufficient, length, 0)
