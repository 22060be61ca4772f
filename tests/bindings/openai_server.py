"""What a server with OpenAI's API over the engine has to do, whatever language it is written in.

    openai_server.py --command 'server -model {model} -addr {addr} -config {config}' --model examples/demo_model
    openai_server.py --base-url http://127.0.0.1:8000

With a base URL, the checks that need a server of their own (another model, limits, signals) are left out. Needs the package
`openai`; openai_client.txt has the versions.
"""

import argparse
import asyncio
import http.client
import json
import re
import shlex
import signal
import socket
import struct
import subprocess
import sys
import time
import unittest
import urllib.parse

import openai

from openai_streams import Streams

options = None
shared = None
CHAT = [{"role": "user", "content": "Tell me a story about a fox."}]
SLOW = "mock:words,delay_us=2000"
ENDLESS = {"prompt": "hello", "max_tokens": 30000, "ignore_eos": True}


class Server:
    """One that runs already, or one of our own."""

    def __init__(self, model=None, config=None, base_url=None, loaded=True):
        self.process = None
        if base_url is None:
            with socket.socket() as s:
                s.bind(("127.0.0.1", 0))
                port = s.getsockname()[1]
            values = {"model": model, "addr": f"127.0.0.1:{port}", "config": json.dumps({"log_level": "off", **(config or {})})}
            words = [word.format(**values) for word in shlex.split(options.command)]
            base_url, began = f"http://127.0.0.1:{port}", time.monotonic()
            self.process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
        url = urllib.parse.urlparse(base_url)
        self.host, self.port = url.hostname, url.port
        if self.process:
            while not (self.healthy() if loaded else self.health()):
                if self.process.poll() is not None or time.monotonic() - began > 30:
                    self.process.kill()
                    raise AssertionError(f"the server does not start: {self.process.communicate()[1]}")
                time.sleep(0.005)
            self.start_seconds = time.monotonic() - began
        self.model = self.json("GET", "/v1/models")[2]["data"][0]["id"] if loaded else None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        process, self.process = self.process, None
        if process:
            process.kill()
            process.communicate()

    def health(self):
        """As json(); None while nobody listens."""
        try:
            return self.json("GET", "/health")
        except OSError:
            return None

    def healthy(self):
        health = self.health()
        return health is not None and health[0] == 200

    def connect(self):
        return http.client.HTTPConnection(self.host, self.port, timeout=60)

    def send(self, connection, path, body, headers=None):
        text = body if isinstance(body, str) else json.dumps(body)
        connection.request("POST", path, text, {"content-type": "application/json", **(headers or {})})

    def json(self, method, path, body=None, headers=None):
        """Status, headers and body."""
        connection = self.connect()
        try:
            if body is None:
                connection.request(method, path, headers=headers or {})
            else:
                self.send(connection, path, body, headers)
            response = connection.getresponse()
            text = response.read().decode()
            is_json = "json" in response.getheader("content-type", "")
            return response.status, response.headers, json.loads(text) if is_json else text
        finally:
            connection.close()

    def gauge(self, name):
        text = self.json("GET", "/metrics")[2]
        return float(re.search(rf"^\S*{name}\{{[^}}]*\}} (\S+)$", text, re.M).group(1))

    def until(self, name, value):
        end = time.monotonic() + 10
        while self.gauge(name) != value:
            if time.monotonic() > end:
                raise AssertionError(f"{name} stays {self.gauge(name)}, not {value}")
            time.sleep(0.005)

    def client(self):
        return openai.OpenAI(base_url=f"http://{self.host}:{self.port}/v1", api_key="none", max_retries=0)


def events(response):
    """The data of server-sent events; each is one line, with an empty one behind it."""
    for block in response.read().decode().split("\n\n")[:-1]:
        assert block.startswith("data: ") and "\n" not in block, block
        yield block[len("data: "):]


