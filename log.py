"""Log lines, and the mask for secrets and personal data that everything written goes through.

    log.register_secrets(os.environ)
    log.start(folder, "INFO", max_size)    to the console, and JSON lines to combined.log, errors also to error.log
    log.info("criterion api is met", criterion="api")

Limitations: a secret that was encoded (base64, hex), was split over two lines, or has fewer than 8 characters, is not
masked. Where a worker without a sandbox removes a log file, the lines of that run are lost.
"""

from __future__ import annotations

import functools
import io
import json
import logging
import logging.handlers
import os
import re
import shutil
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import is_dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

TRACE = 5  # level below DEBUG
MASK = "***"
MIN_SECRET = 8  # characters; shorter values would mask ordinary words

# Ends of words that make the value of a variable a secret; KEYBOARD and AUTHOR have none of them.
SECRET_NAME = re.compile(r"(?i)(KEY|TOKEN|SECRET|PASSW(OR)?D|PASSPHRASE|CREDENTIAL)S?(_|$)|(^|_)(PASS|PWD|AUTH)(_|$)")
PLAIN_NAME = re.compile(r"^PWD$|MAX_.*TOKENS$")  # the shell's folder, and settings of Claude Code
# What looks like a secret: how keys begin in the families that gitleaks and secretlint agree on, and some more shapes;
# entropy would mask commit hashes.
PREFIXES = r"""
    sk- [sr]k_(?:live|test)_ whsec_ gh[pousr]_ github_pat_ glpat- xox[abprs]- xapp- xoxe- AIza GOCSPX- ya29\. pypi-AgE
    AGE-SECRET-KEY-1 shp(?:at|ss|ca|pa)_ gsk_ dckr_pat_ do[opr]_v1_ hvs\. glsa_ SG\.
"""
TOKENS = (
    rf"(?:{'|'.join(PREFIXES.split())})[\w-]{{20,}}(?:\.[\w-]{{20,}})*",
    r"(?:AKIA|ASIA)[A-Z0-9]{16}\b",  # AWS
    r"(?:npm|hf)_[A-Za-z0-9]{30,}",
    r"(?<!-)eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]*",  # a JSON web token
    r"(?:hooks\.slack\.com/(?:services|workflows|triggers)|discord(?:app)?\.com/api/(?:v\d+/)?webhooks)/[\w/-]{20,}",
)
PATTERNS = {
    "private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----[^\"]*?(?:-----END [A-Z ]*PRIVATE KEY-----|(?=\\{0,7}\")|\Z)",
    "login in an address": r"(?<=://)[^/\s:@\"]*:[^/\s@\"]+(?=@)",
    "token": rf"\b(?:{'|'.join(TOKENS)})",
    "authorization header": r"(?i:(?<=authorization: )|(?<=authorization\": \")|(?<=authorization': '))"
    r"(?i:bearer|basic|token) [^\s\"'\\]+",
    "bearer token": r"\b(?<=[Bb]earer )(?=(?:[A-Za-z._~+/-]*\d){3})[A-Za-z0-9._~+/-]{16,}=*",
}
SECRET = re.compile("|".join(PATTERNS.values()))
# What may not leave the machine, rather too much than too little: it only changes what a manager model reads.
PERSONAL = {
    "email": (r"(?<![\w.%+-])[\w.%+-]{1,64}@(?:[\w-]{1,63}\.){1,8}[^\W\d_]{2,24}\b", "[email]"),
    "iban": (r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){3,7}(?: ?[A-Z0-9]{1,3})?\b", "[iban]"),
    "card": (r"\b(?:\d[ -]?){13,18}\d\b", "[card]"),
    "phone": (r"(?<![\w.])\+[1-9]\d{0,3}(?:[ ./()-]{0,2}\d){6,12}\b", "[phone]"),
    "address": (r"(?<![\w.])(?!10\.|127\.|192\.168\.|0\.)\d{1,3}(?:\.\d{1,3}){3}(?![\w.])", "[address]"),
    "home": (r"(?<![\w.~-])(?:/(?:home|Users)/|[A-Za-z]:(?:\\{1,2}|/)Users(?:\\{1,2}|/))[^/\\\s:\"']+", "~"),
    "secret in quotes": (
        r"(?i)((?:passw|pwd|secret|token|api[_-]?key|private[_-]?key|account[_-]?key|auth|credential)[\w.-]{0,40}"
        r"\\?[\"']?\]?\s{0,8}(?::\s{0,4}&?\w{1,24}\s{0,4})?(?:=>|==?|:=|:)\s{0,8}b?\\?[\"'])[^\s\"'\\]{8,}",
        r"\1***",
    ),
    "secret in settings": (
        r"\b((?:[A-Z_]{0,40}(?:PASSWORD|PWD|SECRET|TOKEN|KEY)=|(?i:password|passwd|(?:secret|api|private|account)[_-]?key"
        r"|_?authtoken|client[_-]?secret)(?:: ?|=)))(?![$%(<{]|[\w.]+[(\[])[^\s\"',;&]{8,}",
        r"\1***",
    ),
}
# Control characters, marks that turn the direction of writing, and halves of characters, which no encoding can write.
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

