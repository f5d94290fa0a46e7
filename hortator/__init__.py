"""Hortator: one self-hosted endpoint in front of many models.

Start reading at `gateway.py`: it is the corridor that every request walks, and the only file that knows all rooms.
`from hortator import HortatorClient, TaskConfig` gives the Python SDK (`client/`), which is loaded when it is first asked for: the
server has no use for it. `__init__.pyi` tells type checkers the same.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_CLIENT = frozenset({"AsyncHortatorClient", "HortatorClient", "HortatorError", "TaskConfig", "TaskError", "Budget"})


def __getattr__(name: str) -> Any:
    if name in _CLIENT:
        return getattr(import_module("hortator.client"), name)
    raise AttributeError(f"module 'hortator' has no attribute {name!r}")
