"""Noise-to-norm: reconstruct normal pictures from noisy ones with an M-net."""

from adref.methods.noise_to_norm.method import NoiseToNorm
from adref.methods.noise_to_norm.options import Options

__all__ = ["NoiseToNorm", "Options"]
