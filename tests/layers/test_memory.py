"""The memory module: MemAE's numbers, toys by hand, a slow loop, gradients, precision, layout."""

import math

import numpy as np
import pytest
import torch
from conftest import golden
from figures import figures

from adref.layers import memory as module
from adref.layers.memory import Memory, entropy

# Sourced: donggong1/memae-anomaly-detection, models/memory_module.py at commit 89cb183 and models/entropy_loss.py at
# commit ceece77 (torch 2.13.0, float64); 2026-11-24:
# `PYTHONPATH=tools python tools/sources/vit_autoencoder.py memory_module.py entropy_loss.py`.
# For each way of addressing and threshold: the number of the 1500 weights that are left; mean, standard deviation and
# the means of the products with two lists of hashed numbers, of weights and of output; the mean entropy.
SOURCED = {
    ("dot", 1.0, 0.0): (1500, [0.02, 0.06394900118, 0.009333003713, 0.0101658772],
                        [-0.05090368985, 0.3518954128, -0.02782352398, -0.03507172382], 2.146553335),
    ("dot", 1.0, None): (251, [0.02, 0.07185438257, 0.009224198862, 0.0101525016],
                         [-0.05144436844, 0.3873276812, -0.02869890752, -0.03632468769], 1.660811088),
    ("dot", 1.0, 0.0025): (628, [0.02, 0.0651397546, 0.009322894745, 0.01017009709],
                           [-0.05090370402, 0.358094276, -0.0278846508, -0.03518671891], 2.047086135),
    ("cosine", 1.0, 0.0): (1500, [0.02, 0.004986026696, 0.009836097704, 0.01003502711],
                           [-0.04308415339, 0.06019995698, -0.02071189109, -0.02375253452], 3.881417104),
    ("cosine", 1.0, None): (676, [0.02, 0.02262868476, 0.009586034934, 0.01008654235],
                            [-0.04692702267, 0.1630497481, -0.02305329749, -0.02725982419], 3.101697006),
    ("cosine", 1.0, 0.0025): (1500, [0.02, 0.004986026696, 0.009836097704, 0.01003502711],
                              [-0.04308415339, 0.06019995698, -0.02071189109, -0.02375253452], 3.881417104),
    ("cosine", 0.1, 0.0): (1500, [0.02, 0.05428918784, 0.009115494693, 0.01008896876],
                           [-0.04502352652, 0.292803836, -0.02270813468, -0.02992980623], 2.35151001),
    ("cosine", 0.1, None): (279, [0.02, 0.06274321302, 0.008987133119, 0.01002209609],
                            [-0.04557700197, 0.3267196299, -0.0231541265, -0.03104974298], 1.851186128),
    ("cosine", 0.1, 0.0025): (678, [0.02, 0.05540335342, 0.00910445658, 0.01009732275],
                              [-0.04504536051, 0.2985641231, -0.02277070375, -0.03002946317], 2.253652572),
}  # fmt: skip

STAR = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0], [0.6, 0.8]], dtype=torch.float64)


def address(queries, items, addressing="cosine", temperature=1.0, threshold=None) -> module.Recall:
    """`address` with the settings of the specification: cosine, temperature 1, threshold 1 / K."""
    return module.address(queries, items, addressing=addressing, temperature=temperature, threshold=threshold)


def build(width, items, addressing="cosine", temperature=1.0, threshold=None) -> Memory:
    return Memory(width=width, items=items, addressing=addressing, temperature=temperature, threshold=threshold)


def close(values):
    """Ten printed digits."""
    return pytest.approx(values, rel=1e-9, abs=1e-11)


def four(values):
    """Four printed decimals, of numbers that are given so."""
    return pytest.approx(values, abs=5.1e-5)


def hashed_pair() -> tuple[torch.Tensor, torch.Tensor]:
    """30 queries and 50 items of width 16, as the sourced numbers have them."""
    return golden.hashed("queries", 30, 16).double() * 4 - 2, (golden.hashed("items", 50, 16).double() - 0.5) * 2


@pytest.mark.parametrize(("addressing", "temperature", "threshold"), SOURCED)
@pytest.mark.holds("vit_autoencoder", "7", "8", "9", "10")
def test_address_equals_the_memae_authors_file(addressing, temperature, threshold):
    left, weights, output, mean_entropy = SOURCED[addressing, temperature, threshold]
    recall = address(*hashed_pair(), addressing, temperature, threshold)
    assert int((recall.weights > 0).sum()) == left and not recall.empty.any()
    assert figures(recall.weights) == close(weights) and figures(recall.output) == close(output)
    assert entropy(recall.weights).mean().item() == close(mean_entropy)


