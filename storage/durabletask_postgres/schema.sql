create schema "durabletask";

create table durabletask.migration (
    version integer primary key,
    name text not null,
    applied_at timestamptz not null
);

-- Tables. The files say `durabletask.`; another schema's name takes that place when they run.
--
-- No foreign keys: each would lock its parent row at every insert. What belongs together is
-- written and deleted by one function in one transaction.

-- One row a process. `process_no` is the seam's `incarnation`: an id that is created again gets
-- another number, and nothing has to be remembered of a process that was purged.
create table durabletask.process (
    process_no          bigint generated always as identity primary key,
    process_id          text collate "C" not null unique,
    name                text collate "C" not null,
    status              text not null,
    epoch               integer not null default 0,
    -- The latest unit that changed this row. Units that only record new checkpoints do not, so
    -- while the process has an owner its true seq, deaths and updated_at are those of
    -- `process_row`.
    seq                 integer not null default 0,
    owner_no            bigint,
    parked              boolean not null default false,
    news                boolean not null default false,
    deaths              integer not null default 0,
    generation          integer not null default 0,
    event_count         integer not null default 0,
    unconsumed          integer not null default 0,
    -- Since when, or from when, a host may take it; null while it may not.
    claimable_at        timestamptz,
    wake_at             timestamptz,
    created_at          timestamptz not null,
    updated_at          timestamptz not null,
    start_at            timestamptz,
    started_at          timestamptz,
    deadline_at         timestamptz,
    finished_at         timestamptz,
    creation_id         text not null,
    input_digest        text not null,
    tags                jsonb,
    parent_id           text collate "C",
    parent_incarnation  bigint,
    parent_generation   integer,
    parent_key          text,
    ending_form         text,
    ending_payload      bytea,
    context             bytea,
    input               bytea not null,
    -- What was asked from outside: of a request to cancel, met or not; of a suspension, with the
    -- status that it covers; and the latest requests, so that a copy of one changes nothing.
    cancel_reason       bytea,
    cancel_met          boolean not null default false,
    suspend_reason      bytea,
    status_after        text,
    request_ids         text[],
    -- The status, but one for the two between which a process goes to and fro: an index on the
    -- status would make every wait four times as dear.
    phase               text collate "C" not null generated always as (
        case when status in ('running', 'waiting') then 'live' else status end) stored
) with (fillfactor = 80);

create index process_claimable on durabletask.process (name, claimable_at, process_no)
    where claimable_at is not null;
create index process_owner on durabletask.process (owner_no) where owner_no is not null;
create index process_news on durabletask.process (owner_no, process_no) where news;
create index process_finished on durabletask.process (finished_at) where finished_at is not null;
create index process_parent on durabletask.process (parent_id, created_at)
    where parent_id is not null;
-- For lists. What has no tags costs nothing in their index.
create index process_phase on durabletask.process (phase, created_at);
create index process_name on durabletask.process (name, phase, created_at);
create index process_tags on durabletask.process using gin (tags jsonb_path_ops)
    where tags is not null;

-- One row a recorded outcome. (epoch, seq, ordinal) is the order in which they were recorded.
create table durabletask.checkpoint (
    process_no  bigint not null,
    at          timestamptz not null,
    epoch       integer not null,
    seq         integer not null,
    index       integer not null,
    ordinal     smallint not null,
    replaces    boolean not null,
    kind        text collate "C" not null,
    key         text collate "C" not null,
    form        text collate "C" not null,
    payload     bytea not null,
    primary key (process_no, key, index, kind)
);

-- What a retry has put aside, to be seen and never recalled; in the order of `forgotten_no`.
create table durabletask.forgotten (
    forgotten_no    bigint generated always as identity primary key,
    process_no      bigint not null,
    at              timestamptz not null,
    epoch           integer not null,
    seq             integer not null,
    index           integer not null,
    replaces        boolean not null,
    kind            text collate "C" not null,
    key             text collate "C" not null,
    form            text collate "C" not null,
    payload         bytea not null
);

create index forgotten_process on durabletask.forgotten (process_no, forgotten_no);

-- One row an event; `position` comes from the process row's counter, under that row's lock:
-- a sequence would hand out numbers in another order than that of the commits.
create table durabletask.event (
    process_no  bigint not null,
    position    integer not null,
    consumed    boolean not null default false,
    at          timestamptz not null,
    event_id    text collate "C" not null,
    name        text not null,
    payload     bytea not null,
    primary key (process_no, position),
    unique (process_no, event_id)
);

-- An event raised in a caller's own transaction, which must not hold a process's row: on its way
-- to the mailbox from that transaction's commit until the next claim or delivery. A sender's
-- numbers rise with its commits, and the order between senders is free.
create table durabletask.letter (
    letter_no   bigint generated always as identity primary key,
    process_no  bigint not null,
    event_id    text collate "C" not null,
    name        text not null,
    payload     bytea not null
);

create index letter_process on durabletask.letter (process_no, letter_no);

-- A host's right to write: locked in share mode by each of its commits, set by whoever takes over.
create table durabletask.fence (
    host_no     bigint generated always as identity primary key,
    host_id     text collate "C" not null unique,
    label       text not null,
    opened_at   timestamptz not null,
    fenced_at   timestamptz
);

-- Renewed beside the fence and not in it, so that a renewal never waits for commits. The row goes
-- when the host holds nothing any more.
create table durabletask.lease (
    host_no     bigint primary key,
    expires_at  timestamptz not null,
    -- Whether the host's session holds the advisory lock whose absence means that it is dead.
    witness     boolean not null default false
) with (fillfactor = 50);

-- What a host's latest claims took and told, so that each can be repeated, and so that a late copy
-- of one takes nothing.
create table durabletask.claim_mark (
    host_no     bigint not null,
    claim_no    bigint generated always as identity,
    claim_id    text collate "C" not null,
    taken       bigint[] not null,
    epochs      integer[] not null,
    news        bigint[] not null,
    primary key (host_no, claim_id)
);

insert into durabletask.migration (version, name, applied_at) values (1, 'tables', clock_timestamp());

