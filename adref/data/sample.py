"""Generates the data set that `python -m adref.train` uses by default, and colour textures.

Three categories in MVTec AD's layout: `fabric` (a texture), `nut` (an object at any angle), `board` (a circuit board in
a fixture). A surface (albedo, height, gloss) is lit and photographed by a small camera model. A defect edits the
surface, so its shading and shadow are right; its mask is where photographs with and without it visibly differ. Random
streams are keyed by (seed, category, split, index): no image depends on the number of others. Lengths are fractions
of the image's side unless said otherwise.
"""

import hashlib
import itertools
import json
import tempfile
from pathlib import Path

import numpy as np
import scipy
from PIL import Image

from adref.options import UserError

VERSION = 1  # of the recipe; raise it whenever a pixel of the default data set changes
DEFECTS = {"fabric": ("fibre", "hole", "stain", "thread"), "nut": ("corner", "dent", "rust", "scratch"),
           "board": ("missing", "open", "short", "splash")}  # fmt: skip
CATEGORIES = tuple(DEFECTS)
VISIBLE = 5 / 255  # a smaller change in every channel does not count
AREA = (0.003, 0.06)  # smallest and largest share of the image that a mask covers
LIGHT = np.deg2rad(-125)  # azimuth of the lamp: above, a little to the left
Surface = tuple[np.ndarray, np.ndarray, np.ndarray]  # albedo (S, S, 3) in [0, 1], height (S, S), gloss (S, S) in [0, 1]


def stream(*key) -> np.random.Generator:
    """Returns an independent random generator for each key."""
    return np.random.default_rng(int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:16], "little"))


def plane(size: int) -> np.ndarray:
    """Returns x and y of the pixel centres, (2, S, S) in (0, 1)."""
    return (np.mgrid[:size, :size][::-1] + 0.5) / size


def noise(rng, size: int, rows: int, columns: int | None = None) -> np.ndarray:
    """Draws a smooth Gaussian field (S, S), N(0, 1) at each pixel, with about `rows` x `columns` bumps."""
    values = rng.standard_normal((rows + 4, (columns or rows) + 4))
    for bumps in (rows, columns or rows):  # each pass interpolates along the first axis and moves it to the end
        place = (np.arange(size) + 0.5) / size * bumps + 1.5
        weights = np.exp(-(((place[:, None] - np.arange(bumps + 4)) / 0.7) ** 2))
        values = (weights / np.sqrt((weights**2).sum(1, keepdims=True)) @ values).T
    return values


def inside(distance: np.ndarray, soft: float = 1.0) -> np.ndarray:
    """Returns the coverage in [0, 1] of the region distance < 0, with an edge `soft` pixels wide."""
    return np.clip(0.5 - distance * (distance.shape[0] / soft), 0, 1)


def path_distance(x, y, points) -> np.ndarray:
    """Computes the distance of every pixel from the polyline through `points`."""
    nearest = np.full_like(x, np.inf)
    for (ax, ay), (bx, by) in itertools.pairwise(points):
        dx, dy = bx - ax, by - ay
        t = np.clip(((x - ax) * dx + (y - ay) * dy) / (dx * dx + dy * dy), 0, 1)
        nearest = np.minimum(nearest, (x - ax - t * dx) ** 2 + (y - ay - t * dy) ** 2)
    return np.sqrt(nearest)


def blob_distance(x, y, rng, cx, cy, radius, fray) -> np.ndarray:
    """Computes the distance from an irregular round outline, negative inside; `fray` roughens it."""
    angle, stretch, turn = np.arctan2(y - cy, x - cx), rng.uniform(0.7, 1), rng.uniform(0, np.pi)
    outline = 1 + sum(rng.uniform(-0.3, 0.3) / k * np.cos(k * angle + rng.uniform(0, 6.3)) for k in range(2, 8))
    u, v = (x - cx) * np.cos(turn) + (y - cy) * np.sin(turn), (y - cy) * np.cos(turn) - (x - cx) * np.sin(turn)
    return np.hypot(u * stretch, v / stretch) - radius * outline + fray * noise(rng, x.shape[0], 24)


