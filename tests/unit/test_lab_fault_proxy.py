"""The proxy that breaks exchanges must itself end each of them, else tests wait for what never comes."""

import socket
from urllib.parse import urlsplit

from lab.fault_proxy import FaultProxy
from lab.processes import wait_until


def test_a_client_that_dies_within_its_body_ends_the_exchange() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, FaultProxy(url_of(server)) as proxy:
        with socket.create_connection((urlsplit(proxy.url).hostname, urlsplit(proxy.url).port)) as client:
            client.sendall(b"PUT /f HTTP/1.1\r\nContent-Length: 100\r\n\r\nbeginning")
            wait_until(lambda: proxy.serving == 1 and len(proxy.requests) == 1, "the request")
        wait_until(lambda: proxy.serving == 0, "the end of the exchange, which the server does not answer")


def url_of(server: socket.socket) -> str:
    return f"http://127.0.0.1:{server.getsockname()[1]}"