-- Functions: each is one round trip and one transaction. They are volatile, so in READ COMMITTED
-- every statement of theirs has a snapshot of its own: they lock first and read later. In one
-- statement the snapshot would be older than the locks, and would miss what was acknowledged
-- while it waited for them.
--
-- Plans are made once and for any number of rows: the few rows that the planner then expects of an
-- array lead it to the indexes, whatever a table's statistics say or do not say yet. A small table
-- is not scanned either: a damaged page must stop the processes on it and no others.
--
-- SQLSTATEs: DT001 the lease is lost; DT002 the database has lost what it acknowledged;
-- DT003 the transaction is not READ COMMITTED.
--
-- Lock order: process rows by number, then the fence. Whoever holds a fence waits for anything else
-- (an id that is being created, another host's fence) for no longer than its lock_timeout.
-- ("+ 0" sorts the few rows that were found, and keeps the planner from reading the whole table in
-- the order of an index.)

-- The only reader of the time. Tests put a clock of theirs in its place.
create function durabletask.clock() returns timestamptz
language sql volatile parallel safe
begin atomic
    select clock_timestamp();
end;

create function durabletask.is_finished(status text) returns boolean
language sql immutable parallel safe
begin atomic
    select status in ('completed', 'failed', 'cancelled', 'terminated');
end;

create function durabletask.is_claimable(status text) returns boolean
language sql immutable parallel safe
begin atomic
    select status in ('running', 'waiting', 'compensating');
end;

create function durabletask.phase_of(status text) returns text
language sql immutable parallel safe
begin atomic
    select case when status in ('running', 'waiting') then 'live' else status end;
end;

create function durabletask.may_follow(before text, after text) returns boolean
language sql immutable parallel safe
begin atomic
    select case before
        when 'running' then after in (
            'running', 'waiting', 'suspended', 'compensating',
            'completed', 'failed', 'cancelled', 'terminated', 'quarantined')
        when 'waiting' then after in (
            'running', 'waiting', 'suspended', 'compensating',
            'completed', 'failed', 'cancelled', 'terminated', 'quarantined')
        when 'suspended' then after in (
            'suspended', 'running', 'waiting', 'compensating', 'cancelled', 'terminated')
        when 'compensating' then after in (
            'compensating', 'suspended', 'failed', 'cancelled', 'terminated', 'quarantined')
        when 'failed' then after in ('failed', 'running', 'compensating')
        when 'quarantined' then after in (
            'quarantined', 'running', 'waiting', 'compensating', 'cancelled', 'terminated')
        else false
    end;
end;

-- Called first by whatever writes: what is answered must survive a crash of the server.
create function durabletask.be_durable() returns void
language plpgsql volatile as $$
begin
    if current_setting('synchronous_commit') in ('off', 'local', 'remote_write') then
        perform set_config('synchronous_commit', 'on', true);
    end if;
end
$$;

create function durabletask.check_isolation() returns void
language plpgsql stable as $$
begin
    if current_setting('transaction_isolation') <> 'read committed' then
        raise exception 'the transaction is %, not read committed',
            current_setting('transaction_isolation') using errcode = 'DT003';
    end if;
end
$$;

-- The fence: holds until the end of the transaction against whoever would take over.
create function durabletask.hold_fence(host_id text) returns bigint
language plpgsql volatile as $$
declare
    v_host_no bigint;
begin
    select f.host_no into v_host_no
    from durabletask.fence f
    where f.host_id = hold_fence.host_id and f.fenced_at is null
    for share;
    if v_host_no is null then
        raise exception 'host % has lost its lease; nothing was written', hold_fence.host_id
            using errcode = 'DT001';
    end if;
    return v_host_no;
end
$$;

-- --- processes -----------------------------------------------------------------------------

-- Remove everything of processes; the caller holds their rows.
create function durabletask.remove(process_nos bigint[]) returns void
language plpgsql volatile as $$
begin
    delete from durabletask.checkpoint where process_no = any (process_nos);
    delete from durabletask.forgotten where process_no = any (process_nos);
    delete from durabletask.event where process_no = any (process_nos);
    delete from durabletask.letter where process_no = any (process_nos);
    delete from durabletask.process where process_no = any (process_nos);
end
$$;

-- Create processes of different ids; return the numbers of those that were created. The rest
-- exists. With a host, what may start at once belongs to it.
create function durabletask.create_processes(
    host_id text,
    ids text[],
    names text[],
    inputs bytea[],
    digests text[],
    creation_ids text[],
    replaces boolean[],
    start_ats timestamptz[],
    deadline_ats timestamptz[],
    tags text[],
    contexts bytea[],
    parent_ids text[],
    parent_incarnations bigint[],
    parent_generations integer[],
    parent_keys text[]
) returns table (process_id text, process_no bigint, created_at timestamptz)
language plpgsql volatile
set lock_timeout = '100ms'
set plan_cache_mode = 'force_generic_plan'
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off as $$
#variable_conflict use_column
declare
    v_host_no bigint;
    v_now timestamptz;
    v_replaced bigint[];
begin
    perform durabletask.be_durable();
    if true = any (replaces) then
        v_replaced := array(
            select p.process_no
            from durabletask.process p
            join unnest(ids, creation_ids, replaces) as n (id, creation_id, replace)
                on n.id = p.process_id
            -- A repeat after a lost answer must not replace its own creation.
            where n.replace and durabletask.is_finished(p.status)
                and p.creation_id <> n.creation_id
                -- What a host still holds of one that was terminated is on its way yet.
                and p.owner_no is null
            order by p.process_no + 0
            for update of p
        );
        perform durabletask.remove(v_replaced);
    end if;
    if host_id is not null then
        v_host_no := durabletask.hold_fence(host_id);
    end if;
    v_now := durabletask.clock();
    return query
    insert into durabletask.process as p (
        process_id, name, status, epoch, owner_no, claimable_at, created_at, updated_at, start_at,
        started_at, deadline_at, creation_id, input_digest, tags, parent_id, parent_incarnation,
        parent_generation, parent_key, context, input)
    select
        n.id, n.name, 'running',
        case when v_host_no is not null and coalesce(n.start_at <= v_now, true) then 1 else 0 end,
        case when coalesce(n.start_at <= v_now, true) then v_host_no end,
        case when v_host_no is null or n.start_at > v_now
            then greatest(n.start_at, v_now) end,
        v_now, v_now, n.start_at,
        case when v_host_no is not null and coalesce(n.start_at <= v_now, true) then v_now end,
        n.deadline_at, n.creation_id, n.digest, n.tags::jsonb, n.parent_id, n.parent_incarnation,
        n.parent_generation, n.parent_key, n.context, n.input
    from unnest(
        ids, names, inputs, digests, creation_ids, start_ats, deadline_ats, tags, contexts,
        parent_ids, parent_incarnations, parent_generations, parent_keys
    ) as n (
        id, name, input, digest, creation_id, start_at, deadline_at, tags, context,
        parent_id, parent_incarnation, parent_generation, parent_key)
    -- In order of id: two batches that share ids wait, and do not lock each other out.
    order by n.id
    on conflict (process_id) do nothing
    returning p.process_id, p.process_no, p.created_at;
end
$$;

-- Purge finished processes; return why not for each that was asked for and is still there.
create function durabletask.purge(ids text[])
returns table (process_id text, refused text)
language plpgsql volatile
set lock_timeout = '100ms'
set plan_cache_mode = 'force_generic_plan'
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off as $$
#variable_conflict use_column
begin
    perform durabletask.be_durable();
    perform 1 from durabletask.process p
    where p.process_id = any (ids) order by p.process_no + 0 for update;
    return query
    select i.id,
        case
            when p.process_no is null then 'unknown process'
            when not durabletask.is_finished(p.status) then 'process has not finished'
            -- It was terminated, and its host writes until it has heard of that.
            when p.owner_no is not null then 'busy'
        end
    from (select distinct unnest(ids) as id) i
    left join durabletask.process p on p.process_id = i.id;
    perform durabletask.remove(array(
        select p.process_no from durabletask.process p
        where p.process_id = any (ids) and durabletask.is_finished(p.status)
            and p.owner_no is null
    ));
end
$$;

-- Remove up to `count_max` processes that finished longer ago than `keep`, oldest first; return how
-- many. What is locked is left for the next time, and what cannot be read for good.
create function durabletask.purge_finished(keep interval, count_max integer) returns integer
language plpgsql volatile as $$
declare
    v_nos bigint[];
begin
    v_nos := array(
        select p.process_no from durabletask.process p
        where p.finished_at < durabletask.clock() - keep and p.owner_no is null
        order by p.finished_at
        limit count_max
        for update skip locked
    );
    perform durabletask.remove(v_nos);
    return cardinality(v_nos);
exception when internal_error or system_error then
    return durabletask.purge_readable(durabletask.clock() - keep, count_max);
end
$$;

-- --- events --------------------------------------------------------------------------------

-- Put an event into the mailbox of a process whose row the caller holds; return its position.
create function durabletask.put_event(
    process_no bigint, event_id text, name text, payload bytea, now_at timestamptz
) returns integer
language plpgsql volatile as $$
#variable_conflict use_column
declare
    v_position integer;
begin
    update durabletask.process p
    set event_count = p.event_count + 1,
        unconsumed = p.unconsumed + 1,
        news = p.owner_no is not null,
        claimable_at = case
            when p.parked and durabletask.is_claimable(p.status) then now_at
            else p.claimable_at
        end,
        parked = false
    where p.process_no = put_event.process_no
    returning p.event_count into v_position;
    insert into durabletask.event (process_no, position, at, event_id, name, payload)
    values (put_event.process_no, v_position, now_at, put_event.event_id, put_event.name,
        put_event.payload);
    return v_position;
end
$$;

-- Move what callers' transactions have raised into the mailboxes of these processes, whose rows
-- the caller holds: so two movers cannot turn the order of one sender's letters.
create function durabletask.move_letters(process_nos bigint[], now_at timestamptz) returns void
language plpgsql volatile as $$
declare
    v_letter record;
begin
    for v_letter in
        with moved as (
            delete from durabletask.letter l where l.process_no = any (process_nos) returning l.*
        )
        select m.*, p.status
        from moved m join durabletask.process p on p.process_no = m.process_no
        order by m.letter_no
    loop
        if not durabletask.is_finished(v_letter.status) and not exists (
            select from durabletask.event e
            where e.process_no = v_letter.process_no and e.event_id = v_letter.event_id
        ) then
            perform durabletask.put_event(
                v_letter.process_no, v_letter.event_id, v_letter.name, v_letter.payload, now_at);
        end if;
    end loop;
end
$$;

-- Whether there are letters. One that cannot be read is one, and stops those who ask for it only.
create function durabletask.has_letters() returns boolean
language plpgsql volatile as $$
begin
    return exists (select from durabletask.letter);
exception when internal_error or system_error then
    return true;
end
$$;

-- Deliver events in the given order. With `skip_busy`, those to processes that another transaction
-- holds are answered "busy" at once; without, they are waited for until lock_timeout refuses all.
create function durabletask.deliver(
    ids text[], event_ids text[], names text[], payloads bytea[], mailbox_max integer,
    skip_busy boolean
) returns table (
    place integer, refused text, owner text, "position" integer, name text, payload bytea,
    at timestamptz, consumed boolean)
language plpgsql volatile
set lock_timeout = '100ms'
set plan_cache_mode = 'force_generic_plan'
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off as $$
#variable_conflict use_column
declare
    v_now timestamptz;
    v_new record;
    v_locked bigint[];
    v_process record;
    v_event record;
begin
    perform durabletask.check_isolation();
    perform durabletask.be_durable();
    if skip_busy then
        v_locked := array(
            select p.process_no from durabletask.process p
            where p.process_id = any (ids) order by p.process_no + 0 for update skip locked);
    else
        v_locked := array(
            select p.process_no from durabletask.process p
            where p.process_id = any (ids) order by p.process_no + 0 for update);
    end if;
    v_now := durabletask.clock();
    if durabletask.has_letters() then
        perform durabletask.move_letters(v_locked, v_now);
    end if;
    for v_new in
        select n.* from unnest(ids, event_ids, names, payloads) with ordinality
            as n (id, event_id, name, payload, place)
        order by n.place
    loop
        place := v_new.place;
        refused := null; owner := null; position := null; name := null; payload := null;
        at := null; consumed := null;
        select p.process_no, p.status, p.unconsumed, f.host_id as owner into v_process
        from durabletask.process p left join durabletask.fence f on f.host_no = p.owner_no
        where p.process_id = v_new.id;
        if not found then
            refused := 'unknown process';
            return next;
            continue;
        end if;
        if not v_process.process_no = any (v_locked) then
            refused := 'busy';
            return next;
            continue;
        end if;
        owner := v_process.owner;
        -- Known first: a repeat after a lost answer must find what it wrote, even if the process
        -- has ended or its mailbox has filled since.
        select e.* into v_event from durabletask.event e
        where e.process_no = v_process.process_no and e.event_id = v_new.event_id;
        if found then
            position := v_event.position;
            name := v_event.name;
            payload := v_event.payload;
            at := v_event.at;
            consumed := v_event.consumed;
        elsif durabletask.is_finished(v_process.status) then
            refused := 'process has finished';
        elsif v_process.unconsumed >= mailbox_max then
            refused := 'mailbox is full';
        else
            position := durabletask.put_event(
                v_process.process_no, v_new.event_id, v_new.name, v_new.payload, v_now);
            at := v_now;
            consumed := false;
        end if;
        return next;
    end loop;
end
$$;

-- Raise an event in the caller's own transaction: locks no process row, however long that is open.
create function durabletask.post_letter(
    id text, event_id text, name text, payload bytea, mailbox_max integer
) returns text
language plpgsql volatile as $$
#variable_conflict use_column
declare
    v_process record;
begin
    perform durabletask.be_durable();
    select p.process_no, p.status, p.unconsumed into v_process
    from durabletask.process p where p.process_id = id;
    if not found then
        return 'unknown process';
    end if;
    if exists (
        select from durabletask.event e
        where e.process_no = v_process.process_no and e.event_id = post_letter.event_id
    ) then
        return null;
    end if;
    if durabletask.is_finished(v_process.status) then
        return 'process has finished';
    end if;
    -- With those that are on their way, as far as this transaction sees them: its own at least.
    if v_process.unconsumed + (
        select count(*) from durabletask.letter l where l.process_no = v_process.process_no
    ) >= mailbox_max then
        return 'mailbox is full';
    end if;
    insert into durabletask.letter (process_no, event_id, name, payload)
    values (v_process.process_no, post_letter.event_id, post_letter.name, post_letter.payload);
    return null;
end
$$;

-- --- leases --------------------------------------------------------------------------------

create function durabletask.open_lease(host_id text, label text, ttl_s double precision)
returns table (host_no bigint, now_at timestamptz)
language plpgsql volatile as $$
#variable_conflict use_column
begin
    perform durabletask.be_durable();
    now_at := durabletask.clock();
    insert into durabletask.fence as f (host_id, label, opened_at)
    values (open_lease.host_id, open_lease.label, now_at)
    on conflict (host_id) do update set label = f.label where f.fenced_at is null
    returning f.host_no into host_no;
    if host_no is null then
        raise exception 'host % has lost its lease for good', open_lease.host_id
            using errcode = 'DT001';
    end if;
    insert into durabletask.lease (host_no, expires_at)
    values (host_no, now_at + make_interval(secs => ttl_s))
    on conflict (host_no) do update set expires_at = excluded.expires_at;
    return next;
end
$$;

-- Prolong a lease. Touches no fence, so it never waits for the host's own commits.
create function durabletask.renew_lease(host_id text, ttl_s double precision) returns timestamptz
language plpgsql volatile as $$
declare
    v_now timestamptz := durabletask.clock();
begin
    -- The fence is looked at after the row is locked: whoever takes over holds that lock first.
    update durabletask.lease l
    set expires_at = v_now + make_interval(secs => ttl_s)
    from durabletask.fence f
    where f.host_id = renew_lease.host_id and l.host_no = f.host_no;
    if not found or not exists (
        select from durabletask.fence f
        where f.host_id = renew_lease.host_id and f.fenced_at is null
    ) then
        raise exception 'host % has lost its lease', renew_lease.host_id using errcode = 'DT001';
    end if;
    return v_now;
end
$$;

-- The advisory lock that a host's session holds for as long as the host lives. Its class is this
-- schema's own, since hosts are counted in each.
create function durabletask.bear_witness(host_id text) returns boolean
language plpgsql volatile as $$
declare
    v_host_no bigint;
begin
    select f.host_no into v_host_no from durabletask.fence f
    where f.host_id = bear_witness.host_id and f.fenced_at is null;
    if v_host_no is null or not pg_try_advisory_lock(
        'durabletask.fence'::regclass::oid::integer, v_host_no::integer
    ) then
        return false;
    end if;
    update durabletask.lease l set witness = true where l.host_no = v_host_no and not l.witness;
    return true;
end
$$;

-- Take processes, whose rows the caller holds, from a fenced host.
create function durabletask.let_go_of(
    process_nos bigint[], died boolean, counted boolean, now_at timestamptz
) returns void
language plpgsql volatile as $$
#variable_conflict use_column
begin
    update durabletask.process p
    set owner_no = null,
        parked = false,
        news = false,
        claimable_at = case when durabletask.is_claimable(p.status) then now_at end,
        updated_at = now_at,
        seq = greatest(p.seq, r.seq),
        -- As in `take_carefully`.
        name = p.name,
        status = p.status,
        -- A death counts if nothing was recorded since the process was claimed.
        deaths = case
            when greatest(p.seq, r.seq) > 0 then 0
            when died then p.deaths + 1
            else p.deaths
        end
    from (
        select q.process_no, c.seq
        from durabletask.process q
        cross join lateral (
            -- Not counted, it is not read either.
            select max(c.seq) as seq from durabletask.checkpoint c
            where counted and c.process_no = q.process_no and c.epoch = q.epoch
        ) c
        where q.process_no = any (process_nos)
    ) r
    where p.process_no = r.process_no;
end
$$;

-- Forget a fenced host that holds nothing any more.
create function durabletask.dismiss(host_no bigint) returns void
language sql volatile as $$
    delete from durabletask.lease l where l.host_no = dismiss.host_no;
    delete from durabletask.claim_mark m where m.host_no = dismiss.host_no;
$$;

-- Look at `count_max` processes of a fenced host, or all, and take from it those that can be locked;
-- return how many, whether none is left, and whether there are `more` that the next call gets. What
-- cannot be read stays behind and does not count: else every claim of everybody would meet it.
--
-- Of the names in `keep`, what a host may run is only locked and returned, as far as there is `room`:
-- the caller takes it, and one change of its row is enough. The rest of these names is left alone.
create function durabletask.let_go(
    host_no bigint, died boolean, now_at timestamptz,
    count_max integer default null, keep text[] default '{}', room integer default 0,
    out count integer, out kept bigint[], out is_done boolean, out more boolean
)
language plpgsql volatile
set plan_cache_mode = 'force_generic_plan'
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off as $$
declare
    v_seen bigint[];
    v_nos bigint[];
begin
    begin
        if room >= count_max or cardinality(keep) = 0 then
            -- Whatever there is can be taken: one look at each, and not three.
            select coalesce(array_agg(q.process_no) filter (where not q.is_kept), '{}'),
                coalesce(array_agg(q.process_no) filter (where q.is_kept), '{}')
            into v_nos, kept
            from (
                select p.process_no,
                    p.name = any (keep) and durabletask.is_claimable(p.status) as is_kept
                from durabletask.process p
                where p.owner_no = let_go.host_no
                limit count_max
                for update skip locked
            ) q;
            v_seen := v_nos || kept;
        else
            v_seen := array(
                select p.process_no from durabletask.process p
                where p.owner_no = let_go.host_no
                limit count_max
            );
            kept := array(
                select p.process_no from durabletask.process p
                where p.process_no = any (v_seen)
                    and p.owner_no is not distinct from let_go.host_no
                    and p.name = any (keep) and durabletask.is_claimable(p.status)
                limit room
                for update skip locked
            );
            v_nos := array(
                select p.process_no from durabletask.process p
                where p.process_no = any (v_seen)
                    and p.owner_no is not distinct from let_go.host_no
                    and not (p.name = any (keep) and durabletask.is_claimable(p.status))
                for update skip locked
            );
        end if;
        perform durabletask.let_go_of(v_nos, died, true, now_at);
        count := cardinality(v_nos);
        is_done := not exists (
            select from durabletask.process p where p.owner_no = let_go.host_no);
        -- Not if it was in vain: who holds all of these may do so for long.
        more := count + cardinality(kept) > 0 and (
            cardinality(v_seen) = count_max or cardinality(v_seen) > count + cardinality(kept));
    exception when internal_error or system_error then
        count := 0;
        kept := '{}';
        is_done := durabletask.let_go_readable(host_no, died, now_at);
        more := false;
    end;
    if is_done then
        perform durabletask.dismiss(host_no);
    end if;
end
$$;

create function durabletask.close_lease(host_id text) returns void
language plpgsql volatile as $$
declare
    v_host_no bigint;
    v_now timestamptz;
begin
    perform durabletask.be_durable();
    update durabletask.fence f
    set fenced_at = durabletask.clock()
    where f.host_id = close_lease.host_id and f.fenced_at is null
    returning f.host_no into v_host_no;
    if v_host_no is not null then
        v_now := durabletask.clock();
        -- What cannot be locked now is let go by the next claim of anybody: the lease has ended,
        -- and "-infinity" says that nobody died.
        if not (durabletask.let_go(v_host_no, false, v_now)).is_done then
            update durabletask.lease l set expires_at = '-infinity' where l.host_no = v_host_no;
        end if;
    end if;
end
$$;

-- Fence the hosts whose lease has ended, and with `by_witness` those whose session is gone; return
-- whether there was one.
--
-- Their processes are let go in parts, one a call: the first are run while the next are let go. With
-- `more` there is another part. What is `kept` of them, no more than there is `room`, the caller
-- must take from those `hosts`. A part is as large as ever if there is little room, or a host that
-- may run nothing of it would ask ten thousand times. `look_at` is when to look again, as a session
-- that is gone, it seems, may be taken for one that has died by then.
create function durabletask.fence_the_dead(
    me bigint, by_witness boolean, room integer, keep text[],
    out fenced boolean, out more boolean, out kept bigint[], out died boolean[],
    out hosts bigint[], out look_at timestamptz
)
language plpgsql volatile as $$
declare
    v_now timestamptz := durabletask.clock();
    -- A restart of the server ends every session: only one that has outlived the grace, on a server
    -- that has, may conclude anything from a missing lock.
    v_grace interval := interval '0.5 s' - least(
        clock_timestamp() - pg_postmaster_start_time(),
        clock_timestamp() - (
            select a.backend_start from pg_stat_get_activity(pg_backend_pid()) a)
    );
    v_gone bigint[] := '{}';
    v_left integer := 1000;
    v_other record;
    v_part record;
begin
    fenced := false;
    more := false;
    kept := '{}';
    died := '{}';
    hosts := '{}';
    if by_witness or v_grace > '0' then
        -- Whose lock was held is read before who holds one.
        v_gone := array(
            select l.host_no from durabletask.lease l where l.host_no <> me and l.witness);
        v_gone := array(
            select g.host_no from unnest(v_gone) as g (host_no)
            where g.host_no not in (
                select k.objid::bigint from pg_locks k
                where k.locktype = 'advisory' and k.classid = 'durabletask.fence'::regclass::oid
                    and k.objsubid = 2
                    and k.database = (
                        select d.oid from pg_database d where d.datname = current_database())
            )
        );
    end if;
    if v_grace <= '0' and cardinality(v_gone) > 0 then
        -- What this call does not get to is for the next, which may have no witness to look for.
        update durabletask.lease l set expires_at = least(l.expires_at, v_now)
        where l.host_no in (
            select m.host_no from durabletask.lease m
            where m.host_no = any (v_gone)
            for update skip locked
        );
    end if;
    for v_other in
        select l.host_no, l.expires_at > '-infinity' as died
        from durabletask.lease l
        where l.host_no <> me and l.expires_at <= v_now
        order by l.host_no
        for update skip locked
    loop
        begin
            -- Waits for the commits that hold the fence, and keeps later ones out.
            update durabletask.fence f set fenced_at = v_now
            where f.host_no = v_other.host_no and f.fenced_at is null;
        exception
            when lock_not_available then
                continue;  -- a transaction of that host hangs; the next claim tries again
            when internal_error or system_error then
                raise warning 'host number % cannot be fenced: %', v_other.host_no, sqlerrm;
                continue;
        end;
        v_part := durabletask.let_go(
            v_other.host_no, v_other.died, durabletask.clock(), v_left, keep,
            room - cardinality(kept));
        if cardinality(v_part.kept) > 0 then
            kept := kept || v_part.kept;
            died := died || array_fill(v_other.died, array[cardinality(v_part.kept)]);
            hosts := hosts || v_other.host_no;
        end if;
        fenced := true;
        v_left := v_left - v_part.count;
        if v_part.more or (room > 0 and cardinality(kept) >= room) then
            more := true;
            return;
        end if;
    end loop;
    if v_grace > '0' and cardinality(v_gone) > 0 then
        -- Not sooner than a host asks for a look again, `WITNESS_LOOK_S`: else it comes and does not
        -- look, and then not before its next poll.
        look_at := v_now + greatest(v_grace, interval '0.4 s');
    end if;
end
$$;

insert into durabletask.migration (version, name, applied_at) values (2, 'functions', clock_timestamp());

-- What is read: `process_row` by the library, the others by people in psql.

-- A process as it stands. While it has an owner, units that only record new checkpoints leave its
-- row alone, so what they change is added here.
create view durabletask.process_row as
select
    p.process_no,
    p.process_id,
    p.name,
    p.status,
    p.epoch,
    greatest(p.seq, w.seq) as seq,
    case when w.seq is null then p.deaths else 0 end as deaths,
    p.generation,
    p.parked,
    f.host_id as owner,
    f.label as owner_label,
    p.wake_at,
    p.created_at,
    greatest(p.updated_at, w.at) as updated_at,
    p.start_at,
    p.started_at,
    p.deadline_at,
    p.finished_at,
    p.creation_id,
    p.input_digest,
    -- As text: on a caller's own connection jsonb may be decoded by codecs of the caller's.
    p.tags::text as tags,
    p.parent_id,
    p.parent_incarnation,
    p.parent_generation,
    p.parent_key,
    p.ending_form,
    p.ending_payload,
    p.context,
    p.input,
    p.cancel_reason,
    p.cancel_met,
    p.suspend_reason,
    p.tags as tag_set
from durabletask.process p
left join durabletask.fence f on f.host_no = p.owner_no
left join lateral (
    select max(c.seq) as seq, max(c.at) as at
    from durabletask.checkpoint c
    where p.owner_no is not null and c.process_no = p.process_no and c.epoch = p.epoch
) w on true;

-- A payload as JSON; null where it is damaged, so that one bad row does not hide the others.
create function durabletask.as_json(payload bytea) returns json
language plpgsql immutable parallel safe as $$
begin
    return convert_from(payload, 'UTF8')::json;
exception when others then
    return null;
end
$$;

create view durabletask.process_view as
select
    r.process_id,
    r.name,
    r.status,
    r.owner_label as host,
    r.created_at,
    r.started_at,
    r.updated_at,
    r.wake_at,
    r.finished_at,
    r.tag_set as tags,
    durabletask.as_json(r.input) as input,
    case when r.ending_form = 'value' then durabletask.as_json(r.ending_payload) end as result,
    case when r.ending_form = 'error' then durabletask.as_json(r.ending_payload) end as error,
    r.parent_id,
    durabletask.as_json(r.suspend_reason) as suspended_because,
    durabletask.as_json(r.cancel_reason) as cancel_because,
    case when r.cancel_reason is not null then r.cancel_met end as cancel_met,
    r.deaths,
    r.epoch,
    r.process_no as incarnation
from durabletask.process_row r;

create view durabletask.checkpoint_view as
select
    p.process_id,
    c.kind,
    c.key,
    nullif(c.index, -1) as index,
    c.form,
    durabletask.as_json(c.payload) as payload,
    c.at,
    c.epoch,
    c.seq,
    c.ordinal
from durabletask.checkpoint c
join durabletask.process p on p.process_no = c.process_no;

create view durabletask.forgotten_view as
select
    p.process_id,
    g.kind,
    g.key,
    nullif(g.index, -1) as index,
    g.form,
    durabletask.as_json(g.payload) as payload,
    g.at,
    g.epoch,
    g.seq
from durabletask.forgotten g
join durabletask.process p on p.process_no = g.process_no;

create view durabletask.event_view as
select
    p.process_id,
    e.position,
    e.name,
    durabletask.as_json(e.payload) as payload,
    e.consumed,
    e.at,
    e.event_id
from durabletask.event e
join durabletask.process p on p.process_no = e.process_no;

insert into durabletask.migration (version, name, applied_at) values (3, 'views', clock_timestamp());

-- Group commit: what all processes of a host write at one moment, in one transaction.

-- Where a process is looked up by its number, "is not distinct from" compares the rest: "=" might
-- be taken for another way to find it, through all that a host holds.

-- Whether the database lacks the last thing that the host was told of.
create function durabletask.is_rewound(
    host_no bigint, mark_no bigint, mark_epoch integer, mark_seq integer, mark_kind text,
    mark_key text, mark_index integer
) returns boolean
language sql stable
begin atomic
    select case
        when mark_no is null then false
        when mark_key is null then exists (
            select from durabletask.process p
            where p.process_no = mark_no and p.epoch = mark_epoch
                and p.owner_no is not distinct from host_no
                and (mark_seq is null or p.seq < mark_seq))
        else not exists (
            select from durabletask.checkpoint c
            where c.process_no = mark_no and c.key = mark_key and c.index = mark_index
                and c.kind = mark_kind and (c.epoch, c.seq) >= (mark_epoch, mark_seq))
    end;
end;

-- Refuse if the database lacks the last thing that the host was told of.
create function durabletask.check_mark(
    host_id text, mark_no bigint, mark_epoch integer, mark_seq integer, mark_kind text,
    mark_key text, mark_index integer
) returns void
language plpgsql stable as $$
begin
    if durabletask.is_rewound(
        (select f.host_no from durabletask.fence f where f.host_id = check_mark.host_id),
        mark_no, mark_epoch, mark_seq, mark_kind, mark_key, mark_index
    ) then
        raise exception 'the database does not hold what it acknowledged to host %', host_id
            using errcode = 'DT002';
    end if;
end
$$;

-- Record steps of processes that the host holds; return how many. Fewer than were sent, or a unique
-- violation, says that `commit_units` has to look at each of them.
--
-- An array that is empty stands for the value that nearly all steps have.
--
-- The ownership is read by the statement that inserts, after the fence is held.
create function durabletask.record_steps(
    host_id text,
    mark_no bigint, mark_epoch integer, mark_seq integer, mark_kind text, mark_key text,
    mark_index integer,
    nos bigint[], seqs integer[], keys text[], payloads bytea[],
    epochs integer[], indexes integer[], kinds text[], forms text[]
) returns integer
language plpgsql volatile
set lock_timeout = '100ms'
set plan_cache_mode = 'force_generic_plan'
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off as $$
#variable_conflict use_column
declare
    v_host_no bigint;
    v_now timestamptz;
    v_count integer;
begin
    perform durabletask.check_isolation();
    perform durabletask.be_durable();
    v_host_no := durabletask.hold_fence(host_id);
    if durabletask.is_rewound(
        v_host_no, mark_no, mark_epoch, mark_seq, mark_kind, mark_key, mark_index
    ) then
        raise exception 'the database does not hold what it acknowledged to host %', host_id
            using errcode = 'DT002';
    end if;
    v_now := durabletask.clock();
    insert into durabletask.checkpoint
        (process_no, at, epoch, seq, index, ordinal, replaces, kind, key, form, payload)
    select s.process_no, v_now, p.epoch, s.seq, coalesce(s.index, -1), 0, false,
        coalesce(s.kind, 'do'), s.key, coalesce(s.form, 'value'), s.payload
    from unnest(nos, seqs, keys, payloads, epochs, indexes, kinds, forms)
        as s (process_no, seq, key, payload, epoch, index, kind, form)
    join durabletask.process p on p.process_no = s.process_no
    where p.epoch = coalesce(s.epoch, 1) and s.seq > p.seq
        and p.owner_no is not distinct from v_host_no and p.finished_at is null;
    get diagnostics v_count = row_count;
    return v_count;
end
$$;

-- Record units of processes that the host holds; return what was not simply done.
--
-- A *step* is a unit of one new checkpoint and nothing else: it changes no process row and locks
-- none, since nobody can take a process from a host whose fence is held. A *change* is any other
-- unit; at most one of each process, and after that process's steps. The caller cuts its batch
-- accordingly.
--
-- With `skip_busy`, changes whose row another transaction holds are answered "busy" at once;
-- without, they are waited for until lock_timeout refuses the batch.
--
-- With `careful`, a step whose place is taken already is looked at; without, it fails the batch
-- with a unique violation, which only a repeat meets: ON CONFLICT, by which the two inserts below
-- differ, costs a third more, in time and in WAL.
--
-- A unit, counted from 1 through the steps and then the changes, comes back with `refused`, or once
-- for each checkpoint that is held in place of its own; with "again" it is not newer than the last
-- one applied, and nothing of it was written now; with "in turn" nothing was written either, and
-- it is for `commit_in_turn`, which knows suspensions, terminations and parents.
create function durabletask.commit_units(
    host_id text,
    skip_busy boolean,
    careful boolean,
    -- The last thing that the caller was told: a checkpoint; or with no key that a process has
    -- left it, or with a seq alone that it has come so far.
    mark_no bigint,
    mark_epoch integer,
    mark_seq integer,
    mark_kind text,
    mark_key text,
    mark_index integer,
    -- Steps.
    step_ids text[],
    step_nos bigint[],
    step_epochs integer[],
    step_seqs integer[],
    step_kinds text[],
    step_keys text[],
    step_indexes integer[],
    step_forms text[],
    step_payloads bytea[],
    -- Changes.
    change_ids text[],
    change_nos bigint[],
    change_epochs integer[],
    change_seqs integer[],
    change_statuses text[],
    change_wake_ats timestamptz[],
    change_endings text[],
    change_ending_forms text[],
    change_ending_payloads bytea[],
    change_leaves text[],
    change_consumed integer[],  -- how many events each takes
    -- The changes' checkpoints, by the place of the change, counted from 1: a join of two unnests
    -- looks at every pair, where an array is looked into at once.
    point_changes integer[],
    point_ordinals smallint[],
    point_kinds text[],
    point_keys text[],
    point_indexes integer[],
    point_forms text[],
    point_payloads bytea[],
    point_replaces boolean[],
    point_first_wins boolean[],
    -- The events that they take.
    event_changes integer[],
    event_positions integer[]
) returns table (
    unit integer, refused text, kind text, key text, index integer, form text, payload bytea,
    replaces boolean, epoch integer, seq integer, at timestamptz)
language plpgsql volatile
set lock_timeout = '100ms'
set plan_cache_mode = 'force_generic_plan'
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off as $$
#variable_conflict use_column
declare
    v_host_no bigint;
    v_now timestamptz;
    v_count bigint;
    v_locked bigint[];
    -- Places of changes.
    v_held integer[];
    v_missing integer[];
    v_verdicts text[];
    v_good boolean[];
begin
    perform durabletask.check_isolation();
    perform durabletask.be_durable();

    if cardinality(change_nos) > 0 then
        if skip_busy then
            v_locked := array(
                select p.process_no from durabletask.process p
                where p.process_no = any (change_nos)
                order by p.process_no + 0 for update skip locked);
        else
            v_locked := array(
                select p.process_no from durabletask.process p
                where p.process_no = any (change_nos)
                order by p.process_no + 0 for update);
        end if;
    end if;
    v_host_no := durabletask.hold_fence(host_id);

    -- From here on nobody else can change what this host holds.
    v_now := durabletask.clock();
    if durabletask.is_rewound(
        v_host_no, mark_no, mark_epoch, mark_seq, mark_kind, mark_key, mark_index
    ) then
        raise exception 'the database does not hold what it acknowledged to host %', host_id
            using errcode = 'DT002';
    end if;

    if cardinality(step_nos) > 0 then
        if careful then
            insert into durabletask.checkpoint
                (process_no, at, epoch, seq, index, ordinal, replaces, kind, key, form, payload)
            select s.process_no, v_now, s.epoch, s.seq, s.index, 0, false, s.kind, s.key, s.form,
                s.payload
            from unnest(
                step_ids, step_nos, step_epochs, step_seqs, step_kinds, step_keys, step_indexes,
                step_forms, step_payloads
            ) as s (process_id, process_no, epoch, seq, kind, key, index, form, payload)
            join durabletask.process p on p.process_no = s.process_no
            where p.process_id is not distinct from s.process_id and p.epoch = s.epoch
                and p.owner_no is not distinct from v_host_no and s.seq > p.seq
                and p.finished_at is null
            on conflict do nothing;
        else
            insert into durabletask.checkpoint
                (process_no, at, epoch, seq, index, ordinal, replaces, kind, key, form, payload)
            select s.process_no, v_now, s.epoch, s.seq, s.index, 0, false, s.kind, s.key, s.form,
                s.payload
            from unnest(
                step_ids, step_nos, step_epochs, step_seqs, step_kinds, step_keys, step_indexes,
                step_forms, step_payloads
            ) as s (process_id, process_no, epoch, seq, kind, key, index, form, payload)
            join durabletask.process p on p.process_no = s.process_no
            where p.process_id is not distinct from s.process_id and p.epoch = s.epoch
                and p.owner_no is not distinct from v_host_no and s.seq > p.seq
                and p.finished_at is null;
        end if;
        get diagnostics v_count = row_count;
        if v_count < cardinality(step_nos) then
            return query
            select judged.unit, judged.refused, judged.kind, judged.key, judged.index, judged.form,
                judged.payload, judged.replaces, judged.epoch, judged.seq, judged.at
            from (
                select s.unit::integer as unit,
                    case
                        when p.process_no is null or p.epoch <> s.epoch then
                            'process belongs to another host, epoch or incarnation'
                        when s.seq > p.seq and p.owner_no is distinct from v_host_no then
                            case when durabletask.is_finished(p.status) then 'process has finished'
                                else 'process belongs to another host, epoch or incarnation' end
                        when s.seq > p.seq and durabletask.is_finished(p.status)
                            and (c.epoch, c.seq) is distinct from (s.epoch, s.seq) then
                            'process has finished'
                        when s.seq > p.seq and c.process_no is null then 'busy'
                        when s.seq <= p.seq and (
                            c.process_no is null or (c.epoch = s.epoch and c.seq = s.seq)
                        ) then 'again'
                    end as refused,
                    c.kind, c.key, c.index, c.form, c.payload, c.replaces, c.epoch, c.seq, c.at,
                    c.epoch is distinct from s.epoch or c.seq is distinct from s.seq as other
                from unnest(
                    step_ids, step_nos, step_epochs, step_seqs, step_kinds, step_keys, step_indexes
                ) with ordinality as s (process_id, process_no, epoch, seq, kind, key, index, unit)
                left join durabletask.process p
                    on p.process_no = s.process_no
                    and p.process_id is not distinct from s.process_id
                left join durabletask.checkpoint c
                    on c.process_no = p.process_no and c.key = s.key and c.index = s.index
                    and c.kind = s.kind
            ) judged
            where judged.refused is not null or (judged.other and judged.kind is not null);
        end if;
    end if;

    if cardinality(change_nos) = 0 then
        return;
    end if;

    -- Judge all of them before anything is written.
    v_held := array(
        select distinct t.change
        from unnest(point_changes, point_keys, point_indexes, point_kinds, point_first_wins)
            as t (change, key, index, kind, first_wins)
        join durabletask.checkpoint c
            on c.process_no = change_nos[t.change] and c.key = t.key and c.index = t.index
            and c.kind = t.kind
        where t.first_wins
            and (c.epoch <> change_epochs[t.change] or c.seq <> change_seqs[t.change])
    );
    v_missing := array(
        select n.change
        from unnest(event_changes, event_positions) as n (change, position)
        left join durabletask.event e
            on e.process_no = change_nos[n.change] and e.position = n.position and not e.consumed
        group by n.change
        having count(e.position) < count(*) or count(distinct n.position) < count(*)
    );
    v_verdicts := array(
        select case
            when p.process_no is null or p.epoch <> a.epoch then
                'process belongs to another host, epoch or incarnation'
            when skip_busy and not (a.process_no = any (v_locked)) then 'busy'
            when a.seq <= p.seq then 'again'
            when p.owner_no is distinct from v_host_no then case
                when durabletask.is_finished(p.status) then 'process has finished'
                else 'process belongs to another host, epoch or incarnation'
            end
            when p.status = 'suspended' or durabletask.is_finished(p.status)
                or (p.parent_id is not null and durabletask.is_finished(a.ending)) then 'in turn'
            when a.place = any (v_held) then 'held'
            when a.place = any (v_missing) then 'event was consumed already or never existed'
            when a.status is not null and not (
                a.status in ('running', 'waiting', 'compensating')
                and durabletask.may_follow(p.status, a.status)
            ) or a.ending is not null and not (
                a.ending in ('completed', 'failed', 'cancelled', 'terminated', 'quarantined')
                and durabletask.may_follow(coalesce(a.status, p.status), a.ending)
            ) then 'this status cannot follow the recorded one'
            else 'good'
        end
        from unnest(
            change_ids, change_nos, change_epochs, change_seqs, change_statuses, change_endings
        ) with ordinality as a (process_id, process_no, epoch, seq, status, ending, place)
        left join durabletask.process p
            on p.process_no = a.process_no and p.process_id is not distinct from a.process_id
        order by a.place
    );
    v_good := array(
        select a.verdict = 'good'
        from unnest(v_verdicts) with ordinality as a (verdict, place)
        order by a.place
    );

    insert into durabletask.checkpoint
        (process_no, at, epoch, seq, index, ordinal, replaces, kind, key, form, payload)
    select change_nos[t.change], v_now, change_epochs[t.change], change_seqs[t.change], t.index,
        t.ordinal, false, t.kind, t.key, t.form, t.payload
    from unnest(
        point_changes, point_ordinals, point_kinds, point_keys, point_indexes, point_forms,
        point_payloads, point_replaces
    ) as t (change, ordinal, kind, key, index, form, payload, replaces)
    where v_good[t.change] and not t.replaces;

    if true = any (point_replaces) then
        insert into durabletask.checkpoint as c
            (process_no, at, epoch, seq, index, ordinal, replaces, kind, key, form, payload)
        select change_nos[t.change], v_now, change_epochs[t.change], change_seqs[t.change], t.index,
            t.ordinal, true, t.kind, t.key, t.form, t.payload
        from unnest(
            point_changes, point_ordinals, point_kinds, point_keys, point_indexes, point_forms,
            point_payloads, point_replaces
        ) as t (change, ordinal, kind, key, index, form, payload, replaces)
        where v_good[t.change] and t.replaces
        on conflict (process_no, key, index, kind) do update
        set at = excluded.at, epoch = excluded.epoch, seq = excluded.seq,
            ordinal = excluded.ordinal, replaces = true, form = excluded.form,
            payload = excluded.payload;
    end if;

    if cardinality(event_changes) > 0 then
        update durabletask.event e
        set consumed = true
        from unnest(event_changes, event_positions) as n (change, position)
        where v_good[n.change] and e.process_no = change_nos[n.change]
            and e.position = n.position;
    end if;

    update durabletask.process p
    set seq = a.seq,
        updated_at = v_now,
        deaths = 0,
        status = coalesce(a.ending, a.status, p.status),
        wake_at = case
            when a.ending is not null then null
            when a.status is not null then a.wake_at
            else p.wake_at
        end,
        ending_form = coalesce(a.ending_form, p.ending_form),
        ending_payload = case when a.ending is null then p.ending_payload else a.ending_payload end,
        finished_at = case when durabletask.is_finished(a.ending) then v_now end,
        owner_no = case when a.ending is null and a.leave is null then p.owner_no end,
        -- An event that the host has not heard of must not sleep with the process.
        parked = a.ending is null and a.leave is not null and a.leave = 'parked' and not p.news,
        claimable_at = case
            when a.ending is null and a.leave is not null
                and durabletask.is_claimable(coalesce(a.status, p.status))
            then case
                when a.leave = 'parked' and not p.news then
                    case when a.status is not null then a.wake_at else p.wake_at end
                else v_now
            end
        end,
        news = p.news and a.ending is null and a.leave is null,
        unconsumed = p.unconsumed - a.consumed
    from unnest(
        change_nos, change_seqs, change_statuses, change_wake_ats, change_endings,
        change_ending_forms, change_ending_payloads, change_leaves, change_consumed, v_verdicts
    ) as a (
        process_no, seq, status, wake_at, ending,
        ending_form, ending_payload, leave, consumed, verdict)
    where a.verdict = 'good' and p.process_no = a.process_no;
    get diagnostics v_count = row_count;

    if v_count < cardinality(change_nos) then
        return query
        select (cardinality(step_nos) + a.unit)::integer, a.verdict, null, null, null::integer,
            null, null::bytea, null::boolean, null::integer, null::integer, null::timestamptz
        from unnest(v_verdicts) with ordinality as a (verdict, unit)
        where a.verdict not in ('good', 'held');
        return query
        select cardinality(step_nos) + t.change, null, c.kind, c.key, c.index, c.form, c.payload,
            c.replaces, c.epoch, c.seq, c.at
        from unnest(
            point_changes, point_ordinals, point_kinds, point_keys, point_indexes, point_first_wins
        ) as t (change, ordinal, kind, key, index, first_wins)
        join durabletask.checkpoint c
            on c.process_no = change_nos[t.change] and c.key = t.key and c.index = t.index
            and c.kind = t.kind
        where v_verdicts[t.change] in ('again', 'held') and t.first_wins
            and (c.epoch <> change_epochs[t.change] or c.seq <> change_seqs[t.change])
        order by t.change, t.ordinal;
    end if;
end
$$;

-- Take the place of a checkpoint inside a transaction, and nothing else; return what is there
-- already. A repeat after a lost answer does so first: an earlier transaction that is still on its
-- way is waited for, and one that has committed shows.
create function durabletask.reserve(
    of_process bigint, in_epoch integer, at_seq integer, of_kind text, at_key text
) returns table (
    kind text, key text, index integer, form text, payload bytea, replaces boolean, epoch integer,
    seq integer, at timestamptz)
language plpgsql volatile
set lock_timeout = '5s' as $$
#variable_conflict use_column
begin
    insert into durabletask.checkpoint as c
        (process_no, at, epoch, seq, index, ordinal, replaces, kind, key, form, payload)
    values (
        of_process, durabletask.clock(), in_epoch, at_seq, -1, 0, false,
        of_kind, at_key, 'reserved', '')
    on conflict do nothing;
    if not found then
        return query
        select c.kind, c.key, c.index, c.form, c.payload, c.replaces, c.epoch, c.seq, c.at
        from durabletask.checkpoint c
        where c.process_no = of_process and c.key = at_key and c.index = -1
            and c.kind = of_kind;
    end if;
end
$$;

-- Record a checkpoint inside a transaction whose commit comes next. Return nothing; or why not; or
-- what is held in its place.
create function durabletask.record_within(
    host_id text,
    mark_no bigint, mark_epoch integer, mark_seq integer, mark_kind text, mark_key text,
    mark_index integer,
    of_id text, of_process bigint, in_epoch integer, at_seq integer, of_kind text, at_key text,
    new_form text, new_payload bytea
) returns table (
    refused text, kind text, key text, index integer, form text, payload bytea, replaces boolean,
    epoch integer, seq integer, at timestamptz)
language plpgsql volatile
set lock_timeout = '5s' as $$
#variable_conflict use_column
declare
    v_host_no bigint;
    v_process record;
begin
    perform durabletask.check_isolation();
    perform durabletask.be_durable();
    -- A host that is stopped just before its COMMIT must not keep the fence from being taken.
    perform set_config('idle_in_transaction_session_timeout', '5s', true);
    v_host_no := durabletask.hold_fence(host_id);
    if durabletask.is_rewound(
        v_host_no, mark_no, mark_epoch, mark_seq, mark_kind, mark_key, mark_index
    ) then
        raise exception 'the database does not hold what it acknowledged to host %', host_id
            using errcode = 'DT002';
    end if;
    select p.* into v_process from durabletask.process p
    where p.process_no = of_process and p.process_id = of_id;
    if not found or v_process.epoch <> in_epoch then
        refused := 'process belongs to another host, epoch or incarnation';
    elsif v_process.owner_no is distinct from v_host_no then
        refused := case
            when durabletask.is_finished(v_process.status) then 'process has finished'
            else 'process belongs to another host, epoch or incarnation'
        end;
    elsif durabletask.is_finished(v_process.status) then
        refused := 'process has finished';
    end if;
    if refused is not null then
        return next;
        return;
    end if;
    insert into durabletask.checkpoint as c
        (process_no, at, epoch, seq, index, ordinal, replaces, kind, key, form, payload)
    values (
        of_process, durabletask.clock(), in_epoch, at_seq, -1,
        0, false, of_kind, at_key, new_form,
        new_payload)
    on conflict (process_no, key, index, kind) do update
    set form = excluded.form, payload = excluded.payload, at = excluded.at
    -- Only a transaction's own reservation can be seen here: none is ever committed.
    where c.form = 'reserved';
    if not found then
        return query
        select null::text, c.kind, c.key, c.index, c.form, c.payload, c.replaces, c.epoch, c.seq,
            c.at
        from durabletask.checkpoint c
        where c.process_no = of_process and c.key = at_key
            and c.index = -1 and c.kind = of_kind;
    end if;
end
$$;

insert into durabletask.migration (version, name, applied_at) values (4, 'commit', clock_timestamp());

-- Claims: take what may run, with its history, and tell what is new for what is held.

-- Make processes, whose rows the caller holds, those of a host; return their epochs. Of those that a
-- fenced host had yet, the first ones, `died` says if that host died: see `let_go_of`.
create function durabletask.take(
    process_nos bigint[], died boolean[], host_no bigint, now_at timestamptz
) returns integer[]
language plpgsql volatile as $$
#variable_conflict use_column
declare
    v_epochs integer[];
begin
    with taken as (
        update durabletask.process p
        set epoch = p.epoch + 1,
            seq = 0,
            owner_no = host_no,
            parked = false,
            news = false,
            claimable_at = null,
            started_at = coalesce(p.started_at, now_at),
            updated_at = now_at,
            deaths = case
                when n.died is null then p.deaths
                when p.seq > 0 or exists (
                    select from durabletask.checkpoint c
                    where c.process_no = p.process_no and c.epoch = p.epoch
                ) then 0
                when n.died then p.deaths + 1
                else p.deaths
            end
        from unnest(process_nos, died) with ordinality as n (process_no, died, place)
        where p.process_no = n.process_no
        returning p.epoch, n.place
    )
    select coalesce(array_agg(t.epoch order by t.place), '{}') into v_epochs
    from taken t;
    return v_epochs;
end
$$;

-- Return the names of which a claim has room left, given what it has taken.
create function durabletask.with_room(
    names text[], rooms integer[], host_no bigint, nos bigint[], epochs integer[]
) returns text[]
language plpgsql volatile
set plan_cache_mode = 'force_generic_plan'
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off as $$
declare
    v_taken text[];
begin
    v_taken := array(
        select p.name
        from unnest(nos, epochs) as n (process_no, epoch)
        join durabletask.process p on p.process_no = n.process_no
        where p.owner_no is not distinct from with_room.host_no and p.epoch = n.epoch
    );
    return array(
        select n.name from unnest(names, rooms) with ordinality as n (name, room, place)
        where n.room is null or cardinality(array_positions(v_taken, n.name)) < n.room
        order by n.place
    );
end
$$;

-- Take up to `count_max` claimable processes of these names, longest claimable first, and return
-- them with their checkpoints and mailboxes, and the news of those held already. Of a name whose
-- place in `rooms` is not null no more are taken than that; if it is used up, `more` and `next_at`
-- are not about this name.
--
-- The first row is a header without a process. Everything is read after it was locked, by later
-- statements than those that lock.
--
-- With `careful`, after an attempt that met something that cannot be read: what can be read is
-- taken and told, and what it is of which the history cannot be read comes with `damage` in place
-- of that. Names are served by age alone then, and `next_at` is not looked for.
create function durabletask.claim(
    host_id text, claim_id text, names text[], rooms integer[], count_max integer,
    by_witness boolean, is_repeat boolean, careful boolean default false
) returns table (
    now_at timestamptz, next_at timestamptz, more boolean, fresh boolean,
    process_no bigint, process_id text, name text, status text, epoch integer, seq integer,
    deaths integer, generation integer, parked boolean, owner text, owner_label text,
    wake_at timestamptz, created_at timestamptz, updated_at timestamptz, start_at timestamptz,
    started_at timestamptz, deadline_at timestamptz, finished_at timestamptz, creation_id text,
    input_digest text, tags text, parent_id text, parent_incarnation bigint,
    parent_generation integer, parent_key text, ending_form text, ending_payload bytea,
    context bytea, input bytea, cancel_reason bytea, cancel_met boolean, suspend_reason bytea,
    kinds text[], keys text[], indexes integer[], forms text[], payloads bytea[],
    replaces boolean[], epochs integer[], seqs integer[], ats timestamptz[],
    event_positions integer[], event_ids text[], event_names text[], event_payloads bytea[],
    event_ats timestamptz[], event_consumed boolean[],
    damage text)
language plpgsql volatile
set lock_timeout = '1s'
set plan_cache_mode = 'force_generic_plan'
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off as $$
#variable_conflict use_column
declare
    v_host_no bigint;
    v_mark record;
    v_nos bigint[];
    v_epochs integer[];
    v_news bigint[];
    v_shares integer[];
    v_left text[];
    v_repeated boolean;
    v_keep text[] := '{}';
    v_dead record;
    v_room integer;
    v_moved boolean := false;
    v_noted boolean := false;
    v_bad_nos bigint[] := '{}';
    v_bad_epochs integer[];
    v_damages text[];
begin
    perform durabletask.check_isolation();
    perform durabletask.be_durable();
    v_host_no := durabletask.hold_fence(host_id);
    -- One claim of a host at a time: a copy of one whose answer was lost may still be on its way.
    perform pg_advisory_xact_lock(
        'durabletask.claim_mark'::regclass::oid::integer, v_host_no::integer);
    select m.* into v_mark from durabletask.claim_mark m
    where m.host_no = v_host_no and m.claim_id = claim.claim_id;
    v_repeated := found;
    if count_max > 0 and not v_repeated and not careful then
        v_keep := array(
            select n.name from unnest(names, rooms) as n (name, room) where n.room is null);
    end if;
    v_dead := durabletask.fence_the_dead(v_host_no, by_witness, count_max, v_keep);
    v_room := count_max - cardinality(v_dead.kept);
    now_at := durabletask.clock();

    if v_repeated then
        v_nos := v_mark.taken;
        v_epochs := v_mark.epochs;
        v_news := v_mark.news;
    elsif careful then
        v_moved := true;
        perform durabletask.move_readable_letters(now_at);
        v_news := durabletask.hear_readable(v_host_no, now_at);
        select t.nos, t.epochs, t.noted into v_nos, v_epochs, v_noted
        from durabletask.take_readable(v_host_no, names, rooms, now_at, count_max) t;
    else
        v_moved := exists (select from durabletask.letter);
        if v_moved then
            -- Raised for a process that was purged before the transaction was committed.
            delete from durabletask.letter l
            where not exists (
                select from durabletask.process p where p.process_no = l.process_no);
            perform durabletask.move_letters(array(
                select p.process_no from durabletask.process p
                where p.process_no in (select distinct l.process_no from durabletask.letter l)
                order by p.process_no + 0
                for update skip locked
            ), now_at);
        end if;
        with heard as (
            update durabletask.process p
            set news = false
            from (
                select q.process_no from durabletask.process q
                where q.owner_no = v_host_no and q.news
                for update skip locked
            ) q
            where p.process_no = q.process_no
            returning p.process_no
        )
        select coalesce(array_agg(h.process_no), '{}') into v_news from heard h;

        -- How many of each name are among the longest claimable; then that many are locked.
        v_shares := array(
            select count(e.claimable_at)::integer
            from unnest(names) with ordinality as n (name, place)
            left join (
                select n.place, c.claimable_at
                from unnest(names, rooms) with ordinality as n (name, room, place)
                cross join lateral (
                    select p.claimable_at from durabletask.process p
                    where p.name = n.name and p.claimable_at <= claim.now_at
                    order by p.claimable_at, p.process_no
                    limit least(v_room, n.room)
                ) c
                order by c.claimable_at
                limit v_room
            ) e on e.place = n.place
            group by n.place
            order by n.place
        );
        v_nos := v_dead.kept || array(
            select c.process_no
            from unnest(names, v_shares) as n (name, share)
            cross join lateral (
                select p.process_no, p.claimable_at from durabletask.process p
                where p.name = n.name and p.claimable_at <= claim.now_at
                order by p.claimable_at, p.process_no
                limit n.share
                for update skip locked
            ) c
            order by c.claimable_at, c.process_no
        );
        v_epochs := durabletask.take(v_nos, v_dead.died, v_host_no, claim.now_at);
        perform durabletask.dismiss(h.host_no)
        from unnest(v_dead.hosts) as h (host_no)
        where not exists (select from durabletask.process p where p.owner_no = h.host_no);
    end if;
    if not v_repeated and (cardinality(v_nos) > 0 or cardinality(v_news) > 0 or is_repeat) then
        insert into durabletask.claim_mark (host_no, claim_id, taken, epochs, news)
        values (v_host_no, claim_id, v_nos, v_epochs, v_news);
        -- A copy that is later than this many claims has met a lock_timeout long ago.
        delete from durabletask.claim_mark m
        where m.host_no = v_host_no and m.claim_no <= (
            select k.claim_no from durabletask.claim_mark k
            where k.host_no = v_host_no order by k.claim_no desc offset 64 limit 1
        );
    end if;

    if careful then
        more := count_max > 0 and (v_noted or cardinality(v_nos) >= count_max);
    else
        v_left := case
            when array_remove(rooms, null) = '{}' then names
            else durabletask.with_room(names, rooms, v_host_no, v_nos, v_epochs)
        end;
        more := (v_repeated or cardinality(v_nos) >= count_max) and exists (
            select
            from unnest(v_left) as n (name)
            cross join lateral (
                select from durabletask.process p
                where p.name = n.name and p.claimable_at <= claim.now_at
                order by p.claimable_at
                limit 1
            ) c
        );
        next_at := (
            select min(c.claimable_at)
            from unnest(v_left) as n (name)
            cross join lateral (
                select p.claimable_at from durabletask.process p
                where p.name = n.name and p.claimable_at > claim.now_at
                order by p.claimable_at
                limit 1
            ) c
        );
    end if;
    more := more or v_dead.more;
    next_at := least(next_at, v_dead.look_at);
    return next;

    if cardinality(v_nos) = 0 and not v_dead.fenced and not v_moved then
        -- News alone may be told twice, so nobody has to wait until it is on the disk that it was.
        perform set_config('synchronous_commit', 'off', true);
    end if;
    if cardinality(v_nos) + cardinality(v_news) = 0 then
        return;
    end if;
    if careful then
        select s.nos, s.epochs, s.news, s.bad_nos, s.bad_epochs, s.damages
        into v_nos, v_epochs, v_news, v_bad_nos, v_bad_epochs, v_damages
        from durabletask.sift(v_nos, v_epochs, v_news) s;
    end if;
    return query
    select claim.now_at, claim.next_at, claim.more, t.fresh,
        r.process_no, r.process_id, r.name, r.status, r.epoch, r.seq, r.deaths, r.generation,
        r.parked, r.owner, r.owner_label, r.wake_at, r.created_at, r.updated_at, r.start_at,
        r.started_at, r.deadline_at, r.finished_at, r.creation_id, r.input_digest, r.tags,
        r.parent_id, r.parent_incarnation, r.parent_generation, r.parent_key, r.ending_form,
        r.ending_payload, r.context, r.input, r.cancel_reason, r.cancel_met, r.suspend_reason,
        c.kinds, c.keys, c.indexes, c.forms, c.payloads, c.replaces, c.epochs, c.seqs, c.ats,
        e.positions, e.ids, e.names, e.payloads, e.ats, e.consumed, null::text
    from (
        select n.process_no, n.epoch, n.place, true as fresh
        from unnest(v_nos, v_epochs) with ordinality as n (process_no, epoch, place)
        union all
        select n.process_no, null, cardinality(v_nos) + n.place, false
        from unnest(v_news) with ordinality as n (process_no, place)
    ) t
    join durabletask.process_row r on r.process_no = t.process_no
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
        where t.fresh and c.process_no = r.process_no
    ) c on true
    left join lateral (
        select array_agg(e.position order by e.position) as positions,
            array_agg(e.event_id order by e.position) as ids,
            array_agg(e.name order by e.position) as names,
            array_agg(e.payload order by e.position) as payloads,
            array_agg(e.at order by e.position) as ats,
            array_agg(e.consumed order by e.position) as consumed
        from durabletask.event e
        where e.process_no = r.process_no and not e.consumed
    ) e on true
    where r.owner is not distinct from claim.host_id and (t.epoch is null or r.epoch = t.epoch)
    order by t.place;
    if cardinality(v_bad_nos) > 0 then
        return query
        select claim.now_at, claim.next_at, claim.more, t.epoch is not null,
            r.process_no, r.process_id, r.name, r.status, r.epoch, r.seq, r.deaths, r.generation,
            r.parked, r.owner, r.owner_label, r.wake_at, r.created_at, r.updated_at, r.start_at,
            r.started_at, r.deadline_at, r.finished_at, r.creation_id, r.input_digest, r.tags,
            r.parent_id, r.parent_incarnation, r.parent_generation, r.parent_key, r.ending_form,
            r.ending_payload, r.context, r.input, r.cancel_reason, r.cancel_met, r.suspend_reason,
            null::text[], null::text[], null::integer[], null::text[], null::bytea[],
            null::boolean[], null::integer[], null::integer[], null::timestamptz[],
            e.positions, e.ids, e.names, e.payloads, e.ats, e.consumed, t.damage
        from unnest(v_bad_nos, v_bad_epochs, v_damages) as t (process_no, epoch, damage)
        cross join lateral durabletask.bare_row(t.process_no) r
        left join lateral (
            select array_agg(e.position order by e.position) as positions,
                array_agg(e.event_id order by e.position) as ids,
                array_agg(e.name order by e.position) as names,
                array_agg(e.payload order by e.position) as payloads,
                array_agg(e.at order by e.position) as ats,
                array_agg(e.consumed order by e.position) as consumed
            from durabletask.event e
            where t.damage is null and e.process_no = t.process_no and not e.consumed
        ) e on true
        where r.owner is not distinct from claim.host_id and (t.epoch is null or r.epoch = t.epoch);
    end if;