def wander(rng, cx, cy, length, bend, steps=14) -> np.ndarray:
    """Draws the points (steps + 1, 2) of a path around (cx, cy) whose curvature drifts by `bend` radians a step."""
    heading = rng.uniform(0, 2 * np.pi) + np.cumsum(np.cumsum(rng.normal(0, bend, steps)))
    points = np.cumsum(np.stack([np.cos(heading), np.sin(heading)], 1) * length / steps, 0)
    return np.vstack([np.zeros(2), points]) - points.mean(0) + (cx, cy)


def paint(albedo, colour, alpha) -> np.ndarray:
    """Blends `colour`, (3,) or (S, S, 3), over `albedo` with opacity `alpha` (S, S)."""
    return albedo + alpha[..., None] * (np.asarray(colour) - albedo)


def fabric(size, rng, defect, flaw) -> Surface:
    """Makes a blue-grey 2/2 twill: each yarn passes over two and under two; yarns vary in width and tone."""
    (x, y), yarns, heights, colours = plane(size), 22, [], []
    a = x * yarns + rng.uniform(2, 6) + 0.15 * noise(rng, size, 5)  # index of the warp yarn, and position across it
    b = y * yarns + rng.uniform(2, 6) + 0.15 * noise(rng, size, 5)
    side, lane, start, length = flaw.choice([-1, 1]), flaw.integers(8, yarns), flaw.uniform(8, 20), flaw.uniform(6, 12)
    torn, torn_along = (a, b)[::side]
    ladder = (np.abs(torn - lane - 0.5) < 0.5) & (np.abs(torn_along - start) < length / 2) & (defect == "thread")
    for across, along, sign, colour in [(a, b, 1, (0.32, 0.35, 0.40)), (b, a, -1, (0.54, 0.55, 0.57))]:
        index, shape = np.floor(across).astype(int), (5, yarns)[::sign]
        width = 0.49 * (1 + 0.08 * noise(rng, size, *shape))
        width = np.where(ladder, 1e-3 if sign == side else 0.36, width)  # one yarn gone, those across it slack
        profile = np.sqrt(np.clip(1 - ((across - index - 0.5) / width) ** 2, 0, None))
        over = sign * np.tanh(1.5 * np.sin(np.pi / 2 * (along + index)))
        heights.append(np.where(profile > 0, 0.30 * profile + 0.22 * over, -0.35))
        tone = 1 + 0.05 * rng.standard_normal(yarns + 12)[index] + 0.05 * noise(rng, size, *shape)
        colours.append(tone[..., None] * colour)
    height, albedo = np.maximum(*heights), np.where((heights[0] >= heights[1])[..., None], *colours)
    albedo, height = albedo * np.interp(height, [-0.35, 0.2], [0.45, 1])[..., None], height / yarns
    cx, cy = flaw.uniform(0.15, 0.85, 2)
    if defect == "hole":
        edge = blob_distance(x, y, flaw, cx, cy, flaw.uniform(0.045, 0.115), 0.012)
        albedo, height = paint(albedo, (0.06, 0.05, 0.05), inside(edge, 1.5)), height - 0.06 * inside(edge, 2)
    if defect == "stain":
        edge = blob_distance(x, y, flaw, cx, cy, flaw.uniform(0.06, 0.12), 0.006)
        tint = [(0.65, 0.42, 0.22), (0.30, 0.28, 0.26), (1.5, 1.4, 1.0)][flaw.integers(3)]
        rim = 0.8 + 0.4 * np.exp(-((edge / 0.012) ** 2))  # a drop dries darker at its edge
        albedo = paint(albedo, albedo * tint, np.clip(flaw.uniform(0.5, 1) * inside(edge, 0.04 * size) * rim, 0, 1))
    if defect == "fibre":
        edge = path_distance(x, y, wander(flaw, cx, cy, flaw.uniform(0.3, 0.8), 0.1)) - flaw.uniform(0.008, 0.012)
        colour = [(0.06, 0.06, 0.07), (0.52, 0.12, 0.12), (0.62, 0.50, 0.20), (0.93, 0.93, 0.90)][flaw.integers(4)]
        albedo = paint(albedo, colour, inside(edge, 1.5))
        height = np.maximum(height, 0.028 - 0.9 * np.maximum(edge + 0.008, 0))
    return albedo, height, np.full_like(x, 0.03)


