"""The room at the door: who calls (`identity.py`), and the keys they call with (`keys.py`)."""

from hortator.tenancy.identity import Identity
from hortator.tenancy.keys import first_key

__all__ = ["Identity", "first_key"]
