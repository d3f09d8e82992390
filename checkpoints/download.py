"""A file from an address: whole, or an error. A broken download goes on only where the server proves that it is the same file.

`torch.hub` and `huggingface_hub` do not promise this: see docs/decisions.md.
"""

import base64
import errno
import hashlib
import http.client
import json
import re
import shutil
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import SplitResult, unquote, urlsplit

from rich.progress import BarColumn, TimeRemainingColumn

from checkpoints import reading, store, terminal
from checkpoints.cli import UserError, WorkError
from checkpoints.once import make_once

BLOCK = 1 << 20
PATIENCE = 30
"""Seconds that a server may take to respond."""
MOST = 1 << 36
"""Bytes of one file, 64 GiB: twenty times the largest published checkpoint, and more than a shard."""
SPARE = 1 << 30
"""Bytes of the disk that a response of unknown length leaves free."""
SLOWEST, WINDOW = 1 << 20, 300.0
"""Bytes that must come within so many seconds."""
PAUSES = (0.0, 1.0, 3.0)
"""Seconds before each try."""
PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Answers after which another try may help."""
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
NUMBER = "([0-9]{1,18})"
STRONG = re.compile(r'"[\x21\x23-\x7e]{1,200}"')
"""An ETag that two different files never share (RFC 9110, 8.8.1)."""


class Refused(RuntimeError):
    """The response is not the file, and a retry will not help."""


class Changed(ConnectionError):
    """The part on disk cannot be continued."""


class Kept(NamedTuple):
    """Stored facts on the file of which a part was downloaded."""

    address: str
    """A digest of it, for addresses may hold passwords."""
    etag: str
    size: int
    """Bytes of the whole."""


def fetch(address: str, path: Path, check: Callable[[Path], None], *, typed: bool = False) -> bool:
    """Put the file at an address to `path` unless it is there, in one process of all that ask: whether this call has fetched it.

    `check` looks at the file before it has its name, and raises UserError if it is another one. Addresses are https, or http
    where the user has `typed` them or on this machine. Raises WorkError, and leaves of a broken download only what is safe to
    continue.
    """
    try:
        return make_once(path, partial(_fill, address, typed), partial(_checked, check, address, path))
    except OSError as error:
        raise WorkError(cannot_store(address, error)) from error


def cannot_store(address: str, error: OSError) -> str:
    """The error message for a file that cannot be written."""
    what = f": {error.filename}" if error.filename else ""
    return f"{shown(address)} could not be stored ({why(error)}{what}): make room, or see to the folder"


def _checked(check: Callable[[Path], None], address: str, path: Path, part: Path) -> None:
    try:
        check(part)
    except UserError as error:
        _forget(part)
        reason = str(error).replace(str(part), path.name)
        raise WorkError(f"{shown(address)} gave something else, which was not kept: {reason}") from error
    _note(part).unlink(missing_ok=True)


def _fill(address: str, typed: bool, part: Path) -> None:
    """Try a few times. Raises WorkError where the network or the server fails, OSError where the disk does."""
    for number, pause in enumerate(PAUSES, 1):
        time.sleep(pause)
        try:
            return _try(address, typed, part)
        except (Refused, http.client.HTTPException, ValueError, OSError) as error:
            if not _is_networks(error):
                _forget(part)
                raise
            if number < len(PAUSES) and _may_pass(error):
                continue
            again = _continued(part)
            raise WorkError(
                f"{shown(address)} could not be fetched ({why(error)}){again}: try again, or give the file itself"
            ) from error


def _is_networks(error: Exception) -> bool:
    """Whether it is the network's or the server's fault, not the disk's."""
    kinds = (urllib.error.URLError, ConnectionError, TimeoutError, ssl.SSLError)
    return not isinstance(error, OSError) or isinstance(error, kinds)


def _may_pass(error: Exception) -> bool:
    if isinstance(error, urllib.error.HTTPError):
        return error.code in PASSING
    if isinstance(getattr(error, "reason", None), ssl.SSLCertVerificationError):
        return False
    return not isinstance(error, (Refused, ValueError))


def _continued(part: Path) -> str:
    """A phrase on a part, which is removed if it cannot be continued."""
    if _kept(part) is None:
        _forget(part)
        return ""
    return f"; what there is of it stays at {part} and is continued"


def _try(address: str, typed: bool, part: Path) -> None:
    """Fetch what is still missing of a file."""
    request = _request(address, typed)
    kept = _kept(part)
    if kept is None or kept.address != _digest(address) or part.stat().st_size > kept.size:
        kept = None
        _forget(part)
    have = part.stat().st_size if kept else 0
    if kept and have == kept.size:
        return
    if kept:
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", kept.etag)
    try:
        with _opener().open(request, timeout=PATIENCE) as answer:
            size = _continues(answer, have, kept) if answer.status == 206 else _begins(answer, address, part)
            _receive(answer, part, size, min(MOST, shutil.disk_usage(part.parent).free - SPARE) if size is None else size)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code != 416 or not kept:
            raise
        _forget(part)
        raise Changed("the file there has changed") from error
    except Changed:
        _forget(part)
        raise


