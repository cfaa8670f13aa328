"""Files whole or not at all: whoever is killed, wherever the disk ends, however many write."""

from __future__ import annotations

import os
import resource
import signal
import stat
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from ddimctl import files
from ddimctl.errors import DDIMError, FileError, UsageError


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_a_file_is_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    files.write_bytes(path, b"one")
    files.write_bytes(path, b"two")
    assert path.read_bytes() == b"two"
    assert names(tmp_path) == ["a.bin"]


def fail_half_way(path: Path, error: type[BaseException]) -> None:
    with files.atomic_file(path) as f:
        f.write(b"half")
        raise error


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    for error in (ValueError, KeyboardInterrupt, FileExistsError):
        with pytest.raises((error, DDIMError)):
            fail_half_way(path, error)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a.bin"]


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_permissions_are_the_umasks(mask: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        files.write_bytes(tmp_path / "a", b"")
        with files.atomic_path(tmp_path / "b") as temporary:
            temporary.chmod(0o600)  # as safetensors does
    finally:
        os.umask(before)
    for name in "ab":
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o666 & ~mask


def test_a_link_stays_and_its_target_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    target, link = tmp_path / "real" / "data", tmp_path / "link"
    target.write_bytes(b"old")
    link.symlink_to(target)
    files.write_bytes(link, b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"
    assert names(tmp_path / "real") == ["data"]


def test_existing_files_are_refused_without_force(tmp_path: Path) -> None:
    path = tmp_path / "a"
    files.refuse_existing(path, force=False)
    path.touch()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for taken in (path, tmp_path / "dangling"):
        with pytest.raises(UsageError, match="exists already"):
            files.refuse_existing(taken, force=False)
        files.refuse_existing(taken, force=True)
    with pytest.raises(UsageError, match="is a folder"):
        files.refuse_existing(tmp_path, force=True)
    files.refuse_existing(Path("/dev/null"), force=False)


def test_devices_and_pipes_are_written_to_not_replaced(tmp_path: Path) -> None:
    files.write_bytes(Path("/dev/null"), b"x")
    assert files.is_special(Path("/dev/null"))
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = subprocess.Popen(["cat", pipe], stdout=subprocess.PIPE)
    files.write_bytes(pipe, b"through")
    assert reader.communicate()[0] == b"through"
    assert files.is_special(pipe)


def test_the_system_refusing_is_an_expected_error(tmp_path: Path) -> None:
    with pytest.raises(DDIMError, match=r"cannot write .*No such file or directory"):
        files.write_bytes(tmp_path / "none" / "a", b"")
    (tmp_path / "file").touch()
    with pytest.raises(DDIMError, match=r"cannot write .*Not a directory"):
        files.write_bytes(tmp_path / "file" / "a", b"")
    with pytest.raises(DDIMError, match=r"cannot write .*too long"):
        files.write_bytes(tmp_path / ("n" * 300), b"")
    with pytest.raises(DDIMError, match="cannot make the folder"):
        files.make_folder(tmp_path / "file" / "b")


@pytest.mark.parametrize("name", ["n" * 255, "ü" * 127, "-", " ", "a\nb", os.fsdecode(b"\xff\xfe")])
def test_odd_names(name: str, tmp_path: Path) -> None:
    files.write_bytes(tmp_path / name, b"x")
    assert names(tmp_path) == [name]


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(DDIMError, match=r"cannot write .*too large"):
            files.write_bytes(path, bytes(100_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


def test_stale_temporaries_are_cleaned_and_living_ones_are_not(tmp_path: Path) -> None:
    path = tmp_path / "a"
    for slot in range(3):
        (tmp_path / f".a.{slot}.tmp").write_bytes(b"half")
    files.write_bytes(path, b"whole")  # takes over the first slot
    assert names(tmp_path) == [".a.1.tmp", ".a.2.tmp", "a"]
    (tmp_path / ".b.0.tmp").touch()
    (tmp_path / ".user.tmp").touch()
    with files.atomic_path(path) as living:
        assert files.clean(tmp_path) == 3
        assert living.exists()
        living.write_bytes(b"newer")
    assert path.read_bytes() == b"newer"
    assert names(tmp_path) == [".user.tmp", "a"]
    assert files.clean(tmp_path / "none") == 0


WRITER = textwrap.dedent("""
    import os, sys
    from pathlib import Path
    from ddimctl import files
    path, me = Path(sys.argv[1]), sys.argv[2].encode()
    print(flush=True)
    for i in range(int(sys.argv[3])):
        files.write_bytes(path, me * 20_000)
""")


def start(path: Path, me: str, times: int) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-c", WRITER, path, me, str(times)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def test_eight_writers_one_winner(tmp_path: Path) -> None:
    path = tmp_path / "a"
    writers = [start(path, me, 40) for me in "12345678"]
    seen = set()
    while any(w.poll() is None for w in writers):
        if path.exists():
            seen.add(path.read_bytes())
    assert [w.returncode for w in writers] == [0] * 8
    seen.add(path.read_bytes())
    assert seen <= {me * 20_000 for me in (b"1", b"2", b"3", b"4", b"5", b"6", b"7", b"8")}
    assert names(tmp_path) == ["a"]


def test_kill_while_writing(tmp_path: Path) -> None:
    path = tmp_path / "a"
    for i in range(10):
        writer = start(path, "x", 10**6)
        time.sleep(0.003 * i)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        assert not path.exists() or path.read_bytes() == b"x" * 20_000
    files.clean(tmp_path)
    assert names(tmp_path) in ([], ["a"])


def test_reading_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(bytes(100))
    assert files.read_bytes(path, 100) == bytes(100)
    with pytest.raises(FileError, match="larger than"):
        files.read_bytes(path, 99)
    for missing in (tmp_path / "none", Path("a\0b"), path / "below", tmp_path):
        with pytest.raises(UsageError):
            files.read_bytes(missing, 100)


def test_no_pipe_is_waited_for_and_no_device_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path / "link", Path("/dev/zero"), Path(os.devnull)):
        with pytest.raises(UsageError, match="a pipe or a device"):
            files.read_bytes(path, 1000)


@pytest.mark.skipif(not Path("/dev/fd").exists(), reason="no such names here")
def test_a_pipe_that_is_open_already_is_read() -> None:
    reader, writer = os.pipe()
    os.write(writer, b"through")
    os.close(writer)
    assert files.read_bytes(Path(f"/dev/fd/{reader}"), 1000) == b"through"
    os.close(reader)