end
$$;

insert into durabletask.migration (version, name, applied_at) values (5, 'claim', clock_timestamp());

-- Damage: what cannot be read stops the processes that it belongs to, and no others.
--
-- Nothing here runs unless a statement has failed because of something unreadable. The errors for
-- that are those of the classes XX (a page, an index or a value is damaged) and 58 (the disk);
-- `internal_error` and `system_error` stand for the whole of them.

-- Processes that could be read and not written, for people to look at. They are left alone for a
-- minute: each attempt leaves something behind that nobody can vacuum while a page is damaged. An
-- index entry beside those of a damaged page may be why: Postgres looks at what these lead to
-- before it splits a page of an index.
create table durabletask.damage (
    process_no  bigint primary key,
    at          timestamptz not null,
    message     text not null
);

create function durabletask.note_damage(of_process bigint, message text, now_at timestamptz)
returns void
language plpgsql volatile as $$
begin
    raise warning 'process number % cannot be written: %', of_process, message;
    insert into durabletask.damage as d (process_no, at, message)
    values (of_process, now_at, note_damage.message)
    on conflict (process_no) do update set at = excluded.at, message = excluded.message;
end
$$;

create function durabletask.is_noted(of_process bigint, now_at timestamptz) returns boolean
language sql volatile
begin atomic
    select exists (
        select from durabletask.damage d
        where d.process_no = of_process and d.at > now_at - interval '1 min');
