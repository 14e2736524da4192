"""Orders that somebody has to approve: a web application in front of durable processes.

An order's row and its process are created in one transaction, and so are a
click on "approve", its line in the audit and the event that the process waits
for: there is never one without the other. Two hosts run the processes.

    python samples/approvals_web.py          then open http://127.0.0.1:8000

Needs nothing but the packages for development: it starts a Postgres of its own
and throws it away. `--port` names another port, `--dsn` a database that stays.
There is no login here: who can reach the page can approve. It listens on this
machine only, and answers no page of anybody else's.
"""

import argparse
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from datetime import timedelta
from decimal import Decimal
from html import escape
from socket import create_server
from typing import Annotated, Any
from urllib.parse import parse_qsl

import asyncpg
import uvicorn
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi import Path as InPath
from fastapi.responses import HTMLResponse, PlainTextResponse, RedirectResponse
from pydantic import BaseModel, Field

from durabletask import Process, ProcessClient, ProcessHost
from durabletask.errors import EventTimeoutError
from durabletask_postgres import PostgresStorage
from durabletask_postgres.testing import ThrowAwayPostgres

TABLES = """
create table if not exists orders (
    number bigint generated always as identity primary key,
    item text not null,
    amount numeric(10, 2) not null,
    state text not null default 'waiting',
    parcel text
);
create table if not exists audit (
    number bigint generated always as identity primary key,
    order_number bigint not null,
    said text not null,
    at timestamptz not null default now()
);
"""

# --- the process --------------------------------------------------------------------------------


async def fulfil(proc: Process, number: int, item: str) -> str:
    """Wait for the approval, as long as it takes; then ship."""
    try:
        await proc.event("approved", timeout=timedelta(days=14))
    except EventTimeoutError:
        await proc.transaction("expired", set_state(number, "expired"))
        return "expired"
    parcel = await proc.do("ship", ship, item)
    # The row and the record of the step in one transaction: the row is written exactly once.
    await proc.transaction("shipped", set_state(number, "shipped", parcel))
    return parcel


async def ship(item: str) -> str:
    """Stand for a call to the warehouse."""
    return f"parcel with {item}"


def set_state(
    number: int, state: str, parcel: str | None = None
) -> Callable[[Any], Awaitable[None]]:
    """Return what changes an order's row on a given connection."""

    async def change(connection: Any) -> None:
        await connection.execute(
            "update orders set state = $2, parcel = $3 where number = $1", number, state, parcel
        )

    return change


# --- the shop: what the web application does ----------------------------------------------------


class NewOrder(BaseModel):
    """What the form sends."""

    item: str = Field(min_length=1, max_length=200)
    amount: Decimal = Field(gt=0, max_digits=10, decimal_places=2)


class Shop:
    """Orders in the application's own tables, on the application's own pool."""

    def __init__(self, pool: "asyncpg.Pool[asyncpg.Record]", client: ProcessClient) -> None:
        self._pool = pool
        self._client = client

    async def place(self, order: NewOrder) -> int:
        """Create an order and its process: both or neither."""
        async with self._pool.acquire() as connection, connection.transaction():
            number: int = await connection.fetchval(
                "insert into orders (item, amount) values ($1, $2) returning number",
                *(order.item, order.amount),
            )
            await self._client.spawn(
                fulfil, f"order/{number}", number, order.item, connection=connection
            )
        return number

    async def approve(self, number: int) -> bool:
        """Approve a waiting order, with its line in the audit: all or nothing."""
        async with self._pool.acquire() as connection, connection.transaction():
            waiting = await connection.fetchval(
                "update orders set state = 'approved' where number = $1 and state = 'waiting' "
                "returning true",
                number,
            )
            if waiting:
                await connection.execute(
                    "insert into audit (order_number, said) values ($1, 'approved')", number
                )
                await self._client.raise_event(f"order/{number}", "approved", connection=connection)
        return bool(waiting)

    async def orders(self) -> Sequence[asyncpg.Record]:
        """Return the latest orders, those that wait first."""
        return await self._pool.fetch(
            "select * from orders order by state <> 'waiting', number desc limit 100"
        )


# --- the page -----------------------------------------------------------------------------------

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Approvals</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 44rem; margin: 2rem auto; padding: 0 1rem;
       color: #222; background: #fff; }}
