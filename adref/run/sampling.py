"""Images drawn from a trained diffusion model, into a folder that an interrupted command goes on with."""

from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from adref import options as option_tools
from adref.data.examples import random_stream
from adref.method import Sampler
from adref.methods import find_method
from adref.options import UserError
from adref.run.cli import Progress
from adref.run.directory import find_device, open_run, read_config
from adref.run.files import new_folder, read_json, refuse_existing, sha256, write_atomically, write_json

BATCH = 16  # images drawn at a time


def draw_images(folder: Path, argv: list[str]) -> int:
    """Draws images from a run of a `Sampler`: DIR/CATEGORY/000000.png and so on, without those that are there."""
    kind = find_method(read_config(folder)["method"])
    if not issubclass(kind, Sampler):
        raise UserError(f"{folder} holds {kind.__name__}, which draws no images; expected a run of sdas")
    parser = option_tools.Parser(prog="python -m adref.synthesize RUN", allow_abbrev=False)
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="folder to make, or to go on with")
    parser.add_argument("--n", metavar="N", default="16", help="images of each category [16]")
    parser.add_argument("--category", metavar="NAME", nargs="+", help="some of the categories [all]")
    parser.add_argument("--seed", default="0", help="seed of all randomness [0]")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N [auto]")
    title = "options of the sampler (as the run has them, unless given; defaults of the method in brackets)"
    option_tools.add_flags(parser, kind.Options, "options", title, kind.changeable)
    arguments = option_tools.parse_known(parser, argv)
    count, seed = (option_tools.parse(name, int, getattr(arguments, name)) for name in ("n", "seed"))
    if count < 1 or not 0 <= seed < 2**63:
        raise UserError(f"--n takes 1 or more, --seed 0 to 2^63 - 1; got {count}, {seed}")
    changes = option_tools.flags_given(arguments, "options")
    method = open_run(folder, find_device(arguments.device), Sampler, changes).method
    options, known, out = method.options, method.labels, arguments.out
    chosen = sorted(set(",".join(arguments.category).split(","))) if arguments.category else known
    if unknown := sorted(set(chosen) - set(known)):
        raise UserError(f"--category: {folder} draws {', '.join(known)}; got {unknown[0]}")
    begin(out, {"run": str(folder.resolve()), "checkpoint_sha256": sha256(folder / "checkpoint.pt"), "seed": seed,
                **{name: option_tools.to_json(options)[name] for name in kind.changeable}})  # fmt: skip
    suffix = {"png": ".png", "jpeg75": ".jpg"}[options.file_format]
    files = {(name, i): out / name / f"{i:06d}{suffix}" for name in chosen for i in range(count)}
    missing = [key for key, path in files.items() if not path.exists()]
    progress = Progress(len(missing))
    for start in range(0, len(missing), BATCH):
        batch = missing[start : start + BATCH]
        strengths = [draw_strength(options, seed, *key) for key in batch]
        streams = [random_stream(seed, f"sample {name}", i) for name, i in batch]
        images = method.sample_images([known.index(name) for name, _ in batch], streams, strengths)
        for key, strength, image in zip(batch, strengths, images.permute(0, 2, 3, 1).cpu().numpy()):
            save_image(files[key], image, strength)
        progress(start + len(batch), "images")
    print(f"{len(missing)} images drawn, {len(files) - len(missing)} were there already: {out.resolve()}")
    return 0


def draw_strength(options, seed: int, category: str, index: int) -> float:
    """Draws the strength of an image, uniform in its range, for each image or for each 16."""
    low, high = options.strength[0], options.strength[-1]
    key = index if options.strength_per == "image" else index // BATCH
    return float(random_stream(seed, f"strength {category}", key).uniform(low, high)) if high > low else low


def begin(out: Path, settings: dict) -> None:
    """Makes the folder with settings.json; UserError if an earlier command began it with other settings."""
    path = out / "settings.json"
    if not path.exists():
        refuse_existing(out, "give another name")
        with new_folder(out) as partial:
            write_json(partial / path.name, settings)
        return
    before, now = read_json(path), {key: list(v) if isinstance(v, tuple) else v for key, v in settings.items()}
    if wrong := next((key for key in now if key != "run" and before.get(key) != now[key]), None):
        change = f"{option_tools.flag(wrong)} {before.get(wrong)}, now {now[wrong]}"
        change = "another checkpoint" if wrong == "checkpoint_sha256" else change
        raise UserError(f"--out {out} was begun with {change}; give another name")


def save_image(path: Path, image: np.ndarray, strength: float) -> None:
    """Writes an image (H, W, 3) uint8 with its strength as a comment."""
    path.parent.mkdir(exist_ok=True)
    text, notes = f"strength {strength:.6g}", PngInfo()
    notes.add_text("Comment", text)
    kinds = {".jpg": {"format": "JPEG", "quality": 75, "comment": text}, ".png": {"format": "PNG", "pnginfo": notes}}
    write_atomically(path, lambda file: Image.fromarray(image).save(file, **kinds[path.suffix]))
