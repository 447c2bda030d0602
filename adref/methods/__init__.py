"""The methods by name: the only list."""

from adref.method import Trainable
from adref.methods.draem.method import DRAEM
from adref.methods.noise_to_norm.method import NoiseToNorm
from adref.methods.patchcore.method import PatchCore
from adref.methods.realnet.method import RealNet
from adref.methods.sdas.method import SDAS
from adref.methods.sernet.method import SeRNet
from adref.methods.srdad.method import SRDAD
from adref.methods.vit_autoencoder.method import ViTAutoencoder
from adref.options import UserError

METHODS: dict[str, type[Trainable]] = {
    "patchcore": PatchCore,
    "draem": DRAEM,
    "srdad": SRDAD,
    "vit_autoencoder": ViTAutoencoder,
    "sernet": SeRNet,
    "noise_to_norm": NoiseToNorm,
    "sdas": SDAS,
    "realnet": RealNet,
}


def find_method(name: str) -> type[Trainable]:
    """Returns the class of a method; UserError lists the known names for an unknown one."""
    if name not in METHODS:
        raise UserError(f"unknown method {name}; known: {', '.join(METHODS)}")
    return METHODS[name]
