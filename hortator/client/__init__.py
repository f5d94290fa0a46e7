"""The Python SDK: `HortatorClient` and `AsyncHortatorClient`, also importable from `hortator` itself (R-000-12).

Programs that use a Hortator import it, and so do `hortator run` and `hortator tasks`; the server never does. It knows the wire
formats and nothing else of the server, and needs nothing that the base installation does not have.
"""

from __future__ import annotations

from hortator.client.async_client import AsyncHortatorClient, AsyncStream
from hortator.client.async_tasks import AsyncTask
from hortator.client.chat import ChatCompletion, ChatCompletionChunk, Usage
from hortator.client.errors import (
    AuthenticationError,
    ConflictError,
    HortatorConnectionError,
    HortatorError,
    HortatorTimeout,
    InvalidRequestError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitError,
    ServerError,
    TaskError,
)
from hortator.client.events import TaskEvent
from hortator.client.origin import ContentPart, Message, ModelInfo, RunResult, StreamChunk
from hortator.client.record import Record
from hortator.client.sync import HortatorClient, Stream
from hortator.client.task import Artifact, Ledger, LedgerEntry, Node, TaskData
from hortator.client.tasks import Task
from hortator.wire.tasks import Budget, Retry, Stuck, TaskConfig

__all__ = [
    "Artifact",
    "AsyncHortatorClient",
    "AsyncStream",
    "AsyncTask",
    "AuthenticationError",
    "Budget",
    "ChatCompletion",
    "ChatCompletionChunk",
    "ConflictError",
    "ContentPart",
    "HortatorClient",
    "HortatorConnectionError",
    "HortatorError",
    "HortatorTimeout",
    "InvalidRequestError",
    "Ledger",
    "LedgerEntry",
    "Message",
    "ModelInfo",
    "Node",
    "NotFoundError",
    "PermissionDeniedError",
    "RateLimitError",
    "Record",
    "Retry",
    "RunResult",
    "ServerError",
    "Stream",
    "StreamChunk",
    "Stuck",
    "Task",
    "TaskConfig",
    "TaskData",
    "TaskError",
    "TaskEvent",
    "Usage",
]
