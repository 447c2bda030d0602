"""A trained method for programs that have no adref: python tools/export.py RUN --format onnx|pt2|npz --out DIR

    onnx   DIR/STAGE.onnx, weights inside (beside it, in STAGE.onnx.data, above 2 GB); needs pip install '.[onnx]'
    pt2    DIR/STAGE.pt2, a program of torch.export
    npz    DIR/weights.npz, every tensor of the checkpoint under its name

DIR/export.json has the options, the threshold, and names, shapes and ranges of all inputs and outputs. Most methods are
one stage, `score`; what no graph can hold (random numbers, searches, samplers) stays outside, and a stage's note says
what it is. Each graph is run on a batch of another size than the one that it was drawn with, and compared with the
method; a difference above 1e-4 leaves nothing.
"""

import argparse
import contextlib
import copy
import importlib.util
import io
import logging
import math
import os
import shutil
import sys
import warnings
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adref.layers.unet import UNet
from adref.method import Method, Trainable
from adref.methods.draem.method import DRAEM
from adref.methods.noise_to_norm.method import NOISE_MEAN, NOISE_STD, NoiseToNorm, blend
from adref.methods.sdas.method import SDAS
from adref.methods.sernet.method import SeRNet, repair
from adref.ops import losses
from adref.options import UserError, to_json
from adref.run.cli import guarded
from adref.run.directory import load, load_checkpoint, read_config, refuse_existing, versions
from adref.run.files import sha256, write_json

LIMIT = 1e-4  # of a difference from the method, in units of the largest value where that is above 1
TORCH = {"onnx": (2, 9), "pt2": (2, 7)}  # with which this was tried; older exporters fail in one way or another
LARGE = 1.9e9  # bytes of weights above which they get a file of their own: an ONNX file ends at 2 GiB
RANGES = {
    **dict.fromkeys(("images", "similar", "probability"), "0 to 1"), "mask": "0 or 1", "x": "about -1 to 1",
    "steps": "0 to options.steps - 1", "labels": "0 to the number of options.categories - 1",
    **dict.fromkeys(("scores", "maps"), "higher is more anomalous"),
}  # fmt: skip
PICTURES = (
    "images: the whole picture, RGB, as adref.samples.resize brings it to options.size with options.resize, / 255. A "
    "picture is anomalous where its score >= threshold."
)


class Axis(NamedTuple):
    """An axis of a graph that may have any length of `least`, `least` + `multiple`, and so on."""

    name: str
    multiple: int = 1
    least: int = 1


class Stage(NamedTuple):
    """A part of a method that becomes a graph."""

    name: str  # of its file
    module: nn.Module  # tensors -> tuple of tensors
    inputs: dict[str, Tensor]  # examples, in the order of the module's arguments
    outputs: tuple[str, ...]
    dynamic: dict[str, dict[int, Axis]]  # input -> its axes that may change
    note: str  # what whoever runs it must know and do


# -- what becomes a graph: all that knows methods ---------------------------------------------------------------------

BATCH, RESULT = {0: Axis("batch")}, ("scores", "maps")


class Score(nn.Module):
    """Images -> scores (B,), maps (B, 1, H, W)."""

    def __init__(self, method: Trainable):
        super().__init__()
        self.method = method

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return self.method.score(images)


class ScoreNoisy(Score):
    """The same of noise-to-norm, with its noise (draws, B, 3, H, W)."""

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, ...]:
        rebuilt = torch.stack([self.method(blend(images, n, self.method.options)) for n in noise.unbind()])
        maps = self.method.map_of(images, rebuilt.mean(dim=0))
        return self.method.image_scores(maps)["score"], maps


class Segment(Score):
    """SeRNet's first network: images -> probability of a defect (B, 1, H, W)."""

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return (self.method.segmenter(images).float().sigmoid(),)