end;

-- Find by their numbers what can be read: "owned" by a host, "news" for it, "claimable" (the
-- longest of each name; "claimable by number" where its index is what is damaged), with "letters",
-- or some that are "finished" since before `now_at`. A range of numbers that fails is halved, until
-- what fails is single numbers. Not by pages: a row that is updated meanwhile keeps its number.
--
-- `complete` is false if there was no end of failures, as where an index is damaged at its root.
create function durabletask.readable(
    what text, host_no bigint, names text[], now_at timestamptz, count_max integer,
    out nos bigint[], out complete boolean
)
language plpgsql volatile as $$
declare
    -- Numbers begin at 1. Each range is twice as long as the one below it; the lowest comes first.
    v_froms bigint[] := array(
        select 1::bigint << k from generate_series(61, 0, -1) k);
    v_untils bigint[] := array(
        select 1::bigint << k from generate_series(62, 1, -1) k);
    v_from bigint;
    v_until bigint;
    v_failures integer := 0;
begin
    nos := '{}';
    complete := true;
    while cardinality(v_froms) > 0 loop
        v_from := v_froms[cardinality(v_froms)];
        v_until := v_untils[cardinality(v_untils)];
        v_froms := trim_array(v_froms, 1);
        v_untils := trim_array(v_untils, 1);
        begin
            -- "epoch >= 0" and "name is not null" make sure that rows are read, not an index only.
            case what
            when 'owned' then
                nos := nos || array(
                    select p.process_no from durabletask.process p
                    where p.process_no >= v_from and p.process_no < v_until
                        and p.owner_no is not distinct from readable.host_no and p.epoch >= 0);
            when 'news' then
                nos := nos || array(
                    select p.process_no from durabletask.process p
                    where p.owner_no = readable.host_no and p.news and p.process_no >= v_from
                        and p.process_no < v_until and p.epoch >= 0
                        and not durabletask.is_noted(p.process_no, readable.now_at));
            when 'claimable' then
                nos := nos || array(
                    select c.process_no
                    from unnest(readable.names) as n (name)
                    cross join lateral (
                        select p.process_no from durabletask.process p
                        where p.name = n.name and p.claimable_at <= readable.now_at
                            and p.process_no >= v_from and p.process_no < v_until and p.epoch >= 0
                            and not durabletask.is_noted(p.process_no, readable.now_at)
                        order by p.claimable_at, p.process_no
                        limit readable.count_max
                    ) c);
            when 'claimable by number' then
                nos := nos || array(
                    select p.process_no from durabletask.process p
                    where p.process_no >= v_from and p.process_no < v_until
                        and coalesce(p.name, '') = any (readable.names)
                        and coalesce(p.claimable_at, 'infinity') <= readable.now_at
                        and not durabletask.is_noted(p.process_no, readable.now_at)
                    order by p.claimable_at
                    limit readable.count_max);
            when 'letters' then
                nos := nos || array(
                    select distinct l.process_no from durabletask.letter l
                    where l.process_no >= v_from and l.process_no < v_until
                        and l.name is not null
                        and not durabletask.is_noted(l.process_no, readable.now_at));
            when 'finished' then
                nos := nos || array(
                    select p.process_no from durabletask.process p
                    where p.process_no >= v_from and p.process_no < v_until
                        and coalesce(p.finished_at, 'infinity') < readable.now_at
                        and p.owner_no is null
                    limit readable.count_max);
                exit when cardinality(nos) >= count_max;
            end case;
        exception when internal_error or system_error then
            v_failures := v_failures + 1;
            if v_failures > (case what when 'claimable' then 1000 else 10000 end) then
                complete := false;
                return;
            end if;
            if v_until - v_from > 1 then
                v_froms := v_froms || array[v_from + (v_until - v_from) / 2, v_from];
                v_untils := v_untils || array[v_until, v_from + (v_until - v_from) / 2];
            end if;
        end;
    end loop;
