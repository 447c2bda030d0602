"""SeRNet: segment, repair, reconstruct."""

from adref.methods.sernet.method import Options, SeRNet

__all__ = ["Options", "SeRNet"]
