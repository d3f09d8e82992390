"""The members of a tar file, read header by header: what is damaged is passed over and named, where `tarfile` would stop.

A header is a block of 512 bytes with a sum of its own. After a damaged one the next good one is searched for.
"""

import os
import re
import tarfile
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from checkpoints.cli import UserError
from checkpoints.store import first_line

BLOCK = tarfile.BLOCKSIZE
LONGEST_HEADER = 1 << 20
"""Bytes of an extended header; names and times take some hundred."""
LONGEST_NAME = 4096
SEARCH = 1 << 20
"""Bytes that are read at a time while the next header is searched for."""
MOST_LOST = 0.2
"""Share of a shard that may be damaged before all of it is refused."""
MAGIC, MAGIC_AT = re.compile(rb"ustar[\0 ]"), 257
COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"PK\3\4")
PAX = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.XGLTYPE)
NAMES = {tarfile.GNUTYPE_LONGNAME: "path", tarfile.GNUTYPE_LONGLINK: "linkpath"}
LINKS = (tarfile.LNKTYPE, tarfile.SYMTYPE)
FILES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
OTHERS = (tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)


class Member(NamedTuple):
    """A file in a tar: where its bytes lie, or, of a link, what it names. `fault`: why it cannot be used."""

    name: str
    offset: int = 0
    size: int = 0
    target: str | None = None
    symbolic: bool = False
    fault: str | None = None


def members(path: str) -> Iterator[Member]:
    """Every file and link of a tar, those that cannot be used with their fault.

    Raises UserError for what is no plain tar file, or is damaged in more than MOST_LOST of it, and for one without an end
    mark, which was cut off: how much is missing cannot be known.
    """
    if not os.path.isfile(path):
        raise UserError(f"there is no shard {path}")
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            yield from _Reader(path, file).members()
    except OSError as error:
        raise UserError(f"the shard {path} cannot be read ({first_line(error)})") from error


