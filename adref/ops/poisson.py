"""Poisson blending: a patch keeps its gradients and takes the colours of its surroundings.

P. Perez, M. Gangnet, A. Blake, "Poisson Image Editing", SIGGRAPH 2003; SRDAD (Scientific Reports 2025), Eq 5. On a
region R with the inner boundary dR (pixels of R with one of their 4 neighbours outside R) and Omega = R \\ dR, source g
and target t, f solves for every p in Omega

    4 f_p - sum_{q in N(p)} f_q = sum_{q in N(p)} v_pq,   v_pq = g_p - g_q,   with f = t on dR.

The matrix is the same for all channels: each solver factors once. (OpenCV's seamlessClone solves another problem; its
boundary is the frame of the mask's bounding box.)

The exact fast solver. f = u + c is written as the potential of charges on a torus of the size of R's box: u = G r,
where G is the inverse of the torus' Laplacian, the same at every place, and r is the right side on Omega, unknown on
dR and 0 elsewhere. Whatever r is on dR, the equations on Omega hold; f = t on dR determines it. That is one dense,
positive definite system of |dR| unknowns (200 for a rotated square of 64 x 64 pixels, with 3,772 pixels in Omega)
whose matrix is read off the kernel of G; FFTs do the rest.
"""

from typing import Literal, NamedTuple

import numpy as np
import scipy

LARGEST_BOUNDARY = 2500  # unknowns of the dense system: 50 MB; regions with a longer boundary take the sparse solver


class Blend(NamedTuple):
    """A blended box."""

    values: np.ndarray  # (C, H, W) float64: the solution, not clipped; the target outside what was solved
    solved: np.ndarray  # (H, W) bool: Omega, or R where `stiffness` is finite


def inner_boundary(region: np.ndarray) -> np.ndarray:
    """Returns dR of a bool (H, W): its pixels with a 4-neighbour outside it or outside the array."""
    return region & (_neighbour_sum(region.astype(np.int64)) < 4)


def poisson_blend(source: np.ndarray, target: np.ndarray, region: np.ndarray, stiffness: float | None = None,
                  mixed: bool = False, solver: Literal["fast", "sparse"] = "fast") -> Blend:  # fmt: skip
    """Blends `source` into `target` inside `region`.

    Args:
        source, target: (C, H, W), g and t; only g's values on the region count, and additive constants cancel.
        region: (H, W) bool, R; where Omega is empty nothing is solved.
        stiffness: None: infinite, f = t on dR. A number lambda: f is unknown on all of R and minimises
            sum over edges {p, q} in R of ((f_p - f_q) - v_pq)^2 + lambda sum over dR of (f_p - t_p)^2.
        mixed: v_pq is the larger in absolute value of g_p - g_q and t_p - t_q, for each edge and channel.
        solver: "fast": sine transform for a rectangle, boundary charges for other regions (with a finite stiffness:
            sparse); "sparse": sparse LU, the reference. Both are exact: 1e-13, for a stiffness of 1e-6 still 1e-9.
    """
    if source.shape != target.shape or source.shape[1:] != region.shape or region.dtype != bool:
        shapes = f"{source.shape}, {target.shape}, {region.shape} {region.dtype}"
        raise ValueError(f"expected (C, H, W) twice and bool (H, W), got {shapes}")
    if (stiffness is not None and not 0 < stiffness < np.inf) or solver not in ("fast", "sparse"):
        raise ValueError(f"expected a positive stiffness or None, fast or sparse; got {stiffness}, {solver!r}")
    source, values = source.astype(np.float64), target.astype(np.float64)
    boundary = inner_boundary(region)
    omega = region & ~boundary
    if not omega.any():
        return Blend(values, np.zeros_like(region))
    if stiffness is not None:
        right = divergence(source, values, region, mixed)
        right[:, boundary] += stiffness * values[:, boundary]
        values[:, region] = _solve_sparse(region, np.where(boundary, stiffness, 0.0), right)
        return Blend(values, region)
    # With source gradients f - g is harmonic: the right side is 0, and only boundary values matter.
    right = divergence(source, values, region, True) if mixed else np.zeros_like(values)
    edge = values if mixed else values - source
    (box,) = scipy.ndimage.find_objects(region.astype(int))
    boxed, known = (slice(None), *box), right + _neighbour_sum(edge * boundary)  # with the values on dR
    if solver == "fast" and region[box].all():
        solution = solve_rectangle(known[boxed][:, 1:-1, 1:-1]).reshape(len(values), -1)
    elif solver == "fast" and boundary.sum() <= LARGEST_BOUNDARY:
        solution = solve_charges(right[boxed], edge[boxed], omega[box], boundary[box])
    else:
        solution = _solve_sparse(omega, 4.0 - _neighbour_sum(omega.astype(np.float64)), known)
    values[:, omega] = solution if mixed else solution + source[:, omega]
    return Blend(values, omega)


