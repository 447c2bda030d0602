"""SDAS: strength-controllable diffusion anomaly synthesis."""

from adref.methods.sdas.method import SDAS
from adref.methods.sdas.options import Options

__all__ = ["SDAS", "Options"]
