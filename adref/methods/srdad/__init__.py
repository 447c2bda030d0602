"""SRDAD: natural anomalies, a Swin-UNet that reconstructs, a U-Net with cross attention that discriminates."""

from adref.methods.srdad.method import SRDAD, Options

__all__ = ["SRDAD", "Options"]
