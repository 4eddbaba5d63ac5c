"""Which judge a study has, as its author says it: checked before anything is loaded or asked."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal, get_args
from urllib.parse import urlsplit

from data.recipes import SettingError

JudgeKind = Literal["matcher", "model", "endpoint", "cascade"]
JUDGE_KINDS: tuple[JudgeKind, ...] = get_args(JudgeKind)

DEFAULT_KEY_VARIABLE = "OPENAI_API_KEY"


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointConfig:
    """An OpenAI-compatible server that judges, and how hard it may be asked.

    `timeout_seconds` bounds one attempt. `requests_per_minute` counts attempts and is unbounded if
    None. `key_variable` names the environment variable with the key; a server that needs none is
    asked without where the variable is not set.
    """

    base_url: str
    model: str
    timeout_seconds: float = 30.0
    attempts: int = 4
    requests_per_minute: float | None = None
    concurrency: int = 4
    key_variable: str = DEFAULT_KEY_VARIABLE

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            SettingError: Naming the field, its value unless that may be a secret, and a remedy.
        """
        _check_url(self.base_url)
        _require(bool(self.model.strip()), "model", self.model, "a name that the server knows")
        _require(
            math.isfinite(self.timeout_seconds) and self.timeout_seconds > 0,
            "timeout_seconds",
            self.timeout_seconds,
            "above 0",
        )
        _require(1 <= self.attempts <= 20, "attempts", self.attempts, "from 1 to 20")
        _require(1 <= self.concurrency <= 256, "concurrency", self.concurrency, "from 1 to 256")
        rate = self.requests_per_minute
        _require(
            rate is None or (math.isfinite(rate) and rate > 0),
            "requests_per_minute",
            rate,
            "above 0; leave it out for no bound",
        )
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,63}", self.key_variable):
            raise SettingError(
                "judge.endpoint.key_variable: the value is not allowed, and not shown in case it "
                "is the key itself; it must be the name of an environment variable, such as "
                f"{DEFAULT_KEY_VARIABLE}, that holds the key"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeConfig:
    """The judge of a study.

    - "matcher": no model is asked.
    - "model": the local model `model`, a folder or a hub id, judges every answer.
    - "endpoint": the server `endpoint` does.
    - "cascade": the matcher, and then one of the two, asked in two wordings, for
      what the matcher does not accept.
    """

    kind: JudgeKind = "matcher"
    model: str | None = None
    endpoint: EndpointConfig | None = None

    def __post_init__(self) -> None:
        """Refuse what the kind lacks or has no use for.

        Raises:
            SettingError: Naming the field, its value and what to do.
        """
        if self.kind not in JUDGE_KINDS:
            raise SettingError(
                f"judge.kind: {self.kind!r} is not allowed; it must be one of "
                f"{', '.join(JUDGE_KINDS)}"
            )
        if self.model is not None and not self.model.strip():
            raise SettingError(
                f"judge.model: {self.model!r} is not allowed; name a folder with a Hugging Face "
                "model or a hub id"
            )
        if self.kind in ("matcher", "endpoint") and self.model is not None:
            raise SettingError(
                f"judge.model: {self.model!r} is not allowed, for the kind {self.kind!r} asks no "
                "local model; leave it out, or choose the kind “model” or “cascade”"
            )
        if self.kind in ("matcher", "model") and self.endpoint is not None:
            raise SettingError(
                f"judge.endpoint: {self.endpoint.base_url!r} is not allowed, for the kind "
                f"{self.kind!r} asks no server; leave it out, or choose the kind “endpoint” or "
                "“cascade”"
            )
        if self.kind == "model" and self.model is None:
            raise SettingError(
                "judge.model: it is missing; the kind “model” needs a folder with a Hugging Face "
                "model or a hub id"
            )
        if self.kind == "endpoint" and self.endpoint is None:
            raise SettingError(
                "judge.endpoint: it is missing; the kind “endpoint” needs base_url and model of a "
                "server"
            )
        if self.kind == "cascade" and (self.model is None) == (self.endpoint is None):
            has = "neither is" if self.model is None else f"both are (the model {self.model!r})"
            raise SettingError(
                f"judge: a cascade asks either judge.model or judge.endpoint, and {has} given; "
                "give exactly one"
            )


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        has_host, has_password = bool(parts.hostname), "@" in parts.netloc
        _ = parts.port  # a port that is no number is found now
    except ValueError:
        parts, has_host, has_password = urlsplit(""), False, "@" in url
    if has_password:
        raise SettingError(
            "judge.endpoint.base_url: a name or password in the address is not allowed (it is not "
            "shown here); put the key into an environment variable and name that in key_variable"
        )
    is_address = has_host and parts.scheme in ("http", "https") and url.isprintable()
    _require(
        is_address and " " not in url and not parts.query and not parts.fragment,
        "base_url",
        url,
        "an address as http://localhost:8000/v1, without a query",
    )


def _require(holds: bool, field: str, value: object, bound: str) -> None:
    if not holds:
        raise SettingError(f"judge.endpoint.{field}: {value!r} is not allowed; it must be {bound}")
