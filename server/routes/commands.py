"""Commands, and the configuration that the server sets."""

from __future__ import annotations

from typing import Final

from .. import commands, fleet, settings
from ..db import Page
from .table import API, LIST_PARAMS, Answer, Call, Param, Route, created_once, page_headers


async def create_command(call: Call) -> Answer:
    """Give a command to the devices that a selector matches."""
    return await created_once(call, "commands", commands.create_in)


async def list_commands(call: Call) -> Answer:
    """Commands, newest first."""
    page = await call.run(commands.list_commands, call.server.db, call.text("cursor"), call.limit(), call.now_s)
    return Answer(page, headers=page_headers(call, page.next))


async def get_command(call: Call) -> Answer:
    """One command with each device's answer."""
    return Answer(await call.run(commands.get_command, call.server.db, call.number_in_path("id"), call.now_s))


async def list_command_devices(call: Call) -> Answer:
    """The devices of a command, page by page."""
    asked = call.number_in_path("id"), call.text("state"), call.text("cursor"), call.limit(), call.now_s
    page = await call.run(commands.list_answers, call.server.db, *asked)
    return Answer(page, headers=page_headers(call, page.next))


async def get_config(call: Call) -> Answer:
    """A scope's settings, and what devices made of them."""
    view = await call.run(settings.get, call.server.db, call.path("scope"))
    return Answer(view, headers={"ETag": fleet.etag(view.version)})


async def list_scopes(call: Call) -> Answer:
    """Every scope that was set."""
    page = await call.run(settings.list_scopes, call.server.db, call.text("cursor"), call.limit())
    return Answer(page, headers=page_headers(call, page.next))


async def list_config_versions(call: Call) -> Answer:
    """A scope's versions, newest first."""
    scope, cursor = call.path("scope"), call.text("cursor")
    page = await call.run(settings.list_versions, call.server.db, scope, cursor, call.limit())
    return Answer(page, headers=page_headers(call, page.next))


async def diff_config(call: Call) -> Answer:
    """What changed between two versions of a scope."""
    asked = call.natural("from"), call.natural("to")
    return Answer(await call.run(settings.diff, call.server.db, call.path("scope"), *asked))


async def get_device_config(call: Call) -> Answer:
    """What a device is sent, key by key with its scope."""
    return Answer(await call.run(settings.effective, call.server.db, call.path("id")))


async def put_config(call: Call) -> Answer:
    """Set a scope's settings."""
    match = call.request.headers.get("if-match")
    view = await call.run(settings.put, call.server.db, call.path("scope"), call.body, match, call.who, call.now_s)
    return Answer(view, headers={"ETag": fleet.etag(view.version)})


ROUTES: Final = (
    Route(
        "POST", f"{API}/commands", create_command, "Give a command to a selector of devices", "devices:write",
        answer=commands.CommandView, body=commands.CommandRequest, problems=(409,), headers=("Idempotency-Key",),
        statuses={201: "given, or given before with this key"},
    ),
    Route(
        "GET", f"{API}/commands", list_commands, "Commands, newest first", "read",
        answer=Page[commands.CommandView], query=LIST_PARAMS,
    ),
    Route(
        "GET", f"{API}/commands/{{id}}", get_command, "One command with each device's answer", "read",
        answer=commands.CommandView, problems=(404,),
    ),
    Route(
        "GET", f"{API}/commands/{{id}}/devices", list_command_devices, "How far a command has come on each device",
        "read",
        answer=Page[commands.DeviceAnswer], query=(Param("state", about="only in this state"), *LIST_PARAMS),
        problems=(404,),
    ),
    Route(
        "GET", f"{API}/config", list_scopes, "Scopes of configuration that were set", "read",
        answer=Page[settings.ScopeView], query=LIST_PARAMS,
    ),
    Route(
        "GET", f"{API}/config/{{scope}}/versions", list_config_versions, "A scope's versions, newest first", "read",
        answer=Page[settings.VersionView], query=LIST_PARAMS, problems=(404,),
    ),
    Route(
        "GET", f"{API}/config/{{scope}}/diff", diff_config, "What changed between two versions of a scope", "read",
        answer=settings.SettingsDiff, problems=(404,),
        query=(
            Param("from", "integer", "a version, 0 for none; the one before the newest unless given"),
            Param("to", "integer", "a version; the newest unless given"),
        ),
    ),
    Route(
        "GET", f"{API}/devices/{{id}}/config", get_device_config, "What a device is sent of its configuration, and why",
        "read", answer=settings.EffectiveSettings, problems=(404,),
    ),
    Route(
        "GET", f"{API}/config/{{scope}}", get_config, "What the server sets of devices' configuration", "read",
        answer=settings.SettingsView, problems=(404,),
    ),
    Route(
        "PUT", f"{API}/config/{{scope}}", put_config, "Set a part of devices' configuration", "devices:write",
        answer=settings.SettingsView, body=settings.SettingsRequest, problems=(404, 412, 428), headers=("If-Match",),
    ),
)  # fmt: skip
