"""A fresh virtual environment that finds the packages of this one, and nothing on any network."""

from __future__ import annotations

import os
import subprocess
import sysconfig
import venv
from collections.abc import Iterable, Mapping
from pathlib import Path

COMMANDS = {"pip": "pip", "pytest": "pytest", "dataflex": "dataflex"}
"""Commands of the environment and the modules that they run."""


class Environment:
    """An environment of its own: what is installed there leaves this one alone.

    Args:
        folder: Where it is made; it also is the home of what runs in it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        venv.create(folder, with_pip=False, symlinks=True)
        self.python = folder / "bin" / "python"
        [site] = (folder / "lib").glob("python*/site-packages")
        # addsitedir, unlike a plain line, also follows the .pth files there: editable installs.
        packages = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
        lines = "".join(f"import site; site.addsitedir({path!r})\n" for path in sorted(packages))
        (site / "parent.pth").write_text(lines, encoding="utf-8")
        for command, module in COMMANDS.items():
            script = folder / "bin" / command
            script.write_text(f'#!/bin/sh\nexec "{self.python}" -m {module} "$@"\n', encoding="utf-8")
            script.chmod(0o755)

    def run(
        self, command: str | Iterable[str], cwd: Path, *, check: bool = True, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command (a text: by the shell) with the environment's programs first on the path."""
        variables = {
            **os.environ,
            "PATH": os.pathsep.join([str(self.folder / "bin"), os.environ["PATH"]]),
            "VIRTUAL_ENV": str(self.folder),
            "PIP_NO_INDEX": "1",
            "PIP_NO_BUILD_ISOLATION": "0",  # pip reads this as the option's value: no isolation
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "HF_HUB_OFFLINE": "1",
            **(env or {}),
        }
        variables.pop("DATAFLEX_LOAD_PLUGINS", None)
        text = isinstance(command, str)
        done = subprocess.run(
            command if text else list(command),
            shell=text,
            cwd=cwd,
            env=variables,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert not check or done.returncode == 0, f"{command}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        return done
