"""When a usage limit ends, and whether it is that of one model only: by claude's own words and structured events.

    resets.from_windows(infos) or resets.from_text(said, time.time())
    resets.limited_model(infos, said)

Functions of their arguments only. They take what comes, from whatever version of claude, and never raise.

What is not covered: a time without a zone is this machine's; a zone that nobody here knows leaves no time at all; words
in another language than English.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import date, datetime, timedelta, timezone, tzinfo
from typing import Any
from zoneinfo import ZoneInfo

RECENT = 600.0  # seconds for which a time that has just passed is this one, not that of the next day, week or year
FARTHEST = 10 * 366 * 86400.0  # seconds ahead; a time beyond is none
EARLIEST, LATEST = 1e9, 1e11  # epoch seconds that an event may name; what is larger are milliseconds
PIECE = 120  # characters after "resets" in which the time has to stand

MODELS = ("opus", "sonnet", "haiku", "fable", "mythos")
OF_FABLE = "seven_day_overage_included"  # what claude calls the Fable limit
EXTRA = "overage"  # usage that is paid for: its windows end much later than those that hold back the plan
# How claude writes zones (names of its own database) that newer databases of systems know by another name only.
RENAMED = {
    "America/Buenos_Aires": "America/Argentina/Buenos_Aires",
    "America/Indianapolis": "America/Indiana/Indianapolis",
    "Asia/Calcutta": "Asia/Kolkata",
    "Asia/Katmandu": "Asia/Kathmandu",
    "Asia/Rangoon": "Asia/Yangon",
    "Asia/Saigon": "Asia/Ho_Chi_Minh",
    "Europe/Kiev": "Europe/Kyiv",
}
UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}  # seconds
DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")

EPOCH = re.compile(r"(?:\||\bresets?(?: at)?)\s{0,9}(\d{10}(?:\d{3})?)(?!\d)", re.I)
NAMED = re.compile(rf"\b(?:resets?|resetting|regain access)\b(?=([^\n|·∙•]{{1,{PIECE}}}))", re.I)
AMOUNT = r"\d{1,4} ?(?:d(?:ays?)?|h(?:(?:ou)?rs?)?|m(?:in(?:ute)?s?)?|s(?:ec(?:ond)?s?)?)(?![a-z])"
RELATIVE = re.compile(rf"(?:in )?(?:about )?({AMOUNT}(?:(?:,? and |,? ?){AMOUNT}){{0,3}})", re.I)
ONE_AMOUNT = re.compile(r"(\d{1,4}) ?([dhms])", re.I)
MOMENT = re.compile(
    r"""(?:(?:at|on|by|next)\ ){0,2}
    (?:(?P<weekday>mon(?:day)?|tue(?:s|sday)?|wed(?:nesday)?|thu(?:rs?|rsday)?|fri(?:day)?|sat(?:urday)?|sun(?:day)?)
        \b[.,]?\ ?)?
    (?:(?P<month>jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]{0,6}\.?\ (?P<day>\d{1,2})(?:st|nd|rd|th)?\b
        (?:,?\ (?P<year>\d{4})\b)?
    | (?P<iso>\d{4}-\d\d-\d\d)
    | (?P<near>today|tomorrow)\b)?
    ,?[T\ ]?(?:at\ )?
    (?:(?P<hour>\d{1,2})(?::(?P<minute>\d\d)(?::\d\d(?:\.\d{1,9})?)?)?(?!\d)\ ?(?:(?P<half>[ap])\.?m\b\.?)?)?
    (?:\ (?P<after>tomorrow)\b)?
    (?:\ ?\((?P<zone>[^()]{1,60})\)|\ ?(?P<bare>(?:UTC|GMT)\b(?:[+-]\d{1,2}(?::?\d\d)?)?|Z\b|[+-]\d\d:?\d\d\b))?""",
    re.I | re.X,
)
OFFSET = re.compile(r"(?:UTC|GMT|Z)?(?:([+-])(\d{1,2}):?(\d\d)?)?", re.I)

ONE_MODELS = re.compile(
    rf"\b({'|'.join(MODELS)})\b"
    r"(?:(?:[ -][\d.]{1,6}){0,2}(?: weekly| usage)? limit\b|[^\n·]{0,40} requires usage credits)",
    re.I,
)
WHOLE = re.compile(
    r"\b(?:hit|reached) your (?:[\w'’-]{1,20} ){0,4}?limit\b|\b(?:session|weekly|5-hour|usage) limit reached"
    r"|\bout of (?:extra usage|usage credits)",
    re.I,
)
WHOLE_BY_NAME = re.compile(
    r"\b(?:hit|reached) your (?:session|weekly|5-hour) limit\b|\b(?:session|weekly|5-hour) limit reached", re.I
)


# --------------------------------------------------------------------------------------------------------
# By words
# --------------------------------------------------------------------------------------------------------


def from_text(said: str, now: float) -> float | None:
    """The latest reset that an error text names, in epoch seconds; None if it names none that is still to come.

    said: claude's own words, never the model's. now: epoch seconds; up to RECENT before it, a reset is over already.
    """
    named = [_amount(digits) for digits in EPOCH.findall(said)]
    for piece in NAMED.findall(said):
        named.append(_moment(" ".join(piece.split()).lstrip(": "), now))
    return max((moment for moment in named if moment is not None and -RECENT <= moment - now <= FARTHEST), default=None)


def _moment(piece: str, now: float) -> float | None:
    """The moment that a text such as "Jul 10 at 1pm (UTC)" or "in 2h 15m" begins with."""
    try:
        if relative := RELATIVE.match(piece):
            return now + sum(int(many) * UNITS[unit.lower()] for many, unit in ONE_AMOUNT.findall(relative[1]))
        if not (found := MOMENT.match(piece)):
            return None
        zone = _zone(found["zone"] or found["bare"] or "")
        today = datetime.fromtimestamp(now, zone)
        if (time := _time_of_day(found)) is None:
            return _start_of_day(found, today)
        moments = (_instant(day, time, zone) for day in _days(found, today.date()))
        return next((moment for moment in moments if moment >= now - RECENT), None)
    except (ValueError, LookupError, ArithmeticError, OSError):  # no such date, hour or zone, or far from our times
        return None


def _start_of_day(found: re.Match[str], today: datetime) -> float | None:
    """A day without a time is known only until it begins: later it could be any hour of it."""
    if not any(found[part] for part in ("weekday", "month", "iso", "near")):
        return None
    days = [day for day in _days(found, today.date()) if day >= today.date()]
    return _instant(days[0], (0, 0), today.tzinfo) if days and days[0] > today.date() else None


def _time_of_day(found: re.Match[str]) -> tuple[int, int] | None:
    """Hour and minute; None where there is none. Raises ValueError for 25pm."""
    if not found["hour"] or not (found["half"] or found["minute"]):
        return None
    hour, minute = int(found["hour"]), int(found["minute"] or 0)
    if found["half"]:
        if not 1 <= hour <= 12:
            raise ValueError("no such hour")
        hour = hour % 12 + 12 * (found["half"].lower() == "p")
    return hour, minute


def _days(found: re.Match[str], today: date) -> Iterator[date]:
    """The days that the text can mean, in order: the next one of them whose time has not passed is meant."""
    if found["iso"]:
        yield date.fromisoformat(found["iso"])
    elif found["month"]:
        month, day = MONTHS.index(found["month"].lower()) + 1, int(found["day"])
        years = [int(found["year"])] if found["year"] else [today.year - 1, today.year, today.year + 1]
        for year in years:
            if day <= (date(year + month // 12, month % 12 + 1, 1) - timedelta(days=1)).day:
                yield date(year, month, day)
    elif near := found["near"] or found["after"]:
        yield today + timedelta(days=near.lower() == "tomorrow")
    else:
        for ahead in range(-1, 9):
            one = today + timedelta(days=ahead)
            if not found["weekday"] or DAYS[one.weekday()] == found["weekday"][:3].lower():
                yield one


def _instant(day: date, time: tuple[int, int], zone: tzinfo | None) -> float:
    """Epoch seconds; the later one where the clock is set back or forward over that time."""
    local = datetime(day.year, day.month, day.day, *time, tzinfo=zone)
    return max(local.timestamp(), local.replace(fold=1).timestamp())


def _zone(name: str) -> tzinfo | None:
    """The zone of this name; None, which stands for this machine's, without a name. Raises LookupError, ValueError."""
    if not name:
        return None
    if offset := OFFSET.fullmatch(name.strip()):
        minutes = int(offset[2] or 0) * 60 + int(offset[3] or 0)
        return timezone(timedelta(minutes=-minutes if offset[1] == "-" else minutes))
    try:
        return ZoneInfo(name.strip())
    except (LookupError, ValueError, OSError):  # OSError: the name of a folder among the zones
        return ZoneInfo(RENAMED[name.strip()])


