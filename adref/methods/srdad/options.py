"""Options of SRDAD with their sources and readings, presets, ablations, and departures that are no option."""

from dataclasses import dataclass
from math import ceil, inf
from typing import Literal, NamedTuple

from adref.layers.unet import UNet
from adref.method import STEPS, Deviation
from adref.methods.srdad.reconstructor import HEADS, next_valid_side
from adref.options import UserError, option, require_ascending


@dataclass(frozen=True)
class Options:
    """The defaults are the paper preset."""

    # fmt: off
    size: tuple[int, int] = option((256, 256), "height,width of the networks' input", "section Experiments",
                                   limits=(32, 65536))
    resize: Literal["bilinear", "antialias"] = option(
        "bilinear", "filter that resizes images to --size", "DRAEM's code", kind="silent", paper="resize to 256 x 256",
        why="DRAEM's filter: half-pixel centres, no antialias")
    # anomalies
    object_mask: Literal["auto", "bright", "dark", "full"] = option(
        "auto", "side of Otsu's threshold that is the object, or the full image; auto: by the frames of all training "
        "images and the names of MVTec AD's categories", "Eq 1", kind="mistake",
        paper="the brighter side is the object", why="a dark part on a bright ground would have its anomalies on the "
        "ground; decided once for a category, so that no image is cut in another way than the rest")
    mask_morphology: Literal["closing", "opening"] = option("closing", "of the object's mask, 3 x 3, once", "Eq 2",
        kind="contradiction", paper="'closing', with the sign of opening", why="the text names it twice")
    anomaly: Literal["natural", "draem", "both"] = option(
        "natural", "patches of the image itself, or DRAEM's textures; both: three quarters of them textures",
        "section Method, table 4", kind="substitution", paper="one or the other", why="both is an addition for tiny: "
        "on a surface that looks alike everywhere a patch of it shows nowhere, and a short training learns nothing")
    patch_size: Literal["lognormal", "thin", "nsa_gamma", "histogram"] = option(
        "lognormal", "distribution of patch sizes; thin: with aspects up to 12; histogram: of --defect-sizes", "adref",
        kind="silent", paper="an empirical distribution of real defects, not given",
        why="masks of the test set would leak it; these sizes are guessed, not measured")
    transformations: Literal["one_photometric", "all", "one_each"] = option(
        "one_photometric", "of each patch: noise or brightness, drawn evenly, and rotation and scale; all: both and "
        "both; one_each: noise or brightness, and rotation or scale", "Eqs 3, 4", kind="ambiguous",
        paper="T_photo from {add noise, adjust brightness}, made with ImgAug", why="one of a set")
    noise: Literal["uniform", "fixed", "normal", "variance"] = option(
        "uniform", "standard deviation of a patch's noise: U(0, L), L itself (--noise-level), |N(0, L^2)| or sqrt(L)",
        "Eq 4", kind="mistake", paper="sigma ~ N(0, 0.05)", why="a standard deviation cannot be negative; 0.05, "
        "0.2 and 0.8 to 1.2 are in ImgAug's first example, which draws the deviation from U(0, 0.05 * 255)")
    noise_channels: Literal["alike", "each", "half"] = option("alike", "noise alike in the three channels, drawn for "
        "each, or for each in half of the patches", "ImgAug's default (per_channel=False)", kind="silent",
        paper="noise, made with ImgAug", why="drawn for each channel it gives the patches away; alike it shows on "
        "smooth objects alone (NOTES.md). ImgAug's example has half")
    noise_level: float = option(0.05, "L", "Eq 4", limits=(0, 1))
    brightness_mode: Literal["multiply", "add"] = option("multiply", "P (1 + delta) or P + delta, delta from U(-0.2, "
        "0.2)", "Eq 4", kind="ambiguous", paper="adjusted by U(-0.2, 0.2)", why="ImgAug's example has Multiply((0.8, "
        "1.2)); and blending cancels a constant: P + delta has P's gradients")
    rotation: tuple[float, float] = option(
        (0.0, 360.0), "degrees, drawn uniformly from here (write --rotation=-10,10)", "Eq 3", limits=(-360, 360),
        kind="contradiction", paper="U(0, 2 pi), and 'angles seen in production'", why="the formula")
    poisson_lambda: float | None = option(
        None, "lambda of Eq 5, the weight of the image's values on dR; none: infinite", "adref", limits=(1e-6, 1e12),
        kind="ambiguous", paper="no value", why="Perez et al. (2003) fix the values on dR")
    object_constraint: Literal["multiply", "clip_region"] = option("multiply", "cut to the object once, after all "
        "patches, or each region before it is blended", "section Method", kind="ambiguous", paper="multiplication with "
        "M after blending", why="as written, which leaves a seam at the object's edge; clip_region does not")
    label: Literal["region", "changed"] = option("region", "Y: Omega within M, or a texture's mask; changed: its "
        "pixels that changed (--visible)", "adref", kind="ambiguous", paper="'precisely marks' the region", why="the "
        "words; an invisible patch is then a false label, which changed, after NSA, drops")
    own_texture_share: float = option(0.0, "of DRAEM's anomalies: share of textures that are moved training images",
        "adref", limits=(0, 1), kind="substitution", paper="other data's textures", why="as in DRAEM")
    texture_colours: Literal["own", "image"] = option(
        "own", "of DRAEM's anomalies; image: textures lose their colours where the image has none", "adref",
        kind="substitution", paper="textures in colour", why="as in DRAEM")
    visible: float = option(1.0, "grey levels above which a pixel of --label changed has changed", "NSA's code",
        limits=(0, 255), kind="silent", paper="no such labels", why="NSA's; 8 at tiny and small: so short a "
        "training cannot find a change of a level or two")
    # reconstructor
    reconstructor: Literal["srdad", "swin_unet", "draem"] = option(
        "srdad", "SRDAD's network, plain Swin-Unet or DRAEM's autoencoder", "table 4")
    width: int = option(96, "channels of the first level of both Swin networks", "Eq 6", limits=(1, inf))
    window: int = option(8, "side of their attention windows in tokens", "Swin Transformer's code", limits=(2, inf),
        kind="silent", paper="no window", why="its value for 256 pixels; Swin-Unet's 7 divides no map here")
    aspp_width: int = option(192, "channels of each branch of ASPP", "adref", limits=(1, inf), kind="silent",
                             paper="no widths", why="4 x 192 = 768, so no projection is needed")
    residual: Literal["level", "block"] = option(
        "level", "part of the decoder that each W bridges", "Eq 8", kind="ambiguous", paper="each decoder block",
        why="19,408,023 parameters for the paper's 19.4 M; a W for each block gives 19,602,231")
    gates: Literal["channel", "spatial"] = option("channel", "a gate for each channel, or one for each token", "Eq 9",
        kind="ambiguous", paper="element-wise; 'spatial' in a caption", why="the equation")
    skips: Literal["final_sum", "inline"] = option(
        "final_sum", "gated skips are summed at level 1 (by linears and bilinear upsampling), or each at its level",
        "Eq 10", kind="mistake", paper="a sum of maps of four shapes", why="impossible as printed")
    skip_levels: int = option(4, "gated levels", "Eq 10", limits=(3, 4), kind="ambiguous", paper="a sum to 4",
                              why="Swin-Unet has three skips; the pair around ASPP is the fourth")
    autoencoder_width: int = option(128, "channels of the first level of DRAEM's autoencoder", "DRAEM's code",
                                    limits=(1, inf))
    # discriminator
    discriminator: Literal["srdad", "draem"] = option("srdad", "with Res-SE and cross attention, or DRAEM's", "table 4")
    discriminator_width: int = option(40, "channels of the first level of SRDAD's", "adref", limits=(1, inf),
        kind="ambiguous", paper="27.8 M parameters, no widths", why="28,283,402: the multiple of 8 that comes nearest; "
        "27,768,202, and 47,176,225 of the printed 47.2 M in all, with --attention counted")
    attention: Literal["uctransnet", "counted", "printed"] = option(
        "uctransnet", "cross attention of channels as UCTransNet's code; counted: without the matrix behind the mean "
        "of the heads, which no equation has, and with biases on Q, K, V; printed: of tokens, as Eqs 11 to 14",
        "UCTransNet's code", kind="contradiction", paper="'channel' attention; softmax(Q K^T / sqrt(d)) V of tokens, "
        "normalisation 'omitted', no output matrix, no path from T itself", why="the module that it cites; printed has "
        "16,845,402 parameters, its LayerNorms among them, and not 27.8 M")
    attention_dropout: float = option(0.1, "rate on tokens and attention", "UCTransNet's code", limits=(0, 0.99),
        kind="silent", paper="no dropout", why="the module that it cites")
    unet_width: int = option(64, "channels of the first level of DRAEM's U-Net", "DRAEM's code", limits=(1, inf))
    discriminator_input: Literal["image_first", "reconstruction_first"] = option(
        "image_first", "order of the two images in the six channels", "section Method", kind="silent",
        paper="anomalous and reconstructed", why="the order of the words; DRAEM's code has the other")
    score_window: int = option(
        21, "side s of the score's mean filter, odd, pixels at --size", "DRAEM's code", limits=(1, inf), kind="silent",
        paper="the symbol s", why="DRAEM's; a lone k x k response then scores at most k^2 / 441")
    # training
    recipe: Literal["srdad", "draem"] = option("srdad", "loss weights, optimizer, schedule, order and rotation of "
        "images (options.RECIPES)", "section Experiments", kind="silent", paper="whether the rows of table 4 share a "
        "recipe", why="rows draem and draem+ have all values of DRAEM; --recipe and --anomaly give all rows the same")
    rotation_probability: float | None = option(
        None, "share of clean images that are rotated first; none: the recipe's, srdad 0, draem 0.3", "adref",
        limits=(0, 1), kind="silent", paper="no augmentation of clean images", why="none is named")
    epochs: int | None = option(None, "passes over the training images; none: the recipe's, srdad 500, draem 700",
        "section Experiments", limits=(0, inf), kind="mistake", paper="500 iterations", why="500 steps, --steps 500, "
        "are 16 passes; the fall at 400 mirrors DRAEM's epochs")
    steps: int | None = option(None, STEPS, "adref", limits=(1, inf))
    batch_size: int = option(8, "images a step", "section Experiments", limits=(1, inf))
    learning_rate: float = option(1e-4, "the optimizer's step size", "section Experiments", limits=(0, inf))
    # fmt: on


