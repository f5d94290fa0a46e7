"""Files and batches as OpenAI's clients see them: what their requests must look like, and the objects in replies.

The doors `api/files.py` and `api/batches.py` parse requests here and fill the objects. Source of the fields: the OpenAI API
reference as typed by openai-python 3.52 (`FileObject`, `Batch`). Times are whole Unix seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from hortator.errors import InvalidRequest
from hortator.wire.body import parse_as

PURPOSES = ("assistants", "batch", "evals", "fine-tune", "user_data", "vision")
"""What a client may upload files for. Only `batch` means something to the gateway."""
MAX_PAIRS, MAX_NAME, MAX_VALUE = 16, 64, 512
"""Bounds of a batch's metadata; as OpenAI's."""


class FileObject(Struct):
    """A file."""

    id: str
    bytes: int
    created_at: int
    filename: str
    purpose: str
    expires_at: int | None
    object: Literal["file"] = "file"
    status: Literal["processed"] = "processed"
    status_details: None = None


class DeletedFile(Struct):
    """A file that is gone."""

    id: str
    object: Literal["file"] = "file"
    deleted: bool = True


class RequestCounts(Struct):
    """How far a batch is."""

    total: int
    completed: int
    failed: int


class InputDetails(Struct):
    """Part of the input tokens."""

    cached_tokens: int


class OutputDetails(Struct):
    """Part of the output tokens."""

    reasoning_tokens: int


class BatchUsage(Struct):
    """What a batch's lines used so far."""

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class BatchErrors(Struct):
    """What is wrong with the input file."""

    data: Sequence[Mapping[str, Any]]
    object: Literal["list"] = "list"


class BatchObject(Struct):
    """A batch."""

    id: str
    endpoint: str
    input_file_id: str
    status: str
    created_at: int
    expires_at: int
    errors: BatchErrors | None
    model: str | None
    output_file_id: str | None
    error_file_id: str | None
    in_progress_at: int | None
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCounts
    usage: BatchUsage
    metadata: Mapping[str, str] | None
    object: Literal["batch"] = "batch"
    completion_window: Literal["24h"] = "24h"


class ExpiresAfter(Struct):
    """When a file is deleted: so long after it was made."""

    anchor: Literal["created_at"]
    seconds: Annotated[int, Meta(ge=3600, le=2_592_000)]


class BatchRequest(Struct):
    """The documented parameters of a new batch."""

    input_file_id: str
    endpoint: str
    completion_window: Literal["24h"]
    metadata: dict[str, str] | None = None
    output_expires_after: ExpiresAfter | None = None


SCHEMAS = (FileObject, DeletedFile, BatchRequest, BatchObject)
"""What the description of the API names."""
_request = msgspec.json.Decoder(BatchRequest)


def parse(body: bytes) -> BatchRequest:
    """Validate a request for a batch. Raises InvalidRequest."""
    _, request = parse_as(body, _request)
    pairs = request.metadata or {}
    if len(pairs) > MAX_PAIRS or any(len(key) > MAX_NAME or len(value) > MAX_VALUE for key, value in pairs.items()):
        raise InvalidRequest(
            f"'metadata' may have {MAX_PAIRS} pairs, of names up to {MAX_NAME} and values up to {MAX_VALUE} letters.",
            code="invalid_value",
            param="metadata",
        )
    if any("\0" in text for pair in pairs.items() for text in pair):
        raise InvalidRequest("'metadata' may not hold NUL.", code="invalid_value", param="metadata")
    return request


def purpose(fields: Mapping[str, str]) -> str:
    """Return what an upload is for. Raises InvalidRequest."""
    found = fields.get("purpose")
    if found is None:
        raise InvalidRequest(
            "Missing required parameter: 'purpose'.", code="missing_required_parameter", param="purpose"
        )
    if found not in PURPOSES:
        raise InvalidRequest(f"'purpose' must be one of {', '.join(PURPOSES)}.", code="invalid_value", param="purpose")
    return found


def expiry(fields: Mapping[str, str]) -> int | None:
    """Return after how many seconds an uploaded file is deleted, None where the form does not say. Raises InvalidRequest."""
    given = {
        name: fields[f"expires_after[{name}]"] for name in ("anchor", "seconds") if f"expires_after[{name}]" in fields
    }
    if not given:
        return None
    try:
        return msgspec.convert(given, ExpiresAfter, strict=False).seconds
    except msgspec.ValidationError:
        raise InvalidRequest(
            "'expires_after' needs the anchor 'created_at' and 3600 to 2592000 seconds.",
            code="invalid_value",
            param="expires_after",
        ) from None
