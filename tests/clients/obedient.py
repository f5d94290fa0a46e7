"""An upstream that does what it is told: it calls the tools it is given, obeys schemas, and can edit a file with any agent's tools.

Real clients are tried against the gateway in front of it (`make test-clients`), because a scripted reply cannot follow a conversation.
It speaks chat completions and completions, whole and streamed, and embeddings; `python -m tests.clients.obedient PORT` runs it. Asked to
"Be busy once: WORD" it refuses the first request with that word. Every request is appended to the file named by OBEDIENT_LOG, one JSON
object a line.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

WRITE = re.compile(r"[Cc]reate the file ([\w./-]+) with exactly this text: ([^\n\"<]+)")
"""What a test asks an agent for."""
DONE = "The file is written."
_CONTENT_NAMES = ("content", "contents", "text", "file_text", "fileText", "new_content")
_PATH_NAMES = ("file_path", "filePath", "filepath", "path", "absolutePath", "target_file", "fileName", "file")
_FINISH = ("attempt_completion", "submit_and_exit")
"""Tools by which some agents want to be told that the work is done."""
_BUSY = re.compile(r"Be busy once: (\w+)")
_refused: set[str] = set()
_lock = threading.Lock()


class Said:
    """What the user said last, as material for arguments."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.numbers = [int(found) for found in re.findall(r"-?\d+", text)]
        self.quoted = [found for pair in re.findall(r"'([^'\n]+)'|\"([^\"\n]+)\"", text) for found in pair if found]
        self.foreign = re.findall(r"[^\x00-\x7f]+", text)


def instance(schema: dict[str, Any], said: Said, root: dict[str, Any] | None = None) -> Any:
    """Return the smallest value that obeys a JSON schema; numbers and foreign words are taken from what the user said."""
    root = schema if root is None else root
    if "$ref" in schema:
        found: Any = root
        for step in str(schema["$ref"]).removeprefix("#/").split("/"):
            found = found[step]
        return instance(found, said, root)
    for key in ("const", "default"):
        if key in schema:
            return schema[key]
    if schema.get("enum"):
        return schema["enum"][0]
    for key in ("anyOf", "oneOf", "allOf"):
        if schema.get(key):
            return instance(schema[key][0], said, root)
    kind = schema.get("type", "object" if "properties" in schema else "string")
    kind = kind[0] if isinstance(kind, list) else kind
    if kind == "object":
        properties = schema.get("properties", {})
        required = schema.get("required", list(properties))
        return {name: instance(properties.get(name, {}), said, root) for name in required}
    if kind == "array":
        return [instance(schema.get("items", {}), said, root)] * max(1, schema.get("minItems", 1))
    plain: dict[str, Any] = {
        "integer": said.numbers[0] if said.numbers else 1,
        "number": said.numbers[0] if said.numbers else 1.5,
        "boolean": True,
        "null": None,
    }
    return plain.get(kind, said.foreign[0] if said.foreign else "a text")


def text_of(content: Any) -> str:
    """The text of a message's content, whatever form it has."""
    if isinstance(content, list):
        return "\n".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content or ""


