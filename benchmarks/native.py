"""Compiles what a benchmark needs in C, with the directives of the library's own extensions."""

from __future__ import annotations

import importlib
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).parent


@cache
def compiled(name: str) -> ModuleType:
    """The module of `benchmarks/<name>.pyx`."""
    from Cython.Build import cythonize
    from setuptools import Distribution, Extension
    from setuptools.command.build_ext import build_ext

    build = HERE.parent / "build" / "bench"
    extension = Extension(name, [str(HERE / f"{name}.pyx")], extra_compile_args=["-O3", "-g0"])
    directives = {"language_level": 3, "binding": False, "always_allow_keywords": False}
    modules = cythonize([extension], build_dir=str(build), compiler_directives=directives, quiet=True)  # type: ignore[no-untyped-call]
    command = build_ext(Distribution({"ext_modules": modules}))
    command.build_lib = command.build_temp = str(build)
    command.ensure_finalized()
    command.run()
    if str(build) not in sys.path:
        sys.path.insert(0, str(build))
    return importlib.import_module(name)
