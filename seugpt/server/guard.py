"""What stands in front of every route: who may ask, how much, for how long."""

import asyncio
import hmac
import ipaddress

from starlette.datastructures import MutableHeaders

from seugpt.server.errors import ApiError

GUARDED = ("/v1/", "/api/", "/metrics")  # need the key; the page itself and /health do not
GRACE_SECONDS = 5.0  # after max_seconds, for a client to read the message about it
SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' data:; style-src 'self'; script-src 'self'; "
        "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Guard:
    """ASGI middleware: Host header, API key, size of the body, time, security headers."""

    def __init__(self, app, host, api_key, limits, counts):
        self.app = app
        self.host = host
        self.api_key = api_key
        self.limits = limits
        self.counts = counts

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        watched = Watched(receive, send, self.limits.max_body)
        headers = dict(reversed(scope["headers"]))
        try:
            self.check(scope["path"], headers)
        except ApiError as error:
            await error.response()(scope, receive, watched.send)
        else:
            await self.run(scope, watched)
        self.counts[f"status_{watched.status}"] += 1

    async def run(self, scope, watched):
        try:
            async with asyncio.timeout(self.limits.max_seconds + GRACE_SECONDS):
                await self.app(scope, watched.receive, watched.send)
        except TimeoutError:  # a client that sends its request, or reads its reply, too slowly
            if watched.status is None:
                error = ApiError(408, "the request did not arrive within max_seconds")
                await error.response()(scope, watched.receive, watched.send)

    def check(self, path, headers):
        """Raise ApiError for a request that is not to be answered."""
        host = headers.get(b"host", b"").decode("latin-1")
        if not is_allowed_host(host, self.host):
            message = (
                f"the Host header {host[:100]!r} is neither an address nor the name of this "
                "server, which --host gives"
            )
            raise ApiError(421, message)
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self.limits.max_body:
            raise too_large(self.limits.max_body)
        if self.api_key and path.startswith(GUARDED):
            check_key(headers.get(b"authorization", b""), self.api_key)


class Watched:
    """The two channels of a request: counts what comes in, sets headers on what goes out."""

    def __init__(self, receive, send, max_body):
        self.receive_message = receive
        self.send_message = send
        self.max_body = max_body
        self.received = 0
        self.status = None

    async def receive(self):
        message = await self.receive_message()
        self.received += len(message.get("body", b""))
        if self.received > self.max_body:
            raise too_large(self.max_body)
        return message

    async def send(self, message):
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            for name, value in SECURITY_HEADERS.items():
                headers[name] = value
        await self.send_message(message)


def too_large(max_body):
    message = f"the body has more bytes than max_body={max_body:,}"
    return ApiError(413, message, headers={"Connection": "close"})


def check_key(authorization, api_key):
    """Raise ApiError unless the header is "Bearer KEY"; takes equally long for every wrong key."""
    scheme, _, given = authorization.partition(b" ")
    if scheme.lower() != b"bearer" or not hmac.compare_digest(given.strip(), api_key.encode()):
        message = "this server needs its key, in the header Authorization: Bearer KEY"
        headers = {"WWW-Authenticate": "Bearer"}
        raise ApiError(401, message, code="invalid_api_key", headers=headers)


def is_allowed_host(header, host):
    """Whether a Host header can come from someone who typed our address.

    A page whose own name was rebound to our address (DNS rebinding) sends that name.
    """
    name = header.rpartition(":")[0] if header.rpartition(":")[2].isdigit() else header
    if name.lower() in ("localhost", host.lower()):
        return True
    return is_address(name.removeprefix("[").removesuffix("]"))


def is_address(name):
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def is_loopback(host):
    if is_address(host):
        return ipaddress.ip_address(host).is_loopback
    return host.lower() == "localhost"