def nut(size, rng, defect, flaw) -> Surface:
    """Makes a hexagonal steel nut on a dark plate, at any angle."""
    x, y = plane(size)
    turn, (cx, cy), apothem = rng.uniform(0, 2 * np.pi), 0.5 + rng.uniform(-0.03, 0.03, 2), rng.uniform(0.315, 0.325)
    u, v, radius = x - cx, y - cy, np.hypot(x - cx, y - cy)
    sides = [np.abs(u * np.cos(n) + v * np.sin(n)) - apothem for n in turn + np.arange(3) * np.pi / 3]
    if defect == "corner":
        n = turn + np.pi / 6 + flaw.integers(6) * np.pi / 3 + flaw.uniform(-0.15, 0.15)
        sides.append(u * np.cos(n) + v * np.sin(n) - flaw.uniform(0.26, 0.31) + 0.006 * noise(flaw, size, 20))
    outline = np.max([*sides, 0.165 - radius], 0)
    body = inside(outline)
    top = 0.10 - 0.45 * np.maximum(radius - 0.30, 0) - 0.7 * np.maximum(0.205 - radius, 0)
    height = (top + 0.004 * np.sin(2 * np.pi * radius / 0.016) * inside(radius - 0.20, 2)) * inside(outline, 3)
    # A lathed face reflects along the direction of the light: the bow tie on every turned disc.
    face = inside(radius - 0.30, 6) * inside(0.205 - radius, 3)
    shine = 0.20 * np.cos(np.arctan2(v, u) - LIGHT) ** 6 - 0.04 + 0.02 * np.sin(2 * np.pi * radius / 0.021)
    plate = np.array([0.235, 0.25, 0.27]) * (1 + 0.05 * noise(rng, size, 6)[..., None])
    albedo = paint(plate, (0.5 + face * shine)[..., None] * (0.98, 1.0, 1.03), body)
    albedo, gloss = paint(albedo, (0.05, 0.05, 0.06), inside(radius - 0.165)), 0.65 * body
    ring, angle = flaw.uniform(0.23, 0.29), flaw.uniform(0, 2 * np.pi)
    px, py = cx + ring * np.cos(angle), cy + ring * np.sin(angle)
    if defect == "scratch":
        edge = path_distance(x, y, wander(flaw, px, py, flaw.uniform(0.18, 0.36), 0.015, 6))
        cut = inside(edge - flaw.uniform(0.004, 0.009), 2) * body
        albedo = paint(albedo, [(0.95, 0.95, 0.97), (0.16, 0.15, 0.15)][flaw.integers(2)], 0.8 * cut)
        height = height - 0.012 * cut
    if defect == "dent":
        bowl = np.clip(-blob_distance(x, y, flaw, px, py, flaw.uniform(0.04, 0.07), 0.006) / 0.03, 0, 1) * body
        height = height - flaw.uniform(0.014, 0.028) * bowl * (1 + 0.15 * noise(flaw, size, 24))
        albedo = paint(albedo, 0.72 * albedo, bowl)
    if defect == "rust":
        bloom = inside(blob_distance(x, y, flaw, px, py, flaw.uniform(0.05, 0.12), 0.02), 0.03 * size) * body
        albedo = paint(albedo, np.array([0.46, 0.24, 0.11]) * (1 + 0.2 * noise(flaw, size, 30)[..., None]), bloom)
        gloss = gloss * (1 - bloom)
    return albedo, height, gloss


