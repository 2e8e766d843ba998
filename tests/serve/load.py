"""Many clients at once, for minutes: is anything lost, does memory grow, and what is gained over one at a time?

    python -m tests.serve.load [--clients 64] [--minutes 3] [-- FLAGS OF llama.serve]

First one client asks every question alone; then all ask the same questions over and over, each of them the next one as
soon as it has its answer, half of them as streams; some hang up in the middle, and some come when the queue is full and
come again. What each gets is compared with what the one got alone (bfloat16 may break a tie otherwise beside others;
float32, `-- --dtype float32`, hardly ever does). Figures are for this machine, as it was loaded meanwhile: the ratio
of CPU seconds for a token does not depend on who else had the processor.
"""

import argparse
import http.client
import json
import os
import platform
import random
import statistics
import sys
import threading
import time
from collections import Counter
from datetime import date
from pathlib import Path
from urllib.parse import urlsplit

from tests.serve.started import Started, started

QUESTIONS = ["What is the capital of France?", "Name three colours.", "Why is the sky blue?", "Write a line of verse.",
             "Translate to French: the dog sleeps.", "What is 12 times 12?", "Who wrote Hamlet?",
             "Give me a recipe for pancakes.", "Explain photosynthesis to a child. " * 4, "List the planets.",
             "What does a compiler do?", "Describe a forest in autumn, with all that one hears and smells. " * 6,
             "How do magnets work?", "Say good morning in Chinese.", "What is a prime number?",
             "Tell me a short story."]
TOKENS = 48
HANGS_UP = 0.05                                                     # share of requests whose client does not stay


def body(number: int, *, stream: bool) -> dict:
    return {"messages": [{"role": "user", "content": QUESTIONS[number]}], "max_tokens": TOKENS - number, "seed": number,
            "temperature": 0.7 * (number % 2), "stream": stream, "stream_options": {"include_usage": True}} | \
        ({} if stream else {"stream_options": None})


class Client:
    def __init__(self, url: str):
        self.address = urlsplit(url).netloc

    def ask(self, number: int, *, stream: bool, hang_up: bool = False) -> tuple[str, int]:
        """(text, tokens); raises for whatever is not a whole answer. A full queue is waited for."""
        while True:
            connection = http.client.HTTPConnection(self.address, timeout=3600)
            try:
                connection.request("POST", "/v1/chat/completions", json.dumps(body(number, stream=stream)),
                                   {"Content-Type": "application/json"})
                answer = connection.getresponse()
                if answer.status == 429:
                    answer.read()
                    time.sleep(float(answer.headers["Retry-After"]) * random.random())
                    continue
                if answer.status != 200:
                    raise RuntimeError(f"{answer.status}: {answer.read()[:200]!r}")
                if hang_up:
                    answer.read(200)
                    return "", 0
                return _stream(answer) if stream else _whole(json.loads(answer.read()))
            finally:
                connection.close()


def _whole(answer: dict) -> tuple[str, int]:
    return answer["choices"][0]["message"]["content"], answer["usage"]["completion_tokens"]


def _stream(answer: http.client.HTTPResponse) -> tuple[str, int]:
    *events, last = answer.read().decode().removesuffix("\n\n").split("\n\n")
    if last != "data: [DONE]":
        raise RuntimeError(f"a stream broke off: {last!r:.200}")
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    text = "".join(choice["delta"].get("content", "") for chunk in chunks for choice in chunk["choices"])
    return text, chunks[-1]["usage"]["completion_tokens"]


def one_at_a_time(server: Started) -> tuple[dict[int, str], float, float]:
    """The texts, tokens a second, and CPU seconds of the server for a token."""
    client, texts, tokens = Client(server.url), {}, 0
    client.ask(0, stream=False)                                     # what is made at the first use
    cpu, start = server.cpu_seconds(), time.perf_counter()
    for number in range(len(QUESTIONS)):
        texts[number], count = client.ask(number, stream=bool(number % 2))
        tokens += count
    return texts, tokens / (time.perf_counter() - start), (server.cpu_seconds() - cpu) / tokens


