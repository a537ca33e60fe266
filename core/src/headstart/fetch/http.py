"""HTTP transfers that resume where they were cut, on the standard library alone."""

from __future__ import annotations

import base64
import http.client
import json
import os
import re
import ssl
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit, urlunsplit

if TYPE_CHECKING:
    from typing import IO

CHUNK = 1 << 20
TIMEOUT = 30.0
"""Seconds without a byte before a connection counts as lost."""
WAITS = (0.5, 1.0, 2.0)
"""Seconds before each new try after a transfer that brought nothing new."""
PAGE_LIMIT = 64 << 20
RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})


class Progress(Protocol):
    """Told how a transfer goes; ``total_bytes`` is 0 while it is unknown."""

    def __call__(self, done_bytes: int, total_bytes: int, label: str) -> None: ...


class SourceError(Exception):
    """A source could not deliver, so the next one is tried.

    Attributes:
        whole: Nothing else will come from there either (no connection, no package).
    """

    def __init__(self, reason: str, *, whole: bool = False) -> None:
        super().__init__(reason)
        self.whole = whole


class _Interrupted(SourceError):
    """Worth another try: the connection was lost or the server is busy."""


class _Refused(SourceError):
    """The server answers, with an error that another try would not change."""

    def __init__(self, reason: str, status: int) -> None:
        super().__init__(reason)
        self.status = status


