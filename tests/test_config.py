"""The configuration: what is laid over what, what is refused, and how a mistake reads."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feedmono import exchanges, resources
from feedmono.config import Config, ConfigError, Loaded, load
from feedmono.config import budget as budgets
from feedmono.config.keys import keys
from feedmono.config.text import locate
from feedmono.config.values import (
    CanonicalSymbols,
    Choice,
    Duration,
    EntriesKind,
    Folder,
    Host,
    Key,
    Number,
    Servers,
    Size,
    Switch,
    Symbols,
    TopicPrefix,
    Url,
    Whole,
)

KEYS = keys(exchanges.names())
KNOWN = exchanges.names()
FIRST = KNOWN[0]


def loaded(
    folder: Path,
    text: str | None = None,
    environ: Mapping[str, str] | None = None,
    overrides: Mapping[str, str] | None = None,
) -> Loaded:
    """What `load` makes of a file ``x.conf`` with this text (None: of no file)."""
    path = None
    if text is not None:
        path = Path("x.conf")
        (folder / path).write_text(text, encoding="utf-8")
    return load(path, environ or {}, overrides, folder, "flag --demo")


def refused(
    folder: Path,
    text: str | None = None,
    environ: Mapping[str, str] | None = None,
    overrides: Mapping[str, str] | None = None,
) -> ConfigError:
    with pytest.raises(ConfigError) as error:
        loaded(folder, text, environ, overrides)
    return error.value


# --- The default file and the table of keys.


def test_the_default_file_has_every_key_and_no_other(tmp_path: Path) -> None:
    written = locate(resources.path("etc", "feedmono.conf"), "").lines
    assert set(KEYS) <= set(written)
    assert set(loaded(tmp_path).origins.values()) == {"default"}


@pytest.mark.parametrize("key", [k for k in KEYS.values() if k.variable], ids=lambda k: k.name)
def test_the_default_file_names_the_variable_beside_its_key(key: Key) -> None:
    path = resources.path("etc", "feedmono.conf")
    lines = path.read_text(encoding="utf-8").splitlines()
    index = int(locate(path, "").lines[key.name].rpartition(":")[2]) - 1
    beside = [lines[index]]
    while lines[index - 1].strip().startswith("#"):
        index -= 1
        beside.append(lines[index])
    assert re.search(rf"\b{key.variable}\b", "\n".join(beside))


def test_the_default_file_names_no_variable_that_does_nothing() -> None:
    text = resources.path("etc", "feedmono.conf").read_text(encoding="utf-8")
    assert set(re.findall(r"FEEDMONO_\w+", text)) == {k.variable for k in KEYS.values()} - {""}


def test_no_two_keys_share_a_variable() -> None:
    named = [key.variable for key in KEYS.values() if key.variable]
    assert len(set(named)) == len(named)


def sample(key: Key, index: int) -> tuple[str, object]:
    """A text for the key that is neither its default nor another key's, and what it means."""
    samples: dict[type, tuple[str, object]] = {
        Duration: (f"{1500 + index} ms", (1500 + index) / 1000),
        Folder: (f"/some/{index}", f"/some/{index}"),
        Host: (f"10.0.0.{index}", f"10.0.0.{index}"),
        Number: (f"0.{index:03}1", float(f"0.{index:03}1")),
        Servers: (f"a:{index}, b:2", f"a:{index},b:2"),
        Size: (f"{3 + index} MiB", (3 + index) * 1024**2),
        Switch: ("yes", True),
        Symbols: (f"A{index}, B/C", [f"A{index}", "B/C"]),
        TopicPrefix: ("my.prefix", "my.prefix"),
        Whole: (str(17 + index), 17 + index),
    }
    kind = key.kind
    if key.name == "samples.keep":
        return f"{index} h", index * 3600.0
    if isinstance(kind, Whole) and kind.high < 17 + index:
        return str(kind.high), kind.high
    if isinstance(kind, Choice):
        return kind.names[-1].upper(), kind.names[-1]
    if isinstance(kind, Url):
        return f"{kind.schemes[0]}://h{index}:5", f"{kind.schemes[0]}://h{index}:5"
    return samples[type(kind)]


