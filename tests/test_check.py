"""What ``feedmono check`` shows: every value, where it came from, and no secret."""

from __future__ import annotations

import configparser
import importlib.util
import json
import shutil
from pathlib import Path

import pytest

from feedmono import exchanges, resources
from feedmono.commands import check
from feedmono.commands.check import Probe
from feedmono.config import ConfigError, load
from feedmono.config.keys import keys

SECRET = "geheim-5f3a"
REPOSITORY = Path(__file__).parent.parent


def write(folder: Path, text: str) -> Path:
    (folder / "x.conf").write_text(text, encoding="utf-8")
    return Path("x.conf")


# --- librdkafka's properties.


def test_properties_keep_their_names_however_they_are_written(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """kafka.properties {
          "sasl.mechanism" = PLAIN, sasl { username = bob }, security.protocol = SASL_SSL
          socket { keepalive.enable = true }
          "queue.buffering.max.messages" = 5000
        }
        kafka.properties.client.rack = x
        """,
    )
    result = load(path, {}, cwd=tmp_path)
    assert result.config.kafka.properties == {
        "sasl.mechanism": "PLAIN",
        "sasl.username": "bob",
        "security.protocol": "SASL_SSL",
        "socket.keepalive.enable": "true",
        "queue.buffering.max.messages": "5000",
        "client.rack": "x",
    }
    assert result.origins["kafka.properties.sasl.username"] == "file x.conf:2"
    assert result.origins["kafka.properties.socket.keepalive.enable"] == "file x.conf:3"