# --------------------------------------------------------------------------------------------------------
# By events
# --------------------------------------------------------------------------------------------------------


def from_windows(infos: Iterable[Mapping[str, Any]]) -> float | None:
    """The latest reset, epoch seconds, among the windows that are used up; None if no rejected event names one.

    infos: what `rate_limit_event`s said (`rate_limit_info`); one that is not `rejected` counts for nothing. A window
    of one model counts only where no other is used up: every event tells of all windows, and another model may work.
    What is paid for beyond the plan counts only where nothing else names a time.
    """
    rejected = _rejected(infos)
    windows = [window for info in rejected for window in _used_up(info)]
    whole = [moment for name, moment in windows if not _model_of(name) and name != EXTRA]
    of_models = [moment for name, moment in windows if _model_of(name)]
    extra = [moment for name, moment in windows if name == EXTRA]
    extra += [_amount(info.get("overageResetsAt")) for info in rejected if info.get("overageStatus") == "rejected"]
    for moments in (whole or of_models, extra):
        if named := [moment for moment in moments if moment is not None]:
            return max(named)
    return None


def limited_model(infos: Iterable[Mapping[str, Any]], said: str) -> str:
    """The model family ("opus", "sonnet", ...) if it alone is limited, "" if any model would be.

    infos: as for `from_windows`. said: claude's own words, which decide where no event names a window.
    """
    one = {match[1].lower() for match in ONE_MODELS.finditer(said)}
    rest = ONE_MODELS.sub("\n", said)
    windows = [name for info in _rejected(infos) for name, _ in _used_up(info) if name]
    if windows:
        models = {_model_of(name) for name in windows}
        # For some plans claude calls the window of a model the weekly limit; there is no other to turn to.
        return models.pop() if len(models) == 1 and (one or not WHOLE_BY_NAME.search(rest)) else ""
    return one.pop() if len(one) == 1 and not WHOLE.search(rest) else ""


