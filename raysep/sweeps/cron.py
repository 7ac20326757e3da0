"""Times of a cron expression, as crontab(5) means them, in a time zone.

APScheduler's triggers count weekdays from Monday, ask for a day that is both, and step in local time, which stands
still in the hour that comes twice. So numbers of weekdays become names, days of month and week are two triggers of
which either fires, and steps are taken in UTC.
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from apscheduler.triggers.base import BaseTrigger
from apscheduler.triggers.combining import OrTrigger
from apscheduler.triggers.cron import CronTrigger

WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")


class Cron(BaseTrigger):  # type: ignore[misc]  # APScheduler has no types
    """The times of an expression of five fields: minute, hour, day of month, month, day of week.

    Raises:
        ValueError: no such expression.
    """

    def __init__(self, expression: str, zone: ZoneInfo) -> None:
        fields = expression.split()
        if len(fields) != 5:
            raise ValueError(f"it has {len(fields)} fields")
        minute, hour, day, month, weekday = fields
        weekday = ",".join(_weekdays(part) for part in weekday.split(","))
        common = {"minute": minute, "hour": hour, "month": month, "timezone": zone}
        self._zone, self._every_hour = zone, hour.startswith("*")
        # Where both are given, cron takes a day that is either.
        either = (
            [{"day": day}, {"day_of_week": weekday}]
            if "*" not in (day, weekday)
            else [{"day": day, "day_of_week": weekday}]
        )
        self._trigger = OrTrigger([CronTrigger(**common, **days) for days in either])

    def get_next_fire_time(self, previous: datetime | None, now: datetime) -> datetime | None:
        """The first time after `previous`, or from `now` on, in UTC."""
        after = previous if previous is not None else now - timedelta(seconds=1)
        return next(self.after(after), None)

    def after(self, moment: datetime) -> Iterator[datetime]:
        """All times after a moment, in UTC."""
        last = moment.astimezone(UTC)
        step = last
        while True:
            found: Any = self._trigger.get_next_fire_time(None, (step + timedelta(seconds=1)).astimezone(self._zone))
            if found is None:
                return
            found = found.astimezone(UTC)
            if found <= last:
                # Local time came back to where it had been.
                step += timedelta(minutes=1)
                continue
            last = step = found
            # At a set hour once a day, even on the day that has it twice.
            if self._every_hour or not found.astimezone(self._zone).fold:
                yield found


def _weekdays(part: str) -> str:
    """A part of the field with names for numbers.

    >>> [_weekdays(part) for part in ("*", "0", "7", "1-5", "5-7", "mon-fri", "1-5/2")]
    ['*', 'sun', 'sun', 'mon,tue,wed,thu,fri', 'fri,sat,sun', 'mon-fri', 'mon,wed,fri']
    """
    days, _, step = part.partition("/")
    first, _, last = days.partition("-")
    if not first.isdecimal():
        return part
    numbers = range(int(first), int(last or (6 if step else first)) + 1, int(step or 1))
    if not numbers or max(numbers) > 7:
        raise ValueError(f"{part!r} is no day of the week: 0 (Sunday) to 7")
    return ",".join(WEEKDAYS[number % 7] for number in numbers)