class Load:
    """All clients at once."""

    def __init__(self, server: Started, expected: dict[int, str], *, clients: int, minutes: float):
        self.server, self.expected, self.end = server, expected, time.monotonic() + minutes * 60
        self.counts: Counter[str] = Counter()
        self.seconds: list[float] = []
        self.faults: list[str] = []
        self.lock = threading.Lock()
        self.threads = [threading.Thread(target=self._client, args=(i,)) for i in range(clients)]

    def run(self) -> list[int]:
        """Resident bytes of the server, from time to time."""
        memory = []
        for thread in self.threads:
            thread.start()
        while any(thread.is_alive() for thread in self.threads):
            time.sleep(min(5.0, max(self.end - time.monotonic(), 0.2)))
            memory.append(self.server.resident())
        return memory

    def _client(self, i: int) -> None:
        rng, client = random.Random(i), Client(self.server.url)
        while time.monotonic() < self.end:
            number, hang_up = rng.randrange(len(QUESTIONS)), rng.random() < HANGS_UP
            start = time.perf_counter()
            try:
                text, tokens = client.ask(number, stream=rng.random() < 0.5, hang_up=hang_up)
            except Exception as error:                              # each is a request that was lost
                with self.lock:
                    self.faults.append(f"{type(error).__name__}: {error}")
                continue
            with self.lock:
                if hang_up:
                    self.counts["hung up"] += 1
                    continue
                self.seconds.append(time.perf_counter() - start)
                self.counts["answers"] += 1
                self.counts["tokens"] += tokens
                self.counts["as alone"] += text == self.expected[number]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.serve.load", description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--minutes", type=float, default=3)
    parser.add_argument("flags", nargs="*", help="of llama.serve, behind --")
    arguments = parser.parse_args()
    print(f"{date.today()}, {_processor()}, OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', '-')}, "
          f"load average {os.getloadavg()[0]:.1f}: llama.serve {' '.join(arguments.flags)}", flush=True)
    with started(*arguments.flags) as server:
        expected, alone, cpu_alone = one_at_a_time(server)
        print(f"one at a time: {alone:.1f} tokens a second, {cpu_alone * 1000:.1f} ms of CPU a token", flush=True)
        load = Load(server, expected, clients=arguments.clients, minutes=arguments.minutes)
        files, cpu, start = server.peers(), server.cpu_seconds(), time.perf_counter()
        memory = load.run()
        seconds, cpu = time.perf_counter() - start, server.cpu_seconds() - cpu
        time.sleep(2)
        left = server.peers() - files
    counts, tokens = load.counts, load.counts["tokens"]
    together, cpu_together = tokens / seconds, cpu / max(tokens, 1)
    third = max(len(memory) // 3, 1)
    early, late = max(memory[:third]), max(memory[-third:])
    latency = statistics.quantiles(load.seconds, n=20) if len(load.seconds) > 1 else [0.0] * 19
    print(f"""{arguments.clients} clients, {seconds:.0f} s: {together:.1f} tokens a second, \
{cpu_together * 1000:.1f} ms of CPU a token
gained: {together / alone:.2f} times the tokens a second, {cpu_alone / cpu_together:.2f} times those of a CPU second
{counts['answers']} answers, {len(load.faults)} lost, {counts['hung up']} hung up; {counts['as alone']} texts as alone \
({counts['as alone'] / max(counts['answers'], 1):.1%})
an answer takes {latency[9]:.1f} s (half), {latency[18]:.1f} s (95 %)
memory: at most {early / 2**20:,.0f} MB in the first third, {late / 2**20:,.0f} MB in the last; {left} files more open \
at the end""")
    for fault in load.faults[:5]:
        print(f"  lost: {fault}")
    flat = late <= early * 1.03 and left <= 2
    if load.faults or not flat or not counts["answers"]:
        print("load: failed: " + ("requests were lost" if load.faults else "memory or open files grew"))
        return 1
    print("load: nothing lost, memory flat")
    return 0


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} × {names[0]}" if names else platform.processor()


if __name__ == "__main__":
    sys.exit(main())
