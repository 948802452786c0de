"""What a power cut leaves of a program's files: the bytes that it has synced, read from a trace by strace.

`replay` turns the trace of a program into the moments at which it said something on stdout, each
with the files as they would be found if the power went at that moment. A write counts for nothing
until a sync of its file that began after it has ended.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

TRACED_CALLS = "write,pwrite64,fsync,fdatasync,ftruncate,unlink"
# -xx: all texts, paths too, in hexadecimal. -s: more than the longest write, a page of SQLite.
OPTIONS = ("-f", "-y", "-xx", "-s", "70000", "-e", f"trace={TRACED_CALLS}")

CALL = re.compile(r'^(?P<pid>\d+) +(?P<name>\w+)\((?:\d+<(?P<path>[^>]*)>|"(?P<target>[^"]*)")(?P<rest>.*)$')
RESUMED = re.compile(r"^(?P<pid>\d+) +<\.\.\. (?P<name>\w+) resumed>.*= 0$")


@dataclass(frozen=True)
class Moment:
    """Something was said, at which these files were on the disk, after so many syncs."""

    said: str
    files: dict[str, bytes]
    syncs: int


def text_of(hexadecimal: str) -> bytes:
    return bytes.fromhex(hexadecimal.replace("\\x", ""))


class Disk:
    """Files as the program sees them, and as they are behind the cache."""

    def __init__(self) -> None:
        self.cached: dict[str, bytearray] = {}
        self.synced: dict[str, bytes] = {}
        self.syncs = 0
        self._under_way: dict[str, tuple[str, bytes]] = {}

    def write(self, path: str, data: bytes, offset: int) -> None:
        file = self.cached.setdefault(path, bytearray())
        file.extend(bytes(max(0, offset - len(file))))
        file[offset : offset + len(data)] = data

    def truncate(self, path: str, size: int) -> None:
        del self.cached.setdefault(path, bytearray())[size:]

    def unlink(self, path: str) -> None:
        self.cached.pop(path, None)
        self.synced.pop(path, None)

    def begin_sync(self, pid: str, path: str) -> None:
        self._under_way[pid] = (path, bytes(self.cached.get(path, b"")))

    def end_sync(self, pid: str) -> None:
        path, content = self._under_way.pop(pid)
        self.synced[path] = content
        self.syncs += 1


def replay(trace: Path, store: Path) -> Iterator[Moment]:
    """The moments at which the traced program wrote to stdout."""
    disk = Disk()
    for line in trace.read_text().splitlines():
        resumed = RESUMED.match(line)
        if resumed is not None and resumed["name"] in ("fsync", "fdatasync"):
            disk.end_sync(resumed["pid"])
        call = CALL.match(line)
        if call is None:
            continue
        path = text_of(call["path"] or call["target"]).decode()
        if path.startswith(str(store)):
            apply(disk, path, call)
        elif call["name"] == "write" and "(1<" in line:
            said = text_of(call["rest"].split('"')[1]).decode().strip()
            yield Moment(said, dict(disk.synced), disk.syncs)


def apply(disk: Disk, path: str, call: re.Match[str]) -> None:
    """Do to the disk what the call did."""
    name, rest = call["name"], call["rest"]
    if name == "pwrite64":
        _, data, numbers = rest.split('"')
        assert not numbers.startswith("..."), "the trace was cut short"
        disk.write(path, text_of(data), int(numbers.split(",")[2].split(")")[0].split()[0]))
    elif name == "ftruncate":
        disk.truncate(path, int(re.findall(r"\d+", rest)[0]))
    elif name == "unlink":
        disk.unlink(path)
    elif name in ("fsync", "fdatasync"):
        disk.begin_sync(call["pid"], path)
        if rest.endswith("= 0"):
            disk.end_sync(call["pid"])
    else:
        raise AssertionError(f"{name} on {path} is not replayed")


def restore(files: dict[str, bytes], folder: Path, names: Sequence[str]) -> None:
    """Lay the files out as after the next boot, under `folder`; those that were never synced are missing."""
    for name in names:
        (folder / name).unlink(missing_ok=True)
    for path, content in files.items():
        (folder / Path(path).name).write_bytes(content)
