"""SeRNet: segment, repair, reconstruct."""

from adref.methods.sernet.method import SeRNet
from adref.methods.sernet.options import Options

__all__ = ["Options", "SeRNet"]
