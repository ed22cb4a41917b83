"""Structured lines, and the one mask that every writer goes through.

    log.start(folder, "INFO", max_size)    JSON lines to combined.log, errors also to error.log
    log.know(environ)                      the values that must never be written anywhere
    log.info("criterion api is met", criterion="api")
    log.live("worker: Bash npm test")      the status line of a terminal; nothing elsewhere

The console shows the sentence, the files also the fields and the correlation ids given to `log.context`.

What is not covered: a secret of fewer than 8 characters or one short word, one that was encoded (base64, hex) or
split over two lines, and one that is in no variable and looks like none of PATTERNS.
"""

from __future__ import annotations

import contextlib
import json
import logging
import logging.handlers
import os
import re
import shutil
import sys
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TextIO

LEVELS = {"ERROR": 40, "WARN": 30, "INFO": 20, "DEBUG": 10, "TRACE": 5}
BACKUPS = 3  # rotated generations kept of each log file
MASK = "***"
MIN_SECRET = 8  # characters; shorter values would mask ordinary words

# Ends of words that make the value of a variable a secret; KEYBOARD and AUTHOR have none of them.
SECRET_NAME = re.compile(
    r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL)S?(_|$)|(^|_)(PASS|PWD|AUTH)(_|$)", re.I
)
PLAIN_NAME = re.compile(r"^PWD$|MAX_.*TOKENS$")  # the shell's folder, and sizes that Claude Code is told
# The families that gitleaks and secretlint agree on; entropy guesses would mask commit hashes.
PATTERNS = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----[^\"]*?(?:-----END [A-Z ]*PRIVATE KEY-----|(?=\\{0,7}\")|\Z)"
    r"|(?<=://)[^/\s:@\"]*:[^/\s@\"]+(?=@)"
    r"|\b(?:sk-[A-Za-z0-9_-]{20,}"
    r"|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,}|glpat-[A-Za-z0-9_-]{20,}"
    r"|(?:AKIA|ASIA)[A-Z0-9]{16}\b|AIza[A-Za-z0-9_-]{35}|xox[abprs]-[A-Za-z0-9-]{10,}|AGE-SECRET-KEY-1[A-Z0-9]{20,}"
    r"|(?<!-)eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]*"
    r"|(?:[sr]k_(?:live|test)|gsk|whsec|dckr_pat|shp(?:at|ss|ca|pa))_[A-Za-z0-9]{16,}|npm_[A-Za-z0-9]{36}|hf_[A-Za-z0-9]{30,}"
    r"|do[opr]_v1_[0-9a-f]{32,}|pypi-AgE[A-Za-z0-9_-]{16,}|SG\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}|hvs\.[A-Za-z0-9_-]{20,}"
    r"|(?:xapp|xoxe|GOCSPX)-[A-Za-z0-9_-]{16,}|glsa_[A-Za-z0-9_]{20,}|ya29\.[A-Za-z0-9_-]{20,}"
    r"|hooks\.slack\.com/(?:services|workflows|triggers)/[A-Za-z0-9/_-]{20,}"
    r"|discord(?:app)?\.com/api/(?:v\d+/)?webhooks/\d{5,}/[A-Za-z0-9_-]{20,}"
    r"|(?i:(?<=authorization: )|(?<=authorization\": \")|(?<=authorization': '))(?i:bearer|basic|token) [^\s\"'\\]+"
    r"|(?<=[Bb]earer )(?=(?:[A-Za-z._~+/-]*\d){3})[A-Za-z0-9._~+/-]{16,}=*)"
)
# Control characters, marks that turn the direction of writing, and halves of characters, which no encoding can write.
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

_log = logging.getLogger("cco")
_context: dict[str, Any] = {}
_secrets: set[str] = set()
_values: re.Pattern[str] | None = None
_console: _Console | None = None


# --------------------------------------------------------------------------------------------------------
# Masking
# --------------------------------------------------------------------------------------------------------


def is_secret_name(name: str) -> bool:
    """Whether a variable of this name holds a secret by the usual conventions."""
    return bool(SECRET_NAME.search(name)) and not PLAIN_NAME.search(name)


def know(environ: Mapping[str, str]) -> None:
    """Remember the secrets among these variables; `mask` replaces them from now on.

    A value that is the path of an existing file (an agent's socket, a credentials file) is no secret.
    """
    for name, value in environ.items():
        if is_secret_name(name) and not (value.startswith("/") and os.path.exists(value)):
            know_value(value)


def know_value(value: str | None) -> None:
    """Remember one secret, also in the form it takes inside JSON, and each long line of a longer one.

    A short plain word (PASSWORD=postgres) is not remembered: masking it would break names and paths that hold it.
    """
    global _values
    for part in {value or "", *(line for line in (value or "").splitlines() if len(line) >= 2 * MIN_SECRET)}:
        part = part.strip()
        if len(part) >= 2 * MIN_SECRET or (len(part) >= MIN_SECRET and not part.isalpha()):
            _secrets.add(part)
    escaped = {json.dumps(s, ensure_ascii=ascii)[1:-1] for s in _secrets for ascii in (True, False)}
    longest_first = sorted(_secrets | escaped, key=len, reverse=True)
    _values = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None


def mask(text: str) -> str:
    """The text with every known secret and everything that looks like one replaced by ***."""
    if _values:
        text = _values.sub(MASK, text)
    return PATTERNS.sub(MASK, text)


def mask_tree(value: Any) -> Any:
    """The same JSON-like value with every string in it masked; keys stay as they are."""
    if isinstance(value, str):
        return mask(value)
    if isinstance(value, dict):
        return {key: mask_tree(item) for key, item in value.items()}
    if isinstance(value, list):
        return [mask_tree(item) for item in value]
    return value


