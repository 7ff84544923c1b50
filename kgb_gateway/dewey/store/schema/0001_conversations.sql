-- What was said, once: blocks (canonical JSON), messages made of them, and chains of messages (nodes) that share their beginnings.

CREATE TABLE block (
    id INTEGER PRIMARY KEY,
    hash BLOB NOT NULL UNIQUE,
    kind TEXT NOT NULL,
    size INTEGER NOT NULL,      -- bytes of the JSON
    codec INTEGER NOT NULL,     -- 0: as it is, 1: zstd
    data BLOB NOT NULL
) STRICT;

CREATE TABLE message (
    id INTEGER PRIMARY KEY,
    hash BLOB NOT NULL UNIQUE,
    role TEXT NOT NULL,
    extra BLOB                  -- JSON, NULL for {}
) STRICT;

CREATE TABLE part (
    message INTEGER NOT NULL REFERENCES message,
    place INTEGER NOT NULL,
    block INTEGER NOT NULL REFERENCES block,
    PRIMARY KEY (message, place)
) STRICT, WITHOUT ROWID;
CREATE INDEX part_block ON part (block);

CREATE TABLE node (
    id INTEGER PRIMARY KEY,
    hash BLOB NOT NULL UNIQUE,
    parent INTEGER REFERENCES node,
    message INTEGER NOT NULL REFERENCES message,
    depth INTEGER NOT NULL      -- 1 for the first message of a chain
) STRICT;
CREATE INDEX node_parent ON node (parent);
CREATE INDEX node_message ON node (message);

-- Who spoke with whom.

CREATE TABLE session (
    id INTEGER PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,   -- the agent's own id, or one made of the first exchange's
    agent TEXT NOT NULL,
    caller TEXT NOT NULL,
    project TEXT NOT NULL,
    title TEXT NOT NULL,
    first_at REAL NOT NULL,
    last_at REAL NOT NULL,
    pinned INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX session_last ON session (last_at);

CREATE TABLE conversation (
    id INTEGER PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,
    session INTEGER NOT NULL REFERENCES session,
    kind TEXT NOT NULL,         -- main, sub_agent, utility
    agent_id TEXT NOT NULL,
    parent BLOB,                -- the exchange that it branched off from
    first_at REAL NOT NULL,
    last_at REAL NOT NULL
) STRICT;
CREATE INDEX conversation_session ON conversation (session);

CREATE TABLE exchange (
    id INTEGER PRIMARY KEY,
    uuid BLOB NOT NULL UNIQUE,
    name TEXT NOT NULL,         -- the request id that the caller saw
    instance TEXT NOT NULL,
    segment TEXT NOT NULL,      -- where its first frame is, "" for an import
    place INTEGER NOT NULL,
    at REAL NOT NULL,
    duration REAL,
    first_byte REAL,
    method TEXT NOT NULL,
    target TEXT NOT NULL,
    remote TEXT NOT NULL,
    caller TEXT NOT NULL,
    route TEXT NOT NULL,
    slot TEXT NOT NULL,
    upstream TEXT NOT NULL,
    status INTEGER NOT NULL,
    outcome TEXT NOT NULL,
    error_code TEXT NOT NULL,
    attempts INTEGER NOT NULL,
    transformed INTEGER NOT NULL,
    request_size INTEGER NOT NULL,
    response_size INTEGER NOT NULL,
    request_sha256 BLOB,        -- NULL where bodies are not recorded, or a gap is in them
    response_sha256 BLOB,
    heads BLOB NOT NULL,        -- zstd of JSON: [request headers, response headers], credentials taken out
    facts BLOB,                 -- JSON of what else is known
    dialect TEXT NOT NULL,      -- "" for what is no model API
    surface TEXT NOT NULL,
    unreadable TEXT NOT NULL,   -- why there is no transcript, "" where there is one
    model TEXT NOT NULL,
    stream INTEGER NOT NULL,
    stop_reason TEXT NOT NULL,
    reply_id TEXT NOT NULL,     -- the provider's
    partial INTEGER NOT NULL,
    session INTEGER REFERENCES session,
    conversation INTEGER REFERENCES conversation,
    relation TEXT NOT NULL,
    after BLOB,                 -- the exchange that it goes on from
    shared INTEGER NOT NULL,    -- messages that it has in common with that one
    agent_id TEXT NOT NULL,
    node INTEGER REFERENCES node,       -- the last message of the request
    reply INTEGER REFERENCES node,      -- the last message of the reply
    replies INTEGER NOT NULL,           -- messages of the reply
    system INTEGER REFERENCES message,
    tools INTEGER REFERENCES message,
    params INTEGER REFERENCES block,
    asked BLOB,                 -- hashes for linking: same, instructions
    summary INTEGER NOT NULL,
    said BLOB,                  -- zstd of JSON: marks, usage, error, rest and unknown events of the reply, verbatim
    tokens_in INTEGER NOT NULL,
    tokens_out INTEGER NOT NULL,
    cost INTEGER,               -- millionths of a US dollar, NULL where no price is known
    prices TEXT NOT NULL,       -- version of the price table
    estimated INTEGER NOT NULL,
    erased INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX exchange_at ON exchange (at);
CREATE INDEX exchange_conversation ON exchange (conversation, at);
CREATE INDEX exchange_session ON exchange (session, at);
CREATE INDEX exchange_segment ON exchange (segment);
CREATE INDEX exchange_node ON exchange (node);
CREATE INDEX exchange_reply_id ON exchange (reply_id) WHERE reply_id <> '';
CREATE INDEX exchange_reply ON exchange (reply);
CREATE INDEX exchange_system ON exchange (system);
CREATE INDEX exchange_tools ON exchange (tools);
CREATE INDEX exchange_params ON exchange (params);

CREATE TABLE usage (
    exchange INTEGER NOT NULL REFERENCES exchange ON DELETE CASCADE,
    iteration INTEGER NOT NULL,
    model TEXT NOT NULL,
    uncached INTEGER NOT NULL,
    cache_read INTEGER NOT NULL,
    cache_write_5m INTEGER NOT NULL,
    cache_write_1h INTEGER NOT NULL,
    output INTEGER NOT NULL,
    thinking INTEGER NOT NULL,
    server_tools TEXT NOT NULL,
    cost INTEGER,
    PRIMARY KEY (exchange, iteration)
) STRICT, WITHOUT ROWID;

-- Where the librarian stands, and what it could not read.

CREATE TABLE position (
    instance TEXT PRIMARY KEY,
    segment TEXT NOT NULL,
    place INTEGER NOT NULL,     -- read on from here
    sequence INTEGER NOT NULL   -- of the last frame that is in the store
) STRICT, WITHOUT ROWID;

CREATE TABLE problem (
    id INTEGER PRIMARY KEY,
    at REAL NOT NULL,
    instance TEXT NOT NULL,
    segment TEXT NOT NULL,
    place INTEGER NOT NULL,
    exchange BLOB,
    why TEXT NOT NULL
) STRICT;

CREATE TABLE erasure (
    uuid BLOB PRIMARY KEY,      -- exchanges that are never taken in again
    at REAL NOT NULL,
    instance TEXT NOT NULL,
    segment TEXT NOT NULL,      -- where its frames begin
    scrubbed INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;

CREATE VIRTUAL TABLE words USING fts5 (
    text, content = '', tokenize = "unicode61 remove_diacritics 2", prefix = '3'
);
