"""Prints the sourced golden numbers of tests/methods/test_draem.py, from anomalib (adref is not imported).

    pip install torch
    pip install --no-deps anomalib
    PYTHONPATH=tools python tools/sources/draem.py

anomalib keeps the DRAEM authors' module names, so the numbers also prove the key map of the released checkpoints. Its
file is loaded alone, with stand-ins for the two names that it imports for other purposes. Weights and inputs: the hash
of tools/hash_recipe.py by the authors' key.
"""

import importlib.metadata
import importlib.util
import sys
import types

import torch
from hash_recipe import hashed, load_file


def anomalib_draem():
    """Imports anomalib's models/image/draem/torch_model.py without the rest of anomalib."""
    for name, member in (("anomalib.data", "InferenceBatch"), ("anomalib.models.components.layers", "SSPCAB")):
        sys.modules[name] = types.ModuleType(name)
        setattr(sys.modules[name], member, object)
    folder = importlib.util.find_spec("anomalib").submodule_search_locations[0]
    return load_file(f"{folder}/models/image/draem/torch_model.py")


def main() -> None:
    """Fills both networks at width 4, runs them in evaluation mode and prints numbers of their outputs."""
    module = anomalib_draem()
    print("anomalib", importlib.metadata.version("anomalib"), "torch", torch.__version__)
    for network, channels, shape in (
        (module.ReconstructiveSubNetwork(base_width=4), 3, (1, 3, 64, 96)),
        (module.DiscriminativeSubNetwork(in_channels=6, out_channels=2, base_width=4), 6, (1, 6, 64, 96)),
    ):
        for key, tensor in network.state_dict().items():
            if tensor.is_floating_point():
                values = hashed(key, *tensor.shape)
                tensor.copy_((values - 0.5) * (12 / tensor[0].numel()) ** 0.5 if tensor.ndim > 1 else 0.5 + values)
        with torch.inference_mode():
            out = network.eval()(hashed(f"input {channels}", *shape)).double()
        picks = [out[0, c, y, x].item() for c, y, x in ((0, 0, 0), (1, 31, 47), (0, 63, 95), (1, 5, 80))]
        print(type(network).__name__, [float(f"{v:.8g}") for v in (out.mean().item(), out.std().item(), *picks)])


if __name__ == "__main__":
    main()
