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