end
$$;

-- Say what is wrong with what a claim reads of a process, or null. As text, since a value that lies
-- elsewhere is read only when it is looked at.
create function durabletask.damage_of(process_no bigint, history boolean, mailbox boolean)
returns text
language plpgsql volatile as $$
declare
    v_bytes bigint;
begin
    if history then
        -- An array, as which a claim hands it out, has a limit of 1 GiB.
        v_bytes := (
            select sum(octet_length(c.payload)) from durabletask.checkpoint c
            where c.process_no = damage_of.process_no);
        if v_bytes > 900000000 then
            return format('a history of %s bytes is too large to be handed out', v_bytes);
        end if;
        perform r::text from durabletask.process_row r
        where r.process_no = damage_of.process_no;
        perform c::text from durabletask.checkpoint c
        where c.process_no = damage_of.process_no;
    end if;
    if mailbox then
        perform e::text from durabletask.event e
        where e.process_no = damage_of.process_no and not e.consumed;
    end if;
    return null;
exception when internal_error or system_error then
    return sqlerrm;
end
$$;

-- Tell what is damaged of processes that shall be read; of the sound ones nothing is returned.
create function durabletask.damages(ids text[], history boolean)
returns table (process_id text, damage text)
language plpgsql volatile
set plan_cache_mode = 'force_generic_plan'
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off as $$
#variable_conflict use_column
begin
    foreach process_id in array ids loop
        begin
            perform r::text from durabletask.process_row r where r.process_id = damages.process_id;
            if history then
                perform c::text from durabletask.checkpoint c
                where c.process_no = (
                    select p.process_no from durabletask.process p
                    where p.process_id = damages.process_id);
                perform e::text from durabletask.event e
                where e.process_no = (
                    select p.process_no from durabletask.process p
                    where p.process_id = damages.process_id);
                perform g::text from durabletask.forgotten g
                where g.process_no = (
                    select p.process_no from durabletask.process p
                    where p.process_id = damages.process_id);
            end if;
        exception when internal_error or system_error then
            damage := sqlerrm;
            return next;
        end;
    end loop;
end
$$;

-- The rows, checkpoints and events to read: looked up one by one, so that nothing else is touched.
create function durabletask.rows_of(ids text[]) returns setof durabletask.process_row
language plpgsql volatile
set plan_cache_mode = 'force_generic_plan'
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off as $$
begin
    return query select r.* from durabletask.process_row r where r.process_id = any (ids);
end
$$;

create function durabletask.checkpoints_of(of_process bigint) returns setof durabletask.checkpoint
language plpgsql volatile
set plan_cache_mode = 'force_generic_plan'
set enable_seqscan = off as $$
begin
    return query select c.* from durabletask.checkpoint c where c.process_no = of_process;
end
$$;

create function durabletask.forgotten_of(of_process bigint) returns setof durabletask.forgotten
language plpgsql volatile
set plan_cache_mode = 'force_generic_plan'
set enable_seqscan = off as $$
begin
    return query select g.* from durabletask.forgotten g where g.process_no = of_process;
end
$$;

create function durabletask.events_of(of_process bigint) returns setof durabletask.event
language plpgsql volatile
set plan_cache_mode = 'force_generic_plan'
set enable_seqscan = off as $$
begin
    return query select e.* from durabletask.event e where e.process_no = of_process;
end
$$;

-- List processes as the statement "list" does, around what cannot be read. Of one of which only
-- values are damaged, these are left out of its row.
create function durabletask.list_readable(
    statuses text[], of_name text, prefix text, tag_set jsonb,
    created_from timestamptz, created_until timestamptz,
    finished_from timestamptz, finished_until timestamptz,
    of_parent text, after_at timestamptz, after_id text, count_max integer
) returns setof durabletask.process_row
language plpgsql volatile
set plan_cache_mode = 'force_generic_plan'
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off as $$
declare
    -- As in `readable`.
    v_froms bigint[] := array(
        select 1::bigint << k from generate_series(61, 0, -1) k);
    v_untils bigint[] := array(
        select 1::bigint << k from generate_series(62, 1, -1) k);
    v_from bigint;
    v_until bigint;
    v_failures integer := 0;
    v_nos bigint[] := '{}';
    v_no bigint;
begin
    while cardinality(v_froms) > 0 loop
        v_from := v_froms[cardinality(v_froms)];
        v_until := v_untils[cardinality(v_untils)];
        v_froms := trim_array(v_froms, 1);
        v_untils := trim_array(v_untils, 1);
        begin
            v_nos := v_nos || array(
                select s.process_no
                from (
                    select p.process_no, p.created_at, p.process_id from durabletask.process p
                    where p.process_no >= v_from and p.process_no < v_until
                        and (statuses is null or p.status = any (statuses))
                        and (of_name is null or p.name = of_name)
                        and (prefix is null or starts_with(p.process_id, prefix))
                        and (list_readable.tag_set is null or p.tags @> list_readable.tag_set)
                        and (created_from is null or p.created_at >= created_from)
                        and (created_until is null or p.created_at < created_until)
                        and (finished_from is null or p.finished_at >= finished_from)
                        and (finished_until is null or p.finished_at < finished_until)
                        and (of_parent is null or p.parent_id = of_parent)
                        and (
                            after_at is null
                            or (p.created_at, p.process_id) > (after_at, after_id))
                    offset 0  -- sorted afterwards, and not read in the order of an index
                ) s
                order by s.created_at, s.process_id
                limit count_max);
        exception when internal_error or system_error then
            v_failures := v_failures + 1;
            if v_failures > 10000 then
                raise;
            end if;
            if v_until - v_from > 1 then
                v_froms := v_froms || array[v_from + (v_until - v_from) / 2, v_from];
                v_untils := v_untils || array[v_until, v_from + (v_until - v_from) / 2];
            end if;
        end;
    end loop;
    for v_no in
        select s.process_no
        from (
            select p.process_no, p.created_at, p.process_id from durabletask.process p
            where p.process_no = any (v_nos)
            offset 0
        ) s
        order by s.created_at, s.process_id
        limit count_max
    loop
        if durabletask.damage_of(v_no, true, false) is null then
            return query select r.* from durabletask.process_row r where r.process_no = v_no;
        else
            return next durabletask.bare_row(v_no);
        end if;
    end loop;
end
$$;

-- Return a process without its history, and without values that may be damaged.
create function durabletask.bare_row(of_process bigint) returns durabletask.process_row
language plpgsql volatile as $$
declare
    v_row durabletask.process_row;
