"""Each entry of the audit carries the hash of the one before; those that are there are chained now."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from tinysphere.schema import kind_of, run_ddl


def up(migrator: Any, db: Any) -> None:
    """Add the column and chain what is there."""
    run_ddl(db, "ALTER TABLE audit ADD COLUMN sha256 TEXT NOT NULL DEFAULT ''")
    mark = "?" if kind_of(db) == "sqlite" else "%s"
    before, last_id = "0" * 64, 0
    read = f"SELECT id, at, who, what, target FROM audit WHERE id > {mark} ORDER BY id LIMIT 1000"  # noqa: S608
    write = f"UPDATE audit SET sha256 = {mark} WHERE id = {mark}"  # noqa: S608
    while found := db.execute_sql(read, (last_id,)).fetchall():
        for last_id, at, who, what, target in found:
            before = hashlib.sha256(json.dumps([before, at, who, what, target]).encode()).hexdigest()
            db.execute_sql(write, (before, last_id))


def down(migrator: Any, db: Any) -> None:
    """Drop the hashes."""
    run_ddl(db, "ALTER TABLE audit DROP COLUMN sha256")