class Client(unittest.TestCase):
    """Through the official client."""

    def setUp(self):
        self.client = shared.client()

    def chat(self, **more):
        return self.client.chat.completions.create(model=shared.model, messages=CHAT, **{"max_tokens": 40, "temperature": 0, **more})

    def text(self, **more):
        fields = {"prompt": "Once upon a time", "max_tokens": 40, "temperature": 0, **more}
        return self.client.completions.create(model=shared.model, **fields)

    def test_models(self):
        self.assertEqual([m.id for m in self.client.models.list()], [shared.model])
        with self.assertRaises(openai.NotFoundError) as caught:
            self.client.chat.completions.create(model="no such model", messages=CHAT)
        self.assertEqual(caught.exception.code, "model_not_found")

    def test_chat_streams_what_it_says_whole(self):
        whole = self.chat()
        choice = whole.choices[0]
        self.assertEqual((whole.object, choice.message.role), ("chat.completion", "assistant"))
        self.assertIn(choice.finish_reason, ("stop", "length"))
        text, roles, last = "", 0, None
        for chunk in self.chat(stream=True):
            self.assertEqual(chunk.object, "chat.completion.chunk")
            self.assertIsNone(chunk.usage)
            text += chunk.choices[0].delta.content or ""
            roles += chunk.choices[0].delta.role == "assistant"
            last = chunk.choices[0].finish_reason
        self.assertEqual((text, roles, last), (choice.message.content, 1, choice.finish_reason))
        self.assertNotEqual(text, "")

    def test_text_streams_what_it_says_whole(self):
        whole = self.text()
        self.assertEqual(whole.object, "text_completion")
        self.assertEqual("".join(c.choices[0].text for c in self.text(stream=True)), whole.choices[0].text)
        self.assertEqual(self.text(max_tokens=openai.omit).usage.completion_tokens, 16)

    def test_usage_and_cached_tokens(self):
        prompt = "A fox and a bear went into the wood. " * 12
        first, second = (self.text(prompt=prompt, max_tokens=4, extra_body={"ignore_eos": True}).usage for _ in range(2))
        self.assertEqual(first.completion_tokens, 4)
        self.assertEqual(first.total_tokens, first.prompt_tokens + 4)
        self.assertEqual(first.prompt_tokens, second.prompt_tokens)
        self.assertGreater(second.prompt_tokens_details.cached_tokens, 0)
        *chunks, last = self.text(prompt=prompt, max_tokens=4, stream=True, stream_options={"include_usage": True})
        self.assertEqual((last.choices, last.usage.prompt_tokens), ([], first.prompt_tokens))
        self.assertTrue(all(c.usage is None for c in chunks))

    def test_chat_logprobs(self):
        def check(content, text):
            self.assertTrue(content)
            for token in content:
                self.assertLessEqual(token.logprob, 0)
                self.assertEqual(len(token.top_logprobs), 3)
                self.assertEqual((token.top_logprobs[0].token, token.top_logprobs[0].logprob), (token.token, token.logprob))
            spelled = b"".join(bytes(t.bytes or []) for t in content).decode()
            self.assertIn(text.strip(), spelled)

        choice = self.chat(logprobs=True, top_logprobs=3).choices[0]
        check(choice.logprobs.content, choice.message.content)
        content, text = [], ""
        for chunk in self.chat(logprobs=True, top_logprobs=3, stream=True):
            content += chunk.choices[0].logprobs.content
            text += chunk.choices[0].delta.content or ""
        check(content, text)
        self.assertEqual(len(content), len(choice.logprobs.content))
        self.assertEqual(self.chat(logprobs=True).choices[0].logprobs.content[0].top_logprobs, [])
        self.assertIsNone(self.chat().choices[0].logprobs)

    def test_text_logprobs(self):
        found = self.text(logprobs=2, max_tokens=6).choices[0].logprobs
        self.assertEqual([len(x) for x in (found.tokens, found.token_logprobs, found.top_logprobs, found.text_offset)], [6] * 4)
        self.assertEqual(found.text_offset[0], 0)
        self.assertEqual(found.text_offset[1], len(found.tokens[0]))
        self.assertEqual(len(found.top_logprobs[0]), 2)
        streamed = []
        for chunk in self.text(logprobs=2, max_tokens=6, stream=True):
            streamed += chunk.choices[0].logprobs.text_offset
        self.assertEqual(streamed, found.text_offset)

    def test_several_choices(self):
        more = {"n": 3, "temperature": 1.2, "seed": 5}
        whole = self.chat(**more)
        texts = [c.message.content for c in whole.choices]
        self.assertEqual([c.index for c in whole.choices], [0, 1, 2])
        self.assertEqual(len(set(texts)), 3)
        streamed, ends = [""] * 3, [None] * 3
        for chunk in self.chat(**more, stream=True):
            for choice in chunk.choices:
                streamed[choice.index] += choice.delta.content or ""
                ends[choice.index] = ends[choice.index] or choice.finish_reason
        self.assertEqual(streamed, texts)
        self.assertEqual(ends, [c.finish_reason for c in whole.choices])

    def test_stop(self):
        whole = self.text().choices[0].text
        word = whole.split()[4]
        for stop in (word, [word, "never said"]):
            choice = self.text(stop=stop).choices[0]
            self.assertEqual((choice.text, choice.finish_reason), (whole[: whole.index(word)], "stop"))

    def test_sampling(self):
        def say(**more):
            return self.text(**{"temperature": 1, **more}).choices[0].text

        self.assertEqual(say(seed=11), say(seed=11))
        self.assertNotEqual(say(seed=11), say(seed=12))
        greedy = self.text().choices[0].text
        self.assertEqual(say(top_p=0.0001), greedy)
        self.assertEqual(say(extra_body={"top_k": 1}), greedy)
        self.assertEqual(say(extra_body={"min_p": 1}), greedy)
        for more in ({"presence_penalty": 2}, {"frequency_penalty": 2}, {"extra_body": {"repetition_penalty": 3}}):
            self.assertNotEqual(self.text(**more).choices[0].text, greedy, more)
        long = self.text(max_tokens=300, extra_body={"ignore_eos": True})
        self.assertEqual((long.usage.completion_tokens, long.choices[0].finish_reason), (300, "length"))
        self.assertGreaterEqual(self.text(max_tokens=300, extra_body={"min_tokens": 290}).usage.completion_tokens, 290)
        biased = self.text(logit_bias={"300": 100}, max_tokens=3, extra_body={"ignore_eos": True}, logprobs=0).choices[0]
        self.assertEqual(len(set(biased.logprobs.tokens)), 1)
        self.assertEqual(self.chat(max_tokens=openai.omit, max_completion_tokens=5).usage.completion_tokens, 5)

    def test_errors_have_their_classes(self):
        with self.assertRaises(openai.BadRequestError) as caught:
            self.chat(temperature=101)
        self.assertIn("temperature", str(caught.exception))
        with self.assertRaises(openai.BadRequestError) as caught:
            self.client.chat.completions.create(model=shared.model, messages=[{"role": "fox", "content": "x"}], stream=True)
        self.assertIn("Unknown role: fox", str(caught.exception))


