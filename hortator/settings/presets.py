"""What is known of common providers, so that a key in the environment or one word in the file is enough.

`load` completes the file's providers with it and adds those that the environment announces. Nothing here connects anywhere:
whether an Ollama answers is found out at start-up by the composition root.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from hortator.settings.document import DeploymentChoice, NamedModel, Provider, Timeouts
from hortator.settings.secret import Secret
from hortator.settings.tree import Node, Problems, Variables

OWN_KEY_PREFIX = "hrt_"
ACCOUNT_VARIABLE = "CLOUDFLARE_ACCOUNT_ID"
_CREDENTIALS = ("authorization", "x-api-key")


class Preset(Struct, frozen=True):
    """One kind of provider: its address, with `{account}` and `{gateway}` to be filled in, and the variable of its key."""

    base_url: str
    key_variable: str | None = None
    kind: Literal["openai", "anthropic"] = "openai"


PRESETS: Mapping[str, Preset] = {
    "openai": Preset("https://api.openai.com/v1", "OPENAI_API_KEY"),
    "anthropic": Preset("https://api.anthropic.com/v1", "ANTHROPIC_API_KEY", "anthropic"),
    "groq": Preset("https://api.groq.com/openai/v1", "GROQ_API_KEY"),
    "workers-ai": Preset("https://api.cloudflare.com/client/v4/accounts/{account}/ai/v1", "WORKERS_AI_TOKEN"),
    "ollama": Preset("http://127.0.0.1:11434/v1"),
    "vllm": Preset("http://127.0.0.1:8001/v1"),
    "cloudflare-gateway": Preset("https://gateway.ai.cloudflare.com/v1/{account}/{gateway}/compat"),
}


LOCAL_SERVICES = "local-services"
_SERVICES = (("mixtral", "Mixtral-8x7B"), ("hermes", "Hermes-2"), ("openchat", "OpenChat-3.5"), ("phi", "Phi-3-Mini"))
_FIRST_PORT = 11400
_CONNECT_MS = 500


def local_services(timeouts: Timeouts) -> tuple[tuple[Provider, ...], NamedModel]:
    """Return four model services on this machine, in the order of R-004-2 from port 11400 on, and the model that is any of them."""
    nearby = replace(timeouts, connect_ms=min(_CONNECT_MS, timeouts.connect_ms))
    providers = tuple(
        Provider(id=id, base_url=f"http://127.0.0.1:{port}/v1", models=(name,), timeouts=nearby, tier="local")
        for port, (id, name) in enumerate(_SERVICES, _FIRST_PORT)
    )
    places = tuple(DeploymentChoice(provider=id, model=name) for id, name in _SERVICES)
    return providers, NamedModel(
        id=LOCAL_SERVICES, deployments=places, description="Any model service of this machine."
    )


def detected_providers(environ: Mapping[str, str]) -> tuple[Provider, ...]:
    """Return the providers that the environment announces, then an Ollama to be served if it answers (`detect`).

    A variable such as OPENAI_API_KEY that holds one of our own keys is left alone: it is a client's. Workers AI needs its account too.
    """
    variables = environ if isinstance(environ, Variables) else Variables(environ)
    found = []
    names: tuple[Literal["openai", "anthropic", "groq", "workers-ai"], ...] = (
        "openai",
        "anthropic",
        "groq",
        "workers-ai",
    )
    for name in names:
        account = variables.get(ACCOUNT_VARIABLE)
        if name == "workers-ai" and not account:
            continue
        key = environment_key(name, variables)
        if key is not None:
            provider = Provider(id=name, kind=PRESETS[name].kind, preset=name, api_key=key)
            if name == "workers-ai":
                provider = replace(provider, account=variables.use(ACCOUNT_VARIABLE))
            found.append(replace(provider, base_url=PRESETS[name].base_url.format(account=account)))
    found.append(Provider(id="ollama", preset="ollama", base_url=PRESETS["ollama"].base_url, detect=True))
    return tuple(found)


def environment_key(preset: str, variables: Variables) -> Secret | None:
    """Return the key that the environment holds for a preset; None = none, or one of our own."""
    name = PRESETS[preset].key_variable
    if name is None or variables.get(name, "").startswith(OWN_KEY_PREFIX):
        return None
    value = variables.use(name).strip()
    return Secret(value) if value else None


def complete(provider: Provider, node: Node, key: str, variables: Variables, problems: Problems) -> Provider:
    """Return a provider of the file with what its preset knows. A key of the environment goes to the preset's own address only."""
    preset = None if provider.preset is None else PRESETS[provider.preset]
    provider = _of_its_kind(provider, node, preset)
    address = "" if preset is None or provider.base_url else preset.base_url
    for field in ("account", "gateway"):
        if node.child(field) is not None and f"{{{field}}}" not in address:
            problems.add(node.at(field).where, f"{key}.{field}", "has no place in this provider's address; remove it")
    if provider.base_url or node.child("base_url") is not None:
        return provider
    if preset is None:
        if node.child("preset") is None:
            problems.add(node.where, key, f"`base_url` is missing; give it, or a preset: {', '.join(PRESETS)}")
        return provider
    account = provider.account or ("{account}" in address and variables.use(ACCOUNT_VARIABLE)) or ""
    if "{account}" in address and not account and node.child("account") is None:
        problems.add(node.where, key, f"`account` is missing; give it, or set {ACCOUNT_VARIABLE}")
    if "{gateway}" in address and not provider.gateway and node.child("gateway") is None:
        problems.add(node.where, key, "`gateway` is missing; give the name of the Cloudflare AI Gateway")
    for field, value in (("account", account), ("gateway", provider.gateway or "")):
        if not all(character.isalnum() or character in "-_" for character in value):
            problems.add(node.at(field).where, f"{key}.{field}", "expected letters, digits, `-` and `_` only")
    api_key = provider.api_key
    if api_key is None and node.child("api_key") is None and preset.key_variable is not None:
        api_key = environment_key(provider.preset or "", variables)
        if api_key is None and not any(name.lower() in _CREDENTIALS for name in provider.headers):
            problems.add(node.where, key, f"`api_key` is missing; give it, or set {preset.key_variable}")
    base_url = address.format(account=account, gateway=provider.gateway)
    return replace(provider, base_url=base_url, account=account or None, api_key=api_key)


def _of_its_kind(provider: Provider, node: Node, preset: Preset | None) -> Provider:
    """Return a provider with its preset's kind, unless the file names one."""
    return provider if preset is None or node.child("kind") is not None else replace(provider, kind=preset.kind)
