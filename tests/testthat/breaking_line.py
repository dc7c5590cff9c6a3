"""A proxy to a server that breaks connections: the first large ones are cut after a given number of bytes, as by a bad network.

python breaking_line.py PORT_OF_THE_SERVER BYTES LINES     prints its own port
"""

import asyncio
import sys

server_port, limit, to_break = map(int, sys.argv[1:])
broken = 0


async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, limit: float) -> bool:
    """True if the limit was reached."""
    size = 0
    while data := await reader.read(1 << 14):
        size += len(data)
        writer.write(data)
        await writer.drain()
        if size > limit:
            return True
    if writer.can_write_eof():
        writer.write_eof()
    return False


async def line(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    global broken
    there, back = await asyncio.open_connection("127.0.0.1", server_port)
    answer = asyncio.ensure_future(carry(there, writer, float("inf")))
    if await carry(reader, back, limit if broken < to_break else float("inf")):
        broken += 1
        writer.transport.abort()
        back.transport.abort()
        answer.cancel()
        print("broken", broken, flush=True)
        return
    await asyncio.gather(answer, return_exceptions=True)
    writer.close()
    back.close()


async def main() -> None:
    listening = await asyncio.start_server(line, "127.0.0.1", 0)
    print(listening.sockets[0].getsockname()[1], flush=True)
    await listening.serve_forever()


asyncio.run(main())
