"""SDAS: strength-controllable diffusion anomaly synthesis."""

from adref.methods.sdas.method import SDAS, Options

__all__ = ["SDAS", "Options"]
