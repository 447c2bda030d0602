"""RealNet: reconstruct selected features of a frozen backbone, then segment what differs."""

from adref.methods.realnet.method import RealNet
from adref.methods.realnet.options import Options

__all__ = ["Options", "RealNet"]