PLAIN = {
    key: sample(key, 100 + index)
    for index, key in enumerate(KEYS.values())
    if key.variable and not isinstance(key.kind, EntriesKind)
}


@pytest.fixture(scope="module")
def from_variables(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    """Every key set by its variable."""
    environ = {key.variable: text for key, (text, _) in PLAIN.items()}
    return loaded(tmp_path_factory.mktemp("variables"), environ=environ)


def in_config(config: Config, name: str) -> object:
    """What the configuration holds for a key: its field has the same name, and perhaps a unit."""
    found: object = config
    for part in name.split("."):
        if isinstance(found, Mapping):
            found = found[part]
        else:
            [field] = {part, f"{part}_s", f"{part}_bytes"} & set(dir(found))
            found = getattr(found, field)
    return found


@pytest.mark.parametrize("key", PLAIN, ids=lambda k: k.variable)
def test_every_variable_sets_its_key(key: Key, from_variables: Loaded) -> None:
    _, plain = PLAIN[key]
    assert from_variables.values[key.name].plain == plain
    assert from_variables.origins[key.name] == f"variable {key.variable}"
    value = in_config(from_variables.config, key.name)
    assert (list(value) if isinstance(value, tuple) else value) == (
        Path(str(plain)) if isinstance(key.kind, Folder) else plain
    )


def test_every_key_means_the_same_in_a_file_as_in_its_variable(
    tmp_path: Path, from_variables: Loaded
) -> None:
    lines = [f'{key.name} = "{text}"' for key, (text, _) in PLAIN.items()]
    in_file = loaded(tmp_path, "\n".join(lines))
    assert in_file.config == from_variables.config
    for line, key in enumerate(PLAIN, 1):
        assert in_file.origins[key.name] == f"file x.conf:{line}"


def test_canonical_symbols_alone_are_a_block_with_a_variable() -> None:
    """What the tests above leave out; the one below has them."""
    left_out = [k for k in KEYS.values() if isinstance(k.kind, EntriesKind)]
    assert {type(k.kind) for k in left_out if k.variable} == {CanonicalSymbols}


@pytest.mark.parametrize("name", exchanges.names())
def test_canonical_symbols_come_from_a_block_or_a_variable(name: str, tmp_path: Path) -> None:
    expected = {"BTCX": "BTC/X", "A.B": "A/B"}
    block = "{ BTCX = BTC/X, A.B = A/B }"
    in_file = loaded(tmp_path, f"exchanges.{name}.canonical_symbols {block}").config
    environ = {f"FEEDMONO_{name.upper()}_CANONICAL_SYMBOLS": "BTCX=BTC/X, A.B=A/B"}
    assert in_file.exchanges[name].canonical_symbols == expected
    assert loaded(tmp_path, environ=environ).config.exchanges[name].canonical_symbols == expected


def test_a_variable_replaces_the_canonical_symbols_of_the_file(tmp_path: Path) -> None:
    environ = {f"FEEDMONO_{FIRST.upper()}_CANONICAL_SYMBOLS": "B=B/C"}
    text = f"exchanges.{FIRST}.canonical_symbols {{ A = A/C }}"
    assert loaded(tmp_path, text, environ).config.exchanges[FIRST].canonical_symbols == {"B": "B/C"}


# --- What is laid over what.


def test_flags_beat_variables_beat_the_file_beats_the_default(tmp_path: Path) -> None:
    text = "window = 2\nlinger = 2 ms\nstop_limit = 2 s"
    environ = {"FEEDMONO_WINDOW": "3", "FEEDMONO_LINGER": "3 ms"}
    result = loaded(tmp_path, text, environ, {"window": "4"})
    config = result.config
    assert (config.window, config.linger_s, config.stop_limit_s) == (4, 0.003, 2.0)
    assert [result.origins[name] for name in ("window", "linger", "stop_limit", "sink")] == [
        "flag --demo",
        "variable FEEDMONO_LINGER",
        "file x.conf:3",
        "default",
    ]


def test_the_file_in_the_current_folder_is_taken_without_being_named(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "feedmono.conf").write_text("log {\n  level = debug\n}")
    result = loaded(tmp_path)
    assert result.config.log.level == "debug"
    assert result.origins["log.level"] == "file etc/feedmono.conf:2"
    assert result.origins["log.format"] == "default"


def test_in_a_checkout_the_default_file_is_the_operators() -> None:
    checkout = resources.path("etc", "feedmono.conf").parent.parent
    assert load(None, {}, cwd=checkout).origins["state_dir"] == "file etc/feedmono.conf:8"


def test_a_mistake_in_a_checkouts_default_file_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    default = tmp_path / "etc" / "feedmono.conf"
    default.parent.mkdir()
    text = resources.path("etc", "feedmono.conf").read_text(encoding="utf-8")
    default.write_text(text.replace("sink = files", "sink = flies"), encoding="utf-8")
    monkeypatch.setattr(resources, "path", lambda folder, name: tmp_path / folder / name)
    [mistake] = refused(tmp_path).mistakes
    assert re.fullmatch(r"etc/feedmono\.conf:\d+: sink", mistake.where)


def test_relative_paths_count_from_the_current_folder(tmp_path: Path) -> None:
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "a.conf").write_text('state_dir = "s"\nring_dir = "/r"')
    config = load(Path("conf/a.conf"), {"FEEDMONO_FILES_DIR": "f/g"}, cwd=tmp_path).config
    assert config.state_dir == tmp_path / "s"
    assert config.ring_dir == Path("/r")
    assert config.files.dir == tmp_path / "f" / "g"


