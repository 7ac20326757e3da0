"""Times of a cron expression in a time zone, with the semantics of Debian's crontab(5).

cronsim finds the local times; this module converts them to UTC, as a local time occurs twice or never when the clocks
change, and cronsim misses the second occurrence if the clocks are set back by half an hour.
"""

import heapq
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import NamedTuple
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

EXPECTED = "expected five fields, as in '0 3 * * *': minute, hour, day of month, month, day of week"
NICKNAMES = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
# `*`, a number, a name, or a range of them.
PART = re.compile(r"(?P<all>\*)|(?P<first>[0-9]+|[a-z]+)(-(?P<last>[0-9]+|[a-z]+))?", re.ASCII)
# Lengths of the search for the last time, increasing. The longest gap between two times is 40 years: 29 February on a
# given day of the week.
LOOK_BACK = tuple(timedelta(days=days) for days in (1, 32, 366, 50 * 366))


class Field(NamedTuple):
    """A field of a cron expression: its name, its range, and names of its values."""

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
    """The times of an expression of five fields, or of a nickname of crontab(5) such as `@daily`.

    If day of month and day of week are both restricted, either has to match; if one begins with `*` (as `*/2`), both
    have to match. When the clocks change, a job whose minute and hour don't begin with `*` runs once: at the first
    occurrence of a repeated time, or at the end of the gap of a skipped time. Any other job follows local time.

    Raises:
        ValueError: the expression is invalid, with a message for each field, or no date matches it.
    """

    def __init__(self, expression: str, zone: ZoneInfo) -> None:
        words = expression.lower().split()
        if len(words) == 1 and words[0] in NICKNAMES:
            words = NICKNAMES[words[0]].split()
        if len(words) == 1 and words[0].startswith("@"):
            raise ValueError(f"unsupported nickname {words[0]}: expected one of {', '.join(NICKNAMES)}, or five fields")
        if len(words) != len(FIELDS):
            hint = "; crontab(5) has no field for seconds or years, and the time zone is the sweep's `timezone`"
            raise ValueError(f"it has {len(words)} fields, {EXPECTED}{hint if len(words) > len(FIELDS) else ''}")
        fields, problems = [], []
        for word, field in zip(words, FIELDS, strict=True):
            try:
                fields.append(",".join(_part(part, field) for part in word.split(",")))
            except ValueError as error:
                problems.append(f"{field.name}: {error}")
        if problems:
            raise ValueError(f"{'; '.join(problems)}; {EXPECTED}")
        self._fields, self._zone = " ".join(fields), zone
        self._fixed = not any(text.startswith("*") for text in fields[:2])
        if next(self.after(datetime.now(UTC)), None) is None:
            raise ValueError("no date matches: none of its months has such a day")

    def after(self, moment: datetime) -> Iterator[datetime]:
        """All times after a moment, in UTC, in ascending order."""
        # Start a day earlier: a repeated local time may occur before and again after the moment.
        start = moment.astimezone(self._zone).replace(tzinfo=None) - timedelta(days=1)
        last, repeats = moment.astimezone(UTC), list[datetime]()
        for local in self._local_times(start):
            moments = self._moments(local)
            # Second occurrences wait in a heap, as they follow all first occurrences of the repeated hour.
            while repeats and moments and repeats[0] < moments[0]:
                yield (last := heapq.heappop(repeats))
            for time in moments[:1]:
                if time > last:
                    yield (last := time)
            for time in moments[1:]:
                if time > last:
                    heapq.heappush(repeats, time)

    def last(self, since: datetime, until: datetime) -> datetime | None:
        """The last time in (since, until], in UTC; None if there is none."""
        for span in LOOK_BACK:
            latest = None
            for time in self.after(max(since, until - span)):
                if time > until:
                    break
                latest = time
            if latest is not None or until - span <= since:
                return latest
        return None

    def _local_times(self, start: datetime) -> Iterator[datetime]:
        try:
            yield from CronSim(self._fields, start)
        except CronSimError:
            # The fields are valid, so no month has such a day.
            return

    def _moments(self, local: datetime) -> list[datetime]:
        """Moments, in UTC, of a job's local time: exactly one for a fixed job, else each of its 0 to 2 occurrences."""
        while not (moments := self._occurrences(local)) and self._fixed:
            local += timedelta(minutes=1)
        return moments[:1] if self._fixed else moments

    def _occurrences(self, local: datetime) -> list[datetime]:
        """The 0, 1 or 2 moments, in UTC, of a local time in the zone."""
        both = dict.fromkeys(local.replace(tzinfo=self._zone, fold=fold).astimezone(UTC) for fold in (0, 1))
        return [moment for moment in both if moment.astimezone(self._zone).replace(tzinfo=None) == local]


def _part(part: str, field: Field) -> str:
    """Validate an item of a field's list, and replace names by numbers. Raises ValueError.

    >>> [_part(part, FIELDS[4]) for part in ("*", "*/2", "mon-fri", "sun", "7", "1-5/2")]
    ['*', '*/2', '1-5', '0', '7', '1-5/2']
    """
    values, slash, step = part.partition("/")
    expected = f"{field.low} to {field.high}" + (f" or {field.names[0]} to {field.names[-1]}" if field.names else "")
    matched = PART.fullmatch(values)
    if matched is None:
        hint = " (crontab(5) has no L, W, # and ?)" if re.search("[lw#?]", values) else ""
        raise ValueError(f"expected `*`, {expected}, or a range such as 1-5, got {part!r}{hint}")
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
        hint = " (Sunday is 7 at the end of a range)" if field.names[:1] == ("sun",) and last == 0 else ""
        raise ValueError(f"expected an ascending range, got {part!r}{hint}; split it into a list of two ranges")
    # cronsim would extend a range of one value with a step to the end of the field.
    return str(first) if first == last else f"{first}-{last}{slash}{step}"


def _value(text: str, field: Field, expected: str) -> int:
    # The first month is 1, the first day of the week 0.
    value = field.names.index(text) + field.low if text in field.names else int(text) if text.isdecimal() else -1
    if not field.low <= value <= field.high:
        raise ValueError(f"expected {expected}, got {text!r}")
    return value
