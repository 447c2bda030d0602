"""Noise-to-norm: an M-net that reconstructs normal images from noisy ones."""

from adref.methods.noise_to_norm.method import NoiseToNorm, Options

__all__ = ["NoiseToNorm", "Options"]
