"""A workflow: a job takes the results of other jobs as arguments, and waits until they have succeeded.

Prints:
    3 pages, 12 words
    success
    the report: cancelled, because its parent ... ended as cancelled
"""

import asyncio

from flowrra import Flowrra, result_of

app = Flowrra.from_urls()
PAGES = {"a": "one two three", "b": "four five six seven", "c": "eight nine ten eleven twelve"}


@app.task(max_retries=0)
async def fetch(name: str) -> str:
    return PAGES[name]


@app.task
async def count_words(text: str) -> int:
    return len(text.split())


@app.task
async def report(counts: list[int]) -> str:
    return f"{len(counts)} pages, {sum(counts)} words"


async def main() -> None:
    async with app:
        # A chain for each page, and one job that takes all results.
        texts = await app.submit_many(fetch, [(name,) for name in PAGES])
        counts = [await app.submit(count_words, result_of(text)) for text in texts]
        gathered = await app.submit(report, [result_of(count) for count in counts])
        done = await app.wait_for_result(gathered, timeout=10)
        print(done.result)
        print(done.status)

        # If a job fails, the jobs that wait for it are cancelled, and their error names the cause.
        missing = await app.submit(fetch, "no such page")
        lonely = await app.submit(report, [result_of(await app.submit(count_words, result_of(missing)))])
        ended = await app.wait_for_result(lonely, timeout=10)
        print(f"the report: {ended.status}, because {ended.error}")


asyncio.run(main())
