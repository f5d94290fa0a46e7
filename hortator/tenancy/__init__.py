"""The room at the door: who calls (`identity.py`), and the keys they call with (`keys.py`)."""

from hortator.tenancy.identity import Identity

__all__ = ["Identity"]
