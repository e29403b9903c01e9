"""The registry of models."""

from __future__ import annotations

from typing import Final

from .. import registry, versions
from ..db import Page
from .table import API, LIST_PARAMS, Answer, Call, Param, Route, bounded_body, page_headers


async def add_version(call: Call) -> Answer:
    """Take an uploaded package."""
    server = call.server
    seconds, memory = server.config.probe_timeout_s, server.config.probe_memory_bytes
    limits = registry.ProbeLimits(seconds, memory) if seconds else None
    upload = await call.run(server.store.begin, server.config.package_bytes_max)
    try:
        async for piece in bounded_body(call.request, server.config.package_bytes_max, server.config.body_timeout_s):
            await call.run(upload.write, piece)
        view, new = await call.run(
            registry.add_version, server.db, server.store, limits, call.path("name"), upload, call.who, call.now_s
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


async def list_versions(call: Call) -> Answer:
    """A model's versions, newest first."""
    page = await call.run(registry.list_versions, call.server.db, call.path("name"), call.text("cursor"), call.limit())
    return Answer(page, headers=page_headers(call, page.next))


async def get_version(call: Call) -> Answer:
    """One version."""
    return Answer(await call.run(versions.get, call.server.db, call.path("name"), call.path("version")))


async def remove_version(call: Call) -> Answer:
    """Remove a version that nobody runs or is to run."""
    server = call.server
    view = await call.run(
        versions.remove_version, server.db, server.store, call.path("name"), call.path("version"), call.who, call.now_s
    )
    return Answer(view)


async def compare(call: Call) -> Answer:
    """Two versions side by side."""
    a, b = call.text("a") or "", call.text("b") or ""
    return Answer(await call.run(versions.compare, call.server.db, call.path("name"), a, b))


async def list_aliases(call: Call) -> Answer:
    """A model's aliases."""
    name, cursor = call.path("name"), call.text("cursor")
    page = await call.run(versions.list_aliases, call.server.db, name, cursor, call.limit())
    return Answer(page, headers=page_headers(call, page.next))


async def get_alias(call: Call) -> Answer:
    """An alias."""
    view = await call.run(versions.get_alias, call.server.db, call.path("name"), call.path("alias"))
    return Answer(view, headers={"ETag": versions.alias_tag(view)})


async def set_alias(call: Call) -> Answer:
    """Have an alias name a version."""
    db, name, alias = call.server.db, call.path("name"), call.path("alias")
    view = await call.run(versions.set_alias, db, name, alias, call.body, call.who, call.now_s, call.if_match)
    return Answer(view, headers={"ETag": versions.alias_tag(view)})


async def remove_alias(call: Call) -> Answer:
    """Take a name away."""
    db, name, alias = call.server.db, call.path("name"), call.path("alias")
    return Answer(await call.run(versions.remove_alias, db, name, alias, call.who, call.now_s, call.if_match))


_ALIAS: Final = f"{API}/models/{{name}}/aliases/{{alias}}"
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
        "GET", f"{API}/models/{{name}}/versions", list_versions, "Versions of a model, newest first", "read",
        answer=Page[registry.ModelVersionView], query=LIST_PARAMS, problems=(404,),
    ),
    Route(
        "GET", f"{API}/models/{{name}}/versions/{{version}}", get_version, "One version, or that of @ALIAS", "read",
        answer=registry.ModelVersionView, problems=(404,),
    ),
    Route(
        "DELETE", f"{API}/models/{{name}}/versions/{{version}}", remove_version, "Remove a version that nobody runs",
        "models:write", answer=registry.ModelVersionView, problems=(404, 409), statuses={200: "what it was"},
    ),
    Route(
        "GET", f"{API}/models/{{name}}/compare", compare, "Two versions side by side", "read",
        answer=versions.Comparison, problems=(404,),
        query=(Param("a", about="a version, or @ALIAS"), Param("b", about="a version, or @ALIAS")),
    ),
    Route(
        "GET", f"{API}/models/{{name}}/aliases", list_aliases, "Aliases", "read",
        answer=Page[versions.AliasView], query=LIST_PARAMS,
    ),
    Route("GET", _ALIAS, get_alias, "One alias", "read", answer=versions.AliasView, problems=(404,)),
    Route(
        "PUT", _ALIAS, set_alias, "Have an alias name a version", "models:write",
        answer=versions.AliasView, body=versions.AliasRequest, problems=(404, 412, 428), headers=("If-Match",),
    ),
    Route(
        "DELETE", _ALIAS, remove_alias, "Take an alias away", "models:write",
        answer=versions.AliasView, problems=(404, 412), headers=("If-Match",), statuses={200: "what it was"},
    ),
)  # fmt: skip
