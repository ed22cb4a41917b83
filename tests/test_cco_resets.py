"""When a limit ends, by claude's own words and events; texts and events as versions of claude have written them."""

from __future__ import annotations

import time
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest

import resets

HOUR, DAY = 3600.0, 86400.0


def at(text: str, zone: str = "UTC") -> float:
    """Epoch seconds of what the clocks show in a zone."""
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()


NOW = at("2026-11-27 10:00")  # a Friday


@pytest.fixture
def local(monkeypatch):
    """Set this machine's zone, and put it back."""

    def set_to(zone: str) -> None:
        monkeypatch.setenv("TZ", zone)
        time.tzset()

    yield set_to
    monkeypatch.undo()
    time.tzset()


# --------------------------------------------------------------------------------------------------------
# By words
# --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        # 2025
        ("Claude AI usage limit reached|1893456000", 1893456000),
        ("Claude AI usage limit reached|1893456000000", 1893456000),
        ("API Error: Claude AI usage limit reached | 1795777200\nand more", 1795777200),
        (
            "Claude usage limit reached. Your limit will reset at 3pm (America/Bogota).",
            at("2026-11-27 15:00", "America/Bogota"),
        ),
        (
            "Claude usage limit reached. Your limit will reset at 1pm (Etc/GMT+5).",
            at("2026-11-27 13:00", "Etc/GMT+5"),
        ),
        ("Claude Max usage limit reached. Your limit will reset at 12am (UTC).", at("2026-11-28 00:00")),
        ("5-hour limit reached ∙ resets 3pm (UTC)", at("2026-11-27 15:00")),
        (
            "5-hour limit reached • resets 3pm (UTC)\n     /upgrade to increase your usage limit.",
            at("2026-11-27 15:00"),
        ),
        ("Session limit reached ∙ resets 11:00 PM (UTC)", at("2026-11-27 23:00")),
        ("Weekly limit reached ∙ resets Dec 2, 7pm (Europe/Moscow) ·", at("2026-12-02 19:00", "Europe/Moscow")),
        (
            "Weekly limit reached · resets Dec 1, 2pm (America/Chicago) · turn on /extra-usage",
            at("2026-12-01 14:00", "America/Chicago"),
        ),
        ("Opus weekly limit reached ∙ resets Dec 9 at 10:30am (UTC)", at("2026-12-09 10:30")),
        ("Weekly limit reached | resets Nov 30 at 9am (UTC)", at("2026-11-30 09:00")),
        # 2026
        ("You've hit your limit · resets 3pm (Europe/Berlin)", at("2026-11-27 15:00", "Europe/Berlin")),
        ("You've hit your limit · resets Jan 30, 11:30am (Asia/Calcutta)", at("2027-01-30 11:30", "Asia/Kolkata")),
        (
            "You've hit your limit - resets Feb 4, 9pm (Africa/Johannesburg)",
            at("2027-02-04 21:00", "Africa/Johannesburg"),
        ),
        (
            "You're out of extra usage · resets 5pm (America/Los_Angeles)",
            at("2026-11-27 17:00", "America/Los_Angeles"),
        ),
        ("You've hit your session limit · resets 5:49am (UTC)", at("2026-11-28 05:49")),
        ("You've hit your session limit · resets 3:45pm (UTC) · progress saved", at("2026-11-27 15:45")),
        (
            "You've hit your session limit · resets 2:30pm (Pacific/Auckland)\n/login to switch to an API account.",
            at("2026-11-28 14:30", "Pacific/Auckland"),
        ),
        ("You've hit your weekly limit · resets Mon 12:00am (UTC)", at("2026-11-30 00:00")),
        ("You've hit your Fable limit · resets Jul 10 at 1pm (Asia/Tokyo)", at("2027-07-10 13:00", "Asia/Tokyo")),
        ("You've hit your weekly limit · resets Jul 10, 1pm (UTC)", at("2027-07-10 13:00")),
        ("You've hit your limit · resets 15:00 (UTC)", at("2026-11-27 15:00")),
        (
            "You've hit your usage limit · resets 3:00 pm (America/New_York)",
            at("2026-11-27 15:00", "America/New_York"),
        ),
        ("You've hit your usage limit. It resets Dec 1, 12am (UTC). /model to switch models.", at("2026-12-01 00:00")),
        (
            "You've hit your org's monthly spend limit · ask your admin · your 5-hour limit resets 1pm (UTC)",
            at("2026-11-27 13:00"),
        ),
        ("You’ve hit your limit for Claude messages. Limits will reset at 9:30 AM (UTC).", at("2026-11-28 09:30")),
        (
            "You have reached your API usage limits. You will regain access on 2026-12-01 at 00:00 UTC.",
            at("2026-12-01"),
        ),
        # measured with 2.1.329
        ("You've hit your 5-hour limit · resets 8:18pm (UTC)", at("2026-11-27 20:18")),
        ("You've hit your Opus limit · resets Nov 29, 7:19am (Asia/Kolkata)", at("2026-11-29 07:19", "Asia/Kolkata")),
        ("You've hit your weekly limit · resets Dec 3, 2:49pm (Etc/GMT+5)", at("2026-12-03 14:49", "Etc/GMT+5")),
        # others' wording
        ("Your limits will reset at 03:00 UTC", at("2026-11-28 03:00")),
        ("resets at 6am tomorrow (UTC)", at("2026-11-28 06:00")),
        ("resets tomorrow at 6:15 p.m. (UTC)", at("2026-11-28 18:15")),
        ("resets today at 6pm (UTC)", at("2026-11-27 18:00")),
        ("resets on Wednesday, December 2, 9 PM (UTC)", at("2026-12-02 21:00")),
        ("resets Sat 1:05 PM (UTC)", at("2026-11-28 13:05")),
        ("resets Thu 21:00 (UTC)", at("2026-12-03 21:00")),
        ("resets Nov 1 12:00 AM (UTC)", at("2027-11-01 00:00")),
        ("resets Jan 12, 2027, 10am (UTC)", at("2027-01-12 10:00")),
        ("resets Sept. 3rd, 12pm (UTC)", at("2027-09-03 12:00")),
        ("resets 2026-11-27T13:00:00Z", at("2026-11-27 13:00")),
        ("resets 2026-11-27T13:00:00.123456+02:00", at("2026-11-27 11:00")),
        ("resets 4pm (UTC+2)", at("2026-11-27 14:00")),
        ("resets 4pm (GMT-03:30)", at("2026-11-27 19:30")),
        ("resets 3:45\u202fPM\u00a0(UTC)", at("2026-11-27 15:45")),
        ("RESETS 3PM (utc)", at("2026-11-27 15:00")),
        ("Resets in 2h 15m", NOW + 2.25 * HOUR),
        ("resets 2h15m", NOW + 2.25 * HOUR),
        ("limit reached · resets 45m", NOW + 0.75 * HOUR),
        ("resets in 3 days, 4 hours and 5 minutes.", NOW + 3 * DAY + 4 * HOUR + 300),
        ("fast limit · resets in 90s", NOW + 90),
        # a day without a time is known until it begins
        ("You've hit your weekly limit · resets Dec 9 (UTC)", at("2026-12-09")),
        ("You've hit your weekly limit · resets Monday (UTC)", at("2026-11-30")),
        ("You've hit your weekly limit · resets Friday (UTC)", None),
        ("You've hit your weekly limit · resets Nov 27 (UTC)", None),
        ("resets tomorrow (UTC)", at("2026-11-28")),
        ("resets today (UTC)", None),
    ],
)
def test_a_text_names_the_time_at_which_its_limit_ends(said, expected, local):
    local("UTC")
    assert resets.from_text(said, NOW) == expected