@pytest.mark.holds("vit_autoencoder", "8")
def test_toy_of_unit_items():
    """Four orthogonal items."""
    items = torch.eye(4, dtype=torch.float64)
    query = items[:1]
    soft = address(query, items, threshold=0).weights[0].tolist()
    assert soft == four([0.4754, 0.1749, 0.1749, 0.1749])
    assert soft == close([math.e / (math.e + 3)] + [1 / (math.e + 3)] * 3)
    recall = address(query, items, threshold=0.25)
    assert recall.weights[0].tolist() == close([1, 0, 0, 0]) and recall.output[0].tolist() == close([1, 0, 0, 0])
    assert address(query, items).weights.tolist() == recall.weights.tolist()  # 1 / K is 0.25


@pytest.mark.parametrize("query", [(3.0, 4.0), (6.0, 8.0)])
@pytest.mark.holds("vit_autoencoder", "7")
def test_toy_of_a_star(query):
    """A query twice as long gives the same."""
    query = torch.tensor([query], dtype=torch.float64)
    soft = address(query, STAR, threshold=0).weights[0]
    assert soft.tolist() == four([0.2347, 0.2866, 0.0707, 0.0579, 0.3501])
    cosines = soft.log() - soft.log()[4] + 1
    assert cosines.tolist() == close([0.6, 0.8, -0.6, -0.8, 1])
    recall = address(query, STAR, threshold=0.2)
    assert recall.weights[0].tolist() == four([0.2693, 0.3289, 0, 0, 0.4018])
    assert recall.output[0].tolist() == four([0.5104, 0.6503])
    assert entropy(recall.weights).item() == four(1.0854)


def test_toy_of_a_star_with_the_dot_product():
    """d = (3, 4, -3, -4, 5); here a longer query changes the weights."""
    soft = address(torch.tensor([[3.0, 4.0]], dtype=torch.float64), STAR, "dot", threshold=0).weights[0].tolist()
    assert soft[:2] + soft[4:] == four([0.0900, 0.2447, 0.6650])
    assert soft[2:4] == [pytest.approx(2.23e-4, abs=5e-7), pytest.approx(8.2e-5, abs=5e-7)]
    longer = address(torch.tensor([[6.0, 8.0]], dtype=torch.float64), STAR, "dot", threshold=0).weights[0].tolist()
    assert longer[4] > 0.85
    tempered = address(torch.tensor([[6.0, 8.0]], dtype=torch.float64), STAR, "dot", 2.0, 0.0).weights[0].tolist()
    assert tempered == close(soft)


@pytest.mark.holds("vit_autoencoder", "9")
def test_items_are_combined_as_they_are():
    """Longer items are found by the cosine as before, and returned longer."""
    query = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    one, three = address(query, STAR), address(query, 3 * STAR)
    assert torch.allclose(one.weights, three.weights, atol=1e-14) and torch.allclose(3 * one.output, three.output)


def test_largest_weight_that_can_be_reached():
    """7.366 / K at K = 2000: one item along the query, all others against it."""
    items = torch.tensor([[1.0, 0.0], *[[-1.0, 0.0]] * 1999], dtype=torch.float64)
    largest = address(STAR[:1], items, threshold=0).weights.max().item()
    assert 2000 * largest == pytest.approx(7.366, abs=5e-4)
    assert address(STAR[:1], items, threshold=7.36 / 2000).weights[0, 0] == 1
    assert address(STAR[:1], items, threshold=7.37 / 2000).empty.all()


def test_half_of_the_items_survive_a_threshold_of_the_mean():
    """Of random items 986 of 2000 survive, entropy 6.893 against ln 2000 = 7.601, largest weight 5.9e-4."""
    torch.manual_seed(0)
    memory, queries = build(768, 2000), torch.randn(1, 768, 6, 6)
    recall, soft = memory(queries), address(queries.permute(0, 2, 3, 1), memory.weight, threshold=0).weights
    assert (recall.weights > 0).sum(-1).float().mean().item() == pytest.approx(986, abs=25)
    assert entropy(recall.weights).mean().item() == pytest.approx(6.893, abs=0.025)
    assert soft.max().item() == pytest.approx(5.9e-4, abs=4e-5)


