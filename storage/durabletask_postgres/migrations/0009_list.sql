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
