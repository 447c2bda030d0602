"""RealNet: reconstruct selected features of a frozen backbone, then segment what differs."""

from adref.methods.realnet.method import Options, RealNet

__all__ = ["Options", "RealNet"]
