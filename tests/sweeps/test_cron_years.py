"""Random cron expressions against a reference implementation of crontab(5), for each minute of ten years."""

import functools
import itertools
import random
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pytest

from raysep.sweeps.cron import FIELDS, Cron

ZONES = ("Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "UTC")
FIRST, YEARS = datetime(2024, 1, 1, tzinfo=UTC), 10
MINUTES = int((FIRST.replace(year=FIRST.year + YEARS) - FIRST).total_seconds()) // 60
MINUTE = timedelta(minutes=1)


def fields_of(local: np.ndarray) -> tuple[np.ndarray, ...]:
    """Minute, hour, day of month, month and day of week (Sunday is 0) of local times in minutes."""
    days, months, minutes = local.astype("datetime64[D]"), local.astype("datetime64[M]"), local.astype(np.int64)
    return (
        minutes % 60,
        minutes // 60 % 24,
        (days - months).astype(np.int64) + 1,
        months.astype(np.int64) % 12 + 1,
        (days.astype(np.int64) + 4) % 7,
    )


class Clock:
    """Local time of a zone over ten years of minutes: its fields, repeated minutes, and gaps."""

    def __init__(self, zone: str) -> None:
        self.zone = ZoneInfo(zone)
        # Offsets change at quarters of an hour.
        quarters = [(FIRST + 15 * k * MINUTE).astimezone(self.zone).utcoffset() for k in range(MINUTES // 15)]
        offset = np.repeat(np.array([int(delta.total_seconds()) // 60 for delta in quarters]), 15)
        utc = np.datetime64(FIRST.replace(tzinfo=None), "m") + np.arange(MINUTES)
        local = utc + offset.astype("timedelta64[m]")
        self.local = local.astype(np.int64)
        self.fields = fields_of(local)
        # Minutes with a repeated local time; and the first minute after each gap, with the skipped minutes.
        self.again = self.local <= np.maximum.accumulate(np.concatenate([[-1], self.local[:-1]]))
        self.gaps = {
            int(at) + 1: range(int(self.local[at]) + 1, int(self.local[at + 1]))
            for at in np.flatnonzero(np.diff(self.local) > 1)
        }


clock_of = functools.cache(Clock)


def values(text: str, low: int, high: int, names: tuple[str, ...]) -> set[int]:
    """The values of a field: lists, ranges, steps and names."""
    numbers: set[int] = set()
    for part in text.split(","):
        span, _, step = part.partition("/")
        ends = [str(low), str(high)] if span == "*" else span.split("-")
        first, last = (int(end) if end.isdecimal() else names.index(end) + low for end in (ends[0], ends[-1]))
        numbers |= set(range(first, last + 1, int(step or 1)))
    return numbers


def reference(expression: str, clock: Clock) -> np.ndarray:
    """The minutes at which crontab(5) runs a job."""
    texts = expression.split()
    sets = [values(text, *field[1:]) for text, field in zip(texts, FIELDS, strict=True)]
    sets[4] = {day % 7 for day in sets[4]}

    def matched(fields: Any) -> np.ndarray:
        minute, hour, day, month, weekday = (
            np.isin(field, list(allowed)) for field, allowed in zip(fields, sets, strict=True)
        )
        either = not texts[2].startswith("*") and not texts[4].startswith("*")
        return minute & hour & month & ((day | weekday) if either else (day & weekday))

    runs = matched(clock.fields)
    if texts[0].startswith("*") or texts[1].startswith("*"):
        return np.flatnonzero(runs)
    runs &= ~clock.again
    for after, skipped in clock.gaps.items():
        runs[after] |= bool(matched(fields_of(np.array(skipped).astype("datetime64[m]"))).any())
    return np.flatnonzero(runs)


def random_field(rng: random.Random, low: int, high: int, names: tuple[str, ...], frequent: bool) -> str:
    """A random field in any syntax; without `*` unless `frequent`, to bound the number of times."""

    def single() -> str:
        number = rng.randint(low, high)
        return names[number - low] if names and number - low < len(names) and rng.random() < 0.4 else str(number)

    def span() -> str:
        first, last = sorted(rng.sample(range(low, high + 1), 2))
        return f"{first}-{last}" + (f"/{rng.randint(1, min(9, high - low))}" if rng.random() < 0.5 else "")

    kinds: list[Any] = [
        single,
        single,
        lambda: ",".join(single() for _ in range(3)),
        span,
        lambda: f"{span()},{single()}",
    ]
    if frequent:
        kinds += [lambda: "*", lambda: "*", lambda: f"*/{rng.randint(2, (high - low + 1))}"]
    return rng.choice(kinds)()


def expressions(count: int, seed: int) -> list[str]:
    """Random valid expressions; half of them daily, in the hours in which the clocks change."""
    rng = random.Random(seed)
    valid: list[str] = []
    while len(valid) < count:
        # Ten years have five million minutes: at most one of minute and hour is a star.
        star = rng.choice(("minute", "hour", None))
        words = [random_field(rng, *field[1:], field.name == star or at > 1) for at, field in enumerate(FIELDS)]
        if len(valid) % 2:
            words[1:] = [words[1] if star == "hour" else random_field(rng, 0, 4, (), False), "*", "*", "*"]
        try:
            Cron(" ".join(words), ZoneInfo("UTC"))
        except ValueError as error:
            assert "no date matches" in str(error)
            continue
        valid.append(" ".join(words))
    return valid


def times_of_ten_years(expression: str, clock: Clock) -> np.ndarray:
    end = FIRST + MINUTES * MINUTE
    moments = itertools.takewhile(lambda moment: moment < end, Cron(expression, clock.zone).after(FIRST - MINUTE))
    return np.array([(moment - FIRST) // MINUTE for moment in moments], dtype=np.int64)


def assert_matches_reference(zone: str, count: int, seed: int) -> None:
    clock = clock_of(zone)
    for expression in expressions(count, seed):
        assert np.array_equal(times_of_ten_years(expression, clock), reference(expression, clock)), (expression, zone)


@pytest.mark.slow
@pytest.mark.parametrize("zone", ZONES)
def test_ten_years_of_a_few_random_expressions(zone: str) -> None:
    clock = clock_of(zone)
    # Ten years have ten gaps, and ten repeated hours or half hours.
    assert (len(clock.gaps), int(clock.again.sum())) == {
        "Australia/Lord_Howe": (10, 10 * 30),
        "UTC": (0, 0),
    }.get(zone, (10, 10 * 60))
    assert_matches_reference(zone, 4, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 4))
@pytest.mark.parametrize("zone", ZONES)
def test_ten_years_of_hundreds_of_random_expressions(zone: str, seed: int) -> None:
    assert_matches_reference(zone, 30, seed=1000 * seed + ZONES.index(zone))
