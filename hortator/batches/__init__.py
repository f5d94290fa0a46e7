"""The room of files and batches: what clients upload, and lists of calls that are answered when there is room.

`app.py` builds it and gives it the corridor as a function; the doors `api/files.py` and `api/batches.py` call it. It never decides
where a line goes or what it costs: every line walks the corridor like a call of its own.
"""

from __future__ import annotations

from hortator.batches.batches import Batches
from hortator.batches.files import Files, Upload
from hortator.batches.run import Tools
from hortator.batches.worker import Worker

__all__ = ["Batches", "Files", "Tools", "Upload", "Worker"]
