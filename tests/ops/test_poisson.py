"""Poisson blending against dense matrices written out pixel by pixel, its identities, and the fast solvers."""

import math

import numpy as np
import pytest
from scipy import ndimage

from adref.ops import poisson
from adref.ops.poisson import inner_boundary, poisson_blend


def rotated_rectangle(height: float, width: float, degrees: float, canvas: tuple[int, int]) -> np.ndarray:
    """The pixels of a canvas that lie on a rectangle rotated about its centre."""
    y, x = np.mgrid[: canvas[0], : canvas[1]]
    v, u = y - (canvas[0] - 1) / 2, x - (canvas[1] - 1) / 2
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return (np.abs(c * u - s * v) <= (width - 1) / 2) & (np.abs(s * u + c * v) <= (height - 1) / 2)


def boxes(canvas: tuple[int, int], *corners: tuple[int, int, int, int]) -> np.ndarray:
    """Rectangles (top, bottom, left, right), joined."""
    region = np.zeros(canvas, bool)
    for top, bottom, left, right in corners:
        region[top:bottom, left:right] = True
    return region


def blob(seed: int, share: float, width: float, canvas: tuple[int, int]) -> np.ndarray:
    """The highest pixels of smooth noise; it touches the frame of the array."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=canvas), width)
    return noise > np.quantile(noise, 1 - share)


RECTANGLES = {
    "3 x 3": boxes((7, 8), (2, 5, 4, 7)),
    "one row of unknowns": boxes((6, 40), (1, 4, 2, 39)),
    "the whole array": np.ones((24, 17), bool),
    "64 x 60": boxes((70, 66), (3, 67, 1, 61)),
}
RING = boxes((30, 34), (2, 28, 3, 31))
RING[10:19, 12:20] = False
PLUS = boxes((5, 6), (1, 4, 3, 4), (2, 3, 2, 5))
SPECKS = boxes((20, 20), (2, 12, 2, 12), (12, 13, 11, 12), (13, 20, 9, 17), (0, 1, 19, 20), (17, 18, 1, 6))
RAGGED = {
    "rotated by 33": rotated_rectangle(20, 31, 33, (44, 48)),
    "L on the frame": boxes((26, 22), (0, 26, 0, 9), (16, 26, 0, 22)),
    "two components": boxes((30, 40), (1, 14, 2, 17), (12, 29, 20, 38)),
    "ring with a hole": RING,
    "ring as large as the array": np.pad(np.zeros((4, 5), bool), 4, constant_values=True),
    "one pixel of Omega": PLUS,
    "a bridge one pixel wide and specks": SPECKS,
    "smooth blob": blob(1, 0.5, 4, (40, 50)),
    "sponge": blob(3, 0.9, 0.1, (30, 30)),
}
REGIONS = RECTANGLES | RAGGED
SMALL = {name: region for name, region in REGIONS.items() if region.sum() < 700}
NONE = {
    "nothing": np.zeros((6, 7), bool),
    "two rows": boxes((6, 7), (1, 3, 0, 7)),
    "a square with a hole": boxes((6, 7), (1, 4, 1, 4)) & ~boxes((6, 7), (2, 3, 2, 3)),
}


def check(found: np.ndarray, expected: np.ndarray, name: str, tolerance: float = 1e-12) -> None:
    """Equal to a tolerance; `name` of the region for the message."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance, err_msg=name)


def pair(region: np.ndarray, seed: int = 0, channels: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """A random source and target in [0, 1)."""
    source, target = np.random.default_rng(seed).random((2, channels, *region.shape))
    return source, target


def neighbours(p: tuple[int, int], region: np.ndarray) -> list[tuple[int, int]]:
    """Those of the 4 that lie in the region."""
    around = ((p[0] + dy, p[1] + dx) for dy, dx in ((-1, 0), (1, 0), (0, -1), (0, 1)))
    return [q for q in around if 0 <= q[0] < region.shape[0] and 0 <= q[1] < region.shape[1] and region[q]]


def slow_boundary(region: np.ndarray) -> np.ndarray:
    boundary = np.zeros_like(region)
    for p in np.ndindex(region.shape):
        boundary[p] = region[p] and len(neighbours(p, region)) < 4
    return boundary


def step(p, q, g: np.ndarray, t: np.ndarray, mixed: bool) -> float:
    """v_pq of one channel."""
    return t[p] - t[q] if mixed and abs(g[p] - g[q]) <= abs(t[p] - t[q]) else g[p] - g[q]


def slow_dirichlet(source, target, region, mixed=False) -> np.ndarray:
    """Infinite lambda, row by row into a dense matrix."""
    omega = region & ~slow_boundary(region)
    number = {p: i for i, p in enumerate(zip(*map(np.ndarray.tolist, np.nonzero(omega))))}
    result = target.copy()
    for f, g, t in zip(result, source, target):
        matrix, right = np.zeros((len(number), len(number))), np.zeros(len(number))
        for p, i in number.items():
            matrix[i, i] = 4
            for q in neighbours(p, np.ones_like(region)):
                right[i] += step(p, q, g, t, mixed)
                if q in number:
                    matrix[i, number[q]] = -1
                else:
                    right[i] += t[q]
        f[omega] = np.linalg.solve(matrix, right)
    return result


def energy(f, source, target, region, stiffness, mixed=False) -> float:
    """The sum that Eq 5 minimises, every edge inside the region once, all channels."""
    total = 0.0
    for c in range(len(f)):
        for p in zip(*np.nonzero(region)):
            inside = neighbours(p, region)
            for q in inside:  # each edge is met from both ends
                total += 0.5 * (f[c][p] - f[c][q] - step(p, q, source[c], target[c], mixed)) ** 2
            if len(inside) < 4:
                total += stiffness * (f[c][p] - target[c][p]) ** 2
    return total


def record(monkeypatch, *places: tuple[object, str]) -> list[str]:
    """Calls of the named functions from now on, in order."""
    calls = []

    def watch(owner, name):
        function = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *a, **k: (calls.append(name), function(*a, **k))[1])

    for owner, name in places:
        watch(owner, name)
    return calls