begin
    select p.process_no, p.process_id, p.name, p.status, p.epoch, p.seq, p.deaths, p.generation,
        p.parked, f.host_id, f.label, p.wake_at, p.created_at, p.updated_at, p.start_at,
        p.started_at, p.deadline_at, p.finished_at, p.creation_id, p.input_digest, null::text,
        p.parent_id, p.parent_incarnation, p.parent_generation, p.parent_key, null::text,
        null::bytea, null::bytea, 'null'::bytea,
        -- That it was asked, if not why: values may be damaged.
        case when p.cancel_reason is not null then 'null'::bytea end, p.cancel_met,
        case when p.suspend_reason is not null then 'null'::bytea end, null::jsonb
    into v_row
    from durabletask.process p left join durabletask.fence f on f.host_no = p.owner_no
    where p.process_no = of_process;
    return v_row;
end
$$;

-- Let go of what can be read of a host's processes; return whether none of it is left.
create function durabletask.let_go_readable(host_no bigint, died boolean, now_at timestamptz)
returns boolean
language plpgsql volatile as $$
declare
    v_found record;
    v_no bigint;
    v_left bigint[] := '{}';
begin
    select f.nos, f.complete into v_found
    from durabletask.readable('owned', host_no, null, null, null) f;
    foreach v_no in array v_found.nos loop
        begin
            perform 1 from durabletask.process p
            where p.process_no = v_no and p.owner_no is not distinct from let_go_readable.host_no
            for update skip locked;
            if not found then
                v_left := v_left || v_no;
                continue;
            end if;
            begin
                perform durabletask.let_go_of(array[v_no], died, true, now_at);
            exception when internal_error or system_error then
                -- Who cannot say what was recorded shall not say that nothing was.
                perform durabletask.let_go_of(array[v_no], false, false, now_at);
            end;
        exception when internal_error or system_error then
            perform durabletask.note_damage(v_no, sqlerrm, now_at);
        end;
    end loop;
    raise warning 'what is left of host number % cannot be read or written', host_no
        using hint = format(
            'once it can: select is_done from durabletask.let_go(%s, false, durabletask.clock())',
            host_no);
    return v_found.complete and not exists (
        select from durabletask.process p
        where p.process_no = any (v_left)
            and p.owner_no is not distinct from let_go_readable.host_no);
end
$$;

-- Make a process, whose row the caller holds, that of a host, as `take` does; return its epoch.
--
-- An index on columns that an update does not name is taken to hold mere versions of the row, and
-- before a page of it is split Postgres looks at the rows that this page leads to, damaged ones
-- among them. To name the columns spares the indexes on them that look.
create function durabletask.take_carefully(of_process bigint, host_no bigint, now_at timestamptz)
returns integer
language plpgsql volatile as $$
declare
    v_epoch integer;
begin
    update durabletask.process p
    set epoch = p.epoch + 1,
        seq = 0,
        owner_no = host_no,
        parked = false,
        news = false,
        claimable_at = null,
        started_at = coalesce(p.started_at, now_at),
        updated_at = now_at,
        name = p.name,
        status = p.status
    where p.process_no = of_process
    returning p.epoch into v_epoch;
    return v_epoch;
end
$$;

-- Take the longest claimable processes of those that can be read, of each name as many as it has
-- room; `noted` if some could not be written, so that others may have been passed by.
create function durabletask.take_readable(
    host_no bigint, names text[], rooms integer[], now_at timestamptz, count_max integer,
    out nos bigint[], out epochs integer[], out noted boolean
)
language plpgsql volatile as $$
declare
    v_found bigint[];
    v_complete boolean;
    v_no bigint;
    v_name text;
    v_names text[] := '{}';
begin
    nos := '{}';
    epochs := '{}';
    noted := false;
    select f.nos, f.complete into v_found, v_complete
    from durabletask.readable('claimable', null, names, now_at, count_max) f;
    if not v_complete then
        v_found := (
            select f.nos
            from durabletask.readable('claimable by number', null, names, now_at, count_max) f);
    end if;
    for v_no, v_name in
        select p.process_no, p.name from durabletask.process p
        where p.process_no = any (v_found)
        order by p.claimable_at, p.process_no + 0
    loop
        exit when cardinality(nos) >= count_max;
        continue when cardinality(array_positions(v_names, v_name))
            >= rooms[array_position(names, v_name)];
        begin
            perform 1 from durabletask.process p
            where p.process_no = v_no and p.claimable_at <= now_at
            for update skip locked;
            if found then
                epochs := epochs || durabletask.take_carefully(v_no, host_no, now_at);
                nos := nos || v_no;
                v_names := v_names || v_name;
            end if;
        exception when internal_error or system_error then
            noted := true;
            perform durabletask.note_damage(v_no, sqlerrm, now_at);
        end;
    end loop;
end
$$;

-- Hear what is new for a host's processes, as far as they can be read.
create function durabletask.hear_readable(host_no bigint, now_at timestamptz) returns bigint[]
language plpgsql volatile as $$
declare
    v_no bigint;
    v_news bigint[] := '{}';
begin
    for v_no in
        select unnest(f.nos) from durabletask.readable('news', host_no, null, now_at, null) f
    loop
        begin
            perform 1 from durabletask.process p
            where p.process_no = v_no and p.news
            for update skip locked;
            if found then
                update durabletask.process p
                set news = false, name = p.name, status = p.status  -- as in `take_carefully`
                where p.process_no = v_no;
                v_news := v_news || v_no;
            end if;
        exception when internal_error or system_error then
            perform durabletask.note_damage(v_no, sqlerrm, now_at);
        end;
    end loop;
    return v_news;
end
$$;

-- Move the letters that can be read into the mailboxes that can.
create function durabletask.move_readable_letters(now_at timestamptz) returns void
language plpgsql volatile as $$
declare
    v_no bigint;
begin
    for v_no in
        select unnest(f.nos) from durabletask.readable('letters', null, null, now_at, null) f
    loop
        begin
            perform 1 from durabletask.process p
            where p.process_no = v_no
            for update skip locked;
            if found then
                perform durabletask.move_letters(array[v_no], now_at);
            end if;
        exception when internal_error or system_error then
            perform durabletask.note_damage(v_no, sqlerrm, now_at);
        end;
    end loop;
end
$$;

-- Remove up to `count_max` processes that finished before `before`; return how many. One of which
-- something cannot be read stays as it is.
create function durabletask.purge_readable(before timestamptz, count_max integer) returns integer
language plpgsql volatile as $$
declare
    v_no bigint;
    v_count integer := 0;
begin
    -- Those that stay are found each time and must not stand before the others for ever.
    for v_no in
        select n.no
        from durabletask.readable('finished', null, null, before, count_max + 10000) f
        cross join unnest(f.nos) as n (no)
    loop
        exit when v_count >= count_max;
        begin
            perform 1 from durabletask.process p where p.process_no = v_no for update skip locked;
            if found then
                perform durabletask.remove(array[v_no]);
                v_count := v_count + 1;
            end if;
        exception when internal_error or system_error then
            perform durabletask.note_damage(v_no, sqlerrm, durabletask.clock());
        end;
    end loop;
    return v_count;
end
$$;

-- Sort out of what a claim hands out what cannot be read: whole are `nos` in `epochs` and `news`;
-- of the others only the row itself is, and of `bad_news` the mailbox too where no damage is named.
create function durabletask.sift(
    inout nos bigint[], inout epochs integer[], inout news bigint[],
    out bad_nos bigint[], out bad_epochs integer[], out damages text[]
)
language plpgsql volatile as $$
declare
    v_no bigint;
    v_epoch integer;
    v_damage text;
    v_nos bigint[] := '{}';
    v_epochs integer[] := '{}';
    v_news bigint[] := '{}';
begin
    bad_nos := '{}';
    bad_epochs := '{}';
    damages := '{}';
    for v_no, v_epoch in
        select n.no, n.epoch from unnest(nos, epochs) with ordinality as n (no, epoch, place)
        order by n.place
    loop
        v_damage := durabletask.damage_of(v_no, true, true);
        if v_damage is null then
            v_nos := v_nos || v_no;
            v_epochs := v_epochs || v_epoch;
        else
            bad_nos := bad_nos || v_no;
            bad_epochs := bad_epochs || v_epoch;
            damages := damages || v_damage;
        end if;
    end loop;
    foreach v_no in array news loop
        v_damage := durabletask.damage_of(v_no, false, true);
        if v_damage is null and durabletask.damage_of(v_no, true, false) is null then
            v_news := v_news || v_no;
        else
            bad_nos := bad_nos || v_no;
            bad_epochs := bad_epochs || null::integer;
            damages := damages || v_damage;
        end if;
    end loop;
    nos := v_nos;
    epochs := v_epochs;
    news := v_news;
end
$$;

insert into durabletask.migration (version, name, applied_at) values (6, 'damage', clock_timestamp());

-- Requests: what is asked of processes from outside, of them and of their descendants.
--
-- The planner is told what to do by `request` and `commit_in_turn`, from which the others are called.
--
-- Nothing here needs a lease. A host that records for one of these processes waits for the row, and
-- then finds what was asked.

-- Put the end of a process into the mailbox of its parent, however full that is; the caller holds
-- the rows of both. Return the parent's id, or null if there was nobody to tell.
create function durabletask.tell_parent(child_no bigint, again text, now_at timestamptz) returns text
language plpgsql volatile as $$
#variable_conflict use_column
declare
    v_end record;
    v_event_id text;
begin
    select a.process_no, a.process_id, c.parent_generation, c.parent_key, c.epoch, c.status,
        c.ending_payload
    into v_end
    from durabletask.process c
    join durabletask.process a
        on a.process_no = c.parent_incarnation and a.process_id is not distinct from c.parent_id
    where c.process_no = child_no and durabletask.is_finished(c.status)
        and a.generation = c.parent_generation and not durabletask.is_finished(a.status);
    if not found then
        return null;
    end if;
    v_event_id := format('durabletask:child:%s:%s:%s.%s%s', v_end.parent_generation,
        v_end.parent_key, child_no, v_end.epoch, again);
    if not exists (
        select from durabletask.event e
        where e.process_no = v_end.process_no and e.event_id = v_event_id
    ) then
        perform durabletask.put_event(v_end.process_no, v_event_id,
            'durabletask:child:' || v_end.status, v_end.ending_payload, now_at);
    end if;
    return v_end.process_id;
end
$$;

-- Return the numbers of all processes below these, finished or not.
create function durabletask.descendants(process_nos bigint[]) returns setof bigint
language plpgsql volatile as $$
begin
    return query
    with recursive below (process_no, process_id) as (
        select c.process_no, c.process_id
        from durabletask.process a
        join durabletask.process c
            on c.parent_id = a.process_id and c.parent_incarnation is not distinct from a.process_no
        where a.process_no = any (process_nos)
        union
        select c.process_no, c.process_id
        from below a
        join durabletask.process c
            on c.parent_id = a.process_id and c.parent_incarnation is not distinct from a.process_no
    )
    select b.process_no from below b;
end
$$;

-- Lock the processes of these ids, what is below those that are asked to `descend`, and the parents
-- of these, to whom an end is told. What was spawned meanwhile is found when its parent is locked,
-- so it looks again until nothing is new. Numbers rise from parents to children; what comes late may
-- be out of order all the same, and then a lock_timeout refuses the request, not a deadlock.
create function durabletask.lock_kin(ids text[], descend text[]) returns bigint[]
language plpgsql volatile as $$
declare
    v_descend bigint[];
    v_seen bigint[] := '{}';
    v_new bigint[];
    v_locked bigint[] := '{}';
begin
    loop
        v_descend := array(
            select p.process_no from durabletask.process p where p.process_id = any (descend));
        v_new := array(
            (
                select p.process_no from durabletask.process p where p.process_id = any (ids)
                union
                select d.process_no
                from durabletask.descendants(v_descend) as d (process_no)
                union
                select p.parent_incarnation from durabletask.process p
                where p.process_no = any (v_descend) and p.parent_incarnation is not null
            )
            except
            select unnest(v_seen)
        );
        exit when cardinality(v_new) = 0;
        v_seen := v_seen || v_new;
        v_locked := v_locked || array(
            select p.process_no from durabletask.process p
            where p.process_no = any (v_new) order by p.process_no + 0 for update);
    end loop;
    return v_locked;
end
$$;

-- End a process, whose row the caller holds. If it has an owner, that keeps it until it lets go.
create function durabletask.end_process(
    of_process bigint, ending text, form text, payload bytea, now_at timestamptz
) returns void
language plpgsql volatile as $$
begin
    update durabletask.process p
    set status = ending,
        ending_form = form,
        ending_payload = payload,
        finished_at = case when durabletask.is_finished(ending) then now_at end,
        updated_at = now_at,
        wake_at = null,
        claimable_at = null,
        parked = false,
        news = p.owner_no is not null,
        suspend_reason = null,
        status_after = null
    where p.process_no = of_process;
end
$$;

-- Whether a request to cancel would change anything.
create function durabletask.may_cancel(p durabletask.process) returns boolean
language sql immutable
begin atomic
    select (p).cancel_reason is null and not durabletask.is_finished((p).status)
        and coalesce((p).status_after, (p).status) <> 'compensating';
end;

-- Ask a process, whose row the caller holds, to cancel, or end it if no host has ever had it;
-- return whether it has ended.
create function durabletask.cancel_process(
    of_process bigint, reason bytea, ending text, form text, payload bytea, now_at timestamptz
) returns boolean
language plpgsql volatile as $$
declare
    v_ends boolean;
begin
    update durabletask.process p
    set cancel_reason = reason,
        updated_at = now_at,
        news = p.owner_no is not null,
        claimable_at = case
            when p.parked and durabletask.is_claimable(p.status) then now_at
            else p.claimable_at
        end,
        parked = false
    where p.process_no = of_process
    returning p.epoch = 0 and ending is not null into v_ends;
    if v_ends then
        perform durabletask.end_process(of_process, ending, form, payload, now_at);
    end if;
    return v_ends;
end
$$;

-- Let a failed or quarantined process, whose row the caller holds, go on.
create function durabletask.retry_process(
    of_process bigint, new_status text, forget_kinds text[], forget_keys text[],
    forget_indexes integer[], restored integer[], now_at timestamptz
) returns void
language plpgsql volatile as $$
#variable_conflict use_column
declare
    v_restored integer;
begin
    if cardinality(forget_keys) > 0 then
        with gone as (
            delete from durabletask.checkpoint c
            using unnest(forget_kinds, forget_keys, forget_indexes) as n (kind, key, index)
            where c.process_no = of_process and c.key = n.key and c.index = n.index
                and c.kind = n.kind
            returning c.*
        )
        insert into durabletask.forgotten
            (process_no, at, epoch, seq, index, replaces, kind, key, form, payload)
        select g.process_no, g.at, g.epoch, g.seq, g.index, g.replaces, g.kind, g.key, g.form,
            g.payload
        from gone g
        order by g.epoch, g.seq, g.ordinal;
    end if;
    update durabletask.event e
    set consumed = false
    where e.process_no = of_process and e.position = any (restored) and e.consumed;
    get diagnostics v_restored = row_count;
    update durabletask.process p
    set status = new_status,
        ending_form = null,
        ending_payload = null,
        finished_at = null,
        epoch = p.epoch + 1,
        seq = 0,
        deaths = 0,
        unconsumed = p.unconsumed + v_restored,
        claimable_at = now_at,
        updated_at = now_at
    where p.process_no = of_process;
end
$$;

-- Do what is asked of processes, in the given order. Each request comes back with `refused`, or with
-- the process as it stands after it and whom it concerned: the ids of `told`.
create function durabletask.request(
    ids text[], actions text[], request_ids text[], reasons bytea[],
    endings text[], ending_forms text[], ending_payloads bytea[],
    incarnations bigint[], epochs integer[], statuses text[],
    -- How many each has of those below, which stand in the order of the requests.
    forget_counts integer[], restore_counts integer[],
    forget_kinds text[], forget_keys text[], forget_indexes integer[], restores integer[]
) returns table (place integer, refused text, told text[], process durabletask.process_row)
language plpgsql volatile
set lock_timeout = '100ms'
set plan_cache_mode = 'force_generic_plan'
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off as $$
#variable_conflict use_column
declare
    -- Of the latest requests so many are kept, the new one among them: REQUESTS_KEPT.
    v_kept constant integer := 8;
    v_locked bigint[];
    v_now timestamptz;
    v_process durabletask.process;
    v_known boolean;
    v_below bigint[];
    v_no bigint;
    v_forgets integer := 0;
    v_restores integer := 0;
