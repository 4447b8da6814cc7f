"""One connection to the bytes behind a URL; data/remote/streams.py makes a stream of as many as it takes.

- http(s)://  by the standard library: it holds no state that a forked loader worker could find broken
- pipe:…      the output of a shell command; an exit status other than 0 is a failure
- others      s3://, gs://, hf:// and whatever else fsspec knows
"""

import os
import re
import select
import signal
import ssl
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from http.client import InvalidURL
from typing import Any, NamedTuple

from whispertag.data.shards import ShardError

TIMEOUT = 30.0  # seconds without a byte: a failure
LATER = {408, 425, 429, 500, 502, 503, 504}  # HTTP statuses that may be others in a while
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "hf": "hub"}  # scheme → extra of this package


class Missing(ShardError):
    """Nothing at a URL, or nothing that one may read."""


class Version(NamedTuple):
    """What tells whether a URL still holds the same bytes: as far as the server tells."""

    size: int | None = None
    tag: str | None = None

    def known_with(self, other: "Version") -> "Version | None":
        """What both tell together, or None if they contradict each other."""
        if any(a is not None and b is not None and a != b for a, b in zip(self, other)):
            return None
        return Version(other.size if self.size is None else self.size, self.tag or other.tag)


class Connection(NamedTuple):
    """An open stream whose first byte is the `start`-th of the whole.

    read    n → at most n bytes, as soon as there are some; none at the end
    """

    read: Callable[[int], bytes]
    close: Callable[[], None]
    start: int
    version: Version


def connect(url: str, position: int = 0, n: int | None = None) -> Connection:
    """To the bytes from `position` on, or from the start where that cannot be; n: no more than so many are wanted.

    Raises Missing or another ShardError for what no retry mends, and whatever the backend raises for the rest.
    """
    if url.startswith("pipe:"):
        command = Command(url.removeprefix("pipe:"))
        return Connection(command.read, command.close, 0, Version())
    return _http(url, position, n) if url.startswith(("http://", "https://")) else _fsspec(url, position)


def _http(url: str, position: int, n: int | None) -> Connection:
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
            return _http(url, 0, None)
        raise Missing(f"missing shard {url} ({error.code} {error.reason})") from error
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise ShardError(f"{url}: {error.reason}") from error
        raise
    except (ValueError, InvalidURL) as error:
        raise ShardError(f"{url}: {error}") from error
    start, size = 0, response.length
    if response.status == 206:
        given = re.match(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if not given or int(given[1]) > position:
            raise ConnectionError(f"asked for bytes from {position}, given {response.headers.get('Content-Range')}")
        start, size = int(given[1]), None if given[2] == "*" else int(given[2])
    tag = response.headers.get("ETag") or response.headers.get("Last-Modified")
    return Connection(response.read1, response.close, start, Version(size, tag))


def _fsspec(url: str, position: int) -> Connection:
    system, path = _file_system(url)
    try:
        info, stream = system.info(path), system.open(path, "rb")
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise Missing(f"missing shard {url} ({error})") from error
    except Exception as error:
        if _for_good(error):
            raise ShardError(f"{url}: {error}") from error
        raise
    stream.seek(position)
    tags = (info.get(key) for key in ("ETag", "etag", "generation", "blob_id", "LastModified", "mtime", "created"))
    version = Version(info.get("size"), next((str(tag) for tag in tags if tag), None))
    return Connection(stream.read, stream.close, position, version)


def _for_good(error: Exception) -> bool:
    """Whether no retry mends it: there are no credentials, or the server calls it the client's fault."""
    response = getattr(error, "response", None)
    status = getattr(error, "code", None) or getattr(response, "status_code", None)
    refused = isinstance(status, int) and 400 <= status < 500 and status not in LATER
    return refused or "Credentials" in type(error).__name__  # botocore's and google.auth's have no base in common


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
        if self._process.returncode is None:  # or its number may be another's by now
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        if self._process.stdout:
            self._process.stdout.close()


def list_tars(url: str) -> list[str]:
    """The tars in a folder, for whatever fsspec can list; HTTP has no folders."""
    if url.startswith(("http://", "https://")):
        return []
    system, path = _file_system(url)
    try:
        return sorted(system.unstrip_protocol(tar) for tar in system.glob(f"{path.rstrip('/')}/*.tar"))
    except (FileNotFoundError, PermissionError) as error:
        raise Missing(f"missing folder {url} ({error})") from error
