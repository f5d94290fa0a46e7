"""The scripted upstream: a provider that misbehaves on command, down to the byte.

It runs as its own process (`python -m tests.upstream`), so a reset is a reset and a hang-up is a hang-up. Tests steer it
through `process.Upstream`; what it can do is listed in `scenarios.py`; `server.py` plays the scripts and records what it
was sent. It never imports the product.
"""
