"""A fair queue: tenants share the workers, and one that submits 1,000 jobs does not delay the others.

Prints:
    the first job of the small tenant waited for one round
"""

import asyncio

from flowrra import Config, ExecutorConfig, Flowrra

app = Flowrra(Config(executor=ExecutorConfig(queues={"reports": 5})))
app.fair_queue("reports")
order: list[str] = []


@app.task(queue="reports", key=lambda tenant: tenant)
async def report(tenant: str) -> None:
    order.append(tenant)
    await asyncio.sleep(0.001)


async def main() -> None:
    async with app:
        await app.submit_many(report, [("big",)] * 1_000)
        await asyncio.sleep(0.05)
        before = len(order)
        task_id = await app.submit(report, "small")
        await app.wait_for_result(task_id, timeout=30)
        waited = order.index("small") - before
        print("the first job of the small tenant waited for", "one round" if waited < 50 else f"{waited} jobs")


if __name__ == "__main__":
    asyncio.run(main())