class Wire(unittest.TestCase):
    """What the client hides."""

    def refused(self, path, body, param, status=400):
        got, _, answer = shared.json("POST", path, body)
        self.assertEqual(got, status, answer)
        error = answer["error"]
        self.assertEqual(set(error), {"message", "type", "param", "code"})
        self.assertEqual((error["type"], error["param"]), ("invalid_request_error", param))
        return error["message"]

    def test_fields_without_effect_are_refused_by_name(self):
        chat, text = {"messages": CHAT, "max_tokens": 1}, {"prompt": "x", "max_tokens": 1}
        for more in ({"temprature": 1}, {"tools": []}, {"response_format": {"type": "text"}}, {"Temperature": 1}, {"prompt": "x"}):
            name = next(iter(more))
            self.assertIn(f'"{name}"', self.refused("/v1/chat/completions", {**chat, **more}, name))
        for more in ({"echo": True}, {"suffix": "end"}, {"best_of": 2}):
            name = next(iter(more))
            self.assertIn(f'"{name}"', self.refused("/v1/completions", {**text, **more}, name))
        self.refused("/v1/completions", {**text, "stream": True, "stream_options": {"x": 1}}, "stream_options.x")
        self.assertEqual(shared.json("POST", "/v1/completions", {**text, "echo": None})[0], 200)

    def test_wrong_values_are_refused(self):
        text = {"prompt": "x", "max_tokens": 1}
        for more, param in [({"n": 0}, "n"), ({"max_tokens": "x"}, "max_tokens"), ({"stop": 3}, "stop"), ({"prompt": ["a", "b"]}, "prompt"),
                            ({"stream_options": {"include_usage": True}}, "stream_options"),
                            ({"stream_options": {"include_usage": 3}}, "stream_options.include_usage")]:
            self.refused("/v1/completions", {**text, **more}, param)
        self.refused("/v1/chat/completions", {"messages": CHAT, "top_logprobs": 2}, "top_logprobs")
        self.refused("/v1/chat/completions", {}, "messages")
        self.assertIn("JSON", self.refused("/v1/completions", "{", None))
        self.assertIn("logit_bias", self.refused("/v1/completions", {**text, "logit_bias": {"x": 1}}, None))
        self.refused("/v1/nothing", {}, None, 404)
        self.assertEqual(shared.json("GET", "/v1/completions")[0], 405)

    def test_events_end_in_done(self):
        connection = shared.connect()
        shared.send(connection, "/v1/chat/completions", {"messages": CHAT, "max_tokens": 5, "stream": True})
        response = connection.getresponse()
        self.assertEqual(response.getheader("content-type").split(";")[0], "text/event-stream")
        *chunks, last = events(response)
        self.assertEqual(last, "[DONE]")
        self.assertEqual(len({json.loads(c)["id"] for c in chunks}), 1)
        connection.close()

    def test_the_page_is_at_the_root(self):
        if "-web " not in (options.command or ""):
            self.skipTest("needs a --command with -web")
        status, headers, page = shared.json("GET", "/")
        self.assertEqual((status, headers["content-type"]), (200, "text/html; charset=utf-8"))
        self.assertIn("</html>", page)

    def test_request_ids(self):
        for path, body in (("/v1/completions", {"prompt": "x", "max_tokens": 1}), ("/v1/completions", {"bad": 1}), ("/v1/models", None)):
            method = "POST" if body else "GET"
            self.assertEqual(shared.json(method, path, body, {"x-request-id": "fox-7"})[1]["x-request-id"], "fox-7")
            made = {shared.json(method, path, body)[1]["x-request-id"] for _ in range(2)}
            self.assertEqual(len(made), 2)


