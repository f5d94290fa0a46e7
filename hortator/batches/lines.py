"""The lines of a batch: read from a file's pieces, checked all together before the first is answered, and written as results.

`run.py` calls it. Pure but for the pieces it is given. The shape of lines and results is that of OpenAI's batches.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any, NamedTuple

import msgspec
import uuid_utils
from msgspec import Raw, Struct

from hortator.call import RequestId
from hortator.errors import HortatorError

MAX_LINES = 50_000
"""As OpenAI's."""
MAX_FAULTS = 100
"""Most faults of a file that are told."""
MAX_CUSTOM_ID = 512
MAX_MODEL = 512


class Line(NamedTuple):
    """One call of a batch."""

    number: int
    """Its place in the file, from 1, blank lines counted."""
    custom_id: str
    model: str
    body: bytes


class Fault(Exception):
    """What is wrong with a file, or with one line of it."""

    def __init__(self, code: str, message: str, line: int | None = None, param: str | None = None) -> None:
        super().__init__(code)
        self.data = {"code": code, "message": message, "line": line, "param": param}
        """As in a batch's `errors`."""


class Checked(NamedTuple):
    """What a whole file holds. With faults, no line of it is answered."""

    total: int
    model: str | None
    """The model of all lines, None where they differ."""
    faults: list[dict[str, Any]]


class _Asked(Struct):
    model: str


class _Response(Struct):
    status_code: int
    request_id: str
    body: Raw


class _Result(Struct):
    id: str
    custom_id: str
    response: _Response | None
    error: dict[str, str] | None


_top_level = msgspec.json.Decoder(dict[str, Raw])
_asked = msgspec.json.Decoder(_Asked)
_text = msgspec.json.Decoder(str)


async def numbered(pieces: AsyncIterator[bytes], limit: int) -> AsyncIterator[tuple[int, bytes]]:
    """Give the lines that are not blank, with their numbers. Raises Fault for one of more than `limit` bytes."""
    number = 1
    line = bytearray()
    async for piece in pieces:
        first, *others = piece.split(b"\n")
        line += first
        for other in others:
            if len(line) > limit:
                break
            if line.strip():
                yield number, bytes(line)
            number += 1
            line = bytearray(other)
        if len(line) > limit:
            raise Fault("line_too_long", f"This line has more than {limit} bytes.", number)
    if line.strip():
        yield number, bytes(line)


def read(number: int, raw: bytes, endpoint: str) -> Line:
    """Read one line of a batch for `endpoint`. Raises Fault."""
    try:
        raw.decode()
        fields = _top_level.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Fault("invalid_json_line", "This line is not parseable as a JSON object.", number) from None
    custom_id = _text_of(fields, "custom_id", number)
    if len(custom_id) > MAX_CUSTOM_ID:
        raise Fault("invalid_value", f"'custom_id' is longer than {MAX_CUSTOM_ID} letters.", number, "custom_id")
    if _text_of(fields, "method", number) != "POST":
        raise Fault("invalid_method", "'method' must be POST.", number, "method")
    if _text_of(fields, "url", number) != endpoint:
        raise Fault("invalid_url", f"'url' must be the batch's endpoint, {endpoint}.", number, "url")
    if "body" not in fields:
        raise Fault("missing_required_parameter", "'body' is missing.", number, "body")
    body = bytes(fields["body"])
    try:
        model = _asked.decode(body).model
    except (msgspec.DecodeError, RecursionError):
        raise Fault("missing_required_parameter", "'body' must be an object with a 'model'.", number, "model") from None
    if len(model) > MAX_MODEL or "\0" in model:
        raise Fault("invalid_value", "'model' cannot be a model's id.", number, "model")
    return Line(number, custom_id, model, body)


def _text_of(fields: dict[str, Raw], name: str, number: int) -> str:
    try:
        found = _text.decode(fields[name])
    except KeyError:
        raise Fault("missing_required_parameter", f"'{name}' is missing.", number, name) from None
    except msgspec.DecodeError:
        raise Fault("invalid_type", f"'{name}' must be a text.", number, name) from None
    if not found:
        raise Fault("invalid_value", f"'{name}' must not be empty.", number, name)
    return found


async def check(pieces: AsyncIterator[bytes], endpoint: str, limit: int, stopped: Callable[[], bool]) -> Checked:
    """Check a whole file, its lines together too. Ends early once `stopped`."""
    faults: list[dict[str, Any]] = []
    places: dict[str, int] = {}
    models: set[str] = set()
    total = 0
    try:
        async for number, raw in numbered(pieces, limit):
            total += 1
            if total > MAX_LINES:
                raise Fault("too_many_lines", f"A batch has at most {MAX_LINES} lines.", number)
            try:
                line = read(number, raw, endpoint)
                first = places.setdefault(line.custom_id, number)
                if first != number:
                    text = f"The custom_id is that of line {first} already."
                    raise Fault("duplicate_custom_id", text, number, "custom_id")
            except Fault as fault:
                faults.append(fault.data)
            else:
                if len(models) < 2:
                    models.add(line.model)
            if len(faults) >= MAX_FAULTS or stopped():
                break
    except Fault as fault:
        faults.append(fault.data)
    if not total and not faults:
        faults.append(Fault("empty_file", "The file has no lines.").data)
    return Checked(total, models.pop() if len(models) == 1 else None, faults)


def answered(line: Line, id: RequestId, body: bytes) -> bytes:
    """Return the result of a line that was answered. JSON has line ends only between its values, where a blank does as well."""
    one_line = body.replace(b"\n", b" ").replace(b"\r", b" ")
    return _result(line, _Response(200, id, Raw(one_line)), None)


def refused(line: Line, id: RequestId, error: HortatorError) -> bytes:
    """Return the result of a line that ended with an error."""
    document = {"message": error.message, "type": error.type, "param": error.param, "code": error.code}
    return _result(line, _Response(error.status, id, Raw(msgspec.json.encode({"error": document}))), None)


def left_out(line: Line, code: str, message: str) -> bytes:
    """Return the result of a line that was never answered."""
    return _result(line, None, {"code": code, "message": message})


def _result(line: Line, response: _Response | None, error: dict[str, str] | None) -> bytes:
    return msgspec.json.encode(_Result(f"batch_req_{uuid_utils.uuid7().hex}", line.custom_id, response, error))
