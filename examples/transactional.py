"""A job that is submitted in the same transaction as an order.

If the transaction is rolled back, neither the order nor the job exists. Here both are in one SQLite file. With
PostgreSQL, `submit_in` takes a connection of asyncpg or psycopg.

Prints:
    no stock: rolled back
    receipt for order 2: 3 teapots
    orders: 1, jobs: 1
"""

import asyncio
import contextlib
import sqlite3

from flowrra import Flowrra, TaskId

app = Flowrra.from_urls("sqlite:///shop.db")


@app.task
async def send_receipt(order: int, what: str) -> str:
    return f"receipt for order {order}: {what}"


async def place_order(shop: sqlite3.Connection, order: int, what: str, in_stock: bool) -> TaskId[str]:
    with shop:  # commits at the end, or rolls back if an exception is raised
        shop.execute("INSERT INTO orders VALUES (?, ?)", (order, what))
        receipt = await app.submit_in(shop, send_receipt, order, what)
        if not in_stock:
            raise LookupError("no stock")
    return receipt


async def main() -> None:
    with contextlib.closing(sqlite3.connect("shop.db")) as shop:
        shop.execute("CREATE TABLE orders (id INTEGER, what TEXT)")
        async with app:
            try:
                await place_order(shop, 1, "1 samovar", in_stock=False)
            except LookupError as error:
                print(f"{error}: rolled back")
            receipt = await place_order(shop, 2, "3 teapots", in_stock=True)
            print((await app.wait_for_result(receipt, timeout=10)).result)
            (orders,) = shop.execute("SELECT count(*) FROM orders").fetchone()
            print(f"orders: {orders}, jobs: {len(await app.jobs())}")


asyncio.run(main())
