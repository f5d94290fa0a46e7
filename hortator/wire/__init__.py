"""Dialects as data: how requests, replies and streams look on the wire. Pure functions and small state machines, no I/O.

Known to everyone, knows nobody but `errors`.
"""
