"""The compiled extensions; everything else is in pyproject.toml.

The machine code of the kernels is made here, from their source in Numba, for each instruction-set
path. FASTRNN_BUILD_PATHS names other paths than all ("avx2,generic"), or none (""): the kernels are
then compiled at run time.
"""

import os
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy
from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, ExecError, PlatformError, SetupError

# setuptools provides these, and must have been imported before.
from distutils.ccompiler import new_compiler  # isort: skip
from distutils.sysconfig import customize_compiler  # isort: skip

ROOT = Path(__file__).parent
os.environ["FASTRNN_COMPILE_FOR"] = "generic"  # nothing here asks for this machine's own path
sys.path.insert(0, str(ROOT))
from fastrnn.kernels.native.formats import precompiled_formats  # noqa: E402
from fastrnn.kernels.native.identity import fingerprint  # noqa: E402
from fastrnn.kernels.native.isa import ISAS  # noqa: E402

GNU = os.name == "posix"


def try_compiler():
    """Without a compiler, end with a sentence and not with a traceback."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "try.c"
        source.write_text("#include <Python.h>\n")
        compiler = new_compiler()
        customize_compiler(compiler)
        try:
            include = [sysconfig.get_paths()[name] for name in ("include", "platinclude")]
            compiler.compile([str(source)], output_dir=folder, include_dirs=include)
        except (CompileError, ExecError, PlatformError) as error:
            sys.exit(
                f"{error}\n\nfastrnn cannot be compiled here. It needs a C compiler and Python's "
                "headers: on Debian and Ubuntu `apt install gcc python3-dev`, on macOS "
                "`xcode-select --install`, on Windows the Visual Studio Build Tools."
            )


class Build(build):
    """Try the compiler before anything else."""

    def run(self):
        try_compiler()
        super().run()


class BuildKernels(build_ext):
    """Compile the kernels before the extension that contains them."""

    def run(self):
        try_compiler()  # an editable installation runs this command alone
        super().run()

    def build_extension(self, ext):
        if ext.name == "fastrnn._native":
            self._add_kernels(ext)
        super().build_extension(ext)

    def _add_kernels(self, ext):
        paths = os.environ.get("FASTRNN_BUILD_PATHS", ",".join(ISAS))
        chosen = [isa for isa in paths.split(",") if isa]
        if set(chosen) - set(ISAS):
            raise SetupError(f"FASTRNN_BUILD_PATHS must be some of {', '.join(ISAS)}; got {paths}")
        # Of a path with more instructions, all kernels that do without them are in its base.
        chosen += dict.fromkeys(ISAS[i].base for i in chosen if ISAS[i].base not in ("", *chosen))
        parts = [(isa, form) for isa in chosen for form in precompiled_formats(ISAS[isa])]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            headers = list(pool.map(self._compile, *zip(*parts, strict=True))) if parts else []
        folder = Path(self.build_temp)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "kernels.h").write_text("".join(h.read_text() for h in headers))
        ext.include_dirs.append(str(folder))
        ext.extra_objects += [
            str(o) for h in headers for o in sorted(h.parent.glob(f"{h.stem}_*.o"))
        ]
        self.force = True  # the objects may be new where the C sources are not

    def _compile(self, isa, form) -> Path:
        """The header of a path and format; made again when the source has changed."""
        folder = Path(self.build_temp) / "kernels" / fingerprint(ISAS[isa])
        header = folder / f"{isa}_{form}.h"
        if not header.exists():
            print(f"compiling the kernels for {isa}, {form}", flush=True)
            module = "fastrnn.kernels.native.source.build"
            environment = {"FASTRNN_COMPILE_FOR": isa, "PYTHONPATH": os.pathsep.join(sys.path)}
            subprocess.run(
                [sys.executable, "-m", module, form, str(folder.absolute())],
                cwd=ROOT, env=os.environ | environment, check=True,
            )  # fmt: skip
        return header


setup(
    cmdclass={"build": Build, "build_ext": BuildKernels},
    ext_modules=[
        *cythonize(
            [
                Extension("fastrnn._gather", ["src_cython/gather.pyx"]),
                Extension("fastrnn._padding", ["src_cython/padding.pyx"]),
                Extension("fastrnn._tags", ["src_cython/tags.pyx"]),
            ]
        ),
        Extension(
            "fastrnn._native",
            ["src_native/native.c", "src_native/team.c", "src_native/arena.c"],
            include_dirs=[numpy.get_include()],
            depends=["src_native/team.h", "src_native/arena.h"],
            extra_compile_args=[
                "-O3",
                "-std=gnu11",
                "-pthread",
                "-fvisibility=hidden",
                "-Wall",
                "-Wextra",
            ]
            * GNU
            or ["/std:c11", "/experimental:c11atomics"],
            extra_link_args=["-pthread", "-Wl,-s"] * sys.platform.startswith("linux"),
            libraries=["m"] * GNU or ["synchronization"],
        ),
    ],
)
