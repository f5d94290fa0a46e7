"""Finds, reads and checks the configuration: one call, at start-up and at each change, that returns `Settings` or says everything that is wrong.

The command line calls `load` with a file and the environment. Precedence, highest first: HORTATOR_ variables, the file, the
defaults. The environment is an argument and nothing is written, so that two loads never influence each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec
import platformdirs
from msgspec.structs import replace

from hortator.errors import ConfigError
from hortator.settings.build import MISSING, Builder, closest, hints
from hortator.settings.document import Document, Provider, Settings
from hortator.settings.presets import complete, detected_providers, local_services
from hortator.settings.rules import Rules
from hortator.settings.tree import Node, Problems, Variables, read_env_file, read_tree

FILE_NAME = "hortator.yaml"
PREFIX = "HORTATOR_"
SHORT = {
    "HORTATOR_HOST": ("server", "host"),
    "HORTATOR_PORT": ("server", "port"),
    "HORTATOR_ROOT_PATH": ("server", "root_path"),
    "HORTATOR_STORE_URL": ("store", "url"),
    "HORTATOR_LOG_LEVEL": ("logging", "level"),
    "HORTATOR_DETECT_PROVIDERS": ("detect_providers",),
}
"""Variables with a short name, and the setting each stands for."""
_CLIENT = frozenset({"HORTATOR_API_KEY", "HORTATOR_BASE_URL"})
"""Read by the SDK and the commands that are clients; no setting of the server's."""
_OTHER = frozenset({"HORTATOR_HOME", "HORTATOR_CONFIG", "HORTATOR_ENV_FILE", "HORTATOR_LOCAL_MODEL"})
_TESTS = "HORTATOR_TEST_"


def load(path: Path | None, environ: Mapping[str, str], *, env_file: Path | None = None) -> Settings:
    """Return the configuration. Raises ConfigError with one line for each problem, `file:line: key: what to do`.

    `path`: the file; None = HORTATOR_CONFIG, else `hortator.yaml` in the current folder, else in the home folder, else none.
    `env_file`: a file of NAME=VALUE lines for variables that `environ` does not set; None = HORTATOR_ENV_FILE, else none.
    """
    problems = Problems()
    env_file = env_file or _path_of(environ, "HORTATOR_ENV_FILE")
    variables = Variables(environ if env_file is None else read_env_file(env_file) | dict(environ))
    home = home_folder(variables)
    source = path or _path_of(variables, "HORTATOR_CONFIG") or _existing(Path(FILE_NAME), home / FILE_NAME)
    root = Node({}, "") if source is None else read_tree(source, variables, problems)
    _overlay(root, variables, problems)

    builder = Builder(Path.cwd() if source is None else source.absolute().parent, problems)
    document = builder.build(Document, root, "")
    if document is MISSING:
        document = Document()
    document = _with_providers(document, root, builder, variables, problems)
    Rules(document, root, builder, problems).check()
    problems.raise_any()

    for name in ("HORTATOR_HOME", "HORTATOR_CONFIG", "HORTATOR_ENV_FILE"):
        variables.use(name)
    return Settings(
        **{field: getattr(document, field) for field in document.__struct_fields__},
        home=home,
        source=source,
        env_file=env_file,
        variables=tuple(sorted(variables.used)),
        ignored_variables=tuple(sorted(name for name in variables if _ignored(name, variables))),
    )


def home_folder(environ: Mapping[str, str]) -> Path:
    """Return the folder for data: HORTATOR_HOME, else `hortator` in the user's data folder. It need not exist."""
    if environ.get("HORTATOR_HOME"):
        return Path(environ["HORTATOR_HOME"]).expanduser().absolute()
    if environ.get("XDG_DATA_HOME"):
        return Path(environ["XDG_DATA_HOME"], "hortator").absolute()
    return platformdirs.user_data_path("hortator", appauthor=False)


def known_variables() -> tuple[str, ...]:
    """Return the HORTATOR_ variables that mean something, without the general form."""
    return tuple(sorted({*SHORT, *_OTHER}))


