"""An agent's files: paths have one spelling and cannot leave; others' files are read and never written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hortator.errors import HortatorError, InvalidRequest, NotFound, TooLarge
from hortator.orchestration.workspace import Workspace, normal
from tests.orchestration.files_in_memory import FilesInMemory, a_task

ROOT = a_task("root")
GROUP = a_task("group", parent="root")
FIRST = a_task("first", parent="group", name="collect facts")
SECOND = a_task("second", parent="group", dependencies=["first", "elsewhere"])
ELSEWHERE = a_task("elsewhere", root_id="other-root")


def workspace(scope: FilesInMemory, *, most_files: int = 10, most_bytes: int = 1000) -> Workspace:
    return Workspace(scope, SECOND, most_files=most_files, most_bytes=most_bytes)


def files_below(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def scope() -> FilesInMemory:
    scope = FilesInMemory(ROOT, GROUP, FIRST, SECOND, ELSEWHERE)
    scope.add_file("root", "inbox/order.txt", b"the client's")
    scope.add_file("root", "workspace/notes.md", b"the tribune's own")
    scope.add_file("group", "outbox/draft.md", b"the centurion's own")
    scope.add_file("first", "outbox/facts.md", b"facts")
    scope.add_file("first", "workspace/scratch.md", b"scratch")
    scope.add_file("elsewhere", "outbox/secret.md", b"of another tree")
    return scope


@pytest.mark.parametrize(
    ("path", "spelling"),
    [
        ("notes.md", "workspace/notes.md"),
        ("a/b.txt", "workspace/a/b.txt"),
        ("workspace/a", "workspace/a"),
        ("outbox/report.md", "outbox/report.md"),
        ("./outbox/report.md", "workspace/outbox/report.md"),
        ("inbox/./a", "inbox/a"),
        ("outboxes/a", "workspace/outboxes/a"),
        ("cafe\u0301.md", "workspace/caf\xe9.md"),
        ("a b.md", "workspace/a b.md"),
        (".hidden", "workspace/.hidden"),
    ],
)
def test_a_path_has_one_spelling(path: str, spelling: str) -> None:
    assert normal(path) == spelling


@pytest.mark.parametrize(
    "path",
    [
        *("", ".", "/", "..", "../a", "a/../../b", "outbox/../../etc/passwd", "inbox/..", "a//b", "a/", "outbox/"),
        *(
            "/etc/passwd",
            "/outbox/a",
            "a\0b",
            "a\nb",
            "a\\b",
            "..\\a",
            "C:\\a",
            "outbox\\..\\a",
            "\u2024\u2024/a",
            "\uff0e\uff0e/a",
        ),
        *("a\uff0f..\uff0fb", "a\u202eb", "a\u200bb", "\ud800", "...", " a", "a ", "a/ /b", "~\x7f", "\ue000"),
        *("a" * 301, "a/" * 12 + "b", "\u20ac" * 90),
    ],
)
def test_a_path_that_could_leave_or_deceive_is_refused(path: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        normal(path)
    assert refused.value.code == "invalid_file_path"


async def test_an_agent_sees_inputs_from_above_and_results_it_waited_for_and_no_more(scope: FilesInMemory) -> None:
    scope.add_file("second", "workspace/own.md", b"own")
    seen = [file.path for file in await workspace(scope).seen()]
    assert seen == ["inbox/collect-facts/facts.md", "inbox/order.txt", "workspace/own.md"]
    assert await workspace(scope).read("inbox/order.txt") == ("inbox/order.txt", b"the client's")
    assert await workspace(scope).read("inbox/collect-facts/facts.md") == ("inbox/collect-facts/facts.md", b"facts")
    for path in (
        "notes.md",
        "outbox/draft.md",
        "inbox/collect-facts/scratch.md",
        "inbox/elsewhere/secret.md",
        "inbox/secret.md",
    ):
        with pytest.raises(NotFound):
            await workspace(scope).read(path)


async def test_a_clients_file_is_read_by_the_name_it_has(scope: FilesInMemory, tmp_path: Path) -> None:
    odd = "inbox/" + "/".join("abcdefghijklmn") + "/cafe\u0301 (\uff0e\uff0e).txt"
    scope.add_file("root", odd, b"odd")
    scope.add_file("root", "inbox/../../escape", b"never laid out")
    assert odd in [file.path for file in await workspace(scope).seen()]
    assert await workspace(scope).read(odd) == (odd, b"odd")
    folder = tmp_path / "deep" / "folder"
    folder.mkdir(parents=True)
    await workspace(scope).lay_out(folder)
    assert files_below(tmp_path) == ["facts.md", "order.txt"]


async def test_what_is_delivered_is_told_and_other_files_are_not(scope: FilesInMemory) -> None:
    path, events = await workspace(scope).write("outbox/report.md", b"12345")
    assert (path, scope.paths("second")) == ("outbox/report.md", {"outbox/report.md": b"12345"})
    assert [(event.type, event.task_id, event.fields["details"]) for event in events] == [
        ("artifact_created", "second", {"path": "outbox/report.md", "bytes": 5})
    ]
    assert (await workspace(scope).write("notes.md", b""))[1] == ()


async def test_inputs_are_only_read(scope: FilesInMemory) -> None:
    with pytest.raises(InvalidRequest):
        await workspace(scope).write("inbox/order.txt", b"forged")
    assert scope.paths("root")["inbox/order.txt"] == b"the client's"


async def test_files_are_bounded_in_number_and_size(scope: FilesInMemory) -> None:
    space = workspace(scope, most_files=2, most_bytes=10)
    await space.write("a", b"12345")
    await space.write("b", b"12345")
    for path, content in (("c", b""), ("a", b"123456")):
        with pytest.raises(TooLarge) as refused:
            await space.write(path, content)
        assert refused.value.code == "workspace_full"
    await space.write("a", b"54321")


async def test_a_folder_is_laid_out_and_only_what_changed_comes_back(scope: FilesInMemory, tmp_path: Path) -> None:
    space = workspace(scope)
    await space.write("same.md", b"same")
    await space.write("changed.md", b"before")
    before = await space.lay_out(tmp_path)
    assert (tmp_path / "inbox/collect-facts/facts.md").read_bytes() == b"facts"
    (tmp_path / "inbox/order.txt").write_bytes(b"forged")
    (tmp_path / "workspace/changed.md").write_bytes(b"after!")
    (tmp_path / "outbox/deep").mkdir()
    (tmp_path / "outbox/deep/new.md").write_bytes(b"new")
    gathered = await space.gather(tmp_path, before)
    assert gathered.written == ("outbox/deep/new.md", "workspace/changed.md")
    assert [event.fields["details"]["path"] for event in gathered.events] == ["outbox/deep/new.md"]
    assert scope.paths("second") == {
        "outbox/deep/new.md": b"new",
        "workspace/changed.md": b"after!",
        "workspace/same.md": b"same",
    }
    assert scope.paths("root")["inbox/order.txt"] == b"the client's"


async def test_links_pipes_and_strange_names_in_a_folder_are_left_out(scope: FilesInMemory, tmp_path: Path) -> None:
    space = workspace(scope, most_bytes=100)
    folder = tmp_path / "folder"
    folder.mkdir()
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "key.pem").write_bytes(b"secret")
    before = await space.lay_out(folder)
    (folder / "outbox/link.pem").symlink_to(secret / "key.pem")
    (folder / "outbox/linked").symlink_to(secret)
    (folder / "outbox/relative").symlink_to("../../secret/key.pem")
    os.mkfifo(folder / "outbox/pipe")
    (folder / "outbox/large").write_bytes(b"a" * 101)
    (folder / "outbox" / os.fsdecode(b"\xff\xfe")).write_bytes(b"no name")
    (folder / "outbox/a\nb").write_bytes(b"two lines")
    deep = folder / "outbox"
    for _ in range(30):
        deep = deep / "d"
    deep.mkdir(parents=True)
    (deep / "file").write_bytes(b"deep")
    (folder / "outbox/good").write_bytes(b"good")
    gathered = await space.gather(folder, before)
    assert scope.paths("second") == {"outbox/good": b"good"}
    assert len(gathered.left_out) == 7


async def test_a_folder_swapped_for_a_link_is_not_followed(scope: FilesInMemory, tmp_path: Path) -> None:
    space = workspace(scope)
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/key.pem").write_bytes(b"secret")
    before = await space.lay_out(folder)
    (folder / "outbox").rmdir()
    (folder / "outbox").symlink_to(tmp_path / "secret")
    gathered = await space.gather(folder, before)
    assert scope.paths("second") == {}
    assert gathered.left_out == ()  # not even the names of what is there are told


async def test_too_many_files_are_not_laid_out(scope: FilesInMemory, tmp_path: Path) -> None:
    scope.add_file("root", "inbox/large", b"a" * 5000)
    with pytest.raises(HortatorError):
        await workspace(scope).lay_out(tmp_path)
