"""The ledger room: prices, counts and writes down what became of each call. `Ledger` is its door.

`records.py` makes records, `prices.py` prices them, `journal.py` keeps them until the database has them.
"""

from hortator.ledger.prices import PriceBook
from hortator.ledger.traces import Tracer
from hortator.ledger.usage import Ledger

__all__ = ["Ledger", "PriceBook", "Tracer"]
