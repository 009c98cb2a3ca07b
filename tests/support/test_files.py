"""Files appear whole or not at all."""

from __future__ import annotations

import os
import pty
import resource
import signal
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import forkpoint
from forkpoint import InputError
from forkpoint.support.files import check_writable, is_file, unfinished_folder, write_atomically


def test_a_file_is_written_whole_in_utf8(tmp_path):
    path = tmp_path / "result.json"
    write_atomically(path, "1 × 2\n")
    write_atomically(path, "二 \ud800\n")
    assert path.read_bytes() == "二 \\ud800\n".encode()
    assert os.listdir(tmp_path) == ["result.json"]


def test_the_permissions_are_the_usual_ones_or_those_of_the_file_that_is_replaced(tmp_path):
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "new", "text")
        (tmp_path / "old").touch()
        (tmp_path / "old").chmod(0o604)
        write_atomically(tmp_path / "old", "text")
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {"new": 0o640, "old": 0o604}


def test_an_interrupt_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    write_atomically(path, "old")

    def interrupted(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["result.json"]


def alone(
    code: str, *arguments: object, limit: int | None = None, **options
) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own, which may write files of at most `limit` bytes."""
    given = "import sys\nfrom pathlib import Path\nfrom forkpoint.support.files import *\nfrom forkpoint import InputError\n"

    def limited() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    options.setdefault("capture_output", True)
    environment = os.environ | {"PYTHONPATH": str(Path(forkpoint.__file__).parents[1])}
    return subprocess.run(
        [sys.executable, "-c", given + code, *map(str, arguments)], preexec_fn=limited, text=True, check=False,
        env=environment, **options,
    )  # fmt: skip


def test_a_limit_on_the_size_of_files_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "result.json"
    write_atomically(path, "old")
    done = alone(
        "try: write_atomically(Path(sys.argv[1]), 'x' * 100_000)\nexcept InputError as error: print(error)",
        path, limit=1000,
    )  # fmt: skip
    assert done.stdout == f"{path} can't be written: File too large; expected room and permission to write\n"
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["result.json"]


# --- links, and what is no file ----------------------------------------------------------------------------


def test_the_target_of_a_link_is_written_and_the_link_stays(tmp_path):
    (tmp_path / "folder").mkdir()
    for name in ("there", "not yet"):
        link = tmp_path / f"link to {name}"
        link.symlink_to(Path("folder") / name)
        if name == "there":
            (tmp_path / "folder" / name).write_text("old")
        write_atomically(link, "new")
        assert link.is_symlink()
        assert (tmp_path / "folder" / name).read_text() == "new"
    assert sorted(os.listdir(tmp_path / "folder")) == ["not yet", "there"]


def test_a_link_that_leads_nowhere(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(InputError, match=r"loop can't be written: Too many levels of symbolic links"):
        check_writable(tmp_path / "loop")
    (tmp_path / "link").symlink_to(tmp_path / "absent" / "file")
    with pytest.raises(InputError, match=f"link: no folder {tmp_path / 'absent'}; expected"):
        write_atomically(tmp_path / "link", "text")


def test_a_terminal_is_written_to():
    """As is any other character device: /dev/null as root was replaced by a file once."""
    ours, theirs = pty.openpty()
    try:
        path = Path(os.ttyname(theirs))
        write_atomically(path, "text\n")
        assert os.read(ours, 100) == b"text\r\n"
        assert stat.S_ISCHR(path.stat().st_mode)
    finally:
        os.close(ours)
        os.close(theirs)


def test_a_pipe_is_written_to(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    write_atomically(pipe, "text")
    reader.join()
    assert read == ["text"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert (is_file(pipe), is_file(tmp_path / "new")) == (False, True)


def test_devices_that_take_everything_or_nothing():
    write_atomically(Path("/dev/null"), "text")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    with pytest.raises(InputError, match=r"^/dev/full can't be written: No space left on device; expected"):
        write_atomically(Path("/dev/full"), "text")


def test_standard_output_is_written_to_after_what_was_printed_before(tmp_path):
    code = "print('before')\nwrite_atomically(Path('/dev/stdout'), 'text\\n')\nprint('after')"
    assert alone(code).stdout == "before\ntext\nafter\n"
    with (tmp_path / "out").open("w") as file:
        alone(code, stdout=file, capture_output=False)
    assert (tmp_path / "out").read_text() == "before\ntext\nafter\n"
    assert os.listdir(tmp_path) == ["out"]


def test_a_socket(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the name of a socket is short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        with pytest.raises(
            InputError, match=r"socket can't be written; expected a file, not a folder, a disk or"
        ):
            write_atomically(tmp_path / "socket", "text")
    assert stat.S_ISSOCK((tmp_path / "socket").stat().st_mode)


@pytest.mark.parametrize("name", ["x" * 300, "x\0y", "x\ud800"])
def test_names_that_no_file_can_have(tmp_path, name):
    with pytest.raises(InputError, match="can't be written"):
        write_atomically(tmp_path / name, "text")
    assert os.listdir(tmp_path) == []


# --- what killed processes leave ---------------------------------------------------------------------------


def leave_behind(folder: Path) -> list[Path]:
    """What a process leaves that is killed while it writes a file and a folder, as if it were an hour ago."""
    done = alone(
        "import os, signal\n"
        "os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)\n"
        "with unfinished_folder(Path(sys.argv[1])) as folder:\n"
        "    (folder / 'half').touch()\n"
        "    write_atomically(Path(sys.argv[1]) / 'result.json', 'text')\n",
        folder,
    )
    assert done.returncode == -signal.SIGKILL
    left = sorted(folder.iterdir())
    for path in left:
        os.utime(path, (0, path.stat().st_mtime - 3600))
    return left


def test_what_a_killed_process_left_is_recognised_and_removed(tmp_path):
    left = leave_behind(tmp_path)
    assert len(left) == 2
    assert all(path.match(".forkpoint-*.unfinished") for path in left)
    write_atomically(tmp_path / "result.json", "text")
    assert os.listdir(tmp_path) == ["result.json"]


def test_what_is_being_written_or_belongs_to_others_stays(tmp_path):
    mine = [tmp_path / ".forkpoint-1-a.unfinish", tmp_path / "forkpoint-1-a.unfinished"]
    link = tmp_path / ".forkpoint-1-a.unfinished"
    link.symlink_to(mine[0])
    new = tmp_path / ".forkpoint-1-b.unfinished"
    with unfinished_folder(tmp_path) as busy:
        for path in (*mine, new):
            path.touch()
        for path in (busy, *mine):
            os.utime(path, (0, 0))
        write_atomically(tmp_path / "result.json", "text")
        assert sorted(tmp_path.iterdir()) == sorted([*mine, link, new, busy, tmp_path / "result.json"])


# --- what can't be written ---------------------------------------------------------------------------------


def test_a_folder_that_does_not_exist(tmp_path):
    path = tmp_path / "absent" / "result.json"
    with pytest.raises(InputError) as raised:
        check_writable(path)
    folder = tmp_path / "absent"
    assert str(raised.value) == (
        f"{path}: no folder {folder}; expected a file in a folder that exists (mkdir -p {folder})"
    )


def test_a_folder_in_the_place_of_the_file(tmp_path):
    with pytest.raises(InputError) as raised:
        write_atomically(tmp_path, "text")
    assert (
        str(raised.value) == f"{tmp_path} can't be written; expected a file, not a folder, a disk or a socket"
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_file_that_is_read_only(tmp_path):
    path = tmp_path / "result.json"
    path.write_text("old")
    path.chmod(0o400)
    with pytest.raises(InputError, match="is read-only; expected a file that you may write to"):
        write_atomically(path, "new")
    assert path.read_text() == "old"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_to(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(InputError, match="can't be written"):
            check_writable(tmp_path / "result.json")
    finally:
        tmp_path.chmod(0o700)
