"""Bytes from elsewhere: streams behind a URL that outlive broken connections.

- http(s)://  by the standard library: it holds no state that a forked loader worker could find broken
- pipe:…      the output of a shell command; an exit status other than 0 is a failure
- others      s3://, gs://, hf:// and whatever else fsspec knows
"""

import io
import logging
import os
import random
import re
import select
import signal
import subprocess
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable
from contextlib import suppress
from email.utils import parsedate_to_datetime
from http.client import HTTPMessage
from typing import Any, NamedTuple

from whispertag.data.shards import ShardError

log = logging.getLogger(__name__)
TIMEOUT = 30.0  # seconds without a byte: a failure
FIRST_WAIT, LONGEST_WAIT = 0.1, 60.0  # seconds; a failure waits 4 × as long as the one before it
MOST_OBEYED = 600.0  # seconds; a server's Retry-After beyond it is shortened to it
LATER = {408, 425, 429, 500, 502, 503, 504}  # HTTP statuses that may be others in a while
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "hf": "hub"}  # scheme → extra of this package
CHUNK = 2**18  # bytes read at once, at most


class Missing(ShardError):
    """Nothing at a URL, or nothing that one may read."""


class BrokenOff(ShardError):
    """A stream that could not be read to its end, after all retries."""


class Version(NamedTuple):
    """What tells whether a URL still holds the same bytes: as far as the server tells."""

    size: int | None = None
    tag: str | None = None


class Connection(NamedTuple):
    """An open stream whose first byte is the `start`-th of the whole.

    read    n → at most n bytes, as soon as there are some; none at the end
    """

    read: Callable[[int], bytes]
    close: Callable[[], None]
    start: int
    version: Version


class RemoteStream(io.RawIOBase):
    """The bytes behind a URL, each once and in order, over as many connections as it takes.

    After an error, silence or a premature end it waits (exponentially longer, with jitter), connects anew and goes on
    where it was: by a range request, or where a server or a command cannot do that, by reading up to there again.
    Raises BrokenOff after `retries` failures without a byte between them, Missing if there is nothing at the URL,
    ShardError if it changed meanwhile. An error stays: each further read raises it again.
    """

    def __init__(self, url: str, retries: int = 8):
        self.url, self.retries = url, retries
        self.version: Version | None = None
        self._connect: Callable[[str, int, int | None], Connection] = _connector(url)
        self._connection: Connection | None = None
        self._position, self._crc, self._failures = 0, 0, 0
        self._error: ShardError | None = None

    def readable(self) -> bool:
        return True

    def open(self) -> Version:
        """Connect now, so that what is missing shows before anything is read."""
        while self.version is None or self._error:
            self._trying(self._reconnect)
        return self.version

    def look(self) -> Version:
        """What is at the URL, for the price of a byte where the server knows ranges."""
        while self.version is None or self._error:
            self._trying(lambda: self._reconnect(1))
        self._disconnect()
        return self.version

    def readinto(self, buffer: Any) -> int:
        while (n := self._trying(lambda: self._read(buffer))) is None:
            pass
        return n

    def _trying(self, act: Callable[[], Any]) -> Any:
        """Its result, or None if it failed and may be tried again."""
        if self._error:
            raise self._error
        try:
            return act()
        except ShardError as error:
            self._error = error
            raise
        except Exception as error:  # every backend raises classes of its own; the last one is shown to the user
            self._wait(error)
            return None

    def _read(self, buffer: Any) -> int:
        connection = self._connection or self._reconnect()
        data = connection.read(len(buffer))
        size = connection.version.size
        if not data and size is not None and self._position < size:
            raise ConnectionError("the connection was closed too early")
        if data:
            self._failures = 0
        buffer[: len(data)] = data
        self._position += len(data)
        self._crc = zlib.crc32(data, self._crc)
        return len(data)

    def _reconnect(self, n: int | None = None) -> Connection:
        connection = self._connection = self._connect(self.url, self._position, n)
        if (self.version or connection.version) != connection.version:
            raise ShardError(f"{self.url} changed while it was read: {self.version}, now {connection.version}")
        at, crc = connection.start, 0
        while at < self._position:
            again = connection.read(min(CHUNK, self._position - at))
            if not again:
                raise ConnectionError("it ended before the place it was read to")
            at, crc = at + len(again), zlib.crc32(again, crc)
        if connection.start != self._position and (connection.start or crc != self._crc):
            raise ShardError(f"{self.url} gives other bytes than when it was first read")
        self.version = connection.version
        return connection

    def _wait(self, error: Exception) -> None:
        """Before the next try. Raises BrokenOff if there have been enough."""
        self._disconnect()
        self._failures += 1
        where = f"{self.url} at byte {self._position:,}"
        if self._failures > self.retries:
            self._error = BrokenOff(f"{where}: {_said(error)}; given up after {self.retries} retries")
            raise self._error from error
        seconds = min(LONGEST_WAIT, FIRST_WAIT * 4 ** (self._failures - 1)) * random.SystemRandom().uniform(0.5, 1)
        seconds = max(seconds, _retry_after(getattr(error, "headers", None)))
        level = logging.WARNING if self._failures > 1 else logging.INFO
        log.log(level, "%s: %s; retry %d of %d in %.1f s", where, _said(error), self._failures, self.retries, seconds)
        time.sleep(seconds)

    def _disconnect(self) -> None:
        if self._connection:
            with suppress(Exception):  # of a connection that is broken already
                self._connection.close()
            self._connection = None

    def close(self) -> None:
        self._disconnect()
        super().close()