def test_a_later_line_beats_an_earlier_one_and_is_named(tmp_path: Path) -> None:
    result = loaded(tmp_path, "sink = files\n# x = {\nlog { level = info }\n\nsink = kafka\n")
    assert (result.config.sink, result.origins["sink"]) == ("kafka", "file x.conf:5")


def test_an_included_file_counts_and_its_lines_are_named(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "log.conf").write_text('\nlevel = debug\ninclude "deep.conf"')
    (tmp_path / "more" / "deep.conf").write_text("format = json")
    result = loaded(tmp_path, 'log {\n  include "more/log.conf"\n}')
    assert (result.config.log.level, result.config.log.format) == ("debug", "json")
    assert result.origins["log.level"] == "file more/log.conf:2"
    assert result.origins["log.format"] == "file more/deep.conf:1"


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_file_may_end_its_lines_as_on_windows_and_begin_with_a_mark(
    newline: str, tmp_path: Path
) -> None:
    text = newline.join(["\ufefflog {", "level = debug # x", "}", "window = 5 "])
    (tmp_path / "x.conf").write_bytes(text.encode())
    config = load(Path("x.conf"), {}, cwd=tmp_path).config
    assert (config.log.level, config.window) == ("debug", 5)


def test_a_new_exchange_needs_its_block_and_has_its_variables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchanges, "names", lambda: [*KNOWN, "toy"])
    error = refused(tmp_path)
    assert "no block exchanges.toy" in str(error)
    assert len(error.mistakes) == 1
    budget = f"${{exchanges.{FIRST}.budget}}"
    block = f"""exchanges.toy {{
      enabled = true, symbols = [A], ws_url = "ws://t", rest_url = "http://t", budget = {budget}
    }}"""
    found = loaded(tmp_path, block, {"FEEDMONO_TOY_SYMBOLS": "B,C"}).config.exchanges
    assert (found["toy"].symbols, found["toy"].budget) == (("B", "C"), found[FIRST].budget)
    error = refused(tmp_path, block.replace(budget, "{ cpu = 1 }"))
    lacking = {key.name for key in budgets.KEYS.values()} - {"budget.cpu"}
    told = {f"no value for exchanges.toy.{name}" for name in lacking}
    assert {mistake.found for mistake in error.mistakes} == told


# --- References.


def test_a_reference_takes_the_given_environment_not_the_processs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPOT", "wrong")
    assert loaded(tmp_path, "state_dir = ${SPOT}/x", {"SPOT": "/right"}).config.state_dir == Path(
        "/right/x"
    )
    assert "${SPOT}" in str(refused(tmp_path, "state_dir = ${SPOT}/x"))


