"""The run directory: configuration, log, checkpoint; and what is done with a finished one: load it, score an image."""

import hashlib
import json
import math
import os
import platform
import shutil
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import mean

import numpy as np
import PIL
import scipy
import torch
import torch.nn.functional as F

from adref import __version__, distributed
from adref.data import read_image
from adref.method import Method, Trainable
from adref.methods import find_method
from adref.options import Notice, UserError, replace
from adref.samples import random_stream, resize, to_tensor

CONFIG_KEYS = {"adref", "torch", "method", "preset", "ablation", "changed", "category", "generated", "options", "flags",
               "device", "data_digest", "textures_digest", "sizes_digest", "anomalies_digest",
               "weights_sha256"}  # fmt: skip


class TrainingError(RuntimeError):
    """Training cannot go on, and not for a mistake at the keyboard: shown as one sentence, exit code 1."""


def guarded(command) -> int:
    """Runs a command and turns what stops it into one sentence and an exit code.

    2 for a mistake at the keyboard or a file that cannot be read or written, 1 for training that cannot go on, 130 for
    Ctrl-C (while training, `train.Interrupt` is there first and saves).
    """
    sys.stdout.reconfigure(errors="backslashreplace")  # a file name may hold what the terminal cannot show
    try:
        with warnings.catch_warnings():
            shown = warnings.showwarning
            warnings.showwarning = lambda text, kind, *rest: (
                print(f"note: {text}", file=sys.stderr) if issubclass(kind, Notice) else shown(text, kind, *rest)
            )
            return command()
    except UserError as error:
        text = str(error)
        if "Original Traceback" in text:  # from a data worker it comes inside that worker's traceback, as its last line
            text = text.strip().splitlines()[-1].removeprefix("adref.options.UserError: ")
        print(f"error: {text}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error.filename or 'a file'}: {error.strerror or error}", file=sys.stderr)
        return 2
    except TrainingError as error:
        print(f"stopped: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


# -- files that are whole or not there --------------------------------------------------------------------------------


def write_atomically(path: Path, write) -> None:
    """Calls `write(file)` on a temporary file beside `path`, flushes it to the disk, then renames it.

    A reader, or the next run after a crash, sees the old file or the new one, never a part.
    """
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself
    finally:
        os.close(folder)


def write_json(path: Path, value) -> None:
    """`value` as indented JSON, atomically; NaN is written as null, which every reader of JSON takes."""
    text = json.dumps(_plain(value), indent=1, ensure_ascii=False, allow_nan=False)
    write_atomically(path, lambda file: file.write(text.encode(errors="surrogateescape")))


def read_json(path: Path, *keys: str) -> dict:
    """What `write_json` wrote.

    Raises:
        UserError: the file is damaged, or one of the keys is not there.
    """
    try:
        value = json.loads(path.read_text())
        if not isinstance(value, dict) or (missing := [key for key in keys if key not in value]):
            raise ValueError(f"it has no {missing[0]}" if isinstance(value, dict) else "it is no object")
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); delete it, and run the command again") from None
    return value


def _plain(value):
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float | np.floating):
        return float(value) if np.isfinite(value) else None
    return value.item() if isinstance(value, np.integer) else value


def sha256(path: Path) -> str:
    """Hexadecimal digest of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if sys.version_info >= (3, 11) else _digest(file)


def _digest(file) -> str:  # Python 3.10
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


# -- configuration, checkpoint, log -----------------------------------------------------------------------------------


def versions() -> dict[str, str]:
    """What the numbers of a run may depend on."""
    return {"adref": __version__, "torch": torch.__version__, "numpy": np.__version__, "pillow": PIL.__version__,
            "scipy": scipy.__version__, "python": platform.python_version()}  # fmt: skip


def refuse_existing(run: Path, remedy: str = "give --resume to go on with it, or another name") -> None:
    """Raises UserError when a new run's directory is there already, unless it is an empty folder."""
    if run.resolve() == Path.cwd() or (run.exists() and (not run.is_dir() or any(run.iterdir()))):
        raise UserError(f"--out {run} exists already; {remedy}")