@pytest.mark.parametrize("zone", ("America/Los_Angeles", "Asia/Kolkata", "Pacific/Kiritimati"))
@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("resets 3pm", "2026-11-27 15:00"),
        ("resets 3am", "2026-11-28 03:00"),
        ("resets 15:00", "2026-11-27 15:00"),
        ("resets Mon 12:00am", "2026-11-30 00:00"),
        ("resets Jul 10, 1pm", "2027-07-10 13:00"),
        ("Your limit will reset at 12am.", "2026-11-28 00:00"),
    ],
)
def test_a_time_without_a_zone_is_this_machines(said, expected, zone, local):
    local(zone)
    assert resets.from_text(said, at("2026-11-27 10:00", zone)) == at(expected, zone)


@pytest.mark.parametrize("zone", ("America/Los_Angeles", "Pacific/Kiritimati"))
def test_a_named_zone_holds_wherever_this_machine_is(zone, local):
    local(zone)
    assert resets.from_text("resets 3pm (America/Bogota)", NOW) == at("2026-11-27 15:00", "America/Bogota")


def test_the_day_is_that_of_the_named_zone():
    """In Auckland it is Saturday already, at 11 in the evening."""
    now = at("2026-11-28 23:00", "Pacific/Auckland")
    assert resets.from_text("resets 11:30pm (Pacific/Auckland)", now) == now + HOUR / 2
    assert resets.from_text("resets Sat 11:30pm (Pacific/Auckland)", now) == now + HOUR / 2
    assert resets.from_text("resets 1am (Pacific/Auckland)", now) == now + 2 * HOUR


