-- tokrun ledger, version 2: wallets form a tree, members draw on their parent's pool, and an overdraft can be agreed.

ALTER TABLE wallet ADD COLUMN kind TEXT NOT NULL DEFAULT 'person'
    CHECK (kind IN ('organisation', 'team', 'person', 'service'));
ALTER TABLE wallet ADD COLUMN parent INTEGER REFERENCES wallet (seq);
ALTER TABLE wallet ADD COLUMN zone TEXT; -- NULL: the parent's, else UTC
CREATE INDEX wallet_parent ON wallet (parent);

-- What a wallet may take from its parent's pool once its own grants are used up, and what it has taken since `from_us`.
CREATE TABLE draw (
    wallet  INTEGER PRIMARY KEY REFERENCES wallet (seq),
    cap     INTEGER CHECK (cap >= 0), -- NULL: all there is
    every   TEXT    NOT NULL CHECK (every IN ('day', 'week', 'month', 'ever')),
    from_us INTEGER NOT NULL,         -- where the period begins that `drawn` counts
    drawn   INTEGER NOT NULL CHECK (drawn >= 0)
) STRICT;

-- An agreed overdraft is an allowance of kind `overdraft`: no entry gives it, `amount - remaining` of it is used, and its
-- entries say the used part as a negative sum.
CREATE UNIQUE INDEX allowance_overdraft ON allowance (wallet) WHERE kind = 'overdraft';
