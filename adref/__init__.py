"""adref: reference implementations of industrial anomaly detection methods that learn from normal images only."""

__version__ = "0.1.0"


def load(run, device: str = "cpu"):
    """A trained method from its run directory; see `adref.run.load`. (torch is imported when it is called.)"""
    from adref.run.directory import load as load_run

    return load_run(run, device)
