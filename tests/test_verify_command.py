"""``feedmono verify`` as a command: its status, what it prints, and what it shows meanwhile."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from instance import only
from verify_rig import BTC, ETH, EXCHANGE, World, world

from feedmono import cli
from feedmono.verify.findings import DOUBLED, MISSING

__all__ = ["world"]


def command(
    world: World, *arguments: str, capsys: pytest.CaptureFixture[str], **variables: str
) -> tuple[int, str, str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(world.config.state_dir.parent)
        patch.setenv("FEEDMONO_STATE_DIR", str(world.config.state_dir))
        patch.setenv("FEEDMONO_FILES_DIR", str(world.config.files.dir))
        for name, value in {**only("binance"), **variables}.items():
            patch.setenv(name, value)
        status = cli.main(["verify", *arguments])
    out, err = capsys.readouterr()
    return status, out, err


def test_the_status_is_0_without_a_finding_and_1_with_one(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    world.frames(range(1, 1001))
    world.commit()
    status, out, err = command(world, capsys=capsys)
    assert (status, err) == (0, "")
    assert out.splitlines()[-1] == (
        "verified: 1,000 trades of 1 symbol, nothing missing, doubled, unknown or invalid, "
        "every frame there"
    )
    world.frames([1001], to_sink=False)
    world.frames([7], to_ledger=False)
    world.end()
    status, out, _ = command(world, EXCHANGE, BTC, capsys=capsys)
    assert status == 1
    assert out.splitlines()[-1] == "found in 1,001 trades of 1 symbol: 1 missing, 1 doubled"
    assert max(map(len, out.splitlines()[:2])) <= 80


def test_json_has_every_count_and_names_what_was_found(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    world.frames([1, 2, 2])
    world.frames([3], to_sink=False)
    world.end()
    status, out, _ = command(world, "--format", "json", capsys=capsys)
    assert status == 1
    told = json.loads(out)
    assert told["ok"] is False
    (exchange,) = told["exchanges"]
    assert (exchange["name"], exchange["trades"], exchange["frames"]) == (EXCHANGE, 3, 3)
    assert {f["kind"]: f["count"] for f in exchange["found"]} == {MISSING: 1, DOUBLED: 1}
    assert exchange["found"][0]["named"][0]["first_id"] == 3


def test_without_a_ledger_or_a_sink_it_says_so_with_status_1(
    world: World, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    nowhere = str(tmp_path / "nowhere")
    status, out, err = command(world, capsys=capsys, FEEDMONO_STATE_DIR=nowhere)
    assert (status, out) == (1, "")
    assert f"no ledger of {EXCHANGE} in {nowhere}" in err
    world.frames([1])
    world.end()
    status, out, err = command(world, capsys=capsys, FEEDMONO_FILES_DIR=nowhere)
    assert (status, out) == (1, "")
    assert f"there is no folder {nowhere}" in err
    (tmp_path / "empty" / EXCHANGE).mkdir(parents=True)
    empty = str(tmp_path / "empty")
    status, out, err = command(world, capsys=capsys, FEEDMONO_FILES_DIR=empty)
    assert (status, out) == (1, "")
    assert "holds nothing of" in err


def test_a_wrong_exchange_or_symbol_has_status_2(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _, err = command(world, "coinbase", capsys=capsys)
    assert status == 2
    assert EXCHANGE in err
    status, _, err = command(world, EXCHANGE, "NOSUCH", capsys=capsys)
    assert status == 2
    assert f"{BTC}, {ETH}" in err


def test_a_bar_is_shown_on_a_terminal_only(world: World) -> None:
    world.frames(range(1, 3000))
    world.end()
    screen_fd, terminal_fd = pty.openpty()
    process = subprocess.run(
        [sys.executable, "-m", "feedmono", "verify"],
        cwd=world.config.state_dir.parent,
        env={
            **os.environ,
            "FEEDMONO_STATE_DIR": str(world.config.state_dir),
            "FEEDMONO_FILES_DIR": str(world.config.files.dir),
            **only("binance"),
            "TERM": "xterm",
        },
        stdout=subprocess.PIPE,
        stderr=terminal_fd,
        check=False,
        timeout=60,
    )
    os.close(terminal_fd)
    shown = os.read(screen_fd, 65536)
    os.close(screen_fd)
    assert process.returncode == 0
    assert EXCHANGE.encode() in shown
    assert b"\x1b" not in process.stdout
