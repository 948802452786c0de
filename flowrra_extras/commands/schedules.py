"""`flowrra schedules ...`: lists and changes schedules, those in code and the stored ones."""

import argparse
import asyncio
import collections
import contextlib
import dataclasses
import datetime as dt
import json
import logging
import os
import zoneinfo
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import flowrra
from flowrra_extras.commands import iso_moment
from flowrra_extras.scheduler import MemoryScheduleStore, Scheduler, submit_now

_HERD = 5  # schedules that fire in one moment


def main(argv: Sequence[str]) -> int:
    _act(flowrra.parsed(_parser(), argv[1:]))
    return 0


def _parser() -> argparse.ArgumentParser:
    whole = argparse.ArgumentParser(prog="flowrra schedules", description=_act.__doc__)
    actions = whole.add_subparsers(metavar="ACTION", required=True)

    def add(name: str, action: Callable[..., Awaitable[Any]], text: str, *names: str) -> argparse.ArgumentParser:
        parser = actions.add_parser(name, help=text, description=text)
        parser.set_defaults(action=action)
        for argument in names:
            parser.add_argument(
                argument, help={"task": "the name of the task", "id": "the id of the schedule"}[argument]
            )
        parser.add_argument("where", nargs="?", metavar="WHERE", help="module:app, or the URL of a store of schedules")
        return parser

    listing = add("list", _list_schedules, "list schedules, in code and stored")
    listing.add_argument("--json", action="store_true", help="print JSON")
    adding = add("add", _add_schedule, "store a schedule and print its id", "task")
    when = adding.add_mutually_exclusive_group(required=True)
    when.add_argument("--cron", metavar="EXPRESSION", help="fire by this cron expression, such as '0 9 * * mon-fri'")
    when.add_argument("--every", type=float, metavar="S", help="fire every S seconds")
    when.add_argument("--at", metavar="TIME", help="fire once at this time, such as 2026-03-07T12:00")
    adding.add_argument("--tz", metavar="ZONE", help="the time zone of --cron and --at, such as Europe/Riga")
    argument = "an argument; NAME=JSON for a keyword"
    adding.add_argument("--arg", action="append", default=[], metavar="JSON", help=argument)
    adding.add_argument("--id", help="the id of the schedule")
    adding.add_argument("--description", metavar="TEXT", help="a text that says what the schedule is for")
    adding.add_argument("--priority", type=int, metavar="N", help="the priority of its jobs; a lower number runs first")
    adding.add_argument(
        "--misfire", choices=flowrra.MISFIRES, default="latest", help="which missed fires to run (latest)"
    )
    overlap = "whether to fire while the previous job is unfinished (allow)"
    adding.add_argument("--overlap", choices=flowrra.OVERLAPS, default="allow", help=overlap)
    for name, change, text in (
        ("remove", Scheduler.unschedule, "delete a stored schedule"),
        ("enable", Scheduler.enable_task, "enable a schedule, so that it fires again"),
        ("disable", Scheduler.disable_task, "disable a schedule, so that it does not fire"),
    ):
        add(name, _change_schedule, text, "id").set_defaults(change=change, done=f"{name}d")
    add("run", _run_schedule, "submit a job of a schedule now", "id")
    return whole


def _act(arguments: argparse.Namespace) -> None:
    """List and change the schedules of an app, or of a store that is given by its URL."""
    where = arguments.where or os.environ.get("FLOWRRA_APP")
    if not where:
        raise flowrra.ConfigError(
            "no store is given: pass module:app or the URL of a store of schedules, or set FLOWRRA_APP"
        )
    app = flowrra.Flowrra()
    if "://" not in where:
        loaded = flowrra.load_app(where)
        if arguments.action is _run_schedule:
            app = loaded
        else:  # nothing is submitted; the app's broker is not opened, because that could create it
            app.registry, app.schedules = loaded.registry, loaded.schedules
            app.schedulers = [Scheduler(app, scheduler.store) for scheduler in loaded.schedulers]
    else:
        if arguments.action is _run_schedule:
            raise flowrra.ConfigError("a URL names no app that could submit a job: pass module:app")
        app.create_scheduler(where)
        scheme, _, path = where.partition(":///")
        if scheme.lower() == "sqlite" and arguments.action is not _add_schedule and not Path(unquote(path)).exists():
            raise flowrra.ConfigError(
                f"there is no {unquote(path)} yet: the first worker or `schedules add` creates it"
            )
    logging.basicConfig(level=logging.WARNING, format="flowrra: %(message)s")  # a changed definition is a warning

    async def act() -> None:
        async with app.client():
            await arguments.action(app, arguments)

    asyncio.run(act())


