-- tokrun ledger, version 4: entries that take back what earlier ones did.

-- A refund of a settled request, or the correction of a grant or transfer.
CREATE TABLE reversal (
    entry     INTEGER PRIMARY KEY REFERENCES entry (id) DEFERRABLE INITIALLY DEFERRED,
    request   INTEGER REFERENCES request_log (seq), -- refunded
    corrected INTEGER REFERENCES allowance (seq),
    amount    INTEGER NOT NULL CHECK (amount > 0),
    expired   INTEGER NOT NULL CHECK (expired BETWEEN 0 AND amount), -- of it, went to grants that had expired or were void
    CHECK ((request IS NULL) <> (corrected IS NULL))
) STRICT;
CREATE INDEX reversal_request ON reversal (request);
CREATE INDEX reversal_corrected ON reversal (corrected);

-- What an entry was for, where that is not a grant's memo.
CREATE TABLE entry_memo (
    entry INTEGER PRIMARY KEY REFERENCES entry (id) DEFERRABLE INITIALLY DEFERRED,
    salt  BLOB NOT NULL,
    text  TEXT NOT NULL
) STRICT;

CREATE TRIGGER reversal_is_final_update BEFORE UPDATE ON reversal
BEGIN SELECT RAISE(ABORT, 'entries are immutable: write a correcting one'); END;
CREATE TRIGGER reversal_is_final_delete BEFORE DELETE ON reversal
BEGIN SELECT RAISE(ABORT, 'entries are immutable: write a correcting one'); END;