# Layout of the board, in units of 1/64 of the image.
TRACES = (
    ((0, 44), (26, 44), (34, 52), (64, 52)), ((0, 49), (23.9, 49), (31.9, 57), (64, 57)),
    ((0, 54), (21.9, 54), (29.9, 62), (64, 62)), ((28, 22), (37, 22), (42, 17)), ((28, 26), (42, 26)),
    ((28, 30), (37, 30), (42, 35)), ((28, 34), (33, 34), (40, 41), (64, 41)), ((12, 26), (0, 26)),
    ((12, 22), (8, 22), (4, 18), (4, 10), (8, 6)), ((12, 30), (7, 30), (4, 33), (4, 37)),
    ((12, 34), (10, 36), (10, 40)), ((22, 6), (22, 11)),
    ((15, 6), (15, 11), (19, 15), (32, 15), (36, 11), (36, 6), (39, 6), (41, 8), (46, 8)), ((29, 6), (33, 2), (64, 2)),
    ((54, 8), (64, 8)), ((50, 17), (55, 17), (58, 14), (64, 14)), ((50, 26), (64, 26)),
    ((50, 35), (54, 35), (57, 32), (57, 26)), ((44, 46.5), (64, 46.5)),
)  # fmt: skip
SPANS = ((3, 21, 44), (3, 21, 49), (3, 19, 54), (37, 60, 52), (37, 60, 57), (43, 61, 41), (36, 61, 2))  # x, x, y
GAPS = ((4, 19, 44), (4, 17, 49), (38, 60, 52), (38, 60, 57))  # traces with another one 5 units below
CHIPS = ((46, 17), (46, 26), (46, 35), (50, 8))  # three resistors and a capacitor
DRILLS = ((8, 6), (15, 6), (22, 6), (29, 6), (36, 6), (4, 37), (10, 40), (22, 11), (57, 26), (44, 46.5))
LABELS = ((44, 20.4, "R1"), (44, 29.4, "R2"), (44, 38.4, "R3"), (48, 11.4, "C1"), (33, 36.5, "U2"), (16, 26, "3C12"))
GLYPHS = {"R": "040020220224", "C": "20000424", "U": "00042420",  # x and y of each corner of a stroke
          "1": "1014", "2": "002022020424", "3": "0020220222240424"}  # fmt: skip


