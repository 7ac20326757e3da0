"""Cron expressions: their times, invalid expressions, and days on which the clocks change."""

import itertools
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysep.sweeps.cron import Cron

MONDAY = datetime(2026, 11, 23, tzinfo=UTC)
ZONES = ("Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "UTC")


def times(expression: str, zone: str, start: datetime, count: int) -> list[str]:
    moments = itertools.islice(Cron(expression, ZoneInfo(zone)).after(start), count)
    return [f"{moment.astimezone(ZoneInfo(zone)):%a %m-%d %H:%M}" for moment in moments]


@pytest.mark.parametrize(
    ("expression", "same"),
    [
        ("0 3 * * 0", "0 3 * * 7"),
        ("0 3 * * SUN", "0 3 * * sun"),
        ("0 3 * * 1-5", "0 3 * * Mon-Fri"),
        ("0 3 * * */2", "0 3 * * 0,2,4,6"),
        ("0 3 * * */7", "0 3 * * 0"),
        ("0 3 * * 5-7", "0 3 * * fri,sat,sun"),
        ("0 3 * * 1-7/2", "0 3 * * mon,wed,fri,sun"),
        ("0 3 * * 0-7/2", "0 3 * * 0,2,4,6"),
        ("0 3 * JAN,jul-Sep *", "0 3 * 1,7,8,9 *"),
        ("0 3 * */5 *", "0 3 * 1,6,11 *"),
        ("0 3 */10 * *", "0 3 1,11,21,31 * *"),
        ("*/20 */8 * * *", "0,20,40 0,8,16 * * *"),
        ("5-5/10 3 * * *", "5 3 * * *"),
        ("0-10/5,30 3 * * *", "0,5,10,30 3 * * *"),
        ("00 03 * * *", "0 3 * * *"),
        ("*/60 * * * *", "0 * * * *"),
        ("\t0  3 * * * ", "0 3 * * *"),
        ("@daily", "0 0 * * *"),
        ("@midnight", "0 0 * * *"),
        ("@hourly", "0 * * * *"),
        ("@WEEKLY", "0 0 * * 0"),
        ("@monthly", "0 0 1 * *"),
        ("@yearly", "0 0 1 1 *"),
        ("@annually", "0 0 1 1 *"),
    ],
)
def test_equivalent_expressions(expression: str, same: str) -> None:
    assert times(expression, "UTC", MONDAY, 60) == times(same, "UTC", MONDAY, 60)


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("0 3 * * */2", ["Tue 11-24 03:00", "Thu 11-26 03:00", "Sat 11-28 03:00", "Sun 11-29 03:00"]),
        ("0 3 * * 1-5", ["Mon 11-23 03:00", "Tue 11-24 03:00", "Wed 11-25 03:00", "Thu 11-26 03:00"]),
        # Both restricted: either has to match. One begins with `*`: both have to match.
        ("0 3 25 * 5", ["Wed 11-25 03:00", "Fri 11-27 03:00", "Fri 12-04 03:00"]),
        ("0 3 */2 * 5", ["Fri 11-27 03:00", "Fri 12-11 03:00", "Fri 12-25 03:00"]),
        ("0 3 25 * */5", ["Fri 12-25 03:00", "Sun 04-25 03:00", "Fri 06-25 03:00"]),
        # Only a leading `*` counts.
        ("0 3 2,* * 5", ["Mon 11-23 03:00", "Tue 11-24 03:00"]),
        ("59 23 31 12 *", ["Thu 12-31 23:59", "Fri 12-31 23:59"]),
        ("0 0 29 2 *", ["Tue 02-29 00:00", "Sun 02-29 00:00"]),
        # Forty years lie between 2072 and 2112: no leap day in 2100.
        ("0 0 29 2 */8", ["Sun 02-29 00:00"]),
        ("0 0 30 2 mon", ["Mon 02-01 00:00", "Mon 02-08 00:00"]),
    ],
)
def test_times_of_crontab_5(expression: str, expected: list[str]) -> None:
    assert times(expression, "UTC", MONDAY, len(expected)) == expected