def divergence(source: np.ndarray, target: np.ndarray, region: np.ndarray, mixed: bool) -> np.ndarray:
    """Sums v_pq over the neighbours q in R, for every p in R: (C, H, W); 0 outside R."""
    total = np.zeros_like(source)
    for axis in (-2, -1):  # each in turn becomes the last one
        g, t, inside, sums = (array.swapaxes(axis, -1) for array in (source, target, region, total))
        step = np.diff(g)
        if mixed:
            other = np.diff(t)
            step = np.where(np.abs(step) > np.abs(other), step, other)
        step *= inside[:, :-1] & inside[:, 1:]
        sums[..., :-1] -= step  # p is the lower end: v_pq = value_p - value_q
        sums[..., 1:] += step
    return total


def _neighbour_sum(values: np.ndarray) -> np.ndarray:
    """Sums the 4 neighbours of each pixel of (..., H, W), zeros outside."""
    padded = np.pad(values, [(0, 0)] * (values.ndim - 2) + [(1, 1), (1, 1)])
    return padded[..., :-2, 1:-1] + padded[..., 2:, 1:-1] + padded[..., 1:-1, :-2] + padded[..., 1:-1, 2:]


def _solve_sparse(region: np.ndarray, extra: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Solves (degree + extra) f_p - sum of the neighbours in the region = right_p by a sparse LU: (C, n)."""
    number = region.cumsum().reshape(region.shape) - 1  # of each pixel of the region
    below, beside = region[:-1] & region[1:], region[:, :-1] & region[:, 1:]
    i = np.concatenate((number[:-1][below], number[:, :-1][beside]))  # neighbours i and j, each pair once
    j = np.concatenate((number[1:][below], number[:, 1:][beside]))
    diagonal = (_neighbour_sum(region.astype(np.float64)) + extra)[region]
    links = scipy.sparse.csc_matrix((np.full(len(i), -1.0), (i, j)), shape=2 * diagonal.shape)
    symmetric = {"permc_spec": "MMD_AT_PLUS_A", "diag_pivot_thresh": 0.0, "options": {"SymmetricMode": True}}
    factors = scipy.sparse.linalg.splu((links + links.T + scipy.sparse.diags(diagonal)).tocsc(), **symmetric)
    return factors.solve(np.ascontiguousarray(right[:, region].T)).T


def solve_rectangle(right: np.ndarray) -> np.ndarray:
    """Solves the Dirichlet problem on a rectangle of m x k unknowns by the sine transform: (C, m, k) -> (C, m, k)."""
    m, k = right.shape[1:]
    row, column = np.arange(1, m + 1)[:, None], np.arange(1, k + 1)
    eigenvalues = 4 - 2 * np.cos(np.pi * row / (m + 1)) - 2 * np.cos(np.pi * column / (k + 1))
    return scipy.fft.idstn(scipy.fft.dstn(right, type=1, axes=(1, 2)) / eigenvalues, type=1, axes=(1, 2))


def solve_charges(right: np.ndarray, edge: np.ndarray, omega: np.ndarray, boundary: np.ndarray) -> np.ndarray:
    """Solves the Dirichlet problem on any region by charges on its boundary (see the header).

    `right` and `edge`, (C, H, W), are read on Omega and on dR; `omega` and `boundary`, (H, W) bool, are Omega, no pixel
    of which lies on the frame of the box, and dR. Returns (C, n), the solution on Omega in row-major order.
    """
    shape = tuple(scipy.fft.next_fast_len(side, real=True) for side in omega.shape)
    row, column = np.arange(shape[0])[:, None], np.arange(shape[1] // 2 + 1)
    eigenvalues = 4 - 2 * np.cos(2 * np.pi * row / shape[0]) - 2 * np.cos(2 * np.pi * column / shape[1])
    # The torus has no inverse for the constant; any positive value serves, as the charges sum to 0.
    eigenvalues[0, 0] = 2 - 2 * np.cos(2 * np.pi / max(shape))

    def potential(charges):
        whole = scipy.fft.irfft2(scipy.fft.rfft2(charges, s=shape) / eigenvalues, s=shape)
        return whole[:, : omega.shape[0], : omega.shape[1]]

    y, x = np.nonzero(boundary)
    # The kernel of G at all differences: negative indices wrap around, as the torus does.
    matrix = scipy.fft.irfft2(1 / eigenvalues, s=shape)[y[:, None] - y, x[:, None] - x]
    charges = np.where(omega, right, 0.0)
    wanted = edge[:, y, x] - potential(charges)[:, y, x]
    # matrix q + c = wanted and sum(q) = -sum(right): one factorisation for all channels and the column of ones.
    factor = scipy.linalg.cho_factor(matrix, overwrite_a=True, check_finite=False)
    solved = scipy.linalg.cho_solve(factor, np.vstack((wanted, np.ones(len(y)))).T, check_finite=False).T
    constant = (solved[:-1].sum(axis=1) + charges.sum(axis=(1, 2))) / solved[-1].sum()
    charges[:, y, x] = solved[:-1] - constant[:, None] * solved[-1]
    return potential(charges)[:, omega] + constant[:, None]
