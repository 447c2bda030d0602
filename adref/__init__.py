"""adref: reference implementations of industrial anomaly detection methods that learn from normal images only."""

__version__ = "0.1.0"


def load(folder, device: str = "cpu"):
    """Opens a trained run: `run.predict(picture)`, `run.threshold`; see `adref.run.directory.load`."""
    from adref.run.directory import load as load_run  # torch is imported when it is needed

    return load_run(folder, device)
