"""Hortator: one self-hosted endpoint in front of many models.

Start reading at `gateway.py`: it is the corridor that every request walks, and the only file that knows all rooms.
"""

__version__ = "0.1.0"
