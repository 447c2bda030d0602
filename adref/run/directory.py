"""The run directory: configuration, log, checkpoint; and what is done with a finished one: load it, score an image."""

import errno
import json
import math
import os
import platform
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import PIL
import scipy
import torch

from adref import __version__
from adref.data.examples import resize, to_tensor
from adref.data.reader import read_image
from adref.method import Method, Trainable
from adref.methods import find_method
from adref.options import UserError, replace
from adref.run import distributed
from adref.run.files import naming, write_atomically, write_json

CONFIG_TYPES = {
    **dict.fromkeys(("adref", "torch", "numpy", "pillow", "scipy", "python"), str),
    **dict.fromkeys(("method", "preset", "category", "device", "data_digest"), str),
    **dict.fromkeys(("ablation", "textures_digest", "sizes_digest", "anomalies_digest"), str | None),
    **dict.fromkeys(("changed", "options", "flags", "weights_sha256"), dict), "generated": bool, "processes": int,
}  # fmt: skip


class TrainingError(RuntimeError):
    """Work cannot go on, and not for a mistake at the keyboard: shown as one sentence, exit code 1."""


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
        (partial / "metrics.jsonl").touch()
        save_checkpoint(partial, checkpoint)
        os.replace(partial, run)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)  # on a full disk its room is wanted
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
        wrong = [key for key, kind in CONFIG_TYPES.items() if key not in config or not isinstance(config[key], kind)]
        flags = config["flags"] if "flags" not in wrong else {}
        seed, texts = flags.get("seed"), [flags.get("data"), flags.get("precision")]
        if type(seed) is not int or not 0 <= seed < 2**63 or not all(isinstance(text, str) for text in texts):
            wrong.append("flags")
        if wrong:
            raise ValueError(f"keys are missing or damaged: {', '.join(dict.fromkeys(wrong))}")
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{run} is no run directory: it has no config.json") from None
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    return config


@contextmanager
def in_use(run: Path) -> Iterator[None]:
    """This process alone writes into a run directory; the system lets go of it when the process ends, however it does.

    The lock belongs to the process, so that data workers do not inherit it; its file names the `launch` (`begun_here`).
    Where there are no such locks (Windows, some network disks) nothing is locked.

    Raises:
        UserError: another process writes there.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    with open(run / ".lock", "a") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise UserError(f"{run} is in use by another process; wait for its end, or stop it") from None
        file.truncate(0)
        file.write(distributed.launch())
        file.flush()
        yield


def begun_here(run: Path) -> bool:
    """Whether it was the torchrun that started this process which wrote last into a run directory."""
    try:
        return (run / ".lock").read_text() == distributed.launch() != ""
    except OSError:
        return False


def save_checkpoint(run: Path, state: dict) -> None:
    """checkpoint.pt, atomically, after the log of its steps is on the disk.

    Raises:
        TrainingError: a weight is not finite; the last good checkpoint stays.
    """
    if name := non_finite(state["model"]):
        raise TrainingError(f"weight {name} is not finite at step {state['step']}; {run} keeps its last checkpoint")
    with naming(run / "metrics.jsonl"), open(run / "metrics.jsonl", "ab") as log:
        os.fsync(log.fileno())
    write_atomically(run / "checkpoint.pt", lambda file: torch.save(state, file))


def non_finite(weights: dict) -> str | None:
    """The first name whose tensor holds NaN or an infinity."""
    return next((name for name, tensor in weights.items() if not torch.isfinite(tensor).all()), None)


def load_checkpoint(run: Path) -> dict:
    """The state that `save_checkpoint` wrote, on the CPU. Holds tensors and plain values only: no code is executed.

    Raises:
        UserError: no checkpoint, or a damaged one.
    """
    path = Path(run) / "checkpoint.pt"
    if not path.exists():
        raise UserError(f"{path} is missing")
    refusal = f"{path} is no checkpoint of adref"
    state = load_tensors(path, refusal)
    try:  # torch compares no sums
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except Exception as error:
        broken = error
    if broken is not None:
        raise UserError(f"{path} is damaged: {broken}")
    if not isinstance(state, dict) or not {"model", "step"} <= set(state):
        raise UserError(f"{refusal}: it does not hold model and step")
    model, step, calibration = state["model"], state["step"], state.get("calibration")
    if not isinstance(model, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in model.values()):
        raise UserError(f"{refusal}: its model is not made of tensors")
    if type(step) is not int or step < 0:
        raise UserError(f"{refusal}: its step is {step!r}")
    if calibration is not None:
        threshold = calibration.get("threshold") if isinstance(calibration, dict) else None
        if not isinstance(threshold, float) or not math.isfinite(threshold):
            raise UserError(f"{refusal}: its threshold is {threshold!r}")
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
    """The lines of metrics.jsonl; a last line that a crash cut off is left out.

    Raises:
        UserError: another line is damaged.
    """
    path, found = Path(run) / "metrics.jsonl", []
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    for number, text in enumerate(lines[:-1], start=1):  # each ends with a newline
        try:
            line = json.loads(text)
            if not isinstance(line["stage"], str) or type(line["step"]) is not int:
                raise ValueError
            line["seconds"], *(float(value) for name, value in line.items() if name != "stage")
        except (ValueError, TypeError, KeyError, RecursionError, OverflowError):
            raise UserError(f"{path}, line {number} is damaged; cut the file before it") from None
        found.append(line)
    return found


# -- a trained method -------------------------------------------------------------------------------------------------


def build(config: dict) -> Trainable:
    """The untrained method that a config.json describes.

    Raises:
        UserError: options that are no such thing, or a network that no memory holds.
    """
    method = find_method(config["method"])
    options = replace(method.Options(), config["options"])
    try:
        return method(options)
    except (MemoryError, RuntimeError, TypeError, OverflowError) as error:  # of torch, for sizes beyond its reach
        reason = str(error).splitlines()[0]
        raise UserError(f"a network of these options cannot be made: {reason}") from error


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
    return method.to(device, memory_format=torch.channels_last).eval()


def open_picture(path: str, size: tuple[int, int], filter: str) -> torch.Tensor:
    """A file as methods see it: uint8 (3, *size)."""
    return resize(to_tensor(read_image(path)), size, filter)


def load_weights(run: str | Path, method: Trainable, state: dict) -> None:
    """Puts a checkpoint's weights into a method; UserError where they do not fit config.json or are not finite."""
    try:
        method.load_state_dict(state["model"])
    except (KeyError, RuntimeError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise UserError(f"{run}: the weights do not fit config.json: {reason}") from None
    if name := non_finite(method.state_dict()):
        raise UserError(f"{run}: weight {name} is not finite")


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
