"""The run directory: config.json, metrics.jsonl (the log) and checkpoint.pt, opened once as a `Run`."""

import errno
import json
import os
import platform
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import PIL
import scipy
import torch

from adref import __version__
from adref.method import Method, Trainable
from adref.methods import find_method
from adref.options import UserError, flag, names, replace
from adref.run import distributed
from adref.run.cli import TrainingError, is_out_of_memory
from adref.run.files import new_folder, read_json, with_filename, write_atomically, write_json


@dataclass
class State:
    """The content of a checkpoint besides the weights. Steps are counted over all stages."""

    step: int = 0
    finished_stages: dict[str, int] = field(default_factory=dict)  # name -> its number of steps
    selected_steps: dict[str, int] = field(default_factory=dict)  # stage that stopped early -> step of its weights
    best: dict | None = None  # loss, epoch, step and model of the least validation loss so far in this stage
    optimizer: dict | None = None
    schedule: dict | None = None
    finished: bool = False  # training is over and the threshold is set
    calibration: dict | None = None  # threshold, images, false_alarm_rate


@dataclass
class Run:
    """A run directory with its configuration, its method and the state of its checkpoint."""

    folder: Path
    config: dict
    method: Trainable
    state: State = field(default_factory=State)
    changed: dict = field(default_factory=dict)  # options that are not those of the training -> value

    @property
    def threshold(self) -> float | None:
        """The least image score that is called anomalous; None: none is stored, or not for these options."""
        return self.state.calibration["threshold"] if self.state.calibration and not self.changed else None

    def save(self) -> None:
        """Writes checkpoint.pt after the log of its steps; a weight that is not finite raises TrainingError before."""
        content, step = {"model": self.method.state_dict(), **vars(self.state)}, self.state.step
        if name := non_finite(content["model"]):
            raise TrainingError(f"weight {name} is not finite at step {step}; {self.folder} keeps its last checkpoint")
        log = self.folder / "metrics.jsonl"
        with with_filename(log), open(log, "ab") as file:
            os.fsync(file.fileno())
        write_atomically(self.folder / "checkpoint.pt", lambda file: torch.save(content, file))

    def log(self, line: dict) -> None:
        """Appends a line to metrics.jsonl."""
        path = self.folder / "metrics.jsonl"
        with with_filename(path), open(path, "a") as file:
            file.write(json.dumps(line) + "\n")

    def truncate_log(self) -> None:
        """Drops the lines of steps after the checkpoint, which a resumed run repeats."""
        kept = [json.dumps(line) + "\n" for line in read_log(self.folder) if line["step"] <= self.state.step]
        write_atomically(self.folder / "metrics.jsonl", lambda file: file.write("".join(kept).encode()))


def create_run(folder: Path, config: dict, method: Trainable) -> None:
    """Makes a run directory that can be opened from the moment it exists; UserError if it cannot be written."""
    with new_folder(folder) as partial:
        write_json(partial / "config.json", {**versions(), **config})
        (partial / "metrics.jsonl").touch()
        Run(partial, config, method).save()


def open_run(folder: str | Path, device: str | torch.device = "cpu", kind: type[Trainable] = Trainable,
             changes: dict | None = None) -> Run:  # fmt: skip
    """Opens a run directory; its method is in evaluation mode on `device`, with some options changed."""
    folder, config = Path(folder), read_config(folder)
    if not issubclass(find_method(config["method"]), kind):
        raise UserError(f"{folder} holds {config['method']}, which scores no images; see python -m adref.synthesize")
    trained = config["options"]
    method, path = build({**config, "options": trained | (changes or {})}), folder / "checkpoint.pt"
    changed = {name: now for name in changes or {} if (now := getattr(method.options, name)) != trained[name]}
    content = read_checkpoint(path)
    load_state(method, content.pop("model"), path)
    method.to(device, memory_format=torch.channels_last).eval()
    return Run(folder, config, method, State(**content), changed)


def load(folder: str | Path, device: str = "cpu") -> Run:
    """Opens a trained run to score images: `run.method.score(images)`, `run.threshold`."""
    return open_run(folder, device, Method)


def versions() -> dict[str, str]:
    """Returns the versions that the numbers of a run may depend on."""
    return {"adref": __version__, "torch": torch.__version__, "numpy": np.__version__, "pillow": PIL.__version__,
            "scipy": scipy.__version__, "python": platform.python_version()}  # fmt: skip


