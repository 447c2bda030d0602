"""The run directory: config.json, metrics.jsonl (the log) and checkpoint.pt, opened once as a `Run`."""

import errno
import hashlib
import json
import os
import platform
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import PIL
import scipy
import torch
from PIL import Image
from torch import Tensor

from adref import __version__
from adref.data.reader import read_text
from adref.method import Method, Trainable
from adref.methods import find_method
from adref.options import UserError, flag, names, replace
from adref.run import distributed, files
from adref.run.cli import TrainingError, is_out_of_memory
from adref.run.scoring import Prediction, predict


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
    sha256: str = ""  # of checkpoint.pt when it was opened
    saving: bool = False  # a second Ctrl-C waits

    @property
    def threshold(self) -> float | None:
        """The least image score that is called anomalous; None: none is stored, or not for these options."""
        return self.state.calibration["threshold"] if self.state.calibration and not self.changed else None

    def predict(self, pictures) -> Prediction | list[Prediction]:
        """Scores a picture, or each of several: a path, a Pillow image, or RGB as uint8 (H, W, 3); in any thread."""
        one = isinstance(pictures, str | Path | Image.Image) or getattr(pictures, "ndim", 4) < 4
        found = [predict(self.method, picture, self.threshold, self.config["flags"]["seed"], index)[0]
                 for index, picture in enumerate([pictures] if one else pictures)]  # fmt: skip
        return found[0] if one else found

    def save(self) -> None:
        """Writes checkpoint.pt after the log of its steps; a weight that is not finite raises TrainingError before."""
        content, step = {"model": self.method.state_dict(), **vars(self.state)}, self.state.step
        content["digest"] = fingerprint([content, self.config["options"]])
        if name := non_finite(content["model"]):
            raise TrainingError(f"weight {name} is not finite at step {step}; {self.folder} keeps its last checkpoint")
        self.saving = True
        try:
            self.log()
            files.write_atomically(self.folder / "checkpoint.pt", lambda file: torch.save(content, file))
        finally:
            self.saving = False

    def log(self, line: dict | None = None) -> None:
        """Appends a line to metrics.jsonl; without one, writes what is there to the disk."""
        path = self.folder / "metrics.jsonl"
        with files.with_filename(path), open(path, "ab", opener=files.no_links) as file:
            if line is None:
                os.fsync(file.fileno())
            else:
                file.write(json.dumps(line).encode() + b"\n")

    def truncate_log(self) -> None:
        """Drops the lines of steps after the checkpoint, which a resumed run repeats."""
        kept = [json.dumps(line) + "\n" for line in read_log(self.folder) if line["step"] <= self.state.step]
        files.write_atomically(self.folder / "metrics.jsonl", lambda file: file.write("".join(kept).encode()))


def create_run(folder: Path, config: dict, method: Trainable, locks: ExitStack) -> None:
    """Makes a run directory, which is locked before anything is in it."""
    with ExitStack() as undo:
        undo.callback(files.remove_empty, folder)
        folder.mkdir(parents=True, exist_ok=True)
        locks.enter_context(lock(folder))
        undo.callback((folder / ".lock").unlink, missing_ok=True)
        with files.new_folder(folder) as partial:
            run = Run(partial, config, method)
            run.truncate_log()
            run.save()
            files.write_json(partial / "config.json", {**versions(), **config})
        undo.pop_all()


def open_run(folder: str | Path, device: str | torch.device = "cpu", kind: type[Trainable] = Trainable,
             changes: dict | None = None) -> Run:  # fmt: skip
    """Opens a run directory; its method is in evaluation mode on `device`, with some options changed."""
    folder, config = Path(folder), read_config(folder)
    if not issubclass(find_method(config["method"]), kind):
        raise UserError(f"{folder} holds {config['method']}, which scores no images; see python -m adref.synthesize")
    trained = config["options"]
    method, path = build({**config, "options": trained | (changes or {})}), folder / "checkpoint.pt"
    changed = {name: now for name in changes or {} if (now := getattr(method.options, name)) != trained[name]}
    content, digest = read_checkpoint(path, trained)
    load_state(method, content.pop("model"), path)
    method.to(device, memory_format=torch.channels_last).eval()
    return Run(folder, config, method, State(**content), changed, digest)


def load(folder: str | Path, device: str = "cpu") -> Run:
    """Opens a trained run to score images: `run.predict(picture)`, `run.threshold`."""
    return open_run(folder, device, Method)


def versions() -> dict[str, str]:
    """Returns the versions that the numbers of a run may depend on."""
    return {"adref": __version__, "torch": torch.__version__, "numpy": np.__version__, "pillow": PIL.__version__,
            "scipy": scipy.__version__, "python": platform.python_version()}  # fmt: skip


