-- What people and models said. A conversation is a tree: a message's parent is what it answers or follows.
CREATE TABLE conversations (
    id TEXT PRIMARY KEY,
    -- The name of the key it was made with; '' where there are no keys.
    owner TEXT NOT NULL,
    title TEXT NOT NULL,
    -- JSON of the page: system prompt, sampling, tools, the leaves shown.
    settings TEXT NOT NULL,
    -- Milliseconds since 1970.
    created INTEGER NOT NULL,
    changed INTEGER NOT NULL
) STRICT;
CREATE INDEX conversations_of ON conversations (owner, changed);

CREATE TABLE messages (
    n INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    conversation TEXT NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
    parent TEXT REFERENCES messages (id),
    role TEXT NOT NULL,
    content TEXT NOT NULL,
    reasoning TEXT NOT NULL DEFAULT '',
    -- JSON, as in OpenAI's API.
    tool_calls TEXT,
    -- The call that a tool's result answers.
    tool_call_id TEXT,
    -- whole, writing, stop, length, tool_calls, stopped (by the person), cut (by the server's end), failed
    state TEXT NOT NULL,
    error TEXT,
    -- Of an answer: what gave it, and what it was asked (JSON: all but the messages).
    model TEXT,
    fingerprint TEXT,
    seed INTEGER,
    asked TEXT,
    usage TEXT,
    receipt TEXT,
    -- JSON: [[token, log-probability, [[alternative, log-probability], …]], …]
    tokens TEXT,
    created INTEGER NOT NULL
) STRICT;
CREATE INDEX messages_of ON messages (conversation);
CREATE INDEX messages_after ON messages (parent);

-- An answer while it is written: appended to, and made part of its message at its end.
CREATE TABLE pieces (
    n INTEGER PRIMARY KEY,
    message INTEGER NOT NULL REFERENCES messages (n) ON DELETE CASCADE,
    content TEXT NOT NULL,
    reasoning TEXT NOT NULL,
    tokens TEXT NOT NULL
) STRICT;
CREATE INDEX pieces_of ON pieces (message);

CREATE TABLE feedback (
    message TEXT PRIMARY KEY REFERENCES messages (id) ON DELETE CASCADE,
    -- 1 up, -1 down, 0 neither.
    thumb INTEGER NOT NULL,
    comment TEXT NOT NULL,
    changed INTEGER NOT NULL
) STRICT;

CREATE VIRTUAL TABLE search USING fts5 (content, content = 'messages', content_rowid = 'n');
-- What is deleted leaves the index, too.
INSERT INTO search (search, rank) VALUES ('secure-delete', 1);
CREATE TRIGGER messages_search_insert AFTER INSERT ON messages BEGIN
    INSERT INTO search (rowid, content) VALUES (new.n, new.content);
END;
CREATE TRIGGER messages_search_delete AFTER DELETE ON messages BEGIN
    INSERT INTO search (search, rowid, content) VALUES ('delete', old.n, old.content);
END;
CREATE TRIGGER messages_search_update AFTER UPDATE OF content ON messages BEGIN
    INSERT INTO search (search, rowid, content) VALUES ('delete', old.n, old.content);
    INSERT INTO search (rowid, content) VALUES (new.n, new.content);
END;