async def _list_schedules(app: flowrra.Flowrra, arguments: argparse.Namespace) -> None:
    stored = [schedule for scheduler in app.schedulers for schedule in await scheduler.list_scheduled_tasks()]
    coded = [dataclasses.replace(s, next_fire=flowrra.upcoming(s, app.now())) for s in app.schedules.values()]
    if arguments.json:
        for schedule in (*coded, *stored):
            print(json.dumps(_schedule_as_json(schedule, in_code=schedule in coded)))
        return
    rows = [_schedule_row(schedule, in_code=schedule in coded) for schedule in (*coded, *stored)]
    flowrra.print_table(["ID", "TASK", "NEXT FIRE", "STATE", "SCHEDULE"], rows, "no schedules")
    alike = [s.next_fire_at for s in (*coded, *stored) if s.enabled and s.kind == "cron" and not s.jitter]
    for moment, count in collections.Counter(filter(None, alike)).items():
        if count >= _HERD:
            print(f"{count} schedules fire at {moment:%Y-%m-%d %H:%M} UTC: write H for the minute to spread them")


def _schedule_as_json(schedule: flowrra.Schedule, *, in_code: bool) -> dict[str, Any]:
    shown = dataclasses.asdict(schedule)
    for name in ("anchor", "next_fire", "last_fire", "created", "updated"):
        moment = shown[name]
        shown[name] = moment and dt.datetime.fromtimestamp(moment, dt.UTC).isoformat()
    arguments = json.loads(shown.pop("payload"))
    return {**shown, "arguments": arguments, "in_code": in_code, "explanation": schedule.explanation}


def _schedule_row(schedule: flowrra.Schedule, *, in_code: bool) -> list[str]:
    following = schedule.next_fire_at
    with contextlib.suppress(ValueError, LookupError):  # this host may not know the zone
        following = following and following.astimezone(zoneinfo.ZoneInfo(schedule.tz))
    at = "" if following is None else following.isoformat(" ", "seconds")
    state = "disabled" if not schedule.enabled else "done" if following is None else ""
    return [schedule.id, schedule.task, at, f"{'in code ' * in_code}{state}".strip(), schedule.explanation]


def _one_scheduler(app: flowrra.Flowrra) -> Scheduler:
    if not app.schedulers or isinstance(app.schedulers[0].store, MemoryScheduleStore):
        raise flowrra.ConfigError("the app has no store of schedules for other processes: call app.create_scheduler()")
    return app.schedulers[0]


async def _add_schedule(app: flowrra.Flowrra, arguments: argparse.Namespace) -> None:
    scheduler = _one_scheduler(app)
    args, kwargs = flowrra.read_arguments(arguments.arg)
    options = {name: getattr(arguments, name) for name in ("tz", "description", "priority", "misfire", "overlap")}
    task = flowrra.find_task(app, arguments.task).name if app.registry else arguments.task
    try:
        if app.registry:
            args, kwargs = app.registry[task].typed(args, kwargs)
        options |= {"args": args, "kwargs": kwargs, "task_id": arguments.id}
        if arguments.cron is not None:
            print(await scheduler.schedule_cron(task, arguments.cron, **options))
        elif arguments.every is not None:
            print(await scheduler.schedule_interval(task, arguments.every, **options))
        else:
            print(await scheduler.schedule_once(task, iso_moment(arguments.at), **options))
    except (TypeError, OverflowError) as error:
        raise flowrra.ConfigError(str(error)) from None


async def _change_schedule(app: flowrra.Flowrra, arguments: argparse.Namespace) -> None:
    if arguments.id in app.schedules:
        raise flowrra.ConfigError(f"{arguments.id!r} is declared in code: change it there")
    await arguments.change(_one_scheduler(app), arguments.id)
    print(f"{arguments.done}: {arguments.id}")


async def _run_schedule(app: flowrra.Flowrra, arguments: argparse.Namespace) -> None:
    flowrra.check_shared(app)
    if arguments.id in app.schedules:
        print(await submit_now(app, app.schedules[arguments.id]))
    else:
        print(await _one_scheduler(app).run_now(arguments.id))