def test_a_reference_means_a_key_of_the_file_then_one_of_the_default(tmp_path: Path) -> None:
    text = 'state_dir = "/s"\nring_dir = ${state_dir}/${files.dir}\nfiles.dir = ${files.dir}/x'
    config = loaded(tmp_path, text, {"state_dir": "/wrong"}).config
    assert config.ring_dir == Path("/s/data/x")
    assert config.files.dir == tmp_path / "data" / "x"


def test_an_optional_reference_to_nothing_leaves_what_is_below(tmp_path: Path) -> None:
    result = loaded(tmp_path, "sink = ${?NOPE}\nlog.level = ${?LEVEL}", {"LEVEL": "debug"})
    assert (result.config.sink, result.origins["sink"]) == ("files", "default")
    assert result.config.log.level == "debug"


def test_a_list_may_grow_by_a_reference_to_the_default(tmp_path: Path) -> None:
    name = f"exchanges.{FIRST}.symbols"
    symbols = loaded(tmp_path, f"{name} = ${{{name}}} [NEW]").config.exchanges[FIRST].symbols
    assert symbols == (*loaded(tmp_path).config.exchanges[FIRST].symbols, "NEW")


def test_symbols_may_come_from_one_reference(tmp_path: Path) -> None:
    text = f"exchanges.{FIRST}.symbols = ${{MINE}}"
    config = loaded(tmp_path, text, {"MINE": "A, B"}).config
    assert config.exchanges[FIRST].symbols == ("A", "B")


# --- What is refused.

FILE_MISTAKES = [
    # text of the file, where, what was found, what is allowed, what was probably meant
    ("\nsnik = files", "x.conf:2: snik", "an unknown name", "state_dir", "sink"),
    ("capacity = 1 MiB", "x.conf:1: capacity", "an unknown name", "", "ring_capacity"),
    ("log_level = info", "x.conf:1: log_level", "an unknown name", "", "log.level"),
    ("log {\nlevl = info }", "x.conf:2: log.levl", "an unknown name", "level, format", "level"),
    ("kafak.partitions = 1", "x.conf:1: kafak", "an unknown name", "files, kafka", "kafka"),
    ("web.port = 1", "x.conf:1: web", "an unknown name", "state_dir", ""),
    ("exchanges.nope.enabled = on", "x.conf:1: exchanges.nope", "unknown", KNOWN[0], ""),
    ("log = info", "x.conf:1: log", "'info'", "a block with level, format", ""),
    ("sink { a = 1 }", "x.conf:1: sink", "a block", "files or kafka", ""),
    ("sink = [files]", "x.conf:1: sink", "a list", "files or kafka", ""),
    ("sink = null", "x.conf:1: sink", "null", "files or kafka", ""),
    ("sink = kafak", "x.conf:1: sink", "'kafak'", "files or kafka", "kafka"),
    ("sink = \"\"", "x.conf:1: sink", "empty text", "files or kafka", ""),
    ("log.level = warn", "x.conf:1: log.level", "'warn'", "warning", "warning"),
    ("window = 0", "x.conf:1: window", "the number 0", "a whole number from 1", ""),
    ("window = 5.5", "x.conf:1: window", "the number 5.5", "a whole number", ""),
    ("window = many", "x.conf:1: window", "'many'", "a whole number", ""),
    ("window = true", "x.conf:1: window", "true", "a whole number", ""),
    ("window = 1e400", "x.conf:1: window", "inf", "a whole number", ""),
    ("kafka.partitions = 10001", "kafka.partitions", "10001", "from 1 to 10000", ""),
    ("ring_capacity = 64", "x.conf:1: ring_capacity", "the number 64", "with its unit (B,", ""),
    ("ring_capacity = 63 KiB", "ring_capacity", "'63 KiB'", "from 64 KiB", ""),
    ("ring_capacity = 64 M", "ring_capacity", "'64 M'", "MB, MiB", ""),
    ("ring_capacity = 64.00001 KiB", "ring_capacity", "'64.00001 KiB'", "a size", ""),
    ("ring_capacity = -1 MiB", "ring_capacity", "'-1 MiB'", "a size", ""),
    ("linger = 5", "x.conf:1: linger", "the number 5", "with its unit (us, ms", ""),
    ("linger = 5 ns", "x.conf:1: linger", "'5 ns'", "us, ms", ""),
    ("linger = 2 m", "x.conf:1: linger", "'2 m'", "from 0 to 2 s", ""),
    ("stop_limit = 5000000000000000 d", "stop_limit", "'5000000000000000 d'", "1 h", ""),
    ("linger = false", "x.conf:1: linger", "false", "a duration", ""),
    ("state_dir = 5", "x.conf:1: state_dir", "the number 5", "in quotation marks", ""),
    ('state_dir = "~/x"', "x.conf:1: state_dir", "'~/x'", "${HOME}", ""),
    ('state_dir = """a\nb"""', "x.conf:1: state_dir", r"'a\nb'", "path", ""),
    ('http.host = "example.com"', "x.conf:1: http.host", "'example.com'", "an IP address", ""),
    ('http.host = "[::1]"', "x.conf:1: http.host", "'[::1]'", "or localhost", ""),
    ('http.host = "fe80::1%eth0"', "x.conf:1: http.host", "'fe80::1%eth0'", "an IP address", ""),
    ('kafka.topic_prefix = "a b"', "kafka.topic_prefix", "'a b'", "letters, digits", ""),
    ('kafka.bootstrap_servers = "a:1,,b"', "bootstrap_servers", "an empty address", "", ""),
    ('kafka.bootstrap_servers = "a:99999"', "bootstrap_servers", "'a:99999'", "host:port", ""),
    ("kafka.schema_registry_url = \"ftp://h\"", "schema_registry_url", "ftp", "http", ""),
    ("kafka.properties = x", "x.conf:1: kafka.properties", "no block", "{ name = value }", ""),
    ("sink += kafka", "x.conf:1: sink", "+=", "= with the whole value", ""),
]  # fmt: skip