def read_config(folder: Path) -> dict:
    """Reads config.json; UserError for no run directory, or a file that this version did not write."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise UserError(f"{folder} is no run directory: it has no config.json")
    config = read_json(path)
    kinds = {"method": str, "preset": str, "category": str, "options": dict, "flags": dict, "changed": dict}
    wrong = [key for key, kind in kinds.items() if not isinstance(config.get(key), kind)]
    if wrong or type(config["flags"].get("seed")) is not int or not isinstance(config["flags"].get("data"), str):
        raise UserError(f"{path} is not of a run of this version: {', '.join(wrong) or 'flags'}")
    return config


def read_checkpoint(path: Path) -> dict:
    """Reads the weights ("model") and the fields of `State`; UserError if the file is missing or damaged."""
    if not path.exists():
        raise UserError(f"{path} is missing")
    content = load_tensors(path, f"{path} is no checkpoint of adref")
    try:
        with zipfile.ZipFile(path) as archive:  # torch compares no checksums
            broken = archive.testzip()
    except Exception as error:
        broken = error
    if broken is not None:
        raise UserError(f"{path} is damaged: {broken}")
    if not isinstance(content, dict) or {"model", *vars(State())} != set(content):
        raise UserError(f"{path} is no checkpoint of this version of adref")
    return content


def load_state(method: Trainable, weights: dict, path: Path) -> None:
    """Loads the weights of a checkpoint; UserError if they do not fit or are not finite."""
    try:
        method.load_state_dict(weights)
    except (KeyError, RuntimeError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: the weights do not fit config.json: {str(error).splitlines()[-1].strip()}") from None
    if name := non_finite(method.state_dict()):
        raise UserError(f"{path}: weight {name} is not finite")


def non_finite(weights: dict) -> str | None:
    """Returns the first name whose tensor holds NaN or an infinity."""
    return next((name for name, tensor in weights.items() if not torch.isfinite(tensor).all()), None)


def load_tensors(path: str | Path, refusal: str):
    """Loads a file of torch.save or numpy.savez on the CPU, executing no code; UserError with `refusal` for others."""
    try:
        if str(path).endswith(".npz"):
            with np.load(path, allow_pickle=False) as arrays:
                return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen kinds for a damaged file, some without words
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        reason = "it holds more than tensors" if "weights_only" in reason or "Weights only" in reason else reason
        reason = reason if " " in reason else "no file of torch.save or numpy.savez"
        raise UserError(f"{refusal}: {reason}") from None


def read_log(folder: Path) -> list[dict]:
    """Reads the lines of metrics.jsonl, without a last one that a crash cut off; UserError for a damaged one."""
    path, found = Path(folder) / "metrics.jsonl", []
    lines = path.read_bytes().split(b"\n") if path.exists() else [b""]
    for number, text in enumerate(lines[:-1], start=1):  # each ends with a newline
        try:
            line = json.loads(text)
            found.append({**line, "step": int(line["step"]), "stage": str(line["stage"])})
        except (ValueError, TypeError, KeyError, RecursionError):
            raise UserError(f"{path}, line {number} is damaged; cut the file before it") from None
    return found


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Makes this process the only one that writes into a run directory; UserError if another one does.

    The system releases the lock when the process ends, however it does; data workers do not inherit it. The file names
    the torchrun that holds it (`is_own_restart`). Windows and some network disks have no locks: nothing is locked.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    with open(folder / ".lock", "a") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise UserError(f"{folder} is in use by another process; wait for its end, or stop it") from None
        file.truncate(0)
        file.write(distributed.launch())
        file.flush()
        yield


def is_own_restart(folder: Path) -> bool:
    """Tells whether torchrun started this process again after a failure, and was the last to write into the run."""
    path, again = folder / ".lock", os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    return any(distributed.gather(again)) and path.is_file() and path.read_text() == distributed.launch()


def build(config: dict) -> Trainable:
    """Builds the untrained method of a configuration; UserError for options that it does not take."""
    method = find_method(config["method"])
    options = replace(method.Options(), config["options"])
    if lacking := set(names(method.Options, all_fields=True)) - {*config["options"]}:
        lacking = ", ".join(map(flag, sorted(lacking)))
        raise UserError(f"config.json of another version of adref: it lacks {lacking}, whose defaults may differ")
    try:
        return method(options)
    except (MemoryError, RuntimeError, TypeError, OverflowError) as error:  # of torch, for sizes beyond its reach
        if is_out_of_memory(error):
            raise
        raise UserError(f"a network of these options cannot be made: {str(error).splitlines()[0]}") from error


def find_device(name: str) -> torch.device:
    """Returns the device that --device names: "auto" is CUDA where there is one, "cuda" the GPU of this process."""
    device = ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
    try:
        if device == "cuda" and distributed.count() > 1:
            device = f"cuda:{os.environ['LOCAL_RANK']}"
            torch.cuda.set_device(device)  # NCCL uses the current device
        if torch.device(device).type not in ("cpu", "cuda"):
            raise RuntimeError
        torch.empty(1, device=device)
        return torch.device(device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise UserError(f"--device takes auto, cpu, cuda or cuda:N that is there; got {name!r}") from None
