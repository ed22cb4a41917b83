"""One HTTP exchange with a deadline that nothing can stretch.

    status, headers, body = wire.exchange("POST", url, key, {"messages": [...]}, end)

What is not covered: redirects are not followed, and what is longer than MAX_ANSWER is no answer.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

MAX_ANSWER = 8_000_000  # bytes of an HTTP answer; the list of all models takes two
CONNECT = 10.0  # seconds for a connection


class Failed(Exception):
    """There was no whole answer. The message says why."""


def exchange(
    method: str, url: str, key: str | None, body: Mapping[str, Any] | None, end: float
) -> tuple[int, Mapping[str, str], bytes]:
    """Send one request and return status, headers (their names in any case) and body.

    key: goes into the Authorization header and nowhere else. end: when to give up, of time.monotonic(). A server keeps
    a connection alive with spaces, and each of them begins a read timeout anew; so every byte is looked at the clock.
    Raises Failed.
    """
    import requests

    def authorize(request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {key}"  # given as a header, a ~/.netrc would replace it
        return request

    data, left = bytearray(), end - time.monotonic()
    if left <= 0:
        raise Failed("no time left to ask")
    try:
        with requests.request(
            method,
            url,
            json=body,
            headers={"Accept-Encoding": "identity"},  # what is unpacked hides the spaces
            auth=authorize if key else None,
            timeout=(min(CONNECT, left), left),
            stream=True,
            allow_redirects=False,
        ) as response:
            for byte in response.iter_content(1):  # more at a time would be waited for, however slowly it drips
                data += byte
                if time.monotonic() > end or len(data) > MAX_ANSWER:
                    raise Failed(f"no whole answer within {left:.0f} s and {MAX_ANSWER} bytes")
            return response.status_code, response.headers, bytes(data)
    except (requests.RequestException, ValueError) as error:  # ValueError: a url that is none
        raise Failed(f"{type(error).__name__}: {error}") from error
