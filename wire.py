"""One HTTP exchange with a deadline that nothing can stretch.

    status, headers, body = wire.exchange("POST", url, key, {"messages": [...]}, end)

A server that works on an answer keeps the connection alive with spaces, and each of them begins a read timeout anew
(facts of the protocol: one answer took 19 minutes that way). So the clock of the system ends the exchange, whatever
it waits for: the connection, a header, a byte of the body.

What is not covered: redirects are not followed, what is longer than MAX_ANSWER is no answer, and the look-up of a
name has the bounds of the system's resolver. Only the main thread can call this.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import log

MAX_ANSWER = 8_000_000  # bytes of an HTTP answer; the list of all models takes two
CHUNK = 65_536  # bytes read at a time
CONNECT = 10.0  # seconds for a connection, at most
CONNECT_SHARE = 0.9  # of the time, so that it is seen in the end that nothing was sent
SHORTEST = 0.001  # seconds; the clock takes less than a millionth of a second for none at all
AGAIN = 1.0  # seconds after which the alarm rings again, should something have swallowed it
CAUSE = 200  # characters of the network's own words that are shown


class Failed(Exception):
    """There was no whole answer. The message says why, without the key and without the address's secrets."""

    def __init__(self, message: str, sent: bool = True, lasting: bool = False) -> None:
        """sent: whether the server may have got the request. lasting: whether another try would end like this one."""
        super().__init__(message)
        self.sent = sent
        self.lasting = lasting


class _Late(Exception):
    """The deadline has come. No OSError: what catches those must not take it for one of the network's."""


def exchange(
    method: str, url: str, key: str | None, body: Mapping[str, Any] | None, end: float
) -> tuple[int, Mapping[str, str], bytes]:
    """Send one request and return status, headers (their names in any case) and body, unpacked.

    key: goes into the Authorization header and nowhere else. end: when to give up, of time.monotonic(). Raises Failed.
    """
    import requests

    def authorize(request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {key}"  # given as a header, a ~/.netrc would replace it
        return request

    data, left = bytearray(), end - time.monotonic()
    if left <= 0:
        raise Failed("no time left to ask", sent=False)
    try:
        with (
            _deadline(left),
            requests.request(
                method,
                url,
                json=body,
                headers={"Accept-Encoding": "identity"},
                auth=authorize if key else None,
                timeout=(min(CONNECT, CONNECT_SHARE * left), left),
                stream=True,
                allow_redirects=False,
            ) as response,
        ):
            for part in response.iter_content(CHUNK):
                data += part
                if len(data) > MAX_ANSWER:
                    raise Failed(f"the answer is longer than {MAX_ANSWER} bytes")
            return response.status_code, response.headers, bytes(data)
    except _Late:
        raise Failed(f"no whole answer within {left:.0f} s") from None
    except (requests.RequestException, ValueError) as error:  # ValueError: a url that is none
        raise _failed(error) from None  # its own text names the whole address


@contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    """Raise _Late in here when the time is over."""
    armed = True

    def ring(_number: int, _frame: object) -> None:
        if armed:
            raise _Late

    before = signal.signal(signal.SIGALRM, ring)
    try:
        signal.setitimer(signal.ITIMER_REAL, max(SHORTEST, seconds), AGAIN)
        try:
            yield
        finally:
            armed = False
    finally:  # also when it rang in the line above
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _failed(error: Exception) -> Failed:
    from urllib3.exceptions import MaxRetryError

    cause: object = error.args[0] if error.args else error
    unconnected, lasting = isinstance(cause, MaxRetryError), isinstance(error, ValueError)
    if isinstance(cause, MaxRetryError):
        cause = cause.reason  # without the address, whose path may hold what nobody else should read
    text = log.printable(f"{type(error).__name__}: {cause}")[:CAUSE]
    return Failed(text, sent=not (unconnected or lasting), lasting=lasting)
