"""The configuration: what it accepts, what it refuses and how it says so, and that secrets stay secret."""

from __future__ import annotations

import contextlib
import copy
import json
import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from hortator.errors import ConfigError
from hortator.settings import Provider, Secret, Settings, applicable, detected_providers, load
from hortator.settings.changes import CHANGEABLE
from hortator.settings.document import Document

Write = Callable[..., Settings]
CANARY = "sk-canary-1f0c9a7be2"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Load a text as a configuration file."""

    def loaded(text: str | bytes, environ: Mapping[str, str] | None = None) -> Settings:
        path = tmp_path / "a.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return load(path, environ or {})

    return loaded


def refused(loaded: Callable[[], Settings]) -> list[str]:
    """The problems that a configuration is refused for, without the folder."""
    with pytest.raises(ConfigError) as caught:
        loaded()
    assert CANARY not in str(caught.value)
    return [re.sub(r"[^ (]*/a\.yaml:", "", line) for line in caught.value.message.splitlines()]


def provider(settings: Settings, id: str) -> Provider:
    return next(p for p in settings.providers if p.id == id)


# --- defaults and places ---------------------------------------------------------------------------------------------


def test_nothing_configured_works_on_loopback_with_the_embedded_model(tmp_path: Path) -> None:
    settings = load(None, {"XDG_DATA_HOME": str(tmp_path)})
    assert (settings.server.host, settings.server.port, settings.server.max_body_bytes) == (
        "127.0.0.1",
        8000,
        20_000_000,
    )
    assert settings.local.enabled and settings.local.name == "qwen2.5-coder-0.5b"
    assert settings.store.url is None and settings.source is None
    assert settings.home == tmp_path / "hortator"
    assert [(p.id, p.detect, p.base_url) for p in settings.providers] == [("ollama", True, "http://127.0.0.1:11434/v1")]


def test_files_are_looked_for_in_the_documented_order(tmp_path: Path) -> None:
    files = {name: tmp_path / name / "hortator.yaml" for name in ("given", "named", "home")}
    for port, path in enumerate([*files.values(), tmp_path / "hortator.yaml"], 1):
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"server: {{port: {port}}}")
    environ = {"HORTATOR_CONFIG": str(files["named"]), "HORTATOR_HOME": str(tmp_path / "home")}
    assert load(files["given"], environ).server.port == 1
    assert load(None, environ).server.port == 2
    del environ["HORTATOR_CONFIG"]
    assert load(None, environ).server.port == 4
    (tmp_path / "hortator.yaml").unlink()
    settings = load(None, environ)
    assert settings.server.port == 3
    assert settings.source == files["home"]


def test_a_file_that_was_named_and_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path / "no.yaml", {})
    for name in ("HORTATOR_CONFIG", "HORTATOR_ENV_FILE"):
        with pytest.raises(ConfigError, match=f"^{name}: there is no file"):
            load(None, {name: str(tmp_path / "no")})


def test_variables_override_the_file_and_are_named(write: Write) -> None:
    environ = {
        "HORTATOR_PORT": "9001",
        "HORTATOR_TIMEOUTS__IDLE_MS": "7",
        "HORTATOR_LOCAL__ENABLED": "false",
        "HORTATOR_STORE_URL": "postgresql://h/db",
        "HORTATOR_LOG_LEVEL": "debug",
        "HORTATOR_ROOT_PATH": "",
        "HORTATOR_MODE": "x",
        "HORTATOR_TEST_POSTGRES_URL": "y",
        "HORTATOR_TEST__X": "z",
        "PATH": "/bin",
    }
    settings = write("server: {port: 1, host: 0.0.0.0, root_path: /a}\ntimeouts: {idle_ms: 5, total_ms: 6}", environ)
    assert (settings.server.port, settings.server.host, settings.server.root_path) == (9001, "0.0.0.0", "/a")
    assert (settings.timeouts.idle_ms, settings.timeouts.total_ms) == (7, 6)
    assert not settings.local.enabled
    assert settings.logging.level == "debug"
    assert settings.store.url is not None and settings.store.url.reveal() == "postgresql://h/db"
    assert settings.variables == (
        "HORTATOR_LOCAL__ENABLED",
        "HORTATOR_LOG_LEVEL",
        "HORTATOR_PORT",
        "HORTATOR_STORE_URL",
        "HORTATOR_TIMEOUTS__IDLE_MS",
    )
    assert settings.ignored_variables == ("HORTATOR_MODE",)


def test_a_variable_that_names_no_setting_is_an_error_that_names_it() -> None:
    environ = {
        "HORTATOR_SERVER__PROT": "1",
        "HORTATOR_SEVER__PORT": "1",
        "HORTATOR_PROVIDERS__ID": "1",
        "HORTATOR_SERVER__PORT": "x",
        "HORTATOR_LOCAL__QUEUE": "-1",
    }
    assert refused(lambda: load(None, environ)) == [
        "HORTATOR_PROVIDERS__ID: providers: cannot be set by a variable; set it in the file",
        "HORTATOR_SERVER__PROT: server.prot: unknown setting (did you mean `port`?)",
        "HORTATOR_SEVER__PORT: sever: unknown section (did you mean `server`?)",
        "HORTATOR_LOCAL__QUEUE: local.queue: expected a whole number from 0 to 10,000",
        "HORTATOR_SERVER__PORT: server.port: expected a whole number from 0 to 65,535",
    ]


def test_two_variables_for_one_setting_must_agree() -> None:
    assert refused(lambda: load(None, {"HORTATOR_PORT": "1", "HORTATOR_SERVER__PORT": "2"})) == [
        "HORTATOR_SERVER__PORT: server.port: HORTATOR_PORT says otherwise; set one of them"
    ]


def test_the_address_that_kubernetes_puts_into_our_port_variable_is_passed_over() -> None:
    settings = load(None, {"HORTATOR_PORT": "tcp://10.0.0.1:8000", "HORTATOR_SERVICE_HOST": "10.0.0.1"})
    assert settings.server.port == 8000
    assert settings.ignored_variables == ("HORTATOR_PORT", "HORTATOR_SERVICE_HOST")


def test_the_local_model_variable_takes_a_file_or_a_name(tmp_path: Path, write: Write) -> None:
    settings = load(None, {"HORTATOR_LOCAL_MODEL": "sub/My.gguf"})
    assert settings.local.file == tmp_path / "sub/My.gguf"
    assert settings.local.name == "my"
    settings = write("local: {file: other.gguf}", {"HORTATOR_LOCAL_MODEL": "smollm2-135m"})
    assert settings.local.file is None
    assert settings.local.name == "smollm2-135m"


def test_an_env_file_gives_variables_that_are_not_set(tmp_path: Path) -> None:
    """R-002-15: keys in a `.dev.vars` style file."""
    path = tmp_path / ".dev.vars"
    path.write_text(
        "# keys\n\nexport HORTATOR_ROOT_PATH=\"/a\" # c\nOPENAI_API_KEY = 'ok' # c\nHORTATOR_PORT=5 # c\nE=\nA=b#c\n"
    )
    settings = load(None, {"HORTATOR_PORT": "6"}, env_file=path)
    assert (settings.server.port, settings.server.root_path) == (6, "/a")
    key = provider(settings, "openai").api_key
    assert key is not None and key.reveal() == "ok"
    path.write_text(f"GROQ_API_KEY='{CANARY}\n{CANARY}\nA=1\nA=2\n")
    with pytest.raises(ConfigError) as caught:
        load(None, {"HORTATOR_ENV_FILE": str(path)})
    assert caught.value.message.splitlines() == [
        f"{path}:1: GROQ_API_KEY: the quote is not closed",
        f"{path}:2: expected NAME=VALUE",
        f"{path}:4: A: set twice in this file; keep one",
    ]


# --- the file --------------------------------------------------------------------------------------------------------


def test_every_problem_is_reported_at_once_with_its_line_and_key(write: Write) -> None:
    text = """\
