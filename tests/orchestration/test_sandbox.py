"""Commands of agents: what they cannot see, reach or leave behind. Needs bubblewrap, but for the tests of machines without it."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

import pytest

from hortator.errors import Unavailable
from hortator.orchestration.sandbox import MAX_OUTPUT, Ran, Sandbox
from tests.eventually import eventually

HERE = Path(__file__)
OUTSIDE = (Path("/"), Path("/usr"), Path("/dev"))


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    if shutil.which("bwrap") is None:
        pytest.skip("bubblewrap is not installed")
    box = Sandbox()
    refusal = asyncio.run(box.refusal())
    if refusal is not None:
        pytest.skip(refusal)
    return Sandbox()


async def sh(sandbox: Sandbox, command: str, *, seconds: float = 20, most_bytes: int = 1 << 20) -> Ran:
    async with sandbox.folder() as folder:
        return await sandbox.run(command, folder, seconds, most_bytes)


async def test_a_command_works_in_its_folder(sandbox: Sandbox) -> None:
    async with sandbox.folder() as folder:
        (folder / "a").write_text("b\n")
        ran = await sandbox.run("pwd; cat a; echo out > c; echo err >&2; exit 3", folder, 20, 1 << 20)
        assert (ran.status, ran.output, ran.ended) == (3, "/task\nb\nerr\n", "")
        assert (folder / "c").read_text() == "out\n"
    assert not folder.exists()


async def test_a_command_sees_no_file_of_ours(sandbox: Sandbox) -> None:
    ran = await sh(
        sandbox, f"cat {HERE} /etc/passwd /root/.profile /proc/self/root{HERE}; ls -A / /home /root /var /run /task/.."
    )
    assert HERE.name not in ran.output.replace(str(HERE), "")
    assert "root:x" not in ran.output
    assert "No such file" in ran.output


async def test_a_command_writes_nowhere_else(sandbox: Sandbox) -> None:
    ran = await sh(
        sandbox, "for at in / /usr /usr/bin /usr/lib /dev; do touch $at/hortator-was-here && echo WROTE $at; done; true"
    )
    assert "WROTE /usr" not in ran.output
    assert not any((at / "hortator-was-here").exists() for at in OUTSIDE)


async def test_a_command_has_no_network(sandbox: Sandbox) -> None:
    listener = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
    async with listener:
        port = listener.sockets[0].getsockname()[1]
        code = f"import socket; socket.create_connection(('127.0.0.1', {port}), 2); print('CONNECTED')"
        ran = await sh(sandbox, f"ls /sys/class/net 2>/dev/null; python3 -c \"{code}\" || perl -e 'print 1'")
    assert "CONNECTED" not in ran.output


async def test_a_command_sees_no_process_and_no_variable_of_ours(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_OF_THE_SERVER", "hunter2")
    ran = await sh(
        sandbox,
        f"env; cat /proc/*/environ /proc/*/cmdline | tr '\\0' '\\n'; ls -d /proc/{os.getpid()}; kill -9 {os.getpid()}",
    )
    assert "hunter2" not in ran.output
    assert "pytest" not in ran.output


async def test_a_command_gains_no_rights(sandbox: Sandbox) -> None:
    ran = await sh(
        sandbox,
        "grep CapEff /proc/self/status; unshare -Ur true && echo NESTED; mount -t tmpfs x /task && echo MOUNTED; true",
    )
    assert "NESTED" not in ran.output
    assert "MOUNTED" not in ran.output
    assert "CapEff:" not in ran.output or "CapEff:\t0000000000000000" in ran.output


async def test_links_out_of_the_folder_lead_nowhere(sandbox: Sandbox) -> None:
    async with sandbox.folder() as folder:
        await sandbox.run(
            "ln -s /etc/passwd a; ln -s / b; ln /usr/bin/env c; chmod 4755 a b; mkdir d; chmod 0 d", folder, 20, 1 << 20
        )
        assert (folder / "a").is_symlink()
        assert not (folder / "c").exists()
    assert not folder.exists()


async def test_a_command_that_takes_too_long_is_ended_with_all_it_started(sandbox: Sandbox) -> None:
    ran = await sh(sandbox, "setsid sleep 612.345 & sleep 612.345 & echo begun; wait", seconds=0.7)
    assert ran.status is None
    assert "longer than" in ran.ended
    assert ran.output == "begun\n"
    await eventually(lambda: b"612.345" not in b"".join(map(_command_line, Path("/proc").glob("[0-9]*"))))


def _command_line(process: Path) -> bytes:
    try:
        return (process / "cmdline").read_bytes()
    except OSError:
        return b""


async def test_a_cancelled_command_is_gone(sandbox: Sandbox) -> None:
    async with sandbox.folder() as folder:
        task = asyncio.create_task(sandbox.run("touch begun; sleep 600", folder, 60, 1 << 20))
        await eventually((folder / "begun").exists)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert not folder.exists()


async def test_a_command_that_fills_its_folder_is_ended(sandbox: Sandbox) -> None:
    ran = await sh(sandbox, "while :; do head -c 1000000 /dev/zero >> a; done", most_bytes=3_000_000)
    assert ran.ended == "it wrote too much"
    ran = await sh(sandbox, "i=0; while :; do i=$((i+1)); : > f$i; done")
    assert ran.ended == "it wrote too much"


async def test_folders_of_any_depth_are_removed(sandbox: Sandbox) -> None:
    way = "/".join("d" * 100)
    async with sandbox.folder() as folder:
        again = f"for i in 1 2 3 4 5 6 7 8 9 10 11 12; do mkdir -p {way} && cd {way} || exit 1; done"
        assert (await sandbox.run(again, folder, 20, 1 << 30)).status == 0
    assert not folder.exists()


async def test_output_is_cut_and_a_loud_command_ends(sandbox: Sandbox) -> None:
    ran = await sh(sandbox, "head -c 50000000 /dev/zero | tr '\\0' 'a'")
    assert (ran.status, len(ran.output), ran.cut) == (0, MAX_OUTPUT, True)


async def test_processes_are_bounded(sandbox: Sandbox) -> None:
    ran = await sh(sandbox, "i=0; while [ $i -lt 250 ]; do sleep 20 & i=$((i+1)); done; echo ALL")
    assert "ALL" not in ran.output
    assert "fork" in ran.output


async def test_memory_is_bounded(sandbox: Sandbox) -> None:
    ran = await sh(sandbox, "ulimit -v unlimited && echo RAISED; ulimit -v")
    assert "RAISED" not in ran.output
    assert ran.output.split()[-1] == "2097152"


@pytest.mark.parametrize("program", ["/nonexistent/bwrap", "/bin/false"])
async def test_without_a_sandbox_nothing_is_run(tmp_path: Path, program: str) -> None:
    sandbox = Sandbox(program)
    assert "bubblewrap" in (await sandbox.refusal() or "")
    with pytest.raises(Unavailable):
        await sandbox.run("touch ran", tmp_path, 1, 1000)
    assert not (tmp_path / "ran").exists()
