-- tokrun ledger, version 7: access keys, who acted, asking for an allowance, delegated wallets, and closed ones.

-- Who had something recorded, where a service acted for somebody: the opaque id of their key.
ALTER TABLE record ADD COLUMN actor TEXT;

-- Whoever knows a key's secret may act for its wallet, within its scope.
CREATE TABLE access_key (
    seq        INTEGER PRIMARY KEY,
    id         TEXT    NOT NULL UNIQUE,
    entry      INTEGER NOT NULL REFERENCES record (entry) DEFERRABLE INITIALLY DEFERRED,
    wallet     INTEGER NOT NULL REFERENCES wallet (seq),
    name       TEXT    NOT NULL UNIQUE, -- for ever, because the log names it
    role       TEXT    NOT NULL CHECK (role IN ('member', 'auditor', 'finance', 'admin')),
    models     TEXT,                    -- NULL: all
    project    TEXT,                    -- NULL: any, or none
    created_us INTEGER NOT NULL,
    expires_us INTEGER,
    revoked_us INTEGER
) STRICT;
CREATE INDEX access_key_wallet ON access_key (wallet);

-- Of each secret its SHA-256 alone: it is 256 random bits, which nobody finds again.
CREATE TABLE key_secret (
    digest     BLOB    PRIMARY KEY CHECK (length(digest) = 32),
    access_key INTEGER NOT NULL REFERENCES access_key (seq),
    until_us   INTEGER -- once another one was issued
) STRICT, WITHOUT ROWID;
CREATE INDEX key_secret_key ON key_secret (access_key);

-- What somebody wrote, by the salted digest that is recorded. A text can be deleted without breaking the chain.
CREATE TABLE note (
    digest BLOB PRIMARY KEY CHECK (length(digest) = 32),
    salt   BLOB NOT NULL,
    text   TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- Somebody asked for an allowance.
CREATE TABLE ask (
    seq         INTEGER PRIMARY KEY,
    id          TEXT    NOT NULL UNIQUE,
    entry       INTEGER NOT NULL REFERENCES record (entry) DEFERRABLE INITIALLY DEFERRED,
    wallet      INTEGER NOT NULL REFERENCES wallet (seq),
    amount      INTEGER NOT NULL CHECK (amount > 0),
    reason      BLOB,    -- digest of a note
    created_us  INTEGER NOT NULL,
    state       TEXT    NOT NULL CHECK (state IN ('open', 'approved', 'denied')),
    answered_us INTEGER,
    answer      BLOB,    -- digest of a note
    given       INTEGER, -- how much
    grants      TEXT,    -- the ids of what was given, as JSON
    CHECK ((state = 'open') = (answered_us IS NULL) AND (state = 'approved') = (given IS NOT NULL))
) STRICT;
CREATE INDEX ask_wallet ON ask (wallet);

-- A wallet that another one filled for a program, until it is revoked or expires.
CREATE TABLE delegation (
    seq        INTEGER PRIMARY KEY,
    id         TEXT    NOT NULL UNIQUE,
    entry      INTEGER NOT NULL REFERENCES record (entry) DEFERRABLE INITIALLY DEFERRED,
    wallet     INTEGER NOT NULL UNIQUE REFERENCES wallet (seq),
    giver      INTEGER NOT NULL REFERENCES wallet (seq),
    amount     INTEGER NOT NULL CHECK (amount > 0),
    created_us INTEGER NOT NULL,
    expires_us INTEGER CHECK (expires_us > created_us)
) STRICT;
CREATE INDEX delegation_giver ON delegation (giver);
CREATE INDEX delegation_expires ON delegation (expires_us) WHERE expires_us IS NOT NULL;

-- A wallet that spends and receives nothing any more, and what becomes of what is left of it, or comes back to it.
CREATE TABLE closure (
    seq       INTEGER PRIMARY KEY,
    id        TEXT    NOT NULL UNIQUE,
    entry     INTEGER NOT NULL REFERENCES record (entry) DEFERRABLE INITIALLY DEFERRED,
    wallet    INTEGER NOT NULL UNIQUE REFERENCES wallet (seq),
    rest      TEXT    NOT NULL CHECK (rest IN ('return', 'heir', 'void')), -- to its givers, to `heir`, or to nobody
    heir      INTEGER REFERENCES wallet (seq),
    closed_us INTEGER NOT NULL,
    CHECK ((rest = 'heir') = (heir IS NOT NULL))
) STRICT;
