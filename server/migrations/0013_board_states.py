"""How far a deployment has come on each board behind a device, and which board an alarm is of."""

from __future__ import annotations

from typing import Any

from tinysphere.schema import run_ddl

UP = """
CREATE TABLE board_deployment (
    deployment BIGINT NOT NULL,
    device TEXT NOT NULL,
    board TEXT NOT NULL,
    state TEXT NOT NULL,
    reason TEXT NOT NULL,
    updated_at DOUBLE PRECISION NOT NULL,
    PRIMARY KEY (deployment, device, board)
) {clustered};
ALTER TABLE drift_event ADD COLUMN board TEXT NOT NULL DEFAULT '';
"""


def up(migrator: Any, db: Any) -> None:
    """Make the table."""
    run_ddl(db, UP)


def down(migrator: Any, db: Any) -> None:
    """Drop it."""
    run_ddl(db, "ALTER TABLE drift_event DROP COLUMN board; DROP TABLE board_deployment")
