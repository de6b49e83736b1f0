"""Send requests: the key, retries with back-off, limits of rate and concurrency, and what is used.

Messages never contain the key or the headers.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, TypeVar

import httpx2

from firstcli.api import RemoteUsage, UserError

if TYPE_CHECKING:
    from firstcli_server import ServerOptions

Item = TypeVar("Item")
Result = TypeVar("Result")

PASSING = (408, 409, 425, 429, 500, 502, 503, 504, 529)
"""States of a server that may pass."""
FIRST_WAIT = 0.5  # seconds; each further wait is twice as long
MOST_WAIT = 600.0  # seconds that a server may ask for
LONGEST_WAIT = 60.0


class Refused(Exception):
    """The server refused a request, and would refuse it again."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


class Client:
    """The connection to one server; its methods may be called from several threads."""

    def __init__(self, options: ServerOptions, sleep: Callable[[float], None] = time.sleep) -> None:
        """Connect to nothing yet.

        Args:
            options: the family's options.
            sleep: waits for some seconds.

        Raises:
            UserError: the environment variable of the key is not set.
        """
        self._options, self._sleep = options, sleep
        self.url = options.url.rstrip("/").removesuffix("/v1").rstrip("/")
        self._key = _key(options.api_key_env)
        self._http = httpx2.Client(
            base_url=self.url,
            timeout=options.timeout,
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            limits=httpx2.Limits(max_connections=options.max_concurrency),
        )
        self.trying = False
        """Whether an error of the server counts as a refusal: some do not know a request at all."""
        self._lock = threading.Lock()
        self._next = 0.0  # when the next request may start
        self._used = RemoteUsage(cost=None if self._prices() is None else 0.0)

    @property
    def used(self) -> RemoteUsage:
        return self._used

    def cost(self, input_tokens: int, output_tokens: int) -> float | None:
        """Return the price of some tokens; None if the options state no prices."""
        prices = self._prices()
        if prices is None:
            return None
        return (prices[0] * input_tokens + prices[1] * output_tokens) / 1e6

    def _prices(self) -> tuple[float, float] | None:
        given = (self._options.input_price, self._options.output_price)
        return None if given == (None, None) else (given[0] or 0.0, given[1] or 0.0)

    def get(self, path: str) -> Any:
        """Return the JSON at a path; None if there is none.

        Raises:
            UserError: the server cannot be reached.
        """
        try:
            return self._repeated(lambda: self._http.get(path))
        except Refused as refusal:
            if refusal.status in (401, 403):
                raise self.refusal(refusal) from refusal
            return None

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """Return the JSON that answers a request, which counts as used.

        Raises:
            Refused: the server will not answer it.
            UserError: it did not answer, however often it was asked.
        """
        answer = self._repeated(lambda: self._http.post(path, json=body))
        usage = answer.get("usage") if isinstance(answer, dict) else None
        usage = usage if isinstance(usage, dict) else {}
        tokens = [usage.get(name) or 0 for name in ("prompt_tokens", "completion_tokens")]
        self._count(*tokens)
        return answer

    def _count(self, input_tokens: int, output_tokens: int) -> None:
        cost = self.cost(input_tokens, output_tokens)
        with self._lock:
            used = self._used
            self._used = RemoteUsage(
                used.requests + 1,
                used.input_tokens + input_tokens,
                used.output_tokens + output_tokens,
                None if cost is None else (used.cost or 0.0) + cost,
            )

    def _repeated(self, send: Callable[[], httpx2.Response]) -> Any:
        problem, pause = "", FIRST_WAIT
        for attempt in range(self._options.retries + 1):
            if attempt:
                self._sleep(pause)
            self._wait_for_turn()
            pause = min(FIRST_WAIT * 2**attempt, LONGEST_WAIT) * (0.5 + random.random() / 2)
            try:
                response = send()
            except httpx2.TimeoutException:
                problem = f"no answer within {self._options.timeout:g} s"
                continue
            except httpx2.RequestError as error:
                problem = self._clean(str(error) or type(error).__name__)
                continue
            # While protocols are tried, a server that does not know one may answer 500.
            unknown = self.trying and response.status_code == 500
            if response.status_code in PASSING and not unknown:
                problem = f"status {response.status_code}: {self._message(response)}"
                pause = max(pause, min(_retry_after(response), MOST_WAIT))
                continue
            if response.status_code >= 400:
                raise Refused(response.status_code, self._message(response))
            try:
                return response.json()
            except ValueError:
                problem = "its answer is no complete JSON"
        raise UserError(
            f"server {self.url}: {problem}; asked {self._options.retries + 1} times; what was "
            "answered is kept: run the same command again"
        )

    def _wait_for_turn(self) -> None:
        rate = self._options.requests_per_second
        if rate is None:
            return
        with self._lock:
            now = time.monotonic()
            turn = max(self._next, now)
            self._next = turn + 1 / rate
        if turn > now:
            self._sleep(turn - now)

    def _message(self, response: httpx2.Response) -> str:
        try:
            content = response.json()
        except ValueError:
            content = response.text
        for name in ("error", "message", "detail"):
            if isinstance(content, dict) and name in content:
                content = content[name]
        return self._clean(str(content))

    def _clean(self, text: str) -> str:
        """Return a message in one line without the key, which some servers repeat."""
        text = " ".join(text.split())
        return (text.replace(self._key, "<key>") if self._key else text)[:300]

    def refusal(self, refusal: Refused) -> UserError:
        """Return the sentence for a refused request."""
        problem = f"server {self.url}: it refuses (status {refusal.status}): {refusal.message}"
        if refusal.status in (401, 403):
            name = self._options.api_key_env
            advice = f"check the key in {name}" if name else "name its variable in api_key_env"
            return UserError(f"{problem}; {advice}")
        if "logprob" in refusal.message.lower():
            return UserError(
                f"{problem}; lower knowledge.top_k, or raise the server's limit (vLLM: "
                "--max-logprobs)"
            )
        return UserError(f"{problem}; correct teacher.model.options")

    def each(
        self, work: Callable[[Item], Result], items: Sequence[Item]
    ) -> Iterator[tuple[int, Result]]:
        """Yield index and result of each item, as they come, from several threads.

        After a failure nothing new is begun, but what is under way is still yielded.

        Raises:
            UserError: the first failure, after the last result.
        """
        pool = ThreadPoolExecutor(self._options.max_concurrency)
        rest, pending = iter(enumerate(items)), dict[Future[Result], int]()
        failure: UserError | None = None
        try:
            while True:
                while failure is None and len(pending) < self._options.max_concurrency:
                    if (following := next(rest, None)) is None:
                        break
                    pending[pool.submit(work, following[1])] = following[0]
                if not pending:
                    break
                for future in wait(pending, return_when=FIRST_COMPLETED).done:
                    index = pending.pop(future)
                    try:
                        result = future.result()
                    except Refused as refusal:
                        failure = failure or self.refusal(refusal)
                    except UserError as error:
                        failure = failure or error
                    except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
                        failure = failure or UserError(
                            f"server {self.url}: its answer cannot be read "
                            f"({type(error).__name__}: {error})"
                        )
                    else:
                        yield index, result
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        if failure is not None:
            raise failure

    def close(self) -> None:
        self._http.close()


def _key(name: str | None) -> str:
    if name is None:
        return ""
    key = os.environ.get(name, "").strip()
    if not key:
        raise UserError(
            f"teacher.model.options.api_key_env: the environment variable {name} is not set; set "
            "it to the server's key"
        )
    return key


def _retry_after(response: httpx2.Response) -> float:
    """Return the seconds for which a server asks to be left alone."""
    text = response.headers.get("retry-after", "")
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return 0.0