begin
    perform durabletask.check_isolation();
    perform durabletask.be_durable();
    v_locked := durabletask.lock_kin(ids, array(
        select n.id from unnest(ids, actions) as n (id, action)
        where n.action in ('cancel', 'terminate')));
    v_now := durabletask.clock();
    for v_at in 1 .. cardinality(ids) loop
        place := v_at;
        refused := null; told := '{}'; process := null;
        v_forgets := v_forgets + forget_counts[v_at];
        v_restores := v_restores + restore_counts[v_at];
        select p.* into v_process from durabletask.process p where p.process_id = ids[v_at];
        v_known := coalesce(request_ids[v_at] = any (v_process.request_ids), false);
        refused := case
            when v_process.process_no is null then 'unknown process'
            when not v_process.process_no = any (v_locked) then 'busy'
            when v_known then null
            when actions[v_at] = 'retry' then case
                when v_process.status not in ('failed', 'quarantined') then
                    'this status cannot follow the recorded one'
                when v_process.process_no <> incarnations[v_at]
                    or v_process.epoch <> epochs[v_at] then
                    'process belongs to another host, epoch or incarnation'
            end
            when durabletask.is_finished(v_process.status)
                and not (actions[v_at] = 'terminate' and v_process.status = 'terminated') then
                'process has finished'
            when actions[v_at] = 'suspend' and v_process.status = 'quarantined' then
                'this status cannot follow the recorded one'
        end;
        if refused is not null then
            return next;
            continue;
        end if;
        if not v_known then
            told := array[v_process.process_id];
            update durabletask.process p
            set request_ids = (
                coalesce(p.request_ids, '{}') || request.request_ids[v_at]
            )[greatest(1, coalesce(cardinality(p.request_ids), 0) + 2 - v_kept):]
            where p.process_no = v_process.process_no;
            case actions[v_at]
            when 'cancel', 'terminate' then
                v_below := '{}';
                if actions[v_at] = 'terminate' or durabletask.may_cancel(v_process) then
                    v_below := array(
                        select d.process_no
                        from durabletask.descendants(array[v_process.process_no])
                            as d (process_no)
                        order by d.process_no);
                end if;
                -- From above, so that who ends with it is not told of those below.
                foreach v_no in array v_process.process_no || v_below loop
                    select p.* into v_process from durabletask.process p where p.process_no = v_no;
                    if durabletask.is_finished(v_process.status) then
                        continue;
                    end if;
                    if actions[v_at] = 'terminate' then
                        perform durabletask.end_process(v_no, endings[v_at], ending_forms[v_at],
                            ending_payloads[v_at], v_now);
                    elsif not durabletask.may_cancel(v_process) then
                        continue;
                    elsif not durabletask.cancel_process(v_no, reasons[v_at], endings[v_at],
                        ending_forms[v_at], ending_payloads[v_at], v_now)
                    then
                        told := told || v_process.process_id;
                        continue;
                    end if;
                    told := told || v_process.process_id;
                    if v_process.parent_id is not null then
                        told := told || durabletask.tell_parent(v_no, '', v_now);
                    end if;
                end loop;
            when 'suspend' then
                update durabletask.process p
                set status = 'suspended',
                    status_after = p.status,
                    suspend_reason = reasons[v_at],
                    claimable_at = null,
                    parked = false,
                    news = p.owner_no is not null,
                    updated_at = v_now
                where p.process_no = v_process.process_no and p.status <> 'suspended';
            when 'resume' then
                update durabletask.process p
                set status = p.status_after,
                    status_after = null,
                    suspend_reason = null,
                    parked = false,
                    news = p.owner_no is not null,
                    claimable_at = case
                        when p.owner_no is null and durabletask.is_claimable(p.status_after)
                            then greatest(p.start_at, v_now)
                    end,
                    updated_at = v_now
                where p.process_no = v_process.process_no and p.status = 'suspended';
            when 'retry' then
                perform durabletask.retry_process(
                    v_process.process_no, statuses[v_at],
                    forget_kinds[v_forgets - forget_counts[v_at] + 1:v_forgets],
                    forget_keys[v_forgets - forget_counts[v_at] + 1:v_forgets],
                    forget_indexes[v_forgets - forget_counts[v_at] + 1:v_forgets],
                    restores[v_restores - restore_counts[v_at] + 1:v_restores],
                    v_now);
            end case;
        end if;
        select r.* into process from durabletask.process_row r where r.process_id = ids[v_at];
        return next;
    end loop;
end
$$;

insert into durabletask.migration (version, name, applied_at) values (7, 'requests', clock_timestamp());

-- Commit, for units that reach beyond their own process or need more than a look at it: one after
-- the other, in the given order, where `commit_units` judges all at once.

-- Record units of processes that the host holds; return what was not simply done, as `commit_units`
-- does, with `about`: the child or the receiver because of which a unit was refused. "told" is no
-- refusal: it names the parent that a unit has told of its process's end.
--
-- Spawned children, sends, a request that is met, a restart, what happens under a suspension or
-- after a termination, and the end of a child: these are judged here and nowhere else. So is
-- everything that is to keep its order to one of them.
--
-- Locked are the processes themselves, the receivers, and the parents of those that end; all of them
-- before the fence, in order of their numbers. A unit that meets a process which came into being
-- since is "busy".
create function durabletask.commit_in_turn(
    host_id text,
    skip_busy boolean,
    mark_no bigint,
    mark_epoch integer,
    mark_seq integer,
    mark_kind text,
    mark_key text,
    mark_index integer,
    -- Units.
    ids text[],
    nos bigint[],
    epochs integer[],
    seqs integer[],
    statuses text[],
    wake_ats timestamptz[],
    endings text[],
    ending_forms text[],
    ending_payloads bytea[],
    leaves text[],
    meets boolean[],
    restarts bytea[],
    mailbox_maxes integer[],
    -- How many each has of the parts below, which stand in the order of the units.
    point_counts integer[],
    event_counts integer[],
    spawn_counts integer[],
    send_counts integer[],
    -- Checkpoints.
    point_kinds text[],
    point_keys text[],
    point_indexes integer[],
    point_forms text[],
    point_payloads bytea[],
    point_replaces boolean[],
    point_first_wins boolean[],
    -- Events that leave the mailbox.
    event_positions integer[],
    -- Children.
    spawn_ids text[],
    spawn_names text[],
    spawn_inputs bytea[],
    spawn_digests text[],
    spawn_creation_ids text[],
    spawn_start_ats timestamptz[],
    spawn_deadline_ats timestamptz[],
    spawn_tags text[],
    spawn_contexts bytea[],
    spawn_parent_ids text[],
    spawn_parent_incarnations bigint[],
    spawn_parent_generations integer[],
    spawn_parent_keys text[],
    -- Events for others.
    send_ids text[],
    send_event_ids text[],
    send_names text[],
    send_payloads bytea[]
) returns table (
    unit integer, refused text, about text, kind text, key text, index integer, form text,
    payload bytea, replaces boolean, epoch integer, seq integer, at timestamptz)
language plpgsql volatile
set lock_timeout = '100ms'
set plan_cache_mode = 'force_generic_plan'
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off as $$
#variable_conflict use_column
declare
    -- Of consumed events so many survive a restart: EVENTS_KEPT.
    v_events_kept constant integer := 1000;
    v_host_no bigint;
    v_now timestamptz;
    v_wanted bigint[];
    v_locked bigint[];
    v_busy bigint[] := '{}';
    -- The last part of each sort that belongs to the unit.
    v_point integer := 0;
    v_event integer := 0;
    v_spawn integer := 0;
    v_send integer := 0;
    v_process durabletask.process;
    v_other record;
    v_held boolean;
    -- Whether a unit that reaches others was refused before, later ones having been written since:
    -- it is judged anew, and changes the status no more.
    v_late boolean;
    v_given text;
    v_standing text;
    v_positions integer[];
    v_born text[];
    v_coming text[];
    v_status text;
    v_wake_at timestamptz;
    v_dropped integer;
begin
    perform durabletask.check_isolation();
    perform durabletask.be_durable();

    v_wanted := array(
        select unnest(nos)
        union
        select p.process_no from durabletask.process p where p.process_id = any (send_ids)
        union
        select p.parent_incarnation
        from unnest(nos, endings) as n (process_no, ending)
        join durabletask.process p on p.process_no = n.process_no
        where n.ending is not null and p.parent_incarnation is not null
    );
    if skip_busy then
        v_locked := array(
            select p.process_no from durabletask.process p
            where p.process_no = any (v_wanted)
            order by p.process_no + 0 for update skip locked);
    else
        v_locked := array(
            select p.process_no from durabletask.process p
            where p.process_no = any (v_wanted)
            order by p.process_no + 0 for update);
    end if;
    v_host_no := durabletask.hold_fence(host_id);
    v_now := durabletask.clock();
    if durabletask.is_rewound(
        v_host_no, mark_no, mark_epoch, mark_seq, mark_kind, mark_key, mark_index
    ) then
        raise exception 'the database does not hold what it acknowledged to host %', host_id
            using errcode = 'DT002';
    end if;

    <<units>>
    for v_at in 1 .. cardinality(nos) loop
        v_point := v_point + point_counts[v_at];
        v_event := v_event + event_counts[v_at];
        v_spawn := v_spawn + spawn_counts[v_at];
        v_send := v_send + send_counts[v_at];
        unit := v_at;
        refused := null; about := null;
        kind := null; key := null; index := null; form := null; payload := null;
        replaces := null; epoch := null; seq := null; at := null;
        v_held := false;

        -- --- judge ---

        select p.* into v_process from durabletask.process p
        where p.process_no = nos[v_at] and p.process_id is not distinct from ids[v_at];
        v_late := seqs[v_at] <= v_process.seq and spawn_counts[v_at] + send_counts[v_at] > 0
            and not exists (
                select from unnest(
                    point_keys[v_point - point_counts[v_at] + 1:v_point],
                    point_indexes[v_point - point_counts[v_at] + 1:v_point],
                    point_kinds[v_point - point_counts[v_at] + 1:v_point]
                ) as t (key, index, kind)
                join durabletask.checkpoint c
                    on c.process_no = v_process.process_no and c.key = t.key
                    and c.index = t.index and c.kind = t.kind);
        v_given := case when not v_late then statuses[v_at] end;
        refused := case
            when v_process.process_no is null or v_process.epoch <> epochs[v_at] then
                'process belongs to another host, epoch or incarnation'
            when v_process.process_no = any (v_busy)
                or not v_process.process_no = any (v_locked) then 'busy'
            when seqs[v_at] <= v_process.seq and not v_late then 'again'
            when v_process.owner_no is distinct from v_host_no then case
                when durabletask.is_finished(v_process.status) then 'process has finished'
                else 'process belongs to another host, epoch or incarnation'
            end
            when durabletask.is_finished(v_process.status) then case
                -- A step that was recorded before the end changed no row.
                when exists (
                    select from durabletask.checkpoint c
                    where c.process_no = v_process.process_no and c.epoch = epochs[v_at]
                        and c.seq = seqs[v_at]) then 'again'
                when leaves[v_at] is null or endings[v_at] is not null
                    or point_counts[v_at] + spawn_counts[v_at] + send_counts[v_at] > 0 then
                    'process has finished'
                else 'let go'
            end
        end;
        if refused = 'let go' then
            update durabletask.process p
            set seq = seqs[v_at], updated_at = v_now, owner_no = null, news = false
            where p.process_no = v_process.process_no;
            continue;
        end if;
        if refused is not null then
            if refused = 'busy' then
                v_busy := v_busy || nos[v_at];
            end if;
            return next;
            if refused <> 'again' then
                continue;
            end if;
        end if;
        for v_part in v_point - point_counts[v_at] + 1 .. v_point loop
            if point_first_wins[v_part] then
                refused := null;
                select c.kind, c.key, c.index, c.form, c.payload, c.replaces, c.epoch, c.seq, c.at
                into kind, key, index, form, payload, replaces, epoch, seq, at
                from durabletask.checkpoint c
                where c.process_no = v_process.process_no and c.key = point_keys[v_part]
                    and c.index = point_indexes[v_part] and c.kind = point_kinds[v_part]
                    and (c.epoch <> epochs[v_at] or c.seq <> seqs[v_at]);
                if found then
                    v_held := true;
                    return next;
                end if;
            end if;
        end loop;
        if v_held or (seqs[v_at] <= v_process.seq and not v_late)
            or durabletask.is_finished(v_process.status)
        then
            continue;
        end if;

        v_positions := event_positions[v_event - event_counts[v_at] + 1:v_event];
        if event_counts[v_at] > 0 and event_counts[v_at] > (
            select count(*) from durabletask.event e
            where e.process_no = v_process.process_no and e.position = any (v_positions)
                and not e.consumed
        ) then
            refused := 'event was consumed already or never existed';
            return next;
            continue;
        end if;

        -- A suspension stands in front of the status that it covers.
        v_standing := coalesce(v_process.status_after, v_process.status);
        v_status := case when restarts[v_at] is null then v_given else 'running' end;
        if v_given is not null and not (
            v_given in ('running', 'waiting', 'compensating')
            and durabletask.may_follow(v_standing, v_given)
        ) or restarts[v_at] is not null and not durabletask.may_follow(
            coalesce(v_given, v_standing), 'running'
        ) or endings[v_at] is not null and not (
            v_process.status <> 'suspended'
            and endings[v_at] in ('completed', 'failed', 'cancelled', 'terminated', 'quarantined')
            and durabletask.may_follow(coalesce(v_status, v_standing), endings[v_at])
        ) then
            refused := 'this status cannot follow the recorded one';
            return next;
            continue;
        end if;

        v_born := '{}';
        for v_part in v_spawn - spawn_counts[v_at] + 1 .. v_spawn loop
            if spawn_ids[v_part] = any (v_born) or exists (
                select from durabletask.process p
                where p.process_id = spawn_ids[v_part] and (
                    p.parent_id is distinct from spawn_parent_ids[v_part]
                    or p.parent_incarnation is distinct from spawn_parent_incarnations[v_part]
                    or p.parent_generation is distinct from spawn_parent_generations[v_part]
                    or p.parent_key is distinct from spawn_parent_keys[v_part])
            ) then
                refused := 'the child''s id belongs to a process that this call did not spawn';
                about := spawn_ids[v_part];
                return next;
                continue units;
            end if;
            v_born := v_born || spawn_ids[v_part];
        end loop;

        v_coming := '{}';
        for v_part in v_send - send_counts[v_at] + 1 .. v_send loop
            select p.process_no, p.status, p.unconsumed,
                exists (
                    select from durabletask.event e
                    where e.process_no = p.process_no and e.event_id = send_event_ids[v_part]
                ) as is_known
            into v_other
            from durabletask.process p where p.process_id = send_ids[v_part];
            if v_other.is_known is not true then
                v_coming := v_coming || send_ids[v_part];
            end if;
            refused := case
                when v_other.process_no is null and not send_ids[v_part] = any (v_born) then
                    'unknown process'
                when not v_other.process_no = any (v_locked) then 'busy'
                when v_other.is_known then null
                when durabletask.is_finished(v_other.status) then 'process has finished'
                when coalesce(v_other.unconsumed, 0)
                    + cardinality(array_positions(v_coming, send_ids[v_part]))
                    > mailbox_maxes[v_at] then 'mailbox is full'
            end;
            if refused is not null then
                about := send_ids[v_part];
                exit;
            end if;
        end loop;
        if refused is null and durabletask.is_finished(endings[v_at])
            and v_process.parent_incarnation is not null
            and not v_process.parent_incarnation = any (v_locked)
            and exists (
                select from durabletask.process p
                where p.process_no = v_process.parent_incarnation)
        then
            refused := 'busy';
        end if;
        if refused is not null then
            if refused = 'busy' then
                v_busy := v_busy || nos[v_at];
            end if;
            return next;
            continue;
        end if;

        -- --- write ---

        for v_part in v_spawn - spawn_counts[v_at] + 1 .. v_spawn loop
            insert into durabletask.process as p (
                process_id, name, status, claimable_at, created_at, updated_at, start_at,
                deadline_at, creation_id, input_digest, tags, parent_id, parent_incarnation,
                parent_generation, parent_key, context, input, cancel_reason)
            values (
                spawn_ids[v_part], spawn_names[v_part], 'running',
                greatest(spawn_start_ats[v_part], v_now), v_now, v_now, spawn_start_ats[v_part],
                spawn_deadline_ats[v_part], spawn_creation_ids[v_part], spawn_digests[v_part],
                spawn_tags[v_part]::jsonb, spawn_parent_ids[v_part],
                spawn_parent_incarnations[v_part], spawn_parent_generations[v_part],
                spawn_parent_keys[v_part], spawn_contexts[v_part], spawn_inputs[v_part],
                case when not v_process.cancel_met and not meets[v_at]
                    then v_process.cancel_reason end)
            on conflict (process_id) do nothing
            returning p.process_no into v_other;
            if found then
                v_locked := v_locked || v_other.process_no;
                continue;
            end if;
            select p.process_no, p.status, p.parent_incarnation, p.parent_key into v_other
            from durabletask.process p where p.process_id = spawn_ids[v_part];
            -- It came into being behind the look above, and may be anybody's.
            if v_other.parent_incarnation is distinct from spawn_parent_incarnations[v_part]
                or v_other.parent_key is distinct from spawn_parent_keys[v_part]
            then
                raise exception 'process % was created meanwhile', spawn_ids[v_part]
                    using errcode = 'lock_not_available';
            end if;
            perform durabletask.tell_parent(
                v_other.process_no, format('+%s.%s', epochs[v_at], seqs[v_at]), v_now);
        end loop;

        for v_part in v_send - send_counts[v_at] + 1 .. v_send loop
            select p.process_no into v_other
            from durabletask.process p where p.process_id = send_ids[v_part];
            if not exists (
                select from durabletask.event e
                where e.process_no = v_other.process_no and e.event_id = send_event_ids[v_part]
            ) then
                perform durabletask.put_event(v_other.process_no, send_event_ids[v_part],
                    send_names[v_part], send_payloads[v_part], v_now);
            end if;
        end loop;

        for v_part in v_point - point_counts[v_at] + 1 .. v_point loop
            if point_replaces[v_part] then
                insert into durabletask.checkpoint as c
                    (process_no, at, epoch, seq, index, ordinal, replaces, kind, key, form, payload)
                values (
                    v_process.process_no, v_now, epochs[v_at], seqs[v_at], point_indexes[v_part],
                    v_part - v_point + point_counts[v_at], true, point_kinds[v_part],
                    point_keys[v_part], point_forms[v_part], point_payloads[v_part])
                on conflict (process_no, key, index, kind) do update
                set at = excluded.at, epoch = excluded.epoch, seq = excluded.seq,
                    ordinal = excluded.ordinal, replaces = true, form = excluded.form,
                    payload = excluded.payload;
            else
                insert into durabletask.checkpoint
                    (process_no, at, epoch, seq, index, ordinal, replaces, kind, key, form, payload)
                values (
                    v_process.process_no, v_now, epochs[v_at], seqs[v_at], point_indexes[v_part],
                    v_part - v_point + point_counts[v_at], false, point_kinds[v_part],
                    point_keys[v_part], point_forms[v_part], point_payloads[v_part]);
            end if;
        end loop;

        if event_counts[v_at] > 0 then
            update durabletask.event e
            set consumed = true
            where e.process_no = v_process.process_no and e.position = any (v_positions);
        end if;

        v_dropped := 0;
        if restarts[v_at] is not null then
            delete from durabletask.checkpoint c where c.process_no = v_process.process_no;
            delete from durabletask.forgotten g where g.process_no = v_process.process_no;
            delete from durabletask.event e
            where e.process_no = v_process.process_no and not e.consumed
                and starts_with(e.name, 'durabletask:child:');
            get diagnostics v_dropped = row_count;
            delete from durabletask.event e
            where e.process_no = v_process.process_no and e.consumed and e.position <= (
                select k.position from durabletask.event k
                where k.process_no = v_process.process_no and k.consumed
                order by k.position desc offset v_events_kept limit 1);
        end if;

        v_wake_at := case
            when endings[v_at] is not null or restarts[v_at] is not null then null
            when v_given is not null then wake_ats[v_at]
            else v_process.wake_at
        end;
        v_status := coalesce(v_status, v_standing);
        update durabletask.process p
        set seq = greatest(p.seq, seqs[v_at]),
            updated_at = v_now,
            deaths = 0,
            status = case
                when endings[v_at] is not null then endings[v_at]
                when p.status = 'suspended' then p.status
                else v_status
            end,
            status_after = case when p.status = 'suspended' then v_status end,
            wake_at = v_wake_at,
            ending_form = coalesce(ending_forms[v_at], p.ending_form),
            ending_payload = case
                when endings[v_at] is null then p.ending_payload else ending_payloads[v_at] end,
            finished_at = case when durabletask.is_finished(endings[v_at]) then v_now end,
            owner_no = case
                when endings[v_at] is null and leaves[v_at] is null then p.owner_no end,
            -- News that the host has not heard must not sleep with the process.
            parked = endings[v_at] is null and leaves[v_at] is not null
                and leaves[v_at] = 'parked' and not p.news,
            claimable_at = case
                when endings[v_at] is null and leaves[v_at] is not null
                    and p.status <> 'suspended'
                then case
                    when leaves[v_at] = 'parked' and not p.news then v_wake_at
                    else v_now
                end
            end,
            news = p.news and endings[v_at] is null and leaves[v_at] is null,
            unconsumed = p.unconsumed - event_counts[v_at] - v_dropped,
            generation = p.generation + case when restarts[v_at] is null then 0 else 1 end,
            input = coalesce(restarts[v_at], p.input),
            cancel_met = case
                when restarts[v_at] is not null then false
                else p.cancel_met or (meets[v_at] and p.cancel_reason is not null)
            end,
            cancel_reason = case
                when restarts[v_at] is null or not (p.cancel_met or meets[v_at])
                then p.cancel_reason
            end
        where p.process_no = v_process.process_no;

        if durabletask.is_finished(endings[v_at]) and v_process.parent_id is not null then
            about := durabletask.tell_parent(v_process.process_no, '', v_now);
            if about is not null then
                refused := 'told';
                return next;
            end if;
        end if;
    end loop;
