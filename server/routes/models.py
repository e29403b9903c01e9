"""The registry of models."""

from __future__ import annotations

from typing import Final

from .. import registry
from ..db import Page
from .table import API, LIST_PARAMS, Answer, Call, Route, bounded_body, page_headers


async def add_version(call: Call) -> Answer:
    """Take an uploaded package."""
    server = call.server
    upload = await call.run(server.store.begin, server.config.package_bytes_max)
    try:
        async for piece in bounded_body(call.request, server.config.package_bytes_max, server.config.body_timeout_s):
            await call.run(upload.write, piece)
        view, new = await call.run(
            registry.add_version, server.db, server.store, server.roots, call.path("name"), upload, call.who, call.now_s
        )
    finally:
        await call.run(upload.close)
    return Answer(view, 201 if new else 200)


async def list_models(call: Call) -> Answer:
    """Models by name."""
    page = await call.run(registry.list_models, call.server.db, call.text("cursor"), call.limit())
    return Answer(page, headers=page_headers(call, page.next))


async def get_model(call: Call) -> Answer:
    """A model with its versions."""
    return Answer(await call.run(registry.get_model, call.server.db, call.path("name")))


async def get_version(call: Call) -> Answer:
    """One version."""
    return Answer(await call.run(registry.get_version, call.server.db, call.path("name"), call.path("version")))


ROUTES: Final = (
    Route(
        "POST", f"{API}/models/{{name}}/versions", add_version, "Upload a signed package", "models:write",
        answer=registry.ModelVersionView, raw="application/octet-stream", problems=(409,),
        statuses={201: "registered", 200: "the same file was registered before"},
    ),
    Route(
        "GET", f"{API}/models", list_models, "Models", "read", answer=Page[registry.ModelSummary], query=LIST_PARAMS,
    ),
    Route(
        "GET", f"{API}/models/{{name}}", get_model, "A model with its versions", "read",
        answer=registry.ModelView, problems=(404,),
    ),
    Route(
        "GET", f"{API}/models/{{name}}/versions/{{version}}", get_version, "One version", "read",
        answer=registry.ModelVersionView, problems=(404,),
    ),
)  # fmt: skip
