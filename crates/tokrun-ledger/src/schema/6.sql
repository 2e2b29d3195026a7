-- tokrun ledger, version 6: limits beside grants, and the record of what was agreed.

-- What was agreed and moves no money: the body that an entry's `subject_digest` covers. What holds now is in tables of
-- its own, each row of which names the entry that says the same.
CREATE TABLE record (
    entry   INTEGER PRIMARY KEY REFERENCES entry (id),
    kind    TEXT NOT NULL,
    subject TEXT NOT NULL, -- the opaque id of what was agreed
    body    TEXT NOT NULL  -- JSON: opaque ids, names of models and projects, figures
) STRICT;
CREATE INDEX record_subject ON record (subject, entry);

-- So much of `measure` in each `span`, for the requests to which all that is not NULL applies: those of a wallet and of
-- all that are under it, of a key, of a project, of a model.
CREATE TABLE quota (
    seq        INTEGER PRIMARY KEY,
    id         TEXT    NOT NULL UNIQUE,
    entry      INTEGER NOT NULL REFERENCES record (entry) DEFERRABLE INITIALLY DEFERRED,
    wallet     INTEGER REFERENCES wallet (seq),
    access_key TEXT,
    project    TEXT,
    model      TEXT,
    measure    TEXT    NOT NULL CHECK (measure IN ('tokens', 'credits', 'requests')),
    span       TEXT    NOT NULL CHECK (span IN ('request', 'running', 'minute', 'hour', 'day', 'week', 'month')),
    amount     INTEGER NOT NULL CHECK (amount >= 0), -- credits in micro-credits
    warn       TEXT    NOT NULL,                     -- at which percentages, as JSON
    CHECK (coalesce(wallet, access_key, project, model) IS NOT NULL)
) STRICT;

-- What was counted since `from_us`, and the highest percentage that was warned of.
CREATE TABLE quota_use (
    quota   INTEGER PRIMARY KEY REFERENCES quota (seq),
    from_us INTEGER NOT NULL,
    used    INTEGER NOT NULL CHECK (used >= 0),
    warned  INTEGER NOT NULL CHECK (warned >= 0)
) STRICT;

-- The name of the key that a request came with.
ALTER TABLE open_request ADD COLUMN access_key TEXT;
ALTER TABLE request_log ADD COLUMN access_key TEXT;

-- What somebody should hear of.
CREATE TABLE event (
    seq        INTEGER PRIMARY KEY,
    id         TEXT    NOT NULL UNIQUE,
    kind       TEXT    NOT NULL,
    created_us INTEGER NOT NULL,
    body       TEXT    NOT NULL -- JSON
) STRICT;

-- The highest percentage of a period's grant that was warned of.
ALTER TABLE allowance ADD COLUMN warned INTEGER NOT NULL DEFAULT 0 CHECK (warned >= 0);

-- What of it came where; a row is there from the first attempt on.
CREATE TABLE delivery (
    sink     BLOB    NOT NULL, -- its name, salted and hashed: an address may hold a secret
    event    INTEGER NOT NULL REFERENCES event (seq),
    attempts INTEGER NOT NULL CHECK (attempts > 0),
    next_us  INTEGER,        -- when to try again; NULL once it has arrived
    PRIMARY KEY (sink, event)
) STRICT, WITHOUT ROWID;