def board(size, rng, defect, flaw) -> Surface:
    """Makes a corner of a printed circuit board: the same layout in every image, placed by a fixture."""
    (x, y), turn, shift = plane(size) - 0.5, np.deg2rad(rng.uniform(-0.5, 0.5)), 0.5 + rng.uniform(-0.006, 0.006, 2)
    # float32 halves the time of a hundred distance fields
    u = (64 * (x * np.cos(turn) + y * np.sin(turn) + shift[0])).astype(np.float32)
    v = (64 * (y * np.cos(turn) - x * np.sin(turn) + shift[1])).astype(np.float32)

    def boxes(*where):
        fields = [np.maximum(np.abs(u - cx) - width / 2, np.abs(v - cy) - tall / 2) for cx, cy, width, tall in where]
        return inside(np.min(fields, 0) / 64)

    def discs(*where):
        return inside(np.min([np.hypot(u - cx, v - cy) - radius for cx, cy, radius in where], 0) / 64)

    def letters(left, top, text):
        strokes = [[(left + 2.4 * n + 0.8 * int(p), top + 0.65 * int(q)) for p, q in zip(g[::2], g[1::2])]
                   for n, g in enumerate(GLYPHS[letter] for letter in text)]  # fmt: skip
        return inside((np.min([path_distance(u, v, points) for points in strokes], 0) - 0.25) / 64)

    lines = np.min([path_distance(u, v, points) for points in TRACES], 0) - 1.05
    if defect == "open":
        left, right, level = SPANS[flaw.integers(len(SPANS))]
        half, middle = flaw.uniform(2.5, 5), flaw.uniform(left + 4, right - 4)
        gap = path_distance(u, v, ((middle - half, level), (middle + half, level))) - 1.9
        lines = np.maximum(lines, 0.25 * noise(flaw, size, 24) - gap)
    if defect == "short":
        left, right, level = GAPS[flaw.integers(len(GAPS))]
        middle, half = flaw.uniform(left, right), flaw.uniform(2.5, 5)
        sides = np.abs(u - middle) - half - 0.2 * (v - level - 2.5) ** 2 + 0.3 * noise(flaw, size, 24)
        lines = np.minimum(lines, np.maximum(sides, np.abs(v - level - 2.5) - 2.5))
    albedo = np.array([0.05, 0.25, 0.14]) * (1 + 0.03 * noise(rng, size, 8)[..., None])
    albedo = paint(albedo, (0.25, 0.60, 0.33), inside(lines / 64, 1.5))
    pins = [(place, row, 4.6, 2.2) for row in (22, 26, 30, 34) for place in (11.5, 28.5)]
    tin = boxes(*pins, *((cx + side, cy, 3.6, 5) for cx, cy in CHIPS for side in (-4, 4)))
    tin = np.maximum(tin, discs(*((cx, cy, 2.5 if cy == 6 else 1.8) for cx, cy in DRILLS)))
    drilled = discs(*((cx, cy, 1.2 if cy == 6 else 0.8) for cx, cy in DRILLS))
    albedo = paint(paint(albedo, (0.70, 0.69, 0.64), tin), (0.04, 0.05, 0.04), drilled)
    height, gloss = 0.005 * inside(lines / 64, 3) + 0.006 * tin * (1 - drilled), 0.08 + 0.3 * tin * (1 - drilled)
    albedo = paint(albedo, (0.86, 0.88, 0.84), np.max([letters(*label) for label in LABELS[:-1]], 0))
    absent = flaw.integers(len(CHIPS)) if defect == "missing" else None
    for number, (cx, cy) in enumerate(CHIPS):
        if number != absent:
            whole, middle = boxes((cx, cy, 8.6, 5.2)), boxes((cx, cy, 6, 5.2))
            albedo = paint(albedo, (0.66, 0.66, 0.64), whole)
            albedo = paint(albedo, (0.09, 0.09, 0.10) if number < 3 else (0.55, 0.42, 0.29), middle)
            height, gloss = np.maximum(height, 0.016 * whole), gloss * (1 - middle)
    body = boxes((20, 28, 12.4, 16))
    albedo = paint(paint(albedo, (0.10, 0.10, 0.11), body), (0.20, 0.20, 0.21), discs((15.8, 22, 1)))
    albedo = paint(albedo, (0.55, 0.55, 0.55), letters(*LABELS[-1]))
    height, gloss = np.maximum(height, 0.035 * body), gloss * (1 - 0.9 * body)
    if defect == "splash":
        middle = flaw.uniform(-0.35, 0.35, 2)
        for _ in range(flaw.integers(1, 4)):
            radius = flaw.uniform(0.02, 0.06)
            edge = blob_distance(x, y, flaw, *middle + flaw.normal(0, 0.05, 2), radius, 0.002)
            drop = inside(edge, 1.5)
            albedo, gloss = paint(albedo, (0.58, 0.59, 0.60), drop), gloss * (1 - drop) + 0.9 * drop
            height = height + (0.5 * np.sqrt(np.clip(-edge * radius, 0, None)) + 0.6 * (height.mean() - height)) * drop
    return albedo, height, gloss