def is_remote(place: str) -> bool:
    """Whether this is a URL or a pipe, and no path."""
    return place.startswith("pipe:") or re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", place) is not None


def look_at(url: str) -> None:
    """Raises Missing if there is nothing at a URL; commands are not tried."""
    if not url.startswith("pipe:"):
        with RemoteStream(url) as stream:
            stream.look()


def read_bytes(url: str) -> bytes:
    with RemoteStream(url) as stream:
        return stream.readall()


def list_tars(url: str) -> list[str]:
    """The tars in a folder, for whatever fsspec can list; HTTP has no folders."""
    if url.startswith(("http://", "https://")):
        return []
    system, path = _file_system(url)
    try:
        return sorted(system.unstrip_protocol(tar) for tar in system.glob(f"{path.rstrip('/')}/*.tar"))
    except (FileNotFoundError, PermissionError) as error:
        raise Missing(f"missing folder {url} ({_said(error)})") from error


def _connector(url: str) -> Callable[[str, int, int | None], Connection]:
    if url.startswith("pipe:"):
        return _pipe
    return _http if url.startswith(("http://", "https://")) else _fsspec


def _http(url: str, position: int, n: int | None = None) -> Connection:
    """From `position` on: all, or no more than n bytes where the server knows ranges."""
    # identity: a position in compressed bytes would be another one.
    headers = {"User-Agent": "whispertag", "Accept-Encoding": "identity"}
    headers |= {"Range": f"bytes={position}-{position + n - 1 if n else ''}"} if position or n else {}
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code in LATER:
            raise
        if error.code == 416 and position == 0:  # an empty file has no first byte
            return _http(url, 0)
        raise Missing(f"missing shard {url} ({error.code} {error.reason})") from error
    except ValueError as error:  # also a certificate that is not valid, which no retry mends
        raise ShardError(f"{url}: {error}") from error
    start, size = 0, response.length
    if response.status == 206:
        given = re.match(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if not given or int(given[1]) > position:
            raise ConnectionError(f"asked for bytes from {position}, given {response.headers.get('Content-Range')}")
        start, size = int(given[1]), None if given[2] == "*" else int(given[2])
    tag = response.headers.get("ETag") or response.headers.get("Last-Modified")
    return Connection(response.read1, response.close, start, Version(size, tag))


def _fsspec(url: str, position: int, n: int | None = None) -> Connection:
    system, path = _file_system(url)
    try:
        info, stream = system.info(path), system.open(path, "rb")
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise Missing(f"missing shard {url} ({_said(error)})") from error
    stream.seek(position)
    tags = (info.get(key) for key in ("ETag", "etag", "generation", "blob_id", "LastModified", "mtime", "created"))
    version = Version(info.get("size"), next((str(tag) for tag in tags if tag), None))
    return Connection(stream.read, stream.close, position, version)


def _file_system(url: str) -> tuple[Any, str]:
    """→ (fsspec's file system, the path in it). Raises ShardError if it is unknown or not installed."""
    import fsspec

    scheme = url.split("://")[0]
    try:
        system, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        what = f"pip install 'whispertag[{EXTRAS[scheme]}]'" if scheme in EXTRAS else str(error)
        raise ShardError(f"{url}: {scheme}:// needs {what}") from error
    except ValueError as error:  # a scheme that fsspec does not know
        raise ShardError(f"{url}: {error}") from error
    system.invalidate_cache()  # or a shard that changed would look as before
    return system, path


def _pipe(url: str, position: int, n: int | None = None) -> Connection:
    command = Command(url.removeprefix("pipe:"))
    return Connection(command.read, command.close, 0, Version())


class Command:
    """What a shell command prints. It is ended, with all it started, when the stream is closed."""

    def __init__(self, command: str):
        self._process = subprocess.Popen(
            command, shell=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, bufsize=0, start_new_session=True
        )

    def read(self, n: int) -> bytes:
        output: Any = self._process.stdout
        poll = select.poll()
        poll.register(output, select.POLLIN)
        if not poll.poll(TIMEOUT * 1000):
            raise TimeoutError(f"nothing for {TIMEOUT:.0f} s")
        if not (data := output.read(n)) and (status := self._process.wait(TIMEOUT)):
            raise ConnectionError(f"exit status {status}")
        return data

    def close(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        if self._process.stdout:
            self._process.stdout.close()


def _said(error: BaseException) -> str:
    reason = getattr(error, "reason", None) if isinstance(error, urllib.error.URLError) else None
    if isinstance(error, urllib.error.HTTPError):
        return f"{error.code} {error.reason}"
    return str(reason or error) or type(error).__name__


def _retry_after(headers: HTTPMessage | None) -> float:
    """Seconds that a server asks to wait, given as such or as a date; 0 if it does not."""
    text = headers.get("Retry-After", "") if headers else ""
    if text.isdecimal():
        return min(float(text), MOST_OBEYED)
    with suppress(ValueError, TypeError):
        return min(max(0.0, parsedate_to_datetime(text).timestamp() - time.time()), MOST_OBEYED)
    return 0.0
