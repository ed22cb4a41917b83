"""What may leave the machine: a text without personal data, and without what a name betrays as a secret.

    text = personal.mask(log.mask(text))      what may be sent to a model service

What is kept here goes through `log.mask` alone, since this is not certain enough to change it.

What is not covered: of secrets, what follows a name without = or : (--password x, <password>x</password>) or holds a
space, letters alone that may be a word, and what may as well be an expression of a program. Of personal data: names of
people, postal addresses, dates of birth, telephone numbers in national form, logins of other machines, addresses of the
network that may as well be versions, and what was encoded. A matrix product without spaces (a@b.weight) is taken for an
e-mail.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable

import log

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
COUNTS = ("pass", "key")  # names of how many tests passed, and of an entry of a cache or a map
HASH = re.compile(r"[0-9a-fA-F]{32}|[0-9a-fA-F]{40}|[0-9a-fA-F]{64}")  # of a file or a cache: what many keys are
COMPOSED = re.compile(r"[A-Za-z]{3,}[:_][A-Za-z\d]")  # a name made of words
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
# Personal data: shapes that are cheap to find; `mask` judges each.
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


def mask(text: str) -> str:
    """The text without personal data, for a model service: what was there is named, as in [email].

    Masked are e-mail addresses, telephone numbers in international form, payment cards (Luhn), IBANs (mod 97), public
    addresses of the network, home folders (~), and the login and host name of this machine. An address of four numbers
    is masked only where it cannot well be a version: one of the first three is 100 or more, the last is not 0, and no
    sign of a version stands before it. A value that looks like a secret, after a name of one, becomes ***; `log.mask`
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
    if name.lower() in COUNTS and (value.isdigit() or HASH.fullmatch(value)):
        return str(found[0])
    if not log.is_secret_name(name) or ABOUT.search(name) or len(value) < log.MIN_SECRET or NO_VALUE.match(value):
        return str(found[0])
    if (how in CODE and CODE[how].search(value)) or not _is_value(value, bool(STRONG.search(name)), how):
        return str(found[0])
    at = found.start(how) - found.start()
    return str(found[0][:at] + log.MASK + found[0][at + len(value) :])


def _is_value(value: str, is_strong: bool, how: str) -> bool:
    """Whether what follows a secret's name is one, and not a word, a size, or a name of a program.

    how: "quoted", "plain" (as variables of the environment are set), or "bare" (all else, code among it).
    """
    if not is_strong and COMPOSED.search(value):
        return False
    rest = value if how == "plain" else TECHNICAL.sub("", value)
    if not re.search(r"[A-Za-z]", rest):
        return is_strong and (how != "bare" or value.isdigit())
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", rest)
    is_odd = len(rest) >= 12 and len("".join(words)) < 2.6 * len(words)  # no words of a language
    if re.search(r"\d", rest):
        is_mixed = bool(re.search(r"\d[A-Za-z]", rest)) or (how == "plain" and value.isalnum())
        least = {"quoted": 12, "plain": log.MIN_SECRET, "bare": 20}[how]
        return is_strong or is_odd or (is_mixed and len(value) >= least)
    if is_strong and how == "plain":
        return len(value) >= 2 * log.MIN_SECRET or not value.isalpha() or len(words) > 2
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
