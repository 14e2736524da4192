"""Damages what a server has on its disk, as a bad disk or a bad controller does.

Knows files and pages; refuses to know what stands in them.
"""

from durabletask_postgres.testing import ThrowAwayPostgres

PAGE_BYTES = 8192


def damage(
    server: ThrowAwayPostgres,
    relation: str,
    *,
    page: int = 0,
    content: bytes = b"\xff" * PAGE_BYTES,
) -> bytes:
    """Make one page of a table or an index unreadable; the server is restarted for it.

    From then on whatever must read that page is answered with XX001 (data
    corrupted), and nothing else is.

    Args:
        server: It runs; the database is `postgres`.
        relation: Its name, with the schema.
        page: Which page of it.
        content: What the page holds then.

    Returns:
        What it held before.
    """
    asked = f"select pg_relation_filepath('{relation}'), pg_relation_size('{relation}')"
    path, size = server.sql(asked).split("|")
    if (page + 1) * PAGE_BYTES > int(size):
        raise ValueError(f"{relation} has no page {page}: it has {size} bytes")
    # In order, so that everything is in the files and recovery does not repair the page.
    server.stop()
    with (server.data / path).open("r+b") as file:
        file.seek(page * PAGE_BYTES)
        before = file.read(PAGE_BYTES)
        file.seek(page * PAGE_BYTES)
        file.write(content)
    server.start()
    return before
