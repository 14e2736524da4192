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
