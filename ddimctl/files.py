"""Files are written whole or not at all: a temporary file in the same folder, fsync, rename, fsync of the folder.

A reader never sees half a file, and a crash leaves the old file as it was. What a killed process leaves behind is a
hidden ``.NAME.0.tmp``, which nothing reads. A living writer holds a lock on its temporary file, so a dead one's is
known for what it is: the next writer of the same name, or `clean`, removes it.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Collection, Iterator
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, Protocol, runtime_checkable

from ddimctl.errors import DDIMError, FileError, UsageError
from ddimctl.places import is_special as is_special
from ddimctl.places import is_stdout, is_stream

try:
    import fcntl
except ImportError:  # Windows: nothing is ever taken for stale there
    fcntl = None  # type: ignore[assignment]

OPEN = ("/dev/fd/", "/proc/self/fd/", "/dev/stdin")  # where what the process was given lies, such as a shell's <(…)
TEMPORARY = re.compile(r"\..*\.\d+\.tmp", re.DOTALL)  # what `atomic_path` names its files


@runtime_checkable
class Held(Protocol):
    """Bytes that are no file of their own, such as a tar's member."""

    @property
    def name(self) -> str: ...

    def read(self) -> bytes: ...


def digest(path: Path) -> str | None:
    """SHA-256 of a file's content; None if it cannot be read."""
    try:
        return sha256(path.read_bytes()) if not is_stream(path) and path.is_file() else None
    except OSError:
        return None


def refuse_source(path: Path, sources: Collection[str]) -> None:
    """Raises `UsageError` if `path` holds one of `sources`, SHA-256 of files that something was made from."""
    if sources and digest(path) in sources:
        raise UsageError(f"{path} is the picture that was encoded, and is left alone", hint="name another file with -o")


def refuse_existing(path: Path, force: bool, makes_folder: bool = False) -> None:
    """Raises `UsageError` if `path` exists and `force` is false, or if no file can be put there.

    A pipe or a device such as /dev/null may always be written to. A link counts as existing even if it leads nowhere.
    Its folder has to be there, unless the command makes it.
    """
    if is_stream(path):
        return
    if path.is_dir():
        raise UsageError(f"{path} is a folder", hint="name a file")
    if os.path.lexists(path) and not force and not is_special(path):
        raise UsageError(f"{path} exists already", hint=f"name another file; --force writes over it ({_told(path)})")
    if not makes_folder and not path.parent.is_dir():
        hint = "a file is called that" if exists(path.parent) else f"make it first: mkdir -p {path.parent}"
        raise UsageError(f"there is no folder {path.parent}", hint=hint)


def _told(path: Path) -> str:
    """What would be lost where `path` were written over: its size and age, or where it leads."""
    try:
        if path.is_symlink():
            return f"a link to {path.readlink()}"
        about = path.stat()
    except OSError:
        return "a link"
    return f"{about.st_size:,} bytes of {datetime.fromtimestamp(about.st_mtime):%Y-%m-%d %H:%M}"


def bundled_folder() -> Path:
    """Where the bundled models lie: inside the installed package, or beside it in a checkout."""
    inside = Path(__file__).parent / "models"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "models"


def exists(path: Path) -> bool:
    """As `path.exists()`, also for what no file could be called."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def refuse_special(path: Path) -> None:
    """Raises `UsageError` if `path` is a device, which need never end, or a pipe, which opening may wait for for ever.

    A pipe that is open already may be read: standard input, or what a shell makes of <(…).
    """
    if not is_special(path):
        return
    pipe = path.is_fifo()
    if not (pipe and str(path).startswith(OPEN)):
        hint = f"images are read from a pipe as standard input: - < {path}" if pipe else "name a file"
        raise UsageError(f"{path} is a pipe or a device, not a file", hint=hint)


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields an empty temporary file beside `path`; what is in it becomes `path` when the block ends well.

    Where `path` is a link, the file it leads to is replaced and the link stays. Permissions are the umask's. Raises
    `DDIMError` where the system refuses (no such folder, read-only, full).
    """
    try:
        if is_special(path):
            with tempfile.TemporaryDirectory() as folder:
                temporary = Path(folder) / f"stream{path.suffix}"
                temporary.touch()
                yield temporary
                with temporary.open("rb") as source, _sink(path) as sink:
                    shutil.copyfileobj(source, sink)
            return
        target = Path(os.path.realpath(path))
        with _temporary(target) as (temporary, mode):
            yield temporary
            with temporary.open("rb+") as f:
                os.fsync(f.fileno())
            temporary.chmod(mode)  # some writers set their own
            temporary.replace(target)
            _fsync_folder(target.parent)
    except BrokenPipeError:
        raise
    except OSError as e:
        raise DDIMError(f"cannot write {path}: {e.strerror or e}") from e


@contextlib.contextmanager
def _sink(path: Path) -> Iterator[BinaryIO]:
    if not is_stdout(path):
        with path.open("wb") as f:
            yield f
        return
    sys.stdout.flush()
    yield sys.stdout.buffer
    sys.stdout.buffer.flush()


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """As `atomic_path`, with the temporary file opened for writing."""
    with atomic_path(path) as temporary, temporary.open("wb") as f:
        yield f


