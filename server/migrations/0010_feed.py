"""What happens, in the order in which it was committed, for those who follow it; indexes of what health looks at."""

from __future__ import annotations

from typing import Any

from tinysphere.schema import kind_of, run_ddl

# On PostgreSQL rows of several writers are numbered before they are committed: only with the transaction's own number
# can a reader tell what may still come in between. SQLite has one writer.
XACT = {"sqlite": "0", "postgresql": "CAST(CAST(pg_current_xact_id() AS TEXT) AS BIGINT)"}
UP = """
CREATE TABLE feed (
    id {id},
    xact BIGINT NOT NULL DEFAULT (@XACT@),
    at DOUBLE PRECISION NOT NULL,
    type TEXT NOT NULL,
    device TEXT,
    model TEXT,
    body TEXT NOT NULL
);
CREATE INDEX feed_xact_id ON feed (xact, id);
CREATE INDEX feed_at ON feed (at);
CREATE INDEX gap_received_at ON gap (received_at);
CREATE INDEX refused_record_received_at ON refused_record (received_at);
CREATE INDEX device_command_state_updated_at ON device_command (state, updated_at);
"""


def up(migrator: Any, db: Any) -> None:
    """Make the table; what happened before is not in it."""
    run_ddl(db, UP.replace("@XACT@", XACT[kind_of(db)]))


def down(migrator: Any, db: Any) -> None:
    """Drop it."""
    run_ddl(
        db,
        "DROP INDEX device_command_state_updated_at; DROP INDEX refused_record_received_at;"
        " DROP INDEX gap_received_at; DROP TABLE feed",
    )
