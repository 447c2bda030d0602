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
        (256, 256), "height,width of the networks' input", "section Experiments", limits=(32, 65536),
    )  # fmt: skip
    # TODO here: D49: bilinear, no antialias
    resize: Literal["bilinear", "antialias"] = option(
        "bilinear", "filter that brings a picture to --size", "U", kind="silent", paper="resize to 256 x 256",
        why="as DRAEM here",
    )  # fmt: skip
    # the object
    # TODO here: D3: the whole picture where Otsu parts badly or finds next to nothing or all
    mask_mode: Literal["auto", "object", "full"] = option(
        "auto", "Otsu's mask, the whole picture, or by its limits", "adref", kind="silent",
        paper="no word on textures or parts that fill the picture",
        why="one Gaussian hump of grey values has eta 0.637, a uniform spread 0.75, two clean levels 1",
    )  # fmt: skip
    # TODO here: D1: luma of the resized picture, 8 bits
    mask_grey: Literal["luma", "mean"] = option(
        "luma", "grey value for Otsu's threshold", "adref", kind="silent", paper="a grey image",
        why="ITU-R 601, as most programs",
    )  # fmt: skip
    # TODO here: D2: decided for each category by its frame
    mask_polarity: Literal["auto", "literal", "bright", "dark", "mvtec"] = option(
        "auto", "side of the threshold that is the object; mvtec: MVTEC_OBJECTS by the category's name", "Eq 1",
        kind="mistake", paper="the brighter side is the object",
        why="literally, a dark part on a bright ground would have its anomalies on the ground",
    )  # fmt: skip
    # TODO see ['D3']
    mask_separability: float = option(
        0.75, "Otsu's eta below which auto takes the whole picture", "adref", limits=(0, 1),
    )  # fmt: skip
    # TODO see ['D3']
    mask_share: tuple[float, float] = option(
        (0.03, 0.97), "shares of object outside which auto does", "adref", limits=(0, 1),
    )  # fmt: skip
    # TODO here: D4: closing
    mask_morphology: Literal["closing", "opening", "none"] = option(
        "closing", "3 x 3, once", "Eq 2", kind="contradiction", paper="'closing', with the sign of opening",
        why="named so twice; holes stay",
    )  # fmt: skip
    # TODO see ['D4']
    mask_fill_holes: bool = option(False, "fill the object's holes", "adref")
    # the anomalies
    # TODO see ['D44']
    anomaly: Literal["natural", "draem"] = option(
        "natural", "patches of the part, or DRAEM's textures", "section Method",
    )  # fmt: skip
    # TODO here: D16: 0.5
    anomaly_probability: float = option(
        0.5, "share of samples that are corrupted", "U (DRAEM)", limits=(0, 1), kind="silent", paper="nothing said",
        why="DRAEM",
    )  # fmt: skip
    # TODO here: D17: clean images are not turned
    rotation_probability: float | None = option(
        None, "share of clean images that turn first; none: --recipe's", "adref", limits=(0, 1), kind="silent",
        paper="nothing said", why="DRAEM's recipe turns 30 %",
    )  # fmt: skip
    # TODO see ['D17']
    rotation_degrees: float = option(90.0, "they turn by U(-d, d), black fill", "U (DRAEM)", limits=(0, 180))
    # TODO see ['D13']
    own_texture_share: float = option(
        0.0, "DRAEM's anomalies: share of moved training images", "DRAEM's", limits=(0, 1),
    )  # fmt: skip
    # TODO here: D5: 1 + Binomial(n - 1, 0.5)
    patch_count: Literal["binomial", "uniform"] = option(
        "binomial", "patches: 1 + Binomial(n - 1, 0.5), or uniform", "adref", kind="silent", paper="N patches",
        why="as NSA; n is 4 wherever the object fills the picture, on parts such as MVTec AD's cable too",
    )  # fmt: skip
    # TODO see ['D5']
    patch_most: tuple[int, int] = option(
        (3, 4), "n of the binomial on objects, on whole pictures", "U (NSA)", limits=(1, 99),
    )  # fmt: skip
    # TODO see ['D5']
    patch_range: tuple[int, int] = option((1, 3), "least and most patches, uniform", "adref", limits=(1, 99))
    # TODO here: D7: of the same image
    patch_source: Literal["same", "other"] = option(
        "same", "image that a patch is cut from", "section Method", kind="silent",
        paper="patches of the target object", why="NSA takes another image",
    )  # fmt: skip
    # TODO here: D6: lognormal(28, 0.75)
    patch_size: Literal["lognormal", "nsa_gamma", "histogram"] = option(
        "lognormal", "distribution of patch sizes; histogram: of --defect-sizes", "adref", kind="silent",
        paper="an empirical distribution of real defects, not given",
        why="taken from the test set's masks it would leak them; these sizes are guessed, not measured",
    )  # fmt: skip
    # TODO see ['D6']
    patch_side: float = option(28.0, "lognormal: median of the equivalent side", "adref", limits=(1, 256))
    # TODO see ['D6']
    patch_side_sigma: float = option(0.75, "lognormal: standard deviation of its logarithm", "adref", limits=(0, 9))
    # TODO see ['D6']
    patch_side_limits: tuple[float, float] = option(
        (4.0, 128.0), "lognormal: clipped to these", "adref", limits=(2, 256),
    )  # fmt: skip
    # TODO see ['D6']
    patch_longest: float = option(160.0, "lognormal: limit of a side", "adref", limits=(2, 256))
    # TODO see ['D6']
    patch_aspect_sigma: float = option(
        0.4, "lognormal: standard deviation of the aspect's logarithm", "adref", limits=(0, 9),
    )  # fmt: skip
    # TODO see ['D6']
    patch_aspect_limit: float = option(3.0, "lognormal: largest aspect", "adref", limits=(1, 99))
    # TODO see ['D6']
    gamma_height: tuple[float, float] = option(
        (0.03, 0.4), "nsa_gamma: half of the height in heights", "U", limits=(0, 0.5),
    )  # fmt: skip
    # TODO see ['D6']
    gamma_width: tuple[float, float] = option(
        (0.03, 0.4), "nsa_gamma: half of the width in widths", "U", limits=(0, 0.5),
    )  # fmt: skip
    # TODO see ['D51']
    source_share: float = option(
        0.5, "share of a patch that lies on the object where it is cut", "U (NSA)", limits=(0, 1),
    )  # fmt: skip
    # TODO here: D51: half on the object at the source, a quarter at the target
    place_share: float = option(
        0.25, "share that lies on the object where it is set in", "U (NSA)", limits=(0, 1), kind="silent",
        paper="where patches may lie", why="NSA; a canvas larger than the picture overhangs it here",
    )  # fmt: skip
    # TODO see ['D51']
    place_tries: int = option(200, "tries before a patch is skipped", "adref", limits=(1, 10**6))
    # TODO here: D10: all of them
    photometric_mode: Literal["both", "one"] = option(
        "both", "noise and brightness, or one of them", "Eq 3", kind="ambiguous", paper="a set of transformations",
        why="or one, drawn evenly",
    )  # fmt: skip
    # TODO here: D8: noise N(0, 0.05^2) for each pixel and channel
    noise: Literal["fixed", "drawn", "variance"] = option(
        "fixed", "what N(0, noise_level) is: see D8", "Eq 4", kind="mistake", paper="sigma ~ N(0, 0.05)",
        why="a standard deviation cannot be negative; 'drawn': |N(0, 0.05)| a patch; 'variance': 0.05 is the variance",
    )  # fmt: skip
    noise_level: float = option(0.05, "the noise's standard deviation", "Eq 4", limits=(0, 1))
    brightness: float = option(0.2, "brightness changes by U(-b, b)", "Eq 4", limits=(0, 1))
    # TODO here: D9: P (1 + delta)
    brightness_mode: Literal["multiply", "add"] = option(
        "multiply", "P (1 + delta), or P + delta", "Eq 4", kind="ambiguous",
        paper="brightness adjusted by U(-0.2, 0.2)",
        why="P + delta has the same gradients as P: after blending nothing is left of it, unless it clips",
    )  # fmt: skip
    # TODO see ['D9']
    clip_patch: bool = option(False, "clip the patch to [0, 1] before it is blended", "adref")
    # TODO see ['D10']
    geometric_mode: Literal["both", "one"] = option("both", "rotation and scale, or one of them", "Eq 3")
    # TODO here: D11: U(0, 360) degrees
    rotation: tuple[float, float] = option(
        (0.0, 360.0), "degrees, drawn uniformly from here (write --rotation=-10,10)", "Eq 4", limits=(-360, 360),
        kind="contradiction", paper="U(0, 2 pi), and 'angles seen in production'", why="the formula",
    )  # fmt: skip
    scale: tuple[float, float] = option((0.8, 1.2), "drawn uniformly from here", "Eq 4", limits=(0.1, 10))
    # TODO here: D12: infinite: the target's values on dR
    poisson_lambda: float | None = option(
        None, "lambda of Eq 5; none: infinite", "Eq 5", limits=(1e-06, 1000000000000.0), kind="silent",
        paper="the symbol lambda", why="Perez et al.; 1 would be a finite try",
    )  # fmt: skip
    # TODO here: D13: off
    mixed_gradients: bool = option(
        False, "keep the larger of both gradients", "Eq 5", kind="silent", paper="not in Eq 5",
        why="NSA mixes on textures",
    )  # fmt: skip
    # TODO here: D52: the blend is clipped to [0, 1] and not rounded
    quantise: bool = option(
        False, "round what is blended to 8 bits", "adref", kind="silent", paper="nothing said", why="OpenCV rounds",
    )  # fmt: skip
    # TODO here: D14: the same, once, after all patches
    object_constraint: Literal["multiply", "clip_region"] = option(
        "multiply", "cut to the object after blending, or before", "section Method", kind="ambiguous",
        paper="multiplication with M after blending", why="leaves a seam at the object's edge; clip_region does not",
    )  # fmt: skip
    # TODO here: D15: Omega within M
    label: Literal["region", "changed"] = option(
        "region", "Y: the blended region, or where it changed visibly", "adref", kind="ambiguous",
        paper="'precisely marks' the region",
        why="an invisible patch is a false label then; 'changed', as NSA, drops it",
    )  # fmt: skip
    # the reconstructor
    reconstructor: Literal["srdad", "draem"] = option("srdad", "Swin-UNet, or DRAEM's autoencoder", "table 4")
    autoencoder_width: int = option(128, "channels of the autoencoder's first level", "U (DRAEM)", limits=(1, INF))
    width: int = option(96, "channels of the Swin-UNet's first level", "Eq 6", limits=(1, INF))
    # TODO here: D18: 2, 2, 2 and no bottleneck block
    depths: tuple[int, int, int] = option(
        (2, 2, 2), "blocks of each stage, encoder and decoder", "U", limits=(1, 1000), kind="silent",
        paper="no depths",
        why="Swin-Unet's 2, 2, 2, 2 alone has 27.2 M parameters; this has 19,408,023 for the paper's 19.4 M",
    )  # fmt: skip
    # TODO see ['D18']
    bottleneck_depth: int = option(0, "blocks at the deepest level", "adref", limits=(0, 1000))
    # TODO see ['D19']
    heads: tuple[int, int, int] = option((3, 6, 12), "attention heads of each stage", "U (Swin)", limits=(1, INF))
    # TODO here: D19: 3, 6, 12 heads, window 8
    window: int = option(
        8, "side of an attention window in tokens", "U", limits=(2, INF), kind="silent", paper="no heads, no window",
        why="Swin; 7 divides no map of 256 pixels",
    )  # fmt: skip
    # TODO see ['D18']
    drop_path: float = option(0.0, "stochastic depth", "adref", limits=(0, 0.99))
    aspp: bool = option(True, "ASPP after the deepest stage", "Eq 7")
    # TODO here: D20: 192 a branch, batch norm, no projection
    aspp_width: int = option(
        192, "channels of each branch of ASPP", "adref", limits=(1, INF), kind="silent", paper="no widths",
        why="4 x 192 = 768",
    )  # fmt: skip
    aspp_rates: tuple[int, int, int] = option((3, 6, 12), "dilations", "Eq 7", limits=(1, INF))
    # TODO see ['D20']
    aspp_batch_norm: bool = option(True, "batch norm after the dilated convolutions", "adref")
    # TODO see ['D20']
    aspp_project: bool = option(False, "a 1x1 convolution behind ASPP even where the widths fit", "adref")
    # TODO here: D21: a W for each level
    residual: Literal["level", "block", "none"] = option(
        "level", "where the decoder's W stands", "Eq 8", kind="ambiguous", paper="each decoder block",
        why="in blocks: 19,602,231 parameters",
    )  # fmt: skip
    # TODO here: D22: a gate for each channel
    gates: Literal["channel", "spatial"] = option(
        "channel", "a gate for each channel, or for each token", "Eq 9", kind="ambiguous",
        paper="element-wise; 'spatial' in a caption", why="the equation",
    )  # fmt: skip
    # TODO here: D23: a linear to 96 channels, bilinear upsampling
    skips: Literal["final_sum", "inline", "concat"] = option(
        "final_sum", "where gated skips join", "Eq 10", kind="mistake", paper="a sum of maps of four shapes",
        why="the sum is impossible as printed; 'inline' adds at each level, 'concat' is Swin-Unet's way",
    )  # fmt: skip
    # TODO here: D24: the pair before and after ASPP is the fourth
    skip_levels: int = option(
        4, "gated levels", "Eq 10", limits=(3, 4), kind="ambiguous", paper="a sum to 4",
        why="Swin-Unet has three skips",
    )  # fmt: skip
    # TODO here: D25: behind the stage's blocks
    skip_tap: Literal["post", "pre"] = option(
        "post", "skips from behind the stages, or from before", "adref", kind="silent", paper="nothing said",
        why="Swin-Unet's code taps before them",
    )  # fmt: skip
    # TODO here: D26: none
    output_activation: Literal["none", "sigmoid"] = option(
        "none", "of the reconstruction", "U (DRAEM)", kind="silent", paper="nothing said", why="DRAEM",
    )  # fmt: skip
    # the discriminator
    discriminator: Literal["srdad", "draem"] = option("srdad", "with Res-SE and cross attention, or DRAEM's", "table 4")
    unet_width: int = option(64, "channels of the first level of DRAEM's", "U (DRAEM)", limits=(1, INF))
    # TODO here: D28: 40 channels: 28,283,402
    discriminator_width: int = option(
        40, "channels of the first level of SRDAD's", "adref", limits=(1, INF), kind="ambiguous",
        paper="27.8 M parameters, no widths", why="the multiple of 8 that comes nearest",
    )  # fmt: skip
    # TODO here: D29: convolution, then two convolutions with SE, residual; ratio 16
    res_se: Literal["entry", "projected", "none"] = option(
        "entry", "layout of the Res-SE levels", "adref", kind="silent", paper="the name Res-SE",
        why="the name; SE's ratio",
    )  # fmt: skip
    # TODO see ['D29']
    se_ratio: int = option(16, "narrowing of squeeze and excitation", "adref", limits=(1, INF))
    cross_attention: bool = option(True, "cross attention on the skips", "Eqs 11 to 14")
    # TODO see ['D34']
    attention_layers: int = option(4, "layers of it", "U", limits=(1, 1000))
    # TODO see ['D34']
    attention_heads: int = option(4, "heads, averaged", "U", limits=(1, INF))
    # TODO here: D30: channels
    attention: Literal["channel", "token"] = option(
        "channel", "what attends to what", "Eq 12", kind="contradiction",
        paper="'channel' attention; Q K^T of tokens in Eq 12",
        why="the module that it cites, and Eq 11's unequal widths",
    )  # fmt: skip
    # TODO here: D31: sqrt(S)
    attention_scale: Literal["sum", "own"] = option(
        "sum", "scores over sqrt(S), or over sqrt(d)", "U", kind="contradiction", paper="sqrt(d)",
        why="UCTransNet; the instance norm, where it is on, cancels it",
    )  # fmt: skip
    # TODO here: D32: on
    attention_instance_norm: bool = option(
        True, "psi: normalise each matrix of scores", "U", kind="ambiguous", paper="'normalisation omitted'",
        why="UCTransNet",
    )  # fmt: skip
    # TODO here: D33: H = T + CA, H + MLP(LN H)
    attention_residual: Literal["official", "eq14"] = option(
        "official", "UCTransNet's code, or Eq 14", "Eq 14", kind="contradiction",
        paper="MCA + MLP(Q + MCA): no path from T itself",
        why="UCTransNet's paper prints the same and its code does this",
    )  # fmt: skip
    # TODO here: D34: 16, 8, 4, 2; dropout 0.1; 4 layers, 4 heads
    attention_patches: tuple[int, int, int, int] = option(
        (16, 8, 4, 2), "pixels a token's side", "U", limits=(1, INF), kind="silent", paper="no sizes",
        why="UCTransNet's shape at 256 pixels; its dropout behind the attention and its start of the MLPs are left "
        "out",
    )  # fmt: skip
    # TODO here: D35: X_i is added
    attention_add_input: bool = option(
        True, "add X_i to what attention returns", "U", kind="silent", paper="nothing said", why="UCTransNet",
    )  # fmt: skip
    # TODO see ['D34']
    attention_dropout: float = option(0.1, "on tokens and attention", "U (UCTransNet)", limits=(0, 0.99))
    # TODO here: D36: in that order
    discriminator_input: Literal["image_first", "reconstruction_first"] = option(
        "image_first", "order of the two pictures in the six channels", "section Method", kind="silent",
        paper="anomalous and reconstructed", why="DRAEM's code has the other",
    )  # fmt: skip
    # TODO here: D37: two logits, softmax
    output: Literal["softmax", "sigmoid"] = option(
        "softmax", "two logits, or one", "U (DRAEM)", kind="silent", paper="an anomaly map",
        why="DRAEM; one logit is the same family",
    )  # fmt: skip
    # TODO here: D38: 21
    score_window: int = option(
        21, "side s of the score's mean filter, odd, pixels at --size", "Eq 15", limits=(1, INF), kind="silent",
        paper="the symbol s", why="DRAEM. A lone k x k response scores at most k^2 / 441",
    )  # fmt: skip
    # TODO here: D50: the focal loss trains both networks
    detach: bool = option(
        False, "no gradient of the focal loss reaches the reconstructor", "U (DRAEM)", kind="silent",
        paper="nothing said", why="DRAEM",
    )  # fmt: skip
    # losses and schedule; "none" takes the value of --recipe
    # TODO here: D44: row draem wholly DRAEM's, the others SRDAD's
    recipe: Literal["srdad", "draem"] = option(
        "srdad", "values of the options below that are none", "adref", kind="silent",
        paper="what the rows of table 4 share",
        why="--recipe and --anomaly make these common; --discriminator-input and, at tiny, DRAEM's lattices stay",
    )  # fmt: skip
    l2_weight: float | None = option(None, "weight of the squared error [srdad 0.9, draem 1]", "Eq 18", limits=(0, INF))
    ssim_weight: float | None = option(None, "weight of the SSIM loss [srdad 0.1, draem 1]", "Eq 18", limits=(0, INF))
    # TODO here: D40: local: Gaussian 11 / 1.5, zeros outside, L = 1
    ssim_window: Literal["gaussian", "uniform"] = option(
        "gaussian", "weights of SSIM's 11 x 11 window", "Eq 17", kind="silent", paper="means of the images",
        why="DRAEM, without its guess of L",
    )  # fmt: skip
    # TODO see ['D40']
    ssim_padding: Literal["zero", "valid"] = option("zero", "SSIM at the border", "Eq 17")
    # TODO see ['D40']
    ssim_range: Literal["one", "auto"] = option("one", "value range L of SSIM; auto: guessed as DRAEM's code", "adref")
    focal_gamma: float = option(2.0, "focusing exponent of the focal loss", "Eq 19", limits=(0, INF))
    # TODO here: D41: none; smoothing 1e-5
    focal_alpha: tuple[float, ...] | None = option(
        None, "weight alpha of the anomalous class (normal: 1 - alpha), or of both, normal first", "Eq 19",
        limits=(0, INF), kind="silent", paper="the symbol alpha_t", why="DRAEM",
    )  # fmt: skip
    # TODO see ['D41']
    focal_smooth: float = option(1e-05, "clamp of the one-hot mask and addend of p_t", "U (DRAEM)", limits=(0, 0.5))
    # TODO see ['D42']
    epochs: int | None = option(
        None, "length of training [srdad 500, draem 700]", "section Experiments", limits=(0, INF),
    )  # fmt: skip
    # TODO here: D42: 500 epochs
    length_unit: Literal["epochs", "iterations"] = option(
        "epochs", "what --epochs counts", "adref", kind="mistake", paper="500 iterations",
        why="500 steps are 16 passes; the fall at 400 mirrors DRAEM's epochs",
    )  # fmt: skip
    batch_size: int = option(8, "images a step", "section Experiments", limits=(1, INF))
    # TODO see ['D44']
    sampling: Literal["shuffle", "replacement"] | None = option(None, "how an epoch draws its images", "adref")
    optimizer: Literal["adamw", "adam"] | None = option(None, "the optimiser", "section Experiments")
    learning_rate: float = option(0.0001, "its step size", "section Experiments", limits=(0, INF))
    # TODO here: D43: 0.01
    weight_decay: float | None = option(
        None, "weight decay (of Adam: as L2) [srdad 0.01, draem 0]", "adref", limits=(0, 1), kind="silent",
        paper="nothing said", why="PyTorch's AdamW",
    )  # fmt: skip
    milestones: tuple[float, ...] | None = option(
        None, "shares of the length after which the rate falls [srdad 0.8, draem 0.8,0.9]", "section Experiments",
        limits=(0, 1),
    )  # fmt: skip
    milestone_factor: float | None = option(
        None, "by which it falls [srdad 0.1, draem 0.2]", "section Experiments", limits=(0, 1),
    )  # fmt: skip


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
    # D27
    Deviation(
        "SRDAD.load_weights", "silent", "nothing said", "no pretraining",
        "--weights takes a Swin checkpoint for the encoder",
    ),
    # D39
    Deviation(
        "SRDAD.loss", "contradiction", "error of the 'masked patch'", "of the whole image",
        "words left over from another method: nothing is masked here",
    ),
    # D45
    Deviation(
        "ABLATIONS", "mistake", "DRAEM has 26.5 M parameters", "97,422,725",
        "counted; srdad- has more in its reconstructor than srdad",
    ),
    # D46
    Deviation(
        "SRDAD", "mistake", "heavier than DRAEM", "33.8 against 198.0 G multiply-adds an image",
        "counted, attention's products among them (without: 30.9)",
    ),
    # D53
    Deviation(
        "PRESETS", "substitution", "one size", "tiny: no noise on patches, labels only where something shows",
        "and a higher rate, at an eighth of the steps and less: with noise it learns nothing else (see D8, D15)",
    ),
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