class Recipe(NamedTuple):
    """Sets how a row of table 4 trains, besides its networks and anomalies."""

    l2_weight: float  # equation 18
    ssim_weight: float
    optimizer: Literal["adamw", "adam"]
    weight_decay: float
    epochs: int
    milestones: tuple[float, ...]  # shares of the length after which the learning rate falls
    milestone_factor: float
    order: Literal["permutation", "replacement"]  # how an epoch draws its images
    rotation_probability: float  # of clean images


RECIPES = {"srdad": Recipe(0.9, 0.1, "adamw", 0.01, 500, (0.8,), 0.1, "permutation", 0.0),
           "draem": Recipe(1.0, 1.0, "adam", 0.0, 700, (0.8, 0.9), 0.2, "replacement", 0.3)}  # fmt: skip


def recipe_of(o: Options) -> Recipe:
    """Returns the recipe that the options name, with the length and the rotation that they set."""
    given = {name: getattr(o, name) for name in ("epochs", "rotation_probability") if getattr(o, name) is not None}
    return RECIPES[o.recipe]._replace(**given)


# Half the side, a quarter of the first width; fewer, larger steps; three quarters of the anomalies are DRAEM's,
# without colours that the images have not; labels only where something shows; a window for small defects.
TINY = {"size": (128, 128), "width": 24, "window": 4, "aspp_width": 48, "autoencoder_width": 16,
        "discriminator_width": 8, "unet_width": 8, "score_window": 7, "steps": 1500, "batch_size": 4,
        "learning_rate": 1e-3, "rotation_probability": 0.0, "anomaly": "both", "own_texture_share": 0.5,
        "texture_colours": "image", "label": "changed", "visible": 8.0}  # fmt: skip
