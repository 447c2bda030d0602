"""What a run is made of: its split, its method at the first weights, what training draws from."""

from functools import partial
from pathlib import Path

import torch
from torch.utils.data import Subset

from adref.data.examples import Images, random_stream
from adref.data.layouts import Category, Record, digest, list_images
from adref.data.sample import VERSION as SAMPLE_VERSION
from adref.data.sample import generated_textures
from adref.method import Sources, Trainable
from adref.options import UserError, names
from adref.run.config import Flags
from adref.run.directory import build, load_tensors, read_sizes
from adref.run.files import sha256

# -- what a run is made of --------------------------------------------------------------------------------------------


def split(category: Category, flags: Flags) -> tuple[list, list]:
    """Training records and held-out ones, both normal; the split of each category is drawn from the seed.

    Raises:
        UserError: nothing is left to train on.
    """
    if not category.train:
        raise UserError(f"category {category.name} in {category.root} has no normal training image")
    names, chosen = sorted({record.category for record in category.train}), set()
    for name in names:
        own = [i for i, record in enumerate(category.train) if record.category == name]
        kept = 0 if flags.holdout == 0 or len(own) < 2 else min(len(own) - 1, max(1, round(flags.holdout * len(own))))
        rng = random_stream(flags.seed, "holdout" if len(names) == 1 else f"holdout {name}")
        chosen |= {own[i] for i in rng.permutation(len(own))[:kept]}
    training = [record for i, record in enumerate(category.train) if i not in chosen]
    return training, [category.train[i] for i in sorted(chosen)]


def initial_method(config: dict, flags: Flags, published: bool) -> Trainable:
    """The method at its first weights: drawn from the seed, or `published` ones where flags name them.

    Raises:
        UserError: files that do not fit, or no flag for a feature extractor.
    """
    torch.manual_seed(int(random_stream(flags.seed, "weights").integers(2**62)))
    method, backbone = build(config), flags.backbone_weights
    if backbone is None and "backbone" in method.needs:
        raise UserError(f"--backbone-weights FILE is missing: {method.needs['backbone']}; random is for tests")
    if backbone and "backbone" not in method.needs:
        raise UserError(f"--backbone-weights: {config['method']} has no frozen feature extractor")
    if backbone not in (None, "random") and published:
        state = load_tensors(backbone, f"--backbone-weights {backbone} cannot be read")
        try:
            method.load_weights([state], "backbone")
        except UserError as error:
            raise UserError(f"--backbone-weights {backbone}: {error}") from None
    if flags.weights and published:
        method.load_weights([load_tensors(path, f"--weights {path} cannot be read") for path in flags.weights])
        for name, tensor in method.state_dict().items():
            if not torch.isfinite(tensor).all():
                raise UserError(f"--weights: {name} is not finite")
    return method


def open_sources(method: Trainable, training: list[Record], flags: Flags) -> tuple[Sources, dict]:
    """What the method trains on and draws from, and the digests of what flags name, None where it needs none.

    Raises:
        UserError: the method needs something that no flag names, or what a flag names cannot be read.
    """
    o, limit = method.options, flags.memory_limit * 2**30
    size, paths, categories = o.size, [record.path for record in training], [record.category for record in training]
    foreign = getattr(o, "source_resize", o.resize)  # for pictures from elsewhere
    images = Images(paths, size, o.resize, limit, partial(method.image_hash, options=o))
    hashes = images.looks if images.looks[0] is not None else None
    textures = sizes = anomalies = textures_digest = sizes_digest = anomalies_digest = None
    if "textures" in method.needs and flags.textures is None:  # T2
        print("No --textures FOLDER: using 300 generated textures (DRAEM's paper: photographs of textures, DTD).")
        textures = torch.from_numpy(generated_textures(300, max(size), seed=0))[:, :, : size[0], : size[1]]
        textures_digest = f"generated, version {SAMPLE_VERSION}"
    elif "textures" in method.needs:
        files = list_images(Path(flags.textures))
        textures_digest = digest([Record(path, 0, "texture", None) for path in files])
        textures = Images(files, size, foreign, limit)
    if "sizes" in method.needs:
        if flags.defect_sizes is None:
            raise UserError("this method needs --defect-sizes FILE (height,width,weight); see --patch-size")
        sizes, sizes_digest = read_sizes(flags.defect_sizes), sha256(Path(flags.defect_sizes))
    if "anomalies" in method.needs:
        if flags.anomaly_images is None:
            raise UserError("this method needs --anomaly-images FOLDER (python -m adref.synthesize RUN of sdas), or "
                            "other --anomaly-sources")  # fmt: skip
        files = list_anomalies(Path(flags.anomaly_images), sorted(set(categories)))
        anomalies_digest = digest([Record(path, 1, name, None) for name in files for path in files[name]])
        anomalies = {name: Images(found, size, foreign, limit / len(files)) for name, found in files.items()}
    found = {
        name: method.statistics(Subset(images, [i for i, own in enumerate(categories) if own == name]), name, o)
        for name in dict.fromkeys(categories)
    }
    found = found if "categories" in names(type(o), all_fields=True) else found[categories[0]]
    digests = {"textures_digest": textures_digest, "sizes_digest": sizes_digest, "anomalies_digest": anomalies_digest}
    return Sources(images, hashes, categories, textures, anomalies, sizes, found), digests


def list_anomalies(folder: Path, categories: list[str]) -> dict[str, list[Path]]:
    """The anomalous pictures for each category: those in its own folder, or all where no category has one.

    Raises:
        UserError: no pictures, folders of some categories alone, or a folder that was drawn for others.
    """
    own = [name for name in categories if (folder / name).is_dir()]
    drawn = (folder / "settings.json").exists() and not (folder / "all").is_dir()  # by synthesize, with categories
    if own != categories and (own or drawn):
        missing = next(name for name in categories if name not in own)
        raise UserError(f"--anomaly-images {folder} has folders of other categories, but none of {missing}")
    try:
        found = {name: list_images(folder / name if own else folder) for name in categories}
    except UserError as error:
        raise UserError(f"--anomaly-images: {error}") from None
    for name, files in found.items():
        print(f"{name}: anomalies from {len(files)} pictures in {folder / name if own else folder}")
    return found
