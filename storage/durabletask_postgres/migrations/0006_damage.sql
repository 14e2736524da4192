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