def _rejected(infos: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [info for info in infos if isinstance(info, Mapping) and info.get("status") == "rejected"]


def _used_up(info: Mapping[str, Any]) -> list[tuple[str, float | None]]:
    """Name and reset of each window that is used up, first the one for which it was rejected ("" if it names none)."""
    kind, windows = info.get("rateLimitType"), info.get("unifiedWindows")
    found = [(kind if isinstance(kind, str) else "", _amount(info.get("resetsAt")))]
    for name, window in windows.items() if isinstance(windows, Mapping) else ():
        if isinstance(window, Mapping) and _is_used_up(window):
            found.append((str(name), _amount(window.get("resetsAt"))))
    return found


def _is_used_up(window: Mapping[str, Any]) -> bool:
    return window.get("status") == "rejected" or _number(window.get("utilization")) >= 1


def _model_of(name: str) -> str:
    """The model that a window is of, "" for one of all models or of one that is not known here."""
    model = "fable" if name == OF_FABLE else name.rpartition("_")[2]
    return model if model in MODELS else ""


def _amount(value: object) -> float | None:
    """Epoch seconds from what an event or a text names: a number or its digits, in seconds or milliseconds."""
    seconds = _number(value)
    seconds = seconds / 1000 if seconds >= LATEST else seconds
    return seconds if EARLIEST <= seconds < LATEST else None


def _number(value: object) -> float:
    """The value as a number, 0 if it is none."""
    try:
        return float(value) if isinstance(value, (int, float, str)) else 0.0
    except (ValueError, OverflowError):
        return 0.0
