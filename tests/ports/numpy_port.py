"""A port of noise-to-norm, and of the memory with coordinate attention and decoder, to NumPy: no torch, no adref.

python tests/ports/numpy_port.py KIT OUT     reads KIT/manifest.json, writes OUT/cases/*.npz

Written from the kit's manifest and README and the papers' formulas, it shows that they suffice, and tests
`python tools/conformance.py verify KIT --outputs OUT`. Inference only. Everything is float64.
"""

import json
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

Array = np.ndarray


# -- the recipe -------------------------------------------------------------------------------------------------------


def hashed(name: str, shape: list[int]) -> Array:
    """Computes h(name, i) of the kit's README."""
    x = (np.arange(1, int(np.prod(shape)) + 1, dtype=np.uint64) * 0x9E3779B9 + zlib.crc32(name.encode())) & 0xFFFFFFFF
    x = ((x ^ (x >> np.uint64(16))) * 0x85EBCA6B) & 0xFFFFFFFF
    x = ((x ^ (x >> np.uint64(13))) * 0xC2B2AE35) & 0xFFFFFFFF
    return ((x ^ (x >> np.uint64(16))) >> np.uint64(8)).astype(np.float64).reshape(shape) / 2**24


def array_of(entry) -> Array | list[Array]:
    """Computes an input of the manifest."""
    if isinstance(entry, list):
        return [array_of(item) for item in entry]
    return entry["scale"] * hashed(entry["hash"], entry["shape"]) + entry["shift"]


def weight_of(key: str, shape: list[int]) -> Array:
    """Computes a weight of the manifest."""
    h = hashed(key, shape)
    if len(shape) > 1:
        return (h - 0.5) * np.sqrt(12 / (h.size / shape[0]))
    return 0.5 + h if key.endswith(("weight", "running_var")) else (h - 0.5) * 0.2


class Case:
    """A case: its inputs, options and weights, and the arrays computed so far."""

    def __init__(self, entry: dict):
        self.inputs = {name: array_of(value) for name, value in entry["inputs"].items()}
        self.options = entry["options"]
        self.weights = {key: weight_of(key, shape) for key, shape in entry["weights"].items()}
        self.arrays: dict[str, Array] = {}

    def keep(self, name: str, array: Array) -> Array:
        """Stores the output of a part and returns it."""
        calls = sum(key.partition("#")[0] == f"trace/{name}" for key in self.arrays)
        self.arrays[f"trace/{name}" + (f"#{calls + 1}" if calls else "")] = array
        return array

    def convolve(self, name: str, x: Array, padding: int = 0) -> Array:
        """Convolves with `name`.weight and, if there is one, .bias."""
        bias, mode = self.weights.get(f"{name}.bias"), self.options.get("padding", "zeros")
        mode = "constant" if mode == "zeros" else mode
        return self.keep(name, convolution(x, self.weights[f"{name}.weight"], bias, padding, mode))

    def normalise(self, name: str, x: Array, eps: float = 1e-5) -> Array:
        """Applies a batch norm in evaluation mode."""
        gain, shift, mean, variance = (
            self.weights[f"{name}.{part}"][:, None, None] for part in ("weight", "bias", "running_mean", "running_var")
        )
        return self.keep(name, (x - mean) / np.sqrt(variance + eps) * gain + shift)


# -- operations, all on (B, C, H, W) ----------------------------------------------------------------------------------


def pad(x: Array, reach: int, mode: str = "constant") -> Array:
    """Adds zeros, or mirrors the image at its outermost pixels."""
    return np.pad(x, ((0, 0), (0, 0), (reach, reach), (reach, reach)), mode=mode)


def convolution(x: Array, weight: Array, bias: Array | None, padding: int = 0, mode: str = "constant") -> Array:
    """Cross-correlates with (out, in, h, w)."""
    windows = sliding_window_view(pad(x, padding, mode), weight.shape[2:], axis=(2, 3))  # (B, C, H, W, h, w)
    y = np.tensordot(windows, weight, axes=((1, 4, 5), (1, 2, 3))).transpose(0, 3, 1, 2)
    return y if bias is None else y + bias[:, None, None]


