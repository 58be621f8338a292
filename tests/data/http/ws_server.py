"""A server by `websockets`: gives messages back; `close N` is answered by that code. Tells its port."""

import asyncio

import websockets


async def serve(socket):
    async for message in socket:
        if isinstance(message, str) and message.startswith("close "):
            await socket.close(int(message.split()[1]), "as asked")
            return
        await socket.send(message)


async def main():
    async with websockets.serve(serve, "127.0.0.1", 0, max_size=1 << 24, ping_interval=None) as server:
        print("port", server.sockets[0].getsockname()[1], flush=True)
        await asyncio.Event().wait()


asyncio.run(main())