class _SecureRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        if req.type == "https" and not newurl.startswith("https:"):
            raise SourceError(f"{shown(req.full_url)} redirects to an unencrypted URL")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def shown(url: str) -> str:
    """A URL for messages, without user, password and query."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path, "", ""))


class Http:
    """A client with retries, resumed downloads and the system's proxy settings.

    Args:
        cert: Bundle or folder of certificates to trust instead of the system's.
        proxy: Proxy for every request instead of the environment's.
        progress: Told about downloads.
    """

    def __init__(
        self,
        *,
        cert: str | None = None,
        proxy: str | None = None,
        progress: Progress | None = None,
    ) -> None:
        folder = cert if cert and Path(cert).is_dir() else None
        context = ssl.create_default_context(
            cafile=None if folder else cert or None, capath=folder
        )
        proxies = {"http": proxy, "https": proxy} if proxy else None
        self._opener = urllib.request.build_opener(
            urllib.request.HTTPSHandler(context=context),
            urllib.request.ProxyHandler(proxies),
            _SecureRedirects(),
        )
        self._progress = progress
        self._logins: dict[str, str] = {}

    def check(self, url: str) -> None:
        """Whether the server answers at all, with whatever status.

        Raises:
            SourceError: No connection.
        """
        try:
            self._open(self._request(url, method="HEAD")).close()
        except _Interrupted as error:
            if error.whole:
                raise
        except SourceError:
            pass

    def page(self, url: str, accept: str) -> tuple[str, str, str] | None:
        """Text, content type and final URL of a page; ``None`` when there is none.

        Raises:
            SourceError: No connection, or the server refuses.
        """
        for wait in (*WAITS, None):
            try:
                request = self._request(url)
                request.add_header("Accept", accept)
                with self._open(request) as response:
                    body = _read(response, PAGE_LIMIT)
                    return (
                        body.decode("utf-8", "replace"),
                        response.headers.get_content_type(),
                        response.url,
                    )
            except _Refused as error:
                if error.status in (404, 410):
                    return None
                raise
            except _Interrupted:
                if wait is None:
                    raise
                time.sleep(wait)
        raise AssertionError("the last try returns or raises")

    def download(self, url: str, target: Path, *, size: int | None = None) -> None:
        """Bring ``url`` to ``target``, through ``target.part``, resumed if that exists.

        A resumed transfer asks for the rest on the condition that the file is still
        the same (``If-Range``), and starts again when it is not.

        Args:
            url: Where the bytes are.
            target: Where they go once all are there.
            size: How many there must be, if known.

        Raises:
            SourceError: No connection, or another size; ``.part`` stays after a cut.
            OSError: The disk.
        """
        part = target.with_name(f"{target.name}.part")
        waits = iter(WAITS)
        most = _size(part)
        while True:
            try:
                self._continue(url, part, target.name, size)
                break
            except _Interrupted:
                # Only a transfer that got further than any before is given new tries.
                if _size(part) > most:
                    most, waits = _size(part), iter(WAITS)
                wait = next(waits, None)
                if wait is None:
                    raise
                time.sleep(wait)
        os.replace(part, target)
        _note(part).unlink(missing_ok=True)

    def _continue(self, url: str, part: Path, label: str, size: int | None) -> None:
        request = self._request(url)
        have = _size(part)
        validator = _validator(part, url) if have else None
        if validator:
            request.add_header("Range", f"bytes={have}-")
            request.add_header("If-Range", validator)
        try:
            response = self._open(request)
        except _Refused as error:
            if validator and error.status == 416:
                part.unlink()
                raise _Interrupted(f"{shown(url)} cannot be resumed") from None
            raise
        with response:
            if response.status != 206:
                have = 0
            elif _range_start(response) != have:
                part.unlink()
                raise _Interrupted(f"{shown(url)} resumes at another place")
            length = response.headers.get("Content-Length")
            total = have + int(length) if length else None
            if size is not None and total is not None and total != size:
                raise SourceError(f"has {total} bytes, {size} were expected")
            _write_note(part, url, response)
            with part.open("ab" if have else "wb") as out:
                while chunk := _read(response, CHUNK):
                    have += len(chunk)
                    if size is not None and have > size:
                        raise SourceError(f"has more than {size} bytes")
                    out.write(chunk)
                    if self._progress:
                        self._progress(have, total or size or 0, label)
        if total is not None and have != total:
            why = f"{shown(url)} was cut at {have} of {total} bytes"
            raise _Interrupted(why, whole=True)

    def _request(self, url: str, method: str = "GET") -> urllib.request.Request:
        parts = urlsplit(url)
        login, _, host = parts.netloc.rpartition("@")
        if login:
            pair = unquote(login) if ":" in login else f"{unquote(login)}:"
            self._logins[host] = base64.b64encode(pair.encode()).decode()
        bare = urlunsplit(parts._replace(netloc=host, fragment=""))
        request = urllib.request.Request(bare, method=method)
        request.add_header("User-Agent", "headstart")
        request.add_header("Accept-Encoding", "identity")
        if host in self._logins:
            request.add_unredirected_header(
                "Authorization", f"Basic {self._logins[host]}"
            )
        return request

    def _open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        url = shown(request.full_url)
        try:
            response: http.client.HTTPResponse = self._opener.open(
                request, timeout=TIMEOUT
            )
            return response
        except HTTPError as error:
            error.close()
            why = f"{url} answers {error.code} {error.reason}"
            if error.code in RETRIED:
                raise _Interrupted(why) from None
            raise _Refused(why, error.code) from None
        except (URLError, OSError, http.client.HTTPException, ValueError) as error:
            cause = getattr(error, "reason", None) or error
            why = f"no connection to {urlsplit(url).netloc} ({cause})"
            if isinstance(cause, ssl.SSLCertVerificationError):
                raise SourceError(why, whole=True) from None
            raise _Interrupted(why, whole=True) from None


def _read(response: http.client.HTTPResponse, count: int) -> bytes:
    try:
        return response.read(count)
    except (OSError, http.client.HTTPException) as error:
        raise _Interrupted(
            f"{shown(response.url)} was cut ({error})", whole=True
        ) from None


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _range_start(response: http.client.HTTPResponse) -> int | None:
    found = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return int(found[1]) if found else None


def _note(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _validator(part: Path, url: str) -> str | None:
    try:
        note = json.loads(_note(part).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    if note.get("url") != shown(url):
        return None
    validator: str | None = note.get("validator")
    return validator


def _write_note(part: Path, url: str, response: http.client.HTTPResponse) -> None:
    etag = response.headers.get("ETag", "")
    # RFC 9110 (13.1.5): a weak entity tag must not be sent in If-Range.
    strong = etag if etag.startswith('"') else None
    note = {
        "url": shown(url),
        "validator": strong or response.headers.get("Last-Modified"),
    }
    _note(part).write_text(json.dumps(note), "utf-8")