_context: dict[str, Any] = {}
_secrets: set[str] = set()
_values: re.Pattern[str] | None = None  # all of them, the longest first
_logger = logging.getLogger("cco")


def is_secret_name(name: str) -> bool:
    """Return whether a variable of this name holds a secret by the usual conventions."""
    return bool(SECRET_NAME.search(name)) and not PLAIN_NAME.search(name)


def register_secrets(environ: Mapping[str, str]) -> None:
    """Mask the secrets among these variables from now on; the path of an existing file is none."""
    for name, value in environ.items():
        if is_secret_name(name) and not (value.startswith("/") and os.path.exists(value)):
            register_secret(value)


def register_secret(value: str | None) -> None:
    """Mask one secret from now on, also in the form it takes inside JSON, and each long line of it."""
    global _values
    for part in {value or "", *(line for line in (value or "").splitlines() if len(line) >= 2 * MIN_SECRET)}:
        part = part.strip()
        # PASSWORD=postgres would break names and paths that hold the word.
        if len(part) >= 2 * MIN_SECRET or (len(part) >= MIN_SECRET and not part.isalpha()):
            _secrets.add(part)
    escaped = {json.dumps(secret, ensure_ascii=ascii)[1:-1] for secret in _secrets for ascii in (True, False)}
    longest_first = sorted(_secrets | escaped, key=len, reverse=True)
    _values = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None


def mask(text: str) -> str:
    """Return the text with every registered secret, and all that looks like one, replaced by ***."""
    if _values:
        text = _values.sub(MASK, text)
    return SECRET.sub(MASK, text)


