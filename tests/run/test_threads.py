"""The bound of OpenMP's spinning: what a process has in its environment at the moment when it loads torch."""

import os
import subprocess
import sys

import pytest

COMMANDS = ("train", "evaluate", "predict", "synthesize", "benchmark", "data")
# A finder of modules that ends the process instead of loading torch.
PROBE = """
import os, runpy, sys
class Probe:
    def find_spec(self, name, *rest):
        if name == "torch":
            sys.exit(os.environ.get("GOMP_SPINCOUNT", "not set"))
sys.meta_path.insert(0, Probe())
"""


def seen(code: str, **environment: str) -> str:
    clean = {key: value for key, value in os.environ.items() if key not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    words = [sys.executable, "-c", PROBE + code]
    return subprocess.run(words, env={**clean, **environment}, capture_output=True, text=True).stderr.strip()


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_bounds_spinning_before_torch_is_loaded_and_an_import_does_not(name):
    command = f"runpy.run_module('adref.{name}', run_name='__main__', alter_sys=True)"
    assert seen(command) == "50000"
    assert seen(f"import adref.{name}{'.__main__' * (name == 'data')}") == "not set"
    assert seen(command, GOMP_SPINCOUNT="7") == "7"
    assert seen(command, OMP_WAIT_POLICY="passive") == "not set"
