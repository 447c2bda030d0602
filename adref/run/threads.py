"""Settings of OpenMP's threads, made before torch is loaded; imports no torch itself."""

import os


def bound_spinning() -> None:
    """Bounds how long the threads of libgomp spin for each other, unless the user has set how they wait.

    By default they spin for milliseconds, on a core that the awaited thread may need: beside other processes a training
    step takes many times as long (tools/SPEED.md). torch loads libgomp, which then reads the variable; processes that
    are started later inherit it.
    """
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = "50000"  # libgomp's own: 300,000 rounds; see tools/SPEED.md