def mask_tree(value: Any, blank: re.Pattern[str] | None = None) -> Any:
    """Return a JSON-like value with every string in it masked, and without what `blank` finds.

    Keys stay as they are, a dataclass becomes a dict.
    """
    if isinstance(value, str):
        return blank.sub(" ", mask(value)) if blank else mask(value)
    if isinstance(value, dict):
        return {key: mask_tree(item, blank) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [mask_tree(item, blank) for item in value]
    return mask_tree(vars(value), blank) if is_dataclass(value) else value


def mask_personal(text: str) -> str:
    """Return the text as it may be sent to a model: without secrets and personal data (e-mail, cards, home folders)."""
    text = mask(text)
    for pattern, replacement in PERSONAL.values():
        text = re.sub(pattern, replacement, text)
    return text


def holds_secret(data: bytes) -> bool:
    """Return whether a registered secret stands in the content of a file."""
    return any(secret.encode("utf-8", "surrogateescape") in data for secret in _secrets)


def printable(text: str) -> str:
    """Return the text masked, and without the control characters by which it could drive a terminal."""
    return CONTROL.sub(" ", mask(text))


def context(**ids: Any) -> None:
    """Add ids (mission, session, iteration) to every later line."""
    _context.update(ids)


def start(folder: Path, level: str, max_size: int = 10_000_000) -> None:
    """Send lines of a level to the console and to files in a folder, rotated at so many bytes. Raises OSError."""
    global _console
    stop()
    logging.addLevelName(TRACE, "TRACE")
    logging.addLevelName(logging.WARNING, "WARN")
    logging.raiseExceptions = False  # a full disk or a closed terminal must not end a mission
    _logger.propagate = False
    _logger.setLevel(level)
    _console = _Console(sys.stdout)
    combined, errors = (_File(folder / f"{name}.log", "a", max_size, 1, "utf-8") for name in ("combined", "error"))
    errors.setLevel(logging.ERROR)
    for handler in (combined, errors, _console):
        _logger.addHandler(handler)


def stop() -> None:
    """Clear the live line and write no more."""
    global _console
    live("")
    _console = None
    for handler in list(_logger.handlers):
        _logger.removeHandler(handler)
        handler.close()
    _context.clear()


def live(text: str) -> None:
    """Show what happens right now on the last line of a terminal, "" for nothing; does nothing elsewhere."""
    if _console:
        _console.live(text)


def private(path: str, flags: int) -> int:
    """Open a file that only its owner may read: an `opener`."""
    return os.open(path, flags, 0o600)


def _emit(level: int, message: str, /, **fields: Any) -> None:
    if _console:
        _logger.log(level, "%s", message, extra={"fields": {**_context, **fields}})
    elif level >= logging.WARNING:  # before the start, a line to whoever called
        with suppress(OSError, ValueError):
            print(printable(message), file=sys.stderr)


# Each takes a message, and the fields of its line: log.info("criterion api is met", criterion="api")
error = functools.partial(_emit, logging.ERROR)  # the user or the next step has to deal with it
warn = functools.partial(_emit, logging.WARNING)  # not as it should be; the mission goes on
info = functools.partial(_emit, logging.INFO)  # an event that matters to somebody who watches
debug = functools.partial(_emit, logging.DEBUG)  # what explains later why it went as it went
trace = functools.partial(_emit, TRACE)  # prompts, commands, answers


class _File(logging.handlers.RotatingFileHandler):
    """JSON lines, masked before JSON's escapes hide what is a secret, in a file that only its owner may read."""

    def _open(self) -> io.TextIOWrapper:
        return open(self.baseFilename, "a", encoding="utf-8", opener=private)

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds")
        line = {"ts": when, "level": record.levelname, "msg": record.getMessage(), **record.__dict__["fields"]}
        return json.dumps(mask_tree(json.loads(json.dumps(line, default=str), parse_constant=str)))


class _Console(logging.StreamHandler):  # type: ignore[type-arg]  # a type argument needs Python 3.11
    """Lines with the time of day on a terminal, and below them one that is redrawn; with the date elsewhere."""

    def __init__(self, stream: Any):
        super().__init__(stream or io.StringIO())
        self.is_terminal = stream is not None and stream.isatty()
        self.shown = ""

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created)
        sign = f"{record.levelname:5} " if record.levelno >= logging.WARNING else ""
        date = "" if self.is_terminal else f"{when:%Y-%m-%d} "
        return f"{date}{when:%H:%M:%S}  {sign}{printable(record.getMessage())}"

    def emit(self, record: logging.LogRecord) -> None:
        shown = self.shown
        self.live("")
        super().emit(record)
        self.live(shown)

    def live(self, text: str) -> None:
        if self.is_terminal and text != self.shown:
            self.shown, width = text, shutil.get_terminal_size().columns - 1
            with suppress(OSError, ValueError):  # the terminal is gone; the mission is not
                self.stream.write("\r\x1b[2K" + printable(text).replace("\n", " ")[:width])
                self.stream.flush()


_console: _Console | None = None
