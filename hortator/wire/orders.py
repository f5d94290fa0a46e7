"""Orders for agents: what a client sends to have something worked on, checked, in all the spellings it may have.

The doors of tasks and orchestrations and the socket parse with it. The field names are the specification's (R-000-15, R-000-16, R-000-57) and
Harpoon's (R-002-4 to R-002-7); domain parameters are passed on unread, their domain checks them. No I/O, and nothing is decided.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec import Meta, Struct

from hortator.errors import InvalidRequest
from hortator.wire import tasks
from hortator.wire.body import Object, parse_as
from hortator.wire.chat import Message
from hortator.wire.tasks import MAX_TASKS, Budget, Capability, Name, Pattern, TaskConfig, Tier
from hortator.wire.webhooks import checked

PREFIX = "hortator/"
MAX_PATH = 400
"""Longest path of a file, in characters."""
MAX_DEPTH = 64
"""Most levels that a value is nested; it is kept in databases, which have bounds of their own."""
MAX_REQUESTS = MAX_TASKS - 1
"""Most requests of the pattern `parallel`: each is a task of the tree, and its root is one too."""
TEXTS = ("query", "prompt", "description", "task")
"""Fields that say what is to be done; one of them, or `messages`."""
TEXT_PARTS = ("text", "input_text", "output_text", "refusal")
"""Types of the parts of a message that agents are told."""
TEXT_TYPE, BINARY_TYPE = "text/plain; charset=utf-8", "application/octet-stream"

_TYPE = r"^[A-Za-z0-9][A-Za-z0-9_.\-]{0,99}$"
_ROLE = r"^(hortator/)?[A-Za-z0-9][A-Za-z0-9_.\-]{0,89}$"
_UNFIT = re.compile(r"[\x00-\x1f\x7f\\]")
_URL = re.compile(r"https?://[^\s/?#]+[^\s#]*", re.IGNORECASE | re.ASCII)

Text = Annotated[str, Meta(min_length=1)]


class InputFile(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file for the agents. One of `data` and `content`."""

    filename: Text
    """A path such as `src/app.py`; agents find it below `inbox/`."""
    data: Annotated[str, Meta(description="base64")] | None = None
    content: Annotated[str, Meta(description="text")] | None = None