def photograph(surface: Surface, rng) -> np.ndarray:
    """Renders a surface under the lamp and through the lens, before sensor noise: (S, S, 3) in [0, 1]."""
    (albedo, height, gloss), size = surface, len(surface[0])
    azimuth, elevation = LIGHT + rng.uniform(-0.06, 0.06), np.deg2rad(rng.uniform(46, 52))
    ray = np.array([np.cos(azimuth), np.sin(azimuth)])  # in the plane of the table, towards the lamp
    light = np.array([*ray * np.cos(elevation), np.sin(elevation)])
    half = np.array([*light[:2], light[2] + 1]) / np.sqrt(2 + 2 * light[2])  # between lamp and camera
    slope_y, slope_x = np.gradient(height * size)
    normal = np.stack([-slope_x, -slope_y, np.ones_like(height)], -1)
    normal = normal / np.linalg.norm(normal, axis=-1, keepdims=True)
    diffuse, specular = np.clip(normal @ light, 0, None) / light[2], gloss * np.clip(normal @ half, 0, None) ** 24
    # A point lies in shadow if the surface rises above the ray from the point to the lamp.
    rise = np.full_like(height, -1.0)
    for step in range(1, round(0.12 * size), max(1, size // 128)):
        shift = np.rint(-step * ray).astype(int)
        rise = np.maximum(rise, np.roll(height, shift[::-1], (0, 1)) - step / size * np.tan(elevation))
    lit = 1 - scipy.ndimage.gaussian_filter(np.clip((rise - height) / 0.012, 0, 1), 0.006 * size)
    hollow = np.clip((scipy.ndimage.gaussian_filter(height, 0.02 * size) - height) / 0.03, 0, 0.5)
    image = albedo * ((0.42 + 0.58 * diffuse * lit) * (1 - hollow))[..., None] + (specular * lit)[..., None]
    x, y = plane(size) - 0.5
    tilt, exposure, blur = rng.uniform(-0.08, 0.08, 2), rng.uniform(0.97, 1.03), size * rng.uniform(0.0035, 0.005)
    image = image * (exposure * (1 + tilt[0] * x + tilt[1] * y - 0.22 * (x * x + y * y)))[..., None]
    return np.clip(scipy.ndimage.gaussian_filter(image * rng.uniform(0.99, 1.01, 3), (blur, blur, 0)), 0, 1)


def tidy(changed: np.ndarray) -> np.ndarray:
    """Closes small holes of a mask (S, S) and removes small connected components, as a person who draws it would."""
    reach, smallest = max(1, len(changed) // 100), 0.0006 * changed.size
    closed = scipy.ndimage.binary_closing(np.pad(changed, reach), iterations=reach)[reach:-reach, reach:-reach]
    for value in (False, True):  # first holes, then components
        labels, _ = scipy.ndimage.label(closed == value)
        closed = closed ^ ((np.bincount(labels.ravel()) < smallest)[labels] & (labels > 0))
    return closed


def draw(category: str, index: int, defect: str | None, seed: int, size: int,
         split: str = "train") -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Draws an image, uint8 (S, S, 3), and its mask, bool (S, S), outside of which no pixel depends on the defect.

    `defect` is one of `DEFECTS[category]`, or None for a good image; `seed`, `split` (any word) and `index` are the key
    of the random streams; `size` is S, 64 to 512 pixels.
    """
    if defect not in (None, *DEFECTS[category]):
        raise ValueError(f"expected a defect of {category}, one of {DEFECTS[category]}, got {defect!r}")
    key, make = (int(seed), category, split, int(index)), {"fabric": fabric, "nut": nut, "board": board}[category]

    def render(kind, attempt):
        surface = make(size, stream(key, "surface"), kind, stream(key, "defect", kind, attempt))
        return photograph(surface, stream(key, "camera"))

    image, mask = render(None, 0), np.zeros((size, size), bool)
    for attempt in range(100 if defect else 0):
        flawed = render(defect, attempt)
        mask = tidy(np.abs(flawed - image).max(-1) > VISIBLE)
        if AREA[0] <= mask.mean() <= AREA[1]:  # nearly always in the first attempt
            image = np.where(mask[..., None], flawed, image)
            break
    else:
        if defect:
            raise RuntimeError(f"no {defect} of {category} has a fitting size in 100 attempts")
    image = image + stream(key, "sensor").standard_normal(image.shape) * (0.006 + 0.012 * np.sqrt(image))
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8), mask


def write_sample_data(root: Path, seed: int = 0, size: int = 128, train: int = 40, test: int = 16,
                      per_defect: int = 8, categories=CATEGORIES) -> Path:  # fmt: skip
    """Writes the data set in MVTec AD's layout, whole or not at all; leaves one of the same recipe untouched.

    `train` good training images and `test` good test images for each category, `per_defect` test images for each
    defect, `size` pixels a side (64 to 512). If `root` holds anything else: UserError.
    """
    numbers = {"version": VERSION, "seed": seed, "size": size, "train": train, "test": test, "per_defect": per_defect}
    recipe = json.dumps({**numbers, "categories": list(categories)})
    if not root.exists():
        root.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=root.name + ".", dir=root.parent) as temporary:
            made = Path(temporary) / root.name
            for name in categories:
                defects = [(f"test/{kind}", kind, per_defect) for kind in DEFECTS[name]]
                for split, defect, count in [("train/good", None, train), ("test/good", None, test), *defects]:
                    images, masks = made / name / split, made / name / "ground_truth" / (defect or "")
                    for folder in (images, masks):
                        folder.mkdir(parents=True, exist_ok=True)
                    for index in range(count):
                        image, mask = draw(name, index, defect, seed, size, split)
                        Image.fromarray(image).save(images / f"{index:03d}.png")
                        if defect:
                            Image.fromarray(np.uint8(255) * mask).save(masks / f"{index:03d}_mask.png")
            (made / "recipe.json").write_text(recipe)
            try:
                made.rename(root)
            except OSError:  # another process may have written it meanwhile
                if not root.exists():
                    raise
    if not (root / "recipe.json").is_file() or (root / "recipe.json").read_text() != recipe:
        raise UserError(f"{root} exists and is not the sample data {recipe}; remove it or choose another folder")
    return root


def generated_textures(n: int, size: int, seed: int) -> np.ndarray:
    """Draws colour textures of ten families in rotation, uint8 (n, 3, size, size), to replace a texture folder."""
    images = np.empty((n, 3, size, size), np.uint8)
    for index in range(n):
        rng = stream(int(seed), "texture", index)
        field, tones = texture_field(rng, size, index % 10), rng.integers(2, 6)
        palette = rng.uniform(0, 1, (tones, 1)) + rng.uniform(0.1, 1) * rng.uniform(-0.5, 0.5, (tones, 3))
        level = (field - field.min()) / np.ptp(field) * (tones - 1)
        image = np.stack([np.interp(level, range(tones), channel) for channel in palette.T])
        image = image * (1 + rng.uniform(0, 0.15) * rng.standard_normal((size, size)))
        images[index] = np.rint(np.clip(image, 0, 1) * 255)
    return images


def texture_field(rng, size: int, family: int) -> np.ndarray:
    """Draws the grey values (S, S), in any range, of a texture of family 0 to 9."""
    (x, y), turn, bumps, sharp = plane(size), rng.uniform(0, np.pi), *np.exp(rng.uniform((1, 0), (3.4, 2.5)))
    u = bumps * (x * np.cos(turn) + y * np.sin(turn)) + rng.uniform(0, 0.4) * noise(rng, size, 4)
    v = bumps * (y * np.cos(turn) - x * np.sin(turn)) + rng.uniform(0, 0.4) * noise(rng, size, 4)
    wave = np.sin(2 * np.pi * u)

    def cells():  # each cell has one tone, darker with the distance from its centre
        seeds = rng.random((size, size)) > (bumps / size) ** 2
        seeds.flat[rng.integers(seeds.size)] = False  # at least one
        distance, (row, column) = scipy.ndimage.distance_transform_edt(seeds, return_indices=True)
        return rng.random((size, size))[row, column] - rng.random() * distance * bumps / size

    families = (
        lambda: sum(noise(rng, size, 2**k) * rng.uniform(0.5, 0.8) ** k for k in range(1, 7)),  # clouds
        lambda: np.tanh(sharp * wave),  # stripes
        lambda: np.tanh(sharp * wave * np.sin(2 * np.pi * v)),  # checks
        cells,
        lambda: np.sin(2 * u + rng.uniform(1, 4) * noise(rng, size, 5)) + 0.5 * noise(rng, size, 20),  # marble
        lambda: np.tanh(4 * sharp * (rng.uniform(0.15, 0.45) - np.hypot(u % 1 - 0.5, v % 1 - 0.5))),  # dots
        lambda: np.tanh(sharp * noise(rng, size, int(bumps))),  # blobs
        lambda: np.hypot(x - rng.random(), y - rng.random()) + 0.02 * noise(rng, size, 50),  # gradients
        lambda: np.minimum(np.abs(v % 1 - 0.5), 2 * np.abs((u / 2 + v // 1 / 2) % 1 - 0.5)).clip(0.04, 0.1),  # bricks
        lambda: noise(rng, size, int(3 * bumps), 3) + 0.5 * wave,  # grain
    )
    return families[family]()
