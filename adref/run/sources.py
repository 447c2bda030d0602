"""The ingredients of a run: its split, its method at the first weights, and the inputs of `corrupt`."""

from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Subset

from adref.data.examples import Images, random_stream
from adref.data.layouts import Category, Record, digest, list_images, raise_if_any
from adref.data.sample import VERSION as SAMPLE_VERSION
from adref.data.sample import generated_textures
from adref.method import Sources, Trainable
from adref.options import UserError, names
from adref.run.config import RunSettings
from adref.run.directory import build, load_tensors, non_finite
from adref.run.files import sha256


def split(category: Category, settings: RunSettings) -> tuple[list[Record], list[Record]]:
    """Splits the normal images into those that train and those held out, each category by itself, from the seed.

    Raises:
        UserError: nothing is left to train on.
    """
    if not category.train:
        raise UserError(f"category {category.name} in {category.root} has no normal training image")
    found, chosen = sorted({record.category for record in category.train}), set()
    for name in found:
        inside = [i for i, record in enumerate(category.train) if record.category == name]
        kept = min(len(inside) - 1, max(1, round(settings.holdout * len(inside)))) if settings.holdout else 0
        rng = random_stream(settings.seed, "holdout" if len(found) == 1 else f"holdout {name}")
        chosen |= {inside[i] for i in rng.permutation(len(inside))[:kept]}
    training = [record for i, record in enumerate(category.train) if i not in chosen]
    return training, [category.train[i] for i in sorted(chosen)]


def initial_method(config: dict, settings: RunSettings, published: bool) -> Trainable:
    """Builds the method at its first weights: drawn from the seed, or `published` ones where flags name them.

    Raises:
        UserError: files that do not fit, or no flag for a feature extractor.
    """
    torch.manual_seed(int(random_stream(settings.seed, "weights").integers(2**62)))
    method, backbone = build(config), settings.backbone_weights
    if backbone is None and "backbone" in method.needs:
        raise UserError(f"--backbone-weights FILE is missing: {method.needs['backbone']}; random is for tests")
    if backbone and "backbone" not in method.needs:
        raise UserError(f"--backbone-weights: {config['method']} has no frozen feature extractor")
    files = {"backbone": [backbone] if backbone not in (None, "random") else [], "method": settings.weights}
    for part, paths in files.items() if published else ():
        flag = "--weights" if part == "method" else "--backbone-weights"
        if paths:
            states = [load_tensors(path, f"{flag} {path} cannot be read") for path in paths]
            try:
                method.load_weights(states, part)
            except UserError as error:
                raise UserError(f"{flag} {','.join(paths)}: {str(error).removeprefix(f'{flag}: ')}") from None
    if name := non_finite(method.state_dict()):
        raise UserError(f"the published weights: {name} is not finite")
    return method


def read_images(method: Trainable, records: list[Record], settings: RunSettings) -> Images:
    """Reads and resizes images for a method, once each."""
    o = method.options
    image_hash = partial(method.image_hash, options=o)
    return Images([r.path for r in records], o.size, o.resize, settings.memory_limit * 2**30, image_hash)


def open_sources(
    method: Trainable, images: Images, categories: list[str], settings: RunSettings
) -> tuple[Sources, dict[str, str]]:
    """Opens the inputs of `corrupt`.

    Args:
        method: built.
        images: that train.
        categories: the category of each.
        settings: of the run.

    Returns:
        the sources; and name -> digest of the textures, sizes and anomalies, for config.json.

    Raises:
        UserError: an input that the method needs and no flag names, or files that cannot be read.
    """
    o, limit, known, missing = method.options, settings.memory_limit * 2**30, {}, "this method needs {} ({})"
    textures = sizes = anomalies = None
    if "textures" in method.needs and settings.textures is None:
        print("No --textures FOLDER: using 300 generated textures (DRAEM's paper: photographs of textures, DTD).")
        textures = torch.from_numpy(generated_textures(300, max(o.size), seed=0))[:, :, : o.size[0], : o.size[1]]
        known["textures"] = f"generated, version {SAMPLE_VERSION}"
    elif "textures" in method.needs:
        textures, value = read_folder(list_images(Path(settings.textures)), o, limit, "texture", 0)
        known["textures"] = value
    if "sizes" in method.needs:
        if settings.defect_sizes is None:
            raise UserError(
                missing.format("--defect-sizes FILE, a table of height,width,weight", method.needs["sizes"])
            )
        sizes = read_sizes(settings.defect_sizes)
        known["sizes"] = sha256(Path(settings.defect_sizes))
    if "anomalies" in method.needs:
        if settings.anomaly_images is None:
            flag = "--anomaly-images FOLDER, from python -m adref.synthesize RUN of sdas"
            raise UserError(missing.format(flag, method.needs["anomalies"]))
        files, anomalies, values = list_anomalies(Path(settings.anomaly_images), sorted(set(categories))), {}, []
        for name, paths in files.items():
            anomalies[name], value = read_folder(paths, o, limit / len(files), name, 1)
            values.append(value)
        known["anomalies"] = " ".join(values)
    found = {
        name: method.statistics(Subset(images, [i for i, c in enumerate(categories) if c == name]), name, o)
        for name in dict.fromkeys(categories)
    }
    several = "categories" in names(type(o), all_fields=True)
    hashes = images.hashes if images.hashes and images.hashes[0] is not None else None
    statistics = found if several else found[categories[0]]
    return Sources(images, hashes, categories, textures, anomalies, sizes, statistics), known


def read_folder(paths: list[Path], options, limit: float, name: str, label: int) -> tuple[Images, str]:
    """Reads images that are no training images, with --source-resize where the method has it; and their digest."""
    images = Images(paths, options.size, getattr(options, "source_resize", options.resize), limit)
    raise_if_any(images.problems, name)
    return images, digest([Record(path, label, name, None) for path in paths], dict(zip(images.paths, images.digests)))


def list_anomalies(folder: Path, categories: list[str]) -> dict[str, list[Path]]:
    """Lists the anomalous images for each category: those in its folder, or all where no category has one.

    Raises:
        UserError: no images, folders of some categories alone, or a folder that was drawn for others.
    """
    found = [name for name in categories if (folder / name).is_dir()]
    drawn = (folder / "settings.json").exists() and not (folder / "all").is_dir()  # by synthesize, with categories
    if found != categories and (found or drawn):
        missing = next(name for name in categories if name not in found)
        raise UserError(f"--anomaly-images {folder} has folders of other categories, but none of {missing}")
    try:
        files = {name: list_images(folder / name if found else folder) for name in categories}
    except UserError as error:
        raise UserError(f"--anomaly-images: {error}") from None
    for name, paths in files.items():
        print(f"{name}: anomalies from {len(paths)} images in {folder / name if found else folder}")
    return files


def read_sizes(path: str | Path) -> np.ndarray:
    """Reads a table of defect sizes: (n, 3) float64 with height, width and weight, above 0 and up to a million.

    Raises:
        UserError: no such table; a first row of words is a heading.
    """
    try:
        rows = Path(path).read_text(encoding="utf-8-sig").splitlines()
        sizes = np.array(
            [[float(word) for word in row.split(",")] for row in rows[rows[0][:1].isalpha() :] if row.strip()]
        )
        if sizes.ndim != 2 or sizes.shape[1] != 3 or not ((sizes > 0) & (sizes <= 1e6)).all():
            raise ValueError(f"got an array of {sizes.shape}")
    except (OSError, ValueError, IndexError) as error:
        raise UserError(f"{path}: expected rows of height,width,weight, above 0 and up to 1e6 ({error})") from None
    return sizes