def _begins(answer: Any, address: str, part: Path) -> int | None:
    """The size of a file that comes from its beginning, None where its end will be marked. The part is empty then."""
    _forget(part)
    if answer.status != 200:
        raise Refused(f"the server answered {answer.status}")
    encoding = answer.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding != "identity":
        raise Refused(f"the server sends it encoded as {plain(encoding)}, which was not asked for")
    if answer.headers.get("Transfer-Encoding", "").strip().lower() == "chunked":
        return None
    length = re.fullmatch(NUMBER, answer.headers.get("Content-Length", "").strip())
    if length is None:
        raise Refused("the server does not say how long it is")
    if int(length[1]) > MOST:
        raise Refused(f"it is larger than {MOST >> 30} GiB")
    size, etag = int(length[1]), answer.headers.get("ETag", "").strip()
    free = shutil.disk_usage(part.parent).free
    if size > free:
        raise OSError(errno.ENOSPC, f"it has {size >> 20:,} MB, {free >> 20:,} MB are free", str(part.parent))
    if STRONG.fullmatch(etag) and answer.headers.get("Accept-Ranges", "").strip().lower() != "none":
        store.write_bytes(_note(part), json.dumps(Kept(_digest(address), etag, size)._asdict()).encode())
    return size


def _continues(answer: Any, have: int, kept: Kept | None) -> int:
    """The size of the file of which the rest comes. Raises ConnectionError, for a new beginning, if it is not that rest."""
    found = re.fullmatch(f"bytes {NUMBER}-{NUMBER}/{NUMBER}", answer.headers.get("Content-Range", "").strip())
    same = kept and answer.headers.get("ETag", "").strip() == kept.etag and not answer.headers.get("Content-Encoding")
    if kept and same and found and [int(number) for number in found.groups()] == [have, kept.size - 1, kept.size]:
        return kept.size
    raise Changed("the server gave another part than the one asked for")


def _receive(answer: Any, part: Path, size: int | None, most: int) -> None:
    """Append what comes to the part. Raises ConnectionError where it is not all, Refused for more than `most` bytes."""
    columns = (terminal.Description(), BarColumn(), TimeRemainingColumn())
    with open(part, "ab") as file, terminal.bar(*columns, console=terminal.Console(stderr=True), transient=True) as bar:
        have = file.tell()
        task = bar.add_task(f"fetching {part.name.removesuffix('.part')}", total=size, completed=have)
        since, had = time.monotonic(), have
        while block := answer.read1(BLOCK):
            have += len(block)
            if size is not None and have > size:
                raise Changed(f"more than {size} bytes came")
            if have > most:
                raise Refused(f"it does not say how long it is, and has more than {max(most, 0) >> 20:,} MB")
            file.write(block)
            bar.advance(task, len(block))
            if time.monotonic() - since > WINDOW:
                if have - had < SLOWEST:
                    raise ConnectionError(f"fewer than {SLOWEST >> 20} MB came in {WINDOW / 60:.0f} minutes")
                since, had = time.monotonic(), have
    if size is not None and have != size:
        raise ConnectionError(f"only {have} of {size} bytes came")


# The note beside a part: without it the part is worth nothing.


def _note(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _kept(part: Path) -> Kept | None:
    """The facts stored beside a part."""
    try:
        found = Kept(**reading.values(_note(part)))
        good = isinstance(found.size, int) and isinstance(found.etag, str) and STRONG.fullmatch(found.etag) and part.is_file()
        return found if good else None
    except (OSError, ValueError, TypeError):
        return None


def _forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    _note(part).unlink(missing_ok=True)


# Addresses


def _request(address: str, typed: bool) -> urllib.request.Request:
    """Raises Refused for an address that is neither https nor http where that is allowed."""
    parts = urlsplit(address)
    if parts.scheme != "https" and not (parts.scheme == "http" and (typed or parts.hostname in LOOPBACK)):
        raise Refused("only https is fetched from")
    request = urllib.request.Request(_without_user(parts).geturl(), headers={"Accept-Encoding": "identity"})
    if parts.username is not None:
        user = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
        request.add_unredirected_header("Authorization", f"Basic {base64.b64encode(user).decode()}")
    return request


def _without_user(parts: SplitResult) -> SplitResult:
    return parts._replace(netloc=parts.netloc.rpartition("@")[2])


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to https only, or from http to http."""

    http_error_308 = urllib.request.HTTPRedirectHandler.http_error_302  # Python 3.10 does not know it

    def redirect_request(self, req, fp, code, msg, headers, newurl):  # type: ignore[no-untyped-def]
        scheme = urlsplit(newurl).scheme
        if scheme != "https" and (scheme, urlsplit(req.full_url).scheme) != ("http", "http"):
            raise Refused(f"it leads to {plain(shown(newurl))}, which is not https")
        return super().redirect_request(req, fp, 307 if code == 308 else code, msg, headers, newurl)


def _opener() -> urllib.request.OpenerDirector:
    """http and https alone: urllib's own would also open files, ftp and data."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _Redirects(),
    ):
        opener.add_handler(handler)
    return opener


def _digest(address: str) -> str:
    return hashlib.sha256(address.encode()).hexdigest()


def shown(address: str) -> str:
    """An address without its user and password."""
    return re.sub(r"//[^/@]*@", "//", address)


def plain(text: str) -> str:
    """Foreign words for a message: one line, without control characters."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)[:200]


def why(error: BaseException) -> str:
    """The reason of a failure in a few words."""
    reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or store.first_line(error)
    return plain(str(reason))
