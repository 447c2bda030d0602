"""A discriminatively trained reconstruction embedding: reconstruct the clean image, then segment what differs."""

from adref.methods.draem.method import DRAEM, Options

__all__ = ["DRAEM", "Options"]
