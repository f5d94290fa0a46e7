"""How long one score takes: `python training/complexity/speed.py` prints p50 and p99 in microseconds, by kind of request.

One thread, processor time, each request once before it counts. "New words" gives each request words never seen before, which is what
a memory of words cannot help with; "hostile" are texts made to be slow for the expressions that find what is asked.
"""

from __future__ import annotations

import json
import random
import string
import time
from pathlib import Path

from hortator.routing.complexity import score

HERE = Path(__file__).parent
ROUNDS = 5

Messages = list[dict[str, object]]


def user(text: str) -> Messages:
    return [{"role": "user", "content": text}]


def labelled(name: str) -> list[Messages]:
    return [json.loads(line)["messages"] for line in (HERE / name).read_text(encoding="utf-8").splitlines()]


def new_words(count: int, words: int) -> list[Messages]:
    source = random.Random(1)
    return [
        user(" ".join("".join(source.choices(string.ascii_lowercase, k=7)) for _ in range(words))) for _ in range(count)
    ]


def at_the_cap() -> list[Messages]:
    """Long running text, as much of it as is looked at and much more."""
    texts = [record[-1]["content"] for record in labelled("requests.jsonl")]
    prose = [text for text in texts if isinstance(text, str) and "\n" not in text]
    source = random.Random(2)
    return [user(" ".join(source.choices(prose, k=60))) for _ in range(300)]


def hostile() -> dict[str, Messages]:
    return {
        "quotes": user("'a " * 2_000),
        "open tags": user("<a " * 2_000 + "</"),
        "tags": user("<a></b>" * 1_000),
        "labels": user("\nmy request" * 500),
        "fences": user("```\n" * 1_000),
        "dots": user("a.b" * 2_000),
        "numbers": user("1,000,000 " * 500),
        "json": user('{"content": "' + '\\"' * 3_000 + '"}'),
        "brackets": user('["' + "[" * 3_000 + '"]'),
        "commas": user("a,b,c," * 700),
        "bullets": user("- do it all\n" * 500),
        "Chinese": user("设计一个完整的电商平台" * 400),
        "Arabic": user("صمم نظاما مصرفيا متكاملا " * 200),
        "big words": user("design migrate architecture platform whole system " * 80),
        "sentences": user("Build it. Why? " * 300),
        "one line": user("x" * 100_000),
        "blank": user(" \n" * 50_000),
        "parts": [{"role": "user", "content": [{"type": "text", "text": "design it"}] * 5_000}],
        "turns": user("yes do it") * 5_000,
    }


def figures(name: str, requests: list[Messages], rounds: int = ROUNDS, warm: bool = True) -> None:
    took = []
    if warm:
        for messages in requests:
            score(messages)
    for _ in range(rounds):
        for messages in requests:
            start = time.thread_time_ns()
            score(messages)
            took.append((time.thread_time_ns() - start) / 1_000)
    took.sort()
    p50, p99 = took[len(took) // 2], took[len(took) * 99 // 100]
    print(f"{name:40s} p50 {p50:7.1f}  p99 {p99:7.1f}  ({len(took)} scores)")


def main() -> None:
    for name in ("requests", "adversarial", "adversarial-2"):
        figures(f"{name}.jsonl", labelled(f"{name}.jsonl"))
    figures("running text beyond the cap", at_the_cap())
    figures("new words, 12 a request", new_words(1_000, 12), 1, warm=False)
    figures("new words, 500 a request", new_words(500, 500), 1, warm=False)
    for name, messages in hostile().items():
        figures(f"hostile: {name}", [messages], 200)


if __name__ == "__main__":
    main()
