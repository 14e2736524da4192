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
