"""The package as a user installs it: from a wheel built as the Dockerfile builds it."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def dockerfile() -> list[tuple[str, str]]:
    """Its instructions, continued lines joined."""
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines]


def shell(command: str, folder: Path, **environ: str) -> str:
    """Runs a command line with this Python as ``python``; gives its output."""
    words = [sys.executable if word == "python" else word for word in shlex.split(command)]
    result = subprocess.run(
        words,
        cwd=folder,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that the image's first stage builds, from what .dockerignore lets through."""
    folder = tmp_path_factory.mktemp("image")
    context = folder / "src"
    context.mkdir()
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if line.startswith("!"):
            source = ROOT / line[1:]
            if source.is_dir():
                ignore = shutil.ignore_patterns("__pycache__")
                shutil.copytree(source, context / source.name, ignore=ignore)
            else:
                shutil.copy(source, context)
    (build,) = [text for name, text in dockerfile() if name == "RUN" and "pip wheel" in text]
    build = build.replace("/wheels", str(folder / "wheels")).replace(
        "wheel --", "wheel --no-deps --"
    )
    shell(build, context)
    (found,) = (folder / "wheels").glob("feedmono-*.whl")
    return found


def test_the_wheel_holds_schemas_configuration_and_the_recording(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {
        "feedmono/schemas/trade.avsc",
        "feedmono/schemas/raw.avsc",
        "feedmono/schemas/dead.avsc",
        "feedmono/etc/feedmono.conf",
        "feedmono/simulator/binance-btcusdt.csv.gz",
        "feedmono/py.typed",
    } <= names
    assert not [n for n in names if n.startswith(("tests/", "scripts/"))]


def test_the_installed_program_runs_in_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    shell(f"python -m pip install --quiet --no-deps --target {site} {wheel}", tmp_path)
    empty = tmp_path / "empty"
    empty.mkdir()
    where = "import feedmono; print(feedmono.__file__)"
    assert str(site) in shell(f"python -c '{where}'", empty, PYTHONPATH=str(site))
    table = shell("python -m feedmono check", empty, PYTHONPATH=str(site))
    assert "market.crypto.trades" in table
    environ = {"PYTHONPATH": str(site), "FEEDMONO_RING_DIR": str(tmp_path / "rings")}
    shown = shell("python -m feedmono run --demo --for 5s", empty, **environ)
    assert "trades in data/demo/binance" in shown
    assert list((empty / "data/demo/kraken").glob("trades-*.avro"))


def test_the_image_names_only_variables_commands_and_users_that_exist() -> None:
    from feedmono.config.keys import keys  # noqa: PLC0415

    steps = dockerfile()
    known = {key.variable for key in keys(["binance", "kraken"]).values()}
    named = {
        word.split("=")[0] for name, text in steps if name == "ENV" for word in shlex.split(text)
    }
    assert named
    assert named <= known
    instructions = dict(steps)
    assert instructions["USER"] == "feedmono"
    assert instructions["ENTRYPOINT"] == '["feedmono"]'
    assert instructions["HEALTHCHECK"].endswith('CMD ["feedmono", "status"]')
    users = [text for name, text in steps if name == "RUN" and "useradd" in text]
    assert users
    assert users[0].split()[-1] == instructions["USER"]