class _Reader:
    def __init__(self, path: str, file: BinaryIO) -> None:
        self._path, self._file = path, file
        self._length = os.fstat(file.fileno()).st_size
        self._full = self._length - self._zeros_at_end()
        self._ended = False
        self._place = self._lost = self._good = 0
        self._before: dict[str, str] = {}
        self._shared: dict[str, str] = {}
        self._fault: str | None = None

    def _refuse(self, why: str) -> UserError:
        return UserError(
            f"the shard {self._path} is no plain, whole tar file ({why}): write or fetch it anew, unpack compressed ones"
        )

    def _read(self, place: int, size: int) -> bytes:
        return os.pread(self._file.fileno(), size, place)

    def members(self) -> Iterator[Member]:
        if self._read(0, 8).startswith(COMPRESSED):
            raise self._refuse("it is compressed")
        while not self._ended:
            block = self._read(self._place, BLOCK)
            if block and not block.strip(b"\0"):
                start, self._place = self._place, self._after_zeros(self._place)
                if self._place >= self._length:
                    break
                if self._header(self._place) is None:  # a header that was overwritten, or something behind the end
                    yield self._damaged(start, self._search(self._place))
            elif (header := self._header(self._place)) is not None:
                self._good += 1
                found = self._extended(header) if header.type in PAX or header.type in NAMES else self._member(header)
                if found is not None:
                    yield found
            elif self._place + BLOCK > self._length:
                raise self._refuse(f"it breaks off after {self._good} members and has no end mark")
            else:
                yield self._damaged(self._place, self._search(self._place))
        if self._lost > MOST_LOST * self._full:
            raise self._refuse(f"{self._lost} of its bytes are damaged")

    def _header(self, place: int) -> tarfile.TarInfo | None:
        """The header at a place, if a good one is there."""
        try:
            return tarfile.TarInfo.frombuf(self._read(place, BLOCK), "utf-8", "surrogateescape")
        except (tarfile.HeaderError, ValueError):
            return None

    def _zeros_at_end(self) -> int:
        """Number of zero bytes at the end of the file; tar pads with some thousand."""
        tail = self._read(max(self._length - SEARCH, 0), SEARCH)
        return len(tail) - len(tail.rstrip(b"\0"))

    def _after_zeros(self, place: int) -> int:
        """Offset of the first block that is not empty."""
        while block := self._read(place, SEARCH):
            if rest := block.lstrip(b"\0"):
                return place + (len(block) - len(rest)) // BLOCK * BLOCK
            place += len(block)
        return self._length

    def _search(self, start: int) -> int:
        """Offset of the next valid header after `start`, at any byte; the file's length if there is none."""
        place = start
        while block := self._read(place, SEARCH + MAGIC_AT + 8):
            for match in MAGIC.finditer(block):
                found = place + match.start() - MAGIC_AT
                if found > start and self._header(found) is not None:
                    return found
            place += SEARCH
        return self._length

    def _damaged(self, start: int, end: int) -> Member:
        """Go on at `end`. Raises UserError where that is the end of a file that was cut off."""
        if end >= self._length and self._read(max(self._length - BLOCK, 0), BLOCK).strip(b"\0"):
            raise self._refuse(f"it breaks off or is damaged after {self._good} members")
        self._ended = end >= self._length
        self._lost += max(min(end, self._full) - start, 0)
        self._place, self._before, self._fault = end, {}, None
        return Member(f"the member at byte {start}", fault="with a damaged header")

    def _too_long(self, header: tarfile.TarInfo, size: int) -> Member:
        """A member that claims to be longer than the rest of the file; the next header may follow its own."""
        start = self._place
        found = self._search(start)
        self._damaged(start, found)
        return Member(header.name, fault=f"of an impossible size of {size} bytes")

    def _extended(self, header: tarfile.TarInfo) -> Member | None:
        """Store the fields of an extended header, for the next member or for all."""
        start = self._place + BLOCK
        if not 0 <= header.size <= min(LONGEST_HEADER, self._length - start):
            return self._too_long(header, header.size)
        content = self._read(start, header.size)
        self._place = start + -(-header.size // BLOCK) * BLOCK
        if header.type in NAMES:
            name = content.partition(b"\0")[0].decode("utf-8", "surrogateescape")
            self._before[NAMES[header.type]] = name
            self._fault = self._fault if name and len(name) <= LONGEST_NAME else "with a broken extended header"
            return None
        values = _pax(content)
        if values is None:
            self._fault = "with a broken extended header"
        elif header.type == tarfile.XGLTYPE:
            self._shared |= values
        else:
            self._before |= values
        return None

    def _member(self, header: tarfile.TarInfo) -> Member | None:
        """The member that a header describes, None for a folder; moves the position behind it."""
        values, fault = self._shared | self._before, self._fault
        name, target = values.get("path", header.name), values.get("linkpath", header.linkname)
        size, start = header.size, self._place + BLOCK
        if "size" in values:
            size, fault = (int(values["size"]), fault) if values["size"].isdecimal() else (size, "with a broken extended header")
        if header.type == tarfile.GNUTYPE_SPARSE:
            start, fault = self._after_map(start), fault or "sparse"
        elif any(key.startswith("GNU.sparse.") for key in values):
            name, fault = values.get("GNU.sparse.name", name), fault or "sparse"
        size = 0 if header.type in (*LINKS, *OTHERS, tarfile.DIRTYPE) else size
        if not 0 <= size <= self._length - start:
            return self._too_long(header, size)
        self._place, self._before, self._fault = start + -(-size // BLOCK) * BLOCK, {}, None
        if header.type == tarfile.DIRTYPE:
            return None
        if "\0" in name or len(name) > LONGEST_NAME:
            fault = fault or "with an impossible name"
        if header.type in LINKS:
            return Member(name, target=target, symbolic=header.type == tarfile.SYMTYPE, fault=fault)
        if header.type in OTHERS:
            fault = "no plain file, but a pipe or device"
        elif header.type not in (*FILES, tarfile.GNUTYPE_SPARSE):
            fault = fault or f"of the unknown kind {header.type!r}"
        return Member(name, start, size, fault=fault)

    def _after_map(self, start: int) -> int:
        """Offset of the content of an old sparse file, behind the blocks that continue its map."""
        more = bool(self._read(start - BLOCK + 482, 1).strip(b"\0"))
        while more and start < self._length:
            more, start = bool(self._read(start + 504, 1).strip(b"\0")), start + BLOCK
        return start


def _pax(content: bytes) -> dict[str, str] | None:
    """Keys and values of an extended header, None for a broken one."""
    values, place = {}, 0
    while place < len(content) and content[place]:
        length, blank, _ = content[place : place + 8].partition(b" ")
        record = content[place : place + int(length)] if blank and length.isdigit() else b""
        key, equals, value = record[len(length) + 1 :].partition(b"=")
        if not equals or not key or len(record) != int(length) or not value.endswith(b"\n"):
            return None
        values[key.decode("utf-8", "surrogateescape")] = value[:-1].decode("utf-8", "surrogateescape")
        place += int(length)
    return values
