"""A server that answers from a fixed function of the tokens, and misbehaves on request."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

Fault = Callable[["Stub", BaseHTTPRequestHandler, int], bool]
"""Gets the server, the request and its number; returns whether it has answered it."""


class Stub:
    """The state of the server; tests change it while it runs."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.vocabulary = tokenizer, len(tokenizer)
        self.model = "stub"
        self.seed = 0
        self.most = 20
        self.extra = 0  # positions that an answer has too many
        self.fault: Fault = lambda stub, handler, number: False
        self.text: Callable[[str], str] = lambda prompt: "Answer: yes"
        self.count = 0
        self.prompts: list[list[int]] = []
        self.keys: set[str | None] = set()
        self.lock = threading.Lock()

    def log_probs(self, before: list[int]) -> Any:
        """Return the log-probabilities of the next token, (V,)."""
        logits = np.random.default_rng([self.seed, *before]).normal(size=self.vocabulary) * 2
        return logits - np.log(np.exp(logits).sum())

    def answer(self, body: dict[str, Any]) -> tuple[int, Any]:
        """Return status and content of an answer."""
        if body["model"] != self.model:
            return 404, {"error": {"message": f"The model `{body['model']}` does not exist."}}
        if "top_p" in body:
            return 200, self.written(body)
        if "prompt_logprobs" not in body:
            return 200, self.next_token(body)
        k, prompt = body["prompt_logprobs"], body["prompt"]
        if k > self.most:
            text = f"Requested prompt logprobs of {k}, which is greater than {self.most}"
            return 400, {"error": {"message": text}}
        entries: list[Any] = [None]
        for position in range(1, len(prompt)):
            values = self.log_probs(prompt[:position])
            chosen = {*np.argsort(-values)[:k].tolist(), prompt[position]}
            entries.append({str(token): {"logprob": values[token]} for token in chosen})
        choice = {"index": 0, "text": "", "prompt_logprobs": entries + [None] * self.extra}
        usage = {"prompt_tokens": len(prompt), "completion_tokens": 0}
        return 200, {"choices": [choice], "usage": usage}

    def written(self, body: dict[str, Any]) -> Any:
        """Write what `text` says about a prompt."""
        is_chat = "messages" in body
        prompt = body["messages"][0]["content"] if is_chat else body["prompt"]
        words = prompt if isinstance(prompt, str) else self.tokenizer.decode(prompt)
        text = self.text(words)
        ids = self.tokenizer(text)["input_ids"]
        is_whole = len(ids) <= body["max_tokens"]
        text = text if is_whole else self.tokenizer.decode(ids[: body["max_tokens"]])
        choice = {"message": {"content": text}} if is_chat else {"text": text}
        choice |= {"finish_reason": "stop" if is_whole else "length"}
        read = len(self.tokenizer(words)["input_ids"])
        usage = {"prompt_tokens": read, "completion_tokens": min(len(ids), body["max_tokens"])}
        return {"choices": [choice], "usage": usage}

    def next_token(self, body: dict[str, Any]) -> Any:
        """Answer like a server that returns probabilities of generated tokens only."""
        prompt = self.tokenizer(body["prompt"])["input_ids"]
        values = self.log_probs(prompt)
        best = np.argsort(-values)[: body["logprobs"]].tolist()
        top = {f"token_id:{token}": values[token] for token in best}
        usage = {"prompt_tokens": len(prompt), "completion_tokens": 1}
        return {"choices": [{"logprobs": {"top_logprobs": [top]}}], "usage": usage}


@contextmanager
def serving(stub: Stub) -> Iterator[str]:
    """Yield the address of a running server."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            self.reply(200, {"data": [{"id": stub.model}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            with stub.lock:
                stub.count += 1
                number = stub.count
                stub.prompts.append(body.get("prompt") or body["messages"])
                stub.keys.add(self.headers.get("authorization"))
            if not stub.fault(stub, self, number):
                self.reply(*stub.answer(body))

        def reply(self, status: int, content: Any, **headers: str) -> None:
            text = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(text)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
