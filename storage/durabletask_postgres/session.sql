-- What a connection asks for itself: which server this is, what has been migrated, what is left
-- of a session before. What processes are made of is in queries.sql.

-- What is at the other end. Runs as `copy (…) to stdout`, the only way to get rows without a
-- prepared statement, which a pooler would leave behind in another client's session.
-- name: server
select pg_backend_pid(),
       (
           select extract(epoch from a.backend_start)
           from pg_catalog.pg_stat_get_activity(pg_backend_pid()) a
       ),
       pg_is_in_recovery(),
       current_setting('server_encoding'),
       current_setting('server_version_num'),
       current_setting('fsync'),
       current_setting('default_transaction_isolation'),
       current_setting('default_transaction_read_only')

-- The table and not the schema: an empty schema, made by who may create one, is no storage yet.
-- name: migrations_exist
select exists (
    select
    from pg_catalog.pg_class c
    join pg_catalog.pg_namespace n on n.oid = c.relnamespace
    where n.nspname = $1 and c.relname = 'migration' and c.relkind = 'r'
)

-- name: schema_exists
select exists (select from pg_catalog.pg_namespace where nspname = $1)

-- name: migrations_applied
select version, name from durabletask.migration order by version

-- Held until the transaction ends: who comes second finds the work done.
-- name: migration_lock
select pg_advisory_xact_lock(1146377037, hashtext($1))

-- name: migration_table
create table durabletask.migration (
    version integer primary key,
    name text not null,
    applied_at timestamptz not null
)

-- name: migration_done
insert into durabletask.migration (version, name, applied_at) values ($1, $2, clock_timestamp())

-- Ends the session that the heart of this host had before, if the server has not noticed its end.
-- It holds the witness lock, and leaving it would leave the host without one at the moment when
-- the server does notice. A session's start tells it from another one with the same id. Ending a
-- session of the same role needs no rights.
-- name: evict
select pg_terminate_backend(a.pid)
from pg_catalog.pg_stat_activity a
where a.pid = $1
  and extract(epoch from a.backend_start)::text = $2
  and a.pid <> pg_backend_pid()

-- Gives the witness lock back.
-- name: unlock
select pg_advisory_unlock_all()