@pytest.mark.parametrize(
    ("said", "now", "expected"),
    [
        ("resets 10am (UTC)", "2026-11-27 10:00", "2026-11-27 10:00"),
        ("resets 10am (UTC)", "2026-11-27 10:09:59", "2026-11-27 10:00"),
        ("resets 10am (UTC)", "2026-11-27 10:11", "2026-11-28 10:00"),
        ("resets 11:55pm (UTC)", "2026-11-28 00:02", "2026-11-27 23:55"),
        ("resets 11:55pm (UTC)", "2026-11-28 00:06", "2026-11-28 23:55"),
        ("resets Fri 9:55am (UTC)", "2026-11-27 10:00", "2026-11-27 09:55"),
        ("resets Fri 9am (UTC)", "2026-11-27 10:00", "2026-12-04 09:00"),
        ("resets Thu 11:58pm (UTC)", "2026-11-27 00:05", "2026-11-26 23:58"),
        ("resets Nov 27, 9:55am (UTC)", "2026-11-27 10:00", "2026-11-27 09:55"),
        ("resets Nov 27, 9am (UTC)", "2026-11-27 10:00", "2027-11-27 09:00"),
        ("resets Dec 31 at 11:58pm (UTC)", "2027-01-01 00:05", "2026-12-31 23:58"),
        ("resets Jan 2, 1pm (UTC)", "2026-12-30 10:00", "2027-01-02 13:00"),
        ("resets Feb 29, 1pm (UTC)", "2028-02-27 10:00", "2028-02-29 13:00"),
        ("limit reached|1795773600", "2026-11-27 10:09", "2026-11-27 10:00"),
        ("resets Nov 27, 2026, 10am (UTC)", "2026-11-27 10:09", "2026-11-27 10:00"),
    ],
)
def test_what_has_just_passed_is_over_and_what_passed_before_comes_again(said, now, expected):
    assert resets.from_text(said, at(now)) == at(expected)


@pytest.mark.parametrize(
    ("said", "now", "expected"),
    [
        # 2:30 is skipped on March 8, 2026: the clock then shows 3:30.
        ("resets 2:30am (America/New_York)", "2026-03-08 06:00", "2026-03-08 07:30"),
        # 1:30 comes twice on November 1, 2026: the second one is sure to be over.
        ("resets 1:30am (America/New_York)", "2026-11-01 04:00", "2026-11-01 06:30"),
        ("resets 1:30am (America/New_York)", "2026-11-01 05:45", "2026-11-01 06:30"),
        # Over the change, the time of day stays what it says.
        ("resets 3pm (America/New_York)", "2026-10-31 20:00", "2026-11-01 20:00"),
        ("resets Mon 9am (Europe/Berlin)", "2026-10-23 10:00", "2026-10-26 08:00"),
    ],
)
def test_changes_of_the_clock_move_nothing_by_an_hour(said, now, expected):
    assert resets.from_text(said, at(now)) == at(expected)


def test_a_change_of_the_clock_here_is_heeded_where_no_zone_is_named(local):
    local("America/New_York")
    assert resets.from_text("resets 2:30am", at("2026-03-08 06:00")) == at("2026-03-08 07:30")
    assert resets.from_text("resets 1:30am", at("2026-11-01 05:45")) == at("2026-11-01 06:30")


@pytest.mark.parametrize(
    ("said", "now"),
    [
        ("limit reached|1795773600", "2026-11-27 10:11"),
        ("resets Nov 27, 2026, 10am (UTC)", "2026-11-27 10:11"),
        ("resets today at 10am (UTC)", "2026-11-27 10:11"),
        # at any hour of the day
        ("resets Friday (UTC)", "2026-11-27 00:05"),
        ("resets Nov 27 (UTC)", "2026-11-27 00:05"),
    ],
)
def test_what_passed_and_cannot_come_again_leaves_it_open(said, now):
    assert resets.from_text(said, at(now)) is None


