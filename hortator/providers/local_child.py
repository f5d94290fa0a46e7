"""The embedded model's own process: one native HTTP server on loopback. `local_process.py` starts it; it imports the engine, nobody else does.

A separate process, because the engine is native code: on a processor it was not built for it dies by a signal, and a crash
there must not end the gateway. It reads one JSON line from standard input (`ChildConfig`), answers with one JSON line on
standard output when it serves (`{"port": 40123, "model": "..."}`), and logs to standard error, which the parent bounds.
It never outlives its parent: the end of standard input ends it, and on Linux the kernel does when the parent dies.
The key of its HTTP server comes in that first line, never on the command line, where every user of the machine could read it.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import signal
import sys
import threading
from dataclasses import dataclass, field
from typing import Any, NoReturn

EXIT_NO_ENGINE = 3
"""The extra `local` is not installed; starting again will not help."""
EXIT_BAD_MODEL = 4
"""The engine refused the model file or a setting."""
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class ChildConfig:
    """The line the parent writes. Sizes are tokens unless named otherwise."""

    path: str
    """The GGUF file."""
    name: str
    """The name it serves the model under."""
    key: str = field(repr=False)
    """The bearer token its HTTP server asks for."""
    parent: int
    """Process id of the parent."""
    parallel: int
    """Calls computed at the same time."""
    context: int
    """Tokens of one call, prompt and answer together; the engine gets `context * parallel`."""
    threads: int
    http_threads: int
    """Connections served at once; every streamed reply holds one for its whole life."""
    cache_mib: int
    """Memory for finished prompts, MiB. The engine's own default, 8192, would grow the process without use."""


def die_with(parent: int) -> None:
    """Ask the kernel to kill this process when its parent dies; leave at once if that has already happened."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(0)


def first_line(descriptor: int) -> bytes:
    """Read the parent's line, and not one byte more: the thread that waits for the end reads the same pipe."""
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(descriptor, 1)
        if not byte:
            os._exit(0)
        line += byte
    return line


def leave_at_end_of(descriptor: int) -> None:
    """Block until the parent's end of the pipe closes, then leave without running native destructors (they wait for calls)."""
    while True:
        try:
            if not os.read(descriptor, 4096):
                break
        except OSError:
            break
    os._exit(0)


def leave(status: int, why: str) -> NoReturn:
    """Say why on standard error and end the process, without native destructors."""
    os.write(2, why.encode() + b"\n")
    os._exit(status)


def engine_parameters(engine: Any, config: ChildConfig) -> Any:
    """Return the engine's parameter object for `config`. Everything we do not name keeps the engine's default."""
    params = engine.CommonParams()
    params.model.path = config.path
    params.model_alias = {config.name}
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.api_keys = [config.key]
    params.n_parallel = config.parallel
    params.n_ctx = config.context * config.parallel
    params.cpuparams.n_threads = config.threads
    params.cpuparams_batch.n_threads = config.threads
    params.n_threads_http = config.http_threads
    params.cache_ram_mib = config.cache_mib
    params.warmup = True
    params.ui = False
    params.endpoint_slots = False
    params.endpoint_metrics = True  # the parent's health check
    params.embedding = True  # beside answering: the mean of the last layer over the text
    params.pooling_type = engine.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    params.n_batch = 512  # prompt tokens in one step: other calls' tokens come between the steps of a long prompt
    params.verbosity = 2  # warnings; more would write prompts to the log
    return params


def main() -> None:
    """Serve until standard input ends."""
    # The terminal's Ctrl-C and a service manager's SIGTERM reach the whole group; the parent drains first and then closes the pipe.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    config = ChildConfig(**json.loads(first_line(0)))
    die_with(config.parent)
    threading.Thread(target=leave_at_end_of, args=(0,), daemon=True).start()
    answer = os.dup(1)
    os.dup2(2, 1)  # what native code prints must not mix with our line
    try:
        engine = importlib.import_module("xllamacpp")
    except ImportError as error:
        leave(EXIT_NO_ENGINE, f"the embedded model's engine cannot be loaded: {error}")
    try:
        server = engine.Server(engine_parameters(engine, config))
    except (RuntimeError, ValueError, OSError) as error:
        leave(EXIT_BAD_MODEL, f"the engine refused {config.path}: {error}")
    port = int(server.listening_address.rsplit(":", 1)[1])
    os.write(answer, json.dumps({"port": port, "model": config.name}).encode() + b"\n")
    os.close(answer)
    threading.Event().wait()


if __name__ == "__main__":
    main()
