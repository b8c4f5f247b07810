"""The rules that keep the code livable, checked on its own source."""

from __future__ import annotations

import ast
import configparser
import dataclasses
from collections import defaultdict
from pathlib import Path

import pytest

from feedmono import config, exchanges, simulator
from feedmono.config.keys import keys
from feedmono.config.sinks import SINKS, SinkConfigs
from feedmono.config.values import Choice
from feedmono.sinks.kinds import KINDS

ROOT = Path(__file__).parents[1] / "feedmono"

# Who may import whom: a module may import those of its own level and of the levels below.
LEVELS = [
    {"cli", "__main__"},
    {"commands", "compare", "report", "verify"},
    {"supervisor"},
    {"status", "web"},
    {"supervision"},
    {"reader", "serializer"},
    {"delivery"},
    {"network", "sinks", "simulator", "workers", "apart"},
    {"config"},
    {"ring", "exchanges", "messages", "avro", "counters"},
    {"trade", "log", "resources"},
    {"native"},
    {"ring_layout"},
    {"collector", "events", "heartbeat", "repeats"},
]

# The standard places of third-party libraries; a folder stands for all of its files.
LIBRARIES = {
    "confluent_kafka": {"sinks"},
    "fastavro": {"avro", "sinks"},
    "h11": {"network", "simulator", "web"},
    "msgspec": {"exchanges", "sinks"},
    "prometheus_client": {"web"},
    "psutil": {"supervision"},
    "pyhocon": {"config"},
    "pyparsing": {"config"},
    "rich": {"commands", "cli"},
    "setproctitle": {"workers"},
    "structlog": {"log"},
    "websocket": {"network"},
}


def modules() -> dict[Path, set[str]]:
    """Each file and what it imports, absolute names."""
    found: dict[Path, set[str]] = defaultdict(set)
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                found[path] |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}: relative import"
                assert node.module is not None
                found[path] |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def part(path: Path) -> str:
    """The module or the folder that a file belongs to."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def test_imports_go_one_way() -> None:
    level = {name: depth for depth, names in enumerate(LEVELS) for name in names}
    for path, imported in modules().items():
        here = part(path)
        if here == "__init__":
            continue
        for name in imported:
            parts = name.split(".")
            if parts[0] != "feedmono" or len(parts) < 2:
                continue
            there = parts[1]
            assert there in level, f"{path.name} imports {name}: give {there} a level"
            assert here in level, f"give {here} a level"
            assert level[here] <= level[there], f"{here} must not import {there}"


def test_exchanges_and_sinks_do_not_know_each_other() -> None:
    for path, imported in modules().items():
        other = {"exchanges": "feedmono.sinks", "sinks": "feedmono.exchanges"}.get(part(path))
        assert other is None or not any(n.startswith(other) for n in imported), path


def test_each_library_is_imported_in_one_place() -> None:
    for path, imported in modules().items():
        for name in imported:
            library = name.split(".")[0]
            if library in LIBRARIES:
                assert part(path) in LIBRARIES[library], f"{path.name} imports {library}"


def test_no_name_of_an_exchange_stands_outside_its_own_files() -> None:
    names = exchanges.names()
    assert names
    for path in ROOT.rglob("*.py"):
        if path.stem in names:
            continue
        tree = ast.parse(path.read_text("utf-8"))
        texts = {
            n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and n.value in names
        }
        assert not texts, f"{path} names {texts}"


def test_no_name_of_a_sink_decides_anything_outside_the_sinks() -> None:
    """But in the demo, which is one of files."""
    for path in ROOT.rglob("*.py"):
        if part(path) in {"sinks", "config"} or path.stem == "demo":
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Compare):
                both = (node.left, *node.comparators)
                names = {each.value for each in both if isinstance(each, ast.Constant)}
                assert not names & KINDS.keys(), f"{path}:{node.lineno} asks for a sink by name"


def test_every_sink_that_can_be_configured_is_one() -> None:
    choice = keys([])["sink"].kind
    assert isinstance(choice, Choice)
    assert set(choice.names) == KINDS.keys()


def test_every_sink_has_its_configuration() -> None:
    assert [field.name for field in dataclasses.fields(SinkConfigs)] == list(SINKS)
    for name, (made, own) in SINKS.items():
        assert isinstance(made, type)
        assert dataclasses.is_dataclass(made)
        assert {field.name for field in dataclasses.fields(made)} == own.keys()
        assert all(key.name.startswith(f"{name}.") for key in own.values())


def test_every_folder_of_code_is_installed() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT.parent / "setup.cfg", "utf-8")
    listed = set(setup["options"]["packages"].split())
    folders = {path.parent.relative_to(ROOT.parent) for path in ROOT.rglob("__init__.py")}
    assert {".".join(folder.parts) for folder in folders} <= listed


@pytest.mark.parametrize("name", exchanges.names())
def test_an_exchange_is_whole_by_its_two_files_and_its_block(name: str) -> None:
    """docs/ADD_AN_EXCHANGE.md."""
    exchange = exchanges.load(name)
    limits = exchange.limits
    assert all(value > 0 for value in dataclasses.astuple(limits)), limits
    paths = (exchange.session([]).path, exchange.metadata_path)
    assert all(path.startswith("/") for path in paths), paths
    assert name in simulator.names(), f"feedmono/simulator/{name}.py with its DIALECT is missing"
    dialect = simulator.load(name)
    assert dialect.name == name
    configured = config.load(None, {}, cwd=ROOT).config.exchanges[name].symbols
    # The demo has the configured symbols from the stand-in as it is.
    assert set(configured) <= set(dialect.default_symbols) <= set(dialect.markets)


@pytest.mark.parametrize("name", exchanges.names())
def test_the_default_configuration_names_the_variables_of_an_exchange(name: str) -> None:
    text = (ROOT.parent / "etc" / "feedmono.conf").read_text("utf-8")
    mine = [key.variable for key in keys([name]).values() if key.name.startswith("exchanges.")]
    assert [variable for variable in mine if variable not in text] == []
    everywhere = [key.variable for key in keys(exchanges.names()).values() if key.variable]
    assert len(everywhere) == len(set(everywhere)), "two keys with one variable"


def test_what_is_no_exchange_is_not_taken_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KeyError):
        exchanges.load("base")
    monkeypatch.setattr(exchanges, "__path__", [str(tmp_path)])
    (tmp_path / "bare_ex.py").write_text("")
    with pytest.raises(TypeError, match=r"bare_ex\.py binds no EXCHANGE"):
        exchanges.load("bare_ex")
    (tmp_path / "made_ex.py").write_text("class Made: name = 'made_ex'\nEXCHANGE = Made()")
    with pytest.raises(TypeError, match=r"made_ex\.py binds no EXCHANGE, the class"):
        exchanges.load("made_ex")
    (tmp_path / "other_ex.py").write_text("class EXCHANGE: name = 'another'")
    with pytest.raises(TypeError, match="'another': its file's name is wanted"):
        exchanges.load("other_ex")