class Rebuild(Score):
    """What follows SeRNet's mask and search, None where it has none -> scores, maps."""

    def forward(self, images: Tensor, mask: Tensor | None = None, similar: Tensor | None = None) -> tuple[Tensor, ...]:
        o, repaired = self.method.options, images
        if mask is not None:
            if similar is None:
                similar = images.mean(dim=(2, 3), keepdim=True) if o.repair == "mean" else torch.zeros_like(images)
            repaired = repair(images, similar, mask)
        maps = self.method.compare(images, self.method.rebuild(repaired).clamp(0, 1))
        return self.method.image_score(maps), maps


class Predict(Score):
    """SDAS's averaged network: x_t, steps, labels if there are any -> noise, raw value of the variance."""

    def forward(self, x: Tensor, steps: Tensor, labels: Tensor | None = None) -> tuple[Tensor, ...]:
        return self.method.average(x, steps, labels).float().chunk(2, dim=1)


def stages(method: Trainable) -> list[Stage]:
    """The graphs of a method."""
    kinds = {NoiseToNorm: noise_to_norm, SeRNet: sernet, SDAS: sdas}
    if type(method) in kinds:
        return kinds[type(method)](method)
    sides, note = {}, "Takes options.size alone, for which its windows, positions or head are built."
    if isinstance(method, DRAEM):
        sides, note = free(UNet.stride, 2 * UNet.stride), "Takes other sizes, too; it was trained at options.size."
    inputs = {"images": pictures(method.options.size, sides)}
    return [Stage("score", Score(method), inputs, RESULT, {"images": BATCH | sides}, note)]


def free(multiple: int, least: int) -> dict[int, Axis]:
    """Both sides of pictures as axes that may change."""
    return {2: Axis("height", multiple, least), 3: Axis("width", multiple, least)}


def pictures(size: tuple[int, int], sides: dict[int, Axis] | None = None, sample=torch.rand) -> Tensor:
    """Two random pictures of the method's size, or of the least that a graph takes."""
    shape = (max(side, axis.least) for side, axis in zip(size, (sides or free(1, 1)).values()))
    return sample(2, 3, *shape, generator=torch.Generator().manual_seed(0))


def part(method: Trainable, *names: str) -> Trainable:
    """The method with some of its modules alone: SeRNet's bank and SDAS's other weights are in no graph."""
    light = copy.copy(method)
    light._modules, light._buffers = {name: method._modules[name] for name in names}, {}
    return light


