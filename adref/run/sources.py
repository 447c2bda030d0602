"""The ingredients of a run: its split, its method at the first weights, and the inputs of `corrupt`."""

import hashlib
import importlib.util
import os
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Subset

from adref.data import sample
from adref.data.examples import Images, random_stream
from adref.data.layouts import Category, Record, digest, list_images, raise_if_any
from adref.data.reader import read_text
from adref.method import Sources, Trainable
from adref.options import Notice, UserError, names
from adref.run.config import RunSettings
from adref.run.directory import build, load_tensors, non_finite
from adref.run.files import safe_name


def split(category: Category, settings: RunSettings) -> tuple[list[Record], list[Record]]:
    """Splits the normal images of each category into those that train and those held out for the threshold."""
    found, chosen = {record.category for record in category.train}, set()
    for name in found:
        inside = [record for record in category.train if record.category == name]
        kept = min(len(inside) - 1, max(1, round(settings.holdout * len(inside)))) if settings.holdout else 0
        rng = random_stream(settings.seed, "holdout" if len(found) == 1 else f"holdout {name}")
        chosen |= {inside[i] for i in rng.permutation(len(inside))[:kept]}
    return [r for r in category.train if r not in chosen], [r for r in category.train if r in chosen]


def initial_method(config: dict, settings: RunSettings) -> tuple[Trainable, dict[str, str]]:
    """Builds the method at its first weights, drawn or published (UserError if unfit), and hashes published files."""
    torch.manual_seed(int(random_stream(settings.seed, "weights").integers(2**62)))
    method, backbone, known = build(config), settings.backbone_weights, {}
    if backbone is None and "backbone" in method.needs:
        backbone = packaged_file(getattr(method.backbone, "package", None))
        if backbone is None:
            raise UserError(f"--backbone-weights FILE is missing: {method.needs['backbone']}; random is for tests")
    if backbone and "backbone" not in method.needs:
        raise UserError(f"--backbone-weights: {config['method']} has no frozen feature extractor")
    files = (("backbone", "--backbone-weights", () if backbone in (None, "random") else (backbone,)),
             ("method", "--weights", settings.weights))  # fmt: skip
    for part, flag, paths in files:
        loaded = {path: load_tensors(path, f"{flag} {path} cannot be read") for path in paths}
        known |= {path: sha256 for path, (_, sha256) in loaded.items()}
        try:
            if loaded:
                method.load_weights([loaded[path][0] for path in paths], part)
        except UserError as error:
            raise UserError(f"{flag} {','.join(paths)}: {str(error).removeprefix(f'{flag}: ')}") from None
    if name := non_finite(method.state_dict()):
        raise UserError(f"the published weights: {name} is not finite")
    return method, known


def packaged_file(name: str | None) -> str | None:
    """Returns the path of a file of an installed package, "package/path"; None if it is not there; imports nothing."""
    spec = importlib.util.find_spec(name.partition("/")[0]) if name else None
    path = Path(spec.origin).parent.parent / name if spec and spec.origin else None
    return str(path) if path and path.is_file() else None


def read_images(method: Trainable, records: list[Record], settings: RunSettings) -> Images:
    """Reads and resizes images for a method, once each."""
    o, image_hash = method.options, partial(method.image_hash, options=method.options)
    return Images([r.path for r in records], o.size, o.resize, settings.memory_limit * 2**30, image_hash)


