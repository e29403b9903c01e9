"""A server in a few lines, that can be told to break the rules."""

from __future__ import annotations

from models import make_package
from scripted import Reply, Request
from tinylcm.package import parse_package
from tinylcm.wire import Desired, DesiredModel, SyncResponse, encode

GOOD, BETTER = make_package(version="1.0.0"), make_package(version="2.0.0", bias=1.0)


class Peer:
    """A server in a few lines: acknowledges everything and offers one package."""

    def __init__(self, package: bytes | None = None) -> None:
        self.package = package
        self.desired: Desired | None = None
        self.download: Reply | None = None
        self.sync: Reply | None = None
        self.records: list[dict] = []
        if package is not None:
            self.offer(package)

    def offer(self, data: bytes, deployment: int = 1, **changes: object) -> None:
        package = parse_package(data, None)
        fields = {
            "model": package.manifest.name,
            "version": package.manifest.version,
            "sha256": package.sha256,
            "size": len(data),
            "url": f"/api/v1/packages/{package.sha256}",
            "deployment": deployment,
            **changes,
        }
        self.package = data
        self.desired = Desired(deployment + 1, (DesiredModel(**fields),))  # type: ignore[arg-type]

    def answer(self, request: Request) -> Reply:
        if request.path.startswith("/api/v1/packages/"):
            if self.download is not None:
                return self.download
            start = int(request.headers.get("Range", "bytes=0-")[6:-1])
            body = self.package or b""
            if start:
                content_range = f"bytes {start}-{len(body) - 1}/{len(body)}"
                return Reply(206, body[start:], {"Content-Range": content_range})
            return Reply(body=body)
        if self.sync is not None:
            return self.sync
        message = request.message()
        self.records += [*message.events, *message.details]  # type: ignore[list-item]
        acked = {
            stream: (items[-1]["epoch"], items[-1]["seq"]) if items else None  # type: ignore[index]
            for stream, items in (("events", message.events), ("details", message.details))
        }
        desired = self.desired if self.desired and message.generation != self.desired.generation else "unchanged"
        return Reply(body=encode(SyncResponse(acked, "instance", 1.0, 0.0, desired)))  # type: ignore[arg-type]

    def states(self) -> list[str]:
        return [record["payload"]["state"] for record in self.records if record["type"] == "deployment"]