SOLVERS = ((poisson, "solve_rectangle"), (poisson, "solve_charges"), (poisson, "_solve_sparse"))


MIXED = pytest.mark.parametrize("mixed", [False, True], ids=["source gradients", "mixed"])


def test_inner_boundary():
    for name, region in (REGIONS | NONE).items():
        np.testing.assert_array_equal(inner_boundary(region), slow_boundary(region), err_msg=name)


@MIXED
@pytest.mark.holds("srdad", "5")
def test_dirichlet_equals_a_dense_matrix(mixed):
    for name, region in SMALL.items():
        source, target = pair(region, channels=2)
        blend = poisson_blend(source, target, region, mixed=mixed, solver="sparse")
        check(blend.values, slow_dirichlet(source, target, region, mixed), name)
        np.testing.assert_array_equal(blend.solved, region & ~slow_boundary(region), err_msg=name)


@MIXED
@pytest.mark.parametrize(("regions", "solver"), [(RECTANGLES, "solve_rectangle"), (RAGGED, "solve_charges")])
def test_fast_solvers_equal_sparse_elimination(regions, solver, mixed, monkeypatch):
    calls = record(monkeypatch, *SOLVERS)
    for name, region in regions.items():
        source, target = pair(region, 1)
        fast, exact = (poisson_blend(source, target, region, mixed=mixed, solver=s) for s in ("fast", "sparse"))
        check(fast.values, exact.values, name)
        assert np.abs(fast.values - target)[:, fast.solved].max() > 0.1, name
    assert calls == [solver, "_solve_sparse"] * len(regions)


@pytest.mark.parametrize("settings", [{}, {"solver": "sparse"}, {"mixed": True}, {"stiffness": 1.0}], ids=str)
def test_identities(settings):
    """A source equal to the target changes nothing, nor does a constant added to the source; pixels outside are the
    target bit for bit; three channels equal three solves; without an inner pixel nothing is solved."""
    shift = np.array([0.7, -2.0, 5.0])[:, None, None]
    for name, region in REGIONS.items():
        source, target = pair(region, 6)
        kept = source.copy(), target.copy()
        check(poisson_blend(target, target, region, **settings).values, target, name)
        blend = poisson_blend(source, target, region, **settings)
        check(poisson_blend(source + shift, target, region, **settings).values, blend.values, name)
        alone = poisson_blend(source[1:2], target[1:2], region, **settings).values
        check(blend.values[1:2], alone, name, 1e-13)
        np.testing.assert_array_equal(blend.values[:, ~blend.solved], target[:, ~blend.solved], err_msg=name)
        assert blend.values.dtype == np.float64 and not np.shares_memory(blend.values, target)
        np.testing.assert_array_equal((source, target), kept, err_msg=name)  # the arguments stay as they were
    for name, region in NONE.items():
        source, target = pair(region, 16)
        blend = poisson_blend(source, target, region, **settings)
        assert not blend.solved.any() and blend.solved.shape == region.shape, name
        np.testing.assert_array_equal(blend.values, target, err_msg=name)


@pytest.mark.parametrize("solver", ["fast", "sparse"])
def test_by_hand(solver):
    """One unknown is the mean of its neighbours; a constant source stays within the target's values on the boundary."""
    for region in (RECTANGLES["3 x 3"], PLUS):
        source, target = pair(region, 11)
        ((y,), (x,)) = np.nonzero(region & ~inner_boundary(region))
        around = (slice(None), [y - 1, y + 1, y, y], [x, x, x - 1, x + 1])
        expected = source[:, y, x] + (target[around] - source[around]).mean(axis=1)
        values = poisson_blend(source, target, region, solver=solver).values
        np.testing.assert_allclose(values[:, y, x], expected, rtol=0, atol=1e-14)
    for name, region in REGIONS.items():
        _, target = pair(region, 12)
        blend, edge = poisson_blend(np.full_like(target, 0.4), target, region, solver=solver), inner_boundary(region)
        for values, given in zip(blend.values[:, blend.solved], target[:, edge]):
            assert given.min() - 1e-12 <= values.min() <= values.max() <= given.max() + 1e-12, name