class PatternPreferences(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """Bounds on the model that may answer (R-002-7)."""

    max_cost: Annotated[float, Meta(ge=0, description="US dollars")] | None = None
    max_latency: Annotated[float, Meta(ge=0, description="milliseconds")] | None = None
    min_quality: Annotated[float, Meta(ge=0, le=10)] | None = None


class TaskOrder(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of `POST /api/v1/tasks`. What is to be done is said in one of query, prompt, description, task and messages; besides it, or
    instead where the type of the task says it all, there are repository and files.
    """

    query: Text | None = None
    prompt: Text | None = None
    description: Text | None = None
    task: Text | None = None
    messages: Annotated[list[Message], Meta(min_length=1)] | None = None
    """Chat messages."""
    type: Annotated[str, Meta(pattern=_TYPE)] | None = None
    task_type: Annotated[str, Meta(pattern=_TYPE)] | None = None
    """The same as `type`: `code_review`, `document_review`, `literature_review`, `architecture_review`, or a name of one's own."""
    model: Annotated[str, Meta(pattern=r"^hortator/[A-Za-z0-9][A-Za-z0-9_.\-]{0,89}$")] | None = None
    """`hortator/<role>`. The model that agents ask is `config.model`."""
    role: Annotated[str, Meta(pattern=_ROLE)] | None = None
    """The same without `hortator/`."""
    config: dict[str, Any] | None = None
    """A TaskConfig; what else is in it is a parameter of the domain."""
    hortator_config: dict[str, Any] | None = None
    """The domain's parameters (R-000-46)."""
    timeout: str | int | None = None
    """These four may also be in `config`."""
    budget: Budget | None = None
    tier: Tier | None = None
    capabilities: tuple[Capability, ...] | None = None
    files: list[InputFile] | None = None
    repository: Text | None = None
    """Where the code is; text for the agents."""
    callback_url: str | None = None
    callback_events: list[str] | None = None
    """Types of events or kinds of calls to send there, `*` for all; progress and ends where it is not said."""


class PatternRequest(Struct, frozen=True, kw_only=True):
    """One request of the pattern `parallel`: one of `messages` and `prompt`. Fields that are not known are passed over, as Harpoon does."""

    messages: Annotated[list[Message], Meta(min_length=1)] | None = None
    prompt: Text | None = None
    model: Name | None = None


class OrchestrationOrder(TaskOrder, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of `POST /api/v1/orchestrations`: a task's, with a pattern and what it needs, in Harpoon's names."""

    pattern: Pattern = "team"
    requests: Annotated[list[PatternRequest], Meta(min_length=1, max_length=MAX_REQUESTS)] | None = None
    """Of `parallel`."""
    context: Text | None = None
    """Of `workers`."""
    orchestrator_model: Name | None = None
    worker_model: Name | None = None
    generator_model: Name | None = None
    """Of `optimize`."""
    evaluator_model: Name | None = None
    quality_threshold: Annotated[float, Meta(ge=0, le=10)] | None = None
    max_iterations: Annotated[int, Meta(ge=1, le=20)] | None = None
    preferences: PatternPreferences | None = None
    """Of `smart`."""


class NewMessage(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a client says to a running task."""

    content: Text


ARGUMENTS: Mapping[Pattern, tuple[str, ...]] = {
    "team": (),
    "parallel": ("requests",),
    "workers": ("context", "orchestrator_model", "worker_model"),
    "optimize": ("quality_threshold", "max_iterations", "generator_model", "evaluator_model"),
    "smart": ("preferences",),
}
"""What each pattern takes besides an order's own fields."""
_ALL_ARGUMENTS = tuple(name for names in ARGUMENTS.values() for name in names)


class Attachment(NamedTuple):
    """A file of an order."""

    path: str
    """Checked: relative, without `.`, `..` and empty parts."""
    content: bytes
    media_type: str


class Asked(Struct, frozen=True, kw_only=True):
    """An order, understood."""

    messages: tuple[Mapping[str, Any], ...]
    """Chat messages."""
    model: str | None
    """`hortator/<role>`; None = not said."""
    task_type: str | None
    config: TaskConfig
    files: tuple[Attachment, ...]
    callback_url: str | None
    callback_events: tuple[str, ...] | None
    pattern: Pattern = "team"
    arguments: Mapping[str, Any] = {}
    """Those of the pattern's fields that were said, as JSON."""


_task = msgspec.json.Decoder(TaskOrder)
_orchestration = msgspec.json.Decoder(OrchestrationOrder)
_message = msgspec.json.Decoder(NewMessage)


def order(body: bytes, attached: Sequence[Attachment] = ()) -> Asked:
    """Read an order for a task. `attached`: files that came beside it. Raises InvalidRequest."""
    top, said = parse_as(body, _task)
    return _asked(top, said, attached)


def orchestration(body: bytes, attached: Sequence[Attachment] = ()) -> Asked:
    """Read an order for a pattern. Raises InvalidRequest."""
    top, said = parse_as(body, _orchestration)
    wanted = ARGUMENTS[said.pattern]
    for name in _ALL_ARGUMENTS:
        if name not in wanted and getattr(said, name) is not None:
            text = f"The pattern {said.pattern} has no '{name}'."
            raise InvalidRequest(text, code="unknown_parameter", param=name)
    if said.pattern == "parallel" and said.requests is None:
        raise _missing("requests", "Missing required parameter: 'requests'.")
    for at, request in enumerate(said.requests or ()):
        if request.messages is None and request.prompt is None:
            raise _missing(f"requests[{at}].messages", f"'requests[{at}]' needs messages or a prompt.")
    asked = _asked(top, said, attached)
    arguments = {name: msgspec.json.decode(top[name]) for name in wanted if getattr(said, name) is not None}
    return msgspec.structs.replace(asked, pattern=said.pattern, arguments=arguments)


def message(body: bytes) -> str:
    """Read a message to a running task. Raises InvalidRequest."""
    top, said = parse_as(body, _message)
    _check_kept(top)
    return said.content


def _asked(top: Object, said: TaskOrder, attached: Sequence[Attachment]) -> Asked:
    _check_kept(top)
    task_type = _agreed(said, "type", "task_type")
    role = None if said.role is None else said.role.removeprefix(PREFIX)
    if said.model is not None and role is not None and said.model != PREFIX + role:
        raise _contradiction("role", "model")
    files = (*_files(said.files or ()), *attached)
    _no_twins(files)
    return Asked(
        messages=_messages(top, said, task_type, bool(files)),
        model=said.model if role is None else PREFIX + role,
        task_type=task_type,
        config=_config(said),
        files=files,
        callback_url=_url(said.callback_url),
        callback_events=_events(said.callback_events),
    )


def _messages(top: Object, said: TaskOrder, task_type: str | None, files: bool) -> tuple[Mapping[str, Any], ...]:
    """What is to be done, as chat messages. The repository is told in a message of its own behind the client's."""
    named = [name for name in (*TEXTS, "messages") if getattr(said, name) is not None]
    if len(named) > 1:
        raise InvalidRequest(
            f"'{named[0]}' and '{named[1]}' say the same thing: give one.", code="invalid_value", param=named[1]
        )
    where = "" if said.repository is None else f"The repository: {said.repository}"
    if named == ["messages"]:
        found = tuple(msgspec.json.decode(top["messages"], type=list[dict[str, Any]]))
        _check_parts(found)
        if not any(message["role"] == "user" and message.get("content") for message in found):
            raise InvalidRequest("'messages' has no message of a user.", code="invalid_value", param="messages")
        return (*found, {"role": "user", "content": where}) if where else found
    if named:
        text = str(getattr(said, named[0]))
        if not text.strip():
            raise InvalidRequest(f"'{named[0]}' is empty.", code="invalid_value", param=named[0])
    elif isinstance(said, OrchestrationOrder) and said.pattern == "parallel":
        return ()
    elif task_type is not None and (where or files):
        text = f"Do this task: {task_type.replace('_', ' ')}."
    else:
        raise _missing("prompt", f"What is to be done? Give one of {', '.join(TEXTS)} and messages.")
    return ({"role": "user", "content": f"{text}\n\n{where}" if where else text},)


def _check_parts(messages: Sequence[Mapping[str, Any]]) -> None:
    """Refuse what agents would not see: an image that is left out without a word makes an answer that is made up."""
    for at, message in enumerate(messages):
        content = message.get("content")
        for place, part in enumerate(content if isinstance(content, list) else ()):
            kind = part.get("type")
            if kind not in TEXT_PARTS:
                param = f"messages[{at}].content[{place}]"
                raise InvalidRequest(
                    f"'{param}': agents are told text, not '{str(kind)[:50]}'; send files as 'files'.",
                    code="unsupported_content",
                    param=param,
                )


def _config(said: TaskOrder) -> TaskConfig:
    """The configuration, with what may stand beside it, and its time in seconds (C-24)."""
    given = dict(said.config or {})
    for name in ("timeout", "budget", "tier", "capabilities"):
        value = getattr(said, name)
        if value is None:
            continue
        if given.get(name) is not None:
            raise _contradiction(name, f"config.{name}")
        given[name] = msgspec.to_builtins(value)
    found = tasks.config(given)
    if found.timeout is not None:
        param = "config.timeout" if said.timeout is None else "timeout"
        found = msgspec.structs.replace(found, timeout=tasks.seconds(found.timeout, param))
    if said.hortator_config:
        found = msgspec.structs.replace(found, parameters={**(found.parameters or {}), **said.hortator_config})
    return found


def _files(given: Sequence[InputFile]) -> tuple[Attachment, ...]:
    return tuple(_file(file, f"files[{at}]") for at, file in enumerate(given))


def _file(file: InputFile, param: str) -> Attachment:
    path = file_path(file.filename, f"{param}.filename")
    if file.data is not None and file.content is None:
        try:
            return Attachment(path, binascii.a2b_base64(file.data, strict_mode=True), BINARY_TYPE)
        except ValueError:
            raise InvalidRequest(
                f"'{param}.data' is not base64.", code="invalid_value", param=f"{param}.data"
            ) from None
    if file.content is not None and file.data is None:
        return Attachment(path, file.content.encode(), TEXT_TYPE)
    raise InvalidRequest(f"'{param}' needs one of data and content.", code="invalid_value", param=param)


def file_path(name: str, param: str) -> str:
    """Return a file's path, checked: it cannot leave the folder it is put into. Raises InvalidRequest."""
    parts = name.split("/")
    if len(name) > MAX_PATH or _UNFIT.search(name) or any(part.strip() in ("", ".", "..") for part in parts):
        raise InvalidRequest(
            f"'{param}' must be a relative path such as src/app.py, at most {MAX_PATH} characters.",
            code="invalid_file_path",
            param=param,
        )
    return name


def _no_twins(files: Sequence[Attachment]) -> None:
    seen: set[str] = set()
    for file in files:
        if file.path in seen:
            text = f"Two files have the path '{file.path[:100]}'."
            raise InvalidRequest(text, code="invalid_file_path", param="files")
        seen.add(file.path)


def _url(url: str | None) -> str | None:
    """Whether it looks like one; who sends there looks closer."""
    if url is not None and (len(url) > 2048 or not url.isprintable() or _URL.fullmatch(url) is None):
        raise InvalidRequest(
            "'callback_url' must be an http or https address.", code="invalid_url", param="callback_url"
        )
    return url


def _events(types: Sequence[str] | None) -> tuple[str, ...] | None:
    checked(types)
    return None if types is None else tuple(dict.fromkeys(types))


def _agreed(said: TaskOrder, one: str, other: str) -> str | None:
    """A value that has two names."""
    first, second = getattr(said, one), getattr(said, other)
    if first is not None and second is not None and first != second:
        raise _contradiction(one, other)
    found: str | None = second if first is None else first
    return found


def _check_kept(top: Object) -> None:
    """Refuse what databases do not keep: a NUL in a text, endless nesting. Contents of files may hold anything."""
    for name, value in top.items():
        if name == "files":
            continue
        try:
            level = [msgspec.json.decode(value)]
        except RecursionError:
            raise _too_deep(name) from None
        for _ in range(MAX_DEPTH):
            below: list[Any] = []
            for each in level:
                if isinstance(each, str) and "\0" in each:
                    raise InvalidRequest(f"'{name}' holds a NUL character.", code="invalid_value", param=name)
                if isinstance(each, dict):
                    below += (*each, *each.values())
                elif isinstance(each, list):
                    below += each
            level = below
        if level:
            raise _too_deep(name)


def _too_deep(param: str) -> InvalidRequest:
    return InvalidRequest(f"'{param}' is nested over {MAX_DEPTH} levels.", code="too_deep", param=param)


def _contradiction(one: str, other: str) -> InvalidRequest:
    return InvalidRequest(f"'{one}' and '{other}' say different things.", code="invalid_value", param=one)


def _missing(param: str, text: str) -> InvalidRequest:
    return InvalidRequest(text, code="missing_required_parameter", param=param)


SCHEMAS: tuple[type[Struct], ...] = (TaskOrder, OrchestrationOrder, TaskConfig, NewMessage)
