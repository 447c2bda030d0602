"""A ViT autoencoder with a memory and coordinate attention."""

from adref.methods.vit_autoencoder.method import Options, ViTAutoencoder

__all__ = ["Options", "ViTAutoencoder"]