server:
  prot: 9000
  port: 99999
server: {}
timeouts: {connect_ms: 5s, idle_ms: 0, total_ms: true}
providers:
  - id: a
    preset: groq
    api_key: ${NOPE}
  - id: a
    base_url: htp://x
  - preset: openai
  - {id: w, preset: workers-ai}
  - {id: o, preset: open-ai}
models:
  - id: smart
    deployments:
      - {provider: gorq, model: x}
      - {provider: a, model: x}
      - {provider: a, model: x}
  - {id: none, deployments: []}
local: {enabled: yes}
"""
    assert refused(lambda: write(text)) == [
        "4: server: given twice (first in line 1); keep one",
        "9: providers[0].api_key: the environment variable NOPE is not set; set it, or write ${NOPE:-default}",
        "2: server.prot: unknown setting (did you mean `port`?); known here: host, port, root_path, max_body_bytes, "
        "max_header_bytes, max_headers, max_connections, drain_seconds",
        "3: server.port: expected a whole number from 0 to 65,535",
        "5: timeouts.connect_ms: expected a whole number from 1 to 86,400,000",
        "5: timeouts.idle_ms: expected a whole number from 1 to 86,400,000",
        "5: timeouts.total_ms: expected a whole number from 1 to 86,400,000",
        "12: providers[2]: `id` is missing",
        "14: providers[4].preset: expected one of: openai, anthropic, groq, workers-ai, ollama, vllm, cloudflare-gateway",
        "21: models[1].deployments: expected at least 1 item",
        "22: local.enabled: expected true or false",
        "13: providers[3]: `account` is missing; give it, or set CLOUDFLARE_ACCOUNT_ID",
        "13: providers[3]: `api_key` is missing; give it, or set WORKERS_AI_TOKEN",
        "11: providers[1].base_url: expected an address such as https://api.example.com/v1",
        "10: providers[1].id: another provider has this id (7); ids are unique",
        "18: models[0].deployments[0].provider: there is no provider 'gorq'; define it first",
        "20: models[0].deployments[2]: this deployment is listed twice; keep one",
    ]


LOCAL_PLACE = "deployments: [{provider: local, model: qwen2.5-coder-0.5b}]"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: [", "not valid YAML"),
        ("a: b: c", "not valid YAML"),
        ("server: {}\n---\nserver: {}", "not valid YAML"),
        ("- 1", "expected settings such as"),
        ("just text", "expected settings such as"),
        (b"server: {host: \xff}", "not UTF-8"),
        (b"server: {host: \x07}", "control character"),
        ("[" * 50_000, "nested too deeply"),
        ("a: " + "[" * 40 + "]" * 40, "nested too deeply"),
        ("a: &a [*a]", "contains itself"),
        ("x" * 1_100_000, "larger than"),
        ("a: &a [" + "1," * 300 + "]\nb: &b [" + "*a," * 300 + "]\n", "once aliases are followed"),
        ("server: !!python/object/apply:os.system [true]", "tags are not supported"),
        ("server: {port: !!int '3'}", "tags are not supported"),
        ("? {a: b}\n: c", "a key must be plain text"),
        ("1: 2", "unknown setting"),
        ("server: 3", "expected a mapping"),
        ("server: {host: [a]}", "expected a single value"),
        ("server: {host: }", "a value is missing"),
        ("server: {host: 'a b'}", "expected an address or a host name"),
        ("server: {root_path: a/}", "expected a path such as"),
        ("server: {port: 1e3}", "expected a whole number"),
        ("providers: {id: a}", "expected a list"),
        ("providers: [a]", "expected a mapping"),
        ("providers: [{id: a, base_url: 'http://h', headers: [x]}]", "expected a mapping"),
        ("providers: [{id: a, base_url: 'http://h', api_key: 123}]", "put it in quotes"),
        ("providers: [{id: a, base_url: 'http://h', api_key: ''}]", "is empty"),
        ("providers: [{id: a, base_url: 'http://h', api_key: \"x\\ny\"}]", "cannot be sent"),
        ("providers: [{id: a, base_url: 'http://h', headers: {x: \"a\\r\\nb: c\"}}]", "not a header that can be sent"),
        ("providers: [{id: a, base_url: 'http://h', headers: {'x y': a}}]", "not a header that can be sent"),
        ("providers: [{id: a, base_url: 'http://h', headers: {Host: a}}]", "set by the gateway itself"),
        ("providers: [{id: a, base_url: 'http://h', headers: {x-a: a, X-A: b}}]", "given twice"),
        ("providers: [{id: a}]", "`base_url` is missing"),
        ("providers: [{id: A, base_url: 'http://h'}]", "expected small letters"),
        ("providers: [{id: a/b, base_url: 'http://h'}]", "expected small letters"),
        ("providers: [{id: local, base_url: 'http://h'}]", "the embedded model's"),
        ("providers: [{id: a, base_url: 'http://h', models: [x, x]}]", "listed twice"),
        ("providers: [{id: a, base_url: 'http://h', gateway: g}]", "no place in this provider's address"),
        ("providers: [{id: a, preset: cloudflare-gateway, account: a}]", "`gateway` is missing"),
        ("providers: [{id: a, preset: cloudflare-gateway, account: a/b, gateway: g}]", "expected letters, digits"),
        ("providers: [{id: a, base_url: 'http://localhost:8000/v1'}]", "is this server itself"),
        ("models: [{id: a b, deployments: [{provider: local, model: qwen2.5-coder-0.5b}]}]", "no blanks"),
        ("models: [{id: a, deployments: [{provider: local, model: x}]}]", "the embedded model is"),
        (f"models: [{{id: a, strategy: best, {LOCAL_PLACE}}}]", "expected one of: ordered, least-in-flight"),
        (f"models: [{{id: a, fallbacks: [a], {LOCAL_PLACE}}}]", "not its own fallback"),
        (f"models: [{{id: a, fallbacks: [aa], {LOCAL_PLACE}}}]", "there is no model 'aa' (did you mean `a`?)"),
        (f"models: [{{id: a, context_fallbacks: [local/x], {LOCAL_PLACE}}}]", "there is no model 'local/x'"),
        (f"models: [{{id: a, content_fallbacks: [b, b], {LOCAL_PLACE}}}, {{id: b, {LOCAL_PLACE}}}]", "listed twice"),
        (
            "models: [{id: a, strategy: weighted, deployments: [{provider: local, model: qwen2.5-coder-0.5b, weight: 0}]}]",
            "every `weight` is 0",
        ),
        ("models: [{id: a, deployments: [{provider: local, model: x, weight: -1}]}]", "from 0 to 1,000,000"),
        ("breaker: {failures: -1}", "from 0 to 1,000,000"),
        ("retry: {ratio: 2}", "expected a number from 0 to 1"),
        ("ledger: {price_overrides: no.yaml}", "there is no file"),
        ("upstream: {ca_file: no.pem}", "there is no file"),
        ("upstream: {proxy_url: 'socks5://u:p@h'}", "expected an address"),
        ("store: {url: mysql://h/x}", "expected postgresql://"),
        ("server: {host: '${A'}", "a `${` without its end"),
        ("server: {host: '${A-b}'}", "a `${` without its end"),
        ("<<: 3", "expected a mapping, or a list of mappings"),
    ],
)
def test_what_is_wrong_is_refused(write: Write, text: str | bytes, problem: str) -> None:
    assert any(problem in line for line in refused(lambda: write(text)))


@pytest.mark.parametrize(
    "url",
    ["ftp://h/v1", "h/v1", "http://", "http://h:99999/v1", "http://h:0/v1", "http://[::1/v1", "http://h/v1?key=x", "http://h/#x",
     "http://user:pw@h/v1", "http://h h/v1", "http://h\u00e4/v1", "https:///v1"],
)  # fmt: skip
def test_an_address_that_cannot_be_one_is_refused_without_being_quoted(write: Write, url: str) -> None:
    problems = refused(lambda: write(f"providers:\n  - id: a\n    base_url: {json.dumps(url)}"))
    assert [line.partition(" ")[0] for line in problems] == ["3:"]
    assert url not in problems[0]


def test_a_problem_in_an_interpolated_value_does_not_show_the_value(write: Write) -> None:
    environ = {"S": CANARY}
    for field in (
        "server: {port: '${S}'}",
        "logging: {level: '${S}'}",
        "store: {url: '${S}'}",
        "local: {enabled: '${S}'}",
    ):
        assert len(refused(lambda field=field: write(field, environ))) == 1  # type: ignore[misc]


def test_references_are_filled_in_and_converted(write: Write) -> None:
    text = """\