@pytest.mark.parametrize(
    ("expression", "sentence"),
    [
        ("", "it has 0 fields, expected five fields, as in '0 3 \\* \\* \\*'"),
        ("* * * *", "it has 4 fields"),
        ("0 0 3 * * *", "it has 6 fields, .* no field for seconds or years"),
        ("CRON_TZ=UTC 0 3 * * *", "time zone is the sweep's `timezone`"),
        ("@reboot", "unsupported nickname @reboot: expected one of @yearly"),
        ("@never", "unsupported nickname @never"),
        ("60 * * * *", "minute: expected 0 to 59, got '60'"),
        ("-1 * * * *", "minute: expected `\\*`, 0 to 59, or a range such as 1-5, got '-1'"),
        ("0 24 * * *", "hour: expected 0 to 23, got '24'"),
        ("0 3 0 * *", "day of month: expected 1 to 31, got '0'"),
        ("0 3 1-32 * *", "day of month: expected 1 to 31, got '32'"),
        ("0 3 * 13 *", "month: expected 1 to 12 or jan to dec, got '13'"),
        ("0 3 * january *", "month: expected 1 to 12 or jan to dec, got 'january'"),
        ("0 3 * * 8", "day of week: expected 0 to 7 or sun to sat, got '8'"),
        ("0 3 * * jan", "day of week: expected 0 to 7 or sun to sat, got 'jan'"),
        ("0 3 * mon *", "month: .* got 'mon'"),
        ("*/0 * * * *", "minute: expected a step of 1 to 60, got '0' in '\\*/0'"),
        ("*/90 * * * *", "minute: expected a step of 1 to 60, got '90'"),
        ("0 */25 * * *", "hour: expected a step of 1 to 24, got '25'"),
        ("*/ * * * *", "minute: expected a step of 1 to 60, got ''"),
        ("*/2/3 * * * *", "minute: expected a step of 1 to 60, got '2/3'"),
        ("*/-2 * * * *", "minute: expected a step"),
        ("5/10 * * * *", "minute: a step needs a range: write 5-59/10 or \\*/10 for '5/10'"),
        ("0 22-2 * * *", "hour: expected an ascending range, got '22-2'"),
        ("0 3 * nov-feb *", "month: expected an ascending range, got 'nov-feb'"),
        ("0 3 * * fri-sun", "day of week: .* 'fri-sun' \\(Sunday is 7 at the end of a range\\)"),
        ("1- * * * *", "minute: .* got '1-'"),
        ("1-2-3 * * * *", "minute: .* got '1-2-3'"),
        ("1,,2 * * * *", "minute: .* got ''"),
        (",1 * * * *", "minute: .* got ''"),
        ("*-5 * * * *", "minute: .* got '\\*-5'"),
        ("** * * * *", "minute: .* got '\\*\\*'"),
        ("1.5 * * * *", "minute: .* got '1.5'"),
        ("0~30 * * * *", "minute: .* got '0~30'"),
        ("\u0663 * * * *", "minute: "),
        ("0 3 L * *", "day of month: expected 1 to 31, got 'l'"),
        ("0 3 15W * *", "day of month: .* got '15w' \\(crontab\\(5\\) has no L, W, # and \\?"),
        ("0 3 * * 5L", "day of week: .* got '5l' \\(crontab\\(5\\) has no L, W, # and \\?"),
        ("0 3 * * mon#2", "day of week: .* got 'mon#2' \\(crontab\\(5\\) has no L, W, # and \\?"),
        ("0 3 ? * 1", "day of month: .* got '\\?' \\(crontab\\(5\\) has no L, W, # and \\?"),
        # All problems at once.
        ("60 24 * * 8", "minute: .*'60'; hour: .*'24'; day of week: .*'8'; expected five fields"),
        ("0 3 31 2 *", "no date matches"),
        ("0 0 30 2 *", "no date matches"),
        ("0 0 30 feb */2", "no date matches"),
        ("0 0 31 4,6,9,11 *", "no date matches"),
        ("0 0 31 feb,apr-jun/2 *", "no date matches"),
    ],
)
def test_invalid_expressions_and_their_messages(expression: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Cron(expression, ZoneInfo("UTC"))


@pytest.mark.parametrize(
    ("expression", "zone", "day", "expected"),
    [
        # Repeated 01:30 and 02:30; skipped 02:30.
        ("30 1 * * *", "America/New_York", datetime(2026, 10, 31, 12, tzinfo=UTC), ["11-01 01:30", "11-02 01:30"]),
        ("30 2 * * *", "Europe/Berlin", datetime(2026, 10, 24, 12, tzinfo=UTC), ["10-25 02:30", "10-26 02:30"]),
        ("30 2 * * *", "Europe/Berlin", datetime(2026, 3, 28, 12, tzinfo=UTC), ["03-29 03:00", "03-30 02:30"]),
        ("10,40 2 * * *", "Europe/Berlin", datetime(2026, 3, 28, 12, tzinfo=UTC), ["03-29 03:00", "03-30 02:10"]),
        ("0 2,3 * * *", "Europe/Berlin", datetime(2026, 3, 28, 12, tzinfo=UTC), ["03-29 03:00", "03-30 02:00"]),
        ("0 4 * * *", "Europe/Berlin", datetime(2026, 3, 28, 12, tzinfo=UTC), ["03-29 04:00", "03-30 04:00"]),
        # With `*` the job follows local time: twice, or not at all.
        ("30 * * * *", "Europe/Berlin", datetime(2026, 10, 25, 0, tzinfo=UTC), ["10-25 02:30", "10-25 02:30"]),
        ("30 * * * *", "Europe/Berlin", datetime(2026, 3, 29, 0, tzinfo=UTC), ["03-29 01:30", "03-29 03:30"]),
        ("*/30 2 * * *", "Europe/Berlin", datetime(2026, 3, 29, 0, tzinfo=UTC), ["03-30 02:00", "03-30 02:30"]),
        # A change by half an hour: repeated 01:45, skipped 02:15.
        ("45 * * * *", "Australia/Lord_Howe", datetime(2026, 4, 4, 14, 40, tzinfo=UTC), ["04-05 01:45", "04-05 01:45"]),
        ("15 2 * * *", "Australia/Lord_Howe", datetime(2026, 10, 3, tzinfo=UTC), ["10-04 02:30", "10-05 02:15"]),
        # Skipped midnight.
        ("0 0 * * *", "America/Santiago", datetime(2026, 9, 5, 12, tzinfo=UTC), ["09-06 01:00", "09-07 00:00"]),
        ("*/30 0 * * *", "America/Santiago", datetime(2026, 9, 5, 12, tzinfo=UTC), ["09-07 00:00", "09-07 00:30"]),
    ],
)
def test_repeated_and_skipped_hours(expression: str, zone: str, day: datetime, expected: list[str]) -> None:
    assert [moment[4:] for moment in times(expression, zone, day, 2)] == expected


def test_a_start_between_both_occurrences_of_an_hour() -> None:
    berlin = ZoneInfo("Europe/Berlin")
    second = datetime(2026, 10, 25, 2, 10, tzinfo=berlin, fold=1)
    assert next(Cron("30 2 * * *", berlin).after(second)) == datetime(2026, 10, 26, 1, 30, tzinfo=UTC)
    assert next(Cron("30 * * * *", berlin).after(second)) == datetime(2026, 10, 25, 1, 30, tzinfo=UTC)


@given(
    st.datetimes(datetime(2026, 1, 1), datetime(2027, 1, 1)),
    st.sampled_from(["*/7 * * * *", "30 1,2 * * *", "15 * * * sun", "0 0 * * *"]),
    st.sampled_from([*ZONES, "America/Santiago"]),
)
def test_times_are_ascending_all_year(start: datetime, expression: str, zone: str) -> None:
    moments = list(itertools.islice(Cron(expression, ZoneInfo(zone)).after(start.replace(tzinfo=UTC)), 30))
    assert moments == sorted(set(moments))
    assert moments[0] > start.replace(tzinfo=UTC)


@pytest.mark.parametrize("days", [0, 0.5, 3, 40, 400])
@pytest.mark.parametrize("expression", ["*/10 * * * *", "0 3 * * 1", "0 3 1 * *", "0 0 29 2 *"])
def test_the_last_time_is_the_last_of_all(expression: str, days: float) -> None:
    cron, until = Cron(expression, ZoneInfo("Europe/Berlin")), datetime(2026, 11, 25, 3, tzinfo=UTC)
    since = until - timedelta(days=days)
    passed = list(itertools.takewhile(lambda time: time <= until, cron.after(since)))
    assert cron.last(since, until) == (passed[-1] if passed else None)
