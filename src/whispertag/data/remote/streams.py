"""Streams behind a URL that outlive broken connections."""

import io
import logging
import random
import time
import urllib.error
import zlib
from collections.abc import Callable
from contextlib import suppress
from email.utils import parsedate_to_datetime
from http.client import HTTPMessage
from typing import Any

from whispertag.data.remote.connections import Connection, Version, connect
from whispertag.data.shards import ShardError

log = logging.getLogger(__name__)
FIRST_WAIT, LONGEST_WAIT = 0.1, 60.0  # seconds; a failure waits 4 × as long as the one before it
MOST_OBEYED = 600.0  # seconds; a server's Retry-After beyond it is shortened to it
CHUNK = 2**18  # bytes read at once, at most


class BrokenOff(ShardError):
    """A stream that could not be read to its end, after all retries."""


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
        size = self.version.size if self.version else None
        if not data and size is not None and self._position < size:
            raise ConnectionError("the connection was closed too early")
        if data:
            self._failures = 0
        buffer[: len(data)] = data
        self._position += len(data)
        self._crc = zlib.crc32(data, self._crc)
        return len(data)

    def _reconnect(self, n: int | None = None) -> Connection:
        connection = self._connection = connect(self.url, self._position, n)
        version = (self.version or Version()).known_with(connection.version)
        if version is None:
            raise ShardError(f"{self.url} changed while it was read: {self.version}, now {connection.version}")
        at, crc = connection.start, 0
        while at < self._position:
            again = connection.read(min(CHUNK, self._position - at))
            if not again:
                raise ConnectionError("it ended before the place it was read to")
            at, crc = at + len(again), zlib.crc32(again, crc)
        if connection.start != self._position and (connection.start or crc != self._crc):
            raise ShardError(f"{self.url} gives other bytes than when it was first read")
        self.version = version
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


def look_at(url: str) -> None:
    """Raises Missing if there is nothing at a URL; commands are not tried."""
    if not url.startswith("pipe:"):
        with RemoteStream(url) as stream:
            stream.look()


def read_bytes(url: str) -> bytes:
    with RemoteStream(url) as stream:
        return stream.readall()


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