EXCHANGE_MISTAKES = [
    ("enabled = maybe", "'maybe'", "true or false"),
    ("enabled = 2", "the number 2", "true or false"),
    ("symbols = []", "an empty list", "symbols such as"),
    ('symbols = ""', "an empty list", "symbols such as"),
    ('symbols = "A,B,"', "an empty symbol", "symbols such as"),
    ('symbols = [A, ""]', "an empty element", "an element between two commas"),
    ("symbols = [A,\n, B]", "an empty element", "an element between two commas"),
    ("symbols = [, A]", "an empty element", "an element between two commas"),
    ("symbols = [A, B, A]", "'A' twice", "each once"),
    ("symbols = [A B]", "'A B'", "symbols such as"),
    ('symbols = ["A,B"]', "'A,B'", "symbols such as"),
    ("symbols = [5]", "the number 5", "symbols such as"),
    ("symbols = [[A]]", "a list", "symbols such as"),
    ("symbols { A = 1 }", "a block", "symbols such as"),
    ('ws_url = "https://h"', "'https://h'", "wss or ws://host"),
    ('ws_url = "wss://h/ws"', "'wss://h/ws'", "without a path"),
    ('ws_url = "wss://h?x=1"', "'wss://h?x=1'", "without a path"),
    ('ws_url = "wss://h:x"', "'wss://h:x'", "wss or ws://host"),
    ('ws_url = "wss://"', "'wss://'", "wss or ws://host"),
    ('rest_url = "ws://h"', "'ws://h'", "https or http://host"),
    ('rest_url = "http://u:geheim@h"', "'http://********@h'", "without a path"),
    ("budget.cpu = 0", "the number 0", "a number from 0.01"),
    ("budget.cpu = nan", "'nan'", "a number from 0.01"),
    ("budget.memory = 512", "the number 512", "a size with its unit"),
    ("canonical_symbols { A = x }", "'x'", "base and quote"),
    ("canonical_symbols = A", "no block", "a block"),
    ("symbol = A", "an unknown name (did you mean symbols?)", "canonical_symbols"),
]


@pytest.mark.parametrize(("text", "where", "found", "allowed", "meant"), FILE_MISTAKES)
def test_a_mistake_in_a_file_tells_where_what_and_what_else(
    text: str, where: str, found: str, allowed: str, meant: str, tmp_path: Path
) -> None:
    [mistake] = refused(tmp_path, text).mistakes
    assert where in mistake.where
    assert mistake.where.startswith("x.conf:")
    assert found in mistake.found
    assert allowed in mistake.allowed
    assert mistake.nearest.endswith(meant) if meant else mistake.nearest == ""


