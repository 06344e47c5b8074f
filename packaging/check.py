"""What must be true of a wheel, whatever machine built it: python packaging/check.py WHEEL

It fits every Python from 3.10 on and any Linux of glibc 2.28; it is at most 3 MB; it has the
package and no more; it brings no library of torch's.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

MOST_BYTES = 3_000_000
NAME = re.compile(r"vgg_fast-[\d.]+-cp310-abi3-manylinux_2_28_(x86_64|aarch64)\.whl")
LIBRARIES = ["vgg_fast/_C.abi3.so", "vgg_fast/_bindings.abi3.so"]
DATA = [  # what isn't Python, and whose absence a test of the sources doesn't notice
    "vgg_fast/_bindings.pyi",
    "vgg_fast/dispatch/choices.json",
    "vgg_fast/dispatch/tiles.json",
    "vgg_fast/py.typed",
    "vgg_fast/train/report.html.j2",
]
ROOT = Path(__file__).parent.parent


def problems(wheel: Path) -> list[str]:
    """Sentences, one for each thing that is wrong."""
    found = []
    if not NAME.fullmatch(wheel.name):
        found.append(f"its name is {wheel.name}")
    if (size := wheel.stat().st_size) > MOST_BYTES:
        found.append(f"it has {size:,} bytes, and {MOST_BYTES:,} are allowed")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    found += [f"it lacks {name}" for name in [*LIBRARIES, *DATA] if name not in names]
    sources = [str(path.relative_to(ROOT)) for path in (ROOT / "vgg_fast").rglob("*.py")]
    found += [f"it lacks {name}" for name in sources if name not in names]
    own = re.compile(r"vgg_fast(-[\d.]+\.dist-info)?/")
    found += [f"{name} isn't of the package" for name in names if not own.match(name)]
    compiled = [name for name in names if ".so" in Path(name).suffixes]
    found += [f"{name} isn't expected" for name in compiled if name not in LIBRARIES]
    return found


def audit_bindings(wheel: Path) -> None:
    """Fails if _bindings calls what Python 3.10's stable ABI lacks."""
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(wheel) as archive:
        module = archive.extract("vgg_fast/_bindings.abi3.so", folder)
        subprocess.run(
            [
                sys.executable,
                "-m",
                "abi3audit",
                "--strict",
                "--assume-minimum-abi3",
                "3.10",
                module,
            ],
            check=True,
        )


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("python packaging/check.py WHEEL")
    wheel = Path(sys.argv[1])
    if found := problems(wheel):
        sys.exit(f"packaging/check.py: {wheel}\n  " + "\n  ".join(found))
    audit_bindings(wheel)
    print(f"{wheel.name}: {wheel.stat().st_size:,} bytes of {MOST_BYTES:,} allowed")


if __name__ == "__main__":
    main()
