"""Deployments."""

from __future__ import annotations

from typing import Final

from .. import deployments
from ..db import Page
from .table import API, LIST_PARAMS, Answer, Call, Param, Route, created_once, page_headers


async def create_deployment(call: Call) -> Answer:
    """Deploy a version to the devices that a selector matches."""
    return await created_once(call, "deployments", deployments.create_in)


async def list_deployments(call: Call) -> Answer:
    """Deployments, newest first."""
    page = await call.run(deployments.list_deployments, call.server.db, call.text("cursor"), call.limit())
    return Answer(page, headers=page_headers(call, page.next))


async def get_deployment(call: Call) -> Answer:
    """One deployment with each device's state."""
    return Answer(await call.run(deployments.get_deployment, call.server.db, call.number_in_path("id")))


async def list_deployment_devices(call: Call) -> Answer:
    """The devices of a deployment, page by page."""
    asked = call.number_in_path("id"), call.text("state"), call.text("cursor"), call.limit()
    page = await call.run(deployments.list_states, call.server.db, *asked)
    return Answer(page, headers=page_headers(call, page.next))


async def abort_deployment(call: Call) -> Answer:
    """End a deployment; devices go back to what else is deployed to them."""
    number = call.number_in_path("id")
    return Answer(await call.run(deployments.abort, call.server.db, number, call.who, call.now_s))


ROUTES: Final = (
    Route(
        "POST", f"{API}/deployments", create_deployment, "Deploy a version to a selector of devices",
        "deployments:write", answer=deployments.DeploymentView, body=deployments.DeploymentRequest,
        problems=(404, 409), headers=("Idempotency-Key",), statuses={201: "created, or created before with this key"},
    ),
    Route(
        "GET", f"{API}/deployments", list_deployments, "Deployments, newest first", "read",
        answer=Page[deployments.DeploymentView], query=LIST_PARAMS,
    ),
    Route(
        "GET", f"{API}/deployments/{{id}}", get_deployment, "One deployment with each device's state", "read",
        answer=deployments.DeploymentView, problems=(404,),
    ),
    Route(
        "GET", f"{API}/deployments/{{id}}/devices", list_deployment_devices,
        "How far a deployment has come on each device", "read", answer=Page[deployments.DeviceState],
        query=(Param("state", about="only in this state"), *LIST_PARAMS), problems=(404,),
    ),
    Route(
        "POST", f"{API}/deployments/{{id}}/abort", abort_deployment, "End a deployment", "deployments:write",
        answer=deployments.DeploymentView, problems=(404,),
    ),
)  # fmt: skip