def test_of_several_times_the_latest_counts():
    said = "You've hit your session limit · resets 3pm (UTC)\nYou've hit your weekly limit · resets Mon 9am (UTC)"
    assert resets.from_text(said, NOW) == at("2026-11-30 09:00")
    said = "Your limit will reset when the window resets 3pm (UTC)|1795777200\nresets 25pm (UTC)"
    assert resets.from_text(said, NOW) == at("2026-11-27 15:00")


@pytest.mark.parametrize(
    "said",
    [
        "",
        "You've hit your session limit",
        "Weekly limit reached",
        "API Error: Server is temporarily limiting requests (not your usage limit)",
        "You've reached your Fable 5 limit. Run /usage-credits to continue or switch models with /model.",
        "it is 3pm (UTC) now",
        "the password was reset at once",
        "resets",
        "resets soon",
        "resets monthly",
        "resets 3",
        "resets 15 (UTC)",
        "resets 25pm (UTC)",
        "resets 0am (UTC)",
        "resets 13pm",
        "resets 24:00 (UTC)",
        "resets 9:75am",
        "resets 123:45",
        "resets 3pm (Mars/Olympus)",
        "resets 3pm (America)",
        "resets 3pm (../../etc/passwd)",
        "resets 3pm (/etc/localtime)",
        "resets 3pm (\0)",
        "resets 3pm (" + "x" * 60 + ")",
        "resets 3pm (UTC+99)",
        "resets Feb 31, 1pm (UTC)",
        "resets Feb 30 (UTC)",
        "resets Feb 29, 1pm (UTC)",
        "resets Feb 29, 2024, 3pm (UTC)",
        "resets Jan 0 at 3pm",
        "resets Jan 5, 0000, 3pm",
        "resets Dec 31, 9999, 11pm (UTC)",
        "resets 2026-13-45 10:00 UTC",
        "resets 2020-01-01T00:00:00Z",
        "limit reached|1",
        "limit reached|0000000000",
        "limit reached|9999999999",
        "limit reached|9999999999999",
        "limit reached|12345678901",
        "limit reached|18934560001",
        "limit reached|189345600",
        "limit reached|1749470400",
        "limit reached|" + "9" * 5000,
        "resets in 9999d",
    ],
)
def test_a_text_that_names_no_time_to_come_leaves_it_open(said, local):
    local("UTC")
    assert resets.from_text(said, NOW) is None


@pytest.mark.parametrize("now", (float("nan"), float("inf"), -1e300, 1e300, 0.0, -62135596800.0, 253402300799.0))
def test_no_clock_is_too_wrong(now):
    for said in ("resets 3pm (UTC)", "resets 3pm", "resets Mon 3pm", "resets Dec 31, 3pm", "|1893456000", "resets 2h"):
        found = resets.from_text(said, now)
        assert found is None or abs(found - now) <= resets.FARTHEST


@pytest.mark.parametrize(
    "said",
    ["resets " * 100_000, "resets " + " " * 500_000, "resets Mon " * 50_000, "9" * 500_000, "resets 1h " * 50_000,
     "|" * 500_000, "opus " * 100_000, "hit your " * 50_000, "fable" + " x" * 200_000, "resets (" * 50_000],
)  # fmt: skip
def test_a_long_text_takes_no_long_time(said):
    begun = time.process_time()
    resets.from_text(said, NOW)
    resets.limited_model([], said)
    assert time.process_time() - begun < 5


# --------------------------------------------------------------------------------------------------------
# By events
# --------------------------------------------------------------------------------------------------------

SOON, LATER, FAR = NOW + HOUR, NOW + 2 * DAY, NOW + 20 * DAY


def rejected(kind: str | None = "five_hour", resets_at: Any = SOON, **more: Any) -> dict[str, Any]:
    return {"status": "rejected", "resetsAt": resets_at, **({"rateLimitType": kind} if kind else {}), **more}


def window(utilization: Any, resets_at: Any = LATER, **more: Any) -> dict[str, Any]:
    return {"utilization": utilization, "resetsAt": resets_at, **more}


