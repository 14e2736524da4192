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