def test_a_very_ragged_region_takes_the_sparse_solver(monkeypatch):
    region = RAGGED["sponge"]
    source, target = pair(region, 4)
    expected, count = poisson_blend(source, target, region).values, int(inner_boundary(region).sum())
    for largest, solver in ((count, "solve_charges"), (count - 1, "_solve_sparse")):
        with monkeypatch.context() as patch:
            calls = record(patch, *SOLVERS)
            patch.setattr(poisson, "LARGEST_BOUNDARY", largest)
            values = poisson_blend(source, target, region).values
            assert calls == [solver]
        np.testing.assert_allclose(values, expected, rtol=0, atol=1e-12)


def test_three_channels_take_one_factorisation(monkeypatch):
    calls = record(monkeypatch, (poisson.scipy.sparse.linalg, "splu"), (poisson.scipy.linalg, "cho_factor"))
    region = RAGGED["L on the frame"]
    source, target = pair(region, 10)
    poisson_blend(source, target, region)
    poisson_blend(source, target, region, solver="sparse")
    poisson_blend(source, target, region, stiffness=2.0)
    assert calls == ["cho_factor", "splu", "splu"]


@MIXED
@pytest.mark.parametrize(
    "region", [boxes((40, 40), (1, 39, 1, 39)), RAGGED["rotated by 33"]], ids=["rectangle", "rotated by 33"]
)
def test_a_large_stiffness_comes_close_to_dirichlet(region, mixed):
    source, target = pair(region, 0)
    exact = poisson_blend(source, target, region, mixed=mixed)
    error = {}
    for stiffness in (1.0, 1e2, 1e4, 1e6):
        soft = poisson_blend(source, target, region, stiffness, mixed).values
        error[stiffness] = np.abs(soft - exact.values)[:, exact.solved].max()
    assert error[1e2] / error[1e4] == pytest.approx(100, rel=0.1)
    assert error[1e4] / error[1e6] == pytest.approx(100, rel=0.002)
    if not mixed:  # measured for random images: 0.2 to 0.3, 9e-3, 9e-5
        assert 0.15 < error[1.0] < 0.35
        assert error[1e2] == pytest.approx(9e-3, rel=0.3)
        assert error[1e4] == pytest.approx(9e-5, rel=0.3)
        assert error[1e6] == pytest.approx(9e-7, rel=0.3)


@MIXED
@pytest.mark.parametrize("stiffness", [0.5, 30.0])
@pytest.mark.holds("srdad", "5")
def test_finite_stiffness_minimises_the_energy(stiffness, mixed):
    """It is quadratic: at its minimum, and nowhere else, a change h of any pixel adds h^2 (degree + stiffness)."""
    for region in (boxes((9, 10), (1, 8, 1, 5), (4, 9, 3, 10)), PLUS, np.ones((5, 4), bool)):
        source, target = pair(region, 13, channels=1)
        blend = poisson_blend(source, target, region, stiffness, mixed)
        least = energy(blend.values, source, target, region, stiffness, mixed)
        np.testing.assert_array_equal(blend.solved, region)
        for p in zip(*np.nonzero(region)):
            rise = len(neighbours(p, region)) + stiffness * inner_boundary(region)[p]
            for h in (-0.1, 0.1):
                moved = blend.values.copy()
                moved[0][p] += h
                found = energy(moved, source, target, region, stiffness, mixed) - least
                assert found == pytest.approx(h**2 * rise, rel=1e-9)


def test_mixed_gradients_take_the_steeper_of_each_edge():
    region = boxes((20, 20), (2, 18, 2, 18))
    source, target = pair(region, 15)
    target[0], source[1] = 0.25, 0.25
    mixed, plain = (poisson_blend(source, target, region, mixed=m).values for m in (True, False))
    np.testing.assert_allclose(mixed[0], plain[0], rtol=0, atol=1e-12)  # a flat target: the source's everywhere
    np.testing.assert_allclose(mixed[1], target[1], rtol=0, atol=1e-12)  # a flat source: the target's everywhere
    assert np.abs(mixed[2] - plain[2]).max() > 0.1 and np.abs(mixed[2] - target[2]).max() > 0.1


@pytest.mark.parametrize(
    "change",
    [{"source": np.zeros((3, 8, 8))}, {"source": np.zeros((8, 9)), "target": np.zeros((8, 9))},
     {"region": np.ones((8, 9), np.uint8)}, {"stiffness": 0.0}, {"stiffness": math.nan}, {"solver": "fsat"}],
    ids=["source", "no channels", "type of region", "zero", "nan", "solver"],
)  # fmt: skip
def test_wrong_arguments_are_refused(change):
    arguments = {"source": np.zeros((3, 8, 9)), "target": np.zeros((3, 8, 9)), "region": np.ones((8, 9), bool)}
    with pytest.raises(ValueError, match="expected"):
        poisson_blend(**(arguments | change))
