"""`flowrra cron EXPRESSION`: shows an expression in words, its next fires, and the effect of clock changes on them."""

import datetime as dt
import itertools
from collections.abc import Sequence

from flowrra import ConfigError, Cron, duration
from flowrra_extras.commands import iso_moment, parser_of
from flowrra_extras.cron_words import clock_marks, explain, takes_either_day


def main(argv: Sequence[str]) -> int:
    parser = parser_of(argv[0])
    parser.add_argument("expression", help="a cron expression such as '30 2 * * mon-fri'")
    parser.add_argument("--tz", default="UTC", metavar="ZONE", help="the time zone, such as Europe/Riga (UTC)")
    parser.add_argument("--name", help="the name of the schedule, from which H takes its values")
    parser.add_argument("--after", metavar="TIME", help="show fires after this time in ZONE: 2026-03-07T12:00 (now)")
    parser.add_argument("-n", type=int, default=10, metavar="N", help="the number of fires to show (10)")
    arguments = parser.parse_args(argv[1:])
    cron = Cron(arguments.expression, arguments.tz, name=arguments.name)
    now = cron.local(iso_moment(arguments.after)) if arguments.after else dt.datetime.now(dt.UTC)
    if arguments.n < 1:
        raise ConfigError(f"-n must be at least 1, not {arguments.n}")
    fires = list(itertools.islice(cron.iter(now), arguments.n))
    print(explain(cron))
    if takes_either_day(cron):
        print("note: a day matches if day-of-month or day-of-week matches; if one begins with *, both must match")
    try:
        _print_fires(cron, now, fires)
    except OverflowError:
        raise ConfigError(
            f"{now} is too close to an end of the calendar: not all is within the years 1 to 9999"
        ) from None
    return 0


def _print_fires(cron: Cron, now: dt.datetime, fires: Sequence[dt.datetime]) -> None:
    if not fires:
        print("it never fires again")
        return
    rows = {fire.astimezone(dt.UTC): f"{fire:%a %Y-%m-%d %H:%M:%S %z}" for fire in fires}
    rows = {fire: f"{row}  in {duration((fire - now).total_seconds())}" for fire, row in rows.items()}
    for moment, mark in clock_marks(cron, now, fires[-1]):
        rows[moment] = f"{rows[moment]:46}  {mark}" if moment in rows else mark
    for _, row in sorted(rows.items()):
        print(row)