def read_config(folder: Path) -> dict:
    """Reads config.json; UserError for no run directory, a link in it, or a file that this version did not write."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise UserError(f"{folder} is no run directory: it has no config.json")
    if links := sorted(entry.path for entry in os.scandir(folder) if entry.is_symlink()):  # they lead out of the run
        raise UserError(f"{links[0]} is a link; a run directory holds files and folders of its own")
    config = files.read_json(path)
    kinds = {"method": str, "preset": str, "category": str, "options": dict, "flags": dict, "changed": dict}
    wrong = [key for key, kind in kinds.items() if not isinstance(config.get(key), kind)]
    if wrong or type(config["flags"].get("seed")) is not int or not isinstance(config["flags"].get("data"), str):
        raise UserError(f"{path} is not of a run of this version: {', '.join(wrong) or 'flags'}")
    return config


def read_checkpoint(path: Path, options: dict) -> tuple[dict, str]:
    """Reads the weights ("model") and the fields of `State`, and the file's SHA-256; UserError if it is damaged."""
    if not path.exists():
        raise UserError(f"{path} is missing")
    content, sha256 = load_tensors(path, f"{path} is no checkpoint of adref")
    if not isinstance(content, dict) or {"model", "digest", *vars(State())} != set(content):
        raise UserError(f"{path} is no checkpoint of this version of adref")
    if content.pop("digest") != fingerprint([content, options]):
        raise UserError(f"{path} is damaged or not of these options: its digest is not that of tensors and config.json")
    return content, sha256


def fingerprint(value) -> str:
    """Hashes nested dictionaries and lists of tensors and plain values: SHA-256."""
    digest = hashlib.sha256()
    if isinstance(value, Tensor):
        digest.update(f"{value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    elif isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        digest.update(repr([(key, fingerprint(item)) for key, item in items]).encode())
    else:
        digest.update(repr(value).encode())
    return digest.hexdigest()


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


def load_tensors(path: str | Path, refusal: str) -> tuple[dict, str]:
    """Loads a file of torch.save or numpy.savez on the CPU, executing no code, and hashes it; UserError: `refusal`."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
            if zipfile.is_zipfile(file) and (broken := zipfile.ZipFile(file).testzip()):  # torch compares no checksums
                raise ValueError(f"{broken} in it is damaged")
            file.seek(0)  # of the same file, even if another one has taken its name
            if not str(path).endswith(".npz"):
                return torch.load(file, map_location="cpu", weights_only=True), digest.hexdigest()
            with np.load(file, allow_pickle=False) as arrays:
                return {name: torch.from_numpy(arrays[name]) for name in arrays.files}, digest.hexdigest()
    except Exception as error:  # torch raises a dozen kinds for a damaged file, some without words
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if "weights_only" in reason or "Weights only" in reason:
            reason = "it is no file of torch.save, or holds more than tensors"
        reason = reason if " " in reason else "no file of torch.save or numpy.savez"
        raise UserError(f"{refusal}: {reason}") from None


def read_log(folder: Path) -> list[dict]:
    """Reads the lines of metrics.jsonl, without a last one that a crash cut off; UserError for a damaged one."""
    path, found = Path(folder) / "metrics.jsonl", []
    lines = path.read_bytes().split(b"\n") if path.exists() else [b""]
    for number, text in enumerate(lines[:-1], start=1):  # each ends with a newline
        try:
            line = json.loads(text)
            stage, numbers = line["stage"], {key: float(line[key]) for key in line if key != "stage"}
            if not isinstance(stage, str) or not np.isfinite([*numbers.values(), numbers["epoch"]]).all():
                raise ValueError
            found.append({**line, "step": int(line["step"])})
        except (ValueError, TypeError, KeyError, RecursionError, OverflowError):
            raise UserError(f"{path}, line {number} is damaged; cut the file before it") from None
    return found


@contextmanager
def lock(folder: Path, wait: bool = False) -> Iterator[None]:
    """Makes this process the only one that writes into a directory; UserError if another one does, unless it may wait.

    The system releases it when the process ends; the file names the torchrun that holds it. Windows locks nothing.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    with open(folder / ".lock", "a", opener=files.no_links) as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
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
    return any(distributed.gather(again)) and path.is_file() and read_text(path) == distributed.launch()


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
    """Returns the device that --device names: "auto" is CUDA where there is one, "cuda" a GPU for this process."""
    device = ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
    try:
        if device == "cuda" and distributed.count() > 1:  # some share a GPU where there are fewer
            device = f"cuda:{int(os.environ['LOCAL_RANK']) % max(1, torch.cuda.device_count())}"
            torch.cuda.set_device(device)  # NCCL uses the current device
        if torch.device(device).type not in ("cpu", "cuda"):
            raise RuntimeError
        torch.empty(1, device=device)
        return torch.device(device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise UserError(f"--device takes auto, cpu, cuda or cuda:N that is there; got {name!r}") from None
