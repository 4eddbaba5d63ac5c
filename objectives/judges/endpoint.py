"""A judge behind any OpenAI-compatible server: asked patiently, and read strictly."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import re
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

import openai

from data.judge_config import EndpointConfig
from data.judge_prompts import GRADER, Wording, write_rubric
from data.measurements import Answer, Label, Verdict
from objectives.answers.request import never, refuse_to_go_on
from objectives.judges.base import JudgeError
from objectives.judges.rubric import judge_with_model

# A word and what a model may put around it.
_MOST_REPLY_TOKENS = 8
_DECORATION = " \t\r\n.,;:!?*_`\"'“”‘’()[]"

# The client insists on a key; this one is never sent.
_NO_KEY = "none"

_RETRIED_STATUSES = frozenset({408, 409, 429})
_FIRST_WAIT_SECONDS = 0.5
_LONGEST_WAIT_SECONDS = 30.0
# A server that tells to wait for longer is not waited for.
_LONGEST_RETRY_AFTER_SECONDS = 120.0

# Whoever stops a study does not wait for a server that is slow.
_SECONDS_BETWEEN_LOOKS = 0.5

# So many requests in a row without a reply, each after all its attempts, and the server counts as
# down; after a pause it is asked again, by one request first.
_DOWN_AFTER = 3
_DOWN_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Failure:
    """Why an attempt got no reply, and for how long the server wants to be left alone."""

    reason: str
    retry_after: float = 0.0


class Endpoint:
    """A server and the bounds on how it is asked, shared by all who ask it.

    The key is read from the environment when it is needed and kept nowhere. The bounds hold within
    a process; workers that share a server share its limits among them.
    """

    def __init__(
        self,
        config: EndpointConfig,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        draw: Callable[[], float] = random.random,
        should_stop: Callable[[], bool] = never,
    ) -> None:
        """Ask nothing yet.

        Args:
            config: The server.
            clock: Seconds that never go back.
            sleep: Waits so many seconds by that clock.
            draw: A number from 0 to 1, to keep workers from retrying in step.
            should_stop: Asked twice a second; once it says so nothing is waited for any more.
        """
        self.config = config
        self._clock = clock
        self._sleep = sleep
        self._draw = draw
        self._should_stop = should_stop
        rate = config.requests_per_minute
        self._seconds_between = 0.0 if rate is None else 60.0 / rate
        self._next_start = -float("inf")
        self._given_up_in_a_row = 0
        self._down_until = -float("inf")
        self._asked = 0
        self._given_up = 0
        self._last_reason = ""

    @property
    def unreachable_reason(self) -> str | None:
        """Return why requests got no reply, and how many; None if all have got one so far."""
        if not self._given_up:
            return None
        return (
            f"{self.config.base_url}: {self._given_up} of {self._asked} requests got no reply; "
            f"the last: {self._last_reason}"
        )

    def ask(self, texts: Sequence[str]) -> list[str | None]:
        """Return the replies in the order of the texts; None where there was none.

        It runs an event loop of its own, so it must not be called from within one.

        Raises:
            AskingStopped: If it was to stop.
            JudgeError: If the server refuses the key, the model or the request.
        """
        return asyncio.run(self._ask_all(texts)) if texts else []

    async def _ask_all(self, texts: Sequence[str]) -> list[str | None]:
        replies: list[str | None] = [None] * len(texts)
        numbers = iter(range(len(texts)))
        refused: list[JudgeError] = []

        async def work(client: openai.AsyncOpenAI, most: int) -> None:
            for _ in range(most):
                number = next(numbers, None)
                if number is None or refused:
                    return
                self._asked += 1
                if self._is_down:
                    self._given_up += 1
                    continue
                try:
                    replies[number] = await self._ask_one(client, texts[number])
                except JudgeError as error:
                    refused.append(error)

        async with self._open_client() as client:
            if self._is_down and self._clock() >= self._down_until:
                self._given_up_in_a_row = _DOWN_AFTER - 1
                await self._wait_for([work(client, 1)])
            workers = min(self.config.concurrency, len(texts))
            await self._wait_for([work(client, len(texts)) for _ in range(workers)])
        if refused:
            raise refused[0]
        return replies

    async def _wait_for(self, working: Sequence[Coroutine[None, None, None]]) -> None:
        """Wait until all have ended; if it is to stop, end them where they are and raise."""
        tasks = [asyncio.create_task(each) for each in working]
        try:
            while (await asyncio.wait(tasks, timeout=_SECONDS_BETWEEN_LOOKS))[1]:
                refuse_to_go_on(self._should_stop)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for task in tasks:
            task.result()

    @property
    def _is_down(self) -> bool:
        return self._given_up_in_a_row >= _DOWN_AFTER

    async def _ask_one(self, client: openai.AsyncOpenAI, text: str) -> str | None:
        """Return the reply; None after all attempts, or once the server is down."""
        failure = _Failure(reason="")
        for attempt in range(self.config.attempts):
            if attempt:
                backoff = min(_FIRST_WAIT_SECONDS * 2 ** (attempt - 1), _LONGEST_WAIT_SECONDS)
                await self._sleep(max(backoff * (0.5 + self._draw() / 2), failure.retry_after))
            await self._take_turn()
            if self._is_down:
                self._given_up += 1
                return None
            outcome = await self._try(client, text)
            if isinstance(outcome, str):
                self._given_up_in_a_row = 0
                return outcome
            failure = outcome
            if failure.retry_after > _LONGEST_RETRY_AFTER_SECONDS:
                break
            # The others leave the server alone, too.
            self._next_start = max(self._next_start, self._clock() + failure.retry_after)
        self._given_up += 1
        self._given_up_in_a_row += 1
        self._last_reason = failure.reason
        if self._is_down:
            self._down_until = self._clock() + _DOWN_SECONDS
        return None

    async def _take_turn(self) -> None:
        """Wait until the rate allows another request."""
        now = self._clock()
        start = max(now, self._next_start)
        self._next_start = start + self._seconds_between
        if start > now:
            await self._sleep(start - now)

    async def _try(self, client: openai.AsyncOpenAI, text: str) -> str | _Failure:
        """Return the reply, or why there is none although there may be one later.

        Raises:
            JudgeError: If there will never be one.
        """
        limit = self.config.timeout_seconds
        has_key = client.api_key != _NO_KEY
        try:
            async with asyncio.timeout(limit):
                response = await client.chat.completions.with_raw_response.create(
                    model=self.config.model,
                    messages=[{"role": "user", "content": text}],
                    temperature=0,
                    max_tokens=_MOST_REPLY_TOKENS,
                    extra_headers={} if has_key else {"Authorization": openai.Omit()},
                )
            reply = _read_reply(response.text)
            return _Failure(reason="its reply cannot be read") if reply is None else reply
        except (TimeoutError, openai.APITimeoutError):
            return _Failure(reason=f"none within {limit:g} s")
        except openai.APIStatusError as error:
            status, code, said = error.status_code, error.code, error.message
            wait = _read_retry_after(error.response.headers.get("retry-after"))
        except openai.OpenAIError as error:
            cause = type(error.__cause__ or error).__name__
            return _Failure(reason=f"the connection failed ({cause})")
        if status in _RETRIED_STATUSES or status >= 500:
            return _Failure(reason=f"HTTP status {status}", retry_after=wait)
        if code == "content_filter":
            return ""  # it is about this answer and not about the set-up, and no verdict
        # Raised outside the handler: what was caught there holds the request with its key.
        raise JudgeError(self._explain(status, said))

    def _explain(self, status: int, said: str) -> str:
        config = self.config
        if status in (401, 403):
            # What the server says is left out: it may repeat the key.
            if _read_key(config.key_variable) is None:
                return (
                    f"judge.endpoint.key_variable: {config.base_url} asks for a key (HTTP status "
                    f"{status}), and the environment variable {config.key_variable} is not set; "
                    "set it, or name the one that holds the key"
                )
            return (
                f"judge.endpoint.key_variable: {config.base_url} refuses the key (HTTP status "
                f"{status}) in the environment variable {config.key_variable}; put a valid one "
                "there, or name the variable that holds it"
            )
        if status == 404:
            return (
                f"judge.endpoint.model: {config.base_url} has no {config.model!r} (HTTP status "
                "404); name a model that the server lists, and check that base_url ends as the "
                "server wants it, mostly in /v1"
            )
        key = _read_key(config.key_variable)
        shown = said if key is None else said.replace(key, "…")
        shown = "".join(sign if sign.isprintable() else " " for sign in shown[:200])
        return (
            f"judge.endpoint: {config.base_url} refuses to be asked (HTTP status {status}): "
            f"{shown}; check model {config.model!r} and base_url"
        )

    def _open_client(self) -> openai.AsyncOpenAI:
        key = _read_key(self.config.key_variable)
        return openai.AsyncOpenAI(
            base_url=self.config.base_url,
            api_key=key or _NO_KEY,
            timeout=self.config.timeout_seconds,
            max_retries=0,  # attempts are counted, spaced and bounded here
        )


class EndpointJudge:
    """Asks a server's model in one wording; what it does not clearly answer is unjudged.

    An answer without a word is not attempted. No answer is wrong because the server was silent.
    """

    def __init__(self, endpoint: Endpoint, wording: Wording = GRADER) -> None:
        """Take the server, which several judges may share, and how its model is asked."""
        self._endpoint = endpoint
        self._wording = wording

    @property
    def name(self) -> str:
        """Return a name of the model, a digest of server and model, and the wording."""
        config = self._endpoint.config
        digest = hashlib.sha256(f"{config.base_url}\n{config.model}".encode()).hexdigest()
        short = config.model.rsplit("/", 1)[-1][:40]
        return f"endpoint {short}@{digest[:12]} {self._wording.signature}"

    @property
    def unreachable_reason(self) -> str | None:
        """Return why the server's replies are missing, and how many; None if all came so far."""
        return self._endpoint.unreachable_reason

    def judge(self, answers: Sequence[Answer]) -> tuple[Verdict, ...]:
        """Return one verdict per answer, in their order.

        Raises:
            JudgeError: If the server refuses the key, the model or the request.
        """
        return judge_with_model(answers, name=self.name, ask=self._label)

    def _label(self, answers: Sequence[Answer]) -> list[Label]:
        rubrics = [
            write_rubric(
                self._wording,
                question=answer.prompt.question,
                accepted=answer.prompt.accepted,
                answer=answer.text,
            )
            for answer in answers
        ]
        return [read_verdict(reply) for reply in self._endpoint.ask(rubrics)]


def read_verdict(reply: str | None) -> Label:
    """Return what exactly "yes" or "no" says, in any case and decoration; else "unjudged"."""
    word = "" if reply is None else reply.strip(_DECORATION).lower()
    return "correct" if word == "yes" else "incorrect" if word == "no" else "unjudged"


def _read_key(variable: str) -> str | None:
    """Return the key, None where there is none.

    Raises:
        JudgeError: If it cannot be sent; the text does not have it.
    """
    key = os.environ.get(variable, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise JudgeError(
            f"judge.endpoint.key_variable: the environment variable {variable} holds characters "
            "that no key has; set it again"
        )
    return key or None


def _read_reply(body: str) -> str | None:
    """Return what the model said, empty if it said nothing; None if the body is something else."""
    try:
        content = json.loads(body)["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        return None
    return content if isinstance(content, str) else "" if content is None else None


def _read_retry_after(header: str | None) -> float:
    """Return how many seconds to wait; 0 if nothing sensible is said."""
    text = (header or "").strip()
    if re.fullmatch(r"\d{1,9}(?:\.\d+)?", text, re.ASCII):
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return 0.0
