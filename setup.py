"""Builds the native extension with CMake; everything else is in pyproject.toml.

Environment variables:
    DATAFLEX_NATIVE=0: install pure Python, without the extension.
    DATAFLEX_CUDA: whether the extension has CUDA kernels; 0: no, 1: yes, auto (the default): if nvcc is found.
    CMAKE_ARGS: further arguments of the CMake configuration.
    CMAKE_BUILD_PARALLEL_LEVEL: number of compiler processes.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


def wanted_cuda() -> str:
    """The environment variable DATAFLEX_CUDA."""
    wanted = os.environ.get("DATAFLEX_CUDA") or "auto"
    if wanted not in ("0", "1", "auto"):
        raise RuntimeError(f"DATAFLEX_CUDA is {wanted!r}; it must be 0, 1 or auto")
    return wanted


class CMakeBuild(build_ext):
    """Lets CMake build the one extension into the place where setuptools expects it."""

    def build_extension(self, ext: Extension) -> None:
        import pybind11

        cmake = shutil.which("cmake")
        if cmake is None:
            raise RuntimeError("cmake is not on PATH; install it, or set DATAFLEX_NATIVE=0 for pure Python")
        target = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        build = Path(self.build_temp).resolve() / ext.name
        configure = [
            cmake,
            # pip runs every build with a cmake and a ninja in another temporary folder, which the last cache names.
            "--fresh",
            *("-S", str(ROOT), "-B", str(build)),
            f"-DCMAKE_BUILD_TYPE={'Debug' if self.debug else 'Release'}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DDATAFLEX_CUDA={wanted_cuda()}",
        ]
        if shutil.which("ninja"):
            configure += ["-G", "Ninja"]
        subprocess.run([*configure, *shlex.split(os.environ.get("CMAKE_ARGS", ""))], check=True)
        subprocess.run([cmake, "--build", str(build), "--parallel"], check=True)


native = os.environ.get("DATAFLEX_NATIVE", "1") != "0"
setup(
    ext_modules=[Extension("dataflex._native", sources=[])] if native else [],
    cmdclass={"build_ext": CMakeBuild},
)
