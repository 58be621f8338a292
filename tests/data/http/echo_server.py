"""A server by aiohttp: gives bodies back, and echoes messages of WebSocket. Tells its port."""

import asyncio

from aiohttp import WSMsgType, web


async def echo(request):
    # Chunk by chunk, so that both directions pass at once.
    response = web.StreamResponse(headers={"x-version": f"{request.version.major}.{request.version.minor}"})
    if request.content_length is not None:
        response.content_length = request.content_length
    await response.prepare(request)
    async for chunk in request.content.iter_chunked(65536):
        await response.write(chunk)
    await response.write_eof()
    return response


async def socket(request):
    ws = web.WebSocketResponse()
    await ws.prepare(request)
    async for message in ws:
        if message.type == WSMsgType.TEXT and message.data == "told":
            told.set()
        elif message.type == WSMsgType.TEXT:
            await ws.send_str(message.data)
        elif message.type == WSMsgType.BINARY:
            await ws.send_bytes(message.data)
    return ws


async def assets(request):
    name = request.match_info["name"]
    if name == "page":
        scripts = "".join(f'<script src="/asset/{n}.js"></script>' for n in range(50))
        body = (
            f"<!doctype html><script>var loaded = 0;</script>{scripts}<p id=out>nothing</p><script>"
            "const ws = new WebSocket('wss://' + location.host + '/ws');"
            "const tell = word => document.getElementById('out').textContent ="
            " loaded + ' assets by ' + performance.getEntriesByType('navigation')[0].nextHopProtocol"
            " + ', ' + word;"
            "ws.onopen = () => ws.send('hello'); ws.onerror = () => tell('no socket');"
            "ws.onmessage = message => { tell('socket says ' + message.data); ws.send('told'); };</script>"
            # The browser looks once everything is loaded: not before the socket has spoken.
            '<script async src="/asset/last"></script>'
        )
        return web.Response(text=body, content_type="text/html")
    if name == "last":
        await asyncio.wait_for(told.wait(), 10)
        return web.Response(text="", content_type="text/javascript")
    return web.Response(text="loaded += 1;", content_type="text/javascript")


told = asyncio.Event()
application = web.Application(client_max_size=1 << 30)
application.router.add_route("*", "/echo", echo)
application.router.add_get("/ws", socket)
application.router.add_get("/asset/{name}", assets)


async def start():
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    print("port", site._server.sockets[0].getsockname()[1], flush=True)
    await asyncio.Event().wait()


asyncio.run(start())
