"""Talks to an echo by `websockets`: PORT NAME [CA]. Prints `ok` at the end."""

import asyncio
import os
import socket as sockets
import ssl
import sys

import websockets

port, name, *ca = sys.argv[1:]


def connect():
    context = ssl.create_default_context(cafile=ca[0]) if ca else None
    uri = f"{'wss' if ca else 'ws'}://{name}:{port}/ws"
    sock = sockets.create_connection(("127.0.0.1", int(port)))
    options = {"ssl": context, "server_hostname": name} if ca else {}
    return websockets.connect(uri, sock=sock, max_size=1 << 24, **options)


async def main():
    async with connect() as socket:
        for message in ["hello", os.urandom(1_000_000), "x" * 1_000_000, b""]:
            await socket.send(message)
            assert await asyncio.wait_for(socket.recv(), 10) == message
        await asyncio.wait_for(await socket.ping(b"ping"), 10)
    assert socket.close_code == 1000, socket.close_code
    for code in [1000, 1001, 3000, 4999]:
        async with connect() as socket:
            await socket.send(f"close {code}")
            try:
                await asyncio.wait_for(socket.recv(), 10)
                raise AssertionError("it was not closed")
            except websockets.ConnectionClosed:
                pass
            assert (socket.close_code, socket.close_reason) == (code, "as asked")
    print("ok")


asyncio.run(main())