def noise_to_norm(method: NoiseToNorm) -> list[Stage]:
    """One stage, with the noise of every draw as its second input."""
    o, multiple = method.options, 2 ** (method.options.levels - 1)
    reach = math.ceil(2 * max(o.sigmas))  # of windows that are mirrored at the border: the sides are longer
    sides = free(multiple, max(2 * multiple, multiple * (reach // multiple + 1)))
    note = "Takes other sizes, too; it was trained at options.size."
    inputs, dynamic = {"images": pictures(o.size, sides)}, {"images": BATCH | sides}
    draws = o.noise_repeats if o.noise_share else 1
    inputs["noise"] = NOISE_MEAN + NOISE_STD * pictures(o.size, sides, torch.randn).repeat(draws, 1, 1, 1, 1)
    dynamic["noise"] = {1 + place: axis for place, axis in dynamic["images"].items()}
    note += (
        f" noise: {draws} draw(s), every value from N({NOISE_MEAN:g}, {NOISE_STD:g}^2); the graph blends it in. "
        "adref has noise_to_norm.draw_noise(rng, (3, H, W)) for each image: numpy's frozen RandomState, "
        "seeded by one draw of rng, samples.random_stream(seed, 'test', number in the list) in its commands, "
        "Generator(PCG64(0)) where `score` gets none. Other noise changes the third digit of a score."
    )
    return [Stage("score", ScoreNoisy(method), inputs, RESULT, dynamic, note)]


def sdas(method: SDAS) -> list[Stage]:
    """The averaged network; the sampler is a program around it."""
    o = method.options
    inputs = {"x": pictures(o.size, sample=torch.randn), "steps": torch.tensor([0, o.steps - 1])}
    inputs |= {"labels": torch.tensor([0, method.classes - 1])} if method.classes else {}
    note = (
        "x: x_t at options.size; steps: of `schedule`; labels: places in options.categories. The sampler (SDAS.sample) "
        "stays outside: it visits the rows of `schedule` from the last to the first, and takes the raw variance as "
        "SDAS.log_variance does. A classifier that guides it is not exported."
    )
    module = Predict(part(method, "average"))
    return [Stage("network", module, inputs, ("noise", "variance"), dict.fromkeys(inputs, BATCH), note)]


def sernet(method: SeRNet) -> list[Stage]:
    """Both networks, or the second alone where nothing is repaired."""
    o, images = method.options, pictures(method.options.size)
    if o.score != "structure" and o.colour == "edgrec":
        raise UserError("--colour edgrec counts in numpy's 8 bits, which no graph has; --format npz would do")
    inputs, second = {"images": images}, Rebuild(part(method, "reconstructor"))
    note = "Takes options.size alone, to which its filters and areas are set. "
    if not o.segmentation or o.repair == "none" or (o.repair == "similar" and o.similar == "self"):
        note += "Nothing is repaired: the second network stands alone."
        return [Stage("score", second, inputs, RESULT, {"images": BATCH}, note)]
    inputs["mask"] = (images[:, :1] > 0.9).float()
    note += (
        f"Between the stages: mask = sernet.repair_mask(probability, {o.threshold:g}, {o.area:g} * H * W), which "
        "sets pixels from options.threshold on and drops 8-connected components of fewer than "
        f"{o.area * images[0, 0].numel():g} pixels (anomalies.remove_small)."
    )
    if o.repair == "similar":
        inputs["similar"] = images.flip(0)
        note += (
            f" similar = SeRNet.find_similar ({o.similar}): of the bank the picture whose perceptual hash is nearest "
            "to that of the file, SeRNet.image_hash (phash: Bank.search), any, or the first. The bank is in the run's "
            "checkpoint.pt, and in weights.npz (--format npz) as bank.file_hashes and bank.pictures."
        )
    first = Segment(part(method, "segmenter"))
    return [
        Stage("segment", first, {"images": images}, ("probability",), {"images": BATCH}, note),
        Stage("rebuild", second, inputs, RESULT, dict.fromkeys(inputs, BATCH), note),
    ]


# -- graphs -----------------------------------------------------------------------------------------------------------


def local_mean(x: Tensor, weight: Tensor, padding: str) -> Tensor:
    """`losses._local_mean`, the same numbers: a group for each channel of an image, not of all images together.

    ONNX wants to know the number of groups; the check compares with the original.
    """
    images, reach = x.movedim(-4, 0), len(weight) // 2
    flat = images.flatten(1, -3)
    if padding == "reflect":
        flat = F.pad(flat, (reach, reach, reach, reach), mode="reflect")
    reach, count = reach if padding == "zero" else 0, flat.shape[1]
    flat = F.conv2d(flat, weight.view(1, 1, -1, 1).expand(count, -1, -1, -1), padding=(reach, 0), groups=count)
    flat = F.conv2d(flat, weight.view(1, 1, 1, -1).expand(count, -1, -1, -1), padding=(0, reach), groups=count)
    return flat.unflatten(1, images.shape[1:-2]).movedim(0, -4)


@contextlib.contextmanager
def quiet():
    """Keeps back what the exporters say; what stops them is an exception."""
    logging.disable(logging.CRITICAL)
    try:
        said = io.StringIO()
        with warnings.catch_warnings(), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def draw(stage: Stage) -> "torch.export.ExportedProgram":
    """The graph of a stage."""
    most = 2**31 - 1  # torch 2.7 does not take lengths without an end
    lengths = {axis: torch.export.Dim(axis.name, min=axis.least // axis.multiple, max=most // axis.multiple)
               for places in stage.dynamic.values() for axis in places.values()}  # fmt: skip
    lengths = {axis: axis.multiple * length if axis.multiple > 1 else length for axis, length in lengths.items()}
    shapes = {name: {i: lengths[axis] for i, axis in places.items()} for name, places in stage.dynamic.items()}
    inputs = tuple(stage.inputs.values())
    with mock.patch.object(losses, "_local_mean", local_mean):
        program = torch.export.export(stage.module, inputs, dynamic_shapes=shapes, strict=False)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # names files of this machine
    return program


def stable_sort(x, stable=None, dim=-1, descending=False):
    """aten.sort.stable, by which RealNet ranks, and which the exporter lacks; TopK, too, keeps the order of equals."""
    from onnxscript import opset18 as op

    count = op.Gather(op.Shape(x), op.Constant(value_ints=[dim]))
    return op.TopK(x, count, axis=dim, largest=int(descending), sorted=1)


def write_onnx(stage: Stage, path: Path) -> None:
    """A stage as ONNX, whose axes have their names."""
    import onnxscript.optimizer

    program = torch.onnx.export(
        draw(stage), dynamo=True, optimize=False, verbose=False, input_names=list(stage.inputs),
        output_names=list(stage.outputs), custom_translation_table={torch.ops.aten.sort.stable: stable_sort},
        dynamic_shapes={name: {i: axis.name for i, axis in places.items()} for name, places in stage.dynamic.items()},
    )  # fmt: skip
    # No more of what `optimize` does: it takes + 1e-12 for + 0, and the ViT's memory then gives NaN.
    onnxscript.optimizer.fold_constants(program.model)
    onnxscript.optimizer.remove_unused_nodes(program.model)
    weights = sum(tensor.numel() * tensor.element_size() for tensor in stage.module.state_dict().values())
    program.save(str(path), external_data=weights > LARGE)


def run_onnx(path: Path, inputs: dict[str, Tensor]) -> list[Tensor]:
    """Outputs of onnxruntime."""
    from onnxruntime import backend

    return [torch.from_numpy(a) for a in backend.prepare(str(path), "CPU").run([t.numpy() for t in inputs.values()])]


def write_pt2(stage: Stage, path: Path) -> None:
    """A stage as a program of torch.export."""
    torch.export.save(draw(stage), path)


def run_pt2(path: Path, inputs: dict[str, Tensor]) -> list[Tensor]:
    """Outputs of the program."""
    return list(torch.export.load(path).module()(*inputs.values()))


FORMATS = {"onnx": (write_onnx, run_onnx), "pt2": (write_pt2, run_pt2), "npz": None}


def other_batch(stage: Stage) -> dict[str, Tensor]:
    """The examples in another number and, where they may change, with other sides: each axis goes on, mirrored."""
    batch, more = dict(stage.inputs), {"batch": 1, "height": 1, "width": 2}  # sides of one length get different ones
    for name, places in stage.dynamic.items():
        for i, axis in places.items():
            mirrored = torch.cat((batch[name], batch[name].flip(i), batch[name]), dim=i)
            batch[name] = mirrored.narrow(i, 0, batch[name].shape[i] + more[axis.name] * axis.multiple)
    return {name: tensor.contiguous() for name, tensor in batch.items()}


def write_graphs(method: Trainable, kind: str, folder: Path) -> tuple[list[dict], float]:
    """Writes every stage into a folder; returns their records and the largest difference from the method.

    Raises:
        UserError: an exporter refuses the graph.
    """
    (write, run), records, worst = FORMATS[kind], [], 0.0
    for stage in stages(method):
        path, inputs, found = folder / f"{stage.name}.{kind}", other_batch(stage), None
        try:
            with quiet():
                write(stage, path)
                if kind != "onnx" or importlib.util.find_spec("onnxruntime"):
                    found = run(path, inputs)
        except Exception as error:  # of a dozen kinds, one inside another; the innermost says what cannot be done
            while error.__cause__:
                error = error.__cause__
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(f"no {kind} of {stage.name}: {reason}") from error
        examples, wanted = (dict(zip(stage.outputs, stage.module(*x.values()))) for x in (stage.inputs, inputs))
        axes = {(tensor.shape[i], inputs[name].shape[i]): axis
                for name, tensor in stage.inputs.items() for i, axis in stage.dynamic[name].items()}  # fmt: skip
        names = {lengths: axis.name for lengths, axis in axes.items()}  # an axis is known by both of its lengths
        tensors = [
            [{"name": name, "shape": [names.get(pair, pair[0]) for pair in zip(tensor.shape, other[name].shape)],
              "dtype": str(tensor.dtype).removeprefix("torch."), "range": RANGES.get(name, "any")}
             for name, tensor in one.items()] for one, other in ((stage.inputs, inputs), (examples, wanted))
        ]  # fmt: skip
        records.append({"name": stage.name, "file": path.name, "inputs": tensors[0], "outputs": tensors[1],
                        "axes": [axis._asdict() for axis in axes.values()], "note": stage.note})  # fmt: skip
        if found is None:
            print(f"{path.name}: not compared with the method, as onnxruntime is not installed")
            continue
        far = [float((a - b).abs().max() / b.abs().max().clamp_min(1)) for a, b in zip(found, wanted.values())]
        worst = max(worst, *(math.inf if math.isnan(difference) else difference for difference in far))
        print(f"{path.name}: {', '.join(f'{name} {d:.0e}' for name, d in zip(stage.outputs, far))} from the method")
    return records, worst


# -- the command ------------------------------------------------------------------------------------------------------


def write_weights(method: Trainable, folder: Path) -> list[dict]:
    """Writes weights.npz; returns its table of keys."""
    state, parameters = method.state_dict(), dict(method.named_parameters())
    np.savez(folder / "weights.npz", **{name: tensor.contiguous().numpy() for name, tensor in state.items()})
    return [{"name": name, "shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch."),
             "kind": "parameter" if name in parameters else "buffer"} for name, tensor in state.items()]  # fmt: skip


def refuse(kind: str) -> None:
    """Raises UserError for a format that there is not, or not here."""
    if kind not in FORMATS:
        raise UserError(f"--format takes {', '.join(FORMATS)}; got {kind}")
    least = TORCH.get(kind, (0, 0))
    if tuple(map(int, torch.__version__.split(".")[:2])) < least:
        raise UserError(f"--format {kind} needs torch {least[0]}.{least[1]} or newer; this is {torch.__version__}")
    if kind == "onnx" and any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript")):
        raise UserError("--format onnx needs the packages onnx and onnxscript: pip install '.[onnx]'")


@torch.no_grad()
def export(run: Path, kind: str, out: Path) -> int:
    """Writes DIR; returns 0, or 1 where a graph differs from the method.

    Raises:
        UserError: no run, an unknown format, a folder that is there, missing packages, or what no graph can hold.
    """
    refuse(kind)
    config, method = read_config(run), load(run, kind=Trainable).requires_grad_(False)
    refuse_existing(out, "give another name")
    if "calibration" not in load_checkpoint(run):
        print(f"note: {run} has not finished training", file=sys.stderr)
    about = {"method": config["method"], **{name: versions()[name] for name in ("adref", "torch")}, "format": kind,
             "checkpoint_sha256": sha256(run / "checkpoint.pt"), "options": to_json(method.options)}  # fmt: skip
    if isinstance(method, Method):
        about |= {"threshold": method.threshold, "pictures": PICTURES}
    if isinstance(method, SDAS):
        about["schedule"] = {name: table.tolist() for name, table in method.sampling_schedule()._asdict().items()}
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a command that was killed
    try:
        partial.mkdir(parents=True)
        if kind == "npz":
            about |= {"file": "weights.npz", "tensors": write_weights(method, partial)}
        else:
            about["stages"], worst = write_graphs(method, kind, partial)
            if worst > LIMIT:
                print(f"error: {worst:.0e} from the method is above {LIMIT:.0e}; nothing is written", file=sys.stderr)
                return 1
        write_json(partial / "export.json", about)
        os.replace(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    print(f"{out}: {', '.join(sorted(f'{path.name} {path.stat().st_size / 1e6:.2f} MB' for path in out.iterdir()))}")
    return 0


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN", help="run directory of python -m adref.train")
    parser.add_argument("--format", required=True, help=", ".join(FORMATS))
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a folder that is not there yet")
    arguments = parser.parse_args(argv)
    return guarded(lambda: export(arguments.run, arguments.format, arguments.out))


if __name__ == "__main__":
    sys.exit(main())
