"""Exports a trained method for programs without adref: python tools/export.py RUN --format onnx|pt2|npz --out DIR

    onnx   DIR/STAGE.onnx, weights included (above 2 GB in STAGE.onnx.data beside it); needs pip install '.[onnx]'
    pt2    DIR/STAGE.pt2, a program of torch.export
    npz    DIR/weights.npz, every tensor of the checkpoint by name

DIR/export.json has the options, the threshold, and names, shapes and ranges of all inputs and outputs. Most methods are
one stage, `score`. Random numbers, searches and samplers stay outside the graphs; a stage's note describes them. Each
graph is run on a batch of another size than the one with which it was traced, and compared with the method; with a
difference above 1e-4 nothing is written.
"""

import argparse
import contextlib
import copy
import importlib.util
import io
import logging
import math
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
from adref.methods.noise_to_norm import loss as noise_loss
from adref.methods.noise_to_norm.method import NOISE_MEAN, NOISE_STD, NoiseToNorm, blend
from adref.methods.sdas.method import SDAS, STEPS
from adref.methods.sernet.method import SeRNet, repair
from adref.ops import losses
from adref.options import UserError, to_json
from adref.run.cli import TrainingError, entry_point
from adref.run.directory import open_run, versions
from adref.run.files import new_folder, refuse_existing, with_filename, write_json

LIMIT = 1e-4  # of a difference from the method, relative to the largest value where that is above 1
TORCH = {"onnx": (2, 9), "pt2": (2, 7)}  # least versions that work
LARGE = 1.9e9  # bytes of weights above which they get their own file: an ONNX file ends at 2 GiB
RANGES = {
    **dict.fromkeys(("images", "similar", "probability"), "0 to 1"), "mask": "0 or 1", "x": "about -1 to 1",
    "steps": f"0 to {STEPS - 1}", "labels": "0 to the number of options.categories - 1",
    **dict.fromkeys(("scores", "maps"), "higher is more anomalous"),
}  # fmt: skip
PICTURES = (
    "images: the whole image, RGB, resized to options.size by adref.data.examples.resize with options.resize, / 255. "
    "An image is anomalous where its score >= threshold."
)


class Axis(NamedTuple):
    """An axis of a graph that may have any length of `least`, `least` + `multiple`, and so on."""

    name: str
    multiple: int = 1
    least: int = 1


class Stage(NamedTuple):
    """A part of a method that becomes a graph and a file."""

    name: str
    module: nn.Module  # tensors -> tuple of tensors
    inputs: dict[str, Tensor]  # examples, in the order of the module's arguments
    outputs: tuple[str, ...]
    dynamic: dict[str, dict[int, Axis]]  # input -> its axes that may change
    note: str  # instructions for the program that runs it


# -- the stages of each method ----------------------------------------------------------------------------------------

BATCH, RESULT = {0: Axis("batch")}, ("scores", "maps")