h1 {{ font-size: 1.5rem; }} h2 {{ font-size: 1.1rem; margin-top: 2rem; }}
table {{ border-collapse: collapse; width: 100%; }}
th {{ text-align: left; font-weight: 600; color: #666; }}
th, td {{ padding: .4rem .6rem; border-bottom: 1px solid #ddd; white-space: nowrap; }}
td.item {{ width: 100%; white-space: normal; overflow-wrap: anywhere; }}
.amount {{ text-align: right; }}
form {{ display: flex; gap: .5rem; }}
input {{ min-width: 0; }}
input[name=item] {{ flex: 1; }}
input, button {{ font: inherit; padding: .3rem .6rem; }}
button {{ border: 0; border-radius: .3rem; background: #0a6; color: #fff; cursor: pointer; }}
</style>
</head>
<body>
<h1>Approvals</h1>
<form method="post" action="/orders">
<input name="item" placeholder="item" aria-label="item" maxlength="200" required>
<input name="amount" placeholder="amount" aria-label="amount" type="number" min="0.01" step="0.01"
 required>
<button>Order</button>
</form>
<h2>Waiting for approval</h2>
{waiting}
<h2>Decided</h2>
{decided}
</body>
</html>
"""


def page(orders: Sequence[asyncpg.Record]) -> str:
    """Return the page; whatever people have typed is escaped."""
    waiting = [_row(each, _button(each["number"])) for each in orders if each["state"] == "waiting"]
    decided = [_row(each, escape(each["state"])) for each in orders if each["state"] != "waiting"]
    return PAGE.format(
        waiting=_table("", waiting, "Nothing waits."),
        decided=_table("state", decided, "Nothing yet."),
    )


def _row(order: asyncpg.Record, last: str) -> str:
    number, item, amount = order["number"], escape(order["item"]), order["amount"]
    return f"<tr><td>{number}<td class=item>{item}<td class=amount>{amount}<td>{last}"


def _button(number: int) -> str:
    action = f"/orders/{number}/approve"
    return f'<form method="post" action="{action}"><button>Approve</button></form>'


def _table(last: str, rows: list[str], none: str) -> str:
    if not rows:
        return f"<p>{none}</p>"
    head = f"<tr><th>order<th>item<th class=amount>amount<th>{last}"
    return "\n".join(["<table>", head, *rows, "</table>"])


# --- the application ----------------------------------------------------------------------------


async def sent_order(request: Request) -> NewOrder:
    """Read the form; too much or something else is refused."""
    try:
        body = (await request.body()).decode()
        return NewOrder.model_validate(dict(parse_qsl(body, max_num_fields=4)))
    except ValueError as error:
        raise HTTPException(422, "an order has an item and an amount above zero") from error


def shop_of(request: Request) -> Shop:
    """Return the shop of the running application."""
    shop: Shop = request.state.shop
    return shop


AShop = Annotated[Shop, Depends(shop_of)]
Number = Annotated[int, InPath(ge=1, lt=2**63)]


def create_app(dsn: str, hosts: Sequence[str], origins: Sequence[str]) -> FastAPI:
    """Return the application.

    Args:
        dsn: The database: for the application's tables and for the processes.
        hosts: Labels of the hosts to run behind it. They are in this program
            to keep the sample short; as programs of their own they are the same.
        origins: Where browsers find the page, such as "http://127.0.0.1:8000".
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, Any]]:
        async with AsyncExitStack() as stack:
            pool = await stack.enter_async_context(asyncpg.create_pool(dsn, min_size=1))
            await pool.execute(TABLES)
            client = ProcessClient(PostgresStorage(pool), processes=[fulfil])
            await stack.enter_async_context(client)
            for label in hosts:
                host = ProcessHost(PostgresStorage(dsn), processes=[fulfil], label=label)
                await stack.enter_async_context(host)
            yield {"shop": Shop(pool, client)}

    app = FastAPI(title="Approvals", lifespan=lifespan, openapi_url=None)

    @app.middleware("http")
    async def only_own_pages(
        request: Request, call_next: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        """Refuse what a foreign page makes a browser send here, or calls by a name of its own."""
        if f"http://{request.headers.get('host')}" not in origins:
            return PlainTextResponse("there is no such host here", 421)
        safe = request.method in {"GET", "HEAD"}
        if not safe and request.headers.get("origin") not in origins:
            return PlainTextResponse("this request comes from somebody else's page", 403)
        response = await call_next(request)
        response.headers["content-security-policy"] = (
            "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; "
            "base-uri 'none'; frame-ancestors 'none'"
        )
        return response

    @app.get("/")
    async def show(shop: AShop) -> HTMLResponse:
        return HTMLResponse(page(await shop.orders()))

    @app.post("/orders")
    async def place(
        shop: AShop, order: Annotated[NewOrder, Depends(sent_order)]
    ) -> RedirectResponse:
        await shop.place(order)
        return RedirectResponse("/", 303)

    @app.post("/orders/{number}/approve")
    async def approve(shop: AShop, number: Number) -> RedirectResponse:
        if not await shop.approve(number):
            raise HTTPException(409, f"order {number} does not wait for an approval")
        return RedirectResponse("/", 303)

    return app


def main() -> None:
    """Serve on this machine until control-C."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one")
    parser.add_argument("--dsn", help="a database of yours; else one that is thrown away")
    arguments = parser.parse_args()
    with ExitStack() as stack:
        listener = stack.enter_context(create_server(("127.0.0.1", arguments.port)))
        port = listener.getsockname()[1]
        origins = [f"http://{name}:{port}" for name in ("127.0.0.1", "localhost")]
        dsn = arguments.dsn or stack.enter_context(ThrowAwayPostgres()).dsn
        app = create_app(dsn, ["host 1", "host 2"], origins)
        print(f"{origins[0]} is open; control-C closes it", flush=True)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        with suppress(KeyboardInterrupt):
            server.run(sockets=[listener])
    if not server.started:
        sys.exit(1)


if __name__ == "__main__":
    main()