def write_bytes(path: Path, data: bytes) -> None:
    """Writes `data` to `path`, whole or not at all."""
    with atomic_file(path) as f:
        f.write(data)


def read_bytes(path: Path, limit: int) -> bytes:
    """The whole of a file that may come from anybody.

    Raises `UsageError` if there is none, it is a device or it cannot be opened, `FileError` if it holds more than
    `limit` bytes or reading fails.
    """
    refuse_special(path)
    try:
        with path.open("rb") as f:
            try:
                size = os.fstat(f.fileno()).st_size  # a read takes as much memory as it is allowed to return
                data = f.read(min(limit, size) + 1)
                while len(data) <= limit and (more := f.read(min(limit + 1 - len(data), 1 << 20))):
                    data += more  # of a file that grows, or that does not know its size
            except OSError as e:
                raise FileError(f"cannot read {path}: {e.strerror or e}") from e
    except FileNotFoundError as e:
        raise UsageError(f"there is no file {path}") from e
    except IsADirectoryError as e:
        raise UsageError(f"{path} is a folder", hint="name a file") from e
    except (OSError, ValueError) as e:  # ValueError: a NUL in the name
        raise UsageError(f"cannot open {path}: {getattr(e, 'strerror', None) or e}") from e
    if len(data) > limit:
        raise FileError(f"{path} is larger than the {limit / 2**20:,.0f} MiB that are read")
    return data


def read_stdin(limit: int) -> bytes:
    """All of standard input. Raises `UsageError` if it is closed, `FileError` if it holds more than `limit` bytes."""
    if sys.stdin is None:
        raise UsageError("standard input is closed", hint="name a file, or pipe one in")
    data = sys.stdin.buffer.read(limit + 1)
    if len(data) > limit:
        raise FileError(f"standard input holds more than {limit:,} bytes")
    return data


def find(folder: Path, suffixes: Collection[str]) -> list[Path]:
    """The files below `folder` with one of these (lower-case) suffixes, sorted.

    Nothing hidden, no folders that are links, and no pipes or devices, which would be waited for. A link that leads
    nowhere is found: reading it says so. Raises `DDIMError` if a folder cannot be listed.
    """

    def refuse(e: OSError) -> None:
        raise DDIMError(f"cannot list {e.filename}: {e.strerror or e}") from e

    found = []
    for path, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [f for f in folders if not f.startswith(".")]
        here = (Path(path, n) for n in names if not n.startswith("."))
        found += [p for p in here if p.suffix.lower() in suffixes and (p.is_file() or not p.exists())]
    return sorted(found)


def make_folder(path: Path) -> None:
    """Makes `path` and its parents. Raises `DDIMError` where that is not possible."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise DDIMError(f"cannot make the folder {path}: {e.strerror or e}") from e


def clean(folder: Path) -> int:
    """Removes the temporary files that killed writers left in `folder`, not below it. Returns their number."""
    removed = 0
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if TEMPORARY.fullmatch(entry.name):
                removed += _remove_if_stale(Path(entry.path))
    return removed


def sha256(data: bytes | bytearray | memoryview) -> str:
    return hashlib.sha256(data).hexdigest()


@contextlib.contextmanager
def _temporary(target: Path) -> Iterator[tuple[Path, int]]:
    """A new, empty, locked file beside `target`, and the permissions that the umask gave it. It does not stay."""
    stem = os.fsdecode(os.fsencode(target.name)[:200])  # names end at 255 bytes
    fd, temporary = -1, target
    try:
        for slot in itertools.count():
            temporary = target.with_name(f".{stem}.{slot}.tmp")
            fd = _create(temporary)
            if fd >= 0:
                break
        yield temporary, stat.S_IMODE(os.fstat(fd).st_mode)
    finally:  # also where a signal came between any two lines: an unlocked file counts as stale
        if fd >= 0:
            os.close(fd)
        if TEMPORARY.fullmatch(temporary.name) and not _remove_if_stale(temporary) and fcntl is None and fd >= 0:
            temporary.unlink(missing_ok=True)


def _create(temporary: Path) -> int:
    """The descriptor of a new file, locked; −1 if a living writer has that name."""
    while True:
        try:
            fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            if _remove_if_stale(temporary):
                continue
            return -1
        try:
            if not _lock(fd) or _same(fd, temporary):
                return fd
            os.close(fd)  # somebody took it for stale before it was locked
        except BaseException:
            os.close(fd)
            raise


def _remove_if_stale(temporary: Path) -> bool:
    """Removes a temporary file that no living process has locked, and says whether it did."""
    if fcntl is None:
        return False
    try:
        fd = os.open(temporary, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not _same(fd, temporary):
            return False
        temporary.unlink()
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


def _lock(fd: int) -> bool:
    """Locks an open file until it is closed, where the system has locks."""
    if fcntl is None:
        return False
    with contextlib.suppress(OSError):  # a file system without locks
        fcntl.flock(fd, fcntl.LOCK_EX)
        return True
    return False


def _same(fd: int, path: Path) -> bool:
    """Whether the open file is the one that `path` names now."""
    try:
        return os.path.samestat(os.fstat(fd), path.stat(follow_symlinks=False))
    except FileNotFoundError:
        return False


def _fsync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # not every file system can
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
