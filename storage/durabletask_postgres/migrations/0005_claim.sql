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
