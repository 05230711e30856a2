"""A judge behind any endpoint that speaks OpenAI's chat completions: OpenAI's own, vLLM, SGLang and others."""

from __future__ import annotations

import base64
import io
import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from PIL import Image

from blip3o.evaluation.judges.base import Answer, Judge, JudgeStopped, Unanswered

if TYPE_CHECKING:
    import openai

OPENAI_URL = "https://api.openai.com/v1"
_HOPELESS = {401: "refused the key in {key}", 403: "forbids this key its use", 404: "knows no such model or path"}


class OpenAIJudge(Judge):
    """Sends the words and the pictures (PNG, base64) as one user message of a chat.

    Needs the extra `blip3o[judge]`. Requests that fail with 408, 409, 429 or 5xx, time out or find no connection are
    sent again by the `openai` client, after pauses that double from half a second to eight, or as the server asks.

    Args:
        model: name of the model at the endpoint.
        base_url: address of the endpoint, up to and with its `/v1`.
        api_key_env: environment variable that holds the key; the key itself is written nowhere.
        timeout: seconds that one request may take.
        retries: how often a failed request is sent again.
        max_concurrency: requests at a time.
        temperature: of the judge's words; None leaves it to the endpoint (some models take no other than their own).
        max_tokens: greatest length of an answer; None leaves it to the endpoint.

    Raises:
        ValueError: on a value out of range.
    """

    def __init__(
        self,
        *,
        model: str,
        base_url: str = OPENAI_URL,
        api_key_env: str = "OPENAI_API_KEY",
        timeout: float = 120.0,
        retries: int = 5,
        max_concurrency: int = 8,
        temperature: float | None = 0.0,
        max_tokens: int | None = None,
    ) -> None:
        address = urlsplit(base_url)
        if address.scheme not in ("http", "https") or not address.hostname:
            raise ValueError(f"base_url ({base_url}) must be an address such as {OPENAI_URL}.")
        if address.username or address.password:
            raise ValueError("base_url holds a user or a password, which records would show; use api_key_env.")
        if not model.strip():
            raise ValueError(f"model ({model!r}) must name the endpoint's model.")
        for name, value, least in (("retries", retries, 0), ("max_concurrency", max_concurrency, 1)):
            if value < least:
                raise ValueError(f"{name} ({value}) must be at least {least}.")
        if not (math.isfinite(timeout) and timeout > 0):
            raise ValueError(f"timeout ({timeout}) must be a number of seconds above 0.")
        if max_tokens is not None and max_tokens < 1:
            raise ValueError(f"max_tokens ({max_tokens}) must be at least 1; leave it out for the endpoint's own.")
        self.model = model
        self.base_url = base_url
        self.api_key_env = api_key_env
        self.timeout = timeout
        self.retries = retries
        self.max_concurrency = max_concurrency
        self.temperature = temperature
        self.max_tokens = max_tokens
        self.id = f"{model} at {base_url}"
        self.settings = {"temperature": temperature, "max_tokens": max_tokens}
        self._client: openai.OpenAI | None = None

    def check(self) -> None:
        """Looks for the package and the key."""
        try:
            import openai  # noqa: F401
        except ImportError as error:
            raise ImportError(
                "OpenAIJudge needs openai; install the extra with `pip install 'blip3o[judge]'`."
            ) from error
        if not os.environ.get(self.api_key_env):
            raise ValueError(
                f"the environment variable {self.api_key_env} (api_key_env) is not set; put the key there, or any word "
                "for a server that asks for none."
            )

    def prepare(self) -> None:
        """Makes the client; nothing is sent."""
        self.check()
        import openai

        if self._client is None:
            self._client = openai.OpenAI(
                base_url=self.base_url,
                api_key=os.environ[self.api_key_env],
                timeout=self.timeout,
                max_retries=self.retries,
            )

    def __call__(self, prompt: str, images: Sequence[Image.Image]) -> Answer:
        """Sends one request; an answer without words comes back empty."""
        import openai

        self.prepare()
        assert self._client is not None
        pictures = [{"type": "image_url", "image_url": {"url": _data_url(image)}} for image in images]
        given = {"temperature": self.temperature, "max_tokens": self.max_tokens}
        chosen: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        messages: list[Any] = [{"role": "user", "content": [{"type": "text", "text": prompt}, *pictures]}]
        try:
            completion = self._client.chat.completions.create(model=self.model, messages=messages, **chosen)
        except openai.APITimeoutError as error:
            raise Unanswered(f"no answer within {self.timeout:g} seconds, {self._tries()}") from error
        except openai.APIConnectionError as error:
            told = error.__cause__ or error
            raise JudgeStopped(
                f"the judge ({self.id}) can not be reached, {self._tries()}: {told}; check base_url and the server."
            ) from error
        except openai.APIStatusError as error:
            raise self._refusal(error) from error
        except (openai.OpenAIError, ValueError) as error:  # a body that is no JSON, or none that a chat gives
            raise Unanswered(f"the endpoint's reply can not be read: {_line(error)}") from error
        return _answer(completion, self.model)

    def _refusal(self, error: openai.APIStatusError) -> ValueError:
        """What a status means: for this request, or for all."""
        status = error.status_code
        if status == 429:
            return JudgeStopped(
                f"the judge ({self.id}) takes no more requests (429), {self._tries()}: {_line(error)}; lower "
                "max_concurrency, or wait until the limit or quota allows more."
            )
        if status in _HOPELESS:
            told = _HOPELESS[status].format(key=self.api_key_env)
            return JudgeStopped(
                f"the judge ({self.id}) {told} ({status}): {_line(error)}; check {self.api_key_env}, the model's name "
                "and base_url."
            )
        return Unanswered(f"the endpoint answered {status}, {self._tries()}: {_line(error)}")

    def _tries(self) -> str:
        return f"tried up to {self.retries + 1} times"


def _data_url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def _answer(completion: Any, model: str) -> Answer:
    """The first choice's words; an endpoint that speaks something else may give a reply of any form.

    Raises:
        Unanswered: if the reply holds no message.
    """
    try:
        text = completion.choices[0].message.content
        version = completion.model
    except (AttributeError, IndexError, TypeError) as error:
        raise Unanswered("the endpoint's reply is no chat completion; check that base_url ends in /v1") from error
    if not isinstance(text, str | None):
        raise Unanswered(f"the endpoint's reply holds {type(text).__name__} for words")
    return Answer(text or "", version if isinstance(version, str) and version else model)


def _line(error: Exception) -> str:
    """An error's message on one line, of a sensible length."""
    told = " ".join(str(error).split())
    return told if len(told) <= 300 else told[:300] + " ..."