def transposed_convolution(x: Array, weight: Array, bias: Array, stride: int, padding: int) -> Array:
    """Applies the adjoint of a convolution with a stride; weight (in, out, h, w)."""
    batch, _, height, width = x.shape
    spread = np.zeros((batch, x.shape[1], (height - 1) * stride + 1, (width - 1) * stride + 1))
    spread[:, :, ::stride, ::stride] = x
    turned = weight[:, :, ::-1, ::-1].transpose(1, 0, 2, 3)
    return convolution(spread, turned, bias, weight.shape[2] - 1 - padding)


def resize_matrix(length: int, target: int, aligned: bool) -> Array:
    """Returns the matrix of linear interpolation with half-pixel centres or aligned corners."""
    if aligned:
        place = np.arange(target) * (length - 1) / (target - 1)
    else:
        place = np.clip((np.arange(target) + 0.5) * length / target - 0.5, 0, None)
    low = np.minimum(place.astype(int), length - 1)
    matrix = np.zeros((target, length))
    matrix[np.arange(target), low] += 1 - (place - low)
    matrix[np.arange(target), np.minimum(low + 1, length - 1)] += place - low
    return matrix


def resize(x: Array, height: int, width: int, aligned: bool = False) -> Array:
    """Resizes bilinearly, without antialiasing."""
    rows, columns = resize_matrix(x.shape[2], height, aligned), resize_matrix(x.shape[3], width, aligned)
    return rows @ x @ columns.T


