BEGIN TRANSACTION;
CREATE TABLE account (
    seq INTEGER PRIMARY KEY,
    id  TEXT    NOT NULL UNIQUE
) STRICT;
INSERT INTO "account" VALUES(1,'issued');
INSERT INTO "account" VALUES(2,'spent');
INSERT INTO "account" VALUES(3,'expired');
INSERT INTO "account" VALUES(4,'01a20a96-2eea-7391-859b-97937408eea3');
INSERT INTO "account" VALUES(5,'01a20a96-2ef4-70d3-be4d-cd2757b45e5b');
INSERT INTO "account" VALUES(6,'01a20a96-2f03-755b-bf95-099dac736ae2');
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
INSERT INTO "allowance" VALUES(1,'01a20a96-2eef-77b0-96bc-f8db057e689e',4,'grant',100000000,0,1767225600000000,NULL,1767225600000000,1,66000000);
INSERT INTO "allowance" VALUES(2,'01a20a96-2ef9-7510-8e69-60752a4ea5cd',5,'grant',50000000,0,1767225600000000,NULL,1767225600000000,1,50000000);
INSERT INTO "allowance" VALUES(3,'01a20a96-2f09-765f-b967-0731df5dd582',6,'grant',7000000,3,1767225660000000,1768125600000000,1767225600000000,0,0);
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
INSERT INTO "entry" VALUES(1,'grant','grant:01a20a96-2eef-77b0-96bc-f8db057e689e',1767225600000000,1767225600000000,NULL,NULL,X'D1C252B54DEDEC6B6D7630BA467E891D58A11F9ABFDDF8536F7C3C074BBF275F',X'0000000000000000000000000000000000000000000000000000000000000000',X'B498FC779224E74E8D5468CC50254878ED47419DCD6790D5A73C551357EE0A52');
INSERT INTO "entry" VALUES(2,'grant','grant:01a20a96-2ef9-7510-8e69-60752a4ea5cd',1767225600000000,1767225600000000,NULL,NULL,X'5071A43BCD346A5E8BBFDCD8E5A23BA13E86A1EFE80A272533F17DBB638CE0C7',X'B498FC779224E74E8D5468CC50254878ED47419DCD6790D5A73C551357EE0A52',X'D1B083F98C74AFA8673F28F385A5E52DCB4B7F187098809BA64A8FB2DB107F05');
INSERT INTO "entry" VALUES(3,'settle','settle:r1',1767225602000000,1767225602000000,'r1',NULL,X'8B3C0D4B3967B45CA7E4EC385BF96B5A06D81613CA84041C706AA29C86ECC9B4',X'D1B083F98C74AFA8673F28F385A5E52DCB4B7F187098809BA64A8FB2DB107F05',X'1B809B7C948E43F3F038A742144A4396D00D7C7F3A86782283D181AF1A65B4B1');
CREATE TABLE head (
    id    INTEGER PRIMARY KEY CHECK (id = 1),
    entry INTEGER NOT NULL,
    count INTEGER NOT NULL,
    hash  BLOB    NOT NULL CHECK (length(hash) = 32)
) STRICT;
INSERT INTO "head" VALUES(1,3,3,X'1B809B7C948E43F3F038A742144A4396D00D7C7F3A86782283D181AF1A65B4B1');
CREATE TABLE idempotency (
    key       BLOB PRIMARY KEY,
    arguments BLOB NOT NULL, -- hash of what it was used with
    subject   TEXT NOT NULL
) STRICT, WITHOUT ROWID;
INSERT INTO "idempotency" VALUES(X'1E27DDFCC99F5302D0CB9D1EC91883C67C37AD182FA8A630043FD71E621B5626',X'0DB70E1749E629F45A7815CC13586C568FE6F24F6A786437EEDF0B76CF4EA74C','01a20a96-2f09-765f-b967-0731df5dd582');
INSERT INTO "idempotency" VALUES(X'2D4FF5192ABA259D00C36BECC8F2230A45DA34609E1B1CAFA00C620B3030169A',X'4FB783B4FEF1BF0E41D5F39098EC072409D09876272F4E2C2FCDDBCBD914FBFF','01a20a96-2f03-755b-bf95-099dac736ae2');
CREATE TABLE in_flight (
    request   INTEGER NOT NULL REFERENCES open_request (seq),
    allowance INTEGER NOT NULL REFERENCES allowance (seq),
    held      INTEGER NOT NULL CHECK (held >= 0),
    debited   INTEGER NOT NULL CHECK (debited >= 0),
    PRIMARY KEY (request, allowance)
) STRICT, WITHOUT ROWID;
INSERT INTO "in_flight" VALUES(1,1,0,15000000);
INSERT INTO "in_flight" VALUES(2,1,4000000,0);
CREATE TABLE memo (
    allowance INTEGER PRIMARY KEY REFERENCES allowance (seq),
    salt      BLOB    NOT NULL,
    text      TEXT    NOT NULL
) STRICT;
INSERT INTO "memo" VALUES(3,X'612904379E4B424C837239FA27FFC493','a gift');
CREATE TABLE meta (
    id         INTEGER PRIMARY KEY CHECK (id = 1),
    ledger_id  TEXT    NOT NULL,
    salt       BLOB    NOT NULL,                                     -- of idempotency keys
    created_us INTEGER NOT NULL,
    service    INTEGER NOT NULL DEFAULT 0 CHECK (service IN (0, 1)), -- 1: nothing is created by itself
    bad        TEXT                                                  -- why nothing may be spent
) STRICT;
INSERT INTO "meta" VALUES(1,'01a20a96-2ee8-710b-a5fd-5686a54daebd',X'9ECA1F4A9BFDAF1053DE97D06F82E977E27F7CE159EC6784169F1B822F88E7E2',1767225600000000,0,NULL);
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
INSERT INTO "open_request" VALUES(1,'r2','01a20a96-2eea-7391-859b-9792112e413c',4,1000000,1000000,1000000,10,'model','cpu',NULL,'{}',1767225602000000);
INSERT INTO "open_request" VALUES(2,'r3','01a20a96-2eea-7391-859b-9792112e413c',4,1000000,1000000,1000000,3,'model','cpu',NULL,'{}',1767225602000000);
CREATE TABLE posting (
    entry     INTEGER NOT NULL REFERENCES entry (id),
    line      INTEGER NOT NULL,
    account   INTEGER NOT NULL REFERENCES account (seq),
    allowance INTEGER REFERENCES allowance (seq), -- for every wallet's account
    amount    INTEGER NOT NULL CHECK (amount <> 0),
    PRIMARY KEY (entry, line)
) STRICT, WITHOUT ROWID;
INSERT INTO "posting" VALUES(1,0,1,NULL,-100000000);
INSERT INTO "posting" VALUES(1,1,4,1,100000000);
INSERT INTO "posting" VALUES(2,0,1,NULL,-50000000);
INSERT INTO "posting" VALUES(2,1,5,2,50000000);
INSERT INTO "posting" VALUES(3,0,4,1,-15000000);
INSERT INTO "posting" VALUES(3,1,2,NULL,15000000);
CREATE TABLE progress (
    request       INTEGER PRIMARY KEY REFERENCES open_request (seq),
    running       INTEGER NOT NULL DEFAULT 0 CHECK (running IN (0, 1)), -- 1: the prompt is debited
    cached_tokens INTEGER NOT NULL DEFAULT 0 CHECK (cached_tokens >= 0),
    output_tokens INTEGER NOT NULL DEFAULT 0 CHECK (output_tokens >= 0)
) STRICT;
INSERT INTO "progress" VALUES(1,1,4,5);
INSERT INTO "progress" VALUES(2,0,0,0);
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
INSERT INTO "request_log" VALUES(1,'r1',3,4,NULL,'{}','model','cpu',1000000,1000000,1000000,10,4,5,0,15000000,0,NULL,0,0,X'1C849313000000010000000000000003000000000000000100000000000000023FF000000000000000',NULL,'stop',1767225601000000,1767225602000000);
CREATE TABLE wallet (
    seq        INTEGER PRIMARY KEY REFERENCES account (seq),
    created_us INTEGER NOT NULL,
    frozen     INTEGER NOT NULL DEFAULT 0 CHECK (frozen IN (0, 1))
) STRICT;
INSERT INTO "wallet" VALUES(4,1767225600000000,0);
INSERT INTO "wallet" VALUES(5,1767225600000000,1);
INSERT INTO "wallet" VALUES(6,1767225600000000,0);
CREATE TABLE wallet_name (
    wallet INTEGER PRIMARY KEY REFERENCES wallet (seq),
    name   TEXT    NOT NULL UNIQUE
) STRICT;
INSERT INTO "wallet_name" VALUES(4,'ada');
INSERT INTO "wallet_name" VALUES(5,'bob');
INSERT INTO "wallet_name" VALUES(6,'eve');
CREATE INDEX allowance_wallet ON allowance (wallet);
CREATE INDEX posting_account ON posting (account, entry);
CREATE INDEX in_flight_allowance ON in_flight (allowance);
CREATE INDEX request_log_ended ON request_log (ended_us);
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
COMMIT;