def _path_of(environ: Mapping[str, str], name: str) -> Path | None:
    value = environ.get(name)
    if not value:
        return None
    path = Path(value).expanduser()
    if not path.is_file():
        raise ConfigError(f"{name}: there is no file {path}")
    return path


def _existing(*paths: Path) -> Path | None:
    return next((path for path in paths if path.is_file()), None)


def _ignored(name: str, variables: Variables) -> bool:
    if not name.startswith(PREFIX) or name.startswith(_TESTS) or name in _CLIENT:
        return False
    return name not in variables.used and bool(variables[name])


def _overlay(root: Node, variables: Variables, problems: Problems) -> None:
    """Lay the HORTATOR_ variables over the file. Empty ones count as not set."""
    given: dict[tuple[str, ...], str] = {}
    for name in sorted(variables):
        if not name.startswith(PREFIX) or name.startswith(_TESTS) or not variables[name]:
            continue
        place = SHORT.get(name)
        if place is None and "__" in name:
            place = _place(name, problems)
        if place is None or variables[name].startswith("tcp://"):
            continue  # Kubernetes sets HORTATOR_PORT=tcp://... beside a service called hortator
        if place in given and variables[name] != variables[given[place]]:
            problems.add(name, ".".join(place), f"{given[place]} says otherwise; set one of them")
        given[place] = name
        _set(root, place, Node(variables.use(name), name, from_variable=True))
    model = variables.use("HORTATOR_LOCAL_MODEL")
    if model:
        is_file = "/" in model or model.endswith(".gguf")
        _set(root, ("local", "file"), Node(model if is_file else None, "HORTATOR_LOCAL_MODEL", from_variable=True))
        if not is_file:
            _set(root, ("local", "model"), Node(model, "HORTATOR_LOCAL_MODEL", from_variable=True))


def _place(name: str, problems: Problems) -> tuple[str, ...] | None:
    """Return the setting that HORTATOR_<SECTION>__<FIELD> stands for; None after noting that there is none."""
    section, _, field = name.removeprefix(PREFIX).lower().partition("__")
    kind = hints(Document).get(section)
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        if field in hints(kind):
            return (section, field)
        problems.add(name, f"{section}.{field}", f"unknown setting{closest(field, hints(kind))}")
    elif kind is not None:
        problems.add(name, section, "cannot be set by a variable; set it in the file")
    else:
        problems.add(name, section, f"unknown section{closest(section, hints(Document))}")
    return None


def _set(node: Node, place: Iterable[str], value: Node) -> None:
    """Put a value into the tree. What is on the way is copied, as an alias may share it."""
    first, *rest = place
    content = dict(node.content) if isinstance(node.content, dict) else {}
    if rest:
        below = content.get(first)
        below = Node({}, value.where) if below is None else Node(below.content, below.where)
        _set(below, rest, value)
        value = below
    content[first] = value
    node.content = content


def _with_providers(
    document: Document, root: Node, builder: Builder, variables: Variables, problems: Problems
) -> Document:
    """Return the document with its providers completed by their presets, and those of the environment added."""
    providers: list[Provider] = []
    for provider in document.providers:
        node, key = builder.place(provider)
        done = complete(provider, node, key, variables, problems)
        own = node.child("timeouts")
        timeouts = document.timeouts
        if own is not None and isinstance(own.content, dict):
            changed = {field: getattr(done.timeouts, field) for field in own.content if field in hints(type(timeouts))}
            timeouts = replace(timeouts, **changed)
        done = replace(done, timeouts=timeouts, base_url=done.base_url.rstrip("/"))
        builder.placed(done, node, key)
        providers.append(done)
    if document.detect_providers:
        taken = {provider.id for provider in providers}
        found = (provider for provider in detected_providers(variables) if provider.id not in taken)
        providers += [replace(provider, timeouts=document.timeouts) for provider in found]
    models = document.models
    if document.local_services:
        taken = {provider.id for provider in providers}
        services, together = local_services(document.timeouts)
        providers += [provider for provider in services if provider.id not in taken]
        if not taken & {provider.id for provider in services} and together.id not in {model.id for model in models}:
            models = (*models, together)
    return replace(document, providers=tuple(providers), models=models)