class OwnServer(unittest.TestCase):
    """Other models, limits and signals."""

    def setUp(self):
        if not options.command:
            self.skipTest("needs --command")

    def test_it_starts_within_a_second(self):
        # The machine may be busy with something else.
        took = []
        while len(took) < 20 and min(took, default=2) >= 1:
            with Server(options.model) as server:
                took.append(server.start_seconds)
        self.assertLess(min(took), 1)

    def test_a_full_queue_answers_429(self):
        with Server(SLOW, {"max_num_seqs": 1, "max_waiting": 1}) as server:
            held = []
            for gauge in ("num_requests_running", "num_requests_waiting"):
                held.append(server.connect())
                server.send(held[-1], "/v1/completions", {**ENDLESS, "stream": True})
                server.until(gauge, 1)
            status, headers, answer = server.json("POST", "/v1/completions", ENDLESS)
            self.assertEqual(status, 429, answer)
            self.assertGreaterEqual(int(headers["retry-after"]), 1)
            self.assertEqual(answer["error"]["type"], "rate_limit_error")
            for connection in held:
                connection.close()
            server.until("num_requests_waiting", 0)
            server.until("num_requests_running", 0)

    def test_a_client_that_leaves_frees_its_place(self):
        with Server(SLOW) as server:
            for stream in (True, False):
                connection = server.connect()
                server.send(connection, "/v1/completions", {**ENDLESS, "stream": stream})
                response = connection.getresponse() if stream else None
                server.until("num_requests_running", 1)
                if stream:
                    response.read(200)
                    response.close()
                connection.close()
                server.until("num_requests_running", 0)

    def test_five_hundred_streams_at_once(self):
        async def use(opened):
            running = await asyncio.to_thread(server.gauge, "num_requests_running")
            return running, await asyncio.gather(*(streams.read(o) for o in opened))

        with Server("mock:words,delay_us=100000", {"max_num_seqs": 500}) as server:
            # A busy machine takes long to open all: then they run for longer.
            for round, tokens in enumerate((40, 120, 360), start=1):
                streams = Streams(server, 500, tokens)
                running, ends = asyncio.run(streams.all(use))
                self.assertEqual([end for end in ends if end != (1, True, 1, [tokens])], [])
                server.until("requests_finished_total", 500 * round)
                self.idle(server)
                if running == 500:
                    break
            self.assertEqual(running, 500)

    def test_killed_clients_free_their_blocks(self):
        async def use(opened):
            used = await asyncio.to_thread(server.gauge, "kv_cache_usage_perc")
            for _, writer in opened:
                # A reset, as of a process that was killed with data unread.
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.transport.abort()
            return used

        with Server("mock:words,delay_us=20000", {"max_num_seqs": 100}) as server:
            streams = Streams(server, 100, 30000)
            self.assertGreater(asyncio.run(streams.all(use)), 0)
            server.until("requests_finished_total", 100)
            self.idle(server)
            status, _, answer = server.json("POST", "/v1/completions", {"prompt": "x", "max_tokens": 3, "ignore_eos": True})
            self.assertEqual((status, answer["usage"]["completion_tokens"]), (200, 3))

    def idle(self, server):
        for gauge in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"):
            server.until(gauge, 0)

    def test_health_tells_that_the_model_still_loads(self):
        with Server("mock:words,load_ms=1500", {"async_load": True, "served_model_name": "fox"}, loaded=False) as server:
            status, headers, answer = server.health()
            self.assertEqual((status, answer["status"]), (503, "loading"))
            self.assertIn("retry-after", headers)
            body = {"prompt": "x", "max_tokens": 1}
            status, headers, answer = server.json("POST", "/v1/completions", body)
            self.assertEqual((status, answer["error"]["type"]), (503, "server_error"))
            self.assertIn("retry-after", headers)
            end = time.monotonic() + 20
            while not server.healthy() and time.monotonic() < end:
                time.sleep(0.01)
            self.assertEqual(server.health()[2], {"status": "ok"})
            self.assertEqual(server.json("GET", "/v1/models")[2]["data"][0]["id"], "fox")
            self.assertEqual(server.json("POST", "/v1/completions", body)[0], 200)

    def test_a_model_that_does_not_load_ends_the_server(self):
        for config in ({}, {"async_load": True}):
            with self.assertRaisesRegex(AssertionError, "(?s)does not start.*/no/such/model"):
                Server("/no/such/model", config)

    def test_a_deadline_ends_a_request(self):
        with Server(SLOW) as server:
            began, headers = time.monotonic(), {"x-request-timeout-ms": "100"}
            status, _, answer = server.json("POST", "/v1/completions", ENDLESS, headers)
            self.assertEqual((status, answer["error"]["code"]), (504, "deadline_exceeded"))
            connection = server.connect()
            server.send(connection, "/v1/completions", {**ENDLESS, "stream": True}, headers)
            *_, last = events(connection.getresponse())
            connection.close()
            self.assertEqual(json.loads(last)["error"]["code"], "deadline_exceeded")
            self.assertLess(time.monotonic() - began, 5)
            self.assertEqual(server.json("POST", "/v1/completions", ENDLESS, {"x-request-timeout-ms": "soon"})[0], 400)

    def test_sigterm_lets_requests_finish(self):
        with Server(SLOW) as server:
            connection = server.connect()
            server.send(connection, "/v1/completions", {**ENDLESS, "max_tokens": 400, "stream": True, "stream_options": {"include_usage": True}})
            response = connection.getresponse()
            server.process.send_signal(signal.SIGTERM)
            end = time.monotonic() + 5
            while server.healthy() and time.monotonic() < end:
                time.sleep(0.005)
            status, headers, answer = server.health()
            self.assertEqual((status, answer["status"]), (503, "draining"))
            status, headers, answer = server.json("POST", "/v1/completions", ENDLESS)
            self.assertEqual((status, answer["error"]["type"]), (503, "server_error"))
            self.assertIn("retry-after", headers)
            *_, usage, done = events(response)
            self.assertEqual((done, json.loads(usage)["usage"]["completion_tokens"]), ("[DONE]", 400))
            connection.close()
            self.assertEqual(server.process.wait(10), 0)


def main():
    global options, shared
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--command", help="starts the server, with {model}, {addr} and {config} in it")
    parser.add_argument("--model", help="the directory of the demo model")
    parser.add_argument("--base-url", help="a server with the demo model that runs already")
    options, rest = parser.parse_known_args()
    if not options.base_url and not (options.command and options.model):
        parser.error("give --base-url, or --command and --model")
    shared = Server(options.model, base_url=options.base_url)
    try:
        return 0 if unittest.main(argv=[sys.argv[0], *rest], exit=False).result.wasSuccessful() else 1
    finally:
        shared.close()


if __name__ == "__main__":
    sys.exit(main())