@pytest.mark.parametrize(("text", "found", "allowed"), EXCHANGE_MISTAKES)
def test_a_mistake_in_an_exchanges_block_is_told(
    text: str, found: str, allowed: str, tmp_path: Path
) -> None:
    error = refused(tmp_path, f"exchanges {{\n {FIRST} {{\n {text}\n }}\n}}")
    assert len(error.mistakes) == 1
    assert re.search(rf"x\.conf:[34]: exchanges\.{FIRST}\.", str(error))
    assert found in str(error)
    assert allowed in str(error)


@pytest.mark.parametrize(
    ("variable", "text", "found", "meant"),
    [
        ("FEEDMONO_SINC", "files", "an unknown variable", "FEEDMONO_SINK"),
        ("FEEDMONO_XYZZY", "files", "an unknown variable", ""),
        ("FEEDMONO_SINK", "", "empty text", ""),
        ("FEEDMONO_SINK", "flies", "'flies'", "files"),
        ("FEEDMONO_WINDOW", "1_000", "'1_000'", ""),
        ("FEEDMONO_WINDOW", "٥", "'٥'", ""),
        ("FEEDMONO_RING_CAPACITY", "1000000", "'1000000'", ""),
        ("FEEDMONO_LINGER", "5", "'5'", ""),
        (f"FEEDMONO_{FIRST.upper()}_SYMBOLS", "A,B,", "an empty symbol", ""),
        (f"FEEDMONO_{FIRST.upper()}_SYMBOLS", " ", "an empty list", ""),
        (f"FEEDMONO_{FIRST.upper()}_ENABLED", "ja", "'ja'", ""),
        (f"FEEDMONO_{FIRST.upper()}_CPU", "1e999", "'1e999'", ""),
        (f"FEEDMONO_{FIRST.upper()}_CANONICAL_SYMBOLS", "A", "'A'", ""),
        (f"FEEDMONO_{FIRST.upper()}_CANONICAL_SYMBOLS", "A=A/B,A=A/C", "'A' twice", ""),
        (f"FEEDMONO_{FIRST.upper()}_WSURL", "x", "unknown", f"FEEDMONO_{FIRST.upper()}_WS_URL"),
    ],
)
def test_a_mistake_in_a_variable_names_the_variable(
    variable: str, text: str, found: str, meant: str, tmp_path: Path
) -> None:
    [mistake] = refused(tmp_path, environ={variable: text}).mistakes
    assert mistake.where == f"variable {variable}"
    assert found in mistake.found
    assert mistake.nearest == meant


def test_all_mistakes_come_in_one_message(tmp_path: Path) -> None:
    text = f"snik = x\nlinger = 5\nexchanges.{FIRST}.symbols = []\nstate_dir = ${{NOPE}}"
    environ = {"FEEDMONO_WINDOW": "x", "FEEDMONO_NOPE": "1"}
    error = refused(tmp_path, text, environ, {"widnow": "1", "log.level": "loud"})
    places = [mistake.where for mistake in error.mistakes]
    assert sorted(places) == sorted(
        [
            "x.conf:1: snik",
            "x.conf:2: linger",
            f"x.conf:3: exchanges.{FIRST}.symbols",
            "x.conf:4",
            "variable FEEDMONO_WINDOW",
            "variable FEEDMONO_NOPE",
            "flag --demo",
            "flag --demo: log.level",
        ]
    )
    assert str(error).count("\n") == len(places)
    assert str(error).startswith("the configuration has 8 mistakes:")


def test_a_mistake_that_a_variable_overrides_is_told_all_the_same(tmp_path: Path) -> None:
    assert "x.conf:1: sink" in str(refused(tmp_path, "sink = kafak", {"FEEDMONO_SINK": "files"}))


def test_a_file_that_is_no_hocon_does_not_hide_a_wrong_variable(tmp_path: Path) -> None:
    error = refused(tmp_path, "sink = {", {"FEEDMONO_WINDOW": "x"})
    assert [m.where for m in error.mistakes] == ["x.conf:1", "variable FEEDMONO_WINDOW"]