server: {port: "${P}", host: "${NO:-0.0.0.0}", root_path: "/${A}-$${A}"}
store: {url: "${EMPTY:-}"}
local: {threads: "${NO:-}", enabled: "${OFF}"}
timeouts: {total_ms: "${NO:-20}"}
"""
    with pytest.raises(ConfigError, match="expected a path such as"):
        write(text, {"P": "9", "A": "a", "EMPTY": "", "OFF": "false"})
    settings = write(
        text.replace("-$$", "-b").replace('{A}"}', '"}'), {"P": "9", "A": "a", "EMPTY": "", "OFF": "false"}
    )
    assert (settings.server.port, settings.server.host, settings.server.root_path) == (9, "0.0.0.0", "/a-b")
    assert (settings.store.url, settings.local.threads, settings.local.enabled) == (None, None, False)
    assert settings.timeouts.total_ms == 20
    assert settings.variables == ("A", "OFF", "P")


def test_anchors_merge_keys_underscores_and_empty_sections_work(write: Write) -> None:
    text = """\
timeouts:
stream: # all of it commented out
providers:
  - &one {id: one, base_url: "http://h:1/v1/", models: [a], timeouts: {connect_ms: 1_000}}
  - {<<: *one, id: two}
models:
"""
    settings = write("\ufeff" + text)
    assert settings.stream.status_wait_ms == 2000 and settings.models == ()
    assert [(p.id, p.base_url, p.models) for p in settings.providers[:2]] == [
        ("one", "http://h:1/v1", ("a",)),
        ("two", "http://h:1/v1", ("a",)),
    ]


def test_a_variable_does_not_leak_into_what_an_alias_shares(write: Write) -> None:
    text = "providers:\n  - {id: a, base_url: 'http://h/v1', timeouts: &t {idle_ms: 5}}\ntimeouts: *t\n"
    settings = write(text, {"HORTATOR_TIMEOUTS__IDLE_MS": "9"})
    assert (settings.timeouts.idle_ms, provider(settings, "a").timeouts.idle_ms) == (9, 5)


def test_a_providers_timeouts_fall_back_to_the_general_ones(write: Write) -> None:
    text = (
        "timeouts: {idle_ms: 5, total_ms: 6}\nproviders: [{id: a, base_url: 'http://h/v1', timeouts: {idle_ms: 60000}}]"
    )
    settings = write(text, {"GROQ_API_KEY": "x"})
    assert (provider(settings, "a").timeouts.idle_ms, provider(settings, "a").timeouts.total_ms) == (60_000, 6)
    assert provider(settings, "groq").timeouts == settings.timeouts


def test_paths_are_relative_to_the_file_that_names_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "etc"
    folder.mkdir()
    (folder / "prices.yaml").touch()
    (folder / "a.yaml").write_text("ledger: {price_overrides: prices.yaml}\nlocal: {file: m.gguf}")
    settings = load(Path("etc/a.yaml"), {})
    assert settings.ledger.price_overrides == folder / "prices.yaml"
    assert settings.local.file == folder / "m.gguf"


# --- providers -------------------------------------------------------------------------------------------------------


def test_keys_in_the_environment_become_providers() -> None:
    environ = {
        "OPENAI_API_KEY": "a",
        "ANTHROPIC_API_KEY": "e",
        "GROQ_API_KEY": "b",
        "CLOUDFLARE_ACCOUNT_ID": "c",
        "WORKERS_AI_TOKEN": "d",
    }
    settings = load(None, environ)
    assert [(p.id, p.base_url, p.api_key and p.api_key.reveal()) for p in settings.providers] == [
        ("openai", "https://api.openai.com/v1", "a"),
        ("anthropic", "https://api.anthropic.com/v1", "e"),
        ("groq", "https://api.groq.com/openai/v1", "b"),
        ("workers-ai", "https://api.cloudflare.com/client/v4/accounts/c/ai/v1", "d"),
        ("ollama", "http://127.0.0.1:11434/v1", None),
    ]
    assert settings.variables == tuple(sorted(environ))
    assert [p.id for p in detected_providers({"WORKERS_AI_TOKEN": "d"})] == ["ollama"]


def test_a_preset_has_its_kind_unless_the_file_names_one(write: Write) -> None:
    settings = write(
        "providers: [{id: a, preset: anthropic}, {id: b, preset: anthropic, kind: openai}, {id: c, preset: openai}]",
        {"ANTHROPIC_API_KEY": "x", "OPENAI_API_KEY": "y"},
    )
    assert [provider.kind for provider in settings.providers[:3]] == ["anthropic", "openai", "openai"]
    assert [p.kind for p in detected_providers({"ANTHROPIC_API_KEY": "x"})] == ["anthropic", "openai"]


def test_our_own_key_is_not_taken_for_openais(write: Write) -> None:
    environ = {"OPENAI_API_KEY": "hrt_sk_x"}
    settings = load(None, environ)
    assert [p.id for p in settings.providers] == ["ollama"]
    assert settings.variables == ()
    assert refused(lambda: write("providers: [{id: o, preset: openai}]", environ)) == [
        "1: providers[0]: `api_key` is missing; give it, or set OPENAI_API_KEY"
    ]


def test_a_provider_of_the_file_takes_the_place_of_a_detected_one(write: Write) -> None:
    text = (
        "providers: [{id: openai, base_url: 'http://127.0.0.1:9/v1'}, {id: ollama, base_url: 'http://127.0.0.1:8/v1'}]"
    )
    settings = write(text, {"OPENAI_API_KEY": "a"})
    assert [(p.id, p.api_key, p.detect) for p in settings.providers] == [
        ("openai", None, False),
        ("ollama", None, False),
    ]
    assert write("detect_providers: false", {"OPENAI_API_KEY": "a"}).providers == ()


def test_a_key_of_the_environment_goes_to_the_presets_own_address_only(write: Write) -> None:
    text = "providers: [{id: a, preset: openai}, {id: b, preset: openai, base_url: 'http://h/v1'}]"
    settings = write(text, {"OPENAI_API_KEY": "a"})
    assert provider(settings, "a").api_key == Secret("a")
    assert provider(settings, "b").api_key is None


def test_the_cloudflare_gateway_form_has_its_address_and_header(write: Write) -> None:
    """R-002-1: .../v1/{account}/{gateway}/compat, to which adapters add /chat/completions."""
    text = (
        "providers: [{id: cf, preset: cloudflare-gateway, gateway: g, headers: {cf-aig-authorization: 'Bearer ${T}'}}]"
    )
    found = provider(write(text, {"CLOUDFLARE_ACCOUNT_ID": "acc", "T": "t"}), "cf")
    assert found.base_url == "https://gateway.ai.cloudflare.com/v1/acc/g/compat"
    assert found.headers["cf-aig-authorization"].reveal() == "Bearer t"


# --- secrets and strictness ------------------------------------------------------------------------------------------


def test_no_secret_is_in_anything_printed_of_the_settings(write: Write) -> None:
    text = """\
