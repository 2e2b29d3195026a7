-- tokrun ledger, version 3: grants that come again, what of them rolls over, and grants made void.

-- A grant on every `on_day` of a calendar, good until the next one. What of it was given is in `allowance`.
CREATE TABLE recurrence (
    seq        INTEGER PRIMARY KEY,
    id         TEXT    NOT NULL UNIQUE,
    wallet     INTEGER NOT NULL REFERENCES wallet (seq),
    amount     INTEGER NOT NULL CHECK (amount > 0),
    priority   INTEGER NOT NULL,
    every      TEXT    NOT NULL CHECK (every IN ('day', 'week', 'month')),
    on_day     INTEGER NOT NULL CHECK (on_day BETWEEN 1 AND 31), -- of the month, or of the week, Monday first
    zone       TEXT    NOT NULL,
    rollover   INTEGER NOT NULL CHECK (rollover >= 0),           -- how much of what is left goes on into the next
    created_us INTEGER NOT NULL,
    next_us    INTEGER NOT NULL,
    until_us   INTEGER NOT NULL,                                 -- none begins at or after it
    given      INTEGER NOT NULL DEFAULT 0 CHECK (given >= 0),
    memo       TEXT
) STRICT;
CREATE INDEX recurrence_wallet ON recurrence (wallet);

ALTER TABLE allowance ADD COLUMN recurrence INTEGER REFERENCES recurrence (seq);
ALTER TABLE allowance ADD COLUMN voided_us INTEGER;
