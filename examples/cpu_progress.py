"""CPU-bound work in a separate process. The main program shows its progress.

Prints:
    ...
    17984 primes
"""

import asyncio

from flowrra import Flowrra, current_job

app = Flowrra.from_urls()


@app.task(cpu_bound=True, timeout=60)
def count_primes(below: int) -> int:
    parts = 4
    found = 0
    current_job().progress(0, parts, "below 0")
    for part in range(parts):
        first, end = below * part // parts, below * (part + 1) // parts
        found += sum(all(n % d for d in range(2, int(n**0.5) + 1)) for n in range(max(first, 2), end))
        current_job().progress(part + 1, parts, f"below {end}")
    return found


async def main() -> None:
    async with app:
        task_id = await app.submit(count_primes, 200_000)
        shown = None
        while (result := await app.get_result(task_id)) and not result.is_finished:
            if result.progress and result.progress != shown:
                shown = result.progress
                print(f"{shown.done:g} of {shown.total:g}: {shown.note}")
            await asyncio.sleep(0.05)
        print(f"{(await app.wait_for_result(task_id)).result} primes")


if __name__ == "__main__":  # processes for CPU-bound tasks import this file
    asyncio.run(main())
