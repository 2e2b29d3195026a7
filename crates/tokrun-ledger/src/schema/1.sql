-- tokrun ledger, version 1.
-- Amounts are integer micro-credits, times are microseconds since 1970 UTC, ids in text are opaque.
-- Names and memos sit apart from what is hashed: they can be deleted without breaking the chain.

CREATE TABLE meta (
    id         INTEGER PRIMARY KEY CHECK (id = 1),
    ledger_id  TEXT    NOT NULL,
    salt       BLOB    NOT NULL,                                     -- of idempotency keys
    created_us INTEGER NOT NULL,
    service    INTEGER NOT NULL DEFAULT 0 CHECK (service IN (0, 1)), -- 1: nothing is created by itself
    bad        TEXT                                                  -- why nothing may be spent
) STRICT;

-- `issued`, `spent`, `expired`, and one per wallet. Over all of them every entry sums to zero.
CREATE TABLE account (
    seq INTEGER PRIMARY KEY,
    id  TEXT    NOT NULL UNIQUE
) STRICT;
INSERT INTO account (seq, id) VALUES (1, 'issued'), (2, 'spent'), (3, 'expired');

CREATE TABLE wallet (
    seq        INTEGER PRIMARY KEY REFERENCES account (seq),
    created_us INTEGER NOT NULL,
    frozen     INTEGER NOT NULL DEFAULT 0 CHECK (frozen IN (0, 1))
) STRICT;

CREATE TABLE wallet_name (
    wallet INTEGER PRIMARY KEY REFERENCES wallet (seq),
    name   TEXT    NOT NULL UNIQUE
) STRICT;

-- `remaining` is net of what is in flight. A grant that is not active yet has no entry and nothing remaining.
CREATE TABLE allowance (
    seq          INTEGER PRIMARY KEY,
    id           TEXT    NOT NULL UNIQUE,
    wallet       INTEGER NOT NULL REFERENCES wallet (seq),
    kind         TEXT    NOT NULL,
    amount       INTEGER NOT NULL CHECK (amount > 0),
    priority     INTEGER NOT NULL,
    effective_us INTEGER NOT NULL,
    expires_us   INTEGER CHECK (expires_us > effective_us),
    created_us   INTEGER NOT NULL,
    active       INTEGER NOT NULL CHECK (active IN (0, 1)),
    remaining    INTEGER NOT NULL CHECK (remaining BETWEEN 0 AND amount * active)
) STRICT;
CREATE INDEX allowance_wallet ON allowance (wallet);

CREATE TABLE memo (
    allowance INTEGER PRIMARY KEY REFERENCES allowance (seq),
    salt      BLOB    NOT NULL,
    text      TEXT    NOT NULL
) STRICT;

