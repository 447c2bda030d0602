"""A memory of normal patch features: what is far from all of them is anomalous. Nothing is trained."""

from adref.methods.patchcore.method import Options, PatchCore

__all__ = ["Options", "PatchCore"]