@pytest.mark.parametrize("count", [10, 500, 2000])
@pytest.mark.parametrize("addressing", ["cosine", "dot"])
def test_identical_items_leave_no_survivor(addressing, count):
    """Output zero, and each query dead; also for one query, where sums differ in the last bits from item to item."""
    torch.manual_seed(0)
    for queries, kind in ((30, torch.float32), (30, torch.float64), (1, torch.float32)):
        for width in (16, 96, 100, 768):
            given, item = (torch.randn(n, width, dtype=kind) for n in (queries, 1))
            recall = address(given, item.expand(count, width), addressing)
            assert recall.empty.shape == (queries,) and recall.empty.all(), width
            assert not recall.output.any() and not recall.weights.any() and recall.output.dtype == kind


def test_a_threshold_above_all_weights_is_empty_for_some_queries_only():
    """The second query is as near to each item as to another."""
    queries, items = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.5, 0.5, 0.5, 0.5]], dtype=torch.float64), torch.eye(4)
    zero = address(queries, items.double(), threshold=0.4)
    assert zero.empty.tolist() == [False, True] and not zero.output[1].any()


def slow(query: list[float], items: list[list[float]], addressing: str, tau: float, threshold: float):
    """One query, plain numbers."""
    dots = [sum(a * b for a, b in zip(query, item)) for item in items]
    if addressing == "cosine":
        length = max(math.sqrt(sum(a * a for a in query)), 1e-12)
        dots = [d / (length * max(math.sqrt(sum(b * b for b in item)), 1e-12)) for d, item in zip(dots, items)]
    powers = [math.exp(d / tau) for d in dots]
    w = [power / sum(powers) for power in powers]
    s = [max(x - threshold, 0) * x / (abs(x - threshold) + 1e-12) for x in w]
    hat = [x / max(sum(s), 1e-12) for x in s]
    return [sum(h * item[c] for h, item in zip(hat, items)) for c in range(len(query))], hat, not any(s)


@pytest.mark.parametrize(
    ("addressing", "temperature", "threshold"),
    [("cosine", 1.0, None), ("cosine", 0.2, 0.06), ("dot", 1.0, 0.0), ("dot", 3.0, 0.03)],
)
@pytest.mark.holds("vit_autoencoder", "7", "8", "9", "10")
def test_address_equals_a_slow_loop(addressing, temperature, threshold):
    queries, items = hashed_pair()
    queries, items = queries[:8].clone(), items[:20].clone()
    queries[3], items[5] = 0, 0  # rows without a direction
    recall = address(queries, items, addressing, temperature, threshold)
    for i, query in enumerate(queries.tolist()):
        expected = slow(query, items.tolist(), addressing, temperature, 1 / 20 if threshold is None else threshold)
        if i == 3 and threshold is None:  # equal cosines: at the kink, where a sum's order decides about 1e-17
            continue
        assert recall.output[i].tolist() == pytest.approx(expected[0], abs=1e-11)
        assert recall.weights[i].tolist() == pytest.approx(expected[1], abs=1e-11)
        assert recall.empty[i].item() == expected[2]


@pytest.mark.parametrize(
    ("addressing", "temperature", "threshold"),
    [("cosine", 1.0, None), ("cosine", 0.2, 0.02), ("dot", 1.0, 0.02), ("dot", 1.0, 0.0)],
)
def test_gradients(addressing, temperature, threshold):
    """In float64, where no weight is near its threshold."""
    queries = (golden.hashed("few queries", 5, 4).double() * 4 - 2).requires_grad_()
    items = (golden.hashed("few items", 7, 4).double() - 0.5).requires_grad_()
    soft = address(queries, items, addressing, temperature, 0.0).weights
    assert (soft - (1 / 7 if threshold is None else threshold)).abs().min() > (2e-4 if threshold != 0.0 else 1e-8)

    def all_of(z, m):
        recall = address(z, m, addressing, temperature, threshold)
        return recall.output, recall.weights, entropy(recall.weights)

    assert torch.autograd.gradcheck(all_of, (queries, items), eps=1e-6, atol=1e-5, rtol=1e-5)