def create(run: Path, config: dict, checkpoint: dict) -> None:
    """A new run directory, loadable from the moment it exists: filled under another name, then renamed.

    Raises:
        UserError: the directory exists already and is not empty, or cannot be written.
    """
    refuse_existing(run)
    partial = run.with_name(f".{run.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed while it was being made
        partial.mkdir(parents=True)
        write_json(partial / "config.json", {**versions(), **config})
        save_checkpoint(partial, checkpoint)
        (partial / "metrics.jsonl").touch()
        os.replace(partial, run)
    except OSError as error:
        raise UserError(f"--out {run} cannot be written: {error.strerror or error}") from None


def read_config(run: Path) -> dict:
    """config.json as a dictionary.

    Raises:
        UserError: no run directory, or a file that is not what `create` wrote.
    """
    path = Path(run) / "config.json"
    try:
        # Runs before 2026-11-28 lack some of these.
        config = {"sizes_digest": None, "anomalies_digest": None, "processes": 1, **json.loads(path.read_text())}
        missing = CONFIG_KEYS - set(config)
        if missing or not isinstance(config["options"], dict) or not {"data", "seed"} <= set(config["flags"]):
            raise ValueError(f"keys are missing or damaged: {', '.join(sorted(missing)) or 'options, flags'}")
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{run} is no run directory: it has no config.json") from None
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    return config


def save_checkpoint(run: Path, state: dict) -> None:
    """checkpoint.pt, atomically.

    Raises:
        TrainingError: a weight is not finite; the last good checkpoint stays.
    """
    for name, tensor in state["model"].items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise TrainingError(f"weight {name} is not finite at step {state['step']}; {run} keeps its last checkpoint")
    write_atomically(run / "checkpoint.pt", lambda file: torch.save(state, file))


def load_checkpoint(run: Path) -> dict:
    """The state that `save_checkpoint` wrote, on the CPU. Holds tensors and plain values only: no code is executed.

    Raises:
        UserError: no checkpoint, or a damaged one.
    """
    path = Path(run) / "checkpoint.pt"
    if not path.exists():
        raise UserError(f"{path} is missing")
    state = load_tensors(path, f"{path} is no checkpoint of adref")
    if not isinstance(state, dict) or not {"model", "step"} <= set(state):
        raise UserError(f"{path} is no checkpoint of adref: it does not hold model and step")
    return state


def load_tensors(path: str | Path, refusal: str):
    """Tensors and plain values from a file of torch.save or numpy.savez, on the CPU; no code is executed.

    Raises:
        UserError: anything else; `refusal` and the reason.
    """
    try:
        if str(path).endswith(".npz"):
            with np.load(path, allow_pickle=False) as arrays:
                return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen kinds for a damaged file, some without words
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        reason = "it is no file of tensors alone" if "weights_only" in reason or "Weights only" in reason else reason
        raise UserError(f"{refusal}: {reason}") from None


def read_sizes(path: str | Path) -> np.ndarray:
    """A table of defect sizes: (n, 3) float64 with height, width and weight, above 0 and up to a million.

    Raises:
        UserError: no such file, no row, or a row that is not three such numbers; a first row of words is a heading.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as a table of sizes ({error})") from None
    sizes = []
    for number, line in enumerate(lines, start=1):
        words = [word.strip() for word in line.split(",")]
        if words == [""] or (number == 1 and words[0].isalpha()):
            continue
        try:
            sizes.append([float(word) for word in words])
        except ValueError:
            sizes.append([])
        if len(sizes[-1]) != 3 or not all(0 < value <= 1e6 for value in sizes[-1]):
            raise UserError(f"{path}, line {number}: expected height,width,weight, above 0 and up to 1e6; got {line!r}")
    if not sizes:
        raise UserError(f"{path}: expected rows of height,width,weight; found none")
    return np.array(sizes)


def read_log(run: Path) -> list[dict]:
    """The lines of metrics.jsonl; a last line that a crash cut off is left out."""
    lines = []
    try:
        text = (Path(run) / "metrics.jsonl").read_text()
    except FileNotFoundError:
        return []
    for line in text.splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return lines


def truncate_log(run: Path, step: int) -> None:
    """Drops the lines of steps after `step`, which a resumed run will do again."""
    kept = [json.dumps(line) + "\n" for line in read_log(run) if line["step"] <= step]
    write_atomically(Path(run) / "metrics.jsonl", lambda file: file.write("".join(kept).encode()))


class Progress:
    """One line on stderr that is rewritten at most five times a second; silent when stderr is no terminal."""

    def __init__(self):
        self.shown, self.last = sys.stderr.isatty(), 0.0

    def __call__(self, text: str, final: bool = False) -> None:
        if self.shown and (final or time.monotonic() - self.last > 0.2):
            self.last = time.monotonic()
            width = shutil.get_terminal_size().columns - 1
            print("\r" + text[:width].ljust(width), end="\n" if final else "", file=sys.stderr, flush=True)


class Journal:
    """metrics.jsonl, and the progress line; a line is written one step late.

    Its loss terms come to the host while the device computes the next step, so that the device never waits for them.
    """

    def __init__(self, run: Path):
        self.run, self.progress, self.totals = run, Progress(), []  # "loss/total" of the lines; the loop clears them
        self.line, self.terms, self.show = {}, None, None
        self.path = run / "metrics.jsonl" if distributed.rank() == 0 else Path(os.devnull)

    def __enter__(self) -> "Journal":
        self.file = self.path.open("a")
        return self

    def __exit__(self, *_) -> None:
        self.file.close()

    def hold(self, line: dict, terms: dict[str, torch.Tensor], show: Callable[[dict], str]) -> None:
        """Keeps the line of a step until its loss terms have come; `show` makes it the progress line."""
        host, arrived = torch.stack([term.float() for term in terms.values()]), None
        if host.is_cuda:
            device, host, arrived = host, torch.empty(len(host), pin_memory=True), torch.cuda.Event()
            host.copy_(device, non_blocking=True)
            arrived.record()
        self.line, self.terms, self.show = line, (list(terms), host, arrived), show

    def read(self, *wishes: bool) -> list[tuple[bool, ...]]:
        """Puts the terms into the line that waits, as means over the processes.

        Args:
            wishes: what this process would like to do.

        Returns:
            the wishes of all processes, which agree thereby.

        Raises:
            TrainingError: a term is not finite.
        """
        values = {}
        if self.terms:
            names, host, arrived = self.terms
            if arrived:
                arrived.synchronize()
            values = dict(zip(names, host.tolist()))
        found = distributed.gather((values, wishes))
        if self.terms:
            names = dict.fromkeys(name for values, _ in found for name in values)
            terms = {name: mean(values[name] for values, _ in found if name in values) for name in names}
            self.add(terms)
            self.totals.append(terms["loss/total"])
            self.terms = None
        return [wishes for _, wishes in found]

    def add(self, values: dict[str, float]) -> None:
        """Puts more into the line that waits.

        Raises:
            TrainingError: a value is not finite; the last good checkpoint stays.
        """
        for name, value in values.items():
            if not math.isfinite(value):
                raise TrainingError(
                    f"{name} is {value} ({self.line['stage']}, step {self.line['step']}); {self.run} keeps its last "
                    "checkpoint. A lower --learning-rate in a new run is the first thing to try"
                )
        self.line |= values

    def write(self, *wishes: bool, final: bool = False) -> list[tuple[bool, ...]]:
        """`read`, and writes the line, if one waits."""
        found = self.read(*wishes)
        if self.line:
            self.file.write(json.dumps(self.line) + "\n")
            self.file.flush()
            self.progress(self.show(self.line), final)
        self.line = {}
        return found

    def checkpoint(self, state: dict) -> None:
        """Saves a checkpoint, when the lines before it are on the disk; process 0 does."""
        self.write()
        if distributed.rank() == 0:
            os.fsync(self.file.fileno())
        distributed.first(partial(save_checkpoint, self.run, state))


# -- a trained method -------------------------------------------------------------------------------------------------


def build(config: dict) -> Trainable:
    """The untrained method that a config.json describes."""
    method = find_method(config["method"])
    return method(replace(method.Options(), config["options"]))


def load(run: str | Path, device: str = "cpu", kind: type[Trainable] = Method) -> Method:
    """A trained method in evaluation mode.

    Args:
        run: a run directory.
        device: where its weights go.
        kind: what it must be; `Trainable` takes a model that scores no images, too.

    Returns:
        the method; `method.options` is what it was trained with, `method.threshold` the stored decision threshold.

    Raises:
        UserError: no run directory, another kind, or weights that do not fit its configuration.
    """
    config = read_config(Path(run))
    if not issubclass(find_method(config["method"]), kind):
        raise UserError(f"{run} holds {config['method']}, which scores no images; see python -m adref.synthesize")
    state, method = load_checkpoint(Path(run)), build(config)
    load_weights(run, method, state)
    if isinstance(method, Method):
        method.threshold = state["calibration"]["threshold"] if state.get("calibration") else None
        method.open_picture = partial(open_picture, size=method.options.size, filter=method.options.resize)
    return method.to(device, memory_format=torch.channels_last).eval()


def open_picture(path: str, size: tuple[int, int], filter: str) -> torch.Tensor:
    """A file as methods see it: uint8 (3, *size)."""
    return resize(to_tensor(read_image(path)), size, filter)


def load_weights(run: str | Path, method: Trainable, state: dict) -> None:
    """Puts a checkpoint's weights into a method; UserError where they do not fit its configuration."""
    try:
        method.load_state_dict(state["model"])
    except (KeyError, RuntimeError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise UserError(f"{run}: the weights do not fit config.json: {reason}") from None


def find_device(name: str) -> torch.device:
    """A device from --device; "auto" is CUDA where there is one.

    Raises:
        UserError: a name that torch does not know, or a device that is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise UserError(f"--device takes auto, cpu, cuda or cuda:N that is there; got {name!r}") from None
    return device


def method_arguments(method: Method, image: np.ndarray, seed: int, index: int) -> tuple:
    """One picture, uint8 (H, W, 3) at its own size, as `Method.score` wants it, beside its random stream and look.

    `seed`, with `index`, the picture's number in its list, names the stream of a method that draws at test time.
    """
    resized = resize(to_tensor(image), method.options.size, method.options.resize)
    device, look = next(method.parameters()).device, method.look(image, method.options)
    batch = resized.unsqueeze(0).to(device, memory_format=torch.channels_last).float() / 255
    return batch, [random_stream(seed, "test", index)], None if look is None else [look]


@torch.inference_mode()
def score_image(method: Method, image: np.ndarray, seed: int, index: int) -> tuple[float, torch.Tensor]:
    """Score and raw map of one picture, by itself, so that no other picture can change them.

    Args:
        method: from `load`.
        image: uint8 (H, W, 3) at its own size.
        seed: as `index`, of `method_arguments`.
        index: number of the image in its list.

    Returns:
        image score, map (1, 1, h, w) float32 on the CPU at the method's size.

    Raises:
        UserError: a score or map that is not finite.
    """
    scores, maps = method.score(*method_arguments(method, image, seed, index))
    score = float(scores)
    if not math.isfinite(score) or not torch.isfinite(maps).all():
        raise UserError(f"image {index} of the list gets the score {score}: the weights of this run are not usable")
    return score, maps.float().cpu()


def to_size(anomaly_map: torch.Tensor, size: tuple[int, int]) -> np.ndarray:
    """A map (1, 1, h, w) at another size (H, W): bilinear, half-pixel centres; float32."""
    return F.interpolate(anomaly_map, size, mode="bilinear", align_corners=False)[0, 0].numpy()
