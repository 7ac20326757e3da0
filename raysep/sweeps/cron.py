"""Times of a cron expression, as crontab(5) of Debian means them, in a time zone.

cronsim finds the local times. Which moments those are is decided here, since a local time comes twice, or not at all,
where clocks are changed: cronsim itself misses the second one where they are put back by half an hour.
"""

import heapq
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import NamedTuple
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

EXAMPLE = "expected five fields, as in '0 3 * * *': minute, hour, day of month, month, day of week"
NICKNAMES = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
# A number, a name, a range of them, or `*`; then a step.
PART = re.compile(r"(?P<all>\*)|(?P<first>[0-9]+|[a-z]+)(-(?P<last>[0-9]+|[a-z]+))?", re.ASCII)
# Where the last time is looked for: far back only if nothing passed of late. The longest gap between two times is the
# 40 years from a 29 February on some day of the week to the next one.
LOOK_BACK = tuple(timedelta(days=days) for days in (1, 32, 366, 50 * 366))


class Field(NamedTuple):
    """A field of the expression: what it is called, and its values."""

    name: str
    low: int
    high: int
    names: tuple[str, ...] = ()


FIELDS = (
    Field("minute", 0, 59),
    Field("hour", 0, 23),
    Field("day of month", 1, 31),
    Field("month", 1, 12, ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")),
    Field("day of week", 0, 7, ("sun", "mon", "tue", "wed", "thu", "fri", "sat")),
)


class Cron:
    """The times of an expression of five fields, or of one of crontab(5)'s nicknames, as `@daily`.

    Where day of month and day of week are both given, either of them has to match; where one of them begins with `*`
    (`*/2` also), both have to. A job whose minute and hour don't begin with `*` runs once on a day on which its time
    comes twice, the first time, and at the end of the gap on a day that skips it; any other runs by the clock on the
    wall, whatever that does.

    Raises:
        ValueError: no such expression, with a sentence for each field that is wrong; or a date that never comes.
    """

    def __init__(self, expression: str, zone: ZoneInfo) -> None:
        words = expression.lower().split()
        if len(words) == 1 and words[0] in NICKNAMES:
            words = NICKNAMES[words[0]].split()
        if len(words) == 1 and words[0].startswith("@"):
            raise ValueError(f"{words[0]} is no time: write one of {', '.join(NICKNAMES)}, or five fields")
        if len(words) != len(FIELDS):
            other = "; crontab(5) has no field of seconds or years, and the time zone is the sweep's `timezone`"
            raise ValueError(f"it has {len(words)} fields, {EXAMPLE}{other if len(words) > len(FIELDS) else ''}")
        found, problems = [], []
        for word, field in zip(words, FIELDS, strict=True):
            try:
                found.append(",".join(_part(part, field) for part in word.split(",")))
            except ValueError as error:
                problems.append(f"{field.name}: {error}")
        if problems:
            raise ValueError(f"{'; '.join(problems)}; {EXAMPLE}")
        self._fields, self._zone = " ".join(found), zone
        self._fixed = not any(text.startswith("*") for text in found[:2])
        if next(self.after(datetime.now(UTC)), None) is None:
            raise ValueError("it never comes: none of its months has such a day")

    def after(self, moment: datetime) -> Iterator[datetime]:
        """All times after a moment, in UTC, in their order."""
        # A local time that comes twice may have been before the moment and come again after it.
        start = moment.astimezone(self._zone).replace(tzinfo=None) - timedelta(days=1)
        last, later = moment.astimezone(UTC), list[datetime]()
        for local in self._local_times(start):
            moments = self._moments(local)
            # The second coming of an hour follows all of the first: it waits for what is still before it.
            while later and moments and later[0] < moments[0]:
                yield (last := heapq.heappop(later))
            for found in moments[:1]:
                if found > last:
                    yield (last := found)
            for found in moments[1:]:
                if found > last:
                    heapq.heappush(later, found)

    def last(self, since: datetime, until: datetime) -> datetime | None:
        """The last time after one moment and not after another, in UTC; None where there is none."""
        for span in LOOK_BACK:
            found = None
            for time in self.after(max(since, until - span)):
                if time > until:
                    break
                found = time
            if found is not None or until - span <= since:
                return found
        return None

    def _local_times(self, start: datetime) -> Iterator[datetime]:
        try:
            yield from CronSim(self._fields, start)
        except CronSimError:
            # Every field is right by now: what is left is a day that no month has.
            return

    def _moments(self, local: datetime) -> list[datetime]:
        """When a job of a local time runs: a fixed one once in any case, any other as often as the time comes."""
        while not (found := self._shown_at(local)) and self._fixed:
            local += timedelta(minutes=1)
        return found[:1] if self._fixed else found

    def _shown_at(self, local: datetime) -> list[datetime]:
        """The moments at which the clocks of the zone show a local time: one, two, or none."""
        both = dict.fromkeys(local.replace(tzinfo=self._zone, fold=fold).astimezone(UTC) for fold in (0, 1))
        return [moment for moment in both if moment.astimezone(self._zone).replace(tzinfo=None) == local]


def _part(part: str, field: Field) -> str:
    """A part of a field's list, checked, with numbers for names.

    >>> [_part(part, FIELDS[4]) for part in ("*", "*/2", "mon-fri", "sun", "7", "1-5/2")]
    ['*', '*/2', '1-5', '0', '7', '1-5/2']
    """
    values, slash, step = part.partition("/")
    expected = f"{field.low} to {field.high}" + (f" or {field.names[0]} to {field.names[-1]}" if field.names else "")
    matched = PART.fullmatch(values)
    if matched is None:
        hint = " (L, W, # and ? are not of crontab(5))" if re.search("[lw#?]", values) else ""
        raise ValueError(f"expected `*`, or {expected}, or a range of them as 1-5, got {part!r}{hint}")
    if slash and not (re.fullmatch("[0-9]+", step) and 1 <= int(step) <= field.high - field.low + 1):
        raise ValueError(f"expected a step of 1 to {field.high - field.low + 1}, got {step!r} in {part!r}")
    if matched["all"]:
        return part
    first = _value(matched["first"], field, expected)
    if matched["last"] is None:
        if slash:
            raise ValueError(f"a step needs a range: write {first}-{field.high}/{step} or */{step} for {part!r}")
        return str(first)
    last = _value(matched["last"], field, expected)
    if last < first:
        also = " (Sunday is 7 at the end of a range)" if field.names[:1] == ("sun",) and last == 0 else ""
        raise ValueError(f"expected a range that goes up, got {part!r}{also}; a list has what lies on both sides of it")
    # cronsim takes a range of one value with a step for that value and all after it.
    return str(first) if first == last else f"{first}-{last}{slash}{step}"


def _value(text: str, field: Field, expected: str) -> int:
    # Months are counted from 1, days of the week from 0.
    value = field.names.index(text) + field.low if text in field.names else int(text) if text.isdecimal() else -1
    if not field.low <= value <= field.high:
        raise ValueError(f"expected {expected}, got {text!r}")
    return value
