"""Greedy generation through the stages of all ranks, on torch.distributed's pipelining package."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import FORWARD, PipelineScheduleMulti, _Action

from profiles.errors import ApplyError
from runtime_adapter.distributed.cut import StageModel
from runtime_adapter.distributed.ranks import Ranks
from runtime_adapter.distributed.stages import Stage


class NamedStage(PipelineStage):
    """A stage that notes which rank it is about to wait for."""

    def __init__(self, model: StageModel, ranks: Ranks, owners: Sequence[int], shape: tuple[int, int]) -> None:
        given, made = model.shapes(*shape)
        stage = model.stage
        super().__init__(model, stage.index, len(owners), ranks.link, given, made, group=ranks.hidden)
        self.stage_index_to_group_rank = dict(enumerate(owners))
        self.stage, self.ranks = stage, ranks

    def get_fwd_recv_ops(self, fwd_chunk_id: int) -> Any:
        operations = super().get_fwd_recv_ops(fwd_chunk_id)
        if operations:
            self.ranks.wait_for(operations[0].peer, f"the hidden states that {self.stage} needs")
        return operations

    def get_fwd_send_ops(self, fwd_chunk_id: int) -> Any:
        operations = super().get_fwd_send_ops(fwd_chunk_id)
        if operations:
            self.ranks.wait_for(operations[0].peer, f"it to take the hidden states of {self.stage}")
        return operations


class Relay(PipelineScheduleMulti):
    """Forward only, the whole batch at once, stage after stage, whichever rank each is on."""

    def __init__(self, stages: Sequence[NamedStage], owners: Sequence[int]) -> None:
        super().__init__(list(stages), n_microbatches=1)
        self.stage_index_to_group_rank = dict(enumerate(owners))
        for stage in stages:
            stage.stage_index_to_group_rank = self.stage_index_to_group_rank
        self.pipeline_order = {
            rank: [_Action(i, FORWARD, 0) if owner == rank else None for i, owner in enumerate(owners)]
            for rank in set(owners)
        }


class DistributedModel:
    """This rank's part of a model that all ranks compute together. Every rank calls the same methods in the same order.

    `stages` are those of all ranks, in order. Closing it, or leaving the `with` block, leaves all process groups but
    the default one.
    """

    def __init__(self, ranks: Ranks, stages: Sequence[Stage], models: Sequence[StageModel]) -> None:
        self.stages = tuple(stages)
        self.rank = ranks.rank
        self._ranks, self._models = ranks, tuple(models)
        self._owners = [stage.rank for stage in stages]

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        max_new_tokens: int,
        eos_token_id: int | Sequence[int] | None = None,
        pad_token_id: int | None = None,
    ) -> Tensor:
        """The prompt [B, P] and the greedily chosen tokens after it, [B, P + up to `max_new_tokens`], on every rank.

        `attention_mask` [B, P] has a 0 where a shorter prompt was padded on its left. A row that has met an end token
        is filled up with `pad_token_id`; generation ends when all have. Both default to what the checkpoint's
        generation_config says; its penalties and sampling are not used.

        Raises ApplyError on every rank when they were given different prompts, and on those that are left when one ends
        or does not answer within `timeout_s`; the model is closed then. What a stage itself raises, memory
        running out say, is raised on its rank.
        """
        if not self._ranks.open:
            raise ApplyError(f"rank {self.rank}: this model was closed, or lost a rank; start all ranks again")
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        _check_prompt(input_ids, mask, max_new_tokens)
        ends = self._ends(eos_token_id)
        pad = self._pad(pad_token_id, ends)
        ids, mask = input_ids.to("cpu", torch.int64), mask.to("cpu", torch.int64)
        self._ranks.agree("prompt", ids, mask, max_new_tokens, ends, pad)
        with self._guarded():
            return self._generated(ids, mask, max_new_tokens, ends, pad).to(input_ids.device)

    def _generated(self, ids: Tensor, mask: Tensor, count: int, ends: Tensor, pad: int) -> Tensor:
        tokens, done = ids, torch.zeros(len(ids), dtype=torch.bool)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        given, relay = ids, self._relay(*ids.shape)
        with ExitStack() as decoding:
            for step in range(count):
                logits = self._step(relay, given, mask, positions)
                chosen = self._chosen(logits, len(ids), f"token {step + 1} of {count}")
                chosen = torch.where(done, pad, chosen)
                tokens = torch.cat([tokens, chosen[:, None]], dim=-1)
                done = done | torch.isin(chosen, ends)
                if bool(done.all()):
                    break
                if step == 0:
                    relay = self._relay(len(ids), 1)
                    for model in self._models:  # generate() of transformers changes the experts' kernel here, too
                        decoding.enter_context(getattr(model.model, "_optimize_model_for_decode", nullcontext)())
                given, positions = chosen[:, None], positions[:, -1:] + 1
                mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=-1)
        return tokens

    def _relay(self, rows: int, tokens: int) -> Relay:
        """The pipeline for one shape, which torch fixes when it is made."""
        stages = [NamedStage(model, self._ranks, self._owners, (rows, tokens)) for model in self._models]
        return Relay(stages, self._owners)

    def _step(self, relay: Relay, given: Tensor, mask: Tensor, positions: Tensor) -> Tensor | None:
        first = [given] if self._models[0].stage.embedding else []
        self._ranks.wait_for(None, "the pipeline to start")
        logits: Tensor | None = relay.step(*first, attention_mask=mask, position_ids=positions)
        return logits

    def _chosen(self, logits: Tensor | None, rows: int, what: str) -> Tensor:
        chosen = None if logits is None else logits.argmax(-1)
        return self._ranks.from_last(chosen, self._owners[-1], rows, what)

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Fresh KV caches inside; close when anything goes wrong, so that no rank waits for this one."""
        for model in self._models:
            model.start()
        log = logging.getLogger("torch.distributed.pipelining.schedules")
        log.addFilter(_not_an_error)  # it prints the whole schedule before it raises what is raised here
        try:
            yield
        except RuntimeError as problem:
            for raised in (problem, problem.__cause__):  # their frames hold the groups, whose sockets shall close
                traceback.clear_frames(None if raised is None else raised.__traceback__)
            failed = next((model for model in self._models if model.failure is not None), None)
            if failed is not None and failed.failure is not None:
                self._ranks.close()
                raise failed.failure.with_traceback(failed.trace) from None
            raise self._ranks.lost(problem) from None
        except BaseException:
            self._ranks.close()
            raise
        finally:
            log.removeFilter(_not_an_error)
            for model in self._models:
                model.stop()

    def _ends(self, given: int | Sequence[int] | None) -> Tensor:
        wanted = self._models[0].model.generation_config.eos_token_id if given is None else given
        listed = [] if wanted is None else [wanted] if isinstance(wanted, int) else list(wanted)
        return torch.tensor(listed, dtype=torch.int64)

    def _pad(self, given: int | None, ends: Tensor) -> int:
        wanted = self._models[0].model.generation_config.pad_token_id if given is None else given
        return int(wanted if wanted is not None else ends[0] if len(ends) else 0)

    @property
    def device_map(self) -> dict[str, str]:
        """The torch device of each module of this rank, by its name in the whole model."""
        return {name: device for part in self._models for name, device in part.device_map.items()}

    def close(self) -> None:
        """Leave the process groups. Doing it twice does nothing."""
        self._ranks.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _not_an_error(record: logging.LogRecord) -> bool:
    return record.levelno < logging.ERROR


def _check_prompt(ids: Tensor, mask: Tensor, max_new_tokens: int) -> None:
    if ids.ndim != 2 or not ids.numel() or ids.is_floating_point():
        raise ApplyError(f"input_ids: {list(ids.shape)} of {ids.dtype}; give token ids of shape [batch, tokens]")
    if mask.shape != ids.shape:
        raise ApplyError(f"attention_mask: {list(mask.shape)} for ids of {list(ids.shape)}; give one entry a token")
    if not bool(mask[:, -1].all()):
        raise ApplyError("attention_mask: a prompt ends with padding; pad on the left")
    if max_new_tokens < 1:
        raise ApplyError(f"max_new_tokens: {max_new_tokens}; ask for at least 1")
