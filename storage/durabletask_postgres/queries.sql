-- The statements of the library, one each, by name. Schema-qualified; nothing is put together.

-- name: create
select n.process_id, n.process_no, n.created_at
from durabletask.create_processes(
    $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15) n;

-- name: deliver
select d.place, d.refused, d.owner, d."position", d.name, d.payload, d.at, d.consumed
from durabletask.deliver($1, $2, $3, $4, $5, $6) d;

-- name: request
select q.place, q.refused, q.told, (q.process).*
from durabletask.request($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16) q
order by q.place;

-- name: post_letter
select durabletask.post_letter($1, $2, $3, $4, $5) as refused;

-- name: read
select r.*, null::text[] as kinds, null::integer[] as event_positions
from durabletask.process_row r
where r.process_id = any ($1::text[]);

-- name: read_history
select r.*,
    c.kinds, c.keys, c.indexes, c.forms, c.payloads, c.replaces, c.epochs, c.seqs, c.ats,
    e.event_positions, e.event_ids, e.event_names, e.event_payloads, e.event_ats, e.event_consumed,
    g.gone_kinds, g.gone_keys, g.gone_indexes, g.gone_forms, g.gone_payloads, g.gone_replaces,
    g.gone_epochs, g.gone_seqs, g.gone_ats
from durabletask.process_row r
left join lateral (
    select array_agg(c.kind order by c.epoch, c.seq, c.ordinal) as kinds,
        array_agg(c.key order by c.epoch, c.seq, c.ordinal) as keys,
        array_agg(c.index order by c.epoch, c.seq, c.ordinal) as indexes,
        array_agg(c.form order by c.epoch, c.seq, c.ordinal) as forms,
        array_agg(c.payload order by c.epoch, c.seq, c.ordinal) as payloads,
        array_agg(c.replaces order by c.epoch, c.seq, c.ordinal) as replaces,
        array_agg(c.epoch order by c.epoch, c.seq, c.ordinal) as epochs,
        array_agg(c.seq order by c.epoch, c.seq, c.ordinal) as seqs,
        array_agg(c.at order by c.epoch, c.seq, c.ordinal) as ats
    from durabletask.checkpoint c
    where c.process_no = r.process_no
) c on true
left join lateral (
    select array_agg(e.position order by e.position) as event_positions,
        array_agg(e.event_id order by e.position) as event_ids,
        array_agg(e.name order by e.position) as event_names,
        array_agg(e.payload order by e.position) as event_payloads,
        array_agg(e.at order by e.position) as event_ats,
        array_agg(e.consumed order by e.position) as event_consumed
    from durabletask.event e
    where e.process_no = r.process_no
) e on true
left join lateral (
    select array_agg(g.kind order by g.forgotten_no) as gone_kinds,
        array_agg(g.key order by g.forgotten_no) as gone_keys,
        array_agg(g.index order by g.forgotten_no) as gone_indexes,
        array_agg(g.form order by g.forgotten_no) as gone_forms,
        array_agg(g.payload order by g.forgotten_no) as gone_payloads,
        array_agg(g.replaces order by g.forgotten_no) as gone_replaces,
        array_agg(g.epoch order by g.forgotten_no) as gone_epochs,
        array_agg(g.seq order by g.forgotten_no) as gone_seqs,
        array_agg(g.at order by g.forgotten_no) as gone_ats
    from durabletask.forgotten g
    where g.process_no = r.process_no
) g on true
where r.process_id = any ($1::text[]);

-- name: list
select r.*, null::text[] as kinds, null::integer[] as event_positions
from durabletask.list_processes(
    -- As text: a codec of the user's for jsonb must not get hold of it.
    $1, $2, $3, $4::text::jsonb, $5, $6, $7, $8, $9, $10, $11, $12)
    with ordinality as n (process_no, place)
join durabletask.process_row r on r.process_no = n.process_no
order by n.place;

-- name: purge
select p.process_id, p.refused from durabletask.purge($1) p;

-- name: purge_finished
select durabletask.purge_finished($1, $2) as purged;

-- name: open_lease
select l.host_no, l.now_at from durabletask.open_lease($1, $2, $3) l;

-- name: renew
select durabletask.renew_lease($1, $2) as now_at;

-- name: witness
select durabletask.bear_witness($1) as held;

-- name: close_lease
select durabletask.close_lease($1);

-- name: claim
select c.* from durabletask.claim($1, $2, $3, $4, $5, $6, $7) c;

-- Again, after a claim that met something that cannot be read.
-- name: claim_carefully
select c.* from durabletask.claim($1, $2, $3, $4, $5, $6, $7, careful => true) c;

-- name: read_carefully
select r.*,
    c.kinds, c.keys, c.indexes, c.forms, c.payloads, c.replaces, c.epochs, c.seqs, c.ats,
    e.event_positions, e.event_ids, e.event_names, e.event_payloads, e.event_ats, e.event_consumed,
    g.gone_kinds, g.gone_keys, g.gone_indexes, g.gone_forms, g.gone_payloads, g.gone_replaces,
    g.gone_epochs, g.gone_seqs, g.gone_ats
