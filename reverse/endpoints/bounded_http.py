"""The HTTP client below the openai client: it bounds the bytes of each reply and the time of each exchange.

The openai client reads a reply as a whole, however large it unpacks, and its timeout starts anew with every
chunk. Here a reply is read by `bounded_replies.read_body` within one total time, before the openai client
sees it.
"""

import asyncio
from typing import Any

import httpx2

from reverse.endpoints.bounded_replies import MAX_REPLY_BYTES, BadReplyError, read_body

ERROR_BYTES = 4096  # that are read of the body of an error


class BoundedHTTPClient(httpx2.AsyncClient):
    """An HTTP client that raises BadReplyError or TimeoutError for a reply that breaks a bound.

    Args:
        seconds: of one exchange, from the start of the request to the last byte of the reply.
        connections: largest number of connections at a time.
    """

    def __init__(self, seconds: float, connections: int, **options: Any):
        limits = httpx2.Limits(max_connections=connections, max_keepalive_connections=connections)
        # Most servers then send replies unpacked; packed ones are bounded all the same.
        super().__init__(limits=limits, timeout=None, headers={"Accept-Encoding": "identity"}, **options)
        self.seconds = seconds

    async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        """Send a request and return its response with the whole body, unpacked."""
        async with asyncio.timeout(self.seconds):
            response = await super().send(request, **(options | {"stream": True}))
            try:
                if response.status_code == 200:
                    body = await read_body(response, MAX_REPLY_BYTES)
                else:
                    try:
                        body = await read_body(response, ERROR_BYTES, cut=True)
                    except BadReplyError as error:
                        body = str(error).encode()
            finally:
                await response.aclose()
        headers = {"content-type": "application/json"}  # the charset that the server names is not used
        if (again_after := response.headers.get("retry-after")) is not None:
            headers["retry-after"] = again_after
        return httpx2.Response(response.status_code, headers=headers, content=body, request=request)