def open_sources(method: Trainable, images: Images, categories: list[str],
                 settings: RunSettings) -> tuple[Sources, dict[str, str]]:  # fmt: skip
    """Opens the inputs of `corrupt`: `images` that train, in these categories, and files; and each input's digest."""
    o, limit, known, needs = method.options, settings.memory_limit * 2**30, {}, method.needs
    textures = sizes = anomalies = None
    given = {"textures": settings.textures, "sizes": settings.defect_sizes, "anomalies": settings.anomaly_images}
    required = {"sizes": "--defect-sizes FILE, a table of height,width,weight",
                "anomalies": "--anomaly-images FOLDER, from python -m adref.synthesize RUN of sdas"}  # fmt: skip
    for need, value in given.items():
        if value is not None and need not in needs:
            warnings.warn(f"{value} is not used: with these options the method draws from no {need}", Notice, 2)
        if value is None and need in needs and need in required:
            raise UserError(f"this method needs {required[need]} ({needs[need]})")
    if "textures" in needs and settings.textures:
        textures, known["textures"] = read_folder(list_images(Path(settings.textures)), o, limit, "texture", 0)
    elif "textures" in needs:
        print("No --textures FOLDER: using 300 generated textures (DRAEM's paper: photographs of textures, DTD).")
        textures = torch.from_numpy(sample.generated_textures(300, max(o.size), seed=0))[:, :, : o.size[0], : o.size[1]]
        known["textures"] = f"generated, version {sample.VERSION}"
    if "sizes" in needs:
        sizes, known["sizes"] = read_sizes(settings.defect_sizes)
    if "anomalies" in needs:
        files = list_anomalies(Path(settings.anomaly_images), sorted(set(categories)))
        read = {name: read_folder(paths, o, limit / len(files), name, 1) for name, paths in files.items()}
        anomalies = {name: pictures for name, (pictures, _) in read.items()}
        known["anomalies"] = " ".join(value for _, value in read.values())
    places = {name: [i for i, c in enumerate(categories) if c == name] for name in dict.fromkeys(categories)}
    statistics = {name: method.statistics(Subset(images, own), name, o) for name, own in places.items()}
    if "categories" not in names(type(o), all_fields=True):
        statistics = statistics[categories[0]]
    hashes = images.hashes if images.hashes and images.hashes[0] is not None else None
    return Sources(images, hashes, categories, textures, anomalies, sizes, statistics), known


def read_folder(paths: list[Path], options, limit: float, name: str, label: int) -> tuple[Images, str]:
    """Reads images that are no training images, with --source-resize where the method has it; and their digest."""
    images = Images(paths, options.size, getattr(options, "source_resize", options.resize), limit)
    raise_if_any(images.problems, name)
    return images, digest([Record(path, label, name, None) for path in paths], dict(zip(images.paths, images.digests)))


def list_anomalies(folder: Path, categories: list[str]) -> dict[str, list[Path]]:
    """Lists the anomalous images for each category: those in its folder, or all where no category has one."""
    places = {name: folder / safe_name(name) for name in categories}
    found = [name for name, place in places.items() if place.is_dir()]
    drawn = (folder / "settings.json").exists() and not (folder / "all").is_dir()  # by synthesize, with categories
    if found != categories and (found or drawn):
        missing = next(name for name in categories if name not in found)
        raise UserError(f"--anomaly-images {folder} has folders of other categories, but none of {missing}")
    try:
        files = {name: list_images(place if found else folder) for name, place in places.items()}
    except UserError as error:
        raise UserError(f"--anomaly-images: {error}") from None
    for name, paths in files.items():
        print(f"{name}: anomalies from {len(paths)} images in {places[name] if found else folder}")
    return files


def read_sizes(path: str | Path) -> tuple[np.ndarray, str]:
    """Reads a table of height,width,weight, in (0, 1e6], heading or not, as (n, 3) float64, and its text's SHA-256."""
    try:
        text = read_text(path)
        rows = text.splitlines()
        sizes = np.array([list(map(float, r.split(","))) for r in rows[rows[0][:1].isalpha() :] if r.strip()])
        if sizes.ndim != 2 or sizes.shape[1] != 3 or not ((sizes > 0) & (sizes <= 1e6)).all():
            raise ValueError(f"got an array of {sizes.shape}")
    except (OSError, ValueError, IndexError) as error:
        raise UserError(f"{path}: expected rows of height,width,weight, above 0 and up to 1e6 ({error})") from None
    return sizes, hashlib.sha256(os.fsencode(text)).hexdigest()