def test_a_secret_comes_from_a_variable_or_a_file(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(f"{SECRET}\n")
    path = write(
        tmp_path,
        """kafka.properties {
          "sasl.password" = ${PASSWORD}, "ssl.key.password" = { file = "secret" }
          "sasl.username" = ${?NOBODY}
        }""",
    )
    properties = load(path, {"PASSWORD": SECRET}, cwd=tmp_path).config.kafka.properties
    assert properties == {"sasl.password": SECRET, "ssl.key.password": SECRET}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('"sasl.password" = { file = "nope" }', "No such file"),
        ('"sasl.password" = { file = "." }', "Is a directory"),
        ('"sasl.password" = { file = "empty" }', "which is empty"),
        ('"sasl.password" = { file = "binary" }', "no UTF-8"),
        ('"sasl.password" = { file = "huge" }', "more than 64 KiB"),
        ('"sasl.password" = { file = "empty", x = 1 }', "found a block"),
        ('"sasl.password" = 0123', "text in quotation marks"),
        ('"sasl.password" = [1]', "text in quotation marks"),
        ('"broker.version.fallback" = 0.10', "a decimal number in quotation marks"),
        ('"client.id" = [a]', "found a list"),
        ("sasl.password = x\nsasl.password.x = y", "names in quotation marks"),
        ('"enable.idempotence" = false', "so it can't be changed"),
        ("acks = 1", "found a property that feedmono sets itself"),
        ('"message.timeout.ms" = 5000', "wait for the broker without end"),
        ('"delivery.timeout.ms" = 5000', "wait for the broker without end"),
        ('"bootstrap.servers" = "h:1"', "set kafka.bootstrap_servers"),
        ("transactional { id = x }", "kafka.properties.transactional.id"),
        ("linger.ms = 5", "set linger"),
    ],
)
def test_a_property_that_can_do_harm_is_refused(text: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    (tmp_path / "huge").write_bytes(b"x" * (64 * 1024 + 1))
    path = write(tmp_path, f"kafka.properties {{\n{text}\n}}")
    with pytest.raises(ConfigError) as error:
        load(path, {}, cwd=tmp_path)
    [mistake] = error.value.mistakes
    assert mistake.where.startswith(("x.conf:2: kafka.properties.", "x.conf:3: kafka.properties."))
    assert told in str(mistake)


# --- Secrets.


def test_secrets_are_masked_wherever_they_come_from(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(SECRET)
    names = (
        *("sasl.password", "ssl.key.password", "ssl.keystore.password", "ssl.key.pem"),
        *("sasl.oauthbearer.client.secret", "sasl.oauthbearer.config", "my.TOKEN"),
        *("sasl.jaas.config", "sasl.oauthbearer.assertion.private.key.passphrase"),
    )
    given = "\n".join(f'"{name}" = "{SECRET}"' for name in names)
    path = write(
        tmp_path,
        f"""kafka.schema_registry_url = "https://bob:{SECRET}@h:8081/apis"
        kafka.properties {{
          {given}
          "of.a.harmless.name" = {{ file = "secret" }}
          "some.url" = "http://bob:{SECRET}@h"
          "sasl.username" = "bob"
        }}""",
    )
    result = load(path, {}, cwd=tmp_path)
    for shown in (
        check.render(result, "table"),
        check.render(result, "json"),
        check.render_probes([Probe("r", False, f"no http://a:{SECRET}@h")], "table"),
        check.render_probes([Probe("r", False, f"no http://a:{SECRET}@h")], "json"),
        repr(result),
    ):
        assert SECRET not in shown
    plain = json.loads(check.render(result, "json"))
    assert plain["kafka.properties.sasl.password"]["value"] == "********"
    assert plain["kafka.properties.sasl.username"]["value"] == "bob"
    assert plain["kafka.schema_registry_url"]["value"] == "https://********@h:8081/apis"
    assert result.config.kafka.schema_registry_url == f"https://bob:{SECRET}@h:8081/apis"


@pytest.mark.parametrize(
    "text",
    [
        'kafka.schema_registry_url = "http://bob:S@"',
        'kafka.schema_registry_url = "ftp://bob:S@h"',
        'kafka.schema_registry_url = "bob:S@h:8081"',
        'kafka.schema_registry_url = "http://bob:a/S@h"',
        'kafka.schema_registry_url = "http://bob:a S@h"',
        'kafka.properties { "sasl.password" = ["S"] }',
        'kafka.properties { "sasl.password" { x = [S] } }',
        "kafka.properties { sasl.password = S@ }",
        'kafka.properties { sasl = S }\nkafka.properties { sasl.password = "S" }',
        'kafka.properties = "S"',
        'kafka.propertis { "sasl.password" = "S" }',
        'x = S\nx { "sasl.password" = S }',
        'x = [S] S\nx = "S" { y = S }',
    ],
)
def test_no_mistake_quotes_a_secret(text: str, tmp_path: Path) -> None:
    path = write(tmp_path, text.replace("S", SECRET))
    with pytest.raises(ConfigError) as error:
        load(path, {}, cwd=tmp_path)
    assert SECRET not in str(error.value)


# --- The page.


def test_the_table_shows_each_key_its_value_and_where_it_came_from(tmp_path: Path) -> None:
    path = write(tmp_path, "\nring_capacity = 1048576 B\nlinger = 1500 us")
    result = load(path, {"FEEDMONO_SINK": "kafka"}, {"window": "5"}, tmp_path, "flag --demo")
    rows = {line.split()[0]: line.split()[1:] for line in check.render(result, "table").split("\n")}
    assert rows["ring_capacity"] == ["1", "MiB", "file", "x.conf:2"]
    assert rows["linger"] == ["1500", "us", "file", "x.conf:3"]
    assert rows["sink"] == ["kafka", "variable", "FEEDMONO_SINK"]
    assert rows["window"] == ["5", "flag", "--demo"]
    assert rows["stop_limit"][-1] == "default"
    assert set(rows) == {"key", *keys(exchanges.names())}


def test_json_gives_values_with_their_units(tmp_path: Path) -> None:
    plain = json.loads(check.render(load(None, {}, cwd=tmp_path), "json"))
    assert set(plain) == set(keys(exchanges.names()))
    assert plain["ring_capacity"] == {"value": 64 * 2**20, "unit": "bytes", "origin": "default"}
    assert plain["linger"] == {"value": 0.02, "unit": "s", "origin": "default"}
    assert plain["state_dir"] == {"value": str(tmp_path / "var"), "origin": "default"}
    assert plain["kafka.properties"] == {"value": {}, "origin": "default"}
    [first, *_] = exchanges.names()
    assert isinstance(plain[f"exchanges.{first}.symbols"]["value"], list)
    assert plain[f"exchanges.{first}.enabled"]["value"] is True


def test_the_table_fits_80_columns_and_loses_nothing(tmp_path: Path) -> None:
    environ = {"FEEDMONO_KAFKA_BOOTSTRAP_SERVERS": ",".join(f"broker-{i}:9092" for i in range(20))}
    environ["FEEDMONO_STATE_DIR"] = "/[bold]/x"
    text = check.render(load(None, environ, cwd=tmp_path), "table", 80)
    assert max(map(len, text.split("\n"))) <= 80
    assert "/[bold]/x" in text
    head, *rows = text.split("\n")
    values = slice(head.index("value"), head.index("from"))
    assert environ["FEEDMONO_KAFKA_BOOTSTRAP_SERVERS"] in "".join(
        row[values].strip() for row in rows
    )


def test_a_pipe_gets_one_line_a_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    environ = {"FEEDMONO_KAFKA_BOOTSTRAP_SERVERS": ",".join(f"broker-{i}:9092" for i in range(20))}
    print(check.render(load(None, environ, cwd=tmp_path), "table"))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(keys(exchanges.names()))
    assert lines == [line.rstrip() for line in lines]


def test_probes_are_shown_in_both_styles() -> None:
    probes = [Probe("exchange a", True, "3 ms"), Probe("broker", False, "no answer from h:1")]
    assert [line.split() for line in check.render_probes(probes, "table").split("\n")[1:]] == [
        ["exchange", "a", "ok", "3", "ms"],
        ["broker", "failed", "no", "answer", "from", "h:1"],
    ]
    assert json.loads(check.render_probes(probes, "json")) == [
        {"name": "exchange a", "ok": True, "detail": "3 ms"},
        {"name": "broker", "ok": False, "detail": "no answer from h:1"},
    ]


# --- The files that are installed with the code.


@pytest.mark.parametrize("inside", [True, False], ids=["installed", "checkout"])
def test_resources_are_found_in_the_package_or_beside_it(inside: bool, tmp_path: Path) -> None:
    package = tmp_path / "feedmono"
    package.mkdir()
    shutil.copy(resources.__file__, package / "resources.py")
    folder = (package if inside else tmp_path) / "etc"
    folder.mkdir()
    (folder / "feedmono.conf").write_text("")
    spec = importlib.util.spec_from_file_location("copied", package / "resources.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.path("etc", "feedmono.conf") == folder / "feedmono.conf"
    with pytest.raises(FileNotFoundError, match=r"schemas/trade\.avsc is missing.*install"):
        module.path("schemas", "trade.avsc")


def test_the_package_takes_every_resource_of_the_checkout_along() -> None:
    setup = configparser.ConfigParser()
    setup.read(REPOSITORY / "setup.cfg")
    packages = dict(
        line.split(" = ") for line in setup["options"]["package_dir"].strip().splitlines()
    )
    for folder in ("etc", "schemas"):
        assert packages[f"feedmono.{folder}"] == folder
        assert f"feedmono.{folder}" in setup["options"]["packages"].split()
        patterns = setup["options.package_data"][f"feedmono.{folder}"].replace(",", " ").split()
        root = REPOSITORY / folder
        there = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
        taken = {str(path.relative_to(root)) for each in patterns for path in root.glob(each)}
        assert there == taken
        assert all(resources.path(folder, name).is_file() for name in there)
