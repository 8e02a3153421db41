"""What the machine will be asked to do: a prompt, an answer, a batch."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from profiles.document import Document

MOST_CHUNKS = 10_000
"""Steps of a prefill that are walked one by one; more say nothing new and take minutes."""

Tokens = Annotated[int, Field(ge=1, le=10**9, strict=True)]


class Workload(Document):
    """One request: P prompt tokens in, N generated, B sequences at a time; KV is reserved for B * C tokens.

    `context_tokens` C defaults to P + N and may not be smaller; the prompt is read in chunks of `prefill_chunk`.

    >>> Workload(prompt_tokens=1000, generated_tokens=24).context_tokens
    1024
    """

    prompt_tokens: Tokens = 512
    generated_tokens: Annotated[int, Field(ge=0, le=10**9, strict=True)] = 128
    batch_size: Tokens = 1
    context_tokens: Tokens = None  # type: ignore[assignment]  # filled in below, so that readers see an int
    prefill_chunk: Tokens = 512

    def replace(self, **changes: Any) -> Self:
        """As any noun's; a context that just holds the request goes on to do so unless it is changed itself."""
        if self.context_tokens == self.prompt_tokens + self.generated_tokens:
            changes = {"context_tokens": None, **changes}
        return super().replace(**changes)

    @model_validator(mode="before")
    @classmethod
    def _reserve_what_is_used(cls, data: object) -> object:
        if not isinstance(data, dict) or data.get("context_tokens") is not None:
            return data
        prompt, generated = data.get("prompt_tokens", 512), data.get("generated_tokens", 128)
        whole = isinstance(prompt, int) and isinstance(generated, int)
        return {**data, "context_tokens": prompt + generated if whole else 1}

    @model_validator(mode="after")
    def _chunks_can_be_walked(self) -> Self:
        least = -(-self.prompt_tokens // MOST_CHUNKS)
        if self.prefill_chunk < least:
            raise ValueError(f"prefill_chunk: {self.prefill_chunk} cuts the prompt into too many steps; use >= {least}")
        return self

    @model_validator(mode="after")
    def _context_holds_the_request(self) -> Self:
        needed = self.prompt_tokens + self.generated_tokens
        if self.context_tokens < needed:
            raise ValueError(
                f"context_tokens: {self.context_tokens} cannot hold prompt_tokens + generated_tokens; use >= {needed}"
            )
        return self