@pytest.mark.parametrize(
    ("infos", "expected"),
    [
        ([], None),
        ([rejected()], SOON),
        ([rejected(), rejected("seven_day", LATER)], LATER),
        ([rejected("seven_day", LATER), rejected()], LATER),
        # what is allowed counts for nothing, whatever else it says
        ([rejected() | {"status": "allowed"}], None),
        ([rejected() | {"status": "allowed_warning"}], None),
        ([rejected(), rejected("seven_day", LATER) | {"status": "allowed"}], SOON),
        ([rejected() | {"status": "allowed", "overageStatus": "rejected", "unifiedWindows": {"x": window(1)}}], None),
        # of all windows those that are used up
        ([rejected(unifiedWindows={"five_hour": window(1, SOON), "seven_day": window(0.84)})], SOON),
        ([rejected(unifiedWindows={"five_hour": window(1, SOON), "seven_day": window(1)})], LATER),
        ([rejected(unifiedWindows={"seven_day": window(1.07)})], LATER),
        ([rejected(unifiedWindows={"seven_day": window("1.0")})], LATER),
        ([rejected(unifiedWindows={"seven_day": window(0.2, status="rejected")})], LATER),
        ([rejected(unifiedWindows={"seven_day": window(0.99, status="allowed_warning")})], SOON),
        ([rejected(resets_at=None, unifiedWindows={"five_hour": window(1, SOON)})], SOON),
        # one model's window keeps nobody from the others
        ([rejected("seven_day_opus", LATER)], LATER),
        ([rejected(unifiedWindows={"seven_day_overage_included": window(1)})], SOON),
        ([rejected(), rejected("seven_day_opus", LATER)], SOON),
        ([rejected("seven_day_opus", LATER, unifiedWindows={"five_hour": window(1, SOON)})], SOON),
        ([rejected("seven_day_opus", SOON), rejected("seven_day_sonnet", LATER)], LATER),
        ([rejected(resets_at=None, unifiedWindows={"seven_day_opus": window(1)})], None),
        # what is paid for beyond the plan: only where nothing else is known
        ([rejected(overageStatus="rejected", overageResetsAt=FAR)], SOON),
        ([rejected("overage", FAR, unifiedWindows={"five_hour": window(1, SOON)})], SOON),
        ([rejected("overage", FAR)], FAR),
        ([rejected(resets_at=None, overageStatus="rejected", overageResetsAt=FAR)], FAR),
        ([rejected(resets_at=None, overageStatus="allowed", overageResetsAt=FAR)], None),
        ([rejected(None)], SOON),
        # a reset that has passed is told as it is
        ([rejected(resets_at=NOW - 900)], NOW - 900),
    ],
)
def test_the_latest_reset_counts_among_the_windows_that_are_used_up(infos, expected):
    assert resets.from_windows(infos) == expected
    assert resets.from_windows(iter(infos)) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1893456000, 1893456000),
        (1893456000.5, 1893456000.5),
        (1893456000000, 1893456000),
        ("1893456000", 1893456000),
        ("1893456000000", 1893456000),
        (" 1893456000 ", 1893456000),
        (None, None),
        (True, None),
        (0, None),
        (-1893456000, None),
        (5, None),
        (1e300, None),
        (10**400, None),
        (float("nan"), None),
        (float("inf"), None),
        ("nan", None),
        ("soon", None),
        ("", None),
        ("9" * 5000, None),
        ([1893456000], None),
        ({"at": 1893456000}, None),
        (b"1893456000", None),
    ],
)
def test_a_time_is_taken_in_whatever_form_it_comes(value, expected):
    assert resets.from_windows([rejected(resets_at=value)]) == expected
    assert resets.from_windows([rejected(resets_at=None, unifiedWindows={"seven_day": window(1, value)})]) == expected
    assert resets.from_windows([rejected(resets_at=None, overageStatus="rejected", overageResetsAt=value)]) == expected


ODD = [None, True, 0, -1, 1e400, float("nan"), 10**400, "", "rejected", "x", [], ["rejected"], {}, {"a": [{}]}, b"x"]


@pytest.mark.parametrize("odd", ODD, ids=repr)
def test_nothing_that_stands_in_an_event_raises(odd):
    infos: list[Any] = [odd, *({**rejected(), name: odd} for name in
             ("status", "resetsAt", "rateLimitType", "utilization", "overageStatus", "overageResetsAt", "unifiedWindows"))]  # fmt: skip  # noqa: E501
    infos += [rejected(unifiedWindows={"seven_day": odd, 5: window(1)})]
    infos += [rejected(unifiedWindows={"seven_day": window(1) | {name: odd}}) for name in window(1)]
    for info in infos:
        assert resets.from_windows([info]) in (None, SOON, LATER)
        assert resets.limited_model([info], "") == ""
    assert resets.from_windows([*infos, rejected()]) == LATER


