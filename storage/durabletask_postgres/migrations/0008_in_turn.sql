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
