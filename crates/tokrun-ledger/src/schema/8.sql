-- tokrun ledger, version 8: the ledger's own prices, reasoning tokens at a price of theirs, what a credit was worth.

-- What a token of a model costs from `from_us` on, before `until_us`, whatever the catalogue says. Of several, the one that
-- began last holds.
CREATE TABLE price (
    seq             INTEGER PRIMARY KEY,
    id              TEXT    NOT NULL UNIQUE,
    entry           INTEGER NOT NULL REFERENCES record (entry) DEFERRABLE INITIALLY DEFERRED,
    model           TEXT    NOT NULL,
    prompt_micro    INTEGER NOT NULL CHECK (prompt_micro >= cached_micro),
    cached_micro    INTEGER NOT NULL CHECK (cached_micro >= 0),
    output_micro    INTEGER NOT NULL CHECK (output_micro >= 0),
    reasoning_micro INTEGER NOT NULL CHECK (reasoning_micro >= 0),
    value_nano      INTEGER CHECK (value_nano >= 0), -- of a credit, in 10^-9 of the currency
    currency        TEXT,
    from_us         INTEGER NOT NULL,
    until_us        INTEGER CHECK (until_us > from_us),
    CHECK ((value_nano IS NULL) = (currency IS NULL)),
    UNIQUE (model, from_us)
) STRICT;

-- Frozen at admission. Without a price of their own, reasoning tokens cost what other output does.
ALTER TABLE open_request ADD COLUMN reasoning_micro INTEGER CHECK (reasoning_micro >= 0);
ALTER TABLE open_request ADD COLUMN value_nano INTEGER CHECK (value_nano >= 0);
ALTER TABLE open_request ADD COLUMN currency TEXT;
ALTER TABLE request_log ADD COLUMN reasoning_micro INTEGER;
ALTER TABLE request_log ADD COLUMN value_nano INTEGER;
ALTER TABLE request_log ADD COLUMN currency TEXT;

-- Those among the output tokens that are debited.
ALTER TABLE progress ADD COLUMN reasoning_tokens INTEGER NOT NULL DEFAULT 0 CHECK (reasoning_tokens >= 0);
