"""The configuration: read at start-up and whenever it changes, checked as a whole, frozen, and passed to whoever needs a part of it.

`load(path, environ)` returns `Settings` or raises ConfigError with every problem. `Secret` holds what must not be printed.
"""

from __future__ import annotations

from hortator.settings.changes import applicable
from hortator.settings.document import (
    S3,
    Admin,
    Batches,
    Breaker,
    Card,
    Choice,
    DeploymentChoice,
    Feature,
    Files,
    Identity,
    Ledger,
    Local,
    Logging,
    NamedModel,
    Orchestration,
    Paths,
    Provider,
    Responses,
    Retry,
    Routing,
    Server,
    Settings,
    Store,
    Strategy,
    Streaming,
    Tier,
    TierModels,
    Timeouts,
    Upstream,
    Webhooks,
)
from hortator.settings.load import home_folder, known_variables, load
from hortator.settings.presets import PRESETS, detected_providers
from hortator.settings.rules import LOCAL, is_loopback
from hortator.settings.secret import Secret

__all__ = [
    "LOCAL",
    "PRESETS",
    "S3",
    "Admin",
    "Batches",
    "Breaker",
    "Card",
    "Choice",
    "DeploymentChoice",
    "Feature",
    "Files",
    "Identity",
    "Ledger",
    "Local",
    "Logging",
    "NamedModel",
    "Orchestration",
    "Paths",
    "Provider",
    "Responses",
    "Retry",
    "Routing",
    "Secret",
    "Server",
    "Settings",
    "Store",
    "Strategy",
    "Streaming",
    "Tier",
    "TierModels",
    "Timeouts",
    "Upstream",
    "Webhooks",
    "applicable",
    "detected_providers",
    "home_folder",
    "is_loopback",
    "known_variables",
    "load",
]
