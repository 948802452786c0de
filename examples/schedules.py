"""Schedules: declared in code, and stored ones that are created while the program runs.

Prints:
    in code: every 0.2 s
    stored: At 09:00 on Monday through Friday, Europe/Riga
    ticks: 3
"""

import asyncio

from flowrra import Cron, Flowrra

app = Flowrra.from_urls()
ticks = asyncio.Queue[str]()


@app.every(0.2)
@app.task
async def tick() -> None:
    await ticks.put("tick")


@app.task
async def send_report(to: str) -> None: ...


async def main() -> None:
    # memory:// keeps schedules until the process ends; a file or a database keeps them permanently.
    scheduler = app.create_scheduler("memory://")
    async with app:
        rule = "0 9 * * mon-fri"
        await scheduler.schedule_cron(send_report, rule, args=("boss@example.com",), tz="Europe/Riga")
        for schedule in app.schedules.values():
            print(f"in code: every {float(schedule.rule):g} s")
        for schedule in await scheduler.list_scheduled_tasks():
            print(f"stored: {Cron(schedule.rule, schedule.tz).explain()}")
        print("ticks:", len([await ticks.get() for _ in range(3)]))


asyncio.run(main())
