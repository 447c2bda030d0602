"""The constants of SRDAD: options with their sources, presets, ablations, and departures from the paper."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal

from adref.layers.unet import UNet
from adref.method import Deviation
from adref.methods.srdad.reconstructor import next_valid_side
from adref.options import UserError, option, require_ascending

INF = math.inf


@dataclass(frozen=True)
class Options:
    """The constants of SRDAD and their other readings; the defaults are the paper preset. Patch sizes are pixels of a
    picture whose shorter side is 256."""

    size: tuple[int, int] = option(
        (256, 256), "height,width of the networks' input", "section Experiments", (32, 65536)
    )
    resize: Literal["bilinear", "antialias"] = option("bilinear", "filter that brings a picture to --size", "U; D49")
    # the object
    mask_mode: Literal["auto", "object", "full"] = option(
        "auto", "Otsu's mask, the whole picture, or by its limits", "D3"
    )
    mask_grey: Literal["luma", "mean"] = option("luma", "grey value for Otsu's threshold", "D1")
    mask_polarity: Literal["auto", "literal", "bright", "dark", "mvtec"] = option(
        "auto", "side of the threshold that is the object; mvtec: MVTEC_OBJECTS by the category's name", "Eq 1; D2"
    )
    mask_separability: float = option(0.75, "Otsu's eta below which auto takes the whole picture", "D3", (0, 1))
    mask_share: tuple[float, float] = option((0.03, 0.97), "shares of object outside which auto does", "D3", (0, 1))
    mask_morphology: Literal["closing", "opening", "none"] = option("closing", "3 x 3, once", "Eq 2; D4")
    mask_fill_holes: bool = option(False, "fill the object's holes", "D4")
    # the anomalies
    anomaly: Literal["natural", "draem"] = option(
        "natural", "patches of the part, or DRAEM's textures", "section Method; D44"
    )
    anomaly_probability: float = option(0.5, "share of samples that are corrupted", "U (DRAEM); D16", (0, 1))
    rotation_probability: float | None = option(
        None, "share of clean images that turn first; none: --recipe's", "D17", (0, 1)
    )
    rotation_degrees: float = option(90.0, "they turn by U(-d, d), black fill", "U (DRAEM); D17", (0, 180))
    own_texture_share: float = option(0.0, "DRAEM's anomalies: share of moved training images", "DRAEM's D13", (0, 1))
    patch_count: Literal["binomial", "uniform"] = option(
        "binomial", "patches: 1 + Binomial(n - 1, 0.5), or uniform", "D5"
    )
    patch_most: tuple[int, int] = option(
        (3, 4), "n of the binomial on objects, on whole pictures", "U (NSA); D5", (1, 99)
    )
    patch_range: tuple[int, int] = option((1, 3), "least and most patches, uniform", "D5", (1, 99))
    patch_source: Literal["same", "other"] = option("same", "image that a patch is cut from", "section Method; D7")
    patch_size: Literal["lognormal", "nsa_gamma", "histogram"] = option(
        "lognormal", "distribution of patch sizes; histogram: of --defect-sizes", "D6"
    )
    patch_side: float = option(28.0, "lognormal: median of the equivalent side", "D6", (1, 256))
    patch_side_sigma: float = option(0.75, "lognormal: standard deviation of its logarithm", "D6", (0, 9))
    patch_side_limits: tuple[float, float] = option((4.0, 128.0), "lognormal: clipped to these", "D6", (2, 256))
    patch_longest: float = option(160.0, "lognormal: limit of a side", "D6", (2, 256))
    patch_aspect_sigma: float = option(0.4, "lognormal: standard deviation of the aspect's logarithm", "D6", (0, 9))
    patch_aspect_limit: float = option(3.0, "lognormal: largest aspect", "D6", (1, 99))
    gamma_height: tuple[float, float] = option(
        (0.03, 0.4), "nsa_gamma: half of the height in heights", "U; D6", (0, 0.5)
    )
    gamma_width: tuple[float, float] = option((0.03, 0.4), "nsa_gamma: half of the width in widths", "U; D6", (0, 0.5))
    source_share: float = option(
        0.5, "share of a patch that lies on the object where it is cut", "U (NSA); D51", (0, 1)
    )
    place_share: float = option(0.25, "share that lies on the object where it is set in", "U (NSA); D51", (0, 1))
    place_tries: int = option(200, "tries before a patch is skipped", "D51", (1, 10**6))
    photometric_mode: Literal["both", "one"] = option("both", "noise and brightness, or one of them", "Eq 3; D10")
    noise: Literal["fixed", "drawn", "variance"] = option("fixed", "what N(0, noise_level) is: see D8", "Eq 4; D8")
    noise_level: float = option(0.05, "the noise's standard deviation", "Eq 4", (0, 1))
    brightness: float = option(0.2, "brightness changes by U(-b, b)", "Eq 4", (0, 1))
    brightness_mode: Literal["multiply", "add"] = option("multiply", "P (1 + delta), or P + delta", "Eq 4; D9")
    clip_patch: bool = option(False, "clip the patch to [0, 1] before it is blended", "D9")
    geometric_mode: Literal["both", "one"] = option("both", "rotation and scale, or one of them", "Eq 3; D10")
    rotation: tuple[float, float] = option(
        (0.0, 360.0), "degrees, drawn uniformly from here (write --rotation=-10,10)", "Eq 4; D11", (-360, 360)
    )
    scale: tuple[float, float] = option((0.8, 1.2), "drawn uniformly from here", "Eq 4", (0.1, 10))
    poisson_lambda: float | None = option(None, "lambda of Eq 5; none: infinite", "Eq 5; D12", (1e-6, 1e12))
    mixed_gradients: bool = option(False, "keep the larger of both gradients", "Eq 5; D13")
    quantise: bool = option(False, "round what is blended to 8 bits", "D52")
    object_constraint: Literal["multiply", "clip_region"] = option(
        "multiply", "cut to the object after blending, or before", "section Method; D14"
    )
    label: Literal["region", "changed"] = option("region", "Y: the blended region, or where it changed visibly", "D15")
    # the reconstructor
    reconstructor: Literal["srdad", "draem"] = option("srdad", "Swin-UNet, or DRAEM's autoencoder", "table 4")
    autoencoder_width: int = option(128, "channels of the autoencoder's first level", "U (DRAEM)", (1, INF))
    width: int = option(96, "channels of the Swin-UNet's first level", "Eq 6", (1, INF))
    depths: tuple[int, int, int] = option((2, 2, 2), "blocks of each stage, encoder and decoder", "U; D18", (1, 1000))
    bottleneck_depth: int = option(0, "blocks at the deepest level", "D18", (0, 1000))
    heads: tuple[int, int, int] = option((3, 6, 12), "attention heads of each stage", "U (Swin); D19", (1, INF))
    window: int = option(8, "side of an attention window in tokens", "U; D19", (2, INF))
    drop_path: float = option(0.0, "stochastic depth", "D18", (0, 0.99))
    aspp: bool = option(True, "ASPP after the deepest stage", "Eq 7")
    aspp_width: int = option(192, "channels of each branch of ASPP", "D20", (1, INF))
    aspp_rates: tuple[int, int, int] = option((3, 6, 12), "dilations", "Eq 7", (1, INF))
    aspp_batch_norm: bool = option(True, "batch norm after the dilated convolutions", "D20")
    aspp_project: bool = option(False, "a 1x1 convolution behind ASPP even where the widths fit", "D20")
    residual: Literal["level", "block", "none"] = option("level", "where the decoder's W stands", "Eq 8; D21")
    gates: Literal["channel", "spatial"] = option("channel", "a gate for each channel, or for each token", "Eq 9; D22")
    skips: Literal["final_sum", "inline", "concat"] = option("final_sum", "where gated skips join", "Eq 10; D23")
    skip_levels: int = option(4, "gated levels", "Eq 10; D24", (3, 4))
    skip_tap: Literal["post", "pre"] = option("post", "skips from behind the stages, or from before", "D25")
    output_activation: Literal["none", "sigmoid"] = option("none", "of the reconstruction", "U (DRAEM); D26")
    # the discriminator
    discriminator: Literal["srdad", "draem"] = option("srdad", "with Res-SE and cross attention, or DRAEM's", "table 4")
    unet_width: int = option(64, "channels of the first level of DRAEM's", "U (DRAEM)", (1, INF))
    discriminator_width: int = option(40, "channels of the first level of SRDAD's", "D28", (1, INF))
    res_se: Literal["entry", "projected", "none"] = option("entry", "layout of the Res-SE levels", "D29")
    se_ratio: int = option(16, "narrowing of squeeze and excitation", "D29", (1, INF))
    cross_attention: bool = option(True, "cross attention on the skips", "Eqs 11 to 14")
    attention_layers: int = option(4, "layers of it", "U; D34", (1, 1000))
    attention_heads: int = option(4, "heads, averaged", "U; D34", (1, INF))
    attention: Literal["channel", "token"] = option("channel", "what attends to what", "Eq 12; D30")
    attention_scale: Literal["sum", "own"] = option("sum", "scores over sqrt(S), or over sqrt(d)", "U; D31")
    attention_instance_norm: bool = option(True, "psi: normalise each matrix of scores", "U; D32")
    attention_residual: Literal["official", "eq14"] = option("official", "UCTransNet's code, or Eq 14", "Eq 14; D33")
    attention_patches: tuple[int, int, int, int] = option((16, 8, 4, 2), "pixels a token's side", "U; D34", (1, INF))
    attention_add_input: bool = option(True, "add X_i to what attention returns", "U; D35")
    attention_dropout: float = option(0.1, "on tokens and attention", "U (UCTransNet); D34", (0, 0.99))
    discriminator_input: Literal["image_first", "reconstruction_first"] = option(
        "image_first", "order of the two pictures in the six channels", "section Method; D36"
    )
    output: Literal["softmax", "sigmoid"] = option("softmax", "two logits, or one", "U (DRAEM); D37")
    score_window: int = option(21, "side s of the score's mean filter, odd, pixels at --size", "Eq 15; D38", (1, INF))
    detach: bool = option(False, "no gradient of the focal loss reaches the reconstructor", "U (DRAEM); D50")
    # losses and schedule; "none" takes the value of --recipe
    recipe: Literal["srdad", "draem"] = option("srdad", "values of the options below that are none", "D44")
    l2_weight: float | None = option(None, "weight of the squared error [srdad 0.9, draem 1]", "Eq 18", (0, INF))
    ssim_weight: float | None = option(None, "weight of the SSIM loss [srdad 0.1, draem 1]", "Eq 18", (0, INF))
    ssim_window: Literal["gaussian", "uniform"] = option("gaussian", "weights of SSIM's 11 x 11 window", "Eq 17; D40")
    ssim_padding: Literal["zero", "valid"] = option("zero", "SSIM at the border", "Eq 17; D40")
    ssim_range: Literal["one", "auto"] = option("one", "value range L of SSIM; auto: guessed as DRAEM's code", "D40")
    focal_gamma: float = option(2.0, "focusing exponent of the focal loss", "Eq 19", (0, INF))
    focal_alpha: tuple[float, ...] | None = option(
        None,
        "weight alpha of the anomalous class (normal: 1 - alpha), or of both, normal first",
        "Eq 19; D41",
        (0, INF),
    )
    focal_smooth: float = option(1e-5, "clamp of the one-hot mask and addend of p_t", "U (DRAEM); D41", (0, 0.5))
    epochs: int | None = option(None, "length of training [srdad 500, draem 700]", "section Experiments; D42", (0, INF))
    length_unit: Literal["epochs", "iterations"] = option("epochs", "what --epochs counts", "D42")
    batch_size: int = option(8, "images a step", "section Experiments", (1, INF))
    sampling: Literal["shuffle", "replacement"] | None = option(None, "how an epoch draws its images", "D44")
    optimizer: Literal["adamw", "adam"] | None = option(None, "the optimiser", "section Experiments")
    learning_rate: float = option(1e-4, "its step size", "section Experiments", (0, INF))
    weight_decay: float | None = option(None, "weight decay (of Adam: as L2) [srdad 0.01, draem 0]", "D43", (0, 1))
    milestones: tuple[float, ...] | None = option(
        None,
        "shares of the length after which the rate falls [srdad 0.8, draem 0.8,0.9]",
        "section Experiments",
        (0, 1),
    )
    milestone_factor: float | None = option(
        None, "by which it falls [srdad 0.1, draem 0.2]", "section Experiments", (0, 1)
    )


RECIPES = {  # what an option that is None takes
    "srdad": {
        "l2_weight": 0.9, "ssim_weight": 0.1, "epochs": 500, "optimizer": "adamw", "weight_decay": 0.01,
        "milestones": (0.8,), "milestone_factor": 0.1, "sampling": "shuffle", "rotation_probability": 0.0,
    },
    "draem": {
        "l2_weight": 1.0, "ssim_weight": 1.0, "epochs": 700, "optimizer": "adam", "weight_decay": 0.0,
        "milestones": (0.8, 0.9), "milestone_factor": 0.2, "sampling": "replacement", "rotation_probability": 0.3,
    },
}  # fmt: skip


PRESETS = {
    "paper": {},
    # Half the side, a quarter of the first width, windows of 4: as `draem --preset tiny` in size, steps and rate. No
    # noise on patches, or so short a training learns to find noise alone (D8); no label where nothing shows (D15, D53).
    "tiny": {
        "size": (128, 128), "width": 24, "window": 4, "aspp_width": 48, "discriminator_width": 8, "epochs": 100,
        "autoencoder_width": 16, "unet_width": 8, "batch_size": 4, "learning_rate": 1e-3, "score_window": 11,
        "rotation_probability": 0.0, "own_texture_share": 0.5, "noise_level": 0.0, "label": "changed",
    },
}  # fmt: skip


ABLATIONS = {  # the rows of table 4
    "draem": {
        "reconstructor": "draem", "discriminator": "draem", "anomaly": "draem", "recipe": "draem",
        "discriminator_input": "reconstruction_first",
    },
    "draem+": {"reconstructor": "draem"},
    "srdad-": {
        "discriminator": "draem", "bottleneck_depth": 2, "aspp": False, "residual": "none", "skips": "concat",
        "skip_tap": "pre",
    },
    "srdad": {},
}  # fmt: skip


DEVIATIONS = (
    Deviation("D1", "Options.mask_grey", "silent", "a grey image", "luma of the resized picture, 8 bits",
              "ITU-R 601, as most programs"),
    Deviation("D2", "Options.mask_polarity", "mistake", "the brighter side is the object",
              "decided for each category by its frame",
              "literally, a dark part on a bright ground would have its anomalies on the ground"),
    Deviation("D3", "Options.mask_mode", "silent", "no word on textures or parts that fill the picture",
              "the whole picture where Otsu parts badly or finds next to nothing or all",
              "one Gaussian hump of grey values has eta 0.637, a uniform spread 0.75, two clean levels 1"),
    Deviation("D4", "Options.mask_morphology", "contradiction", "'closing', with the sign of opening", "closing",
              "named so twice; holes stay"),
    Deviation("D5", "Options.patch_count", "silent", "N patches", "1 + Binomial(n - 1, 0.5)",
              "as NSA; n is 4 wherever the object fills the picture, on parts such as MVTec AD's cable too"),
    Deviation("D6", "Options.patch_size", "silent", "an empirical distribution of real defects, not given",
              "lognormal(28, 0.75)",
              "taken from the test set's masks it would leak them; these sizes are guessed, not measured"),
    Deviation("D7", "Options.patch_source", "silent", "patches of the target object", "of the same image",
              "NSA takes another image"),
    Deviation("D8", "Options.noise", "mistake", "sigma ~ N(0, 0.05)", "noise N(0, 0.05^2) for each pixel and channel",
              "a standard deviation cannot be negative; 'drawn': |N(0, 0.05)| a patch; 'variance': 0.05 is the "
              "variance"),
    Deviation("D9", "Options.brightness_mode", "ambiguous", "brightness adjusted by U(-0.2, 0.2)", "P (1 + delta)",
              "P + delta has the same gradients as P: after blending nothing is left of it, unless it clips"),
    Deviation("D10", "Options.photometric_mode", "ambiguous", "a set of transformations", "all of them",
              "or one, drawn evenly"),
    Deviation("D11", "Options.rotation", "contradiction", "U(0, 2 pi), and 'angles seen in production'",
              "U(0, 360) degrees", "the formula"),
    Deviation("D12", "Options.poisson_lambda", "silent", "the symbol lambda", "infinite: the target's values on dR",
              "Perez et al.; 1 would be a finite try"),
    Deviation("D13", "Options.mixed_gradients", "silent", "not in Eq 5", "off", "NSA mixes on textures"),
    Deviation("D14", "Options.object_constraint", "ambiguous", "multiplication with M after blending",
              "the same, once, after all patches", "leaves a seam at the object's edge; clip_region does not"),
    Deviation("D15", "Options.label", "ambiguous", "'precisely marks' the region", "Omega within M",
              "an invisible patch is a false label then; 'changed', as NSA, drops it"),
    Deviation("D16", "Options.anomaly_probability", "silent", "nothing said", "0.5", "DRAEM"),
    Deviation("D17", "Options.rotation_probability", "silent", "nothing said", "clean images are not turned",
              "DRAEM's recipe turns 30 %"),
    Deviation("D18", "Options.depths", "silent", "no depths", "2, 2, 2 and no bottleneck block",
              "Swin-Unet's 2, 2, 2, 2 alone has 27.2 M parameters; this has 19,408,023 for the paper's 19.4 M"),
    Deviation("D19", "Options.window", "silent", "no heads, no window", "3, 6, 12 heads, window 8",
              "Swin; 7 divides no map of 256 pixels"),
    Deviation("D20", "Options.aspp_width", "silent", "no widths", "192 a branch, batch norm, no projection",
              "4 x 192 = 768"),
    Deviation("D21", "Options.residual", "ambiguous", "each decoder block", "a W for each level",
              "in blocks: 19,602,231 parameters"),
    Deviation("D22", "Options.gates", "ambiguous", "element-wise; 'spatial' in a caption", "a gate for each channel",
              "the equation"),
    Deviation("D23", "Options.skips", "mistake", "a sum of maps of four shapes",
              "a linear to 96 channels, bilinear upsampling",
              "the sum is impossible as printed; 'inline' adds at each level, 'concat' is Swin-Unet's way"),
    Deviation("D24", "Options.skip_levels", "ambiguous", "a sum to 4", "the pair before and after ASPP is the fourth",
              "Swin-Unet has three skips"),
    Deviation("D25", "Options.skip_tap", "silent", "nothing said", "behind the stage's blocks",
              "Swin-Unet's code taps before them"),
    Deviation("D26", "Options.output_activation", "silent", "nothing said", "none", "DRAEM"),
    Deviation("D27", "SRDAD.load_weights", "silent", "nothing said", "no pretraining",
              "--weights takes a Swin checkpoint for the encoder"),
    Deviation("D28", "Options.discriminator_width", "ambiguous", "27.8 M parameters, no widths",
              "40 channels: 28,283,402", "the multiple of 8 that comes nearest"),
    Deviation("D29", "Options.res_se", "silent", "the name Res-SE",
              "convolution, then two convolutions with SE, residual; ratio 16", "the name; SE's ratio"),
    Deviation("D30", "Options.attention", "contradiction", "'channel' attention; Q K^T of tokens in Eq 12", "channels",
              "the module that it cites, and Eq 11's unequal widths"),
    Deviation("D31", "Options.attention_scale", "contradiction", "sqrt(d)", "sqrt(S)",
              "UCTransNet; the instance norm, where it is on, cancels it"),
    Deviation("D32", "Options.attention_instance_norm", "ambiguous", "'normalisation omitted'", "on", "UCTransNet"),
    Deviation("D33", "Options.attention_residual", "contradiction", "MCA + MLP(Q + MCA): no path from T itself",
              "H = T + CA, H + MLP(LN H)", "UCTransNet's paper prints the same and its code does this"),
    Deviation("D34", "Options.attention_patches", "silent", "no sizes", "16, 8, 4, 2; dropout 0.1; 4 layers, 4 heads",
              "UCTransNet's shape at 256 pixels; its dropout behind the attention and its start of the MLPs are "
              "left out"),
    Deviation("D35", "Options.attention_add_input", "silent", "nothing said", "X_i is added", "UCTransNet"),
    Deviation("D36", "Options.discriminator_input", "silent", "anomalous and reconstructed", "in that order",
              "DRAEM's code has the other"),
    Deviation("D37", "Options.output", "silent", "an anomaly map", "two logits, softmax",
              "DRAEM; one logit is the same family"),
    Deviation("D38", "Options.score_window", "silent", "the symbol s", "21",
              "DRAEM. A lone k x k response scores at most k^2 / 441"),
    Deviation("D39", "SRDAD.loss", "contradiction", "error of the 'masked patch'", "of the whole image",
              "words left over from another method: nothing is masked here"),
    Deviation("D40", "Options.ssim_window", "silent", "means of the images",
              "local: Gaussian 11 / 1.5, zeros outside, L = 1", "DRAEM, without its guess of L"),
    Deviation("D41", "Options.focal_alpha", "silent", "the symbol alpha_t", "none; smoothing 1e-5", "DRAEM"),
    Deviation("D42", "Options.length_unit", "mistake", "500 iterations", "500 epochs",
              "500 steps are 16 passes; the fall at 400 mirrors DRAEM's epochs"),
    Deviation("D43", "Options.weight_decay", "silent", "nothing said", "0.01", "PyTorch's AdamW"),
    Deviation("D44", "Options.recipe", "silent", "what the rows of table 4 share",
              "row draem wholly DRAEM's, the others SRDAD's",
              "--recipe and --anomaly make these common; --discriminator-input and, at tiny, DRAEM's lattices stay"),
    Deviation("D45", "ABLATIONS", "mistake", "DRAEM has 26.5 M parameters", "97,422,725",
              "counted; srdad- has more in its reconstructor than srdad"),
    Deviation("D46", "SRDAD", "mistake", "heavier than DRAEM", "33.8 against 198.0 G multiply-adds an image",
              "counted, attention's products among them (without: 30.9)"),
    Deviation("D53", "PRESETS", "substitution", "one size",
              "tiny: no noise on patches, labels only where something shows",
              "and a higher rate, at an eighth of the steps and less: with noise it learns nothing else (see D8, D15)"),
    Deviation("D49", "Options.resize", "silent", "resize to 256 x 256", "bilinear, no antialias", "as DRAEM here"),
    Deviation("D50", "Options.detach", "silent", "nothing said", "the focal loss trains both networks", "DRAEM"),
    Deviation("D51", "Options.place_share", "silent", "where patches may lie",
              "half on the object at the source, a quarter at the target",
              "NSA; a canvas larger than the picture overhangs it here"),
    Deviation("D52", "Options.quantise", "silent", "nothing said", "the blend is clipped to [0, 1] and not rounded",
              "OpenCV rounds"),
)  # fmt: skip


# -- the method -------------------------------------------------------------------------------------------------------


def resolve(options: Options) -> Options:
    """Options in which each value that was left to the recipe stands (D44)."""
    recipe = RECIPES[options.recipe]
    return dataclasses.replace(options, **{n: v for n, v in recipe.items() if getattr(options, n) is None})


def check(o: Options) -> None:
    """Raises UserError for options that cannot work together; parts that are not built are not looked at."""
    swin, attention = o.reconstructor == "srdad", o.discriminator == "srdad" and o.cross_attention
    for axis, side in zip(("height", "width"), o.size):
        fits = next_valid_side(side, o.depths, o.bottleneck_depth, o.window) if swin else side
        if not (swin and o.discriminator == "srdad"):
            fits = math.ceil(fits / UNet.stride) * UNet.stride
        if fits != side:
            why = f"windows of {o.window} tokens at every level" if swin else "the networks' poolings"
            raise UserError(f"--size: a {axis} of {side} does not fit {why}; the next that does is {fits}")
    for level, (heads, width) in enumerate(zip(o.heads, (o.width, 2 * o.width, 4 * o.width))):
        if swin and width % heads:
            raise UserError(f"--heads: {heads} heads do not divide the {width} channels of level {level + 1}")
    if swin and o.aspp and o.aspp_batch_norm and o.size == (32, 32):
        raise UserError("--size 32,32 leaves ASPP's batch norm one pixel; 64,32 is the smallest, or --aspp false")
    patches = [patch * 2**level for level, patch in enumerate(o.attention_patches)]
    if attention and (len(set(patches)) > 1 or any(side % patches[0] for side in o.size) or min(o.size) < patches[0]):
        raise UserError("--attention-patches takes four sides, each half of the one before, the first dividing --size; "
                        f"got {','.join(map(str, o.attention_patches))}")  # fmt: skip
    if attention and o.size == (patches[0], patches[0]):
        raise UserError("--attention-patches leaves one token, and batch norm needs more; take smaller ones")
    pairs = ("mask_share", "patch_range", "patch_side_limits", "gamma_height", "gamma_width", "rotation", "scale")
    require_ascending(o, *pairs)
    if o.focal_alpha and (len(o.focal_alpha) > 2 or (len(o.focal_alpha) == 1 and o.focal_alpha[0] > 1)):
        raise UserError(f"--focal-alpha takes one number from 0 to 1, or two of 0 or more; got {o.focal_alpha}")
    if o.patch_longest < o.patch_side_limits[0]:
        raise UserError(f"--patch-longest takes no less than --patch-side-limits begins with; got {o.patch_longest}")
    if o.score_window % 2 == 0:
        raise UserError(f"--score-window takes an odd number of pixels; got {o.score_window}")
