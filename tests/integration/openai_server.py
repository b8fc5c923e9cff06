"""An OpenAI-compatible server on loopback around tiny models, by transformers alone."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class Server(ThreadingHTTPServer):
    """Serves models by name: chat completions, and completions with echo where it may."""

    daemon_threads = True

    def __init__(self, folders: dict[str, tuple[Path, Path | None]]):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.models = {name: _load(*of) for name, of in folders.items()}
        self.lock = threading.Lock()
        self.seen: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        """Path, headers and body of every request."""
        self.echoes, self.speaks = True, True
        """Whether prompts are scored where they should be, and answers hold a text."""
        self._turn = 0

    @property
    def url(self) -> str:
        """Its address, another one after each :meth:`renew`."""
        return f"http://127.0.0.1:{self.server_port}/{self._turn}/v1"

    def renew(self) -> None:
        """Forget what was asked. What a test left behind comes too late: it asks at the old address."""
        with self.lock:
            self._turn += 1
            self.seen, self.echoes, self.speaks = [], True, True

    def place(self, path: str) -> str | None:
        """A path without what is new with each turn; None of an earlier one."""
        turn, _, rest = path.removeprefix("/").partition("/")
        return f"/{rest}" if turn == str(self._turn) else None

    def asked(self, path: str) -> list[dict[str, Any]]:
        """Bodies of requests to a path."""
        return [body for at, _, body in self.seen if at == f"/v1/{path}"]

    def handle_error(self, request, client_address):
        """A client that gave up waiting is no news."""


@contextmanager
def serving(folders: dict[str, tuple[Path, Path | None]]) -> Iterator[Server]:
    """Run a server of models (folder, adapter) by name while the block runs."""
    server = Server(folders)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _load(folder: Path, adapter: Path | None) -> tuple[Any, Any]:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    return model.eval(), AutoTokenizer.from_pretrained(folder)


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        with server.lock:
            if (path := server.place(self.path)) is None:
                return self._send(410, {"error": "too late"})
            server.seen.append((path, dict(self.headers), body))
            if body["model"] not in server.models:
                return self._send(404, {"error": f"no model {body['model']}"})
            model, tokenizer = server.models[body["model"]]
            if path == "/v1/chat/completions":
                return self._send(200, _chat(model, tokenizer, body, server.speaks))
            return self._send(200, _completions(model, tokenizer, body, server.echoes))

    def _send(self, status, data):
        content = json.dumps(data).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments):
        pass


def _chat(model, tokenizer, body, speaks):
    encoded = tokenizer.apply_chat_template(body["messages"], add_generation_prompt=True, return_dict=True)
    text = _greedy(model, tokenizer, encoded["input_ids"], body["max_tokens"], body.get("stop") or [])
    message = {"role": "assistant", "content": text if speaks else None}
    return {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}


def _completions(model, tokenizer, body, echoes):
    import torch

    prompts = body["prompt"]
    prompts = prompts if isinstance(prompts[0], list) else [prompts]
    choices = []
    for index, tokens in enumerate(prompts):
        choice = {"index": index, "text": ""}
        if body.get("echo") and echoes:
            with torch.inference_mode():
                logits = model(torch.tensor([tokens])).logits[0].float().log_softmax(-1)
            best = logits.max(-1).values.tolist()
            scores = [float(logits[at, token]) for at, token in enumerate(tokens[1:])] + [best[-1]]
            tops = [{str(at): value} for at, value in enumerate(best)]
            choice["logprobs"] = {"token_logprobs": [None, *scores], "top_logprobs": [None, *tops]}
        else:
            choice["logprobs"] = {"token_logprobs": [-1.0], "top_logprobs": [{"x": -1.0}]}
            choice["text"] = _greedy(model, tokenizer, tokens, body["max_tokens"], body.get("stop") or [])
        choices.append(choice)
    return {"choices": choices}


def _greedy(model, tokenizer, tokens, max_tokens, stop):
    import torch

    tokens, start = list(tokens), len(tokens)
    while len(tokens) < start + max_tokens and tokenizer.eos_token_id not in tokens[start:]:
        with torch.inference_mode():
            tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
    text = tokenizer.decode(tokens[start:], skip_special_tokens=True)
    for end in stop:
        text = text.split(end)[0] if end else text
    return text