@pytest.mark.parametrize(
    ("infos", "said", "expected"),
    [
        ([rejected("seven_day_opus")], "", "opus"),
        ([rejected("seven_day_sonnet")], "You've hit your Sonnet limit · resets 3pm", "sonnet"),
        ([rejected("seven_day_haiku")], "", "haiku"),
        ([rejected("seven_day_fable")], "", "fable"),
        ([rejected("seven_day_overage_included")], "You've hit your Fable limit · resets 3pm", "fable"),
        ([rejected("seven_day_opus"), rejected("seven_day_opus")], "", "opus"),
        ([rejected("seven_day_opus", unifiedWindows={"five_hour": window(0.4), "seven_day": window(0.9)})], "", "opus"),
        # the general text of an account without paid extras says no more than the event
        ([rejected("seven_day_opus")], "You've hit your limit · resets 3pm", "opus"),
        ([rejected("seven_day_opus")], "You've hit your Opus limit\n/upgrade to increase your usage limit.", "opus"),
        ([rejected("seven_day_opus"), rejected() | {"status": "allowed"}], "", "opus"),
        # any model would be limited
        ([rejected("five_hour")], "", ""),
        ([rejected("seven_day")], "You've hit your weekly limit · resets 3pm", ""),
        ([rejected("overage")], "", ""),
        ([rejected("seven_day_oauth_apps")], "", ""),
        ([rejected("seven_day_cowork")], "", ""),
        ([rejected("opus_something")], "", ""),
        ([rejected("five_hour")], "You've hit your Opus limit", ""),
        ([rejected("five_hour"), rejected("seven_day_opus")], "You've hit your Opus limit", ""),
        ([rejected("seven_day_opus", unifiedWindows={"five_hour": window(1)})], "", ""),
        ([rejected("five_hour", unifiedWindows={"seven_day_overage_included": window(1)})], "", ""),
        ([rejected("seven_day_opus"), rejected("seven_day_sonnet")], "", ""),
        # on some plans the window of a model is all there is
        ([rejected("seven_day_sonnet")], "You've hit your weekly limit · resets Mon 12:00am", ""),
        ([rejected("seven_day_opus") | {"status": "allowed_warning"}], "", ""),
    ],
)
def test_a_model_is_limited_alone_only_where_all_used_up_windows_are_its_own(infos, said, expected):
    assert resets.limited_model(infos, said) == expected
    assert resets.limited_model(iter(infos), said) == expected


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("You've hit your Opus limit · resets 3:45pm", "opus"),
        ("You’ve hit your Sonnet limit · resets Mon 12:00am · progress saved", "sonnet"),
        ("You have hit your Haiku limit", "haiku"),
        ("You've hit your Fable limit · resets Jul 10 at 1pm (UTC)", "fable"),
        ("You've reached your Fable 5 limit. Run /usage-credits to continue or switch models with /model.", "fable"),
        ("Fable 5 requires usage credits. Switch to another model to continue.", "fable"),
        ("Opus weekly limit reached ∙ resets Dec 9 at 10:30am", "opus"),
        ("Claude Opus 4 limit reached, now using Sonnet 4", "opus"),
        ("You've hit your Opus 4.8 limit", "opus"),
        ("OPUS LIMIT REACHED", "opus"),
        ("You've hit your Opus limit\nYou've hit your Opus limit · resets 3pm", "opus"),
        ("You've hit your Opus limit\nYou've hit your Sonnet limit", ""),
        ("You've hit your Opus limit\nYou've hit your session limit", ""),
        ("You've hit your org's monthly spend limit · your Opus limit resets 3pm", ""),
        ("You've hit your session limit · resets 5:49am (UTC)", ""),
        ("You've hit your weekly limit · resets Mon 12:00am", ""),
        ("You've hit your limit · resets 3pm", ""),
        ("You're out of extra usage · resets 5pm", ""),
        ("5-hour limit reached ∙ resets 3pm", ""),
        ("Claude AI usage limit reached|1893456000", ""),
        ("There's an issue with the selected model (opus)", ""),
        ("", ""),
    ],
)
def test_without_events_the_text_says_which_model_is_limited(said, expected):
    assert resets.limited_model([], said) == expected
    assert resets.limited_model([rejected(None)], said) == expected
