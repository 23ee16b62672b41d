"""One program of clients: asks the endpoint for real completions and prints a line of JSON for each that came back, or did not.

It runs alone in the LAN's namespace (`python3 -IS asker.py OPTIONS`), so that a request costs no process of its own.
"""

from __future__ import annotations

import argparse
import http.client
import json
import sys
import threading
import time

PAUSE_AFTER_FAILURE_S = 1.0

said = threading.Lock()


def ask(options: argparse.Namespace) -> str:
    """Nothing where it was answered; else what went wrong, in a few words."""
    body = {
        "model": options.model,
        "max_tokens": options.tokens,
        "messages": [{"role": "user", "content": "Tell me a long story."}],
    }
    connection = http.client.HTTPConnection(options.host, options.port, timeout=options.max_s)
    try:
        connection.request(
            "POST", "/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        answer = connection.getresponse()
        text = answer.read()
        if answer.status != 200:
            return f"status {answer.status}"
        return "" if json.loads(text)["choices"][0]["message"]["content"] else "empty answer"
    except TimeoutError:
        return f"no answer within {options.max_s:g} s"
    except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    finally:
        connection.close()


def go_on_asking(options: argparse.Namespace) -> None:
    while True:
        sent = time.time()
        wrong = ask(options)
        line = json.dumps({"sent": sent, "done": time.time(), "wrong": wrong})
        with said:
            print(line, flush=True)
        if options.once and not wrong:
            return
        if wrong:
            time.sleep(PAUSE_AFTER_FAILURE_S)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--streams", type=int, default=1)
    parser.add_argument("--max-s", type=float, default=20.0)
    parser.add_argument("--once", action="store_true", help="end after the first answer")
    options = parser.parse_args()
    threads = [threading.Thread(target=go_on_asking, args=(options,), daemon=True) for _ in range(options.streams)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    sys.exit(main())
