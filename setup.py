"""The folder-to-name table and the Cython extensions; all metadata is in pyproject.toml."""

import os
import shutil
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

FOLDERS = {"tinylcm": "runtime", "tinysphere": "server", "firmware_bridge": "firmware_bridge"}
ROOT = Path(__file__).resolve().parent
DEBUG = bool(os.environ.get("TINYMLOPS_DEBUG"))
# scripts/sanitize.sh: every read and write of the extensions is checked while the tests run.
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]
SANITIZED = bool(os.environ.get("TINYMLOPS_SANITIZE"))
ANNOTATE = bool(os.environ.get("TINYMLOPS_ANNOTATE"))

packages, package_dir = [], {}
for name, folder in FOLDERS.items():
    for init in sorted((ROOT / folder).rglob("__init__.py")):
        relative = init.parent.relative_to(ROOT / folder)
        package = ".".join((name, *relative.parts))
        packages.append(package)
        package_dir[package] = (Path(folder) / relative).as_posix()

# `cimport` resolves import names, not folders: give Cython a view of the .pxd files under their import names.
view = ROOT / "build" / "pxd" / "tinylcm" / "_ext"
shutil.rmtree(view.parent, ignore_errors=True)
view.mkdir(parents=True)
for pxd in (ROOT / "runtime" / "_ext").glob("*.pxd"):
    shutil.copy(pxd, view / pxd.name)
for folder in (view.parent, view):
    (folder / "__init__.pxd").touch()

extensions = [
    Extension(
        f"tinylcm._ext.{source.stem}",
        [source.relative_to(ROOT).as_posix()],
        # -g0: five times smaller. No -march=native (wheels travel), no -ffast-math (NaN rules matter);
        # -ffp-contract=off: the same bits on aarch64, whose GCC contracts to FMA by default;
        # -fno-tree-slp-vectorize: GCC 12's SLP halves the speed of Page-Hinkley's dependent chain.
        extra_compile_args=["-O1", "-g", "-ffp-contract=off", *SANITIZE]
        if SANITIZED
        else ["-O1", "-g"]
        if DEBUG
        else ["-O3", "-g0", "-ffp-contract=off", "-fno-tree-slp-vectorize"],
        extra_link_args=SANITIZE if SANITIZED else [],
    )
    for source in sorted((ROOT / "runtime" / "_ext").glob("*.pyx"))
]


class BuildExt(build_ext):
    """Compile the extensions side by side: on two cores it halves the wait."""

    def finalize_options(self):
        super().finalize_options()
        if self.parallel is None:
            self.parallel = min(4, os.cpu_count() or 1)


setup(
    packages=packages,
    package_dir=package_dir,
    ext_modules=cythonize(
        extensions,
        include_path=[str(ROOT / "build" / "pxd")],
        build_dir="build/cython",
        annotate=ANNOTATE,
        force=ANNOTATE,  # what is up to date would be passed over, and no page written
        compiler_directives={
            "language_level": 3,
            "boundscheck": DEBUG,
            "wraparound": DEBUG,
            "initializedcheck": DEBUG,
            "nonecheck": DEBUG,
            "cdivision": not DEBUG,
            "linetrace": DEBUG,
            "embedsignature": True,
            # binding=False with always_allow_keywords=False: a per-sample call costs 13 ns instead of 21 ns.
            "binding": False,
            "always_allow_keywords": False,
        },
    ),
    cmdclass={"build_ext": BuildExt},
)