from durabletask.rows_of($1) r
left join lateral (
    select array_agg(c.kind order by c.epoch, c.seq, c.ordinal) as kinds,
        array_agg(c.key order by c.epoch, c.seq, c.ordinal) as keys,
        array_agg(c.index order by c.epoch, c.seq, c.ordinal) as indexes,
        array_agg(c.form order by c.epoch, c.seq, c.ordinal) as forms,
        array_agg(c.payload order by c.epoch, c.seq, c.ordinal) as payloads,
        array_agg(c.replaces order by c.epoch, c.seq, c.ordinal) as replaces,
        array_agg(c.epoch order by c.epoch, c.seq, c.ordinal) as epochs,
        array_agg(c.seq order by c.epoch, c.seq, c.ordinal) as seqs,
        array_agg(c.at order by c.epoch, c.seq, c.ordinal) as ats
    from durabletask.checkpoints_of(r.process_no) c
    where $2::boolean
) c on true
left join lateral (
    select array_agg(e.position order by e.position) as event_positions,
        array_agg(e.event_id order by e.position) as event_ids,
        array_agg(e.name order by e.position) as event_names,
        array_agg(e.payload order by e.position) as event_payloads,
        array_agg(e.at order by e.position) as event_ats,
        array_agg(e.consumed order by e.position) as event_consumed
    from durabletask.events_of(r.process_no) e
    where $2
) e on true
left join lateral (
    select array_agg(g.kind order by g.forgotten_no) as gone_kinds,
        array_agg(g.key order by g.forgotten_no) as gone_keys,
        array_agg(g.index order by g.forgotten_no) as gone_indexes,
        array_agg(g.form order by g.forgotten_no) as gone_forms,
        array_agg(g.payload order by g.forgotten_no) as gone_payloads,
        array_agg(g.replaces order by g.forgotten_no) as gone_replaces,
        array_agg(g.epoch order by g.forgotten_no) as gone_epochs,
        array_agg(g.seq order by g.forgotten_no) as gone_seqs,
        array_agg(g.at order by g.forgotten_no) as gone_ats
    from durabletask.forgotten_of(r.process_no) g
    where $2
) g on true;

-- name: list_carefully
select r.*, null::text[] as kinds, null::integer[] as event_positions
from durabletask.list_readable($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
    with ordinality as r
order by r.ordinality;

-- name: damages
select d.process_id, d.damage from durabletask.damages($1, $2) d;

-- name: commit
select u.*
from durabletask.commit_units(
    $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21,
    $22, $23, $24, $25, $26, $27, $28, $29, $30, $31, $32, $33, $34, $35, $36, $37, $38, $39,
    $40) u;

-- name: commit_in_turn
select u.*
from durabletask.commit_in_turn(
    $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20,
    $21, $22, $23, $24, $25, $26, $27, $28, $29, $30, $31, $32, $33, $34, $35, $36, $37, $38,
    $39, $40, $41, $42, $43, $44, $45, $46, $47, $48, $49, $50) u;

-- name: check
select durabletask.check_mark($1, $2, $3, $4, $5, $6, $7);

-- name: steps
select durabletask.record_steps(
    $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15) as count;

-- A lone step, without a function, which would cost a quarter more, and without a query within it.
-- It locks and reads in one statement, which is right here and only here: what it reads is the
-- ownership of a process by the very host whose fence it locks, nobody takes that without having
-- set the fence, and FOR SHARE looks at the fence again if it had to wait. What is not as it should
-- be makes it insert nothing, and `commit` says what it was. It runs in the session that gave the
-- last answer, so it need not ask whether the database still holds that. Nor need it ask for the
-- isolation: one statement sees one snapshot in any of them, and where a stricter one would not look
-- at the fence again, it fails (40001) and nothing is written. It returns no row, since the server
-- would store that first and send it afterwards; how many it wrote is said in any case.
-- name: step
insert into durabletask.checkpoint
    (process_no, at, epoch, seq, index, ordinal, replaces, kind, key, form, payload)
select p.process_no, durabletask.clock(), p.epoch, $5, $8, 0, false, $6, $7, $9, $10
from durabletask.fence f
join durabletask.process p
    on p.process_no = $3 and p.process_id is not distinct from $2 and p.epoch = $4
    and p.owner_no is not distinct from f.host_no and p.seq < $5 and p.finished_at is null
where f.host_id = $1 and f.fenced_at is null
    and current_setting('synchronous_commit') not in ('off', 'local', 'remote_write')
for share of f;

-- name: record_within
select r.*
from durabletask.record_within(
    $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15) r;

-- name: reserve
select r.* from durabletask.reserve($1, $2, $3, $4, $5) r;

-- A transaction that notifies is written to the log like any other; nobody need wait for that.
-- name: notify
select set_config('synchronous_commit', 'off', true), pg_notify($1, $2);

-- In a transaction of the user's, which must be as durable as the user has it.
-- name: notify_within
select pg_notify($1, $2);

-- name: now
select durabletask.clock() as now_at;
