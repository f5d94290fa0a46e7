"""The room at the door: who calls (`identity.py`), the keys they call with (`keys.py`), what they may use (`budgets.py`),
and who runs when not everybody can (`admission.py`)."""

from hortator.tenancy.admission import Admission
from hortator.tenancy.budgets import Budgets, Reservation
from hortator.tenancy.identity import Identity
from hortator.tenancy.keys import first_key

__all__ = ["Admission", "Budgets", "Identity", "Reservation", "first_key"]
