"""Builds the C extensions; everything else about the package is in pyproject.toml.

csrc/py_X.c becomes the module bonaware._X, linked with the core files it needs.
bonaware._engine needs oneDNN; without it the package is built without an engine.

    ONEDNN_ROOT=dir    oneDNN >= 3.2 from dir/include and dir/lib, not from the wheels
    BON_NO_ENGINE=1    build without bonaware._engine
    BON_ONLY=a,b       build these modules only (estimators, losses, memory, select, engine)
    BON_DEV=1          all warnings, warnings are errors
    BON_SANITIZE=1     AddressSanitizer + UndefinedBehaviorSanitizer (see Makefile)

`python setup.py -q onednn` prints the compiler arguments for oneDNN (see Makefile).
"""

import os
import platform
import re
import shutil
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import ClassVar

import numpy
from setuptools import Command, Extension, setup
from setuptools.command.build_ext import build_ext

# Modules of pure array mathematics: csrc/py_X.c and these. Every other file of csrc/
# belongs to the engine, which is compiled for AVX2; kernels_*.c set targets of their own
# and are entered only where the processor has them.
PURE = {
    "estimators": ["estimators.c", "majority.c", "votes.c", "rng.c"],
    "losses": ["losses.c", "losses_law.c", "losses_sft.c"],
    "memory": ["pages.c"],
    "select": ["select.c", "votes.c"],
}
SHARED = {"rng.c", "pages.c"}  # the engine needs them too
LIBDNNL = "libdnnl.so.3"

# -std=c11 also switches the silent contraction of a*b + c off: results do not depend
# on where the compiler sees an FMA.
cflags = ["-std=c11", "-O3", "-fvisibility=hidden"]
ldflags = []
headers = [Path(numpy.get_include())]

if os.environ.get("BON_DEV"):
    cflags += ["-Wall", "-Wextra", "-Wshadow", "-Wconversion", "-Werror"]
    headers.append(Path(sysconfig.get_paths()["include"]))

if os.environ.get("BON_SANITIZE"):
    sanitize = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    # -fwrapv is among Python's own flags: it defines what overflow gives, and nothing is reported.
    # Reports name lines, not variables: without these gcc takes two thirds of the time.
    cflags += [*sanitize, "-fno-wrapv", "-O1", "-g", "-fno-var-tracking", "-fno-omit-frame-pointer"]
    ldflags += sanitize


def onednn_prefix() -> Path | None:
    """Where oneDNN's include/ and lib/ are: ONEDNN_ROOT or the installed wheels."""
    if root := os.environ.get("ONEDNN_ROOT"):
        return Path(root)
    try:
        files = metadata.files("onednn-devel-cpu-gomp") or []
        return next(Path(f.locate()).resolve().parents[1] for f in files if f.name == "dnnl.h")
    except (metadata.PackageNotFoundError, StopIteration):
        return None


def onednn_library(prefix: Path) -> Path:
    """The library under `prefix`, after a look at its version."""
    found = [*prefix.glob(f"lib*/{LIBDNNL}"), *prefix.glob(f"lib/*/{LIBDNNL}")]
    header = prefix / "include" / "oneapi" / "dnnl" / "dnnl_version.h"
    if not found or not header.is_file():
        sys.exit(f"need oneDNN 3.2 or newer (lib/{LIBDNNL} and {header}), found none in {prefix}")
    number = dict(re.findall(r"#define DNNL_VERSION_(\w+)\s+(\d+)", header.read_text()))
    version = int(number["MAJOR"]), int(number["MINOR"])
    if not (3, 2) <= version < (4, 0):
        sys.exit(f"need oneDNN >= 3.2 and < 4, found {version[0]}.{version[1]} in {prefix}")
    return found[0]


def why_no_engine() -> str | None:
    """The reason to leave the engine out, or None."""
    if os.environ.get("BON_NO_ENGINE"):
        return "BON_NO_ENGINE is set"
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return f"it needs Linux on x86-64, this is {platform.system()} on {platform.machine()}"
    if onednn_prefix() is None:
        return "it needs oneDNN: install onednn-devel-cpu-gomp, onednn-cpu-gomp or set ONEDNN_ROOT"
    return None