# small is a guess: the paper's side and windows, tiny's filter for that side, and what an hour or two trains.
PRESETS = {
    "paper": {}, "tiny": TINY,
    "small": {**TINY, "size": (256, 256), "window": 8, "score_window": 15, "steps": 4000},
}  # fmt: skip

DRAEM = {"reconstructor": "draem", "discriminator_input": "reconstruction_first", "anomaly": "draem",
         "recipe": "draem"}  # fmt: skip
ABLATIONS = {
    # the rows of table 4
    "draem": {**DRAEM, "discriminator": "draem"}, "draem+": DRAEM,
    "srdad-": {"reconstructor": "swin_unet", "discriminator": "draem", "anomaly": "natural"},
    "srdad": {"anomaly": "natural"},  # tiny and small have both kinds
    # anomalies and reconstructor, which that table changes together, one by one
    "draem-anomalies": {"anomaly": "draem"}, "draem-reconstructor": {"reconstructor": "draem"},
    # sigma and lambda as near to the print as can be run: |N(0, 0.05^2)|, and 1 for the value that is not given
    "literal": {"object_mask": "bright", "noise": "normal", "brightness_mode": "add", "poisson_lambda": 1.0,
                "attention": "printed", "anomaly": "natural", "steps": 500},
}  # fmt: skip