def test_all_exchanges_disabled_is_a_mistake(tmp_path: Path) -> None:
    text = "\n".join(f"exchanges.{name}.enabled = false" for name in KNOWN)
    assert "all exchanges disabled" in str(refused(tmp_path, text))
    first = {f"FEEDMONO_{FIRST.upper()}_ENABLED": "true"}
    assert [e.name for e in loaded(tmp_path, text, first).config.enabled_exchanges] == [FIRST]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('a = "x', 1),
        ("sink = files\nlog {\n level = info\n", 4),
        ("sink = files\nstate_dir = a@b", 2),
        ("\n}", 2),
        ("sink", 1),
        ("log {\n level = info\n]\n}", 3),
        ("{" * 200, 1),
    ],
)
def test_what_is_no_hocon_is_told_with_its_line(text: str, line: int, tmp_path: Path) -> None:
    [mistake] = refused(tmp_path, text).mistakes
    assert mistake.where == f"x.conf:{line}"
    assert "no HOCON" in mistake.found


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[1, 2]", "found a list"),
        ("sink = ${a}\na = ${sink}", "in a circle"),
        ("log = 1\nlog { level = info }", "a block, a list and text mixed"),
        ("state_dir = [a] b", "a block, a list and text mixed"),
        ('include "nope.conf"', "x.conf:1: found an include of nope.conf, which is not there"),
        ('include required(file("nope.conf"))', "an include of nope.conf, which is not there"),
        ('include "no*.conf"', "an include of no*.conf, which matches nothing"),
        ('log { include "x.conf" }', "an include of x.conf in a circle"),
        ('include "http://h/x"', "an include of a url"),
        ('include package("json:x")', "an include of a package"),
    ],
)
def test_what_pyhocon_stumbles_over_is_told_plainly(text: str, told: str, tmp_path: Path) -> None:
    assert told in str(refused(tmp_path, text))


def test_a_mistake_in_an_included_file_names_that_file(tmp_path: Path) -> None:
    (tmp_path / "inc.conf").write_text("\nsink = kafak")
    assert "inc.conf:2: sink: found 'kafak'" in str(refused(tmp_path, 'include "inc.conf"'))
    (tmp_path / "inc.conf").write_text("\n\nsink = a@b")
    assert "  inc.conf:3: found '@'" in str(refused(tmp_path, 'include "inc.conf"'))
    (tmp_path / "inc.conf").write_text("\nsink = ${NOPE}")
    assert "  inc.conf:2: found ${NOPE}" in str(refused(tmp_path, 'include "inc.conf"'))


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("nope.conf", "No such file"),
        ("folder", "Is a directory"),
        ("latin.conf", "no UTF-8"),
        ("huge.conf", "a larger file"),
    ],
)
def test_a_file_that_cant_be_read_is_a_mistake(name: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "latin.conf").write_bytes(b'state_dir = "\xe4"')
    (tmp_path / "huge.conf").write_bytes(b"#" * (1024 * 1024 + 1))
    with pytest.raises(ConfigError, match=f"{name}: found .*{told}"):
        load(Path(name), {}, cwd=tmp_path)


def test_the_parser_is_left_as_it_was(tmp_path: Path) -> None:
    """Durations are read without pyhocon's own periods, also when a file is no HOCON."""
    from pyhocon import ConfigFactory  # type: ignore[import-untyped]  # noqa: PLC0415

    before = ConfigFactory.parse_string("a = 5 s")["a"]
    refused(tmp_path, "a = {")
    assert ConfigFactory.parse_string("a = 5 s")["a"] == before != "5 s"


PIECES = [
    *("sink", "log", ".", " = ", "{", "}", "[", "]", "\n", ",", '"', '"""', "${", "}", "#", "//"),
    *("files", "level", "5 ms", "+=", "include ", '"x.conf"', "\\", "\x00", "é", "@"),
]


@settings(derandomize=True, max_examples=20, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
def test_whatever_a_file_holds_nothing_but_a_config_error_comes_of_it(text: str) -> None:
    with TemporaryDirectory() as folder, suppress(ConfigError):
        assert isinstance(loaded(Path(folder), text).config, Config)
