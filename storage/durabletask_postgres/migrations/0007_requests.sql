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
