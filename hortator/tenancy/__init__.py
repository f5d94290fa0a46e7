"""The room at the door: who calls (`identity.py`), the keys they call with (`keys.py`), what they may use (`budgets.py`)."""

from hortator.tenancy.budgets import Budgets, Reservation
from hortator.tenancy.identity import Identity
from hortator.tenancy.keys import first_key

__all__ = ["Budgets", "Identity", "Reservation", "first_key"]
