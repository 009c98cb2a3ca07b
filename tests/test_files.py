"""Files appear whole or not at all."""

from __future__ import annotations

import os

import pytest

from forkpoint import InputError
from forkpoint.files import check_writable, write_atomically


def test_a_file_is_written_whole_in_utf8(tmp_path):
    path = tmp_path / "result.json"
    write_atomically(path, "1 × 2\n")
    write_atomically(path, "二\n")
    assert path.read_bytes() == "二\n".encode()
    assert os.listdir(tmp_path) == ["result.json"]


def test_what_can_not_be_written_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "result.json"
    write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "new \ud800")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["result.json"]


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
        str(raised.value) == f"{tmp_path} can't be written; expected a file in a folder that you may write to"
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_to(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(InputError, match="can't be written"):
            check_writable(tmp_path / "result.json")
    finally:
        tmp_path.chmod(0o700)