end
$$;

insert into durabletask.migration (version, name, applied_at) values (8, 'in_turn', clock_timestamp());

-- Lists: a page in order of creation, in milliseconds whatever is asked and however much there is.
--
-- Each way reads an index and stops. Parent, name and phase are found in the order of the page. Ids,
-- tags and the time of the end are looked for among the next ones in that order, which is where
-- those that are frequent are, and then by indexes of their own, where those that are rare are few.
-- Only what is neither is looked for among all. The ways are chosen by what they find and not by
-- statistics, which know nothing of what lies together.

-- Return the processes behind one in the order and before another that match, the first of them.
create function durabletask.list_in_order(
    after_at timestamptz, after_id text, until_at timestamptz, until_id text,
    phases text[], of_name text, of_parent text,
    statuses text[], prefix text, tag_set jsonb,
    finished_from timestamptz, finished_until timestamptz, count_max integer
) returns setof bigint
language plpgsql stable
set plan_cache_mode = 'force_generic_plan'
set enable_seqscan = off
set enable_bitmapscan = off
set enable_hashjoin = off
set enable_mergejoin = off as $$
begin
    if of_parent is not null then
        return query
        select p.process_no from durabletask.process p
        where p.parent_id = of_parent
            and (p.created_at, p.process_id) > (after_at, after_id)
            and (p.created_at, p.process_id) < (until_at, until_id)
            and (of_name is null or p.name = of_name)
            and p.phase = any (phases)
            and (statuses is null or p.status = any (statuses))
            and (prefix is null or starts_with(p.process_id, prefix))
            and (tag_set is null or p.tags @> tag_set)
            and (finished_from is null or p.finished_at >= finished_from)
            and (finished_until is null or p.finished_at < finished_until)
        order by p.created_at, p.process_id
        limit count_max;
    elsif of_name is not null then
        return query
        select m.process_no
        from unnest(phases) as f (phase)
        cross join lateral (
            select p.process_no, p.created_at, p.process_id from durabletask.process p
            where p.name = of_name and p.phase = f.phase
                and (p.created_at, p.process_id) > (after_at, after_id)
                and (p.created_at, p.process_id) < (until_at, until_id)
                and (statuses is null or p.status = any (statuses))
                and (prefix is null or starts_with(p.process_id, prefix))
                and (tag_set is null or p.tags @> tag_set)
                and (finished_from is null or p.finished_at >= finished_from)
                and (finished_until is null or p.finished_at < finished_until)
            order by p.created_at, p.process_id
            limit count_max
        ) m
        order by m.created_at, m.process_id
        limit count_max;
    else
        return query
        select m.process_no
        from unnest(phases) as f (phase)
        cross join lateral (
            select p.process_no, p.created_at, p.process_id from durabletask.process p
            where p.phase = f.phase
                and (p.created_at, p.process_id) > (after_at, after_id)
                and (p.created_at, p.process_id) < (until_at, until_id)
                and (statuses is null or p.status = any (statuses))
                and (prefix is null or starts_with(p.process_id, prefix))
                and (tag_set is null or p.tags @> tag_set)
                and (finished_from is null or p.finished_at >= finished_from)
                and (finished_until is null or p.finished_at < finished_until)
            order by p.created_at, p.process_id
            limit count_max
        ) m
        order by m.created_at, m.process_id
        limit count_max;
    end if;
end
$$;

-- Return where the next `look_max` processes end in the order, of the parent or of the phase where
-- that comes first; null where there are no more than that.
create function durabletask.list_horizon(
    after_at timestamptz, after_id text, inout until_at timestamptz, inout until_id text,
    phases text[], of_name text, of_parent text, look_max integer
)
language plpgsql stable
set plan_cache_mode = 'force_generic_plan'
set enable_seqscan = off
set enable_bitmapscan = off
set enable_hashjoin = off
set enable_mergejoin = off as $$
begin
    if of_parent is not null then
        select p.created_at, p.process_id into until_at, until_id
        from durabletask.process p
        where p.parent_id = of_parent
            and (p.created_at, p.process_id) > (after_at, after_id)
            and (p.created_at, p.process_id) < (until_at, until_id)
        order by p.created_at, p.process_id
        offset look_max limit 1;
    elsif of_name is not null then
        select m.created_at, m.process_id into until_at, until_id
        from unnest(phases) as f (phase)
        cross join lateral (
            select p.created_at, p.process_id from durabletask.process p
            where p.name = of_name and p.phase = f.phase
                and (p.created_at, p.process_id) > (after_at, after_id)
                and (p.created_at, p.process_id) < (until_at, until_id)
            order by p.created_at, p.process_id
            offset look_max limit 1
        ) m
        order by m.created_at, m.process_id
        limit 1;
    else
        select m.created_at, m.process_id into until_at, until_id
        from unnest(phases) as f (phase)
        cross join lateral (
            select p.created_at, p.process_id from durabletask.process p
            where p.phase = f.phase
                and (p.created_at, p.process_id) > (after_at, after_id)
                and (p.created_at, p.process_id) < (until_at, until_id)
            order by p.created_at, p.process_id
            offset look_max limit 1
        ) m
        order by m.created_at, m.process_id
        limit 1;
    end if;
end
$$;

-- Return up to `look_max` processes that match in their ids, else in the time of their end, else in
-- their tags, whichever is asked for and leads to fewer than that; else return null.
create function durabletask.list_few(
    prefix text, tag_set jsonb, finished_from timestamptz, finished_until timestamptz,
    look_max integer
) returns bigint[]
language plpgsql stable
set plan_cache_mode = 'force_generic_plan'
set enable_seqscan = off as $$
declare
    v_found bigint[];
begin
    if prefix is not null then
        v_found := array(
            select p.process_no from durabletask.process p
            -- No id is so long that it could come behind the bound.
            where p.process_id >= prefix and p.process_id < prefix || repeat(chr(1114111), 1000)
            limit look_max);
        if cardinality(v_found) < look_max then
            return v_found;
        end if;
    end if;
    if finished_from is not null or finished_until is not null then
        v_found := array(
            select p.process_no from durabletask.process p
            where p.finished_at >= coalesce(finished_from, '-infinity')
                and p.finished_at < coalesce(finished_until, 'infinity')
            limit look_max);
        if cardinality(v_found) < look_max then
            return v_found;
        end if;
    end if;
    if tag_set is not null then
        v_found := array(
            select p.process_no from durabletask.process p
            where p.tags @> tag_set and p.tags is not null
            limit look_max);
        if cardinality(v_found) < look_max then
            return v_found;
        end if;
    end if;
    return null;
end
$$;

-- Return the numbers of the processes of a page, in order.
create function durabletask.list_processes(
    statuses text[], of_name text, prefix text, tag_set jsonb,
    created_from timestamptz, created_until timestamptz,
    finished_from timestamptz, finished_until timestamptz,
    of_parent text, after_at timestamptz, after_id text, count_max integer
) returns setof bigint
language plpgsql stable
set plan_cache_mode = 'force_generic_plan'
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off as $$
declare
    v_look_max constant integer := 1000;
    v_few_max constant integer := 5000;
    v_phases text[];
    v_until_at timestamptz := coalesce(created_until, 'infinity');
    v_until_id text := '';
    v_near_at timestamptz;
    v_near_id text;
    v_seeks boolean;
    v_found bigint[];
begin
    prefix := nullif(prefix, '');
    v_phases := array(
        select distinct durabletask.phase_of(s.status)
        from unnest(coalesce(statuses, array[
            'running', 'suspended', 'compensating', 'completed', 'failed', 'cancelled',
            'terminated', 'quarantined'])) as s (status)
        where finished_from is null and finished_until is null
            or durabletask.is_finished(s.status));
    if not 'live' = any (v_phases) or statuses @> array['running', 'waiting'] then
        statuses := null;  -- the phases say it all
    end if;
    if after_at is null or after_at < created_from then
        after_at := coalesce(created_from, '-infinity');
        after_id := '';  -- before every id
    end if;
    v_seeks := prefix is not null or tag_set is not null or finished_from is not null
        or finished_until is not null;
    if v_seeks or statuses is not null
        or (of_parent is not null and (of_name is not null or cardinality(v_phases) < 8))
    then
        select h.until_at, h.until_id into v_near_at, v_near_id
        from durabletask.list_horizon(after_at, after_id, v_until_at, v_until_id, v_phases, of_name,
            of_parent, v_look_max) h;
    end if;
    v_found := array(
        select durabletask.list_in_order(
            after_at, after_id, coalesce(v_near_at, v_until_at), coalesce(v_near_id, v_until_id),
            v_phases, of_name, of_parent, statuses, prefix, tag_set, finished_from, finished_until,
            count_max));
    if v_near_at is null or cardinality(v_found) >= count_max then
        return query select unnest(v_found);
        return;
    end if;
    -- Where a tenth of a page is near, the rest is not far.
    if v_seeks and 10 * cardinality(v_found) < count_max then
        v_found := durabletask.list_few(prefix, tag_set, finished_from, finished_until, v_few_max);
    else
        v_found := null;
    end if;
    if v_found is null then
        return query select durabletask.list_in_order(
            after_at, after_id, v_until_at, v_until_id, v_phases, of_name, of_parent, statuses,
            prefix, tag_set, finished_from, finished_until, count_max);
    else
        return query
        select p.process_no from durabletask.process p
        where p.process_no = any (v_found)
            and (p.created_at, p.process_id) > (after_at, after_id)
            and (p.created_at, p.process_id) < (v_until_at, v_until_id)
            and p.phase = any (v_phases)
            and (of_name is null or p.name = of_name)
            and (of_parent is null or p.parent_id is not distinct from of_parent)
            and (statuses is null or p.status = any (statuses))
            and (prefix is null or starts_with(p.process_id, prefix))
            and (tag_set is null or p.tags @> tag_set)
            and (finished_from is null or p.finished_at >= finished_from)
            and (finished_until is null or p.finished_at < finished_until)
        order by p.created_at, p.process_id
        limit count_max;
    end if;
end
$$;

insert into durabletask.migration (version, name, applied_at) values (9, 'list', clock_timestamp());
