"""The guard by instruction counts: instructions per trade of each stage, with the native extension
and without, beside what was recorded last. Information, not a test: Python's version, the
compiler and the C library change the counts too; the machine's load does not.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from bench import stages
from bench.stages import FRAMES, NATIVE, PLAIN, STAGES, TAKE, WHOLE
from bench.tables import Table, columns

RECORDED = Path(__file__).with_name("instructions.json")
_LIMIT_S = 600.0
_TOTALS = re.compile(r"^(?:totals|summary): (\d+)", re.MULTILINE)
# Between two stages the data of the next are made: these parts are left out.
_BETWEEN = len(STAGES) - 1
_REST = "of it: hand-over, acknowledgement"
_PARTS = (TAKE,)

Counts = Mapping[str, float]
"""Instructions per trade by stage."""


def counted(twin: str) -> Counts:
    """Counts one twin's stages. :raises RuntimeError: valgrind or the stages failed."""
    with tempfile.TemporaryDirectory(prefix="feedmono-callgrind-") as name:
        folder = Path(name)
        command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={folder}/out"]
        command += ["--dump-before=getppid", "--vgdb=no", "-q"]
        command += [sys.executable, str(Path(stages.__file__).resolve()), twin]
        done = subprocess.run(
            command,
            # The order of sets and dicts, and with it the work, shall be the same each time.
            env={"PYTHONHASHSEED": "0", "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            timeout=_LIMIT_S,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"the stages failed under valgrind: {done.stderr[-2000:]}")
        return per_trade([_total(path) for path in dumps(folder)])


def dumps(folder: Path) -> list[Path]:
    """What valgrind wrote at each mark, in order; the last one, at the end, is left out."""
    found = [path for path in folder.glob("out.*") if path.suffix[1:].isdecimal()]
    return sorted(found, key=lambda path: int(path.suffix[1:]))


def _total(path: Path) -> int:
    match = _TOTALS.search(path.read_text(errors="replace"))
    if match is None:
        raise RuntimeError(f"{path.name} has no total")
    return int(match[1])


def per_trade(totals: Sequence[int]) -> Counts:
    """From the totals at each mark. :raises RuntimeError: there are not as many as marks."""
    # One before the first stage, one after each, and one more before the last stage.
    if len(totals) != len(STAGES) + 2:
        raise RuntimeError(f"valgrind has set {len(totals)} counts apart, not {len(STAGES) + 2}")
    parts = [*totals[1 : _BETWEEN + 1], totals[-1]]
    found = {stage: total / FRAMES for stage, total in zip(STAGES, parts, strict=True)}
    found[_REST] = found[WHOLE] - sum(found[part] for part in _PARTS)
    return found


def table(now: Mapping[str, Counts], recorded: Mapping[str, Counts]) -> Table:
    """The twins side by side, each beside what was recorded."""
    names = ["stage"]
    for twin in now:
        names += [twin, "recorded", "change"]
    rows = []
    for stage in (*STAGES, _REST):
        row = [stage]
        for twin, counts in now.items():
            before = recorded.get(twin, {}).get(stage)
            row.append(f"{counts[stage]:,.0f}")
            row.append(f"{before:,.0f}" if before else "–")
            row.append(f"{counts[stage] / before - 1:+.1%}" if before else "–")
        rows.append(row)
    return Table("Instructions per trade", names, rows)


def _version() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def main() -> int:
    """The command; gives the exit status."""
    parser = argparse.ArgumentParser(prog="scripts/callgrind", description=__doc__)
    parser.add_argument("--record", action="store_true", help=f"keeps them in {RECORDED.name}")
    args = parser.parse_args()
    if shutil.which("valgrind") is None:
        print("valgrind is not installed: there is nothing to count with", file=sys.stderr)
        return 1
    twins = [PLAIN]
    if find_spec("feedmono.native._native") is not None:
        twins.append(NATIVE)
    else:
        print("the native extension is not built: only Python is counted", file=sys.stderr)
    now = {twin: counted(twin) for twin in twins}
    known: dict[str, dict[str, Counts]] = {}
    if RECORDED.is_file():
        known = json.loads(RECORDED.read_text("utf-8"))
    print(columns(table(now, known.get(_version(), {}))))
    print(f"Python {_version()}; recorded in {RECORDED.name}")
    if args.record:
        known[_version()] = {
            twin: {stage: round(count) for stage, count in counts.items()}
            for twin, counts in now.items()
        }
        RECORDED.write_text(json.dumps(known, indent=2) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
