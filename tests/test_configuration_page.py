"""The documentation of the configuration: the page names every setting, the example can be used as it is."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from hortator.routing import Catalogue
from hortator.settings import PRESETS, known_variables, load
from hortator.settings.changes import CHANGEABLE
from scripts import configuration_page

ROOT = Path(__file__).resolve().parents[1]
VARIABLES = (
    "OPENAI_API_KEY",
    "ANTHROPIC_API_KEY",
    "GROQ_API_KEY",
    "CLOUDFLARE_ACCOUNT_ID",
    "WORKERS_AI_TOKEN",
    "CF_AIG_TOKEN",
)


def test_the_page_is_what_the_settings_say() -> None:
    page = configuration_page.PAGE.read_text()
    assert configuration_page.rendered(page) == page, "run scripts/configuration_page.py"


def test_every_setting_is_documented_and_on_the_page() -> None:
    page = configuration_page.PAGE.read_text()
    docs = configuration_page.field_docs()
    for struct, title in configuration_page.sections():
        section = page.partition(f"### {title}\n")[2].partition("\n### ")[0]
        for field in msgspec.structs.fields(struct):
            assert docs[struct.__name__][field.name]
            assert f"| `{field.name}` |" in section


def test_every_preset_and_variable_is_on_the_page() -> None:
    page = configuration_page.PAGE.read_text()
    for preset, known in PRESETS.items():
        assert f"| `{preset}` | `{known.base_url}` |" in page
    for name in known_variables():
        assert f"`{name}`" in page


def test_the_example_loads_and_covers_presets_local_services_and_the_gateway_form() -> None:
    """R-002-1, R-002-2, R-004-2."""
    settings = load(ROOT / "hortator.example.yaml", dict.fromkeys(VARIABLES, "x"))
    assert {provider.preset for provider in settings.providers} >= {*PRESETS}
    services = {p.base_url: p.models for p in settings.providers if "//127.0.0.1:114" in p.base_url and not p.preset}
    assert services == {
        "http://127.0.0.1:11400/v1": ("Mixtral-8x7B",),
        "http://127.0.0.1:11401/v1": ("Hermes-2",),
        "http://127.0.0.1:11402/v1": ("OpenChat-3.5",),
        "http://127.0.0.1:11403/v1": ("Phi-3-Mini",),
    }
    catalogue = Catalogue(settings, {}, settings.local.name)
    for model in (
        "groq/openai/gpt-oss-20b",
        "default",
        "gpt-4o-mini",
        "phi/Phi-3-Mini",
        "edge/groq/llama-3.1-8b-instant",
    ):
        assert catalogue.resolve(model)


def test_what_the_example_sets_but_does_not_explain_are_the_defaults(tmp_path: Path) -> None:
    """A copy of the example changes nothing but providers and models."""
    environ = dict.fromkeys(VARIABLES, "x") | {"HORTATOR_HOME": str(tmp_path)}
    example = load(ROOT / "hortator.example.yaml", environ)
    empty = tmp_path / "empty.yaml"
    empty.touch()
    default = load(empty, {"HORTATOR_HOME": str(tmp_path)})
    for section in (
        "server",
        "store",
        "identity",
        "ledger",
        "stream",
        "timeouts",
        "retry",
        "breaker",
        "upstream",
        "local",
        "logging",
    ):
        assert getattr(example, section) == getattr(default, section)


def test_the_operators_page_names_what_takes_effect_without_a_restart() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    listed = page.partition("What takes effect:")[2].partition(". Everything")[0]
    assert set(re.findall(r"`([a-z_.]+)`", listed)) == CHANGEABLE