def functions(body: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The function tools of a request: name to parameters."""
    return {
        tool["function"]["name"]: tool["function"].get("parameters") or {}
        for tool in body.get("tools") or ()
        if tool.get("type") == "function"
    }


Answer = tuple[str, list[tuple[str, dict[str, Any]]]]
"""A text, and the calls (tool, arguments)."""


def answer(body: dict[str, Any]) -> Answer:
    """Decide what to say."""
    messages = body["messages"]
    said = [text_of(message.get("content")) for message in messages if message["role"] == "user"]
    last = Said(said[-1] if said else "")
    tools = functions(body)
    tasks = [found for text in said for found in WRITE.findall(text)]
    past = any(message["role"] in ("tool", "function") for message in messages)
    chosen = body.get("tool_choice")
    shape = body.get("response_format") or {}
    if tools and chosen != "none" and tasks:
        return _agent(tools, tasks[-1], past, last)
    if tasks and "SEARCH/REPLACE" in text_of(messages[0].get("content")):
        name, content = tasks[-1]
        return f"{name}\n```\n<<<<<<< SEARCH\n=======\n{content}\n>>>>>>> REPLACE\n```\n", []
    if tools and chosen != "none" and not past:
        forced = isinstance(chosen, dict) or chosen in ("required", "any")
        names = [chosen["function"]["name"]] if isinstance(chosen, dict) else list(tools)
        mentioned = [name for name in tools if name in last.text]
        if forced or mentioned or re.search(r"\b(tool|function|weather|call)", last.text, re.I):
            wanted = names if isinstance(chosen, dict) else (mentioned or names[:1])
            return "", [(name, instance(tools[name], last)) for name in wanted]
    if shape.get("type") == "json_schema":
        return json.dumps(instance(shape["json_schema"]["schema"], last)), []
    if shape.get("type") == "json_object":
        return json.dumps(dict.fromkeys(last.quoted, "a text") or {"answer": 1}), []
    results = [text_of(message.get("content")) for message in messages if message["role"] == "tool"]
    return f"The result is {results[-1]}." if results else f"You said: {last.text[:200]}", []


def _agent(tools: dict[str, dict[str, Any]], task: tuple[str, str], past: bool, said: Said) -> Answer:
    """Write the file with whatever tool there is, then say so."""
    name, content = task
    finish = next((tool for tool in _FINISH if tool in tools), None)
    if past:
        return ("", [(finish, instance(tools[finish], said) | {"result": DONE})]) if finish else (DONE, [])
    for tool, parameters in tools.items():
        properties = parameters.get("properties", {})
        text = next((key for key in _CONTENT_NAMES if key in properties), None)
        path = next((key for key in _PATH_NAMES if key in properties), None)
        if text and path and re.search(r"write|create", tool, re.I):
            place = os.path.join(os.environ.get("OBEDIENT_FOLDER", ""), name)
            return "", [(tool, instance(parameters, said) | {path: place, text: content})]
    for tool, parameters in tools.items():
        key = next((key for key in ("command", "cmd", "commands") if key in parameters.get("properties", {})), None)
        if key:
            command: Any = f"printf '%s' '{content}' > '{name}'"
            if parameters["properties"][key].get("type") == "array":
                command = ["sh", "-c", command] if key != "commands" else [command]
            return "", [(tool, instance(parameters, said) | {key: command})]
    return "There is no tool to write with.", []


def usage_of(body: dict[str, Any], text: str, calls: list[Any]) -> dict[str, Any]:
    """Token counts that are about right."""
    sent, came = len(json.dumps(body["messages"])) // 4 + 1, (len(text) + len(json.dumps(calls))) // 4 + 1
    return {"prompt_tokens": sent, "completion_tokens": came, "total_tokens": sent + came}


def chunks(body: dict[str, Any], answered: Answer, id: str) -> Iterator[dict[str, Any]]:
    """The answer as chunks: role, words, pieces of arguments, finish reason, usage."""
    text, calls = answered
    common = {"id": id, "object": "chat.completion.chunk", "created": int(time.time()), "model": body["model"]}

    def chunk(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        return common | {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}

    yield chunk({"role": "assistant", "content": ""})
    for word in re.findall(r"\S+\s*|\s+", text):
        yield chunk({"content": word})
    for place, (name, arguments) in enumerate(calls):
        head = {"index": place, "id": f"call_{id[-8:]}_{place}", "type": "function"}
        yield chunk({"tool_calls": [head | {"function": {"name": name, "arguments": ""}}]})
        written = json.dumps(arguments)
        for start in range(0, len(written), 12):
            piece = {"index": place, "function": {"arguments": written[start : start + 12]}}
            yield chunk({"tool_calls": [piece]})
    yield chunk({}, "tool_calls" if calls else "stop")
    if (body.get("stream_options") or {}).get("include_usage"):
        yield common | {"choices": [], "usage": usage_of(body, text, calls)}


def completion(body: dict[str, Any], answered: Answer, id: str) -> dict[str, Any]:
    """The answer in one piece."""
    text, calls = answered
    message: dict[str, Any] = {"role": "assistant", "content": text or None}
    if calls:
        message["tool_calls"] = [
            {
                "id": f"call_{id[-8:]}_{place}",
                "type": "function",
                "function": {"name": name, "arguments": json.dumps(arguments)},
            }
            for place, (name, arguments) in enumerate(calls)
        ]
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls" if calls else "stop", "logprobs": None}
    return {
        "id": id,
        "object": "chat.completion",
        "created": int(time.time()),
        "model": body["model"],
        "choices": [choice],
        "usage": usage_of(body, text, calls),
    }


def vector(text: Any) -> list[float]:
    """A vector that is the same for the same text."""
    digest = hashlib.sha256(json.dumps(text).encode()).digest()
    return [byte / 255 - 0.5 for byte in digest]


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """List the models."""
        self.reply({"object": "list", "data": [{"id": "obedient", "object": "model", "created": 1, "owned_by": "t"}]})

    def do_POST(self) -> None:
        """Answer."""
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        note(self.path, body)
        if self.path.endswith("/embeddings"):
            given = body["input"] if isinstance(body["input"], list) else [body["input"]]
            data = [{"object": "embedding", "index": at, "embedding": vector(each)} for at, each in enumerate(given)]
            usage = {"prompt_tokens": len(given), "total_tokens": len(given)}
            self.reply({"object": "list", "model": body["model"], "data": data, "usage": usage})
            return
        if busy(body):
            error = {"message": "Too many requests.", "type": "rate_limit_error", "code": "rate_limit_exceeded"}
            self.reply({"error": error}, 429)
            return
        if self.path.endswith("/completions") and "messages" not in body:
            self.complete(body)
            return
        id = f"chatcmpl-{time.time_ns()}"
        if body.get("stream"):
            self.stream(chunks(body, answer(body), id))
        else:
            self.reply(completion(body, answer(body), id))

    def complete(self, body: dict[str, Any]) -> None:
        """Go on with a text: a dialect older than chat."""
        text = f"You wrote: {str(body['prompt'])[:200]}"
        choice = {"index": 0, "text": text, "finish_reason": "stop", "logprobs": None}
        usage = {"prompt_tokens": 5, "completion_tokens": 5, "total_tokens": 10}
        whole = {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": body["model"], "choices": [choice]}
        if body.get("stream"):
            self.stream(iter([whole]))
        else:
            self.reply(whole | {"usage": usage})

    def stream(self, documents: Iterator[dict[str, Any]]) -> None:
        """Send events."""
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for event in (*(json.dumps(document) for document in documents), "[DONE]"):
            piece = f"data: {event}\n\n".encode()
            self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        self.wfile.write(b"0\r\n\r\n")

    def reply(self, document: dict[str, Any], status: int = 200) -> None:
        """Send JSON."""
        data = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def busy(body: dict[str, Any]) -> bool:
    """Whether this request is the first with the word that a user wants to see refused."""
    asked = _BUSY.search(json.dumps(body.get("messages")))
    if asked is None:
        return False
    with _lock:
        first = asked[1] not in _refused
        _refused.add(asked[1])
    return first


def note(path: str, body: dict[str, Any]) -> None:
    """Append a request to the log."""
    name = os.environ.get("OBEDIENT_LOG")
    if name:
        with _lock, open(name, "a", encoding="utf-8") as log:
            log.write(json.dumps({"path": path, "body": body}) + "\n")


def serve(port: int) -> ThreadingHTTPServer:
    """Return the server, bound; `serve_forever` runs it."""
    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    return server


if __name__ == "__main__":
    serve(int(sys.argv[1])).serve_forever()