DEVIATIONS = (
    Deviation("anomalies.object_side", "silent", "nothing on textures or on parts that fill the image",
              "auto takes the full image where 20 to 80 % of the frames are bright, or the median of Otsu's eta is "
              "below 0.75; MVTec AD's names have NSA's table, unless the frames show the opposite side",
              "eta is 0.637 of a Gaussian histogram, 0.75 of a uniform one, 1 of two clean levels"),
    Deviation("anomalies.object_mask", "silent", "a grey image", "8-bit luma; a mask below 64 pixels becomes the full "
              "image", "ITU-R 601, as most programs"),
    Deviation("anomalies.natural_anomaly", "silent", "Algorithm 1, a figure without text", "equations 1 to 5 in the "
              "order of the text; all patches are cut from the clean image I, new ones at every step",
              "nothing else is printed"),
    Deviation("anomalies.RIM", "silent", "'precisely marks' the region", "a patch is cut larger than the size that is "
              "drawn, by the pixels that its warp and dR take", "the labelled region then has the drawn size"),
    Deviation("anomalies.MOST_PATCHES", "silent", "N patches", "1 + Binomial(n - 1, 0.5), n 3 on objects, 4 on full "
              "images", "as NSA, whose 4 is for textures; here parts that fill the image count with them"),
    Deviation("anomalies.draw_patch", "silent", "patches of the target object", "of the same image, half on the object "
              "where cut and a quarter where set in, else another of 200 draws; a canvas larger than the image "
              "overhangs it", "NSA's shares; NSA cuts from another image"),
    Deviation("anomalies.natural_anomaly", "silent", "equation 5 alone", "source gradients, clipped, not rounded",
              "NSA mixes the gradients on textures, OpenCV rounds to 8 bits"),
    Deviation("method.ANOMALY_PROBABILITY", "silent", "nothing said", "half of the examples are corrupted", "DRAEM"),
    Deviation("reconstructor.DEPTHS", "contradiction", "Swin-Unet, whose 2, 2, 2, 2 blocks alone have 27.2 M, with "
              "additions; 19.4 M parameters", "2, 2, 2 blocks, none in the bottleneck", "19,408,023; in rows srdad and "
              "srdad-, which differ by ASPP, W, gated skips, and by the place of the skips and a bias at the output"),
    Deviation("reconstructor.SwinUNet", "silent", "no heads, no output; equation 6 has no norm", "3, 6, 12 heads, no "
              "stochastic depth, skips from behind the blocks, a linear output; LayerNorm behind the embedding",
              "Swin's code; Swin-Unet's skips start before the blocks, its output has no bias"),
    Deviation("reconstructor.SwinUNet", "silent", "branches of ASPP", "batch norm on the convolutions, no projection",
              "DeepLabv3's, whose projection the widths make unnecessary"),
    Deviation("discriminator.ResSE", "ambiguous", "the name Res-SE; 'residual attention' in figure 7", "a convolution, "
              "then two with squeeze and excitation (ratio 16) beside the identity, x + s u(x)",
              "the shortest layout with both parts of the name; the figure's would be x + s x"),
    Deviation("discriminator.TOKEN_SIDES", "silent", "no sizes", "tokens of 16, 8, 4, 2 pixels, 4 layers, 4 heads; X_i "
              "is added to what returns", "UCTransNet's at 256 pixels, without the dropout behind its attention and "
              "its initialisation of the MLPs"),
    Deviation("SRDAD.forward", "silent", "an anomaly map", "the softmax of two logits, no detach between the networks",
              "DRAEM"),
    Deviation("SRDAD.loss", "silent", "SSIM of 'the means of the images'", "local SSIM (Gaussian 11 / 1.5, zeros "
              "outside, L = 1)", "DRAEM's code, without its guess of L from the network's output"),
    Deviation("SRDAD.loss", "ambiguous", "gamma 'typically' 2, the symbol alpha_t", "gamma 2, no alpha, smoothing 1e-5",
              "DRAEM's code; no value of alpha_t is printed"),
    Deviation("SRDAD.loss", "contradiction", "the word 'contrastive'", "equations 16 to 20 alone",
              "no equation contrasts two examples"),
    Deviation("SRDAD.loss", "contradiction", "error of the 'masked patch'", "of the whole image",
              "words left over from another method: nothing is masked here"),
    Deviation("RECIPES", "silent", "no weight decay, no pretraining", "0.01; none", "PyTorch's AdamW; --weights takes "
              "a Swin checkpoint"),
    Deviation("ABLATIONS", "mistake", "DRAEM has 26.5 M parameters, SRDAD is heavier", "97,422,725, and 198.0 against "
              "SRDAD's 33.8 G multiply-adds an image", "counted, attention's products among them (without: 30.9)"),
    Deviation("PRESETS", "substitution", "one size", "tiny: textures beside the patches, labels only where "
              "something shows, a higher rate", "far fewer steps"),
)  # fmt: skip


def check(o: Options) -> None:
    """Raises UserError for options that do not fit together."""
    swin = o.reconstructor != "draem"
    for axis, side in zip(("height", "width"), o.size):
        fits = next_valid_side(side, o.window, 0) if swin else side
        if "draem" in (o.reconstructor, o.discriminator):
            fits = ceil(fits / UNet.stride) * UNet.stride
        if fits != side:
            why = f"windows of {o.window} tokens at every level" if swin else "the networks' poolings"
            raise UserError(f"--size: a {axis} of {side} does not fit {why}; the next that does is {fits}")
    if swin and o.width % HEADS[0]:
        raise UserError(f"--width takes multiples of {HEADS[0]}, the heads of the first level; got {o.width}")
    if o.reconstructor == "srdad" and o.size == (32, 32):
        raise UserError("--size 32,32 leaves ASPP's batch norm one pixel; 64,32 is the smallest")
    require_ascending(o, "rotation")
    if o.score_window % 2 == 0 or o.score_window > min(o.size):
        raise UserError(f"--score-window takes an odd number of pixels up to {min(o.size)}; got {o.score_window}")