class Score(nn.Module):
    """Maps images to scores (B,) and maps (B, 1, H, W)."""

    def __init__(self, method: Trainable):
        super().__init__()
        self.method = method

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return self.method.score(images)

    def reduced(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Adds the deciding image scores to maps."""
        return next(iter(self.method.image_scores(maps).values())), maps


class ScoreNoisy(Score):
    """Maps images and the noise of every draw (draws, B, 3, H, W) of noise-to-norm to scores and maps."""

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, ...]:
        rebuilt = [self.method(blend(images, one, self.method.options)) for one in noise.unbind()]
        return self.reduced(self.method.map_of(images, torch.stack(rebuilt).mean(dim=0)))


class Segment(Score):
    """Maps images to SeRNet's probability of a defect (B, 1, H, W), by its first network."""

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return (self.method.segmenter(images).float().sigmoid(),)


class Rebuild(Score):
    """Maps images, SeRNet's mask and the similar images to scores and maps; None: there is no repair."""

    def forward(self, images: Tensor, mask: Tensor | None = None, similar: Tensor | None = None) -> tuple[Tensor, ...]:
        repaired = images
        if mask is not None:
            if similar is None:
                mean = self.method.options.repair == "mean"
                similar = images.mean(dim=(2, 3), keepdim=True) if mean else torch.zeros_like(images)
            repaired = repair(images, similar, mask)
        return self.reduced(self.method.compare(images, self.method.rebuild(repaired).clamp(0, 1)))


class Predict(Score):
    """Maps x_t, steps and labels, if there are any, to SDAS's noise and raw variance, by the averaged network."""

    def forward(self, x: Tensor, steps: Tensor, labels: Tensor | None = None) -> tuple[Tensor, ...]:
        return self.method.average(x, steps, labels).float().chunk(2, dim=1)


def stages(method: Trainable) -> list[Stage]:
    """Lists the graphs of a method."""
    kinds = {NoiseToNorm: noise_to_norm, SeRNet: sernet, SDAS: sdas}
    if type(method) in kinds:
        return kinds[type(method)](method)
    sides, note = {}, "Takes options.size only, for which its windows, positions or head are built."
    if isinstance(method, DRAEM):
        sides, note = free(UNet.stride, 2 * UNet.stride), "Takes other sizes too; it was trained at options.size."
    inputs = {"images": pictures(method.options.size, sides)}
    return [Stage("score", Score(method), inputs, RESULT, {"images": BATCH | sides}, note)]


def free(multiple: int, least: int) -> dict[int, Axis]:
    """Makes both sides of images axes that may change."""
    return {2: Axis("height", multiple, least), 3: Axis("width", multiple, least)}


def pictures(size: tuple[int, int], sides: dict[int, Axis] | None = None, sample=torch.rand) -> Tensor:
    """Draws two random images of the method's size, or of the least that a graph takes."""
    shape = (max(side, axis.least) for side, axis in zip(size, (sides or free(1, 1)).values()))
    return sample(2, 3, *shape, generator=torch.Generator().manual_seed(0))


def part(method: Trainable, *names: str) -> Trainable:
    """Copies a method with some of its modules only: SeRNet's bank and SDAS's other weights are in no graph."""
    light = copy.copy(method)
    light._modules, light._buffers = {name: method._modules[name] for name in names}, {}
    return light


def noise_to_norm(method: NoiseToNorm) -> list[Stage]:
    """Makes one stage, with the noise of every draw as its second input."""
    o, multiple = method.options, 2 ** (method.options.levels - 1)
    reach = math.ceil(2 * max(o.sigmas))  # of windows that are mirrored at the border: the sides are longer
    sides = free(multiple, max(2 * multiple, multiple * (reach // multiple + 1)))
    draws = o.noise_repeats if o.noise_share else 1
    noise = NOISE_MEAN + NOISE_STD * pictures(o.size, sides, torch.randn)
    inputs = {"images": pictures(o.size, sides), "noise": noise.repeat(draws, 1, 1, 1, 1)}
    dynamic = {"images": BATCH | sides, "noise": {1 + place: axis for place, axis in (BATCH | sides).items()}}
    note = (
        "Takes other sizes too; it was trained at options.size. "
        f"noise: {draws} draw(s), every value from N({NOISE_MEAN:g}, {NOISE_STD:g}^2); the graph blends it in. "
        "adref draws it by noise_to_norm.method.draw_noise(rng, (3, H, W)) for each image: numpy's frozen RandomState, "
        "seeded by one draw of rng, which is data.examples.random_stream(seed, 'test', number in the list) in its "
        "commands, and Generator(PCG64(0)) where `score` gets none. Other noise changes the third digit of a score."
    )
    return [Stage("score", ScoreNoisy(method), inputs, RESULT, dynamic, note)]


def sdas(method: SDAS) -> list[Stage]:
    """Makes a stage of the averaged network; the sampler is a program around it."""
    o = method.options
    inputs = {"x": pictures(o.size, sample=torch.randn), "steps": torch.tensor([0, STEPS - 1])}
    inputs |= {"labels": torch.tensor([0, method.classes - 1])} if method.classes else {}
    note = (
        "x: x_t at options.size; steps: of `schedule`; labels: indices in options.categories. The sampler "
        "(SDAS.sample) stays outside: it visits the rows of `schedule` from the last to the first, and interprets the "
        "raw variance as SDAS.log_variance does. A classifier that guides it is not exported."
    )
    module = Predict(part(method, "average"))
    return [Stage("network", module, inputs, ("noise", "variance"), dict.fromkeys(inputs, BATCH), note)]


def sernet(method: SeRNet) -> list[Stage]:
    """Makes stages of both networks, or of the second only where nothing is repaired."""
    o, images = method.options, pictures(method.options.size)
    if o.score != "structure" and o.colour == "edgrec":
        raise UserError("--colour edgrec counts in numpy's 8 bits, which no graph has; --format npz would work")
    inputs, second = {"images": images}, Rebuild(part(method, "reconstructor"))
    note = "Takes options.size only, to which its filters and areas are set. "
    if not o.segmentation or o.repair == "none" or (o.repair == "similar" and o.similar == "self"):
        note += "Nothing is repaired: the second network is the only stage."
        return [Stage("score", second, inputs, RESULT, {"images": BATCH}, note)]
    inputs["mask"] = (images[:, :1] > 0.9).float()
    note += (
        f"Between the stages: mask = sernet.method.repair_mask(probability, {o.threshold:g}, {o.area:g} * H * W): "
        "it takes pixels from options.threshold on and drops 8-connected components smaller than "
        f"{o.area * images[0, 0].numel():g} pixels."
    )
    if o.repair == "similar":
        inputs["similar"] = images.flip(0)
        note += (
            f" similar = SeRNet.find_similar ({o.similar}): of the bank the image whose perceptual hash is nearest to "
            "that of the file (phash: SeRNet.image_hash, Bank.search), any, or the first. The bank is in the run's "
            "checkpoint.pt and in weights.npz (--format npz): bank.file_hashes, bank.picture_hashes, bank.pictures."
        )
    first = Segment(part(method, "segmenter"))
    return [
        Stage("segment", first, {"images": images}, ("probability",), {"images": BATCH}, note),
        Stage("rebuild", second, inputs, RESULT, dict.fromkeys(inputs, BATCH), note),
    ]


# -- graphs -----------------------------------------------------------------------------------------------------------


def local_mean(x: Tensor, weight: Tensor, padding: str) -> Tensor:
    """Computes `losses.local_mean` with a group for each channel of an image, not of all images together.

    ONNX has to know the number of groups. The comparison with the method checks this function.
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
    """Suppresses the output of the exporters; their failures are exceptions."""
    logging.disable(logging.CRITICAL)
    try:
        text = io.StringIO()
        with warnings.catch_warnings(), contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def draw(stage: Stage) -> "torch.export.ExportedProgram":
    """Traces the graph of a stage."""
    most = 2**31 - 1  # torch 2.7 needs an upper end of lengths
    lengths = {axis: torch.export.Dim(axis.name, min=axis.least // axis.multiple, max=most // axis.multiple)
               for places in stage.dynamic.values() for axis in places.values()}  # fmt: skip
    lengths = {axis: axis.multiple * length if axis.multiple > 1 else length for axis, length in lengths.items()}
    shapes = {name: {i: lengths[axis] for i, axis in places.items()} for name, places in stage.dynamic.items()}
    inputs = tuple(stage.inputs.values())
    patched = [mock.patch.object(module, "local_mean", local_mean) for module in (losses, noise_loss)]
    with patched[0], patched[1]:
        program = torch.export.export(stage.module, inputs, dynamic_shapes=shapes, strict=False)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # names files of this machine
    return program


def stable_sort(x, stable=None, dim=-1, descending=False):
    """Translates aten.sort.stable, by which RealNet ranks, to TopK, which keeps the order of equals too."""
    from onnxscript import opset18 as op

    count = op.Gather(op.Shape(x), op.Constant(value_ints=[dim]))
    return op.TopK(x, count, axis=dim, largest=int(descending), sorted=1)


def write_onnx(stage: Stage, path: Path) -> None:
    """Writes a stage as ONNX with named axes."""
    import onnxscript.optimizer

    program = torch.onnx.export(
        draw(stage), dynamo=True, optimize=False, verbose=False, input_names=list(stage.inputs),
        output_names=list(stage.outputs), custom_translation_table={torch.ops.aten.sort.stable: stable_sort},
        dynamic_shapes={name: {i: axis.name for i, axis in places.items()} for name, places in stage.dynamic.items()},
    )  # fmt: skip
    # No other part of `optimize`: it removes + 1e-12, and the ViT's memory then gives NaN.
    onnxscript.optimizer.fold_constants(program.model)
    onnxscript.optimizer.remove_unused_nodes(program.model)
    weights = sum(tensor.numel() * tensor.element_size() for tensor in stage.module.state_dict().values())
    program.save(str(path), external_data=weights > LARGE)


def run_onnx(path: Path, inputs: dict[str, Tensor]) -> list[Tensor]:
    """Runs onnxruntime."""
    from onnxruntime import backend

    return [torch.from_numpy(a) for a in backend.prepare(str(path), "CPU").run([t.numpy() for t in inputs.values()])]


def write_pt2(stage: Stage, path: Path) -> None:
    """Writes a stage as a program of torch.export."""
    torch.export.save(draw(stage), path)


def run_pt2(path: Path, inputs: dict[str, Tensor]) -> list[Tensor]:
    """Runs the program."""
    return list(torch.export.load(path).module()(*inputs.values()))


FORMATS = {"onnx": (write_onnx, run_onnx), "pt2": (write_pt2, run_pt2), "npz": None}


def other_batch(stage: Stage) -> dict[str, Tensor]:
    """Extends the example inputs along every axis that may change, by mirrored copies."""
    batch, more = dict(stage.inputs), {"batch": 1, "height": 1, "width": 2}  # different ones for sides of one length
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
        except Exception as error:  # of many kinds, nested; the innermost names the reason
            while error.__cause__:
                error = error.__cause__
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(f"no {kind} of {stage.name}: {reason}") from error
        examples, wanted = (dict(zip(stage.outputs, stage.module(*x.values()))) for x in (stage.inputs, inputs))
        axes = {(tensor.shape[i], inputs[name].shape[i]): axis
                for name, tensor in stage.inputs.items() for i, axis in stage.dynamic[name].items()}  # fmt: skip
        names = {lengths: axis.name for lengths, axis in axes.items()}  # an axis is recognised by both of its lengths
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
    with with_filename(folder / "weights.npz"):
        np.savez(folder / "weights.npz", **{name: tensor.contiguous().numpy() for name, tensor in state.items()})
    return [{"name": name, "shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch."),
             "kind": "parameter" if name in parameters else "buffer"} for name, tensor in state.items()]  # fmt: skip


def refuse(kind: str) -> None:
    """Raises UserError for a format that is unknown, or that needs another torch or missing packages."""
    if kind not in FORMATS:
        raise UserError(f"--format takes {', '.join(FORMATS)}; got {kind}")
    least = TORCH.get(kind, (0, 0))
    if tuple(map(int, torch.__version__.split(".")[:2])) < least:
        raise UserError(f"--format {kind} needs torch {least[0]}.{least[1]} or newer; this is {torch.__version__}")
    if kind == "onnx" and any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript")):
        raise UserError("--format onnx needs the packages onnx and onnxscript: pip install '.[onnx]'")


@torch.no_grad()
def export(folder: Path, kind: str, out: Path) -> int:
    """Writes DIR.

    Raises:
        TrainingError: a graph differs from the method.
        UserError: no run, an unknown format, an existing folder, missing packages, or a method that no graph can hold.
    """
    refuse(kind)
    run = open_run(folder)
    method = run.method.requires_grad_(False)
    refuse_existing(out, "give another name")
    if not run.state.finished:
        print(f"note: {folder} has not finished training", file=sys.stderr)
    about = {"method": run.config["method"], **{name: versions()[name] for name in ("adref", "torch")}, "format": kind,
             "checkpoint_sha256": run.sha256, "options": to_json(method.options)}  # fmt: skip
    if isinstance(method, Method):
        about |= {"threshold": run.threshold, "pictures": PICTURES}
    if isinstance(method, SDAS):
        about["schedule"] = {name: table.tolist() for name, table in method.sampling_schedule()._asdict().items()}
    with new_folder(out) as partial:
        if kind == "npz":
            about |= {"file": "weights.npz", "tensors": write_weights(method, partial)}
        else:
            about["stages"], worst = write_graphs(method, kind, partial)
            if worst > LIMIT:
                raise TrainingError(f"{worst:.0e} from the method is above {LIMIT:.0e}; nothing is written")
        write_json(partial / "export.json", about)
    print(f"{out}: {', '.join(sorted(f'{path.name} {path.stat().st_size / 1e6:.2f} MB' for path in out.iterdir()))}")
    return 0


@entry_point
def main(argv: list[str]) -> int:
    """Runs the command; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN", help="run directory of python -m adref.train")
    parser.add_argument("--format", required=True, help=", ".join(FORMATS))
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder")
    arguments = parser.parse_args(argv)
    return export(arguments.run, arguments.format, arguments.out)


if __name__ == "__main__":
    sys.exit(main())
