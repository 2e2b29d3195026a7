-- tokrun ledger, version 5: what a grant is good for, what it is worth, and which grants vest together.

ALTER TABLE allowance ADD COLUMN class TEXT CHECK (class IN ('promotional')); -- NULL: paid
ALTER TABLE allowance ADD COLUMN scope TEXT;                                  -- the models it pays for; NULL: all
ALTER TABLE allowance ADD COLUMN value_nano INTEGER CHECK (value_nano >= 0);  -- of a credit, in 10^-9 of the currency
ALTER TABLE allowance ADD COLUMN currency TEXT;
ALTER TABLE allowance ADD COLUMN vesting TEXT;                                -- the id that its grants have in common
CREATE INDEX allowance_vesting ON allowance (vesting) WHERE vesting IS NOT NULL;

ALTER TABLE recurrence ADD COLUMN class TEXT CHECK (class IN ('promotional'));
ALTER TABLE recurrence ADD COLUMN scope TEXT;
ALTER TABLE recurrence ADD COLUMN value_nano INTEGER CHECK (value_nano >= 0);
ALTER TABLE recurrence ADD COLUMN currency TEXT;
