#!/usr/bin/env python3
"""Lets a program that speaks TCP only reach a Unix socket: listens on loopback, prints its port, and passes bytes on."""

import asyncio
import sys


async def copy(reader, writer):
    try:
        while chunk := await reader.read(65536):
            writer.write(chunk)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        try:
            writer.write_eof()
        except (OSError, RuntimeError):
            pass


async def main(socket):
    async def bridge(reader, writer):
        there, back = await asyncio.open_unix_connection(socket)
        await asyncio.gather(copy(reader, back), copy(there, writer))
        for end in (back, writer):
            end.close()

    server = await asyncio.start_server(bridge, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


asyncio.run(main(sys.argv[1]))
