"""The journal: whole lines or none, one owner a segment, never more than its limit."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from hortator.ledger.journal import SEGMENT_BYTES, Journal, Segment


def lines(journal: Journal, segment: Segment, size: int = 64) -> list[bytes]:
    found: list[bytes] = []
    offset = 0
    while True:
        part, offset = journal.read(segment, offset, size)
        if not part:
            return found
        found += part


def files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def test_a_segment_is_emptied_when_the_database_has_its_batches(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    first, second = journal.append(b"1\n2\n"), journal.append(b"3\n")
    assert first is not None
    assert first is second
    assert first.path.read_bytes() == b"1\n2\n3\n"
    journal.done(first)
    assert journal.bytes == 6
    journal.done(first)
    assert (journal.bytes, first.path.read_bytes()) == (0, b"")
    journal.close()
    assert files(tmp_path) == []


def test_a_full_segment_is_followed_by_another_and_deleted_when_done(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    first, second = journal.append(b"x" * SEGMENT_BYTES + b"\n"), journal.append(b"y\n")
    assert first is not None
    assert second is not None
    assert first.path != second.path
    journal.done(first)
    assert files(tmp_path) == [second.path]
    assert journal.bytes == 2
    journal.close()


def test_what_a_dead_process_left_is_adopted_without_its_torn_last_line(tmp_path: Path) -> None:
    (tmp_path / "0.jsonl").write_bytes(b"first\nsecond\nthi")
    (tmp_path / "1.jsonl").write_bytes(b"")
    journal = Journal(tmp_path)
    assert journal.adopt() == 2
    assert lines(journal, journal.backlog[0]) == [b"first", b"second"]
    assert lines(journal, journal.backlog[1]) == []
    while journal.backlog:
        journal.drop(journal.backlog[0])
    assert (files(tmp_path), journal.bytes) == ([], 0)
    journal.close()


def test_a_line_longer_than_a_read_is_read_whole(tmp_path: Path) -> None:
    (tmp_path / "0.jsonl").write_bytes(b"a" * 1000 + b"\n" + b"b\n")
    journal = Journal(tmp_path)
    journal.adopt()
    assert lines(journal, journal.backlog[0]) == [b"a" * 1000, b"b"]
    journal.close()


def test_a_living_process_keeps_its_segments(tmp_path: Path) -> None:
    living, other = Journal(tmp_path), Journal(tmp_path)
    segment = living.append(b"mine\n")
    assert other.adopt() == 0
    assert living.adopt() == 0
    living.close()
    assert other.adopt() == 1
    assert segment is not None
    assert [each.path for each in other.backlog] == [segment.path]
    assert Journal(tmp_path).adopt() == 0
    other.close()


def test_what_was_given_up_is_replayed_oldest_first(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.append(b"x" * SEGMENT_BYTES + b"\n")
    journal.append(b"2\n")
    journal.give_up()
    journal.append(b"3\n")
    journal.give_up()
    assert [lines(journal, segment, SEGMENT_BYTES * 2)[0][:1] for segment in journal.backlog] == [b"x", b"2", b"3"]
    journal.close()


def test_the_limit_holds(tmp_path: Path) -> None:
    journal = Journal(tmp_path, limit=10)
    segment = journal.append(b"12345678\n")
    assert segment is not None
    assert journal.append(b"1\n") is None
    journal.done(segment)
    assert journal.append(b"1\n") is segment
    journal.close()


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file may grow beyond 10,000 bytes: a write that crosses it is cut short, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("small_files")
def test_a_full_disk_leaves_no_half_batch(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    segment = journal.append(b"a" * 8_000 + b"\n")
    assert segment is not None
    assert journal.append(b"b" * 8_000 + b"\n") is None
    assert segment.path.read_bytes() == b"a" * 8_000 + b"\n"
    assert journal.append(b"c\n") is segment
    journal.close()
    assert Journal(tmp_path / "other").append(b"d" * 20_000 + b"\n") is None
    assert files(tmp_path / "other") == []


def test_a_folder_that_cannot_be_made_is_not_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    journal = Journal(tmp_path / "file" / "journal")
    assert journal.append(b"1\n") is None
    assert journal.adopt() == 0
    journal.close()
