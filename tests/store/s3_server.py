"""Just enough of S3's protocol for one client on loopback: objects, uploads in parts, and requests that fail when told to."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from xml.etree import ElementTree

from aiohttp import web


@dataclass
class Objects:
    """What the server holds."""

    address: str = ""
    stored: dict[str, bytes] = field(default_factory=dict)
    parts: dict[str, dict[int, bytes]] = field(default_factory=dict)
    signed: bool = True
    failing: bool = False

    async def answer(self, request: web.Request) -> web.Response:
        key, query = request.path.removeprefix("/"), request.query
        self.signed &= "AWS4-HMAC-SHA256 Credential=key/" in request.headers.get("authorization", "")
        body = await request.read()
        if self.failing:
            return web.Response(status=403)
        if request.method == "POST" and "delete" in query:
            names = [each.text for each in ElementTree.fromstring(body).iter() if each.tag.endswith("Key")]
            for name in names:
                self.stored.pop(f"{key.rstrip('/')}/{name}", None)
            return xml(
                f"<DeleteResult>{''.join(f'<Deleted><Key>{name}</Key></Deleted>' for name in names)}</DeleteResult>"
            )
        if request.method == "POST" and "uploads" in query:
            self.parts["1"] = {}
            return xml("<InitiateMultipartUploadResult><UploadId>1</UploadId></InitiateMultipartUploadResult>")
        if request.method == "PUT" and "partNumber" in query:
            self.parts[query["uploadId"]][int(query["partNumber"])] = body
            return web.Response(headers={"etag": query["partNumber"]})
        if request.method == "POST" and "uploadId" in query:
            parts = self.parts.pop(query["uploadId"])
            self.stored[key] = b"".join(parts[number] for number in sorted(parts))
            return xml("<CompleteMultipartUploadResult><ETag>1</ETag></CompleteMultipartUploadResult>")
        if request.method == "DELETE" and "uploadId" in query:
            del self.parts[query["uploadId"]]
            return web.Response(status=204)
        return self.single(request.method, key, body)

    def single(self, method: str, key: str, body: bytes) -> web.Response:
        """Answer a request for one object."""
        if method == "PUT":
            self.stored[key] = body
            return web.Response(headers={"etag": "1"})
        if method == "DELETE":
            self.stored.pop(key, None)
            return web.Response(status=204)
        if key not in self.stored:
            return web.Response(status=404)
        headers = {"etag": "1", "last-modified": "Sat, 21 Nov 2026 00:00:00 GMT"}
        return web.Response(body=self.stored[key], headers=headers)


def xml(text: str) -> web.Response:
    return web.Response(text=text, content_type="application/xml")


@asynccontextmanager
async def running_s3() -> AsyncIterator[Objects]:
    """Run the server on a free port of 127.0.0.1."""
    objects = Objects()
    app = web.Application(client_max_size=1 << 30)
    app.router.add_route("*", "/{key:.*}", objects.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    objects.address = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield objects
    finally:
        await runner.cleanup()
