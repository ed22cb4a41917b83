"""Structured lines, and the one mask that every writer goes through.

    log.start(folder, "INFO", max_size)    JSON lines to combined.log, errors also to error.log
    log.know(environ)                      the values that must never be written anywhere
    log.info("criterion api is met", criterion="api")
    log.live("worker: Bash npm test")      the status line of a terminal; nothing elsewhere
    log.mask_personal(log.mask(text))      what may be sent to a model service

The console shows the sentence, the files also the fields and the correlation ids given to `log.context`.

What is not covered: a secret of fewer than 8 characters or one short word, one that was encoded (base64, hex) or
split over two lines, and one that is in no variable and looks like none of PATTERNS. Where a text leaves the machine,
also what NAMED finds is masked, and not: what follows a name without = or : (--password x, <password>x</password>) or
holds a space, letters alone that may be a word, and what may as well be an expression of a program. Of personal data:
names of people, postal addresses, dates of birth, telephone numbers in national form, logins of other machines,
addresses of the network that may as well be versions, and what was encoded. A matrix product without spaces
(a@b.weight) is taken for an e-mail.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import logging.handlers
import os
import re
import shutil
import sys
from collections.abc import Callable, Mapping
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
    r"|(?:[sr]k_(?:live|test)|npm|gsk|whsec|dckr_pat|shp(?:at|ss|ca|pa))_[A-Za-z0-9]{16,}|hf_[A-Za-z0-9]{30,}"
    r"|do[opr]_v1_[0-9a-f]{32,}|pypi-AgE[A-Za-z0-9_-]{16,}|SG\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}|hvs\.[A-Za-z0-9_-]{20,}"
    r"|(?:xapp|xoxe|GOCSPX)-[A-Za-z0-9_-]{16,}|glsa_[A-Za-z0-9_]{20,}|ya29\.[A-Za-z0-9_-]{20,}"
    r"|hooks\.slack\.com/(?:services|workflows|triggers)/[A-Za-z0-9/_-]{20,}"
    r"|discord(?:app)?\.com/api/(?:v\d+/)?webhooks/\d{5,}/[A-Za-z0-9_-]{20,}"
    r"|(?i:(?<=authorization: )|(?<=authorization\": \")|(?<=authorization': '))(?i:bearer|basic|token) [^\s\"'\\]+"
    r"|(?<=[Bb]earer )(?=[A-Za-z._~+/-]*\d)[A-Za-z0-9._~+/-]{16,}=*)"
)
# A name and its value, as settings and programs write them; `_is_value` judges what was found.
NAMED = re.compile(
    r"(?<![\w.-])(?=[\w.-]{0,99}?(?i:key|token|secret|pass|pwd|auth|credential))(?P<name>[\w.-]{3,100})\\{0,3}[\"']?\]?"
    r"[ \t]{0,8}(?:(?::[ \t]{0,4}&?[\w.]{1,24}(?:\[\])?[ \t]{0,4}|[?:])?=(?![=~>])|=>|={2,3}(?=[ \t]{0,8}[\"'])"
    r"|:(?![:=]))[ \t]{0,8}(?:[bfruBFRU]{0,2}\\{0,3}(?P<quote>[\"'`])(?P<quoted>(?:(?!(?P=quote))[^\s\\]|\\(?![\"'`]))"
    r"{8,})\\{0,3}(?P=quote)|(?<=[A-Z_]=)(?P<plain>[^\s\"'`\\]{8,})|(?P<bare>(?:[^\s\"'`\\;&,]|&(?![\w.-]{1,40}=)){8,}))"
)
SECRET_WORD = re.compile(r"pass|secret|token|key|auth|credential", re.I)  # what names a secret is none
STRONG = re.compile(  # names whose value is a secret in all likelihood
    r"pass|pwd|secret|credential|(?:api|access|auth|private|account|client|session|refresh|bearer|bot|deploy|signing"
    r"|shared|encryption)_?(?:key|token)",
    re.I,
)
ABOUT = re.compile(  # ends of names of what is only told about a secret
    r"_(?:name|id|file|path|dir|ur[il]|type|kind|len|length|size|count|prefix|field|header|hash|version|hint|policy|sha\d+"
    r"|expires|expires_in|expires_at|ttl|age|days|timeout|limit)$",
    re.I,
)
# References, templates, paths, addresses and dates; what is code; and words that hold digits by nature.
NO_VALUE = re.compile(
    r"[$%@#<{&*!\[(]|\.{0,2}/|~/|[A-Za-z]:\\|\d{4}-\d\d-\d\d|.*(?:\$\{|\{\{|\{\w*\}|%\(|://|[<>]|\.\.\.|(?i:your))"
)
CODE = {
    "plain": re.compile(r"\w[(\[]"),
    "bare": re.compile(r"[()\[\]{}|]|\A[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+\Z"),
}
TECHNICAL = re.compile(
    r"(?:(?<![A-Za-z])|(?<=[a-z])(?=[A-Z]))(?i:u?int|float|utf|base|sha|md|o?auth|crc|aes|rsa|ed|hmac|argon|pbkdf|bcrypt"
    r"|latin|ipv|http|uuid|blake|iso|bytes?|hs|rs|es|ps|v|pass|password|secret|token|key|pwd|test|item|value)"
    r"[-_]?\d{1,4}(?!\d)|(?<![A-Za-z\d])[A-Za-z]\d{1,3}(?![A-Za-z\d])"
)
# Control characters, marks that turn the direction of writing, and halves of characters, which no encoding can write.
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

# Personal data: shapes that are cheap to find; `mask_personal` judges each.
EMAIL = re.compile(
    r"(?<![\w.%+-])(?<!://)[\w.%+-]+@(?:[\w-]+\.)+[^\W\d_]{2,24}(?![\w-]|\.\w|:[\w.~/-]*/)"  # no ada@host.net:path/
)
NO_EMAIL = re.compile(  # nobody's, kept for examples, a version, or a file's name
    r"(?:git|hg|svn|no-?reply)@.*|.*@(?:v?\d+\.\d.*|\d+x\..*|(?:.*\.)?(?:example(?:\.com|\.net|\.org)?|test|invalid|local)"
    r"|.*\.(?:png|jpe?g|gif|svg|webp|[cm]?[jt]sx?|s?css|json|ya?ml|toml|lock|xml|html|txt|log|service|socket|target|timer))",
    re.I,
)
CARD = re.compile(r"(?<![\w.+-])(?:\d{14,19}|\d{4}([ -])\d{4}\1\d{4}\1\d{4,7}|\d{4}[ -]\d{6}[ -]\d{4,5})(?![\w-]|\.\d)")
ISSUER = re.compile(r"4\d{15}(?:\d{3})?|(?:5[1-5]|2[2-7]|35|6[0245])\d{14}|3[47]\d{13}|3[068]\d{12}")
IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b")
PHONE = re.compile(
    r"(?<![\w.+/-])\+[1-9](?:\d{8,14}|\d{0,2}(?:[ \xa0./-]?\(\d{1,5}\)\d{0,12}|[ \xa0./-]\d{1,12}){1,7})(?![\w:]|\.\d)"
)
HOME = re.compile(
    r"(?:(?<![\w.~-])|(?<=-[ILF]))(?:/(?:home|Users)/[^/\s:;,'\"`<>()\[\]{}|\\$*]+"
    r"|[A-Za-z]:(?P<by>\\\\?|/)Users(?P=by)(?:[^\\/:\"<>|\n]{1,40}(?=[\\/])|[^\\/\s:'\"<>|]+))"
)
ADDRESS = re.compile(
    r"(?<![\w.=@^~<>-])(?<!\w/)(?<!ersion )\d{1,3}(?:\.\d{1,3}){3}(?![\w-]|\.\d)"
    r"|(?<![\w:.])[23][0-9A-Fa-f]{3}(?::[0-9A-Fa-f]{0,4}){2,7}(?![\w:])"
)
PASSES = 4  # at most; what is masked may have hidden what it was glued to
SHORTEST_NAME = 4  # characters of a login or a host's name that is masked
# Logins and host names that name nobody, or that are words of English as well.
ORDINARY = re.compile(
    r"root|users?\d*|admin\w*|ubuntu|debian|fedora|centos|alpine|arch\w*|runner\w*|local\w*|guest|nobody|default|daemon"
    r"|docker|podman|container|jenkins|git\S*|actions?|build\w*|test\w*|devel\w*|coder?|node|python|java|postgres|mysql|redis"
    r"|nginx|apache|www-data|http|ec2-user|azureuser|cloud\w*|vagrant|vscode|codespace\w*|claude|agent|worker|manager|service"
    r"|server|client|host|master|main|work\w*|home|project|data|demo|sandbox|staging|production|desktop|laptop|computer"
    r"|machine|macbook|raspberrypi|linux|windows|darwin|shell|bash|make|jest|email|phone|card|iban|address|mark|will|grant"
    r"|rich|drew|chase|grace|hope|rose|page|bill|frank|dean|ward|case|jack|mini|base|core",
    re.I,
)

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


def mask_personal(text: str) -> str:
    """The text without personal data, for a model service: what was there is named, as in [email].

    Masked are e-mail addresses, telephone numbers in international form, payment cards (Luhn), IBANs (mod 97), public
    addresses of the network, home folders (~), and the login and host name of this machine. An address of four numbers
    is masked only where it cannot well be a version: one of the first three is 100 or more, the last is not 0, and no
    sign of a version stands before it. A value that looks like a secret, after a name of one, becomes ***; `mask`
    leaves it, since that is not certain enough to change what is kept. See the module for what is not covered.
    """
    for _ in range(PASSES):
        before, text = text, _without_personal(text)
        if text == before:
            break
    return text


def _without_personal(text: str) -> str:
    text = NAMED.sub(_without_value, text)
    for pattern, is_one, name in (
        (EMAIL, lambda text: not NO_EMAIL.fullmatch(text), "[email]"),
        (IBAN, _is_iban, "[iban]"),
        (CARD, _is_card, "[card]"),
        (PHONE, _is_phone, "[phone]"),
        (ADDRESS, _is_public, "[address]"),
    ):
        text = pattern.sub(functools.partial(_named, is_one, name), text)
    text = HOME.sub("~", text)
    for name, names in _own_names().items():
        text = names.sub(name, text)
    return text


def _without_value(found: re.Match[str]) -> str:
    """A name and its value as they were found, the value masked where it is a secret."""
    how, name = str(found.lastgroup), re.sub(r"[.-]", "_", found["name"])
    value = found[how] if how == "quoted" else found[how].rstrip(",;)]}")
    if not is_secret_name(name) or ABOUT.search(name) or len(value) < MIN_SECRET or NO_VALUE.match(value):
        return str(found[0])
    if (how in CODE and CODE[how].search(value)) or not _is_value(value, bool(STRONG.search(name)), how):
        return str(found[0])
    at = found.start(how) - found.start()
    return str(found[0][:at] + MASK + found[0][at + len(value) :])


def _is_value(value: str, is_strong: bool, how: str) -> bool:
    """Whether what follows a secret's name is one, and not a word, a size, or a name of a program.

    how: "quoted", "plain" (as variables of the environment are set), or "bare" (all else, code among it).
    """
    rest = value if how == "plain" else TECHNICAL.sub("", value)
    if not re.search(r"[A-Za-z]", rest):
        return is_strong and (how != "bare" or value.isdigit())
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", rest)
    is_odd = len(rest) >= 12 and len("".join(words)) < 2.6 * len(words)  # no words of a language
    if re.search(r"\d", rest):
        is_mixed = bool(re.search(r"\d[A-Za-z]", rest)) or (how == "plain" and value.isalnum())
        least = {"quoted": 12, "plain": MIN_SECRET, "bare": 20}[how]
        return is_strong or is_odd or (is_mixed and len(value) >= least)
    if is_strong and how == "plain":
        return len(value) >= 2 * MIN_SECRET or not value.isalpha() or len(words) > 2
    if is_strong and how == "quoted" and not SECRET_WORD.search(value):
        return bool(re.search(r"\w[!@#%^&*+=?~]+\w", value)) or len(value) >= 16 and not re.fullmatch(r"[\w.]+", value)
    return is_odd


def _named(is_one: Callable[[str], bool], name: str, found: re.Match[str]) -> str:
    """The name in place of what was found, or of its beginning: groups of something else may follow it."""
    text: str = found[0]
    while text:
        if is_one(text):
            return name + found[0][len(text) :]
        text = text[: max(0, text.rfind(" "))]
    return str(found[0])


def _is_iban(text: str) -> bool:
    plain = text.replace(" ", "")
    return len(plain) >= 15 and int("".join(str(int(sign, 36)) for sign in plain[4:] + plain[:4])) % 97 == 1


def _is_card(text: str) -> bool:
    digits = re.sub(r"\D", "", text)
    doubled = (sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2])
    return bool(ISSUER.fullmatch(digits)) and (sum(map(int, digits[-1::-2])) + sum(doubled)) % 10 == 0


def _is_phone(text: str) -> bool:
    digits = re.sub(r"\D", "", text)
    # With country code 1 there are 11, and no 0 or 1 follows: +1732745760 is a time in seconds that a diff adds.
    return len(digits) == 11 and digits[1] > "1" if digits[0] == "1" else 9 <= len(digits) <= 15


def _is_public(text: str) -> bool:
    import ipaddress

    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    may_be_version = address.version == 4 and (max(address.packed[:3]) < 100 or not address.packed[3])
    return address.is_global and not (address.is_multicast or may_be_version)


@functools.lru_cache(1)
def _own_names() -> dict[str, re.Pattern[str]]:
    """What stands for the home folder, the login and the host of this machine where they name somebody."""
    import pwd
    import socket

    host = socket.gethostname()
    try:
        login, home = pwd.getpwuid(os.getuid())[0], os.path.expanduser("~")
    except KeyError:  # a container may run as a number that has no name
        login, home = "", ""
    known = {"~": [home] if _names_somebody(os.path.basename(home)) else []}
    known["[user]"] = [login] if _names_somebody(login) else []
    known["[host]"] = [name for name in (host, host.partition(".")[0]) if _names_somebody(name)]
    word = r"(?<!\w)(?:%s)(?!\w)"
    return {name: re.compile(word % "|".join(map(re.escape, values))) for name, values in known.items() if values}


def _names_somebody(name: str) -> bool:
    return len(name) >= SHORTEST_NAME and not name.isdigit() and not ORDINARY.fullmatch(name)


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