def pixel_unshuffle(x: Array) -> Array:
    """(B, C, 2 H, 2 W) -> (B, 4 C, H, W); channel 4 c + 2 i + j is row i, column j of each 2 x 2."""
    batch, channels, height, width = x.shape
    parts = x.reshape(batch, channels, height // 2, 2, width // 2, 2).transpose(0, 1, 3, 5, 2, 4)
    return parts.reshape(batch, 4 * channels, height // 2, width // 2)


def pixel_shuffle(x: Array) -> Array:
    """Inverts `pixel_unshuffle`."""
    batch, channels, height, width = x.shape
    parts = x.reshape(batch, channels // 4, 2, 2, height, width).transpose(0, 1, 4, 2, 5, 3)
    return parts.reshape(batch, channels // 4, 2 * height, 2 * width)


def relu(x: Array) -> Array:
    """Computes max(x, 0)."""
    return np.maximum(x, 0)


def sigmoid(x: Array) -> Array:
    """Computes 1 / (1 + e^-x)."""
    return 1 / (1 + np.exp(-x))


def hard_swish(x: Array) -> Array:
    """Computes x relu6(x + 3) / 6."""
    return x * np.clip(x + 3, 0, 6) / 6


def softmax(x: Array, axis: int) -> Array:
    """Computes the softmax over one axis."""
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


# -- noise-to-norm ----------------------------------------------------------------------------------------------------


def selective_kernel_fusion(case: Case, name: str, maps: list[Array]) -> Array:
    """Computes the fusion: sum_i softmax_i(A_i z) m_i."""
    z = case.convolve(f"{name}conv_du.0", sum(m.mean(axis=(2, 3), keepdims=True) for m in maps))
    z = case.keep(f"{name}conv_du.1", np.where(z > 0, z, case.weights[f"{name}conv_du.1.weight"][0] * z))  # PReLU
    weights = softmax(np.stack([case.convolve(f"{name}fcs.{i}", z) for i in range(len(maps))]), axis=0)
    return sum(m * w for m, w in zip(maps, weights))


def residual_attention(case: Case, name: str, x: Array) -> Array:
    """Computes residual attention: r + a v."""
    v = case.convolve(f"{name}body.0", x)
    v = case.keep(f"{name}body.2", relu(case.convolve(f"{name}body.1", v, padding=1)))
    v = case.convolve(f"{name}body.3", v, padding=1)
    r = case.convolve(f"{name}shortcut", x)
    a = case.keep(f"{name}attention.0", v.mean(axis=(2, 3), keepdims=True))
    a = case.convolve(f"{name}attention.3", relu(case.convolve(f"{name}attention.1", a)))
    return r + case.keep(f"{name}attention.4", sigmoid(a)) * v


def m_net(case: Case, x: Array, levels: int, root: str) -> Array:
    """Applies the M-net, with one first convolution for all levels and a block behind it on the first."""

    def enlarge(level: int, g: Array) -> Array:
        m = case.convolve(f"{root}outs.{level}", g, padding=1)
        return resize(m, m.shape[2] << level, m.shape[3] << level) if level else m

    def block(name: str, x: Array) -> Array:
        return case.keep(f"{root}{name}", residual_attention(case, f"{root}{name}.", x))

    maps, f = [], block("encoder.0", case.convolve(f"{root}stems.0", x, padding=1))
    for i in range(levels - 1):
        maps.append(f)
        x = resize(x, x.shape[2] // 2, x.shape[3] // 2)
        stem = case.convolve(f"{root}stems.0", x, padding=1)
        down = case.convolve(f"{root}downs.{i}", pixel_unshuffle(f))
        f = block(f"encoder.{i + 1}", np.concatenate((down, stem), axis=1))
    outputs, g = [enlarge(levels - 1, f)], f
    for i in reversed(range(levels - 1)):
        up = case.convolve(f"{root}ups.{i}", pixel_shuffle(g))
        skip = case.convolve(f"{root}skips.{i}", maps[i], padding=1)
        g = block(f"decoder.{i}", np.concatenate((up, skip), axis=1))
        outputs.append(enlarge(i, g))
    fused = case.keep(f"{root}fusion", selective_kernel_fusion(case, f"{root}fusion.", outputs))
    return case.convolve(f"{root}last", fused, padding=1)


def blurred(x: Array, sigma: float, reach: int, border: str) -> Array:
    """Computes a Gaussian mean, its window cut at `reach`."""
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    weights /= weights.sum()
    x = pad(x, reach, border)
    x = np.tensordot(sliding_window_view(x, len(weights), axis=2), weights, axes=1)
    return np.tensordot(sliding_window_view(x, len(weights), axis=3), weights, axes=1)


def ms_ssim_l1(a: Array, b: Array, sigmas: list[float], constants: tuple[float, float], border: str) -> tuple:
    """Computes equations 2 to 7 and the blurred error of equation 9, as means over the channels."""
    (c1, c2), reach, similarity = constants, int(np.ceil(2 * max(sigmas))), 1.0
    for sigma in sigmas:
        mu_a, mu_b, aa, bb, ab = (blurred(p, sigma, reach, border) for p in (a, b, a * a, b * b, a * b))
        cs = (2 * (ab - mu_a * mu_b) + c2) / (aa - mu_a**2 + bb - mu_b**2 + c2)
        similarity = similarity * cs
    luminance = (2 * mu_a * mu_b + c1) / (mu_a**2 + mu_b**2 + c1)
    error = blurred(abs(a - b), sigmas[-1], reach, border)
    return (luminance * similarity).mean(axis=1, keepdims=True), error.mean(axis=1, keepdims=True)


def noise_to_norm(case: Case) -> None:
    """Computes equations 1 to 9: scores, maps and reconstruction of images and given noise."""
    o, images = case.options, case.inputs["images"]
    noisy = (1 - o["noise_share"]) * images + o["noise_share"] * (case.inputs["noise"] + 1) / 2
    v = (case.keep("network", m_net(case, 2 * noisy - 1, o["levels"], "network.")) + 1) / 2
    similarity, error = ms_ssim_l1(v, images, o["sigmas"], (0.01, 0.03), "reflect")
    maps = o["map_alpha"] * (1 - similarity) + (1 - o["map_alpha"]) * error
    scores = maps.max(axis=(1, 2, 3))
    case.arrays |= {"out:scores": scores, "out:maps": maps, "out:reconstruction": np.clip(v, 0, 1)}


# -- memory, coordinate attention, decoder ----------------------------------------------------------------------------


def memory(case: Case) -> None:
    """Computes equations 7 to 10 of the ViT autoencoder with the cosine and a threshold of 1 / K."""
    queries, items = case.inputs["maps"].transpose(0, 2, 3, 1), case.weights["weight"]
    a, b = (v / np.maximum(np.linalg.norm(v, axis=-1, keepdims=True), 1e-12) for v in (queries, items))
    w = softmax(a @ b.T / case.options.get("temperature", 1.0), axis=-1)
    excess = w - 1 / len(items)
    s = relu(excess) * w / (abs(excess) + 1e-12)
    total = s.sum(axis=-1, keepdims=True)
    recalled = s / np.maximum(total, 1e-12)
    output = (recalled @ items).transpose(0, 3, 1, 2)
    case.arrays |= {"out:output": output, "out:weights": recalled, "out:empty": total[..., 0] == 0}


def coordinate_attention(case: Case) -> None:
    """Computes x g_h g_w, both gates from the means of rows and columns."""
    x = case.inputs["maps"]
    height = x.shape[2]
    rows, columns = x.mean(axis=3, keepdims=True), x.mean(axis=2, keepdims=True)
    y = case.convolve("conv1", np.concatenate((rows, columns.transpose(0, 1, 3, 2)), axis=2))
    y = hard_swish(case.normalise("bn1", y))
    g_h = sigmoid(case.convolve("conv_h", y[:, :, :height]))
    g_w = sigmoid(case.convolve("conv_w", y[:, :, height:].transpose(0, 1, 3, 2)))
    case.arrays["out"] = x * g_h * g_w


def decoder(case: Case) -> None:
    """Applies six transposed convolutions of 3 x 3, a batch norm and ReLU after each except the last, then tanh."""
    x = case.inputs["maps"]
    for i, stride in enumerate((1, 1, 1, 2, 2, 2)):
        name = f"layers.{3 * i}"
        weight, bias = case.weights[f"{name}.weight"], case.weights[f"{name}.bias"]
        x = case.keep(name, transposed_convolution(x, weight, bias, stride, padding=stride - 1))
        if i < 5:
            x = case.keep(f"layers.{3 * i + 2}", relu(case.normalise(f"layers.{3 * i + 1}", x)))
    case.arrays["out"] = np.tanh(resize(x, *case.options["size"], aligned=True))


def fusion(case: Case) -> None:
    """Runs selective kernel fusion alone."""
    case.arrays["out"] = selective_kernel_fusion(case, "", case.inputs["maps"])


def attention(case: Case) -> None:
    """Runs residual attention alone."""
    case.arrays["out"] = residual_attention(case, "", case.inputs["maps"])


def loss(case: Case) -> None:
    """Computes MS-SSIM and error alone."""
    similarity, error = ms_ssim_l1(
        case.inputs["a"], case.inputs["b"], [0.5, 1.0, 2.0, 4.0, 8.0], (0.01**2, 0.03**2), "reflect"
    )
    case.arrays |= {"out:0": similarity, "out:1": error}


PORTED: dict[str, Callable[[Case], None]] = {
    "noise_to_norm.loss.ms_ssim_l1": loss,
    "memory.Memory.cosine": memory,
    "memory.Memory.sharp": memory,
    "coordinate_attention.CoordinateAttention": coordinate_attention,
    "vit_autoencoder.decoder.Decoder.anovit": decoder,
    "selective_kernel.SelectiveKernelFusion": fusion,
    "noise_to_norm.network.ResidualAttention.relu": attention,
    "method.noise_to_norm": noise_to_norm,
}


def main(kit: Path, out: Path) -> None:
    """Writes the results of this port."""
    cases = {entry["name"]: entry for entry in json.loads((kit / "manifest.json").read_text())["cases"]}
    (out / "cases").mkdir(parents=True, exist_ok=True)
    for name, compute in PORTED.items():
        case = Case(cases[name])
        compute(case)
        np.savez(out / "cases" / f"{name}.npz", **case.arrays)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
