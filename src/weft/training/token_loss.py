"""The loss of learned tokens, in chunks: never the logits of all of them at once.

For n learned tokens and a vocabulary of V, logits and their gradient take several times n V numbers, more than the
whole rest of a step where V is large. Here the model's body runs once, and then, for a chunk of tokens at a time, its
head and the cross entropy, whose gradient is taken at once and the logits forgotten; what is kept for the backward
pass is the gradient of the body's output, (n, width). So does Liger Kernel's fused linear cross entropy (Hsu et al.,
2024, arXiv 2410.10989).
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from transformers import PreTrainedModel

from weft.data.text import IGNORED
from weft.training.mode import evaluating

_CHUNK_BYTES = 64 * 2**20  # of the logits of one chunk, in float32


@dataclass(frozen=True)
class Head:
    """What follows a model's body: logits (n, V) = finish(module(hidden)), for hidden (n, width).

    Attributes:
        module: the output layer.
        finish: what is done to its output.
        chunk: tokens whose logits are made at a time.
    """

    module: nn.Module
    finish: Callable[[Tensor], Tensor]
    chunk: int

    def logits(self, hidden: Tensor) -> Tensor:
        """(n, V) from (n, width), in the head's dtype."""
        return self.finish(self.module(hidden))

    def chunks(self, tokens: int) -> Iterator[slice]:
        """Slices that cover so many tokens."""
        return (slice(start, start + self.chunk) for start in range(0, tokens, self.chunk))


def is_causal(model: nn.Module) -> bool:
    """Whether it is a causal language model of transformers: each token's logits are for the next one."""
    return isinstance(model, PreTrainedModel) and model.can_generate() and not model.config.is_encoder_decoder


