"""Many clients of a streaming server at once, for openai_server.py."""

import asyncio
import json
import re


class Streams:
    """Many clients at once, each with a connection of its own, on one thread."""

    def __init__(self, server, count, tokens):
        self.server, self.count, self.tokens = server, count, tokens
        self.begun = 0

    async def open(self, i):
        """Behind the first event."""
        body = {"prompt": f"Story {i}", "max_tokens": self.tokens, "ignore_eos": True, "stream": True, "stream_options": {"include_usage": True}}
        text = json.dumps(body)
        reader, writer = await asyncio.open_connection(self.server.host, self.server.port)
        writer.write(f"POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n"
                     f"content-length: {len(text)}\r\n\r\n{text}".encode())
        status = await reader.readline()
        assert b" 200 " in status, status
        while not (await reader.readline()).startswith(b"data: "):
            pass
        self.begun += 1
        return reader, writer

    async def read(self, opened):
        """How often the stream ended, in each of the ways that the protocol has, and how many tokens it counted."""
        reader, writer = opened
        rest = (await reader.read()).decode()
        writer.close()
        data = re.findall(r"data: (.*)\n\n", rest)
        usage = [int(n) for n in re.findall(r'"completion_tokens":\s*(\d+)', rest)]
        reasons = sum(bool(re.search(r'"finish_reason":\s*"length"', d)) for d in data)
        return data.count("[DONE]"), data[-1:] == ["[DONE]"], reasons, usage

    async def all(self, use):
        """Opens all, and only when every one has begun gives them to `use`."""
        return await use(await asyncio.gather(*(self.open(i) for i in range(self.count))))