store: {url: "postgresql://u:${S}@h/db"}
upstream: {proxy_url: "http://u:${S}@h:1"}
providers: [{id: a, base_url: "http://h/v1", api_key: "${S}", headers: {x: "${S}"}}]
"""
    settings = write(text, {"S": CANARY, "OPENAI_API_KEY": CANARY})
    for printed in (repr(settings), str(settings), f"{settings}", f"{provider(settings, 'a').api_key:>10}"):
        assert CANARY not in printed
    secret = provider(settings, "a").api_key
    assert secret is not None and secret.reveal() == CANARY


def test_a_secret_leaves_only_through_reveal() -> None:
    secret = Secret(CANARY)
    assert {str(secret), repr(secret), f"{secret}", f"{secret!r}"} == {"***"}
    assert f"{secret:>4}" == " ***"
    assert msgspec.json.encode({"a": secret}, enc_hook=str) == b'{"a":"***"}'
    for attempt in (lambda: pickle.dumps(secret), lambda: json.dumps(secret), lambda: msgspec.json.encode(secret)):
        with pytest.raises(TypeError) as caught:
            attempt()
        assert CANARY not in str(caught.value)
    assert not hasattr(secret, "__dict__")
    assert secret == Secret(CANARY) and secret != Secret("x") and secret != CANARY
    assert hash(secret) == hash(Secret(CANARY))
    assert copy.deepcopy(secret) is secret and copy.copy(secret) is secret


def test_the_settings_are_frozen(write: Write) -> None:
    settings = write("providers: [{id: a, base_url: 'http://h/v1', headers: {x: y}}]")
    with pytest.raises(AttributeError):
        settings.server.port = 1  # type: ignore[misc]
    with pytest.raises(TypeError):
        provider(settings, "a").headers["x"] = Secret("z")  # type: ignore[index]


@examples(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(st.binary(max_size=200), st.text("server:{}[]&*!<->$#'\"\n portx1,", max_size=80).map(str.encode)))
def test_any_file_gives_settings_or_a_configuration_error(write: Write, raw: bytes) -> None:
    with contextlib.suppress(ConfigError):
        assert isinstance(write(raw), Settings)


def test_every_setting_that_may_change_while_the_server_runs_exists() -> None:
    sections = {field.name: field.type for field in msgspec.structs.fields(Document)}
    for name in CHANGEABLE:
        section, _, setting = name.partition(".")
        assert not setting or setting in {field.name for field in msgspec.structs.fields(sections[section])}, name
        assert section in sections


def test_what_cannot_change_keeps_its_value_and_is_named(write: Write) -> None:
    running = write("server: {port: 1}\nlogging: {level: info}\ndetect_providers: false\nlocal: {enabled: true}\n")
    wanted = write(
        "server: {port: 2, max_body_bytes: 5000}\nlogging: {level: error, format: json}\nretry: {ratio: 0}\n"
    )
    settings, waiting = applicable(running, wanted)
    assert waiting == ("server.port", "logging.format")
    assert (settings.server.port, settings.server.max_body_bytes) == (1, 5000)
    assert (settings.logging.level, settings.logging.format) == ("error", "text")
    assert settings.retry.ratio == 0
    assert applicable(settings, wanted)[1] == waiting, "it stays named until a restart"
    assert applicable(settings, running)[1] == ()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("files: {s3: {bucket: b, endpoint: minio}}", "endpoint"),
        ("files: {s3: {bucket: b, access_key_id: a}}", "access_key_id"),
        ("files: {max_bytes: 1}", "max_bytes"),
        ("batches: {lease_seconds: 0}", "lease_seconds"),
    ],
)
def test_a_bad_setting_of_files_and_batches_is_named(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "hortator.yaml").write_text(text)
    with pytest.raises(ConfigError, match=problem):
        load(tmp_path / "hortator.yaml", {})