def test_items_that_survive_nowhere_get_no_gradient():
    """Below 1e-8 of the survivors', where no weight is near the threshold: at a distance x from it, equation 10 lets
    w eps / x^2 through. With 2000 random items (K = 2000, C = 768) the ratio is 3e-5, in float32 1e-4."""
    items = STAR.clone().requires_grad_()
    queries = torch.tensor([[3.0, 4.0], [4.0, 3.0], [1.0, 1.2]], dtype=torch.float64)
    for addressing in ("cosine", "dot"):
        recall = address(queries, items, addressing)
        dead = ~(recall.weights > 0).any(0)
        assert dead[2] and dead[3] and not dead[4]
        for loss in (recall.output.sin().sum(), (recall.output - 1).square().sum(), recall.output.exp().prod()):
            (gradient,) = torch.autograd.grad(loss, items, retain_graph=True)
            assert gradient[dead].norm() < 1e-8 * gradient[~dead].norm() and gradient[~dead].norm() > 1e-2


@pytest.mark.holds("vit_autoencoder", "14")
def test_entropy():
    """ln K for equal weights, 0 for one, nats in between; zeros count nothing."""
    weights = torch.tensor([[0.25] * 4, [1.0, 0, 0, 0], [0.5, 0.5, 0, 0], [0.7, 0.2, 0.1, 0]], dtype=torch.float64)
    by_hand = -(0.7 * math.log(0.7) + 0.2 * math.log(0.2) + 0.1 * math.log(0.1))
    assert entropy(weights).tolist() == pytest.approx([math.log(4), 0, math.log(2), by_hand], abs=1e-11)
    assert entropy(weights.view(2, 2, 4)).shape == (2, 2)


def test_autocast_does_not_change_the_result():
    queries, items = (t.float() for t in hashed_pair())
    plain, memory = address(queries, items), build(16, 50)
    maps = queries.view(2, 3, 5, 16).permute(0, 3, 1, 2)
    whole = memory(maps)
    with torch.autocast("cpu", torch.bfloat16):
        assert (queries @ items.T).dtype == torch.bfloat16  # it is on
        under, whole_under = address(queries, items), memory(maps)
    for one, other in ((plain, under), (whole, whole_under)):
        assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(one, other))


def test_memory_keeps_the_layout_of_a_map():
    """Each cell is one query; weights and empty have the cell first."""
    memory = build(16, 50, "cosine", 0.3, 0.1).double()
    maps = golden.hashed("map", 2, 16, 3, 5).double() * 4 - 2
    recall = memory(maps)
    assert recall.output.shape == maps.shape and recall.weights.shape == (2, 3, 5, 50)
    assert recall.empty.shape == (2, 3, 5) and recall.empty.any() and not recall.empty.all()
    for b, r, c in np.ndindex(2, 3, 5):
        cell = address(maps[b, :, r, c], memory.weight, "cosine", 0.3, 0.1)
        assert torch.allclose(recall.output[b, :, r, c], cell.output, atol=1e-13)
        assert torch.allclose(recall.weights[b, r, c], cell.weights, atol=1e-13)
        assert recall.empty[b, r, c] == cell.empty


def test_memory_has_one_matrix_without_bias():
    """Uniform within 1 / sqrt(C), 0.0360844 at 768."""
    torch.manual_seed(0)
    memory = build(768, 2000)
    assert [(name, p.shape) for name, p in memory.named_parameters()] == [("weight", (2000, 768))]
    assert memory.weight.numel() == 1_536_000
    assert memory.weight.abs().max().item() == pytest.approx(0.0360844, rel=1e-4)
    assert memory.weight.std().item() == pytest.approx(0.0360844 / math.sqrt(3), rel=1e-2)
    assert abs(memory.weight.mean().item()) < 1e-4


@pytest.mark.parametrize("items", [(5, 6), (4,), (2, 5, 4)])
def test_shapes_that_do_not_fit(items):
    with pytest.raises(ValueError, match=r"expected queries \(\.\.\., C\) and items \(K, C\), got"):
        address(torch.zeros(3, 4), torch.zeros(items))


def test_a_weight_at_the_threshold_gets_no_gradient():
    """In float32 weights meet the threshold by chance; there the quotient of the shrinkage is steep."""
    queries, items = golden.hashed("queries", 1, 8).requires_grad_(), golden.hashed("items", 5, 8)
    weights = address(queries, items, addressing="dot", temperature=1.0, threshold=0.0).weights.detach()
    recall = address(queries, items, addressing="dot", temperature=1.0, threshold=weights[0].median().item())
    recall.output.sum().backward()
    assert (recall.weights > 0).sum() == 2 and queries.grad.abs().max() < 10