def head_of(model: nn.Module) -> Head | None:
    """A causal language model's head, if its logits and its loss are nothing but that.

    Some models scale or cap their logits, or add to the loss. What is found is therefore tried on a few tokens
    against the model itself: the same logits, bit for bit, and the same loss.
    """
    if not isinstance(model, PreTrainedModel) or not is_causal(model):
        return None
    module = model.get_output_embeddings()
    if not isinstance(module, nn.Module) or model.base_model is model:
        return None
    size = model.config.get_text_config().vocab_size
    ids = torch.tensor([[(7 * i + 1) % size for i in range(9)]], device=model.device)
    with evaluating(model):
        output = model(input_ids=ids, labels=ids, use_cache=False)
        hidden = model.base_model(input_ids=ids, use_cache=False)[0]
        weight = dict(module.named_parameters()).get("weight")
        if weight is None or weight.shape[-1] != hidden.shape[-1]:
            return None
        for finish in _finishes(model):
            head = Head(module, finish, max(1, _CHUNK_BYTES // (4 * output.logits.shape[-1])))
            if torch.equal(head.logits(hidden).float(), output.logits.float()):
                own = scores_of_logits(head.logits(hidden[0, :-1]), ids[0, 1:]).loss.mean()
                return head if math.isclose(own, output.loss, rel_tol=1e-5) else None
    return None


def likely_head(model: PreTrainedModel) -> Head | None:
    """The head that `head_of` will most likely find, of a model on the meta device, where nothing can be tried.

    Its logits have the right shape, and no scale or cap.
    """
    module = model.get_output_embeddings()
    settings = model.config.get_text_config().to_dict()
    if not is_causal(model) or not isinstance(module, nn.Module) or settings.get("output_router_logits"):
        return None
    return Head(module, lambda z: z, max(1, _CHUNK_BYTES // (4 * settings["vocab_size"])))


def batch_loss(model: PreTrainedModel, head: Head, inputs: dict[str, Any], items: Tensor | int | None) -> Tensor:
    """The loss of a batch, padded or packed, as transformers' causal language models define it.

    Args:
        model: the model whose head it is.
        head: from `head_of`.
        inputs: of the model, labels among them.
        items: learned tokens in the whole optimizer step, by which the sum is divided; None: those of the batch.
    """
    hidden, targets = _learned(model, inputs)
    total = token_loss(head, hidden, targets)
    return total / (len(targets) if items is None else torch.as_tensor(items, device=total.device))


def token_loss(head: Head, hidden: Tensor, targets: Tensor) -> Tensor:
    """The sum of -log p of the targets, in float32; differentiable once, in `hidden` and the head's parameters.

    Args:
        head: from `head_of`.
        hidden: (n, width), the body's output at the tokens before the targets.
        targets: (n), int64.
    """
    parameters = [parameter for parameter in head.module.parameters() if parameter.requires_grad]
    loss: Tensor = _TokenLoss.apply(head, hidden, targets, *parameters)
    return loss


class TokenScores(NamedTuple):
    """What n learned tokens scored.

    Attributes:
        loss: -log p of each, (n), float32.
        correct: whether it is the most likely one, (n), bool.
    """

    loss: Tensor
    correct: Tensor


def batch_scores(model: PreTrainedModel, head: Head, inputs: dict[str, Any]) -> TokenScores:
    """The scores of a batch's learned tokens, row after row, in chunks; arguments as of `batch_loss`.

    Call it without gradients.
    """
    hidden, targets = _learned(model, inputs)
    parts = [scores_of_logits(head.logits(hidden[part]), targets[part]) for part in head.chunks(len(targets))]
    return TokenScores(*map(torch.cat, zip(*parts, strict=True)))


def scores_of_logits(logits: Tensor, targets: Tensor) -> TokenScores:
    """The scores of logits (n, V) whose targets are (n)."""
    return TokenScores(F.cross_entropy(logits.float(), targets, reduction="none"), logits.argmax(-1) == targets)


def _learned(model: PreTrainedModel, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """The body's output (n, width) before each learned token of a batch, and these tokens (n)."""
    rest = {key: value for key, value in inputs.items() if key != "labels"}
    hidden = model.base_model(**rest, use_cache=False)[0]  # (rows, T, width)
    targets = inputs["labels"][:, 1:].to(hidden.device)
    chosen = targets != IGNORED
    return hidden[:, :-1][chosen], targets[chosen]


class _TokenLoss(torch.autograd.Function):
    """With p = softmax(z) and z = head(h): loss = -sum log p[target], dz = p - onehot(target), dh = dz dhead/dh.

    dz is known as soon as z is, so that dh is made in the forward pass, and only scaled in the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, head: Head, hidden: Tensor, targets: Tensor, *parameters: Tensor) -> Tensor:
        needed = [ctx.needs_input_grad[1], *ctx.needs_input_grad[3:]]
        loss = hidden.new_zeros((), dtype=torch.float32)
        d_hidden = torch.zeros_like(hidden) if needed[0] else None
        d_parameters = [torch.zeros_like(parameter) for parameter in parameters]
        for part in head.chunks(len(targets)):
            with torch.enable_grad():
                h = hidden[part].detach().requires_grad_(needed[0])
                z = head.logits(h)
            log_p = F.log_softmax(z.detach(), -1, dtype=torch.float32)
            places = targets[part, None]
            loss -= log_p.gather(1, places).sum()
            dz = log_p.exp_().scatter_add_(1, places, log_p.new_full(places.shape, -1.0)).to(z.dtype)
            inputs = [tensor for tensor, wanted in zip((h, *parameters), needed, strict=True) if wanted]
            gradients = iter(torch.autograd.grad(z, inputs, dz))
            if d_hidden is not None:
                d_hidden[part] = next(gradients)
            for total, gradient in zip(d_parameters, gradients, strict=True):
                total += gradient
        ctx.has_hidden = d_hidden is not None
        ctx.save_for_backward(*([d_hidden] if d_hidden is not None else []), *d_parameters)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_loss: Tensor) -> tuple[Tensor | None, ...]:
        gradients = [gradient * d_loss for gradient in ctx.saved_tensors]
        return None, gradients.pop(0) if ctx.has_hidden else None, None, *gradients


def _finishes(model: PreTrainedModel) -> Iterator[Callable[[Tensor], Tensor]]:
    """What the models known do to their logits: nothing, scale them (Cohere, Granite), cap them (Gemma)."""
    settings = model.config.get_text_config().to_dict()
    yield lambda z: z
    if scale := settings.get("logit_scale"):
        yield lambda z: z * scale
    if scaling := settings.get("logits_scaling"):
        yield lambda z: z / scaling
    if cap := settings.get("final_logit_softcapping"):
        yield lambda z: torch.tanh(z / cap) * cap
