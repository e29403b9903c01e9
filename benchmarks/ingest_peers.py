"""The peers of `benchmarks.ingest`: the same service as one would write it with FastAPI, Pydantic and SQLAlchemy.

    python -m benchmarks.ingest_peers (commit | writer) DATABASE.db PORT

`commit` is the idiomatic one: a session and a commit a request, in Starlette's threads. `writer` has our design on
these libraries: one thread that writes what waits in one transaction. Both look the key up by its hash and leave out
records that are there already, with the same database settings as ours; neither checks payloads further than their
types, keeps watermarks, nor says what a device should run.
"""

import asyncio
import hashlib
import json
import queue
import sys
import threading
from typing import Annotated, Any

import uvicorn
from fastapi import Depends, FastAPI, Header, HTTPException
from pydantic import BaseModel, Field
from sqlalchemy import BigInteger, Float, String, Text, create_engine, event, select
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column


class Base(DeclarativeBase):
    pass


class Device(Base):
    __tablename__ = "device"
    id: Mapped[str] = mapped_column(String, primary_key=True)
    secret_sha256: Mapped[str] = mapped_column(String)


class Record(Base):
    __tablename__ = "record"
    __table_args__ = ({"sqlite_with_rowid": False},)
    device: Mapped[str] = mapped_column(String, primary_key=True)
    epoch: Mapped[str] = mapped_column(String, primary_key=True)
    seq: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    type: Mapped[str] = mapped_column(String)
    boot: Mapped[str] = mapped_column(String)
    boot_ns: Mapped[int] = mapped_column(BigInteger)
    received_at: Mapped[float] = mapped_column(Float, index=True)
    payload: Mapped[str] = mapped_column(Text)


class RecordIn(BaseModel):
    type: str = Field(max_length=40)
    epoch: str = Field(min_length=16, max_length=16)
    seq: int = Field(ge=1)
    boot: str = Field(max_length=200)
    boot_ns: int = Field(ge=0)
    payload: dict[str, Any]


class SyncIn(BaseModel):
    boot: str
    details: list[RecordIn] = Field(max_length=5000)


def values_of(device: str, body: SyncIn) -> list[dict[str, Any]]:
    return [
        {
            "device": device, "epoch": item.epoch, "seq": item.seq, "type": item.type, "boot": item.boot,
            "boot_ns": item.boot_ns, "received_at": 1.8e9, "payload": json.dumps(item.payload),
        }
        for item in body.details
    ]  # fmt: skip


def make_engine(path: str) -> Any:
    engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": 30}, pool_size=40, max_overflow=10)

    @event.listens_for(engine, "connect")
    def settings(connection: Any, record: Any) -> None:
        for name, value in (("journal_mode", "wal"), ("synchronous", "full"), ("cache_size", "-16000")):
            connection.execute(f"PRAGMA {name}={value}")

    Base.metadata.create_all(engine)
    return engine


def check(session: Session, authorization: str) -> str:
    device, _, secret = authorization.removeprefix("Bearer ").partition(".")
    stored = session.scalar(select(Device.secret_sha256).where(Device.id == device))
    if stored is None or stored != hashlib.sha256(secret.encode()).hexdigest():
        raise HTTPException(401)
    return device


STATEMENT = insert(Record).on_conflict_do_nothing()


def commit_app(path: str) -> FastAPI:
    app, engine = FastAPI(), make_engine(path)

    def session() -> Any:
        with Session(engine) as opened:
            yield opened

    @app.post("/api/v1/sync")
    def sync(
        body: SyncIn, authorization: Annotated[str, Header()], session: Annotated[Session, Depends(session)]
    ) -> dict[str, Any]:
        device = check(session, authorization)
        session.execute(STATEMENT, values_of(device, body))
        session.commit()
        return {"acked": len(body.details)}

    return app


def writer_app(path: str) -> FastAPI:
    app, engine = FastAPI(), make_engine(path)
    waiting: queue.Queue[tuple[str, SyncIn, asyncio.AbstractEventLoop, asyncio.Future[int]]] = queue.Queue(2000)

    def settle(outcomes: list[tuple[asyncio.Future[int], int | Exception]]) -> None:
        for future, outcome in outcomes:
            if isinstance(outcome, Exception):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)

    def write() -> None:
        with Session(engine) as session:
            while True:
                group = [waiting.get()]
                while len(group) < 200 and not waiting.empty():
                    group.append(waiting.get())
                values: list[dict[str, Any]] = []
                outcomes: list[tuple[asyncio.Future[int], int | Exception]] = []
                for authorization, body, _, future in group:
                    try:
                        values += values_of(check(session, authorization), body)
                        outcomes.append((future, len(body.details)))
                    except HTTPException as error:
                        outcomes.append((future, error))
                if values:
                    session.execute(STATEMENT, values)
                session.commit()
                group[0][2].call_soon_threadsafe(settle, outcomes)

    threading.Thread(target=write, daemon=True).start()

    @app.post("/api/v1/sync")
    async def sync(body: SyncIn, authorization: Annotated[str, Header()]) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[int] = loop.create_future()
        waiting.put_nowait((authorization, body, loop, future))
        return {"acked": await future}

    return app


if __name__ == "__main__":
    make = {"commit": commit_app, "writer": writer_app}[sys.argv[1]]
    uvicorn.run(
        make(sys.argv[2]),
        port=int(sys.argv[3]),
        log_level="warning",
        access_log=False,
        http="httptools",
        timeout_keep_alive=75,
    )
