"""A ViT autoencoder with a memory and coordinate attention."""

from adref.methods.vit_autoencoder.method import ViTAutoencoder
from adref.methods.vit_autoencoder.options import Options

__all__ = ["Options", "ViTAutoencoder"]
