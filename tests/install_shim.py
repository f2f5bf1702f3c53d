"""Make torchvision importable beside a CPU-only torch, in the environment this is run with.

    .venv/bin/python tests/install_shim.py

A torchvision wheel that is linked against CUDA fails to import where torch has no CUDA ("operator
torchvision::nms does not exist"), and transformers, which asks for it, then fails too. Only where that is so,
`torchvision_cpu_shim.py` and a `.pth` file that imports it at start-up are put into site-packages.
"""

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

SHIM = Path(__file__).resolve().parent / "torchvision_cpu_shim.py"
NEEDED = """
import sys, torch
try:
    import torchvision
except ModuleNotFoundError:
    sys.exit(0)
except Exception:
    sys.exit(3 if torch.version.cuda is None else 0)
"""


def needed() -> bool:
    """Whether torchvision is there, fails to import, and torch is without CUDA."""
    return subprocess.run([sys.executable, "-c", NEEDED], stderr=subprocess.DEVNULL).returncode == 3


def main() -> None:
    if not needed():
        return
    site = Path(sysconfig.get_path("purelib"))
    shutil.copyfile(SHIM, site / SHIM.name)
    (site / f"{SHIM.stem}.pth").write_text(f"import {SHIM.stem}\n", encoding="utf-8")
    if needed():
        raise SystemExit("torchvision still fails to import: remove it, or install the build of your torch")
    print(f"torchvision is for CUDA and torch is not: mended by {SHIM.stem} in {site}")


if __name__ == "__main__":
    main()