def extension(name: str, sources: list[str], **more) -> Extension:
    paths = [*headers, *more.pop("headers", [])]
    isystem = [arg for path in paths for arg in ("-isystem", str(path))]
    return Extension(
        f"bonaware._{name}",
        [f"csrc/{source}" for source in sources],
        depends=["setup.py", *map(str, sorted(Path("csrc").glob("*.h")))],
        include_dirs=["csrc"],
        extra_compile_args=[*cflags, *more.pop("cflags", []), *isystem],
        extra_link_args=[*ldflags, *more.pop("ldflags", [])],
        libraries=["m"],
        **more,
    )


def engine() -> Extension:
    prefix = onednn_prefix()
    pure = {f"py_{name}.c" for name in PURE}.union(*PURE.values()) - SHARED
    return extension(
        "engine",
        sorted(path.name for path in Path("csrc").glob("*.c") if path.name not in pure),
        headers=[prefix / "include"],
        cflags=["-mavx2", "-mfma", "-mf16c", "-fopenmp"],
        ldflags=["-fopenmp", "-Wl,-rpath,$ORIGIN/.libs"],
        extra_objects=[str(onednn_library(prefix))],
    )


def extensions() -> list[Extension]:
    chosen = os.environ.get("BON_ONLY", ",".join([*PURE, "engine"])).split(",")
    built = [
        extension(name, [f"py_{name}.c", *sources])
        for name, sources in PURE.items()
        if name in chosen
    ]
    if "engine" not in chosen:
        return built
    if reason := why_no_engine():
        print(f"bonaware is built without its engine: {reason}", file=sys.stderr)
        return built
    return [*built, engine()]


class BuildExt(build_ext):
    """Compiles files side by side; puts oneDNN's library and licences into bonaware/.libs."""

    def build_extensions(self) -> None:
        self.parallel = None  # extensions share the compiler: one after the other
        compiler = self.compiler
        compile_all, compile_one = compiler.compile, compiler._compile

        def compile_side_by_side(*args, **options) -> list[str]:
            with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
                jobs = []
                compiler._compile = lambda *file: jobs.append(pool.submit(compile_one, *file))
                objects = compile_all(*args, **options)
                for job in jobs:
                    job.result()
            return objects

        compiler.compile = compile_side_by_side
        super().build_extensions()

    def run(self) -> None:
        super().run()
        for source, target in self.bundled():
            target.parent.mkdir(exist_ok=True)
            shutil.copy(source, target)

    def get_output_mapping(self) -> dict[str, str]:
        folder = Path(self.build_lib, "bonaware", ".libs")
        bundled = {str(folder / target.name): str(target) for _, target in self.bundled()}
        return super().get_output_mapping() | bundled

    def bundled(self) -> list[tuple[Path, Path]]:
        """What to copy, and to where."""
        if not any(ext.name == "bonaware._engine" for ext in self.extensions):
            return []
        prefix = onednn_prefix()
        licences = [
            path
            for name in ("LICENSE*", "THIRD-PARTY-PROGRAMS", "copyright")
            for path in prefix.glob(f"share/doc/*dnn*/{name}")
        ]
        folder = Path(self.get_ext_fullpath("bonaware._engine")).parent / ".libs"
        return [(path, folder / path.name) for path in (onednn_library(prefix), *licences)]


class OneDNN(Command):
    """Prints the compiler arguments that build and run a program with oneDNN."""

    user_options: ClassVar = []

    def initialize_options(self) -> None: ...

    def finalize_options(self) -> None: ...

    def run(self) -> None:
        prefix = onednn_prefix()
        if prefix is None:
            sys.exit(why_no_engine())
        lib = onednn_library(prefix).parent
        print(f"-isystem {prefix}/include -L{lib} -l:{LIBDNNL} -Wl,-rpath,{lib}")


setup(ext_modules=extensions(), cmdclass={"build_ext": BuildExt, "onednn": OneDNN})
