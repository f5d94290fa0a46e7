"""The ledger room: prices, counts and writes down what became of each call. `usage.Ledger` is its door.

`records.py` makes records, `prices.py` prices them, `journal.py` keeps them until the database has them.
"""