-- A caller's key, salted and hashed, and what came of it.
CREATE TABLE idempotency (
    key       BLOB PRIMARY KEY,
    arguments BLOB NOT NULL, -- hash of what it was used with
    subject   TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- The chain. `hash` covers the entry, its postings and `prev_hash`; src/chain.rs has the encoding.
CREATE TABLE entry (
    id              INTEGER PRIMARY KEY,
    kind            TEXT    NOT NULL,
    idempotency_key TEXT    NOT NULL UNIQUE,
    created_us      INTEGER NOT NULL,
    effective_us    INTEGER NOT NULL,
    request_id      TEXT,
    memo_digest     BLOB,
    subject_digest  BLOB,            -- of the grant's terms, or of the settled request's row in the log
    prev_hash       BLOB    NOT NULL CHECK (length(prev_hash) = 32),
    hash            BLOB    NOT NULL CHECK (length(hash) = 32)
) STRICT;

CREATE TABLE posting (
    entry     INTEGER NOT NULL REFERENCES entry (id),
    line      INTEGER NOT NULL,
    account   INTEGER NOT NULL REFERENCES account (seq),
    allowance INTEGER REFERENCES allowance (seq), -- for every wallet's account
    amount    INTEGER NOT NULL CHECK (amount <> 0),
    PRIMARY KEY (entry, line)
) STRICT, WITHOUT ROWID;
CREATE INDEX posting_account ON posting (account, entry);

CREATE TABLE head (
    id    INTEGER PRIMARY KEY CHECK (id = 1),
    entry INTEGER NOT NULL,
    count INTEGER NOT NULL,
    hash  BLOB    NOT NULL CHECK (length(hash) = 32)
) STRICT;
INSERT INTO head (id, entry, count, hash) VALUES (1, 0, 0, zeroblob(32));

-- What is running. Rows are gone once the request is settled.
CREATE TABLE open_request (
    seq           INTEGER PRIMARY KEY,
    id            TEXT    NOT NULL UNIQUE,
    owner         TEXT    NOT NULL, -- the process: it keeps a lock on run/<owner>.lock for life
    wallet        INTEGER NOT NULL REFERENCES wallet (seq),
    prompt_micro  INTEGER NOT NULL CHECK (prompt_micro >= cached_micro),
    cached_micro  INTEGER NOT NULL CHECK (cached_micro >= 0),
    output_micro  INTEGER NOT NULL CHECK (output_micro >= 0),
    prompt_tokens INTEGER NOT NULL CHECK (prompt_tokens >= 0),
    model         TEXT    NOT NULL,
    device        TEXT    NOT NULL,
    project       TEXT,
    tags          TEXT    NOT NULL,
    started_us    INTEGER NOT NULL
) STRICT;

-- Apart from open_request, because it changes with each commit.
CREATE TABLE progress (
    request       INTEGER PRIMARY KEY REFERENCES open_request (seq),
    running       INTEGER NOT NULL DEFAULT 0 CHECK (running IN (0, 1)), -- 1: the prompt is debited
    cached_tokens INTEGER NOT NULL DEFAULT 0 CHECK (cached_tokens >= 0),
    output_tokens INTEGER NOT NULL DEFAULT 0 CHECK (output_tokens >= 0)
) STRICT;

CREATE TABLE in_flight (
    request   INTEGER NOT NULL REFERENCES open_request (seq),
    allowance INTEGER NOT NULL REFERENCES allowance (seq),
    held      INTEGER NOT NULL CHECK (held >= 0),
    debited   INTEGER NOT NULL CHECK (debited >= 0),
    PRIMARY KEY (request, allowance)
) STRICT, WITHOUT ROWID;
CREATE INDEX in_flight_allowance ON in_flight (allowance);

-- One row per settled request. Times are NULL where the process that knew them died.
CREATE TABLE request_log (
    seq              INTEGER PRIMARY KEY,
    id               TEXT    NOT NULL UNIQUE,
    entry            INTEGER REFERENCES entry (id) DEFERRABLE INITIALLY DEFERRED, -- NULL: no token was counted
    wallet           INTEGER NOT NULL REFERENCES wallet (seq),
    project          TEXT,
    tags             TEXT    NOT NULL,
    model            TEXT    NOT NULL,
    device           TEXT    NOT NULL,
    prompt_micro     INTEGER NOT NULL,
    cached_micro     INTEGER NOT NULL,
    output_micro     INTEGER NOT NULL,
    prompt_tokens    INTEGER NOT NULL CHECK (prompt_tokens >= cached_tokens),
    cached_tokens    INTEGER NOT NULL CHECK (cached_tokens >= 0),
    output_tokens    INTEGER NOT NULL CHECK (output_tokens >= 0),
    reasoning_tokens INTEGER NOT NULL CHECK (reasoning_tokens BETWEEN 0 AND output_tokens),
    debited          INTEGER NOT NULL CHECK (debited >= 0),
    queue_us         INTEGER,
    ttft_us          INTEGER,
    decode_us        INTEGER,
    total_us         INTEGER,
    itl              BLOB    NOT NULL, -- HdrHistogram V2, microseconds
    energy_uj        INTEGER,
    finish_reason    TEXT    NOT NULL,
    started_us       INTEGER NOT NULL,
    ended_us         INTEGER NOT NULL
) STRICT;
CREATE INDEX request_log_ended ON request_log (ended_us);

-- What was written stays as it was written.
CREATE TRIGGER entry_is_final_update BEFORE UPDATE ON entry
BEGIN SELECT RAISE(ABORT, 'entries are immutable: write a correcting one'); END;
CREATE TRIGGER entry_is_final_delete BEFORE DELETE ON entry
BEGIN SELECT RAISE(ABORT, 'entries are immutable: write a correcting one'); END;
CREATE TRIGGER posting_is_final_update BEFORE UPDATE ON posting
BEGIN SELECT RAISE(ABORT, 'postings are immutable: write a correcting entry'); END;
CREATE TRIGGER posting_is_final_delete BEFORE DELETE ON posting
BEGIN SELECT RAISE(ABORT, 'postings are immutable: write a correcting entry'); END;
CREATE TRIGGER request_log_is_final_update BEFORE UPDATE ON request_log
BEGIN SELECT RAISE(ABORT, 'the request log is immutable'); END;
CREATE TRIGGER request_log_is_final_delete BEFORE DELETE ON request_log
BEGIN SELECT RAISE(ABORT, 'the request log is immutable'); END;
CREATE TRIGGER head_stays BEFORE DELETE ON head
BEGIN SELECT RAISE(ABORT, 'the head of the chain stays'); END;
