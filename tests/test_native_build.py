"""The extension is built where a C compiler is, and nobody notices where none is."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """What a wheel is made of, without what was built before."""
    folder = tmp_path / "source"
    folder.mkdir()
    left_out = shutil.ignore_patterns("__pycache__", "*.so")
    for name in ("feedmono", "schemas", "etc"):
        shutil.copytree(ROOT / name, folder / name, ignore=left_out)
    for name in ("setup.py", "setup.cfg", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, folder)
    return folder


def wheel(source: Path, *options: str, **environ: str) -> tuple[Path, str]:
    """The wheel that pip makes, and what pip says."""
    command = [sys.executable, "-m", "pip", "wheel", "--disable-pip-version-check", "--no-deps"]
    made = subprocess.run(
        [*command, *options, "--wheel-dir", "wheels", "."],
        cwd=source,
        env={**os.environ, **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=110,
        check=False,
    )
    assert made.returncode == 0, made.stdout
    (found,) = (source / "wheels").glob("feedmono-*.whl")
    return found, made.stdout


def built_modules(made: Path) -> list[str]:
    return [name for name in zipfile.ZipFile(made).namelist() if name.endswith(".so")]


def test_without_a_compiler_the_wheel_is_made_without_a_word_and_without_the_extension(
    source: Path,
) -> None:
    made, told = wheel(source, "--quiet", CC="/no/compiler/here")
    assert built_modules(made) == []
    assert told == ""
    shutil.unpack_archive(made, source / "site", "zip")
    code = "from feedmono import native; print(native.describe())"
    shown = subprocess.run(
        [sys.executable, "-c", code],
        cwd=source / "site",
        env={**os.environ, "PYTHONPATH": str(source / "site")},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert shown.stdout == "pure Python (no compiler at installation)\n"


def test_with_a_compiler_the_wheel_holds_the_extension_and_no_line_warns(source: Path) -> None:
    compiler = str(sysconfig.get_config_var("CC")).split()[0]
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    if shutil.which(compiler) is None or not header.exists():
        pytest.skip(f"needs a C compiler ({compiler}) and Python's headers ({header})")
    # A warning would fail the build of the extension, and so leave it out.
    made, told = wheel(source, "--verbose", CFLAGS="-Werror")
    assert "-Wextra" in told
    (name,) = built_modules(made)
    assert name == f"feedmono/native/_native{sysconfig.get_config_var('EXT_SUFFIX')}"