def holds_secret(data: bytes) -> bool:
    """Whether a known secret stands in this file's content."""
    return any(secret.encode("utf-8", "surrogateescape") in data for secret in _secrets)


def printable(text: str) -> str:
    """Masked, and without the control characters by which a stranger's text could drive a terminal."""
    return CONTROL.sub(" ", mask(text))


# --------------------------------------------------------------------------------------------------------
# Lines
# --------------------------------------------------------------------------------------------------------


def error(message: str, **fields: Any) -> None:
    """Something failed and a person or the next step has to deal with it."""
    _emit(LEVELS["ERROR"], message, fields)


def warn(message: str, **fields: Any) -> None:
    """Not as it should be; the mission goes on."""
    _emit(LEVELS["WARN"], message, fields)


def info(message: str, **fields: Any) -> None:
    """An event that matters to somebody who watches."""
    _emit(LEVELS["INFO"], message, fields)


def debug(message: str, **fields: Any) -> None:
    """For finding out later why it went as it went."""
    _emit(LEVELS["DEBUG"], message, fields)


def trace(message: str, **fields: Any) -> None:
    """Every prompt, command and answer."""
    _emit(LEVELS["TRACE"], message, fields)


def context(**ids: Any) -> None:
    """Correlation ids (mission, session, iteration) that every later line carries; None removes one."""
    _context.update(ids)
    for name in [name for name, value in _context.items() if value is None]:
        del _context[name]


def live(text: str) -> None:
    """Show what happens right now on the last line of a terminal; does nothing where there is none."""
    if _console:
        _console.live(text)


def start(folder: Path | None, level: str, max_size: int = 10_000_000) -> None:
    """Send lines to the console and, with a folder, to `combined.log` and `error.log` in it.

    level: name from LEVELS. max_size: bytes after which a file is rotated. Raises OSError without write access.
    """
    global _console
    stop()
    logging.raiseExceptions = False  # a full disk or a closed terminal must not end a mission
    _log.setLevel(LEVELS[level])
    _log.propagate = False
    _console = _Console(sys.stdout)
    _log.addHandler(_console)
    if folder:
        for name, lowest in (("combined.log", LEVELS["TRACE"]), ("error.log", LEVELS["ERROR"])):
            handler = _PrivateFile(folder / name, maxBytes=max_size, backupCount=BACKUPS, encoding="utf-8")
            handler.setLevel(lowest)
            handler.setFormatter(_JSONLine())
            _log.addHandler(handler)


def stop() -> None:
    """Clear the status line and let go of the files."""
    global _console
    live("")
    _console = None
    for handler in list(_log.handlers):
        _log.removeHandler(handler)
        with contextlib.suppress(OSError):  # what is still buffered may not fit on a full disk
            handler.close()
    _context.clear()


def private(path: str, flags: int) -> int:
    """An `opener` for files that only their owner may read."""
    return os.open(path, flags, 0o600)


def _emit(level: int, message: str, fields: dict[str, Any]) -> None:
    if _console is None:  # no mission's log is open: a plain word to whoever called
        if level >= LEVELS["WARN"]:
            with contextlib.suppress(OSError):  # as in `start`
                print(printable(message), file=sys.stderr)
        return
    _log.log(level, "%s", message, extra={"fields": {**_context, **fields}})


class _JSONLine(logging.Formatter):
    """Masks everything in a line: message, fields and exception texts, before JSON escapes hide what they are."""

    def format(self, record: logging.LogRecord) -> str:
        names = {number: name for name, number in LEVELS.items()}
        when = datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds")
        line = {"ts": when, "level": names[record.levelno], "msg": record.getMessage(), **record.__dict__["fields"]}
        plain = json.loads(json.dumps(line, default=str), object_pairs_hook=_masked_keys, parse_constant=str)
        return json.dumps(mask_tree(plain))


def _masked_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return {mask(key): value for key, value in pairs}


class _PrivateFile(logging.handlers.RotatingFileHandler):
    def emit(self, record: logging.LogRecord) -> None:
        if self.stream and not os.path.exists(self.baseFilename):  # somebody removed it: begin it anew
            with contextlib.suppress(OSError):
                self.stream.close()
            self.stream = None
        super().emit(record)

    def _open(self) -> Any:
        return open(self.baseFilename, self.mode, encoding=self.encoding, errors="replace", opener=private)


class _Console(logging.StreamHandler):  # type: ignore[type-arg]  # a type argument needs Python 3.11
    """Lines for people: with the time of day on a terminal, with the date elsewhere (nohup, cron)."""

    def __init__(self, stream: TextIO | None):
        """stream: None where it was closed (`>&-`); lines go to standard error then."""
        super().__init__(stream)
        self.tty = stream is not None and stream.isatty()
        self.shown = ""

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created).strftime("%H:%M:%S" if self.tty else "%Y-%m-%d %H:%M:%S")
        sign = {40: "ERROR ", 30: "WARN  "}.get(record.levelno, "")
        return f"{when}  {sign}{printable(record.getMessage())}"

    def emit(self, record: logging.LogRecord) -> None:
        shown = self.shown
        self.live("")
        super().emit(record)
        self.live(shown)

    def live(self, text: str) -> None:
        if not self.tty or text == self.shown:
            return
        width = shutil.get_terminal_size().columns - 1
        self.shown = text
        try:
            self.stream.write("\r\x1b[2K" + printable(text).replace("\n", " ")[:width])
            self.stream.flush()
        except OSError:
            self.tty = False  # the terminal is gone; the mission is not
